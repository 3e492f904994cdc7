"""Means over the edges of a table, each by how much of the data it serves."""

from __future__ import annotations

import torch
from torch import Tensor


def mean_of_edges(
    values: Tensor, weights: Tensor | None, axes: tuple[int, ...] | None = None
) -> Tensor:
    """Mean over edges, each by its weight.

    Args:
        values: float `[layers, heads, n, n]`.
        weights: `DamResult.weights`; None = all edges count alike.
        axes: Axes to average over, the last two among them; None = all.
    """
    if weights is not None:
        whole = weights.mean() if axes is None else weights.mean(axes, keepdim=True)
        values = values * (weights / whole).to(values)
    return values.mean() if axes is None else values.mean(axes)


def entropy_bits(probabilities: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean binary entropy of probabilities, in bits; over edges by their weight."""
    p = probabilities.clamp(1e-7, 1 - 1e-7)
    return mean_of_edges(-(p * p.log2() + (1 - p) * (1 - p).log2()), weights)


def profile(
    probabilities: Tensor, group: Tensor, weights: Tensor | None = None
) -> tuple[list[float], list[float]]:
    """Mean probability, and share of the total, of every group of cells; 0 where none counts.

    Args:
        probabilities: float `[layers, heads, n, n]`.
        group: int64 `[n * n]`, the group of each cell, from 0 without a gap.
        weights: `DamResult.weights`, how much each cell counts; None = all alike.
    """
    cells = probabilities.double()
    each = torch.ones(cells.shape[-2:]).double() if weights is None else weights.double()
    cells, each = cells * each, each if each.ndim == 2 else each.mean((0, 1))
    totals = group.bincount(cells.mean((0, 1)).flatten())
    counted = group.bincount(each.flatten())
    share = totals / totals.sum().clamp_min(1e-300)
    return (totals / counted.clamp_min(1e-300)).tolist(), share.tolist()
