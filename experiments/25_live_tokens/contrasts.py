"""What follows from the lines of results/: what was chosen, and what the plan compares.

python experiments/25_live_tokens/contrasts.py
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
from tables import Line, Model, all_lines, as_line, best, minus, named, scored  # noqa: E402

from masksearch.analysis.stats import estimate, holm, holm_levels  # noqa: E402

RESULTS = HERE / "results"
PLAN = tomllib.loads((HERE / "plan.toml").read_text(encoding="utf-8"))
MASKS = ["effects", "tpe", "random", "hand"]
PLAIN = ["layers", "cut", "layers and cut"]
GROUPS = {"mask": MASKS, "plain": PLAIN}  # of each the rows that choose prefer one
REPORTED = ["together", "attended"]
SECONDARY = [  # differences with single intervals
    *(("effects", other) for other in ("tpe", "random", "hand")),
    *((arm, "mask") for arm in REPORTED),
]
Lines = Mapping[Model, list[Line]]


def of_arm(own: list[Line], arm: str, fewer: int, read: str = "choice") -> Line | None:
    """The best line of an arm on rows."""
    lines = scored(own, read, f"{arm} {fewer}: ")
    return best(line | {"density": line.get("work", 0)} for line in lines) if lines else None


def preferred(own: list[Line], group: str, fewer: int) -> str | None:
    """The arm of a group that the rows that choose prefer."""
    lines = {arm: line for arm in GROUPS[group] if (line := of_arm(own, arm, fewer))}
    if not lines:
        return None
    top = best(line | {"density": line["work"]} for line in lines.values())
    return next(arm for arm, line in lines.items() if line["name"] == top["name"])


def judged(lines: Lines, task: str, arm: str, fewer: int) -> dict[int, Line]:
    """Seed -> the judged line that stands for an arm or a group, of the models that have ended at
    a limit."""
    found = {}
    for (of, seed), own in sorted(lines.items()):
        if of != task or not any(line.get("fewer") == fewer for line in ended(own)):
            continue
        single = preferred(own, arm, fewer) if arm in GROUPS else arm
        dense = arm == "dense"
        line = named(own, "judge", arm) if dense else of_arm(own, single or arm, fewer, "judge")
        if line:
            found[seed] = line
    return found


def ended(own: list[Line]) -> list[Line]:
    """The lines that say at which limits a model has ended."""
    return [line for line in own if line["stage"] == "ended"]


def primary(lines: Lines) -> pd.DataFrame:
    """The best mask minus the best plain way: a test for each task, with Holm's adjusted p and
    level."""
    plan = PLAN["primary"]
    family = []
    for task in plan["tasks"]:
        sides = [judged(lines, task, group, plan["fewer"]) for group in GROUPS]
        if len(sides[0].keys() & sides[1].keys()) > 1:
            family.append((task, sides))
    p_values = [minus(*sides).p_value for _, sides in family]
    table = []
    levels = holm_levels(p_values)
    for (task, sides), p, level in zip(family, holm(p_values), levels, strict=True):
        found = as_line(minus(*sides, level), *sides)
        ahead = found["difference"] > 0 and p < 0.05
        table.append({"task": task} | found | {"adjusted_p": p, "level": level, "shown": ahead})
    return pd.DataFrame(table)


def differences(lines: Lines) -> pd.DataFrame:
    """All other differences, with single intervals."""
    table = []
    for task, fewer in product(PLAN["tasks"], PLAN["limits"]["fewer"]):
        pairs = [*SECONDARY, ("mask", "plain")]
        pairs += [(arm, "dense") for arm in (*MASKS, *PLAIN, *GROUPS, *REPORTED)]
        for pair in pairs:
            sides = [judged(lines, task, arm, fewer) for arm in pair]
            if len(sides[0].keys() & sides[1].keys()) > 1:
                about = {"task": task, "fewer": fewer, "contrast": " - ".join(pair)}
                table.append(about | as_line(minus(*sides), *sides))
    return pd.DataFrame(table)


def afterwards(lines: Lines) -> pd.DataFrame:
    """Differences that were named when the scores were known: the arm of effects, which the rows
    that choose do not always take, minus what they take and minus each plain way."""
    table = []
    for task, other in product(PLAN["primary"]["tasks"], (*GROUPS, *PLAIN)):
        sides = [judged(lines, task, arm, PLAN["primary"]["fewer"]) for arm in ("effects", other)]
        if len(sides[0].keys() & sides[1].keys()) > 1:
            about = {"task": task, "contrast": f"effects - {other}"}
            table.append(about | as_line(minus(*sides), *sides))
    return pd.DataFrame(table)


def scores(lines: Lines) -> pd.DataFrame:
    """Each arm's mean score and work over models."""
    table = []
    for task, fewer in product(PLAN["tasks"], PLAN["limits"]["fewer"]):
        for arm in ("dense", *GROUPS, *MASKS, *PLAIN, *REPORTED):
            own = [*judged(lines, task, arm, fewer).values()]
            if own:
                mean = estimate([line["score"] for line in own])
                works = [sum(line["work_judged"] for line in own) / len(own)]
                works += [sum(line.get("work", float("nan")) for line in own) / len(own)]
                table.append(
                    {"task": task, "fewer": fewer, "arm": arm, "models": len(own),
                     "score": mean.value, "low": mean.low, "high": mean.high,
                     "work_judged": works[0], "work": works[1]}
                )  # fmt: skip
    return pd.DataFrame(table)


def models(lines: Lines) -> pd.DataFrame:
    """Model by model what was chosen, and the judged scores."""
    table = []
    for (task, seed), own in sorted(lines.items()):
        for fewer in [line["fewer"] for line in ended(own)]:
            found: Line = {"task": task, "seed": seed, "fewer": fewer}
            found["dense"] = judged(lines, task, "dense", fewer)[seed]["score"]
            for group in GROUPS:
                line = judged(lines, task, group, fewer)[seed]
                found |= {f"{group}": line["name"], f"{group}_score": line["score"]}
            table.append(found)
    return pd.DataFrame(table)


def recovered(lines: Lines) -> pd.DataFrame:
    """Scores after training under what was chosen, and before."""
    table = []
    for (task, seed), own in sorted(lines.items()):
        for line in scored(own, "judge", "recovered "):
            name = line["name"].removeprefix("recovered ")
            before = named(own, "judge", name)
            assert before is not None
            arm = name.partition(": ")[0].rpartition(" ")[0] or name
            group = next((each for each, arms in GROUPS.items() if arm in arms), name)
            table.append(
                {"task": task, "seed": seed, "group": group, "name": name,
                 "before": before["score"], "after": line["score"]}
            )  # fmt: skip
    return pd.DataFrame(table)


def hours(lines: Lines) -> float:
    """The seconds of a core that all lines took, in hours; dense models are not in them."""
    return sum(line.get("seconds", 0) for own in lines.values() for line in own) / 3600


def main() -> None:
    """Prints and writes the tables."""
    lines = all_lines(RESULTS)
    for table in (primary, differences, afterwards, scores, models, recovered):
        found = table(lines)
        if found.empty:
            continue
        found.to_csv(RESULTS / f"{table.__name__}.csv", index=False, float_format="%.5f")
        print(found.round(3).to_string(), "\n")
    print(f"{hours(lines):.1f} core-hours")


if __name__ == "__main__":
    main()
