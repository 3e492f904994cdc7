"""Controls for the claim that the diagonal can be left out: masks that drop as many cells."""

from __future__ import annotations

from masksearch import masks
from masksearch.contracts import mixed_seed
from masksearch.masks.core import Mask


def diagonal_controls(draws: int = 3, seed: int = 0) -> dict[str, Mask]:
    """Full attention, attention without the diagonal, and attention without random keys.

    A random mask drops one key of each query, drawn uniformly (its own one among them), so that
    it drops as many cells, n, and as many in each row, as the diagonal does. All layers and heads
    drop the same ones. For `masksearch.compare`, at a length of at least 2.

    Args:
        draws: Number of random masks (>= 1), named `"without random 0"`, ...
        seed: Seed of the draws.

    Raises:
        ValueError: If there is no draw.

    Reference: SparseBERT, arXiv 2102.12871 (without the diagonal, without random positions).
    """
    if draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws}")
    found = {"full": masks.full(), "without diagonal": masks.without_diagonal(masks.full())}
    for draw in range(draws):
        dropped = masks.random_keys(1, mixed_seed(seed, draw) % 2**31)
        found[f"without random {draw}"] = masks.full() - dropped
    return found
