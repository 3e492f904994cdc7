"""Storages: opened, locked, full, damaged, gone; and one driver per study."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from toy import ToyEvaluator, space

import masksearch as ms
from masksearch import masks
from masksearch.contracts import Evaluate, Objective, Record, Report
from masksearch.errors import SearchError
from masksearch.study.storage import locate_storage, open_storage, redact
from masksearch.study.store import StudyStore

OBJECTIVES = (Objective("loss", "min", 10.0), Objective("sparsity", "max", 0.0))
FACTS = {"kind": "search", "shape": '{"length": 16, "layers": 2, "heads": 2}', "protocol": "p"}
HOLD = """
import sys, time
from pathlib import Path
from masksearch.contracts import Objective
from masksearch.study.store import StudyStore
store = StudyStore(Path(sys.argv[1]), sys.argv[2] or None)
store.create((Objective("loss", "min", 10.0), Objective("sparsity", "max", 0.0)), {"a": "b"})
print("held", flush=True)
time.sleep(600)
"""


def running(**settings) -> Record:
    values = dict(
        number=-1, status="running", job=Evaluate(masks.window(2)), fingerprint="f", protocol="p",
        origin="tpe", source="own", measures={"sparsity": 0.7},
    )  # fmt: skip
    return Record(**(values | settings))


def finished(number: int, points: int = 1) -> Record:
    curve = tuple(Report(step + 1, {"loss": 0.25}) for step in range(points))
    return running(
        number=number, status="done", values={"loss": 0.25}, step=points, curve=curve, seconds=1.0
    )


def made(run: Path, storage=None, trials: int = 0) -> StudyStore:
    store = StudyStore(run, storage)
    store.create(OBJECTIVES, FACTS)
    for draw in range(trials):
        store.finish(finished(store.begin(running(), draw)))
    return store


# -- names ---------------------------------------------------------------------------------------
def test_passwords_are_shown_nowhere(tmp_path):
    url = "postgresql://ann:p%40ss:w@host:1/db?sslmode=off"
    place = locate_storage(tmp_path, url)
    assert "p%40ss" not in place.shown + repr(place)
    assert place.shown == "postgresql://ann:***@host:1/db?sslmode=off"
    assert redact("no such user (password p@ss:w)", url) == "no such user (password ***)"
    assert redact("x://h/d?user=a&password=b&c=d") == "x://h/d?user=a&password=***&c=d"


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_postgresql_means_psycopg_3(tmp_path, scheme):
    place = locate_storage(tmp_path, f"{scheme}://ann:word@host/db")
    assert place.url == "postgresql+psycopg://ann:word@host/db"
    assert place.kind == "postgresql"


def test_missing_driver_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)  # so that importing it fails
    with pytest.raises(SearchError, match=r'pip install .*\[postgresql\]"') as caught:
        open_storage(tmp_path, "postgresql://ann:word@127.0.0.1:1/db")
    assert "word" not in str(caught.value)


@pytest.mark.parametrize("storage", ["nonsense://x:word@y", "nonsense", "journal"])
def test_text_that_is_no_storage(tmp_path, storage):
    with pytest.raises(SearchError, match="cannot open the storage") as caught:
        open_storage(tmp_path, storage)
    assert "word" not in str(caught.value)


# -- SQLite --------------------------------------------------------------------------------------
def test_locked_database_is_waited_for(tmp_path, monkeypatch):
    store = made(tmp_path / "run", trials=1)
    other = sqlite3.connect(tmp_path / "run" / "study.db", check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    threading.Timer(0.1, other.rollback).start()
    assert store.begin(running(), 1) == 1  # after a while
    store.close()
    monkeypatch.setattr("masksearch.study.storage.BUSY", 0.1)
    store = made(tmp_path / "run")
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(SearchError, match=r"study\.db is locked: another process holds it"):
        store.finish(finished(1))
    other.rollback()
    store.finish(finished(1))
    assert store.begin(running(), 2) == 2
    other.close()
    store.close()


def test_foreign_file_is_named(tmp_path):
    (tmp_path / "study.db").write_bytes(b"no database" * 1000)
    for write in (True, False):
        with pytest.raises(SearchError, match=r"study\.db is damaged, or no study"):
            StudyStore(tmp_path, write=write)


def test_truncated_database_is_named(tmp_path):
    run = tmp_path / "run"
    made(run, trials=3).close()
    data = (run / "study.db").read_bytes()

    def read():
        store = StudyStore(run, write=False)
        store.load()
        store.records()

    for share in (0.02, 0.3, 0.6, 0.95):
        (run / "study.db").write_bytes(data[: int(len(data) * share)])
        with pytest.raises(SearchError, match=r"study\.db is damaged"):
            read()


# -- journals ------------------------------------------------------------------------------------
def test_half_a_line_of_a_journal_is_cut_off(tmp_path):
    log = tmp_path / "log"
    made(tmp_path / "run", f"journal:{log}", trials=2).close()
    with log.open("ab") as file:
        file.write(b'{"op_code": 8, "trial')  # its writer died, or the disk was full
    store = made(tmp_path / "run", f"journal:{log}", trials=1)
    store.close()
    assert len(StudyStore(tmp_path / "run", f"journal:{log}", write=False).records()) == 3


def test_damaged_journal_is_named(tmp_path):
    log = tmp_path / "log"
    made(tmp_path / "run", f"journal:{log}", trials=2).close()
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join([*lines[:2], b"\xff\x00rubbish\n", *lines[2:]]))
    with pytest.raises(SearchError, match="log is damaged, or no study"):
        StudyStore(tmp_path / "run", f"journal:{log}")


# -- the disk ------------------------------------------------------------------------------------
def fill(path: Path) -> None:
    """Leaves no free byte on a disk."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)


@pytest.mark.parametrize("kind", ["sqlite", "journal", "other disk"])
def test_full_disk_keeps_what_was_written_before(small_disk, tmp_path, kind):
    run = (tmp_path if kind == "other disk" else small_disk) / "run"
    storage = {
        "sqlite": None,
        "journal": f"journal:{small_disk / 'log'}",
        "other disk": f"sqlite:///{small_disk / 'team.db'}",
    }[kind]
    store = made(run, storage, trials=2)
    number = store.begin(running(), 2)
    fill(small_disk / "filler")
    with pytest.raises(SearchError, match=r"disk full at .*; what was written before is safe"):
        store.finish(finished(number, points=2000))
    store.close()
    reader = StudyStore(run, storage, write=False)  # on the full disk
    assert [record.status for record in reader.records()] == ["done", "done", "running"]
    (small_disk / "filler").unlink()
    again = made(run, storage)  # the command is repeated: the last trial runs again
    assert [record.status for record in again.records()] == ["done", "done", "running"]
    again.finish(finished(number, points=2000))
    assert again.begin(running(), 3) == 3
    assert StudyStore(run, storage, write=False).records()[2] == finished(number, points=2000)
    again.close()


# -- one driver ----------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_one_study_has_one_driver_whatever_its_folder(tmp_path, kind):
    storage = f"journal:{tmp_path / 'team'}" if kind == "journal" else f"sqlite:///{tmp_path}/team"
    first = made(tmp_path / "here" / "run", storage)
    with pytest.raises(SearchError, match=rf"writing to the study 'run' .*process {os.getpid()} "):
        StudyStore(tmp_path / "there" / "run", storage)
    other = StudyStore(tmp_path / "there" / "run2", storage)  # another study of the same storage
    other.close()
    StudyStore(tmp_path / "there" / "run", storage, write=False)  # reading is free
    first.close()
    StudyStore(tmp_path / "there" / "run", storage).close()


def held(run: Path, storage: str) -> subprocess.Popen:
    """Another process that holds a study."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, run, storage], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def check_killed_holder(run: Path, elsewhere: Path, storage: str) -> None:
    process = held(run, storage)
    try:
        with pytest.raises(SearchError, match=rf"another process .*\(process {process.pid} on "):
            StudyStore(elsewhere, storage or None)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    deadline = time.monotonic() + 120  # a server needs a moment to see it
    while True:
        try:
            StudyStore(elsewhere, storage or None).close()
            return
        except SearchError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["run folder", "sqlite", "journal"])
def test_killed_holder_frees_the_study(tmp_path, kind):
    storage = {"run folder": "", "sqlite": f"sqlite:///{tmp_path}/team", "journal":
               f"journal:{tmp_path}/log"}[kind]  # fmt: skip
    run = tmp_path / "run"
    check_killed_holder(run, run if kind == "run folder" else tmp_path / "b" / "run", storage)


# -- PostgreSQL ----------------------------------------------------------------------------------
@pytest.mark.slow
def test_postgresql_keeps_a_search(server, tmp_path):
    settings = dict(run=tmp_path / "team-a", storage=server.url(), strategy="random", seed=3)
    first = ms.search(space, ToyEvaluator(), trials=3, **settings)
    assert not (tmp_path / "team-a" / "study.db").exists()
    for path in (tmp_path / "team-a").rglob("*"):
        assert not path.is_file() or server.password.encode() not in path.read_bytes()
    assert server.password not in json.dumps(first.store.facts())
    again = ms.search(space, ToyEvaluator(), trials=5, **settings)
    alone = ms.search(
        space, ToyEvaluator(), trials=5, run=tmp_path / "alone", strategy="random", seed=3
    )
    assert [r.fingerprint for r in again.records()] == [r.fingerprint for r in alone.records()]
    assert [r.values for r in again.records()] == [r.values for r in alone.records()]


def test_postgresql_study_has_one_driver(server, tmp_path):
    first = made(tmp_path / "here" / "team-b", server.url())
    with pytest.raises(
        SearchError, match=rf"the study 'team-b' .*process {os.getpid()} "
    ) as error:
        StudyStore(tmp_path / "there" / "team-b", server.url())
    assert server.password not in str(error.value)
    session = first.locks[1].session
    close, session.close = session.close, lambda: None  # the server hears of it later
    first.close()
    StudyStore(tmp_path / "there" / "team-b", server.url()).close()
    close()


def test_postgresql_says_what_is_wrong(server, tmp_path):
    with pytest.raises(
        SearchError, match=r"password authentication failed .*; check the user"
    ) as e:
        StudyStore(tmp_path / "run", server.url(password="wr0ng"), write=False)
    assert "wr0ng" not in str(e.value)
    assert e.value.__suppress_context__, "a traceback would show the address"
    url = server.url().replace("/postgres", "/nowhere")
    with pytest.raises(SearchError, match=r'"nowhere" does not exist; make it with createdb'):
        StudyStore(tmp_path / "run", url)
    url = server.url().replace(str(server.port), "1")
    with pytest.raises(SearchError, match=r"refused.*; check that the server runs"):
        StudyStore(tmp_path / "run", url)


@pytest.mark.slow
def test_postgresql_restarted_in_the_middle(server, tmp_path):
    """The lock is gone with the session, and another driver may have come: the search ends."""
    store = made(tmp_path / "team-c", server.url(), trials=1)
    number = store.begin(running(), 1)
    server.stop()
    server.start()
    with pytest.raises(SearchError, match=r"ended the session that locks the study 'team-c'"):
        store.finish(finished(number))
    store.close()
    again = made(tmp_path / "team-c", server.url())  # the command is repeated
    again.finish(finished(number))
    assert [record.status for record in again.records()] == ["done", "done"]
    again.close()


@pytest.mark.slow
def test_postgresql_killed_holder_frees_the_study(server, tmp_path):
    check_killed_holder(tmp_path / "team-e", tmp_path / "b" / "team-e", server.url())
