"""Machines with Ray's real daemons: processes of this host, in its own network or in namespaces.

Everything that is started carries a mark in its environment, and is found and ended by it.
"""

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from sleepy import PLAN, essence, read_log, search_quickly
from waiting import wait_until

import masksearch as ms

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
MARK = "MASKSEARCH_TEST_MARK"
RAY = (sys.executable, "-m", "ray.scripts.scripts")


def marked(mark: str) -> list[psutil.Process]:
    """The processes that carry a mark in their environment, and all below them: Ray's agents and
    workers write their titles over it."""
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):  # it has ended
            if process.environ().get(MARK, "").startswith(mark):
                below = process.children(recursive=True)
                found |= {each.pid: each for each in (process, *below)}
    return [*found.values()]


def end(processes: list[psutil.Process]) -> None:
    """Ends processes as a power cut does."""
    for process in processes:
        with suppress(psutil.Error):
            process.kill()


@dataclass
class Machine:
    """One machine: its address, its mark, its temporary folder and its network namespace."""

    address: str
    mark: str
    folder: Path
    token: str
    namespace: str = ""
    orphans: list[psutil.Process] = field(default_factory=list)
    hidden: Path | None = None  # a folder in whose place its processes see an empty one

    def start(self, *words: str, output: Path, **settings: str) -> subprocess.Popen[bytes]:
        clean = {n: v for n, v in os.environ.items() if not n.startswith(("RAY_", "TUNE_"))}
        paths = [str(ROOT), str(HERE), *filter(None, sys.path)]
        env = clean | {
            "PYTHONPATH": os.pathsep.join(paths),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_USAGE_STATS_ENABLED": "0",
            MARK: self.mark,
        }
        if self.namespace:  # with a /tmp/ray of its own
            hide = f"mount -t tmpfs none {self.hidden} && " if self.hidden else ""
            inside = f'{hide}mount --bind {self.folder} /tmp/ray && exec "$@"'
            words = ("ip", "netns", "exec", self.namespace, "sh", "-c", inside, "-", *words)
        with output.open("ab") as file:
            return subprocess.Popen(
                words, env=env | settings, stdout=file, stderr=file, stdin=subprocess.DEVNULL
            )

    def start_ray(self, *words: str, cpus: int) -> None:
        own = () if self.namespace else (f"--temp-dir={self.folder}",)
        options = (f"--num-cpus={cpus}", f"--node-ip-address={self.address}", "--block")
        self.start(*RAY, "start", *words, *options, *own, output=self.folder / "start.txt")

    def daemons(self, name: str) -> list[psutil.Process]:
        found = []
        for process in marked(self.mark):
            with suppress(psutil.Error):  # it has ended
                found += [process] * process.name().startswith(name)
        return found

    def kill(self, name: str) -> None:
        """Ends the daemons of that name; what they have started lives on."""
        daemons = self.daemons(name)
        self.orphans += [child for each in daemons for child in each.children(recursive=True)]
        end(daemons)

    def stop(self) -> None:
        for _ in range(2):  # what is ended may have started something
            end([*marked(self.mark), *self.orphans])

    def cut(self, *, off: bool) -> None:
        """Takes the line away, or gives it back; nobody is told."""
        bridge = ["nomaster"] if off else ["master", self.namespace.rpartition("-")[0]]
        ip("link", "set", f"{self.namespace}v", *bridge)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextmanager
def machines(count: int, *, apart: bool = False) -> Iterator[list[Machine]]:
    """Machines without daemons yet; whatever they run is ended, and all that they had is removed.

    Args:
        count: How many.
        apart: Whether each has a network namespace and an address of its own (needs root).
    """
    mark = f"ms{secrets.token_hex(3)}"
    place = Path(tempfile.mkdtemp(prefix="ms", dir="/tmp"))
    found = []
    try:
        if apart:
            Path("/tmp/ray").mkdir(exist_ok=True)
            ip("link", "add", mark, "type", "bridge")
            ip("link", "set", mark, "up")
        for number in range(1, count + 1):
            folder, name = place / str(number), f"{mark}-{number}" if apart else ""
            folder.mkdir()
            address = f"10.77.0.{number}" if apart else "127.0.0.1"
            found.append(Machine(address, f"{mark}.{number}.", folder, mark * 8, name))
            if apart:
                ip("netns", "add", name)
                ends = ("type", "veth", "peer", "name", "eth0", "netns", name)
                ip("link", "add", f"{name}v", *ends)
                ip("link", "set", f"{name}v", "master", mark, "up")
                ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
                ip("-n", name, "link", "set", "eth0", "up")
                ip("-n", name, "link", "set", "lo", "up")
        yield found
    finally:
        for machine in found:
            machine.stop()
        for machine in found if apart else ():
            subprocess.run(["ip", "link", "delete", f"{machine.namespace}v"], check=False)
            subprocess.run(["ip", "netns", "delete", machine.namespace], check=False)
        if apart:
            subprocess.run(["ip", "link", "delete", mark], check=False)
        shutil.rmtree(place, ignore_errors=True)


def start_head(machine: Machine, port: int, *, cpus: int) -> str:
    """The head of a cluster; its address."""
    machine.start_ray("--head", f"--port={port}", "--include-dashboard=false", cpus=cpus)

    def listens() -> bool:
        heads = [Path(f"/proc/{process.pid}/net") for process in machine.daemons("gcs_server")]
        tables = [(net / name).read_text() for net in heads for name in ("tcp", "tcp6")]
        return any(f":{port:04X} {'0' * 8}" in table for table in tables)  # of its namespace

    wait_until(listens, 60, "the head listens")
    return f"{machine.address}:{port}"


class Search:
    """`masksearch search` on a machine, with the evaluator that sleeps.

    Args:
        machine: Where the driver runs.
        run: Folder of the run.
        words: Further options, or another command after `command`.
        seconds: Of a trial.
        settings: Further environment variables.
    """

    def __init__(
        self, machine: Machine, run: Path, *words: str, seconds: float = 3.0, **settings: str
    ) -> None:
        self.run, self.output = run, run.parent / f"{run.name}.txt"
        self.begun = len(self.ends())
        command = (*PLAN, "--run", str(run), "--storage", f"journal:{run}/journal", *words)
        if words[:1] == ("resume",):
            command = (*words[:1], str(run), *words[1:])
        self.process = machine.start(
            sys.executable,
            "-m",
            "masksearch",
            *command,
            output=self.output,
            SLEEPY_SECONDS=str(seconds),
            **settings,
        )

    def ends(self) -> list[dict[str, object]]:
        """Every evaluation that ran to its end, also before this call."""
        return [line for line in read_log(self.run) if line["what"] == "end"]

    def wait_for(self, results: int, seconds: float = 120) -> None:
        """Waits until that many evaluations of this call have ended."""

        def there() -> bool:
            assert self.process.poll() is None, self.said()
            return len(self.ends()) - self.begun >= results

        wait_until(there, seconds, f"{results} results")

    def wait(self, seconds: float = 240) -> int:
        try:
            return self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it has not ended after {seconds:g} s: {self.said()}") from None

    def said(self) -> str:
        return self.output.read_text(errors="replace")


def equals_undisturbed(search: Search, trials: int) -> bool:
    """Whether every record is that of a search which nothing happened to, once each."""
    run = search.run.parent / f"{search.run.name}-undisturbed"
    return essence(ms.open_study(search.run).records()) == search_quickly(run, trials)
