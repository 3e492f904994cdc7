"""Greedy removal: from all units full, round by round the one that loses least goes local.

masksearch search --levels 'star()' --strategy experiments/rivals/greedy_removal.py:GreedyRemoval
ms.search(None, judge, strategy=GreedyRemoval(units, judge.objectives), ..)

It needs more masks than greedy addition to come down to few full units (experiment 14).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import masksearch as ms
from masksearch.contracts import Evaluate, Objective, Proposal, Record

Allocation = tuple[int, ...]


class GreedyRemoval:
    """Lowers one unit a round by one level, until all are local.

    Args:
        space: The layers or heads, and their masks.
        objectives: The first decides.
        tries: Units that a round judges, the most useless by what is known of them: alone local,
            or later their last round; None = all, and then none is judged alone.
    """

    def __init__(
        self, space: ms.Units, objectives: Sequence[Objective], tries: int | None = None
    ) -> None:
        self.units, self.objective, self.tries = space, objectives[0], tries
        self.ended: dict[Allocation, bool] = {}  # what was proposed -> whether it is judged
        self.gains: dict[Allocation, float] = {}
        self.draws = 0
        self.steps, self.batch = self.plan(), list[Allocation]()
        self.masksearch_source = f"{space.masksearch_source} {tries}"

    def ask(self) -> Proposal | Literal["wait", "done"]:
        """The next allocation; "wait" while the round's masks are out."""
        while True:
            for allocation in self.batch:
                if allocation not in self.ended:
                    self.ended[allocation] = False
                    self.draws += 1
                    job = Evaluate(self.units.mask(allocation))
                    name = type(self).__name__
                    return Proposal(self.draws - 1, job, self.units.params(allocation), name)
            if not all(self.ended[allocation] for allocation in self.batch):
                return "wait"
            found = next(self.steps, None)
            if found is None:
                return "done"
            self.batch = found

    def tell(self, record: Record) -> None:
        """Takes a result, or (status "running") learns that an allocation is out."""
        self.draws = max(self.draws, record.number + 1)
        allocation = self.units.allocation(record.params)
        ended = record.status != "running"
        self.ended[allocation] = self.ended.get(allocation, False) or ended
        if record.scored and math.isfinite(value := record.value(self.objective.name)):
            self.gains[allocation] = value if self.objective.goal == "max" else -value

    def plan(self) -> Iterator[list[Allocation]]:
        """Both ends, with `tries` every unit alone local, then the rounds."""
        every = range(len(self.units.names))
        now = (self.units.top,) * len(every)
        yield [(0,) * len(every), now]
        latest = [0.0] * len(every)  # gain per pair of each unit's next step down
        if self.tries is not None:
            yield [lowered(now, unit) for unit in every]
            latest = [self.per_pair(now, unit) for unit in every]
        while free := [unit for unit in every if now[unit]]:
            order = sorted(free, key=lambda unit: (-latest[unit], unit))
            tried = sorted(order[: self.tries])
            yield [lowered(now, unit) for unit in tried]
            for unit in tried:
                latest[unit] = self.per_pair(now, unit)
            now = lowered(now, min(tried, key=lambda unit: (-latest[unit], unit)))

    def per_pair(self, now: Allocation, unit: int) -> float:
        """What lowering a unit by one level gains (loses, below 0) per pair that goes."""
        costs, level = self.units.shares[:, unit], now[unit]
        change = self.gain(lowered(now, unit)) - self.gain(now)
        return change / float(costs[level] - costs[level - 1])

    def gain(self, allocation: Allocation) -> float:
        """How good an allocation is; one without a score is very bad."""
        return self.gains.get(allocation, -1e30)


def lowered(allocation: Allocation, unit: int) -> Allocation:
    """An allocation with one unit a level lower."""
    return (*allocation[:unit], allocation[unit] - 1, *allocation[unit + 1 :])
