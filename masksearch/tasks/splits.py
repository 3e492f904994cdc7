"""Training and held-out parts of a data set: which files, and which rows of them.

files = training_files(Path("squad"), None, {"train": [..], "dev": [..]}, "SQuAD")
held = held_out_groups(titles, seed=0)        # a fifth of them, where one file serves both ends
numbers = sample_numbers(87_599, 10_000, 0)   # at most 10,000 rows, in their order
"""

from __future__ import annotations

import torch

from masksearch.contracts import generator

HELD_OUT_SHARE = 0.2  # of the groups, where one file serves both ends


def sample_numbers(rows: int, limit: int | None, *seed: int) -> list[int]:
    """Numbers of at most `limit` of that many rows, in rising order.

    Args:
        rows: How many there are.
        limit: How many are wanted; None = all.
        seed: Of the draw, made only where there are more than wanted.

    Raises:
        ValueError: If `limit` is below 1.
    """
    if limit is None or limit >= rows:
        return list(range(rows))
    if limit < 1:
        raise ValueError(f"rows must be at least 1, got {limit}")
    chosen: list[int] = (
        torch.randperm(rows, generator=generator(*seed))[:limit].sort().values.tolist()
    )
    return chosen
