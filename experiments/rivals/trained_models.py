"""What a selector measures on: the trained model of an evaluator, and its held-out batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import masksearch as ms
from masksearch.contracts import Batch, Differentiable
from masksearch.errors import SearchError

Scores = dict[str, list[float]]
Selector = Callable[[ms.Units, nn.Module, Sequence[Batch]], Scores]


def score_units(judge: Any, units: ms.Units, selector: Selector, seed: int) -> Scores:
    """What each unit is worth to the trained model of an evaluator: a mean over its tasks.

    Args:
        judge: Its `differentiable(seed)` has a model of frozen weights, which are taken for
            trained, and held-out batches; their `task` tells tasks apart.
        units: The layers or heads, and their masks.
        selector: Of this folder.
        seed: Of the model.

    Returns:
        Unit -> a number for each level, from local to full: `method=` of `strategy="allocate"`.

    Raises:
        SearchError: If the model is trained under each mask.
    """
    source: Differentiable = judge.differentiable(seed)
    if any(part.requires_grad for part in source.model.parameters()):
        raise SearchError(
            f"units are scored on a trained model, and the one of {type(judge).__name__} is "
            "trained under each mask: give weights= and adapt='none'"
        )
    by_task: dict[int, list[Batch]] = {}
    for batch in source.held_out:
        by_task.setdefault(int(batch.get("task", 0)), []).append(batch)
    found = [selector(units, source.model, padded(batches)) for batches in by_task.values()]
    return {
        name: [
            sum(level) / len(found) for level in zip(*(one[name] for one in found), strict=True)
        ]
        for name in units.names
    }


def padded(batches: Sequence[Batch]) -> list[Batch]:
    """The batches, all as long as the longest; `task` gets an axis."""
    width = max(batch["input_ids"].shape[-1] for batch in batches)
    found = []
    for batch in batches:
        ids = batch["input_ids"]
        room = (0, width - ids.shape[-1])
        same = {n: F.pad(part, room) for n, part in batch.items() if part.shape == ids.shape}
        task = {"task": batch["task"].reshape(1)} if "task" in batch else {}
        found.append({**batch, **same, **task})
    return found


def by_unit(units: ms.Units, worth: Tensor) -> Scores:
    """Scores from what each level is worth in each layer and head, `[levels, layers, heads]`."""
    pooled = torch.stack([units.pool(level) for level in worth], 1)
    return dict(zip(units.names, pooled.tolist(), strict=False))  # a last layer may have no units
