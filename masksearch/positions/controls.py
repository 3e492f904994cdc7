"""Controls for the claim that the diagonal can be left out: masks that drop as many cells."""

from __future__ import annotations

from masksearch import masks
from masksearch.contracts import Shape, mixed_seed
from masksearch.masks.core import Mask
from masksearch.masks.families import match_density
from masksearch.masks.measure import effective_density


def diagonal_controls(
    draws: int = 3, seed: int = 0, shape: Shape | None = None
) -> dict[str, Mask]:
    """Full attention, attention without the diagonal, and attention without random keys.

    A random mask drops one key of each query, drawn uniformly (its own one among them), so that
    it drops as many cells, n, and as many in each row, as the diagonal does. All layers and heads
    drop the same ones. For `masksearch.compare`, at a length of at least 2.

    Args:
        draws: Number of random masks (>= 1), named `"without random 0"`, ...
        seed: Seed of the draws.
        shape: The evaluator's, where its sequences are padded: the random masks then drop as
            many of the pairs that real tokens form as the diagonal has. None = no padding.

    Raises:
        ValueError: If there is no draw, or the shape is causal: the first query of a decoder
            has no other key than its own.

    Reference: SparseBERT, arXiv 2102.12871 (without the diagonal, without random positions).
    """
    if draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws}")
    if shape is not None and shape.causal:
        raise ValueError(
            "a decoder's first query has no other key than its own, so its diagonal cannot be "
            "left out; take an encoder"
        )

    def without(count: int, draw: int) -> Mask:
        return masks.full() - masks.random_keys(count, draw)

    bare = masks.without_diagonal(masks.full())
    controls = {"full": masks.full(), "without diagonal": bare}
    for draw in range(draws):
        start = mixed_seed(seed, draw) % 2**31
        controls[f"without random {draw}"] = (
            without(1, start)
            if shape is None
            else match_density(without, effective_density(bare, shape), shape, start)
        )
    return controls
