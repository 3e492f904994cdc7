"""Figure of a search's front that was judged again, beside hand-designed and random fronts."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from masksearch.analysis.compare import ComparedMasks, MaskRuns
from masksearch.report.figures.front import (
    Mark,
    draw_level,
    draw_steps,
    new_front,
    say_nothing,
    write_legend,
    write_names,
)
from masksearch.report.figures.style import INK, ORANGE, SKY

ARMS = {  # colour, marker and line of each front
    "searched": (ORANGE, "s", "-"),
    "hand-designed": (INK, "D", "--"),
    "random": (SKY, "o", "-."),
}
MARGIN = 3.0  # points of sparsity that a front is drawn beyond its densest mask


def plot_fronts(comparison: ComparedMasks) -> Figure:
    """The searched front on fresh seeds, and those of hand-designed and random masks.

    Each front is drawn as the steps below which its masks dominate; the band is the 95% interval
    of the mask that makes the step. Small marks are masks off their kind's front. Crosses are the
    scores that the search itself had given to its masks. The numbers above the axes are trials.

    Args:
        comparison: One that was made with `front_of`.
    """
    score, entries = comparison.objectives[0], comparison.entries
    fronts = comparison.fronts
    searched = [
        entries[name] for name in comparison.promised if name in entries and entries[name].scores
    ]
    names: list[Mark] = [
        (100 * e.sparsity, e.score.mean, e.name.removeprefix("front "), ORANGE) for e in searched
    ]
    figure, axes = new_front(score, names)
    if fronts is None:
        return say_nothing(figure, axes)
    left = 100 * min(entries[each].sparsity for arm in fronts.arms.values() for each in arm.masks)
    for name, arm in fronts.arms.items():
        colour, marker, dash = ARMS[name]
        best = [entries[each] for each in arm.front]
        points = [(100 * each.sparsity, each.score.mean) for each in best]
        if points:
            draw_steps(axes, [(left - MARGIN, points[0][1]), *points], colour, name, dash)
            draw_band(axes, best, left - MARGIN, colour)
        for each in arm.masks:
            axes.plot(
                100 * entries[each].sparsity, entries[each].score.mean, marker, color=colour,
                markersize=4.0 if each in arm.front else 2.2, markeredgewidth=0, zorder=4,
            )  # fmt: skip
    held = {n: s for n, s in comparison.promised.items() if s is not None and n in entries}
    if held:
        axes.plot(
            [100 * entries[name].sparsity for name in held], list(held.values()), "x",
            color=ORANGE, markersize=4, markeredgewidth=0.8, zorder=3,
            label="scored by the search",
        )  # fmt: skip
    for entry in entries.values():
        if entry.sparsity == 0 and entry.scores:
            draw_level(axes, entry.name, entry.score.mean, entry.score.low, entry.score.high)
    write_names(axes, names)
    write_legend(figure, axes)
    return figure


def draw_band(axes: Axes, front: list[MaskRuns], left: float, colour: str) -> None:
    """The intervals of a front's masks: a band along its steps, and a bar at each mask."""
    known = [each for each in front if math.isfinite(each.score.low)]
    if not known:
        return
    x, low, high = np.array([(100 * e.sparsity, e.score.low, e.score.high) for e in known]).T
    axes.vlines(x, low, high, color=colour, linewidth=0.9, zorder=3)
    axes.fill_between(
        np.r_[left, x], np.r_[low[0], low], np.r_[high[0], high], step="pre", color=colour,
        alpha=0.16, linewidth=0, zorder=1,
    )  # fmt: skip
