"""Experiment 02's measures: learned scales, and importance along a training run."""

import numpy as np
import pytest
import torch
from experiment_scripts import load_script

import masksearch as ms
from masksearch.attention.call import AttentionCall
from masksearch.positions.attention_maps import attention_maps
from masksearch.tasks.planted.process import PlantedProcess
from masksearch.training.loop import TrainConfig, train
from tests.positions.conftest import HEADS, LAYERS, LENGTH, bert, random_batches

dynamics, learned = (load_script(f"02_importance/{n}.py") for n in ("dynamics", "learned"))


def auroc(scores, edges):
    """Chance that a true edge scores above a false one, the diagonal left out."""
    off = ~torch.eye(len(edges), dtype=torch.bool)
    true, false = scores[edges & off], scores[~edges & off]
    above = (true[:, None] > false).float() + 0.5 * (true[:, None] == false).float()
    return above.mean().item()


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def test_dynamics_measure_along_a_run_that_they_do_not_disturb():
    held_out = random_batches(2)
    config = TrainConfig(lr=1e-2, steps=4)
    plain, model = without_dropout(bert()), without_dropout(bert())
    first = ms.importance(plain, held_out, per="model").values
    losses = [step.loss for step in train(plain, iter(random_batches(4)), config)]
    found = dynamics.importance_dynamics(
        model, iter(random_batches(4)), held_out=held_out, steps=4, config=config
    )
    assert found.steps == dynamics.log_spaced(4) == (0, 1, 2, 4)
    assert found.losses == tuple(losses)
    assert not model.training
    for name, weight in plain.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name])
    torch.testing.assert_close(found.snapshots[0].values, first)
    last = ms.importance(plain, held_out, per="model").values
    torch.testing.assert_close(found.snapshots[-1].values, last)
    frame = found.frame()
    assert frame.columns[0] == "step"
    assert len(frame) == 4 * (2 * LENGTH - 1 + LENGTH)
    with pytest.raises(ValueError, match=r"lie in 0 \.\. 2"):
        dynamics.importance_dynamics(model, iter([]), held_out=held_out, steps=2, at=[3])
    profiles = [one.by_offset for one in found.snapshots]
    lines = {"diagonal": [one.diagonal for one in found.snapshots]}
    figure = dynamics.plot_importance_dynamics(found.steps, profiles, lines)
    image = figure.axes[0].get_images()[0].get_array()
    np.testing.assert_allclose(image, torch.stack([p.mean[0, 0] for p in profiles], -1))
    with pytest.raises(ValueError, match=r"3 steps .* 4 profiles"):
        dynamics.plot_importance_dynamics([1, 2, 3], profiles)


def test_scales_act_after_the_softmax_without_renormalising():
    source = torch.Generator().manual_seed(0)
    parts = [torch.randn(2, 2, 5, 3, generator=source) for _ in range(3)]
    bank = learned.ScaledAttention(5, 2, 1)
    bank.logits.data.normal_(generator=source)
    weights = (parts[0] @ parts[1].transpose(-1, -2)).softmax(-1)
    torch.testing.assert_close(
        bank.attend(0, AttentionCall(*parts, visible=None, scaling=1.0)),
        (weights * bank.scales()[0]) @ parts[2],
    )


def test_learned_scales_leave_weights_as_they_were():
    model = bert()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = learned.learned_importance(
        model, random_batches(2), steps=3, special={"token": 4}, gate_lr=0.1
    )
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert found.values.shape == (LAYERS, HEADS, LENGTH, LENGTH)
    assert (found.values[..., :4, :4] != 0.5).float().mean() > 0.9
    assert found.values.sub(0.5).abs().max() < 0.08  # Adam's three steps of 0.1 at slope 1/4
    assert found.special["token"].mean.isfinite().all()
    assert found.batches == 3


def test_learned_profile_is_the_mean_over_pairs():
    model, batches = without_dropout(bert()), random_batches(1, padded=False)
    found = learned.learned_importance(model, batches, steps=2, per="model", initial=1.0)
    for offset in (-3, 0, 2):
        mean = found.values[0, 0].diagonal(offset).mean()
        torch.testing.assert_close(found.by_offset.one(offset).mean[0, 0], mean)
        assert found.by_offset.cells[found.by_offset.at.index(offset)] == LENGTH - abs(offset)
    torch.testing.assert_close(found.by_key.mean[0, 0], found.values[0, 0].mean(0))
    again = learned.learned_importance(model, iter(batches * 2), steps=2, per="model", initial=1)
    torch.testing.assert_close(again.values, found.values)


@pytest.mark.nightly
def test_planted_edges_are_found_by_every_measure():
    evaluator = ms.PlantedEvaluator(PlantedProcess(length=12, offsets=(5,), keys=1))
    edges, held_out = evaluator.process.edges, evaluator.task.held_out()
    scales = learned.learned_importance(
        evaluator.build_model(0),
        evaluator.task.batches(1),
        per="model",
        steps=300,
        lr=evaluator.lr,
        gate_lr=0.05,
    )
    assert auroc(scales.values[0, 0], edges) > 0.9
    model = evaluator.build_model(0)
    for _ in train(model, evaluator.task.batches(1), TrainConfig(steps=300, lr=evaluator.lr)):
        pass
    maps = attention_maps(model, held_out)
    assert auroc(maps.maps.amax((0, 1)), edges) > 0.95
    sizes = ms.importance(model, held_out, signed=False, per="model")
    assert auroc(sizes.values[0, 0], edges) > 0.95
    dropped = ms.importance(model, held_out, method="drop", per="model", keys=[])
    best = dropped.by_offset.mean[0, 0].topk(2).indices.tolist()
    assert {dropped.by_offset.at[index] for index in best} == {-5, 5}
