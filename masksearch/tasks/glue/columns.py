"""A task of one's own from a folder of TSV or CSV files, by the names of its columns.

task = Columns(("text",), "stars").read("reviews")
data = load_glue(".", task)     # reads reviews/train.csv and reviews/dev.csv
"""

from __future__ import annotations

import shutil
import unicodedata
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path

from masksearch.errors import DataError
from masksearch.tasks.glue.read import read_cells, task_files
from masksearch.tasks.glue.tasks import SCORE_METRICS, GlueTask, class_value
from masksearch.tasks.tables import ENDINGS

MOST_CLASSES = 20  # more numbers than that are scores
MOST_LABELS = 50  # classes that may have fewer than two rows each
MOST_NAMES = 0.05  # of the labels, where the others are scores: these are mistakes
DEV_FILES = tuple(f"{n}{end}" for n in ("dev", "validation", "valid", "test") for end in ENDINGS)
Labels = Mapping[str, str]  # where it stands, in words -> label


@dataclass(frozen=True)
class Columns:
    """The columns of one's own data: one or two of texts, and that of the labels; None = there
    are none, and `GlueEvaluator` takes the answers of a fine-tuned model in their place.

    Labels that are numbers, and either not whole or more than 20, are scores (a regression), in
    any unit; all others are classes. Equal numbers are one class, however they are spelled (1, 1.0
    and 01).
    """

    texts: tuple[str, ...]
    label: str | None = None

    def read(self, folder: Path | str, out: Path | str | None = None) -> GlueTask:
        """The task of a folder, which `load_glue` reads in the folder around it.

        Args:
            folder: Holds `train.tsv` or `train.csv`, and `dev`, `validation`, `valid` or `test`;
                see `read_table`.
            out: Where the folder is copied to; None = it is read where it is.

        Raises:
            DataError: If a file or a column is missing, a row malformed, or a label is missing,
                hidden, or the one that is no number among scores; names the file and the line.
            ValueError: If no column of labels is named.
        """
        if self.label is None:
            raise ValueError("label names the column of the labels; got None")
        folder = Path(folder).expanduser().resolve()
        dev = {folder.name: DEV_FILES}
        task = GlueTask(folder.name, self.texts, self.label, dev=dev)
        if not folder.is_dir():
            raise DataError(f"no folder {folder}; give one with train.tsv and dev.tsv (or .csv)")
        files = task_files(folder.parent, task)
        train, judged = (read_labels(path, task) for path in files.values())
        task = _understand(task, train, judged)
        if out is not None:
            (Path(out) / folder.name).mkdir(parents=True, exist_ok=True)
            for path in files.values():
                shutil.copyfile(path, Path(out) / folder.name / path.name)
        return task


def read_labels(path: Path, task: GlueTask) -> Labels:
    """The labels of a file.

    Raises:
        DataError: If one is missing.
    """
    rows = read_cells(path, task, (*task.texts, task.label))
    labels = {f"{path}, line {line}": row[-1].strip() for line, row in rows.items()}
    for where, label in labels.items():
        if not label:
            raise DataError(f"{where}: no label; remove the line, or label it")
    return labels


def _understand(task: GlueTask, train: Labels, judged: Labels) -> GlueTask:
    """The task with the classes, or the range of the scores, that the labels show.

    Raises:
        DataError: If a label is hidden, or is the one that is no number among scores, or all
            labels are one, or over half of the rows have a class of their own.
    """
    spelled = {**train, **judged}
    values = {where: class_value(label) for where, label in spelled.items()}
    numbers = {value for value in values.values() if isinstance(value, Decimal)}
    others = [where for where, value in values.items() if isinstance(value, str)]
    fractions = not all(float(number).is_integer() for number in numbers)
    scores = fractions or len(numbers) >= MOST_CLASSES
    if scores and 0 < len(others) <= MOST_NAMES * len(values):
        raise DataError(
            f"{others[0]}: label {spelled[others[0]]!r} is no number, and "
            f"{len(values) - len(others)} of {len(values)} labels are; mend or remove the row "
            "(where numbers are names of classes, spell them with letters)"
        )
    learnt = {values[where] for where in train}
    hidden = [where for where in judged if values[where] == -1]
    if hidden and all(isinstance(value, str) or value >= 0 for value in learnt):
        raise task.hidden_label(hidden[0])
    if not others and (fractions or len(numbers) > MOST_CLASSES):
        ends = float(min(numbers)), float(max(numbers))
        return replace(task, labels=(), metrics=SCORE_METRICS, score_range=ends, standardised=True)
    if len(learnt) > max(MOST_LABELS, len(train) / 2):
        raise DataError(
            f"{task.name}: {len(learnt)} classes in {len(train)} training rows; name the column "
            f"of the labels: is {task.label!r} that of the texts?"
        )
    names: dict[Decimal | str, str] = {}
    for where, value in values.items():
        names[value] = min(names.get(value, spelled[where]), spelled[where], key=len)
    if len(names) < 2:
        raise DataError(
            f"{task.name}: all rows have the label {min(names.values())!r}; give rows of two"
        )
    lacking = sorted(names[value] for value in {values[where] for where in judged} - learnt)
    doubts = [f"no training row has the label {name!r}" for name in lacking]
    folded: dict[str, str] = {}
    for name in names.values():
        seen = unicodedata.normalize("NFKC", name.replace("\ufe0f", "")).casefold()
        shown = "".join(each for each in seen if unicodedata.category(each) != "Cf")
        if (other := folded.setdefault(shown, name)) != name:
            odd = [f"U+{ord(p):04X}" for p in sorted({*name.casefold()} ^ {*other.casefold()})]
            points = f" (in one alone: {', '.join(odd)})" if odd else ""
            doubts.append(f"{other!r} and {name!r} are two classes{points}")
    for doubt in doubts:
        warnings.warn(f"{task.name}: {doubt}; spell alike what is one class", stacklevel=3)
    order = sorted(names, key=lambda value: (isinstance(value, str), value))
    metrics = ("accuracy", "f1") if len(names) == 2 else ("accuracy",)
    return replace(task, labels=tuple(names[value] for value in order), metrics=metrics)
