"""Figures of a search: sparsity against score with its fronts, and hypervolume over trials."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from masksearch.analysis.compare import ComparedMasks, Kind, MaskRuns
from masksearch.analysis.pareto import hypervolume_curve, pareto
from masksearch.contracts import Objective, Record
from masksearch.report.figures.masks import plot_masks
from masksearch.report.figures.style import (
    GREY,
    INK,
    ORANGE,
    PINK,
    TITLES,
    clean,
    new_figure,
    save,
    styles_of,
)

__all__ = ["plot_frontier", "plot_hypervolume", "plot_masks", "save"]

HAND = ("#555555", "D")  # of the hand-designed masks of a search
KINDS: dict[Kind, tuple[str, str]] = {
    "searched": (ORANGE, "s"),
    "candidate": (PINK, "^"),
    "hand-designed": (INK, "D"),
    "control": (GREY, "o"),
}
LEVELS = ("dense", "oracle")  # drawn as level lines
SPARSITY = Objective("sparsity", "max", 0.0)

Point = tuple[float, float, str, str]  # sparsity in percent, score, name, colour


def plot_frontier(
    records: Iterable[Record],
    objectives: Sequence[Objective],
    comparison: ComparedMasks | None = None,
) -> Figure:
    """Sparsity against score: every full-fidelity record, one front per strategy.

    Baselines (origin `baseline:NAME`) form the front of the hand-designed masks. A front is
    drawn as the steps below which everything is dominated. The masks of a comparison come
    with 95% intervals over seeds; dense and oracle are level lines. Masks that have a name bear
    a number, and the legend says whose it is.

    Args:
        records: Of any status; early-stopped and failed ones are not drawn.
        objectives: The first one is the y axis.
        comparison: Masks that were judged over several seeds under the same protocol.
    """
    score = objectives[0]
    figure = new_figure(8.4, 5.6)
    axes = figure.add_subplot()
    title = TITLES.get(score.name, score.name.replace("_", " "))
    better = "higher" if score.goal == "max" else "lower"
    clean(axes, TITLES["sparsity"], f"{title}, {better} is better")
    groups: dict[str, list[Record]] = {}
    for record in records:
        if record.scored and math.isfinite(record.value(score.name)):
            hand = record.origin.startswith("baseline:")
            name = "hand-designed" if hand else record.origin or "search"
            groups.setdefault(name, []).append(record)
    entries = list(comparison.entries.values()) if comparison is not None else []
    entries = [entry for entry in entries if entry.scores and math.isfinite(entry.sparsity)]
    if not groups and not entries:
        middle = axes.transAxes
        axes.text(0.5, 0.5, "no finished trial", transform=middle, ha="center", fontsize=13)
        return figure
    styles = styles_of(name for name in groups if name != "hand-designed")
    levels: dict[str, float] = {}
    points: dict[str, Point] = {}  # by name; a comparison's go before a search's
    for name, group in groups.items():
        colour, marker = styles.get(name, HAND)
        known = [(record, record.origin.partition(":")[2]) for record in group]
        for record, title in known:
            if title in LEVELS:
                levels.setdefault(title, record.value(score.name))
            if title and title != "dense":
                points.setdefault(title, (*place(record, score), title, colour))
        # dense is a level line; at 0% it would squeeze the masks to one side
        shown = [record for record, title in known if title != "dense"]
        draw_group(axes, name, shown, score, (colour, marker), faint=bool(entries))
    for entry in entries:
        if entry.name in LEVELS:
            levels[entry.name] = entry.score.mean
        if entry.name != "dense":
            draw_entry(axes, entry)
            colour = KINDS[entry.kind][0]
            points[entry.name] = (100 * entry.sparsity, entry.score.mean, entry.name, colour)
    for name, level in levels.items():
        axes.axhline(
            level, color=GREY, linewidth=1, linestyle=":", zorder=1,
            label="dense" if name == "dense" else None,
        )  # fmt: skip
    axes.margins(x=0.06, y=0.1)
    handles, names = axes.get_legend_handles_labels()
    unique: dict[str, Any] = dict(zip(names, handles, strict=True))
    figure.legend(
        [*unique.values(), *draw_numbers(axes, list(points.values()))], [*unique, *points],
        loc="outside lower center", ncols=4, fontsize=9, frameon=False,
    )  # fmt: skip
    return figure


def draw_numbers(axes: Axes, points: Sequence[Point]) -> list[Line2D]:
    """Numbers the points; returns the numbers as handles of a legend.

    Points that lie on each other share a place, and their numbers stand in one line.
    """
    handles: list[Line2D] = []
    places: dict[tuple[float, float], list[str]] = {}
    for number, (x, y, _, colour) in enumerate(points, start=1):
        places.setdefault((round(x, 1), float(f"{y:.3g}")), []).append(f"{number}")
        mark = {"marker": f"${number}$", "markersize": 5 + 3 * len(str(number))}
        handles.append(Line2D([], [], linestyle="", color=colour, **mark))  # type: ignore[arg-type]
    for (x, y), numbers in places.items():
        axes.annotate(
            ", ".join(numbers), (x, y), xytext=(5, 4), textcoords="offset points", fontsize=9,
            color=INK, path_effects=[withStroke(linewidth=2.5, foreground="white")], zorder=6,
        )  # fmt: skip
    return handles


def place(record: Record, score: Objective) -> tuple[float, float]:
    """Coordinates of a record: sparsity in percent, score."""
    return 100 * record.value("sparsity"), record.value(score.name)


def draw_group(
    axes: Axes,
    name: str,
    records: list[Record],
    score: Objective,
    style: tuple[str, str],
    faint: bool,
) -> None:
    """One strategy's records and the steps of their front."""
    if not records:
        return
    colour, marker = style
    x, y = zip(*(place(record, score) for record in records), strict=True)
    alpha = 0.4 if faint else 0.65
    axes.scatter(x, y, s=26, color=colour, marker=marker, alpha=alpha, linewidths=0, zorder=2)
    front = sorted(place(record, score) for record in pareto(records, (score, SPARSITY)))
    hand = name == "hand-designed"
    axes.plot(
        *zip(*front, strict=True),
        drawstyle="steps-pre",
        color=colour,
        linewidth=1.6,
        linestyle="--" if hand else "-",
        marker=marker,
        markersize=5,
        label="hand-designed, in the search" if hand else f"{name} and its front",
        zorder=3,
    )


def draw_entry(axes: Axes, entry: MaskRuns) -> None:
    """One mask of a comparison with its interval; a hollow marker has one seed only."""
    colour, marker = KINDS[entry.kind]
    score = entry.score
    many = score.n_seeds > 1
    axes.errorbar(
        [100 * entry.sparsity],
        [score.mean],
        yerr=[[score.mean - score.low], [score.high - score.mean]] if many else None,
        fmt=marker,
        markersize=7,
        color=colour,
        markerfacecolor=colour if many else "white",
        elinewidth=1.4,
        capsize=3,
        label=f"{entry.kind}, {'95% interval' if many else 'one seed'}",
        zorder=4,
    )


def plot_hypervolume(
    studies: Mapping[str, Iterable[Record]], objectives: Sequence[Objective]
) -> Figure:
    """Hypervolume of each strategy's front over counted trials and over compute.

    Baselines are left out: every strategy starts from nothing. Failed and stopped trials add
    their seconds.

    Raises:
        ValueError: If a `worst` is not finite.
    """
    figure = new_figure(9.6, 4.2)
    by_trials, by_seconds = figure.subplots(1, 2, sharey=True)
    curves = {
        name: hypervolume_curve(
            [record for record in records if not record.origin.startswith("baseline:")],
            objectives,
        )
        for name, records in studies.items()
    }
    longest = max((curve[-1].seconds for curve in curves.values() if curve), default=0.0)
    units = (("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0))
    unit, size = next(((u, s) for u, s in units if longest >= 2 * s), units[-1])
    for name, (colour, marker) in styles_of(studies).items():
        curve = curves[name]
        style: dict[str, Any] = {
            **{"drawstyle": "steps-post", "color": colour, "linewidth": 1.8, "label": name},
            **{"marker": marker, "markersize": 5, "markevery": max(1, len(curve) // 10)},
        }
        heights = [0.0, *(progress.hypervolume for progress in curve)]
        by_trials.plot([0, *(progress.trials for progress in curve)], heights, **style)
        by_seconds.plot([0.0, *(p.seconds / size for p in curve)], heights, **style)
    worst = ", ".join(f"{objective.name} {objective.worst:g}" for objective in objectives)
    clean(by_trials, "counted trials (finished, reused or stopped)", "hypervolume dominated")
    clean(by_seconds, f"compute, failed trials included ({unit})", "")
    figure.suptitle(f"measured from: {worst}", fontsize=10, color="#555555")
    by_trials.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (by_trials, by_seconds):
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
    if curves:
        by_trials.legend(fontsize=10, frameon=False, loc="lower right")
    return figure
