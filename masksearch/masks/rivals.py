"""Masks that anyone would draw by hand at the cost of a searched one: the searched one has to
beat these.

>>> from masksearch import Shape, masks
>>> drawn = masks.rivals_within(0.4, Shape(64, 6, 1, causal=True), local=masks.window(3))
>>> list(drawn)
['widest window', 'first', 'middle', 'last', 'every n-th', 'every n-th, shifted']
>>> str(drawn["widest window"])
'window(13)'
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import partial, reduce
from operator import or_

from masksearch.masks.core import FAMILIES, Either, Mask
from masksearch.masks.families import SWEPT
from masksearch.masks.leaves import Causal, Columns, Full, GlobalTokens, SpecialTokens, Window
from masksearch.masks.lower import HasShape
from masksearch.masks.measure import ROUNDING, effective_density
from masksearch.masks.tables import PerHead, PerLayer

SINKS, WINDOWS = 4, 8  # the default local mask: so many sinks, and this part of the length
WIDEST = "widest window"
LOCAL_HEAD = Window(0) | GlobalTokens(1)  # of an encoder


def rivals_within(
    limit: float,
    shape: HasShape,
    cost: Callable[[Mask], float] | None = None,
    *,
    local: Mask | None = None,
    special: Sequence[int] | None = None,
) -> dict[str, Mask]:
    """The masks drawn by hand that cost no more than a limit, each as dense as that allows.

    Of a decoder (`shape.causal`): one window in every layer with the sinks of `local`, and as many
    full layers as the limit pays for, the others local: the first, middle or last ones, or every
    n-th in two phases. Of an encoder: the densest member of each hand-designed family, one window
    with the special tokens, and as many full heads in every layer as the limit pays for, or pairs
    of heads that see later and earlier tokens, the others with the diagonal and a global token.

    Args:
        limit: The most that a mask may cost, in units of `cost`.
        shape: What masks are lowered to, and the lengths of the data.
        cost: Mask -> cost, which grows with the keys of a window and the number of full layers;
            None = the share of the pairs that real tokens can form (`effective_density`).
        local: Of a decoder, the mask of a layer that is not full; None = `default_local`.
        special: Of an encoder, token ids such as those of [CLS] and [SEP]; None = those with which
            every row of `shape.tokens` begins and ends.

    Returns:
        Name -> mask, without those whose least member is beyond the limit.
    """
    price = cost or (lambda mask: effective_density(mask, shape))
    layers, reaches = shape.layers, range(shape.length)
    drawn: dict[str, Mask | None] = {}
    if shape.causal:
        local = local or default_local(shape.length)
        drawn[WIDEST] = widest_window(limit, price, shape.length, local)
        for name in placements(layers, 1):
            made = [
                full_layers(placements(layers, count)[name], layers, local)
                for count in range(1, layers)
            ]
            drawn[name] = densest(limit, price, made.__getitem__, range(layers - 1))
        return {name: mask for name, mask in drawn.items() if mask is not None}
    for name, mask in FAMILIES.items():
        make, least = SWEPT.get(name, (lambda _, mask=mask: mask, shape.length))
        sizes = range(least, shape.length + 1)
        if price(make(sizes[0])) > price(make(sizes[-1])):  # a period, or the size of a block
            sizes = sizes[::-1]
        drawn[name] = densest(limit, price, make, sizes)
    if special := outer_tokens(shape) if special is None else special:
        tokens = SpecialTokens(*special)
        name = f"{WIDEST} and special tokens"
        drawn[name] = densest(limit, price, lambda reach: Window(reach) | tokens, reaches)
    heads, pairs = range(1, shape.heads), range(1, shape.heads // 2 + 1)
    drawn["full heads"] = densest(limit, price, partial(full_heads, shape.heads), heads)
    drawn["heads each way"] = densest(limit, price, partial(heads_each_way, shape.heads), pairs)
    return {name: mask for name, mask in drawn.items() if mask is not None}


def densest(
    limit: float,
    cost: Callable[[Mask], float],
    make: Callable[[int], Mask],
    sizes: Sequence[int],
) -> Mask | None:
    """The last mask within a limit, of masks whose costs grow along `sizes`; None without one."""
    within = bisect_right(sizes, limit * (1 + ROUNDING), key=lambda size: cost(make(size)))
    return make(sizes[within - 1]) if within else None


def widest_window(
    limit: float, cost: Callable[[Mask], float], length: int, local: Mask
) -> Mask | None:
    """The sinks of a local mask and the widest window within a limit, for every layer.

    Args:
        limit: As of `rivals_within`.
        cost: As there.
        length: Positions that a window may reach back, at most.
        local: Its sinks are kept.
    """
    sinks = sinks_of(local)
    return densest(limit, cost, lambda reach: reduce(or_, [*sinks, Window(reach)]), range(length))


def outer_tokens(shape: HasShape) -> list[int]:
    """The ids with which all rows of the data begin and end, such as those of [CLS] and [SEP]."""
    if shape.tokens is None:
        return []
    last = (shape.tokens >= 0).sum(1, keepdim=True) - 1
    begin, end = {*shape.tokens[:, 0].tolist()}, {*shape.tokens.gather(1, last)[:, 0].tolist()}
    return sorted(begin | end) if len(begin) == len(end) == 1 else []


def placements(units: int, count: int) -> dict[str, frozenset[int]]:
    """Where people put so many full layers, or heads: name -> their numbers, from 0.

    >>> {name: sorted(places) for name, places in placements(6, 2).items()}["every n-th"]
    [2, 5]
    """
    middle, step = (units - count) // 2, units / count
    return {
        "first": frozenset(range(count)),
        "middle": frozenset(range(middle, middle + count)),
        "last": frozenset(range(units - count, units)),
        "every n-th": frozenset(int((at + 1) * step) - 1 for at in range(count)),
        "every n-th, shifted": frozenset(int((at + 0.5) * step) for at in range(count)),
    }


def full_layers(full: frozenset[int], layers: int, local: Mask) -> Mask:
    """Those layers full, counted from 0, the others local."""
    return PerLayer([Full() if layer in full else local for layer in range(layers)])


def full_heads(heads: int, full: int) -> Mask:
    """So many heads of every layer full, the others with the diagonal and a global token."""
    return PerHead([Full()] * full + [LOCAL_HEAD] * (heads - full))


def heads_each_way(heads: int, pairs: int) -> Mask:
    """So many heads of every layer see later tokens and as many earlier ones; the others, and
    these too, the diagonal and a global token."""
    ways = [each | LOCAL_HEAD for each in (~Causal(), Causal())]
    return PerHead(
        [way for way in ways for _ in range(pairs)] + [LOCAL_HEAD] * (heads - 2 * pairs)
    )


def sinks_of(mask: Mask) -> list[Mask]:
    """The tokens of fixed positions that the mask of one layer keeps."""
    parts = mask.of if isinstance(mask, Either) else (mask,)
    return [part for part in parts if isinstance(part, Columns)]


def default_local(length: int) -> Mask:
    """Sinks and a window of an eighth of the length.

    >>> str(default_local(1024))
    'columns(4) | window(127)'
    """
    return Columns(SINKS) | Window(max(1, length // WINDOWS - 1))
