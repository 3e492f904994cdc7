"""The official metrics of GLUE, what a constant answer earns, and which rows a score comes from.

score(task_named("MRPC"), [1, 0, 1], [1, 1, 1])    # {"accuracy": 0.67, "f1": 0.8}
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from masksearch.analysis.row_scores import pseudo_values
from masksearch.errors import check_name
from masksearch.tasks.glue.tasks import TASKS, GlueTask

Numbers = NDArray[np.float64]
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
    if len(predictions) != len(labels) or len(labels) == 0:
        raise ValueError(f"{len(predictions)} predictions for {len(labels)} labels")
    guess = check_numbers(task, predictions, "prediction")
    truth = check_numbers(task, labels, "label")
    return {metric: compute(metric, guess, truth) for metric in task.metrics}


def compute(metric: str, guess: Numbers, truth: Numbers) -> float:
    """One metric of checked numbers; see `score`."""
    from scipy.stats import pearsonr, spearmanr
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    if metric == "accuracy":
        return float(accuracy_score(truth, guess))
    if metric == "f1":
        return float(f1_score(truth, guess, zero_division=0.0))
    if is_constant(guess) or is_constant(truth):
        return 0.0
    if metric == "matthews":
        return float(matthews_corrcoef(truth, guess))
    if metric == "pearson":
        return float(pearsonr(guess, truth).statistic)
    return float(spearmanr(guess, truth).statistic)


def check_numbers(task: GlueTask, numbers: Sequence[float], what: str) -> Numbers:
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


def is_constant(numbers: Numbers) -> bool:
    """Whether all numbers are equal, but for rounding; a correlation then means nothing."""
    mean = numbers.mean()
    return bool(np.linalg.norm(numbers - mean) <= CONSTANT * abs(mean))


def majority(task: GlueTask, labels: Sequence[float]) -> float:
    """Primary score of the best constant answer: what knowing nothing earns.

    >>> from masksearch.tasks.glue.tasks import TASKS
    >>> majority(TASKS["SST-2"], [1, 1, 0, 1])
    0.75
    """
    return constant_scores(task, labels)[task.primary]


def constant_scores(task: GlueTask, labels: Sequence[float]) -> dict[str, float]:
    """Every official metric of the constant answer that earns most of it: of F1, always class 1.

    >>> from masksearch.tasks.glue.tasks import TASKS
    >>> constant_scores(TASKS["MRPC"], [1, 0, 0, 0])
    {'accuracy': 0.75, 'f1': 0.4}
    """
    ones, count = sum(label == 1 for label in labels), len(labels)
    known = {"accuracy": max(Counter(labels).values()) / count, "f1": 2 * ones / (count + ones)}
    return {metric: known.get(metric, 0.0) for metric in task.metrics}


# SparseBERT's columns, in its order; WNLI is not among them.
COLUMNS = ("MNLI", "MNLI-mm", "QQP", "QNLI", "SST-2", "CoLA", "STS-B", "MRPC", "RTE")
LEFT_OUT = "RTE"  # 277 development rows: its score swings most
Convention = Literal["primary", "bert", "leaderboard"]


@dataclass(frozen=True)
class GlueScore:
    """A GLUE average, and what it is an average of; in the unit of the values.

    Args:
        values: Value of each column that is in, in the order of `COLUMNS`.
        convention: Which metric stands for a task with two official ones.
    """

    values: Mapping[str, float]
    convention: Convention = "primary"

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are in."""
        return tuple(self.values)

    @property
    def missing(self) -> tuple[str, ...]:
        """The columns that are not."""
        return tuple(name for name in COLUMNS if name not in self.values)

    @property
    def nine(self) -> float | None:
        """Mean of all nine columns; None where one is missing."""
        return None if self.missing else fmean(self.values.values())

    @property
    def without_rte(self) -> float | None:
        """Mean of the eight columns other than RTE; None where one of those is missing."""
        if set(self.missing) - {LEFT_OUT}:
            return None
        return fmean(value for name, value in self.values.items() if name != LEFT_OUT)

    @property
    def partial(self) -> float:
        """Mean of the columns that are in. It compares only with a mean of the same columns."""
        return fmean(self.values.values())

    def __str__(self) -> str:
        if self.nine is not None:
            return f"GLUE (9 columns): {self.nine:.4g}, without RTE: {self.without_rte:.4g}"
        return (
            f"mean of {len(self.values)} of 9 GLUE columns ({', '.join(self.values)}): "
            f"{self.partial:.4g}; missing: {', '.join(self.missing)}"
        )


def glue_score(values: Mapping[str, float], convention: Convention = "primary") -> GlueScore:
    """The average that SparseBERT's table prints: nine columns, MNLI-m and MNLI-mm apart.

    Which metric the table uses for MRPC, QQP and STS-B is not said beside it; its figures (QQP
    at 87, MRPC at 88) are those of BERT's convention. So a comparison with the table takes
    `"bert"`; a comparison of masks can take any, as long as it is one.

    Args:
        values: What an evaluator reports, or anything like it: a column's primary metric under
            its name (`"MNLI"` is the matched set), and for the other conventions each metric
            under `"<column>/<metric>"` (see `reported`). Other names are ignored, WNLI and the
            planted tasks among them. Fractions or percent, not both.
        convention: `"primary"`: the value under the column's own name: accuracy for MRPC and
            QQP, Pearson for STS-B, Matthews for CoLA. `"bert"`: F1 for MRPC and QQP, Spearman
            for STS-B, the primary one for the others. `"leaderboard"`: the mean of both metrics
            for those three, as the GLUE leaderboard has it.

    Returns:
        The average with the columns that are in; see `GlueScore`.

    Raises:
        ValueError: If no column is there, a value is not finite, or the convention needs a
            metric that is missing.

    Reference: SparseBERT, arXiv 2102.12871, table of GLUE results; BERT, arXiv 1810.04805,
        Table 1; GLUE, arXiv 1804.07461, Section 4.

    >>> found = glue_score({"CoLA": 0.5, "SST-2": 0.9, "WNLI": 0.6})
    >>> found.nine, found.partial, found.columns
    (None, 0.7, ('SST-2', 'CoLA'))
    """
    check_name("GLUE convention", convention, get_args(Convention))
    found = {
        column: column_value(values, column, find_task(column), convention)
        for column in COLUMNS
        if column in values
    }
    if not found:
        raise ValueError(
            f"no GLUE column in {', '.join(values) or 'an empty mapping'}; the average is one of "
            f"{', '.join(COLUMNS)}"
        )
    for column, value in found.items():
        if not math.isfinite(value):
            raise ValueError(f"{column} is {value}; leave it out, and the mean says so")
    return GlueScore(found, convention)


def reported(column: str, scores: Mapping[str, float]) -> dict[str, float]:
    """A column's scores under the names that `glue_score` reads.

    Args:
        column: `"MRPC"`, say.
        scores: What `score` returns, the primary metric first.

    >>> reported("MRPC", {"accuracy": 0.8, "f1": 0.9})
    {'MRPC': 0.8, 'MRPC/accuracy': 0.8, 'MRPC/f1': 0.9}
    """
    primary = next(iter(scores.values()))
    return {column: primary, **{f"{column}/{metric}": scores[metric] for metric in scores}}


def column_value(
    values: Mapping[str, float], column: str, task: GlueTask, convention: Convention
) -> float:
    """A column's value under a convention; `task` is what it belongs to."""
    wanted = column_metrics(task, convention)
    if wanted == (task.primary,):
        return values[column]
    names = [f"{column}/{metric}" for metric in wanted]
    lacking = [name for name in names if name not in values]
    if lacking:
        raise ValueError(
            f"the {convention!r} average needs {', '.join(lacking)}; report them (`reported`) or "
            "take the convention 'primary'"
        )
    return fmean(values[name] for name in names)


def column_metrics(task: GlueTask, convention: Convention) -> tuple[str, ...]:
    """The metrics whose mean stands for a task under a convention."""
    if convention == "primary" or task.bert_metric is None:
        return (task.primary,)
    return (task.bert_metric,) if convention == "bert" else task.metrics


def find_task(column: str) -> GlueTask:
    """The task that a column belongs to."""
    return next(task for task in TASKS.values() if column in task.dev_files)


CHUNK = 1 << 21  # numbers of a table of ranks
SPREAD = 1e-12  # share of a sum of squares that is rounding


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
        without = class_metric_without(metric, guess, truth)
    return pseudo_values(value, without)


def class_metric_without(metric: str, guess: Numbers, truth: Numbers) -> Numbers:
    """A metric of classes without each row, `[n]`: rows with the same two classes are alike."""
    without = np.zeros(len(truth))
    for pair in np.unique(np.stack([guess, truth]), axis=1).T:
        alike = (guess == pair[0]) & (truth == pair[1])
        rest = np.arange(len(truth)) != alike.argmax()
        if rest.any():
            without[alike] = compute(metric, guess[rest], truth[rest])
    return without


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
