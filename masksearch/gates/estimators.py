"""How a gate acts on one attention call, and what the gate learns from it.

Three forms compute the same attention for a hard (0 or 1) gate and differ in its gradient:

- `flip`: the effect on the loss, to first order, of flipping that one edge. Every edge learns.
- `log`: softmax(score + log gate). A dropped edge learns nothing.
- `additive`: softmax(score - 1e4 (1 - gate)), as published with DAM. Kept edges get 1e4 times
  the gradient of `log`, dropped edges none.

A query whose gates are all closed keeps its own position in the forward pass (and the gate still
learns), so that no row is empty. Any other diagonal gate acts as it is drawn: a position that
stares at itself can only learn to look elsewhere while its own key is dropped. A query all of
whose open keys are invisible (a padded query) has the output 0 and passes no gradient, except in
the `additive` form, where it attends to every visible key.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from masksearch.attention.call import AttentionCall
from masksearch.errors import unknown_name
from masksearch.user_code import load_function

MOST_ODDS = 30.0  # logarithm of odds above which they are certainty
LARGEST_REMOVAL = 0.1  # 1 - P is not taken below this where the removal of an edge is weighed

Form = Callable[[AttentionCall, Tensor], Tensor]
"""One layer's attention, `[batch, heads, queries, head_dim]` in the query's dtype, under a gate
`[heads | 1, queries, keys]` with values in [0, 1]."""


def _with_own_keys(kept: Tensor) -> Tensor:
    """Adds to every empty row of a mask, bool `[.., queries, keys]`, the query's own key."""
    last = kept.shape[-1] - kept.shape[-2]  # the queries are the last positions
    own = kept.new_ones(kept.shape[-2:]).triu(last).tril(last)
    return kept | (own & ~kept.any(-1, keepdim=True))


def _open_empty_rows(gate: Tensor) -> Tensor:
    """Opens the own key of hard-closed rows in value; the gradient stays that of the gate."""
    kept = gate.detach() > 0
    return gate + (_with_own_keys(kept) & ~kept).to(gate.dtype)


class Flip(torch.autograd.Function):
    """Masked softmax attention whose gate learns the effect of flipping single edges.

    With P the softmax over the kept keys, y = P v, and g the gradient of the loss by y, the
    gate of edge (i, j) receives w_ij <g_i, v_j - y_i>, where w_ij = P_ij / (1 - P_ij) for a kept
    edge (removing it scales the others up) and sigmoid(s_ij - logsumexp of the kept scores) for
    a dropped one. Statistics and the gate's gradient are fp32 whatever the inputs are.
    """

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        gate: Tensor,
        visible: Tensor | None,
        dropout: float,
        scaling: float,
        bias: Tensor | None,
        sinks: Tensor | None,
    ) -> Tensor:
        kept = _with_own_keys(gate > 0.5)
        scores = AttentionCall(query, key, value, scaling=scaling, bias=bias).scores()
        sign = torch.where(kept, -1.0, 1.0)  # [heads | 1, queries, keys]
        if visible is not None:
            kept = kept & visible
        closed = torch.zeros_like(kept, dtype=torch.float32).masked_fill_(~kept, -torch.inf)
        total = (scores + closed).logsumexp(-1, keepdim=True)
        if sinks is not None:
            total = torch.logaddexp(total, sinks.to(total)[:, None, None])
        if visible is not None:
            total = total.masked_fill(total == -torch.inf, torch.inf)  # such a row: all zero
        # exp(score - total): P for kept keys, the odds of joining them for dropped ones.
        # The clamp keeps them finite.
        odds = scores.sub_(total).clamp_(max=MOST_ODDS).exp_()
        if visible is not None:
            odds = odds.mul_(visible)
        weights = odds * kept
        dropped: Tensor | None = None
        used = weights
        if dropout > 0:
            dropped = torch.empty_like(weights).bernoulli_(1 - dropout).div_(1 - dropout)
            used = weights * dropped
        output = used.to(value.dtype) @ value
        share = None if sinks is None else (sinks.to(total)[:, None, None] - total).exp()
        ctx.save_for_backward(query, key, value, sign, odds, weights, dropped, output, share)
        ctx.scaling = scaling
        ctx.bias = None if bias is None else (bias.shape, bias.dtype)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        query, key, value, sign, odds, weights, dropped, output, share = ctx.saved_tensors
        grad = grad.to(value.dtype)
        used = weights if dropped is None else weights * dropped
        grad_value = used.to(value.dtype).transpose(-1, -2) @ grad
        gain = (grad @ value.transpose(-1, -2)).float()
        if dropped is not None:
            gain = gain.mul_(dropped)
        mean = (grad.float() * output.float()).sum(-1, keepdim=True)
        gain = gain.sub_(mean)
        slope = weights * gain  # the gradient of the scores
        grad_bias: Tensor | None = None
        if ctx.needs_input_grad[7]:
            shape, dtype = ctx.bias
            grad_bias = slope.sum_to_size(shape).to(dtype, copy=True)
        slope = slope.mul_(ctx.scaling).to(query.dtype)
        grad_gate: Tensor | None = None
        if ctx.needs_input_grad[3]:
            chance = (odds * sign).add_(1.0).clamp_(min=LARGEST_REMOVAL)
            effect = torch.div(odds, chance, out=chance).mul_(gain)
            grad_gate = (
                effect.sum((0, 1), keepdim=True)[0] if sign.shape[0] == 1 else effect.sum(0)
            )
        first = (slope @ key, slope.transpose(-1, -2) @ query, grad_value, grad_gate)
        grad_sinks = None if share is None else -(share * mean).sum((0, 2, 3)).to(grad.dtype)
        return (*first, None, None, None, grad_bias, grad_sinks)


def flip(call: AttentionCall, gate: Tensor) -> Tensor:
    """Exact attention over the keys with gate > 0.5; see `Flip` for the gradient.

    Meant for hard gates: a soft gate acts as if it were rounded.
    """
    rest = call.visible, call.dropout, call.scaling, call.bias, call.sinks
    output: Tensor = Flip.apply(  # type: ignore[no-untyped-call]
        call.query, call.key, call.value, gate.float(), *rest
    )
    return output


def log(call: AttentionCall, gate: Tensor) -> Tensor:
    """softmax(score + log gate): right for soft gates; a hard-closed edge learns nothing."""
    gate = _open_empty_rows(gate)
    closed = gate.clamp_min(1e-6).log().masked_fill(gate <= 0, -torch.inf)
    return add_to_scores(call, closed).attend()


def additive(call: AttentionCall, gate: Tensor) -> Tensor:
    """softmax(score - 1e4 (1 - gate)), the form of the original DAM, kept for comparison.

    Reference: SparseBERT, arXiv 2102.12871.
    """
    return add_to_scores(call, (1 - _open_empty_rows(gate)) * -1e4).attend()


def add_to_scores(call: AttentionCall, added: Tensor) -> AttentionCall:
    """The same call with `added`, `[heads | 1, queries, keys]`, on its scores."""
    return replace(call, bias=added[None] if call.bias is None else added[None] + call.bias)


FORMS: dict[str, Form] = {"flip": flip, "log": log, "additive": additive}


def form_named(name: str) -> Form:
    """A form by its name, or a user's own by `file.py:function`.

    Raises:
        UnknownNameError, UserCodeError: If there is none.
    """
    if name in FORMS:
        return FORMS[name]
    if ".py:" in name:
        form: Form = load_function(name)
        return form
    raise unknown_name("gate form", name, [*FORMS, "file.py:function"])
