"""Density held by a term of the loss in place of the hinge: a penalty, or a growing multiplier.

penalised = Penalised(model, gates, weight=0.3)                       # weight x density is added
ms.dam(penalised, batches, gates, ms.DamConfig(**NO_CONTROL))
Penalised(model, gates, weight=0.01, rate=0.05, density=0.05)         # the weight finds its scale

A plain penalty does not mean the same density twice; the hinge needs no scale (docs/dam.md).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from masksearch.gates.gates import Gates

NO_CONTROL = {"control": "sum", "penalty": 0.0, "dense_warmup": 0.0}


class Penalised(nn.Module):
    """A model whose loss has `weight` x the density of gates added while these act.

    Args:
        model: Its `model(**batch).loss` is differentiable; the gates are attached to it.
        gates: Of any structure.
        weight: In nats of loss at density 1.
        rate: Growth of the weight a training step, per e-fold of density above `density`; 0 = the
            weight stays.
        density: What a growing weight aims at.
    """

    def __init__(
        self,
        model: nn.Module,
        gates: Gates,
        weight: float,
        rate: float = 0.0,
        density: float = 0.05,
    ) -> None:
        super().__init__()
        self.model, self.gates = model, gates
        self.weight, self.rate, self.density = weight, rate, density

    def forward(self, **batch: Any) -> Any:
        """The model's output, its loss with the term."""
        output = self.model(**batch)
        if self.training and self.gates.enabled and torch.is_grad_enabled():
            density = self.gates.whole_density()
            self.weight *= (density.item() / self.density) ** self.rate
            return type(output)(output.logits, output.loss + self.weight * density)
        return output
