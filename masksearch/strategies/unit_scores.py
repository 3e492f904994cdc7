"""What layers or heads of a trained model are worth, by its attention weights or gradients."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masksearch.contracts import Batch, Evaluator, Report, Shape
from masksearch.errors import SearchError, unknown_name
from masksearch.files import write_tensors
from masksearch.gates.units import MEASURED, Units
from masksearch.masks.core import Mask
from masksearch.masks.measure import pair_weights
from masksearch.positions.analysis import importance
from masksearch.positions.attention_maps import attention_maps
from masksearch.strategies.switched_units import measure_units, unit_values

METHODS = ("mass", "gradient", "flip")
Scoring = Literal["mass", "gradient", "flip", "switch"]


def score_units(
    units: Units, model: nn.Module, batches: Iterable[Batch], *, method: Scoring = "mass"
) -> dict[str, list[float]]:
    """Scores for `strategy="allocate"` from a trained model, without judging a mask.

    Args:
        units: The layers or heads, and their masks.
        model: As in `importance`; trained, with dense attention.
        batches: List of dicts of tensors, all of one length, at most the units'; with labels,
            except for `"mass"`.
        method: What a pair is worth that only the larger mask keeps: its mean attention weight
            (`"mass"`), or to first order the rise of the loss without it (`"gradient"`, `"flip"`:
            see `importance`). Or, to first order, the rise of the loss where a unit has the local
            mask and all others the full one (`"switch"`), for whole units: no table of pairs is
            made, so that sequences may be long.

    Returns:
        Unit -> a number for each level, from local to full: `strategy_options={"score": ..}`.

    Raises:
        UnknownNameError: For another method.
        ValueError: If the model has another number of layers or heads than the units, or the
            batches are longer; and as `importance`.
    """
    if method == "switch":
        found = padded(list(batches))
        return units.scores_of_planes(unit_values(units.levels, units.shape, model, found, method))
    return units.scores_of(pair_values(units.shape, model, batches, method))


def pair_values(shape: Shape, model: nn.Module, batches: Iterable[Batch], method: str) -> Tensor:
    """What each pair is worth, `[layers, heads, n, n]`; see `score_units`."""
    if method not in METHODS:
        raise unknown_name("method", method, (*METHODS, "switch"))
    values: Tensor | None
    if method == "mass":
        values = attention_maps(model, batches).maps
    else:
        values = importance(
            model, batches, method="flip" if method == "flip" else "gradient"
        ).values
    assert values is not None
    missing = shape.length - values.shape[-1]  # longer batches are refused with the scores
    values = F.pad(values, (0, missing, 0, missing)) if missing > 0 else values
    if method == "mass" and missing >= 0:  # of rare pairs of long sequences, less
        return values * pair_weights(shape)
    return values


def measure_pairs(
    evaluator: Evaluator,
    method: str,
    *,
    seed: int,
    workdir: Path,
    levels: Sequence[Mask] | None = None,
) -> Iterator[Report]:
    """Measures on an evaluator's trained model what each pair is worth, or each unit, a mean over
    its tasks, and writes that to `workdir / "scores.safetensors"`.

    Args:
        evaluator: Its `differentiable(seed)` has a model of frozen weights, which are taken for
            trained, and held-out batches; their `task` tells tasks apart.
        method: As of `score_units`.
        seed: Of the model.
        workdir: Made if missing.
        levels: The masks of units, which are then measured whole (`unit_values`); None = pairs.

    Yields:
        After each task the batches and the sequences so far.

    Raises:
        SearchError: If the evaluator has no such model, or a loss without labels.
    """
    title = type(evaluator).__name__
    if not evaluator.offers("differentiable"):
        raise SearchError(f"score={method!r} needs a trained model, {title} has none")
    source = evaluator.differentiable(seed)
    if any(part.requires_grad for part in source.model.parameters()):
        raise SearchError(
            f"score={method!r} is measured on a trained model, and the one of {title} is trained "
            "under each mask: give weights= and adapt='none' (--weights, --adapt none), or score "
            "by 'restore' or 'ablate'"
        )
    by_task: dict[int, list[Batch]] = {}
    for batch in source.held_out:
        if batch.keys() & {"target", "hidden"} and method != "mass":
            raise SearchError(
                f"score={method!r} needs the loss on labels: with another learn_from the model is "
                "its own teacher and no pair matters; give learn_from='labels', or score by 'mass'"
            )
        by_task.setdefault(int(batch.get("task", 0)), []).append(batch)
    path = workdir / "scores.safetensors"
    if levels is not None:
        found_tasks = {task: padded(found) for task, found in by_task.items()}
        yield from measure_units(source, evaluator.shape, found_tasks, levels, method, path)
        return
    total, sequences, steps = torch.zeros(()), 0, 0
    for found in by_task.values():
        values = pair_values(evaluator.shape, source.model, padded(found), method)
        total = total + values.float() / len(by_task)
        sequences += sum(len(batch["input_ids"]) for batch in found)
        steps += len(found)
        yield Report(steps, {"sequences": sequences})
    write_tensors(path, {"values": total}, {"format": MEASURED, "method": method}, what="scores")


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
