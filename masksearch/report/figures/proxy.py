"""The figure of a proxy card."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure

from masksearch.analysis.proxy_card import BudgetAgreement, ProxyAgreement
from masksearch.analysis.proxy_observations import ScoreTables
from masksearch.analysis.rank_stats import seed_mean
from masksearch.report.figures.style import (
    BLUE,
    GREEN,
    INK,
    LABEL,
    ORANGE,
    PAGE,
    PINK,
    SKY,
    SMALL,
    TITLES,
    clean,
    new_figure,
)

# From sparse to dense; its pale middle is left out, so that every line can be seen on white.
DENSITY = LinearSegmentedColormap.from_list("density", [ORANGE, PINK, BLUE, "#1B1B4B"])


def plot_proxy(card: ProxyAgreement) -> Figure:
    """Agreement against budget; every mask's value against budget; proxy against target.

    Above: tau-b across and within density bands with bootstrap intervals, one seed
    against another seed, and the noise ceiling as a line. Below left: one line a mask (mean over
    seeds), coloured by density, so that crossings are seen. Below right: the reference against the
    longest budget that is short of it (for another target: the longest of all), with the range
    over seeds.
    """
    figure = new_figure(PAGE, 5.8)
    panels = figure.subplot_mosaic([["agreement", "agreement"], ["values", "pairs"]])
    agreement, values, pairs = panels["agreement"], panels["values"], panels["pairs"]
    draw_agreement(agreement, card)
    figure.legend(
        *agreement.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=4 if len(card.series()) == 1 else 3,
        fontsize=SMALL,
        frameon=False,
        title=f"above: tau-b with {100 * card.level:g}% intervals shaded"
        + ("; the noise ceiling is unknown (one seed)" if card.seeds < 2 else ""),
        title_fontsize=SMALL,
    )
    if card.cells is None or not card.series():
        return figure
    low, high = min(card.masks.values()), max(card.masks.values())
    if high <= 1.01 * low:  # the range of the colours is never empty
        low, high = low / 2, min(1.0, 2 * high)
    shades = ScalarMappable(LogNorm(low, high), DENSITY)
    draw_values(values, card, card.cells, shades)
    draw_pairs(pairs, card, card.cells, shades)
    bar = figure.colorbar(shades, ax=[values, pairs], pad=0.01, aspect=30)
    bar.set_label("density (kept share, %)", fontsize=LABEL, color=INK)
    ticks = [t for t in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if low <= t <= high]
    bar.set_ticks(ticks, labels=[f"{100 * tick:g}" for tick in ticks])
    bar.minorticks_off()
    bar.ax.tick_params(labelsize=SMALL, colors=INK)
    bar.outline.set_visible(False)
    return figure


def budget_axis(axes: Axes, budgets: list[int]) -> None:
    """A log axis with a tick at the budgets; where they are many, at those with room."""
    none = min(budgets) == 0  # a mask on a trained model
    axes.set_xscale("symlog" if none else "log")
    shown: list[int] = []
    span = math.log(max(1, *budgets) / max(1, min(budgets))) or 1.0
    for budget in sorted(set(budgets), reverse=True):
        if not shown or math.log(shown[-1] / max(1, budget)) > span / 8:
            shown.append(budget)
    axes.set_xlim(-0.5 if none else min(budgets) / 1.15, max(1, *budgets) * 1.15)
    axes.set_xticks(shown, [f"{budget:,}" for budget in shown])
    axes.minorticks_off()


def draw_agreement(axes: Axes, card: ProxyAgreement) -> None:
    """tau-b against budget, with intervals and the ceiling."""
    clean(axes, "budget of the proxy (optimiser steps)", "Kendall's tau-b with the reference")
    axes.set_title(
        f"{card.proxy} at a budget against {card.target} at {card.reference[1]:,} steps",
        fontsize=LABEL,
        color=INK,
    )
    series = card.series()
    rows = [row for found in series.values() for row in found]
    parts = [part for row in rows for part in (row.across, row.within, row.between_seeds)]
    for index, (name, found) in enumerate(series.items()):
        ending = f", {name}" if len(series) > 1 else ""
        style = ("-", "--", ":")[index % 3]
        draw_line(axes, found, "across", SKY, "o", style, f"across densities{ending}")
        draw_line(axes, found, "within", ORANGE, "s", style, f"within density bands{ending}")
        if any(math.isfinite(row.between_seeds.value) for row in found):
            label = f"within, one seed against another{ending}"
            draw_line(axes, found, "between_seeds", GREEN, "^", style, label, shade=False)
    ceiling = card.ceiling_within
    if math.isfinite(ceiling.value):
        label = f"noise ceiling within bands ({ceiling.value:.2f})"
        axes.axhline(ceiling.value, color=INK, linewidth=1.3, linestyle=(0, (5, 2)), label=label)
        if math.isfinite(ceiling.low):
            axes.axhspan(ceiling.low, ceiling.high, color=INK, alpha=0.07, linewidth=0)
    axes.axhline(0, color="#999999", linewidth=0.8)
    drawn = [b for part in parts for b in (part.value, part.low) if math.isfinite(b)]
    axes.set_ylim(max(-1.05, min([-0.1, *drawn]) - 0.05), 1.05)
    if rows:
        budget_axis(axes, [row.budget for row in rows])


def draw_line(
    axes: Axes,
    rows: list[BudgetAgreement],
    part: str,
    colour: str,
    marker: str,
    style: str,
    label: str,
    shade: bool = True,
) -> None:
    """One statistic over budgets with its interval as a band."""
    x, found = [row.budget for row in rows], [getattr(row, part) for row in rows]
    heights = [interval.value for interval in found]
    axes.plot(
        x, heights, style, color=colour, marker=marker, markersize=3.5, linewidth=1.2, label=label
    )
    if shade:
        low, high = [i.low for i in found], [i.high for i in found]
        axes.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)


def draw_values(
    axes: Axes, card: ProxyAgreement, cells: ScoreTables, shades: ScalarMappable
) -> None:
    """Every mask's mean over seeds against budget."""
    schedule = next(iter(card.series()))
    budgets = [b for s, b in cells.budgets(card.proxy) if s == schedule]
    means = np.stack([seed_mean(cells.table(schedule, b, card.proxy)) for b in budgets])
    clean(axes, "optimiser steps", TITLES.get(card.proxy, card.proxy))
    axes.set_title("every mask, mean over seeds", fontsize=LABEL, color=INK)
    densities = np.array([cells.density[mask] for mask in cells.masks])
    alpha = 0.9 if len(densities) <= 40 else 0.55
    for index in np.argsort(-densities, kind="stable"):
        shade = shades.to_rgba(densities[index])
        axes.plot(budgets, means[:, index], color=shade, linewidth=0.8, alpha=alpha)
    budget_axis(axes, budgets)


def draw_pairs(
    axes: Axes, card: ProxyAgreement, cells: ScoreTables, shades: ScalarMappable
) -> None:
    """The reference against the proxy, one point a mask, with the range over seeds."""
    last = next(iter(card.series().values()))[-1]
    place = (last.schedule, last.budget)
    if card.proxy != card.target:
        place = cells.longest(card.proxy, last.schedule)
    x, y = cells.table(*place, card.proxy), cells.table(*card.reference, card.target)
    both = np.isfinite(x).any(axis=1) & np.isfinite(y).any(axis=1)
    clean(
        axes,
        f"{card.proxy} at {place[1]:,} steps",
        f"{card.target} at {card.reference[1]:,} steps",
    )
    bars = ", bars: range of the seeds" if card.seeds > 1 else ""
    axes.set_title(f"{both.sum()} masks{bars}", fontsize=LABEL, color=INK)
    densities = np.array([cells.density[mask] for mask in cells.masks])
    for a, b, density in zip(x[both], y[both], densities[both], strict=True):
        centre = np.nanmean(a), np.nanmean(b)
        spans = [
            [[middle - np.nanmin(values)], [np.nanmax(values) - middle]]
            for middle, values in zip(centre, (a, b), strict=True)
        ]
        axes.errorbar(
            *centre, yerr=spans[1], xerr=spans[0], fmt="o", markersize=3.5,
            color=shades.to_rgba(density), elinewidth=0.9, alpha=0.85,
        )  # fmt: skip
