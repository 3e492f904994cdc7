"""Speed of the search itself, as ratios measured side by side in one run.

    python benchmarks/search.py                 # everything: about 20 minutes on 2 cores
    python benchmarks/search.py orchestration   # 40 trials of 2 s on 2 slots against 40 s
    python benchmarks/search.py sampler         # ask + tell of every strategy over the trials
    python benchmarks/search.py study           # 10,000 trials: the search, its report, its status

Writes results/search.json and ../docs/images/driver_time.png. Trials of the first part sleep, so
that nothing but the orchestration is measured; those of the third cost nothing.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np

import masksearch as ms
from masksearch import masks
from masksearch.contracts import Evaluate, Evaluator, Objective, Record, Report, Shape
from masksearch.masks.measure import block_density
from masksearch.strategies.build import build_strategy
from masksearch.strategies.opening import FixedQueue
from masksearch.user_code import load_function

sys.path.insert(0, str(Path(__file__).parents[1]))
from experiments.rivals import as_strategy

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "search.json"
FIGURE = HERE.parent / "docs" / "images" / "driver_time.png"
SPACE = HERE.parent / "search_spaces" / "head_families.py"  # conditional, about 20 parameters
SECONDS, TRIALS, SLOTS = 2.0, 40, 2
LONG = {"random": 10_000, "listed": 10_000, "tpe": 2_000, "evolution": 2_000}
STUDY = 10_000


@dataclass(frozen=True)
class Sleeping(Evaluator):
    """An evaluator whose trials only take time."""

    seconds: float = SECONDS

    shape = Shape(16, 2, 4)  # of the space
    objectives = (Objective("loss", "min", 10.0), Objective("sparsity", "max", 0.0))

    @property
    def protocol(self) -> str:
        return f"sleeping {self.seconds}"

    def __call__(self, mask: Any, *, seed: int, workdir: Path) -> Iterator[Any]:
        for step in range(1, 5):
            time.sleep(self.seconds / 4)
            yield Report(step, {"loss": 1 / step})


def orchestration(_: Path) -> dict[str, Any]:
    """Wall time of 40 trials of 2 s on 2 slots, from the first trial's start to the last one's
    end, over the ideal; the start-up beside it."""
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    found: dict[str, Any] = {"ideal": TRIALS * SECONDS / SLOTS}
    executors: dict[str, Callable[[], Any]] = {
        "ray": lambda: ms.RayTune(slots=SLOTS),
        "pool": lambda: ms.Local(slots=SLOTS, threads=1),
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, make in executors.items():
            ends: list[tuple[float, float]] = []
            candidates = {f"w{reach}": masks.random_keys(3, seed=reach) for reach in range(TRIALS)}
            began = time.perf_counter()
            ms.compare(
                candidates,
                Sleeping(),
                run=Path(folder) / name,
                seeds=[0],
                executor=make(),
                listeners=[lambda r, e=ends: e.append((time.perf_counter(), r.seconds))],
            )
            whole = time.perf_counter() - began
            first = min(end - seconds for end, seconds in ends[:SLOTS])
            wall = ends[-1][0] - first
            found[name] = {
                "start_up": first - began,
                "wall": wall,
                "shut_down": began + whole - ends[-1][0],
                "ratio": wall / found["ideal"],
            }
            print(f"{name}: {wall:.1f} s, {wall / found['ideal']:.3f} of the ideal", flush=True)
    return found


def strategy_named(name: str) -> Any:
    """A fresh strategy over the benchmark's space."""
    if name == "listed":
        return FixedQueue({f"m{n}": masks.random_keys(3, seed=n) for n in range(LONG[name])}, [0])
    space = load_function(f"{SPACE}:space")
    return build_strategy(as_strategy(name), space, Sleeping(), seed=0, run=Path(), options={})


def sampler(_: Path) -> dict[str, Any]:
    """Milliseconds of ask + tell for every trial of a long search (CPU time)."""
    found: dict[str, Any] = {}
    for name, trials in LONG.items():
        strategy, times = strategy_named(name), []
        values = np.random.default_rng(0).random((trials, 2))
        for loss, sparsity in values:
            start = time.process_time()
            p = strategy.ask()
            record = Record(
                p.number,
                "done",
                p.job if isinstance(p.job, Evaluate) else Evaluate(p.job),
                params=p.params,
                strategy_state=p.strategy_state,
                values={"loss": float(loss), "sparsity": float(sparsity)},
            )
            strategy.tell(record)
            times.append(1e3 * (time.process_time() - start))
        chunk = max(1, trials // 40)
        found[name] = [
            [at + chunk, statistics.median(times[at : at + chunk])]
            for at in range(0, trials - chunk + 1, chunk)
        ]
        at_1000 = statistics.median(times[min(950, trials - 100) : min(1050, trials)])
        print(f"{name}: {at_1000:.2f} ms at 1,000, {found[name][-1][1]:.2f} ms at {trials}")
        found[f"{name} at 1,000"] = at_1000
    return found


class Counting(Evaluator):
    """An evaluator whose trials cost next to nothing: a mask's share of blocks."""

    shape = Shape(128, 2, 4)
    objectives = (Objective("block_density", "min", 1.0),)
    protocol = "counting"

    def __call__(self, mask: masks.Mask, *, seed: int, workdir: Path) -> Iterator[Report]:
        yield Report(0, {"block_density": block_density(mask, 128)})


def study(folder: Path) -> dict[str, Any]:
    """A study of 10,000 trials that cost nothing: seconds of the search, report and status."""
    run = folder / "study"
    ends: list[float] = []
    start = time.perf_counter()
    ms.search(
        load_function(f"{SPACE}:space"),
        Counting(),
        run=run,
        trials=STUDY,
        strategy="random",
        listeners=[lambda record: ends.append(time.perf_counter())],
    )
    whole = time.perf_counter() - start
    chunk = max(1, STUDY // 40)
    found: dict[str, Any] = {
        "trials": STUDY,
        "search_seconds": whole,
        "ms_per_trial": [
            [at + chunk, 1e3 * (ends[at + chunk - 1] - (ends[at - 1] if at else start)) / chunk]
            for at in range(0, STUDY - chunk + 1, chunk)
        ],
    }
    for name in ("status", "report"):
        times = []
        for _ in range(3 if name == "status" else 1):
            start = time.perf_counter()
            words = [sys.executable, "-m", "masksearch", name, str(run)]
            subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
            times.append(time.perf_counter() - start)
        found[f"{name}_seconds"] = statistics.median(times)
        print(f"{name} of {STUDY} trials: {found[f'{name}_seconds']:.2f} s", flush=True)
    return found


def draw(found: dict[str, Any]) -> None:
    """The driver's time per trial over the number of trials."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    for name in LONG:
        count, cost = zip(*found["sampler"][name], strict=True)
        axes.plot(count, cost, label=f"{name}: ask + tell")
    if "study" in found:
        count, cost = zip(*found["study"]["ms_per_trial"], strict=True)
        axes.plot(count, cost, "k--", label="random, with masks, storage and evaluation (wall)")
    axes.set(xlabel="trials so far", ylabel="driver's milliseconds a trial", xscale="log")
    axes.set_yscale("log")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center", bbox_to_anchor=(0.4, 0.38))
    figure.savefig(FIGURE, dpi=130)


def main() -> None:
    """Runs the parts that are named, or all."""
    parts = {"orchestration": orchestration, "sampler": sampler, "study": study}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(parts))
    chosen = parser.parse_args().parts or list(parts)
    if unknown := set(chosen) - set(parts):
        parser.error(f"unknown part {', '.join(unknown)}; known: {', '.join(parts)}")
    found = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    for name in chosen:
        scratch = Path(tempfile.mkdtemp())
        try:
            found[name] = parts[name](scratch) | {
                "machine": f"{platform.machine()}, {os.cpu_count()} cores",
                "load": os.getloadavg()[0],
            }
        finally:
            shutil.rmtree(scratch)
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    if "sampler" in found:
        draw(found)


if __name__ == "__main__":
    main()
