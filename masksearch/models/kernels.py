"""Block-gather attention: exact sparse attention in plain torch, forward and backward.

plan = GatherPlan.of_mask(mask, length=4096, block=64)
hidden = gather_attention(query, key, value, plan, scaling=0.125)

Queries are cut into blocks of rows. For each block row the key blocks that hold a kept cell are
gathered side by side, block rows with as many key blocks are computed in one dense call, and
what a mask forbids inside a block is added as a bias, only to the rows that need one. The cost
follows the mask's block density; no n x n tensor is made.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from masksearch.errors import HeadCountError, LengthError
from masksearch.masks.core import Mask, Points, grid

SHARED_BY = 4  # block rows with one pattern that are worth a call of their own
PADDING = 0.125  # largest share of padding among the key blocks of a row with a bias
GATHERED = 1 << 20  # numbers of the key tensor that is gathered at a time
KEPT, DROPPED = 0, 1  # tiles that every plan knows


@dataclass(frozen=True)
class Bundle:
    """Block rows that are computed in one call.

    Args:
        rows: int64 `[rows]`, head * blocks + block row.
        keys: int64 `[rows, count]`, head * blocks + key block; a row with fewer key blocks than
            the others is padded with its first one, which its bias forbids.
        bias: float32 `[rows | 1, block, count * block]` of 0 and -inf, added to the scores;
            None where every key of every row is kept whole.
    """

    rows: Tensor
    keys: Tensor
    bias: Tensor | None

    def parts(self, most: int) -> Iterator[Bundle]:
        """The same work in parts of at most `most` rows."""
        for start in range(0, len(self.rows), most):
            some = slice(start, start + most)
            bias = self.bias if self.bias is None or len(self.bias) == 1 else self.bias[some]
            yield Bundle(self.rows[some], self.keys[some], bias)


@dataclass(frozen=True)
class GatherPlan:
    """What block-gather attention computes for one layer. Build it once for many calls.

    Args:
        length: Positions.
        heads: Heads that the plan tells apart; 1 serves any number.
        block: Side of a block, in positions.
        bundles: The work. Block rows that keep no key at all are in none.
        order: int64 `[heads * blocks]`, where each block row stands among the bundles' results,
            one after the other; the number of all their rows where it is in none.
    """

    length: int
    heads: int
    block: int
    bundles: tuple[Bundle, ...]
    order: Tensor

    @staticmethod
    def of_mask(mask: Mask, length: int, block: int = 64, layer: int = 0) -> GatherPlan:
        """Plans one layer of a mask, a few rows at a time.

        Args:
            mask: Any mask. Rows that keep no key are not refused here: their output is 0, as
                with a bool mask in `scaled_dot_product_attention`.
            length: Positions; the last block may be ragged.
            block: Side of a block, in positions (>= 1).
            layer: Layer of a mask that tells layers apart.

        Raises:
            LengthError: If the mask has another length.
            ValueError: If `block` or `length` is less than 1.
        """
        query, key = grid(length)
        heads = mask.heads or 1

        def rows() -> Iterator[Tensor]:
            for some in torch.split(query, block):
                cells = [mask.allows(Points(some, key, length, layer, h)) for h in range(heads)]
                yield torch.stack([plane.expand(len(some), length) for plane in cells])

        at_least_one(block)
        return planned(rows(), length, heads, block)

    @staticmethod
    def of_table(table: Tensor, block: int = 64) -> GatherPlan:
        """Plans a lowered table of one layer, bool `[heads, n, n]`; one head serves any number.

        Raises:
            ValueError: If the table has another type or shape, or `block` is less than 1.
        """
        at_least_one(block)
        if table.dtype != torch.bool or table.ndim != 3 or table.shape[1] != table.shape[2]:
            raise ValueError(
                "a plan is made from one layer's bool table [heads, n, n], got "
                f"{table.dtype} {list(table.shape)}; take table[layer]"
            )
        heads, length, _ = table.shape
        return planned(torch.split(table.cpu(), block, dim=1), length, heads, block)

    @property
    def blocks(self) -> int:
        """Blocks of a side."""
        return -(-self.length // self.block)

    @property
    def pairs(self) -> int:
        """(query block, key block) pairs that are computed, padding included, over the heads."""
        return sum(bundle.keys.numel() for bundle in self.bundles)

    @property
    def bytes(self) -> int:
        """Bytes of the plan's indices and biases."""
        held = [self.order] + [t for bundle in self.bundles for t in (bundle.rows, bundle.keys)]
        held += [bundle.bias for bundle in self.bundles if bundle.bias is not None]
        return sum(tensor.numel() * tensor.element_size() for tensor in held)

    def to(self, device: torch.device | str) -> GatherPlan:
        """The plan on another device."""
        bundles = tuple(
            Bundle(
                b.rows.to(device), b.keys.to(device), None if b.bias is None else b.bias.to(device)
            )
            for b in self.bundles
        )
        return GatherPlan(self.length, self.heads, self.block, bundles, self.order.to(device))


def gather_attention(
    query: Tensor, key: Tensor, value: Tensor, plan: GatherPlan, *, scaling: float
) -> Tensor:
    """Self-attention under the plan's mask, equal to dense attention with that mask.

    Args:
        query: `[batch, heads, n, width]`, on the plan's device.
        key: The same shape.
        value: The same shape.
        plan: Of `n` positions, with as many heads or one for all.
        scaling: Factor of the scores before the softmax.

    Returns:
        `[batch, heads, n, width]`; 0 for queries that keep no key. Differentiable in all three.

    Raises:
        LengthError, HeadCountError: If the plan is of another length or number of heads.
    """
    batch, heads, length, width = query.shape
    if length != plan.length or key.shape != query.shape:
        raise LengthError(
            f"the plan holds {plan.length} positions of queries and keys, got queries "
            f"{list(query.shape)} and keys {list(key.shape)}; plan the mask at that length"
        )
    if plan.heads not in (1, heads):
        raise HeadCountError(f"the plan has {plan.heads} heads, the queries have {heads}")
    block, missing = plan.block, plan.blocks * plan.block - length

    def cut(states: Tensor) -> Tensor:
        """`[batch (x heads), heads x blocks, block, width]`."""
        states = F.pad(states, (0, 0, 0, missing)) if missing else states
        return states.reshape(-1, plan.heads * plan.blocks, block, width)

    query, key, value = cut(query), cut(key), cut(value)
    done = []
    for bundle in plan.bundles:
        gathered = bundle.keys.shape[1] * block * width * len(query)
        for part in bundle.parts(max(1, GATHERED // gathered)):
            pairs = part.keys.flatten()
            q = query.index_select(1, part.rows)
            k, v = (
                states.index_select(1, pairs).view(len(query), len(part.rows), -1, width)
                for states in (key, value)
            )
            # four dimensions: with three, scaled_dot_product_attention leaves its fast kernel
            bias = None if part.bias is None else part.bias.to(q.dtype).unsqueeze(0)
            done.append(F.scaled_dot_product_attention(q, k, v, bias, scale=scaling))
    done.append(query.new_zeros(len(query), 1, block, width))  # block rows without any key
    result = torch.cat(done, 1).index_select(1, plan.order)
    return result.reshape(batch, heads, -1, width)[:, :, :length]


def planned(rows: Iterable[Tensor], length: int, heads: int, block: int) -> GatherPlan:
    """A plan from the table's block rows, bool `[heads, <= block, n]` each, top to bottom."""
    blocks = -(-length // block)
    tiles = Tiles(block)
    kept: dict[tuple[int, ...], list[tuple[int, list[int]]]] = defaultdict(list)
    for row, cells in enumerate(rows):
        some = cells.shape[1]
        padded = torch.zeros(heads, block, blocks * block, dtype=torch.bool)
        padded[:, :some, :length] = cells
        padded[:, some:, :length] = True  # rows beyond the end: their result is cut off
        view = padded.view(heads, block, blocks, block).transpose(1, 2)  # [heads, blocks, b, b]
        found = view[:, :, :some].any(3).any(2)
        for head in range(heads):
            columns = found[head].nonzero().flatten()
            names = tiles.names(view[head].index_select(0, columns))
            if names:
                at = [head * blocks + column for column in columns.tolist()]
                kept[tuple(names)].append((head * blocks + row, at))
    bundles = bundled(kept, tiles)
    order = torch.full((heads * blocks,), sum(len(b.rows) for b in bundles))
    if bundles:
        computed = torch.cat([bundle.rows for bundle in bundles])
        order[computed] = torch.arange(len(computed))
    return GatherPlan(length, heads, block, tuple(bundles), order)


class Tiles:
    """The distinct `block x block` patterns of a plan; equal ones have one number."""

    def __init__(self, block: int) -> None:
        self.patterns: list[Tensor] = []
        self.numbers: dict[bytes, int] = {}
        ones = torch.ones(block, block, dtype=torch.bool)
        self.names(torch.stack([ones, ~ones]))  # KEPT, DROPPED

    def names(self, patterns: Tensor) -> list[int]:
        """The numbers of some patterns, bool `[count, block, block]`."""
        packed = np.packbits(patterns.flatten(1).numpy(), axis=1)
        result = []
        for index, bits in enumerate(packed):
            number = self.numbers.setdefault(bits.tobytes(), len(self.patterns))
            if number == len(self.patterns):
                self.patterns.append(patterns[index].clone())
            result.append(number)
        return result

    def bias(self, names: list[tuple[int, ...]]) -> Tensor:
        """float32 `[rows, block, count * block]`, 0 where kept and -inf elsewhere."""
        block = len(self.patterns[KEPT])
        result = torch.zeros(len(names), block, len(names[0]) * block)
        cells = result.view(len(names), block, len(names[0]), block)
        for row, tiles in enumerate(names):
            for column, number in enumerate(tiles):
                if number != KEPT:
                    cells[row, :, column].masked_fill_(~self.patterns[number], float("-inf"))
        return result


def bundled(
    kept: dict[tuple[int, ...], list[tuple[int, list[int]]]], tiles: Tiles
) -> list[Bundle]:
    """Bundles of the block rows, which come as pattern -> [(row, key blocks)].

    Rows with a pattern in common share one bias, or need none. The others are taken together
    with their like in number of key blocks, up to a share of padding.
    """
    bundles: list[Bundle] = []
    single: list[tuple[tuple[int, ...], int, list[int]]] = []
    for names, found in kept.items():
        whole = all(number == KEPT for number in names)
        if whole or len(found) >= SHARED_BY:
            bias = None if whole else tiles.bias([names])
            bundles.append(bundle_of([row for row, _ in found], [at for _, at in found], bias))
        else:
            single += [(names, row, at) for row, at in found]
    single.sort(key=lambda entry: -len(entry[0]))
    while single:
        most = len(single[0][0])
        some = [entry for entry in single if len(entry[0]) >= (1 - PADDING) * most]
        single = single[len(some) :]
        bias = tiles.bias([names + (DROPPED,) * (most - len(names)) for names, _, _ in some])
        keys = [at + at[:1] * (most - len(at)) for _, _, at in some]
        bundles.append(bundle_of([row for _, row, _ in some], keys, bias))
    return bundles


def bundle_of(rows: list[int], keys: list[list[int]], bias: Tensor | None) -> Bundle:
    """A bundle from lists."""
    return Bundle(torch.tensor(rows), torch.tensor(keys), bias)


def at_least_one(block: int) -> None:
    """Refuses blocks without a position."""
    if block < 1:
        raise ValueError(f"block must be at least 1 position, got {block}")
