"""A mask as FlexAttention's `BlockMask`, from tile counts: no table of all cells is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from masksearch.errors import EmptyRowError
from masksearch.masks.bands import bands
from masksearch.masks.core import Mask
from masksearch.masks.tiles import tile_counts

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

Predicate = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # (batch, head, query, key) -> bool


def flex_block_mask(mask: Mask, length: int, block: int = 128, device: str = "cpu") -> BlockMask:
    """The mask of one layer as FlexAttention's `BlockMask`.

    Tiles that are kept whole are full blocks, for which FlexAttention does not call the
    `mask_mod`; tiles that are kept in part call it.

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
    predicate = mask.mask_mod(length)
    no_empty_queries(mask, length, block)
    counts = tile_counts(mask, length, block)[0]
    whole = counts == block * block
    return block_mask_of((counts > 0) & ~whole, whole, length, block, predicate).to(device)


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

    return BlockMask.from_kv_blocks(
        *ordered(partial),
        *ordered(whole),
        BLOCK_SIZE=block,
        mask_mod=predicate,
        seq_lengths=(length, length),
    )


def ordered(tiles: Tensor) -> tuple[Tensor, Tensor]:
    """Counts `[1, heads, nb]` and column indices `[1, heads, nb, nb]` of True tiles, int32.

    The indices of a row begin with its True columns; `BlockMask` wants all nb columns listed.
    """
    found = tiles[None].int()
    indices = torch.argsort(found, dim=-1, descending=True, stable=True)
    return found.sum(-1, dtype=torch.int32), indices.int()


def no_empty_queries(mask: Mask, length: int, block: int) -> None:
    """Refuses a mask of one layer in which a query keeps no key, some rows of tiles at a time.

    Raises:
        EmptyRowError: Names the head and the row.
    """
    for head in range(mask.heads or 1):
        for band in bands(mask, length, block, 0, head):
            empty = np.flatnonzero(band.row_counts() == 0)
            if len(empty):
                row = band.place.top * block + int(empty[0])
                raise EmptyRowError(
                    f"layer 0, head {head}, row {row} keeps no key; a row without keys has no "
                    "attention: add for example masks.window(0), the diagonal"
                )
