"""One call of `search` or `compare`: what stands between a strategy and an executor.

The life of a trial, and (right) what the study holds of it from then on:

    READY     a proposal of the strategy, or a baseline;         RUNNING: draw, job, seed,
      |       its mask lowered and measured                      fingerprint, measures
      |--> FINISHED at once, if it is refused, violates a constraint, or its bits were judged
      |--> TWIN, if its bits are running now; READY again when that trial has finished
      v  ask() hands it out
    RUNNING   with the executor; report() may end it             each answer of the scheduler
      |--> the driver is killed: the next call finds it READY, and counts one more start
      v  tell() checks constraints on results
    FINISHED  written, told to the strategy, the status          the result with its curve, then
              file and the listeners                             the state (COMPLETE, PRUNED, FAIL)
"""

from __future__ import annotations

import contextlib
import inspect
import re
import time
import traceback
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from masksearch.analysis.pareto import IN_A_ROW, SPENT, cost_of, keeps_budget, search_cautions
from masksearch.contracts import (
    BEYOND,
    Evaluate,
    Evaluator,
    Executor,
    FollowsReports,
    Listener,
    Proposal,
    Record,
    Refused,
    RemembersRecords,
    Report,
    Scheduler,
    Strategy,
)
from masksearch.errors import (
    NO_MEMORY,
    EvaluatorError,
    MaskSearchError,
    SearchError,
    cut_middle,
    warn,
)
from masksearch.masks.measure import fingerprint, measures
from masksearch.study.records import Constraint, evaluator_settings, trial_source
from masksearch.study.status import StatusBoard
from masksearch.study.storage import passwords_in, redact
from masksearch.study.store import StudyStore
from masksearch.user_code import BUDGET, describe_error

LONGEST = 20_000  # characters of an error that are kept
LONGEST_REASON = 400  # characters of it that the error of a whole search shows
FIRST_FAILURES = 5  # a search whose first trials all fail stops
# Reasons that another mask may not meet, though the line is the same
CHANCE = re.compile(f"{NO_MEMORY.pattern}|Timeout|sys.exit", re.I)
EARLY = 4  # trained masks after which it is said that their scores say nothing
ROW_OF_FAILURES = 20  # so does one with that many failures in a row
REFUSALS = 50  # draws in a row beyond their budgets after which a search ends
SPOKEN = 5  # draws beyond one budget after which it is said what they cost
# What a record takes over from its proposal as it is
SHARED = ("job", "params", "origin", "strategy_state", "name", "role", "source")
Key = tuple[str, str, int, str]


@dataclass
class OpenTrial:
    """A trial that has begun and not finished."""

    record: Record  # as it was begun
    draw: int  # the strategy's own number; -1 = no strategy drew it
    state: Literal["ready", "running", "twin"] = "ready"
    restored: bool = False  # begun by an earlier call, and not yet by this one
    answers: dict[int, bool] = field(default_factory=dict)  # step -> the scheduler's answer
    passed_on: set[int] = field(default_factory=set)  # steps that the listeners know

    @property
    def counts(self) -> bool:
        """Whether it is a trial of the strategy, and no baseline."""
        return self.draw >= 0 and self.record.role == "trial"


@dataclass(frozen=True)
class Limits:
    """How far one call goes, and which draws count.

    Args:
        title: What the status file says of the run.
        trials: End after that many done or stopped of the strategy; baselines come on top, and
            so do draws of masks that are known already.
        seconds: End after that much wall time of this call.
        constraints: Violated ones make a trial "stopped".
        budgets: A draw that costs more than its parameter `budget`, or without one than the
            largest of these, is refused: it is not trained, and counts as no trial.
        strict: Whether a search whose first trials all fail stops.
    """

    title: str = ""
    trials: int | None = None
    seconds: float | None = None
    constraints: tuple[Constraint, ...] = ()
    budgets: Sequence[float] = ()
    strict: bool = True


class Session:
    """The trials of one call, as the executor gets them (`masksearch.contracts.Trials`).

    Args:
        store: The study, open for writing.
        strategy: Proposes jobs.
        evaluator: Judges masks.
        seed: Seed of every evaluation whose proposal names none.
        limits: How far this call goes.
        scheduler: Ends trials early; None = every trial runs to its end.
        listeners: Called with every finished record, and reports (`FollowsReports`).
        queue: Jobs that come before the strategy's (baselines; the strategy learns from those
            that have a number, which is a draw of its own).
    """

    def __init__(
        self,
        store: StudyStore,
        strategy: Strategy,
        evaluator: Evaluator,
        seed: int,
        limits: Limits,
        *,
        scheduler: Scheduler | None = None,
        listeners: Sequence[Listener] = (),
        queue: Sequence[Proposal] = (),
    ) -> None:
        self.store, self.strategy, self.evaluator = store, strategy, evaluator
        self.seed, self.limits = seed, limits
        self.scheduler, self.listeners, self.queue = scheduler, listeners, deque(queue)
        how = limits.trials, limits.seconds, limits.title
        self.board = StatusBoard(store.run, evaluator.objectives, *how)
        self.passwords = store.passwords | passwords_in(evaluator_settings(evaluator))
        self.started = time.monotonic()
        self.open: dict[int, OpenTrial] = {}  # by trial number
        self.results: dict[Key, Record] = {}  # of every known mask: what it is answered with
        self.counted = 0  # towards the budget, those of earlier calls too
        self.finished = 0  # by this call
        self.failures: list[Record] = []  # in a row, the last ones of this call
        self.trained = 0  # masks, those of earlier calls too
        self.drawn = 0  # those of them that the strategy proposed
        self.repeats = 0  # draws of known masks in a row, but for those that failed
        self.refusals = 0  # draws in a row beyond their budgets
        self.beyond: dict[float, list[float]] = {}  # budget -> costs of all draws beyond it
        self.exhausted = False  # the strategy has nothing left to propose

    @property
    def workdir(self) -> Path:
        """The run folder."""
        return self.store.run

    def restore(self) -> None:
        """Tells everyone what the study holds; interrupted trials run again."""
        trials = self.store.in_order()
        all_records = [trial.record for trial in trials]
        for trial in trials:
            record, draw = trial.record, trial.draw
            if draw >= 0:
                self.strategy.tell(replace(record, number=draw))
            if record.status == "running":
                answers = {answer.report.step: answer.goes_on for answer in trial.answers}
                self.open[record.number] = OpenTrial(record, draw, restored=True, answers=answers)
            else:
                self.count(record, draw)
        self.failures, self.finished = [], 0
        if self.scheduler is not None:
            shown = {answer.order: (answer, t.record) for t in trials for answer in t.answers}
            for _, (answer, record) in sorted(shown.items()):
                self.scheduler.observe(record.number, answer.report, record.measures)
        ended = [each for each in all_records if each.status != "running" and not each.refused]
        for listener in self.listeners:
            if isinstance(listener, RemembersRecords):
                listener.restore(ended)
        judged = {each.name: each.mask for each in all_records if each.role == "baseline"}
        for each in self.queue:
            old, mask = judged.get(each.name), getattr(each.job, "mask", None)
            if each.role == "baseline" and old is not None and old != mask:
                raise SearchError(
                    f"the baseline {each.name!r} is {mask!s:.80} here, and was judged as "
                    f"{old!s:.80}; give it another name"
                )
        self.queue = deque(p for p in self.queue if p.role != "baseline" or p.name not in judged)
        self.board.restore(ended, self.expected())

    def expected(self) -> int | None:
        """Records that this call will bring, where that is known."""
        if self.limits.trials is None and self.limits.strict:
            return None
        others = len(self.queue) + sum(not trial.counts for trial in self.open.values())
        return others + max(0, (self.limits.trials or 0) - self.counted)

    @property
    def seeds(self) -> list[int]:
        """Seeds of the evaluations that are to come, each once."""
        jobs = [trial.record.seed for trial in self.open.values()]
        jobs += [self.seed if job.seed is None else job.seed for job in self.queue]
        if self.limits.strict and (
            self.limits.trials is None or self.counted < self.limits.trials
        ):
            jobs.append(self.seed)
        return list(dict.fromkeys(jobs))

    def run_on(self, executor: Executor) -> None:
        """Lets the executor work until the budget is spent.

        Raises:
            SearchError: If nothing works, the disk is full, or `executor` is of another make.
        """
        state = "interrupted"
        try:
            _check_executor(executor)
            self.board.slots = getattr(executor, "slots", None)
            executor.run(self)
            self._say_cautions()
            state = "ended"
        except Exception as error:  # Ctrl-C is none
            text = redact(str(error), self.passwords)
            state = f"stopped: {' '.join(text.split()) or type(error).__name__}"
            raise
        finally:
            self.board.end(state)

    # -- the executor's side -------------------------------------------------------------------
    def ask(self) -> Proposal | Literal["wait", "done"]:
        """The next job to run: interrupted ones first, then baselines, then the strategy's."""
        while True:
            ready = (trial for trial in self.open.values() if trial.state == "ready")
            trial = next(ready, None) or self._begin_trial()
            if isinstance(trial, str):
                return trial
            answer = self._answer_without_running(trial.record)
            if answer is not None:
                self.finish(answer)
            elif self._is_running(self._key_of(trial.record)):
                trial.state = "twin"
            else:
                return self._hand_out(trial)

    def report(self, number: int, report: Report) -> bool:
        """Takes a running job's report; False = the scheduler ends it here."""
        self.board.reported(number, report)
        trial = self.open.get(number)
        if trial is not None and report.step not in trial.passed_on:
            trial.passed_on.add(report.step)
            for listener in self.listeners:
                if isinstance(listener, FollowsReports):
                    listener.reported(number, report)
        if self.scheduler is None or trial is None or not isinstance(trial.record.job, Evaluate):
            return True
        if report.step not in trial.answers:
            goes_on = bool(self.scheduler.observe(number, report, trial.record.measures))
            goes_on |= not trial.counts  # baselines are compared with, and never ended
            self.store.observe(number, report, goes_on)
            trial.answers[report.step] = goes_on
        return trial.answers[report.step]

    def tell(self, record: Record) -> None:
        """Takes a finished job, writes it and passes it on."""
        begun = self.open[record.number].record
        record = replace(
            record,
            fingerprint=begun.fingerprint,
            measures=begun.measures,
            protocol=begun.protocol,
            strategy_state=begun.strategy_state,
        )
        if record.status == "done" and isinstance(record.job, Evaluate):
            reason = self.violation(record, early=False)
            if reason:
                record = replace(record, status="stopped", error=reason)
        self.finish(record)
        for trial in self.open.values():  # answered from this one or, if it failed, run
            if trial.state == "twin" and self._key_of(trial.record) == self._key_of(record):
                trial.state = "ready"

    def note_waiting(self, numbers: Collection[int]) -> None:
        """Takes the trials that wait for a place to run, for the status."""
        self.board.waiting = frozenset(numbers)
        self.board.write_soon()

    # -- inside --------------------------------------------------------------------------------
    def _begin_trial(self) -> OpenTrial | Literal["wait", "done"]:
        """A new trial, written to the study; or why there is none."""
        if (
            self.limits.seconds is not None
            and time.monotonic() - self.started >= self.limits.seconds
        ):
            return "done"
        if self.queue:
            proposal = self.queue.popleft()
            draw = proposal.number if proposal.role == "baseline" else -1
        else:
            pending = sum(trial.counts for trial in self.open.values())
            spent = self.repeats >= SPENT or self.refusals >= REFUSALS
            if spent or (
                self.limits.trials is not None and self.counted + pending >= self.limits.trials
            ):
                return "wait" if pending else "done"
            answer = self.ask_strategy()
            if isinstance(answer, str):
                self.exhausted = answer == "done"
                return answer
            proposal, draw = answer, answer.number
        record = self._lower_and_measure(proposal)
        number = self.store.begin(record, draw)
        source = record.source or trial_source(self.store.run, number)
        self.open[number] = OpenTrial(replace(record, number=number, source=source), draw)
        return self.open[number]

    def ask_strategy(self) -> Proposal | Literal["wait", "done"]:
        """The strategy's answer.

        Raises:
            SearchError: If its code fails; gives the file and the line.
        """
        try:
            return self.strategy.ask()
        except (MaskSearchError, ValueError, OSError):
            raise
        except Exception as error:
            name = type(self.strategy).__name__
            raise SearchError(f"{name}.ask() raised {describe_error(error)}") from error

    def _lower_and_measure(self, proposal: Proposal) -> Record:
        """A proposal as a running record; refused with its reason where it cannot run."""
        record = Record(
            number=-1,
            status="running",
            protocol=self.evaluator.protocol,
            seed=self.seed if proposal.seed is None else proposal.seed,
            **{name: getattr(proposal, name) for name in SHARED},
        )
        if not isinstance(proposal.job, Evaluate):
            return record
        mask, shape = proposal.job.mask, self.evaluator.shape
        try:
            measured = measures(mask, shape) | dict(self.evaluator.measures_of(mask))
            return replace(record, fingerprint=fingerprint(mask, shape), measures=measured)
        except MaskSearchError as error:
            return replace(record, job=Refused(f"{type(error).__name__}: {error} (mask {mask})"))

    def _answer_without_running(self, record: Record) -> Record | None:
        """The finished record of a trial about which all is known; None = it must run."""
        if isinstance(record.job, Refused):
            return replace(record, status="failed", error=record.job.reason)
        if not isinstance(record.job, Evaluate):
            return None
        reason = self.violation(record, early=True) or self._beyond_budget(record)
        if reason:
            return replace(record, status="stopped", error=reason)
        same = self.results.get(self._key_of(record))
        if same is None:
            return None
        return replace(
            record,
            status="reused" if same.status == "done" else "stopped",
            values=same.values,
            step=same.step,
            curve=same.curve,
            artifacts={**same.artifacts, "reused_from": str(same.number)},
            error=same.error,
        )

    def _hand_out(self, trial: OpenTrial) -> Proposal:
        """A trial as the proposal that it was, now on its way to an executor."""
        record, starts = trial.record, 0
        if trial.restored:
            starts, trial.restored = self.store.again(record.number) - 1, False
        self.board.began(record)
        trial.state = "running"
        shared = {name: getattr(record, name) for name in SHARED}
        return Proposal(record.number, seed=record.seed, starts=starts, **shared)

    def finish(self, record: Record) -> None:
        """A record is final: disk first, then the strategy, then the listeners."""
        record = replace(record, error=cut_middle(redact(record.error, self.passwords), LONGEST))
        try:
            self.store.finish(record)
        except (TypeError, ValueError, KeyError) as error:
            reason = f"{traceback.format_exc()}\nthe result cannot be stored: {error}"
            record = replace(
                record, status="failed", error=reason, values={}, curve=(), artifacts={}
            )
            self.store.finish(record)
        if record.status == "failed" and len(record.error.splitlines()) > 1:
            folder = self.store.run / "trials" / str(record.number)
            with contextlib.suppress(OSError):  # the study holds it, too
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "traceback.txt").write_text(f"{record.error}\n", encoding="utf-8")
        draw = self.open.pop(record.number).draw
        before = self._tells
        self.count(record, draw)
        if draw >= 0:
            self.strategy.tell(replace(record, number=draw))
        if record.refused:  # nobody but the strategy learns from it
            if len(self.beyond[self._budget_for(record)]) == SPOKEN:
                self._say_cautions()
            self.board.write_soon()
            return
        self.board.ended(record)
        for listener in self.listeners:
            listener(record)
        self._stop_if_hopeless()
        first = self.repeats == IN_A_ROW and not self.board.state.get("cautions")
        if first or (self._tells and not before):
            self._say_cautions()

    def count(self, record: Record, draw: int) -> None:
        """Counts a finished record and remembers its result."""
        self.finished += 1
        trained = record.status == "done" and isinstance(record.job, Evaluate)
        key = self._key_of(record)
        again, own = key in self.results, draw >= 0 and record.role == "trial"
        self.trained += trained
        self.drawn += trained and own
        if own and (again or not (record.status == "failed" or record.refused)):
            self.repeats = self.repeats + 1 if again else 0  # what fails tells nothing of it
        self.failures = [*self.failures, record] if record.status == "failed" else []
        if record.refused:
            costs = self.beyond.setdefault(self._budget_for(record), [])
            costs.append(cost_of(record, self.evaluator.objectives))
            self.board.state["refused"] = {f"{n:g}": len(each) for n, each in self.beyond.items()}
            self.refusals += 1
            return
        if own and not again:
            self.refusals = 0
        if own and record.status != "failed" and not record.known:
            self.counted += 1
        if key[0] and (record.status == "stopped" or (record.status == "done" and record.curve)):
            self.results[key] = record

    @property
    def _tells(self) -> bool:
        """Whether enough masks are trained for a first caution, one of the strategy's among
        them: hand-designed ones alone say nothing of the search."""
        return self.trained >= EARLY and self.drawn > 0

    def _key_of(self, record: Record) -> Key:
        """The key of equal trials: (fingerprint, protocol, seed), never the parameters.

        Where the evaluator looks at the mask at another length than its shape's, masks that are
        equal there may differ, and only equal expressions are the same.
        """
        beyond = self.evaluator.beyond_shape
        digest = record.mask.digest if beyond and record.mask is not None else ""
        return record.fingerprint, record.protocol, record.seed, digest

    def _is_running(self, key: Key) -> bool:
        """Whether a trial of the same mask is with the executor."""
        return bool(key[0]) and any(
            trial.state == "running" and self._key_of(trial.record) == key
            for trial in self.open.values()
        )

    def violation(self, record: Record, *, early: bool) -> str:
        """Why a record violates a constraint; empty where it keeps all of that kind."""
        reasons = (c.violated_by(record) for c in self.limits.constraints if c.early is early)
        return next(filter(None, reasons), "")

    def _budget_for(self, record: Record) -> float:
        """The cost that a draw's mask may have at most."""
        return float(record.params.get(BUDGET, max(self.limits.budgets)))

    def _beyond_budget(self, record: Record) -> str:
        """Why a draw is refused for what it costs; empty where it is not."""
        if not self.limits.budgets or record.role != "trial":
            return ""
        budget = self._budget_for(record)
        if keeps_budget(record, self.evaluator.objectives, budget):
            return ""
        return f"{BEYOND} {budget:g}: it costs {cost_of(record, self.evaluator.objectives):.4g}"

    def _say_cautions(self) -> None:
        """Warns of what the records say against this search, each sentence once."""
        if not self.limits.strict:
            return
        before = self.board.state.get("cautions", [])
        cautions = search_cautions(self.store.records())
        if self.exhausted and not self.open and self.counted < (self.limits.trials or 0):
            cautions.append(
                f"the strategy has no more masks: {self.counted} of {self.limits.trials} trials"
            )
        if self.repeats >= SPENT:
            cautions.append(
                f"the space is spent: the last {self.repeats} masks drawn were all known"
                f" already ({len(self.results)} different ones in all); search a larger space, or "
                "with another strategy"
            )
        cautions += [
            f"{SPOKEN} draws for the budget {budget:g} cost {min(costs[:SPOKEN]):.3g} to "
            f"{max(costs[:SPOKEN]):.3g} and were not evaluated; a space asks ms.budget_of(trial) "
            "or, where pairs are counted, returns ms.trim(trial, mask)"
            for budget, costs in self.beyond.items()
            if len(costs) >= SPOKEN
        ]
        if self.refusals >= REFUSALS:
            drawn = sum(map(len, self.beyond.values())) + self.counted
            cautions.append(
                f"the last {self.refusals} draws cost more than their budgets, and of all {drawn} "
                f"{self.counted / drawn:.0%} fitted, so the search ends: let the space draw "
                "within ms.budget_of(trial)"
            )
        self.board.state["cautions"] = cautions
        for caution in cautions:
            if caution not in before:
                warn(caution)

    def _stop_if_hopeless(self) -> None:
        """Ends a search in which nothing works.

        Raises:
            SearchError: With the first failure's reason.
        """
        count = len(self.failures)
        first = self.limits.strict and (
            count == self.finished == FIRST_FAILURES or self._is_broken()
        )
        if first or count >= ROW_OF_FAILURES:
            reason = self.failures[0].reason or "no reason given"
            reason = cut_middle(reason, LONGEST_REASON)  # it may hold a mask of every head
            which = "first" if first else "last"
            trials = f"{which} trial" if count == 1 else f"{which} {count} trials all"
            raise SearchError(
                f"the {trials} failed; trial {self.failures[0].number}: {reason} (all reasons are "
                f"in {self.store.run})"
            )

    def _is_broken(self) -> bool:
        """Whether the failures so far are the evaluator's, whatever the mask: reports that are
        none in the first trial, or one traceback in the first two."""
        ran = [record for record in self.failures if not isinstance(record.job, Refused)]
        if not ran or any(record.curve for record in self.results.values()):
            return False
        if ran[-1].error.startswith(EvaluatorError.__name__):
            return True
        raised = len(ran) == 2 and ran[0].error.startswith("Traceback")
        return raised and ran[0].error == ran[1].error and not CHANCE.search(ran[0].reason)


def _check_executor(executor: Executor) -> None:
    """Refuses an executor whose `run` takes something else than the trials.

    Raises:
        SearchError: Shows the signature that is wanted.
    """
    if isinstance(executor, type):
        name = executor.__name__
        raise SearchError(f"{name} is the class of an executor; write executor=ms.{name}()")
    if not callable(getattr(executor, "run", None)):
        raise SearchError(
            f"a {type(executor).__name__} is no executor: it has no "
            "`def run(self, work: masksearch.contracts.Trials) -> None`; use ms.Local(slots=2) "
            "or ms.RayTune(slots=2)"
        )
    signature = inspect.signature(executor.run)
    try:
        signature.bind(executor)
    except TypeError:
        raise SearchError(
            f"{type(executor).__name__}.run{signature} is no executor's method: it takes one "
            "argument, `def run(self, work: masksearch.contracts.Trials) -> None`. "
            "work.ask() gives a job, 'wait' or 'done', work.report(number, report) says whether "
            "it goes on, work.tell(record) takes its record; work.evaluator and work.workdir are "
            "what it runs with"
        ) from None
