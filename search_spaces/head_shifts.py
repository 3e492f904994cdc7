"""Signed offsets per head: each head looks at one or two neighbours, in one direction each.

5,038,848 masks for four heads (107,495,424 parameter combinations): each head takes one or two
signed offsets from -4 to 4 (without 0), all layers alike; one global token or none; the diagonal
kept or dropped. Rows at the ends of the sequence, whose neighbours lie outside, keep the global
token or themselves. Holds star, and one neighbour a head. Layers apart: head_layer_shifts.py.

Heads fixed to one offset: Raganato et al. 2020, "Fixed Encoder Self-Attention Patterns".

    masksearch search masksearch.spaces:head_shifts --trials 20 --size tiny --run runs/shifts
"""

from optuna.trial import BaseTrial

from masksearch import masks

HEADS = 4  # of the encoder that is searched
OFFSETS = [-4, -3, -2, -1, 1, 2, 3, 4]  # key minus query


def space(trial: BaseTrial) -> masks.Mask:
    """One mask a head, the same in every layer."""
    hub = trial.suggest_categorical("hub", [True, False])
    diagonal = trial.suggest_categorical("diagonal", [True, False])
    heads = []
    for head in range(HEADS):
        steps = {trial.suggest_categorical(f"h{head}.first", OFFSETS)}
        if trial.suggest_categorical(f"h{head}.two", [False, True]):
            steps.add(trial.suggest_categorical(f"h{head}.second", OFFSETS))
        mask = masks.shifts(steps)
        if hub:
            mask = mask | masks.global_tokens(1)
        if diagonal or not hub:  # without a hub only the diagonal keeps the end rows
            mask = mask | masks.window(0)
        heads.append(mask)
    return masks.per_head(heads)
