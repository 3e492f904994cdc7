"""From gate probabilities to masks: exactly as sparse as asked, and never an empty row.

at_sparsity(probabilities, 0.9)                  # the likeliest tenth of all edges
at_sparsity(probabilities, 0.9, per="head")      # of every head
top_keys(probabilities, 8)                       # of every row: 8 keys
at_threshold(probabilities, 0.5)
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from masksearch.errors import unknown_name
from masksearch.masks.core import no_empty_rows

Per = Literal["mask", "layer", "head"]
EmptyRows = Literal["best", "refuse"]


def ranking(probabilities: Tensor, per: Per = "mask", *, empty_rows: EmptyRows = "best") -> Tensor:
    """Every edge's place in the order in which edges are kept.

    First the best key of each row (unless `empty_rows="refuse"`), then all other edges, the
    likelier first. Ties go to the nearer offset (earlier keys before later ones), then to the
    first layer, head and query: with Toeplitz gates whole offsets follow one another.

    Args:
        probabilities: float `[layers, heads, queries, keys]`; any scores do, if none is NaN.
        per: Among which edges: those of the whole `"mask"`, of each `"layer"` or each `"head"`.
        empty_rows: `"best"`: best keys first; `"refuse"`: by the probabilities alone.

    Returns:
        int64 `[layers, heads, queries, keys]`; of each mask, layer or head a permutation of
        0 .. its number of edges - 1.

    Raises:
        ValueError: If a probability is NaN.
        UnknownNameError: For another `per` or `empty_rows`.
    """
    if per not in get_args(Per):
        raise unknown_name("part of a mask", per, get_args(Per))
    if empty_rows not in get_args(EmptyRows):
        raise unknown_name("rule for empty rows", empty_rows, get_args(EmptyRows))
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
    places = order.argsort(1)  # the inverse of a permutation
    if empty_rows == "best":
        rows = places.view(groups, -1, length)
        best = (rows == rows.amin(2, keepdim=True)).flatten(1)
        places = (places + places.shape[1] * ~best).argsort(1).argsort(1)
    return places.view(probabilities.shape)


def at_sparsity(
    probabilities: Tensor,
    sparsity: float,
    per: Per = "mask",
    *,
    empty_rows: EmptyRows = "best",
) -> Tensor:
    """The likeliest edges, in exactly the number that the sparsity asks for.

    Kept edges: (1 - sparsity) x edges, rounded to the nearest whole number. By default these are
    shared out over layers and heads as the probabilities say; with `per="layer"` or
    `per="head"` each layer or head keeps that share of its own. A sparser mask is a subset of a
    denser one.

    Args:
        probabilities: float `[layers, heads, n, n]`.
        sparsity: 1 - kept / all, in [0, 1 - 1/n].
        per: What has that sparsity: the whole `"mask"`, each `"layer"` or each `"head"`.
        empty_rows: `"best"`: every row keeps its best key, which counts; `"refuse"`: an error
            where the likeliest edges leave a row without any.

    Returns:
        bool `[layers, heads, n, n]`.

    Raises:
        ValueError: If the sparsity is out of range, or too high for one key in every row.
        EmptyRowError: With `empty_rows="refuse"`; names layer, head and row.
    """
    if not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity must lie in [0, 1], got {sparsity}")
    places = ranking(probabilities, per, empty_rows=empty_rows)
    edges, length = int(places.max()) + 1, places.shape[-1]
    kept = round((1 - sparsity) * edges)
    if kept < edges // length and empty_rows == "best":
        raise ValueError(
            f"every row keeps a key, so sparsity is at most 1 - 1/n = {1 - 1 / length:.6g} "
            f"at length {length}, got {sparsity}"
        )
    mask = places < kept
    no_empty_rows(mask)
    return mask


def top_keys(probabilities: Tensor, keys: int) -> Tensor:
    """The likeliest keys of each query; ties as in `ranking`.

    Args:
        probabilities: float `[layers, heads, n, n]`.
        keys: Kept keys of every row, in 1 .. n.

    Returns:
        bool `[layers, heads, n, n]`.

    Raises:
        ValueError: If `keys` is out of range.
    """
    length = probabilities.shape[-1]
    if isinstance(keys, bool) or not isinstance(keys, int) or not 1 <= keys <= length:
        raise ValueError(f"keys must be a whole number in 1 .. n = {length}, got {keys!r}")
    chosen = ranking(probabilities).topk(keys, dim=-1, largest=False).indices
    return torch.zeros(probabilities.shape, dtype=torch.bool).scatter_(-1, chosen, True)


def at_threshold(
    probabilities: Tensor, threshold: float, *, empty_rows: EmptyRows = "best"
) -> Tensor:
    """Edges of at least that probability.

    Args:
        probabilities: float `[layers, heads, n, n]`.
        threshold: Lowest kept probability, in [0, 1].
        empty_rows: `"best"`: a row without any keeps its best key; `"refuse"`: an error there.

    Returns:
        bool `[layers, heads, n, n]`.

    Raises:
        ValueError: If the threshold is out of range.
        EmptyRowError: With `empty_rows="refuse"`; names layer, head and row.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must lie in [0, 1], got {threshold}")
    places = ranking(probabilities, empty_rows=empty_rows)
    kept = probabilities.detach().cpu() >= threshold
    if empty_rows == "best":
        rows = probabilities.numel() // probabilities.shape[-1]
        kept = kept | ((places < rows) & ~kept.any(-1, keepdim=True))
    no_empty_rows(kept)
    return kept
