"""What can be said of a mask without training anything."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

from masksearch.masks.core import DenseMask, Mask, Points, grid, no_empty_rows
from masksearch.masks.hops import LONGEST as LONGEST_HOPS
from masksearch.masks.hops import hops
from masksearch.masks.lower import HasShape, block_view, lower, row_counts
from masksearch.masks.stacks import Cropped

BLOCK = 64  # side of a kernel's block, in positions
HELD = 1 << 28  # cells of the largest table that is made for a fingerprint
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
    return hash_rows(mask, shape)


def table_fingerprint(table: DenseMask) -> str:
    """The fingerprint of an already lowered table, bool `[layers, heads, n, n]`."""
    text = "x".join(map(str, table.shape))
    packed = np.packbits(table.numpy(force=True).reshape(-1)).tobytes()
    return hashlib.sha256(text.encode() + packed).hexdigest()


def hash_rows(mask: Mask, shape: HasShape) -> str:
    """The fingerprint of the lowered mask, some rows after the others."""
    length = shape.length
    digest = hashlib.sha256(f"{shape.layers}x{shape.heads}x{length}x{length}".encode())
    over = np.zeros(0, dtype=bool)  # bits that do not fill a byte yet
    for layer in range(shape.layers):
        for head in range(shape.heads):
            for rows in mask.row_chunks(length, layer, head):
                bits = np.concatenate([over, rows.numpy().reshape(-1)])
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


def whole_columns(mask: Mask, length: int) -> Tensor:
    """Which keys every query keeps, bool `[layers, heads, n]`; no n x n tensor is made."""
    whole = torch.ones(len(mask.planes), length, dtype=torch.bool)
    for plane, found in zip(mask.planes, whole, strict=True):
        for rows in mask.row_chunks(length, *plane):
            found &= rows.all(0)
    return whole.view(mask.layers or 1, mask.heads or 1, length)


def on_diagonal(mask: Mask, length: int) -> Tensor:
    """Which positions keep themselves, bool `[layers, heads, n]`; no n x n tensor is made."""
    at = grid(length)[1][0]
    found = [mask.allows(Points(at, at, length, *plane)).expand(length) for plane in mask.planes]
    return torch.stack(found).view(mask.layers or 1, mask.heads or 1, length)


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
        the cells with i != j), `block_density` at `block` positions, and `hops` up to the
        length that they are counted at.

    Raises:
        EmptyRowError, LayerCountError, HeadCountError, LengthError: As `lower`.
    """
    size = shape.length
    if table is None and shape.layers * shape.heads * size**2 > HELD:
        mask.counts(shape.layers, shape.heads)
        counts, on = row_counts(mask, size), on_diagonal(mask, size)
        no_empty_rows((counts > 0).expand(shape.layers, shape.heads, -1)[..., None])
        own = None
    else:
        table = lower(mask, shape) if table is None else table
        own = table[: mask.layers or 1, : mask.heads or 1]  # the planes that are told apart
        counts, on = own.sum(-1), own.diagonal(0, -2, -1)
    planes, kept = len(mask.planes), int(counts.sum())
    density = kept / (planes * size**2)
    result = {
        "sparsity": 1 - density,
        "density": density,
        "block_density": block_density(mask, size, block),
    }
    if size <= LONGEST_HOPS:
        result["hops"] = hops(mask, size) if own is None else hops(own)
    if size > 1:
        off = (kept - int(on.sum())) / (planes * (size * size - size))
        result["sparsity_off_diagonal"] = 1 - off
    return result
