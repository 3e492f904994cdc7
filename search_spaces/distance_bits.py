"""One bit a distance: any set of distances up to 64, with or without a global token.

5.5e19 masks (3 x 2^64): every set of distances from 1 to 64, one global token or none, the
diagonal dropped or kept (kept without a global token). With SIGNED = True the two directions have
bits of their own (3 x 2^128): what DAM's "toeplitz+global" gates search. Holds longformer(6, 1),
log_sparse (up to 128 positions), star, windows and dilated windows up to 64.

A bit is drawn as a rank of 1 to 10, kept where it is at most `level`: bits drawn on their own
would all give about half of the distances, and a sampler would never see a sparse mask.

    masksearch search masksearch.spaces:distance_bits --trials 100 --run runs/bits
"""

from optuna.trial import BaseTrial

from masksearch import masks

FARTHEST = 64  # positions
SIGNED = False  # whether previous and next keys have bits of their own
RANKS = 10  # about `level` of 10 distances are kept


def space(trial: BaseTrial) -> masks.Mask:
    """The kept distances, and perhaps a global token."""
    level = trial.suggest_int("level", 1, RANKS, log=True)
    signs = (-1, 1) if SIGNED else (1,)
    kept = [
        sign * distance
        for distance in range(1, FARTHEST + 1)
        for sign in signs
        if trial.suggest_int(f"d{sign * distance}", 1, RANKS) <= level
    ]
    hub = trial.suggest_categorical("hub", [True, False])
    diagonal = trial.suggest_categorical("diagonal", [True, False])
    if diagonal or not hub:  # without a hub only the diagonal keeps every row
        kept.append(0)
    parts = [masks.shifts(kept) if SIGNED else masks.offsets(kept)] if kept else []
    if hub:
        parts.append(masks.global_tokens(1))
    return parts[0] if len(parts) == 1 else parts[0] | parts[1]
