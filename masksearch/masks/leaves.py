"""The leaves: which keys a query keeps, by position alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from masksearch.masks.checks import distinct, settle
from masksearch.masks.core import Mask, Points
from masksearch.masks.tables import Drawn


def hashed(values: Tensor, seed: int, stream: int) -> Tensor:
    """A 62-bit hash of each value, by SplitMix64 in wrapping int64 arithmetic."""

    def signed(number: int) -> int:
        number &= 0xFFFFFFFFFFFFFFFF
        return number - (1 << 64) if number >> 63 else number

    def shifted(state: Tensor, bits: int) -> Tensor:
        return (state >> bits) & ((1 << (64 - bits)) - 1)

    state = values + signed(0x9E3779B97F4A7C15 * (seed + 1)) + signed(0xD1B54A32D192ED03 * stream)
    for _ in range(2):  # two rounds: neighbouring rows share no structure
        state = (state ^ shifted(state, 30)) * signed(0xBF58476D1CE4E5B9)
        state = (state ^ shifted(state, 27)) * signed(0x94D049BB133111EB)
        state = state ^ shifted(state, 31)
    return shifted(state, 2)


def member(values: Tensor, allowed: tuple[int, ...]) -> Tensor:
    """Whether each value is one of a few numbers (works inside a `mask_mod` too)."""
    result = values == allowed[0]
    for number in allowed[1:]:
        result = result | (values == number)
    return result


@dataclass(frozen=True, eq=False, repr=False)
class Full(Mask):
    """Keep every key.

    >>> Full().dense(2)[0, 0].int().tolist()
    [[1, 1], [1, 1]]
    """

    kind = "full"
    by_offset = True

    def allows(self, at: Points) -> Tensor:
        return at.offset == at.offset


@dataclass(frozen=True, eq=False, repr=False)
class Causal(Mask):
    """Keep the query's own position and every earlier key.

    >>> Causal().dense(3)[0, 0].int().tolist()
    [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    """

    kind = "causal"
    by_offset = True

    def allows(self, at: Points) -> Tensor:
        return at.offset <= 0


@dataclass(frozen=True, eq=False, repr=False)
class Window(Mask):
    """Keep the keys within `reach` positions on each side.

    Args:
        reach: Farthest kept distance, in positions, inclusive (>= 0); 0 is the diagonal. Other
            libraries count the total width: theirs is `2 * reach + 1`.

    Raises:
        ValueError: If `reach` < 0.

    Reference: Longformer, arXiv 2004.05150, Fig. 2b.

    >>> Window(reach=1).dense(5)[0, 0, 2].int().tolist()
    [0, 1, 1, 1, 0]
    """

    kind = "window"
    by_offset = True
    reach: int

    def __post_init__(self) -> None:
        settle(self, "reach", 0)

    def allows(self, at: Points) -> Tensor:
        return at.offset.abs() <= self.reach


@dataclass(frozen=True, eq=False, repr=False)
class Dilated(Mask):
    """Keep every `gap`-th key within `reach` positions on each side.

    Args:
        reach: Farthest kept distance, in positions, inclusive (>= 0).
        gap: Spacing of the kept keys, in positions (>= 1; 1 equals `Window`).

    Raises:
        ValueError: If `reach` < 0 or `gap` < 1.

    Reference: Longformer, arXiv 2004.05150, Fig. 2c.

    >>> Dilated(reach=4, gap=2).dense(9)[0, 0, 4].int().tolist()
    [1, 0, 1, 0, 1, 0, 1, 0, 1]
    """

    kind = "dilated"
    by_offset = True
    reach: int
    gap: int

    def __post_init__(self) -> None:
        settle(self, "reach", 0)
        settle(self, "gap", 1)

    def allows(self, at: Points) -> Tensor:
        distance = at.offset.abs()
        return (distance <= self.reach) & (distance % self.gap == 0)


@dataclass(frozen=True, eq=False, repr=False)
class Stride(Mask):
    """Keep every `period`-th key, counted from the query.

    Args:
        period: Spacing, in positions (>= 1).

    Reference: Sparse Transformer, arXiv 1904.10509, Section 4.2 (strided), both directions.

    >>> Stride(period=2).dense(4)[0, 0, 1].int().tolist()
    [0, 1, 0, 1]
    """

    kind = "stride"
    by_offset = True
    period: int

    def __post_init__(self) -> None:
        settle(self, "period", 1)

    def allows(self, at: Points) -> Tensor:
        return at.offset.abs() % self.period == 0


@dataclass(frozen=True, eq=False, repr=False)
class Offsets(Mask):
    """Keep the keys at the given distances, on both sides.

    Args:
        distances: Kept values of |i - j|, in positions (each >= 0).

    >>> Offsets((0, 2)).dense(4)[0, 0, 1].int().tolist()
    [0, 1, 0, 1]
    """

    kind = "offsets"
    by_offset = True
    distances: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "distances", distinct("distances", self.distances, 0))

    def allows(self, at: Points) -> Tensor:
        return member(at.offset.abs(), self.distances)


@dataclass(frozen=True, eq=False, repr=False)
class Shifts(Mask):
    """Keep the keys at the given signed offsets.

    Args:
        steps: Kept values of `key - query`, in positions: -1 is the previous key, 2 the second
            next. A query whose keys all fall outside the sequence has an empty row: combine it
            with a mask that keeps something everywhere.

    >>> Shifts((-1, 2)).dense(5)[0, 0, 2].int().tolist()
    [0, 1, 0, 0, 1]
    """

    kind = "shifts"
    by_offset = True
    steps: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", distinct("steps", self.steps))

    def allows(self, at: Points) -> Tensor:
        return member(at.offset, self.steps)


@dataclass(frozen=True, eq=False, repr=False)
class PowersOfTwo(Mask):
    """Keep the keys at distance 1, 2, 4, 8, ... on both sides (not the query itself).

    Reference: LogSparse, arXiv 1907.00235, Section 4.2, both directions.

    >>> PowersOfTwo().dense(6)[0, 0, 0].int().tolist()
    [0, 1, 1, 0, 1, 0]
    """

    kind = "powers_of_two"
    by_offset = True

    def allows(self, at: Points) -> Tensor:
        distance = at.offset.abs()
        return (distance > 0) & (distance & (distance - 1) == 0)


@dataclass(frozen=True, eq=False, repr=False)
class Blocks(Mask):
    """Keep the keys of the query's own block: i // size == j // size.

    Args:
        size: Positions of a block (>= 1).

    >>> Blocks(2).dense(4)[0, 0].int().tolist()
    [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
    """

    kind = "blocks"
    size: int

    def __post_init__(self) -> None:
        settle(self, "size", 1)

    def allows(self, at: Points) -> Tensor:
        return at.query // self.size == at.key // self.size


@dataclass(frozen=True, eq=False, repr=False)
class BlockColumns(Mask):
    """Keep the last columns of every block, for all queries: j % size >= size - last.

    Args:
        size: Positions of a block (>= 1).
        last: Kept columns of a block (1 to `size`).

    Reference: Sparse Transformer, arXiv 1904.10509, Section 4.2 (fixed), both directions.

    >>> BlockColumns(4, last=1).dense(8)[0, 0, 0].int().tolist()
    [0, 0, 0, 1, 0, 0, 0, 1]
    """

    kind = "block_columns"
    size: int
    last: int = 1

    def __post_init__(self) -> None:
        settle(self, "size", 1)
        settle(self, "last", 1)
        if self.last > self.size:
            raise ValueError(f"last must be at most size = {self.size}, got {self.last}")

    def allows(self, at: Points) -> Tensor:
        return (at.key % self.size >= self.size - self.last) & (at.query >= 0)


@dataclass(frozen=True, eq=False, repr=False)
class GlobalTokens(Mask):
    """Keep the rows and the columns of some positions.

    Args:
        positions: Positions that attend to all keys and that all queries attend to (>= 0);
            those beyond the length are ignored.

    Reference: BigBird, arXiv 2007.14062, Section 2 (internal global tokens).

    >>> GlobalTokens((0,)).dense(3)[0, 0].int().tolist()
    [[1, 1, 1], [1, 0, 0], [1, 0, 0]]
    """

    kind = "global_tokens"
    positions: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "positions", distinct("positions", self.positions, 0))

    def allows(self, at: Points) -> Tensor:
        if self.positions == tuple(range(len(self.positions))):
            return (at.query < len(self.positions)) | (at.key < len(self.positions))
        return member(at.query, self.positions) | member(at.key, self.positions)


@dataclass(frozen=True, eq=False, repr=False)
class RandomKeys(Mask):
    """Keep `count` random keys of each query, uniform without replacement.

    Args:
        count: Kept keys of a row (>= 0; all keys where the length is smaller).
        seed: Seed of the draw; equal on every machine (integer arithmetic only).

    Reference: BigBird, arXiv 2007.14062, Section 2; Floyd's sampling algorithm.

    >>> RandomKeys(count=2, seed=0).dense(9)[0, 0].sum(-1).tolist()
    [2, 2, 2, 2, 2, 2, 2, 2, 2]
    """

    kind = "random_keys"
    count: int
    seed: int = 0

    def __post_init__(self) -> None:
        settle(self, "count", 0)
        settle(self, "seed", 0)

    def keys(self, query: Tensor, length: int) -> Tensor:
        """The kept keys of those queries, int64 `[*query.shape, min(count, length)]`."""
        chosen: list[Tensor] = []
        for top in range(length - min(self.count, length), length):
            drawn = hashed(query, self.seed, len(chosen)) % (top + 1)
            for earlier in chosen:
                drawn = torch.where(earlier == drawn, top, drawn)
            # a replaced value can only meet keys below `top`, so one pass is enough
            chosen.append(drawn)
        return torch.stack(chosen, -1) if chosen else query.unsqueeze(-1)[..., :0]

    def allows(self, at: Points) -> Tensor:
        keys = self.keys(at.query, at.length)
        result = (at.key == -1) & (at.query == -1)
        for column in range(keys.shape[-1]):
            result = result | (at.key == keys[..., column])
        return result

    def resolve(self, length: int) -> Mask:
        return Drawn(self.keys(torch.arange(length), length).int())
