"""What each head is for, layer by layer: to see all, ahead, behind, near, or hardly anything.

Of each layer a draw says how many heads are full, see what is ahead, what is behind, or a local
window (below 1: none), and what the others see beside themselves: nothing, the first token
(column), all where they are the first token (row), or both; `others` says how much of a budget
they may take, in quarters. Numbers of heads are in proportion: as many are dealt, layer by layer,
as the budget pays. What is left goes to other heads, the dearest roles first, while it pays.

At most 3.6e38 masks of 6 layers of 12 heads; layers, heads and lengths are those of the search.
Every mask of such heads is a point, at a budget that is its density: also all those of
`masks.equal_cost_baselines` that have whole heads (`starts`). `head_roles(order)` says which heads
come first; with `words=True` heads may also see the same word elsewhere.

    masksearch search masksearch.spaces:head_roles --weights MODEL --glue DIR --budget 0.2 --run X
"""

from collections.abc import Iterable, Sequence
from functools import cache
from itertools import product
from typing import Any

from optuna.trial import BaseTrial

from masksearch import Shape, budget_of, masks
from masksearch.masks.baselines import check_order, whole_heads
from masksearch.masks.measure import ROUNDING, effective_density, layer_pairs, unit_densities
from masksearch.user_code import shape_of

LAYERS, HEADS, LENGTH = 6, 12, 128  # where no search says them
DENSITIES = [0.06, 0.12, 0.2, 0.3, 0.5]  # drawn in a search without a budget
REACH = 4  # of a local head, positions on each side
QUARTERS = 4  # of what is left beside all diagonals
ROLES = {"full": masks.full(), "ahead": ~masks.causal(), "behind": masks.causal()}
ROLES |= {"local": masks.window(REACH)}  # the dearest first
WITH_WORDS = ROLES | {"words": masks.same_token()}
SELF, HUB, COLUMN = masks.window(0), masks.global_tokens(1), masks.columns(1)
OTHERS = {"both": SELF | HUB, "column": SELF | COLUMN, "row": SELF | (HUB - COLUMN)}
OTHERS |= {"diagonal": SELF}
NARROWER = {"both": "column", "column": "diagonal", "row": "diagonal"}
Place = tuple[int, str]  # layer and role


def sees(role: str, other: str) -> masks.Mask:
    """The mask of a head in a layer whose other heads see `other`; "" = one of those."""
    alone = role in ("", "full")
    return ROLES.get(role, OTHERS[other]) if alone else WITH_WORDS[role] | OTHERS[other]


ROLE_OF = {other: {sees(role, other): role for role in ("", *ROLES)} for other in OTHERS}


@cache
def pairs_of(shape: Shape, words: Any) -> tuple[list[dict[tuple[str, str], int]], int]:
    """Of each layer, (role, other) -> pairs that such a head keeps; those of all heads. `words`
    is `shape.tokens`, which no comparison of shapes looks at, or None without that role."""
    whole, last = layer_pairs(shape)
    of_layer = [whole] * (shape.layers - 1) + [last]
    kept = [dict[tuple[str, str], int]() for _ in of_layer]
    roles = ROLES if words is None else WITH_WORDS
    for key in product(("", *roles), OTHERS):
        shares = unit_densities(sees(*key), shape)
        for layer, pairs in enumerate(of_layer):
            kept[layer][key] = round(shares[layer][0] * pairs)
    return kept, shape.heads * sum(of_layer)


def head_roles(
    order: Sequence[Sequence[int]] | None = None,
    shape: Shape | None = None,
    *,
    words: bool = False,
):
    """The space in which the heads of each layer get roles in a given order.

    Args:
        order: Of each layer its heads, such as the farthest looking first; None = as numbered.
        shape: Whose pairs are counted; None = the search's (give it where a `FixedTrial` draws).
        words: Heads may see the same token elsewhere: another space, with other draws.
    """
    all_roles = WITH_WORDS if words else ROLES

    def space(trial: BaseTrial) -> masks.Mask:
        data = shape or shape_of(trial) or Shape(LENGTH, LAYERS, HEADS)
        ranks = check_order(order, data)
        layers, heads = range(data.layers), data.heads
        budget = budget_of(trial) or trial.suggest_categorical("density", DENSITIES)
        quarters = trial.suggest_int("others", 0, QUARTERS)
        others, drawn = [], {}
        for layer in layers:
            others.append(trial.suggest_categorical(f"l{layer}.others", [*OTHERS]))
            for role in all_roles:
                count = trial.suggest_int(f"l{layer}.{role}", -heads, heads)
                drawn |= {(layer, role): count} if count > 0 else {}
        if words and data.tokens is None:
            raise ValueError(
                "words=True counts pairs in rows of the data, and Shape.tokens is None"
            )
        kept, whole = pairs_of(data, data.tokens if words else None)

        def cost(layer: int, role: str) -> int:
            return kept[layer][role, others[layer]]

        def widening(layer: int) -> int:  # of the other heads
            return heads * (cost(layer, "") - kept[layer]["", "diagonal"])

        left = int(budget * whole * (1 + ROUNDING))
        left -= heads * sum(each["", "diagonal"] for each in kept)
        most = max(0, left) * quarters // QUARTERS
        while sum(map(widening, layers)) > most:
            dearest = max(layers, key=lambda layer: (widening(layer), layer))
            others[dearest] = NARROWER[others[dearest]]
        left -= sum(map(widening, layers))
        counts = {(at, role): 0 if role else heads for at in layers for role in ("", *all_roles)}

        def deal(parts: dict[Place, int], before: str = "", as_drawn: bool = False) -> None:
            nonlocal left

            def step(at: Place) -> int:
                return cost(*at) - cost(at[0], before)

            def fits(at: Place) -> bool:
                wanted = counts[at] < parts[at] if as_drawn else 0 < step(at) <= left
                return wanted and counts[at[0], before] > 0

            while places := [*filter(fits, parts)]:
                at = min(places, key=lambda at: (counts[at] + 1) / parts[at])
                if step(at) > left:
                    return
                left -= step(at)
                counts[at] += 1
                counts[at[0], before] -= 1

        deal(drawn, as_drawn=True)
        deal(drawn)  # in proportion, beyond what was drawn
        unspent = None
        while left != unspent:  # what one pass deals may make room for another
            unspent = left
            for before, role in product(("", *reversed(all_roles)), all_roles):
                deal({(layer, role): 1 for layer in layers}, before)
        each = []
        for layer in layers:
            roles = [role for role in (*all_roles, "") for _ in range(counts[layer, role])]
            of_head = [role for _, role in sorted(zip(ranks[layer], roles, strict=True))]
            each.append(masks.per_head([sees(role, others[layer]) for role in of_head]))
        return masks.per_layer(each)

    def starts(shape: Shape, budget: float) -> list[dict[str, Any]]:
        """Parameters of the hand-designed masks within a budget that have whole heads."""
        hand = masks.equal_cost_baselines(budget, shape, order=order)
        return [params_of(hand[name], shape, all_roles) for name in whole_heads(hand)]

    space.starts = starts
    source = f"{order} {REACH} {DENSITIES}{shape or ''}"
    space.masksearch_source = source + " words" * words  # for resuming
    return space


def params_of(mask: masks.Mask, shape: Shape, all_roles: Iterable[str] = ROLES) -> dict[str, Any]:
    """Where in the space a mask lies whose heads all have one of the roles."""
    params: dict[str, Any] = {"budget": effective_density(mask, shape), "others": QUARTERS}
    for layer in range(shape.layers):
        of_head = [mask.of_layer(layer).of_head(head) for head in range(shape.heads)]
        other = next(other for other, role_of in ROLE_OF.items() if {*of_head} <= role_of.keys())
        roles = [ROLE_OF[other][each] for each in of_head]
        params |= {f"l{layer}.{role}": roles.count(role) for role in all_roles}
        params[f"l{layer}.others"] = other
    return params


space = head_roles()
