"""The Pareto front while a search runs: fed record by record, never computed anew."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from masksearch.contracts import Objective, Record, Status
from masksearch.results.frontier import gains, volume

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
