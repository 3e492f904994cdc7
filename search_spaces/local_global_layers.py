"""Which layers of a decoder keep full attention; the others see a few sinks and a window.

4,095 sets of local layers times 6 windows and 4 numbers of sinks, and all layers full: 98,281
masks for 12 layers (set LAYERS, or call `space_of`). A layer is full where its number in [0, 1]
lies below `share`, so random draws have 0, 1, .. 12 full layers equally often. `baselines` has the
patterns that people draw by hand; random ones are this space under `--strategy random`.

Within a budget as many layers are full as it pays, in the order of their numbers. It counts
pairs, at LENGTH tokens or of a shape that `space_of` is given; of a cache these masks take less.

    masksearch search masksearch.spaces:local_global_layers --decoder TEXT --weights MODEL
"""

import math
from collections.abc import Callable
from functools import cache

from optuna.trial import BaseTrial

from masksearch import Shape, budget_of, masks
from masksearch.masks.measure import effective_density

LAYERS = 12  # of the decoder that is searched
REACHES = [7, 15, 31, 63, 127, 255]  # keys before the query's own
SINKS = [0, 1, 4, 16]  # first positions, which all later ones see
LENGTH = 1024  # tokens of a sequence, where budgets are counted without a shape
EVERY = [2, 3, 4, 6]  # of the baselines: one of so many layers is full


def space_of(layers: int, shape: Shape | None = None) -> Callable[[BaseTrial], masks.Mask]:
    """The space of a decoder with that many layers."""

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
        numbers = [trial.suggest_float(f"l{layer}", 0, 1) for layer in range(layers)]
        if budget is not None:
            sinks = max(n for n in SINKS if not n or (n <= sinks and cost(0, n) <= budget))
            paid = sum(cost(each, sinks) <= budget for each in range(len(REACHES)))
            place = place * paid // len(REACHES)
            room = (budget - cost(place, sinks)) / max(1e-9, 1 - cost(place, sinks))
            share = [*sorted(numbers), math.inf][max(0, int(room * len(numbers) + 1e-9))]
        near = local(place, sinks)
        return masks.per_layer([masks.full() if n < share else near for n in numbers])

    space.masksearch_source = f"{layers} {REACHES} {SINKS}{shape or ''}"  # for resuming
    return space


def baselines(layers: int, local: masks.Mask) -> dict[str, masks.Mask]:
    """Hand-drawn patterns: every k-th layer full, and as many at the bottom, middle and top."""
    found = {}
    for every in EVERY:
        count = layers // every
        first = {"first": 0, "middle": (layers - count) // 2, "last": layers - count}
        chosen = {f"every {every} layers": range(every - 1, layers, every)}
        chosen |= {f"{name} {count}": range(at, at + count) for name, at in first.items()}
        for name, full in chosen.items():
            each = [masks.full() if layer in full else local for layer in range(layers)]
            found[name] = masks.per_layer(each)
    return found


space = space_of(LAYERS)
