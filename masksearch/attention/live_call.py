"""The argument that a layer's attention gets where tokens are left out; see `live`."""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

ARGUMENT = "masksearch_live"  # of a layer, which hands it on to its attention


class LiveCall(NamedTuple):
    """The tokens of one layer's call, and the states of those that are only looked at.

    Args:
        length: Positions of the whole.
        queries: Positions of the layer's hidden states, int64 `[rows | 1, queries]`.
        keys: Positions of its keys, the queries' first, int64 `[rows | 1, keys]`.
        asking: Which queries are no filler, bool `[rows, queries]`; None = all.
        shown: Which keys are no filler, bool `[rows, keys]`; None = all.
        others: Hidden states of the keys that do not ask, `[batch, keys - queries, width]`; None
            where the layer is given all.
        projections: Names, below the attention module, of what makes keys and values of them.
        bias: A bias on the scores of these queries and keys alone, `[batch, heads, queries,
            keys]`, from a module that makes it of their states; None = what the model adds to
            the whole.
    """

    length: int
    queries: Tensor
    keys: Tensor
    asking: Tensor | None
    shown: Tensor | None
    others: Tensor | None
    projections: tuple[str, ...]
    bias: Tensor | None = None


class Handed(threading.local):
    """The call of the layer that a thread is in, for the adapter in it; see `own_code`."""

    call: Any = None  # a `LiveCall`, or what looks for projections


HANDED = Handed()


def take(values: Tensor, index: Tensor) -> Tensor:
    """Those of a batch of rows, `[batch | 1, n, width]` -> `[batch, index, width]`, contiguous.

    Args:
        values: What is taken from.
        index: int64 `[batch | 1, ..]`; one row of it serves the whole batch.
    """
    if len(index) == 1:
        return values.index_select(1, index[0])
    values = values.expand(len(index), *values.shape[1:])
    first = torch.arange(len(index), device=index.device)[:, None] * values.shape[1]
    taken = values.reshape(-1, values.shape[-1]).index_select(0, (first + index).flatten())
    return taken.view(*index.shape, -1)


def join(module: nn.Module, call: LiveCall, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values, `[batch, KV heads, n, head_dim]`, with those of the other states."""
    if call.others is None:
        return key, value
    made = []
    for name, states in zip(call.projections, (key, value), strict=True):
        others = module.get_submodule(name)(call.others).unflatten(-1, (states.shape[1], -1))
        made.append(torch.cat([states, others.transpose(1, 2).to(states.dtype)], 2))
    return made[0], made[1]


def cells(call: LiveCall, table: Tensor | None) -> Tensor | None:
    """The rows and columns of the tokens that are there.

    Args:
        call: Who is there.
        table: bool or float `[batch | 1, heads | 1, n, n]`; None = all, or 0.
    """
    if table is None:
        return None
    if len(call.queries) == 1:
        return table.index_select(2, call.queries[0]).index_select(3, call.keys[0])
    heads = table.shape[1]
    rows = take(table.transpose(1, 2).flatten(2), call.queries)  # all heads of a query at once
    rows = rows.view(*rows.shape[:2], heads, -1).transpose(1, 2)
    columns = call.keys[:, None, None].expand(-1, heads, rows.shape[2], -1)
    return rows.gather(3, columns)


def hide_filler(call: LiveCall, kept: Tensor | None) -> Tensor | None:
    """The kept cells, bool, without keys that fill a row; queries that do see all, never none."""
    if call.shown is not None:
        shown = call.shown[:, None, None]
        kept = shown if kept is None else kept & shown
    if kept is None or call.asking is None:
        return kept
    return kept | ~call.asking[:, None, :, None]
