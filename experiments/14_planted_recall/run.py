"""Planted recall: who finds the heads that must see everything, when every choice can be judged?

    python experiments/14_planted_recall/run.py truth find table [--smoke]

A checkpoint is a small decoder that has learned planted recall. `truth` judges it under every
choice of at most four heads with full attention, the others having a window of 8 keys; `find` runs
each method in a study of its own; `table` sets what they found against the best choice of each
size. Every stage goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd
import torch

import masksearch as ms
from masksearch import masks
from masksearch.analysis.stats import interval

HERE = Path(__file__).parent
TASKS = {"recall": ms.Recall(), "far recall": ms.Recall(pairs=6, middle=40)}
CHECKPOINTS = [  # architecture, process, seed
    *(("llama", "recall", seed) for seed in range(4)),
    *(("qwen3", "recall", seed) for seed in range(3)),
    *(("llama", "far recall", seed) for seed in range(3)),
]
WINDOW = masks.window(7)
TRAINING = {"size": "3x64x4", "steps": 1000, "batch": 64, "lr": 3e-3, "warmup": 0.1}
LARGEST = 4  # heads with full attention
TRIALS = 60  # masks that a method may judge
NEAR = 0.01  # nats from the optimum that count as reached
GATES = {"structure": "switch", "options": (WINDOW, "full()"), "per": "head"}
SWITCHES = {"steps": 300, "gate_lr": 0.05}
LOCAL = {"local": WINDOW, "unit": "head"}
SCORES = ("restore", "ablate", "mass", "gradient", "flip", "gates")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stages", nargs="+", choices=("truth", "find", "table"))
    parser.add_argument("--runs", type=Path, default=Path("runs/14_planted_recall"))
    parser.add_argument("--checkpoints", type=int, nargs="*", help="their numbers; all of them")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that it runs")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for stage in given.stages:
        {"truth": truth, "find": find, "table": table}[stage](given)


# -- checkpoints ---------------------------------------------------------------------------------
def chosen(given: argparse.Namespace) -> list[tuple[str, str, int]]:
    """The checkpoints of this run."""
    every = CHECKPOINTS[:1] if given.smoke else CHECKPOINTS
    return [every[place] for place in given.checkpoints or range(len(every))]


def evaluator(given: argparse.Namespace, checkpoint: tuple[str, str, int]) -> ms.CausalEvaluator:
    """Judges masks on a checkpoint, which is trained once; the seed says which."""
    architecture, process, _ = checkpoint
    task, training = TASKS[process], dict(TRAINING)
    if given.smoke:
        task = ms.Recall(pairs=2, keys=4, values=4, fillers=4, middle=8)
        training |= {"size": "2x32x2", "steps": 200, "batch": 32, "lr": 5e-3}
    return ms.CausalEvaluator(
        task,
        architecture=architecture,
        adapt="none",
        held_out_sequences=128,
        cache=given.runs / "cache",
        device="cpu",
        **training,
    )


def units_of(judge: ms.CausalEvaluator) -> ms.Units:
    """Heads, each with the window or everything."""
    return ms.Units(judge.shape, (WINDOW, masks.full()))


def folder(given: argparse.Namespace, checkpoint: tuple[str, str, int]) -> Path:
    """Where the runs of a checkpoint are."""
    return given.runs / "_".join(map(str, checkpoint)).replace(" ", "_")


# -- truth ---------------------------------------------------------------------------------------
def truth(given: argparse.Namespace) -> None:
    """The loss of every choice of at most `LARGEST` heads, and of dense attention."""
    for checkpoint in chosen(given):
        judge, place = evaluator(given, checkpoint), folder(given, checkpoint)
        place.mkdir(parents=True, exist_ok=True)
        judge.provide_models(checkpoint[2])
        units, path = units_of(judge), place / "truth.json"
        known = json.loads(path.read_text()) if path.is_file() else {}
        heads = len(units.names)
        for one in [*choices(heads, 0, min(LARGEST, heads)), (1,) * heads]:
            key = "".join(map(str, one))
            if key not in known:
                *_, last = judge(units.mask(one), seed=checkpoint[2], workdir=place / "judged")
                known[key] = last.values["nll"]
        path.write_text(json.dumps(known))
        print(*checkpoint, f"dense {known['1' * heads]:.3f}, all local {known['0' * heads]:.3f}")


def choices(heads: int, least: int, most: int) -> Iterator[tuple[int, ...]]:
    """Every choice of so many heads, as levels of the units."""
    for size in range(least, most + 1):
        for raised in itertools.combinations(range(heads), size):
            yield tuple(int(unit in raised) for unit in range(heads))


# -- methods -------------------------------------------------------------------------------------
class FewHeads:
    """A space of the choices that are asked for: first how many heads, then which."""

    def __init__(self, units: ms.Units) -> None:
        self.units, self.masksearch_source = units, f"{LARGEST} of {units.masksearch_source}"

    def __call__(self, trial: Any) -> masks.Mask:
        heads = len(self.units.names)
        order = list(range(heads))
        for place in range(trial.suggest_int("raised", 1, min(LARGEST, heads))):
            picked = trial.suggest_int(f"pick{place}", place, heads - 1)
            order[place], order[picked] = order[picked], order[place]
        raised = order[: trial.params["raised"]]
        return self.units.mask([int(unit in raised) for unit in range(heads)])


def methods(units: ms.Units) -> dict[str, dict[str, Any]]:
    """Name -> arguments of `search`."""
    few = FewHeads(units)
    found: dict[str, dict[str, Any]] = {
        name: {"space": few, "strategy": name} for name in ("random", "tpe", "evolution")
    }
    for score in SCORES:
        own: dict[str, Any] = {**LOCAL, "score": score}
        own |= {"config": SWITCHES} if score == "gates" else {}
        found[f"allocate {score}"] = {"strategy": "allocate", "strategy_options": own}
    found["allocate greedy"] = {
        "strategy": "allocate",
        "strategy_options": {**LOCAL, "grow": "greedy"},
    }
    sizes = [(1,) * size + (0,) * (len(units.names) - size) for size in range(1, LARGEST + 1)]
    densities = [units.density(one) for one in sizes if len(one) == len(units.names)]
    options = {"gates": GATES, "config": SWITCHES, "densities": densities}
    found["dam switches"] = {"strategy": "dam", "strategy_options": options}
    return found


def find(given: argparse.Namespace) -> None:
    """Each method in a study of its own, with the checkpoint's seed."""
    for checkpoint in chosen(given):
        judge = evaluator(given, checkpoint)
        for name, arguments in methods(units_of(judge)).items():
            if given.smoke and "strategy_options" in arguments:
                options = dict(arguments["strategy_options"])
                options |= {"config": {"steps": 10}} if "config" in options else {}
                arguments = arguments | {"strategy_options": options}
            ms.search(
                arguments.get("space"),
                judge,
                run=folder(given, checkpoint) / name.replace(" ", "_"),
                trials=8 if given.smoke else TRIALS,
                seed=checkpoint[2],
                baselines={},
                strategy=arguments["strategy"],
                strategy_options=arguments.get("strategy_options", {}),
            )


def by_hand(heads: int, size: int) -> dict[str, tuple[int, ...]]:
    """What people draw: the first heads, the last, those in the middle, and evenly spread ones."""
    first = (heads - size) // 2
    picked = {
        "first heads": range(size),
        "last heads": range(heads - size, heads),
        "middle heads": range(first, first + size),
        "every n-th head": [round((at + 0.5) * heads / size - 0.5) for at in range(size)],
    }
    return {name: tuple(int(u in some) for u in range(heads)) for name, some in picked.items()}


# -- the table -----------------------------------------------------------------------------------
def table(given: argparse.Namespace) -> None:
    """One row for each checkpoint, method and budget; then one for each method and budget."""
    out = given.runs / "results" if given.smoke else HERE / "results"
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for checkpoint in chosen(given):
        units, place = units_of(evaluator(given, checkpoint)), folder(given, checkpoint)
        known = json.loads((place / "truth.json").read_text())
        losses = {tuple(map(int, key)): loss for key, loss in known.items()}
        for row in regrets(units, losses, place):
            rows.append({"checkpoint": " ".join(map(str, checkpoint)), **row})
    each = pd.DataFrame(rows)
    each.to_csv(out / "regret.csv", index=False, float_format="%.5g")
    whole = summary(each)
    whole.to_csv(out / "summary.csv", index=False, float_format="%.4g")
    print(whole.to_string(index=False))


def regrets(
    units: ms.Units, losses: dict[tuple[int, ...], float], place: Path
) -> Iterator[dict[str, Any]]:
    """Method, budget (heads), nats above the best choice of at most so many, and how many masks
    had been judged when the best was within `NEAR` (none = never)."""
    heads, local = len(units.names), losses[(0,) * len(units.names)]
    largest = min(LARGEST, heads)
    densities = [units.density((1,) * size + (0,) * (heads - size)) for size in range(heads + 1)]
    judged: dict[str, list[tuple[int, float]]] = {}  # sizes and losses, in the order of judgement
    for name in methods(units):
        study = ms.Study(place / name.replace(" ", "_"))
        judged[name] = [
            (nearest(densities, 1 - record.measures["effective_sparsity"]), record.values["nll"])
            for record in study.records()
            if record.scored
        ]
    for size in range(1, largest + 1):
        best = min(loss for one, loss in losses.items() if sum(one) <= size)
        alike = [loss for one, loss in losses.items() if sum(one) == size]
        yield {"method": "mean choice", "budget": size, "regret": fmean(alike) - best}
        for name, one in by_hand(heads, size).items():
            yield {"method": name, "budget": size, "regret": losses[one] - best}
        for name, found in judged.items():
            fits = [(n, loss) for n, (raised, loss) in enumerate(found, 1) if raised <= size]
            reached = [n for n, loss in fits if loss - best <= NEAR]
            yield {
                "method": name,
                "budget": size,
                "regret": min((loss for _, loss in fits), default=local) - best,
                "evaluations": min(reached, default=None),
            }


def nearest(densities: Sequence[float], density: float) -> int:
    """The number of raised heads with that density."""
    return min(range(len(densities)), key=lambda size: abs(densities[size] - density))


def summary(each: pd.DataFrame) -> pd.DataFrame:
    """Over the checkpoints: how many are within `NEAR`, and the mean regret with its interval."""
    rows = []
    for (budget, method), part in each.groupby(["budget", "method"], sort=False):
        mean, low, high = interval(part.regret.tolist(), 0.95)
        rows.append(
            {
                "budget": budget,
                "method": method,
                "reached": f"{int((part.regret <= NEAR).sum())} of {len(part)}",
                "regret": mean,
                "low": low,
                "high": high,
                "evaluations": part.evaluations.median(),
            }
        )
    return pd.DataFrame(rows)


if __name__ == "__main__":
    main()
