"""What a trial costs the driver, measured with an evaluator that does nothing.

Sampler and masks by CPU time, the storages by wall time (they wait for the disk), Ray Tune by the
wall time of trials that do nothing. Of repeated measurements the lower quartile counts. Used by
`scaling.py --measure`.
"""

import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import cloudpickle
import numpy as np
import optuna
import torch

import masksearch as ms
from masksearch.contracts import Evaluator, Objective, Record, Report, Shape
from masksearch.masks.lower import lower
from masksearch.masks.measure import fingerprint, measures
from masksearch.strategies.build import build_strategy
from masksearch.study.store import StudyStore
from masksearch.user_code import load_function

sys.path.insert(0, str(Path(__file__).parents[1]))
from experiments.rivals import as_strategy

SPACE = Path(__file__).parents[1] / "search_spaces" / "head_shifts.py"  # 14 parameters
OBJECTIVES = (Objective("loss", "min", 10.0), Objective("sparsity", "max", 0.0))
MILESTONES = {
    "random": (0, 500, 1000, 2000),
    "evolution": (100, 500, 1000, 2000),
    "tpe": (10, 50, 100, 200, 500, 1000, 2000),
}


def measured(postgres: str | None, with_ray: bool) -> dict[str, Any]:
    """Every cost, on this machine."""
    torch.set_num_threads(1)
    found: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}, optuna {optuna.__version__}",
        "load": os.getloadavg()[0],  # of everybody, in processes
        "ask": {name: asked(name, at) for name, at in MILESTONES.items()},
        "lower": lowered(),
        "storage": {},
        "trial": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        storages = {"sqlite": None, "journal": f"journal:{folder}/journal", "postgresql": postgres}
        for name, storage in storages.items():
            if storage is not None or name == "sqlite":
                found["storage"][name] = stored(Path(folder) / f"r{os.getpid()}_{name}", storage)
                found["trial"][name] = whole(Path(folder) / f"w{os.getpid()}_{name}", storage)
    if with_ray:
        found["ray"] = dispatched()
    return found


def usual(times: Sequence[float]) -> float:
    """The lower quartile: what it takes when nobody else is in the way."""
    return statistics.quantiles(times, n=4)[0]


def proposals(name: str, told: Sequence[Any] = ()) -> Any:
    """A strategy of that name on a space of 14 parameters, which has been told some records."""
    space = load_function(f"{SPACE}:space")
    strategy = build_strategy(as_strategy(name), space, NoOp(1), seed=0, run=Path(), options={})
    for record in told:
        strategy.tell(record)
    return strategy


def histories(count: int) -> list[Any]:
    """Finished records of random masks, with made-up losses."""
    strategy, losses = proposals("random"), np.random.default_rng(0).random((count, 2))
    asked_for = [strategy.ask() for _ in range(count)]
    return [
        Record(
            p.number,
            "done",
            p.job,
            params=p.params,
            strategy_state=p.strategy_state,
            origin=p.origin,
            values={"loss": float(loss), "sparsity": float(sparsity)},
        )
        for p, (loss, sparsity) in zip(asked_for, losses, strict=True)
    ]


def asked(name: str, milestones: Sequence[int], repeats: int = 10) -> list[tuple[int, float]]:
    """(trials so far, usual CPU seconds of one ask and tell)."""
    history, found = histories(max(milestones)), []
    for count in milestones:
        strategy, times = proposals(name, history[:count]), []
        strategy.ask()  # takes in what it was told
        for _ in range(repeats):
            start = time.process_time()
            p = strategy.ask()
            strategy.tell(replace(history[0], number=p.number, params=p.params, job=p.job))
            times.append(time.process_time() - start)
        found.append((count, usual(times)))
    return found


def lowered(count: int = 30) -> float:
    """Usual CPU seconds of lowering, hashing and measuring a mask, length 128."""
    times, shape = [], Shape(128, 4, 4)
    for record in histories(count):
        start = time.process_time()
        lower(record.mask, shape)
        fingerprint(record.mask, shape)
        measures(record.mask, shape)
        times.append(time.process_time() - start)
    return usual(times)


def stored(run: Path, storage: str | None, count: int = 60) -> dict[str, float]:
    """Usual wall seconds of the driver's writes."""
    store, times = StudyStore(run, storage), {"begin": [], "observe": [], "finish": []}
    store.create(OBJECTIVES, {})
    curve = tuple(Report(step, {"loss": 1.0}) for step in range(10))
    for record in histories(count):
        clock = [time.perf_counter()]
        number = store.begin(replace(record, status="running"), record.number)
        clock.append(time.perf_counter())
        store.observe(number, curve[0], True)
        clock.append(time.perf_counter())
        store.finish(replace(record, number=number, curve=curve))
        clock.append(time.perf_counter())
        for name, (start, end) in zip(times, pairwise(clock), strict=True):
            times[name].append(end - start)
    store.close()
    return {name: usual(values) for name, values in times.items()}


def whole(run: Path, storage: str | None, count: int = 500) -> dict[str, float]:
    """Wall seconds of a trial that takes no time, all that the driver does included, and how many
    times a file's content was forced to the disk by Python (SQLite does that by itself)."""
    clock: list[float] = []
    with mock.patch("os.fsync", side_effect=os.fsync) as synced:
        ms.search(
            load_function(f"{SPACE}:space"),
            NoOp(1),
            run=run,
            storage=storage,
            trials=count,
            strategy="random",
            progress=None,
            listeners=[lambda record: clock.append(time.perf_counter())],
        )
    times = [end - start for start, end in pairwise(clock)]
    mean = statistics.mean(times)
    return {"usual": usual(times), "mean": mean, "fsyncs": synced.call_count / count}


class NoOp(Evaluator):
    """An evaluator whose trials take no time, or sleep."""

    shape, objectives = Shape(16, 1, 4), OBJECTIVES

    def __init__(self, reports: int, seconds: float = 0.0) -> None:
        self.pause = seconds / reports
        self.reports, self.protocol = reports, f"no-op {reports}"

    def __call__(self, mask: Any, *, seed: int, workdir: Path) -> Iterator[Any]:
        for step in range(self.reports):
            time.sleep(self.pause)
            yield Report(step, {"loss": 1.0})


def dispatched(few: int = 1, many: int = 11) -> dict[str, float]:
    """What Ray Tune adds to a trial, against the same search in this process.

    `dispatch` and `report` come from two slots that never wait, so they bound the rate of a busy
    driver; workers and driver share this machine's cores, which makes them dear rather than
    cheap. `latency` is what a single slot waits beyond that.
    """
    local_cpu, _ = pace(ms.Local(1), few)
    cpu, alone = pace(ms.RayTune(slots=1), few)
    _, alone_many = pace(ms.RayTune(slots=1), many)
    _, busy = pace(ms.RayTune(slots=2), few)
    _, busy_many = pace(ms.RayTune(slots=2), many)
    report = max(0.0, (busy_many - busy) / (many - few))
    return {
        "dispatch": max(0.0, busy - local_cpu - few * report),
        "report": report,
        "latency": max(0.0, alone - busy),
        "report_latency": max(0.0, (alone_many - alone) / (many - few) - report),
        "wall_of_trial_one_slot": alone,
        "wall_of_trial_two_slots": busy,
        "driver_cpu_of_trial": cpu,
    }


def pace(
    executor: Any, reports: int, warm: int = 15, count: int = 75, seconds: float = 0.0
) -> tuple[float, float]:
    """(CPU seconds of this process, wall seconds) of a trial once the search runs."""
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this
    clock: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        ms.search(
            load_function(f"{SPACE}:space"),
            NoOp(reports, seconds),
            run=Path(folder) / "run",
            storage=optuna.storages.InMemoryStorage(),
            trials=count,
            strategy="random",
            executor=executor,
            listeners=[lambda record: clock.append((time.process_time(), time.perf_counter()))],
        )
    (cpu, wall), (cpu_end, wall_end) = clock[warm], clock[-1]
    trials = len(clock) - 1 - warm
    return (cpu_end - cpu) / trials, (wall_end - wall) / trials


def slept(slots: int, seconds: float, reports: int, rounds: int = 15) -> float:
    """Wall seconds of a trial that sleeps, with that many slots of a real Ray Tune, after ten
    rounds in which the worker processes start."""
    executor = ms.RayTune(slots=slots, resources={"cpu": 1 / slots})
    _, wall = pace(executor, reports, 10 * slots - 1, rounds * slots, seconds)
    return wall
