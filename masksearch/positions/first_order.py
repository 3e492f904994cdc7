"""First-order effects on the loss of every single pair, from one backward pass a batch."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from masksearch.contracts import Batch, Shape
from masksearch.errors import NonFiniteLossError
from masksearch.positions.attention_maps import offset_sums
from masksearch.positions.instrument import Special, carrying, on_device, special_keys
from masksearch.positions.probes import FlippedAttention, WatchedAttention
from masksearch.positions.result import Importance, Measured, Method, Per, Profile, measured
from masksearch.training.loop import model_loss

POOLED: dict[Per, tuple[int, ...]] = {"model": (0, 1), "layer": (1,), "head": ()}


def pooled(table: Tensor, per: Per) -> Tensor:
    """Sums `[layers, heads, ..]` over what is not told apart; those axes become 1."""
    return table.sum(POOLED[per], keepdim=True) if POOLED[per] else table


def finite(loss: float, number: int) -> float:
    """The loss of that batch, refused where it is not finite."""
    if not math.isfinite(loss):
        raise NonFiniteLossError(
            f"the loss of batch {number} is {loss}; every batch needs a scored label, "
            "and the model finite weights"
        )
    return loss


class Running:
    """Mean and squared deviations of a table over batches (Welford)."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.count = 0
        self.mean = torch.zeros(shape, dtype=torch.float64)
        self.squares = torch.zeros(shape, dtype=torch.float64)

    def add(self, table: Tensor) -> None:
        """One batch's table."""
        self.count += 1
        change = table - self.mean
        self.mean += change / self.count
        self.squares += change * (table - self.mean)

    def error(self) -> Tensor:
        """Standard error of the mean; NaN for a single batch."""
        if self.count < 2:
            return torch.full_like(self.mean, math.nan)
        return (self.squares / (self.count - 1) / self.count).sqrt()


def first_order(
    model: nn.Module,
    batches: list[Batch],
    shape: Shape,
    *,
    method: Method,
    per: Per,
    signed: bool,
    special: Special | None,
    offsets: tuple[int, ...],
    keys: tuple[int, ...],
) -> Importance:
    """Importance by `"gradient"` or `"flip"`; see `importance`."""
    calls: list[tuple[int, Tensor, Tensor]] = []

    def seen(layer: int, leaf: Tensor, valid: Tensor) -> None:
        calls.append((layer, leaf, valid))

    kind = WatchedAttention if method == "gradient" else FlippedAttention
    bank = kind(shape.length, shape.heads, shape.layers, seen)
    size = (shape.layers, shape.heads)
    square = (shape.length, shape.length)
    values = Running((*pooled(torch.zeros(size), per).shape, *square))
    samples: list[Tensor] = []
    tokens: dict[str, list[Tensor]] = {name: [] for name in special or {}}
    counts = torch.zeros(square, dtype=torch.float64)
    token_counts = dict.fromkeys(tokens, 0.0)
    losses: list[float] = []
    with carrying(model, bank, batches[0]), torch.enable_grad():
        model.eval()
        for number, batch in enumerate(batches):
            batch = on_device(model, batch)
            standing = special_keys(batch, special)
            calls.clear()
            loss = model_loss(model, batch)
            losses.append(finite(loss.item(), number))
            grads = torch.autograd.grad(loss, [leaf for _, leaf, _ in calls])
            table = torch.zeros(*size, *square, dtype=torch.float64)
            to = {name: torch.zeros(size, dtype=torch.float64) for name in standing}
            for (layer, leaf, valid), grad in zip(calls, grads, strict=True):
                rise = -(grad * leaf.detach()).view(len(valid), shape.heads, *square) * valid
                rise = rise if signed else rise.abs()
                table[layer] += rise.double().sum(0).cpu()
                share = valid.double().mean(1) / len(calls)
                counts += share.mean(0).cpu() / len(batches)
                for name, at in standing.items():
                    to[name][layer] += (rise * at[:, None, None]).double().sum((0, 2, 3)).cpu()
                    there = (share * at[:, None]).sum((1, 2)).mean().item()
                    token_counts[name] += there / len(batches)
            calls.clear()
            table = pooled(table, per)
            values.add(table)
            samples.append(torch.cat([offset_sums(table), table.sum(-2)], -1))
            for name, sums in to.items():
                tokens[name].append(pooled(sums, per))
    result = assembled(
        (method, per),
        values.mean,
        values.error(),
        measured(torch.stack(samples)),
        {name: measured(torch.stack(found)) for name, found in tokens.items()},
        (counts, token_counts),
        (offsets, keys),
        losses,
        forwards=len(batches),
    )
    return replace(result, signed=signed)


def assembled(
    how: tuple[Method, Per],
    values: Tensor,
    errors: Tensor | None,
    lines: Measured,
    tokens: dict[str, Measured],
    counts: tuple[Tensor, dict[str, float]],
    chosen: tuple[tuple[int, ...], tuple[int, ...]],
    losses: list[float],
    *,
    forwards: int,
) -> Importance:
    """The result from lines `[.., (2n - 1) + n]`: every offset, then every key."""
    length = values.shape[-1]
    offsets, keys = chosen
    cells = torch.cat([offset_sums(counts[0]), counts[0].sum(0)])
    profiles = []
    for at, first in ((offsets, length - 1), (keys, 2 * length - 1)):
        index = torch.tensor([first + unit for unit in at], dtype=torch.int64)
        mean, low, high, there = (part[..., index].float() for part in (*lines, cells))
        profiles.append(Profile(at, mean, low, high, there))
    return Importance(
        how[0],
        how[1],
        length,
        values.float(),
        None if errors is None else errors.float(),
        profiles[0],
        profiles[1],
        {name: Measured(*(part.float() for part in found)) for name, found in tokens.items()},
        counts[1],
        sum(losses) / len(losses),
        len(losses),
        forwards,
    )
