"""Draws six random masks of every ready-made space: docs/images/spaces/<name>.png.

    python docs/programs/draw_spaces.py [NAME ...]

The draws come from a seeded random sampler, so that the pictures change only with the spaces.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import optuna
import torch
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from masksearch.report.pictures import planes, tile_panels
from masksearch.report.style import PRINT, write_figure
from masksearch.user_code import load_function

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "docs" / "images" / "spaces"
DRAWS = 6
SEED = 1
SIZES = {"local_heads": (6, 12), "local_global_layers": (12, 1), "local_global_heads": (6, 8)}
SIZES |= {"head_roles": (6, 12), "token_schedules": (6, 1)}
SMALL = (2, 4)
PLAIN = (64, 2)  # positions, pixels a cell
VIEWS = {"head_shifts": (32, 3), "head_layer_shifts": (32, 3), "head_families": (32, 3)}
VIEWS |= {"block_layouts": (128, 1), "distances": (32, 4), "local_heads": (32, 1)}
VIEWS |= {"local_global_layers": (64, 1), "local_global_heads": (48, 1), "head_windows": (32, 3)}
VIEWS |= {"head_roles": (32, 1), "tile_bands": (256, 1), "token_schedules": (64, 1)}
WIDEST = 1_000  # pixels of a row of masks
EDGE, GAP, TITLE = 6, 16, 28  # pixels around everything, between masks, and above each
LABEL = 18  # pixels left of a mask, where layers are named
DPI = 100


def draws(name: str, length: int) -> list[Tensor]:
    """Six masks as bool `[layers, heads, n, n]`, equal layers and heads folded into one."""
    space = load_function(f"{ROOT / 'search_spaces' / name}.py:space")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=SEED))
    return [planes(space(study.ask()), length, *SIZES.get(name, SMALL)) for _ in range(DRAWS)]


@rc_context(PRINT)
def figure_of(tables: list[Tensor], length: int, zoom: int) -> Figure:
    """All masks with their sparsities; layers down and heads across where they differ.

    Every cell is a square of `zoom` pixels, so that nothing is blurred.
    """
    layers = max(table.shape[0] for table in tables)
    heads = max(table.shape[1] for table in tables)
    panels = [tile_panels(table.expand(layers, heads, length, length)) for table in tables]
    height, width = (zoom * cells for cells in panels[0].shape[:2])
    label = LABEL if layers > 1 else 0
    pitch = label + width + GAP
    columns = next(c for c in (6, 3, 2, 1) if c * pitch <= WIDEST or c == 1)
    across = columns * pitch - GAP + 2 * EDGE
    down = DRAWS // columns * (height + TITLE) + EDGE
    figure = Figure(figsize=(across / DPI, down / DPI), dpi=DPI)
    FigureCanvasAgg(figure)
    for index, (panel, table) in enumerate(zip(panels, tables, strict=True)):
        left = EDGE + index % columns * pitch + label
        top = index // columns * (height + TITLE) + TITLE
        image = np.kron(panel, np.ones((zoom, zoom, 1)))
        figure.figimage(image, left, down - top - height)
        sparsity = 100 * (1 - table.to(torch.float64).mean().item())
        where = ((left + width / 2) / across, 1 - (top - 6) / down)
        figure.text(*where, f"{sparsity:.1f}% sparse", ha="center", va="bottom", fontsize=9.5)
        for layer in range(layers if layers > 1 else 0):
            middle = top + (layer + 0.5) * height / layers
            where = ((left - 4) / across, 1 - middle / down)
            text = f"layer {layer}" if height / layers > TITLE + LABEL else str(layer)
            figure.text(*where, text, ha="right", va="center", rotation=90, fontsize=8)
    return figure


def main(names: list[str]) -> None:
    """Draws the named spaces, or all of them."""
    for name in names or sorted(path.stem for path in (ROOT / "search_spaces").glob("*.py")):
        view = VIEWS.get(name, PLAIN)
        path = write_figure(figure_of(draws(name, view[0]), *view), IMAGES / f"{name}.png", DPI)
        print(f"{path.relative_to(ROOT)}  {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
