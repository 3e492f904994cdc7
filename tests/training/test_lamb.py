import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from masksearch.training.lamb import Lamb

SHAPES = [[(3, 4), (5,)], [(2, 2), (1,)], [(4,)]]  # of three groups
GROUPS: list[dict[str, Any]] = [
    {"lr": 0.03, "weight_decay": 0.01},
    {"lr": 0.01, "weight_decay": 0.0, "betas": (0.8, 0.95)},
    {"lr": 0.02, "weight_decay": 0.3, "eps": 0.1},
]


def drawn(seed: int, scale: float = 1.0) -> list[list[Tensor]]:
    source = torch.Generator().manual_seed(seed)
    return [
        [scale * torch.randn(shape, generator=source, dtype=torch.float64) for shape in shapes]
        for shapes in SHAPES
    ]


def parameters() -> list[list[nn.Parameter]]:
    return [[nn.Parameter(weight) for weight in members] for members in drawn(0)]


def gradients(step: int, scale: float) -> list[list[Tensor]]:
    return drawn(100 + step, scale)


def ours(steps: int, scale: float, most: float = 1.0) -> list[list[nn.Parameter]]:
    weights = parameters()
    groups = [{**g, "params": w} for g, w in zip(GROUPS, weights, strict=True)]
    optimiser = Lamb(groups, max_grad_norm=most)
    for step in range(steps):
        give(weights, gradients(step, scale))
        optimiser.step()
    return weights


def give(weights: list[list[nn.Parameter]], grads: list[list[Tensor]]) -> None:
    for members, values in zip(weights, grads, strict=True):
        for weight, gradient in zip(members, values, strict=True):
            weight.grad = gradient.clone()


def by_hand(steps: int, scale: float, most: float = 1.0) -> list[list[np.ndarray]]:
    """One number after the other, from the formulas, in plain NumPy."""
    weights = [[w.detach().numpy().copy() for w in members] for members in parameters()]
    first = [[np.zeros_like(w) for w in members] for members in weights]
    second = [[np.zeros_like(w) for w in members] for members in weights]
    for step in range(1, steps + 1):
        grads = [[g.numpy() for g in members] for members in gradients(step - 1, scale)]
        total = math.sqrt(sum(float((g**2).sum()) for members in grads for g in members))
        clip = most / total if total > most else 1.0
        for k, options in enumerate(GROUPS):
            b1, b2 = options.get("betas", (0.9, 0.999))
            for i, weight in enumerate(weights[k]):
                for at in np.ndindex(weight.shape):
                    g = grads[k][i][at] * clip
                    first[k][i][at] = b1 * first[k][i][at] + (1 - b1) * g
                    second[k][i][at] = b2 * second[k][i][at] + (1 - b2) * g * g
                m = first[k][i] / (1 - b1**step)
                v = second[k][i] / (1 - b2**step)
                update = m / (v**0.5 + options.get("eps", 1e-6))
                rate = options["lr"]
                if options["weight_decay"]:
                    update = update + options["weight_decay"] * weight
                    rate *= (weight**2).sum() ** 0.5 / (update**2).sum() ** 0.5
                weights[k][i] = weight - rate * update
    return weights


def check(got: list[list[nn.Parameter]], want: list[list[np.ndarray]]) -> None:
    for members, values in zip(got, want, strict=True):
        for weight, value in zip(members, values, strict=True):
            np.testing.assert_allclose(weight.detach().numpy(), value, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-3, 5.0], ids=["below the clip", "clipped"])
def test_steps_match_derivation_by_hand(scale: float):
    check(ours(5, scale), by_hand(5, scale))


@given(most=st.floats(0.1, 10.0), scale=st.floats(1e-3, 10.0))
def test_two_steps_match_derivation_for_any_clip(most: float, scale: float):
    check(ours(2, scale, most), by_hand(2, scale, most))


def test_infinite_clip_clips_nothing():
    check(ours(2, 5.0, math.inf), by_hand(2, 5.0, 1e9))


def test_decayed_tensor_of_zeros_still_leaves_zero():
    weight = nn.Parameter(torch.zeros(3))
    weight.grad = torch.tensor([1.0, -1.0, 0.0])
    Lamb([weight], lr=0.1).step()
    torch.testing.assert_close(weight.detach(), torch.tensor([-0.1, 0.1, 0.0]))


def test_state_round_trip_continues_exactly():
    def half(optimiser: Lamb, weights: list[list[nn.Parameter]], steps: range) -> None:
        for step in steps:
            give(weights, gradients(step, 5.0))
            optimiser.step()

    weights = parameters()
    groups = [{**g, "params": w} for g, w in zip(GROUPS, weights, strict=True)]
    optimiser = Lamb(groups)
    half(optimiser, weights, range(2))
    others = copy.deepcopy(weights)
    restored = Lamb([{"params": w} for w in others])
    restored.load_state_dict(copy.deepcopy(optimiser.state_dict()))
    half(optimiser, weights, range(2, 4))
    half(restored, others, range(2, 4))
    check(others, [[w.detach().numpy() for w in members] for members in weights])
    assert {int(entry["step"]) for entry in restored.state.values()} == {4}


def test_late_gradient_is_corrected_for_its_own_steps():
    early, late = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    optimiser = Lamb([early, late], lr=0.1, weight_decay=0.0)
    early.grad = torch.ones(1)
    optimiser.step()
    late.grad = torch.ones(1)
    optimiser.step()
    torch.testing.assert_close(late.detach(), torch.tensor([0.9]))


def test_parameter_without_gradient_stays():
    moving, resting = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimiser = Lamb([moving, resting])

    optimiser.step()
    assert (moving == resting).all()  # nothing has a gradient
    (moving**2).sum().backward()
    optimiser.step()
    assert (moving < 1).all()
    assert (resting == 1).all()
    assert resting not in optimiser.state
