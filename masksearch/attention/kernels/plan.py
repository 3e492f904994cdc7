"""The plan of block-gather attention: a mask at one length, made ready for many calls.

    tiles      the mask's blocks of 64 x 64 cells; each distinct one is looked at once
      |        a row of tiles: 64 queries with all the keys that any of them keeps. Where that
      v        saves cells it is split: the few that read much apart from the others, or halves
    pieces     some units of queries (16 neighbouring positions) with some units of keys
      |        pieces with as many queries and keys are computed in one call
      v
    bundles    alike: its pieces keep the same cells, so one bias serves all, or none is needed
      |        even: alike, and evenly spaced runs of neighbours: states are read where they lie
      v        mixed: each piece has a bias of its own; filled up to the longest of them
    parts      as much of a bundle as fits the cache: what a kernel computes in one call

What forbids single cells is kept once for each distinct block of queries x one unit of keys, a
bit a cell. No n x n tensor is made.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from masksearch.errors import HeadCountError, LengthError
from masksearch.masks.core import Mask
from masksearch.masks.lower import distinct_tiles

UNITS = (16, 8)  # positions that are gathered together: the first that divides the block
SHARED_BY = 4  # pieces with the same cells that are worth a bundle of their own
PADDING = 0.125  # largest share of padding among the keys of a piece
SAVING = 0.9  # a block of queries is split where that leaves at most this share of its cost
CALL = (4, 10)  # queries and keys by which a piece costs more than its cells
COPY = 14  # queries that cost as much as to gather the keys
KEPT, DROPPED = 0, 1  # names of cells that every plan knows: all kept, none kept
SHAPES = 4  # shapes of states for which a plan keeps its parts


@dataclass(frozen=True)
class GatherPlan:
    """The plan of block-gather attention for one layer. Build it once for many calls.

    Args:
        length: Positions.
        heads: Heads that the plan tells apart; 1 serves any number.
        block: Side of the tiles that the plan was made from, in positions.
        unit: Positions that are gathered together; divides the block.
        bundles: The work. Queries that keep no key at all may be in none.
        kept: Its parts for some shapes of the states.
    """

    length: int
    heads: int
    block: int
    unit: int
    bundles: tuple[Bundle, ...]
    kept: dict[Any, list[GatherPart]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @staticmethod
    def of_mask(mask: Mask, length: int, block: int = 64) -> GatherPlan:
        """Plans a layer from the distinct tiles of its mask.

        Args:
            mask: A mask that does not tell layers apart (else take `masks.layer_of` first). Rows
                that keep no key are not refused here: their output is 0, as with a bool mask in
                `scaled_dot_product_attention`.
            length: Positions; the last block may be ragged.
            block: Side of a tile, in positions (>= 1).

        Raises:
            LengthError: If the mask has another length.
            ValueError: If `block` or `length` is less than 1.
        """
        planner = Planner(block)
        for head in range(mask.heads or 1):
            planner.add(*distinct_tiles(mask, length, block, head), head)
        return GatherPlan(length, mask.heads or 1, block, planner.unit, tuple(planner.bundles()))

    @property
    def units(self) -> int:
        """Units of one head, those of a ragged last block included."""
        return -(-self.length // self.block) * (self.block // self.unit)

    def to(self, device: torch.device | str) -> GatherPlan:
        """The plan on another device."""
        moved = []
        for bundle in self.bundles:
            tensors: dict[str, Any] = {k: v.to(device) for k, v in bundle.tensors.items()}
            moved.append(replace(bundle, **tensors))
        return GatherPlan(self.length, self.heads, self.block, self.unit, tuple(moved))


@dataclass(frozen=True)
class EvenRun:
    """Evenly spaced pieces, each of neighbouring queries and of neighbouring keys.

    Args:
        query: First unit of the first piece's queries.
        key: First unit of its keys.
        query_step: Units to the next piece's queries.
        key_step: Units to its keys.
    """

    query: int
    key: int
    query_step: int
    key_step: int


@dataclass(frozen=True)
class Bundle:
    """Pieces with as many queries and keys: they are computed in one call.

    Args:
        queries: int32 `[pieces, query units]`, head * units + unit.
        keys: int32 `[pieces, key units]`, likewise; a piece with fewer keys than the others is
            filled up with its first unit, whose copies keep nothing.
        index: int32 `[pieces | 1, key units]`, which of `cells` each unit of keys has, or None
            where every query keeps every key.
        cells: uint8 `[distinct, query units * unit, ceil(unit / 8)]`, a bit for each cell.
        run: How the pieces follow each other; None where they are not evenly spaced.
    """

    queries: Tensor
    keys: Tensor
    index: Tensor | None = None
    cells: Tensor | None = None
    run: EvenRun | None = None

    @property
    def alike(self) -> bool:
        """Whether all pieces keep the same cells."""
        return self.index is None or len(self.index) == 1

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All that the bundle holds, by field."""
        parts = {name: getattr(self, name) for name in ("queries", "keys", "index", "cells")}
        return {name: tensor for name, tensor in parts.items() if tensor is not None}

    def bias(self, some: slice, unit: int, dtype: torch.dtype) -> Tensor | None:
        """0 where a cell is kept and -inf elsewhere, `[pieces | 1, queries, keys]`.

        Args:
            some: Which pieces; without effect where all have the same cells.
            unit: Positions of a unit.
            dtype: Type of the result.

        Returns:
            The bias; None where everything is kept.
        """
        if self.index is None or self.cells is None:
            return None
        index = self.index if self.alike else self.index[some]
        rows = self.cells.index_select(0, index.flatten())
        rows = rows.view(*index.shape, *rows.shape[1:]).transpose(1, 2).contiguous()
        bits = 2 ** torch.arange(7, -1, -1, dtype=torch.uint8, device=index.device)
        kept = (rows.unsqueeze(-1) & bits).flatten(3)[..., :unit].flatten(2).ne(0)
        zero = torch.zeros((), dtype=dtype, device=index.device)
        return torch.where(kept, zero, -torch.inf)


# -- tiles -> pieces ---------------------------------------------------------------------------
@dataclass(frozen=True)
class Piece:
    """Some queries of a block with all the keys that any of them keeps, in units."""

    queries: np.ndarray
    keys: np.ndarray
    names: np.ndarray  # int64, which cells each unit of keys has
    neighbours: bool  # whether queries and keys are runs of units, in order


class Planner:
    """Collects the pieces of all heads, then bundles them.

    Args:
        block: Side of a tile, in positions.
    """

    def __init__(self, block: int) -> None:
        self.unit = next((unit for unit in UNITS if block % unit == 0), block)
        self.parts = block // self.unit  # units of a block
        self.pieces: list[Piece] = []
        nothing = np.zeros((0, 0), dtype=np.uint8)
        self.cells = [nothing, nothing]  # by name, uint8 [queries, bytes]; those of KEPT, DROPPED
        self.known: dict[bytes, int] = {}  # cells -> their name

    def add(self, index: np.ndarray, patterns: np.ndarray, head: int) -> None:
        """Adds one head.

        Args:
            index: int64 `[blocks, blocks]` into the patterns.
            patterns: uint8 `[distinct, block, ceil(block / 8)]`; the first keeps nothing.
            head: Which head.
        """
        parts, unit = self.parts, self.unit
        patterns = np.unpackbits(patterns, axis=2, count=parts * unit).astype(bool)
        used = np.asarray(patterns.reshape(-1, parts, unit, parts, unit).any((2, 4)))
        first = head * len(index) * parts
        splits: dict[tuple[bytes, bytes], list[tuple[np.ndarray, np.ndarray]]] = {}
        for row, tiles in enumerate(index):
            columns = np.flatnonzero(tiles)
            tiles = tiles[columns]
            keys = columns[:, None] * parts + np.arange(parts)
            like = (tiles.tobytes(), np.diff(columns).tobytes())
            if like not in splits:  # rows of one pattern are split and named once
                splits[like] = [
                    (rows, self.names(patterns[tiles], rows))
                    for rows in self.split(used[tiles], keys)
                ]
            for rows, names in splits[like]:
                kept = names != DROPPED
                some, names_kept = first + keys[kept], names[kept]
                neighbours = bool((np.diff(some) == 1).all() and (np.diff(rows) == 1).all())
                if not neighbours:  # alike whatever the order of the tiles
                    order = np.argsort(names_kept, kind="stable")
                    some, names_kept = some[order], names_kept[order]
                self.pieces.append(Piece(first + row * parts + rows, some, names_kept, neighbours))

    def split(self, used: np.ndarray, keys: np.ndarray) -> list[np.ndarray]:
        """Which query units of a block are computed together: the cheapest of some ways.

        Args:
            used: bool `[tiles, query units, key units]`, where a cell is kept.
            keys: int64 `[tiles, key units]`, where the units are.
        """
        counts = used.sum((0, 2))
        some = np.flatnonzero(counts)
        if len(some) == 0:
            return []
        ways = [[some]]
        wide = counts > used.any(1).sum() / 2  # global positions
        if wide.any() and not wide[some].all():
            ways.append([np.flatnonzero(wide), np.flatnonzero((counts > 0) & ~wide)])
        size = self.parts // 2
        while size and len(keys) <= 2 * self.parts:  # rows that read little, like a window's
            cut = [np.arange(at, min(at + size, self.parts)) for at in range(0, self.parts, size)]
            ways.append([rows for rows in cut if counts[rows].any()])
            size //= 2
        costs = [sum(self.cost(used[:, rows], keys) for rows in way) for way in ways]
        best = int(np.argmin(costs))
        return ways[best if costs[best] <= SAVING * costs[0] else 0]

    def cost(self, used: np.ndarray, keys: np.ndarray) -> int:
        """The cost of a piece, about in cells.

        Args:
            used: bool `[tiles, query units, key units]`, what its queries keep.
            keys: int64 `[tiles, key units]`, where the units are.
        """
        columns = keys[used.sum(1) > 0]
        copied = 0 if (np.diff(columns) == 1).all() else COPY
        rows = used.shape[1] * self.unit + CALL[0] + copied
        return int(rows * (len(columns) * self.unit + CALL[1]))

    def names(self, patterns: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The cells of each unit of keys, int64 `[tiles, key units]`.

        Args:
            patterns: bool `[tiles, block, block]`.
            rows: int64 `[query units]`, whose cells.
        """
        cells = patterns.reshape(-1, self.parts, self.unit, self.parts, self.unit)[:, rows]
        cells = cells.reshape(len(patterns), -1, self.parts, self.unit).transpose(0, 2, 1, 3)
        result = np.where(cells.all((2, 3)), KEPT, np.where(cells.any((2, 3)), -1, DROPPED))
        unnamed = np.argwhere(result < 0)
        packed = np.packbits(cells[unnamed[:, 0], unnamed[:, 1]], axis=2)
        for (tile, part), bits in zip(unnamed, packed, strict=True):
            name = self.known.setdefault(bits.tobytes(), len(self.cells))
            if name == len(self.cells):
                self.cells.append(bits)
            result[tile, part] = name
        return result

    # -- pieces -> bundles ---------------------------------------------------------------------
    def bundles(self) -> Iterator[Bundle]:
        """The collected pieces in bundles: even ones, those that are alike, then mixed ones."""
        groups: dict[tuple[int, bytes], list[Piece]] = defaultdict(list)
        for piece in self.pieces:
            groups[len(piece.queries), piece.names.tobytes()].append(piece)
        mixed: list[Piece] = []
        for group in groups.values():
            names = None if (group[0].names == KEPT).all() else group[0].names[None]
            rest = []
            for pieces in _even_runs(group):
                if len(pieces) >= SHARED_BY:
                    yield self.bundle(pieces, names, run_of(pieces))
                else:
                    rest += pieces
            if rest and (names is None or len(rest) >= SHARED_BY):
                yield self.bundle(rest, names)
            else:
                mixed += rest
        mixed.sort(key=lambda piece: (-len(piece.queries), -len(piece.names)))
        while mixed:
            queries, most = len(mixed[0].queries), len(mixed[0].names)
            smaller = (
                at
                for at, piece in enumerate(mixed)
                if len(piece.queries) < queries or len(piece.names) < (1 - PADDING) * most
            )
            count = next(smaller, len(mixed))
            some, mixed = [filled(piece, most) for piece in mixed[:count]], mixed[count:]
            yield self.bundle(some, np.stack([piece.names for piece in some]))

    def bundle(
        self, pieces: list[Piece], names: np.ndarray | None, run: EvenRun | None = None
    ) -> Bundle:
        """A bundle of pieces of one shape; `names` [pieces | 1, key units] unless all is kept."""
        queries = torch.from_numpy(np.stack([piece.queries for piece in pieces]).astype(np.int32))
        keys = torch.from_numpy(np.stack([piece.keys for piece in pieces]).astype(np.int32))
        if names is None:
            return Bundle(queries, keys, run=run)
        distinct, index = np.unique(names, return_inverse=True)
        whole = np.full((queries.shape[1] * self.unit, -(-self.unit // 8)), 255, dtype=np.uint8)
        special = {KEPT: whole, DROPPED: np.zeros_like(whole)}
        cells = np.stack([special.get(int(n), self.cells[n]) for n in distinct])
        numbers = torch.from_numpy(index.reshape(names.shape).astype(np.int32))
        return Bundle(queries, keys, numbers, torch.from_numpy(cells), run)


def filled(piece: Piece, most: int) -> Piece:
    """The piece with that many units of keys: copies of its first, which keep nothing."""
    more = most - len(piece.keys)
    keys = np.append(piece.keys, np.repeat(piece.keys[:1], more))
    return Piece(piece.queries, keys, np.append(piece.names, np.repeat(DROPPED, more)), False)


def _even_runs(pieces: list[Piece]) -> Iterator[list[Piece]]:
    """Pieces of one shape, in order, cut into evenly spaced sequences of neighbours."""
    current: list[Piece] = []
    for piece in pieces:
        if current:
            steps = {
                (int(b.queries[0] - a.queries[0]), int(b.keys[0] - a.keys[0]))
                for a, b in pairwise([*current[-2:], piece])
            }
            even = piece.neighbours and current[0].neighbours and len(steps) == 1
            if not even or min(steps.pop()) < 1:
                yield current
                current = []
        current.append(piece)
    yield current


def run_of(pieces: list[Piece]) -> EvenRun:
    """How the pieces of a sequence follow each other."""
    (query, key), (next_query, next_key) = (
        (int(piece.queries[0]), int(piece.keys[0])) for piece in pieces[:2]
    )
    return EvenRun(query, key, next_query - query, next_key - key)


# -- bundles -> parts --------------------------------------------------------------------------
class GatherPart(NamedTuple):
    """The work of one call: some pieces of one bundle for some groups of the states.

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
    run: EvenRun | None
    own: tuple[Bundle, slice] | None

    def of(self, states: Tensor) -> Tensor:
        """The states of the part's groups."""
        return states if self.groups is None else states[self.groups]


def parts_of(
    plan: GatherPlan, states: Tensor, most: int, *, keeps: bool = False, trains: bool = False
) -> Iterator[GatherPart]:
    """The plan in parts that gather about `most` numbers of the keys.

    Args:
        plan: The plan.
        states: `[groups, units, unit x head_dim]`.
        most: Numbers.
        keeps: Whether the plan keeps its parts for the next states of that shape, and even runs
            are read where they lie: then a part has up to `2 x most` numbers of their queries.
        trains: Whether a gradient is asked for: that of the keys of a run is not read where it
            lies, and counts instead of its queries.
    """
    shape = (len(states), states.shape[2], states.dtype, most, trains)
    parts: Iterable[GatherPart] | None = plan.kept.get(shape) if keeps else None
    if parts is None:
        parts = _cut_parts(plan, states, most, runs=keeps, trains=trains)
        if keeps:
            if len(plan.kept) >= SHAPES:
                plan.kept.clear()
            parts = plan.kept[shape] = list(parts)
    bias = None
    for part in parts:
        if part.own is None:
            yield part
            continue
        if part.groups is None or part.groups.start == 0:  # the groups after it share its bias
            bundle, some = part.own
            bias = bundle.bias(some, plan.unit, states.dtype)
        yield part._replace(bias=bias)


def _cut_parts(
    plan: GatherPlan, states: Tensor, most: int, *, runs: bool, trains: bool
) -> Iterator[GatherPart]:
    """The parts of `parts_of`, without a bias where each piece has cells of its own."""
    groups, _, size = states.shape
    for bundle in plan.bundles:
        pieces, keys = bundle.keys.shape
        run = bundle.run
        width = keys
        if runs and run is not None:
            width = -(-(keys if trains else bundle.queries.shape[1]) // 2)
        fitting = max(1, most // (width * size))  # pieces of one group
        together = min(pieces, max(1, fitting // groups))
        together = -(-pieces // -(-pieces // together))  # parts of about one size
        at_once = min(groups, max(1, fitting // together))
        bias = bundle.bias(slice(0, 0), plan.unit, states.dtype) if bundle.alike else None
        for first in range(0, pieces, together):
            some = slice(first, first + together)
            source = None if bundle.alike else (bundle, some)
            count = min(together, pieces - first)
            indices = bundle.queries[some].flatten(), bundle.keys[some].flatten()
            rest = None
            if run is not None:
                query, key = run.query + first * run.query_step, run.key + first * run.key_step
                rest = replace(run, query=query, key=key)
            for start in range(0, groups, at_once):
                group = None if at_once == groups else slice(start, start + at_once)
                yield GatherPart(group, count, *indices, bias, rest, source)


# -- what is given with a plan -----------------------------------------------------------------
def computed_type(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """The type in which states of that type are computed on a device: that of autocast, if any."""
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return dtype


def check_states(
    query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None, planned: int, layouts: int
) -> None:
    """Refuses states that do not fit a plan; the first arguments as in `gather_attention`.

    Args:
        query: Queries.
        key: Keys.
        value: Values.
        visible: Keys that may be attended.
        planned: Positions of the plan.
        layouts: Heads that it tells apart.

    Raises:
        LengthError, HeadCountError: If the plan is of another length or number of heads.
        ValueError: If `visible` has another type or shape.
    """
    batch, heads, length, _ = query.shape
    if length != planned or key.shape[2] != length or key.shape != value.shape:
        raise LengthError(
            f"the plan holds {planned} positions of queries and keys, got queries "
            f"{list(query.shape)} and keys {list(key.shape)}; plan the mask at that length"
        )
    if layouts not in (1, heads):
        raise HeadCountError(f"the plan has {layouts} heads, the queries have {heads}")
    if heads % key.shape[1]:
        raise HeadCountError(
            f"{heads} query heads cannot share {key.shape[1]} KV heads; the number of query "
            "heads is a multiple of the KV heads"
        )
    if visible is not None and (visible.dtype != torch.bool or visible.shape != (batch, length)):
        raise ValueError(
            f"visible is bool [batch, n] = [{batch}, {length}], got {visible.dtype} "
            f"{list(visible.shape)}"
        )
