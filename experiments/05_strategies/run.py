"""Does any strategy find more than random search in the same number of trials? See README.md.

python experiments/05_strategies/run.py record    # every mask of the space, judged once
python experiments/05_strategies/run.py search    # searches on the recorded table: no training
python experiments/05_strategies/run.py --smoke
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import optuna
from matplotlib import rc_context

import masksearch as ms
from masksearch.analysis.pareto import hypervolume, hypervolume_curve
from masksearch.analysis.stats import estimate
from masksearch.contracts import Evaluator, Objective, Report
from masksearch.masks.measure import fingerprint
from masksearch.report.style import PRINT
from masksearch.study.store import quiet
from masksearch.user_code import load_function

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))
from experiments.rivals import as_strategy  # noqa: E402

RESULTS = HERE / "results"
SPACE = HERE.parents[1] / "search_spaces" / "distances.py"
SEED = 0  # of every evaluation
STRATEGIES = ("random", "tpe", "evolution", "nsga2", "gp", "qmc")
SEARCH_SEEDS = 20
SLOW_SEEDS = 6  # of gp, which takes about a second a draw
TRIALS = 80
MILESTONES = (20, 40, 80)
SLOTS = 2


def every_mask() -> dict[str, ms.Mask]:
    """The masks of the space, one for each fingerprint."""
    space = load_function(f"{SPACE}:space")
    found: dict[str, ms.Mask] = {}
    with quiet():
        study = optuna.create_study(sampler=optuna.samplers.BruteForceSampler(seed=0))
        study.optimize(lambda trial: note(space(trial), found))
    return found


def note(mask: ms.Mask, found: dict[str, ms.Mask]) -> float:
    """Keeps a mask under its fingerprint's first text."""
    shape = ms.PlantedEvaluator().shape
    found.setdefault(fingerprint(mask, shape), mask)
    return 0.0


def record(run: Path, out: Path, limit: int | None) -> None:
    """Judges every mask once, and writes the table."""
    table = dict(list(every_mask().items())[:limit])
    print(f"{len(table)} masks", flush=True)
    evaluator = ms.PlantedEvaluator(split="all", **({} if limit is None else {"steps": 8}))
    comparison = ms.compare(
        {str(mask): mask for mask in table.values()},
        evaluator,
        run=run,
        seeds=[SEED],
        executor=ms.Local(slots=SLOTS, threads=1),
    )
    with (out / "table.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["fingerprint", "mask", "sparsity", "score", "accuracy"])
        for r in comparison.records:
            figures = [r.measures["sparsity"], r.values["score"], r.values["accuracy"]]
            rows.writerow([r.fingerprint, r.name, *(f"{x:.6f}" for x in figures)])


@dataclass(frozen=True)
class Recorded(Evaluator):
    """An evaluator that reads the table."""

    scores: dict[str, float] = field(hash=False)
    inner: ms.PlantedEvaluator = field(default_factory=ms.PlantedEvaluator)
    protocol = "recorded"

    @property
    def shape(self) -> ms.Shape:
        return self.inner.shape

    @property
    def objectives(self) -> tuple[Objective, ...]:
        # counted above chance: a mask that has learned nothing adds nothing
        return (Objective("score", "max", 0.5), Objective("sparsity", "max", 0.0))

    def __call__(self, mask: ms.Mask, *, seed: int, workdir: Path) -> Iterator[Report]:
        yield Report(1, {"score": self.scores[fingerprint(mask, self.shape)]})


def search(out: Path, strategies: Sequence[str], trials: int, seeds: int, slow: int) -> None:
    """Hypervolume above chance over the trials, for every strategy and search seed."""
    with (HERE / "results" / "table.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    evaluator = Recorded({row["fingerprint"]: float(row["score"]) for row in rows})
    objectives = evaluator.objectives
    best = reachable(rows, objectives)
    curves: dict[str, np.ndarray] = {}
    for strategy in strategies:
        count = slow if strategy == "gp" else seeds
        runs = [found(strategy, seed, trials, evaluator) for seed in range(count)]
        curves[strategy] = np.array(runs) / best
        last = curves[strategy][:, -1]
        print(f"{strategy}: {last.mean():.3f} +- {half_of(last):.3f}", flush=True)
    write(curves, trials, out)
    draw(curves, out)


def reachable(rows: list[dict[str, str]], objectives: tuple[Objective, ...]) -> float:
    """Hypervolume of the whole table."""
    points = [(float(row["score"]), float(row["sparsity"])) for row in rows]
    return hypervolume(points, objectives)


def found(strategy: str, seed: int, trials: int, evaluator: Recorded) -> list[float]:
    """The hypervolume after each trial of one search."""
    import warnings

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # nsga2 on a conditional space
        study = ms.search(
            load_function(f"{SPACE}:space"),
            evaluator,
            run=Path(folder) / "run",
            storage=f"journal:{folder}/journal",
            trials=trials,
            strategy=as_strategy(strategy),
            seed=seed,
        )
        records = study.records()
    return [p.hypervolume for p in hypervolume_curve(records, evaluator.objectives)]


def half_of(values: np.ndarray) -> float:
    """Half a 95 % interval of the mean (Student's t)."""
    found = estimate(values.tolist())
    return found.value - found.low


def write(curves: dict[str, np.ndarray], trials: int, out: Path) -> None:
    """The table of the README."""
    with (out / "summary.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        titles = ["share", "half interval", "minus random", "half interval"]
        rows.writerow(["strategy", "search seeds", "trials", *titles])
        for strategy, curve in curves.items():
            for at in (at for at in MILESTONES if at <= trials):
                column = curve[:, at - 1]
                ahead = column - curves["random"][: len(column), at - 1]  # by search seed
                figures = [
                    column.mean(),
                    half_of(column),
                    ahead.mean(),
                    half_of(ahead),
                ]
                rows.writerow([strategy, len(curve), at, *(f"{x:.4f}" for x in figures)])


@rc_context(PRINT)
def draw(curves: dict[str, np.ndarray], out: Path) -> None:
    """Share of the reachable hypervolume over the trials."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
    for strategy, curve in curves.items():
        count = np.arange(1, curve.shape[1] + 1)
        mean = curve.mean(0)
        half = np.array([half_of(column) for column in curve.T])
        (line,) = axes.plot(count, mean, label=f"{strategy} ({len(curve)} seeds)")
        axes.fill_between(count, mean - half, mean + half, color=line.get_color(), alpha=0.12)
    axes.set(xlabel="trials", ylabel="share of the reachable hypervolume above chance")
    axes.set_ylim(0, 1.02)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(out / "strategies.png", dpi=130)


def main() -> None:
    """Runs the stages that are named, or both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help="record, search")
    parser.add_argument("--run", type=Path, default=Path("runs/strategies"))
    parser.add_argument("--smoke", action="store_true", help="a few masks, in a minute")
    given = parser.parse_args()
    out = given.run / "results" if given.smoke else RESULTS
    out.mkdir(parents=True, exist_ok=True)
    whole = (STRATEGIES, TRIALS, SEARCH_SEEDS, SLOW_SEEDS)
    stages = {
        "record": partial(record, given.run / "table", out, 4 if given.smoke else None),
        "search": partial(search, out, *((("random", "tpe"), 20, 2, 1) if given.smoke else whole)),
    }
    for stage in given.stages or list(stages):
        stages[stage]()


if __name__ == "__main__":
    main()
