"""Finds the union of mask parts that describes some tables in the fewest bits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from masksearch.masks import families
from masksearch.masks.core import Mask, Points, grid
from masksearch.masks.description import WORD, error_bits, expression_bits, set_bits
from masksearch.masks.layouts import Axial, BlockLayout, Butterfly, Columns
from masksearch.masks.leaves import (
    BlockColumns,
    Blocks,
    Causal,
    Dilated,
    Full,
    GlobalTokens,
    Offsets,
    PowersOfTwo,
    Shifts,
    Stride,
    Window,
)
from masksearch.masks.stacks import Complement, Either, joined

LASTS = 4  # most columns of a block that block_columns and fixed are tried with
FIRST, WIDTH = 8, 2  # unions that are carried on from the first round, and from a later one
FURTHER = (Columns, Axial, Butterfly, BlockLayout)  # unions with one of them: WIDTH of their own
ROUNDS = 4  # most additions to a union
GAPS = 32  # largest gap that dilated is tried with, in positions
KINDS = 7  # kinds of offset patterns: full, causal, or (the families), window, ..
LIKELY, COMPLETED = 64, 2  # offset patterns that further offsets are weighed for, and tried with
ORDER: list[type[Mask]] = [  # of the parts in a union, as the families have it
    *(Full, Causal, Columns, Window, Dilated, Stride, Blocks, BlockColumns),
    *(Axial, Butterfly, BlockLayout, Offsets, PowersOfTwo, Shifts, GlobalTokens),
]
SETS: dict[type[Offsets] | type[Shifts] | type[GlobalTokens] | type[Columns], str] = {
    Offsets: "distances",
    Shifts: "steps",
    GlobalTokens: "positions",
    Columns: "positions",
}


@dataclass(frozen=True, eq=False)
class Pool:
    """The parts of a length that have parameters, beside the free sets.

    Args:
        patterns: Parts that depend on j - i alone.
        offsets: float64 `[patterns, 2n - 1]`, 1 where a pattern keeps j - i = column - n + 1.
        price: float64 `[patterns]`, bits of each expression.
        sizes: int64 `[sizes]`, sizes of blocks.
        grids: One `Axial` for every way to write n, and n - 1 behind a prefix, as a product.
        butterflies: The blocks `[nb, nb]` that a butterfly keeps, for all sizes that divide n.
    """

    patterns: list[Mask]
    offsets: Tensor
    price: Tensor
    sizes: Tensor
    grids: list[Axial]
    butterflies: dict[int, Tensor]

    @staticmethod
    @lru_cache(maxsize=2)
    def of(length: int) -> Pool:
        """The pool of a length."""
        ranges = range(2, length)
        found = [families.full(), families.causal(), families.log_sparse()]
        found += [families.powers_of_two()]
        found += [families.window(reach) for reach in range(length - 1)]
        found += [families.stride(period) for period in ranges]
        found += [families.strided(period) for period in ranges]
        found += [
            families.dilated(reach, gap)
            for gap in range(2, min(GAPS, length // 2) + 1)
            for reach in range(gap, length, gap)
        ]
        offset = torch.arange(1 - length, length)
        at = Points(torch.zeros_like(offset), offset, length)
        kept = torch.stack([mask.allows(at) for mask in found])
        price = torch.tensor([expression_bits(mask, length) for mask in found]).double()
        sizes = torch.arange(2, max(3, length // 2 + 1))
        grids = [
            Axial((length - front) // columns, columns, front)
            for front in (0, 1)
            for columns in divisors(length - front)
        ]
        butterflies = {
            size: Butterfly().dense(length // size)[0, 0].double()
            for size in (1, *divisors(length))
        }
        return Pool(found, kept.double(), price, sizes, grids, butterflies)


def divisors(number: int) -> list[int]:
    """The whole numbers between 1 and the number, both excluded, that divide it."""
    return [size for size in range(2, number // 2 + 1) if number % size == 0]


@dataclass(frozen=True, eq=False)
class State:
    """A union of parts in the making.

    Args:
        parts: The parts, in the order of the expression.
        bits: Bits of the whole description.
        wrong: Cells where the union is wrong, over all planes.
        cover: bool `[n, n]`, the cells that it keeps within the limit.
    """

    parts: tuple[Mask, ...]
    bits: float
    wrong: int
    cover: Tensor

    @property
    def further(self) -> bool:
        """Whether one of the parts is of FURTHER."""
        return any(isinstance(part, FURTHER) for part in self.parts)


class UnionSearch:
    """Looks for the one expression that describes some planes in the fewest bits.

    Keeping a cell is right in some of the planes and wrong in the others, so the planes matter
    through one number a cell: how many planes keep it, less how many do not. The gain of a part
    is the sum of that number over its cells that are not kept yet.

    Args:
        planes: bool `[.., n, n]`.
    """

    def __init__(self, planes: Tensor) -> None:
        self.length = planes.shape[-1]
        self.cells = planes.numel()
        self.kept = int(planes.sum())
        planes = planes.reshape(-1, self.length, self.length)
        self.weight = 2 * planes.sum(0).double() - len(planes)
        self.pool = Pool.of(self.length)
        self.at = Points(*grid(self.length), self.length)
        self.offset = self.at.offset

    def best(self) -> tuple[Mask, float]:
        """The best expression and the bits of its description."""
        nowhere = torch.zeros_like(self.weight, dtype=torch.bool)
        found = self.within(nowhere, None)
        for outside, limit in (
            (self.offset > 0, families.causal()),
            (self.offset == 0, Complement(Offsets((0,)))),
        ):
            floor = int((self.weight[outside] > 0).sum())  # at least so many cells are wrong
            price = WORD + expression_bits(limit, self.length)
            if price + float(self.errors(floor)) < found[1]:
                found = min(found, self.within(outside, limit), key=lambda option: option[1])
        return found

    def within(self, outside: Tensor, limit: Mask | None) -> tuple[Mask, float]:
        """The best union of parts, kept within a limit (`outside` are the cells beyond it)."""
        self.outside, self.limit = outside, limit
        empty = self.state(())
        beams: dict[bool, list[State]] = {False: [empty], True: []}  # the latter with FURTHER
        best = {False: empty, True: empty}
        for _ in range(ROUNDS):
            shortest: dict[bool, dict[tuple[str, ...], State]] = {False: {}, True: {}}
            for grown in (g for one in chain(*beams.values()) for g in self.grown(one)):
                kinds, known = tuple(part.kind for part in grown.parts), shortest[grown.further]
                earlier = (best[False], best[grown.further], known.get(kinds, empty))
                if grown.bits < min(state.bits for state in earlier):
                    known[kinds] = grown
            width = WIDTH if best[False].parts else FIRST
            for further, states in shortest.items():  # the best of each combination of kinds
                most = best[False].bits if further else math.inf
                beam = sorted((s for s in states.values() if s.bits < most), key=lambda s: s.bits)
                beams[further] = beam[: WIDTH if further else width]
                best[further] = beam[0] if beam else best[further]
        found = min(self.revised(best[False], False), best[True], key=lambda state: state.bits)
        found = self.revised(found, True) if found.further else found
        return self.limited(found.parts), found.bits

    def revised(self, best: State, further: bool) -> State:
        """The union with each part chosen anew: was it right before the others came?"""
        for part in best.parts if len(best.parts) > 1 else ():
            rest = self.state(tuple(other for other in best.parts if other != part))
            best = min(best, rest, *self.grown(rest, further), key=lambda state: state.bits)
        return best

    def limited(self, parts: tuple[Mask, ...]) -> Mask:
        """The expression of a union within the limit."""
        union = parts[0] if len(parts) == 1 else Either(parts)
        return union if self.limit is None else union & self.limit

    def grown(self, state: State, further: bool = True) -> Iterator[State]:
        """The state with more parts: the best of every kind, those of FURTHER where wanted."""
        weight = self.weight.masked_fill(self.outside | state.cover, 0)
        options = self.candidates(weight, state.wrong)
        if further:
            options = chain(options, self.by_layout(weight, state))
        for parts in options:
            together = self.state(merged(*state.parts, *parts), state.cover, parts)
            if together.wrong < state.wrong or not state.parts:
                yield together

    def state(
        self, parts: tuple[Mask, ...], cover: Tensor | None = None, new: tuple[Mask, ...] = ()
    ) -> State:
        """The union of some parts and what it costs; the empty union explains nothing.

        Where the `cover` of all but the `new` parts is known, only those are looked at.
        """
        if cover is None:
            cover, new = torch.zeros_like(self.outside), parts
        for part in new:
            cover = cover | self.cells_of(part)
        cover = cover & ~self.outside
        wrong = self.kept - int((self.weight * cover).sum())
        bits = math.inf
        if cover.any():
            bits = expression_bits(self.limited(parts), self.length) + float(self.errors(wrong))
        return State(parts, bits, wrong, cover)

    def cells_of(self, part: Mask) -> Tensor:
        """The cells of a part, bool `[n, n]` or what broadcasts to it."""
        if not part.by_offset:
            return part.allows(self.at)
        offset = torch.arange(1 - self.length, self.length)
        kept = part.allows(Points(torch.zeros_like(offset), offset, self.length))
        return kept.unfold(0, self.length, 1).flip(0)

    def candidates(self, weight: Tensor, wrong: int) -> Iterator[tuple[Mask, ...]]:
        """Parts to add, given what each cell still gains and how many cells are wrong."""
        along = torch.zeros(2 * self.length - 1, dtype=torch.float64)
        along.index_add_(0, (self.offset + self.length - 1).flatten(), weight.flatten())
        yield from self.by_offset(along, wrong)
        yield from self.by_block(weight, wrong)
        own = weight.sum(0) + weight.sum(1) - weight.diagonal()
        for order, price in self.orders(own):
            crossing = weight[order][:, order].fill_diagonal_(0)  # in a row and in a column
            gain = own[order].cumsum(0) - crossing.cumsum(0).cumsum(1).diagonal()
            count = int((price + self.errors(wrong - gain)).argmin()) + 1
            yield (GlobalTokens(tuple(order[:count].tolist())),)

    def orders(self, own: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Orders to take positions in, given their gains `[n]`, and bits of taking so many.

        First the positions from the beginning, then those that gain most.
        """
        yield torch.arange(self.length), torch.zeros(1)
        order = own.argsort(descending=True, stable=True)
        order = order[own[order] > 0]
        if len(order):
            yield order, set_bits(torch.arange(1, len(order) + 1), self.length)

    def by_layout(self, weight: Tensor, state: State) -> Iterator[tuple[Mask, ...]]:
        """Key columns, and the axial mask, the butterfly and the block layout that are best.

        The last three must at least save what they cost, lest noise gets such a name.
        """
        wrong, own = state.wrong, weight.sum(0)
        for order, price in self.orders(own):
            bits = price + self.errors(wrong - own[order].cumsum(0))
            yield (Columns(tuple(order[: int(bits.argmin()) + 1].tolist())),)
        parts, gain = zip(*self.in_tiles(weight, wrong), strict=True)
        price = torch.tensor([expression_bits(p, self.length) for p in parts]).double()
        bits = price + self.errors(wrong - torch.tensor(gain, dtype=torch.float64))
        most = float(self.errors(wrong)) - (WORD if state.parts else 0)
        kinds: set[str] = set()
        for index in bits.argsort(stable=True).tolist():
            if parts[index].kind not in kinds and float(bits[index]) < most:
                yield (parts[index],)
            kinds.add(parts[index].kind)

    def in_tiles(self, weight: Tensor, wrong: int) -> Iterator[tuple[Mask, float]]:
        """Axial masks, butterflies, and the best layout of every block size, with their gains."""
        for axial in self.pool.grids:
            yield axial, grid_gain(weight, axial)
        sums = torch.zeros(self.length + 1, self.length + 1, dtype=torch.float64)
        sums[1:, 1:] = weight.cumsum(0).cumsum(1)
        for size, kept in self.pool.butterflies.items():
            tiles = sums[::size, ::size].diff(dim=0).diff(dim=1)
            yield Butterfly(size), float((tiles * kept).sum())
            if size > 1:
                yield self.layout(tiles, size, wrong)

    def layout(self, tiles: Tensor, size: int, wrong: int) -> tuple[Mask, float]:
        """The best layout at a block size and its gain, given what every block gains.

        Blocks that gain the same are all kept or none: in between, the bits are concave.
        """
        value, count = np.unique(-tiles.numpy(), return_counts=True)
        kept, gain = torch.from_numpy(count.cumsum()), torch.from_numpy(-(value * count).cumsum())
        best = int((set_bits(kept, tiles.numel()) + self.errors(wrong - gain)).argmin())
        return BlockLayout(tiles >= -value[best], size), float(gain[best])

    def by_offset(self, along: Tensor, wrong: int) -> Iterator[tuple[Mask, ...]]:
        """Patterns and sets of offsets, given the gain `[2n - 1]` of each j - i."""
        pool = self.pool
        gain = pool.offsets @ along
        bits = pool.price + self.errors(wrong - gain)
        seen: set[str] = set()
        for index in bits.argsort(stable=True).tolist():
            kind = pool.patterns[index].kind
            if kind not in seen:
                seen.add(kind)
                yield (pool.patterns[index],)
            if len(seen) == KINDS:
                break
        likely = bits.argsort(stable=True)[:LIKELY]
        rest = along * (1 - pool.offsets[likely])  # what each of them leaves
        for signed in (False, True):
            members = self.taken(self.sided(along, signed), wrong, signed)
            if members is None:
                continue
            yield (members,)
            left = self.sided(rest, signed)
            further = (left > 0).sum(1)
            after = wrong - gain[likely] - left.clamp(min=0).sum(1)
            total = pool.price[likely] + set_bits(further, left.shape[1]) + self.errors(after)
            for row in total.argsort(stable=True)[:COMPLETED].tolist():
                index = int(likely[row])
                members = self.taken(left[row], wrong - int(gain[index]), signed)
                if members is not None:
                    yield (pool.patterns[index], members)

    def sided(self, along: Tensor, signed: bool) -> Tensor:
        """Gains by j - i, `[.., 2n - 1]`, as they are or summed by distance, `[.., n]`."""
        if signed:
            return along
        ahead, behind = along[..., self.length - 1 :], along[..., : self.length].flip(-1)
        return torch.cat([ahead[..., :1], ahead[..., 1:] + behind[..., 1:]], -1)

    def taken(self, gain: Tensor, wrong: int, signed: bool) -> Mask | None:
        """The set of offsets that shortens the description most, or None where none gains."""
        order = gain.argsort(descending=True, stable=True)[: int((gain > 0).sum())]
        if not len(order):
            return None
        price = set_bits(torch.arange(1, len(order) + 1), len(gain))
        count = int((price + self.errors(wrong - gain[order].cumsum(0))).argmin()) + 1
        chosen = order[:count].tolist()
        if signed:
            return Shifts(tuple(sorted(index - self.length + 1 for index in chosen)))
        return Offsets(tuple(sorted(chosen)))

    def by_block(self, weight: Tensor, wrong: int) -> Iterator[tuple[Mask, ...]]:
        """The best blocks, block columns, and both together."""
        sizes, position = self.pool.sizes[:, None], torch.arange(self.length)
        start = position // sizes * sizes
        above = torch.cat([torch.zeros(1, self.length), weight.cumsum(0)])
        own = above[(start + sizes).clamp(max=self.length), position] - above[start, position]
        columns = weight.sum(0)
        best = int(self.errors(wrong - own.sum(1)).argmin())
        yield (Blocks(int(sizes[best])),)
        for both in (False, True):
            shortest = (math.inf, 0, 0)
            for last in range(1, LASTS + 1):
                kept = (position % sizes >= sizes - last) & (sizes > last)
                gain = (torch.where(kept, columns, own) if both else columns * kept).sum(1)
                bits = self.errors(wrong - gain)
                index = int(bits.argmin())
                shortest = min(shortest, (float(bits[index]), int(sizes[index]), last))
            _, size, last = shortest
            if last < size:
                part = BlockColumns(size, last)
                yield (Blocks(size), part) if both else (part,)

    def errors(self, wrong: Any) -> Any:
        """Bits of that many wrong cells, elementwise."""
        return error_bits(wrong, self.cells)


def grid_gain(weight: Tensor, axial: Axial) -> float:
    """What an axial mask gains: its grid's rows and columns, and the prefix's."""
    front, inner = axial.prefix, weight[axial.prefix :, axial.prefix :]
    cells = inner.reshape(axial.rows, axial.columns, axial.rows, axial.columns)
    gain = cells.diagonal(dim1=0, dim2=2).sum() + cells.diagonal(dim1=1, dim2=3).sum()
    gain += weight[:front].sum() + weight[front:, :front].sum()
    return float(gain - inner.diagonal().sum())  # which is in a row and in a column


def merged(*parts: Mask) -> tuple[Mask, ...]:
    """The parts of a union side by side in the order of the families, like sets as one."""
    flat = joined(Either, *parts)
    found = [part for part in dict.fromkeys(flat) if not isinstance(part, tuple(SETS))]
    for kind, field in SETS.items():
        members = [number for p in flat if isinstance(p, kind) for number in getattr(p, field)]
        found += [kind(tuple(members))] if members else []
    alike = len({type(part) for part in found}) < len(found)
    return tuple(sorted(found, key=lambda p: (ORDER.index(type(p)), str(p) if alike else "")))
