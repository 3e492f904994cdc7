"""From gate probabilities to masks: exactly as sparse as asked, and never an empty row.

at_sparsity(probabilities, 0.9)                  # the likeliest tenth of all edges
at_sparsity(probabilities, 0.9, per="head")      # of every head
at_threshold(probabilities, 0.5)
at_sparsity(probabilities, 0.9, weights=pair_weights(shape))   # of the pairs that tokens form

With `weights` (`masksearch.masks.measure.pair_weights`) an edge counts as much as there are
sequences that have it. Edges without weight (padding alone, the future of a decoder, rows of the
last layer that reach no output) are never kept, with one exception: a query without any other
keeps itself, as no row may be empty.
The best key of a row is one of those that are there in every sequence that has the query (all of
them, without padding), so that no query of any sequence is left without a key.
Edges of few sequences are kept by their probability like all others; each takes little of the
density.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from masksearch.errors import check_name
from masksearch.masks.measure import counts_all_alike, pair_weights
from masksearch.masks.shape import Shape

Per = Literal["mask", "layer", "head"]


def weights_of(shape: Shape) -> Tensor | None:
    """`pair_weights`, `[n, n]` or `[layers, 1, n, n]`; None where all cells count alike."""
    return None if counts_all_alike(shape) else pair_weights(shape)


def least_density(length: int, weights: Tensor | None = None) -> float:
    """Density of one key in every row: 1/n, or with weights that of the diagonal, in (0, 1]."""
    if weights is None:
        return 1 / length
    return (weights.diagonal(0, -2, -1).sum() / weights.sum()).item()


def possible_edges(weights: Tensor | None, length: int) -> Tensor:
    """Edges that a mask may keep, bool, shaped as the weights: those that count, and the
    diagonal."""
    if weights is None:
        return torch.ones(length, length, dtype=torch.bool)
    return (weights > 0) | torch.eye(length, dtype=torch.bool)


def lasting_edges(weights: Tensor | None, length: int) -> Tensor:
    """Edges whose key is there wherever their query is, bool, shaped as the weights: at least the
    diagonal."""
    possible = possible_edges(weights, length)
    if weights is None:
        return possible
    return possible & (weights == weights.diagonal(0, -2, -1)[..., None])


def ranking(probabilities: Tensor, per: Per = "mask", *, weights: Tensor | None = None) -> Tensor:
    """Every edge's rank in the order in which edges are kept.

    First the best key of each row, then all other edges, the likelier first. Ties go to the nearer
    offset (earlier keys before later ones), then to the first layer, head and query: with Toeplitz
    gates whole offsets follow one another. Edges without weight come last.

    Args:
        probabilities: float `[layers, heads, queries, keys]`; any scores do, if none is NaN.
        per: Among which edges: those of the whole `"mask"`, of each `"layer"` or each `"head"`.
        weights: As of `weights_of`, how much each edge counts; None = all alike.

    Returns:
        int64 `[layers, heads, queries, keys]`; of each mask, layer or head a permutation of
        0 .. its number of edges - 1.

    Raises:
        ValueError: If a probability is NaN.
        UnknownNameError: For another `per`.
    """
    check_name("part of a mask", per, get_args(Per))
    scores = probabilities.detach().cpu()
    if scores.isnan().any():
        raise ValueError("probabilities hold NaN, which has no place in an order; train again")
    layers, heads, length = scores.shape[:3]
    groups = {"mask": 1, "layer": layers, "head": layers * heads}[per]
    scores = scores.reshape(groups, -1)
    position = torch.arange(length)
    offset = (position[None, :] - position[:, None]).flatten()
    nearness = (2 * offset.abs() + (offset > 0)).repeat(scores.shape[1] // len(offset))
    near = nearness.argsort(stable=True)
    order = near[scores[:, near].argsort(dim=1, descending=True, stable=True)]
    if weights is not None:
        last = ~possible_edges(weights, length).expand(probabilities.shape).reshape(groups, -1)
        order = order.gather(1, last.gather(1, order).byte().argsort(dim=1, stable=True))
    ranks = order.argsort(1)  # the inverse of a permutation
    rows = ranks.view(groups, -1, length)
    lasting = lasting_edges(weights, length).expand(probabilities.shape).reshape(rows.shape)
    best = (rows == rows.masked_fill(~lasting, rows.numel()).amin(2, keepdim=True)).flatten(1)
    ranks = (ranks + ranks.shape[1] * ~best).argsort(1).argsort(1)
    return ranks.view(probabilities.shape)


def at_sparsity(
    probabilities: Tensor,
    sparsity: float,
    per: Per = "mask",
    *,
    weights: Tensor | None = None,
    within: bool = False,
) -> Tensor:
    """The likeliest edges, in exactly the number that the sparsity asks for.

    Kept edges: (1 - sparsity) x edges, rounded to the nearest whole number; with weights as many
    as bring their sum nearest to (1 - sparsity) x that of all edges. By default these are
    shared out over layers and heads as the probabilities say; with `per="layer"` or
    `per="head"` each layer or head keeps that share of its own. A sparser mask is a subset of a
    denser one.

    Args:
        probabilities: float `[layers, heads, n, n]`.
        sparsity: 1 - kept / all, in [0, 1 - 1/n]; with weights `effective_sparsity`.
        per: What has that sparsity: the whole `"mask"`, each `"layer"` or each `"head"`.
        weights: As of `weights_of`, how much each edge counts; None = all alike.
        within: Whether to take, in place of the nearest number, the largest that is at least as
            sparse.

    Returns:
        bool `[layers, heads, n, n]`.

    Raises:
        ValueError: If the sparsity is out of range, or too high for one key in every row.
    """
    if not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity must lie in [0, 1], got {sparsity}")
    ranks = ranking(probabilities, per, weights=weights)
    edges, length = int(ranks.max()) + 1, ranks.shape[-1]
    if weights is None:
        asked = (1 - sparsity) * edges
        kept = torch.tensor([[int(asked + 1e-6) if within else round(asked)]])
    else:
        kept = kept_by_weight(ranks, edges, 1 - sparsity, weights, within)
        if per != "mask" and weights.ndim > 2:  # one key a row may be more than that share
            kept = kept.clamp(min=edges // length)
    if (kept < edges // length).any():
        most = "1 - 1/n = " if weights is None else ""
        raise ValueError(
            f"every row keeps a key, so sparsity is at most {most}"
            f"{1 - least_density(length, weights):.6g} at length {length}, got {sparsity}"
        )
    mask = (ranks.view(len(kept), -1) < kept).view(ranks.shape)
    return without_empty_padding(mask, weights)


def kept_by_weight(
    ranks: Tensor, edges: int, density: float, weights: Tensor, within: bool
) -> Tensor:
    """How many edges in the order of `ranks` have that share of the weight.

    Args:
        ranks: int64 `[layers, heads, n, n]`, as `ranking` gives them.
        edges: Edges of a mask, layer or head that is cut.
        density: In [0, 1].
        weights: float64, as of `weights_of`.
        within: Whether none is to have more.

    Returns:
        int64 `[groups, 1]`, at most the number of possible edges: the longest of those whose
        weight is nearest.
    """
    order = ranks.view(-1, edges).argsort(1)
    each = weights.double().expand(ranks.shape).reshape(order.shape)
    sums = F.pad(each.gather(1, order).cumsum(1), (1, 0))
    possible = possible_edges(weights, ranks.shape[-1]).expand(ranks.shape)
    most = possible.reshape(order.shape).sum(1, keepdim=True)
    above = sums - density * sums[:, -1:]
    slack = 1e-9 * float(weights.sum())  # sums of the same edges differ by rounding
    left_out = (torch.arange(edges + 1) > most) | (within & (above > slack))
    gaps = above.abs().masked_fill(left_out, torch.inf)
    longest = (gaps <= gaps.amin(1, keepdim=True) + slack).int().flip(1).argmax(1, keepdim=True)
    return edges - longest


def without_empty_padding(mask: Tensor, weights: Tensor | None) -> Tensor:
    """The mask, where queries that count for nothing keep themselves; no row may be empty."""
    return mask if weights is None else mask | torch.diag_embed(weights.diagonal(0, -2, -1) == 0)


def at_threshold(
    probabilities: Tensor, threshold: float, *, weights: Tensor | None = None
) -> Tensor:
    """Edges of at least that probability; a row without any (with weights: in any sequence) keeps
    its best key.

    Args:
        probabilities: float `[layers, heads, n, n]`.
        threshold: Lowest kept probability, in [0, 1].
        weights: As of `weights_of`; edges of weight 0 are left out. None = all count alike.

    Returns:
        bool `[layers, heads, n, n]`.

    Raises:
        ValueError: If the threshold is out of range.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must lie in [0, 1], got {threshold}")
    ranks, length = ranking(probabilities, weights=weights), probabilities.shape[-1]
    kept = (probabilities.detach().cpu() >= threshold) & possible_edges(weights, length)
    lasting = kept & lasting_edges(weights, length)
    best = ranks < probabilities.numel() // length
    kept = kept | (best & ~lasting.any(-1, keepdim=True))
    return without_empty_padding(kept, weights)


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
