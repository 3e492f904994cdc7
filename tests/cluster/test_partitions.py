"""Ray on three machines with addresses of their own: lines that are cut, daemons that are killed.

The machines are network namespaces of this host, joined by a bridge: a head with the driver and
no room for trials, and two workers of two slots. Scenarios follow each other on one cluster, and
each leaves it whole. Records are compared with those of an undisturbed search. An evaluation may
run to its end twice only where its last report was on its way to a driver that could not hear it.
"""

import os
import platform
import re
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="Ray is not installed (pip install -e '.[ray]')")
from daemons import Machine, Search, equals_undisturbed, machines, start_head
from sleepy import judged_twice
from waiting import wait_until

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("ip") is None,
        reason="network namespaces need root and `ip` (iproute2)",
    ),
]
PORT = 6379  # of the head, in its own namespace


@dataclass
class Nodes:
    """The cluster."""

    head: Machine
    first: Machine
    second: Machine
    broken: list[Machine] = field(default_factory=list)  # by a test

    def start(self) -> None:
        start_head(self.head, PORT, cpus=0)
        self.join(self.first, self.second)

    def join(self, *workers: Machine) -> None:
        for worker in workers:
            worker.stop()
            worker.start_ray(f"--address={self.head.address}:{PORT}", cpus=2)
        for worker in workers:
            wait_until(lambda each=worker: each.daemons("raylet"), 60, "the worker's daemons run")

    def cut(self, worker: Machine) -> None:
        """Takes the line of a node away, which is whole again after the test."""
        self.broken.append(worker)
        worker.cut(off=True)

    def heal(self) -> None:
        for machine in self.broken:
            machine.cut(off=False)
        if self.head in self.broken:
            self.head.stop()
            self.start()
        else:
            self.join(*self.broken)
        self.broken.clear()

    def search(self, run: Path, trials: int) -> Search:
        """A search with four slots, two results a node before anything happens."""
        address = f"{self.head.address}:{PORT}"
        options = ("--executor", "ray", "--address", address, "--slots", "4")
        search = Search(self.head, run, *options, "--trials", str(trials))
        wait_until(lambda: len({line["node"] for line in search.ends()}) == 2, 120, "both work")
        search.wait_for(8)
        return search


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    with machines(3, apart=True) as found:
        cluster = Nodes(*found)
        cluster.start()
        yield cluster


@pytest.fixture
def nodes(cluster: Nodes) -> Iterator[Nodes]:
    yield cluster
    cluster.heal()


def since(search: Search, began: float, node: object) -> list[float]:
    """When evaluations of a node ended, in seconds after a moment."""
    return [
        float(str(line["time"])) - began
        for line in search.ends()
        if line["node"] == node and float(str(line["time"])) > began
    ]


def node_of(machine: Machine) -> str:
    """What the log calls a machine."""
    return f"{platform.node()}:{machine.daemons('raylet')[0].pid}"


def lost_trials(search: Search, machine: Machine) -> list[str]:
    """The trials that the search has said run again because a machine was lost."""
    said = rf"warning: {machine.address} was lost; trials that run again: ([\d, ]+)\n"
    (numbers,) = re.findall(said, search.said())
    return str(numbers).split(", ")


def test_a_cut_of_20_seconds_costs_a_node_less_than_a_minute(nodes, tmp_path):
    search = nodes.search(tmp_path / "run", 60)
    node, began = node_of(nodes.first), time.time()
    nodes.first.cut(off=True)
    time.sleep(20)
    nodes.first.cut(off=False)
    assert search.wait() == 0, search.said()
    assert "was lost" not in search.said()
    back = [seconds for seconds in since(search, began, node) if seconds > 20]
    assert min(back) < 60
    assert equals_undisturbed(search, 60)
    assert len(judged_twice(search.run)) <= 2


def test_a_node_that_is_cut_off_is_named_with_its_trials(nodes, tmp_path):
    search = nodes.search(tmp_path / "run", 64)
    nodes.cut(nodes.first)
    time.sleep(90)
    nodes.first.cut(off=False)
    assert search.wait() == 0, search.said()
    assert lost_trials(search, nodes.first)
    assert search.said().count("2 of 4 slots have worked for a minute; trials that wait") == 1
    assert equals_undisturbed(search, 64)
    assert len(judged_twice(search.run)) <= 2


def test_a_run_folder_that_a_node_does_not_see_is_refused(nodes, tmp_path):
    nodes.second.hidden = tmp_path
    nodes.broken.append(nodes.second)
    nodes.join(nodes.second)
    nodes.second.hidden = None
    options = ("--executor", "ray", "--address", f"{nodes.head.address}:{PORT}", "--slots", "4")
    began = time.monotonic()
    search = Search(nodes.head, tmp_path / "run", *options, "--trials", "4")
    assert search.wait() == 2, search.said()
    assert time.monotonic() - began < 60  # of which Python and torch take their part
    said = f"do not share the folder {tmp_path}/run: {nodes.second.address} says: "
    assert said in search.said()
    assert "No such file" in search.said()
    assert not search.ends()


def test_a_killed_raylet_is_named_with_its_trials(nodes, tmp_path):
    search = nodes.search(tmp_path / "run", 24)
    nodes.broken.append(nodes.second)
    nodes.second.kill("raylet")
    assert search.wait() == 0, search.said()
    assert lost_trials(search, nodes.second)
    assert equals_undisturbed(search, 24)
    assert len(judged_twice(search.run)) <= 2


def test_a_driver_killed_in_a_partition_goes_on_while_the_line_is_down(nodes, tmp_path):
    search = nodes.search(tmp_path / "run", 24)
    nodes.cut(nodes.first)
    search.process.send_signal(signal.SIGKILL)
    search.process.wait()
    again = Search(nodes.head, search.run, "resume", "--address", f"{nodes.head.address}:{PORT}")
    assert again.wait() == 0, again.said()
    assert equals_undisturbed(search, 24)
    assert len(judged_twice(search.run)) <= 4


def test_a_killed_head_ends_the_search_which_has_said_how_to_go_on(nodes, tmp_path):
    search = nodes.search(tmp_path / "run", 24)
    nodes.broken.append(nodes.head)
    nodes.head.kill("gcs_server")
    assert search.wait() != 0
    assert f"go on with: masksearch resume {search.run}" in search.said()
    nodes.heal()
    again = Search(nodes.head, search.run, "resume", "--address", f"{nodes.head.address}:{PORT}")
    assert again.wait() == 0, again.said()
    assert equals_undisturbed(search, 24)
    assert len(judged_twice(search.run)) <= 4
