"""How many attention steps until every position has reached every other, at any length.

The mask is a directed graph, whose cells are looked at as numbered tiles
(`masksearch.masks.relations`); the figure asked for is its diameter. It is exact. In turn:

1.  Searches from a few positions: some pair is not connected, or the bounds of all positions'
    eccentricities meet (Takes and Kosters, 2011; Akiba et al., 2015).
2.  Neighbours that can change places stand for each other; a short table of the rest is enough.
3.  All pairs, as powers of the relation, while its tiles are alike.
4.  All pairs, some positions at a time, along the single cells where those are few; or a table
    of all cells where that is short.
"""

from __future__ import annotations

from functools import reduce

import numpy as np
import torch

from masksearch.errors import UncountedHops
from masksearch.masks.core import Mask
from masksearch.masks.hops import along, hops
from masksearch.masks.products import after
from masksearch.masks.relations import (
    ONES,
    SIDE,
    Numbers,
    Relation,
    TooManyPatterns,
    Words,
    bits_of,
    cells,
    relations,
    twins,
)

TABLE = 8192  # positions of the longest table of cells
SEARCHES = 12  # positions that are searched before all pairs are
LEVELS = 5  # times the length: steps that these searches take before that
FEW = 64  # positions that are searched one by one
EDGES = 1 << 25  # cells that are listed one by one: 128 MiB
WORDS = 1 << 35  # words that may be read along single cells: a minute or two
BATCH = 32  # words of sources that go along the cells together
SINGLY = 16  # spans up to which a power is taken one by one: few tiles a row


def farthest(mask: Mask, length: int) -> float:
    """Attention steps until every position has reached every other, over the heads' union.

    Layers are taken as alternating, the residual path as kept. Equal to `hops` of the dense
    table; no n x n tensor or bitset is made.

    Args:
        mask: Any mask.
        length: Positions (>= 1).

    Returns:
        A whole number; 0 for one position, infinity where some position is never reached.

    Raises:
        LengthError: If the mask has another length.
        UncountedHops: If so many tiles differ that only a table of all cells would do.
    """
    if length == 1:
        mask.density(1)  # refuses another length
        return 0.0
    steps = relations(mask, length)
    bounds = Bounds(steps, length)
    if not bounds.search(0):
        return float("inf")
    bounds.search(int(bounds.upper.argmax()))
    if not bounds.open():
        return float(bounds.lower)
    some = twins(steps)
    if some is not None and len(some) <= min(TABLE, length // 2):
        return of_cells(steps, some)
    if bounds.narrow():
        return float(bounds.lower)
    try:
        return float(by_powers(steps, bounds.lower))
    except TooManyPatterns:
        if length <= TABLE:
            return of_cells(steps, np.arange(length))
        return float(by_sources(steps, bounds, length))


def of_cells(steps: list[Relation], chosen: Numbers) -> float:
    """Hops among some positions, from the table of their cells."""
    table = np.stack([cells(step, chosen) for step in steps])
    return hops(torch.from_numpy(table)[:, None])


class Bounds:
    """Bounds of how many steps each position takes to be reached by all.

    A search forward from position h gives the steps from h to each, the most of which is h's
    eccentricity; a search backward gives those from each to h. By way of h, position k reaches
    all in at most steps(k, h) + eccentricity(h). Where layers alternate, steps to h end in one
    of them, and the search from h goes on in the next.

    Attributes:
        lower: The most steps that any pair was seen to take.
        upper: int64 `[n]`, steps in which each position reaches all.
        mirrored: int64 `[n]`, steps in which each is reached by all; of one layer only.
    """

    def __init__(self, steps: list[Relation], length: int) -> None:
        self.steps, self.length = steps, length
        self.symmetric = len(steps) == 1 and steps[0].symmetric
        self.lower = 1
        self.upper = np.full(length, 2**60)
        self.mirrored = np.full(length, 2**60)
        self.levels = 0
        self.outer = np.zeros(length, dtype=np.int64)  # most steps from or to a searched one

    def search(self, position: int) -> bool:
        """Searches from there; False where some position is not connected."""
        there = self.forward(position, 0)
        if there is None:
            return False
        back = there if self.symmetric else self.backward(position)
        if back is None:
            return False
        each = {0: int(there.max())}
        for phase in range(1, len(self.steps)):
            again = self.forward(position, phase)
            assert again is not None
            each[phase] = int(again.max())
        phases = np.array([each[phase] for phase in range(len(self.steps))])
        self.lower = max(self.lower, each[0], int(back.max()))
        self.levels += int(phases.sum()) + (0 if self.symmetric else int(back.max()))
        self.upper = np.minimum(self.upper, back + phases[back % len(self.steps)])
        self.upper[position] = each[0]
        if len(self.steps) == 1:
            self.mirrored = np.minimum(self.mirrored, there + back.max())
            self.mirrored[position] = back.max()
        self.outer = np.maximum(self.outer, np.maximum(there, back))
        return True

    def open(self) -> int:
        """Positions of which it is not known whether they take more than `lower` steps."""
        left = int((self.upper > self.lower).sum())
        return min(left, int((self.mirrored > self.lower).sum())) if len(self.steps) == 1 else left

    def narrow(self) -> bool:
        """Searches from positions far out and in the middle; whether the bounds have met."""
        idle = 0
        searched = {0}
        while left := self.open():
            lower, reach = self.lower, int(self.upper.max())
            forward = (self.upper > lower).sum() == left
            upper = self.upper if forward else self.mirrored
            out = len(searched) % 2 == 1 or left <= FEW
            position = int(upper.argmax() if out else self.outer.argmin())
            if position in searched:
                position = int(upper.argmax())
            searched.add(position)
            self.search(position)
            moved = self.lower > lower or self.upper.max() < reach or self.open() < left * 0.9
            idle = 0 if moved else idle + 1
            spent = len(searched) > SEARCHES or self.levels > LEVELS * self.length
            if left > FEW and (idle == 2 or spent):
                return False
        return True

    def forward(self, position: int, phase: int) -> Numbers | None:
        """Steps from a position to each, the first of them in layer `phase`; int64 `[n]`."""
        steps = [step.transposed for step in self.steps]
        count, tiles = len(steps), len(steps[0].index)
        seen = single(position, tiles)
        news = [seen.copy()]
        found = np.full((tiles, SIDE), -1)
        found.reshape(-1)[position] = 0
        level = 0
        while any(new.any() for new in news):
            front = news[0] if count == 1 else np.bitwise_or.reduce(news)
            new = steps[(phase + level) % count].rows(front) & ~seen
            level += 1
            seen |= new
            news = [*news, new][-count:]
            mark(found, new, level)
        return self.checked(found)

    def backward(self, position: int) -> Numbers | None:
        """Steps from each to a position, the first of them in layer 0; int64 `[n]`."""
        count, tiles = len(self.steps), len(self.steps[0].index)
        seen = [single(position, tiles) for _ in self.steps]  # by the layer of the first step
        front = [one.copy() for one in seen]
        found = np.full((tiles, SIDE), -1)
        found.reshape(-1)[position] = 0
        level = 0
        while any(new.any() for new in front):
            level += 1
            front = [
                self.steps[phase].rows(front[(phase + 1) % count]) & ~seen[phase]
                for phase in range(count)
            ]
            for phase in range(count):
                seen[phase] |= front[phase]
            mark(found, front[0], level)
        return self.checked(found)

    def checked(self, found: Numbers) -> Numbers | None:
        """Steps to the positions within the length; None where one is not reached."""
        steps = found.reshape(-1)[: self.length]
        return None if (steps < 0).any() else steps


def single(position: int, tiles: int) -> Words:
    """One position, as words."""
    result = np.zeros(tiles, dtype=np.uint64)
    result[position // SIDE] = np.uint64(1 << position % SIDE)
    return result


def mark(found: Numbers, new: Words, level: int) -> None:
    """Writes the level of new positions into int64 `[nb, 64]`."""
    tiles = np.flatnonzero(new)
    if len(tiles):
        some = bits_of(new[tiles, None])
        found[tiles] = np.where(some, level, found[tiles])


def by_powers(steps: list[Relation], lower: int) -> int:
    """The first number of steps, from `lower` on, after which everything is reached.

    Raises:
        TooManyPatterns: If the tiles of a power are not alike.
    """
    layers = len(steps)
    span = steps[0]
    for step in steps[1:lower]:
        span = after(step, span)
    spans, count = lower // layers, min(lower, layers)
    reached = span
    if spans > 1:  # the last product is the one whose tiles fill up early
        reached = power(span, spans // 2)
        reached = after(after(span, reached) if spans % 2 else reached, reached)
    if spans:
        for count in range(layers * spans, lower):
            reached = after(steps[count % layers], reached)
        count = lower
    while not reached.full():
        reached, count = after(steps[count % len(steps)], reached), count + 1
    return count


def power(span: Relation, times: int) -> Relation:
    """A relation some times (>= 1) after itself."""
    if times <= SINGLY:
        return reduce(lambda reached, _: after(span, reached), range(times - 1), span)
    half = power(span, times // 2)
    return after(after(span, half) if times % 2 else half, half)


def by_sources(steps: list[Relation], bounds: Bounds, length: int) -> int:
    """The most steps that any position takes to reach all; those in question are searched.

    Raises:
        UncountedHops: If there are too many cells for that.
    """
    sources = np.flatnonzero(bounds.upper > bounds.lower)
    edges = sum(int(step.edges.sum()) for step in steps)
    words = edges // len(steps) * bounds.lower * -(-len(sources) // 64)
    if edges > EDGES or words > WORDS:
        raise UncountedHops(
            f"hops of this mask at {length} positions: at least {bounds.lower}; its tiles differ, "
            f"and the way along its {edges} cells from {len(sources)} positions is too long; "
            "take them at a shorter length"
        )
    lists = [listed(step) for step in steps]
    most = bounds.lower
    size = len(steps[0].index) * SIDE
    for top in range(0, len(sources), BATCH * 64):
        some = sources[top : top + BATCH * 64]
        width = -(-len(some) // 64)
        at = np.arange(len(some))
        reached = np.zeros((size, width), dtype=np.uint64)
        reached[some, at // 64] = np.left_shift(np.uint64(1), (at % 64).astype(np.uint64))
        if len(some) % 64:
            reached[:, -1] |= ONES << np.uint64(len(some) % 64)
        count = 0
        while not (reached == ONES).all():
            reached = along(*lists[count % len(steps)], reached)
            count += 1
        most = max(most, count)
    return most


def listed(step: Relation) -> tuple[Numbers, Numbers]:
    """The cells of a relation: where each row starts, and the keys of all rows, int32."""
    keys, counts = [], []
    for tiles in step.index:
        column = np.flatnonzero(tiles)
        kept = bits_of(np.ascontiguousarray(step.words[tiles[column]].T))
        row, place = np.nonzero(kept)
        keys.append((column[place // SIDE] * SIDE + place % SIDE).astype(np.int32))
        counts.append(np.bincount(row, minlength=SIDE))
    start = np.concatenate([[0], np.cumsum(np.concatenate(counts))])
    return start, np.concatenate(keys)
