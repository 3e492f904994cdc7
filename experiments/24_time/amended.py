"""What follows from the lines of results/plain/: how fast the plain ways are, and what they keep,
beside the masks of tiles that were found.

python experiments/24_time/amended.py
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Mapping
from itertools import product
from pathlib import Path

import pandas as pd

HERE = Path(__file__).parent
sys.path.append(str(HERE.with_name("22_as_it_is")))
from tables import (  # noqa: E402
    Line,
    Model,
    all_lines,
    as_line,
    minus_or_first,
    named,
    read,
    scored,
)

OF_24, RESULTS = HERE / "results", HERE / "results" / "plain"
PLAN = tomllib.loads((HERE / "plan.toml").read_text(encoding="utf-8"))
NEAR = tomllib.loads((HERE / "amendment.toml").read_text(encoding="utf-8"))["near"]
ARMS = ("dense", "bfloat16", "cut", "dam")
CONTRASTS = [("cut", "dam"), *((arm, "dense") for arm in ARMS[1:])]
Lines = Mapping[Model, list[Line]]


def judged(lines: Lines, task: str, arm: str) -> dict[int, Line]:
    """Seed -> the judged line of an arm, of the models that have it; one input that is cut."""
    found = {}
    for (of, seed), own in sorted(lines.items()):
        known = scored(own, "judge", "cut ") if arm == "cut" else [named(own, "judge", arm)]
        if of == task and any(known):
            (found[seed],) = known
    return found


def times(results: Path = RESULTS) -> pd.DataFrame:
    """Task, name, `beside` which dtype of dense: times as fast, lower quartile to upper."""
    lines = [
        {name: line[name] for name in ("task", "name", "beside")}
        | dict(zip(("low", "median", "high"), line["times"], strict=True))
        for line in read(results / "times.jsonl")
    ]
    return pd.DataFrame(lines, columns=["task", "name", "beside", "low", "median", "high"])


def scores(lines: Lines) -> pd.DataFrame:
    """Each arm's mean score over the models of a task."""
    table = []
    for task, arm in product(PLAN["tasks"], ARMS):
        if own := judged(lines, task, arm):
            each = [line["score"] for line in own.values()]
            mean = {"models": len(each), "score": sum(each) / len(each)}
            table.append({"task": task, "arm": arm} | mean)
    return pd.DataFrame(table)


def differences(lines: Lines) -> pd.DataFrame:
    """What the amendment compares, with intervals over models and rows; of fewer than three models
    over the first one's rows."""
    table = []
    for task, (one, other) in product(PLAN["tasks"], CONTRASTS):
        sides = judged(lines, task, one), judged(lines, task, other)
        if sides[0].keys() & sides[1].keys():
            about = {"task": task, "contrast": f"{one} - {other}"}
            table.append(about | as_line(minus_or_first(*sides), *sides))
    return pd.DataFrame(table)


def anew(lines: Lines, first: Lines) -> pd.DataFrame:
    """The score of each dense model on the rows that choose, beside that of the first time."""
    table = []
    for task, seed in sorted(lines):
        both = [named(each[task, seed], "choice", "dense") for each in (lines, first)]
        now, before = (line["score"] for line in both if line)
        near = abs(now - before) <= NEAR
        table.append({"task": task, "seed": seed, "now": now, "before": before, "near": near})
    return pd.DataFrame(table)


def main() -> None:
    """Prints and writes the tables."""
    lines = all_lines(RESULTS)
    tables = {
        "times": times(),
        "scores": scores(lines),
        "differences": differences(lines),
        "anew": anew(lines, all_lines(OF_24)),
    }
    for name, found in tables.items():
        print(found.to_string(index=False))
        found.to_csv(RESULTS / f"{name}.csv", index=False, float_format="%.6g")


if __name__ == "__main__":
    main()
