"""How robustly does DAM find planted edges, and what is its mask worth? See README.md.

python experiments/03_dam_planted/run.py density    # targets from the least possible to 4 x
python experiments/03_dam_planted/run.py retrain    # its masks, trained from scratch
python experiments/03_dam_planted/run.py search     # against other strategies, equal compute
python experiments/03_dam_planted/run.py grid       # processes and models, with the failures
python experiments/03_dam_planted/run.py plateaus   # where attention learns late, or nothing
python experiments/03_dam_planted/run.py --smoke --out /tmp/planted
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from matplotlib import rc_context

import masksearch as ms
from masksearch.analysis.pareto import hypervolume
from masksearch.contracts import generator
from masksearch.gates.discretise import at_sparsity
from masksearch.models.sizes import Size
from masksearch.report.style import PRINT
from masksearch.strategies.dam import SPREAD
from masksearch.tasks.planted.process import PlantedProcess, pair_by_offsets

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from planted_runs import Cells, Row, Setting, judged, oracle_density, shown  # noqa: E402

PROCESS = PlantedProcess()  # n = 24, vocabulary 8, one offset, 2 keys
EQUALLY_SPACED = pair_by_offsets(24, (5,), 3)  # (1, 6, 11), (2, 7, 12), ..
RECIPE = {"steps": 1500, "dense_warmup": 0.4}  # beside the defaults of DamConfig
SEEDS, GRID_SEEDS = 5, 2
FACTORS = (1.0, 2.0, 4.0)  # of the planted edges' density; the least possible comes first
WIDTH = 64
TARGET = 0.1  # of `search`: a guess, as a user would make it
RIVALS = ("random", "tpe", "evolution")
RIVAL_SEEDS = 5
JUDGE = 0  # evaluation seed of `search`, that of experiments/05_strategies


# -- settings ----------------------------------------------------------------------------------
def base(process: PlantedProcess, steps: int | None, **changes: object) -> Setting:
    """DAM by the recipe, asked for the density of the planted edges and the diagonal."""
    config = {**RECIPE, "density": oracle_density(process)}
    if steps is not None:
        config["steps"] = steps
    return Setting(process, config, **changes)  # type: ignore[arg-type]


def at_random(size: int) -> tuple[tuple[int, ...], ...]:
    """A random partition of the positions but the first; up to `size` - 1 are left over."""
    order = 1 + torch.randperm(23, generator=generator(0, 5))
    groups = order[: 23 // size * size].view(-1, size).tolist()
    return tuple(sorted(tuple(sorted(group)) for group in groups))


def processes() -> dict[str, PlantedProcess]:
    """The grid: one thing at a time differs from `PROCESS`, which the other parts use."""
    found = {
        "mirrored": replace(PROCESS, groups=tuple((s, 24 - s) for s in range(1, 12))),
        "free pairing": replace(PROCESS, groups=at_random(2)),
        "two parents, offset 5, 1 key": replace(PROCESS, groups=EQUALLY_SPACED, keys=1),
        "two parents, offset 5, 2 keys": replace(PROCESS, groups=EQUALLY_SPACED),
        "two parents, free, 1 key": replace(PROCESS, groups=at_random(3), keys=1),
        "n 16, offset 7": replace(PROCESS, length=16, offsets=(7,)),
        "n 48": replace(PROCESS, length=48),
    }
    for offsets in ((2, 5, 11), (1,), (20,), (3, 11)):
        found[f"offsets {offsets}"] = replace(PROCESS, offsets=offsets)
    for keys in (8, 4, 1):
        found[f"keys {keys}"] = replace(PROCESS, keys=keys)
    for hidden in (0.3, 0.1):
        found[f"hidden {hidden}"] = replace(PROCESS, hidden=hidden)
    for vocabulary in (32, 16):
        found[f"vocabulary {vocabulary}"] = replace(PROCESS, vocabulary=vocabulary)
    return found


def grid(steps: int | None) -> dict[str, Setting]:
    """Cell -> what is run, in the order of interest."""
    stacked = {
        f"layers {layers}": base(
            PROCESS, steps, gates={"layers": layers}, dimensions=Size(layers, WIDTH, 2)
        )
        for layers in (2, 4, 3)
    }
    several = {
        f"heads {heads}": base(PROCESS, steps, dimensions=Size(1, WIDTH, heads))
        for heads in (8, 1, 4)
    }
    planted = {name: base(process, steps) for name, process in processes().items()}
    few = replace(PROCESS, groups=EQUALLY_SPACED, keys=1, vocabulary=3)
    for longer in (1500, 4500):
        name = f"two parents, offset 5, 1 key, vocabulary 3, {longer:,} steps"
        several[name] = base(few, steps or longer)
    first = dict(list(planted.items())[:5])
    return first | stacked | several | planted


def plateaus(steps: int | None) -> dict[str, Setting]:
    """Processes that dense attention learns late from small initial weights; BERT's are .02."""
    found = {}
    default = ms.DamConfig().steps
    for length, offset, vocabulary, keys, spread, usual in (
        (32, 7, 32, 3, 0.02, default),
        (12, 5, 8, 2, 0.02, default),
        (14, 3, 24, 2, 0.02, default),
        (16, 7, 12, 2, 0.04, default),
        (12, 4, 16, 3, 0.05, default),
        (16, 3, 8, 1, 0.02, default),
        (16, 7, 32, 3, 0.02, default),
        (16, 7, 32, 3, 0.02, 300),  # too few to learn anything
        (12, 5, 8, 2, 0.02, 1000),
        (14, 3, 24, 2, 0.02, 1000),
    ):
        process = PlantedProcess(
            length=length, vocabulary=vocabulary, offsets=(offset,), keys=keys
        )
        config = {"density": oracle_density(process), "steps": steps or usual}
        name = f"{length}, {offset}, {vocabulary}, {keys}, {spread}, {config['steps']}"
        found[name] = Setting(process, config, initializer_range=spread)
    return found


# -- runs --------------------------------------------------------------------------------------
def searched(setting: Setting, seed: int) -> Row:
    """One run of DAM."""
    return setting.run(seed)[1]


def retrained(setting: Setting, quick: dict[str, int], seed: int, merged: bool = False) -> Row:
    """One run of DAM; its mask, the planted one and dense attention trained from scratch.

    `score`, `oracle` and `dense` are downstream scores for one layer (chance .5, so that `share`
    is that of what the planted mask gains), held-out accuracies on paired tokens for more. With
    `merged`, an edge's probability is its largest over the heads, which then share one mask.
    """
    result, row = setting.run(seed)
    evaluator = replace(setting.evaluator, **quick)
    process = setting.process
    probabilities = result.probabilities
    if merged:
        probabilities = probabilities.amax(1, keepdim=True)
    candidates = {
        "score": ms.masks.table(at_sparsity(probabilities, 1 - oracle_density(process))),
        "oracle": process.oracle,
        "dense": ms.masks.full(),
    }
    single = setting.dimensions.layers == 1
    name, chance = ("score", 0.5) if single else ("accuracy", process.chance)
    for key, mask in candidates.items():
        if key != "dense" or not single:
            row[key] = judged(evaluator, mask, seed)[0][name]
    gained = row["oracle"] - chance
    row["share"] = (row["score"] - chance) / gained if gained > 0.02 else None
    return row


def density(cells: Cells, smoke: bool) -> None:
    """Part D: the density that is asked for."""
    true = PROCESS.edges.float().mean().item()
    wanted = {"1/n": 1 / PROCESS.length} | {f"x {factor:g}": factor * true for factor in FACTORS}
    for cell, target in wanted.items():
        config = {**RECIPE, "density": target} | ({"steps": 12} if smoke else {})
        for seed in range(1 if smoke else SEEDS):
            cells.run("density", cell, seed, partial(searched, Setting(PROCESS, config)))


def retrain(cells: Cells, smoke: bool) -> None:
    """Part F: the discretised mask, trained from scratch."""
    quick = {"steps": 8, "downstream_steps": 2} if smoke else {}
    setting = base(PROCESS, 12 if smoke else None)
    for seed in range(1 if smoke else SEEDS):
        cells.run("retrain", "n 24", seed, partial(retrained, setting, quick))
    for seed in range(0 if smoke else SEEDS):
        make = partial(retrained, setting, quick, merged=True)
        cells.run("retrain", "n 24, heads merged", seed, make)


def robustness(cells: Cells, smoke: bool) -> None:
    """Part E: the grid."""
    quick = {"steps": 8, "downstream_steps": 2} if smoke else {}
    settings = grid(12 if smoke else None)
    if smoke:
        settings = {name: settings[name] for name in ("mirrored", "layers 2")}
    for seed in range(1 if smoke else GRID_SEEDS):
        for cell, setting in settings.items():
            several = setting.dimensions.layers > 1
            make: Callable[[int], Row] = (
                partial(retrained, setting, quick) if several else partial(searched, setting)
            )
            cells.run("grid", cell, seed, make)


def late(cells: Cells, smoke: bool) -> None:
    """DAM as it is, where attention learns late, or not at all within the steps."""
    settings = list(plateaus(12 if smoke else None).items())
    for seed in range(1 if smoke else GRID_SEEDS):
        for cell, setting in settings[: 1 if smoke else None]:
            cells.run("plateaus", cell, seed, partial(searched, setting))


def search(cells: Cells, smoke: bool) -> None:
    """Part J: hypervolume of score above .5 and sparsity, at equal CPU seconds.

    DAM pays for its gates and for each of its masks. The others get as many trials as that
    time buys, at the mean price of DAM's masks; theirs are read from the recorded table, where
    every mask of their space was judged with the same seed.
    """
    strategies = module_at(ROOT / "experiments" / "05_strategies" / "run.py", "strategies_run")
    with (strategies.RESULTS / "table.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    recorded = strategies.Recorded({row["fingerprint"]: float(row["score"]) for row in rows})
    quick = {"steps": 8, "downstream_steps": 2} if smoke else {}
    evaluator = ms.PlantedEvaluator(PROCESS, **quick)
    whole = strategies.reachable(rows, recorded.objectives)
    config = {**RECIPE, "density": TARGET} | ({"steps": 12} if smoke else {})

    def dam(seed: int) -> Row:
        result, row = Setting(PROCESS, config).run(seed)
        points, prices = [], []
        for factor in SPREAD[: 2 if smoke else None]:
            share = min(0.9, factor * TARGET)
            if share * PROCESS.length < 1:
                continue  # no mask so sparse keeps a key in every row
            mask = result.mask(sparsity=1 - share)
            values, seconds = judged(evaluator, mask, JUDGE)
            points.append((values["score"], mask.sparsity(PROCESS.length)))
            prices.append(seconds)
        price = float(np.mean(prices))
        return row | {
            "value": hypervolume(points, recorded.objectives) / whole,
            "score": max(score for score, _ in points),
            "trials": (row["cpu_seconds"] + sum(prices)) / price,
            "cpu_seconds": row["cpu_seconds"] + sum(prices),
        }

    def oracle(seed: int) -> Row:
        values, seconds = judged(evaluator, PROCESS.oracle, JUDGE)
        point = (values["score"], PROCESS.oracle.sparsity(PROCESS.length))
        found = hypervolume([point], recorded.objectives) / whole
        return {"value": found, "score": values["score"], "cpu_seconds": seconds}

    for seed in range(1 if smoke else SEEDS):
        cells.run("search", "dam", seed, dam)
    cells.run("search", "the planted mask alone", 0, oracle)
    trials = round(float(np.mean([row["trials"] for row in cells.of("search")["dam"]])))
    for budget in (trials, 4 * trials):
        for strategy in RIVALS:

            def rival(seed: int, strategy: str = strategy, budget: int = budget) -> Row:
                curve = strategies.found(strategy, seed, budget, recorded)
                return {"value": curve[-1] / whole, "trials": float(budget)}

            for seed in range(1 if smoke else RIVAL_SEEDS):
                cells.run("search", f"{strategy}, {budget} trials", seed, rival)


def module_at(path: Path, name: str) -> ModuleType:
    """A script of another experiment, as a module."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# -- tables ------------------------------------------------------------------------------------
COLUMNS = {
    "density": ("target", "density", "auroc", "precision", "cpu_seconds"),
    "retrain": ("score", "oracle", "share", "auroc", "precision", "cpu_seconds"),
    "search": ("value", "trials", "score", "cpu_seconds"),
    "grid": ("auroc", "precision", "density", "target", "share", "score", "oracle", "dense"),
    "plateaus": ("warmup_steps", "auroc", "precision", "density", "target", "held_out"),
}


def tables(cells: Cells, out: Path) -> None:
    """Every part's table, for the README."""
    text = []
    for part, columns in COLUMNS.items():
        text += [f"## {part}", "| cell | runs | " + " | ".join(columns) + " |"]
        text += ["|---" * (len(columns) + 2) + "|"]
        for cell, rows in cells.of(part).items():
            figures = [shown(rows, name, 1 if "seconds" in name else 3) for name in columns]
            text.append(f"| {cell} | {len(rows)} | " + " | ".join(figures) + " |")
    (out / "tables.md").write_text("\n".join(text) + "\n", encoding="utf-8")


@rc_context(PRINT)
def draw(cells: Cells, out: Path) -> None:
    """Left: recovery and density over the density asked for; right: hypervolume by strategy."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    runs = [row for rows in cells.of("density").values() for row in rows]
    if runs:
        target = [row["target"] for row in runs]
        for name, mark in (("auroc", "o"), ("precision", "x"), ("density", ".")):
            left.plot(target, [row[name] for row in runs], mark, alpha=0.6, label=name)
        left.axvline(runs[0]["true_density"], color="k", lw=0.8, ls=":", label="planted edges")
        left.legend(fontsize=8)
    left.set(xlabel="density asked for", ylabel="each run", xscale="log", ylim=(-0.03, 1.03))
    found = {c: r for c, r in cells.of("search").items() if c != "the planted mask alone"}
    for place, rows in enumerate(found.values()):
        right.plot([row["value"] for row in rows], [place] * len(rows), "o", alpha=0.5)
    right.set_yticks(range(len(found)), list(found))
    right.set(xlabel="hypervolume, share of the recorded table's")
    right.invert_yaxis()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(out / "planted.png", dpi=130)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the stages that are named, or all."""
    stages = {"density": density, "retrain": retrain, "search": search, "grid": robustness}
    stages |= {"plateaus": late}
    known = (*stages, "tables")  # the last one only writes tables and figure, as all others do
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=", ".join(known))
    parser.add_argument("--out", type=Path, default=None, help="default: results/")
    parser.add_argument("--smoke", action="store_true", help="12 steps, in half a minute")
    given = parser.parse_args(arguments)
    if unknown := set(given.stages) - set(known):
        parser.error(f"unknown stage {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    torch.set_num_threads(1)
    out = given.out or (Path(tempfile.mkdtemp()) if given.smoke else HERE / "results")
    cells = Cells(out / "runs.csv")
    for stage in given.stages or stages:
        if stage != "tables":
            stages[stage](cells, given.smoke)
    tables(cells, out)
    draw(cells, out)


if __name__ == "__main__":
    main()
