"""Rows of a task, and the reading of its TSV files with all their quirks.

rows = read_rows(Path("glue/CoLA/dev.tsv"), task_named("CoLA"))
rows.texts[0], rows.labels[0]
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import torch

from masksearch.contracts import generator
from masksearch.errors import DataError
from masksearch.tasks.glue.table import GlueTask

HIDDEN = "-1"  # how test sets spell a label that is not told


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


def read_rows(path: Path, task: GlueTask) -> Rows:
    """Reads one TSV file.

    Quote marks are text, not quoting; a line ends at LF or CR LF and nowhere else; a byte-order
    mark at the start is dropped; the last line needs no end.

    Args:
        path: The file, UTF-8.
        task: Whose columns to read; further columns are allowed.

    Raises:
        DataError: If the file is empty, lacks a column, is not UTF-8 or has a malformed line or
            an unknown label; names the file and the line.
    """
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
            hint = ""
            if missing == [str(task.label)]:
                hint = " (test sets hold no labels and cannot be scored here)"
            raise DataError(
                f"{path}, line 1: no column {', '.join(missing)}; {task.name} needs the columns "
                f"{', '.join(map(str, wanted))}, found {', '.join(header)}{hint}"
            )
        fields, places = len(header), [header.index(str(column)) for column in wanted]
    texts: list[tuple[str, ...]] = []
    labels: list[float] = []
    torn: list[int] = []
    for number, raw in enumerate(lines[start:], start=start + 1):
        cells = decoded(path, number, raw)
        if len(cells) < fields and len(torn) < task.torn:
            torn.append(number)
            continue
        if len(cells) != fields:
            raise DataError(
                f"{path}, line {number}: expected {fields} tab-separated fields, found "
                f"{len(cells)}; mend or remove the line"
            )
        *text, label = (cells[place] for place in places)
        texts.append(tuple(text))
        labels.append(label_number(f"{path}, line {number}", label, task))
    if not labels:
        raise DataError(f"{path} holds no whole row; {task.name} needs at least one")
    if torn:
        warnings.warn(
            f"{path}: {len(torn)} lines with too few fields are left out "
            f"(line {', '.join(map(str, torn))}); {task.name} is known for them",
            stacklevel=2,
        )
    return Rows(texts, labels)


def decoded(path: Path, number: int, raw: bytes) -> list[str]:
    """Fields of a line; a byte-order mark before the first is dropped."""
    try:
        line = raw.removesuffix(b"\r").decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}, line {number}: byte 0x{raw[error.start]:02x} is not UTF-8; convert the "
            "file, or that line where encodings are mixed, to UTF-8 (iconv -t utf-8)"
        ) from error
    return line.split("\t")


def label_number(place: str, label: str, task: GlueTask) -> float:
    """Class number of a label, or the score of a regression.

    Args:
        place: Where the label stands, for the error.
        label: As it is spelled in the file.
        task: Whose label it is.
    """
    if label == HIDDEN:
        raise hidden_label(place, task)
    if task.labels:
        if label not in task.labels:
            raise DataError(
                f"{place}: unknown label {label!r}; {task.name} has {', '.join(task.labels)}"
            )
        return task.labels.index(label)
    try:
        score = float(label)
    except ValueError:
        raise DataError(f"{place}: score {label!r} is not a number") from None
    return checked_score(place, score, task)


def checked_score(place: str, score: float, task: GlueTask) -> float:
    """The score itself, where it lies in the task's range."""
    low, high = task.scores
    if not math.isfinite(score) or not low <= score <= high:
        if score == float(HIDDEN):
            raise hidden_label(place, task)
        raise DataError(
            f"{place}: score {score:g} is outside of {low:g} .. {high:g}; mend or remove the row"
        )
    return score


def hidden_label(place: str, task: GlueTask) -> DataError:
    """An error for a row whose label is not told."""
    return DataError(
        f"{place}: the label is hidden (-1); {task.name} can only be trained and scored on "
        "labelled rows: use the training or development set, not the test set"
    )
