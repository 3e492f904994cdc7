"""The argument that a layer's attention gets where tokens are left out; see `live`."""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

ARGUMENT = "masksearch_live"  # of a layer, which hands it on to its attention


class Packing(NamedTuple):
    """Where the tokens of a batch stand while they are one sequence without filler.

    Args:
        queries: Index in the sequence of each text's queries, int64 `[batch, queries]`; filler
            is the first.
        keys: The same of its keys: of the queries, and behind them of those that do not ask.
        back: Where the sequence's queries stand side by side, int64 `[all queries]`.
        asking: Which of the first are no filler, bool `[batch, queries]`; None = all.
        shown: Which of the second are, bool `[batch, keys]`; None = all.
    """

    queries: Tensor
    keys: Tensor
    back: Tensor
    asking: Tensor | None
    shown: Tensor | None

    def spread(self, states: Tensor, index: Tensor) -> Tensor:
        """`[1, heads, all, head_dim]` -> `[batch, heads, n, head_dim]`, by one of the indices."""
        flat = states.transpose(1, 2)[0].flatten(1)  # as projections have made it
        taken = flat.index_select(0, index.flatten()).view(*index.shape, states.shape[1], -1)
        return taken.transpose(1, 2)

    def pack(self, states: Tensor) -> Tensor:
        """`[batch, queries, ..]` -> `[1, all queries, ..]`."""
        return states.flatten(0, 1).index_select(0, self.back)[None]


class LiveCall(NamedTuple):
    """The tokens of one layer's call, and the states of those that are only looked at.

    Args:
        length: Positions of the whole.
        queries: Positions of the layer's hidden states, int64 `[batch | 1, queries]`.
        keys: Positions of its keys, the queries' first, int64 `[batch | 1, keys]`.
        others: Hidden states of the keys that do not ask, `[batch | 1, all of them, width]`; None
            where the layer is given all.
        projections: Names, below the attention module, of what makes keys and values of them.
        packing: Where the texts stand in a batch that is one sequence; None = side by side.
        bias: A bias on the scores of these queries and keys alone, `[batch, heads, queries,
            keys]`, from a module that makes it of their states; None = what the model adds to
            the whole.
    """

    length: int
    queries: Tensor
    keys: Tensor
    others: Tensor | None
    projections: tuple[str, ...]
    packing: Packing | None = None
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


def hide_filler(packing: Packing, kept: Tensor | None) -> Tensor | None:
    """The kept cells, bool, without keys that fill a text; queries that do see all, never none."""
    if packing.shown is not None:
        shown = packing.shown[:, None, None]
        kept = shown if kept is None else kept & shown
    if kept is None or packing.asking is None:
        return kept
    return kept | ~packing.asking[:, None, :, None]
