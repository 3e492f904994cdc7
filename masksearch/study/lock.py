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
from pathlib import Path
from typing import Any

import filelock
import sqlalchemy
from sqlalchemy import exc, text

from masksearch.errors import SearchError
from masksearch.study.storage import StorageLocation, explain_errors

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
    holder = path.read_text(encoding="utf-8") if path.is_file() else ""
    try:
        with filelock.FileLock(path, timeout=0):
            return False
    except filelock.Timeout:
        if holder and not path.read_text(encoding="utf-8"):  # trying a lock empties its file
            path.write_text(holder, encoding="utf-8")
        return True


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
        part = name if re.fullmatch(r"[\w.-]{1,80}", name) else digest_of(name).hex()[:16]
        path = location.path.with_name(f".{location.path.name}.{part}.lock")
        return LockFile(path, what, OTHER_NAME)
    return ServerLock(location, name, what) if location.kind == "postgresql" else None


class LockFile:
    """A lock file that says who holds it; the system frees it when that process ends."""

    def __init__(self, path: Path, what: str, remedy: str) -> None:
        who = ""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(OSError):  # some systems let nobody read a locked file
                who = path.read_text(encoding="utf-8").strip()
            self.lock = filelock.FileLock(path)
            self.lock.acquire(timeout=GLANCE)
        except filelock.Timeout as error:
            raise another_writer(what, who, remedy) from error
        except OSError as error:
            raise SearchError(
                f"cannot write to {what}: {error.strerror or error}; choose another, or free space"
            ) from error
        with contextlib.suppress(OSError):  # a full disk: the lock holds without its words
            path.write_text(this_process(), encoding="utf-8")

    def check(self) -> None:
        """Nothing: a lock file is not lost while its process lives."""

    def release(self) -> None:
        """Lets another driver write."""
        self.lock.release()


class ServerLock:
    """An advisory lock of a PostgreSQL session, held as long as the session."""

    def __init__(self, location: StorageLocation, name: str, what: str) -> None:
        self.what = what
        self.key = int.from_bytes(digest_of(f"masksearch study {name}")[:8], "big", signed=True)
        with explain_errors(location, "cannot open the storage"):
            self.engine = sqlalchemy.create_engine(
                location.url,
                poolclass=sqlalchemy.pool.NullPool,
                isolation_level="AUTOCOMMIT",
                connect_args={"connect_timeout": 10},
            )
            self.session = self.engine.connect()
            self.ask("SELECT set_config('application_name', :who, false)", who=this_process())
            if not self.ask("SELECT pg_try_advisory_lock(:key)", key=self.key):
                holder = (  # the server keeps the two halves of a key in two columns
                    "SELECT a.application_name FROM pg_locks l JOIN pg_stat_activity a USING (pid)"
                    " WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 AND"
                    " l.classid::bigint = :high AND l.objid::bigint = :low"
                )
                high, low = (self.key >> 32) & 0xFFFFFFFF, self.key & 0xFFFFFFFF
                who = self.ask(holder, high=high, low=low)
                self.session.close()
                raise another_writer(what, who or "", OTHER_NAME)

    def ask(self, statement: str, **values: Any) -> Any:
        """The one value that a statement answers."""
        return self.session.execute(text(statement), values).scalar()

    def check(self) -> None:
        """Called before every write.

        Raises:
            SearchError: If the session was lost, and the lock with it: another driver may have
                come meanwhile.
        """
        try:
            self.ask("SELECT 1")
        except exc.SQLAlchemyError:
            raise SearchError(
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


def this_process() -> str:
    """How this process names itself in a lock."""
    return f"process {os.getpid()} on {socket.gethostname()}"


def another_writer(what: str, who: str, remedy: str) -> SearchError:
    """The error for a study that somebody else writes to."""
    return SearchError(
        f"another process is writing to {what}{f' ({who})' if who else ''}; {remedy}"
    )


def digest_of(name: str) -> bytes:
    """SHA-256 of a name."""
    return hashlib.sha256(name.encode()).digest()
