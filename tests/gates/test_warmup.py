"""When pruning begins: planted losses, tiny models, checkpoints, and what a result says of it."""

import copy
import itertools
import json
import math
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from benchmarks.planted_runs import recovery
from masksearch import DamConfig, PlantedEvaluator, attach, dam, detach, masks
from masksearch.contracts import OneShot, Record, Report
from masksearch.errors import SearchError
from masksearch.gates.gates import Gates
from masksearch.gates.pruning import DensityControl, WarmupWatch
from masksearch.gates.result import DamResult
from masksearch.strategies.build import build_strategy
from masksearch.strategies.dam import DamStrategy
from masksearch.tasks.planted.process import PlantedProcess, PlantedTask
from masksearch.training.checkpoints import Checkpoints
from masksearch.training.loop import TrainConfig, train
from tests.gates.conftest import batches, model

PLATEAU = math.log(32)
PROCESS = PlantedProcess(length=12, offsets=(5,), keys=1)


def followed(losses: list[float], alone: float = PLATEAU, **fields: Any) -> WarmupWatch:
    """A watch after a run whose loss at every step is given, in training and held out."""
    watch = WarmupWatch(DamConfig(steps=len(losses), **fields))
    watch.at_start(lambda: (losses[0], alone))
    for step, loss in enumerate(losses, 1):
        watch.look(step, [loss], lambda loss=loss: (loss, alone))
    return watch


def steps_down(*parts: tuple[int, float]) -> list[float]:
    """A loss that stays at each level for so many steps."""
    return [level for count, level in parts for _ in range(count)]


@pytest.mark.parametrize(
    ("parts", "fields", "begins", "flags"),
    [
        pytest.param([(1000, PLATEAU)], {}, None, {"learned": False}, id="plateau"),
        pytest.param([(200, PLATEAU), (800, 1.4)], {}, (500, 500), {"settled": True},
                     id="half way where the loss has long settled"),
        pytest.param([(440, PLATEAU), (560, 1.4)], {}, (501, 750), {"settled": True},
                     id="a late step is waited for"),
        pytest.param([(200, PLATEAU), (200, 2.2), (600, 1.1)], {}, (600, 680), {"settled": True},
                     id="a second plateau for half as long as what came before"),
        pytest.param([(1, PLATEAU - 3 * step / 1000) for step in range(1000)], {}, (740, 740),
                     {"settled": False}, id="falling: at the latest moment, 20 steps a look"),
        pytest.param([(800, PLATEAU), (200, 1.4)], {}, None, {"learned": True}, id="too late"),
        pytest.param([(100, 1.4)], {}, (0, 0), {}, id="a trained model"),
        pytest.param([(100, PLATEAU)], {"dense_warmup": 0.25}, (25, 25), {}, id="a share"),
        pytest.param([(100, PLATEAU)], {"train": "gates"}, (0, 0), {}, id="frozen weights"),
        pytest.param([(100, PLATEAU), (400, 1.4), (100, 2.4), (400, 1.5)], {}, (500, 500),
                     {"paused": False}, id="the noise of the samples pauses nothing"),
    ],
)  # fmt: skip
def test_when_pruning_begins(parts: Any, fields: Any, begins: Any, flags: dict[str, bool]):
    watch = followed(steps_down(*parts), **fields)
    if begins is None:
        assert watch.begin is None
        assert watch.values(1000)["pruned_steps"] == 0.0
    else:
        assert begins[0] <= watch.begin <= begins[1]
    assert {name: getattr(watch, name) for name in flags} == flags


def test_pruning_pauses_while_the_loss_steps_below_where_it_was():
    config = DamConfig(steps=1000)
    losses = steps_down((100, PLATEAU), (480, 2.2), (20, 1.8), (20, 1.4), (380, 0.9))
    watch, said = WarmupWatch(config), {}
    watch.at_start(lambda: (losses[0], PLATEAU))
    for step, loss in enumerate(losses, 1):
        verdict = watch.look(step, [loss], lambda loss=loss: (loss, PLATEAU))
        if verdict != "wait":
            said[step] = verdict
    assert list(said.values()) == ["begin", "pause", "go on"]
    assert list(said)[:2] == [500, 600]
    assert list(said)[2] <= 760


@given(
    st.lists(st.floats(0.1, 5.0), min_size=2, max_size=120),
    st.floats(0.1, 5.0),
    st.floats(1e-3, 1e3),
)
def test_the_scale_of_the_loss_does_not_matter(losses: list[float], alone: float, scale: float):
    power = 2.0 ** round(math.log2(scale))  # exact in floating point
    one = followed(losses, alone)
    other = followed([loss * power for loss in losses], alone * power)
    assert (one.begin, one.paused, one.settled) == (other.begin, other.paused, other.settled)


@given(st.lists(st.floats(-5.0, 5.0), min_size=2, max_size=120), st.data())
def test_a_state_goes_on_exactly(losses: list[float], data: st.DataObject):
    cut = data.draw(st.integers(0, len(losses)))
    config = DamConfig(steps=len(losses))
    watch = WarmupWatch(config)
    for step, loss in enumerate(losses, 1):
        if step == cut:
            kept = json.loads(json.dumps(vars(watch) | {"config": None}))
            del kept["config"]
            watch = WarmupWatch(config)
            vars(watch).update(kept)
        watch.look(step, [loss], lambda loss=loss: (loss, 5.0))
    straight = WarmupWatch(config)
    for step, loss in enumerate(losses, 1):
        straight.look(step, [loss], lambda loss=loss: (loss, 5.0))
    assert repr(vars(watch)) == repr(vars(straight))  # of which some are NaN


@given(st.integers(2, 300), st.floats(0.01, 1.0), st.floats(0, 0.7), st.lists(st.integers(0, 300)))
def test_the_target_sinks_through_any_pauses_and_arrives(steps, anneal, density, turns):
    config = DamConfig(steps=steps, anneal=anneal, density=min(0.7, max(0.13, density)))
    control = DensityControl(config, Gates(length=8, heads=1))
    seen = []
    for step in range(steps):
        if step in turns:
            (control.go_on if control.paused else control.pause)(step)
        seen.append(control.target(step).item())
    if control.paused:
        control.go_on(steps)
    last = control.target(2 * steps + 2).item()
    assert last == pytest.approx(config.density, rel=1e-5)
    assert all(later <= earlier + 1e-6 for earlier, later in itertools.pairwise(seen))


# -- tiny models -------------------------------------------------------------------------------
def test_taking_attention_away_is_the_mask_of_the_diagonal():
    trained, gates, batch = model().eval(), Gates(length=8, heads=2), next(batches())
    attach(trained, gates)
    gates.alone = True
    with torch.no_grad():
        found = trained(**batch).logits
        detach(trained)
        attach(trained, masks.window(0))
        expected = trained(**batch).logits
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.slow
def test_random_labels_teach_nothing_and_the_result_says_so():
    gates, others = Gates(length=8, heads=2), zip(batches(), batches(seed=1), strict=True)
    random = ({**one, "labels": other["labels"]} for one, other in others)
    with pytest.warns(UserWarning, match="attention has learned nothing"):
        result = dam(model(), random, gates, DamConfig(steps=40, density=0.3))
    assert (gates.logits == 2.0).all()
    health = result.health()
    (problem,) = health.problems.values()
    assert list(health.problems) == ["attention_unlearned"]
    assert all(word in problem for word in ("initial weights", "lr", "more steps"))
    assert result.warmup_steps == 40


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:DAM")
def test_a_trained_model_is_pruned_as_without_a_warm_up():
    """Testing attention leaves no trace: losses and gates are the same bits."""
    source = PlantedEvaluator(PROCESS, held_out_sequences=64).differentiable(0)
    for _ in train(source.model, source.batches, TrainConfig(steps=90, lr=6e-3)):
        pass
    weights, found = copy.deepcopy(source.model.state_dict()), []
    for share in ("auto", 0.0):
        source.model.load_state_dict(weights)
        gates = Gates(length=12, heads=2)
        config = DamConfig(steps=20, density=0.2, dense_warmup=share)  # type: ignore[arg-type]
        result = dam(source.model, PlantedTask(PROCESS), gates, config, held_out=source.held_out)
        known = ("loss", "density", "target", "control")
        found.append(([[r.values[n] for n in known] for r in result.curve], gates.logits))
        assert result.warmup_steps == 0
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])


def learnable(folder: Path | None = None, stop: int | None = None) -> tuple[list[Report], Tensor]:
    """A run in which attention learns after about 50 of 100 steps; it may end at a report."""
    process = PlantedProcess(length=8, vocabulary=8, offsets=(3,), keys=1)
    source = PlantedEvaluator(
        process, size="1x32x2", gate_batch=24, held_out_sequences=64, gate_initializer_range=0.2
    ).differentiable(0)
    gates, found = Gates(length=8, heads=2), list[Report]()
    config = DamConfig(steps=100, lr=6e-3, density=0.25, gate_lr=0.05)

    def keep(report: Report) -> None:
        found.append(report)
        if report.step == stop:
            raise KeyboardInterrupt

    given = source.model, source.batches, gates, config
    with suppress(KeyboardInterrupt):
        dam(*given, held_out=source.held_out, on_report=keep, checkpoints=folder)
    return found, gates.logits.detach()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:DAM")
def test_a_killed_run_ends_as_it_would_have(tmp_path: Path, monkeypatch: Any):
    frequent = partial(Checkpoints, seconds=0.02)
    monkeypatch.setattr("masksearch.gates.dam.Checkpoints", frequent)
    straight = learnable()
    assert 10 < straight[0][-1].values["pruned_steps"] < 50
    for stop in (33, 70):
        learnable(tmp_path, stop)
    again = learnable(tmp_path)
    assert again[0] == straight[0]
    assert torch.equal(again[1], straight[1])


# -- configurations and searches ---------------------------------------------------------------
@pytest.mark.parametrize(
    ("given", "job"),
    [
        ({"steps": 9}, "auto"),
        ({"steps": 9, "dense_warmup": 0.25}, 0.25),
        ({"preset": "sparsebert"}, None),
    ],
)
def test_a_new_search_says_in_its_job_that_it_waits(given: dict[str, Any], job: Any):
    strategy = DamStrategy(Path(), gates={}, config=given, target=0.2, length=12)
    proposal = strategy.ask()
    assert isinstance(proposal.job, OneShot)
    assert proposal.job.config.get("dense_warmup") == job


def planted_result(**values: float) -> DamResult:
    """What a run with such a last report leaves."""
    report = Report(100, {"loss": 1.0, "density": 0.5, "attention_worth": 0.01} | values)
    probabilities = torch.rand(1, 2, 12, 12, generator=torch.Generator().manual_seed(0))
    return DamResult(probabilities, (report,), 0.3)


UNLEARNED = {"pruned_steps": 0.0, "attention_learned": 0.0, "settled": 1.0}
EARLY = {"pruned_steps": 30.0, "attention_learned": 1.0, "settled": 0.0}


@pytest.mark.parametrize(
    ("values", "flag", "words"),
    [
        (UNLEARNED, "attention_unlearned", "attention has learned nothing"),
        (EARLY, "unsettled", "gates were pruned before attention had learned: at step 70"),
    ],
)
def test_a_mask_of_gates_that_attention_was_late_for_warns(values, flag, words):
    result = planted_result(**values)
    with pytest.warns(UserWarning, match=f"DAM: {words}"):
        result.mask(sparsity=0.5)
    problem = result.health().problems[flag]
    assert words in problem
    remedies = ("initial weights", "another lr", "more steps", "finetune_lr", "adapt='none'")
    assert all(remedy in problem for remedy in remedies)


@pytest.mark.parametrize(
    ("values", "params"),
    [
        (UNLEARNED, None),
        (EARLY, {"density": 0.3, "gates": "unsettled"}),
        (EARLY | {"settled": 1.0}, {"density": 0.3}),
    ],
)
def test_a_search_cuts_and_marks_masks_by_when_gates_were_pruned(tmp_path, values, params):
    strategy = DamStrategy(tmp_path, gates={}, config={}, target=0.3, length=12)
    proposal = strategy.ask()
    planted_result(**values).save(tmp_path / "gates.safetensors")
    strategy.tell(Record(0, "done", proposal.job, artifacts={"gates": "gates.safetensors"}))
    cut = strategy.ask()
    assert cut == "done" if params is None else cut.params == params


def test_units_are_not_scored_by_gates_that_were_not_pruned(tmp_path: Path):
    evaluator = PlantedEvaluator(PlantedProcess(length=12, offsets=(4,), vocabulary=4))
    options = {"unit": "head", "levels": "window(2)", "method": "gates"}
    strategy = build_strategy("allocate", None, evaluator, seed=0, run=tmp_path, options=options)
    proposal = strategy.ask()
    found = Record(
        0,
        "done",
        proposal.job,
        values=UNLEARNED,
        artifacts={"gates": "gates.safetensors"},
        step=100,
    )
    strategy.tell(found)
    with pytest.raises(SearchError, match=r"gates are no scores .* attention has learned nothing"):
        strategy.ask()


# -- planted processes with plateaus -----------------------------------------------------------
@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore:DAM")
@pytest.mark.parametrize(("spread", "steps"), [(0.02, 600), (0.07, 2500)])
def test_planted_edges_are_found_or_attention_has_learned_nothing(spread: float, steps: int):
    process = PlantedProcess(length=32, vocabulary=32, offsets=(7,), keys=3)
    source = PlantedEvaluator(process, gate_initializer_range=spread).differentiable(0)
    gates, config = Gates(length=32, heads=2), DamConfig(steps=steps)
    result = dam(source.model, source.batches, gates, config, held_out=source.held_out)
    unlearned = "attention_unlearned" in result.health().problems
    assert unlearned or recovery(result.probabilities, process.edges).auroc >= 0.97
    assert unlearned == (spread == 0.02)
