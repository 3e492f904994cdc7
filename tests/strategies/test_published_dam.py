"""The published DAM as a strategy: eight trainings, then the eight masks of the table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from experiment_scripts import load_script
from toy_sentences import write_sentences

import masksearch as ms
from masksearch.contracts import Evaluate, OneShot, Record, Refused
from masksearch.gates.discretise import at_sparsity
from masksearch.strategies.published_dam import PUBLISHED, PublishedDamStrategy

EVALUATOR = ms.PlantedEvaluator(
    ms.PlantedProcess(length=24, offsets=(4,), vocabulary=4),
    steps=2,
    downstream_steps=2,
    held_out_sequences=32,
)
SHORT = {"steps": 3, "micro_batches": 1}


def search(run: Path, judge: Any, trials: int = 16, **given: Any) -> ms.Study:
    options = {"config": {**SHORT, **given.pop("config", {})}}
    return ms.search(
        None, judge, run=run, trials=trials, strategy="sparsebert", strategy_options=options,
        progress=None, **given,
    )  # fmt: skip


@pytest.mark.slow  # eight trainings, 14 masks
@pytest.mark.filterwarnings("ignore")
def test_one_search_fills_the_published_table(tmp_path: Path) -> None:
    data, run = write_sentences(tmp_path), tmp_path / "run"
    judge = ms.GlueEvaluator(
        None, data / "glue", tasks=("SST-2",), weights=data / "checkpoint", adapt="none",
        length=32, epochs=2, finetune_batch=8, finetune_lr=3e-3, cache=tmp_path / "cache",
        device="cpu",
    )  # fmt: skip
    search(run, judge, trials=9, baselines=ms.FAMILIES)
    study = search(run, judge, baselines=ms.FAMILIES)  # goes on
    gates = {r.params["gates"]: r for r in study.records() if isinstance(r.job, OneShot)}
    cut = {r.name: r for r in study.records() if "reached" in r.params}
    assert [*gates] == [*cut] == [row.name for row in PUBLISHED]
    for row in PUBLISHED:
        record = cut[row.name]
        result = ms.DamResult.load(run / gates[row.name].artifacts["gates"])
        assert (result.config["penalty"], result.config["control"]) == (row.penalty, "sum")
        assert result.gates["structure"] == row.structure
        kept = at_sparsity(result.probabilities, row.sparsity / 100)
        assert record.measures["sparsity"] == pytest.approx(row.sparsity / 100, abs=1 / 32**2)
        assert record.mask is not None
        assert record.mask.dense(32, 1, kept.shape[1]).equal(kept)
        assert record.params["reached"] == pytest.approx(1 - result.probabilities.mean().item())
    beside = load_script("12_sparsebert_table/table.py").compare_published(run)
    assert len(beside.ours) == 14
    assert beside.common == ["SST-2"]
    assert sum("its gates have reached" in line for line in beside.notes()) == 8


def test_masks_wait_for_their_gates_and_survive_lost_ones(tmp_path: Path) -> None:
    strategy = PublishedDamStrategy(tmp_path, config=SHORT)
    for number in range(8):
        asked = strategy.ask()
        assert isinstance(asked, ms.Proposal)
        assert asked.number == number
    assert strategy.ask() == "wait"
    strategy.tell(Record(0, "failed", OneShot()))
    refused = strategy.ask()
    assert isinstance(refused, ms.Proposal)
    assert isinstance(refused.job, Refused)
    assert refused.name == "DAM_u 1e-4"
    assert strategy.ask() == "wait"
    for number in range(1, 8):
        strategy.tell(Record(number, "done", OneShot(), artifacts={"gates": "none.safetensors"}))
    rest = [strategy.ask() for _ in range(8)]
    assert rest[-1] == "done"
    assert not any(isinstance(each.job, Evaluate) for each in rest[:-1])


def test_its_lambdas_are_those_of_the_table(tmp_path: Path) -> None:
    with pytest.raises(ms.SearchError, match="has the penalties of the published table: drop pen"):
        search(tmp_path, EVALUATOR, config={"penalty": 0.1})
    with pytest.raises(ms.UnknownNameError, match="unknown option of strategy 'sparsebert'"):
        ms.search(None, EVALUATOR, run=tmp_path, trials=1, strategy="sparsebert",
                  strategy_options={"gates": {}})  # fmt: skip
