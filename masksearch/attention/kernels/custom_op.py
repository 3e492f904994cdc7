"""Sparse attention as one operator of a graph that torch.compile makes.

A plan is no tensor, and its kernels choose their shapes in Python. So the graph holds the name of
what has the plan (`SOURCES`), and the operator asks it when it runs. Its backward pass computes
the forward pass once more, as gradient checkpoints do.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from masksearch.attention.kernels.flex import FlexPlan, flex_attention_under
from masksearch.attention.kernels.gather import GatherPlan, gather_attention


class PlanSource(Protocol):
    """What has the plans of one mask."""

    def plan(self, backend: str, length: int, device: torch.device) -> GatherPlan | FlexPlan:
        """The plan of a backend at one length."""


# Name -> source: a graph holds no objects, but a string, which Dynamo never makes a symbol.
SOURCES: weakref.WeakValueDictionary[str, PlanSource] = weakref.WeakValueDictionary()
NUMBERS = itertools.count()  # the names

with torch.inference_mode(False):  # of ordinary code, outside of any operator
    DISPATCH = (
        torch._C._dispatch_tls_local_include_set(),
        torch._C._dispatch_tls_local_exclude_set(),
    )


def compute(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    visible: Tensor | None,
    plan: GatherPlan | FlexPlan,
    scaling: float,
    dropout: float = 0.0,
) -> Tensor:
    """Attention by the kernel that the plan is for, `[batch, heads, n, head_dim]`."""
    if isinstance(plan, FlexPlan):
        return flex_attention_under(query, key, value, plan, scaling=scaling, visible=visible)
    return gather_attention(
        query, key, value, plan, scaling=scaling, visible=visible, dropout=dropout
    )


@torch.library.custom_op("masksearch::attention", mutates_args=())
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    visible: Tensor | None,
    name: str,
    backend: str,
    scaling: float,
) -> Tensor:
    """`compute` under the plan of the source with that name."""
    plan = SOURCES[name].plan(backend, query.shape[2], query.device)
    with torch.autocast(query.device.type, enabled=False):
        return compute(query, key, value, visible, plan, scaling).contiguous()


@attention.register_fake
def _(query: Tensor, *rest: Any) -> Tensor:
    return query.new_empty(query.shape)


@torch.library.custom_op("masksearch::attention_backward", mutates_args=())
def attention_backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    visible: Tensor | None,
    name: str,
    backend: str,
    scaling: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `attention` in query, key and value."""
    given = (
        query.detach().requires_grad_(),
        key.detach().requires_grad_(),
        value.detach().requires_grad_(),
    )
    plan = SOURCES[name].plan(backend, query.shape[2], query.device)
    # operators run below autograd, which is needed here once more
    with (
        torch._C._ForceDispatchKeyGuard(*DISPATCH),
        torch.enable_grad(),
        torch.autocast(query.device.type, enabled=False),
    ):
        out = compute(given[0], given[1], given[2], visible, plan, scaling)
        found = torch.autograd.grad(out, given, gradient)
    return found[0].contiguous(), found[1].contiguous(), found[2].contiguous()


@attention_backward.register_fake
def _(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Keeps what the backward pass needs."""
    ctx.save_for_backward(*inputs[:4])
    ctx.settings = inputs[4:]


def differentiate(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """The backward pass of `attention`."""
    operator: Callable[..., Any] = torch.ops.masksearch.attention_backward
    found = operator(gradient, *ctx.saved_tensors, *ctx.settings)
    return (*found, None, None, None, None)


attention.register_autograd(differentiate, setup_context=save_inputs)
