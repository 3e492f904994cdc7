"""The picture of score over work, one panel a task, from results/ alone.

python experiments/25_live_tokens/figures.py
"""

from __future__ import annotations

from pathlib import Path

import contrasts
import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes

from masksearch.report import style

NAMES = {  # arm -> colour, marker, words
    "effects": (style.ORANGE, "^", "words by effects"),
    "tpe": (style.BLUE, "o", "TPE"),
    "hand": (style.INK, "D", "hand-designed schedule"),
    "layers": (style.GREEN, "s", "layers fewer"),
    "cut": (style.GREY, "v", "inputs cut"),
    "layers and cut": (style.GREY, "P", "a layer fewer, inputs cut"),
    "attended": (style.PINK, "x", "most attention, text by text"),
}


def draw(axes: Axes, lines: contrasts.Lines, task: str) -> None:
    """The mean of each arm over the models at each limit, and a small mark for each model."""
    for arm, (colour, marker, words) in NAMES.items():
        means = []
        for fewer in contrasts.PLAN["limits"]["fewer"]:
            own = [*contrasts.judged(lines, task, arm, fewer).values()]
            points = [(line["work_judged"], line["score"]) for line in own]
            if not points:
                continue
            axes.plot(*zip(*points, strict=True), marker, color=colour, markersize=2.5, alpha=0.4,
                      markeredgewidth=0.5, linestyle="")  # fmt: skip
            means.append(np.mean(points, 0))
        if means:
            axes.plot(*zip(*means, strict=True), marker=marker, color=colour, markersize=5,
                      linewidth=1.0, label=words)  # fmt: skip
    dense = contrasts.judged(lines, task, "dense", contrasts.PLAN["primary"]["fewer"])
    mean = np.mean([line["score"] for line in dense.values()])
    axes.axhline(mean, color=style.GREY, linestyle="--", linewidth=0.9, label="dense")
    style.clean(axes, "share of the work", "accuracy")
    axes.margins(y=0.1)
    axes.set_title(task, fontsize=style.LABEL, color=style.INK)


@rc_context(style.PRINT)
def write(results: Path) -> None:
    """The picture of the lines that are there."""
    lines = contrasts.all_lines(results)
    fewer = contrasts.PLAN["primary"]["fewer"]
    tasks = [
        task
        for task in contrasts.PLAN["primary"]["tasks"]
        if contrasts.judged(lines, task, "dense", fewer)
    ]
    figure = style.new_figure(style.PAGE, 3.0)
    panels = np.atleast_1d(figure.subplots(1, len(tasks)))
    for axes, task in zip(panels, tasks, strict=True):
        draw(axes, lines, task)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=style.SMALL,
                  frameon=False)  # fmt: skip
    style.write_figure(figure, results / "live_tokens.png")


if __name__ == "__main__":
    write(contrasts.RESULTS)
