"""The figure and the tables of what is judged, from results/ alone.

    python experiments/22_as_it_is/figures.py

`as_it_is.png` has score over the share of pairs that masks keep, one panel a task.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import tables
from matplotlib import rc_context
from matplotlib.axes import Axes

from masksearch.report import style

NAMES = {
    "dam": "DAM",
    "prune": "first-order effects",
    "random": "random search",
    "tpe": "TPE",
    "attention of pairs": "attention weights",
}
HAND = "best hand-designed"
UNITS = {"STS-B": "Pearson"}  # of the score; else accuracy


def draw(axes: Axes, found: pd.DataFrame, task: str) -> None:
    """A line an arm, with intervals over the dense models."""
    styles = style.styles_of(NAMES)
    for arm, name in {**NAMES, "hand-designed": HAND}.items():
        own = found[found["arm"] == arm].sort_values("density")
        colour, marker = styles.get(arm, (style.INK, "D"))
        ends = np.abs(own[["low", "high"]].to_numpy().T - own["score"].to_numpy())
        axes.errorbar(own["density"], own["score"], np.nan_to_num(ends), label=name, color=colour,
                      marker=marker, markersize=3.5, linewidth=1.2, elinewidth=0.7)  # fmt: skip
    keys = found[found["arm"] == "random keys"].sort_values("density")
    axes.plot(keys["density"], keys["score"], ":", color=style.GREY, label="random keys")
    dense = found.loc[found["arm"] == "dense", "score"].iloc[0]
    axes.axhline(dense, color=style.GREY, linestyle="--", linewidth=0.9, label="dense")
    style.clean(axes, "share of the query-key pairs", UNITS.get(task, "accuracy"))
    axes.set_title(task, fontsize=style.LABEL, color=style.INK)


@rc_context(style.PRINT)
def write(results: Path) -> None:
    """Tables and the figure of the lines that are there."""
    lines = tables.all_lines(results)
    for table in (tables.primary, tables.against_dense, tables.scores, tables.reuse):
        path = results / f"{table.__name__}.csv"
        table(lines).to_csv(path, index=False, float_format="%.5f")
    found = tables.scores(lines)
    figure = style.new_figure(10.2, 3.4)
    tasks = [task for task in tables.PLAN["tasks"] if task in {*found["task"]}]
    panels = np.atleast_1d(figure.subplots(1, len(tasks)))
    for axes, task in zip(panels, tasks, strict=True):
        draw(axes, found[found["task"] == task], task)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=8, fontsize=style.SMALL,
                  frameon=False)  # fmt: skip
    style.write_figure(figure, results / "as_it_is.png")


if __name__ == "__main__":
    write(tables.RESULTS)
