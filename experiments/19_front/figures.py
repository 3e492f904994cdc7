"""Figures of what was found, from results/ alone.

    python experiments/19_front/figures.py    # also writes the tables that they show

`front.png` has masks of one budget with their judged scores, and the front; `tokens.png` the
score on search rows over tokens spent; `masks.png` what every arm keeps at each budget.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import tables
from matplotlib.axes import Axes
from secondary import CONTROLS, attained, rivals, secondary

from masksearch.report import style

HERE = Path(__file__).parent
NAMES = {"dam": "DAM", "tpe": "TPE", "random": "random search"}
STYLES = style.styles_of(NAMES)
SHOWN = 0.2  # the budget whose masks front.png has


class Found(NamedTuple):
    """Of one task: judged masks, means of searches, drawn rivals, and which pairs heads keep."""

    scores: pd.DataFrame
    searches: pd.DataFrame
    opponents: pd.DataFrame
    shares: dict[str, list[list[float]]]


def median_search(searches: pd.DataFrame, arm: str) -> int:
    """The search in the middle of its arm."""
    own = searches[searches["arm"] == arm].sort_values("score")
    return int(own["search"].iloc[len(own) // 2])


def short(name: str) -> str:
    """A drawn mask's name without its budget, as short as a panel is narrow."""
    return name.rsplit(" ", 1)[0].replace("widest window and", "window,")


def show(axes: Axes, kept: Sequence[Sequence[float]], title: str, below: str) -> None:
    """Queries down, keys across; the darker, the more heads keep a pair."""
    axes.imshow(kept, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=style.LABEL, color=style.INK)
    axes.set_xlabel(below, fontsize=style.LABEL, color=style.INK)


def draw_front(axes: Axes, scores: pd.DataFrame, opponents: pd.DataFrame) -> None:
    """A thin line a search, a thick one for the median that its arm attains."""
    densities = np.linspace(0.1, 0.6, 101).tolist()
    median = attained(scores, densities)
    for arm, title in NAMES.items():
        colour, marker = STYLES[arm]
        for _, own in scores[scores["arm"] == arm].groupby("where"):
            own = own.sort_values("density")
            axes.plot(own["density"], own["score"], color=colour, linewidth=0.5, alpha=0.6,
                      marker=marker, markersize=2.5, markeredgewidth=0)  # fmt: skip
        middle = median[(median["arm"] == arm) & (median["score"] > 0)]
        axes.plot(middle["density"], middle["score"], color=colour, linewidth=1.8, label=title)
    if len(opponents):
        axes.plot(opponents["density"], opponents["judged"], "D", color=style.INK, markersize=4,
                  label="drawn by hand, best on search rows")  # fmt: skip
    for name, line in (("random keys", ":"), ("dense", "--")):
        own = scores[scores["arm"] == name].sort_values("density")
        if name == "dense" and len(own):
            axes.axhline(own["score"].iloc[0], color=style.GREY, linestyle=line, label=name)
        elif len(own):
            axes.plot(own["density"], own["score"], color=style.GREY, linestyle=line, label=name)
    style.clean(axes, "share of the pairs of real tokens that is kept", "STS-B, Pearson")


def front(found: Found, out: Path) -> None:
    """Masks of one budget, and the front."""
    scores, opponents = found.scores, found.opponents
    drawn = scores[scores["where"] == "drawn"]
    panels = {  # name in masks.json -> title, judged score
        f"{own.arm} {own.budget:g}": (own.arm, own.score)
        for own in drawn[drawn["arm"].isin(CONTROLS)].sort_values("arm").itertuples()
        if own.budget in (1, SHOWN)
    }
    for rival in opponents[opponents["budget"] == SHOWN].itertuples():
        panels[rival.mask] = f"by hand: {short(rival.mask)}", rival.judged
    for arm, title in NAMES.items():
        number = median_search(found.searches, arm)
        own = scores[(scores["arm"] == arm) & (scores["where"] == f"search {number}")]
        panels[f"{arm} {SHOWN} {number}"] = title, own.set_index("budget")["score"][SHOWN]
    figure = style.new_figure(10.2, 4.2)
    left, right = figure.subfigures(1, 2, width_ratios=[1.1, 1])
    for axes in left.subplots(2, 3).flat:
        axes.set_axis_off()
    for axes, (name, (title, score)) in zip(left.axes[: len(panels)], panels.items(), strict=True):
        axes.set_axis_on()
        show(axes, found.shares[name], title, f"score {score:.3f}")
    draw_front(right.subplots(), scores, opponents)
    right.legend(loc="outside lower center", ncols=3, fontsize=style.SMALL, frameon=False)
    style.write_figure(figure, out / "front.png")


def over_tokens(results: Path, out: Path, budgets: Sequence[float]) -> None:
    """Mean over the budgets of the best score on search rows, over tokens spent."""
    figure = style.new_figure(style.PAGE, 3.0)
    axes = figure.subplots()
    for arm, title in NAMES.items():
        for number, path in enumerate(sorted(results.glob(f"{arm}_?.jsonl"))):
            lines = tables.read(path)
            spent = [each / 1e6 for each in accumulate(map(tables.tokens, lines))]
            best = [mean_best(lines[: count + 1], budgets) for count in range(len(lines))]
            label = title if not number else None
            axes.step(spent, best, where="post", color=STYLES[arm][0], linewidth=0.9, label=label)
    style.clean(axes, "million tokens (a backward pass counts two)", "score on search rows, mean")
    axes.legend(fontsize=style.SMALL, frameon=False)
    style.write_figure(figure, out / "tokens.png")


def mean_best(lines: Sequence[tables.Line], budgets: Sequence[float]) -> float:
    """Mean over the budgets of the best score so far; 0 where nothing is within one."""
    masks = list(filter(tables.scored, lines))
    best = [tables.best_within(masks, budget) for budget in budgets]
    return float(np.mean([line["score"] if line else 0.0 for line in best]))


def every_mask(found: Found, out: Path, budgets: Sequence[float]) -> None:
    """A row a budget: the drawn mask, and what the middle search of each arm chose."""
    opponents = found.opponents
    figure = style.new_figure(style.PAGE, 1.9 * len(budgets))
    for budget, row in zip(budgets, figure.subplots(len(budgets), 4, squeeze=False), strict=True):
        titles = {
            f"{arm} {budget} {median_search(found.searches, arm)}": NAMES[arm] for arm in NAMES
        }
        for rival in opponents[opponents["budget"] == budget].itertuples():
            titles = {rival.mask: short(rival.mask)} | titles
        for axes in row:
            axes.set_axis_off()
        for axes, (name, title) in zip(row[: len(titles)], titles.items(), strict=True):
            axes.set_axis_on()
            show(axes, found.shares[name], title, f"budget {budget:g}")
    style.write_figure(figure, out / "masks.png")


def write(results: Path, budgets: Sequence[float]) -> None:
    """Every table and figure that the lines allow so far."""
    tables.write(results, budgets)
    over_tokens(results, results, budgets)
    if (results / "searches_STS-B.csv").is_file():
        table = secondary(results, budgets)
        table.to_csv(results / "secondary.csv", index=False, float_format="%.5f")
        print(table.to_string(index=False))
        scores = tables.beside_drawn(results, "STS-B")
        searches = pd.read_csv(results / "searches_STS-B.csv")
        shares = json.loads((results / "masks.json").read_text("utf-8"))
        found = Found(scores, searches, rivals(results, scores, budgets), shares)
        front(found, results)
        every_mask(found, results, budgets)


if __name__ == "__main__":
    write(HERE / "results", tables.PLAN["budgets"]["densities"])
