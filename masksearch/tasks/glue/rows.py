"""GLUE's metrics row by row: which rows a score comes from.

found = row_scores(task_named("MRPC"), "f1", predictions, labels, value)
found.mean() == value
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from masksearch.analysis.row_scores import pseudo_values
from masksearch.tasks.glue.tasks import GlueTask

CHUNK = 1 << 21  # numbers of a table of ranks
SPREAD = 1e-12  # share of a sum of squares that is rounding
Numbers = NDArray[np.float64]


def row_scores(
    task: GlueTask,
    metric: str,
    predictions: Sequence[float],
    labels: Sequence[float],
    value: float,
) -> Numbers:
    """What each row adds to a metric; the mean over rows is the metric.

    Of an accuracy 1 or 0; of the others, which are no means over rows, the pseudo-values of the
    exact jackknife: the metric is taken anew without each row.

    Args:
        task: What is scored.
        metric: One of its metrics.
        predictions: Class numbers, or scores of a regression.
        labels: The truth, of the same length.
        value: The metric of all rows, as `score` gives it.

    Returns:
        float `[rows]`.
    """
    guess, truth = np.asarray(predictions, np.float64), np.asarray(labels, np.float64)
    if metric == "accuracy":
        right: Numbers = (guess == truth).astype(np.float64)
        return right
    if metric == "pearson":
        without = pearson_without(guess, truth)
    elif metric == "spearman":
        without = spearman_without(guess, truth)
    else:
        without = class_metric_without(task, metric, guess.astype(int), truth.astype(int))
    return pseudo_values(value, without)


def class_metric_without(
    task: GlueTask, metric: str, guess: NDArray[np.int_], truth: NDArray[np.int_]
) -> Numbers:
    """F1 or Matthews without each row: by the cell of the confusion table it is counted in."""
    table = np.zeros((task.classes, task.classes))
    np.add.at(table, (truth, guess), 1)
    compute = f1_of if metric == "f1" else matthews_of
    found = np.zeros_like(table)
    for cell in zip(*np.nonzero(table), strict=True):
        table[cell] -= 1
        found[cell] = compute(table)
        table[cell] += 1
    without: Numbers = found[truth, guess]
    return without


def f1_of(table: Numbers) -> float:
    """F1 of class 1: `[truth, guess]`; 0 without a true positive."""
    hits = table[1, 1]
    return float(2 * hits / (table[1].sum() + table[:, 1].sum())) if hits else 0.0


def matthews_of(table: Numbers) -> float:
    """Matthews' correlation of several classes: `[truth, guess]`; 0 where one side is constant.

    Reference: Gorodkin, Computational Biology and Chemistry 28, 367 (2004).
    """
    true, said, rows = table.sum(1), table.sum(0), table.sum()
    spread = (rows**2 - true @ true) * (rows**2 - said @ said)
    return float((rows * np.trace(table) - true @ said) / np.sqrt(spread)) if spread > 0 else 0.0


def pearson_without(one: Numbers, two: Numbers) -> Numbers:
    """Pearson's correlation without each row: `[n]`."""
    x, y = one - one.mean(), two - two.mean()
    back = 1 + 1 / max(1, len(x) - 1)  # without row i the mean moves, too
    both, own_x, own_y = (a @ b - back * a * b for a, b in ((x, y), (x, x), (y, y)))
    return correlation(both, own_x, own_y, SPREAD * np.array([x @ x, y @ y]))


def correlation(both: Numbers, one: Numbers, two: Numbers, least: Numbers) -> Numbers:
    """Sums of products over the root of both sums of squares; 0 where one is below its `least`."""
    spread = (one > least[0]) & (two > least[1])
    root = np.sqrt(np.where(spread, one * two, 1.0))
    found: Numbers = np.where(spread, both / root, 0.0)
    return found


def spearman_without(one: Numbers, two: Numbers) -> Numbers:
    """Spearman's correlation without each row, equal numbers having their mean rank: `[n]`.

    A rank falls by 1 where a smaller number goes, and by 1/2 where an equal one does; the mean
    of what is left is n/2.
    """
    from scipy.stats import rankdata

    n, found = len(one), []
    sides = [(part, rankdata(part)) for part in (one, two)]
    step = max(1, CHUNK // n)
    for start in range(0, n, step):
        gone = np.arange(start, min(start + step, n))
        left = []
        for part, rank in sides:
            without = part[gone, None]
            new = rank - (part > without) - 0.5 * (part == without) - n / 2
            new[np.arange(len(gone)), gone] = 0.0
            left.append(new)
        x, y = left
        both, own_x, own_y = ((a * b).sum(-1) for a, b in ((x, y), (x, x), (y, y)))
        found.append(correlation(both, own_x, own_y, np.full(2, 0.25)))  # of halves of ranks
    return np.concatenate(found)
