"""Mean regret against the number of masks that were judged, a panel for each number of heads.

python experiments/14_planted_recall/figures.py [--results FOLDER]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import regret
from matplotlib import rc_context
from matplotlib.figure import Figure
from numpy.typing import NDArray

from masksearch.report import style

HERE = Path(__file__).parent
SHOWN = {  # method -> what the legend says, colour
    "allocate greedy addition": ("allocate, greedy addition", style.GREEN),
    "allocate restore": ("allocate, restore one", style.BLUE),
    "dam switches": ("DAM's switches (300 steps)", style.ORANGE),
    "tpe": ("TPE", style.PINK),
    "evolution": ("evolution", style.GREY),
    "random": ("random search", style.SKY),
}
FLOOR = 1e-3  # nats; the axis is logarithmic


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    folder = parser.parse_args().results
    judged = json.loads((folder / "judged.json").read_text(encoding="utf-8"))
    with np.load(folder / "losses.npz") as stored:
        losses = {name: stored[name] for name in judged}
    style.write_figure(draw(losses, judged), folder / "regret.png")


@rc_context(style.PRINT)
def draw(
    losses: Mapping[str, NDArray], judged: Mapping[str, Mapping[str, Sequence[int]]]
) -> Figure:
    """A panel a number of heads; means over checkpoints and search seeds."""
    figure = style.new_figure(style.PAGE, 2.6)
    panels = figure.subplots(1, regret.LARGEST, sharey=True)
    for size, axes in enumerate(panels, start=1):
        for method, (label, colour) in SHOWN.items():
            ran = [name for name in judged if {method, f"{method} 0"} & set(judged[name])]
            mean = np.mean([regret_curve(losses[n], judged[n], method, size) for n in ran], 0)
            dots = {"marker": "o", "markersize": 3} if method.startswith("dam") else {}
            shown = len(next(iter(judged.values()))[method]) if dots else len(mean)
            places = np.arange(1, shown + 1)
            axes.plot(
                places,
                np.maximum(mean[:shown], FLOOR),
                color=colour,
                linewidth=1,
                label=label,
                drawstyle="steps-post",
                **dots,
            )
        axes.axhline(regret.NEAR, color=style.INK, linewidth=0.6, linestyle=":")
        axes.set(yscale="log", xlim=(0, regret.EVALUATIONS))
        axes.set_title(f"{size} of 12 heads", fontsize=style.LABEL, color=style.INK, loc="left")
        style.clean(axes, "masks judged", "regret (nats)" if size == 1 else "")
    lines, labels = axes.get_legend_handles_labels()
    place = "outside lower center"
    figure.legend(lines, labels, loc=place, ncols=3, fontsize=style.SMALL, frameon=False)
    return figure


def regret_curve(
    losses: NDArray, judged: Mapping[str, Sequence[int]], method: str, size: int
) -> NDArray:
    """Regret after each mask, the mean over search seeds; it stays where a search has ended."""
    raised = np.array([number.bit_count() for number in range(len(losses))])
    best = losses[raised <= size].min()
    runs = [found for name, found in judged.items() if name.rstrip("0123456789 ") == method]
    curves = [regret.curve(losses, found, size)[: regret.EVALUATIONS] - best for found in runs]
    return np.mean([np.pad(c, (0, regret.EVALUATIONS - len(c)), "edge") for c in curves], 0)


if __name__ == "__main__":
    main()
