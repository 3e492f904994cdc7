"""Loggers of a search that speak to a server: MLflow, and Weights & Biases."""

from __future__ import annotations

import logging
import os
import re
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from masksearch.contracts import Objective
from masksearch.loggers.ledger import Ledger, LoggedRecord, RecordLogger, required_module

ENDINGS = {"done": "FINISHED", "reused": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
KEY = "masksearch.record"  # tag of a run that holds a whole record
MOST_FIGURES, MOST_TEXTS = 1000, 100  # in one request to MLflow
LONGEST = 5000  # characters of a text in MLflow
PATIENCE = 30  # seconds that Weights & Biases may take to begin


class MlflowLogger(RecordLogger):
    """A run of MLflow for the search, and within it a run for every trial.

    A trial's run holds its curve and figures as metrics, what is said of it in words (origin,
    status, mask, parameters, error) as params, and has MLflow's status FINISHED, KILLED (ended
    early) or FAILED. The search's run holds front/size, front/hypervolume and the counts over
    the number of finished records, and the front as the artifact front.json.

    A server that does not answer is given up after seconds, not MLflow's minutes, unless
    MLFLOW_HTTP_REQUEST_MAX_RETRIES and MLFLOW_HTTP_REQUEST_TIMEOUT say otherwise.

    Args:
        experiment: Name of the experiment; made if it is missing.
        objectives: Those of the study.
        tracking_uri: A server's address, `sqlite:///PATH`, ..; None = MLFLOW_TRACKING_URI, or
            else `mlflow.db` in `folder`, or else MLflow's own default.
        folder: Where the search's run is remembered, so that a resumed search continues it;
            None = every call makes a new one, with all records of the study.
        name: What the search's run is called.

    Raises:
        SearchError: If mlflow (or mlflow-skinny) is not installed.
    """

    place = "MLflow log"

    def __init__(
        self,
        experiment: str,
        objectives: Sequence[Objective],
        *,
        tracking_uri: str | None = None,
        folder: Path | str | None = None,
        name: str = "search",
    ) -> None:
        super().__init__(objectives)
        self.library = required_module("mlflow", "mlflow")
        self.entities = required_module("mlflow.entities", "mlflow")
        self.failures = (OSError, SQLAlchemyError, self.library.exceptions.MlflowException)
        self.experiment, self.name = experiment, name
        self.folder = None if folder is None else Path(folder).resolve()
        self.uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        if self.uri is None and self.folder is not None:
            self.uri = f"sqlite:///{self.folder / 'mlflow.db'}"
        self.group = self.parent = ""  # ids of the experiment and of the search's run
        self.client: Any = None

    def start(self) -> None:
        """Finds or makes the experiment and the search's run."""
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
        with quiet("mlflow.store.db.utils"):
            self.client = self.library.MlflowClient(tracking_uri=self.uri)
            known = self.client.get_experiment_by_name(self.experiment)
        if known is None:
            own = self.folder is not None and (self.uri or "").startswith("sqlite:")
            artifacts = (self.folder / "artifacts").as_uri() if self.folder and own else None
            self.group = self.client.create_experiment(self.experiment, artifacts)
        else:
            self.group = known.experiment_id
        self.parent = self.resumed_run() or self.create_search_run()
        query, token = f"tags.mlflow.parentRunId = '{self.parent}'", None
        while True:
            page = self.client.search_runs([self.group], query, page_token=token)
            self.known |= {run.data.tags[KEY] for run in page if KEY in run.data.tags}
            if not (token := page.token):
                return

    def resumed_run(self) -> str:
        """The run that an earlier call has made, open again; empty where there is none."""
        memory = None if self.folder is None else self.folder / "run_id.txt"
        if memory is None or not memory.is_file():
            return ""
        parent = memory.read_text(encoding="utf-8").strip()
        if not self.client.search_runs([self.group], f"attributes.run_id = '{parent}'"):
            return ""  # it is another server's
        self.client.update_run(parent, status="RUNNING")
        return parent

    def create_search_run(self) -> str:
        """A new run for the search."""
        goals = {f"objective.{o.name}": o.goal for o in self.objectives}
        run = self.client.create_run(self.group, tags=goals, run_name=self.name)
        if self.folder is not None:
            (self.folder / "run_id.txt").write_text(run.info.run_id, encoding="utf-8")
        return str(run.info.run_id)

    def write(self, entry: LoggedRecord) -> None:
        """A run for the trial, then the search's figures."""
        record, now = entry.record, round(1000 * time.time())
        child = self.client.create_run(
            self.group,
            start_time=now - round(1000 * record.seconds),
            tags={"mlflow.parentRunId": self.parent},
            run_name=f"trial {record.number}",
        ).info.run_id
        curve = [
            (f"curve/{name}", value, report.step)
            for report in record.curve
            for name, value in report.values.items()
        ]
        finals = [(name, value, record.step) for name, value in entry.figures.items()]
        figures = self.metrics(curve + finals, now)
        texts = [
            self.entities.Param(key_for(name), text[:LONGEST])
            for name, text in entry.texts.items()
            if text
        ]
        for start in range(0, len(figures), MOST_FIGURES):
            self.client.log_batch(child, metrics=figures[start : start + MOST_FIGURES])
        for start in range(0, len(texts), MOST_TEXTS):
            self.client.log_batch(child, params=texts[start : start + MOST_TEXTS])
        finished = entry.state.finished
        totals = [(name, value, finished) for name, value in entry.totals.items()]
        self.client.log_batch(self.parent, metrics=self.metrics(totals, now))
        if entry.state.joined:
            front = {"finished": finished, "front": entry.front}
            self.client.log_dict(self.parent, front, "front.json")
        self.client.set_tag(child, KEY, entry.key)
        self.client.set_terminated(child, ENDINGS[record.status], end_time=now)

    def metrics(self, rows: Sequence[tuple[str, float, int]], now: int) -> list[Any]:
        """(name, value, step) as MLflow's metrics at a time in milliseconds."""
        return [self.entities.Metric(key_for(n), value, now, step) for n, value, step in rows]

    def stop(self, error: BaseException | None) -> None:
        """Ends the search's run."""
        interrupted = isinstance(error, KeyboardInterrupt)
        ending = "FINISHED" if error is None else "KILLED" if interrupted else "FAILED"
        self.client.set_terminated(self.parent, ending)


class WandbLogger(RecordLogger):
    """A run of Weights & Biases for the search; each record is one step of its history.

    A step holds the record's figures and words (`record/..`), front/size, front/hypervolume and
    the counts; the horizontal axis is the number of finished records. The front is a table,
    logged again whenever it changes.

    Args:
        project: Name of the project.
        objectives: Those of the study.
        mode: `"online"`, `"offline"` (files that `wandb sync` uploads later), `"disabled"`;
            None = wandb's own default, which WANDB_MODE sets.
        folder: wandb's files go to `wandb/` in it, and there an online run is remembered, so
            that a resumed search continues it. Offline, which cannot continue a run, and with
            None (files where wandb puts them) every call makes a new run, with all records of
            the study.
        name: What the run is called, and the group that joins the runs of one search.

    Raises:
        SearchError: If wandb is not installed.
    """

    place = "Weights & Biases log"

    def __init__(
        self,
        project: str,
        objectives: Sequence[Objective],
        *,
        mode: str | None = None,
        folder: Path | str | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(objectives)
        self.library = required_module("wandb", "wandb")
        self.failures = (OSError, self.library.errors.Error)
        self.project, self.name = project, name
        self.mode = mode or os.environ.get("WANDB_MODE")
        self.folder = None if folder is None else Path(folder).resolve()
        continued = self.folder is not None and self.mode not in ("offline", "disabled")
        self.ledger = (
            Ledger(self.folder / "wandb/logged.txt") if self.folder and continued else None
        )
        self.run: Any = None

    def start(self) -> None:
        """Begins the run, or continues the one that an earlier call has begun."""
        identity = None
        if self.folder is not None:
            (self.folder / "wandb").mkdir(parents=True, exist_ok=True)
        if self.folder is not None and self.ledger is not None:
            memory = self.folder / "wandb" / "run_id.txt"
            if not memory.is_file():
                memory.write_text(uuid.uuid4().hex, encoding="utf-8")
            identity = memory.read_text(encoding="utf-8").strip()
            self.known = self.ledger.read()
        self.run = self.library.init(
            project=self.project,
            name=self.name,
            group=self.name,
            id=identity,
            resume="allow" if identity else None,
            dir=None if self.folder is None else str(self.folder),
            mode=self.mode,
            config={"objectives": {o.name: [o.goal, o.worst] for o in self.objectives}},
            reinit="create_new",
            settings=self.library.Settings(
                console="off",
                init_timeout=PATIENCE,
                silent=self.mode in ("offline", "disabled"),
            ),
        )
        self.run.define_metric("search/finished")
        self.run.define_metric("*", step_metric="search/finished")

    def write(self, entry: LoggedRecord) -> None:
        """One step of the history."""
        row: dict[str, Any] = {**entry.totals}
        row.update({f"record/{name}": text for name, text in entry.texts.items() if text})
        row.update({f"record/{name}": value for name, value in entry.figures.items()})
        row["record/number"] = entry.record.number
        row["record/on_front"] = int(entry.state.joined)
        if entry.state.joined:
            front = entry.front
            row["front/table"] = self.library.Table(
                columns=list(front[0]), data=[list(r.values()) for r in front]
            )
        self.run.log(row)
        if self.ledger is not None:
            self.ledger.add(entry.key)

    def stop(self, error: BaseException | None) -> None:
        """Ends the run and waits until it is written or uploaded."""
        self.run.finish(exit_code=0 if error is None else 1)


def key_for(name: str) -> str:
    """A name as MLflow allows it: letters, digits, `_ - . / :` and spaces."""
    return re.sub(r"[^\w\-./: ]", "_", name)[:250]


@contextmanager
def quiet(name: str) -> Iterator[None]:
    """A library's logger without its chatter."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
