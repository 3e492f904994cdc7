"""Tables and figures of what was found, from results/ alone.

    python experiments/19_front/figures.py

`front.png` has masks of one budget with their judged scores, and the front; `tokens.png` the
score on search rows over tokens spent; `masks.png` what every arm keeps at each budget;
`layers.png` and `layers.csv` what DAM keeps in each layer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import kept
import numpy as np
import pandas as pd
import tables
from matplotlib import rc_context
from matplotlib.axes import Axes

from masksearch.report import style

NAMES = {"dam": "DAM", "tpe": "TPE", "random": "random search"}
STYLES = style.styles_of(NAMES)
SHOWN = 0.2  # the budget whose masks front.png has
Panels = dict[str, tuple[str, str]]  # name in masks.json -> title, and what stands below
Searches = dict[str, int]  # arm -> the number of one
Layers = dict[tuple[int, float], np.ndarray]  # search, budget -> [layers, queries, keys]
BY_LAYER = (0.3, SHOWN)  # the budgets of layers.png


def median_searches(results: Path, budgets: Sequence[float]) -> Searches:
    """Arm -> the search in the middle of those that are judged whole."""
    picked, scores = tables.chosen(results, budgets), tables.judged(results, "STS-B")
    means = tables.by_search(picked, scores).sort_values("score")
    numbers = {arm: means.loc[means["arm"] == arm, "search"].tolist() for arm in tables.ARMS}
    return {arm: own[len(own) // 2] for arm, own in numbers.items() if own}


def layers_of_dam(results: Path, budgets: Sequence[float]) -> Layers:
    """In each layer of DAM's chosen masks the share of heads that keep a pair, at the length of a
    usual row."""
    length, found = tables.PLAN["budgets"]["tokens_a_row"], dict[tuple[int, float], np.ndarray]()
    for (arm, number), lines in tables.searches(results).items():
        for budget in budgets if arm == "dam" else ():
            if line := tables.best_within(lines, budget):
                bits = kept.unpacked(line["mask"]).bits[..., :length, :length]
                found[number, budget] = bits.float().mean(1).numpy()
    return found


def short(name: str) -> str:
    """A drawn mask's name without its budget, as short as a panel is narrow; signed shifts that
    are as wide as the text are called what they are."""
    kind, budget = name.rsplit(" ", 1)
    if kind == "signed shifts" and float(budget) >= SHOWN:
        return "a head each way"
    return kind.replace("widest window and", "window,")


def show(grid: Sequence[Axes], panels: Panels, shares: Mapping[str, Any]) -> None:
    """Masks, queries down, keys across; the darker, the more heads keep a pair."""
    for axes in grid:
        axes.set_axis_off()
    for axes, (name, (title, below)) in zip(grid[: len(panels)], panels.items(), strict=True):
        axes.set_axis_on()
        axes.imshow(shares[name], cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        axes.set(xticks=[], yticks=[])
        axes.set_title(title, fontsize=style.LABEL, color=style.INK)
        axes.set_xlabel(below, fontsize=style.LABEL, color=style.INK)


def draw_front(
    axes: Axes, scores: pd.DataFrame, opponents: pd.DataFrame, heads: pd.DataFrame
) -> None:
    """A thin line a search, a thick one for the median that its arm attains."""
    median = tables.attained(scores, np.linspace(0.1, 0.6, 101).tolist())
    for arm, title in NAMES.items():
        colour, marker = STYLES[arm]
        for _, own in scores[scores["arm"] == arm].sort_values("density").groupby("where"):
            axes.plot(own["density"], own["score"], color=colour, linewidth=0.5, alpha=0.6,
                      marker=marker, markersize=2.5, markeredgewidth=0)  # fmt: skip
        middle = median[(median["arm"] == arm) & (median["score"] > 0)]
        axes.plot(middle["density"], middle["score"], color=colour, linewidth=1.8, label=title)
    if len(opponents):
        axes.plot(opponents["density"], opponents["judged"], "D", color=style.INK, markersize=4,
                  label="hand-designed, best on search rows")  # fmt: skip
    for arm, marker in {"full heads": "s", "heads each way": "D"}.items() if len(heads) else ():
        own = heads[heads["arm"] == arm]
        axes.plot(own["density"], own["score"], marker, color=style.INK, markersize=5,
                  fillstyle="none", label=f"{arm}, hand-designed")  # fmt: skip
    keys = scores[scores["arm"] == "random keys"].sort_values("density")
    if len(keys):
        axes.plot(keys["density"], keys["score"], ":", color=style.GREY, label="random keys")
    for dense in scores.loc[scores["arm"] == "dense", "score"]:
        axes.axhline(dense, color=style.GREY, linestyle="--", label="dense")
    style.clean(axes, "share of the non-padding query-key pairs that is kept", "STS-B, Pearson")


def draw_tokens(axes: Axes, results: Path, budgets: Sequence[float]) -> None:
    """Mean over the budgets of the best score on search rows, 0 without one, over tokens spent."""
    found, arms = tables.searches(results), [*NAMES]
    for arm, number in sorted(found, key=lambda search: arms.index(search[0])):
        best, lines = [], found[arm, number]
        for count in range(1, len(lines) + 1):
            within = [tables.best_within(lines[:count], budget) for budget in budgets]
            best.append(np.mean([line["score"] if line else 0.0 for line in within]))
        spent = [each / 1e6 for each in accumulate(map(tables.tokens, lines))]
        label = None if number else NAMES[arm]
        axes.step(spent, best, where="post", color=STYLES[arm][0], linewidth=0.9, label=label)
    style.clean(axes, "million tokens (a backward pass counts two)", "score on search rows, mean")
    axes.legend(fontsize=style.SMALL, frameon=False)


def panels_of_front(scores: pd.DataFrame, opponents: pd.DataFrame, middle: Searches) -> Panels:
    """Masks of one budget: controls, hand-designed, and the middle search of each arm."""
    at = scores.set_index(["where", "arm", "budget"])["score"]
    panels: Panels = {}
    for name, budget in (("dense", 1.0), ("random keys", SHOWN)):
        if ("drawn", name, budget) in at:
            panels[f"{name} {budget:g}"] = name, f"score {at['drawn', name, budget]:.3f}"
    for rival in opponents[opponents["budget"] == SHOWN].itertuples():
        panels[rival.mask] = f"by hand: {short(rival.mask)}", f"score {rival.judged:.3f}"
    for arm, title in NAMES.items():
        score = at[f"search {middle[arm]}", arm, SHOWN]
        panels[f"{arm} {SHOWN} {middle[arm]}"] = title, f"score {score:.3f}"
    return panels


@rc_context(style.PRINT)
def write_layers(results: Path, found: Layers, middle: int) -> None:
    """The share of its pairs that a layer keeps, in every search; the middle search's masks."""
    lines = [
        {"search": number, "budget": budget, "layer": layer, "share": table.mean()}
        for (number, budget), layers in found.items()
        for layer, table in enumerate(layers, 1)
    ]
    tables.save(pd.DataFrame(lines), results / "layers.csv")
    shown = {budget: found[middle, budget] for budget in BY_LAYER if (middle, budget) in found}
    figure = style.new_figure(style.PAGE, 1.45 * len(shown))
    grid = figure.subplots(len(shown), max(map(len, shown.values())), squeeze=False)
    for (budget, layers), row in zip(shown.items(), grid, strict=True):
        named = {f"layer {at}": table for at, table in enumerate(layers, 1)}
        kept_in = {name: f"{100 * table.mean():.0f} % kept" for name, table in named.items()}
        show(row, {name: (name, kept_in[name]) for name in named}, named)
        row[0].set_ylabel(f"budget {budget:g}", fontsize=style.LABEL, color=style.INK)
    style.write_figure(figure, results / "layers.png")


@rc_context(style.PRINT)
def write(results: Path, budgets: Sequence[float]) -> None:
    """Every table and figure that the lines allow so far."""
    tables.write(results, budgets)
    figure = style.new_figure(style.PAGE, 3.0)
    draw_tokens(figure.subplots(), results, budgets)
    style.write_figure(figure, results / "tokens.png")
    if not (middle := median_searches(results, budgets)):
        return
    shares = json.loads((results / "masks.json").read_text("utf-8"))
    scores = tables.beside_drawn(results, "STS-B")
    opponents = tables.rivals(results, scores, budgets)
    figure = style.new_figure(10.2, 4.2)
    left, right = figure.subfigures(1, 2, width_ratios=[1.1, 1])
    show(left.subplots(2, 3).ravel(), panels_of_front(scores, opponents, middle), shares)
    draw_front(right.subplots(), scores, opponents, tables.judged(results, "heads"))
    right.legend(loc="outside lower center", ncols=3, fontsize=style.SMALL, frameon=False)
    style.write_figure(figure, results / "front.png")
    if "dam" in middle:
        write_layers(results, layers_of_dam(results, budgets), middle["dam"])
    figure = style.new_figure(style.PAGE, 1.9 * len(budgets))
    for budget, row in zip(budgets, figure.subplots(len(budgets), 4, squeeze=False), strict=True):
        drawn = opponents.loc[opponents["budget"] == budget, "mask"]
        titles = {mask: short(mask) for mask in drawn}
        titles |= {f"{arm} {budget} {middle[arm]}": title for arm, title in NAMES.items()}
        show(row, {name: (title, f"budget {budget:g}") for name, title in titles.items()}, shares)
    style.write_figure(figure, results / "masks.png")


if __name__ == "__main__":
    write(Path(__file__).parent / "results", tables.PLAN["budgets"]["densities"])
