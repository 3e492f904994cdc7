"""Masks as pictures, for print and for a page (queries down, keys across, dark = may attend), and
the figure of a proxy card."""

from __future__ import annotations

import base64
import hashlib
import io
import math
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from masksearch.contracts import Shape
from masksearch.errors import MaskSearchError
from masksearch.masks.core import Mask
from masksearch.masks.lower import tile_counts, under_causality
from masksearch.masks.picture import fold_equal
from masksearch.report.style import (
    GREEN,
    INK,
    LABEL,
    ORANGE,
    PAGE,
    PRINT,
    SMALL,
    TITLES,
    clean,
    new_figure,
    write_figure,
)

KEPT, DROPPED, SEAM = to_rgb("#0B3C6F"), to_rgb("#F2F0EA"), to_rgb("#FFFFFF")
COLUMNS = 4  # masks with one panel that share a row
SIDE = 1.35  # inches of a single panel
PANEL = 1.1  # inches, at most, of one panel of several
PIXELS = 256  # pixels of a panel at most; a pixel of a longer mask is a block of cells
SHADED = (0x3B, 0x7D, 0xC4)  # colour of a kept cell, on light and on dark; the others are clear
LEVELS = 15  # shades of a block, by the square root of its kept share
BYTES = 2_000_000  # of all images of a page together
CELLS = 400_000_000  # that are looked at for all of them: some seconds


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
    return fold_equal(table)


def tile_panels(table: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Panels `[layers, heads, n, n]` side by side with seams, as RGB `[height, width, 3]`."""
    layers, heads, length, _ = table.shape
    seam = _seam_of(length) if layers * heads > 1 else 0
    pitch = length + seam
    image = np.empty((layers * pitch - seam, heads * pitch - seam, 3))
    image[:] = SEAM
    for layer in range(layers):
        for head in range(heads):
            plane = table[layer, head].numpy()[..., None]
            rows = slice(layer * pitch, layer * pitch + length)
            image[rows, head * pitch : head * pitch + length] = np.where(plane, KEPT, DROPPED)
    return image


def _seam_of(length: int) -> int:
    """Width of the seam between panels, in cells."""
    return max(1, length // 16)


@rc_context(PRINT)
def plot_masks(
    masks: Mapping[str, Mask | Tensor],
    length: int,
    layers: int = 1,
    heads: int = 1,
    sparsities: Mapping[str, float] | None = None,
) -> Figure:
    """Every mask as a picture, with its name and sparsity.

    A mask that is the same in all layers and heads is one panel; of one that is
    not, every panel is shown: layers down and heads across (layers across where heads agree).

    Args:
        masks: Name -> mask, or a bool tensor `[n, n]`, `[heads, n, n]` or `[layers, heads, n, n]`;
            at least one.
        length: Positions.
        layers: Layers of the model.
        heads: Heads of the model.
        sparsities: Name -> what its title says, in [0, 1]; None = shares of all n x n cells.

    Raises:
        ValueError: If a tensor has another length (LengthError for a mask).
        LayerCountError, HeadCountError: If a mask was built for other counts.
    """
    tables = {name: planes(mask, length, layers, heads) for name, mask in masks.items()}
    shares = sparsities or {name: 1 - t.double().mean().item() for name, t in tables.items()}
    titles = {name: f"{100 * share:.1f}% sparse" for name, share in shares.items()}
    single = [name for name, table in tables.items() if table.shape[:2] == (1, 1)]
    rows = [single[start : start + COLUMNS] for start in range(0, len(single), COLUMNS)]
    heights = [SIDE + 0.75] * len(rows)
    for name in tables:
        if name not in single:
            down, across = panels(tables[name])
            heights.append(min(PANEL, (PAGE - 1.0) / across) * down + 0.8)
            rows.append([name])
    figure = new_figure(PAGE, sum(heights))
    grid = figure.add_gridspec(len(rows), COLUMNS, height_ratios=heights)
    for row, names in enumerate(rows):
        if names[0] not in single:
            draw(figure.add_subplot(grid[row, :]), names[0], titles[names[0]], tables[names[0]])
            continue
        for column, name in enumerate(names):
            axes = figure.add_subplot(grid[row, column])
            draw(axes, name, titles[name], tables[name])
            if column == 0:
                axes.set_ylabel("query", fontsize=SMALL)
            axes.set_xlabel("key", fontsize=SMALL)
    return figure


def panels(table: Tensor) -> tuple[int, int]:
    """Panels (down, across): layers down, heads across; layers across where heads are equal."""
    layers, heads = table.shape[:2]
    return (1, layers) if heads == 1 else (layers, heads)


def draw(axes: Axes, name: str, below: str, table: Tensor) -> None:
    """One mask: a panel, or panels with their layers and heads named; `below` its name."""
    layers, heads, length, _ = table.shape
    axes.imshow(
        tile_panels(table.transpose(0, 1) if heads == 1 else table), interpolation_stage="rgba"
    )
    single = layers * heads == 1
    axes.set_title(
        f"{textwrap.shorten(name, 24 if single else 48, placeholder='…')}\n{below}",
        fontsize=SMALL,
    )
    if single:
        axes.set_xticks([0, length - 1])
        axes.set_yticks([0, length - 1])
        axes.spines[:].set(color="#999999", linewidth=0.8)
    else:
        down, across = panels(table)
        pitch = length + _seam_of(length)
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


# -- on a page -----------------------------------------------------------------------------------
class Pictures:
    """The images of a page.

    Masks that come when the room of the page or the time is used up have none.

    Args:
        room: Bytes of base64 text that all images may take.
        cells: Cells of masks that may be looked at.
    """

    def __init__(self, room: int = BYTES, cells: int = CELLS) -> None:
        self.images: list[str] = []  # PNG in base64
        self.numbers: dict[bytes, int] = {}
        self.room, self.cells = room, cells

    def panels(self, mask: Mask, shape: Shape) -> list[list[int]] | None:
        """Which image each layer (down) and head (across) is; equal ones are folded into one.

        Returns:
            Indices into `images`; None for a mask that cannot be drawn, or for which there is
            no room.
        """
        try:
            mask.counts(shape.layers, shape.heads)
            self.cells -= len(mask.planes) * shape.length**2
            if self.cells < 0 or mask.needs_tokens:
                return None
            rows = self.tables(under_causality(mask, shape), shape.length)
            numbers = [[self.number_of(panel) for panel in row] for row in rows]
        except MaskSearchError:
            return None
        if any(number is None for row in numbers for number in row):
            return None
        kept = [[number for number in row if number is not None] for row in numbers]
        kept = kept[:1] if all(row == kept[0] for row in kept) else kept
        return [row[:1] for row in kept] if all(len(set(row)) == 1 for row in kept) else kept

    @staticmethod
    def tables(mask: Mask, length: int) -> NDArray[np.uint8]:
        """Levels of every pixel, `[layers, heads, side, side]`: 0 = nothing kept; see `LEVELS`."""
        if length <= PIXELS:
            table = mask.dense(length, mask.layers or 1, mask.heads or 1)
            return LEVELS * table.numpy().astype(np.uint8)
        block = -(-length // (PIXELS // 2))
        share = tile_counts(mask, length, block).double() / block**2
        return (LEVELS * share.clamp(0, 1).sqrt()).ceil().numpy().astype(np.uint8)

    def number_of(self, panel: NDArray[np.uint8]) -> int | None:
        """Index of a panel's image, which is made if there is none; None without room."""
        key = hashlib.blake2b(np.packbits(panel > 0).tobytes() + panel.tobytes()).digest()
        if key not in self.numbers:
            text = png_text(panel)
            if len(text) > self.room:
                return None
            self.room -= len(text)
            self.numbers[key] = len(self.images)
            self.images.append(text)
        return self.numbers[key]


def png_text(levels: NDArray[np.uint8]) -> str:
    """A PNG in base64: one colour, as opaque as the level (0 to `LEVELS`) says."""
    plain = bool(np.isin(levels, (0, LEVELS)).all())
    shades = [0, LEVELS] if plain else list(range(LEVELS + 1))
    image = Image.frombytes("P", levels.shape, (levels // LEVELS if plain else levels).tobytes())
    image.putpalette(SHADED * len(shades))
    file = io.BytesIO()
    clear = bytes(round(255 * shade / LEVELS) for shade in shades)
    image.save(file, "PNG", bits=1 if plain else 4, transparency=clear)
    return base64.b64encode(file.getvalue()).decode("ascii")


# -- proxy cards --------------------------------------------------------------------------------
LINES = {
    "within": ("means over seeds", ORANGE, "s"),
    "between_seeds": ("one seed against another", GREEN, "^"),
}


@rc_context(PRINT)
def plot_proxy(card: Any) -> Figure:
    """Agreement within density bands against budget, and every mask's value against budget.

    Left: tau-b of means with its interval shaded, one seed against another, and the noise ceiling.
    Right: one line a mask (mean over seeds), darker the denser, so that crossings are seen.
    """
    figure = new_figure(PAGE, 3.2)
    agreement, values = figure.subplots(1, 2)
    clean(agreement, "budget (optimiser steps)", "tau-b within density bands")
    title = f"{card.proxy} against {card.target} at {card.reference[1]:,} steps"
    agreement.set_title(title, fontsize=LABEL, color=INK)
    several = len(card.series()) > 1
    for style, (name, rows) in zip(("-", "--", ":") * 9, card.series().items(), strict=False):
        for part, (label, colour, marker) in LINES.items():
            agreement.plot(
                rows["budget"], rows[part], style, color=colour, marker=marker, markersize=3.5,
                linewidth=1.2, label=f"{label}, {name}" if several else label,
            )  # fmt: skip
        ends = rows["within_low"], rows["within_high"]
        agreement.fill_between(rows["budget"], *ends, color=ORANGE, alpha=0.16, linewidth=0)
    if math.isfinite(card.ceiling.value):
        label = f"noise ceiling ({card.ceiling.value:.2f})"
        agreement.axhline(card.ceiling.value, color=INK, linewidth=1.3, ls="--", label=label)
    agreement.axhline(0, color="#999999", linewidth=0.8)
    agreement.set_ylim(min(-0.15, card.frame["within_low"].min() - 0.05), 1.05)
    _budget_axis(agreement, card.frame["budget"].tolist())
    agreement.legend(fontsize=SMALL, frameon=False, loc="lower right")

    schedule = next(iter(card.series()))
    keys = sorted(key for key in card.cells if key[:2] == (card.proxy, schedule))
    means = np.stack([card.cells[key].mean(axis=1).to_numpy() for key in keys])
    clean(values, "optimiser steps", TITLES.get(card.proxy, card.proxy))
    values.set_title("every mask, mean over seeds", fontsize=LABEL, color=INK)
    shades = np.linspace(0.8, 0.0, len(card.densities))
    for shade, index in zip(shades, np.argsort(card.densities), strict=True):
        grey, steps = str(shade), [key[2] for key in keys]
        values.plot(steps, means[:, index], color=grey, linewidth=0.8)
    _budget_axis(values, [key[2] for key in keys])
    return figure


def write_proxy(card: Any, path: Path | str) -> Path:
    """Writes the figure (`.png`, `.pdf`, `.svg`); folders are made."""
    return write_figure(plot_proxy(card), Path(path))


def _budget_axis(axes: Axes, budgets: list[int]) -> None:
    """A log axis; 0 is the budget of a mask on a trained model."""
    axes.set_xscale("symlog" if min(budgets) == 0 else "log")
    axes.xaxis.set_major_formatter("{x:,.0f}")
