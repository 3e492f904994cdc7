"""Which tokens each layer computes while tokens are left out, and where they stand; see `live`."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from masksearch.attention.live_call import Packing


class LayerTokens(NamedTuple):
    """The tokens of one layer, of those that the layer before has left.

    Args:
        order: Which of these are needed before the layer, those that are needed after it first,
            int64 `[tokens]`; None = all, as they stand.
        asks: How many of them are needed after it.
        queries: Positions of those that ask in attention, int64 `[batch | 1, queries]`.
        keys: Positions of those that they may look at, the same first, `[batch | 1, keys]`.
        places: Where the tokens stand in the batch, text after text, int64 `[tokens]`.
        packing: Of a batch that is one sequence, both of whose parts have some more tokens, the
            first one again (`rounded`); None = texts are side by side.
    """

    order: Tensor | None
    asks: int
    queries: Tensor
    keys: Tensor
    places: Tensor
    packing: Packing | None


def rounded(tokens: int) -> int:
    """The next of 32 numbers an octave: kernels for half precision on a CPU are made anew for
    each shape, which costs more than a few tokens.

    >>> [rounded(tokens) for tokens in (0, 1, 32, 33, 1000, 1025)]
    [0, 8, 32, 40, 1008, 1056]
    """
    step = max(8, 1 << max(0, tokens.bit_length() - 6))
    return -(-tokens // step) * step


def cuts(live: Tensor, whole: bool) -> list[LayerTokens | None]:
    """The tokens of each layer; None for layers up to which all are needed.

    Args:
        live: bool `[batch | 1, layers + 1, n]`, as `masks.live_tokens` gives it; of several texts
            the batch is one sequence.
        whole: Whether all that a layer needs asks in its attention.
    """
    texts, _, length = live.shape
    by_layer = live.transpose(0, 1).flatten(1)  # [layers + 1, batch * n]
    at_hand = by_layer.cumsum(1) - 1  # where each stands among those of its layer
    made: list[LayerTokens | None] = []
    before, size, all_ask = texts * length, texts * length, False
    for layer, asked in enumerate(by_layer[1:].sum(1).tolist()):
        last = made[-1] if made else None
        if texts == 1 and asked == length:
            made.append(None)
        elif last is not None and all_ask and asked == before:  # as the layer before
            made.append(last._replace(order=None))
        else:
            asks = by_layer[layer + 1].nonzero()[:, 0]
            others = (by_layer[layer] & ~by_layer[layer + 1]).nonzero()[:, 0]
            all_ask = not len(others)
            if texts > 1 and asked < before:
                size = rounded(asked)
            first = size if texts > 1 else asked
            more = rounded(len(others)) if texts > 1 else len(others)
            places = torch.cat([_filled(asks, first), _filled(others, more)])
            order = None
            if asked < before:
                order = at_hand[layer, places] if layer else places
            if texts == 1:
                at = places[None]
                queries = at if whole else at[:, :asked]
                made.append(LayerTokens(order, first, queries, at, places, None))
            else:
                packing = pack(asks, others, texts, length, (first, more), whole)
                at = places % length
                queries, keys = at[packing.queries], at[packing.keys]
                made.append(LayerTokens(order, first, queries, keys, places, packing))
        before = asked
    return made


def _filled(places: Tensor, size: int) -> Tensor:
    """With the batch's first token behind them, which every layer needs."""
    return F.pad(places, (0, size - len(places)))


def pack(
    asks: Tensor, others: Tensor, texts: int, length: int, sizes: tuple[int, int], whole: bool
) -> Packing:
    """Where the tokens of one layer stand, side by side and in sequence.

    Args:
        asks: Places of those that are needed after it, text by text.
        others: Of those that are needed before it and no more.
        texts: Of the batch.
        length: Positions of a text.
        sizes: Tokens of both parts of the sequence, filler too.
        whole: Whether all ask in attention.
    """
    device = asks.device

    def slots(places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        text = places // length
        count = text.bincount(minlength=texts)
        before = (count.cumsum(0) - count)[text]
        return text, torch.arange(len(text), device=device) - before, count

    def side(text: Tensor, slot: Tensor, count: Tensor, at: Tensor) -> tuple[Any, ...]:
        widest = int(count.max())
        index = torch.zeros(texts, widest, dtype=torch.int64, device=device)
        index[text, slot] = at
        back = torch.zeros(sum(sizes), dtype=torch.int64, device=device)
        back[at] = text * widest + slot
        shown = torch.arange(widest, device=device) < count[:, None]
        return index, back, None if shown.all() else shown

    text, slot, count = slots(asks)
    behind, later, further = slots(others)
    at = torch.arange(len(asks), device=device)
    all_at = torch.cat([at, torch.arange(len(others), device=device) + sizes[0]])
    every = torch.cat([text, behind]), torch.cat([slot, count[behind] + later]), count + further
    keys, back, shown = side(*every, all_at)
    queries, asking = keys, shown
    if not whole:
        queries, back, asking = side(text, slot, count, at)
        back = back[: sizes[0]]
    return Packing(queries, keys, back, asking, shown)
