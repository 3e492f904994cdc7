"""How far is the order of a super-net that of masks trained one by one? See README.md.

    python experiments/08_shared_weights/run.py [truth] [judge] [speed] [table] [--smoke]

`truth` trains every mask with every seed (it goes on where it stopped), `judge` trains the
super-nets and judges the same masks by forward passes, `speed` times both side by side in
processor seconds, `table` needs no training.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
import truth
from scipy.stats import kendalltau
from shared_weights import SharedWeights

import masksearch as ms
from masksearch import masks
from masksearch.tasks.planted.process import PlantedProcess
from masksearch.user_code import load_function

HERE = Path(__file__).parent
SPACES = HERE.parents[1] / "search_spaces"
NET_SEEDS = (100, 101)  # disjoint from those of the trainings
TRUTH_SEEDS = (0, 1)
DRAWS = 1000  # of the bootstrap over masks
JUDGED = 24  # masks whose judging is timed
TIMED = 3  # trainings that are timed
VARIANTS = {  # arguments of SharedWeights
    "500 steps": {"steps": 500},
    "500 steps, 1 mask a batch": {"steps": 500, "masks_per_step": 1},
    "2,000 steps": {"steps": 2000},
    "500 steps, sandwich": {"steps": 500, "sandwich": True},
}
TWICE = "500 steps"  # the variant that is also judged with the second seed


@dataclass(frozen=True)
class Landscape:
    """Masks of one space on one planted process.

    Args:
        space: File of search_spaces/.
        evaluator: Trains a mask, and lends the super-net its model and data.
        edges: Of the density bands.
        each: Masks of a band.
    """

    space: str
    evaluator: ms.PlantedEvaluator
    edges: tuple[float, ...]
    each: int
    variants: tuple[str, ...] = tuple(VARIANTS)
    seeds: Mapping[str, tuple[int, ...]] = field(default_factory=lambda: {TWICE: NET_SEEDS})


GRADED = ms.PlantedEvaluator(PlantedProcess(offsets=(2, 5, 9), keys=2), gate_batch=32)
LANDSCAPES = {
    "graded": Landscape("distance_bits", GRADED, (0.1, 0.3, 0.55, 0.85), each=16),
}


def trained(name: str, out: Path) -> list[truth.Trained]:
    """The individual trainings."""
    return [row for row in truth.read(out / f"{name}.csv") if row.seed in TRUTH_SEEDS]


def train_all(given: argparse.Namespace, out: Path) -> None:
    """Every mask with every seed, one after the other."""
    for name, landscape in given.landscapes.items():
        shape = landscape.evaluator.shape
        space = SPACES / f"{landscape.space}.py"
        found = truth.drawn(space, shape, landscape.edges, landscape.each)
        path = out / f"{name}.csv"
        truth.record(path, landscape.evaluator, found, landscape.edges, TRUTH_SEEDS)


def judge_all(given: argparse.Namespace, out: Path) -> None:
    """Every super-net's loss of every mask, as JSON: landscape, variant, seed, mask."""
    path = out / "judged.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for name, landscape, variant, seed in planned(given.landscapes):
        key = f"{name} | {variant} | {seed}"
        if key in known:
            continue
        shared = super_net(landscape, variant, seed, given.run)
        texts = list(dict.fromkeys(row.mask for row in trained(name, out)))
        values = shared.judge([masks.parse(text) for text in texts])
        known[key] = {text: round(v["loss"], 6) for text, v in zip(texts, values, strict=True)}
        path.write_text(json.dumps(known, indent=0), encoding="utf-8")
        print(key, flush=True)


def planned(
    landscapes: Mapping[str, Landscape],
) -> Iterator[tuple[str, Landscape, str, int]]:
    """Every super-net that is wanted."""
    for name, landscape in landscapes.items():
        for variant in landscape.variants:
            for seed in landscape.seeds.get(variant, NET_SEEDS[:1]):
                yield name, landscape, variant, seed


def super_net(landscape: Landscape, variant: str, seed: int, run: Path) -> SharedWeights:
    """One super-net, by its settings."""
    space = load_function(f"{SPACES / landscape.space}.py:space")
    settings = VARIANTS[variant]
    return SharedWeights(
        landscape.evaluator, space, seed=seed, folder=run / "supernets", **settings
    )


def time_both(given: argparse.Namespace, out: Path) -> None:
    """Processor seconds of a training and of a judgement, taken in turn in one process."""
    name, landscape = next(iter(given.landscapes.items()))
    evaluator = landscape.evaluator
    space = SPACES / f"{landscape.space}.py"
    found = truth.drawn(space, evaluator.shape, landscape.edges, max(1, JUDGED // 3))
    rows: dict[str, list[float]] = {"training": [], "super-net step": [], "judging": []}
    rows |= {"judging one by one": [], "judging after 20 steps": []}
    with tempfile.TemporaryDirectory() as folder:
        shared = super_net(landscape, "timed", 0, Path(folder))
        shared.judge(found[:2])  # loads what is loaded once
        for number, mask in enumerate(found[:TIMED], 1):
            work = Path(folder) / str(number)
            rows["training"].append(
                seconds_of(lambda: list(evaluator(mask, seed=0, workdir=work)))  # noqa: B023
            )
            net = super_net(landscape, "timed", number, Path(folder))
            _ = net.key
            seconds = seconds_of(lambda: list(net.prepare()))  # noqa: B023
            rows["super-net step"].append(seconds / net.config.steps)
            rows["judging"].append(seconds_of(lambda: shared.judge(found)) / len(found))
            alone = seconds_of(lambda: [shared.judge([mask]) for mask in found])
            rows["judging one by one"].append(alone / len(found))
            adapting = replace(shared, adapt_steps=20)
            _ = adapting.loaded
            some = found[:TIMED]
            rows["judging after 20 steps"].append(
                seconds_of(lambda: adapting.judge(some)) / len(some)  # noqa: B023
            )
        widths = {}
        for tokens in (512, 2048, 8192, 32768):
            wide = replace(shared, tokens=tokens)
            wide.judge(found[:2])
            widths[tokens] = seconds_of(lambda: wide.judge(found)) / len(found)  # noqa: B023
    data = {"landscape": name, "seconds": rows, "judging, by positions of a pass": widths}
    (out / "speed.json").write_text(json.dumps(data, indent=1), encoding="utf-8")
    print(json.dumps(data), flush=True)


def seconds_of(work: Callable[[], object]) -> float:
    """Processor seconds: other programs of a shared machine do not count."""
    started = time.process_time()
    work()
    return time.process_time() - started


# -- the table -----------------------------------------------------------------------------------
Rows = Mapping[int, Mapping[str, truth.Trained]]  # by seed, by mask


def tau(a: Sequence[float], b: Sequence[float]) -> float:
    """Kendall's tau-b; NaN where one side is constant."""
    return float(kendalltau(a, b).statistic)


def agreement(order: Mapping[str, float], rows: Rows, texts: Sequence[str]) -> float:
    """Mean tau-b of an order with the losses of each seed's trainings."""
    return float(
        np.mean(
            [tau([order[t] for t in texts], [r[t].loss for t in texts]) for r in rows.values()]
        )
    )


def ceiling(rows: Rows, texts: Sequence[str]) -> float:
    """Mean tau-b between the trainings of two seeds."""
    pairs = combinations(rows.values(), 2)
    return float(
        np.mean([tau([a[t].loss for t in texts], [b[t].loss for t in texts]) for a, b in pairs])
    )


def within(score: Callable[[Sequence[str]], float], texts: Sequence[str], rows: Rows) -> float:
    """Mean of a score over the density bands, weighted by their masks."""
    bands: dict[int, list[str]] = {}
    first = next(iter(rows.values()))
    for text in texts:
        bands.setdefault(first[text].band, []).append(text)
    parts = [(score(own), len(own)) for own in bands.values() if len(own) > 2]
    known = [(value, count) for value, count in parts if not np.isnan(value)]
    if not known:
        return math.nan
    return sum(value * count for value, count in known) / sum(count for _, count in known)


def share(part: float, whole: float) -> float:
    """NaN of a whole of 0."""
    return part / whole if whole else math.nan


def bootstrap(
    figures: Callable[[Sequence[str]], Sequence[float]], texts: Sequence[str], draws: int
) -> np.ndarray:
    """95 % ranges of some figures over masks drawn with replacement: `[2, figures]`."""
    random = np.random.default_rng(0)
    drawn = [list(random.choice(texts, len(texts))) for _ in range(draws)]
    return np.nanpercentile([figures(sample) for sample in drawn], [2.5, 97.5], axis=0)


def table(given: argparse.Namespace, out: Path) -> None:
    """results/table.csv: agreement and ceiling across densities and within bands."""
    judged = json.loads((out / "judged.json").read_text(encoding="utf-8"))
    lines = []
    for name, _landscape, variant, seed in planned(given.landscapes):
        key = f"{name} | {variant} | {seed}"
        if key not in judged:
            continue
        found = trained(name, out)
        rows: dict[int, dict[str, truth.Trained]] = {}
        for row in found:
            rows.setdefault(row.seed, {})[row.mask] = row
        order = judged[key]
        texts = sorted(set(order).intersection(*rows.values()))

        def figures(
            chosen: Sequence[str],
            order: Mapping[str, float] = order,
            rows: Rows = rows,
        ) -> list[float]:
            across, top = agreement(order, rows, chosen), ceiling(rows, chosen)
            inner = within(lambda own: agreement(order, rows, own), chosen, rows)
            limit = within(lambda own: ceiling(rows, own), chosen, rows)
            return [across, top, share(across, top), inner, limit, share(inner, limit)]

        point, ranges = figures(texts), bootstrap(figures, texts, given.draws)
        line: list[object] = [name, variant, seed, len(texts)]
        for value, low, high in zip(point, *ranges, strict=True):
            line += [f"{value:.3f}", f"{low:.3f}", f"{high:.3f}"]
        lines.append(line)
        print(*line[:4], *(f"{x:.2f}" for x in point), flush=True)
    titles = [
        "across",
        "ceiling across",
        "share across",
        "within",
        "ceiling within",
        "share within",
    ]
    head = ["landscape", "variant", "net seed", "masks"]
    with (out / "table.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(head + [part for t in titles for part in (t, f"{t} low", f"{t} high")])
        writer.writerows(lines)


def smoke(landscape: Landscape) -> Landscape:
    """The same with a few masks and steps."""
    quick = replace(landscape.evaluator, steps=8, downstream_steps=2, held_out_sequences=32)
    return replace(landscape, evaluator=quick, each=3, variants=("smoke",), seeds={})


def main() -> None:
    """Runs the stages that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help="truth, judge, speed, table")
    parser.add_argument("--run", type=Path, default=Path("runs/shared_weights"))
    parser.add_argument("--smoke", action="store_true", help="a few masks and steps, in a minute")
    given = parser.parse_args()
    torch.set_num_threads(1)
    VARIANTS["timed"] = {"steps": 4 if given.smoke else 60}
    given.landscapes, given.draws, out = LANDSCAPES, DRAWS, HERE / "results"
    if given.smoke:
        VARIANTS["smoke"] = {"steps": 8}
        given.landscapes = {"graded": smoke(LANDSCAPES["graded"])}
        given.draws, out = 5, given.run / "results"
    out.mkdir(parents=True, exist_ok=True)
    stages = {"truth": train_all, "judge": judge_all, "speed": time_both, "table": table}
    for stage in given.stages or list(stages):
        stages[stage](given, out)


if __name__ == "__main__":
    main()
