"""What a mask keeps of each tile of a square tiling, without a table of all cells.

All figures are exact. Masks of tens of thousands of positions take a second, because tiles that
look alike are looked at once (`masksearch.masks.bands`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from masksearch.masks.bands import NONE, Band, Numbers, bands, unpacked
from masksearch.masks.core import Mask, Points, grid

TILE = 64  # side of the tiles behind figures that have none of their own: a machine word
LARGE = 256  # side of a tile beyond which it is put together from smaller ones
SCATTERED = 16  # cells of a tile to a kept one from which the kept ones are listed
SKEWED = 1 << 22  # cells of tiles whose diagonals are added up together


def planes(mask: Mask) -> list[tuple[int, int]]:
    """The (layer, head) pairs that a mask tells apart, layer by layer."""
    heads = range(mask.heads or 1)
    return [(layer, head) for layer in range(mask.layers or 1) for head in heads]


def stacked(mask: Mask, found: list[NDArray[Any]]) -> Tensor:
    """One array for each plane as a tensor `[layers, heads, ..]`."""
    array = torch.from_numpy(np.stack(found))
    return array.view(mask.layers or 1, mask.heads or 1, *array.shape[1:])


def kept(mask: Mask, length: int) -> int:
    """Number of kept cells over the planes that the mask tells apart (see `Mask.kept`)."""
    found = (band for plane in planes(mask) for band in bands(mask, length, TILE, *plane))
    return sum(int(band.counts().sum()) for band in found)


def tile_counts(mask: Mask, length: int, block: int) -> Tensor:
    """Kept cells of each tile.

    Args:
        mask: Any mask.
        length: Positions; the last tiles may be ragged.
        block: Positions of a tile's side (>= 1).

    Returns:
        int64 `[layers, heads, ceil(n / block), ceil(n / block)]`; layers and heads are those
        that the mask tells apart.

    Raises:
        LengthError: If the mask has another length.
        ValueError: If `length` or `block` is less than 1.
    """
    return tiled(mask, length, block, Band.counts, np.add)


def tile_view(mask: Mask, length: int, block: int) -> Tensor:
    """Which tiles hold a kept cell; arguments and errors as `tile_counts`.

    Returns:
        bool `[layers, heads, ceil(n / block), ceil(n / block)]`.
    """
    return tiled(mask, length, block, lambda band: band.tiles != NONE, np.logical_or)


def tiled(
    mask: Mask,
    length: int,
    block: int,
    of_band: Callable[[Band], NDArray[Any]],
    pool: np.ufunc,
) -> Tensor:
    """A figure of each tile; that of a large tile is pooled from small ones."""
    side = block
    if block >= length > LARGE:
        side = TILE  # one tile, of any size
    elif block > LARGE:
        side = max(d for d in range(1, TILE + 1) if block % d == 0)
        side = side if side > 8 else block
    found = []
    for plane in planes(mask):
        parts = [of_band(band) for band in bands(mask, length, side, *plane)]
        tiles = np.concatenate(parts)
        if side != block:
            starts = np.arange(0, len(tiles), -(-block // side))
            tiles = pool.reduceat(pool.reduceat(tiles, starts, axis=0), starts, axis=1)
        found.append(tiles)
    return stacked(mask, found)


def row_counts(mask: Mask, length: int) -> Tensor:
    """Kept keys of each query, int64 `[layers, heads, n]`; arguments as `tile_counts`."""
    found = [
        np.concatenate([band.row_counts() for band in bands(mask, length, TILE, *plane)])
        for plane in planes(mask)
    ]
    return stacked(mask, found)


def whole_columns(mask: Mask, length: int) -> Tensor:
    """Which keys every query keeps, bool `[layers, heads, n]`; arguments as `tile_counts`."""
    found = [
        np.logical_and.reduce([band.whole_columns() for band in bands(mask, length, TILE, *plane)])
        for plane in planes(mask)
    ]
    return stacked(mask, found)


def on_diagonal(mask: Mask, length: int) -> Tensor:
    """Which positions keep themselves, bool `[layers, heads, n]`; arguments as `tile_counts`."""
    at = grid(length)[1][0]
    found = [
        mask.allows(Points(at, at, length, *plane)).expand(length).numpy()
        for plane in planes(mask)
    ]
    return stacked(mask, found)


def table_rows(mask: Mask, length: int, layer: int, head: int) -> Iterator[NDArray[np.bool_]]:
    """The rows of one plane of the table from the top, bool `[<= 64, n]` at a time."""
    for band in bands(mask, length, TILE, layer, head):
        left = band.place.queries
        for tiles in band.tiles:
            rows = unpacked(band.words[tiles].swapaxes(0, 1), TILE).reshape(TILE, -1)
            yield rows[:left, :length]
            left -= TILE


def offset_counts(mask: Mask, length: int) -> Tensor:
    """Kept cells of each offset, int64 `[layers, heads, 2n - 1]` by `key - query + n - 1`.

    Arguments and errors as `tile_counts`.
    """
    found = []
    for plane in planes(mask):
        columns = -(-length // TILE)
        kept = np.zeros((2 * columns, 2, TILE), dtype=np.int64)  # by tile offset, then offset
        for band in bands(mask, length, TILE, *plane):
            row = np.arange(band.place.top, band.place.top + band.place.rows)
            apart = np.arange(columns) - row[:, None] + columns - 1
            codes, times = np.unique(apart * len(band.words) + band.tiles, return_counts=True)
            apart, tile = np.divmod(codes, len(band.words))
            first = np.flatnonzero(np.diff(apart, prepend=-1))
            sums = np.add.reduceat(times[:, None] * diagonals(band)[tile], first)
            kept[apart[first]] += sums.reshape(-1, 2, TILE)
        sums = kept[:, 0]  # a tile's offsets reach into the next tile offset's
        sums[1:] += kept[:-1, 1]
        middle = columns * TILE - 1
        found.append(sums.reshape(-1)[middle - length + 1 : middle + length])
    return stacked(mask, found)


def diagonals(band: Band) -> Numbers:
    """Kept cells on each diagonal of a band's distinct tiles, `[tiles, 2 * block]`.

    Column `key - query + block - 1`; the last one is 0.
    """
    block, words = band.place.block, band.words
    if int(np.bitwise_count(words).sum()) * SCATTERED < words.size * block:
        tile, row, part = np.nonzero(words)
        bits = 8 * words.itemsize
        at, bit = np.nonzero(unpacked(words[tile, row, part, None], bits))
        column = part[at] * bits + bit - row[at] + block - 1
        sums = np.bincount(tile[at] * 2 * block + column, minlength=len(words) * 2 * block)
        return sums.reshape(-1, 2 * block)
    found = np.zeros((len(words), 2 * block), dtype=np.int64)
    step = max(1, SKEWED // (2 * block * block))
    for start in range(0, len(words), step):
        some = words[start : start + step]
        # row i, written i places further left, has its diagonals one below the other
        skewed = np.zeros((len(some), block * 2 * block), dtype=bool)
        strides = (skewed.strides[0], 2 * block - 1, 1)
        shape = (len(some), block, block)
        rows = np.lib.stride_tricks.as_strided(skewed[:, block - 1 :], shape, strides)
        rows[:] = unpacked(some, block)
        found[start : start + step] = skewed.reshape(-1, block, 2 * block).sum(1)
    return found


@dataclass(frozen=True, eq=False)
class DistinctTiles:
    """The tiles of one layer and head, each kind once.

    Args:
        index: int64 `[ceil(n / block), ceil(n / block)]`, which of `patterns` each tile is.
        patterns: bool `[distinct, block, block]`, no two equal; the first keeps nothing. Cells
            beyond the end of the table are False.
    """

    index: Tensor
    patterns: Tensor


def distinct_tiles(
    mask: Mask, length: int, block: int, layer: int = 0, head: int = 0
) -> DistinctTiles:
    """The distinct tiles of one layer and head.

    Args:
        mask: Any mask.
        length: Positions; the last tiles may be ragged.
        block: Positions of a tile's side (>= 1).
        layer: Layer; any where the mask tells none apart.
        head: Head; likewise.

    Raises:
        LengthError: If the mask has another length.
        ValueError: If `length` or `block` is less than 1, or there is no such layer or head.
    """
    for name, asked, count in (("layer", layer, mask.layers), ("head", head, mask.heads)):
        if asked < 0 or (count is not None and asked >= count):
            limit = "at least 0" if count is None else f"in [0, {count})"
            raise ValueError(f"{name} must be {limit}, got {asked}")
    numbers = {bytes(block * -(-block // 8)): 0}
    patterns = [np.zeros((1, block, block), dtype=bool)]
    index = []
    for band in bands(mask, length, block, layer, head):
        found = band.patterns()
        rows = np.packbits(found, axis=2).reshape(len(found), -1)
        known = len(numbers)
        number = np.array([numbers.setdefault(row.tobytes(), len(numbers)) for row in rows])
        new, first = np.unique(number, return_index=True)
        patterns.append(found[first[new >= known]])
        index.append(number[band.tiles])
    return DistinctTiles(
        torch.from_numpy(np.concatenate(index)), torch.from_numpy(np.concatenate(patterns))
    )
