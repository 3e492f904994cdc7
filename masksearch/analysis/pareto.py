"""The Pareto front of a study, and the hypervolume that it dominates."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from masksearch.contracts import Objective, Record, Status


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


Key = tuple[float, ...]  # one number an objective, smaller is better


@dataclass(frozen=True)
class Snapshot:
    """State of a search after one of its records."""

    finished: int  # records so far, failed and stopped ones and baselines included
    front: tuple[Record, ...]  # as `frontier.pareto`: best value of the first objective first
    hypervolume: float  # of the front; NaN where an objective's `worst` is not finite
    joined: bool  # whether this record is on the front (it may leave it later)
    statuses: Mapping[Status, int]  # records so far, by status
    seconds: float  # compute so far, in seconds, failed and stopped records included

    @property
    def best(self) -> Record | None:
        """The record with the best first objective; None while the front is empty."""
        return self.front[0] if self.front else None

    def count(self, status: Status) -> int:
        """Records with that status so far."""
        return self.statuses.get(status, 0)


class LiveFront:
    """The front and the hypervolume of the records so far, without looking back at them.

    After any records, in any order, it holds what `frontier.pareto` and `frontier.hypervolume`
    give for all of them. A record costs O(log n) for two objectives and O(n) for any other
    number, where n is the size of the front (not the number of records), plus the hypervolume
    of the part that it adds.

    Args:
        objectives: Those of the study, at least one.

    Raises:
        ValueError: If there is no objective.
    """

    def __init__(self, objectives: Sequence[Objective]) -> None:
        if not objectives:
            raise ValueError("a front needs at least one objective, got none")
        self.objectives = tuple(objectives)
        self.measurable = all(math.isfinite(o.worst) for o in self.objectives)
        self.clear()

    def clear(self) -> None:
        """Forgets every record."""
        self.keys: list[Key] = []  # of the front, ascending
        self.boxes: list[Key] = []  # their gains over each `worst`
        self.members: list[Record] = []
        self.protocol: str | None = None
        self.hypervolume = 0.0 if self.measurable else math.nan
        self.finished, self.seconds = 0, 0.0
        self.statuses: dict[Status, int] = {}
        self.front: tuple[Record, ...] = ()

    def restore(self, records: Iterable[Record]) -> Snapshot:
        """Starts again with the finished records that a resumed study holds."""
        self.clear()
        for record in records:
            self.update(record)
        return self.snapshot(joined=False)

    def update(self, record: Record) -> Snapshot:
        """Takes one record; one that is still running changes nothing.

        Raises:
            KeyError: If a scored record lacks an objective.
            ValueError: If scored records come from more than one protocol.
        """
        joined = False
        if record.status != "running":
            joined = record.scored and self.enter(record)
            self.finished += 1
            self.seconds += record.seconds
            self.statuses[record.status] = self.statuses.get(record.status, 0) + 1
        if joined:
            self.front = tuple(self.members)
        return self.snapshot(joined)

    def snapshot(self, joined: bool) -> Snapshot:
        """The state as it is now."""
        return Snapshot(
            self.finished,
            self.front,
            self.hypervolume,
            joined,
            MappingProxyType(dict(self.statuses)),
            self.seconds,
        )

    # -- inside --------------------------------------------------------------------------------
    def enter(self, record: Record) -> bool:
        """Puts a scored record on the front, if it belongs there."""
        values = [record.value(objective.name) for objective in self.objectives]
        if self.protocol not in (None, record.protocol):
            raise ValueError(
                f"a front needs records of one protocol, got {self.protocol!r} and then "
                f"{record.protocol!r}; filter them by record.protocol"
            )
        self.protocol = record.protocol
        if not all(map(math.isfinite, values)):
            return False
        key = tuple(
            -value if objective.goal == "max" else value
            for value, objective in zip(values, self.objectives, strict=True)
        )
        place = bisect_left(self.keys, key)
        if place < len(self.keys) and self.keys[place] == key:  # of equals, the lowest number
            earlier = record.number < self.members[place].number
            if earlier:
                self.members[place] = record
            return earlier
        # Only what sorts before can dominate it; of two objectives, only the neighbour can.
        rivals = self.keys[max(0, place - 1) : place] if len(key) == 2 else self.keys[:place]
        if any(all(a <= b for a, b in zip(rival, key, strict=True)) for rival in rivals):
            return False
        box = gains(values, self.objectives) if self.measurable else ()
        if len(key) == 2:
            end = place
            while end < len(self.keys) and self.keys[end][1] >= key[1]:
                end += 1
            self.grow(box, self.boxes[max(0, place - 1) : end + 1])
            self.keys[place:end] = [key]
            self.boxes[place:end] = [box]
            self.members[place:end] = [record]
            return True
        self.grow(box, self.boxes)
        kept = [
            index
            for index, other in enumerate(self.keys)
            if not all(a <= b for a, b in zip(key, other, strict=True))
        ]
        self.keys = [self.keys[index] for index in kept]
        self.boxes = [self.boxes[index] for index in kept]
        self.members = [self.members[index] for index in kept]
        place = bisect_left(self.keys, key)
        self.keys.insert(place, key)
        self.boxes.insert(place, box)
        self.members.insert(place, record)
        return True

    def grow(self, box: Key, others: Iterable[Key]) -> None:
        """Adds the volume of `box` that lies in none of the others."""
        if not self.measurable or min(box) <= 0:
            return
        shared = [
            tuple(min(a, b) for a, b in zip(box, other, strict=True))
            for other in others
            if min(other) > 0
        ]
        self.hypervolume += max(0.0, math.prod(box) - volume(shared))
