"""Loggers of a search that speak to a server: MLflow, and Weights & Biases."""

from __future__ import annotations

import json
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

from masksearch.contracts import Objective, Report
from masksearch.loggers.ledger import (
    Ledger,
    LoggedRecord,
    RecordLogger,
    required_module,
    step_key,
)

ENDINGS = {"done": "FINISHED", "reused": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
KEY = "masksearch.record"  # tag of a run that holds a whole record
TRIAL = "masksearch.trial"  # tag of a trial's run: its number
MOST_FIGURES, MOST_TEXTS = 1000, 100  # in one request to MLflow
LONGEST = 5000  # characters of a text in MLflow
PATIENCE = 30  # seconds that Weights & Biases may take to begin


class MlflowLogger(RecordLogger):
    """A run of MLflow for the search, and within it a run for every trial.

    A trial's run holds its curve as metrics while it runs, then its figures, what is said of it
    in words (origin, status, mask, parameters, error) as params, and has MLflow's status
    FINISHED, KILLED (ended early) or FAILED. The search's run holds front/size, front/hypervolume
    and the counts over the number of finished records, and the front as the artifact front.json.

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
        self.trials: dict[int, str] = {}  # the runs of trials that have not ended

    def start(self) -> None:
        """Finds or makes the experiment and the search's run; reads what its trials hold."""
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
            for run in page:
                if TRIAL in run.data.tags and KEY not in run.data.tags:
                    self.continue_trial(int(run.data.tags[TRIAL]), run)
            if not (token := page.token):
                return

    def continue_trial(self, number: int, run: Any) -> None:
        """Takes up the run of a trial that was interrupted."""
        self.trials[number] = run.info.run_id
        for name in run.data.metrics:
            for point in self.client.get_metric_history(run.info.run_id, name):
                self.known.add(step_key(number, point.step))

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
        """The rest of the trial's run, then the search's figures."""
        record, now = entry.record, round(1000 * time.time())
        child = self.run_of(record.number, record.seconds)
        self.log_metrics(child, [(name, v, record.step) for name, v in entry.figures.items()])
        texts = [
            self.entities.Param(key_for(name), text[:LONGEST])
            for name, text in entry.texts.items()
            if text
        ]
        for start in range(0, len(texts), MOST_TEXTS):
            self.client.log_batch(child, params=texts[start : start + MOST_TEXTS])
        finished = entry.state.finished
        self.log_metrics(self.parent, [(name, v, finished) for name, v in entry.totals.items()])
        if entry.state.joined:
            front = {"finished": finished, "front": entry.front}
            self.client.log_dict(self.parent, front, "front.json")
        self.client.set_tag(child, KEY, entry.key)
        self.client.set_terminated(child, ENDINGS[record.status], end_time=now)
        del self.trials[record.number]

    def write_steps(self, number: int, reports: Sequence[Report]) -> None:
        """Points of the trial's curve."""
        values = [
            (name, v, report.step) for report in reports for name, v in report.values.items()
        ]
        self.log_metrics(
            self.run_of(number), [(f"curve/{name}", value, step) for name, value, step in values]
        )

    def log_metrics(self, run: str, rows: Sequence[tuple[str, float, int]]) -> None:
        """Logs (name, value, step) to a run."""
        now = round(1000 * time.time())
        found = [self.entities.Metric(key_for(n), value, now, step) for n, value, step in rows]
        for start in range(0, len(found), MOST_FIGURES):
            self.client.log_batch(run, metrics=found[start : start + MOST_FIGURES])

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
    logged again whenever it changes.

    Args:
        project: Name of the project.
        objectives: Those of the study.
        mode: `"online"`, `"offline"` (files that `wandb sync` uploads later), `"disabled"`;
            None = wandb's own default, which WANDB_MODE sets.
        folder: wandb's files go to `wandb/` in it, and there the runs are remembered, so that a
            resumed search continues them and writes no trial twice. Offline, which cannot
            continue a run, the search's run and those of interrupted trials are written anew.
            None = files where wandb puts them; every call makes new runs, with all records.
        name: What the search's run is called, and the group of all runs: the study's name.

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
        self.offline = self.mode in ("offline", "disabled")
        self.folder = None if folder is None else Path(folder).resolve()
        kept = "logged_offline.txt" if self.offline else "logged.txt"
        self.ledger = (
            Ledger(self.folder / "wandb" / kept)
            if self.folder is not None and self.mode != "disabled"
            else None
        )
        self.written: set[str] = set()  # keys of the ledger
        self.identity = uuid.uuid4().hex  # of the search; its trials' add their numbers
        self.run: Any = None
        self.trials: dict[int, Any] = {}  # the runs of trials that have not ended

    def start(self) -> None:
        """Begins the search's run, or continues the one that an earlier call has begun."""
        if self.folder is not None and self.ledger is not None:
            (self.folder / "wandb").mkdir(parents=True, exist_ok=True)
            memory = self.folder / "wandb" / "run_id.txt"
            if not memory.is_file():
                memory.write_text(self.identity, encoding="utf-8")
            self.identity = memory.read_text(encoding="utf-8").strip()
            self.written = self.ledger.read()
            self.known = self.steps_of_ended_trials() if self.offline else set(self.written)
        search = uuid.uuid4().hex if self.offline else self.identity
        goals = {o.name: [o.goal, o.worst] for o in self.objectives}
        self.run = self.begin(search, self.name, "search", {"objectives": goals})
        self.run.define_metric("search/finished")
        self.run.define_metric("*", step_metric="search/finished")

    def steps_of_ended_trials(self) -> set[str]:
        """Keys of the steps that need not be written again to files of another call."""
        keys = [json.loads(line) for line in self.written]
        ended = {key[0] for key in keys if len(key) > 2}
        return {step_key(*key) for key in keys if len(key) == 2 and key[0] in ended}

    def begin(self, identity: str, name: str | None, kind: str, config: dict[str, Any]) -> Any:
        """A run, or where wandb can continue one, the run of that identity."""
        return self.library.init(
            project=self.project,
            name=name,
            group=self.name,
            job_type=kind,
            id=identity,
            resume=None if self.offline else "allow",
            dir=None if self.folder is None else str(self.folder),
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
        if entry.key not in self.written:
            self.end_trial(entry)
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
        self.note(entry.key)

    def end_trial(self, entry: LoggedRecord) -> None:
        """What is known of a trial when it has ended."""
        record, own = entry.record, self.run_of(entry.record.number)
        words = {name: text for name, text in entry.texts.items() if text}
        summary: dict[str, Any] = {**entry.figures, "on_front": int(entry.state.joined)}
        summary |= {name: words.pop(name) for name in ("status", "error") if name in words}
        own.config.update({**words, "number": record.number}, allow_val_change=True)
        own.summary.update(summary)
        own.finish(exit_code=int(record.status == "failed"))
        del self.trials[record.number]

    def write_steps(self, number: int, reports: Sequence[Report]) -> None:
        """Points of the trial's curve."""
        for report in reports:
            self.run_of(number).log(dict(report.values), step=report.step)
        self.note(*(step_key(number, report.step) for report in reports))

    def note(self, *keys: str) -> None:
        """Remembers what is written, for another call."""
        new = [key for key in keys if key not in self.written]
        if self.ledger is not None and new:
            self.ledger.add(*new)

    def stop(self, error: BaseException | None) -> None:
        """Ends the runs and waits until they are written or uploaded."""
        for run in [*self.trials.values(), self.run]:
            run.finish(exit_code=0 if error is None else 1)


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
