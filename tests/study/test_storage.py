"""Storages: opened, locked, full, damaged, gone; and one driver per study."""

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from unittest import mock

import optuna
import pytest
import sqlalchemy
from hypothesis import given
from hypothesis import strategies as st
from optuna.storages.journal import JournalFileBackend
from stored_trials import finished, made, running
from toy import ToyEvaluator, space

import masksearch as ms
from masksearch.contracts import Report
from masksearch.errors import ResumeError, SearchError, ServerUnreachableError
from masksearch.study.storage import JournalFile, is_locked, lock_run
from masksearch.study.store import StudyStore

HOLD = """
import sys, time
from pathlib import Path
from stored_trials import made
store = made(Path(sys.argv[1]), sys.argv[2] or None)
print("held", flush=True)
time.sleep(600)
"""


# -- names ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_missing_driver_names_the_command_and_hides_the_password(tmp_path, monkeypatch, scheme):
    monkeypatch.setitem(sys.modules, "psycopg", None)  # so that importing it fails
    with pytest.raises(SearchError, match=r'lacks a driver: .*\[postgresql\]"') as said:
        StudyStore(tmp_path, f"{scheme}://ann:p%40ss:w@127.0.0.1:1/db?password=b&sslmode=off")
    shown = f"{scheme}://ann:***@127.0.0.1:1/db?password=***&sslmode=off"
    assert str(said.value).startswith(shown)


@pytest.mark.parametrize("storage", ["nonsense://x:word@y", "nonsense", "journal"])
def test_text_that_is_no_storage(tmp_path, storage):
    with pytest.raises(SearchError, match="cannot open the storage") as caught:
        StudyStore(tmp_path, storage)
    assert "word" not in str(caught.value)


# -- SQLite --------------------------------------------------------------------------------------
@pytest.mark.slow
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


def test_foreign_and_truncated_databases_are_named(tmp_path):
    (tmp_path / "study.db").write_bytes(b"no database" * 1000)
    for write in (True, False):
        with pytest.raises(SearchError, match=r"study\.db is damaged, or no study"):
            StudyStore(tmp_path, write=write)
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


ATTRIBUTES = st.dictionaries(st.sampled_from(["result", "starts"]), st.floats(0, 1), max_size=1)
LINES = st.fixed_dictionaries({"op_code": st.integers(0, 9)}, optional={"user_attr": ATTRIBUTES})


@given(lines=st.lists(LINES))
def test_journal_reads_as_one_in_which_nothing_waits(tmp_path_factory, lines):
    folder = tmp_path_factory.mktemp("journal")
    plain, ours = JournalFileBackend(str(folder / "plain")), JournalFile(str(folder / "ours"))
    with mock.patch("os.fsync") as synced:
        for line in [*lines, {"op_code": 6}]:  # a state comes after any result
            ours.append_logs([line])
        assert synced.call_count == 1 + sum("result" not in x.get("user_attr", ()) for x in lines)
        for line in [*lines, {"op_code": 6}]:
            plain.append_logs([line])
    assert list(ours.read_logs(0)) == list(plain.read_logs(0))
    assert (folder / "ours").read_bytes() == (folder / "plain").read_bytes()


def test_result_that_is_no_json_does_not_wait_for_ever(tmp_path):
    store = made(tmp_path / "run", f"journal:{tmp_path / 'log'}")
    number = store.begin(running(), 0)
    with pytest.raises(TypeError):
        store.finish(replace(finished(number), artifacts={"a": object()}))
    store.finish(finished(number))
    assert StudyStore(store.run, store.given, write=False).records() == [finished(number)]
    store.close()


def test_result_and_state_are_one_append_of_a_journal(tmp_path, monkeypatch):
    log, synced, sync = tmp_path / "log", [], os.fsync
    store = made(tmp_path / "run", f"journal:{log}", trials=2)
    number, before = store.begin(running(), 2), log.stat().st_size
    monkeypatch.setattr(os, "fsync", lambda fd: [synced.append(fd), sync(fd)])
    store.finish(finished(number))
    assert len(synced) == 1
    store.close()
    whole = log.read_bytes()
    for end in range(before, len(whole) + 1, 29):  # killed in the middle of it
        log.write_bytes(whole[:end])
        reader = StudyStore(tmp_path / "run", f"journal:{log}", write=False)
        last = reader.records()[number]
        assert (last.status, last.values) in [("running", {}), ("done", {"loss": 0.25})]


# -- the disk ------------------------------------------------------------------------------------
LONG = tuple(Report(step, {"loss": 0.25}) for step in range(2000))


def fill(path: Path) -> None:
    """Leaves no free byte on a disk."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)


@pytest.mark.slow
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
        store.finish(finished(number, curve=LONG))
    store.close()
    reader = StudyStore(run, storage, write=False)  # on the full disk
    assert [record.status for record in reader.records()] == ["done", "done", "running"]
    (small_disk / "filler").unlink()
    again = made(run, storage)  # the command is repeated: the last trial runs again
    assert [record.status for record in again.records()] == ["done", "done", "running"]
    again.finish(finished(number, curve=LONG))
    assert again.begin(running(), 3) == 3
    assert StudyStore(run, storage, write=False).records()[2] == finished(number, curve=LONG)
    again.close()


# -- one driver ----------------------------------------------------------------------------------
@pytest.mark.slow
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
        [sys.executable, "-c", HOLD, run, storage], stdout=subprocess.PIPE, text=True,
        cwd=Path(__file__).parent,
    )  # fmt: skip
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


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["run folder", "sqlite", "journal"])
def test_killed_holder_frees_the_study(tmp_path, kind):
    storage = {"run folder": "", "sqlite": f"sqlite:///{tmp_path}/team", "journal":
               f"journal:{tmp_path}/log"}[kind]  # fmt: skip
    run = tmp_path / "run"
    check_killed_holder(run, run if kind == "run folder" else tmp_path / "b" / "run", storage)


@pytest.mark.slow
@pytest.mark.parametrize("journal", [False, True])
def test_search_leaves_no_lock_file(tmp_path, journal):
    run, team = tmp_path / "run", tmp_path / "team"
    for path in (run / ".writer.lock", run / ".study.db.run.lock", team / ".log.run.lock"):
        path.parent.mkdir(exist_ok=True)
        path.touch()  # as a driver that was killed leaves it
    storage = f"journal:{team}/log" if journal else None
    ms.search(space, ToyEvaluator(), run=run, trials=1, storage=storage)
    assert {path.name for path in tmp_path.rglob("*.lock")} == {
        ".study.db.run.lock" if journal else ".log.run.lock"  # of another storage
    }


def test_looking_for_a_driver_leaves_no_lock_file(tmp_path):
    assert not is_locked(tmp_path)
    (tmp_path / ".writer.lock").touch()
    assert not is_locked(tmp_path)
    assert not list(tmp_path.iterdir())
    lock = lock_run(tmp_path)
    assert is_locked(tmp_path)
    lock.release()
    assert not is_locked(tmp_path)


def test_a_driver_is_seen_by_who_may_only_read(tmp_path, monkeypatch):
    def refuse(*given, **settings):
        raise PermissionError(13, "Permission denied")

    lock = lock_run(tmp_path)
    monkeypatch.setattr("masksearch.study.storage.filelock.FileLock", refuse)
    assert is_locked(tmp_path)
    lock.release()
    (tmp_path / ".writer.lock").touch()
    assert not is_locked(tmp_path)
    assert (tmp_path / ".writer.lock").exists()


@pytest.mark.slow
def test_file_removed_before_it_was_locked_counts_for_nothing(tmp_path, monkeypatch):
    first, flock = lock_run(tmp_path), fcntl.flock

    def flock_late(file: int, how: int) -> None:
        if how & fcntl.LOCK_EX:
            monkeypatch.setattr(fcntl, "flock", flock)
            first.release()  # the file is open by now, and not yet locked
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", flock_late)
    second = lock_run(tmp_path)
    assert not first.lock.is_locked
    with pytest.raises(SearchError, match="another process is writing"):
        lock_run(tmp_path)
    first.release()  # a second time: the file is now another driver's
    assert is_locked(tmp_path)
    second.release()
    assert not list(tmp_path.iterdir())


def test_lock_of_a_folder_made_anew_is_left_alone(tmp_path):
    first = lock_run(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    second = lock_run(tmp_path / "run")
    first.release()
    assert is_locked(tmp_path / "run")
    second.release()


@pytest.mark.slow
def test_one_holder_at_a_time_while_lock_files_come_and_go(tmp_path, monkeypatch):
    monkeypatch.setattr("masksearch.study.storage.GLANCE", 0)
    holders, most = [], []

    def drive(me: int) -> None:
        taken = 0
        while taken < 25:
            with contextlib.suppress(SearchError):
                lock = lock_run(tmp_path)
                holders.append(me)
                time.sleep(0)  # the others' turn
                most.append(len(holders))
                holders.remove(me)
                taken += 1
                lock.release()

    threads = [threading.Thread(target=drive, args=[me]) for me in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 100
    assert not list(tmp_path.iterdir())


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


@pytest.mark.slow
def test_postgresql_study_has_one_driver(server, tmp_path):
    first = made(tmp_path / "here" / "team-b", server.url())
    said = rf"the study 'team-b' .*process {os.getpid()} .*pg_terminate_backend\(\d+\)"
    with pytest.raises(SearchError, match=said) as error:
        StudyStore(tmp_path / "there" / "team-b", server.url())
    assert server.password not in str(error.value)
    session = first.locks[1].session
    close, session.close = session.close, lambda: None  # the server hears of it later
    first.close()
    StudyStore(tmp_path / "there" / "team-b", server.url()).close()
    close()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["postgresql", "journal"])
def test_a_refused_search_leaves_no_study_where_others_lie(request, tmp_path, kind):
    journal = f"journal:{tmp_path / 'shared.log'}"
    place = journal if kind == "journal" else request.getfixturevalue("server").url()
    made(tmp_path / f"first-{kind}", place, trials=1).close()
    with pytest.raises(SearchError, match="refused"), made(tmp_path / f"bad-{kind}", place):
        raise SearchError("refused")
    assert [*tmp_path.glob("bad-*")] == []
    with StudyStore(tmp_path / f"first-{kind}", place) as store:
        names = optuna.get_all_study_names(store.storage)
        assert f"first-{kind}" in names
        assert f"bad-{kind}" not in names
        assert len(store.records()) == 1


@pytest.mark.slow
def test_drivers_that_find_a_new_database_make_its_tables_once(server, tmp_path):
    psycopg = pytest.importorskip("psycopg")
    with psycopg.connect(server.url(), autocommit=True) as session:
        session.execute("CREATE DATABASE fresh")
    url, begin = server.url().replace("/postgres", "/fresh"), threading.Barrier(4)

    def drive(number: int) -> int:
        begin.wait()
        with StudyStore(tmp_path / f"team-{number}", url) as store:
            return len(store.storage.get_all_studies())

    with ThreadPoolExecutor(4) as drivers:
        assert [*drivers.map(drive, range(4))] == [0] * 4


@pytest.mark.slow
def test_postgresql_says_what_is_wrong(server, tmp_path):
    with pytest.raises(SearchError, match=r"password authentication .*; check the user") as e:
        StudyStore(tmp_path / "run", server.url(password="wr0ng"), write=False)
    assert "wr0ng" not in str(e.value)
    assert e.value.__suppress_context__, "a traceback would show the address"
    url = server.url().replace("/postgres", "/nowhere")
    with pytest.raises(SearchError, match=r'"nowhere" does not exist; make it with createdb'):
        StudyStore(tmp_path / "run", url)
    url = server.url().replace(str(server.port), "1")
    with pytest.raises(SearchError, match=r"refused.*; check that the server runs"):
        StudyStore(tmp_path / "run", url)


@contextlib.contextmanager
def written_by_others(name: str):
    with (
        pytest.warns(UserWarning, match="does not answer"),
        pytest.raises(ResumeError, match=f"another process has written to the study '{name}'"),
    ):
        yield


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr("masksearch.study.store.SERVER_PAUSE", 0.05)
    monkeypatch.setattr("masksearch.study.store.SERVER_WAIT", 5.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("query", "idle"), [("", "10"), ("?options=-c%20tcp_keepalives_idle%3D77", "77")]
)
def test_both_connections_to_postgresql_notice_a_line_that_is_cut(server, tmp_path, query, idle):
    """Unless the URL says something else."""
    store = made(tmp_path / f"team-k{idle}", server.url() + query, trials=1)
    shown = sqlalchemy.text("SHOW tcp_keepalives_idle")
    assert store.locks[1].session.execute(shown).scalar() == idle
    with store.storage._backend.engine.connect() as session:
        assert session.execute(shown).scalar() == idle
    store.close()


@pytest.mark.slow
def test_postgresql_that_lost_its_sessions_is_locked_again(server, tmp_path, impatient):
    store = made(tmp_path / "team-c", server.url(), trials=1)
    number = store.begin(running(), 1)
    server.end_sessions()
    with pytest.warns(UserWarning, match="the server of") as said:
        store.finish(finished(number))
    first, second = (str(each.message) for each in said)
    assert "does not answer; results wait for it, up to" in first
    assert re.search(r"answers again after \d s; going on", second)
    assert not any(server.password in line for line in (first, second))
    with pytest.raises(SearchError, match="another process is writing"):
        StudyStore(tmp_path / "b" / "team-c", server.url())
    assert [record.status for record in store.records()] == ["done", "done"]
    store.close()


@pytest.mark.slow
@pytest.mark.parametrize("what", ["owner", "trial", "deleted"])
def test_postgresql_study_that_somebody_has_written_to_is_refused(
    server, tmp_path, impatient, what
):
    name = f"team-{what}"
    store = made(tmp_path / name, server.url(), trials=1)
    number = store.begin(running(), 1)
    url = server.url(scheme="postgresql+psycopg")
    other = optuna.load_study(study_name=name, storage=url)
    if what == "owner":
        other.set_user_attr("owner", "somebody")
    elif what == "trial":
        other.ask()
    else:
        optuna.delete_study(study_name=name, storage=other._storage)
    server.end_sessions()
    with written_by_others(name):
        store.finish(finished(number))
    store.close()


@pytest.mark.slow
def test_postgresql_study_that_another_driver_holds_is_refused(server, tmp_path, impatient):
    store = made(tmp_path / "team-l", server.url(), trials=1)
    store.locks[1].release()
    other = made(tmp_path / "b" / "team-l", server.url())
    with written_by_others("team-l"):
        store.begin(running(), 1)
    other.close()
    store.close()


@pytest.mark.slow
def test_postgresql_lock_that_a_lost_session_still_holds_is_waited_for(
    server, tmp_path, impatient
):
    store = made(tmp_path / "team-m", server.url(), trials=1)
    store.locks[1].release()
    lost = StudyStore(tmp_path / "b" / "team-m", server.url())
    threading.Timer(0.5, lost.close).start()
    with pytest.warns(UserWarning, match="going on"):
        assert store.begin(running(), 1) == 1
    store.close()


@pytest.mark.parametrize("lost", ["before", "after"])
@pytest.mark.slow
@pytest.mark.parametrize(
    "method", ["create_new_trial", "set_trial_user_attr", "set_trial_state_values"]
)
def test_write_whose_answer_is_lost_is_done_once(
    server, tmp_path, impatient, monkeypatch, method, lost
):
    store = made(tmp_path / f"team-{lost}-{method}", server.url(), trials=1)
    write, calls = getattr(store.storage, method), []

    def loses_its_answer(*arguments, **named):
        calls.append(method)
        answer = write(*arguments, **named) if lost == "after" or len(calls) > 1 else None
        if len(calls) == 1:
            raise ConnectionError("cut")
        return answer

    monkeypatch.setattr(store.storage, method, loses_its_answer)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        number = store.begin(running(), 1)
        store.finish(finished(number))
    own = [str(each.message) for each in said if issubclass(each.category, UserWarning)]
    assert [text.rpartition("; ")[2] for text in own][1:] == ["going on"]
    assert number == 1
    assert store.records() == [finished(0), finished(1)]
    assert store.begin(running(), 2) == 2
    store.close()


@pytest.mark.slow
def test_postgresql_that_stays_away_is_an_error_of_its_own(
    server, tmp_path, impatient, monkeypatch
):
    monkeypatch.setattr("masksearch.study.store.SERVER_WAIT", 0.3)
    store = made(tmp_path / "team-d", server.url(), trials=1)
    server.stop()
    try:
        with (
            pytest.warns(UserWarning, match="does not answer"),
            pytest.raises(ServerUnreachableError, match=r"refused.*: repeat the command") as error,
        ):
            store.begin(running(), 1)
        assert server.password not in str(error.value)
        assert error.value.__suppress_context__, "a traceback would show the address"
    finally:
        server.start()
    store.close()


@pytest.mark.slow
def test_postgresql_killed_holder_frees_the_study(server, tmp_path):
    check_killed_holder(tmp_path / "team-e", tmp_path / "b" / "team-e", server.url())
