"""Runs many small jobs at once in this process, as one program, where the evaluator offers it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch

from masksearch.contracts import (
    Budget,
    Evaluate,
    Evaluator,
    Listener,
    OnReport,
    Proposal,
    Record,
    Report,
    Strategy,
)
from masksearch.errors import SearchError
from masksearch.executors.job import Work, folder_of, nothing_to_wait_for
from masksearch.executors.local import SUSPECT, Pool
from masksearch.masks.core import Mask


@runtime_checkable
class TrainsTogether(Protocol):
    """An evaluator that can judge several masks as one program."""

    def together(self, masks: Sequence[Mask], *, seeds: Sequence[int]) -> list[Iterator[Report]]:
        """For each mask the reports that a call of the evaluator would give.

        The iterators are generators that are advanced in any order. What goes wrong with one
        mask is raised by its own iterator; closing one leaves the others as they are.

        Args:
            masks: One for each run.
            seeds: Seed of each run.

        Raises:
            SearchError: If this evaluator cannot do so after all.
        """
        ...


@dataclass(frozen=True)
class Together:
    """Executor for many small trials on one device: their models train as one program.

    One small model leaves a GPU mostly idle; many at once take hardly longer than one. The
    records are those of `Local()` to float tolerance, told in the order of the proposals, all of
    a group once its last job has ended. A strategy that learns from results sees those of the
    groups before, as with as many slots. Jobs that are no masks (DAM) run alone, between groups.
    `seconds` of a record is the wall time since its group began.

    Args:
        slots: Largest number of jobs in a group. Their weights, gradients, two moments and
            activations must fit in memory together.
    """

    slots: int = 16

    def __post_init__(self) -> None:
        if self.slots < 1:
            raise ValueError(f"slots must be at least 1, got {self.slots}")

    def run(
        self,
        strategy: Strategy,
        evaluator: Evaluator,
        *,
        budget: Budget,
        seed: int,
        workdir: Path,
        on_record: Listener,
        on_report: OnReport,
    ) -> None:
        """Asks until the strategy is done; see `masksearch.contracts.Executor`.

        Raises:
            SearchError: If the evaluator does not train masks together.
        """
        if not isinstance(evaluator, TrainsTogether):
            raise SearchError(
                f"Together() trains masks as one program, which {type(evaluator).__name__} does "
                "not offer (it has no method `together`); use Local() or RayTune()"
            )
        evaluator.together([], seeds=[])  # refuses before anything has begun
        alone = Pool(1, torch.get_num_threads(), evaluator, seed, workdir, on_report)
        while proposals := self.asked(strategy):
            group = [proposal for proposal in proposals if fits(proposal)]
            works = [
                Work(each, evaluator, seed=seed, workdir=workdir, folder=folder_of(each))
                for each in group
            ]
            records = finished(works, evaluator.together, on_report)
            for proposal in proposals:
                if proposal.number in records:
                    record = records[proposal.number]
                else:
                    record = alone.here(proposal)
                on_record(record)
                strategy.tell(record)

    def asked(self, strategy: Strategy) -> list[Proposal]:
        """As many proposals as there are slots, or fewer; none = the strategy is done."""
        proposals: list[Proposal] = []
        while len(proposals) < self.slots:
            proposal = strategy.ask()
            if proposal == "wait" and not proposals:
                raise nothing_to_wait_for()
            if isinstance(proposal, str):
                break
            proposals.append(proposal)
        return proposals


def fits(proposal: Proposal) -> bool:
    """Whether a job can run with others: a mask that has not taken a process down twice."""
    return isinstance(proposal.job, Evaluate) and proposal.starts < SUSPECT


def finished(
    works: Sequence[Work],
    together: Callable[..., list[Iterator[Report]]],
    on_report: OnReport,
) -> dict[int, Record]:
    """Runs jobs as one program to their ends; their records by proposal number."""
    runs = together(
        [work.proposal.job.mask for work in works if isinstance(work.proposal.job, Evaluate)],
        seeds=[work.seed for work in works],
    )
    for work, reports in zip(works, runs, strict=True):
        work.place.mkdir(parents=True, exist_ok=True)
        work.reports = reports
    records: dict[int, Record] = {}
    while len(records) < len(works):
        for work in works:
            number = work.proposal.number
            if number in records:
                continue
            report = work.advance()
            if report is None:
                records[number] = work.record()
            elif not on_report(number, report):
                work.stop()
    return records
