"""How far one driver carries: a search of many slots, simulated with measured costs.

    python benchmarks/scaling.py --measure     # measures this machine, then simulates
    python benchmarks/scaling.py               # simulates with results/scaling.json
    python benchmarks/scaling.py --check       # one case simulated, and run with Ray Tune
    python benchmarks/scaling.py --large       # large studies against small ones

One process draws every proposal, writes it, hands it to a worker, takes its reports and writes
its result; everything else waits for it. The simulation gives that process one queue: a trial
costs it `ask(trials so far) + lower + begin + dispatch + reports * report + finish` seconds, and
between two reports the trial computes. Beyond 1 / cost trials a second more slots do not help.

driver_costs.py measures the costs.
"""

import argparse
import heapq
import json
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import masksearch as ms
from masksearch import masks
from masksearch.contracts import Evaluator, Objective, Report

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "scaling.json"
FIGURE = HERE.parent / "docs" / "images" / "scaling.png"
SLOTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)
LENGTHS = {"30 s": 30.0, "5 min": 300.0, "1 h": 3600.0}  # mean seconds of a trial
SPREAD = 0.3  # standard deviation of the logarithm of a trial's seconds
TRIALS = 2000  # of a simulated search
REPORTS = 10  # of a trial


@dataclass(frozen=True)
class Costs:
    """Seconds; of the driver, where nothing else is said."""

    ask: tuple[tuple[int, float], ...] = ((0, 0.0),)  # (trials so far, seconds), ascending
    lower: float = 0.0  # a mask to its table, fingerprint and measures
    begin: float = 0.0  # writing a proposal
    dispatch: float = 0.0  # handing it out and taking its end
    report: float = 0.0  # one report
    finish: float = 0.0  # writing a result
    latency: float = 0.0  # what a slot waits between two trials while the driver is free
    report_latency: float = 0.0  # and a trial at each report

    def asking(self, trials: int) -> float:
        """Of one proposal, after that many trials; straight lines between measured points, and
        the last line goes on."""
        if len(self.ask) == 1:
            return self.ask[0][1]
        last = max(1, min(len(self.ask) - 1, sum(at <= trials for at, _ in self.ask)))
        (left, low), (right, high) = self.ask[last - 1], self.ask[last]
        return max(0.0, low + (high - low) * (trials - left) / (right - left))

    def of_trial(self, trials: int, reports: int) -> dict[str, float]:
        """The driver's seconds for one trial, by what they go into."""
        return {
            "sampler": self.asking(trials) + self.lower,
            "storage": self.begin + self.finish,
            "dispatch": self.dispatch,
            "reports": self.report * reports,
        }


@dataclass(frozen=True)
class Outcome:
    """What a simulated search came to."""

    seconds: float  # to the last result
    ideal: float  # with a driver that costs nothing
    busy: float  # seconds in which the driver worked
    parts: dict[str, float]  # of these, by what they went into

    @property
    def efficiency(self) -> float:
        """Ideal time / time, in (0, 1]."""
        return self.ideal / self.seconds

    @property
    def utilisation(self) -> float:
        """Share of the time in which the driver worked."""
        return self.busy / self.seconds

    @property
    def bottleneck(self) -> str:
        """`"trials"` (the slots compute), or what the driver mostly does."""
        if self.efficiency >= 0.9:
            return "trials"
        return max(self.parts, key=lambda name: self.parts[name])


def simulate(
    durations: Sequence[float], slots: int, costs: Costs, *, reports: int = REPORTS
) -> Outcome:
    """A search of `len(durations)` trials on `slots` slots, event by event.

    Args:
        durations: Seconds that each trial computes, in the order in which they are proposed.
        slots: Trials at a time.
        costs: Of the driver. It serves one message after the other, in order of arrival.
        reports: Messages of a trial before its last one; it waits for the answer to each.
    """
    end, busy, parts = timeline(durations, slots, costs, reports)
    ideal, _, _ = timeline(durations, slots, Costs(), 0)
    return Outcome(end, ideal, busy, parts)


def timeline(
    durations: Sequence[float], slots: int, costs: Costs, reports: int
) -> tuple[float, float, dict[str, float]]:
    """(end, seconds in which the driver worked, these by part)."""
    free = end = 0.0  # when the driver is free again; when the last result was written
    begun = 0
    parts = dict.fromkeys(costs.of_trial(0, reports), 0.0)
    # (time, order of arrival, trial that has something to say or -1: a free slot, reports left)
    arrivals = [(0.0, slot, -1, 0) for slot in range(min(slots, len(durations)))]
    order = len(arrivals)
    while arrivals:
        now, _, trial, left = heapq.heappop(arrivals)
        free = max(free, now)
        if trial < 0 and begun == len(durations):
            continue
        if trial < 0:
            trial, left = begun, reports
            asking = costs.asking(begun) + costs.lower
            free += asking + costs.begin + costs.dispatch
            parts["sampler"] += asking
            parts["storage"] += costs.begin
            parts["dispatch"] += costs.dispatch
            begun += 1
            wait = costs.latency
        elif left:
            free += costs.report
            parts["reports"] += costs.report
            left -= 1
            wait = costs.report_latency
        else:
            free += costs.finish
            parts["storage"] += costs.finish
            end = max(end, free)
            heapq.heappush(arrivals, (free, order, -1, 0))
            order += 1
            continue
        stretch = durations[trial] / (reports + 1)
        heapq.heappush(arrivals, (free + wait + stretch, order, trial, left))
        order += 1
    return end, sum(parts.values()), parts


def drawn(mean: float, count: int, seed: int = 0, spread: float = SPREAD) -> list[float]:
    """Lognormal durations with that mean, in seconds."""
    draws = np.random.default_rng(seed).normal(-(spread**2) / 2, spread, count)
    return [float(mean * value) for value in np.exp(draws)]


# -- the command -------------------------------------------------------------------------------
def costs_of(
    found: dict[str, Any], strategy: str, storage: str, *, halving: bool = False
) -> Costs:
    """Measured costs, for the simulation; with halving every report is written too."""
    ray, disk = dict(found.get("ray", {})), found["storage"][storage]
    if halving:
        ray["report"] = ray.get("report", 0.0) + disk["observe"]
    return Costs(
        ask=tuple((int(at), float(seconds)) for at, seconds in found["ask"][strategy]),
        lower=found["lower"],
        begin=disk["begin"],
        finish=disk["finish"],
        **{key: ray.get(key, 0.0) for key in ("dispatch", "report", "latency", "report_latency")},
    )


def curves(
    found: dict[str, Any], slots: Sequence[int], trials: int, *, halving: bool = False
) -> list[dict[str, Any]]:
    """One row a length, strategy, storage and number of slots."""
    rows = []
    for length, mean in LENGTHS.items():
        durations = drawn(mean, trials)
        for strategy in found["ask"]:
            for storage in found["storage"]:
                costs = costs_of(found, strategy, storage, halving=halving)
                for count in slots:
                    outcome = simulate(durations, count, costs)
                    rows.append(
                        {
                            "length": length,
                            "strategy": strategy,
                            "storage": storage,
                            "slots": count,
                            "hours": outcome.seconds / 3600,
                            "efficiency": outcome.efficiency,
                            "driver": outcome.utilisation,
                            "bottleneck": outcome.bottleneck,
                        }
                    )
    return rows


def check(found: dict[str, Any], slots: int = 4, seconds: float = 2.0) -> dict[str, float]:
    """Seconds a trial that sleeps takes, simulated and run (study in memory)."""
    from driver_costs import slept  # beside this file

    costs = costs_of(
        found | {"storage": {"none": {"begin": 0.0, "finish": 0.0}}}, "random", "none"
    )
    count = 20 * slots
    outcome = simulate([seconds] * count, slots, costs, reports=REPORTS)
    return {
        "slots": slots,
        "seconds": seconds,
        "ideal": seconds / slots,
        "simulated": outcome.seconds / count,
        "run": slept(slots, seconds, REPORTS),
    }


class Stub(Evaluator):
    """Reports at once."""

    shape = ms.Shape(64, 2, 4)
    objectives = (Objective("loss", "min", 10.0), Objective("sparsity", "max", 0.0))
    protocol = "stub"

    def __call__(self, mask: ms.Mask, *, seed: int, workdir: Path) -> Iterator[Report]:
        """Yields three reports."""
        chance = random.Random(str(mask)).random()
        for step in (1, 2, 3):
            yield Report(step, {"loss": 3 - mask.sparsity(64) + chance / step})


def windows(trial: Any) -> ms.Mask:
    """A window in each head."""
    reaches = [trial.suggest_int(f"reach{head}", 0, 30) for head in range(4)]
    return masks.per_head([masks.window(reach) for reach in reaches])


def large(few: int = 100, many: int = 5000, last: int = 50) -> dict[str, Any]:
    """Processor seconds of a report, and of each of the last trials, of a large study in a
    journal, over those of a small one."""
    found = dict[str, Any]()
    for count in (few, many):
        with tempfile.TemporaryDirectory() as folder:
            run, clock = Path(folder) / "run", list[float]()
            study = ms.search(
                *(windows, Stub()), run=run, trials=count, strategy="random", progress=None,
                storage=f"journal:{run}/journal.log", executor=ms.Local(isolate=False),
                listeners=[lambda record, clock=clock: clock.append(time.process_time())],
            )  # fmt: skip
            begin = time.process_time()
            study.report()
            report = time.process_time() - begin
        found[str(count)] = {"report": report, "trial": (clock[-1] - clock[-1 - last]) / last}
    pair = found[str(many)], found[str(few)]
    return found | {name: pair[0][name] / pair[1][name] for name in ("report", "trial")}


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Efficiency over slots, one panel a length of trials."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(LENGTHS), figsize=(11, 3.4), sharey=True)
    styles = {"sqlite": "-", "journal": "--", "postgresql": ":"}
    colours = {"random": "tab:blue", "tpe": "tab:orange"}
    for panel, length in zip(panels, LENGTHS, strict=True):
        for strategy in colours:
            for storage in styles:
                at = [r for r in rows if (r["strategy"], r["storage"]) == (strategy, storage)]
                at = [r for r in at if r["length"] == length]
                if at:
                    panel.plot(
                        [r["slots"] for r in at],
                        [r["efficiency"] for r in at],
                        styles[storage],
                        color=colours[strategy],
                        label=f"{strategy}, {storage}",
                    )
        panel.set(xscale="log", ylim=(0, 1.03), xlabel="slots", title=f"trials of {length}")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("efficiency (ideal / actual time)")
    panels[0].legend(fontsize=8)
    figure.suptitle(
        f"One driver, {TRIALS} trials: simulated with measured costs", fontsize=10, y=1.04
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, bbox_inches="tight")
    pyplot.close(figure)


def main() -> None:
    """Measures where asked to, simulates, prints a table and draws the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", action="store_true", help="measure this machine first")
    parser.add_argument("--postgres", help="URL of an empty PostgreSQL database to measure")
    parser.add_argument("--no-ray", action="store_true", help="leave Ray Tune out of --measure")
    parser.add_argument("--check", action="store_true", help="run one case with Ray Tune")
    parser.add_argument("--large", action="store_true", help="time large studies, nothing else")
    parser.add_argument("--halving", action="store_true", help="reports are written, too")
    for name in ("dispatch", "report", "latency"):
        parser.add_argument(f"--{name}", type=float, help="seconds; instead of the measured")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--figure", type=Path, default=FIGURE)
    options = parser.parse_args()
    if options.large:
        found = json.dumps(large(), indent=1)
        (HERE / "results" / "large.json").write_text(found + "\n", encoding="utf-8")
        print(found)
        return
    if options.measure:
        from driver_costs import measured  # beside this file

        found = measured(options.postgres, not options.no_ray)
        options.results.parent.mkdir(parents=True, exist_ok=True)
        options.results.write_text(json.dumps(found, indent=1) + "\n")
    found = json.loads(options.results.read_text())
    if options.check:
        found["check"] = check(found)
        options.results.write_text(json.dumps(found, indent=1) + "\n")
        print(found["check"])
    given = {name: getattr(options, name) for name in ("dispatch", "report", "latency")}
    found["ray"] = found.get("ray", {}) | {k: v for k, v in given.items() if v is not None}
    rows = curves(found, SLOTS, TRIALS, halving=options.halving)
    print("length strategy storage     slots   hours  efficiency driver bottleneck")
    for r in rows:
        print(
            f"{r['length']:6} {r['strategy']:8} {r['storage']:10} {r['slots']:6} "
            f"{r['hours']:8.2f} {r['efficiency']:10.3f} {r['driver']:6.2f} {r['bottleneck']}"
        )
    draw(rows, options.figure)
    print(f"figure: {options.figure}")


if __name__ == "__main__":
    main()
