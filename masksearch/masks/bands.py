"""A mask in bands of square tiles, packed to bits: each distinct tile is looked at once.

A leaf says which of its tiles look alike (`Mask.tile_key`); random keys are scattered into the
few tiles that hold them. Each leaf thus has few distinct tiles, and `|`, `&`, `~` act on those,
a machine word at a time. No table of all cells is made, and every count is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from masksearch.masks.core import Mask, Points, grid
from masksearch.masks.layouts import BlockLayout, Columns
from masksearch.masks.leaves import GlobalTokens, RandomKeys
from masksearch.masks.stacks import Both, Complement, Cropped, Either, PerHead, PerLayer
from masksearch.masks.tables import Table

Words = NDArray[Any]  # [tiles, block, words of a row], unsigned; bit j of a row is key j
Numbers = NDArray[np.int64]
NONE, ALL = 0, 1  # the first two tiles of every band: nothing kept, everything kept
BAND = 1 << 25  # bytes of a band in which no two tiles are alike
CELLS = 1 << 18  # cells of a leaf that are looked at together


@dataclass(frozen=True)
class Place:
    """Where a band lies in the table of one layer and head.

    Args:
        length: Positions of the table.
        block: Positions of a tile's side; the last row and column of tiles may be ragged.
        top: First row of tiles.
        rows: Rows of tiles; a ragged last row is a band of its own.
        seen: Positions that the leaves are asked for; more than `length` in a cropped mask.
        layer: Layer index.
        head: Head index.
        lines: What the bands of one table share: a leaf's kept offsets.
    """

    length: int
    block: int
    top: int
    rows: int
    seen: int
    layer: int
    head: int
    lines: dict[tuple[int, int], NDArray[np.bool_]] = field(default_factory=dict, repr=False)

    @property
    def columns(self) -> int:
        """Tiles of a row."""
        return -(-self.length // self.block)

    @property
    def queries(self) -> int:
        """Positions of the band that lie within the table."""
        return min(self.rows * self.block, self.length - self.top * self.block)

    @property
    def word(self) -> np.dtype[Any]:
        """The smallest machine word that holds a tile's row, or the largest there is."""
        bits = next((bits for bits in (8, 16, 32) if self.block <= bits), 64)
        return np.dtype(f"<u{bits // 8}")

    @property
    def ones(self) -> Words:
        """A row of a tile that keeps everything, `[words]`."""
        return packed(np.ones(self.block, dtype=bool), self.word)

    def kept_offsets(self, leaf: Mask) -> NDArray[np.bool_]:
        """What a leaf that goes by offset keeps, `[2n - 1]` by `key - query + n - 1`."""
        name = id(leaf), self.seen
        if name not in self.lines:
            offset = torch.arange(1 - self.length, self.length)
            query, key = (-offset).clamp(min=0), offset.clamp(min=0)
            found = leaf.allows(Points(query, key, self.seen, self.layer, self.head))
            self.lines[name] = found.numpy()
        return self.lines[name]


@dataclass(frozen=True)
class Band:
    """Some rows of tiles of one layer and head.

    Args:
        place: Where they lie.
        index: int64, broadcasts to `[rows, columns]`: which of `words` each tile is.
        words: The distinct tiles; the first keeps nothing, the second everything. Of a finished
            band, cells beyond the end of the table are 0.
    """

    place: Place
    index: Numbers
    words: Words

    @property
    def tiles(self) -> Numbers:
        """`index` in its full shape, `[rows, columns]`."""
        return np.broadcast_to(self.index, (self.place.rows, self.place.columns))

    def counts(self) -> Numbers:
        """Kept cells of each tile, `[rows, columns]`."""
        each = np.bitwise_count(self.words).sum((1, 2), dtype=np.int64)
        return np.broadcast_to(each[self.index], self.tiles.shape)

    def row_counts(self) -> Numbers:
        """Kept keys of each query of the band, `[queries]`."""
        each = np.bitwise_count(self.words).sum(2, dtype=np.int64)
        found = np.stack([each[row].sum(0) for row in self.tiles])
        return found.reshape(-1)[: self.place.queries]

    def whole_columns(self) -> NDArray[np.bool_]:
        """Whether each key is kept by every query of the band, `[length]`."""
        rows = min(self.place.block, self.place.queries)
        each = np.bitwise_and.reduce(self.words[:, :rows], axis=1)
        found = np.bitwise_and.reduce(each[self.tiles], axis=0)
        return unpacked(found, self.place.block).reshape(-1)[: self.place.length]

    def patterns(self) -> NDArray[np.bool_]:
        """The distinct tiles, bool `[tiles, block, block]`."""
        return unpacked(self.words, self.place.block)


def bands(mask: Mask, length: int, block: int, layer: int, head: int) -> Iterator[Band]:
    """One layer and head of a mask, band after band from the top.

    Args:
        mask: Any mask.
        length: Positions (>= 1).
        block: Positions of a tile's side (>= 1).
        layer: Layer, of those that the mask tells apart.
        head: Head, likewise.

    Raises:
        LengthError: If the mask has another length.
        ValueError: If `length` or `block` is less than 1.
    """
    if block < 1:
        raise ValueError(f"block must be at least 1 position, got {block}")
    query, key = grid(length)
    mask.allows(Points(query[:1], key[:, :1], length, layer, head))  # refuses another length
    whole, columns = length // block, -(-length // block)
    width = columns * block * -(-block // 8)  # bytes of a row of tiles
    step = max(1, min(BAND // width, BAND // (16 * columns)))
    lines: dict[tuple[int, int], NDArray[np.bool_]] = {}
    for top in [*range(0, whole, step), *range(whole, columns)]:
        rows = min(step, whole - top) if top < whole else 1
        place = Place(length, block, top, rows, length, layer, head, lines)
        band = of_mask(mask, place)
        if length % block:
            band = joined(np.bitwise_and, band, inside(place))
        yield band


def of_mask(mask: Mask, place: Place) -> Band:
    """The tiles of any mask. Cells beyond the end of the table may be anything."""
    match mask:
        case Either() | Both():
            join = np.bitwise_or if isinstance(mask, Either) else np.bitwise_and
            parts = sorted((of_mask(part, place) for part in mask.of), key=lambda b: len(b.words))
            return reduce(lambda one, other: joined(join, one, other), parts)
        case Complement():
            return complement(of_mask(mask.of, place))
        case PerHead():
            return of_mask(mask.of[place.head], place)
        case PerLayer():
            return of_mask(mask.of[place.layer], place)
        case Cropped():
            band = of_mask(mask.of, replace(place, seen=mask.at))
            return replace(band, place=place)
        case GlobalTokens():
            rows, columns = whole_lines(mask.positions, place)
            return joined(np.bitwise_or, rows, columns)
        case Columns():
            return whole_lines(mask.positions, place)[1]
        case RandomKeys():
            return of_random_keys(mask, place)
        case BlockLayout():
            return of_leaf(mask.plane(place.layer, place.head), place)
    return of_leaf(mask, place)


def of_leaf(leaf: Mask, place: Place) -> Band:
    """The tiles of a leaf: one of each key, or every one where the leaf has no keys."""
    if isinstance(leaf, Table):
        return of_table(leaf, place)
    row = (place.top + torch.arange(place.rows))[:, None] * place.block
    column = torch.arange(place.columns)[None, :] * place.block
    key = leaf.tile_key(row, column, place.block)
    if key is None and isinstance(leaf, BlockLayout):
        return of_blocks(leaf, leaf.block, place)
    if key is None:
        key = torch.arange(place.rows * place.columns).view(place.rows, place.columns)
    elif place.length % place.block and key.shape[1] > 1:
        key = 2 * key  # a ragged tile does not speak for whole ones
        key[:, -1] += 1
    index, first = numbered(key.numpy())
    at = np.unravel_index(first, index.shape)
    words = np.empty((len(first), place.block, len(place.ones)), dtype=place.word)
    looked_at(leaf, row[:, 0][at[0]], column[0][at[1]], place, words)
    return settled(place, index, words)


def looked_at(leaf: Mask, row: Tensor, column: Tensor, place: Place, words: Words) -> None:
    """Packs the tiles that begin at those queries and keys, int64 `[tiles]`, into `words`."""
    block, end = place.block, place.length - 1

    def allowed(query: Tensor, key: Tensor) -> Tensor:
        return leaf.allows(Points(query, key, place.seen, place.layer, place.head))

    step = max(1, CELLS // block**2)
    for start in range(0, len(row), step):
        some = slice(start, start + step)
        if leaf.by_offset:  # a tile holds 2 * block - 1 offsets
            offset = (column - row)[some, None] + torch.arange(1 - block, block)
            bits = place.kept_offsets(leaf)[offset.clamp(-end, end).numpy() + end]
            bits = np.lib.stride_tricks.sliding_window_view(bits, block, axis=1)
            words[some] = packed(bits[:, ::-1], place.word)
            continue
        key = (column[some, None] + torch.arange(block)).clamp(max=end)[:, None]
        for rows in torch.split(torch.arange(block), max(1, CELLS // block)):
            query = (row[some, None] + rows).clamp(max=end)[:, :, None]
            cells = allowed(query, key).expand(len(key), len(rows), block)
            words[some, int(rows[0]) : int(rows[-1]) + 1] = packed(cells.numpy(), place.word)


def whole_lines(positions: Sequence[int], place: Place) -> tuple[Band, Band]:
    """Those rows of the table, kept whole; and those columns."""
    block, ones = place.block, place.ones
    chosen = np.zeros(place.columns * block, dtype=bool)
    chosen[[position for position in positions if position < place.length]] = True
    tiles = chosen.reshape(place.columns, block)
    keys = np.repeat(packed(tiles, place.word)[:, None], block, axis=1)
    mine = tiles[place.top : place.top + place.rows]
    queries = np.where(mine[:, :, None], ones, np.zeros_like(ones))
    return (
        settled(place, np.arange(place.rows)[:, None], queries),
        settled(place, np.arange(place.columns)[None, :], keys),
    )


def of_blocks(leaf: Mask, size: int, place: Place) -> Band:
    """Every tile of a leaf in blocks of another size; the queries of a block have equal rows."""
    top = place.top * place.block
    queries = np.arange(top, top + place.rows * place.block).clip(max=place.length - 1) // size
    query = torch.arange(queries[0], queries[-1] + 1)[:, None] * size
    key = torch.arange(-(-place.length // size))[None, :] * size
    kept = leaf.allows(Points(query, key, place.seen, place.layer, place.head)).numpy()
    cells = np.zeros((len(kept), place.columns * place.block), dtype=bool)
    cells[:, : place.length] = kept[:, np.arange(place.length) // size]
    rows = packed(cells.reshape(len(kept), place.columns, -1), place.word)
    words = rows[(queries - queries[0]).reshape(place.rows, place.block)].swapaxes(1, 2)
    index = np.arange(place.rows * place.columns).reshape(place.rows, place.columns)
    return settled(place, index, words.reshape(index.size, place.block, -1))


def of_table(leaf: Table, place: Place) -> Band:
    """Every tile of a table."""
    block, columns = place.block, place.columns
    bits = leaf.bits[(None,) * (4 - leaf.bits.ndim)]
    plane = bits[place.layer if leaf.layers else 0, place.head if leaf.heads else 0]
    top = place.top * block
    cells = np.zeros((place.rows * block, columns * block), dtype=bool)
    cells[: place.queries, : place.length] = plane[top : top + place.queries, : place.length]
    words = packed(cells.reshape(place.rows * block, columns, block), place.word)
    words = words.reshape(place.rows, block, columns, -1).swapaxes(1, 2)
    index = np.arange(place.rows * columns).reshape(place.rows, columns)
    return settled(place, index, words.reshape(place.rows * columns, block, -1))


def of_random_keys(leaf: RandomKeys, place: Place) -> Band:
    """Single cells, scattered into the tiles that hold them."""
    block, columns = place.block, place.columns
    query = torch.arange(place.queries)
    keys = leaf.keys(place.top * block + query, place.seen).numpy()
    within = keys < place.length
    row = np.broadcast_to(query.numpy()[:, None], keys.shape)[within]
    column = keys[within]
    number, first = numbered(row // block * columns + column // block)
    bits = 8 * place.word.itemsize
    width = -(-block // bits)
    words = np.zeros((len(first), block, width), dtype=place.word)
    bit = np.left_shift(1, (column % block % bits).astype(place.word), dtype=place.word)
    at = (number * block + row % block) * width + column % block // bits
    np.bitwise_or.at(words.reshape(-1), at, bit)
    index = np.full(place.rows * columns, len(first))
    index[(row // block * columns + column // block)[first]] = np.arange(len(first))
    empty = np.zeros((1, block, width), dtype=place.word)
    return settled(place, index.reshape(place.rows, columns), np.concatenate([words, empty]))


def inside(place: Place) -> Band:
    """Cells that lie within the table."""
    block, missing = place.block, place.columns * place.block - place.length
    tiles = np.ones((2, block, block), dtype=bool)
    tiles[:, place.queries if place.queries < block else block :] = False
    tiles[1, :, block - missing :] = False
    index = np.zeros((1, place.columns), dtype=np.int64)
    index[0, -1] = 1
    return settled(place, index, packed(tiles, place.word))


def joined(join: Callable[..., Words], one: Band, other: Band) -> Band:
    """Two masks of one place, combined word by word; each pair of distinct tiles once."""
    index, first = numbered(one.index * len(other.words) + other.index)
    shape = np.broadcast_shapes(one.index.shape, other.index.shape)
    left = np.broadcast_to(one.index, shape).reshape(-1)[first]
    right = np.broadcast_to(other.index, shape).reshape(-1)[first]
    words = one.words[left]
    join(words, other.words[right], out=words)
    return settled(one.place, index, words)


def complement(band: Band) -> Band:
    """What a band does not keep."""
    words = band.words ^ band.place.ones
    words[[NONE, ALL]] = words[[ALL, NONE]]
    index = np.where(band.index <= ALL, 1 - band.index, band.index)
    return Band(band.place, index, words)


def settled(place: Place, index: Numbers, words: Words) -> Band:
    """A band in which the empty and the full tile have the first two numbers."""
    none = ~words.any((1, 2))
    whole = (words == place.ones).all((1, 2))
    mixed = ~(none | whole)
    number = np.where(whole, ALL, NONE)
    number[mixed] = np.arange(2, 2 + mixed.sum())
    tiles = np.empty((2 + int(mixed.sum()), *words.shape[1:]), dtype=place.word)
    tiles[NONE], tiles[ALL] = 0, place.ones
    tiles[2:] = words[mixed]
    return Band(place, number[index], tiles)


def numbered(values: Numbers) -> tuple[Numbers, Numbers]:
    """Distinct values by number, without sorting where they lie close together.

    Returns:
        int64 like `values`, the number of each; and where each number first stands among the
        flattened values (one of its places, not always the first).
    """
    if not values.size:
        return values, values.reshape(-1)
    flat = values.reshape(-1)
    low = flat.min()
    span = int(flat.max()) - int(low) + 1
    if span > 4 * flat.size + 1024:
        _, first, index = np.unique(flat, return_index=True, return_inverse=True)
        return index.reshape(values.shape), first
    at = flat - low
    place = np.full(span, -1)
    place[at] = np.arange(flat.size)
    present = place >= 0
    return (np.cumsum(present) - 1)[at].reshape(values.shape), place[present]


def packed(cells: NDArray[np.bool_], word: np.dtype[Any]) -> Words:
    """bool `[.., block]` as `[.., words]`, little end first."""
    bits = np.packbits(cells, axis=-1, bitorder="little")
    missing = -bits.shape[-1] % word.itemsize
    if missing:
        bits = np.concatenate([bits, np.zeros((*bits.shape[:-1], missing), np.uint8)], axis=-1)
    return bits.view(word)


def unpacked(words: Words, block: int) -> NDArray[np.bool_]:
    """Inverse of `packed`."""
    words = np.ascontiguousarray(words)
    return np.unpackbits(words.view(np.uint8), axis=-1, count=block, bitorder="little").view(bool)
