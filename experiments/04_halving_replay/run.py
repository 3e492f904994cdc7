"""Does stopping trials early cost hypervolume? Recorded curves, replayed in random orders.

    python experiments/04_halving_replay/run.py [record] [text] [replay] [--runs FOLDER] [--smoke]

`record` trains the masks (minutes; it goes on where it stopped), `text` takes the curves of
experiments/01_first_search out of its runs folder, `replay` needs no training and writes the
tables and the figure. Without a stage: record and replay.
"""

from __future__ import annotations

import argparse
import math
import random
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from curves import Curve, read, record, stored, write
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from replay import Outcome
from replay import replay as replayed
from scipy.stats import kendalltau

import masksearch as ms
from masksearch.contracts import Objective
from masksearch.report.style import PRINT
from masksearch.strategies.halving import RANKINGS, ParetoHalving

HERE = Path(__file__).parent
SPACES = HERE.parent.parent / "search_spaces"
MASKS = {  # by seed of weights and data, each a recorded study of its own: distinct random masks
    0: {"distances": 60, "band_global": 60},  # of these spaces, beside the families and dense
    1: {"distances": 60, "band_global": 24},
}
REPORTS = 6  # at 15, 31, 62, 125, 250 and 500 steps
ORDERS = 60  # random orders of the trials
SLOTS = (1, 8)
FACTORS = (2, 3, 4)
TRAININGS = {"planted": 20, "text": 4}  # the equal budget, in full trainings
SPARSE = 0.1  # density below which a mask counts as sparse
SPARSITY = Objective("sparsity", "max", 0.0)
TEXT_400 = ("b47af56e3877851f", "loss", 100, ("band_global", "head_shifts", "dam", "first/dam"))
TEXT_800 = ("1b15a98735d6789b", "glue", 1, ("compare",))  # its seed 0 lacks two early curves
COLOURS = {"metric": "#D55E00", "strata": "#009E73", "nondominated": "#0072B2", "none": "#222222"}
MARKS = {"metric": "o", "strata": "^", "nondominated": "s"}


@dataclass(frozen=True)
class Study:
    """One recorded study and how it is replayed."""

    name: str
    curves: list[Curve]
    rungs: tuple[tuple[int, ...], ...]  # the first is the one of the question
    score: Objective  # as the evaluator has it
    useful: Objective  # the same, counted from what a useless mask reaches

    @property
    def budget(self) -> int:
        """Steps of the comparison at equal steps."""
        return TRAININGS[self.name.split()[0]] * self.curves[0].last

    def schedulers(self) -> dict[tuple[str, str, int], ParetoHalving | None]:
        """Every scheduler by (rungs, ranking, factor), and none."""
        return {("", "none", 1): None} | {
            (" ".join(map(str, rungs)), ranking, factor): ParetoHalving(
                rungs=rungs, factor=factor, ranking=ranking
            )
            for rungs in self.rungs
            for ranking in RANKINGS
            for factor in FACTORS
        }


def studies(folder: Path) -> list[Study]:
    """What `folder` holds."""
    score = Objective("score", "max", 0.0)
    found = [
        Study(
            f"planted seed {seed}",
            [curve for curve in read(folder / "curves.csv") if curve.seed == seed],
            ((62, 125, 250), (125, 250)),
            score,
            replace(score, worst=0.5),
        )
        for seed in MASKS
    ]
    if (folder / "text_400.csv").is_file():
        curves = read(folder / "text_400.csv")
        loss = Objective("loss", "min", math.log(4096))
        worst = max(curve.score for curve in curves)
        useful = replace(loss, worst=worst)
        found.append(Study("text 400", curves, ((50, 100, 200),), loss, useful))
        majority = replace(score, worst=(0.509 + 0.623 + 0.350) / 3)
        curves = read(folder / "text_800.csv")
        found.append(Study("text 800", curves, ((100, 200, 400),), score, majority))
    return [study for study in found if study.curves]


def spread(name: str, values: Sequence[float]) -> dict[str, float]:
    """Mean over the orders, and the range that holds 95 % of them."""
    low, high = np.quantile(values, [0.025, 0.975])
    return {name: float(np.mean(values)), f"{name} low": low, f"{name} high": high}


def run_orders(study: Study, slots: int, orders: int) -> dict[Any, list[Outcome]]:
    """Every scheduler on the same random orders."""
    rng = random.Random(slots)
    outcomes: dict[Any, list[Outcome]] = {key: [] for key in study.schedulers()}
    for _ in range(orders):
        order = rng.sample(study.curves, len(study.curves))
        for key, scheduler in study.schedulers().items():
            outcomes[key].append(replayed(order, slots, scheduler))
    return outcomes


def rows(study: Study, slots: int, outcomes: dict[Any, list[Outcome]]) -> list[dict[str, Any]]:
    """One row a scheduler: equal trials first, then equal steps."""
    (nothing,) = (outcomes[key] for key in outcomes if key[1] == "none")
    everything = nothing[0]
    result = []
    for (rungs, ranking, factor), done in outcomes.items():
        row: dict[str, Any] = {
            "study": study.name,
            "slots": slots,
            "rungs": rungs,
            "ranking": ranking,
            "factor": factor,
            "orders": len(done),
            "trials": len(study.curves),
            "sparse trials": sum(curve.density < SPARSE for curve in study.curves),
        }
        finished = [[curve for _, curve in outcome.finished] for outcome in done]
        saved = [100 * (1 - outcome.steps / everything.steps) for outcome in done]
        row |= spread("steps saved %", saved)
        row |= spread("finished", [len(curves) for curves in finished])
        sparse = [sum(curve.density < SPARSE for curve in curves) for curves in finished]
        row |= spread("sparse finished", sparse)
        for label, objective in (("hv", study.score), ("useful hv", study.useful)):
            objectives = (objective, SPARSITY)
            whole = everything.front(objectives)
            lost = [100 * (1 - outcome.front(objectives) / whole) for outcome in done]
            row |= spread(f"{label} lost %", lost)
            if slots == 1:  # with more, the trials that run when the budget ends blur it
                pairs = zip(done, nothing, strict=True)
                gained = [
                    100
                    * (a.front(objectives, study.budget) - b.front(objectives, study.budget))
                    / whole
                    for a, b in pairs
                ]
                row |= spread(f"{label} gained % at equal steps", gained)
                error = 1.96 * float(np.std(gained, ddof=1)) / math.sqrt(len(gained))
                row[f"{label} gained % of its mean +-"] = error
        result.append(row)
    return result


def signal(found: Sequence[Study]) -> list[dict[str, Any]]:
    """Kendall's tau-b between the loss so far and what the trial ends with."""
    return [
        {
            "study": study.name,
            "step": step,
            "masks": len(study.curves),
            "tau": (-1 if study.score.goal == "max" else 1)
            * kendalltau([c.losses[step] for c in study.curves], [c.score for c in study.curves])[
                0
            ],
        }
        for study in found
        for step in sorted(study.curves[0].losses)
    ]


@rc_context(PRINT)
def draw(path: Path, study: Study, outcomes: dict[Any, list[Outcome]], table: list[Any]) -> None:
    """Hypervolume over steps, what is saved and lost at equal trials, and the sparse end."""
    figure = Figure(figsize=(13, 4), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    over, lost, sparse = figure.subplots(1, 3)
    objectives = (study.useful, SPARSITY)
    rungs = " ".join(map(str, study.rungs[0]))
    length = study.curves[0].last
    grid = np.linspace(0, 60, 25)
    for (at, ranking, factor), done in outcomes.items():
        if ranking == "none" or (at == rungs and factor == 2):
            heights = np.array([[o.front(objectives, x * length) for x in grid] for o in done])
            low, high = np.quantile(heights, [0.025, 0.975], axis=0)
            label = "no halving" if ranking == "none" else f"{ranking}, factor 2"
            over.plot(grid, heights.mean(0), color=COLOURS[ranking], label=label)
            over.fill_between(grid, low, high, color=COLOURS[ranking], alpha=0.08, linewidth=0)
    own = [row for row in table if row["study"] == study.name and row["slots"] == SLOTS[0]]
    for ranking, mark in MARKS.items():
        line = [row for row in own if row["ranking"] == ranking and row["rungs"] == rungs]
        for axes, x, y in (
            (lost, "steps saved %", "useful hv lost %"),
            (sparse, "factor", "sparse finished"),
        ):
            errors = np.abs(
                [[row[y] - row[f"{y} {side}"] for row in line] for side in ("low", "high")]
            )
            shift = 0.06 * (list(MARKS).index(ranking) - 1) if x == "factor" else 0
            axes.errorbar(
                [row[x] + shift for row in line],
                [row[y] for row in line],
                errors,
                color=COLOURS[ranking],
                marker=mark,
                capsize=3,
                label=ranking,
            )
    over.set(xlabel="steps spent (in full trainings)", ylabel="hypervolume above chance")
    lost.set(
        xlabel="steps saved (%), factors 2, 3, 4", ylabel="hypervolume above chance, lost (%)"
    )
    sparse.set(xlabel="factor", ylabel=f"masks under {SPARSE:.0%} density that finish")
    sparse.set_xticks(FACTORS)
    sparse.axhline(
        own[0]["sparse trials"], color=COLOURS["none"], linestyle=":", label="no halving"
    )
    for axes in (over, lost, sparse):
        axes.grid(color="#E4E4E4", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    over.legend(frameon=False, fontsize=9)
    sparse.legend(frameon=False, fontsize=9)
    lost.set_ylim(bottom=-0.2)
    figure.suptitle(f"{study.name}: {len(study.curves)} masks, rungs {rungs}, {SLOTS[0]} slot")
    figure.savefig(path, dpi=110)


def replay_all(folder: Path, orders: int) -> None:
    found = studies(folder)
    table: list[dict[str, Any]] = []
    first = None
    for study in found:
        for slots in SLOTS:
            outcomes = run_orders(study, slots, orders)
            first = first or outcomes
            table += rows(study, slots, outcomes)
            print(f"{study.name}, {slots} slots: {orders} orders", flush=True)
    for name, lines in (("summary", table), ("signal", signal(found))):
        frame = pd.DataFrame(lines)  # gaps stay empty
        frame.to_csv(folder / f"{name}.csv", index=False, float_format="%.4g", lineterminator="\n")
    assert first is not None
    draw(folder / "halving.png", found[0], first, table)


def take_text(folder: Path, runs: Path) -> None:
    for name, (protocol, score, seed, names) in (("400", TEXT_400), ("800", TEXT_800)):
        path = folder / f"text_{name}.csv"
        path.unlink(missing_ok=True)
        write(path, stored([runs / run for run in names], protocol, score, seed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stages", nargs="*", default=["record", "replay"])
    parser.add_argument("--runs", type=Path, default=Path("runs/01_first_search"))
    parser.add_argument("--smoke", action="store_true", help="tiny, in a folder that is deleted")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp()) if arguments.smoke else HERE / "results"
    folder.mkdir(exist_ok=True)
    evaluator = ms.PlantedEvaluator(reports=REPORTS)
    if arguments.smoke:
        evaluator = replace(
            evaluator, steps=250, batch=2, held_out_sequences=64, downstream_steps=1
        )
    try:
        for stage in arguments.stages:
            if stage == "record":
                for seed, counts in MASKS.items():
                    chosen = dict.fromkeys(counts, 1) if arguments.smoke else counts
                    record(folder / "curves.csv", evaluator, SPACES, chosen, seed)
            elif stage == "text":
                take_text(folder, arguments.runs)
            elif stage == "replay":
                replay_all(folder, 2 if arguments.smoke else ORDERS)
            else:
                parser.error(f"stages are record, text and replay, got {stage!r}")
    finally:
        if arguments.smoke:
            shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
