"""The published DAM as a strategy: eight trainings, then the eight masks of the table."""

from pathlib import Path
from typing import Any

import pytest
from experiment_scripts import load_script
from toy_sentences import sentence_judge, write_sentences

import masksearch as ms
from masksearch.contracts import Evaluate, OneShot, Proposal, Record, Refused
from masksearch.gates.discretise import at_sparsity
from masksearch.gates.result import DamResult
from masksearch.strategies.build import build_strategy
from masksearch.tasks.planted.process import PlantedProcess

EVALUATOR = ms.PlantedEvaluator(
    PlantedProcess(length=24, offsets=(4,), vocabulary=4),
    steps=2,
    downstream_steps=2,
    held_out_sequences=32,
)
PUBLISHED = {  # structure, lambda and sparsity in percent: README of SparseBERT at 5ce10ac
    "DAM_u 1e-4": ("symmetric", 1e-4, 78.9),
    "DAM_u 1e-3": ("symmetric", 1e-3, 79.2),
    "DAM_u 1e-2": ("symmetric", 1e-2, 79.8),
    "DAM_u 1e-1": ("symmetric", 1e-1, 85.8),
    "DAM_s 1e-4": ("toeplitz", 1e-4, 91.2),
    "DAM_s 1e-3": ("toeplitz", 1e-3, 91.6),
    "DAM_s 1e-2": ("toeplitz", 1e-2, 91.7),
    "DAM_s 1e-1": ("toeplitz", 1e-1, 93.5),
}
SHORT = {"steps": 3, "micro_batches": 1}


def search(run: Path, judge: Any, trials: int = 16, **given: Any) -> ms.Study:
    options = {"config": {**SHORT, **given.pop("config", {})}}
    return ms.search(
        None, judge, run=run, trials=trials, strategy="sparsebert", strategy_options=options,
        progress=None, **given,
    )  # fmt: skip


@pytest.mark.nightly  # eight trainings, 14 masks
@pytest.mark.filterwarnings("ignore")
def test_one_search_fills_the_published_table(tmp_path: Path) -> None:
    data, run = write_sentences(tmp_path), tmp_path / "run"
    judge = sentence_judge(data, adapt="none")
    search(run, judge, trials=9, baselines=ms.masks.FAMILIES)
    study = search(run, judge, baselines=ms.masks.FAMILIES)  # goes on
    gates = {r.params["gates"]: r for r in study.records() if isinstance(r.job, OneShot)}
    cut = {r.name: r for r in study.records() if "reached" in r.params}
    assert [*gates] == [*cut] == [*PUBLISHED]
    for name, (structure, penalty, percent) in PUBLISHED.items():
        record = cut[name]
        result = DamResult.load(run / gates[name].artifacts["gates"])
        assert (result.config["penalty"], result.config["control"]) == (penalty, "sum")
        assert result.gates["structure"] == structure
        kept = at_sparsity(result.probabilities, percent / 100)
        assert record.measures["sparsity"] == pytest.approx(percent / 100, abs=1 / 32**2)
        assert record.mask.dense(32, 1, kept.shape[1]).equal(kept)
        assert record.params["reached"] == pytest.approx(1 - result.probabilities.mean().item())
    beside = load_script("12_sparsebert_table/table.py").compare_published(run)
    assert len(beside.ours) == 14
    assert beside.common == ["SST-2"]
    assert sum("its gates have reached" in line for line in beside.notes()) == 8


def test_masks_wait_for_their_gates_and_survive_lost_ones(tmp_path: Path) -> None:
    options = {"config": SHORT}
    strategy = build_strategy("sparsebert", None, EVALUATOR, seed=0, run=tmp_path, options=options)
    for number in range(8):
        asked = strategy.ask()
        assert isinstance(asked, Proposal)
        assert asked.number == number
    assert strategy.ask() == "wait"
    strategy.tell(Record(0, "failed", OneShot()))
    refused = strategy.ask()
    assert isinstance(refused, Proposal)
    assert isinstance(refused.job, Refused)
    assert refused.name == "DAM_u 1e-4"
    assert strategy.ask() == "wait"
    for number in range(1, 8):
        strategy.tell(Record(number, "done", OneShot(), artifacts={"gates": "none.safetensors"}))
    rest = [strategy.ask() for _ in range(8)]
    assert rest[-1] == "done"
    assert not any(isinstance(each.job, Evaluate) for each in rest[:-1])


def test_its_lambdas_are_those_of_the_table(tmp_path: Path) -> None:
    with pytest.raises(
        ms.errors.SearchError, match="has the penalties of the published table: drop pen"
    ):
        search(tmp_path, EVALUATOR, config={"penalty": 0.1})
    with pytest.raises(
        ms.errors.UnknownNameError, match="unknown option of strategy 'sparsebert'"
    ):
        ms.search(None, EVALUATOR, run=tmp_path, trials=1, strategy="sparsebert",
                  strategy_options={"gates": {}})  # fmt: skip
