"""Learned importance: a scale on every attention weight, trained together with the model.

    found = learned_importance(model, batches, per="layer", steps=400)
    found.values, found.by_offset.one(0), found.frame()

Its values depend on when training stops, on the two learning rates and on the first scale, because
values and output weights can undo a common scale. It has no interval: repeat it over seeds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masksearch.attention.call import AttentionCall
from masksearch.contracts import Batch
from masksearch.gates.dam import endless
from masksearch.positions.probes import (
    Observe,
    PositionProbe,
    attached_probe,
    ignore,
    shape_of,
    special_keys,
)
from masksearch.positions.result import (
    Importance,
    ImportanceSpec,
    Per,
    Special,
    build_importance,
    line_sums,
    without_interval,
)
from masksearch.training.loop import TrainConfig, on_device, train


class ScaledAttention(PositionProbe):
    """(P * A) V with A = sigmoid(logits): every attention weight has a learned scale.

    The weights are scaled after the softmax and not renormalised.

    Args:
        length: Positions.
        heads: Heads of a layer of the model.
        layers: Layers of the model.
        per_layer: Whether each layer has scales of its own.
        per_head: Whether each head has.
        initial: First value of every logit; 0 = a scale of 1/2.
        observe: Called with the layer, A `[heads | 1, n, n]` and the valid pairs.

    Attributes:
        logits: float `[layers | 1, heads | 1, n, n]`.

    Reference: SparseBERT, arXiv 2102.12871 (importance of attention positions).
    """

    def __init__(
        self,
        length: int,
        heads: int,
        layers: int,
        *,
        per_layer: bool = True,
        per_head: bool = True,
        initial: float = 0.0,
        observe: Observe = ignore,
    ) -> None:
        super().__init__(length, heads, layers, observe)
        shape = (layers if per_layer else 1, heads if per_head else 1, length, length)
        self.logits = nn.Parameter(torch.full(shape, float(initial)))

    def scales(self) -> Tensor:
        """A, float `[layers | 1, heads | 1, n, n]` in (0, 1)."""
        return self.logits.sigmoid()

    def attend(self, layer: int, call: AttentionCall) -> Tensor:
        """(P * A) V; see `GateBank.attend`."""
        call, valid = self.masked(layer, call)
        scale = self.logits[layer if len(self.logits) > 1 else 0].sigmoid()
        self.observe(layer, scale, valid)
        weights = call.weights() * scale
        return F.dropout(weights, call.dropout).to(call.value.dtype) @ call.value


def learned_importance(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    per: Per = "head",
    special: Special | None = None,
    steps: int = 1000,
    lr: float = 2e-3,
    gate_lr: float = 0.02,
    initial: float = 0.0,
) -> Importance:
    """Importance A = sigmoid(alpha) in (P * A) v, alpha trained together with the weights.

    The weights start from those that the model has and are trained by AdamW as `train` does,
    alpha by Adam without decay. The model is left as it was: weights, gradients, modes, and the
    mask on it, under which everything is measured.

    Args:
        model: As for `masksearch.importance`.
        batches: Gone over as often as it takes; an iterator holds at least `steps`.
        per: What is told apart: every `"head"`, every `"layer"`, or nothing (`"model"`).
        special: Name -> token id (or several ids), wherever it stands.
        steps: Optimiser steps.
        lr: Peak learning rate of the weights.
        gate_lr: Learning rate of alpha.
        initial: First alpha; 0 starts every scale at 1/2, where alpha moves it most.

    Returns:
        Values are the scales, near 1 = kept; profiles are means over pairs, without an interval;
        `loss` is that of the last tenth of the steps.

    Reference: SparseBERT, arXiv 2102.12871; its initial alpha is not known to us.
    """
    if not (gate_lr > 0 and math.isfinite(initial)):
        raise ValueError(
            f"gate_lr must be above 0 and initial finite, got {gate_lr} and {initial}"
        )
    batches = endless(batches)
    first = next(batches)
    batches = itertools.chain([first], batches)
    shape, config = shape_of(model, first), TrainConfig(steps=steps, lr=lr)
    near = tuple(range(1 - shape.length, shape.length))
    spec = ImportanceSpec(
        shape, "learned", per, True, special or {}, near, tuple(range(shape.length))
    )
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
    )
