"""The public constructors, and the hand-designed families as recipes over them.

`FAMILIES` holds the six masks of SparseBERT's table (arXiv 2102.12871, results table) at the
parameters that reproduce its sparsity at n = 128: strided 70.386 %, fixed 72.656 %,
log_sparse 89.832 %, longformer 88.623 %, bigbird 93.1 %, star 96.130 %.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from masksearch.masks.combinators import Both, Complement, Cropped, Either, PerHead, PerLayer
from masksearch.masks.core import Mask
from masksearch.masks.patterns import (
    BlockColumns,
    Blocks,
    Causal,
    Dilated,
    Full,
    GlobalTokens,
    Offsets,
    PowersOfTwo,
    RandomKeys,
    Shifts,
    Stride,
    Window,
    at_least,
    distinct,
)
from masksearch.masks.tables import Table, Toeplitz


def full() -> Mask:
    """Keep every key (dense attention)."""
    return Full()


def causal() -> Mask:
    """Keep the query's own position and every earlier key."""
    return Causal()


def window(reach: int) -> Mask:
    """Keep |i - j| <= `reach`: that many keys on EACH side, inclusive; 0 is the diagonal."""
    return Window(reach)


def dilated(reach: int, gap: int) -> Mask:
    """Keep |i - j| <= `reach` where |i - j| is a multiple of `gap`."""
    return Dilated(reach, gap)


def stride(period: int) -> Mask:
    """Keep the keys whose distance is a multiple of `period`."""
    return Stride(period)


def offsets(distances: Iterable[int]) -> Mask:
    """Keep the keys whose distance |i - j| is in the set."""
    return Offsets(distinct("distances", distances, 0))


def shifts(steps: Iterable[int]) -> Mask:
    """Keep the keys whose signed offset j - i is in the set: -1 previous, 2 second next."""
    return Shifts(distinct("steps", steps))


def powers_of_two() -> Mask:
    """Keep the keys at distance 1, 2, 4, 8, ..."""
    return PowersOfTwo()


def blocks(size: int) -> Mask:
    """Keep the query's own block of `size` positions."""
    return Blocks(size)


def block_columns(size: int, last: int = 1) -> Mask:
    """Keep the `last` columns of every block of `size` positions, for all queries."""
    return BlockColumns(size, last)


def global_tokens(count: int | None = None, *, positions: Sequence[int] | None = None) -> Mask:
    """Keep rows and columns of the first `count` positions, or of the given positions."""
    if (count is None) == (positions is None):
        raise ValueError("global_tokens takes a count or positions=[...], exactly one of them")
    if count is not None:
        at_least("count", count, 1)
        positions = range(count)
    assert positions is not None  # for the type checker; both None was refused above
    return GlobalTokens(distinct("positions", positions, 0))


def random_keys(count: int, seed: int = 0) -> Mask:
    """Keep `count` random keys of each query; equal on every machine."""
    return RandomKeys(count, seed)


def table(bits: Tensor) -> Mask:
    """Keep the True cells of `[n, n]`, `[heads, n, n]` or `[layers, heads, n, n]`."""
    return Table(bits)


def toeplitz(bits: Tensor, signed: bool = False) -> Mask:
    """Keep by offset: bits `[n]`, `[heads, n]` or `[layers, heads, n]`; signed: 2n - 1 bits."""
    return Toeplitz(bits, signed)


def per_head(of: Iterable[Mask]) -> Mask:
    """Head h uses the h-th mask."""
    return PerHead(tuple(of))


def per_layer(of: Iterable[Mask]) -> Mask:
    """Layer l uses the l-th mask."""
    return PerLayer(tuple(of))


def cropped(mask: Mask, at: int) -> Mask:
    """The top-left corner of the mask at `at` positions: what padding to `at` would compute."""
    return Cropped(mask, at)


def layer_of(mask: Mask, layer: int) -> Mask:
    """The mask of one layer alone (the mask itself where it does not tell layers apart)."""
    if mask.layers is None:
        return mask
    if not 0 <= layer < mask.layers:
        raise ValueError(f"layer must be in [0, {mask.layers}), got {layer}")
    match mask:
        case PerLayer():
            return mask.of[layer]
        case Table():
            return Table(mask.bits[layer])
        case Toeplitz():
            return Toeplitz(mask.bits[layer], mask.signed)
        case Cropped():
            return Cropped(layer_of(mask.of, layer), mask.at)
        case Complement():
            return Complement(layer_of(mask.of, layer))
        case Either() | Both() | PerHead():
            return type(mask)(tuple(layer_of(part, layer) for part in mask.of))
    raise TypeError(f"{mask.kind} tells layers apart in a way that layer_of does not know")


def without_diagonal(mask: Mask) -> Mask:
    """The mask without |i - j| = 0 (SparseBERT, Section 3.3: the diagonal can be dropped)."""
    return mask - Offsets((0,))


def strided(period: int = 4) -> Mask:
    """Strided attention: |i - j| < period, or a multiple of it.

    Reference: Sparse Transformer, arXiv 1904.10509, Section 4.2, in both directions.
    """
    at_least("period", period, 1)
    return Window(period - 1) | Stride(period)


def fixed(size: int = 4, last: int = 1) -> Mask:
    """Fixed attention: the own block, and the last columns of every block.

    Reference: Sparse Transformer, arXiv 1904.10509, Section 4.2, in both directions.
    """
    return Blocks(size) | BlockColumns(size, last)


def log_sparse() -> Mask:
    """LogSparse attention: the query itself and distances 1, 2, 4, 8, ...

    Reference: LogSparse, arXiv 1907.00235, Section 4.2, in both directions.
    """
    return Offsets((0,)) | PowersOfTwo()


def longformer(reach: int = 6, count: int = 1) -> Mask:
    """Longformer: a window of `reach` on each side, and `count` global tokens in front.

    Reference: arXiv 2004.05150, Fig. 2d. SparseBERT does not print its parameters; reach +
    count = 7 gives the 88.6 % that its table shows.
    """
    return Window(reach) | global_tokens(count)


def bigbird(reach: int = 2, count: int = 1, keys: int = 2, seed: int = 0) -> Mask:
    """BigBird: a window, `count` global tokens in front, and `keys` random keys a query.

    Reference: arXiv 2007.14062, Section 2.
    """
    return Window(reach) | global_tokens(count) | RandomKeys(keys, seed)


def star() -> Mask:
    """Star-Transformer: the direct neighbours, and position 0 as the hub.

    Reference: arXiv 1902.09113, Section 3.1.
    """
    return Window(1) | global_tokens(1)


FAMILIES: dict[str, Mask] = {
    "strided": strided(),
    "fixed": fixed(),
    "longformer": longformer(),
    "log_sparse": log_sparse(),
    "bigbird": bigbird(),
    "star": star(),
}
