"""Block-gather attention: exact sparse attention in plain torch, forward and backward.

plan = GatherPlan.of_mask(mask, length=4096, block=64)
hidden = gather_attention(query, key, value, plan, scaling=0.125)

How a call is computed:

    states    [batch, heads, n, head_dim] are seen as [groups, units, unit x head_dim], so that
              one index fetches 16 positions; groups are examples, or examples x heads where one
              plan serves all heads
    parts     of the plan (plan.py), each as much as fits the cache; for each of them
      read      its queries and keys side by side: copied by index, or in place where they are
                evenly spaced runs
      attend    dense attention of those queries and keys; a bias of 0 and -inf forbids single
                cells and padding
      write     the result to the queries' places, in the backward pass also to the keys'
    backward  the parts once more, in the same order: nothing that was gathered is kept

The work follows the mask's block density; no n x n tensor is made.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from masksearch.attention.kernels.plan import GatherPart, GatherPlan, check_states, parts_of

__all__ = ["GatherPlan", "gather_attention"]

IN_CACHE = 3 << 15  # numbers of the keys that one CPU thread gathers at a time
FEW = 64  # keys up to which three plain calls are faster than the flash kernel
ON_DEVICE = 1 << 24  # the same where there is no such cache
CPU = torch.ops.aten  # the two functions behind scaled_dot_product_attention on CPU


def gather_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: GatherPlan,
    *,
    scaling: float,
    visible: Tensor | None = None,
    dropout: float = 0.0,
    sinks: Tensor | None = None,
) -> Tensor:
    """Self-attention under the plan's mask, equal to dense attention with that mask.

    Args:
        query: `[batch, heads, n, head_dim]`, on the plan's device.
        key: `[batch, KV heads, n, head_dim]`; heads are a multiple of the KV heads.
        value: The same shape as the keys.
        plan: Of `n` positions, with as many heads as the queries or one for all.
        scaling: Factor of the scores before the softmax.
        visible: bool `[batch, n]`, keys that may be attended (False = padding); None = all.
        dropout: Share of the attention weights that is dropped, in [0, 1).
        sinks: Learned sinks `[heads]`, as of `AttentionCall`: one more column of the softmax.

    Returns:
        `[batch, heads, n, head_dim]`; 0 for queries that keep no visible key. Differentiable in
        all three and in the sinks.

    Raises:
        LengthError, HeadCountError: If the plan is of another length or number of heads.
        ValueError: If `visible` has another type or shape.
    """
    check_states(query, key, value, visible, plan.length, plan.heads)
    batch, heads, length, head_dim = query.shape
    kind = query.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        query, key, value = (
            states if states.dtype == torch.float64 else states.to(dtype)
            for states in (query, key, value)
        )
    if key.shape[1] != heads:
        groups = heads // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    missing = plan.units * plan.unit - length

    def cut(states: Tensor) -> Tensor:
        """`[batch (x heads), heads x units, unit x head_dim]`."""
        states = F.pad(states, (0, 0, 0, missing)) if missing else states
        return states.reshape(-1, plan.heads * plan.units, plan.unit * head_dim)

    query, key, value = cut(query), cut(key), cut(value)
    seen = None
    if visible is not None:
        seen = F.pad(visible, (0, missing)).view(batch, 1, plan.units, plan.unit)
        seen = seen.expand(batch, heads, plan.units, plan.unit)
        seen = seen.reshape(*query.shape[:2], plan.unit)
    sink = None
    if sinks is not None:  # of each query, in the same units
        sink = sinks.to(query)[:, None].expand(batch, -1, plan.units * plan.unit)
        sink = sink.reshape(*query.shape[:2], plan.unit).contiguous()
    if kind == "cpu" and dropout == 0 and not torch.compiler.is_compiling():
        result: Tensor = InCache.apply(query, key, value, seen, plan, scaling, sink)  # type: ignore[no-untyped-call]
    else:
        result = _composed(query, key, value, seen, plan, scaling, dropout, sink)
    return result.reshape(batch, heads, -1, head_dim)[:, :, :length]


def gathered(states: Tensor, part: GatherPart, units: Tensor, unit: int) -> Tensor:
    """Units side by side, `[groups x pieces, 1, positions, head_dim]`.

    The kernels take pieces as examples, not as heads: their results are contiguous then.

    Args:
        states: `[all groups, units, unit x head_dim]`.
        part: The work.
        units: int32, the part's queries or keys.
        unit: Positions of a unit.
    """
    groups, _, size = states.shape
    picked = part.of(states).index_select(1, units)
    if part.groups is not None:
        groups = picked.shape[0]
    return picked.view(groups * part.pieces, 1, -1, size // unit)


def add(states: Tensor, part: GatherPart, units: Tensor, results: Tensor) -> None:
    """Adds results to their units; the reverse of `gathered`."""
    target = part.of(states)
    target.index_add_(1, units, results.reshape(target.shape[0], -1, target.shape[2]))


def _bias_of(part: GatherPart, seen: Tensor | None, unit: int, like: Tensor) -> Tensor | None:
    """The bias on the scores of one part of the work.

    Args:
        part: The work.
        seen: bool `[all groups, units, unit]`, visible keys; None = all.
        unit: Positions of a unit.
        like: The part's queries, `[groups x pieces, 1, queries, head_dim]`, or
            `[groups, pieces, queries, head_dim]`.

    Returns:
        0 and -inf, of the queries' type and their first three sizes or 1; None where nothing is
        forbidden.
    """
    bias, pieces = part.bias, part.pieces
    if seen is not None:
        hidden = ~part.of(seen).index_select(1, part.keys)
        hidden = hidden.view(hidden.shape[0], pieces, 1, -1)
        bias = like.new_zeros(1, 1, 1) if bias is None else bias
        bias = bias.masked_fill(hidden, -torch.inf)
    elif bias is None:
        return None
    else:
        bias = bias.unsqueeze(0)
    if bias.shape[:2] != (1, 1):  # as many examples and heads as the queries
        groups = like.shape[0] * like.shape[1] // pieces
        bias = bias.expand(groups, pieces, -1, -1).reshape(*like.shape[:2], *bias.shape[2:])
    return bias.expand(-1, -1, like.shape[2], -1)


def _composed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    seen: Tensor | None,
    plan: GatherPlan,
    scaling: float,
    dropout: float,
    sink: Tensor | None,
) -> Tensor:
    """Attention from differentiable parts, on every device; arguments as in `InCache`."""
    result = torch.zeros_like(query)
    most = ON_DEVICE
    if not torch.compiler.is_compiling() and query.device.type == "cpu":
        most = IN_CACHE * torch.get_num_threads()
    for part in parts_of(plan, query, most):
        q = gathered(query, part, part.queries, plan.unit)
        k, v = (gathered(states, part, part.keys, plan.unit) for states in (key, value))
        bias = _bias_of(part, seen, plan.unit, q)
        if sink is not None:
            bias = q.new_zeros(*q.shape[:3], k.shape[2]) if bias is None else bias
            column = gathered(sink, part, part.queries, plan.unit)
            bias = torch.cat([bias.expand(*q.shape[:2], -1, -1), column], -1)
            k, v = (F.pad(each, (0, 0, 0, 1)) for each in (k, v))
        if bias is None:
            output = F.scaled_dot_product_attention(q, k, v, None, dropout, scale=scaling)
        else:  # not every kernel takes a row of nothing but -inf
            empty = (bias == -torch.inf).all(-1, keepdim=True)
            bias = bias.masked_fill(empty, 0)
            output = F.scaled_dot_product_attention(q, k, v, bias, dropout, scale=scaling)
            output = output.masked_fill(empty, 0)
        add(result, part, part.queries, output)
    return result


def windows(states: Tensor, first: int, step: int, pieces: int, count: int, unit: int) -> Tensor:
    """Evenly spaced runs of units, without a copy: `[groups, pieces, positions, head_dim]`.

    Args:
        states: `[groups, units, unit x head_dim]`, contiguous but for the groups.
        first: First unit of the first run.
        step: Units from one run to the next; runs may overlap.
        pieces: Runs.
        count: Units of a run.
        unit: Positions of a unit.
    """
    head_dim = states.shape[2] // unit
    return states.as_strided(
        (len(states), pieces, count * unit, head_dim),
        (states.stride(0), step * states.shape[2], head_dim, 1),
        states.storage_offset() + first * states.shape[2],
    )


def read(part: GatherPart, unit: int, states: Tensor, *, keys: bool = False) -> Tensor:
    """The part's queries, or keys, of some states: a view where they are an even run."""
    units, run = (part.keys if keys else part.queries), part.run
    if run is None:
        return gathered(states, part, units, unit)
    first, step = (run.key, run.key_step) if keys else (run.query, run.query_step)
    count = units.shape[0] // part.pieces
    return windows(part.of(states), first, step, part.pieces, count, unit)


def write(
    part: GatherPart, unit: int, states: Tensor, results: Tensor, *, keys: bool = False
) -> None:
    """Adds a part's result to the states of its queries, or of its keys."""
    units, run = (part.keys if keys else part.queries), part.run
    if run is None:
        add(states, part, units, results)
        return
    first, step = (run.key, run.key_step) if keys else (run.query, run.query_step)
    count = units.shape[0] // part.pieces
    for start in range(0, count, step):  # as much as overlaps with nothing
        end = min(count, start + step)
        target = windows(part.of(states), first + start, step, part.pieces, end - start, unit)
        target.add_(results[:, :, start * unit : end * unit])


def attend(
    part: GatherPart,
    unit: int,
    states: list[Tensor],
    seen: Tensor | None,
    scaling: float,
    result: Tensor,
    trains: bool,
    sink: Tensor | None,
) -> Tensor | None:
    """Adds one part's attention to the result.

    All that it gathers is free again on return, so that the next part's takes the same places
    in the cache.

    Args:
        part: The work.
        unit: Positions of a unit.
        states: Queries, keys and values.
        seen: Visible keys; None = all.
        scaling: Factor of the scores.
        result: Where the attention is added.
        trains: Whether a gradient is asked for.
        sink: Learned sinks, as the queries; None = none.

    Returns:
        The log-sum-exp of the scores, where a gradient needs it.
    """
    query, *others = states
    q = read(part, unit, query)
    k, v = (read(part, unit, each, keys=True) for each in others)
    bias = _bias_of(part, seen, unit, q)
    few = k.shape[2] <= FEW and bias is None and sink is None
    if few and not trains and q.dtype.itemsize >= 4:
        rows, columns, weighed = (some.flatten(0, 1) for some in (q, k, v))
        scores = torch.baddbmm(q.new_zeros(()), rows, columns.mT, beta=0, alpha=scaling)
        write(part, unit, result, scores.softmax(-1).bmm(weighed).view(q.shape))
        return None
    output, total = CPU._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, False, attn_mask=bias, scale=scaling
    )
    if sink is not None:
        before, column = total, read(part, unit, sink)[..., 0].to(total)
        total = torch.logaddexp(total, column)
        output = output * (before - total).exp()[..., None].to(output)
    write(part, unit, result, output)
    return total if trains else None


def _attend_backward(
    part: GatherPart,
    unit: int,
    queries: list[Tensor],
    keys: list[Tensor],
    seen: Tensor | None,
    total: Tensor,
    scaling: float,
    grads: list[Tensor],
    sink: Tensor | None,
) -> None:
    """Adds one part's gradients to those of queries, keys, values and learned sinks.

    With the sink in the log-sum-exp and in the result, the kernel for attention without one
    computes the others: dL/dscore = P (<g, v> - <g, y>), of the sink -P <g, y>.

    Args:
        part: The work.
        unit: Positions of a unit.
        queries: The result's gradient, the queries and the result.
        keys: Keys and values.
        seen: Visible keys; None = all.
        total: Log-sum-exp of the scores.
        scaling: Factor of the scores.
        grads: Where the gradients are added.
        sink: Learned sinks; None = none.
    """
    up, q, output = (read(part, unit, each) for each in queries)
    k, v = (read(part, unit, each, keys=True) for each in keys)
    bias = _bias_of(part, seen, unit, q)
    some = CPU._scaled_dot_product_flash_attention_for_cpu_backward(
        up, q, k, v, output, total, 0.0, False, attn_mask=bias, scale=scaling
    )
    for states, piece, of_keys in zip(grads[:3], some, (False, True, True), strict=True):
        write(part, unit, states, piece, keys=of_keys)
    if sink is not None:
        share = (read(part, unit, sink)[..., 0] - total).exp()
        write(part, unit, grads[3], -(share * (up * output).sum(-1)).to(up)[..., None])


class InCache(torch.autograd.Function):
    """Attention on CPU, which gathers again in the backward pass: nothing gathered is kept."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        seen: Tensor | None,
        plan: GatherPlan,
        scaling: float,
        sink: Tensor | None,
    ) -> Tensor:
        """Attends.

        Args:
            ctx: Keeps what the backward pass needs.
            query: `[groups, units, unit x head_dim]`; groups are examples, or examples x heads
                where one plan serves all heads.
            key: The same shape.
            value: The same shape.
            seen: bool `[groups, units, unit]`, visible keys; None = all.
            plan: The plan.
            scaling: Factor of the scores.
            sink: `[groups, units, unit]`, the learned sink of each query; None = none.
        """
        result = torch.zeros_like(query)
        trains, most = any(ctx.needs_input_grad), IN_CACHE * torch.get_num_threads()
        sums = [  # log-sum-exp of each part's scores
            attend(part, plan.unit, [query, key, value], seen, scaling, result, trains, sink)
            for part in parts_of(plan, query, most, keeps=True, trains=trains)
        ]
        ctx.save_for_backward(query, key, value, seen, sink, result, *sums)
        ctx.plan, ctx.scaling = plan, scaling
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of queries, keys, values and learned sinks."""
        query, key, value, seen, sink, result, *sums = ctx.saved_tensors
        plan, grad = ctx.plan, grad.contiguous()
        tensors = [query, key, value] if sink is None else [query, key, value, sink]
        grads = [torch.zeros_like(states) for states in tensors]
        parts = parts_of(plan, query, IN_CACHE * torch.get_num_threads(), keeps=True, trains=True)
        queries, keys = [grad, query, result], [key, value]
        for part, total in zip(parts, sums, strict=True):
            _attend_backward(part, plan.unit, queries, keys, seen, total, ctx.scaling, grads, sink)
        return (*grads[:3], None, None, None, *grads[3:], *[None] * (sink is None))
