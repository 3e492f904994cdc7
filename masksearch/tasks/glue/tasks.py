"""The GLUE tasks as rows of a table: where texts and labels stand, and how each is scored.

task = task_named("MRPC")
task.kind, task.classes, task.metrics     # "pair", 2, ("accuracy", "f1"), the primary first

A task of your own is one more row, in a file of your own:

tone = GlueTask("tone", texts=("review",), label="tone", labels=("calm", "angry"))
load_glue("data", tone)                   # reads data/tone/train.tsv and data/tone/dev.tsv
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from masksearch.errors import DataError, check_name

Column = str | int  # a name of the header, or a number where there is none
CLASS_METRICS, SCORE_METRICS = ("accuracy", "f1", "matthews"), ("pearson", "spearman")


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
            classes `accuracy`, `matthews` and, with two of them, `f1` (of class 1); of a
            regression `pearson` and `spearman`.
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

    Raises:
        ValueError: If a value is out of its range; names the task.

    >>> GlueTask("tone", texts=("review",), label="tone", labels=("calm", "angry")).kind
    'single'
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

    def __post_init__(self) -> None:
        for name in ("texts", "labels", "metrics"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.name or set(self.name) & set("/\\"):
            raise ValueError(f"a task's name is also its folder's, got {self.name!r}")
        if len(self.texts) not in (1, 2):
            raise ValueError(f"{self.name}: texts names one or two columns, got {self.texts}")
        if len(self.labels) == 1 or len(set(self.labels)) < len(self.labels):
            raise ValueError(
                f"{self.name}: labels are two or more, each once, or none for a regression; got "
                f"{self.labels}"
            )
        known = SCORE_METRICS if self.regression else CLASS_METRICS
        unknown = [name for name in self.metrics if name not in known]
        if unknown or not self.metrics or ("f1" in self.metrics and self.classes != 2):
            raise ValueError(
                f"{self.name}: metrics are one or more of {', '.join(known)} (f1 of two classes "
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
    def kind(self) -> Literal["single", "pair"]:
        """Whether an example is one text or two."""
        return "pair" if len(self.texts) == 2 else "single"

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

    def class_number(self, label: Any, place: str) -> float:
        """Class number of a label, or the score of a regression.

        Args:
            label: As it is spelled in a file, or a number of the Hub.
            place: Where it stands, for the error.

        Raises:
            DataError: If it is hidden, unknown, no number or out of range.
        """
        if self.labels:
            known = self.labels if isinstance(label, str) else range(self.classes)
            if label in ("-1", -1):
                raise self.hidden_label(place)
            if label not in known:
                raise DataError(
                    f"{place}: unknown label {label!r}; {self.name} has "
                    f"{', '.join(map(str, known))}"
                )
            return known.index(label)
        try:
            score = float(label)
        except (TypeError, ValueError):
            raise DataError(f"{place}: score {label!r} is not a number") from None
        low, high = self.score_range
        if not low <= score <= high:
            if score == -1:
                raise self.hidden_label(place)
            raise DataError(
                f"{place}: score {score:g} is outside of {low:g} .. {high:g}; mend or remove the "
                "row"
            )
        return score

    def hidden_label(self, place: str) -> DataError:
        """An error for a row whose label is not told."""
        return DataError(
            f"{place}: the label is hidden (-1); {self.name} can only be trained and scored on "
            "labelled rows: use the training or development set, not the test set"
        )


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
    check_name("GLUE task", task, TASKS)
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
