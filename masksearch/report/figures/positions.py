"""Figures of attention positions: maps, profiles over offsets, and how they move in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from masksearch.report.figures.style import INK, SPARE, clean, new_figure

RISE = "rise of the loss when dropped (nats)"
SHARES, EFFECTS = "Blues", "RdBu_r"  # from 0 up; around 0, red = dropping it hurts
WIDEST = 10.0  # inches
SIDE = 2.2  # inches of a heat map, at most
TICKS = 10  # of an axis of offsets, at most
LINES = 8  # lines of a panel that get a name


class ProfileLike(Protocol):
    """Means with intervals over offsets or key positions."""

    @property
    def at(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def mean(self) -> Tensor: ...  # noqa: D102 [layers, heads, len(at)]
    @property
    def low(self) -> Tensor: ...  # noqa: D102
    @property
    def high(self) -> Tensor: ...  # noqa: D102


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
    layers, heads, length, _ = values.shape
    side = min(SIDE, (WIDEST - 1.5) / heads)
    figure = new_figure(max(4.2, side * heads + 1.5), side * layers + 0.7)
    panels = figure.subplots(layers, heads, squeeze=False, sharex=True, sharey=True)
    shown = values.detach().float().cpu()
    low, high = shown.min().item(), shown.max().item()
    reach = max(abs(low), abs(high)) or 1.0
    colours, floor = (EFFECTS, -reach) if low < 0 else (SHARES, 0.0)
    for layer in range(layers):
        for head in range(heads):
            axes = panels[layer][head]
            picture = axes.imshow(shown[layer, head].numpy(), cmap=colours, vmin=floor, vmax=reach)
            axes.set_xticks([0, length - 1])
            axes.set_yticks([0, length - 1])
            axes.tick_params(labelsize=8, length=2, colors=INK)
            axes.spines[:].set(color="#999999", linewidth=0.8)
            if layer == 0:
                axes.set_title("all heads" if heads == 1 else f"head {head}", fontsize=9)
            if head == 0:
                name = "all layers" if layers == 1 and heads == 1 else f"layer {layer}"
                axes.set_ylabel(f"{name}\nquery", fontsize=9, color=INK)
            if layer == layers - 1:
                axes.set_xlabel("key", fontsize=9, color=INK)
    bar = figure.colorbar(picture, ax=panels, shrink=0.9)
    bar.set_label(label, fontsize=10, color=INK)
    bar.ax.tick_params(labelsize=8)
    return figure


def plot_profile(
    profiles: Mapping[str, ProfileLike],
    label: str = RISE,
    x: str = "offset (key minus query)",
) -> Figure:
    """Importance over offsets, or key positions, with 95% intervals: one panel a layer.

    Args:
        profiles: Name -> profile; heads that are told apart are lines of their own. All have the
            same number of layers.
        label: What the values mean, with their unit.
        x: What the positions mean.

    Raises:
        ValueError: If there is no profile, or they differ in their number of layers.
    """
    counts = {profile.mean.shape[0] for profile in profiles.values()}
    if len(counts) != 1:
        raise ValueError(
            f"profiles of one figure have the same number of layers, got {sorted(counts)}; "
            "measure all of them with the same per="
        )
    layers = counts.pop()
    figure = new_figure(8.4, 1.0 + 3.0 * layers)
    panels = figure.subplots(layers, 1, squeeze=False, sharex=True)
    for layer in range(layers):
        axes = panels[layer][0]
        clean(axes, x if layer == layers - 1 else "", label)
        axes.axhline(0, color="#777777", linewidth=1, zorder=1)
        number = 0
        for name, profile in profiles.items():
            heads = profile.mean.shape[1]
            for head in range(heads):
                colour, marker = SPARE[number % len(SPARE)]
                number += 1
                title = f"{name}, head {head}" if heads > 1 else name
                draw_line(
                    axes,
                    profile.at,
                    profile.mean[layer, head],
                    (profile.low[layer, head], profile.high[layer, head]),
                    (colour, marker),
                    title if number <= LINES else "_",
                )
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if layers > 1:
            axes.set_title(f"layer {layer}", fontsize=10, color=INK)
    panels[0][0].legend(fontsize=9, frameon=False, ncols=2 if number > 3 else 1)
    return figure


def draw_line(
    axes: Axes,
    x: Sequence[float],
    mean: Tensor,
    bounds: tuple[Tensor, Tensor],
    style: tuple[str, str],
    name: str,
) -> None:
    """A line with markers, and a band where the bounds are known."""
    colour, marker = style
    low, high = (bound.detach().cpu().numpy() for bound in bounds)
    axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.plot(
        x,
        mean.detach().cpu().numpy(),
        color=colour,
        marker=marker,
        markersize=4,
        linewidth=1.4,
        label=name,
    )


def plot_importance_dynamics(
    steps: Sequence[int],
    profiles: Sequence[ProfileLike],
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
        raise ValueError(
            "the profiles tell layers or heads apart; measure with per='model', "
            "or draw one of them with plot_profile"
        )
    figure = new_figure(9.6 if lines else 6.4, 4.6)
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
    axes.set_ylabel("offset (key minus query)", fontsize=11, color=INK)
    bar = figure.colorbar(picture, ax=axes)
    bar.set_label(label, fontsize=10, color=INK)
    order = list(range(len(steps)))
    if lines:
        clean(panels[1], "", label)
        panels[1].axhline(0, color="#777777", linewidth=1, zorder=1)
        for (name, line), style in zip(lines.items(), SPARE * len(lines), strict=False):
            mean, low, high = (
                part.new_tensor([point[index].item() for point in line])
                for index, part in enumerate(line[0])
            )
            draw_line(panels[1], order, mean, (low, high), style, name)
        panels[1].legend(fontsize=10, frameon=False)
    for panel in panels:
        panel.set_xticks(order, [str(step) for step in steps], rotation=45, fontsize=9)
        panel.set_xlabel("optimiser steps", fontsize=11, color=INK)
    return figure
