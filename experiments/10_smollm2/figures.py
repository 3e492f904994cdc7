"""The front of loss against bytes of the cache, and which layers are full along it.

python experiments/10_smollm2/figures.py [--results FOLDER]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from verdict import DRAWN, HERE, Results, mean

from masksearch.masks.baselines import WIDEST
from masksearch.report import style

SHOWN = {  # arm -> what the legend says, colour, marker
    "restore": ("allocate, restore one", style.BLUE, "o"),
    "ablate": ("allocate, leave one out", style.GREEN, "^"),
    "switch": ("allocate, first order", style.AMBER, "v"),
    "mass": ("allocate, attention mass", style.PINK, "s"),
    "tpe": ("TPE, 40 masks", style.ORANGE, "D"),
    "random": ("random search, 40 masks", style.SKY, "P"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    folder = parser.parse_args().results
    style.write_figure(draw(Results(folder)), folder / "front.png")


@rc_context(style.PRINT)
def draw(results: Results) -> Figure:
    """Two panels."""
    figure = style.new_figure(style.PAGE, 3.2)
    front, layers = figure.subplots(1, 2, width_ratios=[3, 2])
    draw_front(front, results)
    draw_layers(layers, results)
    shown, labels = front.get_legend_handles_labels()
    figure.legend(
        shown, labels, loc="outside lower center", ncols=4, fontsize=style.SMALL, frameon=False
    )
    return figure


def draw_front(axes: Axes, results: Results) -> None:
    """Loss on the holdout over bytes."""
    judged = results.stages["judged"]
    for arm in results.arms:
        label, colour, marker = SHOWN[arm]
        names = [f"{arm} {budget}" for budget in results.budgets]
        line = {"marker": marker, "ms": 3, "lw": 1, "color": colour}
        axes.plot(100 * judged.kv_bytes[names], judged.nll[names], label=label, **line)
    for budget in results.budgets:
        kept = 100 * judged.kv_bytes[f"first {budget}"]
        drawn = [mean(results, f"{pattern} {budget}") for pattern in DRAWN]
        random = [name for name in judged.index if name.startswith("random layers")]
        random = [name for name in random if name.endswith(f" {budget}")]
        first = budget == results.budgets[0]
        for values, colour, marker, label in (
            (drawn, style.INK, "_", "hand-designed full layers"),
            (judged.nll[random], style.GREY, ".", "layers at random"),
        ):
            places = [kept] * len(values)
            axes.plot(places, values, marker, ms=5, color=colour, label=label if first else None)
    windows = results.stages["windows"].loc[[f"{WIDEST} {n}" for n in results.budgets]]
    line = {"marker": "*", "ms": 6, "lw": 1.2, "color": style.INK}
    axes.plot(100 * windows.kv_bytes, windows.nll, label="one window in every layer", **line)
    axes.axhline(mean(results, "dense"), color=style.INK, lw=0.8, ls=":")
    place = 100 * judged.kv_bytes[f"first {results.budgets[0]}"], mean(results, "dense")
    axes.annotate("dense", place, (0, 2), textcoords="offset points", fontsize=style.SMALL)
    style.clean(axes, "bytes of the cache (% of dense)", "nats a token, unseen novels")


def draw_layers(axes: Axes, results: Results) -> None:
    """Which layers the best searched mask of each budget keeps full."""
    table = np.zeros((len(results.budgets), 30))
    for line, budget in enumerate(results.budgets):
        table[line, results.full_layers(budget)[1]] = 1
    axes.imshow(
        table, cmap=ListedColormap([style.SHADE, style.BLUE]), aspect="auto", interpolation="none"
    )
    axes.set_yticks(range(len(results.budgets)), [str(budget) for budget in results.budgets])
    axes.set_xticks(range(0, 30, 5))
    axes.set_xticks(np.arange(-0.5, 30), minor=True)
    axes.set_yticks(np.arange(-0.5, len(results.budgets)), minor=True)
    axes.grid(which="minor", color="white", lw=0.8)
    axes.tick_params(which="both", length=0, labelsize=style.SMALL)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("layer", fontsize=style.LABEL, color=style.INK)
    axes.set_ylabel("full layers", fontsize=style.LABEL, color=style.INK)


if __name__ == "__main__":
    main()
