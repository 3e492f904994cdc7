"""A task of one's own from a folder of TSV or CSV files, by the names of its columns.

task = Columns(("text",), "stars").read("reviews", out=Path("glue"))
data = load_glue("glue", task)     # glue/reviews/train.tsv, dev.tsv
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from masksearch.errors import DataError, did_you_mean
from masksearch.files import write_text_in_one_move
from masksearch.tasks.glue.tasks import GlueTask
from masksearch.tasks.text.files import decode_utf8

MOST_CLASSES = 20  # more numbers than that are scores
PARTS = {"train": ("train",), "dev": ("dev", "validation", "valid", "test")}
ENDINGS = (".tsv", ".csv")
Rows = list[dict[str, str]]


@dataclass(frozen=True)
class Columns:
    """The columns of one's own data: one or two of texts, and that of the labels.

    Labels that are numbers, and either not whole or more than 20, are scores (a regression); all
    others are classes.
    """

    texts: tuple[str, ...]
    label: str

    def read(self, folder: Path | str, out: Path) -> GlueTask:
        """The task of a folder, whose rows are written in GLUE's layout; see `read_task`."""
        return read_task(folder, self.texts, self.label, out)


def read_task(folder: Path | str, texts: Sequence[str], label: str, out: Path) -> GlueTask:
    """The task of a folder, whose rows are written in GLUE's layout.

    Args:
        folder: Holds `train.tsv` or `train.csv`, and `dev`, `validation`, `valid` or `test`. A
            TSV's quote marks are text, as GLUE's; a CSV's are quoting.
        texts: One or two columns of texts.
        label: The column of the label.
        out: The folder of the task's folder, which is written.

    Raises:
        DataError: If a file or a column is missing, or a label empty.
    """
    folder = Path(folder).expanduser().resolve()
    parts = {part: read_part(folder, part) for part in PARTS}
    needed = [*texts, label]
    for path, rows in parts.values():
        for column in needed:
            if column not in rows[0]:
                raise DataError(
                    f"{path} has no column {column!r}{did_you_mean(column, rows[0])}; it has "
                    f"{', '.join(rows[0])}"
                )
            empty = [at for at, row in enumerate(rows, 2) if not (row[column] or "").strip()]
            if column == label and empty:
                raise DataError(f"{path}, line {empty[0]}: no label; remove the line, or label it")
    labels = {row[label].strip() for _, rows in parts.values() for row in rows}
    numbers = [number_of(each) for each in labels]
    scores = None not in numbers and (
        len(labels) > MOST_CLASSES or any(each != int(each) for each in numbers if each)
    )
    if not scores and len(labels) < 2:
        raise DataError(f"{folder}: all rows have the {label} {min(labels)!r}; give rows of two")
    for part, (_, rows) in parts.items():
        lines = ["\t".join(needed)]
        lines += ["\t".join(plain(row[column] or "") for column in needed) for row in rows]
        write_text_in_one_move(out / folder.name / f"{part}.tsv", "\n".join(lines) + "\n")
    if scores:
        known = [each for each in numbers if each is not None]
        ends = (min(known), max(known))
        correlations = ("pearson", "spearman")
        return GlueTask(folder.name, tuple(texts), label, (), correlations, score_range=ends)
    names = sorted(labels, key=lambda each: (number_of(each) is None, number_of(each) or 0, each))
    metrics = ("accuracy", "f1") if len(names) == 2 else ("accuracy",)
    return GlueTask(folder.name, tuple(texts), label, tuple(names), metrics)


def read_part(folder: Path, part: str) -> tuple[Path, Rows]:
    """The file of a part and its rows: column -> cell.

    Raises:
        DataError: If there is none, or it holds no row.
    """
    files = [folder / f"{name}{ending}" for name in PARTS[part] for ending in ENDINGS]
    path = next((file for file in files if file.is_file()), None)
    if path is None:
        why = "train on" if part == "train" else "score masks by, of which half decide"
        raise DataError(
            f"{folder} holds no {' or '.join(file.name for file in files)}: rows to {why}"
        )
    text = decode_utf8(path.read_bytes(), path, 1)
    lines = io.StringIO(text, newline="")
    plain_cells = path.suffix == ".tsv"  # quote marks are text there
    rows: Rows = list(
        csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        if plain_cells
        else csv.DictReader(lines)
    )
    if not rows:
        raise DataError(f"{path} holds no row below its header")
    return path, rows


def number_of(text: str) -> float | None:
    """The number that a label is; None = it is a name."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def plain(text: str) -> str:
    """A text as one cell of a TSV file."""
    return " ".join(text.replace("\t", " ").splitlines()).strip()
