"""One driver per study: locks that end with the process that holds them.

The run folder is locked, and the study in its storage, because two run folders on two machines
may name one study. SQLite and journals: a lock file beside the database. PostgreSQL: an advisory
lock of a session of its own, so the server frees it when the driver dies (behind PgBouncer it
needs session pooling). Of other storages (in memory, MySQL) only the run folder is locked.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import socket
import time
from pathlib import Path
from typing import Any, Protocol

import filelock
import sqlalchemy
from sqlalchemy import exc, text

from masksearch.errors import SearchError
from masksearch.study.storage import Place, explained

PATIENCE = 60.0  # seconds that a server which went away is waited for
GLANCE = 0.5  # seconds that a lock file is waited for


class StudyLock(Protocol):
    """What a driver holds while it writes."""

    def check(self) -> bool:
        """Called before every write: False if the lock had been lost and was taken again."""
        ...

    def release(self) -> None:
        """Lets another driver write."""
        ...


def locked_run(run: Path) -> FileLocked:
    """Locks a run folder.

    Raises:
        SearchError: If another driver writes to it.
    """
    return FileLocked(
        run / ".writer.lock", f"the run folder {run}", "wait for it, or choose another run"
    )


def locked_study(place: Place, name: str) -> StudyLock | None:
    """Locks a study in its storage; None where the storage offers no lock.

    Args:
        place: The storage.
        name: The study's.

    Raises:
        SearchError: If another driver writes to it, whatever its run folder.
    """
    what = f"the study {name!r} in {place.shown}"
    if place.path is not None:
        file = place.path.with_name(f".{place.path.name}.{file_part(name)}.lock")
        return FileLocked(file, what, OTHER_FOLDER)
    if place.kind == "postgresql":
        return ServerLocked(place, name, what)
    return None


OTHER_FOLDER = (
    "wait for it, or give the run folder another name (a study is named after its folder)"
)


def file_part(name: str) -> str:
    """A study's name as a part of a file name."""
    if re.fullmatch(r"[\w.-]{1,80}", name):
        return name
    return hashlib.sha256(name.encode()).hexdigest()[:16]


def holder() -> str:
    """How this process names itself in a lock."""
    return f"process {os.getpid()} on {socket.gethostname()}"


def refused(what: str, who: str, remedy: str) -> SearchError:
    """The error for a study that somebody else writes to."""
    return SearchError(
        f"another process is writing to {what}{f' ({who})' if who else ''}; {remedy}"
    )


class FileLocked:
    """A lock file that says who holds it; the system frees it when that process ends."""

    def __init__(self, path: Path, what: str, remedy: str) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(OSError):  # some systems let nobody read a locked file
                who = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
            self.lock = filelock.FileLock(path)
            self.lock.acquire(timeout=GLANCE)  # `masksearch status` may be looking
        except filelock.Timeout as error:
            raise refused(what, who, remedy) from error
        except OSError as error:
            raise SearchError(
                f"cannot write to {what}: {error.strerror or error}; choose another, or free space"
            ) from error
        with contextlib.suppress(OSError):  # a full disk: the lock holds without its words
            path.write_text(holder(), encoding="utf-8")

    def check(self) -> bool:
        """A lock file is not lost while its process lives."""
        return True

    def release(self) -> None:
        """Lets another driver write."""
        self.lock.release()


class ServerLocked:
    """An advisory lock of a PostgreSQL session.

    The session tells the server to look for a lost host after a minute. When the server went
    away (a restart, a broken line), `check` waits for it and takes the lock again.
    """

    def __init__(self, place: Place, name: str, what: str) -> None:
        self.place, self.what = place, what
        digest = hashlib.sha256(f"masksearch study {name}".encode()).digest()
        self.key = int.from_bytes(digest[:8], "big", signed=True)
        with explained(place, "cannot open the storage"):
            self.engine = sqlalchemy.create_engine(
                place.url,
                poolclass=sqlalchemy.pool.NullPool,
                isolation_level="AUTOCOMMIT",
                connect_args={"connect_timeout": 10},
            )
            self.backend = -1  # the server's number of our session
            self.connection = self.taken()

    def taken(self) -> sqlalchemy.Connection:
        """A session that holds the lock.

        Raises:
            SearchError: If another one holds it.
        """
        connection = self.engine.connect()
        try:
            ask(connection, "SELECT set_config('application_name', :who, false)", who=holder())
            for setting, seconds in (("idle", 60), ("interval", 10), ("count", 3)):
                connection.execute(text(f"SET tcp_keepalives_{setting} = {seconds}"))
            deadline = time.monotonic() + 5
            while not ask(connection, "SELECT pg_try_advisory_lock(:key)", key=self.key):
                who, backend = self.other(connection)
                if backend != self.backend or time.monotonic() > deadline:
                    raise refused(self.what, who, OTHER_FOLDER)
                # our own session, of a line that broke: the server has not noticed yet
                ask(connection, "SELECT pg_terminate_backend(:pid)", pid=backend)
                time.sleep(0.05)
            self.backend = ask(connection, "SELECT pg_backend_pid()")
        except BaseException:
            connection.close()
            raise
        return connection

    def other(self, connection: sqlalchemy.Connection) -> tuple[str, int]:
        """Who holds the lock, in its own words, and the server's number of its session."""
        row = connection.execute(
            text(
                "SELECT a.application_name, a.pid FROM pg_locks l JOIN pg_stat_activity a "
                "ON a.pid = l.pid WHERE l.locktype = 'advisory' AND l.granted AND "
                "l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
                "AND l.objsubid = 1 AND l.classid::bigint = :high AND l.objid::bigint = :low"
            ),
            {"high": (self.key >> 32) & 0xFFFFFFFF, "low": self.key & 0xFFFFFFFF},
        ).first()
        return (str(row[0]), int(row[1])) if row else ("", self.backend)

    def check(self) -> bool:
        """Takes the lock again if its session was lost; waits for a server that went away.

        Returns:
            Whether it had been held all the time.

        Raises:
            SearchError: If the server stays away for a minute, or another driver has come.
        """
        try:
            ask(self.connection, "SELECT 1")
            return True
        except exc.SQLAlchemyError:
            self.release()
        deadline = time.monotonic() + PATIENCE
        with explained(self.place, f"no answer for {PATIENCE:g} s from"):
            while True:
                try:
                    self.connection = self.taken()
                    return False
                except exc.DBAPIError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.2)

    def release(self) -> None:
        """Lets another driver write, at once: the server needs a moment to end a session."""
        with contextlib.suppress(exc.SQLAlchemyError):  # the server is gone, and with it the lock
            ask(self.connection, "SELECT pg_advisory_unlock(:key)", key=self.key)
        with contextlib.suppress(exc.SQLAlchemyError):
            self.connection.close()
        self.engine.dispose()


def ask(connection: sqlalchemy.Connection, statement: str, **values: Any) -> Any:
    """The one value that a statement answers."""
    return connection.execute(text(statement), values).scalar()
