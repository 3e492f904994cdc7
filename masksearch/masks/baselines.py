"""Hand-designed masks of the cost of a searched one, which has to beat them.

>>> from masksearch import Shape, masks
>>> drawn = masks.equal_cost_baselines(0.4, Shape(64, 6, 1, causal=True), local=masks.window(3))
>>> list(drawn)
['widest window', 'first', 'middle', 'last', 'every n-th', 'every n-th, shifted']
>>> str(drawn["widest window"])
'window(13)'
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from functools import partial, reduce
from operator import itemgetter, or_

from masksearch.masks.core import FAMILIES, Either, Mask
from masksearch.masks.families import SWEPT
from masksearch.masks.leaves import (
    Causal,
    Columns,
    Full,
    GlobalTokens,
    SameToken,
    Shifts,
    SpecialTokens,
    Window,
)
from masksearch.masks.live import work
from masksearch.masks.measure import ROUNDING, effective_density
from masksearch.masks.schedules import token_schedules
from masksearch.masks.shape import Shape
from masksearch.masks.tables import PerHead, PerLayer

SINKS, WINDOWS = 4, 8  # the default local mask: so many sinks, and this part of the length
WIDEST = "widest window"
Layers = Sequence[Mask]
LAST: Sequence[Layers] = ([Full()], [])  # how a mask ends, what is tried first before
LOCAL_HEAD = Window(0) | GlobalTokens(1)  # of an encoder
NARROWER = (Window(0) | Columns(1), Window(0))  # heads that cost less, the cheapest last
WHOLE = {"full heads": (Full(),), "heads each way": (~Causal(), Causal())}
PLACES = {"every n-th layer": "every n-th"} | {
    f"{p} layers": p for p in ("first", "middle", "last")
}


def equal_cost_baselines(
    limit: float,
    shape: Shape,
    cost: Callable[..., float] | None = None,
    *,
    local: Mask | None = None,
    special: Sequence[int] | None = None,
    order: Sequence[Sequence[int]] | None = None,
) -> dict[str, Mask]:
    """The hand-designed masks that cost no more than a limit, each as dense as that allows.

    Of a decoder (`shape.causal`): one window in every layer with the sinks of `local`, and as many
    full layers as the limit pays for, the others local: the first, middle or last ones, or every
    n-th in two phases. Of an encoder: the densest member of each hand-designed family, one window
    with the special tokens, what follows the words, and whole heads. Between two sizes of a family
    the first layers have the larger one. Where [CLS]'s row alone is read the last layer is full in
    all of them, as that costs next to nothing, or in none of a family that it leaves no room.

    - "same token": each token sees the same token elsewhere, and [CLS]'s column; "same token,
      widest window": the neighbours besides. Left out where `shape.tokens` is not known.
    - "offsets by head": [CLS]'s column and not the token itself; in each head as many neighbouring
      offsets as the limit pays for, from 1 on in the first head, -1 in the second, 2 in the next.
    - "full heads": as many as the limit pays for in every layer, the others with the diagonal and
      a global token; "heads each way": pairs of a head that sees later tokens and one that sees
      earlier ones, which both see the diagonal and the global token as well.
    - "full heads, first layers", "heads each way, every n-th layer", ..: as many as the limit pays
      for in all, dealt evenly to the first, middle or last half of the layers, or to every second
      one; to more layers only where these are full.
    - "more full heads", "more heads each way, last layers", ..: the other heads, and those of
      pairs, see less in place of the global token, the diagonal with the first column or the
      diagonal alone, whichever is the richest that leaves most for whole heads. Only where that
      is more than with the global token.

    With `cost=masks.work` they are schedules of live tokens, `masks.schedules.token_schedules`, as
    the others leave few tokens out; of the other arguments only `limit` and `shape` count.

    Within a small limit no mask of whole heads fits: then `masks.baselines.whole_heads` finds no
    name, and what is left is no opponent to speak of.

    Args:
        limit: The most that a mask may cost, in units of `cost`.
        shape: What masks are lowered to, and the lengths of the data.
        cost: Mask -> cost, which grows with the keys of a window and the number of full layers;
            None = the share of the non-padding query-key pairs (`effective_density`).
        local: Of a decoder, the mask of a layer that is not full; None = `default_local`.
        special: Of an encoder, token ids such as those of [CLS] and [SEP]; None = those with which
            every row of `shape.tokens` begins and ends.
        order: Of an encoder, the heads of each layer in the order in which they become whole, such
            as by their first-order effect, the largest first; None = by their numbers.

    Returns:
        Name -> mask, without those whose least member is beyond the limit, each mask once.

    Raises:
        ValueError: If `order` does not name every head of every layer once.
    """
    if cost is work:
        return token_schedules(limit, shape)
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
    ends = LAST if cost is None and layers > 1 and shape.read == 1 else LAST[1:]
    drawn |= _families_within(limit, price, shape, ends)
    special = _outer_tokens(shape) if special is None else special
    beside: dict[str, tuple[Mask, Sequence[int]]] = {}
    if special:
        beside[f"{WIDEST} and special tokens"] = SpecialTokens(*special), reaches
    if shape.tokens is not None:
        words = SameToken(special) | Columns(1)
        beside |= {"same token": (words, [0]), f"same token, {WIDEST}": (words, reaches)}
    for name, (tokens, sizes) in beside.items():
        drawn[name] = fullest(limit, price, partial(_neighbours_and, tokens), sizes, layers, ends)
    counts = range(shape.heads, 2 * shape.length * shape.heads)
    deal = partial(_offsets_by_head, shape.heads)
    drawn["offsets by head"] = fullest(limit, price, deal, counts, layers, ends)
    drawn |= heads_within(limit, price, shape, order, ends)
    return {name: mask for name, mask in drawn.items() if mask is not None}


def _families_within(
    limit: float, cost: Callable[[Mask], float], shape: Shape, ends: Sequence[Layers]
) -> dict[str, Mask | None]:
    """The densest member of each hand-designed family; the arguments are those of `fullest`."""
    drawn: dict[str, Mask | None] = {}
    for name, mask in FAMILIES.items():
        make, least = SWEPT.get(name, (lambda _, mask=mask: mask, shape.length))
        sizes: Sequence[int] = range(least, shape.length + 1)
        if cost(make(sizes[0])) > cost(make(sizes[-1])):  # a period, or the size of a block
            sizes = sizes[::-1]
        drawn[name] = fullest(limit, cost, make, sizes, shape.layers, ends)
    return drawn


def heads_within(
    limit: float,
    cost: Callable[[Mask], float],
    shape: Shape,
    order: Sequence[Sequence[int]] | None,
    ends: Sequence[Layers],
) -> dict[str, Mask]:
    """Those masks of `equal_cost_baselines` that have whole heads; the arguments are as there,
    and of `fullest`."""
    order = check_order(order, shape)
    drawn: dict[str, Mask] = {}
    for kind, ways in WHOLE.items():
        for where in ("", *(PLACES if shape.layers > 1 else ())):
            name, best = f"{kind}, {where}" if where else kind, 0
            for other in (LOCAL_HEAD, *NARROWER):
                for end in ends:
                    layers = shape.layers - len(end)
                    most = (layers if where else 1) * (shape.heads // len(ways))
                    counts = range(1, most + (kind != "full heads"))  # all full is dense attention
                    make = partial(
                        _whole_head_mask, shape, ways, PLACES.get(where), other, order, end
                    )
                    if count := within(limit, cost, make, counts):
                        break
                if count > best and (mask := make(counts[count - 1])) not in drawn.values():
                    drawn[name if other is LOCAL_HEAD else f"more {name}"] = mask
                best = max(best, count)
    return drawn


def check_order(order: Sequence[Sequence[int]] | None, shape: Shape) -> Sequence[Sequence[int]]:
    """The order of the heads in each layer; by their numbers where there is none.

    Raises:
        ValueError: If it does not name every head of every layer once.
    """
    heads = [*range(shape.heads)]
    if order is None:
        return [heads] * shape.layers
    if len(order) != shape.layers or any(sorted(layer) != heads for layer in order):
        raise ValueError(
            f"order lists the {shape.heads} heads of each of {shape.layers} layers once, from 0; "
            f"got {[list(layer) for layer in order]}"
        )
    return order


def whole_heads(drawn: Iterable[str]) -> list[str]:
    """The names of `equal_cost_baselines` whose masks have a full head, or a head each way.

    >>> from masksearch import Shape
    >>> drawn = equal_cost_baselines(0.4, Shape(32, 2, 6))
    >>> whole_heads(drawn)[:2]
    ['full heads', 'full heads, every n-th layer']
    """
    return [name for name in drawn if any(kind in name for kind in WHOLE)]


def within(
    limit: float,
    cost: Callable[[Mask], float],
    make: Callable[[int], Mask],
    sizes: Sequence[int],
) -> int:
    """How many of `sizes`, along which costs grow, make masks within a limit."""
    return bisect_right(sizes, limit * (1 + ROUNDING), key=lambda size: cost(make(size)))


def densest(
    limit: float,
    cost: Callable[[Mask], float],
    make: Callable[[int], Mask],
    sizes: Sequence[int],
) -> Mask | None:
    """The last mask within a limit, of masks whose costs grow along `sizes`; None without one."""
    count = within(limit, cost, make, sizes)
    return make(sizes[count - 1]) if count else None


def fullest(
    limit: float,
    cost: Callable[[Mask], float],
    make: Callable[[int], Mask],
    sizes: Sequence[int],
    layers: int,
    ends: Sequence[Layers],
) -> Mask | None:
    """The densest mask of a family in every layer within a limit; None without one.

    Args:
        limit: As of `equal_cost_baselines`.
        cost: As there.
        make: Size -> mask of one layer; costs grow along `sizes`.
        sizes: All sizes; between two of them the first layers have the larger one.
        layers: Of the model.
        ends: Masks of the last layers, in their place; a later one where an earlier one leaves
            no room.
    """
    for end in ends:

        def layered(at: int, larger: int, own: int = layers - len(end), end: Layers = end) -> Mask:
            each = [make(sizes[at + (layer < larger)]) for layer in range(own)]
            return PerLayer([*each, *end]) if larger or end else each[0]

        if count := within(limit, cost, partial(layered, larger=0), range(len(sizes))):
            wider = range(1, layers - len(end) if count < len(sizes) else 1)
            some = partial(layered, count - 1)
            return some(within(limit, cost, some, wider))
    return None


def _neighbours_and(tokens: Mask, reach: int) -> Mask:
    """A window beside what else is kept."""
    return Window(reach) | tokens


def _offsets_by_head(heads: int, count: int) -> Mask:
    """The first column in every head, and so many offsets in turns over the heads: of the offsets
    1, -1, 2, -2, .. head h begins at the h-th and goes on to the next ones."""
    ends = [head + len(range(head, count, heads)) for head in range(heads)]
    return PerHead([Columns(1) | (_nearest(end) - _nearest(at)) for at, end in enumerate(ends)])


def _nearest(count: int) -> Mask:
    """The diagonal, and so many of the offsets 1, -1, 2, -2, .."""
    return Window(count // 2) | Shifts([count // 2 + 1]) if count % 2 else Window(count // 2)


def widest_window(
    limit: float, cost: Callable[[Mask], float], length: int, local: Mask
) -> Mask | None:
    """The sinks of a local mask and the widest window within a limit, for every layer.

    Args:
        limit: As of `equal_cost_baselines`.
        cost: As there.
        length: Positions that a window may reach back, at most.
        local: Its sinks are kept.
    """
    parts = local.of if isinstance(local, Either) else (local,)
    sinks = [part for part in parts if isinstance(part, Columns)]
    return densest(limit, cost, lambda reach: reduce(or_, [*sinks, Window(reach)]), range(length))


def _outer_tokens(shape: Shape) -> list[int]:
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


def _whole_head_mask(
    shape: Shape,
    ways: Sequence[Mask],
    where: str | None,
    other: Mask,
    order: Sequence[Sequence[int]],
    end: Layers,
    count: int,
) -> Mask:
    """A mask of whole heads, the others local.

    Args:
        shape: Its layers and heads.
        ways: What whole heads see: all, or two masks, each for as many heads.
        where: Where they are, as of `placements`; None = `count` of each way in every layer.
        other: What the other heads see, and whole ones that do not see all.
        order: As of `equal_cost_baselines`.
        end: Masks of the last layers, in their place.
        count: Of each way: in a layer, or with a place in all layers.
    """
    layers = shape.layers - len(end)
    counts = [0 if where else count] * layers
    if where:
        least = max((layers + 1) // 2, -(-count // (shape.heads // len(ways))))
        used = sorted(placements(layers, min(count, least))[where])
        for at, layer in enumerate(used):
            counts[layer] = count // len(used) + (at < count % len(used))
    whole = [way if way == Full() else way | other for way in ways]
    made = []
    for layer, each in enumerate(counts):
        roles = [way for way in whole for _ in range(each)]
        roles += [other] * (shape.heads - len(roles))
        rank = order[layer]
        made.append(
            PerHead([role for _, role in sorted(zip(rank, roles, strict=True), key=itemgetter(0))])
        )
    alike = not end and all(each == made[0] for each in made)
    return made[0] if alike else PerLayer([*made, *end])


def default_local(length: int) -> Mask:
    """Sinks and a window of an eighth of the length.

    >>> str(default_local(1024))
    'columns(4) | window(127)'
    """
    return Columns(SINKS) | Window(max(1, length // WINDOWS - 1))
