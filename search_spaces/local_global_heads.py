"""Which KV heads of a decoder keep full attention; the others see a few sinks and a window.

The query heads that share keys and values go together, so that a cache could free keys. 2^24 - 1
sets of local KV heads times 6 windows and 4 numbers of sinks, and all of them full: 4.0e8 masks
for 6 layers of 8 heads with 4 KV heads (set the constants, or call `space_of`). A KV head is full
where its number in [0, 1] lies below `share`, so random draws have 0, 1, .. 24 equally often.

Within a budget as many KV heads are full as it pays, in the order of their numbers. It counts
pairs, at LENGTH tokens or of a shape that `space_of` is given; of a cache these masks take less.

    masksearch search masksearch.spaces:local_global_heads --decoder TEXT --weights MODEL
"""

import math
from collections.abc import Callable
from functools import cache

from optuna.trial import BaseTrial

from masksearch import Shape, budget_of, masks
from masksearch.masks.measure import effective_density

LAYERS, HEADS, KV_HEADS = 6, 8, 4  # of the decoder that is searched
REACHES = [7, 15, 31, 63, 127, 255]  # keys before the query's own
SINKS = [0, 1, 4, 16]  # first positions, which all later ones see
LENGTH = 1024  # tokens of a sequence, where budgets are counted without a shape


def space_of(
    layers: int, heads: int, kv_heads: int, shape: Shape | None = None
) -> Callable[[BaseTrial], masks.Mask]:
    """The space of a decoder with that many layers, heads and KV heads."""

    def local(place: int, sinks: int) -> masks.Mask:
        near = masks.window(REACHES[place])
        return near | masks.columns(sinks) if sinks else near

    @cache
    def cost(place: int, sinks: int) -> float:
        return effective_density(local(place, sinks), shape or Shape(LENGTH, 1, 1, causal=True))

    def space(trial: BaseTrial) -> masks.Mask:
        budget = budget_of(trial)
        share = trial.suggest_float("share", 0, 1) if budget is None else 0.0  # full on average
        place = trial.suggest_int("reach", 0, len(REACHES) - 1)
        sinks = trial.suggest_categorical("sinks", SINKS)
        names = [f"l{layer}.kv{kv}" for layer in range(layers) for kv in range(kv_heads)]
        numbers = [trial.suggest_float(name, 0, 1) for name in names]
        if budget is not None:
            sinks = max(n for n in SINKS if not n or (n <= sinks and cost(0, n) <= budget))
            paid = sum(cost(each, sinks) <= budget for each in range(len(REACHES)))
            place = place * paid // len(REACHES)
            room = (budget - cost(place, sinks)) / max(1e-9, 1 - cost(place, sinks))
            share = [*sorted(numbers), math.inf][max(0, int(room * len(numbers) + 1e-9))]
        near = local(place, sinks)
        chosen = []
        for first in range(0, len(names), kv_heads):
            own = numbers[first : first + kv_heads]
            parts = [masks.full() if number < share else near for number in own]
            each = [parts[head * kv_heads // heads] for head in range(heads)]
            same = all(part == parts[0] for part in parts)
            chosen.append(parts[0] if same else masks.per_head(each))
        return masks.per_layer(chosen)

    space.masksearch_source = (
        f"{layers} {heads} {kv_heads} {REACHES} {SINKS}{shape or ''}"  # for resuming
    )
    return space


space = space_of(LAYERS, HEADS, KV_HEADS)
