from __future__ import annotations

import pytest
import torch

from masksearch.evaluators.planted import PlantedEvaluator
from masksearch.positions.analysis import importance
from masksearch.positions.attention_maps import attention_maps
from masksearch.positions.dynamics import importance_dynamics, log_spaced
from masksearch.tasks.planted.process import PlantedProcess
from masksearch.training.loop import TrainConfig, train
from tests.positions.conftest import LENGTH, bert, random_batches


def auroc(scores, edges):
    """Chance that a true edge scores above a false one, the diagonal left out."""
    off = ~torch.eye(len(edges), dtype=torch.bool)
    true, false = scores[edges & off], scores[~edges & off]
    above = (true[:, None] > false).float() + 0.5 * (true[:, None] == false).float()
    return above.mean().item()


def test_steps_double():
    assert log_spaced(1) == (0, 1)
    assert log_spaced(2) == (0, 1, 2)
    assert log_spaced(9) == (0, 1, 2, 4, 8, 9)


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def test_dynamics_measure_along_a_run_that_they_do_not_disturb(model):
    held_out = random_batches(2)
    config = TrainConfig(lr=1e-2, steps=4)
    plain = without_dropout(bert())
    first = importance(plain, held_out, per="model").values
    losses = [step.loss for step in train(plain, iter(random_batches(4)), config)]
    found = importance_dynamics(
        without_dropout(model), iter(random_batches(4)), held_out=held_out, steps=4, config=config
    )
    assert found.steps == (0, 1, 2, 4)
    assert found.losses == tuple(losses)
    assert not model.training
    for name, weight in plain.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name])
    torch.testing.assert_close(found.snapshots[0].values, first)
    last = importance(plain, held_out, per="model").values
    torch.testing.assert_close(found.snapshots[-1].values, last)
    frame = found.frame()
    assert frame.columns[0] == "step"
    assert len(frame) == 4 * (2 * LENGTH - 1 + LENGTH)


def test_messages(model):
    batches = random_batches(1)
    with pytest.raises(ValueError, match="trains on its own"):
        importance_dynamics(model, iter(batches), held_out=batches, steps=1, method="learned")
    with pytest.raises(ValueError, match=r"lie in 0 \.\. 2"):
        importance_dynamics(model, iter(batches), held_out=batches, steps=2, at=[3])
    with pytest.raises(ValueError, match="batches ended after 1 of 2"):
        importance_dynamics(model, iter(batches), held_out=batches, steps=2)


@pytest.mark.slow
def test_planted_edges_are_found_by_every_measure():
    evaluator = PlantedEvaluator(PlantedProcess(length=12, offsets=(5,), keys=1))
    edges, held_out = evaluator.process.edges, evaluator.task.held_out()
    fresh = evaluator.model(0)
    learned = importance(
        fresh,
        evaluator.task.batches(1),
        method="learned",
        per="model",
        steps=300,
        lr=evaluator.lr,
        gate_lr=0.05,
    )
    assert auroc(learned.values[0, 0], edges) > 0.9
    model = evaluator.model(0)
    for _ in train(model, evaluator.task.batches(1), TrainConfig(steps=300, lr=evaluator.lr)):
        pass
    maps = attention_maps(model, held_out)
    assert auroc(maps.maps.amax((0, 1)), edges) > 0.95
    sizes = importance(model, held_out, signed=False, per="model")
    assert auroc(sizes.values[0, 0], edges) > 0.95
    dropped = importance(model, held_out, method="drop", per="model", keys=[])
    best = dropped.by_offset.mean[0, 0].topk(2).indices.tolist()
    assert {dropped.offsets[index] for index in best} == {-5, 5}
