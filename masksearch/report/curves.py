"""Figures of comparisons and searches: paired differences, hypervolume over compute, and the
shares that layers and heads keep."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from numpy.typing import NDArray

from masksearch.analysis.compare import ComparedMasks
from masksearch.analysis.search_curves import Compute, Searches, band_of, curves_of, without_rte
from masksearch.contracts import Objective
from masksearch.masks.measure import unit_densities
from masksearch.report.fronts import Point, ends_of
from masksearch.report.layout import words
from masksearch.report.section import Section
from masksearch.report.style import (
    GREEN,
    GREY,
    INK,
    ORANGE,
    PAGE,
    PRINT,
    SMALL,
    clean,
    hover,
    new_figure,
    plain,
    shorten,
    styles_of,
)
from masksearch.report.tables import percent

COLOURS = {  # of an outcome; others are grey
    **dict.fromkeys(("better", "gains more than", "loses at most"), GREEN),
    **dict.fromkeys(("worse", "loses more than"), ORANGE),
}
STEPS = 200  # points of a curve of hypervolume at most
AXES: tuple[tuple[Compute, str], ...] = (
    ("trials", "counted trials (finished, reused or stopped)"),
    ("seconds", "compute in seconds, failed trials included"),
)
TOLD = 12  # layers whose shares are told one by one
SHOWN = 24  # masks of a front whose layers and heads are shown, at most
ACROSS = 6  # of them side by side


@rc_context(PRINT)
def draw_differences(comparison: ComparedMasks) -> Figure | None:
    """The declared comparisons: paired differences with their intervals, one a row, beside the
    line of no difference; a tick shows the margin that may be lost. None without one."""
    findings = [f for f in comparison.findings_to_show() if math.isfinite(f.difference.value)]
    if not findings:
        return None
    figure = new_figure(PAGE, 0.6 + 0.2 * max(2, len(findings)))
    axes = figure.add_subplot()
    clean(axes, f"difference in {words(comparison.title)} (95% together)", "")
    axes.axvline(0, color=GREY, linewidth=0.8, linestyle="--")
    for row, finding in enumerate(findings):
        d, margin = finding.difference, finding.margin
        colour = COLOURS.get(finding.outcome, GREY)
        axes.plot([d.low, d.high], [row, row], color=colour, linewidth=1.3)
        mark = axes.scatter(d.value, row, s=20, color=colour, zorder=3)
        pair = f"{finding.mask} minus {finding.against}"
        mark.set_urls([hover(f"{pair}: {finding.words}\n{d.text(signed=True)}")])
        if margin is not None:
            axes.plot(-comparison.sign * margin, row, "|", color=colour, markersize=8)
    labels = [plain(f"{shorten(f.mask, 32)} minus {shorten(f.against, 32)}") for f in findings]
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    return figure


def draw_volumes(section: Section) -> Iterator[tuple[str, Figure]]:
    """Hypervolumes of a section's finished searches, by the name of the score; also of the score
    without RTE."""
    alone = {n: {0: s} for n, s in section.studies.items() if n not in section.unfinished}
    judged = [section.objectives, without_rte(section.searches, section.objectives)]
    for objectives in filter(None, judged):
        if all(math.isfinite(objective.worst) for objective in objectives):
            figure = draw_volume(section.searches or alone, objectives)
            if figure is not None:
                yield objectives[0].name, figure


@rc_context(PRINT)
def draw_volume(searches: Searches, objectives: Sequence[Objective]) -> Figure | None:
    """Hypervolume over trials and over seconds: a line for each strategy, and its band where it
    has several seeds; None where nothing is dominated."""
    curves = curves_of(searches, objectives)
    bands = {
        (name, by): band_of(runs, by, STEPS) for name, runs in curves.items() for by, _ in AXES
    }
    if not any(mean.value > 0 for band in bands.values() for mean in band.values()):
        return None
    figure = new_figure(PAGE, 2.4)
    for axes, (by, title) in zip(figure.subplots(1, 2, sharey=True), AXES, strict=True):
        first = by == "trials"
        clean(axes, title, "hypervolume dominated" if first else "")
        for name, (colour, _) in styles_of(curves).items():
            band, n = bands[name, by], len(curves[name])
            xs, means = [*band], [*band.values()]
            low, high = ends_of(means)
            label = plain(f"{name}, {n} searches" if n > 1 else name) if first else ""
            ys = [mean.value for mean in means]
            axes.step(xs, ys, where="post", color=colour, linewidth=1.2, label=label)
            axes.fill_between(xs, low, high, step="post", color=colour, alpha=0.15, linewidth=0)
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
    figure.legend(loc="outside upper left", ncols=5, fontsize=SMALL, frameon=False)
    return figure


# -- what layers and heads keep ------------------------------------------------------------------
def kept_shares(
    section: Section, points: Sequence[Point]
) -> tuple[dict[str, NDArray[np.float64]], list[str]]:
    """The kept share of each layer and head of the masks of a front that differ in it, densest
    first: name -> `[layers, heads]`, and what there is to say of them."""
    shape = section.shape
    if shape is None or shape.layers * shape.heads == 1:
        return {}, []
    best = sorted((p for p in points if p.front), key=lambda p: (p.saved, p.name))
    masks = {p.record.fingerprint or p.name: (p.name, p.record.mask) for p in best}
    every = {
        name: np.array(unit_densities(mask, shape))
        for name, mask in masks.values()
        if mask is not None and not mask.needs_tokens
    }
    uneven = {name: kept for name, kept in every.items() if np.ptp(kept) > 1e-9}
    if not uneven:
        note = "Every mask of the front keeps the same share in all layers and heads."
        return {}, [note] if every else []
    notes = _describe_kept(uneven)
    if len(uneven) < len(every):
        left = len(every) - len(uneven)
        notes.append(f"{left} more masks of the front keep the same share everywhere.")
    shown = np.linspace(0, len(uneven) - 1, min(SHOWN, len(uneven))).round().astype(int)
    if len(shown) < len(uneven):
        notes.append(f"{len(shown)} of these {len(uneven)} masks are shown.")
    return {name: uneven[name] for name in np.array([*uneven])[shown]}, notes


@rc_context(PRINT)
def draw_kept(kept: Mapping[str, NDArray[np.float64]]) -> Figure:
    """A map of each mask: layers down and heads across, the darker the more is kept.

    Args:
        kept: Name of a mask -> share that each layer and head keeps, `[layers, heads]`.
    """
    most = max(float(shares.max()) for shares in kept.values())
    down = -(-len(kept) // ACROSS)
    layers, heads = next(iter(kept.values())).shape
    high = min(1.3, max(0.5, layers / heads))  # inches of a map
    figure = new_figure(PAGE, (high + 0.45) * down)
    for number, (name, shares) in enumerate(kept.items()):
        axes = figure.add_subplot(down, ACROSS, number + 1)
        edges = [np.arange(count + 1) - 0.5 for count in (heads, layers)]
        cells = axes.pcolor(*edges, shares, cmap="Blues", vmin=0, vmax=most, edgecolors="white")
        cells.set_urls(
            [
                f"layer {layer}, head {head}: {percent(share)} kept"
                for (layer, head), share in np.ndenumerate(shares)
            ]
        )
        axes.set_title(plain(shorten(name, 20)), fontsize=SMALL, color=INK)
        axes.invert_yaxis()
        axes.set_xticks(sorted({0, heads - 1}))
        axes.set_yticks(sorted({0, layers - 1}))
        axes.tick_params(labelsize=SMALL, length=0, colors=INK)
        axes.spines[:].set_visible(False)
    return figure


def _describe_kept(masks: Mapping[str, NDArray[np.float64]]) -> list[str]:
    """The changes from the densest mask to the sparsest, in sentences."""
    names, every, lines = [*masks], [*masks.values()], list[str]()
    first, last = every[0], every[-1]
    if len(masks) > 1:
        texts = []
        for at in (int((first - last).argmax()), int((first - last).argmin())):
            layer, head = divmod(at, first.shape[1])
            shares = f"{percent(first[layer, head])} to {percent(last[layer, head])}"
            texts.append(f"layer {layer}, head {head} ({shares})")
        lines.append(
            f"From {names[0]} to {names[-1]}: {texts[0]} gives up the most, {texts[1]} the least."
        )
    if any(np.ptp(each.mean(1)) > 1e-9 for each in every):
        fullest = [int(each.mean(1).argmax()) for each in every]
        layer = max(sorted(set(fullest)), key=fullest.count)
        ends = [first, last][: len(masks)]  # of one mask it is itself
        means = "; ".join(
            f"layer {index} {' and '.join(map(percent, shares))}"
            for index, shares in enumerate(zip(*(end.mean(1) for end in ends), strict=True))
        )
        of, often = "", ""
        if len(masks) > 1:
            of = " in the first and in the last mask"
            often = f" in {fullest.count(layer)} of {len(masks)} masks"
        kept = f" Kept{of}: {means}." if len(first) <= TOLD else ""
        lines.append(f"Layer {layer} is the fullest{often}.{kept}")
    return lines
