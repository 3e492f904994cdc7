"""DAM's runs on a page: health cards, their figures, what several runs say together, and maps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, NullLocator, ScalarFormatter
from torch import Tensor

from masksearch.contracts import OneShot, Record, Report
from masksearch.gates.result import Health
from masksearch.report.style import (
    BLUE,
    COLUMN,
    GREY,
    INK,
    ORANGE,
    PAGE,
    PRINT,
    SHADE,
    SMALL,
    SPARE,
    clean,
    new_figure,
)
from masksearch.report.tables import health_table

GATES = "Blues"  # probability 0 = white
WIDEST = PAGE - 1.7  # inches of the heat maps, without names and bar
SIDE = 1.6  # inches of one heat map, at most
NAMED = 32  # panels that get names and captions, at most
TICKS = (1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001)
CARDS = 4  # runs that are shown in full at most


@dataclass(frozen=True, eq=False)
class DamCard:
    """One DAM run whose gates could be read.

    Args:
        title: Which run it is.
        record: Of its one-shot job.
        health: Its figures.
        probabilities: float `[layers, heads, n, n]`; of switches `[layers, units, options]`.
        warmup_steps: Steps before the gates acted.
    """

    title: str
    record: Record
    health: Health
    probabilities: Tensor
    warmup_steps: int = 0


@dataclass(frozen=True, eq=False)
class DamRuns:
    """The section of a page on its DAM runs.

    Args:
        cards: One a run.
        agreements: Name -> `masksearch.gates.result.GateAgreement` of runs that differ in their
            seed only.
        missing: Lines on gates that could not be read.
    """

    cards: Sequence[DamCard] = ()
    agreements: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    missing: Sequence[str] = ()


@dataclass(frozen=True)
class Picture:
    """A figure of the page: its key, its texts, and the number of its card, if it has one."""

    key: str
    figure: Figure
    alt: str
    caption: str
    card: int | None = None


def dam_pictures(runs: DamRuns, records: Sequence[Record]) -> Iterator[Picture]:
    """Every figure of the section.

    Args:
        runs: Cards; the first `CARDS` are drawn in full.
        records: Of the page; one-shot jobs without a card get their curve only.
    """
    course = "DAM's density and loss over the training steps"
    for index, card in enumerate(runs.cards[:CARDS]):
        key, p = f"dam_{index}" if len(runs.cards) > 1 else "dam", card.probabilities
        text = "Density of the gates with its target, and the training loss."
        yield Picture(key, plot_dam(card.record.curve, card.warmup_steps), course, text, index)
        if p.ndim == 3:
            alt = "Probability of the fullest mask for every unit of every layer"
            text = "Which units take their fullest mask: layers down, the units of a layer across."
            yield Picture(f"{key}_gates", plot_switches(p), alt, text, index)
            continue
        alt = "Gate probabilities of every layer and head"
        text = (
            "Probability of every edge at the end: queries down, keys across; above each panel "
            "its density."
        )
        yield Picture(f"{key}_gates", plot_gates(p), alt, text, index)
        text = "Where the mass lies: mean probability of an edge by key minus query."
        alt = "Gate probabilities by signed offset"
        yield Picture(f"{key}_offsets", plot_offsets(p), alt, text, index)
    shown = {id(card.record) for card in runs.cards[:CARDS]}
    jobs = [record for record in records if isinstance(record.job, OneShot) and record.curve]
    curves = [record for record in jobs if id(record) not in shown]
    alone = len(curves) == 1 and not shown
    titles = {id(card.record): card.title for card in runs.cards}
    for index, record in enumerate(curves, start=len(shown)):
        title = titles.get(id(record), f"Trial {record.number}")
        text = f"{title}: density of the gates with its target, and the loss."
        key = "dam" if alone else f"dam_{index}"
        yield Picture(key, plot_dam(record.curve), course, text)
    if runs.agreements:
        yield Picture(
            "dam_agreement",
            plot_agreement(runs.agreements),
            "Overlap of the masks of several seeds against chance",
            "Do seeds find the same mask? Bars: mean intersection over union of two seeds' masks, "
            "cut at the target density; points: each pair; black lines: gates with random values.",
        )


def health_data(runs: DamRuns) -> dict[str, Any]:
    """The section as plain data: the cards in words and figures, and what they say
    together."""
    left = len(runs.cards) - CARDS
    return {
        "cards": [
            {
                "title": card.title,
                "problems": [sentence(line) for line in card.health.problems.values()],
                "notes": [
                    *(sentence(line) for line in card.health.notes),
                    *(f"Said while it ran: {line}." for line in card.health.warnings),
                ],
                "table": health_table(card.health),
                "health": asdict(card.health),
                "curve": [{"step": report.step, **report.values} for report in card.record.curve],
                "warmup_steps": card.warmup_steps,
            }
            for card in runs.cards[:CARDS]
        ],
        "notes": [f"{CARDS} of {len(runs.cards)} runs are shown in full."] if left > 0 else [],
        "together": bool(runs.agreements),
        "agreements": runs.agreements,
        "missing": runs.missing,
    }


def sentence(line: str) -> str:
    """A line with a capital and a full stop."""
    return f"{line[:1].upper()}{line[1:]}."


# -- figures -------------------------------------------------------------------------------------
@rc_context(PRINT)
def plot_dam(curve: Sequence[Report], warmup_steps: int = 0) -> Figure:
    """DAM's density (log scale) with its target, and its loss, over the training steps.

    Args:
        curve: Reports with `density` and, where known, `target` (both in (0, 1]) and `loss`.
        warmup_steps: Steps before the gates acted; shaded.
    """
    figure = new_figure(COLUMN, 3.6)
    density, loss = figure.subplots(2, 1, sharex=True)
    if curve and warmup_steps > 0:
        shade = {"color": SHADE, "zorder": 0, "linewidth": 0}
        density.axvspan(0, warmup_steps, label="warm-up: dense attention", **shade)
        loss.axvspan(0, warmup_steps, **shade)
    for name, colour, style in (("density", ORANGE, "-"), ("target", INK, "--")):
        points = [(r.step, r.values[name]) for r in curve if r.values.get(name, 0.0) > 0]
        if points:
            x, y = zip(*points, strict=True)
            density.plot(x, y, style, color=colour, linewidth=1.2, label=name)
    points = [(r.step, r.values["loss"]) for r in curve if "loss" in r.values]
    if points:
        loss.plot(*zip(*points, strict=True), color=BLUE, linewidth=1.0)
    clean(density, "", "density (kept share of cells)")
    clean(loss, "optimiser steps", "training loss (nats)")
    if density.lines:
        density.set_yscale("log")
        density.yaxis.set_major_formatter(ScalarFormatter())
        density.yaxis.set_minor_locator(NullLocator())
        low, high = density.get_ylim()
        shown = [tick for tick in TICKS if low <= tick <= high]
        if len(shown) >= 2:
            density.set_yticks(shown, [f"{tick:g}" for tick in shown])
        density.legend(fontsize=SMALL, frameon=False)
    return figure


def plot_gates(probabilities: Tensor) -> Figure:
    """A heat map of every layer (down) and head (across), the density of each above it.

    Args:
        probabilities: float `[layers, heads, n, n]` in [0, 1]; an axis of 1 is called "all".
    """
    p = probabilities.detach().float().cpu()
    return plot_heads(p, "gate probability", GATES, (0, 1), captions=True)


@rc_context(PRINT)
def plot_switches(probabilities: Tensor) -> Figure:
    """How likely each layer's units (across) take their last, fullest mask.

    Args:
        probabilities: float `[layers, units of a layer, options]` in [0, 1].
    """
    fullest = probabilities.detach().float().cpu()[..., -1]
    layers, units = fullest.shape
    figure = new_figure(max(3.2, min(PAGE, 0.3 * units + 2.0)), max(1.8, 0.16 * layers + 1.0))
    axes = figure.add_subplot()
    picture = axes.imshow(fullest.numpy(), cmap=GATES, vmin=0, vmax=1, aspect="auto")
    axes.set_xlabel("unit of the layer", fontsize=SMALL, color=INK)
    axes.set_ylabel("layer", fontsize=SMALL, color=INK)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(12, integer=True))
    axes.tick_params(labelsize=SMALL, colors=INK)
    return _with_bar(figure, picture, "probability of the fullest mask")


def _with_bar(figure: Figure, picture: AxesImage, label: str, shrink: float = 1.0) -> Figure:
    """The figure of a heat map with the bar that says what its colours mean."""
    bar = figure.colorbar(picture, ax=picture.axes, shrink=shrink, aspect=16)
    bar.set_label(label, fontsize=SMALL, color=INK)
    bar.ax.tick_params(labelsize=SMALL)
    return figure


@rc_context(PRINT)
def plot_heads(
    values: Tensor, label: str, colours: str, scale: tuple[float, float], *, captions: bool = False
) -> Figure:
    """A heat map of every layer (down) and head (across): queries down, keys across.

    Args:
        values: float `[layers, heads, n, n]`; an axis of 1 is called "all".
        label: What the colours mean, with its unit.
        colours: matplotlib's name of them.
        scale: Values of the first and the last colour, for all panels.
        captions: Whether each of up to 32 panels has its mean above it, as a percentage.
    """
    layers, heads, length, _ = values.shape
    named = layers * heads <= NAMED
    gap = max(1, length // 16)  # cells between two panels
    side = min(SIDE, WIDEST / heads * length / (length + gap))
    captions = captions and named
    above = max(gap, round(0.2 * length / side)) if captions else gap  # room for a line of text
    pitch = (length + above, length + gap)
    image = np.full((layers * pitch[0], heads * pitch[1] - gap), np.nan)
    corners = {
        (layer, head): (layer * pitch[0] + above, head * pitch[1])
        for layer in range(layers)
        for head in range(heads)
    }
    for (layer, head), (top, left) in corners.items():
        image[top : top + length, left : left + length] = values[layer, head].numpy()
    inches = side / length  # of a cell
    figure = new_figure(
        max(3.6, image.shape[1] * inches + 1.7), max(2.2, image.shape[0] * inches + 0.7)
    )
    axes = figure.add_subplot()
    picture = axes.imshow(image, cmap=colours, vmin=scale[0], vmax=scale[1], interpolation="none")
    for (layer, head), (top, left) in corners.items():
        outline = Rectangle((left - 0.5, top - 0.5), length, length, fill=False, clip_on=False)
        outline.set(edgecolor="#AAAAAA", linewidth=0.6)
        axes.add_patch(outline)
        if captions:
            share = f"{100 * values[layer, head].mean().item():.1f}%"
            axes.text(left + length / 2, top - 1, share, ha="center", fontsize=SMALL, color=INK)
    middle = (length - 1) / 2
    across = [f"head {head}" if named else f"{head}" for head in range(heads)]
    down = [f"layer {layer}" for layer in range(layers)]
    axes.set_xticks(
        [head * pitch[1] + middle for head in range(heads)], across if heads > 1 else ["all heads"]
    )
    axes.set_yticks(
        [layer * pitch[0] + above + middle for layer in range(layers)],
        down if layers > 1 else ["all layers"],
    )
    axes.tick_params(labelsize=SMALL, length=0, colors=INK)
    axes.spines[:].set_visible(False)
    if not named:
        axes.set_xlabel("head", fontsize=SMALL, color=INK)
    return _with_bar(figure, picture, label, shrink=0.8)


@rc_context(PRINT)
def plot_offsets(probabilities: Tensor) -> Figure:
    """Mean probability of an edge by signed offset (key minus query): all heads, and each one.

    The level line is what gates of equal probability would have.

    Args:
        probabilities: float `[layers, heads, n, n]` in [0, 1].
    """
    p = probabilities.detach().float().cpu()
    layers, heads, length, _ = p.shape
    offsets = range(1 - length, length)
    profile = torch.stack([p.diagonal(offset, -2, -1).mean(-1) for offset in offsets], -1)
    figure = new_figure(COLUMN, 2.5)
    axes = figure.add_subplot()
    clean(axes, "offset (key minus query)", "mean probability of an edge")
    for layer in range(layers) if layers * heads > 1 else ():
        title = "each head" if layers == 1 else f"layer {layer}, each head"
        lines = axes.plot(
            offsets, profile[layer].numpy().T, color=SPARE[layer % len(SPARE)][0], linewidth=0.8,
            alpha=0.55,
        )  # fmt: skip
        lines[0].set_label(title)
    axes.plot(offsets, profile.mean((0, 1)).numpy(), color=INK, linewidth=1.2, label="mean of all")
    axes.axhline(p.mean().item(), color=GREY, linewidth=1, linestyle=":", label="if all are equal")
    axes.set_ylim(-0.02, 1.02)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if layers <= 6:
        axes.legend(fontsize=SMALL, frameon=False)
    return figure


@rc_context(PRINT)
def plot_agreement(agreements: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Overlap (IoU) of the masks of several seeds, against that of random gates.

    Bars are means over pairs of seeds, points the pairs, black lines chance.

    Args:
        agreements: Name of the runs -> `seeds`, `iou`, `chance`, `matched`, `matched_chance`,
            `by_pair`, `matched_by_pair`.
    """
    figure = new_figure(COLUMN if len(agreements) < 3 else PAGE, 2.8)
    axes = figure.add_subplot()
    clean(axes, "", "overlap of two seeds' masks (IoU)")
    axes.grid(visible=False, axis="x")
    for number, figures in enumerate(agreements.values()):
        kinds = (
            (-0.2, "iou", "chance", "by_pair", GREY, "heads as they stand"),
            (0.2, "matched", "matched_chance", "matched_by_pair", BLUE, "heads matched"),
        )
        for shift, name, chance, pairs, colour, label in kinds:
            x = number + shift
            axes.bar(
                x, figures[name], width=0.34, color=colour, alpha=0.75,
                label=None if number else label,
            )  # fmt: skip
            axes.scatter(
                [x] * len(figures[pairs]), figures[pairs], s=14, color="white", edgecolors=INK,
                linewidths=0.8, zorder=3,
            )  # fmt: skip
            axes.plot(
                [x - 0.19, x + 0.19], [figures[chance]] * 2, color="black", linewidth=2, zorder=4,
                label="chance" if shift > 0 and number == 0 else None,
            )  # fmt: skip
    names = [f"{name}\n({figures['seeds']} seeds)" for name, figures in agreements.items()]
    axes.set_xticks(range(len(names)), names, fontsize=SMALL)
    spare = max(0.0, 3 - len(names)) / 2  # keeps few bars slender
    axes.set_xlim(-0.6 - spare, len(names) - 0.4 + spare)
    axes.set_ylim(0, 1.02)
    figure.legend(loc="outside upper center", ncols=3, fontsize=SMALL, frameon=False)
    return figure
