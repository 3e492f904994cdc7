"""Windows with global tokens: the shape of Longformer, with and without the diagonal.

192 masks: reach 1 to 32 on each side, 0 to 2 global tokens, the diagonal kept or dropped.
Holds longformer(6, 1), star, and every window up to 32. Every row keeps a neighbour, so no mask
has empty rows (lengths of 2 or more). For encoders: a decoder's first
token has its diagonal alone.

    masksearch search masksearch.spaces:band_global --trials 20 --run runs/band
"""

from optuna.trial import BaseTrial

from masksearch import masks


def space(trial: BaseTrial) -> masks.Mask:
    """A window of `reach` positions on each side and `hubs` global tokens in front."""
    mask = masks.window(trial.suggest_int("reach", 1, 32, log=True))
    hubs = trial.suggest_int("hubs", 0, 2)
    if hubs:
        mask = mask | masks.global_tokens(hubs)
    if not trial.suggest_categorical("diagonal", [True, False]):
        mask = masks.without_diagonal(mask)
    return mask
