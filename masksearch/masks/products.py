"""One relation after another, tile by tile: each pair of patterns that meet is joined once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from masksearch.masks.bands import numbered
from masksearch.masks.relations import (
    ALL,
    BIT,
    NONE,
    ONES,
    PAIRS,
    SIDE,
    Numbers,
    Relation,
    TooManyPatterns,
    Words,
)

TERMS = 1 << 30  # triples of tiles that a product may look at: about a minute


def after(later: Relation, earlier: Relation) -> Relation:
    """What is reached by one relation after an earlier one.

    Tiles that are full whatever else comes, and those that stay empty, are found by products of
    `[nb, nb]` matrices; the others are put together term by term until they are full.

    Raises:
        TooManyPatterns: If the tiles are not alike.
    """
    one, two = later.index, earlier.index
    every_query = np.asarray(later.words.all(axis=1))[one]
    every_key = (earlier.support == ONES)[two]
    some = times(one != NONE, two != NONE)
    whole = times(every_query, two == ALL) | times(one == ALL, every_key)
    index = np.where(whole, np.int32(ALL), np.int32(NONE))
    row, column = np.nonzero(some & ~whole)
    open_ = Open(later, earlier, index, row, column)
    for middle in (row, column):
        open_.add(middle[open_.cell])
        open_.drop(open_.found == ALL)
    row, column = open_.row[open_.cell], open_.column[open_.cell]
    terms = (one != NONE).sum(1)[row].sum(), (two != NONE).sum(0)[column].sum()
    if min(terms) > TERMS:
        raise TooManyPatterns
    degree, order = nearest_first(one if terms[0] <= terms[1] else two.T)
    place = open_.row if terms[0] <= terms[1] else open_.column
    for term in range(order.shape[1]):
        if not len(open_.cell):
            break
        open_.drop((open_.found == ALL) | (degree[place[open_.cell]] <= term))
        open_.add(order[place[open_.cell], term])
    open_.drop(np.ones(len(open_.cell), dtype=bool))
    return Relation(index, open_.words)


def times(one: NDArray[np.bool_], two: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The product of two bool matrices."""
    found: NDArray[np.bool_] = one.astype(np.float32) @ two.astype(np.float32) > 0
    return found


def nearest_first(index: NDArray[np.int32]) -> tuple[Numbers, Numbers]:
    """The tiles of each row that keep something, those near the diagonal first.

    Returns:
        int64 `[nb]`, how many there are; int64 `[nb, most]`, their columns.
    """
    row, column = np.nonzero(index)
    order = np.lexsort((abs(column - row), row))
    degree = np.bincount(row, minlength=len(index))
    result = np.zeros((len(index), int(degree.max())), dtype=np.int64)
    start = np.cumsum(degree) - degree
    result[row, np.arange(len(row)) - start[row]] = column[order]
    return degree, result


class Open:
    """The tiles of a product that are not known yet, and what is known of them."""

    def __init__(
        self, later: Relation, earlier: Relation, index: NDArray[np.int32], row: Numbers,
        column: Numbers,
    ) -> None:  # fmt: skip
        self.later, self.earlier, self.index = later, earlier, index
        self.row, self.column = row, column
        self.cell = np.arange(len(row))  # which of them are open still
        self.found = np.zeros(len(row), dtype=np.int64)  # the pattern of each open tile so far
        self.words = np.stack([np.zeros(SIDE, np.uint64), np.full(SIDE, ONES)])
        self.numbers = {words.tobytes(): number for number, words in enumerate(self.words)}

    def add(self, middle: Numbers) -> None:
        """Joins to each open tile (r, c) the product of the tiles (r, m) and (m, c)."""
        one = self.later.index[self.row[self.cell], middle]
        two = self.earlier.index[middle, self.column[self.cell]]
        at = np.flatnonzero((one != NONE) & (two != NONE))
        if not len(at):
            return
        one, two = one[at], two[at]
        pair, first = numbered(one.astype(np.int64) * len(self.earlier.words) + two)
        self.check(len(first))
        made = joined_tiles(self.later.words[one[first]], self.earlier.words[two[first]])
        sums, place = numbered(self.found[at] * len(first) + pair)
        self.check(len(place))
        words = self.words[self.found[at][place]] | made[pair[place]]
        known = len(self.numbers)
        names = [self.numbers.setdefault(row.tobytes(), len(self.numbers)) for row in words]
        number = np.array(names)
        new, where = np.unique(number, return_index=True)
        self.words = np.concatenate([self.words, words[where[new >= known]]])
        self.check(len(self.words) // 4)
        self.found[at] = number[sums]

    def drop(self, known: NDArray[np.bool_]) -> None:
        """Writes down the tiles that are known."""
        if known.any():
            cell = self.cell[known]
            self.index[self.row[cell], self.column[cell]] = self.found[known]
            self.cell, self.found = self.cell[~known], self.found[~known]

    def check(self, count: int) -> None:
        """Gives up where the tiles are not alike."""
        if count > min(PAIRS, len(self.index) ** 2 // 4 + SIDE):
            raise TooManyPatterns


def joined_tiles(one: Words, two: Words) -> Words:
    """Row i of each result is the `or` of the rows of `two` that row i of `one` chooses."""
    found = np.zeros_like(one)
    for key in range(SIDE):
        chosen = (one & BIT[key]) != 0
        found |= np.where(chosen, two[:, key, None], np.uint64(0))
    return found
