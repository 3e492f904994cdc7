"""Exact effects: the loss with an offset, a key position or a token dropped, by forward passes."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from masksearch.contracts import Batch, Shape
from masksearch.positions.first_order import finite
from masksearch.positions.instrument import Special, carrying, on_device, special_keys
from masksearch.positions.probes import ThinnedAttention
from masksearch.positions.result import Importance, Measured, Per, Profile, measured
from masksearch.training.loop import model_loss

Progress = Callable[[int, int], None]
Unit = tuple[str, int | str]  # ("offset", -1), ("key", 0), ("special", "[CLS]")


def drop_forwards(shape: Shape, batches: int, per: Per, units: int) -> int:
    """Forward passes of `"drop"`: batches x (1 + units x scopes).

    Scopes are 1 for `"model"`, the layers for `"layer"`, layers x heads for `"head"`.
    """
    scopes = {"model": 1, "layer": shape.layers, "head": shape.layers * shape.heads}[per]
    return batches * (1 + units * scopes)


def dropped_pairs(unit: Unit, length: int, standing: dict[str, Tensor]) -> Tensor:
    """The pairs of a unit: bool `[batch | 1, 1, n, n]`."""
    kind, at = unit
    position = torch.arange(length)
    if kind == "special":
        return standing[str(at)][:, None, None, :].expand(-1, 1, length, length)
    if kind == "offset":
        return (position[None, :] - position[:, None] == int(at))[None, None]
    return (position == int(at)).expand(1, 1, length, length)


@torch.no_grad()
def drop(
    model: nn.Module,
    batches: list[Batch],
    shape: Shape,
    *,
    per: Per,
    special: Special | None,
    offsets: tuple[int, ...],
    keys: tuple[int, ...],
    progress: Progress | None,
) -> Importance:
    """Importance by `"drop"`; see `importance`."""
    units: list[Unit] = [("offset", at) for at in offsets]
    units += [("key", at) for at in keys]
    units += [("special", name) for name in special or {}]
    layers = [None] if per == "model" else list(range(shape.layers))
    heads = list(range(shape.heads)) if per == "head" else [None]
    total = drop_forwards(shape, len(batches), per, len(units))
    effects = torch.zeros(len(batches), len(layers), len(heads), len(units), dtype=torch.float64)
    cells = torch.zeros(len(units), dtype=torch.float64)
    losses: list[float] = []
    done = 0
    if progress is not None:
        progress(done, total)
    bank = ThinnedAttention(shape.length, shape.heads, shape.layers)
    with carrying(model, bank, batches[0]):
        model.eval()
        for number, batch in enumerate(batches):
            batch = on_device(model, batch)
            standing = special_keys(batch, special)
            bank.removed = None
            losses.append(finite(model_loss(model, batch).item(), number))
            done += 1
            for index, unit in enumerate(units):
                pairs = dropped_pairs(unit, shape.length, standing)
                bank.removed = pairs.to(next(model.parameters()).device)
                bank.cells.clear()
                for row, column in itertools.product(range(len(layers)), range(len(heads))):
                    bank.layer, bank.head = layers[row], heads[column]
                    loss = finite(model_loss(model, batch).item(), number)
                    effects[number, row, column, index] = loss - losses[-1]
                    done += 1
                    if progress is not None:
                        progress(done, total)
                cells[index] += sum(bank.cells) / len(bank.cells) / len(batches)
    found = measured(effects)
    ends = [0, len(offsets), len(offsets) + len(keys)]
    profiles = [
        Profile(at, *(part[..., first : first + len(at)].float() for part in (*found, cells)))
        for at, first in ((offsets, ends[0]), (keys, ends[1]))
    ]
    names = list(special or {})
    return Importance(
        "drop",
        per,
        shape.length,
        None,
        None,
        profiles[0],
        profiles[1],
        {
            name: Measured(*(part[..., ends[2] + k].float() for part in found))
            for k, name in enumerate(names)
        },
        {name: cells[ends[2] + k].item() for k, name in enumerate(names)},
        sum(losses) / len(losses),
        len(batches),
        total,
    )
