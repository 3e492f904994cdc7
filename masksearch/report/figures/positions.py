"""Figures of attention positions: maps, and how profiles over offsets move in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from torch import Tensor

from masksearch.report.figures.dam import plot_heads
from masksearch.report.figures.style import (
    COLUMN,
    INK,
    LABEL,
    PAGE,
    SMALL,
    SPARE,
    clean,
    new_figure,
)

if TYPE_CHECKING:
    from masksearch.positions.result import Profile

RISE = "rise of the loss when dropped (nats)"
SHARES, EFFECTS = "Blues", "RdBu_r"  # from 0 up; around 0, red = dropping it hurts
TICKS = 10  # of an axis of offsets, at most


def plot_attention_maps(values: Tensor, label: str = "attention weight") -> Figure:
    """A heat map for every layer (down) and head (across): queries down, keys across.

    Values of both signs are coloured around 0, others from 0 up; all panels share the scale.

    Args:
        values: float `[layers, heads, n, n]`; an axis of 1 is called "all".
        label: What the colours mean, with its unit.

    Raises:
        ValueError: If the tensor has another shape.
    """
    if values.ndim != 4 or values.shape[-1] != values.shape[-2]:
        raise ValueError(
            f"maps are [layers, heads, n, n], got {list(values.shape)}; "
            "add axes of 1 for what is pooled"
        )
    shown = values.detach().float().cpu()
    low, high = shown.min().item(), shown.max().item()
    reach = max(abs(low), abs(high)) or 1.0
    if low < 0:
        return plot_heads(shown, label, EFFECTS, (-reach, reach))
    return plot_heads(shown, label, SHARES, (0.0, reach))


def plot_importance_dynamics(
    steps: Sequence[int],
    profiles: Sequence[Profile],
    lines: Mapping[str, Sequence[tuple[Tensor, Tensor, Tensor]]] | None = None,
    label: str = RISE,
) -> Figure:
    """How importance moves over training: the profile as colours, and single units as lines.

    The steps stand at equal distances, whatever their numbers.

    Args:
        steps: Optimiser steps, ascending.
        profiles: One for each step, over offsets, pooled over layers and heads.
        lines: Name -> (mean, low, high) at each step, each with one element: the diagonal, a
            special token. None = no second panel.
        label: What the values mean, with their unit.

    Raises:
        ValueError: If the numbers differ, or layers or heads are told apart.
    """
    lines = lines or {}
    wrong = [name for name, line in lines.items() if len(line) != len(steps)]
    if not steps or len(profiles) != len(steps) or wrong:
        raise ValueError(
            f"{len(steps)} steps need a profile and a point of every line each, got "
            f"{len(profiles)} profiles{', too few or many for ' if wrong else ''}"
            f"{', '.join(wrong)}"
        )
    if any(profile.mean.shape[:2] != (1, 1) for profile in profiles):
        raise ValueError("the profiles tell layers or heads apart; measure with per='model'")
    figure = new_figure(PAGE if lines else COLUMN, 3.0)
    panels = figure.subplots(1, 2 if lines else 1, squeeze=False)[0]
    axes = panels[0]
    at = profiles[0].at
    values = [profile.mean[0, 0].detach().cpu().tolist() for profile in profiles]
    reach = max((abs(v) for row in values for v in row if v == v), default=0.0) or 1.0
    negative = any(v < 0 for row in values for v in row)
    picture = axes.imshow(
        list(zip(*values, strict=True)),
        cmap=EFFECTS if negative else SHARES,
        vmin=-reach if negative else 0.0,
        vmax=reach,
        aspect="auto",
        origin="lower",
        interpolation="nearest",
    )
    zero, stride = at.index(0) if 0 in at else 0, max(1, -(-len(at) // TICKS))
    marks = range(zero % stride, len(at), stride)
    axes.set_yticks(marks, [str(at[mark]) for mark in marks])
    axes.set_ylabel("offset (key minus query)", fontsize=LABEL, color=INK)
    bar = figure.colorbar(picture, ax=axes)
    bar.set_label(label, fontsize=SMALL, color=INK)
    bar.ax.tick_params(labelsize=SMALL)
    order = list(range(len(steps)))
    if lines:
        clean(panels[1], "", label)
        panels[1].axhline(0, color="#777777", linewidth=1, zorder=1)
        for (name, line), style in zip(lines.items(), SPARE * len(lines), strict=False):
            mean, low, high = ([point[part].item() for point in line] for part in range(3))
            colour, marker = style
            panels[1].fill_between(order, low, high, color=colour, alpha=0.2, linewidth=0)
            panels[1].plot(
                order, mean, color=colour, marker=marker, markersize=3, linewidth=1.0, label=name
            )
        panels[1].legend(fontsize=SMALL, frameon=False)
    for panel in panels:
        panel.set_xticks(order, [str(step) for step in steps], rotation=45, fontsize=SMALL)
        panel.tick_params(labelsize=SMALL)
        panel.set_xlabel("optimiser steps", fontsize=LABEL, color=INK)
    return figure
