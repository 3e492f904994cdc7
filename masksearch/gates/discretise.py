"""From gate probabilities to masks: exactly as sparse as asked, and never an empty row.

at_sparsity(probabilities, 0.9)                  # the likeliest tenth of all edges
at_sparsity(probabilities, 0.9, per="head")      # of every head
at_threshold(probabilities, 0.5)
at_sparsity(probabilities, 0.9, weights=pair_weights(shape))   # of the pairs that tokens form
at_sparsity(probabilities, 0.9, block=(64, 16))  # in tiles of 64 queries and 16 keys

With `weights` (`masksearch.masks.measure.pair_weights`) an edge counts as much as there are
sequences that have it. Edges without weight (padding alone, the future of a decoder, rows of the
last layer that reach no output) are never kept, with one exception: a query without any other
keeps itself, as no row may be empty.
The best key of a row is one of those that are there in every sequence that has the query (all of
them, without padding), so that no query of any sequence is left without a key.
Edges of few sequences are kept by their probability like all others; each takes little of the
density.

With a `block` the same holds of tiles of so many queries and keys, which are kept or dropped
whole: an edge is a tile of 1 x 1. The number of tiles is the one that comes nearest to the
sparsity, and every row of tiles keeps one that leaves no query without a key.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from masksearch.errors import check_name
from masksearch.masks.lower import Block, by_tiles, spread_tiles
from masksearch.masks.measure import counts_all_alike, pair_weights
from masksearch.masks.shape import Shape

Per = Literal["mask", "layer", "head"]
EDGE: Block = (1, 1)  # a tile of one edge


def weights_of(shape: Shape) -> Tensor | None:
    """`pair_weights`, `[n, n]` or `[layers, 1, n, n]`; None where all cells count alike."""
    return None if counts_all_alike(shape) else pair_weights(shape)


@dataclass(frozen=True)
class Tiles:
    """The parts of a table that a mask keeps or drops as a whole, each with its weight.

    Args:
        weights: float64 `[rows, columns]` or `[layers, 1, rows, columns]`; None = all alike.
        own: bool `[rows, columns]`, the tile of each row that holds its first query's own key.
        lasting: bool, shaped as the weights: tiles in which every query that counts has a key
            that is there wherever the query is; those of `own` among them.
        nearness: int64 `[rows, columns]`, lower is nearer: by the middles, earlier keys first.
    """

    weights: Tensor | None
    own: Tensor
    lasting: Tensor
    nearness: Tensor

    @property
    def possible(self) -> Tensor:
        """Tiles that a mask may keep, bool: those that count, and `own`."""
        return torch.ones_like(self.own) if self.weights is None else (self.weights > 0) | self.own


def _lay_out_tiles(length: int, weights: Tensor | None = None, block: Block = EDGE) -> Tiles:
    """The tiles of a table.

    Args:
        length: Positions; the last tiles may be ragged.
        weights: As of `weights_of`, how much each edge counts; None = all alike.
        block: Queries and keys of a tile.
    """
    queries, keys = block
    first_query = torch.arange(0, length, queries)[:, None]
    first_key = torch.arange(0, length, keys)[None, :]
    own = first_key == first_query // keys * keys
    offset = (2 * first_key + keys) - (2 * first_query + queries)
    nearness = 2 * offset.abs() + (offset > 0)
    if weights is None and block == EDGE:
        return Tiles(None, own, torch.ones_like(own), nearness)
    cells = torch.ones(length, length, dtype=torch.float64) if weights is None else weights
    tiled = by_tiles(cells, block).sum((-3, -1))
    counts = cells.diagonal(0, -2, -1)[..., None]  # of each query
    served = by_tiles((cells > 0) & (cells == counts), block).any(-1)
    idle = F.pad(counts == 0, (0, 0, 0, -length % queries), value=True)
    served = served | idle.view(*idle.shape[:-2], -1, queries, 1)
    return Tiles(tiled, own, served.all(-2) & ((tiled > 0) | own), nearness)


def key_in_every_row(bound: str, weights: Tensor | None, block: Block, formula: str) -> str:
    """The first words of a refusal: why there is that bound, and what it is where all count."""
    if block == EDGE:
        return f"every row keeps a key, so {bound} {'' if weights is not None else formula}"
    return f"every row of tiles of {block[0]} x {block[1]} keeps one, so {bound} about "


def least_density(length: int, weights: Tensor | None = None, block: Block = EDGE) -> float:
    """Density of one key in every row: 1/n, or with weights that of the diagonal, in (0, 1]; of
    tiles that of each row's `own`."""
    if weights is None and block == EDGE:
        return 1 / length
    tiles = _lay_out_tiles(length, weights, block)
    assert tiles.weights is not None
    return (tiles.weights[..., tiles.own].sum() / tiles.weights.sum()).item()


def ranking(chances: Tensor, tiles: Tiles, per: Per = "mask") -> Tensor:
    """Every tile's rank in the order in which tiles are kept.

    First the best of each row, then all others, the likelier first. Ties go to the nearer offset
    (earlier keys before later ones), then to the first layer, head and row: with Toeplitz gates
    whole offsets follow one another. Tiles without weight come last.

    Args:
        chances: float `[layers, heads, rows, columns]`; any scores do, if none is NaN.
        tiles: Of `_lay_out_tiles`.
        per: Among which: those of the whole `"mask"`, of each `"layer"` or each `"head"`.

    Returns:
        int64 `[layers, heads, rows, columns]`; of each mask, layer or head a permutation of
        0 .. its number of tiles - 1.

    Raises:
        ValueError: If a probability is NaN.
        UnknownNameError: For another `per`.
    """
    check_name("part of a mask", per, get_args(Per))
    scores = chances.detach().cpu()
    if scores.isnan().any():
        raise ValueError("probabilities hold NaN, which has no place in an order; train again")
    layers, heads, _, columns = scores.shape
    groups = {"mask": 1, "layer": layers, "head": layers * heads}[per]
    scores = scores.reshape(groups, -1)
    nearness = tiles.nearness.flatten().repeat(scores.shape[1] // tiles.nearness.numel())
    near = nearness.argsort(stable=True)
    order = near[scores[:, near].argsort(dim=1, descending=True, stable=True)]
    if tiles.weights is not None:
        last = ~tiles.possible.expand(chances.shape).reshape(groups, -1)
        order = order.gather(1, last.gather(1, order).byte().argsort(dim=1, stable=True))
    ranks = order.argsort(1)  # the inverse of a permutation
    rows = ranks.view(groups, -1, columns)
    lasting = tiles.lasting.expand(chances.shape).reshape(rows.shape)
    best = (rows == rows.masked_fill(~lasting, rows.numel()).amin(2, keepdim=True)).flatten(1)
    ranks = (ranks + ranks.shape[1] * ~best).argsort(1).argsort(1)
    return ranks.view(chances.shape)


def at_sparsity(
    probabilities: Tensor,
    sparsity: float,
    per: Per = "mask",
    *,
    weights: Tensor | None = None,
    within: bool = False,
    block: Block = EDGE,
) -> Tensor:
    """The likeliest edges, in exactly the number that the sparsity asks for.

    Kept edges: (1 - sparsity) x edges, rounded to the nearest whole number; with weights or tiles
    as many as bring their sum nearest to (1 - sparsity) x that of all edges. By default these are
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
        block: Queries and keys of the tiles that are kept whole; the probabilities are alike in
            each.

    Returns:
        bool `[layers, heads, n, n]`.

    Raises:
        ValueError: If the sparsity is out of range, or too high for one key in every row.
    """
    if not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity must lie in [0, 1], got {sparsity}")
    length, density = probabilities.shape[-1], 1 - sparsity
    tiles = _lay_out_tiles(length, weights, block)
    ranks = ranking(probabilities[..., :: block[0], :: block[1]], tiles, per)
    count, least = int(ranks.max()) + 1, least_density(length, weights, block)
    rows = count // ranks.shape[-1]
    if tiles.weights is None:
        asked = density * count
        kept = torch.tensor([[int(asked + 1e-6) if within else round(asked)]])
    else:
        kept = _kept_by_weight(ranks, count, density, tiles, within)
        own_share = per != "mask" and tiles.weights.ndim > 2
        if own_share or (block != EDGE and not within and density >= least):
            kept = kept.clamp(min=rows)  # one in each row may be more than that share
    if (kept < rows).any():
        rule = key_in_every_row("sparsity is at most", weights, block, "1 - 1/n = ")
        raise ValueError(f"{rule}{1 - least:.6g} at length {length}, got {sparsity}")
    return spread_tiles((ranks.view(len(kept), -1) < kept).view(ranks.shape), length, block)


def _kept_by_weight(
    ranks: Tensor, count: int, density: float, tiles: Tiles, within: bool
) -> Tensor:
    """How many tiles in the order of `ranks` have that share of the weight.

    Args:
        ranks: int64 `[layers, heads, rows, columns]`, as `ranking` gives them.
        count: Tiles of a mask, layer or head that is cut.
        density: In [0, 1].
        tiles: With weights.
        within: Whether none is to have more.

    Returns:
        int64 `[groups, 1]`, at most the number of possible tiles: the longest of those whose
        weight is nearest.
    """
    assert tiles.weights is not None
    order = ranks.view(-1, count).argsort(1)
    each = tiles.weights.double().expand(ranks.shape).reshape(order.shape)
    sums = F.pad(each.gather(1, order).cumsum(1), (1, 0))
    most = tiles.possible.expand(ranks.shape).reshape(order.shape).sum(1, keepdim=True)
    above = sums - density * sums[:, -1:]
    slack = 1e-9 * float(tiles.weights.sum())  # sums of the same tiles differ by rounding
    left_out = (torch.arange(count + 1) > most) | (within & (above > slack))
    gaps = above.abs().masked_fill(left_out, torch.inf)
    longest = (gaps <= gaps.amin(1, keepdim=True) + slack).int().flip(1).argmax(1, keepdim=True)
    return count - longest


def at_threshold(
    probabilities: Tensor,
    threshold: float,
    *,
    weights: Tensor | None = None,
    block: Block = EDGE,
) -> Tensor:
    """Edges of at least that probability; a row without any (with weights: in any sequence) keeps
    its best key.

    Args:
        probabilities: float `[layers, heads, n, n]`.
        threshold: Lowest kept probability, in [0, 1].
        weights: As of `weights_of`; edges of weight 0 are left out. None = all count alike.
        block: Queries and keys of the tiles that are kept whole.

    Returns:
        bool `[layers, heads, n, n]`.

    Raises:
        ValueError: If the threshold is out of range.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must lie in [0, 1], got {threshold}")
    length = probabilities.shape[-1]
    tiles = _lay_out_tiles(length, weights, block)
    chances = probabilities.detach().cpu()[..., :: block[0], :: block[1]]
    kept = (chances >= threshold) & tiles.possible
    best = ranking(chances, tiles) < chances[..., 0].numel()
    kept = kept | (best & ~(kept & tiles.lasting).any(-1, keepdim=True))
    return spread_tiles(kept, length, block)


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
