"""What can be said of a mask without training anything."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

from masksearch.masks.core import DenseMask, Mask
from masksearch.masks.distances import farthest
from masksearch.masks.hops import hops as hops_of_table
from masksearch.masks.lower import HasShape, block_view, lower, no_empty_rows
from masksearch.masks.stacks import Cropped
from masksearch.masks.tiles import (
    offset_counts,
    on_diagonal,
    row_counts,
    table_rows,
    whole_columns,
)

BLOCK = 64  # side of a kernel's block, in positions
HELD = 1 << 28  # cells of the largest table that is made for a fingerprint
SEARCHED = 1024  # positions from which a mask's hops are taken from its tiles
MEASURES = ("sparsity", "density", "block_density", "hops", "sparsity_off_diagonal")


def fingerprint(mask: Mask, shape: HasShape) -> str:
    """SHA-256 of the lowered bits and their shape, in hex: equal masks from different
    expressions have one fingerprint.

    Raises:
        EmptyRowError, LayerCountError, HeadCountError, LengthError: As `lower`.
    """
    if shape.layers * shape.heads * shape.length**2 <= HELD:
        return table_fingerprint(lower(mask, shape))
    mask.counts(shape.layers, shape.heads)
    some = (row_counts(mask, shape.length) > 0).expand(shape.layers, shape.heads, -1)
    no_empty_rows(some[..., None])
    return hashed_rows(mask, shape)


def table_fingerprint(table: DenseMask) -> str:
    """The fingerprint of an already lowered table, bool `[layers, heads, n, n]`."""
    text = "x".join(map(str, table.shape))
    packed = np.packbits(table.numpy(force=True).reshape(-1)).tobytes()
    return hashlib.sha256(text.encode() + packed).hexdigest()


def hashed_rows(mask: Mask, shape: HasShape) -> str:
    """The fingerprint of the lowered mask, band after band."""
    length = shape.length
    digest = hashlib.sha256(f"{shape.layers}x{shape.heads}x{length}x{length}".encode())
    over = np.zeros(0, dtype=bool)  # bits that do not fill a byte yet
    for layer in range(shape.layers):
        for head in range(shape.heads):
            for rows in table_rows(mask, length, layer, head):
                bits = np.concatenate([over, rows.reshape(-1)])
                whole = len(bits) // 8 * 8
                digest.update(np.packbits(bits[:whole]).tobytes())
                over = bits[whole:]
    digest.update(np.packbits(over).tobytes())
    return digest.hexdigest()


def empty_rows(table: DenseMask) -> int:
    """Number of (layer, head, query) rows that keep no key."""
    return int((~table.any(-1)).sum())


def block_density(mask: Mask, length: int, block: int = BLOCK) -> float:
    """Share of the `block` x `block` tiles that hold a kept cell, in [0, 1].

    Speed follows this figure, not the elementwise sparsity: a kernel computes whole blocks.
    """
    return float(block_view(mask, length, block).float().mean())


def hops(given: DenseMask | Mask, length: int | None = None) -> float:
    """Attention steps until every position has reached every other, over the heads' union.

    A universal-approximation precondition of sparse Transformers (Yun et al., arXiv
    2006.04862, Assumption 1). Layers are taken as alternating and the residual path as kept.

    Args:
        given: A table, bool `[layers, heads, n, n]`, or a mask.
        length: Positions that a mask is taken at; no n x n tensor is made for a long one.

    Returns:
        A whole number; 0 for one position, infinity where some position is never reached.

    Raises:
        TypeError: If a mask comes without a length.
        UncountedHops: If so many tiles of a long mask differ that only a table would do.
    """
    if not isinstance(given, Mask):
        return hops_of_table(given)
    if length is None:
        raise TypeError("the hops of a mask need a length")
    return hops_of_table(given.dense(length)) if length < SEARCHED else farthest(given, length)


def overlap(first: DenseMask | Mask, second: DenseMask | Mask, length: int | None = None) -> float:
    """Intersection over union of the kept cells, in [0, 1]; 1 for two empty ones.

    Args:
        first: A table, bool `[layers, heads, n, n]`, or a mask.
        second: The same kind.
        length: Positions that two masks are taken at; no n x n tensor is made for them.

    Raises:
        TypeError: If one is a mask and the other a table, or masks come without a length.
    """
    if isinstance(first, Mask) and isinstance(second, Mask) and length is not None:
        either = (first | second).kept(length)
        return (first & second).kept(length) / either if either else 1.0
    if isinstance(first, Mask) or isinstance(second, Mask):
        raise TypeError("overlap takes two tables, or two masks and a length")
    union = int((first | second).sum())
    return int((first & second).sum()) / union if union else 1.0


def distance_histogram(
    given: DenseMask | Mask, length: int | None = None, *, signed: bool = False
) -> Tensor:
    """Kept share of the cells at each distance, over all layers and heads.

    Args:
        given: A table, bool `[layers, heads, n, n]`, or a mask.
        length: Positions that a mask is taken at; no n x n tensor is made for it.
        signed: Whether the two directions are told apart.

    Returns:
        float32 `[n]` in [0, 1] by |i - j|; signed: `[2n - 1]` by `j - i + n - 1`.

    Raises:
        TypeError: If a mask comes without a length.
    """
    if isinstance(given, Mask):
        if length is None:
            raise TypeError("the distance histogram of a mask needs a length")
        kept = offset_counts(given, length)
    else:
        length = given.shape[-1]
        kept = torch.stack(
            [
                given.diagonal(offset, -2, -1).sum(-1).expand(given.shape[:2])
                for offset in range(1 - length, length)
            ],
            -1,
        )
    cells = length - torch.arange(1 - length, length).abs()
    found, planes = kept.sum((0, 1)), kept.shape[0] * kept.shape[1]
    if not signed:
        found = found[length - 1 :] + found[:length].flip(0)  # the diagonal is in both
        cells = 2 * cells[length - 1 :]
    return (found.double() / (cells * planes)).float()


def sparsity_over(
    mask: Mask,
    length: int,
    *,
    diagonal: bool = True,
    global_tokens: bool = True,
    padding: int = 0,
) -> float:
    """Dropped share of the cells that are asked for, in [0, 1].

    `1 - kept / cells`, where all layers and heads are counted together. No n x n tensor is made.

    Args:
        mask: Any mask.
        length: Positions.
        diagonal: Whether the cells with i = j count (SparseBERT, arXiv 2102.12871, Section 3.3,
            drops them).
        global_tokens: Whether rows and columns that are kept whole count. They are found from
            the mask, in each layer and head by itself. Without them the figure is the sparsity
            of what is left: of a Longformer, that of its window.
        padding: Last positions that are padding: their rows and columns do not count.

    Returns:
        The sparsity; 0 where no cell is left to count, as in a full mask without its global
        tokens.

    Raises:
        LengthError: If the mask has another length.
        ValueError: If `padding` is not in [0, length).
    """
    if not 0 <= padding < length:
        raise ValueError(f"padding must be in [0, {length}), got {padding}")
    if padding:
        mask, length = Cropped(mask, length), length - padding
    counts, on = row_counts(mask, length), on_diagonal(mask, length)
    row = column = torch.zeros_like(on)
    if not global_tokens:
        row, column = counts == length, whole_columns(mask, length)
    rows, columns = row.sum(-1), column.sum(-1)
    cells = int(((length - rows) * (length - columns)).sum())
    kept = int(counts.sum()) - int((length * (rows + columns) - rows * columns).sum())
    if not diagonal:
        cells -= int((~(row | column)).sum())
        kept -= int((on & ~(row | column)).sum())
    return 1 - kept / cells if cells else 0.0


def measures(
    mask: Mask, shape: HasShape, block: int = BLOCK, table: DenseMask | None = None
) -> dict[str, float]:
    """The measures that every record carries.

    Args:
        mask: Any mask.
        shape: What it is lowered to.
        block: Side of a kernel's block, in positions.
        table: The lowered mask, where it is at hand already.

    Returns:
        `sparsity` and `density` in [0, 1] of the lowered table, `sparsity_off_diagonal` (over
        the cells with i != j), `block_density` at `block` positions, `hops`.

    Raises:
        EmptyRowError, LayerCountError, HeadCountError, LengthError: As `lower`.
        UncountedHops: As `hops`.
    """
    size = shape.length
    cells = shape.layers * shape.heads * size**2
    if table is None and cells > HELD:
        return long_measures(mask, shape, block)
    table = lower(mask, shape) if table is None else table
    kept = table.float().mean((0, 1))
    off = size * size - size
    density = float(table.double().mean())
    own = table[: mask.layers or 1, : mask.heads or 1]  # the planes that are told apart
    result = {
        "sparsity": 1 - density,
        "density": density,
        "block_density": block_density(mask, size, block),
        "hops": hops(own) if size < SEARCHED else hops(mask, size),
    }
    if off:
        result["sparsity_off_diagonal"] = 1 - float((kept.sum() - kept.diagonal().sum()) / off)
    return result


def long_measures(mask: Mask, shape: HasShape, block: int) -> dict[str, float]:
    """The measures of a mask whose table is not made."""
    mask.counts(shape.layers, shape.heads)
    size = shape.length
    counts = row_counts(mask, size)
    no_empty_rows((counts > 0).expand(shape.layers, shape.heads, -1)[..., None])
    planes = counts.shape[0] * counts.shape[1]
    kept, on = int(counts.sum()), int(on_diagonal(mask, size).sum())
    density = kept / (planes * size**2)
    return {
        "sparsity": 1 - density,
        "density": density,
        "block_density": block_density(mask, size, block),
        "hops": hops(mask, size),
        "sparsity_off_diagonal": 1 - (kept - on) / (planes * (size * size - size)),
    }
