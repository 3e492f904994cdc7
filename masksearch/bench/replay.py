"""Searches of a table in simulated time: by the package's own session, with nothing trained."""

from __future__ import annotations

import warnings
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from masksearch.contracts import Proposal, Trials
from masksearch.driver import search
from masksearch.executors.job import JobRun, idle_strategy_error

if TYPE_CHECKING:
    from masksearch.bench.table import Table


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


def replayed(
    table: Table, strategy: Any, run: Path, slots: int = 1, space: Any = None, **how: Any
) -> list[dict[str, Any]]:
    """The choices that a search judges, each once, in the order in which they were proposed."""
    evaluator = table.evaluator()
    if space is None and strategy not in ("allocate", "dam", "prune"):
        space = table.units
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of trials that draw a known choice
        found = search(
            *(space, evaluator),
            run=run,
            storage="journal:journal.log",
            strategy=strategy,
            executor=InTurn(slots),
            progress=None,
            **how,
        )
    masks = [record.mask for record in found.records() if record.scored and record.mask]
    rows: list[dict[str, Any]] = []
    for choice in dict.fromkeys(map(table.choice_of, masks)):
        cell, test = table.query(choice), table.query(choice, "test")
        told = {"choice": choice, "share": cell.share, table.name: cell[table.name]}
        rows.append({**told, "test": test[table.name]})
    return rows
