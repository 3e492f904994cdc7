"""Masks as pictures, for print and for a page (queries down, keys across, dark = may attend), and
the figure of a proxy card."""

from __future__ import annotations

import base64
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
from torch import Tensor

from masksearch.analysis.pareto import pareto, sparsity_of
from masksearch.contracts import Record, Shape
from masksearch.errors import MaskSearchError
from masksearch.masks.core import Mask
from masksearch.masks.lower import tile_counts, under_causality
from masksearch.masks.picture import draw_table, fold_equal
from masksearch.report.section import Section
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
CELLS = 100_000_000  # of a mask that are looked at for its picture: about a second
PICTURES = 16  # masks of a page, and of its printed figure, at most


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
def masks_to_draw(section: Section) -> dict[str, tuple[Mask, float]]:
    """Masks to draw with their sparsities, each set of bits once: those compared, those on the
    fronts, then one of the controls whose keys are drawn."""
    named: dict[str, tuple[Mask, float]] = {}
    seen: set[str] = set()
    candidates: list[tuple[str, Record]] = []
    scrambled: list[tuple[str, Record]] = []
    for comparison in section.comparisons.values():
        for record in comparison.records:
            entry = comparison.entries[record.name]
            last = entry.at_random and entry.kind == "control"
            (scrambled if last else candidates).append((record.name, record))
    owners = {id(record): name for name, study in section.studies.items() for record in study}
    for record in pareto(section.searched, section.objectives):
        hand = record.role == "baseline"
        name = record.name if hand else f"{owners[id(record)]} {record.number}"
        candidates.append((name, record))
    for name, record in [*candidates, *scrambled[:1]]:
        key = record.fingerprint or name
        if record.mask is not None and name not in named and key not in seen:
            seen.add(key)
            named[name] = (record.mask, sparsity_of(record))
    return dict([*named.items()][:PICTURES])


def mask_png(mask: Mask, shape: Shape) -> str:
    """A mask's picture in base64 (`draw_table`); empty of one that cannot be drawn, or whose cells
    would take many seconds. Of a long mask a pixel is a block, by its kept share."""
    try:
        mask.counts(shape.layers, shape.heads)
        if mask.needs_tokens or len(mask.planes) * shape.length**2 > CELLS:
            return ""
        mask = under_causality(mask, shape)
        if shape.length <= PIXELS:
            table = mask.dense(shape.length)
        else:
            block = -(-shape.length // (PIXELS // 2))
            table = (tile_counts(mask, shape.length, block) / block**2).clamp(0, 1).sqrt()
    except MaskSearchError:
        return ""
    return base64.b64encode(draw_table(table)[0]).decode("ascii")


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
