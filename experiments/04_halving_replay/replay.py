"""Replays recorded curves in the asynchronous order that a number of slots would give."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from curves import Curve

from masksearch.analysis.pareto import hypervolume
from masksearch.contracts import Objective, Report, Scheduler


@dataclass(frozen=True)
class Outcome:
    """What a replayed search has cost and found."""

    finished: list[tuple[int, Curve]]  # with the steps of all trials that had ended by then
    steps: int  # of all trials, those that were stopped included

    def front(self, objectives: Sequence[Objective], budget: float = float("inf")) -> float:
        """Hypervolume of the trials that finished before `budget` steps were spent."""
        points = [(c.score, c.sparsity) for spent, c in self.finished if spent <= budget]
        return hypervolume(points, objectives)


def replay(curves: Sequence[Curve], slots: int, scheduler: Scheduler | None) -> Outcome:
    """Runs the trials in their order on `slots` slots, each at its recorded pace.

    A slot takes the next trial as soon as its own has ended or was stopped.
    """
    waiting = iter(enumerate(curves))
    events: list[tuple[float, int, int]] = []  # time, trial, number of its report
    finished: list[tuple[int, Curve]] = []
    begun: dict[int, float] = {}
    reports = [[*sorted(curve.losses), curve.last] for curve in curves]
    spent = 0

    def schedule(number: int, report: int) -> None:
        curve = curves[number]
        passed = curve.seconds * reports[number][report] / curve.last
        heapq.heappush(events, (begun[number] + passed, number, report))

    def start(now: float) -> None:
        if (following := next(waiting, None)) is not None:
            begun[following[0]] = now
            schedule(following[0], 0)

    for _ in range(slots):
        start(0.0)
    while events:
        now, number, index = heapq.heappop(events)
        curve, step = curves[number], reports[number][index]
        if index + 1 == len(reports[number]):
            spent += step
            finished.append((spent, curve))
            start(now)
        elif scheduler is not None and not scheduler.observe(
            number, Report(step, {"loss": curve.losses[step]}), {"sparsity": curve.sparsity}
        ):
            spent += step
            start(now)
        else:
            schedule(number, index + 1)
    return Outcome(finished, spent)
