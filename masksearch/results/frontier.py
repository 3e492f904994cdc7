"""The Pareto front of a study, and the hypervolume that it dominates."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from masksearch.contracts import Objective, Record


@dataclass(frozen=True)
class Progress:
    """State of a search after one of its records."""

    number: int  # the record's number
    trials: int  # done + reused + stopped records so far
    seconds: float  # compute so far, failed and stopped records included
    hypervolume: float  # of the full-fidelity records so far


def gains(values: Sequence[float], objectives: Sequence[Objective]) -> tuple[float, ...]:
    """Distances by which `values` are better than each objective's `worst` (negative = worse).

    Raises:
        ValueError: If there are not as many values as objectives, or a `worst` is not finite.
    """
    if len(values) != len(objectives):
        raise ValueError(f"{len(objectives)} objectives need as many values, got {len(values)}")
    for objective in objectives:
        if not math.isfinite(objective.worst):
            raise ValueError(
                f"objective {objective.name!r} has worst={objective.worst}; the hypervolume "
                "needs a finite reference: choose the worst value that still counts"
            )
    return tuple(
        value - objective.worst if objective.goal == "max" else objective.worst - value
        for value, objective in zip(values, objectives, strict=True)
    )


def dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether gains `a` are nowhere below `b` and somewhere above."""
    return all(x >= y for x, y in zip(a, b, strict=True)) and any(
        x > y for x, y in zip(a, b, strict=True)
    )


def pareto(records: Iterable[Record], objectives: Sequence[Objective]) -> list[Record]:
    """The non-dominated records among those with a full-fidelity result.

    Running, failed and early-stopped records and one-shot jobs never enter, and neither do
    non-finite values. Of several records with equal values in every objective (the same mask
    twice, or a tie) the one with the lowest number stays. A record beyond an objective's
    `worst` may be on the front; it only adds no hypervolume.

    Args:
        records: Any records; several seeds of one mask count as several points, so average
            them first where a mask was run more than once (`Comparison`).
        objectives: At least one.

    Returns:
        Best value of the first objective first.

    Raises:
        KeyError: If a scored record lacks an objective.
        ValueError: If there is no objective, or if the scored records come from more than one
            protocol: their scores cannot be ranked against each other.
    """
    if not objectives:
        raise ValueError("a front needs at least one objective, got none")
    scored = sorted((r for r in records if r.scored), key=lambda r: r.number)
    protocols = {r.protocol for r in scored}
    if len(protocols) > 1:
        raise ValueError(
            "a front needs records of one protocol, got "
            f"{', '.join(sorted(map(repr, protocols)))}; filter them by record.protocol"
        )
    points: list[tuple[tuple[float, ...], Record]] = []
    for record in scored:
        point = tuple(
            record.value(o.name) if o.goal == "max" else -record.value(o.name) for o in objectives
        )
        if all(map(math.isfinite, point)):
            points.append((point, record))
    # Sorted best first, a point can only be dominated by, or tie with, an earlier one.
    points.sort(key=lambda item: (tuple(-x for x in item[0]), item[1].number))
    front: list[tuple[tuple[float, ...], Record]] = []
    for point, record in points:
        if not any(kept == point or dominates(kept, point) for kept, _ in front):
            front.append((point, record))
    return [record for _, record in front]


def hypervolume(points: Iterable[Sequence[float]], objectives: Sequence[Objective]) -> float:
    """Exact volume dominated by `points`, measured from each objective's `worst`.

    Args:
        points: One value per objective, in the objectives' units. Points at or beyond a
            `worst` add nothing; duplicates and dominated points change nothing.
        objectives: Any number (>= 1). Two take O(n log n); each further one a factor of n.

    Returns:
        The product of the objectives' units; 0.0 for no points.

    Raises:
        ValueError: If a coordinate or a `worst` is not finite, or a point has the wrong size.

    Reference: hypervolume by slicing objectives, While et al., IEEE TEC 10(1), 2006.

    >>> score, sparsity = Objective("glue", "max", 0.0), Objective("sparsity", "max", 0.0)
    >>> hypervolume([(2.0, 1.0), (1.0, 3.0)], (score, sparsity))
    4.0
    """
    if not objectives:
        raise ValueError("a hypervolume needs at least one objective, got none")
    boxes: list[tuple[float, ...]] = []
    for point in points:
        if not all(map(math.isfinite, point)):
            raise ValueError(f"a point of the hypervolume must be finite, got {tuple(point)}")
        box = gains(point, objectives)
        if all(side > 0 for side in box):
            boxes.append(box)
    return volume(boxes)


def volume(boxes: list[tuple[float, ...]]) -> float:
    """Volume of the union of boxes from the origin to each (positive) corner."""
    if not boxes:
        return 0.0
    if len(boxes[0]) == 1:
        return max(box[0] for box in boxes)
    boxes = sorted(boxes, key=lambda box: box[-1], reverse=True)
    total = 0.0
    if len(boxes[0]) == 2:
        width = 0.0
        for first, second in boxes:  # the second side shrinks, so only a new width adds area
            if first > width:
                total += (first - width) * second
                width = first
        return total
    base: list[tuple[float, ...]] = []  # the non-dominated faces of the slice
    for index, box in enumerate(boxes):
        face = box[:-1]
        if not any(other == face or dominates(other, face) for other in base):
            base = [other for other in base if not dominates(face, other)] + [face]
        below = boxes[index + 1][-1] if index + 1 < len(boxes) else 0.0
        if box[-1] > below:
            total += volume(base) * (box[-1] - below)
    return total


def hypervolume_curve(
    records: Iterable[Record], objectives: Sequence[Objective]
) -> list[Progress]:
    """The front's hypervolume after each finished record, in the order given.

    A study gives its records in the order of their completion. Failed ones add their seconds
    but no trial: a search pays for its failures. Leave baselines out (`record.origin`) where
    strategies are compared.

    Raises:
        KeyError: If a scored record lacks an objective.
        ValueError: If a `worst` is not finite.
    """
    curve: list[Progress] = []
    front: list[tuple[float, ...]] = []
    trials, seconds, reached = 0, 0.0, 0.0
    for record in records:
        if record.status == "running":
            continue
        trials += record.status in ("done", "reused", "stopped")
        seconds += record.seconds
        if record.scored:
            box = gains([record.value(o.name) for o in objectives], objectives)
            useful = all(math.isfinite(side) and side > 0 for side in box)
            if useful and not any(kept == box or dominates(kept, box) for kept in front):
                front = [kept for kept in front if not dominates(box, kept)] + [box]
                reached = volume(front)
        curve.append(Progress(record.number, trials, seconds, reached))
    return curve
