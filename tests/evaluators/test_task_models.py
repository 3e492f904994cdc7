"""Several tasks' models as one, and what is learnt from another model's logits."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from masksearch import attach, masks
from masksearch.gates.gates import Gates
from masksearch.models.encoders import SequenceClassifier, encoder
from masksearch.models.pretrained import TaskModels, distance_of_logits

INPUTS = {
    "input_ids": torch.arange(2, 14).reshape(2, 6),
    "attention_mask": torch.tensor([[1] * 6, [1] * 4 + [0] * 2]),
}


def classifiers() -> list[SequenceClassifier]:
    """Two and three classes, each on an encoder of its own."""
    bodies = [encoder("nano", 20, 8, seed=seed) for seed in (0, 1)]
    return [SequenceClassifier(body, 2 + n, seed=n) for n, body in enumerate(bodies)]


def test_every_task_is_computed_with_its_own_weights_under_one_mask() -> None:
    single = [copy.deepcopy(model).eval() for model in classifiers()]
    both = TaskModels(classifiers()).eval()
    attach(both, masks.window(1))
    for number, alone in enumerate(single):
        attach(alone, masks.window(1))
        found = both(**INPUTS, task=torch.tensor(number)).logits
        torch.testing.assert_close(found, alone(**INPUTS).logits)


def test_gates_get_gradients_from_every_task_and_weights_none() -> None:
    both = TaskModels(classifiers()).requires_grad_(False)
    gates = Gates("free", length=8, heads=2)
    attach(both, gates)
    for number in (0, 1):
        loss = both(**INPUTS, labels=torch.tensor([0, 1]), task=torch.tensor(number)).loss
        (found,) = torch.autograd.grad(loss, [gates.logits])
        assert float(found.abs().sum()) > 0


def test_one_encoder_under_several_heads_is_trained_by_all() -> None:
    body = encoder("nano", 20, 8, seed=0)
    both = TaskModels([SequenceClassifier(body, labels, seed=0) for labels in (2, 3)])
    for number in (0, 1):
        loss = both(**INPUTS, labels=torch.tensor([0, 1]), task=torch.tensor(number)).loss
        loss.backward()
        assert all(p.grad is not None for p in both.models[number].out.parameters())
    assert len({id(p) for p in both.parameters()}) == len(list(both.parameters()))


# -- logits as targets ---------------------------------------------------------------------------
tables = st.integers(1, 4).flatmap(
    lambda rows: st.lists(
        st.lists(st.floats(-5, 5, width=32), min_size=3, max_size=3), min_size=rows, max_size=rows
    )
)


def divergence(said: list[float], wanted: list[float]) -> float:
    """Kullback-Leibler divergence of softmaxes, in nats, by a loop."""
    top = [math.exp(x) / sum(map(math.exp, wanted)) for x in wanted]
    own = [math.exp(x) / sum(map(math.exp, said)) for x in said]
    return sum(p * math.log(p / q) for p, q in zip(top, own, strict=True))


@given(tables, st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_distance_of_classes_is_the_divergence(wanted: list[list[float]], draw) -> None:  # type: ignore[no-untyped-def]
    said = [[draw.uniform(-5, 5) for _ in row] for row in wanted]
    expected = sum(map(divergence, said, wanted)) / len(said)
    found = distance_of_logits(torch.tensor(said), torch.tensor(wanted))
    assert float(found) == pytest.approx(expected, abs=1e-4)
    shifted = torch.tensor(said) + 3
    assert float(distance_of_logits(shifted, torch.tensor(wanted))) == pytest.approx(
        float(found), abs=1e-4
    )


def test_distance_of_scores_is_squared() -> None:
    said, wanted = torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0], [1.0]])
    assert float(distance_of_logits(said, wanted)) == 2.5


def test_padded_positions_of_spans_count_nothing() -> None:
    def padded(logits: Tensor) -> Tensor:
        return torch.cat([logits, torch.full((2, 3, 2), -torch.inf)], 1)

    said, wanted = torch.randn(2, 2, 5, 2).unbind(0)
    said.requires_grad_()
    short = distance_of_logits(said, wanted)
    long = distance_of_logits(padded(said), padded(wanted))
    assert float(long.detach()) == pytest.approx(float(short.detach()), rel=1e-5)
    (gradient,) = torch.autograd.grad(long, [said])
    assert torch.isfinite(gradient).all()
    assert gradient.abs().sum() > 0
