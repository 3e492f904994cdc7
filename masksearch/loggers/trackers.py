"""Loggers of a search for TensorBoard, MLflow, and Weights & Biases.

Curves are written under their steps and runs under their names or ids, so that what comes twice
after a kill (the last record, the steps of trials that ran) stands on its first copy.
"""

from __future__ import annotations

import importlib
import logging
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from masksearch.contracts import Listener, Objective, Report
from masksearch.errors import SearchError, check_name, install_command
from masksearch.loggers.files import CsvLogger, LoggedRecord, RecordLogger
from masksearch.study.storage import sqlite_url
from masksearch.study.store import read_address

PROJECT = "masksearch"  # the experiment of MLflow, the project of Weights & Biases
MEMORY = "logged.txt"  # keys of the records that a sink holds, where it cannot be asked
RUN_ID = "run_id.txt"  # of the search's run
ENDINGS = {"done": "FINISHED", "reused": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
KEY = "masksearch.record"  # tag of a run that holds a whole record
TRIAL = "masksearch.trial"  # tag of a trial's run: its number
MOST_FIGURES, MOST_TEXTS = 1000, 100  # in one request to MLflow
LONGEST = 5000  # characters of a text in MLflow
PATIENCE = 30  # seconds that Weights & Biases may take to begin


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
        self.folder = Path(folder)
        super().__init__(objectives, self.folder / MEMORY)
        required_module("tensorboard", "tensorboard")
        self.library = required_module("torch.utils.tensorboard", "tensorboard")
        self.hparams = required_module("torch.utils.tensorboard.summary", "tensorboard").hparams
        self.writer: Any = None
        self.trials: dict[int, Any] = {}  # the writers of running trials

    def start(self) -> None:
        """Opens a new event file; TensorBoard joins it with those of earlier calls."""
        self.folder.mkdir(parents=True, exist_ok=True)
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
        texts = "\n\n".join(f"{name}: {text}" for name, text in entry.texts.items())
        self.writer.add_text(f"record/{record.status}", texts, record.number)
        self.writer.flush()
        numbers = {
            f"params.{n}": v for n, v in record.params.items() if isinstance(v, int | float)
        }
        finals = {f"final/{name}": value for name, value in entry.figures.items()}
        with self.writer_of(record.number) as writer:
            for summary in self.hparams({**entry.texts, **numbers}, finals):
                writer.file_writer.add_summary(summary)
            for name, value in finals.items():
                writer.add_scalar(name, value, record.step)
        del self.trials[record.number]

    def write_steps(self, number: int, reports: Sequence[Report]) -> None:
        """Points of the trial's own curve, on disk when this returns."""
        writer = self.writer_of(number)
        for report in reports:
            for name, value in report.values.items():
                writer.add_scalar(name, value, report.step)
        writer.flush()

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


class MlflowLogger(RecordLogger):
    """A run of MLflow for the search, and within it a run for every trial.

    A trial's run holds its curve as metrics while it runs, then its figures, what is said of it
    in words (origin, status, mask, parameters, error) as params, and has MLflow's status
    FINISHED, KILLED (ended early) or FAILED. The search's run holds front/size, front/hypervolume
    and the counts over the number of finished records, and the front as the artifact front.json.

    They are in the experiment "masksearch" of the server that MLFLOW_TRACKING_URI names, else in
    `mlflow.db` in the folder. A server that does not answer is given up after seconds, not
    MLflow's minutes, unless MLFLOW_HTTP_REQUEST_MAX_RETRIES and MLFLOW_HTTP_REQUEST_TIMEOUT say
    otherwise.

    Args:
        folder: Where the search's run is remembered, so that a resumed search continues it.
        objectives: Those of the study.
        name: What the search's run is called.

    Raises:
        SearchError: If mlflow (or mlflow-skinny) is not installed.
    """

    place = "MLflow log"

    def __init__(
        self, folder: Path | str, objectives: Sequence[Objective], name: str = "search"
    ) -> None:
        super().__init__(objectives)
        self.library = required_module("mlflow", "mlflow")
        self.entities = required_module("mlflow.entities", "mlflow")
        self.failures = (OSError, SQLAlchemyError, self.library.exceptions.MlflowException)
        self.folder, self.name = Path(folder).resolve(), name
        self.uri = os.environ.get("MLFLOW_TRACKING_URI") or sqlite_url(self.folder / "mlflow.db")
        self.group = self.parent = ""  # ids of the experiment and of the search's run
        self.client: Any = None
        self.trials: dict[int, str] = {}  # the runs of trials that have not ended

    def start(self) -> None:
        """Finds or makes the experiment and the search's run; asks which trials it holds."""
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.client = self.library.MlflowClient(tracking_uri=self.uri)
        if (experiment := self.client.get_experiment_by_name(PROJECT)) is not None:
            self.group = experiment.experiment_id
        else:
            files = (
                (self.folder / "artifacts").as_uri() if self.uri.startswith("sqlite:") else None
            )
            self.group = self.client.create_experiment(PROJECT, files)
        memory = self.folder / RUN_ID
        kept = memory.read_text(encoding="utf-8") if memory.is_file() else ""
        if kept and self.runs(f"attributes.run_id = '{kept}'"):  # else it is another server's
            self.parent = kept
            self.client.update_run(kept, status="RUNNING")
        else:
            goals = {f"objective.{o.name}": o.goal for o in self.objectives}
            run = self.client.create_run(self.group, tags=goals, run_name=self.name)
            self.parent = run.info.run_id
            memory.write_text(self.parent, encoding="utf-8")
        for run in self.runs(f"tags.mlflow.parentRunId = '{self.parent}'"):
            if KEY in run.data.tags:
                self.known.add(run.data.tags[KEY])
            else:
                self.trials[int(run.data.tags[TRIAL])] = run.info.run_id

    def runs(self, query: str) -> list[Any]:
        """The experiment's runs that a query finds."""
        page = self.client.search_runs([self.group], query)
        listed = list(page)
        while page.token:
            page = self.client.search_runs([self.group], query, page_token=page.token)
            listed += page
        return listed

    def run_of(self, number: int, seconds: float = 0.0) -> str:
        """The run of a trial, which began that long ago where it is a new one."""
        if number not in self.trials:
            now = round(1000 * (time.time() - seconds))
            tags = {"mlflow.parentRunId": self.parent, TRIAL: str(number)}
            run = self.client.create_run(
                self.group, start_time=now, tags=tags, run_name=f"trial {number}"
            )
            self.trials[number] = str(run.info.run_id)
        return self.trials[number]

    def write(self, entry: LoggedRecord) -> None:
        """The rest of the trial's run, then the search's figures."""
        record, finished = entry.record, entry.state.finished
        child = self.run_of(record.number, record.seconds)
        self.log_metrics(child, [(name, v, record.step) for name, v in entry.figures.items()])
        texts = [
            self.entities.Param(key_for(name), text[:LONGEST])
            for name, text in entry.texts.items()
        ]
        for start in range(0, len(texts), MOST_TEXTS):
            self.client.log_batch(child, params=texts[start : start + MOST_TEXTS])
        self.log_metrics(self.parent, [(name, v, finished) for name, v in entry.totals.items()])
        if entry.state.joined:
            front = {"finished": finished, "front": entry.front}
            self.client.log_dict(self.parent, front, "front.json")
        self.client.set_tag(child, KEY, entry.key)
        self.client.set_terminated(child, ENDINGS[record.status])
        del self.trials[record.number]

    def write_steps(self, number: int, reports: Sequence[Report]) -> None:
        """Points of the trial's curve."""
        values = [
            (f"curve/{name}", value, report.step)
            for report in reports
            for name, value in report.values.items()
        ]
        self.log_metrics(self.run_of(number), values)

    def log_metrics(self, run: str, rows: Sequence[tuple[str, float, int]]) -> None:
        """Logs (name, value, step) to a run."""
        now = round(1000 * time.time())
        metrics = [self.entities.Metric(key_for(n), value, now, step) for n, value, step in rows]
        for start in range(0, len(metrics), MOST_FIGURES):
            self.client.log_batch(run, metrics=metrics[start : start + MOST_FIGURES])

    def stop(self, error: BaseException | None) -> None:
        """Ends the search's run."""
        interrupted = isinstance(error, KeyboardInterrupt)
        ending = "FINISHED" if error is None else "KILLED" if interrupted else "FAILED"
        self.client.set_terminated(self.parent, ending)


class WandbLogger(RecordLogger):
    """A run of Weights & Biases for every trial, and one for the search, in one group.

    A trial's run holds its curve over optimiser steps while it runs; then its figures and words
    (status, error, ..) as its summary, and origin, mask and parameters as its configuration.
    Each record is one step of the search's run: its figures and words (`record/..`), front/size,
    front/hypervolume and the counts over the number of finished records. The front is a table,
    logged again whenever it changes. They are in the project "masksearch" of wandb's own account,
    or with WANDB_MODE=offline in files that `wandb sync` uploads later.

    Args:
        folder: wandb's files go to `wandb/` in it, and there the runs are remembered, so that a
            resumed search continues them. Offline, which cannot continue a run, each call adds a
            run of the search with the records of that call.
        objectives: Those of the study.
        name: What the search's run is called, and the group of all runs: the study's name.

    Raises:
        SearchError: If wandb is not installed.
    """

    place = "Weights & Biases log"

    def __init__(
        self, folder: Path | str, objectives: Sequence[Objective], name: str = "search"
    ) -> None:
        self.folder, self.name = Path(folder).resolve(), name
        self.mode = os.environ.get("WANDB_MODE")
        self.offline = self.mode in ("offline", "disabled")
        memory = None if self.mode == "disabled" else self.folder / "wandb" / MEMORY
        super().__init__(objectives, memory)
        self.library = required_module("wandb", "wandb")
        self.failures = (OSError, self.library.errors.Error)
        self.identity = uuid.uuid4().hex  # of the search; its trials' add their numbers
        self.run: Any = None
        self.trials: dict[int, Any] = {}  # the runs of trials that have not ended

    def start(self) -> None:
        """Begins the search's run, or continues the one that an earlier call has begun."""
        if self.memory is not None:
            place = self.memory.with_name(RUN_ID)
            place.parent.mkdir(parents=True, exist_ok=True)
            if not place.is_file():
                place.write_text(self.identity, encoding="utf-8")
            self.identity = place.read_text(encoding="utf-8")
        search = uuid.uuid4().hex if self.offline else self.identity
        goals = {o.name: [o.goal, o.worst] for o in self.objectives}
        self.run = self.begin(search, self.name, "search", {"objectives": goals})
        self.run.define_metric("search/finished")
        self.run.define_metric("*", step_metric="search/finished")

    def begin(self, identity: str, name: str | None, kind: str, config: dict[str, Any]) -> Any:
        """A run, or where wandb can continue one, the run of that identity."""
        return self.library.init(
            project=PROJECT,
            name=name,
            group=self.name,
            job_type=kind,
            id=identity,
            resume=None if self.offline else "allow",
            dir=str(self.folder),
            mode=self.mode,
            config=config,
            reinit="create_new",
            settings=self.library.Settings(
                console="off", init_timeout=PATIENCE, silent=self.offline
            ),
        )

    def run_of(self, number: int) -> Any:
        """The run of a trial."""
        if number not in self.trials:
            identity = f"{self.identity}-{number}"
            self.trials[number] = self.begin(identity, f"trial {number}", "trial", {})
        return self.trials[number]

    def write(self, entry: LoggedRecord) -> None:
        """The end of the trial's run, and one step of the search's."""
        record, run, words = entry.record, self.run_of(entry.record.number), entry.texts
        run.summary.update(
            {**entry.figures, "on_front": int(entry.state.joined), "status": record.status}
            | ({"error": record.reason} if record.reason else {})
        )
        facts = {name: text for name, text in words.items() if name not in ("status", "error")}
        run.config.update({**facts, "number": record.number}, allow_val_change=True)
        run.finish(exit_code=int(record.status == "failed"))
        del self.trials[record.number]
        row = {f"record/{name}": each for name, each in (words | entry.figures).items()}
        row |= {**entry.totals, "record/number": record.number}
        row["record/on_front"] = int(entry.state.joined)
        if entry.state.joined:
            front = entry.front
            row["front/table"] = self.library.Table(
                columns=list(front[0]), data=[list(r.values()) for r in front]
            )
        self.run.log(row)

    def write_steps(self, number: int, reports: Sequence[Report]) -> None:
        """Points of the trial's curve."""
        for report in reports:
            self.run_of(number).log(dict(report.values), step=report.step)

    def stop(self, error: BaseException | None) -> None:
        """Ends the runs and waits until they are written or uploaded."""
        for run in [*self.trials.values(), self.run]:
            run.finish(exit_code=0 if error is None else 1)


@contextmanager
def open_loggers(
    names: Sequence[str], run: Path, objectives: Sequence[Objective]
) -> Iterator[list[Listener]]:
    """The loggers of a command line, closed at the end; their files are below the run folder.

    `csv` writes log.csv, `tensorboard` the folder tensorboard, `mlflow` the SQLite file
    mlflow/mlflow.db (unless MLFLOW_TRACKING_URI names another store), `wandb` the folder wandb
    (its account and mode come from its own settings, WANDB_MODE=offline among them).

    Args:
        names: Of these four; one that is named twice counts once.
        run: The run folder.
        objectives: Those of the study.

    Raises:
        UnknownNameError: If a name is unknown; names the nearest.
        SearchError: If a library is not installed.
    """
    run = run.absolute()  # whoever changes the working folder moves nothing
    address = read_address(run)  # the folder may have been renamed
    title = run.resolve().name if address is None else address.name
    makers: dict[str, Callable[[], RecordLogger]] = {
        "csv": lambda: CsvLogger(run / "log.csv", objectives),
        "tensorboard": lambda: TensorBoardLogger(run / "tensorboard", objectives),
        "mlflow": lambda: MlflowLogger(run / "mlflow", objectives, title),
        "wandb": lambda: WandbLogger(run, objectives, title),
    }
    for name in names:
        check_name("logger", name, makers)
    with ExitStack() as stack:
        yield [stack.enter_context(makers[name]()) for name in dict.fromkeys(names)]


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


def cell(value: object) -> str:
    """A cell of a Markdown table."""
    return str(f"{value:.6g}" if isinstance(value, float) else value).replace("|", "\\|")


def key_for(name: str) -> str:
    """A name as MLflow allows it: letters, digits, `_ - . / :` and spaces."""
    return re.sub(r"[^\w\-./: ]", "_", name)[:250]
