"""The structured mask that explains a table best: a searched table, named and stretchable.

found = nearest_family(table_mask)
print(found.text, found.iou)          # "window(3) | global_tokens(1)"  0.97
found.mask.dense(256)                 # a table itself has one length only
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from masksearch.errors import LengthError
from masksearch.masks import families
from masksearch.masks.core import DenseMask, Mask
from masksearch.masks.description import WORD, listing_bits
from masksearch.masks.measure import overlap
from masksearch.masks.stacks import PerHead, PerLayer
from masksearch.masks.text import expression
from masksearch.masks.union_search import UnionSearch


@dataclass(frozen=True)
class NearestFamily:
    """A structured mask, and how well it explains a table.

    Args:
        mask: The mask, of any length but where it has an `axial` grid or a `block_layout`, which
            end with the table; no row is empty at the table's length.
        text: Its expression, which `masksearch.masks.parse` reads back, unless it has a block
            layout of more than 160 blocks: there it shows shape and digest.
        iou: Kept cells in common over kept cells of either, in [0, 1].
        missing: Cells that the table keeps and the mask does not, over all layers and heads.
        extra: Cells that the mask keeps and the table does not, likewise.
        bits: Length of the description: the expression, and the cells where it is wrong.
        listing: Bits of listing the table's cells without any structure.
        explained: Whether the mask says more of the table than its density does: it is exact,
            or it is shorter than the listing and overlaps more than a random mask of the table's
            density would. Else `mask` is merely the best of a bad lot.
    """

    mask: Mask
    text: str
    iou: float
    missing: int
    extra: int
    bits: float
    listing: float
    explained: bool


def nearest_family(
    mask: Mask, length: int | None = None, *, layers: int | None = None, heads: int | None = None
) -> NearestFamily:
    """Names the structured mask that explains a table best.

    Candidates are unions of `window`, `dilated`, `stride`, `blocks`, `block_columns`,
    `powers_of_two`, `full`, `causal`, the hand-designed families, a set of `offsets`, one of
    `shifts`, one of `global_tokens` and one of `columns`, `axial` with every factorisation of n
    (or of n - 1, behind one prefix token), `butterfly` and a `block_layout` at the block sizes
    that divide n, grown in up to four steps; each also within `causal()` or without the diagonal;
    one for all planes, or one per head, per layer, or both. The recipes `a_shape` and
    `vertical_slash` are found as the unions that they are. The random keys of BigBird are noise
    here: what is left of it is its window and its global tokens.

    The choice is by minimum description length. An expression costs 5 bits a name or operator,
    log2(n + 1) a number, and log2 of the number of sets of that size for a list or for the kept
    blocks of a layout; the cells where it is wrong cost log2 of the number of such sets of cells;
    a size m costs 2 log2(m + 1) + 1. So noise is not explained by a long list of shifts. Where
    heads or layers have masks of their own, each also pays for its own errors. The search is a
    beam search. It is exact for a single part with whole numbers, up to gaps of 32, 4 last
    columns of a block and butterflies whose block divides n; grids, butterflies and layouts are
    weighed only where they are shorter than the list of the cells. It takes seconds for a few
    heads at n = 512.

    An expression with an empty row at this length is joined with the diagonal, `window(0)`;
    `bits` and `explained` are the judgement before that, the other figures count it.

    Args:
        mask: Any mask; above all a table that a search has found.
        length: Positions at which it is read; by default the table's own length.
        layers: Layers to read, where the mask does not tell layers apart itself.
        heads: Heads to read, likewise.

    Raises:
        LengthError: If a mask of any length comes without `length`, or a table with another one.
        LayerCountError, HeadCountError: If the mask was built for other counts.

    Reference: Rissanen, "Modeling by shortest data description", Automatica 14 (1978).

    >>> from masksearch import masks
    >>> nearest_family(masks.table(masks.star().dense(32))).text
    'star()'
    """
    size = mask.length if length is None else length
    if size is None:
        raise LengthError(
            f"{mask} has any length, and none is given; "
            "say at which one it is read: nearest_family(mask, length=128)"
        )
    table = mask.dense(size, layers or 1, heads or 1)
    found, bits = explain(table)
    result = without_empty_rows(found, size)
    dense = result.dense(size, *table.shape[:2])
    iou, density = overlap(table, dense), float(table.double().mean())
    exact = torch.equal(found.dense(size, *table.shape[:2]), table)
    listing = min(
        listing_bits(int(table.sum()), table.numel()),
        sum(listing_bits(int(plane.sum()), size * size) for plane in table.flatten(0, 1)),
    )
    return NearestFamily(
        mask=result,
        text=expression(result),
        iou=iou,
        missing=int((table & ~dense).sum()),
        extra=int((dense & ~table).sum()),
        bits=bits,
        listing=listing,
        explained=exact or (bits < listing and iou > density / (2 - density)),
    )


def explain(table: DenseMask) -> tuple[Mask, float]:
    """The shortest description of `[layers, heads, n, n]`: one mask, per head or per layer."""
    layers, heads = table.shape[:2]
    options = [UnionSearch(table).best()]
    if not torch.equal(table, table[:1, :1].expand_as(table)):
        if heads > 1:
            found = [UnionSearch(head).best() for head in table.unsqueeze(2).unbind(1)]
            bits = WORD + sum(bits for _, bits in found)
            options.append((PerHead(tuple(mask for mask, _ in found)), bits))
        if layers > 1:
            found = [explain(layer) for layer in table.unsqueeze(1)]
            bits = WORD + sum(bits for _, bits in found)
            options.append((PerLayer(tuple(mask for mask, _ in found)), bits))
    return min(options, key=lambda option: option[1])


def without_empty_rows(mask: Mask, length: int) -> Mask:
    """The expression, joined with the diagonal where a row would be empty."""
    if isinstance(mask, PerHead | PerLayer):
        return type(mask)(tuple(without_empty_rows(part, length) for part in mask.of))
    if mask.dense(length).any(-1).all():
        return mask
    return mask | families.window(0)
