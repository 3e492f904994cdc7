"""Records in an Optuna storage: one study is one search, and optuna-dashboard opens it.

A proposal is written when it is asked (a RUNNING trial), its curve and values before the trial
is told, so a killed run loses nothing. Statuses: done and reused are COMPLETE, stopped is
PRUNED, failed is FAIL. A one-shot job has no score of its own: its finished trial is PRUNED.
Only one driver writes, guarded by locks on the run folder and on the study in its storage.

Trials are written through Optuna's storage interface: `Study.tell` and `Study.add_trial` read
them back first, which costs more than writing.

Where the study of a run folder is, `study.json` in it says: its name and its storage. The file is
written when the study is made, so that a folder can be renamed, moved and copied. It may come from
a stranger, so a storage outside of the folder is opened only where the user names it, too
(`follow_storage`), and reading makes no file and no table.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import optuna
import sqlalchemy
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from masksearch.analysis.pareto import learned_nothing
from masksearch.contracts import Objective, Record, Report, Shape, read_split
from masksearch.errors import ResumeError, SearchError, ServerUnreachableError, warn
from masksearch.files import remove_empty, write_text_in_one_move
from masksearch.study.records import (
    ANSWER,
    FORMAT,
    StoredTrial,
    check_format,
    drawn_distributions,
    final_state,
    finite_json,
    own_version,
    proposal_data,
    read_answers,
    read_trial,
    result_data,
)
from masksearch.study.status import NAME as STATUS
from masksearch.study.status import finished_trials
from masksearch.study.storage import (
    LockFile,
    ServerLock,
    StorageLocation,
    explain_errors,
    hide_secrets,
    locate_storage,
    lock_run,
    lock_study,
    open_storage,
    passwords_in,
    redact,
    secret_keys,
    sqlite_url,
)

FILE, DATABASE = "study.json", "study.db"
LISTED = 8  # studies that an error names
HERE = "{run}"  # the run folder, in the storage that is written down
ALLOWED = "MASKSEARCH_STORAGE"  # environment: a storage that run folders may name
VIOLATED = "constraints"  # Optuna's key of a trial's constraints: above 0 is infeasible
SERVER_WAIT = 600.0  # seconds that a search waits for a server that went away
SERVER_PAUSE = 1.0  # seconds between two looks at it

T = TypeVar("T")


@dataclass(frozen=True)
class StudyAddress:
    """The contents of `study.json`.

    Args:
        name: Of the study in its storage.
        storage: As in `masksearch.search`, without password; None = `study.db` in the folder,
            or an Optuna storage that was given as an object.
    """

    name: str
    storage: str | None = None


def holds_study(run: Path) -> bool:
    """Whether a folder is a run's."""
    return (run / DATABASE).is_file() or (run / FILE).is_file()


def _read_address(run: Path) -> StudyAddress | None:
    """The address of its study in a run folder; None where there is none.

    Raises:
        SearchError: If its `study.json` cannot be read.
    """
    path = run / FILE
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        name, storage = data["study"], data.get("storage")
        if not isinstance(name, str) or not isinstance(storage, str | None):
            raise TypeError("both are text")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SearchError(
            f'{path} is damaged ({error!r}); it reads {{"study": "NAME"}}, with the name of a '
            'study, and with "storage" where that is not study.db'
        ) from error
    location = storage and storage.replace(HERE, _folder_in(storage, run))
    return StudyAddress(name, location or None)


def _write_address(run: Path, name: str, storage: str | BaseStorage | None) -> None:
    """Writes `study.json`, in one step; paths in the run folder so that they move with it."""
    text = storable_storage(storage) if isinstance(storage, str) else None
    if text is not None:
        text = text.replace(f"{_folder_in(text, run)}/", f"{HERE}/")
    content, path = json.dumps({"study": name, "storage": text}), run / FILE
    if not path.is_file() or path.read_text(encoding="utf-8") != content:
        write_text_in_one_move(path, content)


def _folder_in(storage: str, run: Path) -> str:
    """A run folder as it is spelled in that storage."""
    path = run.resolve()
    return sqlite_url(path).removeprefix("sqlite:///") if storage[:6] == "sqlite" else str(path)


def storable_storage(storage: str) -> str:
    """A storage as it may be written down: paths absolute, no password.

    >>> storable_storage("postgresql://me:secret@db/masks")
    'postgresql://me@db/masks'
    """
    location = locate_storage(Path(), storage)
    if location.path is not None:
        path = location.path
        return sqlite_url(path) if location.kind == "sqlite" else f"journal:{path}"
    url = sqlalchemy.engine.make_url(storage)
    parts = url._replace(password=None).difference_update_query(secret_keys(url))
    return parts.render_as_string(hide_password=False)


def follow_storage(
    run: Path, named: str | None, allowed: str | BaseStorage | None = None
) -> str | None:
    """The storage that a file of a run folder names, where it may be opened.

    It may if it is a file in that folder, links followed, or if the user names it: in this call,
    or as `MASKSEARCH_STORAGE`. A folder that the user names stands for the files in it.

    Args:
        run: The folder.
        named: What its `study.json` or `command.json` names; None = `study.db` in it.
        allowed: What the user names in this call.

    Raises:
        SearchError: If it may not; says how to name it.
    """
    location = locate_storage(run, named)
    file = None if location.path is None else location.path.resolve()
    if file is not None and file.is_relative_to(run.resolve()):
        return named and storable_storage(named)
    address = storable_storage(named or sqlite_url(Path(str(file))))
    for setting in (allowed, os.environ.get(ALLOWED)):
        if isinstance(setting, str) and setting:
            root = locate_storage(run, setting).path
            if file is not None and root is not None and file.is_relative_to(root):
                return address
            if storable_storage(setting) == address:
                return setting  # with its password
    raise SearchError(
        f"{run} names a storage outside of itself, and a run folder may come from a stranger; if "
        f"it is yours, name it, too: --storage {shlex.quote(address)} (storage= in Python), or "
        f"set {ALLOWED} to it"
    )


def _find_study(run: Path, location: StorageLocation, storage: BaseStorage, *, write: bool) -> str:
    """The name of a run folder's study.

    Args:
        run: The folder.
        location: Where its storage is.
        storage: The storage itself.
        write: Whether a study may be made; a new one is named after the folder.

    Raises:
        SearchError: If the folder's study is not there, or it is not known which one it is;
            lists those that are.
    """
    address, folder = _read_address(run), run.resolve().name
    studies = {study.study_name: study._study_id for study in storage.get_all_studies()}
    in_folder = location.path == run.resolve() / DATABASE
    if address is not None and (address.name in studies or location.kind == "other"):
        return address.name
    if address is None and not in_folder and folder in studies:
        return folder
    if len(studies) == 1 and (in_folder or (address is None and not write)):
        return next(iter(studies))
    if not studies and (in_folder or address is None):
        return folder if address is None else address.name
    if write and address is None and not in_folder:
        return folder
    shown = [f"{name!r} ({storage.get_n_trials(key)} trials)" for name, key in studies.items()]
    listed = ", ".join([*shown[:LISTED], *(["..."] if len(shown) > LISTED else [])])
    if address is not None and not in_folder:
        raise SearchError(
            f"{run} belongs to the study {address.name!r}, which {location.shown} does not hold "
            f"(it holds {listed or 'none'}); name the storage that does, or choose another run "
            "folder"
        )
    raise SearchError(
        f"{location.shown} holds {len(studies)} studies: {listed}. Say which one is this run's: "
        f'echo \'{{"study": "{next(iter(studies))}"}}\' > {run / FILE}'
    )


class StudyStore:
    """The records of one run folder.

    Args:
        run: Folder of the run; made if it is missing. A new study gets its name.
        storage: None (what the run folder says; SQLite in it where it is new),
            `"journal:PATH"`, a database URL, or an Optuna storage.
        write: Whether to lock the study for writing. Without, nothing is made.
        allowed: A storage that the folder may name, where `storage` is None: one for several runs.

    Raises:
        SearchError: If another process writes to it, the storage cannot be read, or it is one
            outside of the folder that nobody but the folder names.
    """

    def __init__(
        self,
        run: Path,
        storage: str | BaseStorage | None = None,
        *,
        write: bool = True,
        allowed: str | BaseStorage | None = None,
    ) -> None:
        self.run = Path(run).expanduser().absolute()  # whoever changes folder moves nothing
        if storage is None:
            address = _read_address(self.run)
            named = None if address is None else address.storage
            storage = follow_storage(self.run, named, allowed)
        self.given, self.location = storage, locate_storage(self.run, storage)
        self.passwords = passwords_in(self.location.url)
        if not write and self.location.path is not None and not self.location.path.is_file():
            where = DATABASE if storage is None else self.location.shown
            model = (self.run / "config.json").is_file()
            remedy = "it is a model: --weights names it" if model else "run a search first"
            raise SearchError(f"{self.run} holds no study (no {where}); {remedy}")
        files = self.location.path or self.run / DATABASE, self.run / FILE, self.run / STATUS
        made = (*files, *files[0].parents, *files[1].parents)
        if not files[0].is_relative_to(self.run.resolve()):
            made = made[1:]  # other drivers may have begun studies in it meanwhile
        self.missing = [each for each in made if not each.exists()]  # as yet
        self.locks: list[LockFile | ServerLock] = []
        self.owner = ""  # who holds the server's lock, once the study says it
        self.study: optuna.Study | None = None
        self.created = False  # here, and not found
        self.goals: tuple[Objective, ...] = ()
        self.ids: list[int] = []  # the storage's own number of every trial
        self.finished = 0  # trials so far
        self.answers = 0  # of a scheduler so far
        self.begun: dict[int, int] = {}  # running trial -> how often it was begun
        self.call: Mapping[str, Any] = {}  # see `note_call`; written with its first trial
        try:
            if write:
                self.locks.append(lock_run(self.run))
            self.storage = open_storage(self.run, storage, write=write)
            with explain_errors(self.location):
                self.name = _find_study(self.run, self.location, self.storage, write=write)
            if write and (lock := lock_study(self.location, self.name)) is not None:
                self.locks.append(lock)
        except BaseException:
            self.close(undo=True)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        lost = kind is ServerUnreachableError  # and was waited for
        self.close(undo=kind is not None and issubclass(kind, Exception) and not lost)

    # -- the study ---------------------------------------------------------------------------
    def create(self, objectives: Sequence[Objective], facts: Mapping[str, str]) -> bool:
        """Creates the study, or opens it and compares what it was created with.

        One without a trial (its search ended with a mistake, or was killed) is made anew, and so
        is one with other facts in which nothing has finished.

        Args:
            objectives: Become the study's directions.
            facts: What must be equal for a search to go on (protocol, space, seed, ...).

        Returns:
            Whether the study had been there before, with trials.

        Raises:
            ResumeError: If it was created with other facts; names each that differs.
            SearchError: If another version of masksearch has written it, or it has lost trials.
        """
        existed = self.exists()
        if existed:
            self.load()
        self._check_lost_trials()
        if existed:
            before = self.facts()
            changed = [key for key in facts if before.get(key, "") != facts[key]]
            if not self.ids or (changed and not self.finished):
                self.forget()
                existed = False
            elif changed:
                detail = "; ".join(
                    _describe_change(key, before.get(key, ""), facts[key]) for key in changed
                )
                raise ResumeError(
                    f"{self.run} belongs to another search ({detail}); "
                    "choose another run folder, or repeat the search as it was"
                )
        if not existed:
            with explain_errors(self.location), quiet():
                self.study = optuna.create_study(
                    storage=self.storage, study_name=self.name, directions=directions(objectives)
                )
            self.created = True
        study = self.optuna_study()

        def describe(_: bool) -> None:
            study.set_user_attr("format", FORMAT)
            study.set_user_attr("masksearch", own_version())
            if not existed:
                study.set_metric_names([o.name for o in objectives])
                study.set_user_attr("objectives", [[o.name, o.goal, o.worst] for o in objectives])
                study.set_user_attr("facts", dict(facts))  # the last: now it is described
            _write_address(self.run, self.name, self.given)
            if isinstance(self.locks[-1], ServerLock):
                study.set_user_attr("owner", owner := secrets.token_hex(8))
                self.owner = owner

        with quiet():
            self.perform(describe)
        return existed

    def exists(self) -> bool:
        """Whether the storage holds the study."""
        with explain_errors(self.location):
            try:
                self.storage.get_study_id_from_name(self.name)
            except KeyError:
                return False
            return True

    def stored_facts(self) -> dict[str, str] | None:
        """The facts of the search that goes on here; None where one may begin anew: no trial has
        finished."""
        if self.exists():
            self.load()
        return self.facts() if self.finished else None

    def _check_lost_trials(self) -> None:
        """Refuses a study that holds fewer finished trials than the run folder tells of.

        Raises:
            SearchError: Says how many, and what to restore.
        """
        told, goes_on = finished_trials(self.run), ""
        if self.finished:
            goes_on = f"; to go on with the {self.finished} that are left, delete status.json"
        elif not (told or self.ids) and _read_address(self.run) is not None:  # all that is left
            told = len([*self.run.glob("trials/*")])
        if self.finished < told:
            raise SearchError(
                f"{told - self.finished} of {told} trials of {self.run} are missing in "
                f"{self.location.shown}: restore it from a copy{goes_on}; to begin anew, choose "
                "another run folder or empty this one"
            )

    def forget(self) -> None:
        """Deletes the study, in which no trial has finished, and the folders of its trials."""
        self.perform(lambda _: optuna.delete_study(study_name=self.name, storage=self.storage))
        for number in range(len(self.ids)):
            shutil.rmtree(self.run / "trials" / str(number), ignore_errors=True)
        self.ids, self.begun, self.answers = [], {}, 0

    def load(self) -> None:
        """Opens an existing study.

        Raises:
            SearchError: If the storage holds none under this run's name, or one that another
                version of masksearch has written.
        """
        with explain_errors(self.location):
            try:
                self.study = optuna.load_study(study_name=self.name, storage=self.storage)
            except KeyError as error:
                message = f"the storage of {self.run} holds no study {self.name!r}"
                raise SearchError(message) from error
            attributes = self.study.user_attrs
        check_format(attributes, self.run)
        self.goals = ()
        trials = self.trials()
        self.ids = [trial._trial_id for trial in trials]
        self.finished = sum(trial.state.is_finished() for trial in trials)
        answered = [answer.order for trial in trials for answer in read_answers(trial)]
        self.answers = 1 + max(answered, default=-1)
        running = (trial for trial in trials if not trial.state.is_finished())
        self.begun = {each.number: int(each.user_attrs.get("starts", 1)) for each in running}

    def optuna_study(self) -> optuna.Study:
        """The Optuna study, for whoever wants Optuna's own tools."""
        if self.study is None:
            self.load()
        assert self.study is not None
        return self.study

    def facts(self) -> dict[str, str]:
        """The facts that the study was created with."""
        with explain_errors(self.location):
            stored: dict[str, str] = self.optuna_study().user_attrs.get("facts", {})
        return stored

    def add_facts(self, facts: Mapping[str, str]) -> None:
        """Adds facts that may change between two calls on one study (which masks are searched)."""
        before = self.facts()
        if any(before.get(key) != value for key, value in facts.items()):
            study, all_facts = self.optuna_study(), {**before, **facts}
            self.perform(lambda _: study.set_user_attr("facts", all_facts))

    def note_call(self, call: Mapping[str, Any]) -> None:
        """Keeps the environment of this call, to be written when the call begins its first trial.

        This is information (versions, machine, commit): a study goes on whatever it says.

        Args:
            call: Plain data; see `masksearch.study.records.describe_call`.
        """
        self.call = hide_secrets(call, passwords=self.passwords)

    def _write_call(self, trial: int) -> None:
        """Writes what `note_call` was given, with the first trial that it was begun for."""
        if self.call:
            study = self.optuna_study()
            calls = self.calls()
            if not calls or {**calls[-1], "first_trial": 0} != {**self.call, "first_trial": 0}:
                text = json.dumps([*calls, {"first_trial": trial, **self.call}])
                study.set_user_attr("calls", text)
            self.call = {}

    def calls(self) -> list[dict[str, Any]]:
        """The settings of each call that ran trials."""
        text = self.perform(lambda _: self.optuna_study().user_attrs.get("calls", "[]"))
        calls: list[dict[str, Any]] = json.loads(text)
        return calls

    def objectives(self) -> tuple[Objective, ...]:
        """The study's objectives, in order."""
        if not self.goals:
            with explain_errors(self.location, "", LookupError):
                rows = self.optuna_study().user_attrs["objectives"]
            self.goals = tuple(Objective(*row) for row in rows)
        return self.goals

    def shape(self) -> Shape:
        """The sizes that the study's masks were lowered to."""
        with explain_errors(self.location, "", LookupError):
            return Shape(**json.loads(self.facts()["shape"]))

    def close(self, *, undo: bool = False) -> None:
        """Lets another process write; to undo is to remove what was made here, where no trial has
        begun."""
        made = self.missing if undo and self.locks and not self.ids else []
        if undo and self.created and not self.ids:
            with suppress(SearchError):  # a server that went away
                self.forget()
        for path in made:
            with suppress(OSError):  # a folder
                path.unlink()
        for lock in reversed(self.locks):
            lock.release()
        self.locks = []
        remove_empty(made)

    # -- the storage, which may go away ------------------------------------------------------
    def perform(self, action: Callable[[bool], T], *, new: int = 0) -> T:
        """Reads or writes; every write of a search goes through here.

        Where the server went away, it is waited for, and the action is repeated once the lock is
        taken again and nobody else has written.

        Args:
            action: Is told whether it may have been done before, with an answer that was lost.
            new: Trials that it makes.

        Raises:
            SearchError: If the disk is full, the storage fails, or the study's lock was lost.
        """
        again, since = False, time.monotonic()
        with explain_errors(self.location):
            while True:
                try:
                    for lock in self.locks:
                        lock.check()
                    return action(again)
                except ConnectionError as lost:
                    again = True
                    self._wait_for_server(lost, since, new)

    def _wait_for_server(self, lost: ConnectionError, since: float, new: int) -> None:
        """Takes the lock again once the server answers.

        Args:
            lost: What happened.
            since: When, in monotonic seconds.
            new: Trials that may have been made unheard.

        Raises:
            ConnectionError: If the study has no lock that could be taken again.
            ServerUnreachableError: If the server does not answer for `SERVER_WAIT` seconds.
            ResumeError: If somebody else has written.
        """
        lock = self.locks[-1] if self.locks else None
        if not isinstance(lock, ServerLock) or not self.owner:
            raise lost
        wait, reason = f"{SERVER_WAIT / 60:g} minutes", redact(str(lost), self.passwords)
        self.say(f"does not answer; results wait for it, up to {wait}")
        while time.monotonic() - since < SERVER_WAIT:
            time.sleep(SERVER_PAUSE)
            try:
                self._check_owner(new)
                lock.release()
                self.locks[-1] = lock = ServerLock(self.location, self.name, lock.what)
                self._check_owner(new)  # nobody came between the two
                return self.say(f"answers again after {time.monotonic() - since:.0f} s; going on")
            except SearchError as error:
                reason = str(error)
        raise ServerUnreachableError(
            f"the server did not come back within {wait}: {reason}; everything that was written "
            "is kept: repeat the command to go on"
        ) from None

    def say(self, what: str) -> None:
        """One line on the server, with the time, since it may happen again."""
        warn(f"{time.strftime('%H:%M:%S')}: the server of {self.location.shown} {what}")

    def _check_owner(self, new: int) -> None:
        """Whether the study is as this driver has left it.

        Args:
            new: Trials that it may hold beyond those that this driver knows.

        Raises:
            ResumeError: If it is not.
            SearchError: If the server does not answer.
        """
        study = self.optuna_study()._study_id
        with explain_errors(self.location):
            try:
                owner = self.storage.get_study_user_attrs(study).get("owner")
                more = self.storage.get_n_trials(study) - len(self.ids)
            except KeyError:  # deleted
                owner, more = "", 0
        if owner != self.owner or not 0 <= more <= new:
            raise ResumeError(
                f"another process has written to the study {self.name!r} while the server of "
                f"{self.location.shown} was away ({more:+d} trials); everything that was written "
                "is kept: repeat the command once that process has ended"
            )

    # -- writing -----------------------------------------------------------------------------
    def begin(self, record: Record, draw: int) -> int:
        """Writes a proposal as a RUNNING trial.

        Args:
            record: Status "running"; its number is ignored.
            draw: The strategy's own number; -1 for what no strategy drew (baselines).

        Returns:
            The trial's number in the study.
        """
        kinds = drawn_distributions(record)
        trial = optuna.trial.create_trial(
            state=TrialState.RUNNING,
            params={name: record.params[name] for name in kinds},
            distributions=kinds,
            user_attrs=proposal_data(record, draw, self.run),
        )
        study, number = self.optuna_study()._study_id, len(self.ids)

        def create(again: bool) -> int:
            self._write_call(number)
            if again and self.storage.get_n_trials(study) > number:
                return self.storage.get_trial_id_from_study_id_trial_number(study, number)
            return self.storage.create_new_trial(study, trial)

        self.ids.append(self.perform(create, new=1))
        self.begun[number] = 1
        return number

    def again(self, number: int) -> int:
        """Counts that an interrupted trial is begun once more.

        Args:
            number: A running trial.

        Returns:
            How often it has now been begun (its first time counts).
        """
        count = self.begun[number] + 1

        def write(_: bool) -> None:
            self._write_call(number)
            self.storage.set_trial_user_attr(self.ids[number], "starts", count)

        self.perform(write)
        self.begun[number] = count
        return count

    def observe(self, number: int, report: Report, goes_on: bool) -> None:
        """Writes what a scheduler was shown and what it answered, while the trial runs.

        Args:
            number: A running trial.
            report: What the scheduler was shown.
            goes_on: What it answered.
        """
        key, data = f"{ANSWER}{self.answers}", [report.step, finite_json(report.values), goes_on]
        self.answers += 1
        trial = self.ids[number]
        self.perform(lambda _: self.storage.set_trial_user_attr(trial, key, data))

    def finish(self, record: Record) -> None:
        """Writes a result: curve and values first, then the trial's state.

        Raises:
            ValueError: If a finished record's objective is NaN.
        """
        state, values = final_state(record, self.objectives())
        trial, data = self.ids[record.number], result_data(record, self.finished)

        def write(again: bool) -> None:
            if again and self.storage.get_trial(trial).state.is_finished():
                return
            self.storage.set_trial_user_attr(trial, "result", data)  # in a journal it waits
            if learned_nothing(record):  # Optuna and its dashboard pass over such a trial
                self.storage.set_trial_system_attr(trial, VIOLATED, [1.0])
            self.storage.set_trial_state_values(trial, state, values)

        self.perform(write)
        self.begun.pop(record.number, None)
        self.finished += 1

    # -- reading -----------------------------------------------------------------------------
    def trials(self) -> list[FrozenTrial]:
        """The study's trials as Optuna has them, by number."""
        study = self.optuna_study()
        return self.perform(lambda _: study.get_trials(deepcopy=False))

    def stored_trials(self) -> list[StoredTrial]:
        """The study's contents for every trial, by number."""
        return [read_trial(trial, self.run) for trial in self.trials()]

    def records(self) -> list[Record]:
        """Every trial as a record, by number; those nobody finished have status "running"."""
        return [trial.record for trial in self.stored_trials()]

    def in_order(self) -> list[StoredTrial]:
        """Finished trials in the order of completion, then the unfinished ones."""
        return sorted(self.stored_trials(), key=lambda trial: trial.order)

    def told(self) -> list[Record]:
        """The records of `in_order`."""
        return [trial.record for trial in self.in_order()]


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
    loud = level < optuna.logging.ERROR  # each setting asks all loggers of all libraries
    if loud:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            yield
    finally:
        if loud:
            optuna.logging.set_verbosity(level)


def _describe_change(fact: str, before: str, now: str) -> str:
    """How a fact differs; of a space, what of its code was edited."""
    if fact == "space" and before and now:
        was, new = json.loads(before), json.loads(now)
        edited = [name for name in was.keys() & new.keys() if was[name] != new[name]]
        if edited:
            return f"the space's code was edited: {', '.join(sorted(edited))}"
        before, now = (", ".join(sorted(a.keys() - b.keys())) for a, b in ((was, new), (new, was)))
    if fact == "half":
        fact, before, now = "split", read_split(before), read_split(now)
    why = " by its data, settings or version" if fact == "protocol" else ""
    return f"{fact}: was {shortened(before)}, now {shortened(now)}{why}"


def shortened(value: object) -> str:
    """A fact for an error line."""
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
