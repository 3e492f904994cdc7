"""Learned importance: a scale on every attention weight, trained together with the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from masksearch.contracts import Batch
from masksearch.positions.instrument import attached_probe, special_keys
from masksearch.positions.probes import ScaledAttention
from masksearch.positions.result import (
    Importance,
    ImportanceSpec,
    build_importance,
    line_sums,
    without_interval,
)
from masksearch.training.loop import TrainConfig, on_device, train


def learned_importance(
    model: nn.Module,
    batches: Iterable[Batch],
    first: Batch,
    spec: ImportanceSpec,
    config: TrainConfig,
    *,
    gate_lr: float,
    initial: float,
) -> Importance:
    """Importance by `"learned"`; see `importance`. `first` is a batch like the others."""
    shape, per, steps = spec.shape, spec.per, config.steps
    square = (shape.length, shape.length)
    counts = torch.zeros(square, dtype=torch.float64)
    onto = {name: torch.zeros(square, dtype=torch.float64) for name in spec.special}
    standing: dict[str, Tensor] = {}
    calls = 0

    def observe(layer: int, scale: Tensor, valid: Tensor) -> None:
        nonlocal calls
        calls += 1
        share = valid.to(torch.float32).mean(1)  # over heads
        counts.add_(share.mean(0).cpu())
        for name, at in standing.items():
            onto[name].add_((share * at[:, None]).mean(0).cpu())

    probe = ScaledAttention(
        shape.length,
        shape.heads,
        shape.layers,
        per_layer=per != "model",
        per_head=per == "head",
        initial=initial,
        observe=observe,
    )
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def noted() -> Iterator[Batch]:
        nonlocal standing
        for batch in batches:
            batch = on_device(model, batch)
            standing = special_keys(batch, spec.special)
            yield batch

    losses: list[float] = []
    with attached_probe(model, probe, first), torch.enable_grad():
        optimiser = torch.optim.Adam([probe.logits], lr=gate_lr)
        try:
            for step in train(model, noted(), config):
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
                losses.append(step.loss)
        finally:
            with torch.no_grad():
                for name, tensor in model.state_dict().items():
                    if name in weights:
                        tensor.copy_(weights[name])
        values = probe.scales().detach().double().cpu()
    chosen = spec.lines()
    cells = line_sums(counts)[chosen]
    return build_importance(
        spec,
        without_interval(line_sums(values * counts)[..., chosen] / cells),
        cells / calls,
        {
            name: without_interval((values * found).sum((-2, -1)) / found.sum())
            for name, found in onto.items()
        },
        {name: found.sum().item() / calls for name, found in onto.items()},
        losses[-max(1, steps // 10) :],
        values=values,
        batches=steps,
        forwards=steps,
    )
