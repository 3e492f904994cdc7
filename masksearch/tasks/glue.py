"""The GLUE tasks as TSV folders on disk, their metrics and their majority scores.

data = load_glue("glue", "MRPC", rows=2_000)
data.train.texts[0], data.train.labels[0]
score(data.task, predictions, data.dev["MRPC"].labels)     # {"accuracy": .., "f1": ..}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from masksearch.contracts import generator
from masksearch.errors import DataError, unknown_name
from masksearch.tasks.corpus import content_hash, short_hash

Column = str | int  # a name of the header, or a number where there is none


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
    """

    name: str
    texts: tuple[Column, ...]
    label: Column
    labels: tuple[str, ...] = ("0", "1")
    metrics: tuple[str, ...] = ("accuracy",)
    dev: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    columns: int | None = None

    @property
    def dev_files(self) -> Mapping[str, tuple[str, ...]]:
        """Development sets, by default one in dev.tsv."""
        return self.dev or {self.name: ("dev.tsv",)}


PAIR = ("sentence1", "sentence2")
NLI = ("entailment", "neutral", "contradiction")
TWO_WAY = ("entailment", "not_entailment")
TASKS = {
    task.name: task
    for task in (
        GlueTask("CoLA", (3,), 1, metrics=("matthews", "accuracy"), columns=4),
        GlueTask("SST-2", ("sentence",), "label"),
        GlueTask("MRPC", ("#1 String", "#2 String"), "Quality", metrics=("accuracy", "f1")),
        GlueTask("STS-B", PAIR, "score", labels=(), metrics=("pearson", "spearman")),
        GlueTask(
            "QQP",
            ("question1", "question2"),
            "is_duplicate",
            metrics=("accuracy", "f1"),
            dev={"QQP": ("dev.tsv", "heldout.tsv")},
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
        ),
        GlueTask("QNLI", ("question", "sentence"), "label", labels=TWO_WAY),
        GlueTask("RTE", PAIR, "label", labels=TWO_WAY),
        GlueTask("WNLI", PAIR, "label"),
    )
}


@dataclass(frozen=True)
class Rows:
    """Examples: one or two texts each, and the class number (or the score)."""

    texts: list[tuple[str, ...]] = field(repr=False)
    labels: list[float] = field(repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    def sample(self, count: int | None, seed: int) -> Rows:
        """At most `count` rows, drawn by `seed`, in their order in the file."""
        if count is None or count >= len(self):
            return self
        if count < 1:
            raise ValueError(f"rows must be at least 1, got {count}")
        chosen = torch.randperm(len(self), generator=generator(seed))[:count].sort().values
        indices = chosen.tolist()
        return Rows([self.texts[i] for i in indices], [self.labels[i] for i in indices])


@dataclass(frozen=True)
class GlueData:
    """A task with its rows; `dev` by name of the set (`MNLI` and `MNLI-mm`)."""

    task: GlueTask
    train: Rows
    dev: Mapping[str, Rows]
    digest: str  # hash of the files and of the row limits


def task_named(name: str) -> GlueTask:
    """The task of that name; an unknown one raises UnknownNameError with the nearest."""
    if name not in TASKS:
        raise unknown_name("GLUE task", name, TASKS)
    return TASKS[name]


def load_glue(
    folder: Path | str,
    task: str,
    rows: int | None = None,
    *,
    dev_rows: int | None = None,
    seed: int = 0,
) -> GlueData:
    """Reads a task from `folder/<task>/`.

    Args:
        folder: The GLUE folder, with one folder a task in the official TSV layout.
        task: A name of `TASKS`.
        rows: Largest number of training rows; more are sampled by `seed`.
        dev_rows: The same for every development set.
        seed: Seed of the samples.

    Raises:
        DataError: If a folder, file or column is missing, a file is empty, or a line is
            malformed; names the file and the line.
        UnknownNameError: If there is no such task.
    """
    row = task_named(task)
    place = Path(folder) / row.name
    if not place.is_dir():
        raise DataError(f"no folder {place}: a GLUE folder holds one folder a task ({row.name})")
    files = {"train": place / "train.tsv"}
    if not files["train"].is_file():
        raise DataError(f"no file {files['train']}")
    for name, candidates in row.dev_files.items():
        found = [place / file for file in candidates if (place / file).is_file()]
        if found:
            files[name] = found[0]
        elif name == row.name:
            raise DataError(f"{place} holds no {' or '.join(candidates)}")
    read = {name: read_rows(path, row) for name, path in files.items()}
    train = read.pop("train").sample(rows, seed)
    return GlueData(
        row,
        train,
        {name: part.sample(dev_rows, seed) for name, part in read.items()},
        short_hash(content_hash(list(files.values())), str(rows), str(dev_rows), str(seed)),
    )


def read_rows(path: Path, task: GlueTask) -> Rows:
    """Reads one TSV file; quote marks are text, not quoting."""
    lines = path.read_bytes().split(b"\n")  # nothing else ends a line: texts hold U+2028
    while lines and not lines[-1].strip():
        lines.pop()
    start = 0 if task.columns else 1
    if len(lines) <= start:
        raise DataError(f"{path} is empty; {task.name} needs at least one row")
    wanted = (*task.texts, task.label)
    if task.columns:
        fields, places = task.columns, [int(column) for column in wanted]
    else:
        header = decoded(path, 1, lines[0])
        missing = [str(column) for column in wanted if column not in header]
        if missing:
            raise DataError(
                f"{path}, line 1: no column {', '.join(missing)}; {task.name} needs the columns "
                f"{', '.join(map(str, wanted))}, found {', '.join(header)}"
            )
        fields, places = len(header), [header.index(str(column)) for column in wanted]
    texts: list[tuple[str, ...]] = []
    labels: list[float] = []
    for number, raw in enumerate(lines[start:], start=start + 1):
        cells = decoded(path, number, raw)
        if len(cells) != fields:
            raise DataError(
                f"{path}, line {number}: expected {fields} tab-separated fields, found "
                f"{len(cells)}; mend or remove the line"
            )
        *text, label = (cells[place] for place in places)
        texts.append(tuple(text))
        labels.append(label_number(path, number, label, task))
    return Rows(texts, labels)


def decoded(path: Path, number: int, raw: bytes) -> list[str]:
    """Fields of a line; a byte-order mark before the first is dropped."""
    try:
        line = raw.removesuffix(b"\r").decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}, line {number}: byte 0x{raw[error.start]:02x} is not UTF-8"
        ) from error
    return line.split("\t")


def label_number(path: Path, number: int, label: str, task: GlueTask) -> float:
    """Class number of a label, or the score of a regression."""
    if task.labels:
        if label not in task.labels:
            raise DataError(
                f"{path}, line {number}: unknown label {label!r}; {task.name} has "
                f"{', '.join(task.labels)}"
            )
        return task.labels.index(label)
    try:
        return float(label)
    except ValueError:
        raise DataError(f"{path}, line {number}: score {label!r} is not a number") from None


def score(
    task: GlueTask, predictions: Sequence[float], labels: Sequence[float]
) -> dict[str, float]:
    """The task's official metrics, the primary one first.

    Args:
        task: What is scored.
        predictions: Class numbers, or scores of a regression.
        labels: The truth, of the same length.

    Returns:
        Metric -> value. Correlations with a constant are 0.

    Raises:
        ValueError: If the lengths differ or there is nothing to score.
    """
    from scipy.stats import pearsonr, spearmanr
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    if len(predictions) != len(labels) or not labels:
        raise ValueError(f"{len(predictions)} predictions for {len(labels)} labels")
    constant = len(set(predictions)) == 1 or len(set(labels)) == 1
    values: dict[str, float] = {}
    for metric in task.metrics:
        if metric == "accuracy":
            values[metric] = float(accuracy_score(labels, predictions))
        elif metric == "f1":
            values[metric] = float(f1_score(labels, predictions, zero_division=0.0))
        elif constant:
            values[metric] = 0.0
        elif metric == "matthews":
            values[metric] = float(matthews_corrcoef(labels, predictions))
        elif metric == "pearson":
            values[metric] = float(pearsonr(predictions, labels).statistic)
        else:
            values[metric] = float(spearmanr(predictions, labels).statistic)
    return values


def majority(task: GlueTask, labels: Sequence[float]) -> float:
    """Primary score of always predicting the most frequent label: what knowing nothing earns.

    >>> majority(TASKS["SST-2"], [1, 1, 0, 1])
    0.75
    """
    commonest = max(sorted(set(labels)), key=list(labels).count)
    return score(task, [commonest] * len(labels), labels)[task.metrics[0]]


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
