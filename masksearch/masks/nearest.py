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
from collections.abc import Callable, Iterator
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
    family_name,
    field_names,
    join_chain,
)
from masksearch.masks.families import log_sparse, strided
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
    RandomKeys,
    Shifts,
    Stride,
    Window,
)
from masksearch.masks.measure import overlap
from masksearch.masks.tables import PerHead, PerLayer, Table, Toeplitz

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
        text=str(result),
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
    options = [shortest_union(table.flatten(0, 1))]
    if not torch.equal(table, table[:1, :1].expand_as(table)):
        if heads > 1:
            found = [shortest_union(head.flatten(0, 1)) for head in table.unsqueeze(2).unbind(1)]
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
    return mask | Window(0)


# -- the greedy search ---------------------------------------------------------------------------
def shortest_union(planes: Tensor) -> tuple[Mask, float]:
    """The union of parts that describes some planes in the fewest bits, and those bits.

    Args:
        planes: bool `[.., n, n]`.
    """
    length = planes.shape[-1]
    planes = planes.reshape(-1, length, length)
    nowhere = torch.zeros(length, length, dtype=torch.bool)
    found = Union(planes, nowhere, None).grow()
    for limit in (Causal(), ~Offsets((0,))):
        outside = ~cells_of(limit, length)
        missed = (2 * planes[:, outside].sum(0) - len(planes)).clamp(min=0)  # kept there by most
        least = (
            WORD + expression_bits(limit, length) + float(error_bits(missed.sum(), planes.numel()))
        )
        if least < found[1]:
            found = min(found, Union(planes, outside, limit).grow(), key=lambda option: option[1])
    return found


class Union:
    """The search for a union of parts within a limit such as `causal()`.

    Keeping a cell is right in some of the planes and wrong in the others, so the planes matter
    through one number a cell: how many planes keep it, less how many do not. What a part gains
    is the sum of that number over its cells that are not kept yet.

    Args:
        planes: bool `[planes, n, n]`.
        outside: bool `[n, n]`, the cells beyond the limit.
        limit: The limit as a mask; None = none.
    """

    def __init__(self, planes: Tensor, outside: Tensor, limit: Mask | None) -> None:
        self.length, self.cells, self.kept = planes.shape[-1], planes.numel(), int(planes.sum())
        self.weight = (2 * planes.sum(0).double() - len(planes)).masked_fill(outside, 0)
        self.outside, self.limit = outside, limit
        self.known: dict[Parts, float] = {}

    def grow(self) -> tuple[Mask, float]:
        """The shortest union that a part of any kind grows to, its parts then exchanged."""
        starts = sorted(self.grow_by_one(()), key=self.bits)[:STARTS]
        parts = min(map(self.extend, starts), key=self.bits)
        shorter = True
        while shorter:
            without = [tuple(p for p in parts if p != part) for part in parts]
            options = [
                *without,
                *(o for rest in (parts, *without) for o in self.grow_by_one(rest)),
            ]
            best = min(options, key=self.bits, default=parts)
            shorter = self.bits(best) < self.bits(parts)
            parts = best if shorter else parts
        return self.expression(parts), self.bits(parts)

    def extend(self, parts: Parts) -> Parts:
        """Adds the part that shortens the description most, as long as one does."""
        while True:
            best = min(self.grow_by_one(parts), key=self.bits)
            if self.bits(best) >= self.bits(parts):
                return parts
            parts = best

    def cover(self, parts: Parts) -> Tensor:
        """The cells of the union, bool `[n, n]`."""
        cover = torch.zeros_like(self.outside)
        for part in parts:
            cover = cover | cells_of(part, self.length)
        return cover & ~self.outside

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

    def grow_by_one(self, parts: Parts) -> Iterator[Parts]:
        """The union with one more part: the best of every kind."""
        cover = self.cover(parts)
        wrong = self.wrong(cover)
        weight = self.weight.masked_fill(cover, 0)

        def errors(gain: Any) -> Any:
            return error_bits(wrong - gain, self.cells)

        for offered in (by_offset, by_block, by_position):
            for option in offered(weight, errors):
                yield merge_parts(*parts, *option)


@lru_cache(maxsize=512)
def cells_of(part: Mask, length: int) -> Tensor:
    """The cells of a part, bool `[n, n]`."""
    return part.dense(length)[0, 0]


def merge_parts(*parts: Mask) -> Parts:
    """The parts of a union in the order of `ORDER`, sets of one kind as one."""
    flat = join_chain(Either, *parts)
    found = [part for part in dict.fromkeys(flat) if not isinstance(part, tuple(SETS))]
    for kind, field in SETS.items():
        members = [number for p in flat if isinstance(p, kind) for number in getattr(p, field)]
        found += [kind(**{field: members})] if members else []
    return tuple(sorted(found, key=lambda part: (ORDER.index(type(part)), str(part))))


# -- the library: the best parts of every kind, given what each cell [n, n] gains ---------------
Errors = Callable[[Any], Any]  # bits of the cells that are still wrong after a gain; elementwise


@lru_cache(maxsize=2)
def patterns(length: int) -> tuple[list[Mask], Tensor, Tensor]:
    """Parts that depend on j - i alone; 1 where they keep it, `[parts, 2n - 1]`; their bits."""
    found: list[Mask] = [Full(), Causal(), log_sparse(), PowersOfTwo()]
    found += [Window(reach) for reach in range(max(1, length - 1))]
    found += [kind(period) for kind in (Stride, strided) for period in range(2, length)]
    for gap in range(2, min(GAPS, length // 2) + 1):
        found += [Dilated(reach, gap) for reach in range(gap, length, gap)]
    offset = torch.arange(1 - length, length)
    at = Points(torch.zeros_like(offset), offset, length)
    kept = torch.stack([part.allows(at) for part in found]).double()
    return found, kept, torch.tensor([expression_bits(part, length) for part in found]).double()


def by_offset(weight: Tensor, errors: Errors) -> Iterator[Parts]:
    """The best pattern of each kind, and the best sets of distances and of signed offsets."""
    length = len(weight)
    query, key = grid(length)
    along = torch.zeros(2 * length - 1, dtype=torch.float64)
    along.index_add_(0, (key - query + length - 1).flatten(), weight.flatten())
    parts, kept, price = patterns(length)
    bits, seen = price + errors(kept @ along), set()
    for index in bits.argsort(stable=True).tolist():
        if parts[index].kind not in seen:
            seen.add(parts[index].kind)
            yield (parts[index],)
    distance = along[length - 1 :] + along[:length].flip(0)
    distance[0] = along[length - 1]
    for chosen in best_set(distance, errors):
        yield (Offsets(chosen),)
    for chosen in best_set(along, errors):
        yield (Shifts([index - length + 1 for index in chosen]),)


def by_block(weight: Tensor, errors: Errors) -> Iterator[Parts]:
    """The best blocks, block columns, and both together, by sums of columns above each row."""
    length = len(weight)
    sizes, position = torch.arange(2, max(3, length // 2 + 1))[:, None], torch.arange(length)
    start = position // sizes * sizes
    above = torch.cat([torch.zeros(1, length), weight.cumsum(0)])
    own = above[(start + sizes).clamp(max=length), position] - above[start, position]
    columns = weight.sum(0)
    yield (Blocks(int(sizes[int(errors(own.sum(1)).argmin())])),)
    for last in range(1, LASTS + 1):
        kept = (position % sizes >= sizes - last) & (sizes > last)
        for whole, gain in ((False, columns * kept), (True, torch.where(kept, columns, own))):
            size = int(sizes[int(errors(gain.sum(1)).argmin())])
            if size > last:
                part = BlockColumns(size, last)
                yield (Blocks(size), part) if whole else (part,)


def by_position(weight: Tensor, errors: Errors) -> Iterator[Parts]:
    """The best global tokens and the best columns: the first ones, or any."""
    length = len(weight)
    columns, both = weight.sum(0), weight.sum(0) + weight.sum(1) - weight.diagonal()
    for own, kind in ((columns, Columns), (both, GlobalTokens)):
        ranked = own.argsort(descending=True, stable=True)
        ranked = ranked[own[ranked] > 0]
        some = set_bits(torch.arange(1, len(ranked) + 1), length)
        for order, price in ((torch.arange(length), torch.zeros(1)), (ranked, some)):
            if not len(order):
                continue
            gain = own[order].cumsum(0)
            if kind is GlobalTokens:  # less the cells that are in a row and in a column
                crossing = weight[order][:, order].fill_diagonal_(0)
                gain = gain - crossing.cumsum(0).cumsum(1).diagonal()
            count = int((price + errors(gain)).argmin()) + 1
            yield (kind(positions=order[:count].tolist()),)


def best_set(gain: Tensor, errors: Errors) -> Iterator[list[int]]:
    """The members, of those that gain anything, that shorten the description most."""
    order = gain.argsort(descending=True, stable=True)[: int((gain > 0).sum())]
    if len(order):
        price = set_bits(torch.arange(1, len(order) + 1), len(gain))
        yield order[: int((price + errors(gain[order].cumsum(0))).argmin()) + 1].tolist()


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
        case Table() | Toeplitz() | RandomKeys() | PerHead() | PerLayer():
            raise TypeError(f"{mask.kind} has no description in names and whole numbers")
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
