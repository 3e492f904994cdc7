"""The leaves: which keys a query keeps, by position, or by the tokens that stand there."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import InitVar, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from masksearch.errors import LengthError
from masksearch.masks.checks import MOST, at_least, check_field, distinct, whole
from masksearch.masks.core import SHOWN, Mask, Points
from masksearch.masks.tables import Drawn


def _hash_values(values: Tensor, seed: int, stream: int) -> Tensor:
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


def member(values: Tensor, allowed: Collection[int]) -> Tensor:
    """Whether each value is one of a few numbers (works inside a `mask_mod` too)."""
    first, *rest = allowed
    result = values == first
    for number in rest:
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
        check_field(self, "reach", 0)

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
        check_field(self, "reach", 0)
        check_field(self, "gap", 1)

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
        check_field(self, "period", 1)

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
    distances: Collection[int]

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
    steps: Collection[int]

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
        check_field(self, "size", 1)

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
        check_field(self, "size", 1)
        check_field(self, "last", 1)
        if self.last > self.size:
            raise ValueError(f"last must be at most size = {self.size}, got {self.last}")

    def allows(self, at: Points) -> Tensor:
        return (at.key % self.size >= self.size - self.last) & (at.query >= 0)


@dataclass(frozen=True, eq=False, repr=False)
class GlobalTokens(Mask):
    """Keep the rows and the columns of the first `count` positions, or of given positions.

    Args:
        count: How many positions from the first on (1 .. 2^20).
        positions: Instead of a count: positions that attend to all keys and that all queries
            attend to (>= 0); those beyond the length are ignored.

    Raises:
        ValueError: If not exactly one of them is given, or it is out of range.

    Reference: BigBird, arXiv 2007.14062, Section 2 (internal global tokens).

    >>> GlobalTokens(1).dense(3)[0, 0].int().tolist()
    [[1, 1, 1], [1, 0, 0], [1, 0, 0]]
    """

    kind = "global_tokens"
    count: InitVar[int | None] = None
    positions: Collection[int] = field(default=(), kw_only=True)

    def __post_init__(self, count: int | None) -> None:
        object.__setattr__(self, "positions", _positions_of(self, count))

    def allows(self, at: Points) -> Tensor:
        return stands_at(at.query, self.positions) | stands_at(at.key, self.positions)

    def expression(self) -> str:
        """`global_tokens(count)`, or `global_tokens(positions=[..])`."""
        return by_count(self)


@dataclass(frozen=True, eq=False, repr=False)
class Columns(Mask):
    """Keep the columns of the first `count` positions, or of given positions.

    Unlike those of `GlobalTokens`, these positions do not attend to all keys themselves.

    Args:
        count: How many positions from the first on (1 .. 2^20).
        positions: Instead of a count: kept keys (>= 0); those beyond the length are ignored.

    Raises:
        ValueError: If not exactly one of them is given, or it is out of range.

    Reference: attention sinks of StreamingLLM, arXiv 2309.17453, Section 3.2.

    >>> Columns(1).dense(3)[0, 0].int().tolist()
    [[1, 0, 0], [1, 0, 0], [1, 0, 0]]
    """

    kind = "columns"
    count: InitVar[int | None] = None
    positions: Collection[int] = field(default=(), kw_only=True)

    def __post_init__(self, count: int | None) -> None:
        object.__setattr__(self, "positions", _positions_of(self, count))

    def allows(self, at: Points) -> Tensor:
        return stands_at(at.key, self.positions) & (at.query >= 0)

    def expression(self) -> str:
        """`columns(count)`, or `columns(positions=[..])`."""
        return by_count(self)


def stands_at(index: Tensor, positions: Collection[int]) -> Tensor:
    """Whether each index is one of the positions; of the first ones by a single comparison."""
    count = len(positions)
    return index < count if positions == tuple(range(count)) else member(index, positions)


def _positions_of(mask: GlobalTokens | Columns, count: int | None) -> tuple[int, ...]:
    """The first `count` positions, or the given ones."""
    positions = mask.positions
    if (count is None) == (positions is None or (isinstance(positions, tuple) and not positions)):
        raise ValueError(f"{mask.kind} takes a count or positions=[...], exactly one of them")
    if count is not None:
        positions = range(at_least("count", count, 1, MOST))
    return distinct("positions", positions, 0)


def by_count(mask: GlobalTokens | Columns) -> str:
    """`kind(count)` where the positions are the first ones."""
    first = mask.positions == tuple(range(len(mask.positions)))
    inner = len(mask.positions) if first else f"positions={list(mask.positions)}"
    return f"{mask.kind}({inner})"


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
        check_field(self, "count", 0)
        check_field(self, "seed", 0)

    def keys(self, query: Tensor, length: int) -> Tensor:
        """The kept keys of those queries, int64 `[*query.shape, min(count, length)]`."""
        chosen: list[Tensor] = []
        for top in range(length - min(self.count, length), length):
            drawn = _hash_values(query, self.seed, len(chosen)) % (top + 1)
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


@dataclass(frozen=True, eq=False, repr=False, init=False)
class SpecialTokens(Mask):
    """Keep the rows and the columns of some tokens, wherever they stand.

    Its cells follow the tokens: `masksearch.attach` resolves it from the input ids of each
    batch, `mask.table(input_ids)` shows them, and where no tokens are known they are refused.
    An example without any of the tokens has empty rows, which are refused too: combine it with
    a mask that keeps something everywhere.

    Args:
        ids: Token ids (>= 0), or one list of them: `tokenizer.cls_token_id`, ...

    Raises:
        ValueError: If there is no id, or one is not a whole number >= 0.

    Reference: Longformer, arXiv 2004.05150, Section 3.1 (global attention on chosen tokens).

    >>> SpecialTokens(101).table(torch.tensor([[101, 7]]))[0, 0].int().tolist()
    [[1, 1], [1, 0]]
    """

    kind = "special_tokens"
    needs_tokens = True
    ids: Collection[int]

    def __init__(self, *tokens: int | Iterable[int], ids: Iterable[int] | None = None) -> None:
        numbers: Any = tokens if ids is None else ids
        if ids is None and len(tokens) == 1 and whole(tokens[0]) is None:
            numbers = tokens[0]
        object.__setattr__(self, "ids", distinct("ids", numbers, 0))

    def allows(self, at: Points) -> Tensor:
        special = member(_known_tokens(self, at), self.ids)
        return special[:, at.query] | special[:, at.key]

    def expression(self) -> str:
        """`special_tokens(id, ..)`."""
        return f"{self.kind}({', '.join(map(str, self.ids))})"


@dataclass(frozen=True, eq=False, repr=False)
class SameToken(Mask):
    """Keep the keys that are the same token as the query, and the query itself.

    Its cells follow the tokens, as those of `SpecialTokens`; no row is empty. Where padding
    stands, its rows and columns are those of any token: the model's own mask hides them.

    Args:
        except_ids: Token ids (>= 0) that keep themselves alone, such as those of [CLS] and [SEP],
            or the most frequent of a vocabulary; the data need not have them. So does -1, behind
            the end of a row.

    Raises:
        ValueError: If an id is not a whole number >= 0.

    Reference: none known; no published family is meant.

    >>> SameToken(except_ids=[101]).table(torch.tensor([[101, 7, 7, 101]]))[0, 0].int().tolist()
    [[1, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1]]
    """

    kind = "same_token"
    needs_tokens = True
    except_ids: Collection[int] = ()

    def __post_init__(self) -> None:
        ids = distinct("except_ids", self.except_ids, 0, empty=True)
        object.__setattr__(self, "except_ids", ids)

    def allows(self, at: Points) -> Tensor:
        tokens = _known_tokens(self, at)
        query, key = tokens[:, at.query], tokens[:, at.key]
        alone = member(query, (-1, *self.except_ids))
        return (at.query == at.key) | ((query == key) & ~alone)

    def expression(self) -> str:
        """`same_token()`, or `same_token(except_ids=[..])`."""
        return f"{self.kind}({f'except_ids={[*self.except_ids]}' if self.except_ids else ''})"


@dataclass(frozen=True, eq=False, repr=False, init=False)
class TokenColumns(Mask):
    """Keep the columns of some tokens, wherever they stand.

    Its cells follow the tokens, as those of `SpecialTokens`; the tokens' own rows do not open,
    and the data need not have all of them. An example without any has empty rows, which are
    refused: have the id of [CLS] among them, or combine it with a mask such as `window(0)`.

    Args:
        ids: Token ids (0 .. 2^20), thousands too; kept as bits, bool `[largest id + 1]`, which
            are also taken.

    Raises:
        ValueError: If there is no id, or one is not a whole number in that range.

    Reference: none known; no published family is meant.

    >>> TokenColumns([101]).table(torch.tensor([[101, 7]]))[0, 0].int().tolist()
    [[1, 0], [1, 0]]
    """

    kind = "token_columns"
    needs_tokens = True
    ids: Tensor

    def __init__(self, ids: Iterable[int] | Tensor) -> None:
        if isinstance(ids, Tensor):
            ids = (ids.nonzero().squeeze(1) if ids.dtype == torch.bool else ids).tolist()
        numbers = distinct("ids", ids, 0)
        bits = torch.zeros(at_least("ids", numbers[-1], 0, MOST) + 1, dtype=torch.bool)
        bits[list(numbers)] = True
        object.__setattr__(self, "ids", bits)

    def allows(self, at: Points) -> Tensor:
        tokens = _known_tokens(self, at)
        bits = F.pad(self.ids, (1, 1)).to(tokens.device)  # of -1, and of ids beyond the largest
        return bits[tokens.clamp(-1, len(self.ids)) + 1][:, at.key] & (at.query >= 0)

    def expression(self) -> str:
        """`token_columns([id, ..])`; of many ids their number and the digest."""
        if (count := int(self.ids.sum())) > SHOWN:
            return f"{self.kind}({count} ids, {self.digest[:8]})"
        return f"{self.kind}({self.ids.nonzero().squeeze(1).tolist()})"


def _known_tokens(mask: Mask, at: Points) -> Tensor:
    """The input ids, int `[batch, n]`; TokensNeededError where they are not known."""
    if at.tokens is None:
        mask.refuse_tokens()
        raise AssertionError
    return at.tokens


# -- two-dimensional inputs, and the butterfly of blocks -----------------------------------------
@dataclass(frozen=True, eq=False, repr=False)
class Axial(Mask):
    """Keep the keys in the query's row or column of a grid that is read row by row.

    Args:
        rows: Rows of the grid (>= 1).
        columns: Columns of the grid (>= 1).
        prefix: Positions before the grid, such as the class token of a ViT (>= 0): they attend
            to all keys and all queries attend to them.

    Lengths up to `prefix + rows * columns` are the first positions; longer ones are refused.

    Raises:
        ValueError: If one is smaller.

    Reference: Axial Attention, arXiv 1912.12180, Section 3; rows and columns in one layer, as in
    criss-cross attention, arXiv 1811.11721, Section 3.2.

    >>> Axial(rows=2, columns=3).dense(6)[0, 0, 1].view(2, 3).int().tolist()
    [[1, 1, 1], [0, 1, 0]]
    """

    kind = "axial"
    rows: int
    columns: int
    prefix: int = 0

    def __post_init__(self) -> None:
        check_field(self, "rows", 1)
        check_field(self, "columns", 1)
        check_field(self, "prefix", 0)

    @property
    def longest(self) -> int | None:
        """Class tokens and positions of the grid."""
        return self.prefix + self.rows * self.columns

    def allows(self, at: Points) -> Tensor:
        most = self.prefix + self.rows * self.columns
        if at.length > most:
            raise LengthError(
                f"axial({self.rows}, {self.columns}, {self.prefix}) has {most} positions, asked "
                f"for {at.length}; give the grid of the input, and its class tokens as prefix"
            )
        query, key = at.query - self.prefix, at.key - self.prefix
        kept = (query - key) % self.columns == 0
        kept = kept | (query // self.columns == key // self.columns)
        return kept | (query < 0) | (key < 0) if self.prefix else kept


@dataclass(frozen=True, eq=False, repr=False)
class Butterfly(Mask):
    """Keep the blocks whose numbers differ in at most one bit: i xor j is 0 or a power of two.

    Every position reaches every other in log2(n / block) layers. It is the flat form of a product
    of butterfly matrices.

    Args:
        block: Positions of a block (>= 1).

    Reference: Pixelated Butterfly, arXiv 2112.00029, Section 3.2 (flat block butterfly).

    >>> Butterfly().dense(8)[0, 0, 0].int().tolist()
    [1, 1, 1, 0, 1, 0, 0, 0]
    """

    kind = "butterfly"
    block: int = 1

    def __post_init__(self) -> None:
        check_field(self, "block", 1)

    def allows(self, at: Points) -> Tensor:
        differ = (at.query // self.block) ^ (at.key // self.block)
        return differ & (differ - 1) == 0
