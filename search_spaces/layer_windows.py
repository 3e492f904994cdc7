"""Each layer its own window, a second one around a far key, and a global token: for an encoder.

A layer has a weight (its part of the budget), a lean (how much of its window looks back), a far
signed distance around which a second window grows (0 = none; -6: six keys back), a hub or none.
5 x 510^2 = 1,300,500 parameter combinations for 2 layers. Holds windows, longformer(i, 1), star.

A mask keeps the nearest keys that its budget pays: never more, and less by one distance at most.
Pairs are counted at LENGTH tokens; for shorter data call `space_of(6, evaluator.shape)`.

    masksearch search masksearch.spaces:layer_windows --corpus TEXT --budget 0.1 --run runs/lw
"""

from collections.abc import Callable
from itertools import accumulate, takewhile

from optuna.trial import BaseTrial

from masksearch import Shape, budget_of, masks

LAYERS, LENGTH = 2, 128  # of the encoder; tokens of a sequence, where no shape says them
DENSITIES = [0.04, 0.08, 0.15, 0.3, 0.5]  # drawn in a search without a budget
LEANS, FARTHEST = 6, 16  # looking back: 1/6 .. 5/6 of a window; far distances, every second one


def space_of(layers: int, shape: Shape | None = None) -> Callable[[BaseTrial], masks.Mask]:
    """The space of an encoder with that many layers."""
    counted = shape or Shape(LENGTH, layers, 1)
    pairs = sum(count * tokens**2 for tokens, count in counted.histogram)
    steps = range(1 - counted.length, counted.length)

    def share(cells: Callable[[int], int]) -> float:
        return sum(n * max(0, cells(tokens)) for tokens, n in counted.histogram) / pairs

    cost = [share(lambda tokens, at=at: tokens - at) for at in range(steps.stop + 1)]
    of_hub = share(lambda tokens: 2 * tokens - 1)  # each further distance then costs a cell less

    def layer_mask(room: float, lean: float, far: int, hub: int) -> tuple[float, masks.Mask]:
        """What is spent of a share of the layer's pairs, and on which distances."""
        hub = hub if of_hub + cost[1] <= room else 0
        ranks = {step: abs(step) / (lean if step < 0 else 1 - lean) for step in steps}
        if far:
            ranks = {step: min(rank, abs(step - far) + 1) for step, rank in ranks.items()}
        order = sorted(steps, key=lambda step: (ranks[step], step))
        spent = accumulate((cost[abs(step) + hub] for step in order), initial=of_hub * hub)
        paid = list(takewhile(lambda total: total <= room, spent))
        kept = masks.shifts(sorted(order[: len(paid) - 1]))
        return paid[-1], kept | masks.global_tokens(1) if hub else kept

    def space(trial: BaseTrial) -> masks.Mask:
        budget = budget_of(trial) or trial.suggest_categorical("density", DENSITIES)
        drawn = []
        for layer in range(layers):
            weight = 2 ** trial.suggest_int(f"l{layer}.weight", 0, 2)
            lean = trial.suggest_int(f"l{layer}.lean", 1, LEANS - 1) / LEANS
            far = trial.suggest_int(f"l{layer}.far", -FARTHEST, FARTHEST, step=2)
            drawn.append((weight, lean, far, trial.suggest_categorical(f"l{layer}.hub", [0, 1])))
        left, chosen = layers * (budget - cost[0]) + 1e-12, {}
        for layer in sorted(range(layers), key=lambda layer: -drawn[layer][0]):
            weights = sum(drawn[other][0] for other in range(layers) if other not in chosen)
            room = min(1.0, cost[0] + left * drawn[layer][0] / weights)
            spent, chosen[layer] = layer_mask(room, *drawn[layer][1:])
            left -= spent - cost[0]  # what a layer leaves is the next one's
        return masks.per_layer([chosen[layer] for layer in range(layers)])

    space.masksearch_source = f"{layers} {LEANS} {FARTHEST} {DENSITIES}{shape or ''}"  # to resume
    return space


space = space_of(LAYERS)
