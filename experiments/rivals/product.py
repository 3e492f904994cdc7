"""A form of gates: softmax(score) * gate, renormalised over the keys.

Gates("free", length=32, heads=2, form="experiments/rivals/product.py:product")

Every edge learns, but the gradient explodes in rows whose kept keys hold little attention, so that
density targets are missed (docs/dam.md).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from masksearch.attention.call import AttentionCall


def product(call: AttentionCall, gate: Tensor) -> Tensor:
    """One layer's attention under a gate `[heads | 1, queries, keys]` with values in [0, 1]; a
    query whose gates are all closed sees itself."""
    queries, keys = gate.shape[-2:]
    own = torch.ones(queries, keys, dtype=torch.bool).triu(keys - queries).tril(keys - queries)
    empty = ~(gate.detach() > 0).any(-1, keepdim=True)
    weights = call.weights() * (gate + (own.to(gate.device) & empty).to(gate.dtype))
    weights = weights / weights.sum(-1, keepdim=True).clamp_min(1e-20)
    return F.dropout(weights, call.dropout).to(call.value.dtype) @ call.value
