"""From which step on does a short pre-training rank masks as a long one, or as GLUE does?

    python experiments/07_proxy/run.py card --runs FOLDER [--scores FOLDER] [--results FOLDER]
    python experiments/07_proxy/run.py card --recorded   # the curves of 04_halving_replay

The first reads what `pretrain.py` has finished (`MASK-SEED.json`, with the curve of the MLM
loss) and, where there are any, the scores of fine-tuning each checkpoint (`scores-*.json`).
Writes the cards, their tables and figures.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import across
import pandas as pd

from masksearch.errors import MaskSearchError
from masksearch.report.pictures import write_proxy
from masksearch_bench.proxy import NOT_ANNEALED, ProxyCard, rate_proxy

HERE = Path(__file__).parent
RECORDED = {  # file of 04_halving_replay/results -> what its score is
    "curves": "score",  # planted corpus
    "text_400": "loss",  # WikiText-2, 400 steps
    "text_800": "glue",  # WikiText-2, 800 steps, then SST-2, QQP, MNLI
}
MARGIN = 0.005  # a mean score within this of the constant prediction's has learned nothing
MEAN = "mean of the GLUE tasks"
COLUMNS = ["mask", "density", "seed", "budget", "measure", "value"]
Row = tuple[str, float, int, int, str, float]
PROBES = {"BShift", "Order"}  # are no part of that mean


def observed(rows: Iterable[Row]) -> pd.DataFrame:
    """Observations as a proxy card takes them."""
    table = pd.DataFrame(list(rows), columns=COLUMNS)
    table.attrs["facts"] = NOT_ANNEALED
    return table


def curves(folder: Path) -> list[Row]:
    """Every point of every finished run's loss curve."""
    found: list[Row] = []
    for path in sorted(folder.glob("*.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(run, dict) and "curve" in run:
            found += [
                (run["mask"], run["density"], run["seed"], int(step), "loss", loss)
                for step, loss in run["curve"].items()
            ]
    return found


def scores(folder: Path) -> list[dict[str, Any]]:
    """Every fine-tuning: mask, seed, step of the checkpoint, task, setting, score, majority."""
    found: list[dict[str, Any]] = []
    for path in sorted(folder.glob("scores-*.json")):
        rows = json.loads(path.read_text(encoding="utf-8"))
        found += rows if isinstance(rows, list) else [rows]
    return found


def of_scores(rows: Iterable[dict[str, Any]], densities: dict[str, float]) -> list[Row]:
    """The scores as observations: one measure a task and setting, and a mean of the GLUE tasks.

    Several fine-tunings of one checkpoint are averaged. The mean is taken where all tasks of
    that setting are there, so that masks are never compared over different tasks.
    """
    cells: dict[tuple[str, int, int, str, str], list[float]] = defaultdict(list)
    for row in rows:
        if row["mask"] in densities:
            key = (row["mask"], row["seed"], row["step"], str(row["setting"]), row["task"])
            cells[key].append(row["score"])
    tasks: dict[str, set[str]] = defaultdict(set)
    runs: dict[tuple[str, int, int, str], dict[str, float]] = defaultdict(dict)
    for (mask, seed, step, setting, task), values in cells.items():
        tasks[setting].add(task)
        runs[mask, seed, step, setting][task] = math.fsum(values) / len(values)
    found = []
    for (mask, seed, step, setting), values in runs.items():
        glue = {task: value for task, value in values.items() if task not in PROBES}
        if glue.keys() == tasks[setting] - PROBES and len(glue) > 1:
            values = {**values, MEAN: math.fsum(glue.values()) / len(glue)}
        found += [
            (mask, densities[mask], seed, step, f"{task} ({setting})", value)
            for task, value in values.items()
        ]
    return found


def at_majority(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Mean score of each task, setting and step over masks and seeds, beside the majority's."""
    frame = pd.DataFrame(list(rows)).groupby(["setting", "task", "step"])
    means = frame[["score", "majority"]].mean().reset_index()
    means["learned"] = means["score"] > means["majority"] + MARGIN
    return means


def recorded(path: Path, score: str) -> list[Row]:
    """The curves of a table of 04_halving_replay, with the score at the end."""
    found = []
    for row in pd.read_csv(path).to_dict("records"):
        points = {int(k.removeprefix("loss@")): row[k] for k in row if k.startswith("loss@")}
        values = [("loss", step, loss) for step, loss in points.items()]
        found += [
            (row["mask"], 1 - row["sparsity"], row["seed"], step, measure, value)
            for measure, step, value in [*values, (score, row["last"], row["score"])]
        ]
    return found


def write(card: ProxyCard, folder: Path, name: str, bands: int | None) -> None:
    """A card as a figure, a table and text, with its agreement across densities."""
    write_proxy(card, folder / f"{name}.png")
    across.frame(card, bands).round(5).to_csv(folder / f"{name}.csv", index=False)
    text = "\n".join([card.verdict(), *across.lines(card, bands)])
    (folder / f"{name}.txt").write_text(text + "\n", encoding="utf-8")
    print(f"== {name}\n{text}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/07_proxy"))
    parser.add_argument("--scores", type=Path, help="default: the runs' folder")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--bands", type=int, help="density bands; default: factors of two")
    parser.add_argument("--recorded", action="store_true", help="cards of 04_halving_replay")
    arguments = parser.parse_args()
    arguments.results.mkdir(parents=True, exist_ok=True)
    if arguments.recorded:
        for name, score in RECORDED.items():
            path = HERE.parent / "04_halving_replay" / "results" / f"{name}.csv"
            card = rate_proxy(observed(recorded(path, score)), target=score, bands=arguments.bands)
            write(card, arguments.results, f"recorded_{name}", arguments.bands)
        return
    losses = curves(arguments.runs)
    if not losses:
        parser.error(f"{arguments.runs} holds no finished run (MASK-SEED.json with a curve)")
    densities = {mask: density for mask, density, *_ in losses}
    rows = scores(arguments.scores or arguments.runs)
    tuned = of_scores(rows, densities)
    table, bands = observed([*losses, *tuned]), arguments.bands
    table.round(6).to_csv(arguments.results / "observations.csv", index=False)
    write(rate_proxy(table, bands=bands), arguments.results, "loss", bands)
    if rows:
        at_majority(rows).round(5).to_csv(arguments.results / "learned.csv", index=False)
    measures = {measure for *_, measure, _ in tuned}
    for target in sorted(name for name in measures if name.startswith((MEAN, *PROBES))):
        short = target.replace(MEAN, "glue").lower()
        name = "_".join("".join(sign if sign.isalnum() else " " for sign in short).split())
        try:
            card = rate_proxy(table, target=target, bands=bands)
        except MaskSearchError as error:
            print(f"== {name}\nno card: {error}\n")
            continue
        write(card, arguments.results, name, bands)


if __name__ == "__main__":
    main()
