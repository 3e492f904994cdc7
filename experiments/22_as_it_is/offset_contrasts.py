"""What follows from the lines of results/offsets/: DAM against drawn masks without the diagonal.

python experiments/22_as_it_is/offset_contrasts.py
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from itertools import product

import pandas as pd
from tables import (
    HERE,
    RESULTS,
    Line,
    Model,
    all_lines,
    as_line,
    best,
    named,
    rows_of,
    scored,
)

from masksearch.analysis.stats import paired_difference

PLAN = tomllib.loads((HERE / "offsets.toml").read_text(encoding="utf-8"))
BUDGET = PLAN["offsets"]["budget"]
HAND = f"hand {BUDGET}: "
ARMS = ("dense", "dam", "offsets", "before", "drawn")
PAIRS = [("dam", arm) for arm in ARMS[2:]] + [("offsets", "before")]
Lines = Mapping[Model, list[Line]]


def choices(ours: list[Line], stored: list[Line]) -> dict[str, str]:
    """Arm -> the name of its mask on a model. The rows that choose prefer "offsets" of the two
    families, "before" of the list as it was, "drawn" of all."""
    lists = {"offsets": scored(ours, "choice", HAND), "before": scored(stored, "choice", HAND)}
    lists["drawn"] = lists["offsets"] + lists["before"]
    preferred = {arm: best(lines)["name"] for arm, lines in lists.items()}
    return {"dense": "dense", "dam": f"dam {BUDGET}"} | preferred


def judged(ours: Lines, stored: Lines, task: str) -> dict[str, dict[int, Line]]:
    """Arm -> seed -> the judged line of its mask, of the models that have ended."""
    found: dict[str, dict[int, Line]] = {arm: {} for arm in ARMS}
    for (of, seed), own in sorted(ours.items()):
        names = choices(own, stored[of, seed]) if of == task else {}
        lines = {arm: named(own, "judge", name) for arm, name in names.items()}
        if lines and all(lines.values()):
            for arm, line in lines.items():
                found[arm][seed] = line
    return found


def contrasts(ours: Lines, stored: Lines) -> pd.DataFrame:
    """For each task the differences of `PAIRS` over models and rows, which two models are too few
    for; and those of each model over rows alone."""
    table = []
    for task in PLAN["models"]:
        arms = judged(ours, stored, task)
        groups = [[seed] for seed in arms["dam"]]
        groups += [[*arms["dam"]]] if len(groups) > 1 else []
        for (one, other), seeds in product(PAIRS, groups):
            sides = [{seed: arms[arm][seed] for seed in seeds} for arm in (one, other)]
            scores = [{seed: line["score"] for seed, line in side.items()} for side in sides]
            rows = [{seed: rows_of(line) for seed, line in side.items()} for side in sides]
            single = len(seeds) == 1
            gap = paired_difference(*scores, rows_a=rows[0], rows_b=rows[1], seedless=single)
            of = {"task": task, "model": seeds[0] if single else "all"}
            table.append(of | {"contrast": f"{one} - {other}"} | as_line(gap, *sides))
    return pd.DataFrame(table)


def kept(ours: Lines, stored: Lines) -> pd.DataFrame:
    """Each arm's mean score and share of the judging rows' pairs, and on how many models the rows
    that choose prefer a mask without the diagonal, and which of the families."""
    table = []
    for task in PLAN["models"]:
        for arm, own in judged(ours, stored, task).items():
            if own:
                line = pd.DataFrame([*own.values()])[["score", "density_judged"]].mean()
                names = [each["name"] for each in own.values()]
                table.append(
                    {"task": task, "arm": arm, "models": len(own), **line,
                     "without the diagonal": sum("offsets" in name for name in names),
                     "near": sum("near offsets" in name for name in names)}
                )  # fmt: skip
    return pd.DataFrame(table)


def moved(ours: Lines, stored: Lines) -> pd.DataFrame:
    """How far the models that were made anew are from those of the lines, dense."""
    table = []
    for model, own in ours.items():
        gaps = {}
        for rows in ("choice", "judge"):
            pair = [named(lines, rows, "dense") for lines in (own, stored[model])]
            gaps[rows] = pair[0]["score"] - pair[1]["score"] if all(pair) else float("nan")
        table.append({"task": model[0], "seed": model[1]} | gaps)
    return pd.DataFrame(table)


def main() -> None:
    """Prints and writes the tables."""
    ours, stored = all_lines(RESULTS / "offsets"), all_lines(RESULTS / "amended")
    for table in (contrasts, kept, moved):
        found = table(ours, stored)
        path = RESULTS / f"offsets_{table.__name__}.csv"
        found.to_csv(path, index=False, float_format="%.5f")
        print(found.round(4).to_string(), "\n")


if __name__ == "__main__":
    main()
