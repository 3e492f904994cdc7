"""Signed offsets per head and layer: every head of every layer looks at one or two neighbours.

8.46e12 masks for two layers of four heads (2.89e15 parameter combinations): head_shifts.py with
the layers apart. Each head takes one or two signed offsets from -4 to 4 (without 0); one global
token or none; the diagonal kept or dropped. Holds star and everything that head_shifts.py holds.
Rows at the ends, whose neighbours lie outside, keep the global token or themselves.

    masksearch search masksearch.spaces:head_layer_shifts --size tiny --trials 40 --run runs/h
"""

from optuna.trial import BaseTrial

from masksearch import masks

LAYERS, HEADS = 2, 4  # of the encoder that is searched
OFFSETS = [-4, -3, -2, -1, 1, 2, 3, 4]  # key minus query


def space(trial: BaseTrial) -> masks.Mask:
    """One mask for each head of each layer."""
    hub = trial.suggest_categorical("hub", [True, False])
    diagonal = trial.suggest_categorical("diagonal", [True, False])
    layers = []
    for layer in range(LAYERS):
        heads = []
        for head in range(HEADS):
            name = f"l{layer}.h{head}"
            steps = {trial.suggest_categorical(f"{name}.first", OFFSETS)}
            if trial.suggest_categorical(f"{name}.two", [False, True]):
                steps.add(trial.suggest_categorical(f"{name}.second", OFFSETS))
            heads.append(masks.shifts(steps))
        layers.append(masks.per_head(heads))
    mask = masks.per_layer(layers)
    if hub:
        mask = mask | masks.global_tokens(1)
    if diagonal or not hub:  # without a hub only the diagonal keeps the end rows
        mask = mask | masks.window(0)
    return mask
