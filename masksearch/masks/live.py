"""Which tokens a model still needs, layer by layer: from the rows that are read, backwards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

import torch
from torch import Tensor

from masksearch.masks.core import CELLS_AT_ONCE, Mask
from masksearch.masks.lower import refuse_longer, under_causality
from masksearch.masks.shape import Shape


def live_tokens(mask: Mask, shape: Shape) -> Tensor:
    """Which tokens are needed before each layer, and after the last one.

    After the last layer those are needed that the shape says are read. Before a layer those are
    that are needed after it, and those that one of these looks at in any head. What is not
    needed before a layer need not be computed there, nor later: the output is the same.

    Args:
        mask: Any mask.
        shape: Its `read` leading rows are read, all where it is None. Of a mask that follows the
            tokens, its `tokens` are the rows.

    Returns:
        bool `[layers + 1, length]`; of a mask that follows the tokens, where the shape has them,
        `[rows, layers + 1, length]`, False behind the end of a row.

    Raises:
        LayerCountError, HeadCountError, LengthError: If the mask has another shape.
        TokensNeededError: If the mask follows the tokens, and the shape has none.

    >>> from masksearch import Shape, masks
    >>> late = masks.per_layer([masks.full(), masks.columns(2)])
    >>> live_tokens(late, Shape(4, 2, 1, read=1)).int().tolist()
    [[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]]
    """
    mask.counts(shape.layers, shape.heads)
    if mask.needs_tokens and shape.tokens is not None:
        return _live_by_row(mask, shape, shape.tokens)
    mask.refuse_tokens()
    refuse_longer(mask, shape.length, "live_tokens")
    mask = under_causality(mask, shape)
    layers = [mask.of_layer(layer) for layer in range(shape.layers)]
    return live_by_layer(layers, shape.length, shape.read or shape.length)


def live_by_layer(layers: Sequence[Mask], length: int, read: int) -> Tensor:
    """`live_tokens` of the masks of some layers, bool `[layers + 1, length]`."""
    live = [torch.arange(length) < read]
    for mask in reversed(layers):
        live.append(live[-1] | _looked_at(mask, live[-1]))
    return torch.stack(live[::-1])


def _looked_at(mask: Mask, queries: Tensor) -> Tensor:
    """The keys that some queries keep in any head of one layer; both bool `[n]`."""
    length, keys = len(queries), torch.zeros_like(queries)
    for head in range(mask.heads or 1):
        first = 0
        for rows in mask.row_chunks(length, head=head):
            keys |= rows[queries[first : first + len(rows)]].any(0)
            first += len(rows)
            if keys.all():
                return keys
    return keys


def needed_before(table: Tensor, after: Tensor) -> Tensor:
    """The tokens that a layer needs, bool `[rows, n]`, from those that are needed after it.

    Args:
        table: Its cells, bool `[rows | 1, heads | 1, n, n]`.
        after: bool `[rows, n]`.
    """
    return after | (table.any(1) & after[..., None]).any(-2)


def _live_by_row(mask: Mask, shape: Shape, tokens: Tensor) -> Tensor:
    """`live_tokens` of a mask that follows the tokens, int64 `[rows, length]`."""

    def chunks() -> Iterator[Tensor]:
        for ids in torch.split(tokens, max(1, CELLS_AT_ONCE // shape.length**2)):
            real = ids >= 0
            there = real[:, None] & real[:, :, None]
            there = there.tril() if shape.causal else there

            @cache  # layers are often alike
            def cells(layer: Mask, ids: Tensor = ids, there: Tensor = there) -> Tensor:
                table = layer.table(ids) if layer.needs_tokens else layer.dense(shape.length)[0]
                return table & there[:, None]

            read = torch.arange(shape.length) < (shape.read or shape.length)
            live = [read & real]
            for layer in reversed(range(shape.layers)):
                live.append(needed_before(cells(mask.of_layer(layer)), live[-1]))
            yield torch.stack(live[::-1], 1)

    return torch.cat([*chunks()])
