"""From gate probabilities to masks: exactly as sparse as asked, and never an empty row."""

from __future__ import annotations

import torch
from torch import Tensor


def ranking(probabilities: Tensor) -> Tensor:
    """Every edge's place in the order in which edges are kept.

    First the best key of each row, then all other edges, the likelier first. Ties go to the
    nearer offset (earlier keys before later ones), then to the first layer, head and query: with
    Toeplitz gates whole offsets follow one another.

    Args:
        probabilities: float `[layers, heads, queries, keys]`.

    Returns:
        int64 `[layers, heads, queries, keys]`, a permutation of 0 .. numel - 1.
    """
    layers, heads, length = probabilities.shape[:3]
    position = torch.arange(length)
    offset = (position[None, :] - position[:, None]).expand_as(probabilities).flatten()
    order = torch.argsort(2 * offset.abs() + (offset > 0), stable=True)
    flat = probabilities.detach().cpu().flatten()
    order = order[torch.argsort(flat[order], descending=True, stable=True)]
    places = torch.empty_like(order)
    places[order] = torch.arange(order.numel())
    best = places.view(-1, length).argmin(1) + length * torch.arange(layers * heads * length)
    first = torch.zeros_like(order, dtype=torch.bool)
    first[best] = True
    order = order[torch.argsort((~first[order]).int(), stable=True)]
    places[order] = torch.arange(order.numel())
    return places.view(probabilities.shape)


def at_sparsity(probabilities: Tensor, sparsity: float) -> Tensor:
    """The likeliest edges, in exactly the number that the sparsity asks for.

    Kept edges: (1 - sparsity) x layers x heads x n x n, rounded to the nearest whole number and
    shared out over layers and heads as the probabilities say. A sparser mask is a subset of a
    denser one.

    Args:
        probabilities: float `[layers, heads, n, n]`.
        sparsity: 1 - kept / all, in [0, 1 - 1/n].

    Returns:
        bool `[layers, heads, n, n]`.

    Raises:
        ValueError: If the sparsity is out of range, or too high for one key in every row.
    """
    if not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity must lie in [0, 1], got {sparsity}")
    length = probabilities.shape[-1]
    kept = round((1 - sparsity) * probabilities.numel())
    rows = probabilities.numel() // length
    if kept < rows:
        raise ValueError(
            f"every row keeps a key, so sparsity is at most 1 - 1/n = {1 - 1 / length:.6g} "
            f"at length {length}, got {sparsity}"
        )
    return ranking(probabilities) < kept


def at_threshold(probabilities: Tensor, threshold: float) -> Tensor:
    """Edges of at least that probability; a row without any keeps its best key.

    Args:
        probabilities: float `[layers, heads, n, n]`.
        threshold: Lowest kept probability, in [0, 1].

    Returns:
        bool `[layers, heads, n, n]`.

    Raises:
        ValueError: If the threshold is out of range.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must lie in [0, 1], got {threshold}")
    rows = probabilities.numel() // probabilities.shape[-1]
    kept = probabilities.detach().cpu() >= threshold
    return kept | ((ranking(probabilities) < rows) & ~kept.any(-1, keepdim=True))
