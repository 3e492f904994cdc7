"""Until when each key is of use: the last query that keeps it, when queries come one by one.

A decoder's cache may forget a key once no later query keeps it. Under causality a key p is kept by
queries from p on only; for windows, sinks and what `|` and `&` make of them these queries are an
interval that begins with p, so that its end follows from the expression. For all other masks the
cells are looked at, the last queries first.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from masksearch.masks.core import CELLS_AT_ONCE, Both, Either, Mask, Points
from masksearch.masks.leaves import Causal, Columns, Full, GlobalTokens, Window, stands_at
from masksearch.masks.tables import Cropped, PerHead


def last_queries(
    mask: Mask, keys: Tensor, length: int, *, head: int = 0, start: int = 0
) -> Tensor:
    """The last query that keeps each key, of the queries that do not come before it.

    Args:
        mask: The mask of one layer; its cells do not follow the tokens.
        keys: int64 `[k]`, positions in [0, length).
        length: Positions that there will be at most; the mask is taken at that length.
        head: Head.
        start: Queries before it are passed over, where cells have to be looked at.

    Returns:
        int64 `[k]`; for a key that no query from `start` on keeps, a number below `start`.

    Raises:
        LengthError: If the mask does not have that length.
        TokensNeededError: If its cells follow the tokens.

    >>> from masksearch import masks
    >>> last_queries(masks.columns(1) | masks.window(2), torch.arange(6), 6).tolist()
    [5, 3, 4, 5, 5, 5]
    """
    mask.refuse_tokens()
    if (end := _last_of_interval(mask, keys, length, head)) is not None:
        return end
    if mask.length not in (None, length):
        mask = Cropped(mask, mask.length or length)
    resolved = mask.resolve(length)  # random keys are drawn once
    last_of_keys = torch.full_like(keys, -1)
    missing = torch.arange(len(keys))
    stop = length
    while stop > start and len(missing):
        first = max(start, stop - max(1, CELLS_AT_ONCE // len(missing)))
        query, key = torch.arange(first, stop)[:, None], keys[missing][None]
        kept = resolved.allows(Points(query, key, length, 0, head)) & (key <= query)
        kept = kept.expand(len(query), len(missing))
        last = torch.where(kept, query, -1).amax(0)
        last_of_keys[missing] = last
        missing = missing[(last < 0) & (keys[missing] < first)]
        stop = first
    return last_of_keys


def _last_of_interval(mask: Mask, keys: Tensor, length: int, head: int) -> Tensor | None:
    """As `last_queries`, from the expression alone; None where it is not of that kind."""
    last = torch.full_like(keys, length - 1)
    if isinstance(mask, PerHead):
        return _last_of_interval(mask.of[head], keys, length, head)
    if isinstance(mask, Full | Causal):
        return last
    if isinstance(mask, Window):
        return (keys + mask.reach).clamp(max=length - 1)
    if isinstance(mask, Columns | GlobalTokens):
        first = mask.positions == tuple(range(len(mask.positions)))
        if isinstance(mask, GlobalTokens) and not first:  # later rows see keys between columns
            return None
        return last.where(stands_at(keys, mask.positions), -1)
    if isinstance(mask, Either | Both):
        ends = [_last_of_interval(part, keys, length, head) for part in mask.of]
        join: Callable[[Tensor, Tensor], Tensor] = (
            torch.maximum if isinstance(mask, Either) else torch.minimum
        )
        for end in ends:
            if end is None:
                return None
            last = end if end is ends[0] else join(last, end)
        return last
    return None


@lru_cache(maxsize=256)
def held_keys(mask: Mask, count: int, until: int, head: int = 0) -> Tensor:
    """Which of the first keys a decoder still needs when it goes on after them.

    A key is needed if a query from position `count` up to position `until` - 1 keeps it. Where
    none follows (`until` = `count`: a table at its own length), the keys of the last query count.

    Args:
        mask: The mask of one layer.
        count: Positions so far (>= 1).
        until: Positions that there will be at most (>= `count`).
        head: Head.

    Returns:
        bool `[count]`; not to be written to.

    Raises:
        LengthError: If the mask does not reach as far.

    >>> from masksearch import masks
    >>> held_keys(masks.columns(1) | masks.window(2), 6, 12).int().tolist()
    [1, 0, 0, 0, 1, 1]
    """
    start = min(count, until - 1)
    return last_queries(mask, torch.arange(count), until, head=head, start=start) >= start
