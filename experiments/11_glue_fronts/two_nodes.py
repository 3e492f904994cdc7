"""Random search and TPE of the first task through Ray Tune, on two local nodes; one is killed.

    python experiments/11_glue_fronts/two_nodes.py --data FOLDER [--runs FOLDER] [--smoke]

Ray is started with a head that runs nothing and two nodes of one CPU. After the eighth mask a busy
node is killed without a word. Writes results/two_nodes.csv: how many masks were judged, and how
many of those that a search in one process also judged have exactly its scores.
"""

from __future__ import annotations

import argparse
import threading
import time
from pathlib import Path
from typing import Any

import pandas as pd
import ray
import run as experiment
from ray.cluster_utils import Cluster

import masksearch as ms
from masksearch.contracts import Record

KILL_AFTER, SMOKE_AFTER = 8, 2  # records


class Cut:
    """A listener that kills a busy node once so many masks have been judged."""

    def __init__(self, cluster: Cluster, nodes: list[Any], after: int) -> None:
        self.cluster, self.nodes, self.after = cluster, nodes, after
        self.seen, self.killed = 0, ""

    def __call__(self, record: Record) -> None:
        self.seen += 1
        if self.seen == self.after:
            threading.Thread(target=self.kill).start()

    def kill(self) -> None:
        """Waits until one of the nodes has work, and ends its processes."""
        while not self.killed:
            free = ray._private.state.available_resources_per_node()
            for node in self.nodes:
                if free.get(node.node_id, {}).get("CPU", 0) < 1:
                    self.cluster.remove_node(node, allow_graceful=False)
                    self.killed = node.node_id
                    break
            time.sleep(0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="holds glue/")
    parser.add_argument("--weights", help="a checkpoint; default: the offline extra's")
    parser.add_argument("--tasks", default=experiment.PLAN["tasks"]["names"][0])
    parser.add_argument("--runs", type=Path, default=Path("runs/11_glue_fronts"))
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that it runs")
    given = parser.parse_args()
    given.long, given.arms = False, "random,tpe"
    seed = experiment.PLAN["seeds"]["search"][0]
    task = experiment.Task(given.tasks, seed, given)
    task.evaluator.provide_models(seed)
    rows = []
    for arm in given.arms.split(","):
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        cut = Cut(cluster, nodes, SMOKE_AFTER if given.smoke else KILL_AFTER)
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, log_to_driver=False, logging_level="CRITICAL")
        folder = task.runs / f"{arm}_two_nodes" / str(seed)
        study = task.search(arm, run=folder, executor=ms.RayTune(slots=2), listeners=[cut])
        ray.shutdown()
        cluster.shutdown()
        rows.append({"task": given.tasks, "arm": arm, "killed_nodes": int(bool(cut.killed))})
        rows[-1] |= compared(study, task.search(arm))
    out = given.runs / "results" if given.smoke else experiment.HERE / "results"
    out.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(rows)
    table.to_csv(out / "two_nodes.csv", index=False, lineterminator="\n")
    print(table.to_string(index=False))


def compared(study: ms.Study, alone: ms.Study) -> dict[str, int]:
    """What became of the masks, and how they compare with those of a search in one process."""
    known = {r.fingerprint: r.values["glue"] for r in experiment.scored(alone)}
    found = experiment.scored(study)
    both = [record for record in found if record.fingerprint in known]
    return {
        "masks": sum(record.mask is not None for record in study.records()),
        "judged": len(found),
        "also_judged_alone": len(both),
        "equal_scores": sum(r.values["glue"] == known[r.fingerprint] for r in both),
    }


if __name__ == "__main__":
    main()
