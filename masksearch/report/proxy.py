"""The figure of a proxy card."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from masksearch.analysis.proxy_card import ProxyCard
from masksearch.report.style import (
    DPI,
    GREEN,
    INK,
    LABEL,
    ORANGE,
    PAGE,
    SMALL,
    TITLES,
    clean,
    new_figure,
    write_figure,
)

LINES = {
    "within": ("means over seeds", ORANGE, "s"),
    "between_seeds": ("one seed against another", GREEN, "^"),
}


def plot_proxy(card: ProxyCard) -> Figure:
    """Agreement within density bands against budget, and every mask's value against budget.

    Left: tau-b of means with its interval shaded, one seed against another, and the noise ceiling.
    Right: one line a mask (mean over seeds), darker the denser, so that crossings are seen.
    """
    figure = new_figure(PAGE, 3.2)
    agreement, values = figure.subplots(1, 2)
    clean(agreement, "budget (optimiser steps)", "tau-b within density bands")
    title = f"{card.proxy} against {card.target} at {card.reference[1]:,} steps"
    agreement.set_title(title, fontsize=LABEL, color=INK)
    several = len(card.series()) > 1
    for style, (name, rows) in zip(("-", "--", ":") * 9, card.series().items(), strict=False):
        for part, (label, colour, marker) in LINES.items():
            agreement.plot(
                rows["budget"], rows[part], style, color=colour, marker=marker, markersize=3.5,
                linewidth=1.2, label=f"{label}, {name}" if several else label,
            )  # fmt: skip
        ends = rows["within_low"], rows["within_high"]
        agreement.fill_between(rows["budget"], *ends, color=ORANGE, alpha=0.16, linewidth=0)
    if math.isfinite(card.ceiling.value):
        label = f"noise ceiling ({card.ceiling.value:.2f})"
        agreement.axhline(card.ceiling.value, color=INK, linewidth=1.3, ls="--", label=label)
    agreement.axhline(0, color="#999999", linewidth=0.8)
    agreement.set_ylim(min(-0.15, card.frame["within_low"].min() - 0.05), 1.05)
    budget_axis(agreement, card.frame["budget"].tolist())
    agreement.legend(fontsize=SMALL, frameon=False, loc="lower right")

    schedule = next(iter(card.series()))
    places = sorted(place for place in card.cells if place[:2] == (card.proxy, schedule))
    means = np.stack([card.cells[place].mean(axis=1).to_numpy() for place in places])
    clean(values, "optimiser steps", TITLES.get(card.proxy, card.proxy))
    values.set_title("every mask, mean over seeds", fontsize=LABEL, color=INK)
    shades = np.linspace(0.8, 0.0, len(card.densities))
    for shade, index in zip(shades, np.argsort(card.densities), strict=True):
        grey, steps = str(shade), [place[2] for place in places]
        values.plot(steps, means[:, index], color=grey, linewidth=0.8)
    budget_axis(values, [place[2] for place in places])
    return figure


def write_proxy(card: ProxyCard, path: Path | str) -> Path:
    """Writes the figure (`.png`, `.pdf`, `.svg`); folders are made."""
    return write_figure(plot_proxy(card), Path(path), DPI)


def budget_axis(axes: Axes, budgets: list[int]) -> None:
    """A log axis; 0 is the budget of a mask on a trained model."""
    axes.set_xscale("symlog" if min(budgets) == 0 else "log")
    axes.xaxis.set_major_formatter("{x:,.0f}")
