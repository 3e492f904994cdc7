"""The style that the figures share: sizes, colours, axes, and how a figure is saved.

Sizes are those of print: a figure fills one column of a paper (3.3 in) or the whole width of its
page (6.8 in) without being scaled. No pyplot, no global state: each drawing function returns a
`Figure` of its own, and is decorated with `rc_context(PRINT)`, as what it draws takes matplotlib's
settings at once. A page shows the SVG file of print; where the mouse is at a mark, it shows the
text that the mark has as its URL (`hover`).
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matplotlib import rc_context, rcParamsDefault
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from masksearch.errors import without_controls
from masksearch.files import write_in_one_move

NAMES = re.compile('<g id="[^"]*">')  # of parts that nothing refers to
COLUMN, PAGE = 3.3, 6.8  # inches: widths of figures
LABEL, SMALL = 8, 7  # points: of axis labels and titles; of ticks, legends and notes
ZOOM = 1.5  # of the width of a page of print, on the screen
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


def plain(name: str) -> str:
    r"""A user's text as matplotlib draws it: no formula, no control characters.

    >>> print(plain("$x$"))
    \$x\$
    """
    return str(without_controls(name)).replace("$", r"\$")


def shorten(name: str, most: int) -> str:
    """A name that is not longer, cut between words where it has some.

    >>> shorten("more heads each way, every n-th layer within 0.12", 26)
    'more heads each way,…'
    """
    kept = name[: most - 1]
    return name if len(name) <= most else f"{kept.rpartition(' ')[0] or kept}…"


def hover(text: str) -> str:
    """A text for `Artist.set_url`, which SVG files then have as a title."""
    return str(without_controls(text))


@rc_context(PRINT)
def file_of(figure: Figure, kind: str, name: str = "figure", dpi: int = DPI) -> bytes:
    """A figure as a file: `pdf`, `svg` with a title for each mark that has a text (`hover`), or
    `png` of few colours, a third of the size. Equal figures are equal files; the parts of an SVG
    file are called after its name, as several may share a page."""
    about: dict[str, dict[str, Any]] = {
        "pdf": {"Creator": "masksearch", "CreationDate": None},
        "svg": dict.fromkeys(("Creator", "Date", "Format", "Type")),
    }
    drawn, small = io.BytesIO(), io.BytesIO()
    with rc_context({"svg.hashsalt": name}):
        figure.savefig(drawn, format=kind, dpi=dpi, metadata=about.get(kind))
    if kind == "svg":
        link = rb"""<a xlink:href=(["'])(.*?)\1 target="_blank">"""
        text = re.sub(link, rb"<g><title>\2</title>", drawn.getvalue(), flags=re.DOTALL)
        return text.replace(b"</a>", b"</g>")
    if kind == "png":
        Image.open(drawn).convert("RGB").quantize(COLOURS).save(small, "PNG", optimize=True)
        return small.getvalue()
    return drawn.getvalue()


def write_figure(figure: Figure, path: Path, dpi: int = DPI) -> Path:
    """Writes a figure as its path ends (`.pdf`, `.svg`, `.png`); see `file_of`."""
    content = file_of(figure, path.suffix[1:] or "png", path.stem, dpi)
    with write_in_one_move(path) as beside:
        beside.write_bytes(content)
    return path


def inline(svg: str, about: str, width: float) -> str:
    """An SVG file as an element of a page.

    Args:
        svg: The file.
        about: What it shows, for those who do not see it.
        width: In inches of print.
    """
    _, start, rest = svg.partition("<svg ")
    head, end, body = rest.partition(">")
    box = re.search('viewBox="[^"]*"', head)
    shown = min(1.75 * width, ZOOM * PAGE)
    size = f"width:{shown:.3g}in;max-width:100%;min-width:{width:g}in"  # letters stay readable
    named = f'role="img" aria-label="{html.escape(about)}" style="{size}"'
    return f"{start}{box[0] if box else ''} {named}{end}{NAMES.sub('<g>', body)}"


def save(figure: Figure, folder: Path | str, name: str) -> tuple[Path, Path, Path]:
    """Writes `name.png`, `name.pdf` and `name.svg` into the folder, making it if need be."""
    png = write_figure(figure, Path(folder) / f"{name}.png")
    figure.set_layout_engine("none")  # everything has its place now
    pdf, svg = (write_figure(figure, Path(folder) / f"{name}.{kind}") for kind in ("pdf", "svg"))
    return png, pdf, svg
