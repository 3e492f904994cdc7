"""What follows from the lines of results/: each arm's score, and what the plan compares.

python experiments/26_base/contrasts.py
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

HERE = Path(__file__).parent
sys.path.append(str(HERE.with_name("22_as_it_is")))
from tables import (  # noqa: E402
    Line,
    Model,
    all_lines,
    as_line,
    best,
    minus_or_first,
    named,
    scored,
)

RESULTS = HERE / "results"
PLAN = tomllib.loads((HERE / "plan.toml").read_text(encoding="utf-8"))
PAIRS = ("dam", "effects", "hand")
MASKS, PLAIN = ("effects", "hand"), ("layers", "cut", "layers and cut")
Lines = Mapping[Model, list[Line]]


def of_arms(own: list[Line], *prefixes: str) -> Line | None:
    """The judged line that stands for arms: what the rows that choose prefer of them."""
    known = [line for prefix in prefixes for line in scored(own, "choice", prefix)]
    if not known:
        return None
    top = best(line | {"density": line["work"]} for line in known)
    return named(own, "judge", top["name"])


def arms(own: list[Line]) -> dict[str, Line]:
    """Arm -> its judged line, of one model, of what has ended."""
    budget = PLAN["pairs"]["budget"]
    found = {"dense": named(own, "judge", "dense")}
    if any(line.get("what") == "pairs" for line in own):
        found |= {f"{arm}, pairs": of_arms(own, f"{arm} {budget}") for arm in PAIRS}
    for fewer in PLAN["limits"]["fewer"]:
        if not any(line.get("fewer") == fewer for line in own if line["stage"] == "ended"):
            continue
        prefixes = {arm: f"{arm} {fewer}: " for arm in (*MASKS, *PLAIN)}
        found |= {f"{arm}, {fewer} fewer": of_arms(own, at) for arm, at in prefixes.items()}
        for group, several in (("best mask", MASKS), ("best plain way", PLAIN)):
            found[f"{group}, {fewer} fewer"] = of_arms(own, *(prefixes[arm] for arm in several))
    return {arm: line for arm, line in found.items() if line is not None}


def judged(lines: Lines, task: str, arm: str) -> dict[int, Line]:
    """Seed -> the line of an arm, of the models of a task that have it."""
    found = {seed: arms(own).get(arm) for (of, seed), own in sorted(lines.items()) if of == task}
    return {seed: line for seed, line in found.items() if line is not None}


def names(lines: Lines, task: str) -> list[str]:
    """The arms that any model of a task has."""
    each = [arms(own) for (of, _), own in sorted(lines.items()) if of == task]
    return list(dict.fromkeys(arm for found in each for arm in found))


def scores(lines: Lines) -> pd.DataFrame:
    """Each arm's mean score, its work, and what is kept of the score above a constant answer."""
    table = []
    for task in PLAN["tasks"]:
        for arm in names(lines, task):
            own = judged(lines, task, arm)
            dense = [named(lines[task, seed], "judge", "dense") for seed in own]
            above = [line["score"] - line["constant"] for line in own.values()]
            whole = [line["score"] - line["constant"] for line in dense if line]
            table.append(
                {"task": task, "arm": arm, "models": len(own),
                 "score": sum(line["score"] for line in own.values()) / len(own),
                 "work": sum(line["work_judged"] for line in own.values()) / len(own),
                 "kept": sum(above) / sum(whole)}
            )  # fmt: skip
    return pd.DataFrame(table)


def differences(lines: Lines) -> pd.DataFrame:
    """What the plan compares, with single intervals over models and rows; of fewer than three
    models over the first one's rows."""
    table = []
    for task in PLAN["tasks"]:
        known = names(lines, task)
        pairs = [("dam, pairs", "effects, pairs"), ("dam, pairs", "hand, pairs")]
        for fewer in PLAN["limits"]["fewer"]:
            plain = f"best plain way, {fewer} fewer"
            pairs += [(f"best mask, {fewer} fewer", plain), (f"effects, {fewer} fewer", plain)]
        pairs += [(arm, "dense") for arm in known if arm != "dense"]
        for one, other in pairs:
            sides = judged(lines, task, one), judged(lines, task, other)
            if sides[0].keys() & sides[1].keys():
                about = {"task": task, "contrast": f"{one} - {other}"}
                table.append(about | as_line(minus_or_first(*sides), *sides))
    return pd.DataFrame(table)


def main() -> None:
    """Prints and writes the tables."""
    lines = all_lines(RESULTS)
    for table in (scores, differences):
        found = table(lines)
        print(found.to_string(index=False))
        found.to_csv(RESULTS / f"{table.__name__}.csv", index=False, float_format="%.6g")


if __name__ == "__main__":
    main()
