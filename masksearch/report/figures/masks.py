"""Masks as pictures: queries down, keys across, dark = may attend."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from torch import Tensor

from masksearch.masks.core import Mask
from masksearch.report.figures.style import LABEL, PAGE, SMALL

KEPT, DROPPED, SEAM = to_rgb("#0B3C6F"), to_rgb("#F2F0EA"), to_rgb("#FFFFFF")
COLUMNS = 4  # masks with one panel that share a row
SIDE = 1.35  # inches of a single panel
PANEL = 1.1  # inches, at most, of one panel of several


def planes(mask: Mask | Tensor, length: int, layers: int, heads: int) -> Tensor:
    """A mask's bool `[layers, heads, n, n]`, with equal layers or heads folded into one."""
    if isinstance(mask, Mask):
        table = mask.dense(length, layers, heads)
    else:
        table = mask.bool().cpu().reshape((1,) * (4 - mask.ndim) + tuple(mask.shape))
        if table.shape[-2:] != (length, length):
            raise ValueError(
                f"a table of {' x '.join(map(str, table.shape[-2:]))} cannot be drawn at length "
                f"{length}; pass its own length"
            )
    if bool((table == table[:1]).all()):
        table = table[:1]
    if bool((table == table[:, :1]).all()):
        table = table[:, :1]
    return table


def tile_panels(table: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Panels `[layers, heads, n, n]` side by side with seams, as RGB `[height, width, 3]`."""
    layers, heads, length, _ = table.shape
    seam = seam_of(length) if layers * heads > 1 else 0
    pitch = length + seam
    image = np.empty((layers * pitch - seam, heads * pitch - seam, 3))
    image[:] = SEAM
    for layer in range(layers):
        for head in range(heads):
            plane = table[layer, head].numpy()[..., None]
            rows = slice(layer * pitch, layer * pitch + length)
            image[rows, head * pitch : head * pitch + length] = np.where(plane, KEPT, DROPPED)
    return image


def seam_of(length: int) -> int:
    """Width of the seam between panels, in cells."""
    return max(1, length // 16)


def plot_masks(
    masks: Mapping[str, Mask | Tensor], length: int, layers: int = 1, heads: int = 1
) -> Figure:
    """Every mask as a picture, with its name and sparsity.

    A mask that is the same in all layers and heads is one panel; of one that is
    not, every panel is shown: layers down and heads across (layers across where heads agree).

    Args:
        masks: Name -> mask, or a bool tensor `[n, n]`, `[heads, n, n]` or `[layers, heads, n, n]`.
        length: Positions.
        layers: Layers of the model.
        heads: Heads of the model.

    Raises:
        ValueError: If a tensor has another length (LengthError for a mask).
        LayerCountError, HeadCountError: If a mask was built for other counts.
    """
    tables = {name: planes(mask, length, layers, heads) for name, mask in masks.items()}
    single = [name for name, table in tables.items() if table.shape[:2] == (1, 1)]
    rows = [single[start : start + COLUMNS] for start in range(0, len(single), COLUMNS)]
    heights = [SIDE + 0.75] * len(rows)
    for name in tables:
        if name not in single:
            down, across = panels(tables[name])
            heights.append(min(PANEL, (PAGE - 1.0) / across) * down + 0.8)
            rows.append([name])
    figure = Figure(figsize=(PAGE, max(1.0, sum(heights))), layout="constrained")
    FigureCanvasAgg(figure)
    if not rows:
        figure.text(0.5, 0.5, "no mask to draw", ha="center", va="center", fontsize=LABEL)
        return figure
    grid = figure.add_gridspec(len(rows), COLUMNS, height_ratios=heights)
    for row, names in enumerate(rows):
        if names[0] not in single:
            draw(figure.add_subplot(grid[row, :]), names[0], tables[names[0]])
            continue
        for column, name in enumerate(names):
            axes = figure.add_subplot(grid[row, column])
            draw(axes, name, tables[name])
            if column == 0:
                axes.set_ylabel("query", fontsize=SMALL)
            axes.set_xlabel("key", fontsize=SMALL)
    return figure


def panels(table: Tensor) -> tuple[int, int]:
    """Panels (down, across): layers down, heads across; layers across where heads are equal."""
    layers, heads = table.shape[:2]
    return (1, layers) if heads == 1 else (layers, heads)


def draw(axes: Axes, name: str, table: Tensor) -> None:
    """One mask: a panel, or panels with their layers and heads named."""
    layers, heads, length, _ = table.shape
    sparsity = 1 - table.to(torch.float64).mean().item()
    axes.imshow(
        tile_panels(table.transpose(0, 1) if heads == 1 else table), interpolation_stage="rgba"
    )
    single = layers * heads == 1
    axes.set_title(
        f"{textwrap.shorten(name, 24 if single else 48, placeholder='…')}\n"
        f"{100 * sparsity:.1f}% sparse",
        fontsize=SMALL,
    )
    if single:
        axes.set_xticks([0, length - 1])
        axes.set_yticks([0, length - 1])
        axes.spines[:].set(color="#999999", linewidth=0.8)
    else:
        down, across = panels(table)
        pitch = length + seam_of(length)
        middle = (length - 1) / 2
        kind = "layer" if heads == 1 else "head"
        short = across > 8
        axes.set_xticks(
            [index * pitch + middle for index in range(across)],
            [f"{index}" if short else f"{kind} {index}" for index in range(across)],
        )
        if short:
            axes.set_xlabel(kind, fontsize=SMALL)
        axes.set_yticks(
            [index * pitch + middle for index in range(down)],
            ["every head" if heads == 1 else "every layer"]
            if layers == 1 or heads == 1
            else [f"layer {index}" for index in range(layers)],
        )
        axes.spines[:].set_visible(False)
    axes.tick_params(labelsize=SMALL, length=0)
