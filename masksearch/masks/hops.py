"""How many attention steps until every position has reached every other.

A relation on n positions is kept as bits, `[n, words]` of 64: bit k of row q says that query q
is reached by key k. One step after another is then an `or` of whole rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from masksearch.errors import UncountedHops
from masksearch.masks.core import DenseMask, Mask
from masksearch.masks.stacks import distinct_planes

Bits = NDArray[np.uint64]
LONGEST = 8192  # positions up to which hops are counted: that takes 3 to 20 s
PRODUCTS = 2  # dense products' worth of single steps that are taken before doubling
GATHERED = 1 << 17  # words that one `or` of rows reads at a time: they stay in a core's cache
LOOKED_UP = 1 << 20  # words of the tables of row combinations that are held at a time


def hops(given: DenseMask | Mask, length: int | None = None, *, causal: bool = False) -> float:
    """Attention steps until every position has reached every other, over the heads' union.

    A universal-approximation precondition of sparse Transformers (Yun et al., arXiv
    2006.04862, Assumption 1). Layers are taken as alternating and the residual path as kept.

    Args:
        given: A table, bool `[layers, heads, n, n]`, or a mask.
        length: Positions that a mask is taken at.
        causal: Count until every position has reached all later ones instead (of a decoder,
            whose mask keeps no later key).

    Returns:
        A whole number; 0 for one position, infinity where some position is never reached.

    Raises:
        TypeError: If a mask comes without a length.
        UncountedHops: Beyond 8,192 positions.
    """
    if isinstance(given, Mask) and length is None:
        raise TypeError("the hops of a mask need a length")
    size = given.shape[-1] if not isinstance(given, Mask) else int(length or 0)
    if size > LONGEST:
        raise UncountedHops(
            f"hops are counted up to {LONGEST} positions, asked for {size}: take the mask at a "
            "shorter length, where a family has as many or fewer"
        )
    if isinstance(given, Mask):
        layers, order = join_heads(given, size)
    else:
        layers, order = given.any(1), list(range(len(given)))
    if size == 1:
        return 0.0
    own = np.eye(size, dtype=bool)  # the residual path
    goal = pack_bits(np.tri(size, dtype=bool) if causal else np.ones((size, size), dtype=bool))
    made = [Relation(layer | own) for layer in layers.numpy(force=True)]
    steps = [made[place] for place in order]
    reached, count, spent = pack_bits(own), 0, 0
    while spent <= PRODUCTS * steps[0].dense_cost:  # one step after another
        before = reached
        for step in steps:
            reached, count = step.after(reached), count + 1
            if np.array_equal(reached, goal):
                return float(count)
        if np.array_equal(before, reached):
            return float("inf")
        spent += sum(step.cost for step in steps)
    powers = [Relation(unpack_bits(reached, size))]  # the steps so far 1, 2, 4, .. times
    while True:
        doubled = powers[-1].after(powers[-1].bits)
        if np.array_equal(doubled, goal):
            break
        if np.array_equal(doubled, powers[-1].bits):
            return float("inf")
        powers.append(Relation(unpack_bits(doubled, size)))
    reached, span = powers[-1].bits, count
    count *= 2 ** (len(powers) - 1)
    for exponent, power in reversed(list(enumerate(powers[:-1]))):
        further = power.after(reached)
        if not np.array_equal(further, goal):  # the largest number of spans that is not enough
            reached, count = further, count + span * 2**exponent
    while True:
        for step in steps:
            reached, count = step.after(reached), count + 1
            if np.array_equal(reached, goal):
                return float(count)


def join_heads(mask: Mask, length: int) -> tuple[Tensor, list[int]]:
    """What any head of a layer keeps, bool `[distinct, n, n]`, and which of them each layer is."""
    planes, index = distinct_planes(mask)
    heads = mask.heads or 1
    sets = [frozenset(index[at : at + heads]) for at in range(0, len(index), heads)]
    different = list(dict.fromkeys(sets))
    union = torch.zeros(len(different), length, length, dtype=torch.bool)
    for place, plane in enumerate(planes):
        inside = [at for at, several in enumerate(different) if place in several]
        first = 0
        for rows in plane.mask.row_chunks(length, head=plane.head):
            for at in inside:
                union[at, first : first + len(rows)] |= rows
            first += len(rows)
    return union, [different.index(several) for several in sets]


class Relation:
    """Who reaches whom in one go, from bool `[n, n]` with a full diagonal."""

    def __init__(self, cells: NDArray[np.bool_]) -> None:
        self.bits = pack_bits(cells)
        size, words = self.bits.shape
        edges = int(np.count_nonzero(cells))
        self.dense_cost = size * -(-size // 8) * words  # words read by a product
        self.cost = min(edges * words, self.dense_cost)
        self.sparse = edges * words < self.dense_cost
        if self.sparse:
            query, self.key = np.nonzero(cells)
            self.start = np.searchsorted(query, np.arange(size + 1))

    def after(self, earlier: Bits) -> Bits:
        """What is reached by this relation after an earlier one."""
        return (
            reach_along(self.start, self.key, earlier) if self.sparse else self.looked_up(earlier)
        )

    def looked_up(self, earlier: Bits) -> Bits:
        """Many keys a row: every combination of eight neighbouring keys is made once.

        The method of the four Russians (Arlazarov et al., 1970).
        """
        size, words = earlier.shape
        groups = -(-size // 8)
        rows = np.zeros((groups * 8, words), dtype=np.uint64)
        rows[:size] = earlier
        rows = rows.reshape(groups, 8, words)
        which = self.bits.view(np.uint8)  # [n, bytes], byte g is the combination of group g
        result = np.zeros_like(earlier)
        step = max(1, LOOKED_UP // (256 * words))
        for first in range(0, groups, step):
            some = rows[first : first + step]
            made = np.zeros((len(some), 256, words), dtype=np.uint64)
            for bit in range(8):
                half = 1 << bit
                np.bitwise_or(made[:, :half], some[:, bit, None], out=made[:, half : 2 * half])
            for group, combinations in enumerate(made, first):
                result |= combinations[which[:, group]]
        return result


def reach_along(start: NDArray[Any], keys: NDArray[Any], earlier: Bits) -> Bits:
    """What each position is reached by, one step after `earlier`: its keys' rows, one by one.

    Args:
        start: Where each row's keys start, and where the last ones end; `[n + 1]`.
        keys: The keys of all rows, at least one a row.
        earlier: What the keys are reached by, `[n, words]`.
    """
    result = np.empty_like(earlier)
    size, words = earlier.shape
    rows = max(1, size * GATHERED // (len(keys) * words))
    for top in range(0, size, rows):
        at = start[top : top + rows + 1]
        some = earlier[keys[at[0] : at[-1]]]
        np.bitwise_or.reduceat(some, at[:-1] - at[0], axis=0, out=result[top : top + rows])
    return result


def pack_bits(cells: NDArray[np.bool_]) -> Bits:
    """bool `[n, n]` as `[n, words]`, little end first."""
    bits = np.packbits(cells, axis=1, bitorder="little")
    result = np.zeros((len(cells), -(-cells.shape[1] // 64) * 8), dtype=np.uint8)
    result[:, : bits.shape[1]] = bits
    return result.view("<u8")


def unpack_bits(bits: Bits, size: int) -> NDArray[np.bool_]:
    """Inverse of `packed`."""
    return np.unpackbits(bits.view(np.uint8), axis=1, count=size, bitorder="little").view(bool)
