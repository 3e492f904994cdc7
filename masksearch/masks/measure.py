"""What can be said of a mask without training anything."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

from masksearch.masks.core import DenseMask, Mask
from masksearch.masks.lower import HasShape, block_view, lower

BLOCK = 64  # side of a kernel's block, in positions
MEASURES = ("sparsity", "density", "block_density", "hops", "sparsity_off_diagonal")


def fingerprint(mask: Mask, shape: HasShape) -> str:
    """SHA-256 of the lowered bits and their shape, in hex: equal masks from different
    expressions have one fingerprint.

    Raises:
        EmptyRowError, LayerCountError, HeadCountError, LengthError: As `lower`.
    """
    return table_fingerprint(lower(mask, shape))


def table_fingerprint(table: DenseMask) -> str:
    """The fingerprint of an already lowered table, bool `[layers, heads, n, n]`."""
    text = "x".join(map(str, table.shape))
    packed = np.packbits(table.numpy(force=True).reshape(-1)).tobytes()
    return hashlib.sha256(text.encode() + packed).hexdigest()


def empty_rows(table: DenseMask) -> int:
    """Number of (layer, head, query) rows that keep no key."""
    return int((~table.any(-1)).sum())


def block_density(mask: Mask, length: int, block: int = BLOCK) -> float:
    """Share of the `block` x `block` tiles that hold a kept cell, in [0, 1].

    Speed follows this figure, not the elementwise sparsity: a kernel computes whole blocks.
    """
    return float(block_view(mask, length, block).float().mean())


def hops(table: DenseMask) -> float:
    """Attention steps until every position has reached every other, over the heads' union.

    A universal-approximation precondition of sparse Transformers (Yun et al., arXiv
    2006.04862, Assumption 1). Layers are taken as alternating; 0 for one position, infinity
    where some position is never reached.

    Args:
        table: bool `[layers, heads, n, n]`.
    """
    own = torch.eye(table.shape[-1], dtype=torch.bool)
    if own.all():
        return 0.0
    steps = table.any(1) | own  # one union per layer, and the residual path
    cycle = own
    for step in steps:
        cycle = composed(step, cycle)
    powers = [cycle]  # the cycle 1, 2, 4, 8, .. times
    while not powers[-1].all():
        powers.append(composed(powers[-1], powers[-1]))
        if torch.equal(powers[-1], powers[-2]):
            return float("inf")
    reached, count = own, 0
    for exponent, power in reversed(list(enumerate(powers))):
        further = composed(power, reached)
        if not further.all():  # the largest number of whole cycles that is not enough
            reached, count = further, count + len(steps) * 2**exponent
    for step in steps:
        reached, count = composed(step, reached), count + 1
        if reached.all():
            break
    return float(count)


def composed(later: Tensor, earlier: Tensor) -> Tensor:
    """What is reached by one relation after another, bool `[n, n]`."""
    return (later.float() @ earlier.float()) > 0


def overlap(first: DenseMask, second: DenseMask) -> float:
    """Intersection over union of two tables' kept cells, in [0, 1]; 1 for two empty ones."""
    union = int((first | second).sum())
    return int((first & second).sum()) / union if union else 1.0


def distance_histogram(table: DenseMask) -> Tensor:
    """Kept share of each distance |i - j|, float `[n]`, over all layers and heads."""
    size = table.shape[-1]
    positions = torch.arange(size)
    distance = (positions[:, None] - positions[None, :]).abs().flatten()
    kept = torch.zeros(size).index_add_(0, distance, table.flatten(0, 1).float().mean(0).flatten())
    return kept / torch.bincount(distance, minlength=size)


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
    """
    table = lower(mask, shape) if table is None else table
    size = shape.length
    kept = table.float().mean((0, 1))
    off = size * size - size
    density = float(table.double().mean())
    result = {
        "sparsity": 1 - density,
        "density": density,
        "block_density": block_density(mask, size, block),
        "hops": hops(table),
    }
    if off:
        result["sparsity_off_diagonal"] = 1 - float((kept.sum() - kept.diagonal().sum()) / off)
    return result
