"""A search as a process of its own, to be killed: job.py RUN EXECUTOR STRATEGY TRIALS PAUSE."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import cloudpickle
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "contracts"))

import toy
from toy import ToyEvaluator, space

import masksearch as ms
from masksearch.contracts import Executor, Record, Report
from masksearch.masks import Mask
from masksearch.training.checkpoints import Checkpoints

cloudpickle.register_pickle_by_value(toy)  # worker processes do not know this folder


@dataclass(frozen=True)
class Steady(ToyEvaluator):
    """Takes its time, keeps a checkpoint at each report and goes on from the last one."""

    pause: float = 0.0  # seconds before each report

    def __call__(self, mask: Mask, *, seed: int, workdir: Path) -> Iterator[Report]:
        kept = Checkpoints(workdir)
        found = kept.load()
        done = 0 if found is None else found.step
        for report in super().__call__(mask, seed=seed, workdir=workdir):
            if report.step > done:
                time.sleep(self.pause)
                kept.save(report.step, {"state": torch.full((64,), float(report.step))})
            yield report


def executor(name: str) -> Executor:
    match name:
        case "local":
            return ms.Local()
        case "pool":
            return ms.Local(slots=2, threads=1)
        case "ray":
            return ms.RayTune(slots=2)
        case "nodes":
            return ms.RayTune(slots=3)
    raise ValueError(name)


@contextmanager
def losing_a_node() -> Iterator[Callable[[Record], None]]:
    """Three nodes of one CPU on this machine, and a listener that takes one away after the fourth
    record, while trials run on it."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False, logging_level="CRITICAL")
    seen: list[int] = []

    def remove_a_busy_one() -> None:
        while True:
            free = ray._private.state.available_resources_per_node()
            for node in nodes:
                if free.get(node.node_id, {}).get("CPU", 0) < 1:
                    time.sleep(1.2)  # into the trial
                    cluster.remove_node(node, allow_graceful=False)
                    return
            time.sleep(0.05)

    def listener(record: Record) -> None:
        seen.append(record.number)
        if len(seen) == 4:
            threading.Thread(target=remove_a_busy_one).start()

    yield listener
    ray.shutdown()
    cluster.shutdown()


def main(run: str, where: str, strategy: str, trials: str, pause: str) -> None:
    scheduler = ms.ParetoHalving(rungs=(2,)) if strategy == "halving" else None
    if scheduler is not None:
        strategy = "random"
    with losing_a_node() if where == "nodes" else nullcontext(print_nothing) as listener:
        print("starts", flush=True)
        ms.search(
            space,
            Steady(log=Path(run).parent / "log", pause=float(pause)),
            run=run,
            trials=int(trials),
            strategy=strategy,
            seed=4,
            executor=executor(where),
            scheduler=scheduler,
            listeners=[listener],
        )


def print_nothing(record: Record) -> None:
    """A listener that does nothing."""


if __name__ == "__main__":
    main(*sys.argv[1:])
