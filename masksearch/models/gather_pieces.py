"""The work of block-gather attention: which keys each group of queries reads, in bundles.

Positions are taken in units of up to 16. Queries of a block that read much the same keys form a
piece; the units of keys that hold a kept cell for any of them are its keys. Pieces of one shape
are bundled: a bundle is dense work without a ragged edge. Where neighbouring pieces read
neighbouring keys, as under a window, the bundle knows, and nothing needs to be copied.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

UNITS = (16, 8)  # positions that are gathered together: the first that divides the block
SHARED_BY = 4  # pieces with the same cells that are worth a bundle of their own
PADDING = 0.125  # largest share of padding among the keys of a piece
SAVING = 0.9  # a block of queries is split where that leaves at most this share of its cost
CALL = (4, 10)  # queries and keys by which a piece costs more than its cells
COPY = 14  # queries that cost as much as to gather the keys
KEPT, DROPPED = 0, 1  # cells that every plan knows


@dataclass(frozen=True)
class Run:
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

    def after(self, pieces: int) -> Run:
        """The run without its first pieces."""
        query, key = (
            first + pieces * step
            for first, step in ((self.query, self.query_step), (self.key, self.key_step))
        )
        return Run(query, key, self.query_step, self.key_step)


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
    index: Tensor | None
    cells: Tensor | None
    run: Run | None = None

    @property
    def shares_cells(self) -> bool:
        """Whether all pieces keep the same cells."""
        return self.index is None or len(self.index) == 1

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
        index = self.index if self.shares_cells else self.index[some]
        found = self.cells.index_select(0, index.flatten())
        found = found.view(*index.shape, *found.shape[1:]).transpose(1, 2).contiguous()
        bits = 2 ** torch.arange(7, -1, -1, dtype=torch.uint8, device=index.device)
        kept = (found.unsqueeze(-1) & bits).flatten(3)[..., :unit].flatten(2).ne(0)
        zero = torch.zeros((), dtype=dtype, device=index.device)
        return torch.where(kept, zero, -torch.inf)

    @property
    def tensors(self) -> list[Tensor]:
        """All that the bundle holds."""
        held = (self.queries, self.keys, self.index, self.cells)
        return [tensor for tensor in held if tensor is not None]

    def to(self, device: torch.device | str) -> Bundle:
        """The bundle on another device."""
        index, cells = self.index, self.cells
        return Bundle(
            self.queries.to(device),
            self.keys.to(device),
            None if index is None else index.to(device),
            None if cells is None else cells.to(device),
            self.run,
        )


def unit_of(block: int) -> int:
    """Positions that are gathered together in blocks of that size."""
    return next((unit for unit in UNITS if block % unit == 0), block)


@dataclass(frozen=True)
class Piece:
    """Some queries of a block with all the keys that any of them keeps, in units."""

    queries: np.ndarray
    keys: np.ndarray
    names: np.ndarray  # int64, which cells each unit of keys has
    neighbours: bool  # whether queries and keys are runs of units, in order


@dataclass
class Planner:
    """Collects the pieces of all heads.

    Args:
        block: Side of a tile, in positions.
    """

    block: int
    pieces: list[Piece] = field(default_factory=list)
    cells: list[np.ndarray] = field(default_factory=list)  # uint8 [queries, bytes], by name
    known: dict[bytes, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.unit = unit_of(self.block)
        self.parts = self.block // self.unit  # units of a block
        nothing = np.zeros((0, 0), dtype=np.uint8)
        self.cells += [nothing, nothing]  # KEPT and DROPPED: their number of queries varies

    def add(self, index: np.ndarray, patterns: np.ndarray, head: int) -> None:
        """Adds one head.

        Args:
            index: int64 `[blocks, blocks]` into the patterns.
            patterns: bool `[distinct, block, block]`; the first keeps nothing.
            head: Which head.
        """
        parts, unit = self.parts, self.unit
        used = np.asarray(patterns.reshape(-1, parts, unit, parts, unit).any((2, 4)))
        first = head * len(index) * parts
        steps = np.arange(parts)
        splits: dict[tuple[bytes, bytes], list[tuple[np.ndarray, np.ndarray]]] = {}
        for row, tiles in enumerate(index):
            columns = np.flatnonzero(tiles)
            tiles = tiles[columns]
            keys = columns[:, None] * parts + steps
            like = (tiles.tobytes(), np.diff(columns).tobytes())
            if like not in splits:  # rows of one pattern are split and named once
                splits[like] = [
                    (rows, self.names(patterns[tiles], rows))
                    for rows in self.split(used[tiles], keys)
                ]
            for rows, names in splits[like]:
                kept = names != DROPPED
                some, found = first + keys[kept], names[kept]
                neighbours = bool((np.diff(some) == 1).all() and (np.diff(rows) == 1).all())
                if not neighbours:  # alike whatever the order of the tiles
                    order = np.argsort(found, kind="stable")
                    some, found = some[order], found[order]
                self.pieces.append(Piece(first + row * parts + rows, some, found, neighbours))

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
        wide = counts > used.any(1).sum() / 2
        ways = [[some]]
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
        """What a piece costs, about in cells.

        Args:
            used: bool `[tiles, query units, key units]`, what its queries keep.
            keys: int64 `[tiles, key units]`, where the units are.
        """
        found = keys[used.sum(1) > 0]
        copied = 0 if (np.diff(found) == 1).all() else COPY
        rows = used.shape[1] * self.unit + CALL[0] + copied
        return int(rows * (len(found) * self.unit + CALL[1]))

    def names(self, patterns: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The cells of each unit of keys, int64 `[tiles, key units]`.

        Args:
            patterns: bool `[tiles, block, block]`.
            rows: int64 `[query units]`, whose cells.
        """
        cells = patterns.reshape(-1, self.parts, self.unit, self.parts, self.unit)[:, rows]
        cells = cells.reshape(len(patterns), -1, self.parts, self.unit).transpose(0, 2, 1, 3)
        result = np.where(cells.all((2, 3)), KEPT, np.where(cells.any((2, 3)), -1, DROPPED))
        places = np.argwhere(result < 0)
        packed = np.packbits(cells[places[:, 0], places[:, 1]], axis=2)
        for (tile, part), bits in zip(places, packed, strict=True):
            name = self.known.setdefault(bits.tobytes(), len(self.cells))
            if name == len(self.cells):
                self.cells.append(bits)
            result[tile, part] = name
        return result

    def bundles(self) -> Iterator[Bundle]:
        """The collected pieces in bundles.

        Pieces with all cells in common share one index, or need none. The others are taken
        together with their like in number of keys, up to a share of padding.
        """
        alike: dict[tuple[int, bytes], list[Piece]] = defaultdict(list)
        for piece in self.pieces:
            alike[len(piece.queries), piece.names.tobytes()].append(piece)
        others: list[Piece] = []
        for found in alike.values():
            names = None if (found[0].names == KEPT).all() else found[0].names[None]
            rest = []
            for pieces in sequences(found):
                if len(pieces) >= SHARED_BY:
                    yield self.bundle(pieces, names, run_of(pieces))
                else:
                    rest += pieces
            if rest and (names is None or len(rest) >= SHARED_BY):
                yield self.bundle(rest, names)
            else:
                others += rest
        others.sort(key=lambda piece: (-len(piece.queries), -len(piece.names)))
        while others:
            queries, most = len(others[0].queries), len(others[0].names)
            count = next(
                (
                    at
                    for at, piece in enumerate(others)
                    if len(piece.queries) < queries or len(piece.names) < (1 - PADDING) * most
                ),
                len(others),
            )
            some, others = others[:count], others[count:]
            padded = [
                Piece(
                    p.queries,
                    np.append(p.keys, np.repeat(p.keys[:1], most - len(p.keys))),
                    np.append(p.names, np.repeat(DROPPED, most - len(p.names))),
                    False,
                )
                for p in some
            ]
            yield self.bundle(padded, np.stack([piece.names for piece in padded]))

    def bundle(
        self, pieces: list[Piece], names: np.ndarray | None, run: Run | None = None
    ) -> Bundle:
        """A bundle of pieces of one shape; `names` [pieces | 1, key units] unless all is kept."""
        queries = torch.from_numpy(np.stack([piece.queries for piece in pieces]).astype(np.int32))
        keys = torch.from_numpy(np.stack([piece.keys for piece in pieces]).astype(np.int32))
        if names is None:
            return Bundle(queries, keys, None, None, run)
        distinct, index = np.unique(names, return_inverse=True)
        whole = np.full((queries.shape[1] * self.unit, -(-self.unit // 8)), 255, dtype=np.uint8)
        special = {KEPT: whole, DROPPED: np.zeros_like(whole)}
        cells = np.stack([special.get(int(n), self.cells[n]) for n in distinct])
        return Bundle(
            queries,
            keys,
            torch.from_numpy(index.reshape(names.shape).astype(np.int32)),
            torch.from_numpy(cells),
            run,
        )


def sequences(pieces: list[Piece]) -> Iterator[list[Piece]]:
    """Pieces of one shape, in order, cut into evenly spaced sequences of neighbours."""
    current: list[Piece] = []
    for piece in pieces:
        if current:
            before = [*current[-2:], piece]
            steps = {
                (int(b.queries[0] - a.queries[0]), int(b.keys[0] - a.keys[0]))
                for a, b in pairwise(before)
            }
            even = piece.neighbours and current[0].neighbours and len(steps) == 1
            if not even or min(steps.pop()) < 1:
                yield current
                current = []
        current.append(piece)
    yield current


def run_of(pieces: list[Piece]) -> Run:
    """How the pieces of a sequence follow each other."""
    (query, key), (next_query, next_key) = (
        (int(piece.queries[0]), int(piece.keys[0])) for piece in pieces[:2]
    )
    return Run(query, key, next_query - query, next_key - key)
