"""What all loggers share: what is logged, once, and that a broken sink never ends a search."""

from __future__ import annotations

import importlib
import json
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

from masksearch.analysis.pareto import Snapshot
from masksearch.contracts import Objective, Record, Report
from masksearch.errors import SearchError, install_command


@dataclass(frozen=True)
class LoggedRecord:
    """One record, and the state of the search after it."""

    record: Record
    state: Snapshot

    @property
    def key(self) -> str:
        """What tells this record from every other one, in one line of text."""
        r = self.record
        return json.dumps([r.number, r.status, r.seed, r.fingerprint, r.protocol])

    @property
    def figures(self) -> dict[str, float]:
        """Measures, values and seconds of the record; finite ones only."""
        known = {**self.record.measures, **self.record.values, "seconds": self.record.seconds}
        return {name: value for name, value in known.items() if math.isfinite(value)}

    @property
    def texts(self) -> dict[str, str]:
        """What is said of the record in words; figures that are not finite are among them."""
        r = self.record
        figures = {**r.measures, **r.values}
        known = {
            **{name: getattr(r, name) for name in ("number", "origin", "name", "role", "source")},
            **{name: getattr(r, name) for name in ("status", "seed")},
            "mask": r.mask or "",
            "fingerprint": r.fingerprint,
            **{f"params.{name}": value for name, value in r.params.items()},
            **{name: value for name, value in figures.items() if not math.isfinite(value)},
            "error": r.reason,
        }
        return {name: str(value) for name, value in known.items()}

    @property
    def totals(self) -> dict[str, float]:
        """The state of the search after the record: front, hypervolume, counts, compute."""
        volume = self.state.hypervolume
        return {
            "front/size": float(len(self.state.front)),
            **({"front/hypervolume": volume} if math.isfinite(volume) else {}),
            "search/finished": float(self.state.finished),
            "search/seconds": self.state.seconds,
            **{f"search/{status}": float(n) for status, n in self.state.statuses.items()},
        }

    @property
    def front(self) -> list[dict[str, Any]]:
        """The front as rows: number, origin, name, seed, objectives, mask."""
        names = [objective.name for objective in self.state.objectives]
        return [
            {
                **{"number": r.number, "origin": r.origin, "name": r.name, "seed": r.seed},
                **{name: r.value(name) for name in names},
                "mask": str(r.mask),
            }
            for r in self.state.front
        ]


class RecordLogger:
    """A listener that writes every record, the front after it, and curves while trials run.

    Of a trial's curve each step is written once, when it is reported; what came while nobody
    listened follows with the record.

    A sink that fails (a server that is down, a full disk) does not end the search: the record
    is tried a second time, then left out, and one warning says so. What is missing is added when
    the search is resumed with such a logger, because `restore` compares what the study holds
    with what the sink knows.

    Subclasses have `start`, `write`, `write_steps` and `stop`, and name the exceptions that mean
    "the sink failed" in `failures`.
    """

    failures: tuple[type[Exception], ...] = (OSError,)
    place: ClassVar[str] = "log"  # what a warning calls the sink

    def __init__(self, objectives: Sequence[Objective]) -> None:
        self.objectives = tuple(objectives)
        self.state = Snapshot(self.objectives)
        self.known: set[str] = set()  # keys of the records and steps that the sink holds
        self.started = self.failed = False
        self.gone = False  # whether the last attempt failed

    # -- what a sink does ----------------------------------------------------------------------
    def start(self) -> None:
        """Opens the sink, and puts the keys of what it holds into `known`."""
        raise NotImplementedError

    def write(self, entry: LoggedRecord) -> None:
        """Writes one record and the front after it; its curve has been written."""
        raise NotImplementedError

    def write_steps(self, number: int, reports: Sequence[Report]) -> None:
        """Writes a part of the curve of trial `number`."""
        raise NotImplementedError

    def stop(self, error: BaseException | None) -> None:
        """Closes the sink; `error` is what ended the search, if anything did."""

    # -- the listener --------------------------------------------------------------------------
    def restore(self, records: Sequence[Record]) -> None:
        """Takes the finished records of a resumed study; adds those that the sink lacks."""
        self.state = Snapshot(self.objectives)
        self.attempt(lambda: None)
        for record in records:
            self(record)

    def reported(self, number: int, report: Report) -> None:
        """Takes a running trial's report. A sink that failed is not asked before the record."""
        if not self.gone:
            self.attempt(lambda: self.add_steps(number, [report]))

    def __call__(self, record: Record) -> None:
        """Takes one finished record."""
        self.state = self.state.after(record)
        entry = LoggedRecord(record, self.state)
        self.attempt(lambda: self.add_record(entry))

    def add_record(self, entry: LoggedRecord) -> None:
        """Writes what the sink lacks of a record."""
        if entry.key not in self.known:
            self.add_steps(entry.record.number, entry.record.curve)
            self.write(entry)
            self.known.add(entry.key)

    def add_steps(self, number: int, reports: Sequence[Report]) -> None:
        """Writes what the sink lacks of these reports."""
        new = {step_key(number, report.step): report for report in reports}
        new = {key: report for key, report in new.items() if key not in self.known}
        if new:
            self.write_steps(number, list(new.values()))
            self.known |= set(new)

    def attempt(self, action: Callable[[], None]) -> None:
        """Opens the sink, if it is not, and writes to it."""
        for last in (False, True):
            try:
                if not self.started:
                    self.start()
                    self.started = True
                action()
                self.gone = False
                return
            except self.failures as problem:
                if last or self.failed:  # one that has failed before is tried once a record
                    self.gone = True
                    self.warn_once("does not take records now", problem)
                    return

    def close(self, error: BaseException | None = None) -> None:
        """Closes the sink; a second call does nothing."""
        if self.started:
            self.started = False
            try:
                self.stop(error)
            except self.failures as problem:
                self.warn_once("could not be closed", problem)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(error)

    def warn_once(self, text: str, problem: BaseException) -> None:
        """One warning for all failures of this sink."""
        lines = str(problem).strip().splitlines() or [""]
        if not self.failed:
            warnings.warn(
                f"the {self.place} {text} ({type(problem).__name__}: {lines[0][:200]}); the "
                "search goes on, and resuming it with this logger adds what is missing",
                RuntimeWarning,
                stacklevel=2,
            )
        self.failed = True


def step_key(number: int, step: int) -> str:
    """What tells a step of a trial from every other one, in one line of text."""
    return json.dumps([number, step])


class Ledger:
    """The keys of the records and steps that a sink holds, for sinks that cannot be asked: a text
    file beside them, one key a line."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> set[str]:
        """Every key; a line that a killed process has cut off counts as none."""
        if not self.path.is_file():
            return set()
        text = self.path.read_text(encoding="utf-8")
        return set(text[: text.rfind("\n") + 1].splitlines())

    def add(self, *keys: str) -> None:
        """Adds keys."""
        cut_to_whole_lines(self.path)
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(f"{key}\n" for key in keys))


def cut_to_whole_lines(path: Path) -> None:
    """Removes a last line without its end, which a killed process may leave."""
    if not path.is_file() or path.stat().st_size == 0:
        return
    with path.open("rb+") as file:
        file.seek(-1, 2)
        if file.read(1) != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)


def required_module(module: str, extra: str) -> Any:
    """A module of an optional library.

    Raises:
        SearchError: If it is not installed; gives the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise SearchError(
            f"logging to {extra} needs the package {module.split('.')[0]}, which cannot be "
            f"imported ({error}); install it with: {install_command(extra)}"
        ) from error
