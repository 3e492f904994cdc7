"""The picture of score over speed, of one model a task, from results/ alone.

python experiments/24_time/figures.py
"""

from __future__ import annotations

from pathlib import Path

import contrasts
import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes

from masksearch.report import style

NAMES = {"dam": "DAM", "tpe": "TPE", "drawn": "hand-designed tiles"}
STYLES = style.styles_of(NAMES) | {"drawn": (style.INK, "D")}


def draw(axes: Axes, found: pd.DataFrame, task: str) -> None:
    """A line of DAM's masks and one of each hand-designed family; large marks are the masks that
    were chosen at the target, with quartiles of their speed."""
    for arm, title in NAMES.items():
        own, (colour, marker) = found[found["arm"] == arm], STYLES[arm]
        several, chosen = (
            own[own["several"] == each].sort_values("median") for each in (True, False)
        )
        for _, line in several.groupby(several["name"].str.replace("^[^:]*", "", regex=True)):
            axes.plot(line["median"], line["score"], color=colour, marker=marker, markersize=2.5,
                      linewidth=0.9)  # fmt: skip
        ends = np.abs(chosen[["low", "high"]].to_numpy().T - chosen["median"].to_numpy())
        axes.errorbar(chosen["median"], chosen["score"], xerr=ends, color=colour, marker=marker,
                      linestyle="", markersize=5, elinewidth=0.7, label=title)  # fmt: skip
    for dense in found.loc[found["arm"] == "dense", "score"]:
        axes.axhline(dense, color=style.GREY, linestyle="--", linewidth=0.9, label="dense")
    axes.axvline(contrasts.TARGET, color=style.GREY, linestyle=":", linewidth=0.9)
    style.clean(axes, "times as fast as dense attention", "accuracy")
    axes.set_title(task, fontsize=style.LABEL, color=style.INK)


@rc_context(style.PRINT)
def write(results: Path) -> None:
    """The picture of the lines that are there."""
    found = contrasts.front(contrasts.all_lines(results))
    tasks = [task for task in contrasts.PLAN["tasks"] if task in {*found["task"]}]
    figure = style.new_figure(style.PAGE, 2.8)
    panels = np.atleast_1d(figure.subplots(1, len(tasks)))
    for axes, task in zip(panels, tasks, strict=True):
        draw(axes, found[found["task"] == task], task)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=style.SMALL,
                  frameon=False)  # fmt: skip
    style.write_figure(figure, results / "time.png")


if __name__ == "__main__":
    write(contrasts.RESULTS)
