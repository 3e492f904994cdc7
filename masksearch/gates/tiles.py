"""The flip form under gates of tiles, some rows of tiles at a time: no n x n tensor is kept.

    forward    the scores of some queries with all keys, softmax over the kept ones, output; what
               is left of them is the output and each query's log-sum-exp
    backward   the same scores once more, and from them all gradients; a gate's is the effect of
               its edges, summed over the examples and the tile

Closed tiles have scores, too: their gates learn what it would be worth to open them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from masksearch.attention.call import AttentionCall
from masksearch.gates.estimators import LARGEST_REMOVAL, MOST_ODDS
from masksearch.masks.lower import Block, by_tiles

AT_ONCE = 2**20  # scores at a time for a thread of a CPU, about, if a row of tiles has not more
GPU = 64  # threads that a GPU counts for


def flip_tiles(call: AttentionCall, gate: Tensor, block: Block) -> Tensor:
    """`estimators.flip` of self-attention under a gate of tiles, with the same gradients.

    Args:
        call: As many queries as keys; no dropout, which would have to be drawn twice alike, and no
            learned sinks.
        gate: float `[heads | 1, rows, columns]`, one a tile, of the call's positions or more.
        block: Queries and keys of a tile.
    """
    wholes = (
        None if each is None else each.expand(-1, -1, call.query.shape[2], -1)
        for each in (call.visible, call.bias)
    )
    states = (each.to(call.value.dtype) for each in (call.query, call.key))  # under autocast
    inputs = (*states, call.value, gate.float(), *wholes, call.scaling, block)
    output: Tensor = TiledFlip.apply(*inputs)  # type: ignore[no-untyped-call]
    return output


class TiledFlip(torch.autograd.Function):
    """`estimators.Flip` in parts; its gate is of tiles."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:  # noqa: D102
        value: Tensor = inputs[2]
        output, totals = torch.empty_like(value), []
        for some, call, kept in parts_of(*inputs):
            scores = call.scores()
            seen = kept if call.visible is None else kept & call.visible
            total = scores.masked_fill_(~seen, -torch.inf).logsumexp(-1, keepdim=True)
            totals.append(total.masked_fill(total == -torch.inf, torch.inf))  # none: all zero
            output[:, :, some] = scores.sub_(totals[-1]).exp_().to(value.dtype) @ value
        ctx.save_for_backward(*inputs[:6], output, torch.cat(totals, 2))
        ctx.rest = inputs[6:]
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        *inputs, output, totals = ctx.saved_tensors
        query, key, value, gate, _, bias = inputs
        scaling, (queries, _) = ctx.rest
        grad, exact = grad.to(value.dtype), totals.dtype
        means = (grad.to(exact) * output.to(exact)).sum(-1, keepdim=True)
        grads = [torch.zeros_like(each, dtype=exact) for each in (query, key, value, gate)]
        of_bias = torch.zeros_like(bias) if ctx.needs_input_grad[5] else None
        for some, call, kept in parts_of(*inputs, *ctx.rest):
            odds = call.scores().sub_(totals[:, :, some]).clamp_(max=MOST_ODDS).exp_()
            if call.visible is not None:
                odds.mul_(call.visible)
            weights, gain = odds * kept, (grad[:, :, some] @ value.mT).to(exact)
            grads[2] += weights.to(value.dtype).mT @ grad[:, :, some]
            slope = weights.mul_(gain.sub_(means[:, :, some]))  # the gradient of the scores
            if of_bias is not None:
                of_bias[:, :, some] = slope.sum_to_size(of_bias[:, :, some].shape)
            slope = slope.to(query.dtype)
            grads[0][:, :, some] = slope @ key
            grads[1] += slope.mT @ call.query
            if ctx.needs_input_grad[3]:
                chance = torch.addcmul(odds.new_ones(()), odds, 1 - 2 * kept.to(exact))
                effect = odds.div_(chance.clamp_(min=LARGEST_REMOVAL)).mul_(gain).sum(0)
                effect = effect.sum(0, keepdim=True) if len(gate) == 1 else effect
                tiled = by_tiles(effect, ctx.rest[1]).sum((-3, -1))
                rows = slice(some.start // queries, some.start // queries + tiled.shape[1])
                grads[3][:, rows, : tiled.shape[2]] = tiled
        grads[:2] = (each.mul_(scaling) for each in grads[:2])
        first = [each.to(of.dtype) for each, of in zip(grads, inputs, strict=False)]
        return (*first, None, of_bias, None, None)


def parts_of(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    gate: Tensor,
    visible: Tensor | None,
    bias: Tensor | None,
    scaling: float,
    block: Block,
) -> Iterator[tuple[slice, AttentionCall, Tensor]]:
    """Some rows of tiles at a time: which queries, their call, and which keys their gates keep,
    bool `[heads | 1, some queries, keys]`."""
    batch, heads, length, _ = query.shape
    numbers = AT_ONCE * (GPU if query.is_cuda else torch.get_num_threads())
    count = max(1, numbers // (batch * heads * length * block[0])) * block[0]
    position = torch.arange(length, device=gate.device)
    for first in range(0, length, count):
        some = slice(first, first + count)
        tiles = gate[:, position[some] // block[0]] > 0.5
        kept = tiles.repeat_interleave(block[1], -1)[..., :length]
        kept = kept | ((position[some, None] == position) & ~kept.any(-1, keepdim=True))
        seen, added = (None if each is None else each[:, :, some] for each in (visible, bias))
        how: dict[str, Any] = {"visible": seen, "bias": added, "scaling": scaling}
        yield some, AttentionCall(query[:, :, some], key, value, **how), kept
