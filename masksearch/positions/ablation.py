"""Exact effects: the loss with an offset, a key position or a token dropped, by forward passes."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from masksearch.contracts import Batch, Shape
from masksearch.positions.instrument import attached_probe, special_keys
from masksearch.positions.probes import ThinnedAttention
from masksearch.positions.result import (
    Importance,
    ImportanceSpec,
    Measured,
    Per,
    build_importance,
    mean_with_interval,
)
from masksearch.training.loop import finite_loss, on_device

Progress = Callable[[int, int], None]
Unit = tuple[str, int | str]  # ("offset", -1), ("key", 0), ("special", "[CLS]")


def drop_forwards(shape: Shape, batches: int, per: Per, units: int) -> int:
    """Forward passes of `"drop"`: batches x (1 + units x scopes).

    Scopes are 1 for `"model"`, the layers for `"layer"`, layers x heads for `"head"`.
    """
    scopes = {"model": 1, "layer": shape.layers, "head": shape.layers * shape.heads}[per]
    return batches * (1 + units * scopes)


def pairs_of(unit: Unit, length: int, standing: dict[str, Tensor]) -> Tensor:
    """The query-key pairs of an offset, a key or a token: bool `[batch | 1, 1, n, n]`."""
    kind, at = unit
    position = torch.arange(length)
    if kind == "special":
        return standing[str(at)][:, None, None, :].expand(-1, 1, length, length)
    if kind == "offset":
        return (position[None, :] - position[:, None] == int(at))[None, None]
    return (position == int(at)).expand(1, 1, length, length)


@torch.no_grad()
def drop_importance(
    model: nn.Module, batches: list[Batch], spec: ImportanceSpec, progress: Progress | None
) -> Importance:
    """Importance by `"drop"`; see `importance`."""
    shape, per, special = spec.shape, spec.per, list(spec.special)
    units: list[Unit] = [("offset", at) for at in spec.offsets]
    units += [("key", at) for at in spec.keys]
    units += [("special", name) for name in special]
    layers = [None] if per == "model" else list(range(shape.layers))
    heads = list(range(shape.heads)) if per == "head" else [None]
    total = drop_forwards(shape, len(batches), per, len(units))
    effects = torch.zeros(len(batches), len(layers), len(heads), len(units), dtype=torch.float64)
    cells = torch.zeros(len(units), dtype=torch.float64)
    losses: list[float] = []
    done = 0

    def loss(batch: Batch, number: int) -> float:
        nonlocal done
        found = finite_loss(model, batch, number).item()
        done += 1
        if progress is not None:
            progress(done, total)
        return found

    if progress is not None:
        progress(done, total)
    probe = ThinnedAttention(shape.length, shape.heads, shape.layers)
    with attached_probe(model, probe, batches[0]):
        model.eval()
        for number, batch in enumerate(batches):
            batch = on_device(model, batch)
            standing = special_keys(batch, spec.special)
            probe.removed = None
            losses.append(loss(batch, number))
            for index, unit in enumerate(units):
                pairs = pairs_of(unit, shape.length, standing)
                probe.removed = pairs.to(next(model.parameters()).device)
                probe.cells.clear()
                for row, column in itertools.product(range(len(layers)), range(len(heads))):
                    probe.layer, probe.head = layers[row], heads[column]
                    effects[number, row, column, index] = loss(batch, number) - losses[-1]
                cells[index] += sum(probe.cells) / len(probe.cells) / len(batches)
    found = mean_with_interval(effects)
    known = len(spec.offsets) + len(spec.keys)
    return build_importance(
        spec,
        Measured(*(part[..., :known] for part in found)),
        cells[:known],
        {
            name: Measured(*(part[..., at] for part in found))
            for at, name in enumerate(special, start=known)
        },
        {name: cells[at].item() for at, name in enumerate(special, start=known)},
        losses,
        batches=len(batches),
        forwards=total,
    )
