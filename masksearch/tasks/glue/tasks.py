"""The GLUE tasks as rows of a table: where texts and labels stand, and how each is scored.

task = task_named("MRPC")
task.texts, task.classes, task.metrics    # two columns, 2, ("accuracy", "f1"), the primary first
score(task, [1, 0, 1], [1, 1, 1])         # {"accuracy": 0.67, "f1": 0.8}

A task of your own is one more row, in a file of your own:

tone = GlueTask("tone", texts=("review",), label="tone", labels=("calm", "angry"))
load_glue("data", tone)                   # reads data/tone/train.tsv and data/tone/dev.tsv
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from statistics import fmean
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from masksearch.analysis.row_scores import pseudo_values
from masksearch.errors import DataError, check_name

Numbers = NDArray[np.float64]
Column = str | int  # a name of the header, or a number where there is none
CLASS_METRICS = ("accuracy", "f1", "matthews", "agreement")
SCORE_METRICS = ("pearson", "spearman")
ANSWER = "dense answer"  # the column of a model's own answers, where texts have no labels
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d{1,2})?", re.ASCII | re.IGNORECASE)
CONSTANT = 1e-13  # spread over mean below which numbers count as equal, as in scipy
CHUNK = 1 << 21  # numbers of a table of ranks
SPREAD = 1e-12  # share of a sum of squares that is rounding


@dataclass(frozen=True)
class HubForm:
    """How a task is called and laid out on the Hugging Face Hub (`nyu-mll/glue`).

    Args:
        config: Name of the configuration, which is also its folder.
        texts: Columns of the one or two texts.
        names: The Hub's names of the classes, by class number; none = they are not checked.
        dev: Development sets: our name -> the split's name; none given = one in `validation`.
        label: Column of the label: class numbers, or the scores of a regression.
    """

    config: str
    texts: tuple[str, ...]
    names: tuple[str, ...] = ()
    dev: Mapping[str, str] = field(default_factory=dict, hash=False)
    label: str = "label"


@dataclass(frozen=True)
class GlueTask:
    """Where a task's texts and labels stand in its files, and how it is scored.

    `load_glue(folder, task)` reads it, `GlueEvaluator(.., tasks=(task, "SST-2"))` fine-tunes on
    it. The files lie in `folder/<name>/`: `train.tsv` and the development sets, with tabs between
    the fields and the columns' names in the first line.

    Args:
        name: Name of the task, of its folder and of its score.
        texts: Columns of the one or two texts.
        label: Column of the label.
        labels: The labels as the files spell them, by class number; none = a regression.
        metrics: Metrics to report; the first one is the primary, which a search goes by. Of
            classes `accuracy`, `matthews`, `agreement` (accuracy, where the labels are a model's
            answers) and, with two of them, `f1` (of class 1); of a regression `pearson` and
            `spearman`.
        dev: Development sets: name -> file names, the first that exists is read. The first set
            carries the task's name and is required, the others are optional. None given =
            `dev.tsv`.
        fields: Number of fields of a line in files without a header, whose columns are then
            numbers from 0; None = there is a header.
        score_range: Range of a regression's scores, both ends included.
        broken_lines: Largest number of lines with too few fields that are left out of a file, with
            a warning; more are an error.
        bert_metric: The metric of BERT's table of results, where it is not the primary one.
        hub: The same task on the Hub; None = it is not there.
        seed_number: Number that the fine-tuning's seeds are derived from; None = a hash of the
            name. The tasks of this package have fixed ones, so that no row changes another's.
        standardised: Whether a regression learns its scores with the mean 0 and the deviation 1
            of the training rows, as those of `Columns` are; False = as they are written.

    Raises:
        ValueError: If a value is out of its range; names the task.

    >>> GlueTask("tone", texts=("review",), label="tone", labels=("calm", "angry")).classes
    2
    """

    name: str
    texts: tuple[Column, ...]
    label: Column
    labels: tuple[str, ...] = ("0", "1")
    metrics: tuple[str, ...] = ("accuracy",)
    dev: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    fields: int | None = None
    score_range: tuple[float, float] = (0.0, 5.0)
    broken_lines: int = 0
    bert_metric: str | None = None
    hub: HubForm | None = None
    seed_number: int | None = None
    standardised: bool = field(default=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("texts", "labels", "metrics"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        if not self.name or set(self.name) & set("/\\"):
            raise ValueError(f"a task's name is also its folder's, got {self.name!r}")
        if len(self.texts) not in (1, 2):
            raise ValueError(f"{self.name}: texts names one or two columns, got {self.texts}")
        if len(self.labels) == 1 or len(set(self.labels)) < len(self.labels):
            raise ValueError(
                f"{self.name}: labels are two or more, each once, or none for a regression; got "
                f"{self.labels}"
            )
        allowed = SCORE_METRICS if self.regression else CLASS_METRICS
        unknown = [name for name in self.metrics if name not in allowed]
        if unknown or not self.metrics or ("f1" in self.metrics and self.classes != 2):
            raise ValueError(
                f"{self.name}: metrics are one or more of {', '.join(allowed)} (f1 of two classes "
                f"alone), got {self.metrics}"
            )
        if next(iter(self.dev_files)) != self.name:
            raise ValueError(
                f"{self.name}: the first development set carries the task's name, got "
                f"{', '.join(self.dev_files)}"
            )
        named = {isinstance(column, str) for column in (*self.texts, self.label)}
        if named != {self.fields is None}:
            raise ValueError(
                f"{self.name}: columns are names, or numbers where fields= says how many "
                f"a line holds; got {(*self.texts, self.label)} with fields={self.fields}"
            )

    @property
    def dev_files(self) -> Mapping[str, tuple[str, ...]]:
        """Development sets, by default one in dev.tsv."""
        return self.dev or {self.name: ("dev.tsv",)}

    @property
    def hub_splits(self) -> Mapping[str, str]:
        """The same by the names of the Hub's splits; none where the task is not there."""
        return {} if self.hub is None else self.hub.dev or {self.name: "validation"}

    @property
    def regression(self) -> bool:
        """Whether the label is a score and not a class."""
        return not self.labels

    @property
    def classes(self) -> int:
        """Number of classes; 0 = a regression."""
        return len(self.labels)

    @property
    def primary(self) -> str:
        """The metric that a search goes by: the first of the official ones."""
        return self.metrics[0]

    def class_number(self, label: Any, where: str) -> float:
        """Class number of a label, or the score of a regression.

        Args:
            label: As it is spelled in a file, or a number of the Hub.
            where: Where it stands, for the error.

        Raises:
            DataError: If it is hidden, unknown, no number or out of range.
        """
        if self.labels:
            classes = self.labels if isinstance(label, str) else range(self.classes)
            if label in classes:
                return classes.index(label)
            values = [class_value(str(each)) for each in classes]
            if (value := class_value(str(label))) in values:
                return values.index(value)
            if value == -1:
                raise self.hidden_label(where)
            raise DataError(
                f"{where}: unknown label {label!r}; {self.name} has {', '.join(map(str, classes))}"
            )
        try:
            score = float(label)
        except (TypeError, ValueError):
            raise DataError(f"{where}: score {label!r} is not a number") from None
        low, high = self.score_range
        if not low <= score <= high:
            if score == -1:
                raise self.hidden_label(where)
            raise DataError(
                f"{where}: score {score:g} is outside {low:g} .. {high:g}; mend or remove the row"
            )
        return score

    def hidden_label(self, where: str) -> DataError:
        """An error for a row whose label is not told."""
        return DataError(
            f"{where}: the label is hidden (-1); {self.name} can only be trained and scored on "
            "labelled rows: use the training or development set, not the test set"
        )


def class_value(label: str) -> Decimal | str:
    """A label without its spelling: a number that is finite, else its text.

    >>> class_value("01") == class_value("1.0"), class_value(" nan ")
    (True, 'nan')
    """
    text = label.strip()
    return Decimal(text) if NUMBER.fullmatch(text) else text


PAIR = ("sentence1", "sentence2")
QUESTIONS = ("question1", "question2")
NLI = ("entailment", "neutral", "contradiction")
TWO_WAY = ("entailment", "not_entailment")

OFFICIAL = (
    GlueTask(
        "CoLA", (3,), 1, metrics=("matthews", "accuracy"), fields=4, seed_number=0,
        hub=HubForm("cola", ("sentence",), ("unacceptable", "acceptable")),
    ),
    GlueTask(
        "SST-2", ("sentence",), "label", seed_number=1,
        hub=HubForm("sst2", ("sentence",), ("negative", "positive")),
    ),
    GlueTask(
        "MRPC", ("#1 String", "#2 String"), "Quality", metrics=("accuracy", "f1"),
        bert_metric="f1", seed_number=2,
        hub=HubForm("mrpc", PAIR, ("not_equivalent", "equivalent")),
    ),
    GlueTask(
        "STS-B", PAIR, "score", labels=(), metrics=("pearson", "spearman"),
        bert_metric="spearman", seed_number=3, hub=HubForm("stsb", PAIR),
    ),
    GlueTask(  # the official files hold questions with a line break in them
        "QQP", QUESTIONS, "is_duplicate", metrics=("accuracy", "f1"), bert_metric="f1",
        dev={"QQP": ("dev.tsv", "heldout.tsv")}, broken_lines=16, seed_number=4,
        hub=HubForm("qqp", QUESTIONS, ("not_duplicate", "duplicate")),
    ),
    GlueTask(
        "MNLI", PAIR, "gold_label", labels=NLI, seed_number=5,
        dev={
            "MNLI": ("dev_matched.tsv",),
            "MNLI-mm": ("dev_mismatched.tsv", "dev_mismatched_sample.tsv"),
        },
        hub=HubForm(
            "mnli", ("premise", "hypothesis"), NLI,
            {"MNLI": "validation_matched", "MNLI-mm": "validation_mismatched"},
        ),
    ),
    GlueTask(
        "QNLI", ("question", "sentence"), "label", labels=TWO_WAY, seed_number=6,
        hub=HubForm("qnli", ("question", "sentence"), TWO_WAY),
    ),
    GlueTask(
        "RTE", PAIR, "label", labels=TWO_WAY, seed_number=7, hub=HubForm("rte", PAIR, TWO_WAY)
    ),
    GlueTask(
        "WNLI", PAIR, "label", seed_number=8,
        hub=HubForm("wnli", PAIR, ("not_entailment", "entailment")),
    ),
)  # fmt: skip
TASKS = {task.name: task for task in OFFICIAL}


def task_named(task: str | GlueTask) -> GlueTask:
    """The official task of that name; a task of one's own is itself.

    Raises:
        UnknownNameError: If there is none; names the nearest.
    """
    if isinstance(task, GlueTask):
        return task
    check_name("GLUE task", task, [*TASKS, 'Columns(("text",), "label") of a table of yours'])
    return TASKS[task]


def task_number(task: str | GlueTask) -> int:
    """The number that a task's fine-tuning seeds are derived from, the same on every machine.

    >>> task_number("CoLA"), task_number("WNLI")
    (0, 8)
    """
    row = task_named(task)
    if row.seed_number is not None:
        return row.seed_number
    return int.from_bytes(hashlib.sha256(row.name.encode()).digest()[:7])


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
        ValueError: If a prediction is NaN or infinite.
    """
    guess, truth = np.asarray(predictions, np.float64), np.asarray(labels, np.float64)
    bad = np.flatnonzero(~np.isfinite(guess))
    if len(bad):
        raise ValueError(
            f"{task.name}: prediction {bad[0]} of {len(guess)} is {guess[bad[0]]}; {len(bad)} are "
            "not finite: the model has diverged, lower the learning rate"
        )
    return {metric: compute(metric, guess, truth) for metric in task.metrics}


def compute(metric: str, guess: Numbers, truth: Numbers) -> float:
    """One metric; see `score`."""
    from scipy.stats import pearsonr, spearmanr
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    if metric in ("accuracy", "agreement"):
        return float(accuracy_score(truth, guess))
    if metric == "f1":
        return float(f1_score(truth, guess, zero_division=0.0))
    if _is_constant(guess) or _is_constant(truth):
        return 0.0
    if metric == "matthews":
        return float(matthews_corrcoef(truth, guess))
    if metric == "pearson":
        return float(pearsonr(guess, truth).statistic)
    return float(spearmanr(guess, truth).statistic)


def _is_constant(numbers: Numbers) -> bool:
    """Whether all numbers are equal, but for rounding; a correlation then means nothing."""
    mean = numbers.mean()
    return bool(np.linalg.norm(numbers - mean) <= CONSTANT * abs(mean))


def majority(task: GlueTask, labels: Sequence[float]) -> float:
    """Primary score of the best constant answer: what knowing nothing earns.

    >>> majority(TASKS["SST-2"], [1, 1, 0, 1])
    0.75
    """
    return constant_scores(task, labels)[task.primary]


def constant_scores(task: GlueTask, labels: Sequence[float]) -> dict[str, float]:
    """Every official metric of the constant answer that earns most of it: of F1, always class 1.

    >>> constant_scores(TASKS["MRPC"], [1, 0, 0, 0])
    {'accuracy': 0.75, 'f1': 0.4}
    """
    ones, count = sum(label == 1 for label in labels), len(labels)
    right = max(Counter(labels).values()) / count
    scores = {"accuracy": right, "agreement": right, "f1": 2 * ones / (count + ones)}
    return {metric: scores.get(metric, 0.0) for metric in task.metrics}


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
    """Averages GLUE's metrics as SparseBERT's table does: nine columns, MNLI-m and MNLI-mm apart.

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
    >>> found.nine, found.partial, tuple(found.values)
    (None, 0.7, ('SST-2', 'CoLA'))
    """
    check_name("GLUE convention", convention, get_args(Convention))
    columns = {
        column: column_value(values, column, find_task(column), convention)
        for column in COLUMNS
        if column in values
    }
    if not columns:
        raise ValueError(
            f"no GLUE column in {', '.join(values) or 'an empty mapping'}; the average is one of "
            f"{', '.join(COLUMNS)}"
        )
    for column, value in columns.items():
        if not math.isfinite(value):
            raise ValueError(f"{column} is {value}; leave it out, and the mean says so")
    return GlueScore(columns, convention)


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
    if (metrics := column_metrics(task, convention)) == (task.primary,):
        return values[column]
    names = [f"{column}/{metric}" for metric in metrics]
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


def row_scores(
    task: GlueTask,
    metric: str,
    predictions: Sequence[float],
    labels: Sequence[float],
    value: float,
) -> Numbers:
    """Each row's part of a metric; the mean over rows is the metric.

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
    if metric in ("accuracy", "agreement"):
        right: Numbers = (guess == truth).astype(np.float64)
        return right
    if metric == "pearson":
        without = _pearson_without(guess, truth)
    elif metric == "spearman":
        without = _spearman_without(guess, truth)
    else:
        without = _class_metric_without(metric, guess, truth)
    return pseudo_values(value, without)


def _class_metric_without(metric: str, guess: Numbers, truth: Numbers) -> Numbers:
    """A metric of classes without each row, `[n]`: rows with the same two classes are alike."""
    without = np.zeros(len(truth))
    for pair in np.unique(np.stack([guess, truth]), axis=1).T:
        alike = (guess == pair[0]) & (truth == pair[1])
        rest = np.arange(len(truth)) != alike.argmax()
        if rest.any():
            without[alike] = compute(metric, guess[rest], truth[rest])
    return without


def _pearson_without(one: Numbers, two: Numbers) -> Numbers:
    """Pearson's correlation without each row: `[n]`."""
    x, y = one - one.mean(), two - two.mean()
    back = 1 + 1 / max(1, len(x) - 1)  # without row i the mean moves, too
    both, own_x, own_y = (a @ b - back * a * b for a, b in ((x, y), (x, x), (y, y)))
    return correlation(both, own_x, own_y, SPREAD * np.array([x @ x, y @ y]))


def correlation(both: Numbers, one: Numbers, two: Numbers, least: Numbers) -> Numbers:
    """Sums of products over the root of both sums of squares; 0 where one is below its `least`."""
    spread = (one > least[0]) & (two > least[1])
    root = np.sqrt(np.where(spread, one * two, 1.0))
    result: Numbers = np.where(spread, both / root, 0.0)
    return result


def _spearman_without(one: Numbers, two: Numbers) -> Numbers:
    """Spearman's correlation without each row, equal numbers having their mean rank: `[n]`.

    A rank falls by 1 where a smaller number goes, and by 1/2 where an equal one does; the mean
    of what is left is n/2.
    """
    from scipy.stats import rankdata

    n, parts = len(one), []
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
        parts.append(correlation(both, own_x, own_y, np.full(2, 0.25)))  # of halves of ranks
    return np.concatenate(parts)
