"""What follows from the lines of results/amended/: the contrasts of amendment.toml, what each arm
keeps, and `amended.png`: every dense model's score over the share of pairs, one panel a task.

    python experiments/22_as_it_is/amended.py
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from itertools import product

import figures
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from tables import (
    HERE,
    RESULTS,
    Line,
    Model,
    all_lines,
    as_line,
    best,
    mean_of_tasks,
    minus,
    named,
    scored,
)

from masksearch.analysis.stats import estimate, holm, holm_levels
from masksearch.report import style

PLAN = tomllib.loads((HERE / "amendment.toml").read_text(encoding="utf-8"))
BUDGETS = PLAN["models"]["budgets"]
TESTED, TESTED_AT = ("SST-2", "QQP"), 0.12  # (b) of the plan
FOUND_ON = "STS-B"  # its rows had shown the mask that follows the words
MEANS = {"mean": "", f"mean without {FOUND_ON}": FOUND_ON}
MOVED = ["task", "seed", "difference"]
OPPONENTS = {  # an arm -> how the names of its masks begin; the rows that choose prefer one
    "drawn": "hand {}: ",
    "same token": "hand {}: same token",
    "effects": "effects, ",
}


def mask_of(own: list[Line], arm: str, budget: float) -> str | None:
    """The name of the mask that stands for an arm on a model; None = none was chosen."""
    if arm in ("dense", "dam"):
        return arm if arm == "dense" else f"dam {budget}"
    lines = scored(own, "choice", OPPONENTS[arm].format(budget))
    lines = [line for line in lines if arm != "effects" or line["name"].endswith(f" {budget}")]
    return best(lines)["name"] if lines else None


def judged(
    lines: Mapping[Model, list[Line]], task: str, arm: str, budget: float
) -> dict[int, Line]:
    """Seed -> the judged line of an arm's mask, of the models that have ended."""
    found = {}
    for (of, seed), own in sorted(lines.items()):
        name = mask_of(own, arm, budget) if of == task and own[-1]["stage"] == "ended" else None
        if name and (line := named(own, "judge", name)):
            found[seed] = line
    return found


def contrasts(lines: Mapping[Model, list[Line]]) -> pd.DataFrame:
    """DAM minus the best drawn mask, the better of those that follow the words, and the better of
    first-order effects; the two planned tests with Holm's adjusted p and level. Where an opponent
    has every task, also the means over tasks, with and without the task on which the words' mask
    was found."""
    table: list[Line] = []
    for arm, task, budget in product(OPPONENTS, PLAN["tasks"], BUDGETS):
        if arm == "drawn" and PLAN["tasks"][task]["drawn"] != "all":
            continue
        sides = [judged(lines, task, each, budget) for each in ("dam", arm)]
        if len(sides[0].keys() & sides[1].keys()) > 1:
            about = {"contrast": f"dam - {arm}", "task": task, "budget": budget, "level": 0.95}
            table.append(about | as_line(minus(*sides), *sides) | {"sides": sides})
    family = [
        row
        for row in table
        if (row["contrast"], row["budget"]) == ("dam - effects", TESTED_AT)
        if row["task"] in TESTED
    ]
    p_values = [row["p"] for row in family]
    for row, p, level in zip(family, holm(p_values), holm_levels(p_values), strict=True):
        row |= as_line(minus(*row["sides"], level), *row["sides"])
        row |= {"adjusted_p": p, "level": level}
    for arm, budget in product(OPPONENTS, BUDGETS):
        of_tasks = {
            row["task"]: row
            for row in table
            if (row["contrast"], row["budget"]) == (f"dam - {arm}", budget)
        }
        for name, without in MEANS.items() if len(of_tasks) == len(PLAN["tasks"]) else ():
            kept = [row for task, row in of_tasks.items() if task != without]
            mean = mean_of_tasks([minus(*row["sides"]) for row in kept])
            ends = {"difference": mean.value, "low": mean.low, "high": mean.high}
            about = {"contrast": f"dam - {arm}", "task": name, "budget": budget, "level": 0.95}
            ahead = {"ahead": sum(row["ahead"] for row in kept), "models": mean.n}
            table.append(about | ends | ahead)
    return pd.DataFrame(table).drop(columns="sides")


def kept(lines: Mapping[Model, list[Line]]) -> pd.DataFrame:
    """What each arm keeps: the mean over models with its interval, and how much of what is above
    a constant answer."""
    table = []
    for task, budget, arm in product(PLAN["tasks"], BUDGETS, ("dense", "dam", *OPPONENTS)):
        own = judged(lines, task, arm, budget)
        dense = judged(lines, task, "dense", budget)
        if len(own) < 2 or (arm == "drawn" and PLAN["tasks"][task]["drawn"] != "all"):
            continue
        mean = estimate([line["score"] for line in own.values()])
        shares = [
            (own[seed]["score"] - own[seed]["constant"])
            / (dense[seed]["score"] - dense[seed]["constant"])
            for seed in own
        ]
        table.append(
            {"task": task, "budget": budget, "arm": arm, "models": len(own), "score": mean.value,
             "low": mean.low, "high": mean.high, "of dense": sum(shares) / len(shares),
             "density_judged": sum(line["density_judged"] for line in own.values()) / len(own)}
        )  # fmt: skip
    return pd.DataFrame(table)


def moved(lines: Mapping[Model, list[Line]]) -> pd.DataFrame:
    """How far the dense models that were made anew are from 22's, on the rows that choose."""
    earlier = all_lines()
    pairs = {
        model: [named(each, "choice", "dense") for each in (own, earlier.get(model, []))]
        for model, own in lines.items()
    }
    gaps = {m: new["score"] - old["score"] for m, (new, old) in pairs.items() if new and old}
    return pd.DataFrame([(*model, gap) for model, gap in gaps.items()], columns=MOVED)


def draw(axes: Axes, lines: Mapping[Model, list[Line]], task: str) -> None:
    """DAM's masks, the better of first-order effects, and the better of the masks that follow the
    words: the mean over the dense models, and a point for each of them."""
    dense = [line["score"] for line in judged(lines, task, "dense", BUDGETS[0]).values()]
    shown = {
        "dam": (style.ORANGE, "^", "DAM"),
        "effects": (style.GREEN, "p", "first-order effects"),
        "same token": (style.INK, "D", "hand-designed: the same token, [CLS], a window"),
    }
    for arm, (colour, marker, name) in shown.items():
        cells = [[*judged(lines, task, arm, budget).values()] for budget in BUDGETS]
        points = [(line["density_judged"], line["score"]) for own in cells for line in own]
        axes.plot(*zip(*points, strict=True), marker, color=colour, markersize=3, alpha=0.45,
                  markeredgewidth=0)  # fmt: skip
        means = [pd.DataFrame(own)[["density_judged", "score"]].mean() for own in cells if own]
        axes.plot([m.iloc[0] for m in means], [m.iloc[1] for m in means], marker=marker,
                  color=colour, markersize=5, linewidth=1.2, label=name)  # fmt: skip
    axes.axhline(sum(dense) / len(dense), color=style.GREY, linestyle="--", linewidth=0.9,
                 label="dense")  # fmt: skip
    style.clean(axes, "share of the pairs", figures.UNITS.get(task, "accuracy"))
    axes.set_title(task, fontsize=style.LABEL, color=style.INK)


@rc_context(style.PRINT)
def picture(lines: Mapping[Model, list[Line]]) -> None:
    """Draws amended.png."""
    figure = style.new_figure(10.2, 3.2)
    tasks = [task for task in PLAN["tasks"] if judged(lines, task, "dam", BUDGETS[0])]
    panels = figure.subplots(1, len(tasks))
    for axes, task in zip(panels, tasks, strict=True):
        draw(axes, lines, task)
    handles, labels = panels[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=8, fontsize=style.SMALL,
                  frameon=False)  # fmt: skip
    style.write_figure(figure, RESULTS / "amended.png")


def main() -> None:
    """Prints and writes the tables, and draws."""
    lines = all_lines(RESULTS / "amended")
    picture(lines)
    for table in (contrasts, kept, moved):
        found = table(lines)
        path = RESULTS / f"amended_{table.__name__}.csv"
        found.to_csv(path, index=False, float_format="%.5f")
        print(found.round(3).to_string(), "\n")


if __name__ == "__main__":
    main()
