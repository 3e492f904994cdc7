"""Labels of points in a figure, put where they hide as little as possible."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox

SIDES = ((1, 0), (-1, 0), (0, 1), (0, -1))
CORNERS = ((1, 1), (-1, 1), (1, -1), (-1, -1))


def place_labels(
    figure: Figure, axes: Axes, labels: Sequence[tuple[float, float, str, str]]
) -> None:
    """Writes (x, y, text, colour) labels where they hide neither each other nor the markers.

    Greedy: each label takes the first free place of four rings around its point, the one
    that hides least where none is free; a far one gets a thin leader line.
    """
    figure.draw_without_rendering()  # the layout is final from here on
    figure.set_layout_engine("none")
    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    frame = axes.get_window_extent(renderer)
    scale = figure.dpi / 72
    taken = [(square(axes.transData.transform((x, y)), 10 * scale), 4.0) for x, y, *_ in labels]
    taken += [(square(point, 4 * scale), 1.0) for point in drawn(axes, 4 * scale)]
    spots = [
        (ring * dx, ring * dy, ring > 9)
        for ring in (8, 16, 26, 38)
        for dx, dy in (*SIDES, *((0.8 * dx, 0.8 * dy) for dx, dy in CORNERS))
    ]
    for x, y, text, colour in sorted(labels, key=lambda label: (-label[1], label[0])):
        note = axes.annotate(
            text,
            (x, y),
            textcoords="offset points",
            xytext=(0, 0),
            fontsize=10,
            color=colour,
            arrowprops={"arrowstyle": "-", "color": "#999999", "lw": 0.7, "shrinkA": 1},
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
            zorder=6,
        )
        note.set_in_layout(False)
        choices: list[tuple[float, int, Bbox]] = []
        for index, (dx, dy, _) in enumerate(spots):
            move(note, dx, dy)
            note.update_positions(renderer)
            box = Text.get_window_extent(note, renderer)
            outside = box.width * box.height - overlap(box, frame)
            hidden = sum(weight * overlap(box, other) for other, weight in taken)
            choices.append((8 * outside + hidden + 3 * index, index, box))
        _, index, box = min(choices, key=lambda choice: choice[:2])
        dx, dy, far = spots[index]
        move(note, dx, dy)
        if note.arrow_patch is not None:
            note.arrow_patch.set_visible(far)
        taken.append((box, 8.0))


def move(note: Annotation, dx: float, dy: float) -> None:
    """Puts a label that many points right of and above its point, growing away from it."""
    note.set_position((dx, dy))
    note.set_horizontalalignment("left" if dx > 0 else "right" if dx < 0 else "center")
    note.set_verticalalignment("bottom" if dy > 0 else "top" if dy < 0 else "center")


def drawn(axes: Axes, step: float) -> Iterator[tuple[float, float]]:
    """Pixels of the markers and, every `step` pixels, of the steps and intervals."""
    for dots in axes.collections:
        if isinstance(dots, PathCollection):
            yield from map(tuple, axes.transData.transform(np.ma.getdata(dots.get_offsets())))
    corners = [line for line in axes.lines if line.get_transform() == axes.transData]
    paths = [line.get_path() for line in corners if len(line.get_path()) > 1]
    bars = [c for c in axes.collections if isinstance(c, LineCollection)]
    paths += [path for bar in bars for path in bar.get_paths()]
    for path in paths:
        points = axes.transData.transform(path.vertices)
        for (x0, y0), (x1, y1) in itertools.pairwise(points):
            count = max(1, round(math.hypot(x1 - x0, y1 - y0) / step))
            for i in range(count + 1):
                yield x0 + (x1 - x0) * i / count, y0 + (y1 - y0) * i / count


def square(centre: Iterable[float], side: float) -> Bbox:
    """A box around a pixel."""
    x, y = centre
    return Bbox.from_bounds(x - side / 2, y - side / 2, side, side)


def overlap(a: Bbox, b: Bbox) -> float:
    """Common area of two boxes, in pixels squared."""
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    return float(max(0.0, width) * max(0.0, height))
