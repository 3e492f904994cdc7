"""First-order effects on the loss of every single pair, from one backward pass a batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from masksearch.contracts import Batch
from masksearch.positions.instrument import attached_probe, special_keys
from masksearch.positions.probes import FlippedAttention, WatchedAttention
from masksearch.positions.result import (
    Importance,
    ImportanceSpec,
    build_importance,
    line_sums,
    mean_with_interval,
)
from masksearch.training.loop import finite_loss, on_device


class RunningMean:
    """Mean and standard error of a table over batches (Welford's algorithm).

    Attributes:
        mean: float64, of the tables so far.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor = torch.zeros((), dtype=torch.float64)
        self.squares: Tensor = torch.zeros((), dtype=torch.float64)

    def add(self, table: Tensor) -> None:
        """One batch's table, float64."""
        self.count += 1
        change = table - self.mean
        self.mean = self.mean + change / self.count
        self.squares = self.squares + change * (table - self.mean)

    def error(self) -> Tensor:
        """Standard error of the mean; NaN for a single batch."""
        if self.count < 2:
            return torch.full_like(self.mean, math.nan)
        return (self.squares / (self.count - 1) / self.count).sqrt()


def first_order_importance(
    model: nn.Module, batches: list[Batch], spec: ImportanceSpec
) -> Importance:
    """Importance by `"gradient"` or `"flip"`; see `importance`."""
    shape = spec.shape
    size, square = (shape.layers, shape.heads), (shape.length, shape.length)
    calls: list[tuple[int, Tensor, Tensor]] = []  # layer, what has a gradient, valid pairs

    def observe(layer: int, leaf: Tensor, valid: Tensor) -> None:
        calls.append((layer, leaf, valid))

    kind = WatchedAttention if spec.method == "gradient" else FlippedAttention
    probe = kind(shape.length, shape.heads, shape.layers, observe)
    values = RunningMean()
    lines: list[Tensor] = []
    chosen = spec.lines()
    tokens: dict[str, list[Tensor]] = {name: [] for name in spec.special}
    counts = torch.zeros(square, dtype=torch.float64)  # valid pairs of a sequence
    token_counts = dict.fromkeys(tokens, 0.0)
    losses: list[float] = []
    with attached_probe(model, probe, batches[0]), torch.enable_grad():
        model.eval()
        for number, batch in enumerate(batches):
            batch = on_device(model, batch)
            standing = special_keys(batch, spec.special)
            calls.clear()
            loss = finite_loss(model, batch, number)
            losses.append(loss.item())
            grads = torch.autograd.grad(loss, [leaf for _, leaf, _ in calls])
            table = torch.zeros(*size, *square, dtype=torch.float64)
            onto = {name: torch.zeros(size, dtype=torch.float64) for name in standing}
            for (layer, leaf, valid), grad in zip(calls, grads, strict=True):
                rise = -(grad * leaf.detach()).view(len(valid), shape.heads, *square) * valid
                rise = rise if spec.signed else rise.abs()
                table[layer] += rise.double().sum(0).cpu()
                share = valid.double().mean(1) / len(calls) / len(batches)
                counts += share.mean(0).cpu()
                for name, at in standing.items():
                    onto[name][layer] += (rise * at[:, None, None]).double().sum((0, 2, 3)).cpu()
                    token_counts[name] += (share * at[:, None]).sum((1, 2)).mean().item()
            calls.clear()
            table = spec.pool(table)
            values.add(table)
            lines.append(line_sums(table)[..., chosen])
            for name, sums in onto.items():
                tokens[name].append(spec.pool(sums))
    return build_importance(
        spec,
        mean_with_interval(torch.stack(lines)),
        line_sums(counts)[chosen],
        {name: mean_with_interval(torch.stack(found)) for name, found in tokens.items()},
        token_counts,
        losses,
        values=values.mean,
        errors=values.error(),
        batches=len(batches),
        forwards=len(batches),
    )
