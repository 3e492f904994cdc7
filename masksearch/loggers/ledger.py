"""What all loggers share: what is logged, and that a broken sink never ends a search."""

from __future__ import annotations

import importlib
import json
import math
import time
import warnings
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

from masksearch.analysis.pareto import Snapshot
from masksearch.contracts import Objective, Record
from masksearch.errors import SearchError

FIRST_WAIT, LONGEST_WAIT = 15.0, 600.0  # seconds before a sink that failed is tried again


@dataclass(frozen=True)
class Entry:
    """One record, and the state of the search after it."""

    record: Record
    state: Snapshot

    @property
    def key(self) -> str:
        """What tells this record from every other one, in one line of text."""
        r = self.record
        return json.dumps([r.number, r.status, r.origin, r.seed, r.fingerprint, r.protocol])

    @property
    def mask(self) -> str:
        """The mask's text; empty for a job without one."""
        return str(self.record.mask) if self.record.mask is not None else ""

    @property
    def error(self) -> str:
        """The last line of the record's error; empty where there was none."""
        return self.record.reason

    @property
    def figures(self) -> dict[str, float]:
        """Measures, values and seconds of the record; finite ones only."""
        known = {**self.record.measures, **self.record.values, "seconds": self.record.seconds}
        return {name: value for name, value in known.items() if math.isfinite(value)}

    @property
    def texts(self) -> dict[str, str]:
        """What is said of the record in words; figures that are not finite are among them."""
        record = self.record
        known = {**record.measures, **record.values}
        return {
            "number": str(record.number),
            "origin": record.origin,
            "status": record.status,
            "seed": str(record.seed),
            "mask": self.mask,
            "fingerprint": record.fingerprint,
            **{f"params.{name}": str(value) for name, value in record.params.items()},
            **{name: str(value) for name, value in known.items() if not math.isfinite(value)},
            "error": self.error,
        }

    @property
    def totals(self) -> dict[str, float]:
        """The state of the search after the record: front, hypervolume, counts, compute."""
        counts = {f"search/{status}": float(n) for status, n in self.state.statuses.items()}
        return {
            "front/size": float(len(self.state.front)),
            **self.volume,
            "search/finished": float(self.state.finished),
            "search/seconds": self.state.seconds,
            **counts,
        }

    @property
    def volume(self) -> dict[str, float]:
        """The front's hypervolume, where it has one."""
        value = self.state.hypervolume
        return {"front/hypervolume": value} if math.isfinite(value) else {}

    def front(self, objectives: Sequence[Objective]) -> list[dict[str, Any]]:
        """The front as rows: number, origin, seed, objectives, mask."""
        return [
            {
                "number": record.number,
                "origin": record.origin,
                "seed": record.seed,
                **{o.name: record.value(o.name) for o in objectives},
                "mask": str(record.mask),
            }
            for record in self.state.front
        ]


class RecordLogger:
    """A listener that writes every record, and the front after it, to a sink.

    A sink that fails (a server that is down, a full disk) does not end the search: there is one
    warning, the records are kept in memory and tried again with later records, and once more
    when the logger is closed. What is missing then is added when the search is resumed with
    such a logger, because `restore` compares what the study holds with what the sink knows.

    Subclasses have `start`, `write` and `stop`, and name the exceptions that mean "the sink
    failed" in `failures`.
    """

    failures: tuple[type[Exception], ...] = (OSError,)
    place: ClassVar[str] = "log"  # what a warning calls the sink

    def __init__(self, objectives: Sequence[Objective]) -> None:
        self.objectives = tuple(objectives)
        self.state = Snapshot(self.objectives)
        self.known: set[str] = set()  # keys of the records that the sink holds
        self.pending: deque[Entry] = deque()
        self.started = self.warned = False
        self.wait, self.again = FIRST_WAIT, 0.0  # seconds; on the monotonic clock

    # -- what a sink does ----------------------------------------------------------------------
    def start(self) -> None:
        """Opens the sink, and puts the keys of the records that it holds into `known`."""
        raise NotImplementedError

    def write(self, entry: Entry) -> None:
        """Writes one record and the front after it."""
        raise NotImplementedError

    def stop(self, error: BaseException | None) -> None:
        """Closes the sink; `error` is what ended the search, if anything did."""
        raise NotImplementedError

    # -- the listener --------------------------------------------------------------------------
    def restore(self, records: Sequence[Record]) -> None:
        """Takes the finished records of a resumed study; adds those that the sink lacks."""
        self.state = Snapshot(self.objectives)
        for record in records:
            self.take(record)
        self.drain()

    def __call__(self, record: Record) -> None:
        """Takes one finished record."""
        self.take(record)
        self.drain()

    def take(self, record: Record) -> None:
        """Puts a record, with the state of the search after it, among those to be written."""
        self.state = self.state.after(record)
        self.pending.append(Entry(record, self.state))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(error)

    def close(self, error: BaseException | None = None) -> None:
        """Writes what is left and closes the sink; a second call does nothing."""
        if self.pending:
            self.drain(last=True)
        if self.started:
            self.started = False
            try:
                self.stop(error)
            except self.failures as problem:
                self.complain(f"could not be closed ({brief(problem)})")
        if self.pending:
            self.complain(
                f"lacks records ({len(self.pending)}); the study holds them, and resuming the "
                "search with this logger adds them"
            )
            self.pending.clear()

    def drain(self, last: bool = False) -> None:
        """Writes what is pending, unless the sink has failed a moment ago."""
        if not last and time.monotonic() < self.again:
            return
        try:
            if not self.started:
                self.start()
                self.started = True
            while self.pending:
                entry = self.pending[0]
                if entry.key not in self.known:
                    self.write(entry)
                    self.known.add(entry.key)
                self.pending.popleft()
            self.wait = FIRST_WAIT
        except self.failures as problem:
            self.again = time.monotonic() + self.wait
            self.wait = min(2 * self.wait, LONGEST_WAIT)
            if not self.warned:
                self.warned = True
                self.complain(
                    f"does not take records now ({brief(problem)}); the search goes on, and they "
                    "are tried again later"
                )

    def complain(self, text: str) -> None:
        """One warning."""
        warnings.warn(f"the {self.place} {text}", RuntimeWarning, stacklevel=2)


class Ledger:
    """The keys of the records that a sink holds, for sinks that cannot be asked: a text file
    beside them, one key a line."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> set[str]:
        """Every key; a line that a killed process has cut off counts as none."""
        if not self.path.is_file():
            return set()
        text = self.path.read_text(encoding="utf-8")
        return set(text[: text.rfind("\n") + 1].splitlines())

    def add(self, key: str) -> None:
        """Adds one key."""
        cut_to_whole_lines(self.path)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{key}\n")


def cut_to_whole_lines(path: Path) -> None:
    """Removes a last line without its end, which a killed process may leave."""
    if not path.is_file() or path.stat().st_size == 0:
        return
    with path.open("rb+") as file:
        file.seek(-1, 2)
        if file.read(1) != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)


def required(module: str, extra: str) -> Any:
    """A module of an optional library.

    Raises:
        SearchError: If it is not installed; gives the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise SearchError(
            f"logging to {extra} needs the package {module.split('.')[0]}, which cannot be "
            f"imported ({error}); install it with: pip install 'masksearch[{extra}]'"
        ) from error


def brief(problem: BaseException) -> str:
    """An exception in one short line."""
    lines = str(problem).strip().splitlines() or [""]
    return f"{type(problem).__name__}: {lines[0][:200]}"
