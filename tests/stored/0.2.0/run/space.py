"""Three trials of it were stored."""

import masksearch as ms
from masksearch import masks


def space(trial):
    near = masks.window(trial.suggest_int("reach", 0, 3))
    return near | masks.stride(trial.suggest_int("period", 3, 10))


def judge():
    return ms.PlantedEvaluator.graded(steps=40, held_out_sequences=64)
