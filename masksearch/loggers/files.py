"""The parts that all loggers share, and the logger that writes CSV files.

A logger writes every record at least once. What it holds is known by the keys of records, so that
a resumed search writes none of them again; a kill may repeat the last record and the steps of the
trials that ran.
"""

from __future__ import annotations

import csv
import json
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from masksearch.analysis.pareto import Snapshot
from masksearch.contracts import Objective, Record, Report
from masksearch.errors import SearchError, without_controls
from masksearch.files import cell_text
from masksearch.masks.measure import MEASURES

TEXTS = ("number", "status", "origin", "name", "role", "source", "seed", "fingerprint", "protocol")
KEY = ("number", "status", "seed", "fingerprint", "protocol")  # what tells records apart


@dataclass(frozen=True)
class LoggedRecord:
    """One record, and the state of the search after it."""

    record: Record
    state: Snapshot

    @property
    def key(self) -> str:
        """The key that tells this record from every other one, in one line of text."""
        return json.dumps([str(getattr(self.record, name)) for name in KEY])

    @property
    def figures(self) -> dict[str, float]:
        """Measures, values and seconds of the record; finite ones only."""
        numbers = {**self.record.measures, **self.record.values, "seconds": self.record.seconds}
        return {name: value for name, value in numbers.items() if math.isfinite(value)}

    @property
    def texts(self) -> dict[str, str]:
        """The words of the record, where there are any; figures that are not finite
        are among them."""
        r = self.record
        figures = {**r.measures, **r.values}
        facts = {
            **{name: getattr(r, name) for name in TEXTS},
            "mask": r.mask or "",
            **{f"params.{name}": value for name, value in r.params.items()},
            **{name: value for name, value in figures.items() if not math.isfinite(value)},
            "error": r.reason,
        }
        return dict(without_controls({n: text for n, v in facts.items() if (text := str(v))}))

    @property
    def totals(self) -> dict[str, float]:
        """The state of the search after the record: front, hypervolume, counts, compute."""
        now = self.state
        return {
            "front/size": float(len(now.front)),
            **({"front/hypervolume": now.hypervolume} if math.isfinite(now.hypervolume) else {}),
            "search/finished": float(now.finished),
            "search/seconds": now.seconds,
            **{f"search/{status}": float(n) for status, n in now.statuses.items()},
        }

    @property
    def front(self) -> list[dict[str, Any]]:
        """The front as rows: number, origin, name, seed, objectives, mask."""
        return [
            {
                **{name: getattr(r, name) for name in ("number", "origin", "name", "seed")},
                **{objective.name: r.value(objective.name) for objective in self.state.objectives},
                "mask": str(r.mask),
            }
            for r in self.state.front
        ]


class RecordLogger:
    """A listener that writes every record, the front after it, and curves while trials run.

    Where nobody heard a trial's steps, they follow with its record. A sink that fails (a server
    that is down, a full disk) does not end the search: one warning says so, and what it has not
    taken is written before the next record, or when the search is resumed with such a logger.

    Subclasses have `start`, `write`, `write_steps` and `stop`; an OSError says that it failed.

    Args:
        objectives: Those of the study.
        memory: Text file that holds the keys of what was written, a line each, for a sink that
            cannot be asked; None = nothing is known of earlier calls.
    """

    sink: ClassVar[str] = "log"  # what a warning calls the sink

    def __init__(self, objectives: Sequence[Objective], memory: Path | None = None) -> None:
        self.objectives, self.memory = tuple(objectives), memory
        self.state = Snapshot(self.objectives)
        self.known: set[str] = set()  # keys of the records that the sink holds
        self.waiting: list[LoggedRecord] = []
        self.steps: dict[int, int] = {}  # the last step that the sink has of a running trial
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

    def stop(self) -> None:
        """Closes the sink."""

    # -- the listener --------------------------------------------------------------------------
    def restore(self, records: Sequence[Record]) -> None:
        """Takes the finished records of a resumed study; adds those that the sink lacks."""
        self.state = Snapshot(self.objectives)
        for record in records:
            self.enqueue(record)
        self.attempt(self._write_waiting)

    def reported(self, number: int, report: Report) -> None:
        """Takes a running trial's report. A sink that failed is not asked before the record."""
        if self.started and not self.gone:
            self.attempt(lambda: self._add_steps(number, [report]))

    def __call__(self, record: Record) -> None:
        """Takes one finished record."""
        self.enqueue(record)
        self.attempt(self._write_waiting)

    def enqueue(self, record: Record) -> None:
        """Puts a record behind those that the sink has not taken yet."""
        self.state = self.state.after(record)
        self.waiting.append(LoggedRecord(record, self.state))

    def _write_waiting(self) -> None:
        """Writes the records that the sink lacks."""
        while self.waiting:
            entry, number = self.waiting[0], self.waiting[0].record.number
            if entry.key not in self.known:
                self._add_steps(number, entry.record.curve)
                self.write(entry)
                self.known.add(entry.key)
                if self.memory is not None:
                    with self.memory.open("a", encoding="utf-8") as file:
                        file.write(f"\n{entry.key}")  # a line that a kill cut off ends here
            self.steps.pop(number, None)
            del self.waiting[0]

    def _add_steps(self, number: int, reports: Sequence[Report]) -> None:
        """Writes those of a trial's reports that came after its last written step."""
        new = [report for report in reports if report.step > self.steps.get(number, -1)]
        if new:
            self.write_steps(number, new)
            self.steps[number] = new[-1].step

    def attempt(self, action: Callable[[], None]) -> None:
        """Opens the sink, if it is not, and writes to it."""
        try:
            if not self.started:
                if self.memory is not None and self.memory.is_file():
                    self.known.update(self.memory.read_text(encoding="utf-8").splitlines())
                self.start()
                self.started = True
            action()
            self.gone = False
        except OSError as problem:
            self.gone = True
            self._warn_once("does not take records now", problem)

    def close(self) -> None:
        """Closes the sink; a second call does nothing."""
        if self.started:
            self.started = False
            try:
                self.stop()
            except OSError as problem:
                self._warn_once("could not be closed", problem)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _warn_once(self, text: str, problem: BaseException) -> None:
        """One warning for all failures of this sink."""
        lines = str(problem).strip().splitlines() or [""]
        if not self.failed:
            warnings.warn(
                f"the {self.sink} {text} ({type(problem).__name__}: {lines[0][:200]}); the "
                "search goes on, and resuming it with this logger adds what is missing",
                RuntimeWarning,
                stacklevel=2,
            )
        self.failed = True


class CsvLogger(RecordLogger):
    """Appends one row a record to a CSV file that any spreadsheet opens.

    The columns depend on the objectives only: number, status, origin, name, role, source, seed,
    fingerprint, protocol, mask, step, seconds, every objective, every measure, on_front (whether
    the record was on the front when it came), front_size, hypervolume, `values` and `params` as
    JSON, error (its last line). A second file, `NAME.curves.csv`, gets a row for every report
    while trials run: number, step, every objective, `values` as JSON. A resumed search adds the
    records that are missing and no other; steps of a trial that was interrupted come again.

    Args:
        path: The file; its folder is made if it is missing.
        objectives: Those of the study.

    Raises:
        SearchError: When the file turns out to have other columns.
    """

    sink = "CSV log"

    def __init__(self, path: Path | str, objectives: Sequence[Objective]) -> None:
        super().__init__(objectives)
        self.path = Path(path)
        self.curves = self.path.with_suffix(".curves.csv")
        scores = [o.name for o in self.objectives if o.name not in MEASURES]
        self.columns: tuple[str, ...] = (
            *(*TEXTS, "mask", "step", "seconds", *scores, *MEASURES),
            *("on_front", "front_size", "hypervolume", "values", "params", "error"),
        )
        self.curve_columns = ("number", "step", *scores, "values")

    def start(self) -> None:
        """Writes the headers, or reads which records files with the same headers hold."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for path, columns in ((self.path, self.columns), (self.curves, self.curve_columns)):
            if not path.is_file() or path.stat().st_size == 0:
                self.append(path, columns)
        _cut_to_whole_lines(self.path)
        with self.path.open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file)
            have = rows.fieldnames or ()
            if tuple(have) != self.columns:
                raise SearchError(
                    f"{self.path} has the columns {', '.join(have)}, and this "
                    f"search writes {', '.join(self.columns)}; choose another file"
                )
            self.known |= {json.dumps([row[name] for name in KEY]) for row in rows}

    def write(self, entry: LoggedRecord) -> None:
        """Appends one row."""
        record, state = entry.record, entry.state
        row = {
            **record.measures,
            **record.values,
            **{name: getattr(record, name) for name in TEXTS},
            "mask": str(record.mask or ""),
            "step": record.step,
            "seconds": record.seconds,
            "on_front": int(state.joined),
            "front_size": len(state.front),
            "hypervolume": state.hypervolume if math.isfinite(state.hypervolume) else "",
            "values": json.dumps(dict(record.values)),
            "params": json.dumps(dict(record.params), default=str),
            "error": record.reason,
        }
        self.append(self.path, [row.get(name, "") for name in self.columns])

    def write_steps(self, number: int, reports: Sequence[Report]) -> None:
        """Appends a row a report."""
        for report in reports:
            values = dict(report.values)
            row = {**values, "number": number, "step": report.step, "values": json.dumps(values)}
            self.append(self.curves, [row.get(name, "") for name in self.curve_columns])

    def append(self, path: Path, cells: Sequence[object]) -> None:
        """One line, on disk when this returns; line breaks within a cell become spaces."""
        _cut_to_whole_lines(path)
        with path.open("a", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            lines = (" ".join(c.splitlines()) if isinstance(c, str) else c for c in cells)
            writer.writerow(map(cell_text, lines))


def _cut_to_whole_lines(path: Path) -> None:
    """Removes a last line without its end, which a kill or a full disk may leave."""
    if not path.is_file() or path.stat().st_size == 0:
        return
    with path.open("rb+") as file:
        file.seek(-1, 2)
        if file.read(1) != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
