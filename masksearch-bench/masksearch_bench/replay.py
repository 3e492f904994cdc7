"""Searches in simulated time: by the package's own session, with nothing trained."""

from __future__ import annotations

import tempfile
import warnings
from collections import deque
from dataclasses import dataclass
from typing import Any

from optuna.storages import InMemoryStorage

from masksearch import Mask, search
from masksearch.contracts import Evaluator, Proposal, Trials
from masksearch.executors.job import JobRun, idle_strategy_error


@dataclass(frozen=True)
class InTurn:
    """An executor whose slots all take equally long: a result comes after those that were begun
    before it, once every slot has been given another trial.

    Args:
        slots: Trials at a time.
    """

    slots: int = 1

    def run(self, work: Trials) -> None:
        """Runs every job, the longest begun first."""
        begun: deque[Proposal] = deque()
        while True:
            answer = work.ask() if len(begun) < self.slots else "wait"
            if not isinstance(answer, str):
                begun.append(answer)
            elif begun:
                work.tell(JobRun(begun.popleft(), work.evaluator, work.workdir).run(work.report))
            elif answer == "wait":
                raise idle_strategy_error()
            else:
                return


def replayed(space: Any, evaluator: Evaluator, slots: int, **how: Any) -> list[Mask]:
    """The masks that a search has judged, in the order in which they were proposed.

    Args:
        space: As of `ms.search`.
        evaluator: Judges at once.
        slots: Trials at a time.
        **how: What else `ms.search` takes.
    """
    with tempfile.TemporaryDirectory() as run, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of trials that draw a known choice
        storage, executor = InMemoryStorage(), InTurn(slots)
        arguments = {"run": run, "storage": storage, "executor": executor, "progress": None, **how}
        study = search(space, evaluator, baselines={}, **arguments)  # which no table knows
        return [record.mask for record in study.records() if record.scored and record.mask]
