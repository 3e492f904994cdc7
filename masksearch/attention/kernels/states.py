"""Queries, keys and values as the sparse kernels are given them: what is asked, what must fit."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from masksearch.errors import HeadCountError, LengthError


class Plan(Protocol):
    """What a kernel computes for one layer."""

    @property
    def length(self) -> int:
        """Positions."""

    @property
    def heads(self) -> int:
        """Heads that the plan tells apart; 1 serves any number."""


def asks_gradient(*states: Tensor) -> bool:
    """Whether a call on these states will be gone backward through."""
    return torch.is_grad_enabled() and any(part.requires_grad for part in states)


def check_states(
    query: Tensor, key: Tensor, value: Tensor, plan: Plan, visible: Tensor | None
) -> None:
    """Refuses states that do not fit the plan.

    Args:
        query: `[batch, heads, n, width]`.
        key: `[batch, key heads, n, width]`.
        value: The same shape as the keys.
        plan: Of `n` positions, with as many heads as the queries or one for all.
        visible: bool `[batch, n]`, keys that may be attended; None = all.

    Raises:
        LengthError, HeadCountError: If the plan is of another length or number of heads.
        ValueError: If `visible` has another type or shape.
    """
    batch, heads, length, _ = query.shape
    if length != plan.length or key.shape[2] != length or key.shape != value.shape:
        raise LengthError(
            f"the plan holds {plan.length} positions of queries and keys, got queries "
            f"{list(query.shape)} and keys {list(key.shape)}; plan the mask at that length"
        )
    if plan.heads not in (1, heads):
        raise HeadCountError(f"the plan has {plan.heads} heads, the queries have {heads}")
    if heads % key.shape[1]:
        raise HeadCountError(
            f"{heads} query heads cannot share {key.shape[1]} key heads; the number of query "
            "heads is a multiple of the key heads"
        )
    if visible is not None and (visible.dtype != torch.bool or visible.shape != (batch, length)):
        raise ValueError(
            f"visible is bool [batch, n] = [{batch}, {length}], got {visible.dtype} "
            f"{list(visible.shape)}"
        )
