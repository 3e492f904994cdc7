"""Two trials of it were stored, with costs of attention as objectives."""

import masksearch as ms
from masksearch import masks


def space(trial):
    return masks.window(trial.suggest_int("reach", 0, 3))


def judge():
    return ms.PlantedEvaluator.graded(steps=20, held_out_sequences=32)
