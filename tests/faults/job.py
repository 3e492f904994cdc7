"""A search as a process of its own, to be killed: python job.py RUN EXECUTOR STRATEGY TRIALS."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cloudpickle
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "contracts"))

import toy
from toy import ToyEvaluator, space

import masksearch as ms
from masksearch.checkpoints import Checkpoints
from masksearch.contracts import Executor, Report
from masksearch.masks import Mask

cloudpickle.register_pickle_by_value(toy)  # worker processes do not know this folder


@dataclass(frozen=True)
class Steady(ToyEvaluator):
    """Takes its time, keeps a checkpoint at each report and goes on from the last one."""

    pause: float = 0.25  # seconds before each report

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
    raise ValueError(name)


def main(run: str, where: str, strategy: str, trials: str) -> None:
    scheduler = ms.ParetoHalving(rungs=(2,)) if strategy == "halving" else None
    if scheduler is not None:
        strategy = "random"
    print("starts", flush=True)
    ms.search(
        space,
        Steady(log=Path(run).parent / "log"),
        run=run,
        trials=int(trials),
        strategy=strategy,
        seed=4,
        executor=executor(where),
        scheduler=scheduler,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
