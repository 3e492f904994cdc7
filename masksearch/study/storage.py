"""Storages: what a user may name, how it is opened, and what its errors mean.

SQLite keeps its rollback journal and full synchronisation: a result that was written survives the
death of the process and of the machine. (Write-ahead logging saves a disk flush per write, but it
breaks on network file systems and needs two more files; results come too seldom for that to pay.)
SQLite on a network file system is discouraged all the same: use `"journal:PATH"` there, or a
PostgreSQL server.

A study has one driver: locks end with the process that holds them. The run folder is locked, and
the study in its storage, because two run folders on two machines may name one study. SQLite and
journals: a lock file beside the database. PostgreSQL: an advisory lock of a session of its own,
so the server frees it when the driver dies (behind PgBouncer it needs session pooling). Of other
storages (in memory, MySQL) only the run folder is locked.

A line to PostgreSQL that is cut is noticed within half a minute on either side. A server that went
away is a ConnectionError here: `StudyStore.perform` waits for it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import socket
import sqlite3
import weakref
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, quote_plus, unquote, unquote_plus

import filelock
import optuna
import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from sqlalchemy import exc, text

from masksearch.errors import HIDDEN, SearchError, hide_passwords, install_command, names_secret
from masksearch.files import FULL

LINE: dict[str, Any] = {  # libpq's names; what a user's URL sets is left alone
    "connect_timeout": 10,  # seconds
    "tcp_user_timeout": 20_000,  # milliseconds that what was sent may go unanswered
    "keepalives_idle": 10,  # seconds
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "options": "-c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3"
    " -c tcp_user_timeout=20000",  # the server's side: it frees the lock of a lost driver
}
FOREIGN = (LookupError, TypeError, AttributeError, AssertionError)  # of what is no study
BUSY = 20.0  # seconds that a database locked by another process is waited for, per attempt
REMEDIES = {  # what helps, by what a server or the system says
    "password|authentication|fe_sendauth": "check the user and the password in the URL",
    "database .* does not exist": "make it with createdb, or correct the URL",
    "refused|could not connect|connection.* failed|timeout|No such file|resolve": (
        "check that the server runs, its host and its port"
    ),
    "Permission denied|unable to open|readonly|read-only": (
        "check that the folder exists and can be written"
    ),
}


@dataclass(frozen=True)
class StorageLocation:
    """Where a study's trials are kept.

    Args:
        kind: What kind of storage it is; "other" = one about which nothing is known.
        shown: For people: a path, or a URL without its password.
        path: The file, for SQLite and journals.
        url: As SQLAlchemy takes it.
    """

    kind: Literal["sqlite", "journal", "postgresql", "other"]
    shown: str
    path: Path | None = None
    url: str = field(default="", repr=False)  # holds the password


def sqlite_url(path: Path) -> str:
    """The address of an SQLite file, whatever its name holds.

    Raises:
        SearchError: If its name is no text.

    >>> sqlite_url(Path("/runs/does it pay?/study.db"))
    'sqlite:////runs/does it pay%3F/study.db'
    """
    try:
        return sqlalchemy.URL.create("sqlite", database=str(path)).render_as_string()
    except UnicodeEncodeError:
        raise SearchError(f"{str(path)!r} is not UTF-8, as a database's name must be") from None


def locate_storage(run: Path, storage: str | BaseStorage | None) -> StorageLocation:
    """The place that a user's `storage=` names; see `open_storage`.

    Raises:
        SearchError: If it is a text that is no storage.
    """
    if storage is None:
        path = run.resolve() / "study.db"
        return StorageLocation("sqlite", str(path), path, sqlite_url(path))
    if not isinstance(storage, str):
        return StorageLocation("other", f"the {type(storage).__name__} given")
    if storage.startswith("journal:"):
        path = Path(storage.removeprefix("journal:")).expanduser().resolve()
        return StorageLocation("journal", str(path), path)
    try:
        url = sqlalchemy.engine.make_url(storage)
        is_file = url.username is None and url.get_backend_name() == "sqlite"
        if not is_file and not re.fullmatch(r".*?://([^:/?]*(:[^@]*)?@)?[^@]*", storage):
            raise ValueError("a second @, and the password would end at the first")
        shown = _show_url(url)
        if url.drivername in ("postgres", "postgresql"):
            url = url.set(drivername="postgresql+psycopg")
        text = url.render_as_string(hide_password=False)
    except (exc.ArgumentError, ValueError):  # whose words and traceback may show the password
        shown = hide_passwords(re.sub(r"(?s)^([\w+.-]*://)?.*@", rf"\1{HIDDEN}@", storage))
        raise SearchError(
            f"cannot open the storage {shown}: it is no storage; give a database URL such as "
            "postgresql://user@host/database (any other @ in it is written %40), 'journal:PATH', "
            "or nothing for SQLite"
        ) from None
    if url.get_backend_name() == "postgresql":
        return StorageLocation("postgresql", shown, None, text)
    if url.get_backend_name() == "sqlite" and url.database and url.database != ":memory:":
        return StorageLocation("sqlite", shown, Path(url.database).resolve(), text)
    return StorageLocation("other", shown, None, text)


def open_storage(
    run: Path, storage: str | BaseStorage | None, *, write: bool = True
) -> BaseStorage:
    """The Optuna storage that a user names.

    Args:
        run: Folder of the run.
        storage: None (SQLite in the run folder), `"journal:PATH"`, a database URL
            (`postgresql://` uses psycopg 3), or an Optuna storage.
        write: Whether folders and tables may be made, and a torn line be cut off.

    Raises:
        SearchError: If it cannot be opened; says why and what helps, never a password.
    """
    if isinstance(storage, BaseStorage):
        return optuna.storages.get_storage(storage)
    location = locate_storage(run, storage)
    path = location.path
    with explain_errors(location, "cannot open the storage", *FOREIGN):
        if path is not None and write:
            path.parent.mkdir(parents=True, exist_ok=True)
        if location.kind == "journal":
            if write:
                _cut_torn_line(Path(str(path)))
            return JournalStorage(JournalFile(str(path)))
        settings = _engine_settings(location)
        try:
            with _make_tables_alone(location) if write else contextlib.nullcontext():
                database = RDBStorage(location.url, settings, skip_table_creation=not write)
        except RuntimeError as error:  # tables of another Optuna
            raise SearchError(f"cannot open the storage {location.shown}: {error}") from error
        if location.kind == "postgresql":
            sqlalchemy.event.listen(database.engine, "handle_error", _raise_lost_server)
        opened = optuna.storages.get_storage(database)
        weakref.finalize(opened, database.engine.dispose)  # or its pool is left open
        return opened


@contextlib.contextmanager
def _make_tables_alone(location: StorageLocation) -> Iterator[None]:
    """Of several drivers that find a new PostgreSQL database, lets one make the tables."""
    if location.kind != "postgresql":
        yield
        return
    how = {"poolclass": sqlalchemy.pool.NullPool, "connect_args": _line_settings(location)}
    with sqlalchemy.create_engine(location.url, **how).begin() as session:  # its end is the lock's
        session.execute(text("SELECT pg_advisory_xact_lock(hashtext('masksearch tables'))"))
        yield


def _engine_settings(location: StorageLocation) -> dict[str, Any]:
    """The settings of SQLAlchemy's engine."""
    if location.kind == "sqlite":
        return {"connect_args": {"timeout": BUSY}}
    settings: dict[str, Any] = {"pool_pre_ping": True}  # dropped connections are opened again
    if location.kind == "postgresql":
        settings["connect_args"] = _line_settings(location)
    return settings


def _line_settings(location: StorageLocation) -> dict[str, Any]:
    """The settings of a connection to PostgreSQL, beside those of its URL."""
    query = sqlalchemy.engine.make_url(location.url).query
    return {name: value for name, value in LINE.items() if name not in query}


def _raise_lost_server(context: sqlalchemy.engine.ExceptionContext) -> None:
    """Makes a server that went away a ConnectionError.

    Optuna would take it for a deadlock and repeat the write, which may have been committed.
    """
    problem = context.original_exception
    lost = context.is_disconnect or context.connection is None  # cut off, or not connected
    if not context.is_pre_ping and (
        lost or str(getattr(problem, "sqlstate", "")).startswith("57P")
    ):
        raise ConnectionError(str(problem)) from problem


class JournalFile(JournalFileBackend):
    """A journal in which a trial's result waits for its state: one append in place of two."""

    held: tuple[dict[str, Any], ...] = ()

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Appends lines, after those that waited."""
        logs, self.held = [*self.held, *logs], ()
        if "result" in logs[-1].get("user_attr", ()):
            self.held = tuple(logs)
        else:
            super().append_logs(logs)


def _cut_torn_line(path: Path) -> None:
    """Cuts off a journal's last line that a full disk, or the end of its writer, left unfinished.

    Optuna reads over it, but what would be appended to it could not be read any more.
    """
    if not path.is_file() or not path.stat().st_size or not os.access(path, os.W_OK):
        return
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) == b"\n":
            return
    lock = JournalFileSymlinkLock(str(path))  # the one that Optuna takes to append
    lock.acquire()
    try:
        with path.open("r+b") as file:
            content = file.read()
            if not content.endswith(b"\n"):
                file.truncate(content.rfind(b"\n") + 1)
    finally:
        lock.release()


@contextlib.contextmanager
def explain_errors(
    location: StorageLocation, failed: str = "cannot use the storage", *more: type[Exception]
) -> Iterator[None]:
    """Turns what databases and files raise, and `more`, into one line that says what helps."""
    try:
        yield
    except SearchError:
        raise
    except (StorageInternalError, exc.SQLAlchemyError, sqlite3.Error, OSError, ImportError,
            json.JSONDecodeError, UnicodeDecodeError, *more) as error:  # type: ignore[misc] # fmt: skip
        problem = explain(error, location, failed)
        # a traceback would show the server's address and password
        raise problem from None if location.url and location.path is None else error


def explain(error: BaseException, location: StorageLocation, failed: str) -> SearchError:
    """The error for what a database, a server or the system has said."""
    where = location.path or location.shown
    cause = _root_of(error)
    text = " ".join(redact(str(cause), passwords_in(location.url)).split())
    full = isinstance(cause, OSError) and cause.errno in FULL
    if "unable to open" in text and location.path is not None and location.path.parent.is_dir():
        left = os.statvfs(location.path.parent)
        full = left.f_files > 0 and left.f_favail == 0  # no room for another file
    if full or re.search("database or disk is full|No space left on device", text):
        return SearchError(
            f"disk full at {where}; what was written before is safe, and a trial whose result did "
            "not fit runs again: free space and repeat the command"
        )
    if isinstance(cause, sqlite3.OperationalError) and "database is locked" in text:
        return SearchError(
            f"{where} is locked: another process holds it, and has for {BUSY:g} s; end that "
            "process (a database browser, a copy of this search), or use PostgreSQL"
        )
    damaged = re.search("not a database|malformed|disk image|no such (table|column)", text)
    of_journal = location.kind == "journal" and isinstance(cause, ValueError)
    if damaged or of_journal or isinstance(cause, FOREIGN):
        return SearchError(
            f"{where} is damaged, or no study ({text}); restore it from a copy, or choose another "
            f"{'file' if location.kind == 'journal' else 'run folder'}"
        )
    if location.kind == "postgresql" and isinstance(cause, ImportError):
        return SearchError(f"{location.shown} lacks a driver: {install_command('postgresql')}")
    remedies = (remedy for pattern, remedy in REMEDIES.items() if re.search(pattern, text))
    remedy = next((f"; {remedy}" for remedy in remedies), "")
    return SearchError(f"{failed} {location.shown}: {text}{remedy}")


def _root_of(error: BaseException) -> BaseException:
    """The error of a driver or the system, below those of SQLAlchemy and Optuna."""
    while isinstance(error, StorageInternalError | exc.SQLAlchemyError):
        below = getattr(error, "orig", None) or error.__cause__ or error.__context__
        if below is None:
            break
        error = below
    return error


def secret_keys(url: sqlalchemy.URL) -> list[str]:
    """The keys of a URL's query that are secrets."""
    return [key for key, value in url.query.items() if names_secret(key, str(value))]


def _show_url(url: sqlalchemy.URL) -> str:
    """A URL for people, with `***` for its password and the secrets of its query.

    >>> _show_url(sqlalchemy.make_url("postgresql://me:K/x y@db:5432/masks?password=K"))
    'postgresql://me:***@db:5432/masks?password=***'
    """
    shown = url.update_query_dict(dict.fromkeys(secret_keys(url), HIDDEN)).render_as_string()
    return shown.replace(quote(HIDDEN), HIDDEN)


def passwords_in(value: Any) -> set[str]:
    """The passwords of the addresses in plain data, as they are written and as they are meant.

    As SQLAlchemy reads it, a password reaches from `://NAME:` to the next @, across lines.
    """
    if isinstance(value, Mapping | list | tuple):
        parts = value.values() if isinstance(value, Mapping) else value
        return {password for part in parts for password in passwords_in(part)}
    written = re.findall(r"(?=://[^:/]*:([^@]*)@)", str(value))
    settings = re.findall(r"[?&]([\w.-]+)=([^&\n]*)", str(value))
    written += [text for name, text in settings if names_secret(name, text)]
    return {*written, *map(unquote, written), *map(unquote_plus, written)}


VARIED = 7  # different characters that a password has which is looked for outside of addresses


def _strike(text: str, passwords: Collection[str]) -> str:
    """A text without these passwords, plain, quoted and escaped, wherever they stand.

    One of fewer than `VARIED` different characters stays, and one of letters or digits alone is
    struck as a whole word only: the text holds such words and numbers of its own, and holes in
    their place would spoil it and tell the password. In addresses every password is hidden.

    >>> _strike("K/x9 w%Q, and K/x9%20w%25Q, but not a", ["K/x9 w%Q", "a"])
    '***, and ***, but not a'
    """
    for each in sorted(passwords, key=len, reverse=True):
        if len(set(each)) >= VARIED:
            spelled = {each, quote_plus(each, errors="replace"), repr(each)[1:-1]}
            spelled |= {quote(each, safe, errors="replace") for safe in ("", "/", " +")}
            spelled |= {json.dumps(each, ensure_ascii=ascii)[1:-1] for ascii in (True, False)}
            longest = sorted(spelled, key=len, reverse=True)
            edge = r"\b" if each.isalpha() or each.isdecimal() else ""
            text = re.sub(f"{edge}({'|'.join(map(re.escape, longest))}){edge}", HIDDEN, text)
    return text


def redact(text: str, passwords: Collection[str] = ()) -> str:
    """A text without control characters, these passwords, and those of addresses in it."""
    return hide_passwords(_strike(text, passwords))


SETTING = re.compile(r"""(['"]?)([\w.-]+)(\1\s*[=:]\s*)('[^']*'|"[^"]*"|[^\s,(){}\[\]'"]+)""")


def hide_secrets(value: Any, name: str = "", passwords: Collection[str] | None = None) -> Any:
    """Plain data as it may be written down: secret settings are `***`, in texts too, and so are
    the passwords of addresses, and what repeats one (`_strike`; also `passwords`, where given).

    >>> hide_secrets(["hub.token=abc def", "epochs=3", "at https://me:word@host/x"])
    ['hub.token=***', 'epochs=3', 'at https://me:***@host/x']
    """
    passwords = passwords_in(value) if passwords is None else passwords
    if names_secret(name) and value is not None and not isinstance(value, bool):
        return HIDDEN
    if isinstance(value, Mapping):
        return {key: hide_secrets(each, str(key), passwords) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [hide_secrets(each, name, passwords) for each in value]
    if not isinstance(value, str):
        return value
    value = redact(value, passwords)  # first: a password may end in =
    setting = re.match(r"[\w.-]+=", value)
    if setting and names_secret(setting[0][:-1]):
        return f"{setting[0]}{HIDDEN}"

    def hide(match: re.Match[str]) -> str:
        quote = match[4][0] if match[4][0] in "'\"" else ""
        shown = f"{match[1]}{match[2]}{match[3]}{quote}{HIDDEN}{quote}"
        return shown if names_secret(match[2]) else match[0]

    return SETTING.sub(hide, value)


LOCK = ".writer.lock"  # in the run folder
GLANCE = 0.5  # seconds that a lock file is waited for: `masksearch status` may be looking
OTHER_RUN = "wait for it, or choose another run"
OTHER_NAME = "wait for it, or search in a run folder of another name (it names a new study)"


def lock_run(run: Path) -> LockFile:
    """Locks a run folder; makes it where it is missing.

    Raises:
        SearchError: If another driver writes to it, or it cannot be written.
    """
    return LockFile(run / LOCK, f"the run folder {run}", OTHER_RUN)


def is_locked(run: Path) -> bool:
    """Whether a driver writes to a run folder now."""
    path = run / LOCK
    if path.is_symlink() or not path.is_file():  # no driver makes a link
        return False
    try:
        with filelock.FileLock(path, timeout=0):
            path.unlink(missing_ok=True)  # left by a driver that was killed
        return False
    except filelock.Timeout:
        return True
    except OSError:  # another user's, or on a disk that is only read
        with contextlib.suppress(OSError), path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False


def lock_study(location: StorageLocation, name: str) -> LockFile | ServerLock | None:
    """Locks a study in its storage; None where the storage offers no lock.

    Args:
        location: The storage.
        name: The study's.

    Raises:
        SearchError: If another driver writes to it, whatever its run folder.
    """
    what = f"the study {name!r} in {location.shown}"
    if location.path is not None:
        part = name if re.fullmatch(r"[\w.-]{1,80}", name) else _digest_of(name).hex()[:16]
        path = location.path.with_name(f".{location.path.name}.{part}.lock")
        return LockFile(path, what, OTHER_NAME)
    return ServerLock(location, name, what) if location.kind == "postgresql" else None


class LockFile:
    """A lock file that says who holds it; the system frees it when that process ends.

    Only a holder removes the file. A process that had opened it before then locks a file to which
    no link leads; filelock notices this and opens the path again. A killed process leaves its file
    to the next holder. On a network file system all this is as good as its flock.
    """

    def __init__(self, path: Path, what: str, remedy: str) -> None:
        self.path, who = path, ""
        if path.is_symlink():
            raise SearchError(f"{path} is a link, and a lock is a file of its own; delete it")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(OSError):  # some systems let nobody read a locked file
                who = path.read_text(encoding="utf-8").strip()
            self.lock = filelock.FileLock(path)
            self.lock.acquire(timeout=GLANCE)
            self.inode = path.stat().st_ino
        except filelock.Timeout as error:
            raise _another_writer(what, who, remedy) from error
        except OSError as error:
            remedy = "free space, or " if error.errno in FULL else ""
            if isinstance(error, FileExistsError | NotADirectoryError):
                remedy = f"move {error.filename}, which is in the way, or "
            text = f"cannot write to {what}: {error.strerror or error}; {remedy}choose another"
            raise SearchError(text) from error
        with contextlib.suppress(OSError):  # a full disk: the lock holds without its words
            path.write_text(_this_process(), encoding="utf-8")

    def check(self) -> None:
        """Nothing: a lock file is not lost while its process lives."""

    def release(self) -> None:
        """Removes the file, unless another one has taken its place, and lets others write."""
        with contextlib.suppress(OSError):  # the folder is gone, or the system keeps open files
            if self.lock.is_locked and self.path.stat().st_ino == self.inode:
                self.path.unlink()
        self.lock.release()


class ServerLock:
    """An advisory lock of a PostgreSQL session, held as long as the session."""

    def __init__(self, location: StorageLocation, name: str, what: str) -> None:
        self.what = what
        self.key = int.from_bytes(_digest_of(f"masksearch study {name}")[:8], "big", signed=True)
        with explain_errors(location, "cannot open the storage"):
            self.engine = sqlalchemy.create_engine(
                location.url,
                poolclass=sqlalchemy.pool.NullPool,
                isolation_level="AUTOCOMMIT",
                connect_args=_line_settings(location),
            )
            self.session = self.engine.connect()
            self.ask("SELECT set_config('application_name', :who, false)", who=_this_process())
            if not self.ask("SELECT pg_try_advisory_lock(:key)", key=self.key):
                holder = (  # the server keeps the two halves of a key in two columns
                    "SELECT a.application_name || '; if it is dead, SELECT pg_terminate_backend('"
                    " || a.pid || ') ends it' FROM pg_locks l JOIN pg_stat_activity a USING (pid)"
                    " WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 AND"
                    " l.classid::bigint = :high AND l.objid::bigint = :low"
                )
                high, low = (self.key >> 32) & 0xFFFFFFFF, self.key & 0xFFFFFFFF
                who = self.ask(holder, high=high, low=low)
                self.session.close()
                raise _another_writer(what, who or "", OTHER_NAME)

    def ask(self, statement: str, **values: Any) -> Any:
        """The one value that a statement answers."""
        return self.session.execute(text(statement), values).scalar()

    def check(self) -> None:
        """Called before every write.

        Raises:
            ConnectionError: If the session was lost, and the lock with it: another driver may
                have come meanwhile.
        """
        try:
            self.ask("SELECT 1")
        except exc.SQLAlchemyError:
            raise ConnectionError(
                f"the server has ended the session that locks {self.what} (a restart, a broken "
                "line); everything finished is kept: repeat the command to go on"
            ) from None

    def release(self) -> None:
        """Lets another driver write, at once: the server needs a moment to end a session."""
        with contextlib.suppress(exc.SQLAlchemyError):  # it is gone, and with it the lock
            self.ask("SELECT pg_advisory_unlock(:key)", key=self.key)
        with contextlib.suppress(exc.SQLAlchemyError):
            self.session.close()
        self.engine.dispose()


def _this_process() -> str:
    """How this process names itself in a lock."""
    return f"process {os.getpid()} on {socket.gethostname()}"


def _another_writer(what: str, who: str, remedy: str) -> SearchError:
    """The error for a study that somebody else writes to."""
    return SearchError(
        f"another process is writing to {what}{f' ({who})' if who else ''}; {remedy}"
    )


def _digest_of(name: str) -> bytes:
    """SHA-256 of a name."""
    return hashlib.sha256(name.encode()).digest()
