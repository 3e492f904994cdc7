"""Draws results/plan.png: what answers and text lose on SmolLM2, and how far each layer looks.

python experiments/20_long/figures.py
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

import masksearch as ms
from masksearch import masks
from masksearch.masks.measure import keys_of_rows
from masksearch.report import style

RESULTS = Path(__file__).parent / "results"
ARMS = {
    "levels": ("a window for each layer, searched", style.ORANGE, "o"),
    "narrow": ("full or narrow, searched", style.BLUE, "s"),
    "uniform": ("one wider window in every layer", style.INK, "*"),
    "every n-th": ("every n-th layer full, else narrow", style.GREY, "D"),
}
LENGTH = 2048


def main() -> None:
    style.write_figure(draw(), RESULTS / "plan.png")


@rc_context(style.PRINT)
def draw() -> Figure:
    """The three panels."""
    figure = style.new_figure(style.PAGE, 3.0)
    answers, text, layers = figure.subplots(1, 3, width_ratios=[1, 1, 1.5])
    draw_losses(answers, "tasks", "nats a token, answers of three tasks")
    draw_losses(text, "text", "nats a token, unseen novels")
    draw_windows(layers)
    shown, labels = answers.get_legend_handles_labels()
    figure.legend(
        shown, labels, loc="outside lower center", ncols=2, fontsize=style.SMALL, frameon=False
    )
    return figure


def draw_losses(axes: Axes, value: str, title: str) -> None:
    """A line for each arm over the bytes of the cache; dense attention is dotted."""
    means = pd.read_csv(RESULTS / "means.csv")
    means = means[(means.decoder == "smollm2") & (means.stage == "judge")]
    for arm, (label, colour, marker) in ARMS.items():
        own = means[means.arm == arm].sort_values("budget")
        line = {"color": colour, "marker": marker, "ms": 5, "lw": 1.2, "label": label}
        axes.plot(100 * own.budget, own[value], **line)
    (dense,) = means[means.arm == "dense"][value]
    axes.axhline(dense, color=style.INK, lw=0.8, ls=":")
    axes.annotate("dense", (19.5, dense), (0, 2), textcoords="offset points", fontsize=style.SMALL)
    axes.set_xticks([25, 50])
    axes.set_xlim(19, 56)
    style.clean(axes, "bytes of the cache (% of dense)", title)


def draw_windows(axes: Axes) -> None:
    """Keys that the last token of 2,048 sees in each layer, at a quarter of the bytes."""
    found = pd.read_csv(RESULTS / "searches.csv").set_index(["decoder", "budget", "arm", "sample"])
    plan = masks.parse(found.at[("smollm2", 0.25, "levels", 0), "mask"])
    seen = keys_of_rows(plan, ms.Shape(LENGTH, 30, 9, causal=True))[:, 0, -1].tolist()
    colours = [style.ORANGE if count == LENGTH else style.AMBER for count in seen]
    axes.bar(range(len(seen)), seen, width=0.8, color=colours)
    axes.axhline(LENGTH / 4, color=style.INK, lw=1)
    axes.annotate(
        "one window", (8, LENGTH / 4), (0, 3), textcoords="offset points", fontsize=style.SMALL
    )
    axes.set_yscale("log", base=2)
    axes.set_yticks([128, 512, 2048], ["128", "512", "2,048"])
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylim(64, 2600)
    style.clean(axes, "layer of SmolLM2", "keys that it keeps, at 25 %")


if __name__ == "__main__":
    main()
