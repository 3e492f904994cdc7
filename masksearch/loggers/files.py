"""Loggers of a search: records, curves and the front, as CSV or for TensorBoard.

Those that speak to a server (MLflow, Weights & Biases) are in `trackers`.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from masksearch.contracts import Listener, Objective, Report
from masksearch.errors import SearchError, unknown_name
from masksearch.loggers.ledger import (
    Ledger,
    LoggedRecord,
    RecordLogger,
    cut_to_whole_lines,
    required_module,
    step_key,
)
from masksearch.loggers.trackers import MlflowLogger, WandbLogger
from masksearch.masks.measure import MEASURES
from masksearch.study.store import read_address

LOGGERS = ("csv", "tensorboard", "mlflow", "wandb")
TEXTS = ("number", "status", "origin", "name", "role", "source", "seed", "fingerprint", "protocol")
KEY = ("number", "status", "seed", "fingerprint", "protocol")  # what tells rows apart


class CsvLogger(RecordLogger):
    """Appends one row a record to a CSV file that any spreadsheet opens.

    The columns depend on the objectives only: number, status, origin, name, role, source, seed,
    fingerprint, protocol, mask, step, seconds, every objective, every measure, on_front (whether
    the record was on the front when it came), front_size, hypervolume, `values` and `params` as
    JSON, error (its last line). A second file, `NAME.curves.csv`, gets a row for every report
    while trials run: number, step, every objective, `values` as JSON. A resumed search adds the
    rows that are missing and no other.

    Args:
        path: The file; its folder is made if it is missing.
        objectives: Those of the study.

    Raises:
        SearchError: When the file turns out to have other columns.
    """

    place = "CSV log"

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
        """Writes the headers, or reads what files with the same headers hold."""
        for row in self.begin(self.path, self.columns):
            number, status, seed, *prints = (row[name] for name in KEY)
            self.known.add(json.dumps([int(number), status, int(seed), *prints]))
        for row in self.begin(self.curves, self.curve_columns):
            self.known.add(step_key(int(row["number"]), int(row["step"])))

    def begin(self, path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
        """The rows of a file, which is made if it is missing."""
        path.parent.mkdir(parents=True, exist_ok=True)
        cut_to_whole_lines(path)
        if not path.is_file() or path.stat().st_size == 0:
            self.append(path, columns)
            return []
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file)
            have = rows.fieldnames or ()
            if tuple(have) != tuple(columns):
                raise SearchError(
                    f"{path} has the columns {', '.join(have)}, and this "
                    f"search writes {', '.join(columns)}; choose another file"
                )
            return list(rows)

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
        cut_to_whole_lines(path)
        with path.open("a", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow([" ".join(c.splitlines()) if isinstance(c, str) else c for c in cells])


class TensorBoardLogger(RecordLogger):
    """Event files for TensorBoard, written by its own writer.

    The search is one run of TensorBoard: front/size, front/hypervolume and the counts over
    the number of finished records, every record's values and measures over its number, and the
    front as a text table whenever it changes. Every trial is a run of its own, `trials/NUMBER`:
    its curve over optimiser steps, while it runs, then its parameters and results for the HPARAMS
    tab.

    Args:
        folder: Where to; `tensorboard --logdir FOLDER` shows it.
        objectives: Those of the study.

    Raises:
        SearchError: If tensorboard is not installed.
    """

    place = "TensorBoard log"

    def __init__(self, folder: Path | str, objectives: Sequence[Objective]) -> None:
        super().__init__(objectives)
        required_module("tensorboard", "tensorboard")
        self.library = required_module("torch.utils.tensorboard", "tensorboard")
        self.hparams = required_module("torch.utils.tensorboard.summary", "tensorboard").hparams
        self.folder = Path(folder)
        self.ledger = Ledger(self.folder / "logged.txt")
        self.writer: Any = None
        self.trials: dict[int, Any] = {}  # the writers of running trials

    def start(self) -> None:
        """Opens a new event file; TensorBoard joins it with those of earlier calls."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.known = self.ledger.read()
        self.writer = self.library.SummaryWriter(str(self.folder))

    def write(self, entry: LoggedRecord) -> None:
        """The search's figures and the trial's own run, on disk when this returns."""
        record, step = entry.record, entry.state.finished
        for name, value in entry.totals.items():
            self.writer.add_scalar(name, value, step)
        for name, value in entry.figures.items():
            self.writer.add_scalar(f"record/{name}", value, record.number)
        if entry.state.joined:
            rows = entry.front
            table = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
            lines = ["| " + " | ".join(cell(c) for c in row) + " |" for row in table]
            self.writer.add_text("front", "\n".join(lines), step)
        self.writer.add_text(
            f"record/{record.status}",
            "\n\n".join(f"{name}: {text}" for name, text in entry.texts.items() if text),
            record.number,
        )
        self.writer.flush()
        with self.writer_of(record.number) as own:
            texts = {n: t for n, t in entry.texts.items() if n != "error" or t}
            params = {
                f"params.{n}": v if isinstance(v, bool | int | float) else str(v)
                for n, v in record.params.items()
            }
            finals = {f"final/{name}": value for name, value in entry.figures.items()}
            for summary in self.hparams({**texts, **params}, finals):
                own.file_writer.add_summary(summary)
            for name, value in finals.items():
                own.add_scalar(name, value, record.step)
        del self.trials[record.number]
        self.ledger.add(entry.key)

    def write_steps(self, number: int, reports: Sequence[Report]) -> None:
        """Points of the trial's own curve, on disk when this returns."""
        own = self.writer_of(number)
        for report in reports:
            for name, value in report.values.items():
                own.add_scalar(name, value, report.step)
        own.flush()
        self.ledger.add(*(step_key(number, report.step) for report in reports))

    def writer_of(self, number: int) -> Any:
        """The event file of a trial that runs."""
        if number not in self.trials:
            folder = self.folder / "trials" / str(number)
            self.trials[number] = self.library.SummaryWriter(str(folder))
        return self.trials[number]

    def stop(self, error: BaseException | None) -> None:
        """Closes the event files."""
        for writer in [self.writer, *self.trials.values()]:
            writer.close()


def cell(value: object) -> str:
    """A cell of a Markdown table."""
    return str(f"{value:.6g}" if isinstance(value, float) else value).replace("|", "\\|")


@contextmanager
def open_loggers(
    names: Sequence[str], run: Path, objectives: Sequence[Objective]
) -> Iterator[list[Listener]]:
    """The loggers of a command line, closed at the end; their files are below the run folder.

    `csv` writes log.csv, `tensorboard` the folder tensorboard, `mlflow` the SQLite file
    mlflow/mlflow.db (unless MLFLOW_TRACKING_URI names another store), `wandb` the folder wandb
    (its account and mode come from its own settings, WANDB_MODE=offline among them).

    Args:
        names: Of `LOGGERS`; one that is named twice counts once.
        run: The run folder.
        objectives: Those of the study.

    Raises:
        UnknownNameError: If a name is unknown; names the nearest.
        SearchError: If a library is not installed.
    """
    for name in names:
        if name not in LOGGERS:
            raise unknown_name("logger", name, LOGGERS)
    with ExitStack() as stack:
        yield [stack.enter_context(make_logger(n, run, objectives)) for n in dict.fromkeys(names)]


def make_logger(name: str, run: Path, objectives: Sequence[Objective]) -> RecordLogger:
    """One of `LOGGERS`, with its files below the run folder."""
    address = read_address(run)  # the folder may have been renamed
    title = run.resolve().name if address is None else address.name
    match name:
        case "csv":
            return CsvLogger(run / "log.csv", objectives)
        case "tensorboard":
            return TensorBoardLogger(run / "tensorboard", objectives)
        case "mlflow":
            return MlflowLogger("masksearch", objectives, folder=run / "mlflow", name=title)
    return WandbLogger("masksearch", objectives, folder=run, name=title)
