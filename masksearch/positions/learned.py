"""Learned importance: a scale on every attention weight, trained together with the model."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from masksearch.contracts import Batch, Shape
from masksearch.positions.attention_maps import offset_sums
from masksearch.positions.first_order import assembled
from masksearch.positions.instrument import Special, carrying, on_device, special_keys
from masksearch.positions.probes import ScaledAttention
from masksearch.positions.result import Importance, Measured, Per
from masksearch.training.loop import TrainConfig, train


def endless(batches: Iterable[Batch], first: Batch) -> Iterator[Batch]:
    """A list over and over; an iterator, whose `first` was taken off already, once."""
    if isinstance(batches, Iterator):
        return itertools.chain([first], batches)
    return itertools.chain.from_iterable(itertools.repeat(batches))


def learned(
    model: nn.Module,
    batches: Iterable[Batch],
    first: Batch,
    shape: Shape,
    *,
    per: Per,
    special: Special | None,
    offsets: tuple[int, ...],
    keys: tuple[int, ...],
    steps: int,
    lr: float,
    gate_lr: float,
    initial: float,
) -> Importance:
    """Importance by `"learned"`; see `importance`."""
    square = (shape.length, shape.length)
    counts = torch.zeros(square, dtype=torch.float64)
    token_counts = {name: torch.zeros(square, dtype=torch.float64) for name in special or {}}
    standing: dict[str, Tensor] = {}
    calls = 0

    def seen(layer: int, scale: Tensor, valid: Tensor) -> None:
        nonlocal calls
        calls += 1
        share = valid.to(torch.float32).mean(1)  # over heads
        counts.add_(share.mean(0).cpu())
        for name, at in standing.items():
            token_counts[name].add_((share * at[:, None]).mean(0).cpu())

    bank = ScaledAttention(
        shape.length,
        shape.heads,
        shape.layers,
        per_layer=per != "model",
        per_head=per == "head",
        initial=initial,
        seen=seen,
    )
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def fed() -> Iterator[Batch]:
        nonlocal standing
        for batch in endless(batches, first):
            batch = on_device(model, batch)
            standing = special_keys(batch, special)
            yield batch

    config = replace(TrainConfig(), steps=steps, lr=lr)
    losses: list[float] = []
    with carrying(model, bank, first), torch.enable_grad():
        optimiser = torch.optim.Adam(bank.parameters(), lr=gate_lr)
        try:
            for step in train(model, fed(), config):
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
                losses.append(step.loss)
        finally:
            with torch.no_grad():
                for name, tensor in model.state_dict().items():
                    if name in weights:
                        tensor.copy_(weights[name])
        values = bank.scales().detach().double().cpu()
    lines = torch.cat([mean_over(values, counts, by) for by in ("offset", "key")], -1)
    unknown = torch.full_like(lines, math.nan)
    tokens = {
        name: (values * found).sum((-2, -1)) / found.sum() for name, found in token_counts.items()
    }
    nothing = torch.full(values.shape[:2], math.nan)
    result = assembled(
        ("learned", per),
        values,
        None,
        Measured(lines, unknown, unknown),
        {name: Measured(mean, nothing, nothing) for name, mean in tokens.items()},
        (counts / calls, {name: part.sum().item() / calls for name, part in token_counts.items()}),
        (offsets, keys),
        losses[-max(1, steps // 10) :],
        forwards=steps,
    )
    return replace(result, batches=steps)


def mean_over(values: Tensor, counts: Tensor, by: str) -> Tensor:
    """Mean of the values over the pairs that were seen, by offset or by key."""
    sums = offset_sums if by == "offset" else column_sums
    return sums(values * counts) / sums(counts)


def column_sums(table: Tensor) -> Tensor:
    """Sums over queries: `[.., n, n]` -> `[.., n]`."""
    return table.sum(-2)
