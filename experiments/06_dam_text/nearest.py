"""The structured mask that explains a table best: a searched table, named and stretchable.

found = nearest_family(table_mask)
print(found.text, found.iou)          # "window(3) | global_tokens(1)"  0.97
found.mask.dense(256)                 # a table itself has one length only

A description is an expression and the list of the cells where it is wrong; the shortest one is
looked for greedily. Each round weighs every part of a library (all windows, strides, dilated
windows, blocks, .., and the best sets of offsets and of positions), takes the one that
shortens the description most, and then asks of each part taken before whether another one, or
none, would now be shorter. That ends when nothing shortens the description any more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from masksearch.errors import LengthError
from masksearch.masks.checks import grid
from masksearch.masks.core import (
    Both,
    Complement,
    DenseMask,
    Either,
    Mask,
    Points,
    check_mask,
    family_name,
    field_names,
    join_chain,
)
from masksearch.masks.families import fixed, log_sparse, strided
from masksearch.masks.leaves import (
    BlockColumns,
    Blocks,
    Causal,
    Columns,
    Dilated,
    Full,
    GlobalTokens,
    Offsets,
    PowersOfTwo,
    Shifts,
    Stride,
    Window,
)
from masksearch.masks.measure import overlap
from masksearch.masks.tables import PerHead, PerLayer

WORD = 5.0  # bits of a name or an operator of the language, of which there are about 32
GAPS = 32  # largest gap that dilated is tried with, in positions
STARTS = 5  # kinds of parts that a union grows from: those that describe most alone
LASTS = 4  # most columns of a block that block_columns and fixed are tried with
ORDER: list[type[Mask]] = [  # of the parts in a union, as the families have it
    *(Full, Causal, Columns, Window, Dilated, Stride, Blocks, BlockColumns),
    *(Offsets, PowersOfTwo, Shifts, GlobalTokens),
]
SETS = {Offsets: "distances", Shifts: "steps", GlobalTokens: "positions", Columns: "positions"}
Parts = tuple[Mask, ...]


@dataclass(frozen=True)
class NearestFamily:
    """A structured mask, and how well it explains a table.

    Args:
        mask: The mask, of any length; no row is empty at the table's length.
        text: Its expression, which `masksearch.masks.parse` reads back.
        iou: Kept cells in common over kept cells of either, in [0, 1].
        missing: Cells that the table keeps and the mask does not, over all layers and heads.
        extra: Cells that the mask keeps and the table does not, likewise.
        bits: Length of the description: the expression, and the cells where it is wrong.
        explained: Whether the mask says more of the table than its density does: it is exact,
            or it is shorter than a list of the table's cells and overlaps more than a random mask
            of the table's density would. Else `mask` is merely the best of a bad lot.
    """

    mask: Mask
    text: str
    iou: float
    missing: int
    extra: int
    bits: float
    explained: bool


def nearest_family(
    mask: Mask, length: int | None = None, *, layers: int | None = None, heads: int | None = None
) -> NearestFamily:
    """Names the structured mask that explains a table best.

    Candidates are unions of `window`, `dilated`, `stride`, `blocks`, `block_columns`,
    `powers_of_two`, `full`, `causal`, the hand-designed families, a set of `offsets`, one of
    `shifts`, one of `global_tokens` and one of `columns`, grown in up to four steps; each also
    within `causal()` or without the diagonal; one for all planes, or one per head, per layer, or
    both. The recipes `a_shape` and `vertical_slash` are found as the unions that they are. The
    random keys of BigBird are noise here: what is left of it is its window and global tokens.

    The choice is by minimum description length. An expression costs 5 bits a name or operator,
    log2(n + 1) a number, and log2 of the number of sets of that size for a list; the cells where
    it is wrong cost log2 of the number of such sets of cells;
    a size m costs 2 log2(m + 1) + 1. So noise is not explained by a long list of shifts. Where
    heads or layers have masks of their own, each also pays for its own errors. The search is
    greedy, so that a longer list of candidates can end in a longer description. It is exact for
    a single part with whole numbers, up to gaps of 32 and 4 last columns of a block. It takes
    seconds for a few heads at n = 512.

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
        TypeError: If it is no mask.

    Reference: Rissanen, "Modeling by shortest data description", Automatica 14 (1978).

    >>> from masksearch import masks
    >>> nearest_family(masks.table(masks.star().dense(32))).text
    'star()'
    """
    check_mask("nearest_family", mask)
    size = mask.length if length is None else length
    if size is None:
        raise LengthError(
            f"{mask} has any length, and none is given; "
            "say at which one it is read: nearest_family(mask, length=128)"
        )
    table = mask.dense(size, layers or 1, heads or 1)
    described, bits = explain(table)
    result = without_empty_rows(described, size)
    dense = result.dense(size, *table.shape[:2])
    iou, density = overlap(table, dense), float(table.double().mean())
    exact = torch.equal(described.dense(size, *table.shape[:2]), table)
    listing = min(
        listing_bits(int(table.sum()), table.numel()),
        sum(listing_bits(int(plane.sum()), size * size) for plane in table.flatten(0, 1)),
    )
    return NearestFamily(
        mask=result,
        text=str(result),
        iou=iou,
        missing=int((table & ~dense).sum()),
        extra=int((dense & ~table).sum()),
        bits=bits,
        explained=exact or (bits < listing and iou > density / (2 - density)),
    )


def explain(table: DenseMask) -> tuple[Mask, float]:
    """The shortest description of `[layers, heads, n, n]`: one mask, per head or per layer."""
    options = [shortest_union(table.flatten(0, 1))]
    for kind, axis in ((PerHead, 1), (PerLayer, 0)):
        planes = torch.split(table, 1, axis)
        if len(planes) > 1 and not torch.equal(table, table[:1, :1].expand_as(table)):
            parts = [
                shortest_union(plane.flatten(0, 1)) if kind is PerHead else explain(plane)
                for plane in planes
            ]
            bits = WORD + sum(bits for _, bits in parts)
            options.append((kind(tuple(mask for mask, _ in parts)), bits))
    return min(options, key=lambda option: option[1])


def without_empty_rows(mask: Mask, length: int) -> Mask:
    """The expression, joined with the diagonal where a row would be empty."""
    if isinstance(mask, PerHead | PerLayer):
        return type(mask)(tuple(without_empty_rows(part, length) for part in mask.of))
    return mask if mask.dense(length).any(-1).all() else mask | Window(0)


# -- the greedy search ---------------------------------------------------------------------------
def shortest_union(planes: Tensor) -> tuple[Mask, float]:
    """The union of parts that describes some planes in the fewest bits, and those bits.

    Args:
        planes: bool `[planes, n, n]`.
    """
    length = planes.shape[-1]
    best = Union(planes, None).shortest()
    for limit in (Causal(), ~Offsets((0,))):
        outside = planes[:, ~cells_of(limit, length)].sum(0)
        missed = int((2 * outside - len(planes)).clamp(min=0).sum())  # kept there by most planes
        least = WORD + expression_bits(limit, length) + float(error_bits(missed, planes.numel()))
        if least < best[1]:
            best = min(best, Union(planes, limit).shortest(), key=lambda option: option[1])
    return best


class Union:
    """The search for a union of parts within a limit such as `causal()`.

    Keeping a cell is right in some of the planes and wrong in the others, so the planes matter
    through one number a cell: how many planes keep it, less how many do not. What a part gains
    is the sum of that number over its cells that are not kept yet.

    Args:
        planes: bool `[planes, n, n]`.
        limit: The cells beyond this mask are not kept; None = no limit.
    """

    def __init__(self, planes: Tensor, limit: Mask | None) -> None:
        self.length, self.cells, self.kept = planes.shape[-1], planes.numel(), int(planes.sum())
        self.limit, self.within = limit, cells_of(limit or Full(), self.length)
        self.weight = (2 * planes.sum(0).double() - len(planes)) * self.within
        self.known: dict[Parts, float] = {}

    def shortest(self) -> tuple[Mask, float]:
        """The shortest union that a part of any kind grows to, or `fixed()`, whose two parts have
        one short name; its parts then exchanged."""
        starts = [*sorted(self.grow(()), key=self.bits)[:STARTS], merge_parts(fixed())]
        parts = min((self.improve(start, self.grow) for start in starts), key=self.bits)
        parts = self.improve(parts, self.exchange)
        return self.expression(parts), self.bits(parts)

    def improve(self, parts: Parts, options: Callable[[Parts], Iterable[Parts]]) -> Parts:
        """Takes the shortest of the options again and again, as long as it is shorter."""
        while (best := min(options(parts), key=self.bits)) and self.bits(best) < self.bits(parts):
            parts = best
        return parts

    def grow(self, parts: Parts) -> Iterator[Parts]:
        """The union with one more part: the best of every kind."""
        cover = self.cover(parts)
        wrong = self.wrong(cover)
        weight = self.weight.masked_fill(cover, 0)
        for part in best_parts(weight, lambda gain: error_bits(wrong - gain, self.cells)):
            yield merge_parts(*parts, part)

    def exchange(self, parts: Parts) -> Iterator[Parts]:
        """The union with one part less, with another one in its place, and with one more."""
        for part in parts:
            rest = tuple(other for other in parts if other != part)
            yield rest
            yield from self.grow(rest)
        yield from self.grow(parts)

    def cover(self, parts: Parts) -> Tensor:
        """The cells of the union, bool `[n, n]`."""
        cover = torch.zeros_like(self.within)
        for part in parts:
            cover = cover | cells_of(part, self.length)
        return cover & self.within

    def wrong(self, cover: Tensor) -> int:
        """Cells where a union is wrong, over all planes."""
        return self.kept - int((self.weight * cover).sum())

    def expression(self, parts: Parts) -> Mask:
        """The union within the limit."""
        union = parts[0] if len(parts) == 1 else Either(parts)
        return union if self.limit is None else union & self.limit

    def bits(self, parts: Parts) -> float:
        """Bits of the whole description; a union without cells explains nothing."""
        if parts not in self.known:
            cover = self.cover(parts)
            errors = float(error_bits(self.wrong(cover), self.cells))
            bits = expression_bits(self.expression(parts), self.length) if parts else math.inf
            self.known[parts] = bits + errors if cover.any() else math.inf
        return self.known[parts]


@lru_cache(maxsize=512)
def cells_of(part: Mask, length: int) -> Tensor:
    """The cells of a part, bool `[n, n]`."""
    return part.dense(length)[0, 0]


def merge_parts(*parts: Mask) -> Parts:
    """The parts of a union in the order of `ORDER`, sets of one kind as one."""
    flat = join_chain(Either, *parts)
    merged = [part for part in dict.fromkeys(flat) if not isinstance(part, tuple(SETS))]
    for kind, field in SETS.items():
        members = [number for p in flat if isinstance(p, kind) for number in getattr(p, field)]
        merged += [kind(**{field: members})] if members else []
    return tuple(sorted(merged, key=lambda part: (ORDER.index(type(part)), str(part))))


# -- the library ---------------------------------------------------------------------------------
@lru_cache(maxsize=2)
def library(length: int) -> list[tuple[list[Mask], Tensor, Tensor]]:
    """Parts with whole numbers that follow the offset j - i alone, and those that follow the key.

    Returns:
        Of both: the parts, where they keep (1 or 0, `[parts, 2n - 1]` and `[parts, n]`), and
        their bits `[parts]`.
    """
    offset, key = torch.arange(1 - length, length), torch.arange(length)
    by_offset: list[Mask] = [Full(), Causal(), log_sparse(), PowersOfTwo()]
    by_offset += [Window(reach) for reach in range(max(1, length - 1))]
    by_offset += [kind(period) for kind in (Stride, strided) for period in range(2, length)]
    for gap in range(2, min(GAPS, length // 2) + 1):
        by_offset += [Dilated(reach, gap) for reach in range(gap, length, gap)]
    by_key: list[Mask] = [Columns(count) for count in range(1, length + 1)]
    for last in range(1, LASTS + 1):
        by_key += [BlockColumns(size, last) for size in range(last + 1, length // 2 + 1)]
    entries = []
    for parts, keys in ((by_offset, offset), (by_key, key)):
        at = Points(torch.zeros_like(keys), keys, length)
        kept = torch.stack([part.allows(at) for part in parts]).double()
        bits = torch.tensor([expression_bits(part, length) for part in parts]).double()
        entries.append((parts, kept, bits))
    return entries


def best_parts(weight: Tensor, errors: Callable[[Any], Any]) -> Iterator[Mask]:
    """The best part of every kind.

    Args:
        weight: What each cell gains, `[n, n]`.
        errors: Bits of the cells that are still wrong after a gain; elementwise.
    """
    length, position = len(weight), torch.arange(len(weight))
    query, key = grid(length)
    along = torch.zeros(2 * length - 1, dtype=torch.float64)
    along.index_add_(0, (key - query + length - 1).flatten(), weight.flatten())
    columns = weight.sum(0)
    for (parts, kept, price), gain in zip(library(length), (along, columns), strict=True):
        order = (price + errors(kept @ gain)).argsort(stable=True).flip(0).tolist()
        yield from {parts[index].kind: parts[index] for index in order}.values()  # last = best
    sizes = torch.arange(2, max(3, length // 2 + 1))[:, None]
    start = position // sizes * sizes
    above = torch.cat([torch.zeros(1, length), weight.cumsum(0)])
    inside = above[(start + sizes).clamp(max=length), position] - above[start, position]
    yield Blocks(int(sizes[int(errors(inside.sum(1)).argmin())]))
    distance = along[length - 1 :] + along[:length].flip(0)
    distance[0] = along[length - 1]
    both = columns + weight.sum(1) - weight.diagonal()
    for kind, each, first in (
        (Offsets, distance, 0),
        (Shifts, along, 1 - length),
        (Columns, columns, 0),
        (GlobalTokens, both, 0),
    ):
        ranked = each.argsort(descending=True, stable=True)[: int((each > 0).sum())]
        some = set_bits(torch.arange(1, len(ranked) + 1), len(each))
        orders = [(ranked, some)] if len(ranked) else []
        if kind is GlobalTokens:
            orders.append((position, torch.zeros(1)))
        for order, price in orders:
            gain = each[order].cumsum(0)
            if kind is GlobalTokens:  # less the cells that are in a row and in a column
                crossing = weight[order][:, order].fill_diagonal_(0)
                gain = gain - crossing.cumsum(0).cumsum(1).diagonal()
            count = int((price + errors(gain)).argmin()) + 1
            fields: dict[str, Any] = {SETS[kind]: (order[:count] + first).tolist()}
            yield kind(**fields)


# -- the length of a description (minimum description length) ------------------------------------
def expression_bits(mask: Mask, length: int) -> float:
    """Bits of an expression; a hand-designed family at its defaults costs one name."""
    number = math.log2(length + 1)
    if isinstance(mask, Either) and family_name(mask):
        return WORD
    match mask:
        case Either(of=parts) | Both(of=parts):
            return WORD * (len(parts) - 1) + sum(expression_bits(p, length) for p in parts)
        case Complement(of=part):
            return WORD + expression_bits(part, length)
        case Offsets(distances=members):
            return WORD + float(set_bits(len(members), length))
        case Shifts(steps=members):
            return WORD + float(set_bits(len(members), 2 * length - 1))
        case GlobalTokens(positions=members) | Columns(positions=members):
            first = members == tuple(range(len(members)))
            return WORD + 1 + (number if first else float(set_bits(len(members), length)))
    return WORD + number * len(field_names(mask))


def set_bits(size: Any, out_of: float) -> Any:
    """Bits of a set of `size` members out of `out_of`: its size, then which one; elementwise."""
    size = torch.as_tensor(size, dtype=torch.float64)
    ways = math.lgamma(out_of + 1) - (size + 1).lgamma() - (out_of - size + 1).lgamma()
    return 2 * (size + 1).log2() + 1 + ways / math.log(2)


def error_bits(wrong: Any, cells: int) -> Any:
    """Bits of naming the wrong ones among some cells; elementwise.

    Beyond half of the cells every further one costs a bit, although a set of nearly all cells
    is as short as its complement: a mask that is wrong nearly everywhere explains nothing.
    """
    wrong = torch.as_tensor(wrong, dtype=torch.float64)
    half = cells / 2
    return set_bits(wrong.clamp(max=half), cells) + (wrong - half).clamp(min=0)


def listing_bits(kept: int, cells: int) -> float:
    """Bits of naming the kept cells, or the others where those are fewer."""
    return float(set_bits(min(kept, cells - kept), cells))
