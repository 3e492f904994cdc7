"""The arguments of a layer's attention, and the gates that may answer in its place."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """The arguments of one attention layer in one forward pass.

    Args:
        query: `[batch, heads, queries, head_dim]`.
        key: `[batch, heads, keys, head_dim]`.
        value: The same shape.
        visible: bool `[batch | 1, heads | 1, queries, keys]`, True = may attend; None = all.
        dropout: Probability of dropping an attention weight.
        scaling: Factor of the scores before the softmax.
        bias: float `[batch | 1, heads | 1, queries, keys]`, finite, added to the scaled scores
            before the softmax (T5's position bias); it gets a gradient. None = 0.
        sinks: float `[heads]`, learned sinks: the score of one more key with a value of 0, which
            every query sees. None = no such key.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    _: KW_ONLY
    visible: Tensor | None = None
    dropout: float = 0.0
    scaling: float
    bias: Tensor | None = None
    sinks: Tensor | None = None

    def attend(self) -> Tensor:
        """softmax(scores) value over the visible keys: `[batch, heads, queries, head_dim]`.

        A query without a visible key has the output 0.
        """
        if self.sinks is not None:
            weights = F.dropout(self.weights(), self.dropout)
            return weights.to(self.value.dtype) @ self.value
        mask = self.visible
        if self.bias is not None:
            mask = self.bias.to(self.query.dtype)
            if self.visible is not None:
                mask = torch.where(self.visible, mask, -torch.inf)
        return F.scaled_dot_product_attention(
            self.query, self.key, self.value, mask, self.dropout, scale=self.scaling
        )

    def scores(self) -> Tensor:
        """scaling * query key + bias: `[batch, heads, queries, keys]`, fp32 or wider."""
        scores = (self.query * self.scaling) @ self.key.transpose(-1, -2)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        return scores if self.bias is None else scores + self.bias

    def weights(self) -> Tensor:
        """softmax(scores) over the visible keys: fp32 or wider, no dropout.

        Invisible keys have 0, and so has all of a row without a visible one. Learned sinks are
        part of the softmax, and no column of the result.
        """
        scores = self.scores()
        if self.sinks is not None:
            if self.visible is not None:
                scores = scores.masked_fill(~self.visible, -torch.inf)
            sinks = self.sinks.to(scores)[:, None, None].expand(*scores.shape[:-1], 1)
            return torch.cat([scores, sinks], -1).softmax(-1)[..., :-1]
        if self.visible is None:
            return scores.softmax(-1)
        lowest = torch.finfo(scores.dtype).min  # -inf would make NaN in a row without a key
        return scores.masked_fill(~self.visible, lowest).softmax(-1) * self.visible


class GateBank(Protocol):
    """Trainable gates that `attach` can put on a model (an `nn.Module`).

    `layers` or `heads` of 1 means shared. `attend` computes one layer's attention with the sample
    that was drawn.
    """

    length: int
    layers: int
    heads: int

    def draw(self) -> None:
        """Samples the gates, once per forward pass of the whole model."""
        ...

    def attend(self, layer: int, call: AttentionCall) -> Tensor:
        """One layer's attention under the drawn gates: `[batch, heads, queries, head_dim]`.

        Args:
            layer: Index of the attention layer, from 0.
            call: What the model gives its attention; variations by `dataclasses.replace`.
        """
        ...
