"""Draws the front of the first search on real text: docs/images/front.png.

    python docs/draw_front.py      # a few seconds; trains nothing

Every mask of experiments/01_first_search/results/compare.csv at its sparsity and held-out loss:
WikiText-2, a BERT of 2 layers and width 128, 800 steps; the mean of two seeds, with a line from
the one to the other.
"""

from __future__ import annotations

import io
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from PIL import Image

from masksearch.report.figures.style import BLUE, GREY, INK, ORANGE, clean, new_figure

ROOT = Path(__file__).parent.parent
TABLE = ROOT / "experiments" / "01_first_search" / "results" / "compare.csv"
IMAGE = ROOT / "docs" / "images" / "front.png"
# kind -> colour, marker, and its masks by their names in the table
KINDS: dict[str, tuple[str, str, dict[str, str]]] = {
    "found by a search": (
        ORANGE,
        "s",
        {"tpe shifts": "TPE: an offset a head", "dam": "DAM", "tpe band": "TPE: windows"},
    ),
    "the six hand-designed families": (
        INK,
        "D",
        dict.fromkeys(("strided", "fixed", "longformer", "log_sparse", "bigbird", "star"), ""),
    ),
    "others": (
        GREY,
        "o",
        {"dense": "", "random keys": "", "shifts by hand": "an offset a head, by hand"},
    ),
}
LABELS = {  # name -> points right of and above the mark, and the side that it is set from
    "tpe shifts": (-8, 5, "right"),
    "dam": (8, 2, "left"),
    "shifts by hand": (0, -15, "center"),
    "tpe band": (8, -3, "left"),
}
TICKS = (0, 50, 70, 80, 90, 95, 97, 98)  # percent
COLOURS, DPI = 64, 110


def read_scores() -> pd.DataFrame:
    """One row a mask, densest first: density, and mean, least and largest loss of its seeds."""
    runs = pd.read_csv(TABLE).drop_duplicates(["params.mask", "seed"], keep="last")
    groups = runs.groupby("params.mask")
    loss = groups["loss"]
    parts = {"density": groups["density"].mean(), "loss": loss.mean()}
    table = pd.DataFrame({**parts, "low": loss.min(), "high": loss.max()})
    return table.sort_values("density", ascending=False)


def draw(table: pd.DataFrame) -> Figure:
    """Sparsity against loss."""
    figure = new_figure(8.4, 4.4)
    axes = figure.add_subplot()
    clean(axes, "sparsity: % of the query-key pairs left out", "held-out loss, lower is better")
    axes.set_xscale("log")
    axes.invert_xaxis()
    axes.xaxis.set_major_locator(FixedLocator([1 - tick / 100 for tick in TICKS]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda density, _: f"{100 - 100 * density:.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    for kind, (colour, marker, names) in KINDS.items():
        own = table.loc[list(names)]
        axes.vlines(own["density"], own["low"], own["high"], color=colour, linewidth=1)
        axes.plot(own["density"], own["loss"], marker, color=colour, label=kind, markersize=7)
        for name, row in own.iterrows():
            right, above, side = LABELS.get(str(name), (8, 3, "left"))
            axes.annotate(
                names[str(name)] or str(name),
                (row["density"], row["loss"]),
                xytext=(right, above),
                textcoords="offset points",
                ha=side,
                fontsize=9,
                color=colour,
            )
    best = table[table["loss"] <= table["loss"][::-1].cummin()[::-1]]
    densities = [1.0, *best["density"], best["density"].iloc[-1]]
    losses = [best["loss"].iloc[0], *best["loss"], table["loss"].max()]
    axes.plot(
        densities, losses, color=BLUE, linewidth=1, drawstyle="steps-pre", zorder=1,
        label="front: nothing is sparser and better",
    )  # fmt: skip
    axes.legend(loc=(0.02, 0.14), fontsize=9, frameon=False)
    axes.margins(x=0.09, y=0.1)
    return figure


def main() -> None:
    """Draws and saves the figure."""
    drawn = io.BytesIO()
    draw(read_scores()).savefig(drawn, dpi=DPI)
    Image.open(drawn).convert("RGB").quantize(COLOURS).save(IMAGE, optimize=True)
    print(f"{IMAGE.relative_to(ROOT)}  {IMAGE.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
