"""The driver's side of a cluster: what stands between a strategy and far-away workers.

Nothing here knows Ray. `Desk` hands proposals out as parcels, takes the workers' messages in,
counts the deaths of a trial's processes, and tells one record a proposal.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cloudpickle

from masksearch.contracts import Evaluator, Listener, OnReport, Proposal, Report, Strategy
from masksearch.errors import SearchError
from masksearch.executors.job import Work, folder_of, nothing_to_wait_for

STUCK = "time_limit.txt"  # where a process that is ended at its time limit says what it did


@dataclass
class Parcel:
    """What one trial is given. Tune copies, prints and keeps configurations: this one answers
    with itself, shows its name, and is emptied at the end."""

    name: str
    proposal: bytes  # cloudpickle: classes of a user's file travel by value
    crew: Any  # reference to an `outpost.Crew` in the object store
    checkpoint: Any = None  # saved folder of an earlier attempt

    def __deepcopy__(self, memo: dict[int, Any]) -> Parcel:
        return self

    def __repr__(self) -> str:
        return self.name

    def empty(self) -> None:
        """Nobody needs it any more; Tune keeps it."""
        self.proposal, self.crew, self.checkpoint = b"", None, None


@dataclass
class Message:
    """What a worker answers to one step: a report, or the job's end."""

    seconds: float
    report: Report | None = None
    error: str = ""
    fatal: bool = False  # the search ends with this error; the trial stays open
    artifacts: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)  # artifacts, where they must travel
    retires: bool = False  # the process takes no other trial


@dataclass(frozen=True)
class Death:
    """Why a worker did not answer.

    Args:
        reason: What the cluster says.
        process: Whether the process or its node was lost; else something around the job failed.
        counts: False where the node was taken back (preemption): no fault of the trial.
        started: Time (`time.time()`) at which the worker took the trial; None = it never did.
        checkpoint: The trial's last saved folder, if any.
    """

    reason: str
    process: bool = True
    counts: bool = True
    started: float | None = None
    checkpoint: Any = None


@dataclass
class Trial:
    """A proposal on its way, as the driver sees it."""

    proposal: Proposal
    work: Work  # what has been received of it
    parcel: Parcel
    deaths: int = 0  # those that count
    lost: int = 0  # all of them
    seconds: float = 0.0


class Desk:
    """Between a strategy and the workers; the first thing that is raised here is kept.

    Args:
        strategy: Asked and told.
        evaluator: Named in the records; it is not called here.
        seed: Seed of the evaluation where a proposal names none.
        workdir: The run folder.
        on_record: Called with every record, before the strategy is told.
        on_report: Called with every report; False ends the trial.
        max_failures: So often a trial whose process died is begun again.
        limit_seconds: Wall time at which a worker ends itself; None = never.
    """

    def __init__(
        self,
        strategy: Strategy,
        evaluator: Evaluator,
        *,
        seed: int,
        workdir: Path,
        on_record: Listener,
        on_report: OnReport,
        max_failures: int,
        limit_seconds: float | None,
    ) -> None:
        self.strategy, self.evaluator, self.seed, self.workdir = strategy, evaluator, seed, workdir
        self.on_record, self.on_report = on_record, on_report
        self.max_failures, self.limit_seconds = max_failures, limit_seconds
        self.crew: Any = None
        self.open: dict[str, Trial] = {}  # by the cluster's name of the trial
        self.again: list[Trial] = []  # to be begun once more
        self.answer = ""  # the strategy's "wait" or "done", until a record is told
        self.problem: BaseException | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its configuration; a study cannot be, and need not be."""
        return {}

    def ask(self, name: str) -> Parcel | str:
        """The next trial to run, `"wait"` or `"done"`.

        Args:
            name: What the cluster will call the trial.
        """
        if self.problem is not None:
            return "done"
        try:
            return self.asked(name)
        except BaseException as problem:  # raised again by the executor
            self.problem = problem
            return "done"

    def hear(self, name: str, message: Message) -> bool:
        """Takes a worker's message. Returns whether the worker shall be asked again."""
        if self.problem is not None or name not in self.open:
            return False
        try:
            return self.heard(name, message)
        except BaseException as problem:  # raised again by the executor
            self.problem = problem
            return False

    def bury(self, name: str, death: Death) -> None:
        """Takes the end of a worker that did not answer."""
        if self.problem is not None or name not in self.open:  # one that retired after a record
            return
        try:
            self.buried(name, death)
        except BaseException as problem:  # raised again by the executor
            self.problem = problem

    def interrupt(self) -> None:
        """Ctrl-C."""
        self.problem = self.problem or KeyboardInterrupt()

    # -- inside --------------------------------------------------------------------------------
    def asked(self, name: str) -> Parcel | str:
        """See `ask`."""
        if self.again:
            self.open[name] = self.again.pop(0)
            return self.open[name].parcel
        if not self.answer:
            proposal = self.strategy.ask()
            if isinstance(proposal, Proposal):
                self.open[name] = self.opened(proposal)
                return self.open[name].parcel
            self.answer = proposal
        if self.open:
            return "wait"  # a result may bring new proposals
        if self.answer == "wait":
            raise nothing_to_wait_for()
        return "done"

    def opened(self, proposal: Proposal) -> Trial:
        """A proposal made ready to travel."""
        work = Work(
            proposal,
            self.evaluator,
            seed=self.seed,
            workdir=self.workdir,
            folder=folder_of(proposal),
        )
        name = f"{proposal.number}.{proposal.starts}"
        return Trial(proposal, work, Parcel(name, cloudpickle.dumps(proposal), self.crew))

    def heard(self, name: str, message: Message) -> bool:
        """See `hear`."""
        trial = self.open[name]
        trial.seconds = message.seconds
        if message.fatal:
            raise SearchError(message.error)
        if message.report is None:
            trial.work.error = message.error
            for file, content in message.files.items():
                path = self.workdir / file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            self.settle(name, message.artifacts)
            return message.retires  # its next step ends the process
        trial.work.curve.append(message.report)
        if self.on_report(trial.proposal.number, message.report):
            return True
        trial.work.stop()
        self.settle(name)
        return False

    def buried(self, name: str, death: Death) -> None:
        """See `bury`."""
        trial, limit = self.open[name], self.limit_seconds
        trial.seconds = 0.0 if death.started is None else time.time() - death.started
        if limit is not None and death.process:
            words = self.last_words(trial)
            if trial.seconds >= limit if words is None else words:
                reason = f"ran longer than the time limit of {limit:g} s"
                trial.work.error = f"{reason}\n{words or ''}".strip()
                return self.settle(name)
        trial.deaths += death.counts
        if trial.deaths > self.max_failures:
            what = "the worker process or its node died" if death.process else "a worker failed"
            times = f"{trial.deaths} times" if trial.deaths > 1 else "once"
            trial.work.error = f"{what} {times} in this trial; the last time:\n{death.reason}"
            return self.settle(name)
        del self.open[name]
        trial.work.curve.clear()
        checkpoint = death.checkpoint or trial.parcel.checkpoint
        trial.lost += 1
        again = f"{trial.proposal.number}.{trial.proposal.starts + trial.lost}"
        parcel, trial.parcel = trial.parcel, replace(trial.parcel, name=again)
        parcel.empty()
        trial.parcel.checkpoint = checkpoint
        self.again.append(trial)
        return None

    def last_words(self, trial: Trial) -> str | None:
        """What a process that ended itself at its time limit was doing; `""` = it did not, however
        late its death was heard of. None = its folder cannot be seen, so that the clock decides.
        """
        path = self.workdir / folder_of(trial.proposal) / STUCK
        if not path.is_file():
            return None
        text = path.read_text(encoding="utf-8")
        path.unlink()
        return text

    def settle(self, name: str, artifacts: Mapping[str, str] | None = None) -> None:
        """The one record of a proposal; None = its artifacts are where they are."""
        trial = self.open.pop(name)
        record = replace(trial.work.record(), seconds=trial.seconds)
        if artifacts is not None:
            record = replace(record, artifacts=dict(artifacts))
        trial.parcel.empty()
        self.answer = ""
        self.on_record(record)
        self.strategy.tell(record)
