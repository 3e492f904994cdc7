"""Which tokens a model still needs, layer by layer, and the work that is then left."""

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
    bits = table.view(torch.uint8)  # in which torch finds the largest ten times as fast as any
    return after | (bits.amax(1) & after[..., None].view(torch.uint8)).amax(-2).bool()


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


def work(mask: Mask, shape: Shape) -> float:
    """The share of a dense model's multiplications that is left once dead tokens are left out.

    Of linear layers and attention, over the real tokens of the data, in (0, 1]. A layer with
    `before` and `after` live tokens computes `after (2 h^2 + 2 h f) + before 2 h^2 + 2 after
    before h` of them: query, output and FFN; key and value; scores and sums, masked pairs too.

    Args:
        mask: Any mask.
        shape: `h` and `f` are its `hidden_size` and `intermediate_size`; its texts are those of
            `lengths` or, of a mask that follows the tokens, the rows of `tokens`.

    Raises:
        ValueError: If the shape has no such sizes.
        LayerCountError, HeadCountError, LengthError, TokensNeededError: As `live_tokens`.

    >>> from masksearch import Shape, masks
    >>> late = masks.per_layer([masks.full(), masks.columns(2)])
    >>> work(late, Shape(4, 2, 1, read=1, hidden_size=8, intermediate_size=32))
    0.42788461538461536
    """
    if mask.needs_tokens and shape.tokens is not None:
        live, tokens = live_tokens(mask, shape), (shape.tokens >= 0).sum(1)
        texts = torch.ones_like(tokens)
    else:
        tokens, texts = torch.tensor(shape.histogram).unbind(1)
        live = _live_by_length(mask, shape, tokens)
    return share_left(live, tokens, texts, shape)


def share_left(live: Tensor, tokens: Tensor, texts: Tensor, shape: Shape) -> float:
    """`work` of known live tokens.

    Args:
        live: bool `[rows, layers + 1, n]`, False behind the end of a text.
        tokens: Of the text of each row, int64 `[rows]`.
        texts: How often it counts, int64 `[rows]`.
        shape: See `work`.
    """
    hidden, inner = shape.hidden_size, shape.intermediate_size
    if hidden is None or inner is None:
        raise ValueError(
            "work counts a model's multiplications: give Shape(.., hidden_size=, "
            f"intermediate_size=) as its configuration has them, got {hidden} and {inner}"
        )
    count, tokens = live.sum(-1).double(), tokens.double()
    before, after = count[:, :-1], count[:, 1:]
    left = (after * (hidden + inner) + before * hidden + after * before).sum(1)  # over 2 h
    dense = shape.layers * (tokens * (2 * hidden + inner) + tokens**2)
    return float((left * texts).sum() / (dense * texts).sum())


def _live_by_length(mask: Mask, shape: Shape, lengths: Tensor) -> Tensor:
    """`live_tokens` in texts of some lengths, which see the first rows and columns of a mask that
    does not follow the tokens: bool `[lengths, layers + 1, n]`."""
    mask.counts(shape.layers, shape.heads)
    mask.refuse_tokens()
    refuse_longer(mask, shape.length, "work")
    mask, at = under_causality(mask, shape), torch.arange(shape.length)
    real = at < lengths[:, None]
    live = [real & (at < (shape.read or shape.length))]
    for layer in reversed(range(shape.layers)):
        single, looked_at = mask.of_layer(layer), torch.zeros(real.shape)
        for head in range(single.heads or 1):
            first = 0
            for rows in single.row_chunks(shape.length, head=head):
                looked_at += live[-1][:, first : first + len(rows)].float() @ rows.float()
                first += len(rows)
        live.append(live[-1] | ((looked_at > 0) & real))
    return torch.stack(live[::-1], 1)
