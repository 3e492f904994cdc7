"""Trials between a search and its workers, processes of this machine or of a cluster alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from masksearch.contracts import Proposal, Report, Trials
from masksearch.errors import SearchError
from masksearch.executors.job import idle_strategy_error, make_record, trial_folder
from masksearch.executors.worker import (
    StepResult,
    TrialSpec,
    pickle_for_workers,
    read_time_limit_note,
)

Ask = Callable[[], Proposal | Literal["wait", "done"]]


@dataclass(frozen=True)
class WorkerLoss:
    """Why a worker did not answer.

    Args:
        reason: What the system or the cluster says.
        died: Whether the process or its node was lost; else something around the job failed.
        counts: False where the node was taken back (preemption): no fault of the trial.
        seconds: Wall time since the worker took the trial.
        checkpoint: The trial's last saved folder, if any.
    """

    reason: str
    died: bool = True
    counts: bool = True
    seconds: float = 0.0
    checkpoint: Any = None


@dataclass
class RunningTrial:
    """A proposal on its way, as the driver sees it."""

    proposal: Proposal
    spec: TrialSpec
    curve: list[Report] = field(default_factory=list)  # of this attempt
    losses: int = 0  # workers that were lost with it
    failures: int = 0  # those that count


class Pool:
    """Trials between a search and its workers: who has which, what came back, what is begun again.

    Worker processes and Ray Tune share it. It runs nothing; the transport asks for a trial
    whenever it has a free slot and says what its workers answer:

        next_trial -> RUNNING --on_step: a report, and it goes on--> RUNNING
                         |----on_step: the job's end, or stopped at a report--> told
                         |----on_worker_lost: too often, or at its time limit--> told as failed
                         '----on_worker_lost: else--> WAITING, the first that `next_trial` gives

    A proposal is told exactly once, and a worker that was given up is not listened to any more.

    Args:
        work: Asked for jobs, told their records.
        max_failures: So often a trial whose worker was lost is begun again.
        limit_seconds: Wall time at which a worker ends itself; None = never.
        config: Ray's reference to the workers' settings.
        ask: Where jobs come from; None = `work`.
    """

    def __init__(
        self,
        work: Trials,
        *,
        max_failures: int,
        limit_seconds: float | None = None,
        config: Any = None,
        ask: Ask | None = None,
    ) -> None:
        self.work, self.ask, self.config = work, ask or work.ask, config
        self.max_failures, self.limit_seconds = max_failures, limit_seconds
        self.running: dict[str, RunningTrial] = {}  # by the transport's name of the attempt
        self.waiting: list[RunningTrial] = []  # to be begun again
        self.answer = ""  # "wait" or "done", until a record is told

    def next_trial(self, name: str) -> TrialSpec | Literal["wait", "done"]:
        """The next trial to run; "wait" = not before another one has ended.

        Args:
            name: What the transport calls this attempt at it.

        Raises:
            SearchError: If the strategy waits although nothing is running.
        """
        if self.waiting:
            self.running[name] = self.waiting.pop(0)
            return self.running[name].spec
        if not self.answer:
            proposal = self.ask()
            if isinstance(proposal, Proposal):
                spec = self._make_spec(proposal)
                self.running[name] = RunningTrial(proposal, spec)
                return spec
            self.answer = proposal
        if self.running:
            return "wait"  # a result may bring new proposals
        if self.answer == "wait":
            raise idle_strategy_error()
        return "done"

    def on_step(self, name: str, result: StepResult) -> bool:
        """Takes a worker's result. Returns whether the worker goes on with the trial.

        Raises:
            SearchError: If the search must end (a full disk, an evaluator that does not load).
        """
        trial = self.running.get(name)
        if trial is None:
            return False
        if result.fatal:
            raise SearchError(result.error)
        if result.report is None:
            for file, content in result.files.items():
                path = self.work.workdir / file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            self.tell(name, result.seconds, error=result.error, artifacts=result.artifacts)
            return False
        trial.curve.append(result.report)
        if self.work.report(trial.proposal.number, result.report):
            return True
        self.tell(name, result.seconds, stopped=True)
        return False

    def on_worker_lost(self, name: str, loss: WorkerLoss) -> None:
        """Takes the end of a worker that did not answer."""
        trial, limit = self.running.get(name), self.limit_seconds
        if trial is None:
            return
        if limit is not None and loss.died:
            folder = self.work.workdir / trial_folder(trial.proposal, trial.losses)
            note = read_time_limit_note(folder)
            if loss.seconds >= limit if note is None else note:
                reason = f"ran longer than the time limit of {limit:g} s"
                self.tell(name, loss.seconds, error=f"{note or ''}\n{reason}".strip())
                return
        trial.losses += 1
        trial.failures += loss.counts
        if trial.failures > self.max_failures:
            what = "the worker process died" if loss.died else "the worker failed"
            times = f"{trial.failures} times" if trial.failures > 1 else "once"
            self.tell(name, loss.seconds, error=f"{what} {times} in this trial: {loss.reason}")
            return
        checkpoint = loss.checkpoint or trial.spec.checkpoint
        trial.spec.empty()
        trial.spec = self._make_spec(trial.proposal, trial.losses)
        trial.spec.checkpoint = checkpoint
        trial.curve.clear()
        self.waiting.append(self.running.pop(name))

    # -- inside --------------------------------------------------------------------------------
    def _make_spec(self, proposal: Proposal, losses: int = 0) -> TrialSpec:
        """A proposal made ready to travel."""
        data = pickle_for_workers(proposal, f"trial {proposal.number}")
        name = f"{proposal.number}.{proposal.starts + losses}"
        return TrialSpec(name, data, losses, self.config)

    def tell(self, name: str, seconds: float, **ended: Any) -> None:
        """The one record of a proposal; `ended` as in `make_record`."""
        trial = self.running.pop(name)
        trial.spec.empty()
        self.answer = ""
        self.work.tell(
            make_record(trial.proposal, self.work.evaluator, trial.curve, seconds=seconds, **ended)
        )
