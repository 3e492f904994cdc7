"""One call of `search` or `compare`: what stands between a strategy and an executor."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from masksearch.contracts import (
    Budget,
    EquipsJobs,
    Evaluate,
    Evaluator,
    Executor,
    Listener,
    Proposal,
    Record,
    Refused,
    RemembersRecords,
    Report,
    Scheduler,
    Strategy,
)
from masksearch.errors import MaskSearchError, SearchError
from masksearch.masks.lower import lower
from masksearch.masks.measure import measures, table_fingerprint
from masksearch.study.constraints import Constraint
from masksearch.study.status import StatusBoard
from masksearch.study.store import StudyStore

FIRST_FAILURES = 5  # a search whose first trials all fail stops
ROW_OF_FAILURES = 20  # so does one with that many failures in a row


class Session:
    """One call of `search` or `compare`: the strategy as the executor sees it.

    Between strategy and executor it writes every proposal before it runs, answers equal masks
    from what has been run, refuses what cannot run, hands interrupted trials out again under
    their own numbers, asks the scheduler at each report, and counts the budget.

    Args:
        store: The study, open for writing.
        strategy: Proposes jobs.
        evaluator: Judges masks.
        seed: Seed of every evaluation whose proposal names none.
        budget: When to end.
        constraints: Violated ones make a trial "stopped".
        scheduler: Ends trials early; None = every trial runs to its end.
        listeners: Called with every finished record.
        queue: Jobs that come before the strategy's (baselines).
        strict: Whether a search whose first trials all fail stops.
        title: What the status file says of the run.
    """

    def __init__(
        self,
        store: StudyStore,
        strategy: Strategy,
        evaluator: Evaluator,
        seed: int,
        budget: Budget,
        *,
        constraints: Sequence[Constraint] = (),
        scheduler: Scheduler | None = None,
        listeners: Sequence[Listener] = (),
        queue: Sequence[Proposal] = (),
        strict: bool = True,
        title: str = "",
    ) -> None:
        self.store, self.strategy, self.evaluator = store, strategy, evaluator
        self.seed, self.budget, self.constraints = seed, budget, tuple(constraints)
        self.scheduler, self.listeners = scheduler, listeners
        self.queue, self.strict = deque(queue), strict
        self.board = StatusBoard(store.run, evaluator.objectives, budget, title)
        self.started = time.monotonic()
        self.draws: dict[int, int] = {}  # trial number -> the strategy's draw (-1: none)
        self.open: dict[int, Record] = {}  # running trials, as they were begun
        self.again: deque[Record] = deque()  # trials that run (again) before anything new
        self.interrupted: set[int] = set()  # those that another call had begun
        self.out: set[int] = set()  # in the executor's hands
        self.deferred: list[Record] = []  # equal to a mask that is running
        self.results: dict[tuple[str, str, int, str], Record] = {}
        self.decided: dict[tuple[int, int], bool] = {}  # (trial, step) -> the scheduler's answer
        self.counted = 0
        self.failures: list[Record] = []  # in a row
        self.finished = 0

    def restore(self) -> None:
        """Tells everyone what the study holds; interrupted trials run again."""
        self.draws = self.store.draws()
        told = self.store.told()
        ended = [record for record in told if record.status != "running"]
        if self.scheduler is not None:
            known = {record.number: record.measures for record in told}
            for seen in self.store.observations():
                self.scheduler.observe(seen.number, seen.report, known[seen.number])
                self.decided[seen.number, seen.report.step] = seen.goes_on
        for record in told:
            draw = self.draws[record.number]
            if draw >= 0:
                self.strategy.tell(replace(record, number=draw))
            if record.status == "running":
                self.again.append(record)
                self.interrupted.add(record.number)
                self.open[record.number] = record
            else:
                self.note(record)
        for listener in self.listeners:
            if isinstance(listener, RemembersRecords):
                listener.restore(ended)
        done = {record.origin for record in told}
        self.queue = deque(p for p in self.queue if p.origin == "compare" or p.origin not in done)
        self.failures, self.finished = [], 0
        self.board.restore(ended, self.expected())

    def expected(self) -> int | None:
        """Records that this call will bring, where that is known."""
        trials = self.budget.trials
        if trials is None and self.strict:
            return None
        others = len(self.queue) + sum(self.draws[record.number] < 0 for record in self.again)
        return others + max(0, (trials or 0) - self.counted)

    def run_on(self, executor: Executor) -> None:
        """Lets the executor work until the budget is spent."""
        state = "interrupted"
        try:
            executor.run(
                self,
                self.evaluator,
                budget=self.budget,
                seed=self.seed,
                workdir=self.store.run,
                on_record=lambda record: None,
                on_report=self.report,
            )
            state = "ended"
        except SearchError as error:
            state = f"stopped: {error}"
            raise
        finally:
            self.board.end(state)

    # -- the executor's side -------------------------------------------------------------------
    def ask(self) -> Proposal | Literal["wait", "done"]:
        """The next job to run: interrupted ones first, then baselines, then the strategy's."""
        while True:
            if self.again:
                record = self.again.popleft()
                settled = self.settled(record)
                if settled is None:
                    return self.handed_out(record)
                if settled.status != "running":
                    self.settle(settled)
                continue
            if self.budget.seconds is not None and self.elapsed >= self.budget.seconds:
                return "done"
            draw = -1
            if self.queue:
                proposal = self.queue.popleft()
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
                return self.handed_out(record)
            if settled.status != "running":
                self.settle(settled)

    def handed_out(self, record: Record) -> Proposal:
        """A stored record as the proposal that it was, now on its way to an executor."""
        starts = 0
        if record.number in self.interrupted:
            self.interrupted.discard(record.number)
            starts = self.store.again(record.number) - 1
        self.board.began(record)
        self.out.add(record.number)
        strategy, job = self.strategy, record.job
        return Proposal(
            record.number,
            strategy.equipped(job) if isinstance(strategy, EquipsJobs) else job,
            record.params,
            record.origin,
            record.seed,
            record.memo,
            starts,
        )

    def report(self, number: int, report: Report) -> bool:
        """Takes a running job's report; False = the scheduler ends it here."""
        self.board.reported(number, report)
        record = self.open.get(number)
        if self.scheduler is None or record is None or not isinstance(record.job, Evaluate):
            return True
        key = number, report.step
        if key not in self.decided:
            goes_on = bool(self.scheduler.observe(number, report, record.measures))
            goes_on |= self.draws[number] < 0  # baselines are compared with, and never ended
            self.store.observe(number, report, goes_on)
            self.decided[key] = goes_on
        return self.decided[key]

    def tell(self, record: Record) -> None:
        """Takes a finished job: writes it, passes it on, answers equal masks that waited."""
        begun = self.open[record.number]
        record = replace(
            record,
            fingerprint=begun.fingerprint,
            measures=begun.measures,
            protocol=begun.protocol,
            memo=begun.memo,
        )
        if record.status == "done" and isinstance(record.job, Evaluate):
            reason = self.violation(record, early=False)
            if reason:
                record = replace(record, status="stopped", error=reason)
        self.settle(record)
        waiting = [r for r in self.deferred if self.key_of(r) == self.key_of(record)]
        self.deferred = [r for r in self.deferred if self.key_of(r) != self.key_of(record)]
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
        reason = self.violation(record, early=True)
        if reason:
            return replace(record, status="stopped", error=reason)
        same = self.results.get(self.key_of(record))
        if same is not None:
            return replace(
                record,
                status="reused" if same.status == "done" else "stopped",
                values=same.values,
                step=same.step,
                curve=same.curve,
                artifacts={"reused_from": str(same.number)},
                error=same.error,
            )
        if any(self.key_of(self.open[number]) == self.key_of(record) for number in self.out):
            self.deferred.append(record)
            return record
        return None

    def key_of(self, record: Record) -> tuple[str, str, int, str]:
        """What makes two trials the same: (fingerprint, protocol, seed), never the parameters.

        Where the evaluator looks at the mask at another length than its shape's, masks that are
        equal there may differ, and only equal expressions are the same.
        """
        beyond = getattr(self.evaluator, "beyond_shape", False)
        digest = record.mask.digest if beyond and record.mask is not None else ""
        return record.fingerprint, record.protocol, record.seed, digest

    def violation(self, record: Record, *, early: bool) -> str:
        """Why a record violates a constraint; empty where it keeps all of that kind."""
        reasons = (c.violated_by(record) for c in self.constraints if c.early is early)
        return next(filter(None, reasons), "")

    def settle(self, record: Record) -> None:
        """A record is final: disk first, then the strategy, then the listeners."""
        self.store.finish(record)
        self.open.pop(record.number, None)
        self.out.discard(record.number)
        self.note(record)
        if self.draws[record.number] >= 0:
            self.strategy.tell(replace(record, number=self.draws[record.number]))
        self.board.ended(record)
        for listener in self.listeners:
            listener(record)
        self.stop_if_hopeless()

    def note(self, record: Record) -> None:
        """Counts a finished record and remembers its result."""
        self.finished += 1
        self.failures = [*self.failures, record] if record.status == "failed" else []
        if self.draws[record.number] >= 0 and record.status != "failed":
            self.counted += 1
        if record.status in ("done", "stopped") and record.curve:
            self.results[self.key_of(record)] = record

    def stop_if_hopeless(self) -> None:
        """Ends a search in which nothing works.

        Raises:
            SearchError: With the first failure's reason.
        """
        count = len(self.failures)
        first = self.strict and count == self.finished == FIRST_FAILURES
        if first or count >= ROW_OF_FAILURES:
            reason = self.failures[0].reason or "no reason given"
            raise SearchError(
                f"the {'first' if first else 'last'} {count} trials all failed; trial "
                f"{self.failures[0].number}: {reason} (all reasons are in {self.store.run})"
            )
