"""The plan of block-gather attention: a mask at one length, made ready for many calls.

A kernel takes it in parts, each as much as is computed in one call.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from masksearch.masks.core import Mask
from masksearch.masks.tables import Table
from masksearch.masks.tiles import distinct_tiles
from masksearch.models.gather_pieces import Bundle, Planner, Run

SHAPES = 4  # shapes of states for which a plan keeps its parts


@dataclass(frozen=True)
class GatherPlan:
    """What block-gather attention computes for one layer. Build it once for many calls.

    Args:
        length: Positions.
        heads: Heads that the plan tells apart; 1 serves any number.
        block: Side of the tiles that the plan was made from, in positions.
        unit: Positions that are gathered together; divides the block.
        bundles: The work. Queries that keep no key at all may be in none.
        kept: Its parts for some shapes of the states; not copied or pickled with the plan.
    """

    length: int
    heads: int
    block: int
    unit: int
    bundles: tuple[Bundle, ...]
    kept: dict[Any, list[Part]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __reduce__(self) -> tuple[Any, ...]:
        return GatherPlan, (self.length, self.heads, self.block, self.unit, self.bundles)

    @staticmethod
    def of_mask(mask: Mask, length: int, block: int = 64, layer: int = 0) -> GatherPlan:
        """Plans one layer of a mask from its distinct tiles.

        Args:
            mask: Any mask. Rows that keep no key are not refused here: their output is 0, as
                with a bool mask in `scaled_dot_product_attention`.
            length: Positions; the last block may be ragged.
            block: Side of a tile, in positions (>= 1).
            layer: Layer of a mask that tells layers apart.

        Raises:
            LengthError: If the mask has another length.
            ValueError: If `block` or `length` is less than 1.
        """
        if block < 1:
            raise ValueError(f"block must be at least 1 position, got {block}")
        planner = Planner(block)
        for head in range(mask.heads or 1):
            tiles = distinct_tiles(mask, length, block, layer if mask.layers else 0, head)
            planner.add(tiles.index.numpy(), tiles.patterns.numpy(), head)
        bundles = tuple(planner.bundles())
        return GatherPlan(length, mask.heads or 1, block, planner.unit, bundles)

    @staticmethod
    def of_table(table: Tensor, block: int = 64) -> GatherPlan:
        """Plans a lowered table of one layer, bool `[heads, n, n]`; one head serves any number.

        Raises:
            ValueError: If the table has another type or shape, or `block` is less than 1.
        """
        if table.dtype != torch.bool or table.ndim != 3 or table.shape[1] != table.shape[2]:
            raise ValueError(
                "a plan is made from one layer's bool table [heads, n, n], got "
                f"{table.dtype} {list(table.shape)}; take table[layer]"
            )
        return GatherPlan.of_mask(Table(table), table.shape[1], block)

    @property
    def units(self) -> int:
        """Units of one head, those of a ragged last block included."""
        return -(-self.length // self.block) * (self.block // self.unit)

    @property
    def pairs(self) -> float:
        """Computed cells over the heads, padding included, in tiles of block x block."""
        cells = sum(b.queries.numel() * b.keys.shape[1] for b in self.bundles) * self.unit**2
        return cells / self.block**2

    @property
    def bytes(self) -> int:
        """Bytes of the plan's indices and cells."""
        held = [tensor for bundle in self.bundles for tensor in bundle.tensors]
        return sum(tensor.numel() * tensor.element_size() for tensor in held)

    def to(self, device: torch.device | str) -> GatherPlan:
        """The plan on another device."""
        bundles = tuple(bundle.to(device) for bundle in self.bundles)
        return GatherPlan(self.length, self.heads, self.block, self.unit, bundles)


class Part(NamedTuple):
    """What is computed in one call: some pieces of one bundle for some groups.

    Args:
        groups: Which groups; None = all.
        pieces: Number of pieces.
        queries: int32 `[pieces x query units]`.
        keys: int32 `[pieces x key units]`.
        bias: 0, and -inf where the mask forbids a cell, `[pieces | 1, queries, keys]` of the
            states' type; None = nothing is forbidden.
        run: How the pieces follow each other; None where they are not evenly spaced.
        own: The bundle and which of its pieces, where each piece has cells of its own.
    """

    groups: slice | None
    pieces: int
    queries: Tensor
    keys: Tensor
    bias: Tensor | None
    run: Run | None
    own: tuple[Bundle, slice] | None

    def of(self, states: Tensor) -> Tensor:
        """The states of the part's groups."""
        return states if self.groups is None else states[self.groups]


def parts(
    plan: GatherPlan, states: Tensor, most: int, *, runs: bool, trains: bool
) -> Iterator[Part]:
    """The parts of `work`, without a bias where each piece has cells of its own."""
    groups, _, size = states.shape
    for bundle in plan.bundles:
        pieces, keys = bundle.keys.shape
        held = keys
        if runs and bundle.run is not None:
            held = -(-(keys if trains else bundle.queries.shape[1]) // 2)
        fitting = max(1, most // (held * size))  # pieces of one group
        together = min(pieces, max(1, fitting // groups))
        together = -(-pieces // -(-pieces // together))  # parts of about one size
        at_once = min(groups, max(1, fitting // together))
        shared = bundle.shares_cells
        bias = bundle.bias(slice(0, 0), plan.unit, states.dtype) if shared else None
        for first in range(0, pieces, together):
            some = slice(first, first + together)
            own = None if shared else (bundle, some)
            run = bundle.run.after(first) if bundle.run else None
            count = min(together, pieces - first)
            places = bundle.queries[some].flatten(), bundle.keys[some].flatten()
            for start in range(0, groups, at_once):
                group = None if at_once == groups else slice(start, start + at_once)
                yield Part(group, count, *places, bias, run, own)


def work(
    plan: GatherPlan, states: Tensor, most: int, *, keeps: bool = False, trains: bool = False
) -> Iterator[Part]:
    """The plan in parts that gather about `most` numbers of the keys.

    Args:
        plan: The plan.
        states: `[groups, units, unit x width]`.
        most: Numbers.
        keeps: Whether the plan keeps its parts for the next states of that shape, and runs are
            read where they are: then a part has up to `2 x most` numbers of their queries.
        trains: Whether a gradient is asked for: that of the keys of a run is not read where it
            is, and counts instead of its queries.
    """
    asked = (len(states), states.shape[2], states.dtype, most, trains)
    found: Iterable[Part] | None = plan.kept.get(asked) if keeps else None
    if found is None:
        found = parts(plan, states, most, runs=keeps, trains=trains)
        if keeps:
            if len(plan.kept) >= SHAPES:
                plan.kept.clear()
            found = plan.kept[asked] = list(found)
    bias = None
    for part in found:
        if part.own is None:
            yield part
            continue
        if part.groups is None or part.groups.start == 0:  # the groups after it share its bias
            bundle, some = part.own
            bias = bundle.bias(some, plan.unit, states.dtype)
        yield part._replace(bias=bias)
