"""How the importance of attention positions moves while a model is trained."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, get_args

from torch import nn

from masksearch.contracts import Batch
from masksearch.errors import unknown_name
from masksearch.positions.analysis import importance
from masksearch.positions.instrument import list_batches
from masksearch.positions.result import Importance, Method, Per, Special
from masksearch.training.loop import TrainConfig, keeping_modes, on_device, train

if TYPE_CHECKING:
    import pandas as pd

WHILE_TRAINING = ("gradient", "flip", "drop")


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
        import pandas as pd

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
        UnknownNameError: For another method.
        ValueError: If a step is out of range, or the batches end too early.
        NonFiniteLossError: If a loss is NaN or infinite.
    """
    if method not in WHILE_TRAINING:
        if method in get_args(Method):
            raise ValueError(
                f"method {method!r} trains on its own; measured along a training run are "
                f"{', '.join(WHILE_TRAINING)}"
            )
        raise unknown_name("importance method", method, WHILE_TRAINING)
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
