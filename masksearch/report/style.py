"""The style that the figures share: sizes, colours, axes, and how a figure is saved.

Sizes are those of print: a figure fills one column of a paper (3.3 in) or the whole width of its
page (6.8 in) without being scaled. No pyplot, no global state: each drawing function returns a
`Figure` of its own, and is decorated with `rc_context(PRINT)`, as what it draws takes matplotlib's
settings at once.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matplotlib import rc_context, rcParamsDefault
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

COLUMN, PAGE = 3.3, 6.8  # inches: widths of figures
LABEL, SMALL = 8, 7  # points: of axis labels and titles; of ticks, legends and notes
DPI, COLOURS = 300, 128  # of PNG files
# matplotlib's defaults, whatever a user's matplotlibrc says; and fonts that journals take (Type
# 42, not Type 3), text in SVG that stays text, equal files twice.
PRINT: Any = {name: value for name, value in rcParamsDefault.items() if name != "backend"}
PRINT |= {"pdf.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "masksearch"}

# Okabe and Ito's palette, told apart with any kind of colour vision; the shape says it twice.
BLUE, ORANGE, GREEN, PINK, AMBER = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"
SKY, GREY, INK = "#56B4E9", "#777777", "#222222"
STYLES = {
    "random": (SKY, "o"),
    "tpe": (BLUE, "s"),
    "dam": (ORANGE, "^"),
    "nsga2": (GREEN, "v"),
    "gp": (AMBER, "X"),
    "allocate": (AMBER, "<"),
}
SPARE = [(BLUE, "<"), (ORANGE, ">"), (GREEN, "p"), (PINK, "h"), (AMBER, "8")]
SHADE = "#EEF1F4"  # of a part of the axes that is set apart
TITLES = {
    "loss": "held-out loss (nats per token)",
    "nll": "held-out loss (nats per token)",
    "glue": "GLUE score",
    "sparsity": "sparsity (% of the non-padding query-key pairs left out)",
}


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of that size in inches, with room made for every label."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def clean(axes: Axes, x: str, y: str) -> None:
    """Axis labels, a light grid and no box."""
    axes.set_xlabel(x, fontsize=LABEL, color=INK)
    axes.set_ylabel(y, fontsize=LABEL, color=INK)
    axes.tick_params(labelsize=SMALL, colors=INK, width=0.6, length=2.5)
    axes.grid(color="#E4E4E4", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_linewidth(0.6)


def styles_of(strategies: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each strategy; a known name always has the same, and its colour is the
    last that others get."""
    names = list(strategies)
    taken = {STYLES[name][0] for name in names if name in STYLES}
    spare = iter(sorted(SPARE, key=lambda style: style[0] in taken) * 8)
    return {name: STYLES.get(name) or next(spare, (GREY, "o")) for name in names}


@rc_context(PRINT)
def write_figure(figure: Figure, path: Path, dpi: int = DPI) -> Path:
    """Writes a figure as its path ends (`.pdf`, `.svg`, `.png`: of few colours, a third of
    the size); equal figures are equal files."""
    made: dict[str, dict[str, Any]] = {
        "pdf": {"Creator": "masksearch", "CreationDate": None},
        "svg": {"Creator": "masksearch", "Date": None},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = path.suffix[1:] or "png"
    drawn = io.BytesIO() if kind == "png" else path
    figure.savefig(drawn, format=kind, dpi=dpi, metadata=made.get(kind))
    if kind == "png":
        Image.open(drawn).convert("RGB").quantize(COLOURS).save(path, "PNG", optimize=True)
    return path


def save(figure: Figure, folder: Path | str, name: str) -> tuple[Path, Path, Path]:
    """Writes `name.png`, `name.pdf` and `name.svg` into the folder, making it if need be."""
    png = write_figure(figure, Path(folder) / f"{name}.png")
    figure.set_layout_engine("none")  # everything has its place now
    pdf, svg = (write_figure(figure, Path(folder) / f"{name}.{kind}") for kind in ("pdf", "svg"))
    return png, pdf, svg
