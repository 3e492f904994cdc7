"""What the figures share: colours, axes, and how a figure is saved.

No pyplot, no global state: each drawing function returns a `Figure` of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Okabe and Ito's palette, told apart with any kind of colour vision; the shape says it twice.
BLUE, ORANGE, GREEN, PINK, AMBER = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"
SKY, GREY, INK = "#56B4E9", "#777777", "#222222"
STYLES = {
    "random": (SKY, "o"),
    "tpe": (BLUE, "s"),
    "dam": (ORANGE, "^"),
    "evolution": (GREEN, "v"),
    "nsga2": (PINK, "P"),
    "gp": (AMBER, "X"),
}
SPARE = [(BLUE, "<"), (ORANGE, ">"), (GREEN, "p"), (PINK, "h"), (AMBER, "8")]
SHADE = "#EEF1F4"  # of a part of the axes that is set apart
TITLES = {
    "loss": "held-out loss (nats per token)",
    "glue": "GLUE score (mean over tasks)",
    "sparsity": "sparsity (% of the n x n cells left out)",
}


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of that size in inches, with room made for every label."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def clean(axes: Axes, x: str, y: str) -> None:
    """Axis labels, a light grid and no box."""
    axes.set_xlabel(x, fontsize=11, color=INK)
    axes.set_ylabel(y, fontsize=11, color=INK)
    axes.tick_params(labelsize=10, colors=INK)
    axes.grid(color="#E4E4E4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def styles_of(strategies: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each strategy; a known name always has the same."""
    spare = iter(SPARE * 8)
    return {name: STYLES.get(name) or next(spare, (GREY, "o")) for name in strategies}


def save(figure: Figure, folder: Path | str, name: str) -> tuple[Path, Path]:
    """Writes `name.png` (150 dpi) and `name.pdf` into the folder, making it if need be."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    png, pdf = folder / f"{name}.png", folder / f"{name}.pdf"
    facts = {"Creator": "masksearch", "CreationDate": None}
    figure.savefig(png, dpi=150, bbox_inches="tight", metadata={"Software": "masksearch"})
    figure.savefig(pdf, bbox_inches="tight", metadata=facts)
    return png, pdf
