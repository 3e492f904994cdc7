"""The figure of a proxy card."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from masksearch.analysis.proxy_card import BudgetAgreement, ProxyAgreement
from masksearch.report.figures.style import INK, TITLES, clean, new_figure

ACROSS, WITHIN, SEEDS, CEILING = "#56B4E9", "#D55E00", "#009E73", "#222222"
# From sparse to dense; its pale middle is left out, so that every line can be seen on white.
DENSITY = LinearSegmentedColormap.from_list(
    "density", ["#D55E00", "#CC79A7", "#0072B2", "#1B1B4B"]
)


def plot_proxy(card: ProxyAgreement) -> Figure:
    """Agreement against budget; every mask's value against budget; proxy against target.

    First panel: tau-b across and within density bands with bootstrap intervals, one seed
    against another seed, and the noise ceiling as a line. Second: one line a mask (mean over
    seeds), coloured by density, so that crossings are seen. Third: the reference against the
    longest budget that is short of it (for another target: the longest of all), with the range
    over seeds.
    """
    figure = new_figure(15.0, 4.9)
    agreement, values, pairs = figure.subplots(1, 3)
    draw_agreement(agreement, card)
    figure.legend(
        *agreement.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=4 if len(card.series()) == 1 else 3,
        fontsize=10,
        frameon=False,
        title=f"left: tau-b with {100 * card.level:g}% intervals shaded"
        + ("; the noise ceiling is unknown (one seed)" if card.seeds < 2 else ""),
        title_fontsize=10,
    )
    if card.cells is None or not card.series():
        return figure
    low, high = limits(list(card.masks.values()))
    norm = LogNorm(low, high)
    draw_values(values, card, norm)
    draw_pairs(pairs, card, norm)
    shades = ScalarMappable(norm, DENSITY)
    bar = figure.colorbar(shades, ax=[values, pairs], pad=0.01, aspect=30)
    bar.set_label("density (kept share, %)", fontsize=11, color=INK)
    ticks = [t for t in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if low <= t <= high]
    bar.ax.yaxis.set_major_locator(FixedLocator(ticks))
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{100 * tick:g}"))
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.tick_params(labelsize=10, colors=INK)
    bar.outline.set_visible(False)
    return figure


def limits(densities: list[float]) -> tuple[float, float]:
    """Range of the colours; never empty."""
    low, high = min(densities), max(densities)
    return (low, high) if high > 1.01 * low else (low / 2, min(1.0, 2 * high))


def budget_axis(axes: Axes, budgets: list[int]) -> None:
    """A log axis with a tick at the budgets; where they are many, at those with room."""
    axes.set_xscale("log")
    shown: list[int] = []
    span = math.log(max(budgets) / min(budgets)) or 1.0
    for budget in sorted(set(budgets), reverse=True):
        if not shown or math.log(shown[-1] / budget) > span / 8:
            shown.append(budget)
    axes.xaxis.set_major_locator(FixedLocator(shown))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:,.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())


def draw_agreement(axes: Axes, card: ProxyAgreement) -> None:
    """tau-b against budget, with intervals and the ceiling."""
    clean(axes, "budget of the proxy (optimiser steps)", "Kendall's tau-b with the reference")
    axes.set_title(
        f"{card.proxy} at a budget against {card.target} at {card.reference[1]:,} steps",
        fontsize=11,
        color=INK,
    )
    series = card.series()
    budgets = [row.budget for rows in series.values() for row in rows]
    for index, (name, rows) in enumerate(series.items()):
        ending = f", {name}" if len(series) > 1 else ""
        style: dict[str, Any] = {"linestyle": ("-", "--", ":")[index % 3]}
        line(axes, rows, "across", ACROSS, "o", f"across densities{ending}", style)
        line(axes, rows, "within", WITHIN, "s", f"within density bands{ending}", style)
        if any(math.isfinite(row.between_seeds.value) for row in rows):
            label = f"within, one seed against another{ending}"
            line(axes, rows, "between_seeds", SEEDS, "^", label, style, shade=False)
    ceiling = card.ceiling_within
    if math.isfinite(ceiling.value):
        axes.axhline(
            ceiling.value, color=CEILING, linewidth=1.3, linestyle=(0, (5, 2)),
            label=f"noise ceiling within bands ({ceiling.value:.2f})",
        )  # fmt: skip
        if math.isfinite(ceiling.low):
            axes.axhspan(ceiling.low, ceiling.high, color=CEILING, alpha=0.07, linewidth=0)
    axes.axhline(0, color="#999999", linewidth=0.8)
    drawn = [
        bound
        for rows in series.values()
        for row in rows
        for part in (row.across, row.within, row.between_seeds)
        for bound in (part.value, part.low)
        if math.isfinite(bound)
    ]
    axes.set_ylim(max(-1.05, min([-0.1, *drawn]) - 0.05), 1.05)
    if budgets:
        budget_axis(axes, budgets)


def line(
    axes: Axes, rows: list[BudgetAgreement], part: str, colour: str, marker: str, label: str,
    style: dict[str, Any], shade: bool = True,
) -> None:  # fmt: skip
    """One statistic over budgets with its interval as a band."""
    x = [row.budget for row in rows]
    found = [getattr(row, part) for row in rows]
    axes.plot(
        x, [i.value for i in found], color=colour, marker=marker, markersize=5, linewidth=1.8,
        label=label, **style,
    )  # fmt: skip
    if shade:
        low, high = [i.low for i in found], [i.high for i in found]
        axes.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)


def draw_values(axes: Axes, card: ProxyAgreement, norm: LogNorm) -> None:
    """Every mask's mean over seeds against budget."""
    assert card.cells is not None
    cells, schedule = card.cells, next(iter(card.series()))
    budgets = [b for s, b in cells.budgets(card.proxy) if s == schedule]
    tables = np.stack([cells.table(schedule, b, card.proxy) for b in budgets])
    clean(axes, "optimiser steps", TITLES.get(card.proxy, card.proxy))
    axes.set_title("every mask, mean over seeds", fontsize=11, color=INK)
    order = sorted(range(len(cells.masks)), key=lambda i: -cells.density[cells.masks[i]])
    faint = 0.9 if len(order) <= 40 else 0.55
    for index in order:
        known = np.isfinite(tables[:, index])
        number = known.sum(axis=1)
        total = np.where(known, tables[:, index], 0.0).sum(axis=1)
        height = np.where(number > 0, total / np.maximum(number, 1), np.nan)
        shade = DENSITY(norm(cells.density[cells.masks[index]]))
        axes.plot(budgets, height, color=shade, linewidth=1.2, alpha=faint)
    budget_axis(axes, budgets)


def draw_pairs(axes: Axes, card: ProxyAgreement, norm: LogNorm) -> None:
    """The reference against the proxy, one point a mask, with the range over seeds."""
    assert card.cells is not None
    cells = card.cells
    rows = next(iter(card.series().values()))
    place = (rows[-1].schedule, rows[-1].budget)
    if card.proxy != card.target:
        place = cells.longest(card.proxy, rows[-1].schedule)
    x, y = cells.table(*place, card.proxy), cells.table(*card.reference, card.target)
    name = f"{card.proxy} at {place[1]:,} steps"
    clean(axes, name, f"{card.target} at {card.reference[1]:,} steps")
    drawn = [i for i in range(len(x)) if np.isfinite(x[i]).any() and np.isfinite(y[i]).any()]
    title = f"{len(drawn)} masks" + (", bars: range of the seeds" if card.seeds > 1 else "")
    axes.set_title(title, fontsize=11, color=INK)
    for i in drawn:
        shade = DENSITY(norm(cells.density[cells.masks[i]]))
        a, b = np.nanmean(x[i]), np.nanmean(y[i])
        axes.errorbar(
            a, b,
            xerr=[[a - np.nanmin(x[i])], [np.nanmax(x[i]) - a]],
            yerr=[[b - np.nanmin(y[i])], [np.nanmax(y[i]) - b]],
            fmt="o", markersize=5, color=shade, elinewidth=0.9, alpha=0.85,
        )  # fmt: skip
