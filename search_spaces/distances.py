"""One or two distances, with or without a global token: small enough to be searched by hand.

600 masks (1,200 parameter combinations). The planted corpus of
`PlantedProcess()` has its true edges at one distance and at a global token: random
search has to be lucky, a sampler has to learn, DAM sees the gradient. Holds star, and every
distance with a global token. Lengths of 26 or more tell all its masks apart.

    masksearch search masksearch.spaces:distances --trials 20 --run runs/distances
"""

from optuna.trial import BaseTrial

from masksearch import masks

FARTHEST = 24  # positions


def space(trial: BaseTrial) -> masks.Mask:
    """The diagonal, one or two distances on both sides, and perhaps a global token."""
    distances = {0, trial.suggest_int("first", 1, FARTHEST)}
    if trial.suggest_categorical("two", [False, True]):
        distances.add(trial.suggest_int("second", 1, FARTHEST))
    mask = masks.offsets(distances)
    if trial.suggest_categorical("hub", [False, True]):
        mask = mask | masks.global_tokens(1)
    return mask
