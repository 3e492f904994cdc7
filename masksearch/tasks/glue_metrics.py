"""The official metrics of GLUE, and what a constant answer earns.

score(task_named("MRPC"), [1, 0, 1], [1, 1, 1])    # {"accuracy": 0.67, "f1": 0.8}
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from masksearch.tasks.glue_table import GlueTask

CONSTANT = 1e-13  # spread over mean below which numbers count as equal, as in scipy


def score(
    task: GlueTask, predictions: Sequence[float], labels: Sequence[float]
) -> dict[str, float]:
    """The task's official metrics, the primary one first.

    Where GLUE names two (accuracy and F1 of MRPC and QQP, Pearson and Spearman of STS-B), the
    first is the primary one; `glue_score` can take the other, or the mean of both.

    Args:
        task: What is scored.
        predictions: Class numbers, or scores of a regression.
        labels: The truth, of the same length.

    Returns:
        Metric -> value: accuracy and f1 (of class 1) in [0, 1]; matthews, pearson and spearman
        in [-1, 1], 0 where either side is constant. F1 without a true positive is 0.

    Raises:
        ValueError: If the lengths differ, there is nothing to score, a number is NaN or
            infinite, or a class number is not one of the task's.
    """
    from scipy.stats import pearsonr, spearmanr
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    if len(predictions) != len(labels) or len(labels) == 0:
        raise ValueError(f"{len(predictions)} predictions for {len(labels)} labels")
    guess = checked(task, predictions, "prediction")
    truth = checked(task, labels, "label")
    values: dict[str, float] = {}
    for metric in task.metrics:
        if metric == "accuracy":
            values[metric] = float(accuracy_score(truth, guess))
        elif metric == "f1":
            values[metric] = float(f1_score(truth, guess, zero_division=0.0))
        elif constant(guess) or constant(truth):
            values[metric] = 0.0
        elif metric == "matthews":
            values[metric] = float(matthews_corrcoef(truth, guess))
        elif metric == "pearson":
            values[metric] = float(pearsonr(guess, truth).statistic)
        else:
            values[metric] = float(spearmanr(guess, truth).statistic)
    return values


def checked(task: GlueTask, numbers: Sequence[float], what: str) -> NDArray[np.float64]:
    """The numbers as an array, if all of them can be scored."""
    array = np.asarray(numbers, dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(array))
    if len(bad):
        raise ValueError(
            f"{task.name}: {what} {bad[0]} of {len(array)} is {array[bad[0]]}; {len(bad)} are "
            "not finite: the model has diverged, lower the learning rate"
        )
    if not task.regression:
        known = np.arange(task.classes)
        bad = np.flatnonzero(~np.isin(array, known))
        if len(bad):
            raise ValueError(
                f"{task.name}: {what} {bad[0]} of {len(array)} is {array[bad[0]]:g}; it must be "
                f"a class number, 0 .. {task.classes - 1}"
            )
    return array


def constant(numbers: NDArray[np.float64]) -> bool:
    """Whether all numbers are equal, but for rounding; a correlation then means nothing."""
    mean = numbers.mean()
    return bool(np.linalg.norm(numbers - mean) <= CONSTANT * abs(mean))


def majority(task: GlueTask, labels: Sequence[float]) -> float:
    """Primary score of always predicting the most frequent label: what knowing nothing earns.

    >>> from masksearch.tasks.glue_table import TASKS
    >>> majority(TASKS["SST-2"], [1, 1, 0, 1])
    0.75
    """
    return majority_scores(task, labels)[task.primary]


def majority_scores(task: GlueTask, labels: Sequence[float]) -> dict[str, float]:
    """Every official metric of always predicting the most frequent label (the smallest among
    equals).
    """
    count = Counter(labels)
    commonest = max(sorted(count), key=count.__getitem__)
    return score(task, [commonest] * len(labels), labels)


def at_majority(values: Mapping[str, float], margin: float = 0.01) -> list[str]:
    """Tasks whose score does not beat the majority score: they tell masks apart by noise.

    Args:
        values: What `GlueEvaluator` reports: `"<task>"` and `"<task>/majority"`.
        margin: How much a score has to be above.

    >>> at_majority({"SST-2": 0.73, "SST-2/majority": 0.51, "RTE": 0.53, "RTE/majority": 0.53})
    ['RTE']
    """
    suffix = "/majority"
    names = [name.removesuffix(suffix) for name in values if name.endswith(suffix)]
    return [name for name in names if values[name] <= values[name + suffix] + margin]
