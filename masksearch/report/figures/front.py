"""Figures of sparsity against score: the fronts of searches, and of the masks of a comparison."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from masksearch.analysis.compare import ComparedMasks, Kind, MaskRuns
from masksearch.analysis.pareto import learned_nothing, on_front, sparsity_of
from masksearch.analysis.search_curves import Compute, band_of, curves_of
from masksearch.contracts import Objective, Record
from masksearch.report.figures.masks import plot_masks
from masksearch.report.figures.style import (
    BLUE,
    COLUMN,
    GREY,
    INK,
    LABEL,
    ORANGE,
    PAGE,
    PINK,
    SMALL,
    TITLES,
    clean,
    new_figure,
    save,
    styles_of,
)

__all__ = ["plot_compared", "plot_frontier", "plot_hypervolume", "plot_masks", "save"]

HAND = (INK, "D")  # of the hand-designed masks of a search
KINDS: dict[Kind, tuple[str, str]] = {
    "searched": (ORANGE, "s"),
    "candidate": (PINK, "^"),
    "hand-designed": HAND,
    "control": (GREY, "o"),
}
FRONT = BLUE  # of the line through the front of a comparison
NOTHING = (GREY, "x")  # of masks that have learned nothing
CONSTANT = "no better than a constant answer"
NAMED = 18  # names that stand side by side over a column; more take the width of a page
LONGEST = 26  # characters of a name in a figure

Mark = tuple[float, float, str, str]  # sparsity in percent, score, name, colour


def plot_frontier(
    records: Iterable[Record],
    objectives: Sequence[Objective],
    truth: Sequence[tuple[float, float]] = (),
) -> Figure:
    """Sparsity against score: every full-fidelity record, one front per strategy.

    Baselines (origin `baseline:NAME`) have their names above the axes and a front of their own.
    Full attention is a level line. A front is drawn as the steps below which everything is
    dominated; a cross has learned nothing, and is on none.

    Args:
        records: Of any status; early-stopped and failed ones are not drawn.
        objectives: The first one is the y axis.
        truth: Sparsity in [0, 1] and score of the true front's points, where it is known.
    """
    score = objectives[0]
    groups: dict[str, list[Record]] = {}
    names: list[Mark] = []
    levels: list[tuple[str, float]] = []
    for record in records:
        if not record.scored or not math.isfinite(record.value(score.name)):
            continue
        title = record.origin.partition("baseline:")[2]
        if sparsity_of(record) == 0 and title:
            said = f"{title}, {CONSTANT}" if learned_nothing(record) else title
            levels.append((said, record.value(score.name)))
            continue
        groups.setdefault("hand-designed" if title else record.origin or "search", []).append(
            record
        )
        if title:
            colour = NOTHING[0] if learned_nothing(record) else HAND[0]
            names.append((*place(record, score), title, colour))
    figure, axes = new_front(score, names)
    if not groups and not levels:
        return say_nothing(figure, axes)
    styles = styles_of(name for name in groups if name != "hand-designed")
    for name, group in groups.items():
        draw_group(axes, name, group, score, styles.get(name, HAND))
    for level in levels:
        draw_level(axes, *level)
    if truth:
        known = sorted((100 * sparsity, best) for sparsity, best in truth)
        draw_steps(axes, known, PINK, "true front")
    write_names(axes, names)
    write_legend(figure, axes)
    return figure


def plot_compared(comparison: ComparedMasks) -> Figure:
    """The front of a comparison: sparsity against the mean score over seeds of every mask.

    Bars are 95% intervals over seeds, and over rows where they are known; a hollow mark has
    one seed, and none. Colour and shape tell where a mask comes from, and its name stands
    above the axes; a cross has learned nothing. A line joins the masks that no other beats in
    both means. Full attention is a level line with its interval shaded.

    Args:
        comparison: Masks without a finished run are not drawn.
    """
    score = comparison.objectives[0]
    entries = [e for e in comparison.entries.values() if e.scores and math.isfinite(e.sparsity)]
    names: list[Mark] = [
        (100 * e.sparsity, e.score.mean, e.name, style_of(e)[0]) for e in entries if e.sparsity > 0
    ]
    figure, axes = new_front(score, names)
    if not entries:
        return say_nothing(figure, axes)
    for entry in entries:
        if entry.sparsity > 0:
            draw_entry(axes, entry)
        else:
            draw_level(axes, entry.name, entry.score.mean, entry.score.low, entry.score.high)
    sign = 1 if score.goal == "max" else -1
    learned = [entry for entry in entries if not entry.learned_nothing]
    gains = [(entry.sparsity, sign * entry.score.mean) for entry in learned]
    front = on_front(np.reshape(gains, (len(gains), 2)))
    best = [e for e, kept in zip(learned, front, strict=True) if kept and e.sparsity > 0]
    if best:
        best.sort(key=lambda entry: entry.sparsity)
        draw_steps(axes, [(100 * e.sparsity, e.score.mean) for e in best], FRONT, "their front")
    write_names(axes, names)
    write_legend(figure, axes)
    return figure


def new_front(score: Objective, marks: Sequence[Mark]) -> tuple[Figure, Axes]:
    """Empty axes of sparsity against that score, with room for the names of these marks."""
    letters = max((min(LONGEST, len(name)) for _, _, name, _ in marks), default=0)
    figure = new_figure(PAGE if len(marks) > NAMED else COLUMN, 3.0 + 0.0082 * SMALL * letters)
    axes = figure.add_subplot()
    title = TITLES.get(score.name, score.name.replace("_", " "))
    better = "higher" if score.goal == "max" else "lower"
    clean(axes, TITLES["sparsity"], f"{title}, {better} is better")
    axes.margins(x=0.05, y=0.08)
    return figure, axes


def say_nothing(figure: Figure, axes: Axes) -> Figure:
    """The figure of a study in which nothing has finished."""
    middle = axes.transAxes
    axes.text(0.5, 0.5, "no finished trial", transform=middle, ha="center", fontsize=LABEL)
    return figure


def write_legend(figure: Figure, axes: Axes) -> None:
    """What colours and shapes mean, once each, below the axes."""
    handles, names = axes.get_legend_handles_labels()
    unique: dict[str, Any] = dict(zip(names, handles, strict=True))
    figure.legend(
        unique.values(), unique, loc="outside lower center", ncols=2, fontsize=SMALL,
        frameon=False, handlelength=1.8, columnspacing=1.2, labelspacing=0.3,
    )  # fmt: skip


def write_names(axes: Axes, marks: Sequence[Mark]) -> None:
    """Writes the names of marks side by side above the axes, each with a line to its mark.

    There no name can lie on a mark or on another name.
    """
    if not marks:
        return
    marks = sorted(marks, key=lambda mark: (mark[0], -mark[1]))
    low, high = axes.get_xlim()
    bottom, top = axes.get_ylim()
    axes.set(xlim=(low, high), ylim=(bottom, top))  # what is drawn from here on moves nothing
    width = (PAGE if len(marks) > NAMED else COLUMN) - 0.75  # inches of the axes, about
    at = spread([(x - low) / (high - low) for x, *_ in marks], 1.35 * SMALL / 72 / width)
    over = axes.get_xaxis_transform()  # x as the data has it, y as a share of the axes' height
    for share, (x, y, name, colour) in zip(at, marks, strict=True):
        place = low + share * (high - low)
        axes.plot([x, x], [y, top], color="#C8C8C8", linewidth=0.5, zorder=0.5)
        axes.plot(
            [x, place], [1.0, 1.06], color="#C8C8C8", linewidth=0.5, clip_on=False, transform=over
        )
        text = name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
        axes.text(
            place, 1.075, text, transform=over, rotation=90, ha="center", va="bottom",
            fontsize=SMALL, color=colour,
        )  # fmt: skip


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Places in [0, 1], in order, at least `gap` apart and near the wanted ones.

    >>> spread([0.5, 0.5, 0.9], 0.2)
    [0.4, 0.6, 0.9]
    """
    gap = min(gap, 1 / max(1, len(wanted) - 1))
    steps = gap * np.arange(len(wanted))
    free = np.asarray(wanted) - steps  # of which places at least `gap` apart never fall
    right, left = np.maximum.accumulate(free), np.minimum.accumulate(free[::-1])[::-1]
    found = np.clip((left + right) / 2, 0, 1 - steps[-1]) + steps
    return [round(float(place), 6) for place in found]


def place(record: Record, score: Objective) -> tuple[float, float]:
    """Coordinates of a record: sparsity in percent, score."""
    return 100 * sparsity_of(record), record.value(score.name)


def draw_level(
    axes: Axes, name: str, mean: float, low: float = math.nan, high: float = math.nan
) -> None:
    """A mask that keeps every cell: at 0% it would squeeze the others to one side."""
    label = f"{name} (nothing left out)"
    axes.axhline(mean, color=GREY, linewidth=0.9, linestyle=":", zorder=1, label=label)
    if math.isfinite(low):
        axes.axhspan(low, high, color=GREY, alpha=0.12, linewidth=0, zorder=0)


def draw_steps(
    axes: Axes, points: Sequence[tuple[float, float]], colour: str, label: str, dash: str = "-"
) -> None:
    """A front, sparsest last, as the steps below which everything is dominated."""
    axes.plot(
        *zip(*points, strict=True), drawstyle="steps-pre", color=colour, linewidth=1.1,
        linestyle=dash, label=label, zorder=2,
    )  # fmt: skip


def draw_group(
    axes: Axes, name: str, records: list[Record], score: Objective, style: tuple[str, str]
) -> None:
    """One strategy's records and the steps of their front."""
    nothing = [record for record in records if learned_nothing(record)]
    records = [record for record in records if not learned_nothing(record)]
    if nothing:
        x, y = zip(*(place(record, score) for record in nothing), strict=True)
        colour, marker = NOTHING
        axes.scatter(
            x, y, s=12, color=colour, marker=marker, linewidths=0.8, zorder=3, label=CONSTANT
        )
    if not records:
        return
    colour, marker = style
    x, y = zip(*(place(record, score) for record in records), strict=True)
    hand = name == "hand-designed"
    axes.scatter(
        x, y, s=14, color=colour, marker=marker, alpha=0.75, linewidths=0, zorder=3, label=name
    )
    points = sorted({place(record, score) for record in records})
    sign = 1 if score.goal == "max" else -1
    front = on_front([(sparsity, sign * value) for sparsity, value in points])
    points = [point for point, kept in zip(points, front, strict=True) if kept]
    draw_steps(axes, points, colour, f"front of {name}", "--" if hand else "-")


def draw_entry(axes: Axes, entry: MaskRuns) -> None:
    """One mask of a comparison with its interval; a hollow mark has one seed only."""
    colour, marker = style_of(entry)
    said = CONSTANT if entry.learned_nothing else entry.kind
    score = entry.score
    many = score.n_seeds > 1
    axes.errorbar(
        [100 * entry.sparsity],
        [score.mean],
        yerr=[[score.mean - score.low], [score.high - score.mean]] if many else None,
        fmt=marker,
        markersize=4.5,
        color=colour,
        markerfacecolor=colour if many else "white",
        elinewidth=0.9,
        capsize=2,
        capthick=0.9,
        label=f"{said}, {'95% interval' if many else 'one seed'}",
        zorder=4,
    )


def style_of(entry: MaskRuns) -> tuple[str, str]:
    """Colour and shape of a mask of a comparison."""
    return NOTHING if entry.learned_nothing else KINDS[entry.kind]


def plot_hypervolume(
    studies: Mapping[str, Sequence[Record] | Mapping[int, Sequence[Record]]],
    objectives: Sequence[Objective],
) -> Figure:
    """Hypervolume of each strategy's front over counted trials and over compute.

    Of several searches by one strategy the mean is drawn, with the 95% interval over search seeds
    shaded, up to where the shortest of them ends. Baselines are left out: every strategy starts
    from nothing. Failed and stopped trials add their seconds.

    Args:
        studies: Strategy -> records of its search, or search seed -> records.
        objectives: Those of the searches.

    Raises:
        ValueError: If a `worst` is not finite.
    """
    figure = new_figure(PAGE, 2.6)
    by_trials, by_seconds = figure.subplots(1, 2, sharey=True)
    searches = {n: s if isinstance(s, Mapping) else {0: s} for n, s in studies.items()}
    curves = curves_of(searches, objectives)
    every = [curve for runs in curves.values() for curve in runs.values()]
    longest = max((curve[-1].seconds for curve in every if curve), default=0.0)
    units = (("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0))
    unit, size = next(((u, s) for u, s in units if longest >= 2 * s), units[-1])
    panels: list[tuple[Axes, Compute, float]] = [(by_trials, "trials", 1.0)]
    panels.append((by_seconds, "seconds", size))
    for name, (colour, marker) in styles_of(studies).items():
        runs = curves[name]
        label = name if len(runs) < 2 else f"{name}, {len(runs)} searches"
        for axes, by, scale in panels:
            band = band_of(runs, by)
            axes.plot(
                band.compute / scale, band.mean, drawstyle="steps-post", color=colour,
                linewidth=1.2, label=label, marker=marker, markersize=3.5,
                markevery=max(1, len(band.compute) // 10),
            )  # fmt: skip
            axes.fill_between(
                band.compute / scale, band.low.clip(0), band.high, step="post", color=colour,
                alpha=0.15, linewidth=0,
            )  # fmt: skip
    worst = ", ".join(f"{objective.name} {objective.worst:g}" for objective in objectives)
    clean(by_trials, "counted trials (finished, reused or stopped)", "hypervolume dominated")
    clean(by_seconds, f"compute, failed trials included ({unit})", "")
    figure.suptitle(f"measured from: {worst}", fontsize=SMALL, color="#555555")
    by_trials.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (by_trials, by_seconds):
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
    if curves:
        by_trials.legend(fontsize=SMALL, frameon=False, loc="lower right")
    return figure
