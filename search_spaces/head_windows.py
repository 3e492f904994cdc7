"""Each head its own window, a second one around a far key, and a global token: for an encoder.

A head has a weight (how much it may keep beside the others), a lean (how much of its window looks
back), a far signed distance around which a second window grows (0 = none; -6: six keys back), a
hub or none; a layer has a weight, too. 2.35e13 parameter combinations for 2 layers of 4 heads (set
the constants, or call `space_of`). Holds windows, longformer(i, 1) and star.

A mask keeps the nearest keys that its budget pays: never more, and less by one distance at most.
Pairs are counted at LENGTH tokens; for shorter data call `space_of(6, 12, evaluator.shape)`.

    masksearch search masksearch.spaces:head_windows --corpus TEXT --budget 0.1 --run runs/hw
"""

from bisect import bisect
from collections.abc import Callable
from itertools import accumulate

from optuna.trial import BaseTrial

from masksearch import Shape, budget_of, masks

LAYERS, HEADS, LENGTH = 2, 4, 128  # of the encoder; tokens of a sequence, where no shape says them
DENSITIES = [0.04, 0.08, 0.15, 0.3, 0.5]  # drawn in a search without a budget
LEANS, FARTHEST = 6, 16  # looking back: 1/6 .. 5/6 of a window; far distances, every second one


def space_of(layers: int, heads: int, shape: Shape | None = None):
    """The space of an encoder with that many layers and heads."""
    counted = shape or Shape(LENGTH, layers, heads)
    pairs = sum(count * tokens**2 for tokens, count in counted.histogram)
    steps = range(1 - counted.length, counted.length)

    def share(cells: Callable[[int], int]) -> float:
        return sum(n * max(0, cells(tokens)) for tokens, n in counted.histogram) / pairs

    cost = [share(lambda tokens, at=at: tokens - at) for at in range(steps.stop + 1)]
    of_hub = share(lambda tokens: 2 * tokens - 1)  # each further distance then costs a cell less

    def space(trial: BaseTrial) -> masks.Mask:
        budget = budget_of(trial) or trial.suggest_categorical("density", DENSITIES)
        weights = [trial.suggest_int(f"l{layer}.weight", 0, 2) for layer in range(layers)]
        drawn = []  # of each head: weight, hub, distances from near to far, what so many cost
        for head in range(heads):
            weight = trial.suggest_int(f"h{head}.weight", 0, 4)
            lean = trial.suggest_int(f"h{head}.lean", 1, LEANS - 1) / LEANS
            far = trial.suggest_int(f"h{head}.far", -FARTHEST, FARTHEST, step=2)
            hub = trial.suggest_categorical(f"h{head}.hub", [0, 1])
            ranks = {step: abs(step) / (lean if step < 0 else 1 - lean) for step in steps}
            if far:
                ranks = {step: min(rank, abs(step - far) + 1) for step, rank in ranks.items()}
            order = sorted(steps, key=lambda step, ranks=ranks: (ranks[step], step))
            costs = [[h * of_hub, *(cost[abs(step) + h] for step in order)] for h in (0, 1)]
            drawn.append((weight, hub, order, [list(accumulate(each)) for each in costs]))
        places = [(at, head) for at in range(layers) for head in range(heads)]
        parts = {(at, head): 2.0 ** (weights[at] + drawn[head][0]) for at, head in places}
        left, chosen = len(places) * (budget - cost[0]) + 1e-12, {}
        rest = sum(parts.values())
        for place in sorted(places, key=lambda place: -parts[place]):
            _, hub, order, totals = drawn[place[1]]
            room = min(1.0, cost[0] + left * parts[place] / rest)
            hub = hub if totals[1][1] <= room else 0  # beside the diagonal
            count = bisect(totals[hub], room) - 1
            kept = masks.shifts(sorted(order[:count]))
            chosen[place] = kept | masks.global_tokens(1) if hub else kept
            left -= totals[hub][count] - cost[0]  # what a head leaves is the next one's
            rest -= parts[place]
        each = [masks.per_head([chosen[at, h] for h in range(heads)]) for at in range(layers)]
        return masks.per_layer(each)

    space.masksearch_source = f"{layers} {heads} {LEANS} {FARTHEST} {DENSITIES}{shape or ''}"
    return space


space = space_of(LAYERS, HEADS)
