"""Who reaches whom among n positions, as numbered tiles of 64 x 64 bits.

A relation holds the number of the pattern in each tile, `[nb, nb]` with nb = ceil(n / 64), and
each distinct pattern once, as 64 machine words: bit j of word i says that query i of the tile is
reached by its key j. No array of n x n cells or bits is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from masksearch.errors import UncountedHops
from masksearch.masks.bands import Band, bands, joined, numbered, packed, settled, unpacked
from masksearch.masks.core import Mask

Words = NDArray[np.uint64]
Numbers = NDArray[np.int64]
Flags = NDArray[np.bool_]
SIDE = 64  # positions of a tile's side
NONE, ALL = 0, 1  # the first two patterns: nothing, everything
ONES = np.uint64(2**64 - 1)
BIT = np.left_shift(np.uint64(1), np.arange(SIDE, dtype=np.uint64))
FEWEST = 1 << 16  # distinct patterns that a relation of any length may have: 32 MiB
PAIRS = 1 << 15  # distinct pairs of patterns that one step of a product may meet
EXPANDED = 1 << 13  # patterns whose chosen rows are joined together


class TooManyPatterns(Exception):
    """A product whose tiles are not alike."""


@dataclass(frozen=True, eq=False)
class Relation:
    """Who is reached by whom in one go.

    Args:
        index: int32 `[nb, nb]`, the pattern of each tile.
        words: uint64 `[patterns, 64]`; the first keeps nothing, the second everything.
    """

    index: NDArray[np.int32]
    words: Words

    @cached_property
    def transposed(self) -> Relation:
        """The relation the other way round."""
        found = np.empty_like(self.words)
        step = 1 << 12
        for top in range(0, len(found), step):
            cells = unpacked(self.words[top : top + step, :, None], SIDE).swapaxes(1, 2)
            found[top : top + step] = packed(cells, np.dtype("<u8"))[..., 0]
        return Relation(np.ascontiguousarray(self.index.T), found)

    @cached_property
    def symmetric(self) -> bool:
        """Whether it is its own transpose."""
        other = self.transposed
        code = self.index.astype(np.int64) * len(self.words) + other.index
        one, two = np.divmod(code.reshape(-1)[numbered(code)[1]], len(self.words))
        return all(
            np.array_equal(self.words[one[top : top + PAIRS]], other.words[two[top : top + PAIRS]])
            for top in range(0, len(one), PAIRS)
        )

    @cached_property
    def tiles(self) -> tuple[Numbers, Numbers, NDArray[np.int32]]:
        """The tiles that keep something, row by row: where each row starts, columns, patterns."""
        row, column = np.nonzero(self.index)
        start = np.searchsorted(row, np.arange(len(self.index) + 1))
        return start, column, self.index[row, column]

    @cached_property
    def edges(self) -> Numbers:
        """Kept cells of each row of tiles, `[nb]`."""
        each = np.bitwise_count(self.words).sum(1, dtype=np.int64)
        return np.stack([each[row].sum() for row in self.index])

    @cached_property
    def support(self) -> Words:
        """The keys that any query of a pattern is reached by, `[patterns]`."""
        found: Words = np.bitwise_or.reduce(self.words, axis=1)
        return found

    def rows(self, chosen: Words) -> Words:
        """The `or` of chosen rows.

        Args:
            chosen: uint64 `[nb]`, one bit a row.

        Returns:
            uint64 `[nb]`, one bit a column.
        """
        start, column, pattern = self.tiles
        some = np.flatnonzero(chosen)
        result = np.zeros(len(self.index), dtype=np.uint64)
        if len(some) == 1:
            part = slice(start[some[0]], start[some[0] + 1])
            result[column[part]] = self.selected(pattern[part], chosen[some])
            return result
        length = start[some + 1] - start[some]
        offset = np.repeat(start[some] - np.cumsum(length) + length, length)
        entry = offset + np.arange(len(offset))
        which, taken = pattern[entry], np.repeat(chosen[some], length)
        found = self.support[which]
        partial = np.flatnonzero(taken != ONES)
        if len(partial) > EXPANDED:
            _, kind = np.unique(chosen[some], return_inverse=True)
            code = np.repeat(kind, length)[partial] * len(self.words) + which[partial]
            number, first = numbered(code)
            first = partial[first]
            found[partial] = self.selected(which[first], taken[first])[number]
        elif len(partial):
            found[partial] = self.selected(which[partial], taken[partial])
        np.bitwise_or.at(result, column[entry], found)
        return result

    def selected(self, pattern: NDArray[Any], taken: Words) -> Words:
        """The `or` of some rows of each pattern."""
        found = np.empty(len(pattern), dtype=np.uint64)
        for top in range(0, len(found), EXPANDED):
            part = slice(top, top + EXPANDED)
            bits = taken[part] if len(taken) == len(found) else taken
            rows = np.where(bits[:, None] & BIT, self.words[pattern[part]], np.uint64(0))
            found[part] = np.bitwise_or.reduce(rows, axis=1)
        return found

    def full(self) -> bool:
        """Whether everything is reached."""
        return bool((self.index == ALL).all())


def relations(mask: Mask, length: int) -> list[Relation]:
    """One relation for each layer: the union over heads, and every position itself.

    Positions beyond the end are filled up with copies of the last one. A copy is as far from
    any position as the last one is, and 1 from the last one, so that the farthest distance
    stays what it is where it is at least 1.

    Args:
        mask: Any mask.
        length: Positions (>= 2).

    Raises:
        UncountedHops: If too many tiles are different from each other.
    """
    return [of_layer(mask, length, layer) for layer in range(mask.layers or 1)]


def of_layer(mask: Mask, length: int, layer: int) -> Relation:
    """The relation of one layer."""
    count = -(-length // SIDE)
    most = max(FEWEST, count * count // 8)  # an eighth of the bits of all cells
    numbers: dict[bytes, int] = {}
    words: list[Words] = []
    index = np.empty((count, count), dtype=np.int32)

    def number(found: Words) -> NDArray[np.int32]:
        known = len(numbers)
        names = [row.tobytes() for row in np.ascontiguousarray(found)]
        result = np.array([numbers.setdefault(name, len(numbers)) for name in names], np.int32)
        if len(numbers) > known:
            _, first = np.unique(result, return_index=True)
            words.append(found[first[result[first] >= known]])
        if len(numbers) > most:
            raise UncountedHops(
                f"hops of this mask at {length} positions: more than {most} of its {count**2} "
                "tiles of 64 x 64 are different; take them at a shorter length"
            )
        return result

    number(np.stack([np.zeros(SIDE, np.uint64), np.full(SIDE, ONES)]))
    for parts in zip(*(bands(mask, length, SIDE, layer, h) for h in range(mask.heads or 1)),
                     strict=True):  # fmt: skip
        band: Band = reduce(lambda one, other: joined(np.bitwise_or, one, other), parts)
        band = settled(band.place, band.tiles, band.words)
        used = np.unique(band.tiles)
        name = np.zeros(len(band.words), dtype=np.int32)
        name[used] = number(band.words[used, :, 0].astype(np.uint64))
        top = band.place.top
        index[top : top + band.place.rows] = name[band.tiles]
    at = np.arange(count)
    pool = np.concatenate(words)
    index[at, at] = number(pool[index[at, at]] | BIT)
    if length % SIDE:
        pool, last, over = (
            np.concatenate(words),
            length % SIDE - 1,
            ONES << np.uint64(length % SIDE),
        )
        end = pool[index[:, -1]]
        end = np.where(end >> np.uint64(last) & np.uint64(1), end | over, end)
        bottom = pool[index[-1]]
        bottom[-1] = end[-1]
        bottom[:, last + 1 :] = bottom[:, last, None]
        index[:, -1] = number(end)
        index[-1] = number(bottom)
    return Relation(index, np.concatenate(words))


def bits_of(chosen: Words) -> Flags:
    """Words of positions, uint64 `[.., nb]`, as bool `[.., nb * 64]`."""
    return unpacked(np.ascontiguousarray(chosen), chosen.shape[-1] * SIDE)


def twins(steps: list[Relation]) -> Numbers | None:
    """Positions that stand for all: two of each run of neighbours that can change places.

    Positions k and k + 1 are twins if swapping them leaves every relation as it is: rows and
    columns agree outside of the two, and so do the two cells between them. Along a run of twins
    every order is then the same. A shortest path needs no two positions of a run, unless as its
    ends, so that distances among two of each run are those among all.

    Returns:
        int64, ascending; None if no two are twins.
    """
    size = len(steps[0].index) * SIDE
    apart = np.zeros(size, dtype=bool)  # whether k and k + 1 differ
    for step in steps:
        for one in (step, step.transposed):
            apart |= unlike_rows(one)
    joint = ~apart
    joint[-1] = False
    inner = np.concatenate([[False], joint[:-1]]) & np.concatenate([[False, False], joint[:-2]])
    return np.flatnonzero(~inner) if inner.any() else None


def unlike_rows(step: Relation) -> Flags:
    """Whether rows k and k + 1 differ outside of columns k, k + 1, or cells (k, k + 1) and
    (k + 1, k) differ; bool `[n]`, of which the last says nothing."""
    index, words = step.index, step.words
    count = len(index)
    at = np.arange(count)
    inner = words[:, :-1] ^ words[:, 1:]
    flags = np.where(inner != 0, BIT[:-1], np.uint64(0))
    each = np.bitwise_or.reduce(flags, axis=1)  # bit i: rows i and i + 1 of the pattern differ
    off = index.copy()
    off[at, at] = NONE
    rows = np.array([np.bitwise_or.reduce(each[row]) for row in off])
    diagonal = words[index[at, at]]  # [nb, 64]
    left = (diagonal[:, :-1] >> np.arange(1, SIDE, dtype=np.uint64)) & np.uint64(1)
    right = (diagonal[:, 1:] >> np.arange(SIDE - 1, dtype=np.uint64)) & np.uint64(1)
    differ = (diagonal[:, :-1] ^ diagonal[:, 1:]) & ~(BIT[:-1] | BIT[1:])
    result = np.zeros((count, SIDE), dtype=bool)
    result[:, :-1] = (rows[:, None] & BIT[:-1] != 0) | (differ != 0) | (left != right)
    first, last = words[:, 0], words[:, -1]
    for tile in range(count - 1):  # from the last row of a tile to the first of the next
        differ_here = last[index[tile]] ^ first[index[tile + 1]]
        high, low = BIT[-1], BIT[0]
        up = last[index[tile, tile + 1]] & low != 0
        down = first[index[tile + 1, tile]] & high != 0
        differ_here[tile] &= ~high
        differ_here[tile + 1] &= ~low
        result[tile, -1] = bool(differ_here.any()) or bool(up != down)
    return result.reshape(-1)


def cells(step: Relation, chosen: Numbers) -> Flags:
    """The cells between some positions, bool `[chosen, chosen]`."""
    result = np.empty((len(chosen), len(chosen)), dtype=bool)
    tile, bit = np.divmod(chosen, SIDE)
    for top in range(0, len(chosen), SIDE):
        some = slice(top, top + SIDE)
        words = step.words[step.index[tile[some]], bit[some, None]]
        result[some] = bits_of(words)[:, chosen]
    return result
