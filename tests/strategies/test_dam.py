"""DAM as a strategy: one training, then its discretisations, all in one study."""

import pytest

import masksearch as ms
from masksearch.contracts import OneShot, Record, Shape
from masksearch.errors import MaskSearchError, SearchError
from masksearch.gates.dam import one_shot_parts
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


def search(run, trials=4):
    return ms.search(
        None, EVALUATOR, run=run, trials=trials, strategy="dam", strategy_options=OPTIONS
    )


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"gates": {"form": "flop"}}, "flop"),
        ({"gates": {"structur": "free"}}, "structur"),
        ({"gates": {"structure": "fre"}}, "fre"),
        ({"gates": {"layers": 3}}, r"3 layers, the model 1; give layers=1"),
        ({"gates": {"heads": 3}}, r"3 heads, the model 2; give heads=2, or heads=1 to share"),
        ({"config": {"density": [0.3, 0.2]}}, r"edges in \(0, 1\), got \[0.3, 0.2\]"),
        ({"densities": [2]}, r"numbers in \(0, 1\], got 2; give"),
        ({"densities": [0.3, "a"]}, r"numbers in \(0, 1\], got 'a'; give"),
    ],
)
def test_gates_that_do_not_fit_are_refused_before_anything_is_trained(tmp_path, options, problem):
    run = tmp_path / "run"
    with pytest.raises((MaskSearchError, ValueError), match=problem):
        ms.search(None, EVALUATOR, run=run, trials=2, strategy="dam", strategy_options=options)
    assert not (run / "trials").exists()


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
def test_dam_resumes_from_its_gates(tmp_path):
    whole = search(tmp_path / "a", trials=3)
    search(tmp_path / "b", trials=2)
    parts = search(tmp_path / "b", trials=3)

    def outcome(study):
        return [(r.number, r.status, r.fingerprint, dict(r.values)) for r in study.records()]

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
    asked = DamStrategy(tmp_path, config={"density": 0.05}, **given | {"least": 0.1})
    with pytest.raises(ValueError, match=r"at length 64 densities are at least 0\.1$"):
        asked.ask()


@pytest.mark.parametrize(
    "options", [{"densities": (0.4, 0.01)}, {"config": {"steps": 12, "density": 0.01}}]
)
def test_density_that_leaves_rows_empty_is_refused_before_the_training(tmp_path, options):
    with pytest.raises(ValueError, match=r"density 0\.01 has rows .* at least 1/12 = 0\.08333"):
        ms.search(
            None,
            EVALUATOR,
            run=tmp_path / "run",
            trials=4,
            strategy="dam",
            strategy_options=OPTIONS | options,
        )
    assert not ms.Study(tmp_path / "run").records()


def test_failed_training_ends_the_search(tmp_path):
    strategy = DamStrategy(tmp_path, gates={}, config={}, target=0.1, length=12)
    proposal = strategy.ask()
    assert strategy.ask() == "wait"
    strategy.tell(Record(0, "failed", proposal.job, error="no memory"))
    with pytest.raises(SearchError, match="'dam' has no gates, its first job has failed: no mem"):
        strategy.ask()
