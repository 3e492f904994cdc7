"""One call of `search` or `compare`: what stands between a strategy and an executor."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

from masksearch.contracts import (
    Budget,
    Evaluate,
    Evaluator,
    Executor,
    Listener,
    Proposal,
    Record,
    Refused,
    Strategy,
)
from masksearch.errors import MaskSearchError, SearchError, unknown_name
from masksearch.masks.lower import lower
from masksearch.masks.measure import MEASURES, measures, table_fingerprint
from masksearch.results.study_store import StudyStore

FIRST_FAILURES = 5  # a search whose first trials all fail stops
ROW_OF_FAILURES = 20  # so does one with that many failures in a row
CONSTRAINT = re.compile(r"\s*(\w+)\s*(<=|>=|<|>)\s*([-+.\deE]+)\s*")


class Session:
    """One call of `search` or `compare`: the strategy as the executor sees it.

    Between strategy and executor it writes every proposal before it runs, answers equal masks
    from what has been run, refuses what cannot run, hands interrupted trials out again under
    their own numbers, and counts the budget.
    """

    def __init__(
        self,
        store: StudyStore,
        strategy: Strategy,
        evaluator: Evaluator,
        seed: int,
        budget: Budget,
        limits: Sequence[tuple[str, Callable[[float], bool], str]],
        listeners: Sequence[Listener],
        queue: Sequence[Proposal],
        strict: bool = True,
    ) -> None:
        self.store, self.strategy, self.evaluator = store, strategy, evaluator
        self.seed, self.budget, self.limits, self.listeners = seed, budget, limits, listeners
        self.queue, self.strict = list(queue), strict
        self.started = time.monotonic()
        self.draws: dict[int, int] = {}  # trial number -> the strategy's draw (-1: none)
        self.open: dict[int, Record] = {}  # running trials, as they were begun
        self.again: list[Record] = []  # interrupted trials, to be run again
        self.deferred: list[Record] = []  # equal to a mask that is running
        self.results: dict[tuple[str, str, int], Record] = {}
        self.counted = 0
        self.failures: list[Record] = []  # in a row
        self.finished = 0

    def restore(self) -> None:
        """Tells the strategy everything that the study holds; interrupted trials run again."""
        self.draws = self.store.draws()
        told = self.store.told()
        for record in told:
            draw = self.draws[record.number]
            if draw >= 0:
                self.strategy.tell(replace(record, number=draw))
            if record.status == "running":
                self.again.append(record)
                self.open[record.number] = record
            else:
                self.note(record)
        done = {record.origin for record in told}
        self.queue = [p for p in self.queue if p.origin == "compare" or p.origin not in done]
        self.failures, self.finished = [], 0

    def run_on(self, executor: Executor) -> None:
        """Lets the executor work until the budget is spent."""
        executor.run(
            self,
            self.evaluator,
            budget=self.budget,
            seed=self.seed,
            workdir=self.store.run,
            on_record=lambda record: None,
        )

    # -- the executor's side -------------------------------------------------------------------
    def ask(self) -> Proposal | Literal["wait", "done"]:
        """The next job to run: interrupted ones first, then baselines, then the strategy's."""
        while True:
            if self.again:
                return as_proposal(self.again.pop(0))
            if self.budget.seconds is not None and self.elapsed >= self.budget.seconds:
                return "done"
            draw = -1
            if self.queue:
                proposal = self.queue.pop(0)
            else:
                pending = sum(self.draws[n] >= 0 for n in self.open)
                if self.budget.trials is not None and self.counted + pending >= self.budget.trials:
                    return "wait" if pending else "done"
                answer = self.strategy.ask()
                if isinstance(answer, str):
                    return answer
                proposal, draw = answer, answer.number
            record = self.prepared(proposal)
            number = self.store.begin(record, draw)
            record = replace(record, number=number)
            self.draws[number] = draw
            self.open[number] = record
            settled = self.settled(record)
            if settled is None:
                return as_proposal(record)
            if settled.status != "running":
                self.settle(settled)

    def tell(self, record: Record) -> None:
        """Takes a finished job: writes it, passes it on, answers equal masks that waited."""
        begun = self.open[record.number]
        record = replace(record, fingerprint=begun.fingerprint, measures=begun.measures)
        self.settle(record)
        waiting = [r for r in self.deferred if key_of(r) == key_of(record)]
        self.deferred = [r for r in self.deferred if key_of(r) != key_of(record)]
        for other in waiting:
            copy = self.settled(other)
            if copy is not None and copy.status != "running":
                self.settle(copy)
            else:  # the first one failed: the second runs for itself
                self.again.append(other)

    # -- inside --------------------------------------------------------------------------------
    @property
    def elapsed(self) -> float:
        """Seconds of this call so far."""
        return time.monotonic() - self.started

    def prepared(self, proposal: Proposal) -> Record:
        """A proposal as a running record, lowered and measured; or refused with its reason."""
        record = Record(
            number=-1,
            status="running",
            job=proposal.job,
            protocol=self.evaluator.protocol,
            seed=self.seed if proposal.seed is None else proposal.seed,
            params=proposal.params,
            origin=proposal.origin,
            memo=proposal.memo,
        )
        if not isinstance(proposal.job, Evaluate):
            return record
        try:
            mask, shape = proposal.job.mask, self.evaluator.shape
            table = lower(mask, shape)
            known = measures(mask, shape, table=table)
            return replace(record, fingerprint=table_fingerprint(table), measures=known)
        except MaskSearchError as error:
            return replace(record, job=Refused(f"{type(error).__name__}: {error} (mask {mask})"))

    def settled(self, record: Record) -> Record | None:
        """What is known of a proposal without running it; None = it must run. A record that
        equals a running one is put aside and stays "running"."""
        if isinstance(record.job, Refused):
            return replace(record, status="failed", error=record.job.reason)
        if not isinstance(record.job, Evaluate):
            return None
        for name, holds, text in self.limits:
            if not holds(record.value(name)):
                reason = f"violates {text}: {name} = {record.value(name):.6g}"
                return replace(record, status="stopped", error=reason)
        same = self.results.get(key_of(record))
        if same is not None:
            return replace(
                record,
                status="reused",
                values=same.values,
                step=same.step,
                curve=same.curve,
                artifacts={"reused_from": str(same.number)},
            )
        if any(
            key_of(other) == key_of(record)
            for number, other in self.open.items()
            if number != record.number and other not in self.deferred
        ):
            self.deferred.append(record)
            return record
        return None

    def settle(self, record: Record) -> None:
        """A record is final: disk first, then the strategy, then the listeners."""
        self.store.finish(record)
        self.open.pop(record.number, None)
        self.note(record)
        if self.draws[record.number] >= 0:
            self.strategy.tell(replace(record, number=self.draws[record.number]))
        for listener in self.listeners:
            listener(record)
        self.stop_if_hopeless()

    def note(self, record: Record) -> None:
        """Counts a finished record and remembers its result."""
        self.finished += 1
        self.failures = [*self.failures, record] if record.status == "failed" else []
        if self.draws[record.number] >= 0 and record.status != "failed":
            self.counted += 1
        if record.status == "done" and isinstance(record.job, Evaluate):
            self.results[key_of(record)] = record

    def stop_if_hopeless(self) -> None:
        """Ends a search in which nothing works.

        Raises:
            SearchError: With the first failure's reason.
        """
        count = len(self.failures)
        first = self.strict and count == self.finished == FIRST_FAILURES
        if first or count >= ROW_OF_FAILURES:
            reason = self.failures[0].error.strip().splitlines() or ["no reason given"]
            raise SearchError(
                f"the {'first' if first else 'last'} {count} trials all failed; trial "
                f"{self.failures[0].number}: {reason[-1]} (all reasons are in {self.store.run})"
            )


def as_proposal(record: Record) -> Proposal:
    """A stored record as the proposal that it was."""
    return Proposal(
        record.number, record.job, record.params, record.origin, record.seed, record.memo
    )


def key_of(record: Record) -> tuple[str, str, int]:
    """What makes two trials the same: (fingerprint, protocol, seed), never the parameters."""
    return record.fingerprint, record.protocol, record.seed


def parsed_constraint(text: str) -> tuple[str, Callable[[float], bool], str]:
    """`"sparsity >= 0.9"` as (name, predicate, text).

    Raises:
        ValueError: If the text is not `NAME <= NUMBER` or the like, or NAME is no measure.
    """
    match = CONSTRAINT.fullmatch(text)
    if match is None:
        raise ValueError(f"a constraint reads like 'sparsity >= 0.9', got {text!r}")
    name, sign, limit = match[1], match[2], float(match[3])
    if name not in MEASURES:
        raise unknown_name("measure", name, MEASURES)
    tests: dict[str, Callable[[float], bool]] = {
        "<=": lambda value: value <= limit,
        ">=": lambda value: value >= limit,
        "<": lambda value: value < limit,
        ">": lambda value: value > limit,
    }
    return name, tests[sign], text
