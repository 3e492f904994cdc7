"""The hand-designed families and other recipes: masks of several leaves.

`FAMILIES` holds the six masks of SparseBERT's table (arXiv 2102.12871, results table) at the
parameters that reproduce its sparsity at n = 128: strided 70.386 %, fixed 72.656 %,
log_sparse 89.832 %, longformer 88.623 %, bigbird 93.1 %, star 96.130 %.
"""

from __future__ import annotations

from collections.abc import Iterable

from masksearch.masks.checks import at_least, distinct
from masksearch.masks.core import Mask, family, recipe
from masksearch.masks.leaves import (
    BlockColumns,
    Blocks,
    Columns,
    GlobalTokens,
    Offsets,
    PowersOfTwo,
    RandomKeys,
    Stride,
    Window,
)


@recipe
def without_diagonal(mask: Mask) -> Mask:
    """The mask without |i - j| = 0 (SparseBERT, Section 3.3: the diagonal can be dropped)."""
    return mask - Offsets((0,))


@family
def strided(period: int = 4) -> Mask:
    """Strided attention: |i - j| < period, or a multiple of it.

    Reference: Sparse Transformer, arXiv 1904.10509, Section 4.2, in both directions.
    """
    period = at_least("period", period, 1)
    return Window(period - 1) | Stride(period)


@family
def fixed(size: int = 4, last: int = 1) -> Mask:
    """Fixed attention: the own block, and the last columns of every block.

    Reference: Sparse Transformer, arXiv 1904.10509, Section 4.2, in both directions.
    """
    return Blocks(size) | BlockColumns(size, last)


@family
def longformer(reach: int = 6, count: int = 1) -> Mask:
    """Longformer: a window of `reach` on each side, and `count` global tokens in front.

    Reference: arXiv 2004.05150, Fig. 2d. SparseBERT does not print its parameters; reach +
    count = 7 gives the 88.6 % that its table shows.
    """
    return Window(reach) | GlobalTokens(count)


@family
def log_sparse() -> Mask:
    """LogSparse attention: the query itself and distances 1, 2, 4, 8, ...

    Reference: LogSparse, arXiv 1907.00235, Section 4.2, in both directions.
    """
    return Offsets((0,)) | PowersOfTwo()


@family
def bigbird(reach: int = 2, count: int = 1, keys: int = 2, seed: int = 0) -> Mask:
    """BigBird: a window, `count` global tokens in front, and `keys` random keys a query.

    Reference: arXiv 2007.14062, Section 2.
    """
    return Window(reach) | GlobalTokens(count) | RandomKeys(keys, seed)


@family
def star() -> Mask:
    """Star-Transformer: the direct neighbours, and position 0 as the hub.

    Reference: arXiv 1902.09113, Section 3.1.
    """
    return Window(1) | GlobalTokens(1)


@recipe
def a_shape(sinks: int, reach: int) -> Mask:
    """A-shape: the first `sinks` keys, and a window of `reach` on each side.

    Reference: StreamingLLM, arXiv 2309.17453, Section 3.2 (attention sinks and recent tokens;
    there causal: intersect with `causal()`).
    """
    return Columns(sinks) | Window(reach)


@recipe
def vertical_slash(columns: Iterable[int], offsets: Iterable[int]) -> Mask:
    """Vertical-slash: some keys for every query, and some diagonals on both sides.

    Args:
        columns: Positions of the kept keys (>= 0).
        offsets: Kept distances |i - j| (>= 0).

    Reference: MInference, arXiv 2407.02490, Section 3.1 (there causal: intersect with
    `causal()`).
    """
    kept = Columns(positions=distinct("columns", columns, 0))
    return kept | Offsets(distinct("offsets", offsets, 0))
