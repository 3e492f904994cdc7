"""Lowering: from the expression to what a kernel reads. The one gate that forbids empty rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from masksearch.errors import LengthError
from masksearch.masks.checks import no_empty_rows
from masksearch.masks.core import DenseMask, Mask, distinct_planes
from masksearch.masks.leaves import Causal
from masksearch.masks.shape import Shape

MOST_TILES = 1 << 16  # distinct tiles of one predicate: 128 MiB at blocks of 128
ROOM = 1 << 10  # distinct tiles that a predicate has room for at least: 2 MiB at blocks of 128

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

Block = tuple[int, int]  # queries and keys of a tile, in positions
Predicate = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # (batch, head, query, key) -> bool


def under_causality(mask: Mask, shape: Shape) -> Mask:
    """The part of a mask that a model of that shape uses: no later key where it is causal."""
    return mask & Causal() if shape.causal else mask


def lower(mask: Mask, shape: Shape) -> DenseMask:
    """Computes the table of a mask that a model of this shape uses.

    Args:
        mask: Any mask.
        shape: Length in positions, layers, heads; whether it is causal.

    Returns:
        bool `[layers, heads, n, n]`, True = may attend.

    Raises:
        EmptyRowError: If a query keeps no key (of a causal shape: none up to itself); names
            layer, head and row.
        LayerCountError, HeadCountError, LengthError: If the mask has another shape.
    """
    mask.counts(shape.layers, shape.heads)
    table = under_causality(mask, shape).dense(shape.length, shape.layers, shape.heads)
    no_empty_rows(table)
    return table


def refuse_longer(mask: Mask, length: int, where: str) -> None:
    """Refuses inputs that a table does not reach.

    Raises:
        LengthError: Names the remedies.
    """
    if mask.length is not None and length > mask.length:
        raise LengthError(
            f"{where}: a table of {mask.length} positions serves inputs of at most that many, "
            f"asked for {length}; searched tables do not stretch: truncate the inputs "
            f"(tokenizer(.., truncation=True, max_length={mask.length})), or attach an "
            "expression, which has any length"
        )


def row_counts(mask: Mask, length: int) -> Tensor:
    """Kept keys of each query; no n x n tensor is made.

    Args:
        mask: Any mask.
        length: Positions.

    Returns:
        int64 `[layers, heads, n]`; layers and heads are those that the mask tells apart.

    Raises:
        LengthError: If the mask has another length.
    """
    planes, index = distinct_planes(mask)
    counts = [
        plane.mask.counts_by_offset(length, plane.head)
        if plane.mask.by_offset
        else torch.cat(
            [
                rows.sum(-1, dtype=torch.int32)
                for rows in plane.mask.row_chunks(length, head=plane.head)
            ]
        )
        for plane in planes
    ]
    return torch.stack(counts).long()[index].view(mask.layers or 1, mask.heads or 1, length)


def tile_counts(mask: Mask, length: int, block: int) -> Tensor:
    """Kept cells of each tile of a square tiling; no n x n tensor is made.

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
    if block < 1:
        raise ValueError(f"block must be at least 1 position, got {block}")
    tiles = -(-length // block)
    planes, index = distinct_planes(mask)
    counts = torch.zeros(len(planes), tiles, tiles, dtype=torch.int64)
    for plane, count in zip(planes, counts, strict=True):
        first = 0
        for rows in plane.mask.row_chunks(length, head=plane.head):
            padded = F.pad(rows, (0, tiles * block - length))
            kept = padded.view(len(rows), tiles, block).sum(-1, dtype=torch.int32)
            count.index_add_(0, torch.arange(first, first + len(rows)) // block, kept.long())
            first += len(rows)
    return counts[index].view(mask.layers or 1, mask.heads or 1, tiles, tiles)


def block_view(mask: Mask, length: int, block: int) -> Tensor:
    """Which tiles of a square tiling hold a kept cell; arguments and errors as `tile_counts`.

    Returns:
        bool `[layers, heads, ceil(n / block), ceil(n / block)]`.
    """
    return tile_counts(mask, length, block) > 0


def by_tiles(table: Tensor, block: Block) -> Tensor:
    """A table's cells, `[.., n, m]` -> `[.., rows, queries, columns, keys]`; 0 beyond its end."""
    (rows, columns), (queries, keys) = table.shape[-2:], block
    padded = F.pad(table, (0, -columns % keys, 0, -rows % queries))
    sides = -(-rows // queries), queries, -(-columns // keys), keys
    return padded.reshape(*table.shape[:-2], *sides)


def spread_tiles(tiles: Tensor, length: int, block: Block) -> Tensor:
    """The cells of tiles, `[.., rows, columns]` -> `[.., n, n]`, each as its tile."""
    if block == (1, 1):
        return tiles
    rows = tiles.repeat_interleave(block[0], -2)[..., :length, :]
    return rows.repeat_interleave(block[1], -1)[..., :length]


def distinct_tiles(
    mask: Mask, length: int, block: int, head: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """The tiles of a head, each kind once.

    Args:
        mask: A mask that does not tell layers apart (else take `masks.layer_of` first).
        length: Positions; the last tiles may be ragged.
        block: Positions of a tile's side (>= 1).
        head: Head; any where the mask tells none apart.

    Returns:
        int64 `[ceil(n / block), ceil(n / block)]`, which pattern each tile is; and the patterns,
        uint8 `[distinct, block, ceil(block / 8)]`, a bit a cell as `numpy.packbits` writes them,
        no two equal. The first keeps nothing. Cells beyond the end of the table are 0.

    Raises:
        LengthError: If the mask has another length.
        ValueError: If `length` or `block` is less than 1.
    """
    if block < 1:
        raise ValueError(f"block must be at least 1 position, got {block}")
    tiles = -(-length // block)
    numbers = {bytes(block * -(-block // 8)): 0}  # by a tile's cells as bits; the empty one first
    index = []
    for rows in mask.row_chunks(length, 0, head, rows=block):
        padded = F.pad(rows, (0, tiles * block - length, 0, block - len(rows)))
        packed = np.packbits(padded.view(block, tiles, block).transpose(0, 1).numpy(), axis=2)
        index.append([numbers.setdefault(tile.tobytes(), len(numbers)) for tile in packed])
    bits = np.frombuffer(b"".join(numbers), dtype=np.uint8).reshape(len(numbers), block, -1)
    return np.array(index), bits


def flex_tiles(
    mask: Mask, length: int, block: int, device: torch.device | str, heads: int = 1
) -> tuple[Tensor, Tensor, Predicate]:
    """The tiles of one layer, and a predicate whose code is the same for every mask.

    torch.compile makes a graph for each predicate's code and each shape of the tensors that it
    holds. Here a mask is in the tensors alone: `bits[tile[head, q // block, k // block],
    q % block, k % block]`, a bit a cell. There is room for 1,024 distinct tiles, or four times as
    many until they fit, so that masks of one shape share their graph. Past 65,536 the predicate is
    the mask's own.

    Args:
        mask: A mask that does not tell layers apart.
        length: Positions; the last tiles may be ragged.
        block: Positions of a tile's side (>= 1).
        device: Where all tensors lie.
        heads: For how many heads a mask that tells none apart is written out.

    Returns:
        bool `[heads, nb, nb]`, tiles kept in part; likewise tiles kept whole; the predicate.

    Raises:
        LengthError, LayerCountError: If the mask has another length, or tells layers apart.
        TokensNeededError: If the cells follow the tokens.
        ValueError: If `length` or `block` is less than 1.
    """
    mask.refuse_layers("mask_mod")
    mask.refuse_tokens()
    planes, numbers = distinct_planes(mask)
    index, patterns, count = [], [], 0
    for plane in planes:
        tiles, cells = distinct_tiles(plane.mask, length, block, plane.head)
        index.append(np.where(tiles > 0, tiles + count, 0))
        patterns.append(cells)
        count += len(cells)
    bits = torch.from_numpy(np.concatenate(patterns))
    numbers = numbers * heads if len(numbers) == 1 else numbers
    tile = torch.from_numpy(np.stack(index)[numbers]).int()
    all_kept = torch.from_numpy(np.packbits(np.ones((block, block), dtype=bool), axis=1))
    whole = (bits == all_kept).all(-1).all(-1)[tile].to(device)
    partial = (tile > 0).to(device) & ~whole
    if count > MOST_TILES:
        return partial, whole, mask.mask_mod(length, device)
    room = ROOM
    while room < count:
        room *= 4
    bits = F.pad(bits, (0, 0, 0, 0, 0, room - count)).to(device)
    return partial, whole, tile_predicate(bits, tile.to(device), block)


def tile_predicate(bits: Tensor, tile: Tensor, block: int) -> Predicate:
    """A cell's bit, by the tile that it lies in.

    Args:
        bits: uint8 `[distinct, block, ceil(block / 8)]`, the tiles.
        tile: int32 `[heads, nb, nb]`, which of them each is; one head serves any number.
        block: Positions of a tile's side.
    """
    several = len(tile) > 1  # no number: of one that changes Dynamo makes a symbol

    def predicate(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        number = tile[head if several else head * 0, query // block, key // block]
        column = key % block
        return (bits[number, query % block, column // 8] >> (7 - column % 8)) & 1 > 0

    return predicate


def flex_block_mask(mask: Mask, length: int, block: int = 128, device: str = "cpu") -> BlockMask:
    """The mask of one layer as FlexAttention's `BlockMask`.

    Tiles that are kept whole are full blocks, for which FlexAttention does not call the
    `mask_mod`; tiles that are kept in part call it. Its code is the same for every mask, so
    that a compiled FlexAttention has one graph for all masks of a shape (`flex_tiles`).

    Args:
        mask: A mask that does not tell layers apart (else take `masks.layer_of` first).
        length: Positions; the last blocks may be ragged.
        block: Block side, in positions. A mask searched at blocks of 64 loses most of its
            sparsity at FlexAttention's default of 128: pass the block size of the search. On
            CUDA its kernels take up to 128 positions at a time and refuse finer blocks, unless
            `kernel_options` of `flex_attention` lower BLOCK_M and BLOCK_N.
        device: Where the block mask lies.

    Returns:
        A `BlockMask` of one batch entry and as many heads as the mask tells apart, equal to
        `create_block_mask`'s.

    Raises:
        EmptyRowError: If a query keeps no key.
        LayerCountError: If the mask tells layers apart.
    """
    partial, whole, predicate = flex_tiles(mask, length, block, device)
    no_empty_rows((row_counts(mask, length) > 0)[..., None])
    return block_mask_of(partial, whole, length, block, predicate)


def block_mask_of(
    partial: Tensor, whole: Tensor, length: int, block: int, predicate: Predicate
) -> BlockMask:
    """A `BlockMask` from the tiles that call the predicate and those that do not.

    Args:
        partial: bool `[heads, nb, nb]`, tiles kept in part.
        whole: bool of the same shape, tiles kept whole; none in both.
        length: Positions.
        block: Block side, in positions.
        predicate: The `mask_mod`.

    Returns:
        A `BlockMask` on the tensors' device.
    """
    from torch.nn.attention.flex_attention import BlockMask

    def ordered(tiles: Tensor) -> tuple[Tensor, Tensor]:
        """Counts `[1, heads, nb]` and columns `[1, heads, nb, nb]`, the True ones first."""
        marks = tiles[None].int()
        columns = torch.argsort(marks, dim=-1, descending=True, stable=True)
        return marks.sum(-1, dtype=torch.int32), columns.int()

    return BlockMask.from_kv_blocks(
        *ordered(partial),
        *ordered(whole),
        BLOCK_SIZE=block,
        mask_mod=predicate,
        seq_lengths=(length, length),
    )
