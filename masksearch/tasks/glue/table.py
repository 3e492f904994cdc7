"""The tasks as a table of rows: where texts and labels stand, and how each is scored.

task = task_named("MRPC")
task.kind, task.classes, task.metrics     # "pair", 2, ("accuracy", "f1"), the primary first
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from masksearch.errors import unknown_name

Column = str | int  # a name of the header, or a number where there is none


@dataclass(frozen=True)
class HubForm:
    """How a task is called and laid out on the Hugging Face Hub (`nyu-mll/glue`).

    Args:
        config: Name of the configuration, which is also its folder.
        texts: Columns of the one or two texts.
        dev: Development sets: our name -> the split's name.
        names: The Hub's names of the classes, by class number.
        label: Column of the label.
    """

    config: str
    texts: tuple[str, ...]
    dev: Mapping[str, str]
    names: tuple[str, ...] = ()
    label: str = "label"


@dataclass(frozen=True)
class GlueTask:
    """Where a task's texts and labels stand, and how it is scored.

    Args:
        name: Name of the task and of its folder.
        texts: Columns of the one or two texts.
        label: Column of the label.
        labels: The labels by class number; none = a regression.
        metrics: Official metrics; the first one is the primary.
        dev: Development sets: name -> file names, the first that exists is taken. The first
            set is required, the others are optional.
        columns: Fields of a line in a file without a header; None = there is a header.
        scores: Range of a regression's scores, both ends included.
        torn: Largest number of lines with too few fields that are left out of a file, with a
            warning; more are an error.
        bert: The metric of BERT's table of results, where it is not the primary one.
        hub: The same task on the Hub; None = it is not there.
    """

    name: str
    texts: tuple[Column, ...]
    label: Column
    labels: tuple[str, ...] = ("0", "1")
    metrics: tuple[str, ...] = ("accuracy",)
    dev: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    columns: int | None = None
    scores: tuple[float, float] = (0.0, 5.0)
    torn: int = 0
    bert: str | None = None
    hub: HubForm | None = None

    @property
    def dev_files(self) -> Mapping[str, tuple[str, ...]]:
        """Development sets, by default one in dev.tsv."""
        return self.dev or {self.name: ("dev.tsv",)}

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


PAIR = ("sentence1", "sentence2")
QUESTIONS = ("question1", "question2")
NLI = ("entailment", "neutral", "contradiction")
TWO_WAY = ("entailment", "not_entailment")


def on_hub(config: str, texts: tuple[str, ...], name: str, names: tuple[str, ...] = ()) -> HubForm:
    """A task with one development set, called validation on the Hub."""
    return HubForm(config, texts, {name: "validation"}, names)


TASKS = {
    task.name: task
    for task in (
        GlueTask(
            "CoLA",
            (3,),
            1,
            metrics=("matthews", "accuracy"),
            columns=4,
            hub=on_hub("cola", ("sentence",), "CoLA", ("unacceptable", "acceptable")),
        ),
        GlueTask(
            "SST-2",
            ("sentence",),
            "label",
            hub=on_hub("sst2", ("sentence",), "SST-2", ("negative", "positive")),
        ),
        GlueTask(
            "MRPC",
            ("#1 String", "#2 String"),
            "Quality",
            metrics=("accuracy", "f1"),
            bert="f1",
            hub=on_hub("mrpc", PAIR, "MRPC", ("not_equivalent", "equivalent")),
        ),
        GlueTask(
            "STS-B",
            PAIR,
            "score",
            labels=(),
            metrics=("pearson", "spearman"),
            bert="spearman",
            hub=on_hub("stsb", PAIR, "STS-B"),
        ),
        GlueTask(
            "QQP",
            QUESTIONS,
            "is_duplicate",
            metrics=("accuracy", "f1"),
            dev={"QQP": ("dev.tsv", "heldout.tsv")},
            torn=16,  # the official files hold questions with a line break in them
            bert="f1",
            hub=on_hub("qqp", QUESTIONS, "QQP", ("not_duplicate", "duplicate")),
        ),
        GlueTask(
            "MNLI",
            PAIR,
            "gold_label",
            labels=NLI,
            dev={
                "MNLI": ("dev_matched.tsv",),
                "MNLI-mm": ("dev_mismatched.tsv", "dev_mismatched_sample.tsv"),
            },
            hub=HubForm(
                "mnli",
                ("premise", "hypothesis"),
                {"MNLI": "validation_matched", "MNLI-mm": "validation_mismatched"},
                NLI,
            ),
        ),
        GlueTask(
            "QNLI",
            ("question", "sentence"),
            "label",
            labels=TWO_WAY,
            hub=on_hub("qnli", ("question", "sentence"), "QNLI", TWO_WAY),
        ),
        GlueTask("RTE", PAIR, "label", labels=TWO_WAY, hub=on_hub("rte", PAIR, "RTE", TWO_WAY)),
        GlueTask(
            "WNLI",
            PAIR,
            "label",
            hub=on_hub("wnli", PAIR, "WNLI", ("not_entailment", "entailment")),
        ),
    )
}

# Tasks of the planted corpus, in the shape of official ones; see `tasks/planted_glue.py`.
PLANTED = {
    task.name: task
    for task in (
        replace(TASKS["CoLA"], name="acceptability", hub=None),
        replace(TASKS["MRPC"], name="paraphrase", hub=None),
        replace(
            TASKS["MNLI"],
            name="entailment",
            dev={"entailment": ("dev_matched.tsv",), "entailment-mm": ("dev_mismatched.tsv",)},
            hub=None,
        ),
        replace(TASKS["STS-B"], name="similarity", hub=None),
    )
}
KNOWN = {**TASKS, **PLANTED}


def task_named(name: str) -> GlueTask:
    """The official or planted task of that name.

    Raises:
        UnknownNameError: If there is none; names the nearest.
    """
    if name not in KNOWN:
        raise unknown_name("GLUE task", name, KNOWN)
    return KNOWN[name]


def task_number(name: str) -> int:
    """A number of its own for every task, to derive seeds from: 0 to 8 for the official nine.

    >>> task_number("CoLA"), task_number("acceptability")
    (0, 9)
    """
    task_named(name)
    return list(KNOWN).index(name)
