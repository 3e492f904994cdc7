"""What the figures of trained gates say about the run that made them."""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor


class Health(TypedDict):
    """Figures of one DAM run; shares and probabilities lie in [0, 1]."""

    density: float  # mean probability of an edge at the end
    target: float  # density that was asked for
    entropy: float  # mean binary entropy of the edges' gates, in bits: 0 = all decided
    undecided: float  # share of edges with a probability in (0.1, 0.9)
    diagonal: float  # mean probability of the diagonal
    by_distance: list[float]  # mean probability of an edge at |i - j| = 0, 1, ..
    pruned_away: bool  # next to nothing is left: density below a quarter of the target
    nothing_pruned: bool  # density above nine tenths of where the gates started
    target_missed: bool  # density above 1.25 times the target
    problems: list[str]  # the flags above, in words


def entropy_bits(probabilities: Tensor) -> Tensor:
    """Mean binary entropy of probabilities, in bits."""
    p = probabilities.clamp(1e-7, 1 - 1e-7)
    return -(p * p.log2() + (1 - p) * (1 - p).log2()).mean()


def health(probabilities: Tensor, *, target: float, initial: float) -> Health:
    """Judges trained gates.

    Args:
        probabilities: float `[layers, heads, n, n]`.
        target: Density that was asked for.
        initial: Density at which the gates started.
    """
    p = probabilities.detach().float().cpu()
    density = p.mean().item()
    length = p.shape[-1]
    position = torch.arange(length)
    distance = (position[:, None] - position[None, :]).abs().flatten()
    totals = torch.zeros(length).index_add(0, distance, p.mean((0, 1)).flatten())
    by_distance = (totals / distance.bincount(minlength=length)).tolist()
    pruned_away = density < target / 4
    nothing_pruned = density > 0.9 * initial and target < 0.9 * initial
    target_missed = density > 1.25 * target
    problems = []
    if pruned_away:
        problems.append(
            f"nearly everything was pruned (density {density:.4f}, target {target:.4f}): "
            "lower gate_lr, or use control='hinge'"
        )
    if nothing_pruned:
        problems.append(
            f"nothing was pruned (density {density:.4f}, at the start {initial:.4f}): "
            "train for more steps, or raise gate_lr or the control's strength"
        )
    elif target_missed:
        problems.append(
            f"the target was missed (density {density:.4f}, target {target:.4f}): "
            "train for more steps, or raise gate_lr or the control's strength"
        )
    return Health(
        density=density,
        target=target,
        entropy=entropy_bits(p).item(),
        undecided=((p > 0.1) & (p < 0.9)).float().mean().item(),
        diagonal=by_distance[0],
        by_distance=by_distance,
        pruned_away=pruned_away,
        nothing_pruned=nothing_pruned,
        target_missed=target_missed,
        problems=problems,
    )
