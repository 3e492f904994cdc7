"""DAM as a strategy: one training and its masks; the eight trainings of the published one."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from experiment_scripts import load_script
from killing import outcome
from toy_sentences import sentence_judge, write_sentences

import masksearch as ms
from masksearch.contracts import Evaluate, OneShot, Proposal, Record, Refused, Shape
from masksearch.errors import MaskSearchError, SearchError
from masksearch.gates.dam import one_shot_parts
from masksearch.gates.discretise import at_sparsity
from masksearch.gates.result import DamResult
from masksearch.strategies.build import build_strategy
from masksearch.strategies.dam import DamStrategy
from masksearch.tasks.planted.process import PlantedProcess

EVALUATOR = ms.PlantedEvaluator(
    PlantedProcess(length=12, offsets=(4,), vocabulary=4),
    steps=6,
    downstream_steps=2,
    held_out_sequences=32,
)
OPTIONS = {
    "gates": {"structure": "toeplitz+global", "global_count": 1},
    "config": {"steps": 12, "density": 0.3, "dense_warmup": 0.5},
    "densities": (0.4, 0.3, 0.2),
}


def search(run, trials=4, options=OPTIONS):
    told = {"trials": trials, "strategy": "dam", "strategy_options": options}
    return ms.search(None, EVALUATOR, run=run, **told)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"gates": {"form": "flop"}}, "flop"),
        ({"gates": {"structur": "free"}}, "structur"),
        ({"gates": {"structure": "fre"}}, "fre"),
        ({"gates": {"layers": 3}}, r"3 layers, the model 1; give layers=1"),
        ({"gates": {"heads": 3}}, r"3 heads, the model 2; give heads=2, or heads=1 to share"),
        ({"gates": {"structure": "block", "block": [5, 4]}}, r"a multiple of .*; got \[5, 4\]"),
        (
            {"gates": {"structure": "block", "block": [6, 3]}, "config": {"density": 0.1}},
            r"density 0\.1 has rows without a key: at length 12 densities are at least 0\.25",
        ),
        ({"config": {"density": [0.3, 0.2]}}, r"edges in \(0, 1\), got \[0.3, 0.2\]"),
        ({"densities": [2]}, r"numbers in \(0, 1\], got 2; give"),
        ({"densities": [0.3, "a"]}, r"numbers in \(0, 1\], got 'a'; give"),
    ],
)
def test_gates_that_do_not_fit_are_refused_before_anything_is_trained(tmp_path, options, problem):
    run = tmp_path / "run"
    with pytest.raises((MaskSearchError, ValueError), match=problem):
        search(run, options=options)
    assert not (run / "trials").exists()


def test_trials_that_meet_no_budget_are_warned_of_before_anything_is_made(tmp_path):
    run, said = (
        tmp_path / "run",
        "'dam' needs 3 trials to judge .* within each budget, .* is 2; give 3",
    )
    with pytest.raises(UserWarning, match=said), warnings.catch_warnings(action="error"):
        ms.search(None, EVALUATOR, run=run, trials=2, strategy="dam", budget=[0.4, 0.3])
    assert not run.exists()


def test_gates_that_are_trained_alone_are_each_layers_own_unless_it_is_said():
    def layers(config, **gates):
        return one_shot_parts(OneShot(gates, config), Shape(8, 3, 2), 0)[1].layers

    assert layers({"train": "gates"}) == 3
    assert layers({"train": "gates"}, layers=1) == 1
    assert layers({}) == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:DAM")
def test_dam_leaves_gates_and_masks_in_one_study(tmp_path):
    study = search(tmp_path / "run")
    first, *cut = study.records()
    assert isinstance(first.job, OneShot)
    assert (tmp_path / "run" / first.artifacts["gates"]).is_file()
    assert first.seconds > 0
    assert {"loss", "density"} <= set(first.curve[-1].values)
    by_density = {record.params["density"]: record for record in cut}
    for density in (0.4, 0.3, 0.2):
        assert by_density[density].measures["density"] == pytest.approx(density, abs=1 / 144)
    assert all(record.scored for record in study.frontier())


@pytest.mark.filterwarnings("ignore:DAM")
@pytest.mark.slow
def test_dam_on_tiles_proposes_layouts_of_whole_ones(tmp_path):
    gates = {"structure": "block", "block": (4, 2)}
    options = {"gates": gates, "config": {"steps": 12, "dense_warmup": 0.5}}
    study = search(tmp_path / "run", trials=3, options=options)
    first, *cut = study.records()
    assert first.job.gates["block"] == [4, 2]
    assert first.job.config["density"] == pytest.approx(1 / 3)  # twice one tile in each row
    for record in cut:
        assert (record.mask.kind, record.mask.block) == ("block_layout", 2)
        assert record.measures["density"] == pytest.approx(record.params["density"], abs=1 / 18)


@pytest.mark.filterwarnings("ignore:DAM")
@pytest.mark.slow
def test_dam_resumes_from_its_gates(tmp_path):
    whole = search(tmp_path / "a", trials=3)
    search(tmp_path / "b", trials=2)
    parts = search(tmp_path / "b", trials=3)
    assert outcome(whole) == outcome(parts)


@pytest.mark.parametrize(
    ("given", "densities"),
    [
        ({"target": 0.05, "length": 24}, (0.05, 1 / 24, 0.1, 0.07, 0.14)),
        ({"target": 0.95, "length": 24}, (0.95, 0.475, 0.665, 0.3325)),
        ({"target": 0.05, "length": 64, "least": 0.04}, (0.05, 0.04, 0.1, 0.07, 0.14)),
    ],
)
def test_densities_end_at_what_the_length_allows(tmp_path, given, densities):
    strategy = DamStrategy(tmp_path, gates={}, config={}, **given)
    assert strategy.densities == pytest.approx(densities)


def test_a_target_that_nobody_asked_for_rises(tmp_path):
    """What short sentences allow is more than 1/n."""
    given = {"gates": {}, "target": 0.05, "length": 64}
    short = DamStrategy(tmp_path, config={"steps": 9}, **given | {"least": 0.1})
    assert short.densities == pytest.approx((0.2, 0.1, 0.4, 0.14, 0.28, 0.56))
    assert short.ask().job == OneShot({}, {"steps": 9, "dense_warmup": "auto", "density": 0.2})
    with pytest.raises(ValueError, match=r"at length 64 densities are at least 0\.1$"):
        DamStrategy(tmp_path, config={"density": 0.05}, **given | {"least": 0.1})


@pytest.mark.parametrize(
    "options", [{"densities": (0.4, 0.01)}, {"config": {"steps": 12, "density": 0.01}}]
)
def test_density_that_leaves_rows_empty_is_refused_before_the_training(tmp_path, options):
    with pytest.raises(ValueError, match=r"density 0\.01 has rows .* at least 1/12 = 0\.08333"):
        search(tmp_path / "run", options=OPTIONS | options)
    assert not (tmp_path / "run").exists()


def test_failed_training_ends_the_search(tmp_path):
    strategy = DamStrategy(tmp_path, gates={}, config={}, target=0.1, length=12)
    proposal = strategy.ask()
    assert strategy.ask() == "wait"
    strategy.tell(Record(0, "failed", proposal.job, error="no memory"))
    with pytest.raises(SearchError, match="'dam' has no gates, its first job has failed: no mem"):
        strategy.ask()


# -- the published table -------------------------------------------------------------------------
LONGER = replace(EVALUATOR, process=replace(EVALUATOR.process, length=24))
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


def search_published(run: Path, judge: Any, trials: int = 16, **options: Any) -> ms.Study:
    told = {"strategy": "sparsebert", "strategy_options": {"config": SHORT} | options}
    told |= {"baselines": ms.masks.FAMILIES, "progress": None}
    return ms.search(None, judge, run=run, trials=trials, **told)


@pytest.mark.nightly  # eight trainings, 14 masks
@pytest.mark.filterwarnings("ignore")
def test_one_search_fills_the_published_table(tmp_path: Path) -> None:
    data, run = write_sentences(tmp_path), tmp_path / "run"
    judge = sentence_judge(data, adapt="none")
    search_published(run, judge, trials=9)
    study = search_published(run, judge)  # goes on
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
    strategy = build_strategy("sparsebert", None, LONGER, seed=0, run=tmp_path, options=options)
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


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"config": {"penalty": 0.1}}, "has the penalties of the published table: drop pen"),
        ({"gates": {}}, "unknown option of strategy 'sparsebert'"),
    ],
)
def test_its_lambdas_are_those_of_the_table(tmp_path, options, problem):
    with pytest.raises(MaskSearchError, match=problem):
        search_published(tmp_path, LONGER, **options)
    assert not (tmp_path / "trials").exists()
