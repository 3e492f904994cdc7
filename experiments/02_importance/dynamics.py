"""How the importance of attention positions moves while a model is trained, and its figure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure
from torch import Tensor, nn

from masksearch.attention.probe import keeping_modes
from masksearch.contracts import Batch
from masksearch.positions.analysis import importance
from masksearch.positions.probes import list_batches
from masksearch.positions.result import Importance, Method, Per, Profile, Special
from masksearch.report.dam import GATES
from masksearch.report.style import (
    COLUMN,
    INK,
    LABEL,
    PAGE,
    PRINT,
    SMALL,
    SPARE,
    clean,
    new_figure,
)
from masksearch.training.loop import TrainConfig, on_device, train

RISE = "rise of the loss when dropped (nats)"
TICKS = 10  # of an axis of offsets, at most


@dataclass(frozen=True, eq=False)
class Dynamics:
    """Importance at several steps of one training run.

    Args:
        steps: Optimiser steps after which it was measured, from 0 up.
        snapshots: One result for each of them; `loss` is the held-out loss there.
        losses: Training loss of every step, in nats.
    """

    steps: tuple[int, ...]
    snapshots: tuple[Importance, ...]
    losses: tuple[float, ...]

    def __repr__(self) -> str:
        last = self.snapshots[-1] if self.snapshots else None
        return (
            f"Dynamics({len(self.steps)} snapshots of {len(self.losses)} steps; the last: {last})"
        )

    def frame(self) -> pd.DataFrame:
        """The tables of all snapshots below each other, with a column `step` in front."""
        tables = [found.frame() for found in self.snapshots]
        for step, table in zip(self.steps, tables, strict=True):
            table.insert(0, "step", step)
        return pd.concat(tables, ignore_index=True)


def log_spaced(steps: int) -> tuple[int, ...]:
    """0, the powers of two below `steps`, and `steps`.

    >>> log_spaced(10)
    (0, 1, 2, 4, 8, 10)
    """
    return (0, *(1 << power for power in range((steps - 1).bit_length())), steps)


def importance_dynamics(
    model: nn.Module,
    batches: Iterator[Batch],
    *,
    held_out: Iterable[Batch],
    steps: int,
    at: Iterable[int] | None = None,
    method: Method = "gradient",
    per: Per = "model",
    signed: bool = True,
    special: Special | None = None,
    offsets: Iterable[int] | None = None,
    keys: Iterable[int] | None = None,
    config: TrainConfig | None = None,
) -> Dynamics:
    """Trains a model in place and measures importance on the way.

    Args:
        model: As for `importance`; left trained, its modes as before.
        batches: At least `steps` training batches.
        held_out: List of batches on which importance is measured.
        steps: Optimiser steps.
        at: Steps after which it is measured, in 0 .. steps; None = 0, the powers of two below
            `steps`, and `steps`.
        method: `"gradient"`, `"flip"` or `"drop"` (at its cost, each time).
        per: What is told apart.
        signed: See `importance`.
        special: Name -> token id (or several ids).
        offsets: Signed offsets of the profiles; see `importance`.
        keys: Key positions of the profiles.
        config: Settings of the training, its `steps` replaced; None = `TrainConfig()`.

    Raises:
        ValueError: If a step is out of range, or the batches end too early.
        NonFiniteLossError: If a loss is NaN or infinite.
    """
    schedule = replace(config or TrainConfig(), steps=steps)
    due = sorted(set(log_spaced(steps) if at is None else at))
    if not due or due[0] < 0 or due[-1] > steps:
        raise ValueError(
            f"steps to measure at lie in 0 .. {steps}, got {due or 'none'}; leave the others out"
        )
    measure = partial(
        importance,
        model,
        list_batches(held_out),
        method=method,
        per=per,
        signed=signed,
        special=special,
        offsets=None if offsets is None else tuple(offsets),
        keys=None if keys is None else tuple(keys),
    )
    snapshots: list[Importance] = []
    losses: list[float] = []
    with keeping_modes(model):
        if due[0] == 0:
            snapshots.append(measure())
        moved = (on_device(model, batch) for batch in batches)
        for step in train(model, moved, schedule):
            losses.append(step.loss)
            if step.number in due:
                snapshots.append(measure())
    return Dynamics(tuple(due), tuple(snapshots), tuple(losses))


@rc_context(PRINT)
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
        cmap="RdBu_r" if negative else GATES,  # red = dropping it hurts
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
