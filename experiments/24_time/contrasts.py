"""What follows from the lines of results/: what the plan compares, and how fast each mask is.

python experiments/24_time/contrasts.py
"""

from __future__ import annotations

import re
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
    minus,
    named,
    rows_of,
    scored,
    tasks_in,
)

from masksearch.analysis.row_scores import RowScores  # noqa: E402
from masksearch.analysis.stats import estimate, holm, holm_levels, paired_difference  # noqa: E402

RESULTS = HERE / "results"
PLAN = tomllib.loads((HERE / "plan.toml").read_text(encoding="utf-8"))
TARGET, ENOUGH = PLAN["target"]["times"], PLAN["margin"]["enough"]
ARMS = [*PLAN["arms"], "drawn"]
FIRST = slice(PLAN["times"]["hours"])  # the timings that count, where there are more
Lines = Mapping[Model, list[Line]]


def mask_of(own: list[Line], arm: str) -> str:
    """The name of the mask that stands for an arm: of drawn ones that of the choosing rows."""
    return best(scored(own, "choice", "drawn: "))["name"] if arm == "drawn" else arm


def judged(lines: Lines, task: str, arm: str) -> dict[int, Line]:
    """Seed -> the judged line of an arm's mask, of the models that have ended."""
    found = {}
    for (of, seed), own in sorted(lines.items()):
        if of == task and any(line["stage"] == "time" for line in own):
            if line := named(own, "judge", mask_of(own, arm)):
                found[seed] = line
    return found


# -- times -------------------------------------------------------------------------------------
def speed_of(own: list[Line], name: str, counted: slice = FIRST) -> Line:
    """How many times as fast as dense a mask is: medians over the timings that count, of those at
    different hours; the least and the most of all."""
    times = pd.DataFrame(
        [each for each in own if each["stage"] == "time" and each["name"] == name]
    ).sort_values("hour")
    every, those = times["median"], times[counted]
    quartiles = {end: those[end].median() for end in ("low", "median", "high")}
    ends = {"timings": len(every), "least": every.min(), "most": every.max()}
    return quartiles | ends | {"met": quartiles["median"] >= TARGET}


def speeds(lines: Lines) -> pd.DataFrame:
    """The speed of each chosen mask, and whether it meets the target."""
    return pd.DataFrame(
        {"task": task, "seed": seed, "arm": arm, "mask": line["name"], "density": line["density"]}
        | speed_of(lines[task, seed], line["name"])
        for task in PLAN["tasks"]
        for arm in ARMS
        for seed, line in judged(lines, task, arm).items()
    )


# -- scores ------------------------------------------------------------------------------------
def primary(lines: Lines, counted: slice = FIRST) -> pd.DataFrame:
    """DAM minus the best drawn mask, on the models on which both meet the target by the timings
    that count: a test for each task with Holm's adjusted p and level, and the 90 % interval for
    the margin."""
    family, table = [], []
    for task in PLAN["tasks"]:
        sides = [
            {n: line for n, line in judged(lines, task, arm).items()
             if speed_of(lines[task, n], line["name"], counted)["met"]}
            for arm in ("dam", "drawn")
        ]  # fmt: skip
        if len(sides[0].keys() & sides[1].keys()) > 1:
            family.append((task, sides))
    p_values = [minus(*sides).p_value for _, sides in family]
    for (task, sides), p, level in zip(family, holm(p_values), holm_levels(p_values), strict=True):
        gap, inner = minus(*sides, level), minus(*sides, 0.9)
        within = -ENOUGH < inner.low and inner.high < ENOUGH
        table.append(
            {"task": task} | as_line(gap, *sides) | {"adjusted_p": p, "level": level}
            | {"low_90": inner.low, "high_90": inner.high}
            | {"pays": p < 0.05 and gap.value > 0, "enough": within}
        )  # fmt: skip
    return pd.DataFrame(table)


def against_samplers(lines: Lines) -> pd.DataFrame:
    """DAM minus each sampler: the mean of the models, its interval over rows alone."""
    table = []
    for task in PLAN["tasks"]:
        for other in [arm for arm in PLAN["arms"] if arm != "dam"]:
            sides = [judged(lines, task, arm) for arm in ("dam", other)]
            if seeds := sorted(sides[0].keys() & sides[1].keys()):
                one, two = (RowScores.mean([rows_of(arm[n]) for n in seeds]) for arm in sides)
                rows, means = ({0: one}, {0: two}), ({0: one.score}, {0: two.score})
                gap = paired_difference(*means, rows_a=rows[0], rows_b=rows[1], seedless=True)
                about = {"task": task, "contrast": f"dam - {other}", "models": len(seeds)}
                ends = {"difference": gap.value, "low": gap.low, "high": gap.high}
                table.append(about | ends)
    return pd.DataFrame(table)


def scores(lines: Lines) -> pd.DataFrame:
    """The mean score of each arm, and minus dense, over all models, whatever their speed."""
    table = []
    for task in PLAN["tasks"]:
        dense = judged(lines, task, "dense")
        for arm in ("dense", *ARMS):
            own = judged(lines, task, arm)
            if own:
                mean = estimate([line["score"] for line in own.values()])
                gap = minus(own, {} if arm == "dense" else dense)
                table.append(
                    {"task": task, "arm": arm, "models": mean.n, "score": mean.value,
                     "low": mean.low, "high": mean.high, "minus_dense": gap.value,
                     "minus_dense_low": gap.low, "minus_dense_high": gap.high}
                )  # fmt: skip
    return pd.DataFrame(table)


def front(lines: Lines) -> pd.DataFrame:
    """Score and speed of the masks of several shares, and of the chosen ones of the same model."""
    table = []
    for (task, seed), own in lines.items():
        for line in scored(own, "judge") if scored(own, "judge", "front ") else ():
            name, about = line["name"], {"task": task, "seed": seed}
            about |= {each: line[each] for each in ("name", "density", "score")}
            speed = {"median": 1.0} if name == "dense" else speed_of(own, name)
            arm = re.sub(r"^front |\W.*", "", name)
            table.append(about | {"arm": arm, "several": name.startswith("front ")} | speed)
    return pd.DataFrame(table)


def main() -> None:
    """Prints and writes the tables."""
    lines = all_lines(RESULTS)
    print(tasks_in(lines))
    for table in (primary, against_samplers, scores, speeds, front):
        made = table(lines)
        made.to_csv(RESULTS / f"{table.__name__}.csv", index=False, float_format="%.5f")
        print(table.__name__, made.round(3).to_string(), "", sep="\n")


if __name__ == "__main__":
    main()
