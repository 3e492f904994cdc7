"""Masks to and from the forms of other libraries: DeepSpeed, FlexAttention, NumPy, transformers.

All of them write True, or 1, for a pair that may attend.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from masksearch.errors import EmptyRowError, MaskFormatError
from masksearch.masks.checks import no_empty_rows
from masksearch.masks.core import Mask
from masksearch.masks.lower import block_view
from masksearch.masks.tables import BlockLayout as block_layout
from masksearch.masks.tables import Table as table


def to_block_layout(mask: Mask, length: int, block: int) -> Tensor:
    """Which blocks hold a kept cell, in the form of DeepSpeed's and xFormers' sparse attention.

    Those libraries compute whole blocks: where a mask keeps a part of one, they attend to the
    rest of it too, unless the mask is given to them as well. No n x n tensor is made.

    Args:
        mask: A mask that does not tell layers apart (else take `masks.layer_of` first).
        length: Positions; the last block may be ragged (DeepSpeed wants whole ones).
        block: Positions of a block's side (>= 1; DeepSpeed's default is 16).

    Returns:
        int64 of 0 and 1, `[heads | 1, ceil(n / block), ceil(n / block)]`; heads are those that the
        mask tells apart.

    Raises:
        LayerCountError: If the mask has several layers.
        LengthError: If the mask has another length.

    >>> from masksearch import masks
    >>> to_block_layout(masks.fixed(4, 2), length=8, block=2)[0].tolist()
    [[1, 1, 0, 1], [1, 1, 0, 1], [0, 1, 1, 1], [0, 1, 1, 1]]
    """
    mask.refuse_layers("a block layout")
    return block_view(mask, length, block)[0].long()


def from_block_layout(layout: Tensor | NDArray[Any], block: int) -> Mask:
    """The mask that keeps the blocks of a layout: `masks.block_layout`.

    Args:
        layout: 0 and 1, or bool: `[nb, nb]`, `[heads, nb, nb]` or `[layers, heads, nb, nb]`.
        block: Positions of a block's side (>= 1).

    Raises:
        MaskFormatError: If the layout has other values or another shape.
    """
    return block_layout(_zeros_and_ones(layout, "a block layout"), block)


def to_numpy(mask: Mask, length: int, layers: int = 1, heads: int = 1) -> NDArray[np.bool_]:
    """The mask as an array, bool `[layers, heads, n, n]`; arguments and errors as `Mask.dense`."""
    return np.asarray(mask.dense(length, layers, heads).numpy())


def from_numpy(array: NDArray[Any]) -> Mask:
    """The mask that keeps the True cells of an array: `masks.table`.

    Args:
        array: bool, or 0 and 1: `[n, n]`, `[heads, n, n]` or `[layers, heads, n, n]`.

    Raises:
        MaskFormatError: If the array has other values or another shape.
    """
    return table(_zeros_and_ones(array, "a table"))


def to_4d(
    mask: Mask,
    length: int,
    *,
    batch: int = 1,
    padding: Tensor | None = None,
    dtype: torch.dtype = torch.bool,
) -> Tensor:
    """The mask as transformers' custom 4-D attention mask: `model(attention_mask=...)`.

    A model takes it as it is, for all its layers, without its own causal and padding masks: give
    `padding`, and `mask & masks.causal()` for a decoder. Use bool with `sdpa`, and a float type
    with `eager`, which adds it to the scores.

    Forbidden cells of a float mask are -inf, never `finfo.min`: in a row without visible keys a
    finite number gives every key the same weight, hidden and padded ones too, and with -1e4 a
    large score still passes. Rows of padding, which nobody reads, keep themselves where they
    would keep nothing, because a softmax over -inf alone is NaN.

    Args:
        mask: A mask that does not tell layers apart (else take `masks.layer_of` first).
        length: Positions.
        batch: Examples; `padding` says it too.
        padding: `[batch, n]` of 1 and 0, or bool, as the tokenizer's `attention_mask`: 1 is a
            token, 0 is padding, which no query attends to.
        dtype: `torch.bool`, or a floating type: 0 where a pair may attend, -inf elsewhere.

    Returns:
        `[batch, heads | 1, n, n]` on the device of `padding`, else on the CPU; heads are those
        that the mask tells apart.

    Raises:
        EmptyRowError: If a query that is a token keeps no token; names example, head and row.
        LayerCountError: If the mask tells layers apart.
        LengthError: If the mask has another length.
        ValueError: If `padding` or `dtype` is something else.

    >>> from masksearch import masks
    >>> to_4d(masks.window(1), 3, padding=torch.tensor([[1, 1, 0]]))[0, 0].int().tolist()
    [[1, 1, 0], [1, 1, 0], [0, 1, 0]]
    """
    if dtype != torch.bool and not dtype.is_floating_point:
        raise ValueError(f"dtype is torch.bool or a floating type, got {dtype}")
    if batch < 1:
        raise ValueError(f"batch must be at least 1 example, got {batch}")
    mask.refuse_layers("a 4-D mask")
    cells = mask.dense(length)
    no_empty_rows(cells)
    if padding is not None:
        if padding.ndim != 2 or padding.shape[1] != length or batch not in (1, len(padding)):
            raise ValueError(
                f"padding is [batch, n] = [{batch if batch > 1 else 'batch'}, {length}], got "
                f"{list(padding.shape)}"
            )
        batch, real = len(padding), padding.bool()
        cells = cells.to(padding.device) & real[:, None, None, :]
        empty = ~cells.any(-1)
        unread = empty & ~real[:, None]
        if (empty & ~unread).any():
            example, head, row = (int(index) for index in (empty & ~unread).nonzero()[0])
            raise EmptyRowError(
                f"example {example}, head {head}, row {row} keeps nothing but padding; add for "
                "example masks.window(0), the diagonal"
            )
        cells = cells | torch.diag_embed(unread)
    cells = cells.expand(batch, -1, -1, -1)
    if dtype == torch.bool:
        return cells.contiguous()
    return torch.zeros_like(cells, dtype=dtype).masked_fill_(~cells, -torch.inf)


def from_mask_mod(
    mask_mod: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    length: int,
    heads: int = 1,
    device: str | torch.device = "cpu",
) -> Mask:
    """The table of a FlexAttention predicate `(batch, head, query, key) -> bool`.

    Args:
        mask_mod: The predicate; it is evaluated for the first example of a batch.
        length: Positions.
        heads: Heads that it tells apart.
        device: Where the tensors lie that it captures.

    Returns:
        A table of that length.
    """
    from torch.nn.attention.flex_attention import create_mask

    return table(create_mask(mask_mod, 1, heads, length, length, device=str(device))[0])


def _zeros_and_ones(values: Tensor | NDArray[Any], what: str) -> Tensor:
    """A bool tensor from bools, or from numbers that are 0 and 1."""
    try:
        tensor = torch.as_tensor(np.array(values) if isinstance(values, np.ndarray) else values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise MaskFormatError(f"{what} is an array of 0 and 1, got {str(values)[:80]}") from error
    if not ((tensor == 0) | (tensor == 1)).all():
        raise MaskFormatError(f"{what} holds 0 and 1, got values {tensor.min()} to {tensor.max()}")
    return tensor.bool()
