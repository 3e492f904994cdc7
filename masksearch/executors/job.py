"""Carries out one proposal: from a job to a record. Every executor calls this, and only this."""

from __future__ import annotations

import errno
import math
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from masksearch.contracts import (
    Evaluate,
    Evaluator,
    OneShot,
    OnReport,
    Proposal,
    Record,
    Report,
    Shared,
)
from masksearch.errors import MaskSearchError, SearchError
from masksearch.gates.dam import run_one_shot
from masksearch.masks.measure import MEASURES
from masksearch.strategies.supernet import run_shared

ARTIFACTS = {"gates": "gates.safetensors", "ranking": "ranking.json"}  # of a job without a mask
EARLY = "ended early by the scheduler"


class Work:
    """One job, report by report; whatever goes wrong in it becomes a failed record.

    Args:
        proposal: The job and its number.
        evaluator: Judges masks.
        seed: Seed of the evaluation where the proposal names none.
        workdir: The run folder.
        folder: Folder of this trial below `workdir`; artifacts are recorded relative to it.
    """

    def __init__(
        self, proposal: Proposal, evaluator: Evaluator, *, seed: int, workdir: Path, folder: str
    ) -> None:
        self.proposal, self.evaluator, self.folder = proposal, evaluator, folder
        self.seed = seed if proposal.seed is None else proposal.seed
        self.place = workdir / folder
        self.started = time.monotonic()
        self.curve: list[Report] = []
        self.error = self.ended_early = ""
        self.reports: Iterator[Report] | None = None

    def advance(self) -> Report | None:
        """The next report; None when the job has ended, well or badly."""
        if self.error or self.ended_early:
            return None
        try:
            if self.reports is None:
                self.reports = self.begun()
            report = next(self.reports, None)
            if report is not None:
                check_finite(report)
                self.curve.append(report)
                return report
            if isinstance(self.proposal.job, Evaluate):
                check_complete(self.curve, self.evaluator, self.proposal)
        except OSError as problem:
            if problem.errno == errno.ENOSPC:  # no fault of the mask's: it will run again
                raise SearchError(
                    f"the disk is full at {self.place} ({problem}); everything that was finished "
                    "is kept: free space and resume the search"
                ) from problem
            self.error = traceback.format_exc()
        except MaskSearchError as problem:
            self.error = f"{type(problem).__name__}: {problem}"
        except Exception:  # the record keeps the traceback; the search goes on
            self.error = traceback.format_exc()
        return None

    def begun(self) -> Iterator[Report]:
        """The job's generator."""
        self.place.mkdir(parents=True, exist_ok=True)
        match self.proposal.job:
            case Evaluate(mask=mask):
                return self.evaluator(mask, seed=self.seed, workdir=self.place)
            case OneShot():
                return run_one_shot(
                    self.evaluator, self.proposal.job, seed=self.seed, workdir=self.place
                )
            case Shared():
                return run_shared(
                    self.evaluator, self.proposal.job, seed=self.seed, workdir=self.place
                )
        raise ValueError(f"{type(self.proposal.job).__name__} is no job to run")

    def stop(self) -> None:
        """Ends the job early: its record is "stopped" and keeps the last report's values."""
        close = getattr(self.reports, "close", None)
        if close is not None:
            close()
        step = self.curve[-1].step if self.curve else 0
        self.ended_early = f"{EARLY} at step {step}"

    def record(self) -> Record:
        """What became of it: "done", "stopped" or "failed". Its fingerprint and measures are
        left to the driver, which knows them already."""
        found = {} if self.error else ARTIFACTS
        return Record(
            number=self.proposal.number,
            status="failed" if self.error else "stopped" if self.ended_early else "done",
            job=self.proposal.job,
            protocol=self.evaluator.protocol,
            seed=self.seed,
            params=self.proposal.params,
            origin=self.proposal.origin,
            values={} if self.error or not self.curve else dict(self.curve[-1].values),
            step=self.curve[-1].step if self.curve else 0,
            curve=tuple(self.curve),
            artifacts={
                name: f"{self.folder}/{file}"
                for name, file in found.items()
                if (self.place / file).is_file()
            },
            seconds=time.monotonic() - self.started,
            error=self.error or self.ended_early,
            memo=self.proposal.memo,
        )


def carry_out(
    proposal: Proposal,
    evaluator: Evaluator,
    *,
    seed: int,
    workdir: Path,
    folder: str,
    on_report: OnReport | None = None,
) -> Record:
    """Runs a job to its end, or until `on_report` answers False. Arguments as in `Work`."""
    work = Work(proposal, evaluator, seed=seed, workdir=workdir, folder=folder)
    while (report := work.advance()) is not None:
        if on_report is not None and not on_report(proposal.number, report):
            work.stop()
    return work.record()


def nothing_to_wait_for() -> SearchError:
    """The error where a strategy answers "wait" and no job is running."""
    return SearchError("the strategy waits although no job is running")


def folder_of(proposal: Proposal) -> str:
    """Folder of a trial below the run folder."""
    return f"trials/{proposal.number}"


def check_finite(report: Report) -> None:
    """A NaN or infinite figure is a failure, never a result."""
    for name, value in report.values.items():
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the evaluator reported {name} = {value} at step {report.step}; "
                "results are finite numbers"
            )


def check_complete(curve: list[Report], evaluator: Evaluator, proposal: Proposal) -> None:
    """The last report must hold every objective that is not a measure of the mask."""
    if not curve:
        raise ValueError("the evaluator reported nothing; yield at least one Report")
    missing = [
        o.name
        for o in evaluator.objectives
        if o.name not in curve[-1].values and o.name not in MEASURES
    ]
    if missing:
        raise ValueError(
            f"the last report of trial {proposal.number} lacks {', '.join(missing)}; "
            f"it holds {', '.join(curve[-1].values)}"
        )
