"""Units by their switch: how the loss rises, to first order, with one unit local and all others
full, `<dL/dy, y(local) - y(level)>` with y the output of the attention.

score_units(judge, units, switch, seed=0)

Reference: The gradient of a gate between two attentions: DuoAttention, arXiv 2410.10819. In
experiment 14 it finds next to nothing; gates that are trained (method "gates") do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

import masksearch as ms
from experiments.rivals.trained_models import Scores, by_unit
from masksearch.attention.call import AttentionCall
from masksearch.contracts import Batch


def switch(units: ms.Units, model: nn.Module, batches: Sequence[Batch]) -> Scores:
    """The rise of the loss without each level, 0 for the local one.

    Args:
        units: The layers or heads, and their masks.
        model: Trained, without a mask.
        batches: All of one length, at most the units'; with labels.
    """
    bank = SwitchedAttention(units, batches[0]["input_ids"].shape[-1])
    rows = sum(len(batch["input_ids"]) for batch in batches)
    total = torch.zeros(len(bank.kept), bank.layers, bank.heads, dtype=torch.float64)
    ms.attach(model, bank, inputs={name: part[:1] for name, part in batches[0].items()})
    try:
        model.eval()
        for batch in batches:
            with torch.enable_grad():
                loss = model(**batch).loss
            outputs = [bank.outputs[layer] for layer in range(bank.layers)]
            grads = torch.autograd.grad(loss, outputs)
            for layer, grad in enumerate(grads):
                changes = [*bank.changes[layer], torch.zeros_like(grad)]
                rises = [(grad * change).double().sum((0, 2, 3)) for change in changes]
                worth = torch.stack([rises[0] - rise for rise in rises])
                total[:, layer] += len(batch["input_ids"]) / rows * worth
    finally:
        ms.detach(model)
    return by_unit(units, total)


class SwitchedAttention(nn.Module):
    """Attention under the full mask; keeps its output y, and how far those of the others are.

    Attributes:
        outputs: Of each layer, y `[batch, heads, n, head_dim]`, with a gradient.
        changes: Of each layer and each level but the full one, y(level) - y, of the same shape.
    """

    def __init__(self, units: ms.Units, length: int) -> None:
        super().__init__()
        self.length, self.layers, self.heads = length, units.shape.layers, units.shape.heads
        self.kept = [kept[..., :length, :length] for kept in units.kept]
        self.outputs: dict[int, Tensor] = {}
        self.changes: dict[int, list[Tensor]] = {}

    def draw(self) -> None:
        """Nothing is random here."""

    def attend(self, layer: int, call: AttentionCall) -> Tensor:
        """y; see `GateBank.attend`."""
        *lower, full = [level[layer] for level in self.kept]
        output = seen(call, full).attend()
        if not output.requires_grad:  # a model of frozen weights
            output.requires_grad_()
        with torch.no_grad():
            self.changes[layer] = [seen(call, kept).attend() - output for kept in lower]
        self.outputs[layer] = output
        return output


def seen(call: AttentionCall, kept: Tensor) -> AttentionCall:
    """The call under a mask; a row that would be empty (padding) keeps what it has."""
    whole = torch.ones_like(kept)[None] if call.visible is None else call.visible
    visible = whole & kept
    return replace(call, visible=visible | (whole & ~visible.any(-1, keepdim=True)))
