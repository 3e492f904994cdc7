"""What units of a trained model are worth, measured for whole units and not pair by pair.

No table of all pairs is made, so this serves long sequences: of 30 layers of 9 heads at 1,024
positions such a table has 283 million cells.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masksearch.contracts import AttentionCall, Batch, Differentiable, Report, Shape
from masksearch.files import write_tensors
from masksearch.gates.units import PLANES
from masksearch.masks.core import Mask
from masksearch.masks.stacks import Cropped
from masksearch.positions.instrument import attached_probe
from masksearch.positions.probes import PositionProbe
from masksearch.training.loop import finite_loss, on_device

METHODS = ("mass", "switch")
TOKENS = 2048  # of a pass, about


class UnitProbe(PositionProbe):
    """The model's own attention, seen under each mask of the units.

    Args:
        levels: The masks of the units, from the local one to the full one.
        length: Positions of every batch.
        shape: Of the model.
    """

    def __init__(self, levels: Sequence[Mask], length: int, shape: Shape) -> None:
        super().__init__(length, shape.heads, shape.layers)
        tables: dict[Mask, Tensor] = {}
        self.kept: list[list[Tensor]] = []  # of each layer and level, bool [1, heads | 1, n, n]
        for layer in range(shape.layers):
            own = []
            for mask in levels:
                part = mask.of_layer(layer)
                if part not in tables:
                    fits = part.length in (None, length)
                    taken = part if fits else Cropped(part, part.length or length)
                    tables[part] = taken.dense(length)
                own.append(tables[part])
            self.kept.append(own)

    def seen(self, call: AttentionCall, kept: Tensor) -> AttentionCall:
        """The call under a mask; a row that would be empty (padding) keeps what it has."""
        kept = kept.to(call.query.device)
        whole = torch.ones_like(kept) if call.visible is None else call.visible
        visible = whole & kept
        return replace(call, visible=visible | (whole & ~visible.any(-1, keepdim=True)))


class FarMass(UnitProbe):
    """Sums the attention weights of the pairs that a level keeps and the local mask does not.

    Attributes:
        total: float64 `[levels, layers, heads]`.
    """

    def __init__(self, levels: Sequence[Mask], length: int, shape: Shape) -> None:
        super().__init__(levels, length, shape)
        self.total = torch.zeros(len(levels), shape.layers, shape.heads, dtype=torch.float64)

    def attend(self, layer: int, call: AttentionCall) -> Tensor:
        """P V; see `contracts.GateBank.attend`."""
        call, valid = self.masked(layer, call)
        weights = call.weights()
        local = self.kept[layer][0].to(weights.device)
        for level, kept in enumerate(self.kept[layer][1:], start=1):
            far = weights * (kept.to(weights.device) & ~local & valid)
            self.total[level, layer] += far.double().sum((0, 2, 3)).cpu()
        return F.dropout(weights, call.dropout).to(call.value.dtype) @ call.value


class SwitchedAttention(UnitProbe):
    """Attention under the full mask; keeps its output y, and how far those of the others are.

    Attributes:
        outputs: Of each layer, y `[batch, heads, n, head_dim]`, with a gradient.
        changes: Of each layer and each level but the full one, y(level) - y, of the same shape.
    """

    def __init__(self, levels: Sequence[Mask], length: int, shape: Shape) -> None:
        super().__init__(levels, length, shape)
        self.outputs: dict[int, Tensor] = {}
        self.changes: dict[int, list[Tensor]] = {}

    def attend(self, layer: int, call: AttentionCall) -> Tensor:
        """y; see `contracts.GateBank.attend`."""
        call, _ = self.masked(layer, call)
        *local, full = self.kept[layer]
        output = self.seen(call, full).attend()
        if not output.requires_grad:  # a model of frozen weights
            output.requires_grad_()
        with torch.no_grad():
            self.changes[layer] = [self.seen(call, kept).attend() - output for kept in local]
        self.outputs[layer] = output
        return output


def unit_values(
    levels: Sequence[Mask], shape: Shape, model: nn.Module, batches: Sequence[Batch], method: str
) -> Tensor:
    """What each level of each layer and head is worth above the local one.

    Args:
        levels: The masks of the units, from the local one to the full one.
        shape: Of the model.
        model: Trained, without a mask.
        batches: All of one length; with labels, except for `"mass"`.
        method: `"mass"`: the mean attention weight of a sequence on pairs that the level keeps and
            the local mask does not: beyond the window, not on the sinks. `"switch"`: by how much
            the loss rises, to first order, when that unit of a model in which all are full has the
            local mask in place of this level: `<dL/dy, y(local) - y(level)>` with y the output of
            the attention.

    Returns:
        float64 `[levels, layers, heads]`, 0 for level 0.

    Reference: The gradient of a gate between two attentions: DuoAttention, arXiv 2410.10819.
    """
    length = batches[0]["input_ids"].shape[-1]
    pieces = [piece for batch in batches for piece in split_rows(batch, length)]
    rows = sum(len(piece["input_ids"]) for piece in pieces)
    if method == "mass":
        watched = FarMass(levels, length, shape)
        with attached_probe(model, watched, pieces[0]), torch.no_grad():
            model.eval()
            for piece in pieces:
                model(**on_device(model, piece))
        return watched.total / rows
    switched = SwitchedAttention(levels, length, shape)
    total = torch.zeros(len(levels), shape.layers, shape.heads, dtype=torch.float64)
    with attached_probe(model, switched, pieces[0]), torch.enable_grad():
        model.eval()
        for number, piece in enumerate(pieces):
            loss = finite_loss(model, on_device(model, piece), number)
            layers = sorted(switched.outputs)
            grads = torch.autograd.grad(loss, [switched.outputs[layer] for layer in layers])
            share = len(piece["input_ids"]) / rows
            for layer, grad in zip(layers, grads, strict=True):
                zero = torch.zeros_like(grad)
                rises = [
                    (grad * change).double().sum((0, 2, 3)).cpu()
                    for change in (*switched.changes[layer], zero)
                ]
                total[:, layer] += share * torch.stack([rises[0] - rise for rise in rises])
    return total


def split_rows(batch: Batch, length: int) -> Iterator[Batch]:
    """A batch as batches of few tokens; what is not of its rows goes with each."""
    rows, size = len(batch["input_ids"]), max(1, TOKENS // length)
    for first in range(0, rows, size):
        yield {
            name: part[first : first + size] if len(part) == rows else part
            for name, part in batch.items()
        }


def measure_units(
    source: Differentiable,
    shape: Shape,
    by_task: Mapping[int, Sequence[Batch]],
    levels: Sequence[Mask],
    method: str,
    path: Path,
) -> Iterator[Report]:
    """Measures `unit_values`, a mean over tasks, and writes them to a file that
    `Units.read_scores` reads.

    Yields:
        After each task the batches and the sequences so far.
    """
    total, sequences, steps = torch.zeros(()), 0, 0
    for batches in by_task.values():
        found = unit_values(levels, shape, source.model, batches, method)
        total = total + found / len(by_task)
        sequences += sum(len(batch["input_ids"]) for batch in batches)
        steps += len(batches)
        yield Report(steps, {"sequences": sequences})
    write_tensors(path, {"worth": total}, {"format": PLANES, "method": method}, what="scores")
