"""Storages: what a user may name, how it is opened, and what its errors mean.

SQLite keeps its rollback journal and full synchronisation: a result that was written survives the
death of the process and of the machine. (Write-ahead logging saves a disk flush per write, but it
breaks on network file systems and needs two more files; results come too seldom for that to pay.)
SQLite on a network file system is discouraged all the same: use `"journal:PATH"` there, or a
PostgreSQL server.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import optuna
import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from sqlalchemy import exc

from masksearch.errors import SearchError

BUSY = 60.0  # seconds that a database locked by another process is waited for
RESERVE = 1 << 20  # bytes kept back, so that the last results fit on a full disk
DRIVER = 'pip install "masksearch[postgresql]"'


class DiskFullError(SearchError):
    """A write that did not fit on the disk; nothing of it is stored."""


@dataclass(frozen=True)
class Place:
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


def place_of(run: Path, storage: str | BaseStorage | None) -> Place:
    """What a user's `storage=` names; see `opened`.

    Raises:
        SearchError: If it is a text that is no storage.
    """
    if storage is None:
        path = run.resolve() / "study.db"
        return Place("sqlite", str(path), path, f"sqlite:///{path}")
    if not isinstance(storage, str):
        rdb = getattr(storage, "_backend", storage)  # what Optuna wraps in a cache, and journals
        if isinstance(rdb, RDBStorage):
            return place_of(run, rdb.engine.url.render_as_string(hide_password=False))
        file = getattr(rdb, "_file_path", None)
        if file is not None:
            return Place("journal", str(file), Path(file).resolve())
        return Place("other", f"the {type(storage).__name__} given")
    if storage.startswith("journal:"):
        path = Path(storage.removeprefix("journal:")).expanduser().resolve()
        return Place("journal", str(path), path)
    try:
        url = sqlalchemy.engine.make_url(storage)
    except (exc.ArgumentError, ValueError) as error:
        raise SearchError(
            f"cannot open the storage {redacted(storage)}: it is no storage; give a database URL "
            "such as postgresql://user@host/database, 'journal:PATH', or nothing for SQLite"
        ) from error
    backend = url.get_backend_name()
    if backend == "postgres":
        backend, url = "postgresql", url.set(drivername="postgresql")
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    shown, text = redacted(storage), url.render_as_string(hide_password=False)
    if backend == "postgresql":
        return Place("postgresql", shown, None, text)
    if backend == "sqlite" and url.database and url.database != ":memory:":
        return Place("sqlite", shown, Path(url.database).resolve(), text)
    return Place("other", shown, None, storage)


def opened(run: Path, storage: str | BaseStorage | None) -> BaseStorage:
    """The Optuna storage that a user names.

    Args:
        run: Folder of the run.
        storage: None (SQLite in the run folder), `"journal:PATH"`, a database URL
            (`postgresql://` uses psycopg 3), or an Optuna storage.

    Raises:
        SearchError: If it cannot be opened; says why and what helps, never a password.
    """
    if isinstance(storage, BaseStorage):
        return optuna.storages.get_storage(storage)
    place = place_of(run, storage)
    with explained(place, "cannot open the storage"):
        if place.kind == "journal":
            assert place.path is not None
            place.path.parent.mkdir(parents=True, exist_ok=True)
            mend_journal(place.path)
            return JournalStorage(JournalFileBackend(str(place.path)))
        if place.kind == "sqlite" and place.path is not None:
            whole_or_new(run, place.path)
        url = place.url.replace("{", "{{").replace("}", "}}") if storage is None else place.url
        try:
            database = RDBStorage(url, engine_kwargs=engine_settings(place))
        except RuntimeError as error:  # tables of another Optuna
            raise SearchError(f"cannot open the storage {place.shown}: {error}") from error
        except (exc.IntegrityError, exc.OperationalError, exc.ProgrammingError) as error:
            if "already exists" not in str(error) and "duplicate key" not in str(error):
                raise
            # another process was making the tables at the same time
            database = RDBStorage(url, engine_kwargs=engine_settings(place))
    sqlalchemy.event.listen(database.engine, "handle_error", raise_at_once(place))
    return optuna.storages.get_storage(database)


def engine_settings(place: Place) -> dict[str, Any]:
    """What SQLAlchemy's engine is made with."""
    query = sqlalchemy.engine.make_url(place.url).query
    if place.kind == "sqlite":
        return {"connect_args": {} if "timeout" in query else {"timeout": BUSY}}
    settings: dict[str, Any] = {"pool_pre_ping": True}  # dropped connections are opened again
    if place.kind == "postgresql" and "connect_timeout" not in query:
        settings["connect_args"] = {"connect_timeout": 10}
    return settings


def raise_at_once(place: Place) -> Any:
    """A listener that names what Optuna would try again, five times, in vain."""

    def listen(context: sqlalchemy.engine.ExceptionContext) -> None:
        if context.is_pre_ping or not isinstance(context.original_exception, sqlite3.Error):
            return
        known = known_problem(context.original_exception, place)
        if known is not None:
            raise known from context.original_exception

    return listen


def whole_or_new(run: Path, path: Path) -> None:
    """Refuses an emptied database: SQLite would start a new one in its place."""
    if path.is_file() and path.stat().st_size == 0 and (run / "trials").is_dir():
        raise SearchError(
            f"{path} is empty, although {run} holds trials: it has been truncated; restore it "
            "from a copy, or choose another run folder"
        )


def mend_journal(path: Path) -> None:
    """Cuts off a last line that a full disk, or the end of its writer, has left unfinished.

    What would be appended to it could not be read any more.
    """
    if not path.is_file() or path.stat().st_size == 0 or not os.access(path, os.W_OK):
        return
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) == b"\n":
            return
    lock = JournalFileSymlinkLock(str(path))  # the one that Optuna takes to append
    lock.acquire()
    try:
        with path.open("r+b") as file:
            file.truncate(file.read().rfind(b"\n") + 1)
    finally:
        lock.release()


# -- errors ------------------------------------------------------------------------------------
@contextlib.contextmanager
def explained(place: Place, failed: str = "cannot use the storage") -> Iterator[None]:
    """Turns what databases and files raise into one line that says what helps."""
    try:
        yield
    except (StorageInternalError, exc.SQLAlchemyError, sqlite3.Error, OSError, ImportError,
            json.JSONDecodeError, UnicodeDecodeError) as error:  # fmt: skip
        if isinstance(error, SearchError):
            raise
        known = known_problem(error, place)
        if known is None:
            reason = " ".join(str(root_of(error)).split())
            known = SearchError(
                f"{failed} {place.shown}: {redacted(reason, place.url)}{remedy(reason)}"
            )
        raise known from None if place.kind == "postgresql" else error


def known_problem(error: BaseException, place: Place) -> SearchError | None:
    """The error for a full disk, a locked database or a damaged file; None for others."""
    where = place.path or place.shown
    for cause in chain_of(error):
        text = str(cause)
        full = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or "database or disk is full" in text or "No space left on device" in text:
            return DiskFullError(f"disk full at {where}; free space and repeat the command")
        if isinstance(cause, sqlite3.OperationalError) and "database is locked" in text:
            return SearchError(
                f"{where} is locked: another process holds it, and has for {BUSY:g} s; end that "
                "process (a database browser, a copy of this search), or use PostgreSQL"
            )
        if isinstance(cause, sqlite3.DatabaseError) and re.search(
            "not a database|malformed|disk image|no such (table|column)", text
        ):
            return SearchError(
                f"{where} is damaged, or no study ({text}); restore it from a copy, or choose "
                "another run folder"
            )
        if place.kind == "journal" and isinstance(cause, ValueError):
            return SearchError(
                f"{where} is damaged, or no journal ({text}); restore it from a copy, or choose "
                "another file"
            )
        if place.kind == "postgresql" and isinstance(cause, ImportError):
            return SearchError(f"{place.shown} needs a driver that is missing; {DRIVER}")
    return None


def chain_of(error: BaseException) -> Iterator[BaseException]:
    """An error and what it came from, outermost first."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        if isinstance(seen, exc.DBAPIError) and seen.orig is not None:
            yield seen.orig
        seen = seen.__cause__ or seen.__context__


def root_of(error: BaseException) -> BaseException:
    """What a driver or the system said, below what SQLAlchemy and Optuna made of it."""
    for cause in chain_of(error):
        if isinstance(cause, exc.DBAPIError) and cause.orig is not None:
            return cause.orig
    return error


def remedy(reason: str) -> str:
    """What helps against a server's refusal."""
    for pattern, text in (
        ("password|authentication|fe_sendauth", "; check the user and the password in the URL"),
        ("database .* does not exist", "; make it with createdb, or correct the URL"),
        ("refused|could not connect|connection.* failed|timeout|No such file|resolve",
         "; check that the server runs, its host and its port"),
        ("Permission denied|unable to open|readonly|read-only",
         "; check that the folder exists and can be written"),
    ):  # fmt: skip
        if re.search(pattern, reason):
            return text
    return ""


def redacted(text: str, url: str = "") -> str:
    """A text without passwords: neither that of a URL in it nor that of `url`."""
    text = re.sub(r"(://[^/\s@:]*):[^/\s]*@", r"\1:***@", text)
    text = re.sub(r"(password=)[^&\s]+", r"\1***", text)
    secret = sqlalchemy.engine.make_url(url).password if url else None
    return text.replace(str(secret), "***") if secret else text


# -- the disk ----------------------------------------------------------------------------------
class Reserve:
    """Space kept back on the disks that a search writes to, given up when one of them is full.

    Making it fails before any training where the run folder cannot be written.

    Args:
        run: Folder of the run; made if it is missing.
        place: The storage; its file may lie on another disk.

    Raises:
        SearchError: Says which folder cannot be written and why.
    """

    def __init__(self, run: Path, place: Place) -> None:
        self.files: list[Path] = []
        try:
            run.mkdir(parents=True, exist_ok=True)
            self.keep(run / ".reserve")
        except OSError as error:
            self.give_up()
            raise SearchError(
                f"cannot write to the run folder {run}: {error.strerror or error}; "
                "choose another with --run, or free space"
            ) from error
        if place.path is None or place.path.parent == run.resolve():
            return
        try:
            place.path.parent.mkdir(parents=True, exist_ok=True)
            self.keep(place.path.with_name(f".{place.path.name}.{run.resolve().name}.reserve"))
        except OSError as error:
            self.give_up()
            raise SearchError(
                f"cannot write to {place.path.parent}: {error.strerror or error}; "
                "choose another storage, or free space"
            ) from error

    def keep(self, path: Path) -> None:
        """Allocates a file of `RESERVE` bytes."""
        self.files.append(path)
        with path.open("wb") as file:
            file.write(os.urandom(RESERVE))  # random: no file system can fold it up
            file.flush()
            os.fsync(file.fileno())

    def give_up(self) -> bool:
        """Frees the space; whether there was any to free."""
        freed = False
        for path in self.files:
            with contextlib.suppress(OSError):  # not there, or its folder is gone
                path.unlink()
                freed = True
        return freed
