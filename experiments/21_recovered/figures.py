"""The figure and the tables of what was found, from results/ alone.

    python experiments/21_recovered/figures.py

`front.png` has masks of one budget beside each other, and scores over the pairs that are kept, as
masks are and after recovery.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tables
from matplotlib import rc_context
from matplotlib.axes import Axes

from masksearch.report import style

NAMES = {"dam": "DAM", "random": "random search", "tpe": "TPE", "prune": "first-order effects"}
HAND = "hand-designed, best on search rows"
SHOWN = 0.12  # the budget whose masks stand beside each other


def draw(axes: Axes, found: pd.DataFrame, title: str) -> None:
    """A line an arm, with intervals over the dense models."""
    styles = style.styles_of(NAMES)
    for arm, name in {**NAMES, "hand": HAND}.items():
        own = found[found["arm"] == arm].sort_values("density")
        if own.empty:
            continue
        colour, marker = styles.get(arm, (style.INK, "D"))
        ends = np.abs(own[["low", "high"]].to_numpy().T - own["score"].to_numpy())
        axes.errorbar(own["density"], own["score"], np.nan_to_num(ends), label=name, color=colour,
                      marker=marker, markersize=3.5, linewidth=1.2, elinewidth=0.7)  # fmt: skip
    keys = found[found["arm"] == "random keys"].sort_values("density")
    axes.plot(keys["density"], keys["score"], ":", color=style.GREY, label="random keys")
    for dense in found.loc[found["arm"] == "dense", "score"]:
        axes.axhline(dense, color=style.GREY, linestyle="--", linewidth=0.9, label="dense")
    style.clean(axes, "share of the non-padding query-key pairs", "STS-B, Pearson")
    axes.set_title(title, fontsize=style.LABEL, color=style.INK)


def show(axes: Axes, mask: dict[str, Any], score: float) -> None:
    """A mask, queries down, keys across; the darker, the more heads of all layers keep a pair."""
    axes.imshow(mask["shares"], cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.set_title(mask["title"], fontsize=style.LABEL, color=style.INK)
    axes.set_xlabel(f"score {score:.3f}", fontsize=style.LABEL, color=style.INK)


@rc_context(style.PRINT)
def write(results: Path) -> None:
    """Tables and the figure of the lines that are there."""
    lines = tables.all_lines(results)
    after, before = tables.scores(lines), tables.scores(lines, "none")
    after.to_csv(results / "scores.csv", index=False, float_format="%.4f")
    before.to_csv(results / "as_it_is.csv", index=False, float_format="%.4f")
    tables.primary(lines).to_csv(results / "primary.csv", index=False, float_format="%.5f")
    tables.secondary(lines).to_csv(results / "secondary.csv", index=False, float_format="%.5f")
    figure = style.new_figure(10.2, 3.6)
    left, right = figure.subfigures(1, 2, width_ratios=[1, 1.5])
    shown = json.loads((results / "masks.json").read_text("utf-8"))
    first = min(lines)  # whose masks are shown
    own = tables.scores({first: lines[first]}).set_index(["arm", "budget"])["score"]
    for axes, mask in zip(left.subplots(2, 2).ravel(), shown, strict=True):
        show(axes, mask, own[mask["arm"], mask["budget"]])
    panels = right.subplots(1, 2, sharey=True)
    draw(panels[0], before, "as they are")
    draw(panels[1], after, "after recovery")
    panels[1].set_ylabel("")
    handles, labels = panels[1].get_legend_handles_labels()
    right.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=style.SMALL,
                 frameon=False)  # fmt: skip
    style.write_figure(figure, results / "front.png")


if __name__ == "__main__":
    write(tables.RESULTS)
