"""This head everything, that head near keys only: for an encoder that is trained already.

4,095 sets of local heads a layer times 6 reaches, and all heads full: 2.2e26 masks for 6 layers
of 12 heads (MiniLM; set LAYERS and HEADS, or call `space_of`). A head is full where its number in
[0, 1] lies below `share`, so random draws have 0, 1, .. 72 full heads equally often. The others
see a global token and, on each side, as many neighbours as their layer's reach says. Holds full,
star, longformer(2^i, 1), and every set of full heads among such.

Within a budget as many heads are full as it pays, in the order of their numbers. It counts pairs,
at LENGTH tokens or of a shape: for shorter data call `space_of(6, 12, evaluator.shape)`.

    masksearch search masksearch.spaces:local_heads --weights MODEL --glue DIR --run runs/lh
"""

import math
from bisect import bisect
from collections.abc import Callable
from functools import cache
from itertools import accumulate

from optuna.trial import BaseTrial

from masksearch import Shape, budget_of, masks
from masksearch.masks.measure import effective_density

LAYERS, HEADS = 6, 12  # of the encoder that is searched
LENGTH = 128  # tokens of a sequence, where budgets are counted without a shape
REACHES = [0, 1, 2, 4, 8, 16]  # positions on each side; 0 = the global token and itself


def space_of(
    layers: int, heads: int, shape: Shape | None = None
) -> Callable[[BaseTrial], masks.Mask]:
    """The space of an encoder with that many layers and heads."""
    counted = shape or Shape(LENGTH, layers, heads)

    def local(place: int) -> masks.Mask:
        return masks.window(REACHES[place]) | masks.global_tokens(1)

    @cache
    def saved(layer: int, place: int) -> float:
        """What a local head of a layer costs less than a full one, as a share of dense."""
        each = [local(place) if at == layer else masks.full() for at in range(layers)]
        return (1 - effective_density(masks.per_layer(each), counted)) / heads

    def cost(places: list[int]) -> float:
        return 1 - heads * sum(map(saved, range(layers), places))

    def space(trial: BaseTrial) -> masks.Mask:
        budget = budget_of(trial)
        share = trial.suggest_float("share", 0, 1) if budget is None else 0.0  # full on average
        paid = sum(budget is None or cost([at] * layers) <= budget for at in range(len(REACHES)))
        places, numbers = [], []
        for layer in range(layers):
            place = trial.suggest_int(f"l{layer}.local", 0, len(REACHES) - 1)  # among REACHES
            places.append(place * paid // len(REACHES))
            numbers.append([trial.suggest_float(f"l{layer}.h{h}", 0, 1) for h in range(heads)])
        if budget is not None:
            left = budget - cost(places) + 1e-9
            order = sorted((n, at) for at, own in enumerate(numbers) for n in own)
            spent = accumulate(saved(layer, places[layer]) for _, layer in order)
            share = [*(number for number, _ in order), math.inf][bisect([*spent], left)]
        chosen = []
        for place, own in zip(places, numbers, strict=True):
            parts = [masks.full() if number < share else local(place) for number in own]
            same = all(part == parts[0] for part in parts)
            chosen.append(parts[0] if same else masks.per_head(parts))
        return masks.per_layer(chosen)

    space.masksearch_source = f"{layers} {heads} {REACHES}{shape or ''}"  # for resuming
    return space


space = space_of(LAYERS, HEADS)
