"""Whole searches in a process of their own: `python ray_scripts.py NAME FOLDER`."""

import json
import logging
import os
import signal
import sys
import threading
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "contracts"))
from ray_fixtures import Troubled, listed
from toy import PlainTrials

from masksearch import RayTune
from masksearch.errors import SearchError


def run(folder: Path, evaluator: Troubled, count: int, *goes_on, **options) -> list:
    work = PlainTrials(listed(count), evaluator, folder, *goes_on)
    RayTune(**options).run(work)
    return work.records


def say(**facts: object) -> None:
    print(json.dumps(facts), flush=True)


def interrupted(folder: Path) -> None:
    """Two trials that hang; the parent sends a signal after the first reports."""
    before = signal.getsignal(signal.SIGTERM)

    def on_report(number, report):
        say(report=number)
        return True

    try:
        run(folder, Troubled({0: "hang", 1: "hang"}), 4, on_report, slots=2)
    except KeyboardInterrupt:
        import ray

        restored = signal.getsignal(signal.SIGTERM) == before
        say(interrupted=True, ray=ray.is_initialized(), restored=restored)


def alone(folder: Path) -> None:
    """A Ray of its own; what listens where."""
    listening: list[str] = []
    niceness: list[int] = []

    def on_report(number, report):
        import psutil

        me = psutil.Process()
        for process in [me, *me.children(recursive=True)]:
            niceness.append(process.nice())
            found = process.net_connections("tcp")
            listening.extend(c.laddr.ip for c in found if c.status == psutil.CONN_LISTEN)
        return True

    records = run(folder, Troubled({1: "exit"}), 2, on_report, slots=1, max_failures=0)
    import ray

    say(
        status=[r.status for r in records],
        listening=sorted(set(listening)),
        niceness=max(niceness) - os.nice(0),
        ray=ray.is_initialized(),
        environ=sorted(n for n in os.environ if n.startswith(("RAY_", "TUNE_"))),
    )


def killed(folder: Path) -> None:
    """A Ray of its own one of whose processes is killed: `KILL` names it, `WHEN` the moment."""
    from ray._private import services, worker

    began, which, when = time.monotonic(), os.environ["KILL"], os.environ["WHEN"]
    start, show = services.start_ray_process, warnings.showwarning

    def started(command, kind, *given, **how):
        info = start(command, kind, *given, **how)
        if kind == which and when == "start":
            info.process.kill()
            say(killed=time.monotonic() - began)
        return info

    def shown(message, *about, **how):
        say(said=time.monotonic() - began, text=str(message))
        show(message, *about, **how)

    def on_report(number, report):
        if when == "trial":
            [info] = worker._global_node.all_processes[which]
            info.process.kill()
            say(killed=time.monotonic() - began)
        return True

    services.start_ray_process, warnings.showwarning = started, shown
    try:
        run(folder, Troubled({}, seconds=1.0), 4, on_report, slots=1)
    except SearchError as error:
        say(error=str(error))


def node_lost(folder: Path) -> None:
    """Three nodes of one CPU; one is taken away while trials run."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.CRITICAL)
    seen: set[int] = set()
    lost = threading.Event()

    def on_report(number, report):
        seen.add(number)
        if len(seen) == 4 and not lost.is_set():
            lost.set()
            threading.Thread(target=cluster.remove_node, args=(nodes[0],)).start()
        return True

    records = run(folder, Troubled(seconds=0.7), 12, on_report, slots=3)
    say(
        lost=lost.is_set(),
        nodes=sum(node["Alive"] for node in ray.nodes()),
        values=sorted((r.number, r.status, r.values["loss"]) for r in records),
    )
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    began = time.monotonic()
    {"interrupted": interrupted, "alone": alone, "killed": killed, "node_lost": node_lost}[
        sys.argv[1]
    ](Path(sys.argv[2]))
    say(seconds=time.monotonic() - began)
