"""The public constructors, and the hand-designed families as recipes over them.

`FAMILIES` holds the six masks of SparseBERT's table (arXiv 2102.12871, results table) at the
parameters that reproduce its sparsity at n = 128: strided 70.386 %, fixed 72.656 %,
log_sparse 89.832 %, longformer 88.623 %, bigbird 93.1 %, star 96.130 %.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from masksearch.masks.checks import MOST, at_least, distinct
from masksearch.masks.content import ContentMask
from masksearch.masks.content import special_tokens as special_tokens  # parse finds it here
from masksearch.masks.content_parts import per_head_of, per_layer_of
from masksearch.masks.core import Mask
from masksearch.masks.layouts import Axial, BlockLayout, Butterfly, Columns
from masksearch.masks.leaves import (
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
)
from masksearch.masks.stacks import Both, Complement, Cropped, Either, PerHead, PerLayer
from masksearch.masks.tables import Table, Toeplitz


def full() -> Mask:
    """Keep every key (dense attention)."""
    return Full()


def causal() -> Mask:
    """Keep the query's own position and every earlier key."""
    return Causal()


def window(reach: int) -> Mask:
    """Keep |i - j| <= `reach`: that many keys on EACH side, inclusive; 0 is the diagonal.

    Raises:
        ValueError: If `reach` is not a whole number >= 0.
    """
    return Window(reach)


def dilated(reach: int, gap: int) -> Mask:
    """Keep |i - j| <= `reach` where |i - j| is a multiple of `gap`.

    Raises:
        ValueError: If `reach` is not a whole number >= 0, or `gap` none >= 1.
    """
    return Dilated(reach, gap)


def stride(period: int) -> Mask:
    """Keep the keys whose distance is a multiple of `period`.

    Raises:
        ValueError: If `period` is not a whole number >= 1.
    """
    return Stride(period)


def offsets(distances: Iterable[int]) -> Mask:
    """Keep the keys whose distance |i - j| is in the set.

    Raises:
        ValueError: If it is empty, or holds anything but whole numbers >= 0.
    """
    return Offsets(distinct("distances", distances, 0))


def shifts(steps: Iterable[int]) -> Mask:
    """Keep the keys whose signed offset j - i is in the set: -1 previous, 2 second next.

    Raises:
        ValueError: If it is empty, or holds anything but whole numbers.
    """
    return Shifts(distinct("steps", steps))


def powers_of_two() -> Mask:
    """Keep the keys at distance 1, 2, 4, 8, ..."""
    return PowersOfTwo()


def blocks(size: int) -> Mask:
    """Keep the query's own block of `size` positions.

    Raises:
        ValueError: If `size` is not a whole number >= 1.
    """
    return Blocks(size)


def block_columns(size: int, last: int = 1) -> Mask:
    """Keep the `last` columns of every block of `size` positions, for all queries.

    Raises:
        ValueError: If `size` is below 1, or `last` not in 1 .. `size`.
    """
    return BlockColumns(size, last)


def global_tokens(count: int | None = None, *, positions: Sequence[int] | None = None) -> Mask:
    """Keep rows and columns of the first `count` positions, or of the given positions.

    Args:
        count: 1 .. 2^20.
        positions: Instead of a count: whole numbers >= 0; those beyond an input keep nothing.

    Raises:
        ValueError: If not exactly one of them is given, or it is out of range.
    """
    return GlobalTokens(named("global_tokens", count, positions))


def columns(count: int | None = None, *, positions: Sequence[int] | None = None) -> Mask:
    """Keep the first `count` keys, or the keys at the given positions, for every query.

    Args:
        count: 1 .. 2^20.
        positions: Instead of a count: whole numbers >= 0; those beyond an input keep nothing.

    Raises:
        ValueError: If not exactly one of them is given, or it is out of range.
    """
    return Columns(named("columns", count, positions))


def named(what: str, count: int | None, positions: Sequence[int] | None) -> tuple[int, ...]:
    """The first `count` positions, or the given ones."""
    if (count is None) == (positions is None):
        raise ValueError(f"{what} takes a count or positions=[...], exactly one of them")
    if count is not None:
        positions = range(at_least("count", count, 1, MOST))
    return distinct("positions", positions, 0)


def axial(rows: int, columns: int, prefix: int = 0) -> Mask:
    """Keep the query's row and column of a grid of rows x columns behind `prefix` positions.

    Args:
        rows: Rows of the grid (>= 1).
        columns: Columns of the grid (>= 1).
        prefix: Positions in front of it, such as [CLS], which keep and are kept by all (>= 0).

    Raises:
        ValueError: If one of them is out of range.
        LengthError: Later, if an input has more than `prefix` + `rows` x `columns` positions.
    """
    return Axial(rows, columns, prefix)


def butterfly(block: int = 1) -> Mask:
    """Keep (i // block) xor (j // block) = 0 or a power of two.

    Raises:
        ValueError: If `block` is not a whole number >= 1.
    """
    return Butterfly(block)


def random_keys(count: int, seed: int = 0) -> Mask:
    """Keep `count` random keys of each query; equal on every machine.

    Where an input has fewer keys, all of them. Another seed, other keys.

    Raises:
        ValueError: If one of them is not a whole number >= 0.
    """
    return RandomKeys(count, seed)


def table(bits: Tensor | NDArray[np.bool_]) -> Mask:
    """Keep the True cells of bool `[n, n]`, `[heads, n, n]` or `[layers, heads, n, n]`.

    Raises:
        MaskFormatError: If it is no bool array of such a shape.
    """
    return Table(tensor_of(bits))


def block_layout(bits: Tensor | NDArray[np.bool_], block: int) -> Mask:
    """Keep whole blocks: bool `[nb, nb]`, `[heads, nb, nb]` or `[layers, heads, nb, nb]`.

    Raises:
        MaskFormatError: If it is no bool array of such a shape.
        ValueError: If `block`, positions of a block's side, is below 1.
    """
    return BlockLayout(tensor_of(bits), block)


def tensor_of(bits: Tensor | NDArray[np.bool_]) -> Tensor:
    """A bool array as a tensor; anything else as it is."""
    if isinstance(bits, np.ndarray) and bits.dtype == np.bool_:
        return torch.from_numpy(bits.copy())
    return cast(Tensor, bits)


def toeplitz(bits: Tensor | NDArray[np.bool_], signed: bool = False) -> Mask:
    """Keep by offset: bits `[n]`, `[heads, n]` or `[layers, heads, n]`; signed: 2n - 1 bits.

    Raises:
        MaskFormatError: If it is no bool array of such a shape.
    """
    return Toeplitz(tensor_of(bits), signed)


@overload
def per_head(of: Iterable[Mask]) -> Mask: ...
@overload
def per_head(of: Iterable[Mask | ContentMask]) -> Mask | ContentMask: ...
def per_head(of: Iterable[Mask | ContentMask]) -> Mask | ContentMask:
    """Head h uses the h-th mask; a content mask where one of them is.

    Raises:
        TypeError: If it is not a list of one or more masks.
        LayerCountError: If the masks tell different numbers of layers apart.
        HeadCountError: If one of them tells heads apart itself.
    """
    of = listed("per_head", of)
    if any(isinstance(part, ContentMask) for part in of):
        return per_head_of(of)
    return PerHead(cast("tuple[Mask, ...]", of))


@overload
def per_layer(of: Iterable[Mask]) -> Mask: ...
@overload
def per_layer(of: Iterable[Mask | ContentMask]) -> Mask | ContentMask: ...
def per_layer(of: Iterable[Mask | ContentMask]) -> Mask | ContentMask:
    """Layer l uses the l-th mask; a content mask where one of them is.

    Raises:
        TypeError: If it is not a list of one or more masks.
        HeadCountError: If the masks tell different numbers of heads apart.
        LayerCountError: If one of them tells layers apart itself.
    """
    of = listed("per_layer", of)
    if any(isinstance(part, ContentMask) for part in of):
        return per_layer_of(of)
    return PerLayer(cast("tuple[Mask, ...]", of))


def listed(name: str, of: Iterable[Mask | ContentMask]) -> tuple[Mask | ContentMask, ...]:
    """The masks of a list; says so where there is none."""
    if not isinstance(of, Iterable):
        raise TypeError(f"{name} takes a list of masks, got {of!r}; write {name}([mask, mask])")
    return tuple(of)


def cropped(mask: Mask, at: int) -> Mask:
    """The top-left corner of the mask at `at` positions: what padding to `at` would compute.

    Raises:
        ValueError: If `at` is below 1.
        LengthError: If the mask has another length; and later, if an input is longer.
    """
    return Cropped(mask, at)


@overload
def layer_of(mask: Mask, layer: int) -> Mask: ...
@overload
def layer_of(mask: ContentMask, layer: int) -> ContentMask: ...
def layer_of(mask: Mask | ContentMask, layer: int) -> Mask | ContentMask:
    """The mask of one layer alone (the mask itself where it does not tell layers apart)."""
    if isinstance(mask, ContentMask):
        return mask.of_layer(layer)
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
        case BlockLayout():
            return BlockLayout(mask.bits[layer], mask.block)
        case Cropped():
            return Cropped(layer_of(mask.of, layer), mask.at)
        case Complement():
            return Complement(layer_of(mask.of, layer))
        case Either() | Both() | PerHead():
            return type(mask)(tuple(layer_of(part, layer) for part in mask.of))
    raise TypeError(f"{mask.kind} tells layers apart in a way that layer_of does not know")


@overload
def without_diagonal(mask: Mask) -> Mask: ...
@overload
def without_diagonal(mask: ContentMask) -> ContentMask: ...
def without_diagonal(mask: Mask | ContentMask) -> Mask | ContentMask:
    """The mask without |i - j| = 0 (SparseBERT, Section 3.3: the diagonal can be dropped)."""
    return mask - Offsets((0,))


def strided(period: int = 4) -> Mask:
    """Strided attention: |i - j| < period, or a multiple of it.

    Reference: Sparse Transformer, arXiv 1904.10509, Section 4.2, in both directions.
    """
    period = at_least("period", period, 1)
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


def a_shape(sinks: int, reach: int) -> Mask:
    """A-shape: the first `sinks` keys, and a window of `reach` on each side.

    Reference: StreamingLLM, arXiv 2309.17453, Section 3.2 (attention sinks and recent tokens;
    there causal: intersect with `causal()`).
    """
    return columns(sinks) | Window(reach)


def vertical_slash(columns: Iterable[int], offsets: Iterable[int]) -> Mask:
    """Vertical-slash: some keys for every query, and some diagonals on both sides.

    Args:
        columns: Positions of the kept keys (>= 0).
        offsets: Kept distances |i - j| (>= 0).

    Reference: MInference, arXiv 2407.02490, Section 3.1 (there causal: intersect with
    `causal()`).
    """
    return Columns(distinct("columns", columns, 0)) | Offsets(distinct("offsets", offsets, 0))


FAMILIES: dict[str, Mask] = {
    "strided": strided(),
    "fixed": fixed(),
    "longformer": longformer(),
    "log_sparse": log_sparse(),
    "bigbird": bigbird(),
    "star": star(),
}
