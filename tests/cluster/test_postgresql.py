"""A search whose PostgreSQL server restarts, dies, ends sessions or is cut off, in mid-search."""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from record_fixtures import Server
from sleepy import PLAN, essence, judged_twice, read_log, search_quickly
from waiting import wait_until

import masksearch as ms

pytestmark = pytest.mark.nightly
HERE = Path(__file__).parent
TRIALS, SECONDS = 30, 0.8
BEFORE = 8  # results, when it happens
SHORT = (  # the command line, with less patience
    "import masksearch.study.store as store; store.SERVER_WAIT = 4.0; "
    "from masksearch.cli.main import main; main()"
)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> list[tuple[object, ...]]:
    """What a search of the same seed finds to which nothing happens."""
    return search_quickly(tmp_path_factory.mktemp("undisturbed") / "run", TRIALS)


@contextmanager
def searching(
    run: Path, storage: str, *words: str
) -> Iterator[tuple[subprocess.Popen[str], Callable[[], str]]]:
    """A search on two slots which has its first results; what it says."""
    said = run.parent / f"{run.name}.txt"
    command = (*PLAN, "--run", str(run), "--storage", storage, "--trials", str(TRIALS))
    environment = os.environ | {
        "SLEEPY_SECONDS": str(SECONDS),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE)]),
    }
    with said.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, *(words or ("-m", "masksearch")), *command, "--slots", "2"],
            stdout=file, stderr=file, stdin=subprocess.DEVNULL, env=environment, text=True,
        )  # fmt: skip
    try:
        wait_until(lambda: ended(run) >= BEFORE or process.poll() is not None, 120, said.read_text)
        yield process, said.read_text
    finally:
        process.kill()
        process.wait()


def ended(run: Path) -> int:
    """Evaluations that ran to their end."""
    return sum(line["what"] == "end" for line in read_log(run))


def restart(server: Server) -> None:
    server.call("pg_ctl", "-D", server.folder / "data", "-m", "fast", "-w", "stop")
    server.start()


def kill(server: Server) -> None:
    postmaster = int((server.folder / "data" / "postmaster.pid").read_text().split()[0])
    os.kill(postmaster, signal.SIGKILL)
    for _ in range(50):  # its processes hold the shared memory for a moment
        time.sleep(0.2)
        with suppress(subprocess.SubprocessError):
            return server.start()
    raise AssertionError("the server does not start again")


def pause(server: Server) -> None:
    server.stop()
    time.sleep(10)
    server.start()


def check(run: Path, storage: str, undisturbed: list[tuple[object, ...]]) -> None:
    records = ms.open_study(run, storage).records()
    assert [record.number for record in records] == list(range(TRIALS))
    assert essence(records) == undisturbed
    assert not judged_twice(run)
    assert sum(line["what"] == "begin" for line in read_log(run)) == TRIALS


@pytest.mark.parametrize("happens", [restart, kill, pause, Server.end_sessions])
def test_server_that_comes_back_changes_nothing(server, tmp_path, undisturbed, happens):
    run = tmp_path / f"pg-{happens.__name__}"
    with searching(run, server.url()) as (process, said):
        happens(server)
        assert process.wait(timeout=120) == 0, said()
    assert said().count("does not answer; results wait for it, up to 10 minutes") == 1, said()
    assert said().count("; going on") == 1, said()
    assert server.password not in said()
    check(run, server.url(), undisturbed)


def test_server_that_stays_away_ends_the_search_with_a_code_of_its_own(
    server, tmp_path, undisturbed
):
    run = tmp_path / "pg-away"
    with searching(run, server.url(), "-c", SHORT) as (process, said):
        server.stop()
        try:
            assert process.wait(timeout=60) == 75, said()
            last = said().splitlines()[-1]
            assert last.startswith("error: the server did not come back within"), last
            assert last.endswith("repeat the command to go on")
        finally:
            server.start()
    assert search_quickly(run, TRIALS, server.url()) == undisturbed


def test_ctrl_c_ends_the_waiting(server, tmp_path):
    run = tmp_path / "pg-stopped"
    with searching(run, server.url()) as (process, said):
        server.stop()
        try:
            wait_until(lambda: "does not answer" in said(), 60, said)
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=20) == 130, said()
        finally:
            server.start()
    assert "Go on with: masksearch resume" in said()


class Network:
    """A network namespace of loopback alone, in which this thread can start processes."""

    def __init__(self) -> None:
        self.libc, here = ctypes.CDLL(None, use_errno=True), "/proc/thread-self/ns/net"
        self.outside = os.open(here, os.O_RDONLY)
        if self.libc.unshare(0x40000000):  # CLONE_NEWNET
            os.close(self.outside)
            pytest.skip(f"no network namespace here: {os.strerror(ctypes.get_errno())}")
        self.inside = os.open(here, os.O_RDONLY)
        self.line("up")

    def enter(self, namespace: int) -> None:
        assert self.libc.setns(namespace, 0x40000000) == 0, os.strerror(ctypes.get_errno())

    def line(self, state: str) -> None:
        """Cuts the line (`down`), or mends it (`up`)."""
        subprocess.run(["ip", "link", "set", "lo", state], check=True)

    def close(self) -> None:
        """Goes back to where this thread came from."""
        self.enter(self.outside)
        os.close(self.inside)
        os.close(self.outside)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may cut the line between two processes")
def test_line_that_is_cut_changes_nothing(server, tmp_path, undisturbed):
    """Both ends notice it within a minute, so that the lock is free for another driver."""
    with ExitStack() as last:
        network = Network()
        last.callback(network.close)
        apart = Server(server.binaries)
        last.callback(shutil.rmtree, apart.folder)
        apart.start()
        last.callback(apart.stop)
        run = tmp_path / "pg-cut"
        with searching(run, apart.url()) as (process, said):
            network.line("down")
            wait_until(lambda: "does not answer; results wait for it" in said(), 60, said)
            locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
            wait_until(lambda: apart.ask(locks) == 0, 20, said)
            time.sleep(5)  # it tries meanwhile
            network.line("up")
            assert process.wait(timeout=120) == 0, said()
        assert said().count("; going on") == 1, said()
        check(run, apart.url(), undisturbed)
