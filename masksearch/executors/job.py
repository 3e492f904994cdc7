"""Carries out one proposal: from a job to a record. Every executor uses this, and only this."""

from __future__ import annotations

import math
import re
import shutil
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from masksearch.analysis.row_scores import ROWS
from masksearch.contracts import (
    Evaluate,
    Evaluator,
    OneShot,
    Proposal,
    Prune,
    Record,
    Report,
)
from masksearch.errors import EvaluatorError, MaskSearchError, SearchError, did_you_mean
from masksearch.files import FULL, write_in_one_move
from masksearch.masks.measure import MEASURES
from masksearch.user_code import describe_error, place_of

ARTIFACTS = {  # name -> file in the trial's folder
    "gates": "gates.safetensors",  # of a job without a mask, and the next one
    "order": Prune.FILE,
    "rows": ROWS,
}
MOST_REPORTS, MOST_VALUES = 10_000, 1_000  # of a trial, of a report
TIME_LIMIT_NOTE = "time_limit.txt"  # what a process that ends itself at its limit was doing


class JobRun:
    """One job, report by report; whatever goes wrong in it becomes a failed record.

    Args:
        proposal: The job, its trial number and its seed (0 where it names none).
        evaluator: Judges masks.
        workdir: The run folder. The trial works in its folder below it (`trial_folder`), and
            its artifacts are recorded relative to it.
        losses: Workers that were lost with the job since it was handed out.
    """

    def __init__(
        self, proposal: Proposal, evaluator: Evaluator, workdir: Path, losses: int = 0
    ) -> None:
        self.proposal, self.evaluator = proposal, evaluator
        self.workdir, self.folder = workdir, trial_folder(proposal, losses)
        self.path = workdir / self.folder
        self.began = time.monotonic()
        self.curve: list[Report] = []
        self.error, self.stopped = "", False
        self.reports: Iterator[Report] | None = None

    def run(self, on_report: Callable[[int, Report], bool] | None = None) -> Record:
        """Runs the job to its end, or until `on_report` answers False.

        Raises:
            SearchError: If the disk is full; the trial then stays open in its study.
        """
        while (report := self.next_report()) is not None:
            if on_report is not None and not on_report(self.proposal.number, report):
                self.stop()
        return self.record()

    def next_report(self) -> Report | None:
        """The next report; None when the job has ended, well or badly. Raises as `run`."""
        if self.error or self.stopped:
            return None
        try:
            if self.reports is None:
                self.reports = self.start()
            report = next(self.reports, None)
            if report is not None:
                if not isinstance(report, Report):
                    raise _no_report(self.evaluator, "yields", report)
                _check_report(report, len(self.curve) + 1)
                self.curve.append(report)
                return report
            if isinstance(self.proposal.job, Evaluate):
                _check_complete(self.curve, self.evaluator)
        except OSError as problem:
            if problem.errno in FULL:  # no fault of the mask's: it will run again
                raise SearchError(
                    f"the disk is full at {self.path} ({problem}); everything that was finished "
                    "is kept: free space and resume the search"
                ) from problem
            self.error = f"{traceback.format_exc()}\n{describe_error(problem)}"
        except EvaluatorError as problem:
            name, text = type(self.evaluator).__name__, describe_error(problem)
            self.error = text if name in text else f"{text} ({name} reports it)"
        except MaskSearchError as problem:
            if isinstance(problem.__cause__, OSError) and problem.__cause__.errno in FULL:
                raise  # as above, in words of its own
            self.error = f"{type(problem).__name__}: {problem}"
        except SystemExit as problem:  # of the evaluator, which ends itself, not the search
            ending = f"the evaluator called sys.exit({problem.code!r})"
            self.error = f"{traceback.format_exc()}\n{ending}"
        except KeyboardInterrupt:  # the user's
            raise
        except BaseException as problem:  # the record keeps the traceback; the search goes on
            self.error = f"{traceback.format_exc()}\n{describe_error(problem)}"
        return None

    def start(self) -> Iterator[Report]:
        """The job's generator."""
        self.path.mkdir(parents=True, exist_ok=True)
        _take_over_files(self.workdir / trial_folder(replace(self.proposal, starts=0)), self.path)
        seed, job = self.proposal.seed or 0, self.proposal.job
        match job:
            case Evaluate(mask=mask):
                reports = self.evaluator(mask, seed=seed, workdir=self.path)
                if not hasattr(reports, "__next__"):
                    raise _no_report(self.evaluator, "returns", reports)
                return reports
            case OneShot():  # imported here: a trial that does not train needs no transformers
                from masksearch.gates.dam import run_one_shot

                return run_one_shot(self.evaluator, job, seed=seed, workdir=self.path)
            case Prune():
                from masksearch.strategies.prune import run_prune, run_prune_words

                measure = run_prune_words if job.config.get("unit") == "word" else run_prune
                return measure(self.evaluator, job, seed=seed, workdir=self.path)
        raise ValueError(f"{type(job).__name__} is no job to run")

    def stop(self) -> None:
        """Closes the job's generator; its record is "stopped", with the last report's values, or
        "failed" where that raises."""
        close = getattr(self.reports, "close", None)
        try:
            if close is not None:
                close()
        except Exception as problem:  # of the evaluator, which fails at its end
            self.error = f"{traceback.format_exc()}\n{describe_error(problem)}"
        self.stopped = True

    def record(self) -> Record:
        """The record of its end: "done", "stopped" or "failed"."""
        return make_record(
            self.proposal,
            self.evaluator,
            self.curve,
            error=self.error,
            stopped=self.stopped,
            artifacts={} if self.error else self.artifacts(),
            seconds=time.monotonic() - self.began,
        )

    def artifacts(self) -> dict[str, str]:
        """Name -> path below the run folder, of those that the job has left."""
        return {
            name: f"{self.folder}/{file}"
            for name, file in ARTIFACTS.items()
            if (self.path / file).is_file()
        }


def make_record(
    proposal: Proposal,
    evaluator: Evaluator,
    curve: Sequence[Report],
    *,
    error: str = "",
    stopped: bool = False,
    artifacts: Mapping[str, str] | None = None,
    seconds: float = 0.0,
) -> Record:
    """The record of a job that has ended. Its fingerprint and measures are left to the driver,
    which knows them already.

    Args:
        proposal: The job.
        evaluator: It was judged by that one.
        curve: Every report, oldest first.
        error: Why it failed; empty where it did not.
        stopped: Whether it was ended early.
        artifacts: Name -> path, relative to the run folder.
        seconds: Wall time of the job.
    """
    step = curve[-1].step if curve else 0
    return Record(
        number=proposal.number,
        status="failed" if error else "stopped" if stopped else "done",
        job=proposal.job,
        protocol=evaluator.protocol,
        seed=proposal.seed or 0,
        params=proposal.params,
        origin=proposal.origin,
        values={} if error or not curve else dict(curve[-1].values),
        step=step,
        curve=tuple(curve),
        artifacts=dict(artifacts or {}),
        seconds=seconds,
        error=error or (f"ended early by the scheduler at step {step}" if stopped else ""),
        strategy_state=proposal.strategy_state,
        name=proposal.name,
        role=proposal.role,
        source=proposal.source,
    )


def trial_folder(proposal: Proposal, losses: int = 0) -> str:
    """Folder of an attempt at a trial, below the run folder: `trials/7`, and of every later
    attempt one below it, such as `trials/7/1-0` after one resumed search and no lost worker."""
    first = proposal.starts == losses == 0
    return f"trials/{proposal.number}" + ("" if first else f"/{proposal.starts}-{losses}")


def _take_over_files(home: Path, new: Path) -> None:
    """Moves what earlier attempts at a trial have left into the folder of this one.

    File by file, as copies: an attempt that was given up and lives on, such as in a cut-off node,
    writes into what it has open, and to where nobody reads.

    Args:
        home: Folder of the first attempt; those of the others lie in it.
        new: Folder of this attempt.
    """
    later = [path for path in home.iterdir() if re.fullmatch(r"\d+-\d+", path.name)]
    attempts = [home, *sorted(later, key=lambda path: [*map(int, path.name.split("-"))])]
    for folder in attempts[: attempts.index(new)]:
        for path in [path for path in folder.rglob("*") if path.is_file()]:
            of_another = folder == home and not set(path.parents).isdisjoint(later)
            if path.name == TIME_LIMIT_NOTE or of_another:
                continue
            to = new / path.relative_to(folder)
            with suppress(FileNotFoundError), write_in_one_move(to) as beside:
                shutil.copy2(path, beside)  # not there: the other one has just removed it
            path.unlink(missing_ok=True)


def idle_strategy_error() -> SearchError:
    """The error where a strategy answers "wait" and no job is running."""
    return SearchError("the strategy waits although no job is running")


def _no_report(evaluator: Evaluator, does: str, answer: object) -> EvaluatorError:
    """The error for an evaluator that gives something else than reports."""
    return EvaluatorError(
        f"{type(evaluator).__name__} {does} {type(answer).__name__}: yield "
        "ms.contracts.Report(step, values) once or more, the last one is the result"
    )


def _check_report(report: Report, number: int) -> None:
    """A NaN or infinite figure is a failure, never a result; and all are kept, so they are few."""
    if number > MOST_REPORTS or len(report.values) > MOST_VALUES:
        raise EvaluatorError(
            f"a trial has at most {MOST_REPORTS} reports of at most {MOST_VALUES} values, got "
            f"report {number} with {len(report.values)}: report less often, or write to workdir"
        )
    for name, value in report.values.items():
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the evaluator reported {name} = {value} at step {report.step}; "
                "results are finite numbers"
            )


def _check_complete(curve: list[Report], evaluator: Evaluator) -> None:
    """The last report must hold every objective that is not a measure of the mask."""
    name, where = type(evaluator).__name__, place_of(type(evaluator).__call__)
    if not curve:
        raise EvaluatorError(f"{name} reported nothing; yield at least one Report ({where})")
    names = list(curve[-1].values)
    missing = [
        o.name
        for o in evaluator.objectives
        if o.name not in names and o.name not in (*MEASURES, *evaluator.measure_names)
    ]
    if missing:
        hint = did_you_mean(missing[0], names)
        raise EvaluatorError(
            f"the last report of {name} lacks {', '.join(missing)}; it holds "
            f"{', '.join(names)}{hint} ({where})"
        )
