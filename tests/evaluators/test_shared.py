"""The evaluator of shared weights: one training, then forward passes."""

import copy
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import cloudpickle
import pytest
import torch
from split_evaluators import text
from torch import nn

from masksearch import (
    PlantedEvaluator,
    PlantedProcess,
    SharedWeights,
    attach,
    detach,
    lower,
    masks,
)
from masksearch.contracts import Evaluator, Objective, Report, Shape
from masksearch.errors import EmptyRowError, HeadCountError, NonFiniteLossError, SearchError
from masksearch.evaluators.supernet import HeldOut
from masksearch.training.checkpoints import Checkpoints

PROCESS = PlantedProcess(length=12, offsets=(4,), vocabulary=4, keys=1)
INNER = PlantedEvaluator(PROCESS, gate_batch=8, held_out_sequences=40)
TRIO = [masks.window(1), masks.full(), masks.per_head([masks.star(), masks.window(2)])]


def space(trial):
    return masks.window(trial.suggest_int("reach", 1, 6))


def other_space(trial):
    return masks.window(trial.suggest_int("reach", 1, 5))


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> SharedWeights:
    """Trained once for all tests that only read it."""
    folder = tmp_path_factory.mktemp("nets")
    return SharedWeights(INNER, space, steps=12, folder=folder, held_out_sequences=None)


def plain_loss(shared: SharedWeights, mask: masks.Mask) -> float:
    """The stored weights on the held-out batches, by the evaluator's own means."""
    model = INNER.model(0)
    found = Checkpoints(shared.place, "weights").load()
    assert found is not None
    model.load_state_dict(found.tensors)
    if mask != masks.full():
        attach(model, mask)
    values, _ = INNER.masked_prediction(model, INNER.task.held_out())
    return values["loss"]


@pytest.mark.parametrize("mask", TRIO, ids=str)
def test_judged_is_the_held_out_loss_of_the_stored_weights(shared, mask):
    (values,) = shared.judge([mask])
    assert values["loss"] == pytest.approx(plain_loss(shared, mask), rel=1e-5)


@pytest.mark.parametrize("tokens", [12, 100, 480, 5000])
def test_many_at_once_are_judged_as_one_by_one(shared, tokens):
    """From passes of one sequence to one pass."""
    wide = replace(shared, tokens=tokens)
    together = [values["loss"] for values in wide.judge(TRIO)]
    alone = [shared.judge([mask])[0]["loss"] for mask in TRIO]
    assert together == pytest.approx(alone, rel=1e-5)
    assert len(set(alone)) == 3
    assert shared.judge([]) == []


def test_training_with_one_mask_makes_that_mask_better(tmp_path):
    fixed = SharedWeights(INNER, lambda trial: masks.window(4), steps=60, folder=tmp_path)
    fresh = HeldOut(INNER.differentiable(0).model, INNER.shape, INNER.task.held_out())
    (before,) = fresh.losses([lower(masks.window(4), INNER.shape)])
    (after,) = fixed.judge([masks.window(4)])
    assert after["loss"] < before - 0.02


def test_judging_changes_no_weight_and_leaves_no_mask(shared):
    held_out, weights = shared.loaded
    kept = copy.deepcopy(dict(weights))
    state = torch.get_rng_state()
    shared.judge(TRIO)
    replace(shared, adapt_steps=2).judge(TRIO[:1])
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in held_out.model.state_dict().items():
        assert torch.equal(value, kept[name]), name
    with pytest.raises(ValueError, match="nothing is attached"):
        detach(held_out.model)


def test_adaptation_helps_and_depends_on_the_seed_alone(shared):
    adapting = replace(shared, adapt_steps=6)
    first, again = adapting.judge(TRIO, seed=3), adapting.judge(TRIO, seed=3)
    assert first == again
    other = adapting.judge(TRIO, seed=4)
    for values, others, mask in zip(first, other, TRIO, strict=True):
        assert values["shared_loss"] == pytest.approx(shared.judge([mask])[0]["loss"], rel=1e-5)
        assert values["shared_loss"] == others["shared_loss"]
        assert values["loss"] != others["loss"]
    mean = sum(v["loss"] - v["shared_loss"] for v in first) / 3
    assert mean < 0
    assert shared.judge(TRIO, seed=3) == shared.judge(TRIO, seed=4)


def test_call_yields_one_report(shared, tmp_path):
    (report,) = shared(TRIO[0], seed=0, workdir=tmp_path)
    assert report == Report(0, shared.judge([TRIO[0]])[0])
    assert [o.name for o in shared.objectives] == ["loss", "sparsity"]
    assert shared.shape == INNER.shape


CHANGES = {
    "steps": dict(steps=13),
    "masks": dict(masks_per_step=2),
    "sandwich": dict(sandwich=True),
    "seed": dict(seed=1),
    "lr": dict(lr=1e-3),
    "space": dict(space=other_space),
    "evaluator": dict(evaluator=replace(INNER, lr=1e-3)),
    "batch": dict(evaluator=replace(INNER, gate_batch=16)),
    "spread": dict(evaluator=replace(INNER, gate_initializer_range=0.2)),
    "adapt": dict(adapt_steps=1),
    "adapt more": dict(adapt_steps=2),
    "adapt lr": dict(adapt_steps=1, adapt_lr=1.0),
    "held out": dict(held_out_sequences=8),
}


def test_protocol_changes_with_all_that_matters_and_nothing_else(shared, tmp_path):
    protocols = [shared.protocol, *(replace(shared, **c).protocol for c in CHANGES.values())]
    assert len(set(protocols)) == len(protocols)
    same = replace(shared, tokens=7, folder=tmp_path, checkpoint_seconds=1.0)
    assert same.protocol == shared.protocol
    trained_alike = {"adapt", "adapt more", "adapt lr", "held out"}
    for name, change in CHANGES.items():
        assert (replace(shared, **change).key == shared.key) is (name in trained_alike), name


def test_found_again_not_trained_again(shared):
    assert not list(replace(shared).prepare())
    facts = Checkpoints(shared.place, "weights").load().facts
    assert facts["config"]["steps"] == 12
    assert facts["evaluator"] == INNER.protocol


def test_pickle_is_small_and_finds_the_super_net(shared):
    expected = shared.judge(TRIO)
    data = pickle.dumps(shared)
    assert len(data) < 3000
    assert pickle.loads(data).judge(TRIO) == expected
    assert cloudpickle.loads(cloudpickle.dumps(shared.packed())).protocol == shared.protocol


def weights_after(folder: Path, stop_at: int | None) -> dict[str, torch.Tensor]:
    """Trains 9 steps with a checkpoint after each; begins anew after `stop_at` of them."""
    how = dict(steps=9, masks_per_step=3, sandwich=True, lr=4e-3, checkpoint_seconds=0.0)
    made = SharedWeights(INNER, space, folder=folder, **how)
    reports = made.prepare()
    for report in reports:
        if report.step == stop_at:
            reports.close()
    return dict(made.loaded[1])


def test_killed_training_goes_on_bit_for_bit(tmp_path):
    whole, resumed = weights_after(tmp_path / "a", None), weights_after(tmp_path / "b", 5)
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


def test_damaged_super_net_is_trained_again(tmp_path):
    made = SharedWeights(INNER, space, steps=4, folder=tmp_path)
    expected = made.judge(TRIO)
    (file,) = Checkpoints(made.place, "weights").files()
    file.write_bytes(file.read_bytes()[:100])
    assert replace(made).judge(TRIO) == expected


@pytest.mark.nightly
def test_two_processes_train_one_super_net(tmp_path):
    code = f"""
import sys, torch
sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}
torch.set_num_threads(1)
from pathlib import Path
from test_shared import INNER, TRIO, SharedWeights, space
made = SharedWeights(INNER, space, steps=150, folder=Path({str(tmp_path)!r}))
print(len(list(made.prepare())), [v["loss"] for v in made.judge(TRIO)])
"""
    running = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    lines = [process.communicate()[0].split(" ", 1) for process in running]
    assert all(process.returncode == 0 for process in running)
    reports, losses = zip(*lines, strict=True)
    assert sorted(map(int, reports)) == [0, 50]  # one trained, the other waited
    assert losses[0] == losses[1]


@dataclass(frozen=True)
class Bare(Evaluator):
    shape = Shape(12, 1, 2)
    objectives = (Objective("score", "max", 0.0),)
    protocol = "bare"

    def __call__(self, mask, *, seed, workdir) -> Iterator[Report]:
        yield Report(1, {"score": 0.0})


def test_masks_that_do_not_fit_are_refused_before_any_training(tmp_path):
    made = SharedWeights(INNER, space, steps=10**6, folder=tmp_path)
    with pytest.raises(HeadCountError):
        made.judge([masks.full(), masks.per_head([masks.full()] * 3)])
    with pytest.raises(EmptyRowError):
        made.judge([masks.full() - masks.full()])
    assert not made.place.exists()


def test_errors_say_what_to_do(tmp_path):
    with pytest.raises(SearchError, match=r"differentiable\(seed\), Bare has none; use"):
        SharedWeights(Bare(), space)
    with pytest.raises(SearchError, match="the space gave no mask"):
        _ = SharedWeights(INNER, lambda trial: masks.table(torch.ones(3, 3).bool())).protocol
    with pytest.raises(ValueError, match="8 rows cannot carry 9 masks; lower masks_per_step"):
        SharedWeights(INNER, space, masks_per_step=9, folder=tmp_path).judge(TRIO)
    with pytest.raises(NonFiniteLossError, match="the loss became"):
        SharedWeights(INNER, space, steps=20, lr=1e30, folder=tmp_path).judge(TRIO)
    for wrong in (dict(steps=0), dict(masks_per_step=0), dict(adapt_steps=-1), dict(tokens=0)):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be at least"):
            SharedWeights(INNER, space, **wrong)
    with pytest.raises(ValueError, match="held-out batches, got none"):
        HeldOut(nn.Linear(1, 1), INNER.shape, [])


def test_text_evaluator_is_judged_as_it_judges_itself(tmp_path):
    inner = text(tmp_path)
    made = SharedWeights(inner, space, steps=3, folder=tmp_path / "nets", tokens=160)
    assert made.objectives[0] == inner.objectives[0]
    model = inner.model(0)
    judged = made.packed().judge([*TRIO[:2], masks.star()])
    model.load_state_dict(made.loaded[1])
    for mask, values in zip([*TRIO[:2], masks.star()], judged, strict=True):
        attach(model, mask)
        own = inner.held_out_values(model, inner.differentiable(0).held_out)["loss"]
        assert values["loss"] == pytest.approx(own, rel=1e-5), mask


def test_checkpoint_of_another_training_is_passed_over(tmp_path):
    how = dict(folder=tmp_path, checkpoint_seconds=0.0)
    stopped, other = (SharedWeights(INNER, space, steps=steps, **how) for steps in (9, 20))
    reports = stopped.prepare()
    assert [next(reports).step for _ in range(5)] == [1, 2, 3, 4, 5]
    reports.close()
    shutil.copytree(stopped.place, other.place)
    assert next(stopped.prepare()).step > 1
    assert next(other.prepare()).step == 1
