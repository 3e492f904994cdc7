"""Units by attention mass: the mean attention weight on the pairs that a level adds.

score_units(judge, units, attention_mass, seed=0)

LightTransfer (arXiv 2410.13846) ranks layers by the like. In experiments 10, 11 and 14 it is far
below scores that judge a mask.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import masksearch as ms
from experiments.rivals.trained_models import Scores, by_unit
from masksearch.attention.call import AttentionCall
from masksearch.contracts import Batch


def attention_mass(units: ms.Units, model: nn.Module, batches: Sequence[Batch]) -> Scores:
    """The attention weight of a sequence on pairs that a level keeps and the local mask does not.

    Args:
        units: The layers or heads, and their masks.
        model: Trained, without a mask.
        batches: All of one length, at most the units'.
    """
    bank = FarMass(units, batches[0]["input_ids"].shape[-1])
    ms.attach(model, bank, inputs={name: part[:1] for name, part in batches[0].items()})
    try:
        model.eval()
        with torch.no_grad():
            for batch in batches:
                model(**batch)
    finally:
        ms.detach(model)
    return by_unit(units, bank.total / sum(len(batch["input_ids"]) for batch in batches))


class FarMass(nn.Module):
    """The model's own attention; sums its weights beyond the local mask.

    Attributes:
        total: float64 `[levels, layers, heads]`.
    """

    def __init__(self, units: ms.Units, length: int) -> None:
        super().__init__()
        self.length, self.layers, self.heads = length, units.shape.layers, units.shape.heads
        self.kept = [kept[..., :length, :length] for kept in units.kept]
        shape = (len(self.kept), self.layers, self.heads)
        self.total = torch.zeros(shape, dtype=torch.float64)

    def draw(self) -> None:
        """Nothing is random here."""

    def attend(self, layer: int, call: AttentionCall) -> Tensor:
        """P V; see `GateBank.attend`."""
        weights = call.weights()
        real: Tensor | bool = True
        if call.visible is not None:  # what no query sees is padding; its row does not count
            seen = call.visible.expand(len(weights), -1, self.length, self.length)
            real = seen & seen.any(-2).any(1)[:, None, :, None]
        for level, kept in enumerate(self.kept[1:], start=1):
            far = weights * (kept[layer] & ~self.kept[0][layer] & real)
            self.total[level, layer] += far.double().sum((0, 2, 3))
        return F.dropout(weights, call.dropout).to(call.value.dtype) @ call.value
