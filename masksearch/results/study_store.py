"""Records in an Optuna storage: one study is one search, and optuna-dashboard opens it.

A proposal is written when it is asked (a RUNNING trial), its curve and values before the trial
is told, so a killed run loses nothing. Statuses: done and reused are COMPLETE, stopped is
PRUNED, failed is FAIL. A one-shot job has no score of its own: its finished trial is PRUNED.
Only the driver writes, guarded by a lock file in the run folder.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import filelock
import optuna
from optuna.distributions import json_to_distribution
from optuna.exceptions import ExperimentalWarning
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from masksearch.contracts import (
    Evaluate,
    Job,
    Objective,
    OneShot,
    Record,
    Refused,
    Report,
    Shape,
)
from masksearch.errors import ResumeError, SearchError
from masksearch.masks.core import Mask
from masksearch.masks.lower import load_mask, save_mask

INLINE = 16_384  # characters of a mask's JSON above which it is a file of its own
STATES = {
    "running": TrialState.RUNNING,
    "done": TrialState.COMPLETE,
    "reused": TrialState.COMPLETE,
    "stopped": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}


OBSERVED = "observed:"  # + the observation's order in the study: one attribute each


@dataclass(frozen=True)
class Observation:
    """What a scheduler was shown of a trial, and what it answered.

    Args:
        number: Trial number in the study.
        report: The report that it was shown.
        goes_on: Whether the trial went on.
    """

    number: int
    report: Report
    goes_on: bool


class StudyStore:
    """The records of one run folder.

    Args:
        run: Folder of the run; made if it is missing.
        storage: None (SQLite in the run folder), `"journal:PATH"`, a database URL, or an
            Optuna storage.
        write: Whether to lock the study for writing.

    Raises:
        SearchError: If another process writes to it, or the storage cannot be read.
    """

    def __init__(
        self,
        run: Path,
        storage: str | optuna.storages.BaseStorage | None = None,
        *,
        write: bool = True,
    ) -> None:
        self.run = Path(run)
        self.name = self.run.resolve().name
        if not write and storage is None and not (self.run / "study.db").is_file():
            raise SearchError(f"{self.run} holds no study (no study.db); run a search first")
        self.lock = filelock.FileLock(self.run / ".writer.lock") if write else None
        if self.lock is not None:
            writable(self.run)
            try:
                self.lock.acquire(timeout=0)
            except filelock.Timeout as error:
                raise SearchError(
                    f"another process is writing to {self.run}; wait for it, or choose another run"
                ) from error
        self.storage = opened(self.run, storage)
        self.study: optuna.Study | None = None
        self.count = 0
        self.finished = 0
        self.observed = 0
        self.begun: dict[int, int] = {}  # running trial -> how often it was begun

    # -- the study ---------------------------------------------------------------------------
    def create(self, objectives: Sequence[Objective], facts: Mapping[str, str]) -> bool:
        """Creates the study, or opens it and compares what it was created with.

        Args:
            objectives: Become the study's directions.
            facts: What must be equal for a search to go on (protocol, space, seed, ...).

        Returns:
            Whether the study had been there before.

        Raises:
            ResumeError: If it was created with other facts; names each that differs.
        """
        names = {study.study_name for study in optuna.get_all_study_summaries(self.storage)}
        existed = self.name in names
        if existed:
            self.load()
            assert self.study is not None
            before = self.facts()
            changed = [key for key in facts if before.get(key) != facts[key]]
            if changed:
                detail = "; ".join(
                    f"{key}: was {shortened(before.get(key))}, now {shortened(facts[key])}"
                    for key in changed
                )
                raise ResumeError(
                    f"{self.run} belongs to another search ({detail}); "
                    "choose another run folder, or repeat the search as it was"
                )
            return True
        with quiet():
            self.study = optuna.create_study(
                storage=self.storage,
                study_name=self.name,
                directions=directions(objectives),
            )
            self.study.set_metric_names([o.name for o in objectives])
        described = [[o.name, o.goal, o.worst] for o in objectives]
        self.study.set_user_attr("objectives", described)
        self.study.set_user_attr("facts", dict(facts))
        return False

    def load(self) -> None:
        """Opens an existing study.

        Raises:
            SearchError: If the storage holds none under this run's name.
        """
        try:
            self.study = optuna.load_study(study_name=self.name, storage=self.storage)
        except KeyError as error:
            raise SearchError(f"the storage of {self.run} holds no study {self.name!r}") from error
        trials = self.study.get_trials(deepcopy=False)
        self.count = len(trials)
        self.finished = sum(trial.state.is_finished() for trial in trials)
        self.observed = 1 + max(
            (order for trial in trials for order, _ in observed(trial)), default=-1
        )
        self.begun = {
            trial.number: int(trial.user_attrs.get("starts", 1))
            for trial in trials
            if not trial.state.is_finished()
        }

    def opened(self) -> optuna.Study:
        """The Optuna study, for whoever wants Optuna's own tools."""
        if self.study is None:
            self.load()
        assert self.study is not None
        return self.study

    def facts(self) -> dict[str, str]:
        """What the study was created with."""
        found: dict[str, str] = self.opened().user_attrs.get("facts", {})
        return found

    def objectives(self) -> tuple[Objective, ...]:
        """The study's objectives, in order."""
        return tuple(Objective(*row) for row in self.opened().user_attrs["objectives"])

    def shape(self) -> Shape:
        """What the study's masks were lowered to."""
        return Shape(**json.loads(self.facts()["shape"]))

    def close(self) -> None:
        """Lets another process write."""
        if self.lock is not None:
            self.lock.release()

    # -- writing -----------------------------------------------------------------------------
    def begin(self, record: Record, draw: int) -> int:
        """Writes a proposal as a RUNNING trial.

        Args:
            record: Status "running"; its number is ignored.
            draw: The strategy's own number; -1 for what no strategy drew (baselines).

        Returns:
            The trial's number in the study.
        """
        kinds = json.loads(record.memo.get("distributions", "{}"))
        trial = optuna.trial.create_trial(
            state=TrialState.RUNNING,
            params=dict(record.params) if kinds else {},
            distributions={name: json_to_distribution(text) for name, text in kinds.items()},
            user_attrs={
                "origin": record.origin,
                "draw": draw,
                "starts": 1,
                "seed": record.seed,
                "mask": str(record.mask) if record.mask is not None else "",
                "job": self.job_data(record),
                "fingerprint": record.fingerprint,
                "protocol": record.protocol,
                "measures": finite(record.measures),
                "params": dict(record.params),
                "memo": dict(record.memo),
            },
        )
        self.opened().add_trial(trial)
        self.count += 1
        self.begun[self.count - 1] = 1
        return self.count - 1

    def again(self, number: int) -> int:
        """Counts that an interrupted trial is begun once more.

        Args:
            number: A running trial.

        Returns:
            How often it has now been begun (its first time counts).
        """
        if number not in self.begun:
            raise ValueError(f"trial {number} of {self.run} is not running; begin another trial")
        count = self.begun[number] + 1
        self.storage.set_trial_user_attr(self.trial_id(number), "starts", count)
        self.begun[number] = count
        return count

    def starts(self) -> dict[int, int]:
        """Running trial -> how often it was begun."""
        self.opened()
        return dict(self.begun)

    def observe(self, number: int, report: Report, goes_on: bool) -> None:
        """Writes what a scheduler was shown and what it answered, while the trial runs.

        Args:
            number: A running trial.
            report: What the scheduler was shown.
            goes_on: What it answered.
        """
        self.storage.set_trial_user_attr(
            self.trial_id(number),
            f"{OBSERVED}{self.observed}",
            [report.step, finite(report.values), goes_on],
        )
        self.observed += 1

    def finish(self, record: Record) -> None:
        """Writes a result: curve and values first, then the trial's state."""
        study = self.opened()
        self.storage.set_trial_user_attr(
            self.trial_id(record.number),
            "result",
            {
                "status": record.status,
                "values": finite(record.values),
                "step": record.step,
                "curve": [[report.step, finite(report.values)] for report in record.curve],
                "artifacts": dict(record.artifacts),
                "seconds": record.seconds,
                "error": record.error,
                "order": self.finished,
            },
        )
        state, values = STATES[record.status], None
        if state is TrialState.COMPLETE and isinstance(record.job, OneShot):
            state = TrialState.PRUNED
        if state is TrialState.COMPLETE:
            values = [record.value(objective.name) for objective in self.objectives()]
        study.tell(record.number, values=values, state=state)
        self.begun.pop(record.number, None)
        self.finished += 1

    def trial_id(self, number: int) -> int:
        """The storage's own number of a trial."""
        study = self.storage.get_study_id_from_name(self.name)
        return self.storage.get_trial_id_from_study_id_trial_number(study, number)

    def job_data(self, record: Record) -> dict[str, Any]:
        """A job as plain data; a big mask becomes a file beside the study."""
        match record.job:
            case Evaluate(mask=mask):
                if len(mask.to_json()) <= INLINE:
                    return {"kind": "evaluate", "mask": mask.to_dict()}
                name = f"masks/{record.fingerprint or mask.digest}.safetensors"
                if not (self.run / name).is_file():
                    save_mask(mask, self.run / name)
                return {"kind": "evaluate", "file": name}
            case OneShot(gates=gates, config=config):
                return {"kind": "one_shot", "gates": dict(gates), "config": dict(config)}
            case Refused(reason=reason):
                return {"kind": "refused", "reason": reason}

    # -- reading -----------------------------------------------------------------------------
    def records(self) -> list[Record]:
        """Every trial as a record, by number; those nobody finished have status "running"."""
        return [self.record(trial) for trial in self.opened().get_trials(deepcopy=False)]

    def draws(self) -> dict[int, int]:
        """Trial number -> the strategy's draw number (-1: drawn by no strategy)."""
        trials = self.opened().get_trials(deepcopy=False)
        return {trial.number: int(trial.user_attrs.get("draw", -1)) for trial in trials}

    def told(self) -> list[Record]:
        """Finished records in the order of completion, then the unfinished ones."""
        trials = self.opened().get_trials(deepcopy=False)
        order = {t.number: t.user_attrs.get("result", {}).get("order", math.inf) for t in trials}
        records = [self.record(trial) for trial in trials]
        return sorted(
            records, key=lambda record: (record.status == "running", order[record.number])
        )

    def observations(self) -> list[Observation]:
        """What schedulers were shown and answered, in the order in which it happened."""
        found = {
            order: Observation(trial.number, Report(step, infinite(values)), goes_on)
            for trial in self.opened().get_trials(deepcopy=False)
            for order, (step, values, goes_on) in observed(trial)
        }
        return [found[order] for order in sorted(found)]

    def record(self, trial: FrozenTrial) -> Record:
        """One Optuna trial as a record."""
        known = trial.user_attrs
        if "job" not in known:
            raise SearchError(
                f"trial {trial.number} of {self.run} was not written by masksearch; "
                "keep other trials in a study of their own"
            )
        record = Record(
            number=trial.number,
            status="running",
            job=self.job(known["job"]),
            fingerprint=known["fingerprint"],
            protocol=known["protocol"],
            seed=known["seed"],
            params=known["params"],
            origin=known["origin"],
            measures=infinite(known["measures"]),
            memo=known["memo"],
        )
        result = known.get("result")
        if result is None or not trial.state.is_finished():
            return record
        return replace(
            record,
            status=result["status"],
            values=infinite(result["values"]),
            step=result["step"],
            curve=tuple(Report(step, infinite(values)) for step, values in result["curve"]),
            artifacts=result["artifacts"],
            seconds=result["seconds"],
            error=result["error"],
        )

    def job(self, data: Mapping[str, Any]) -> Job:
        """Inverse of `job_data`."""
        match data["kind"]:
            case "evaluate":
                if "file" in data:
                    return Evaluate(load_mask(self.run / data["file"]))
                return Evaluate(Mask.from_dict(data["mask"]))
            case "one_shot":
                return OneShot(data["gates"], data["config"])
        return Refused(data["reason"])


def observed(trial: FrozenTrial) -> Iterator[tuple[int, list[Any]]]:
    """A trial's observations: their order in the study and what was stored."""
    for key, value in trial.user_attrs.items():
        if key.startswith(OBSERVED):
            yield int(key.removeprefix(OBSERVED)), value


def directions(objectives: Sequence[Objective]) -> list[StudyDirection]:
    """Optuna's word for every goal."""
    return [
        StudyDirection.MINIMIZE if objective.goal == "min" else StudyDirection.MAXIMIZE
        for objective in objectives
    ]


@contextmanager
def quiet() -> Iterator[None]:
    """Optuna's own log lines and notes on experimental features off: listeners report."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(level)


def opened(
    run: Path, storage: str | optuna.storages.BaseStorage | None
) -> optuna.storages.BaseStorage:
    """The Optuna storage that a user names."""
    if isinstance(storage, optuna.storages.BaseStorage):
        return storage
    if isinstance(storage, str) and storage.startswith("journal:"):
        path = storage.removeprefix("journal:")
        return optuna.storages.JournalStorage(JournalFileBackend(path))
    url = storage or f"sqlite:///{run.resolve() / 'study.db'}"
    try:
        return optuna.storages.get_storage(url)
    except Exception as error:  # SQLAlchemy and drivers raise types of their own
        raise SearchError(f"cannot open the storage {url}: {error}") from error


def writable(run: Path) -> None:
    """Fails before any training where the run folder cannot be written.

    Raises:
        SearchError: Says which folder and why.
    """
    probe = run / ".writable"
    try:
        run.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"0" * 65_536)
        probe.unlink()
    except OSError as error:
        raise SearchError(
            f"cannot write to the run folder {run}: {error.strerror or error}; "
            "choose another with --run, or free space"
        ) from error


def finite(values: Mapping[str, float]) -> dict[str, float | str]:
    """Floats for JSON; infinities as text, because databases refuse them."""
    return {key: v if math.isfinite(v) else repr(v) for key, v in values.items()}


def infinite(values: Mapping[str, float | str]) -> dict[str, float]:
    """Inverse of `finite`."""
    return {key: float(value) for key, value in values.items()}


def shortened(value: object) -> str:
    """A fact for an error line."""
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
