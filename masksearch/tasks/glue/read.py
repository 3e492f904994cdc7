"""Reads the GLUE tasks, from folders of TSV files with all their quirks or from the Hub.

data = load_glue("glue", "MRPC", rows=2_000)               # or "hf:nyu-mll/glue"
data.train.texts[0], data.train.labels[0]
score(data.task, predictions, data.dev["MRPC"].labels)     # {"accuracy": .., "f1": ..}
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from masksearch.contracts import Split
from masksearch.errors import DataError, did_you_mean, warn
from masksearch.files import content_hash, short_hash
from masksearch.tasks.glue.tasks import TASKS, Column, GlueTask, HubForm, task_named
from masksearch.tasks.splits import sample_rows, take_split
from masksearch.tasks.tables import read_table, tidy
from masksearch.tasks.text.files import (
    PREFIX,
    absolute_source,
    hub_folder,
    hub_problems,
    is_hub,
    load_hub,
)

LOCAL_GLUE = (
    "give a folder of TSV files (--glue FOLDER), or a local copy in the Hub's form "
    "(--glue hf:/FOLDER with FOLDER/<config>/<split>-*.parquet); HF_HUB_OFFLINE=1 reads what was "
    "downloaded before"
)
HIDDEN_TESTS = (
    "the labels of GLUE's test sets are hidden, only its server scores them; judge by "
    "split='holdout', the development rows that no search has seen"
)
SHOWN = 20  # classes that are named with their rows
SPREADS = 1e-13, 1e13  # deviations of scores that are learnt standardised


@dataclass(frozen=True)
class Rows:
    """Examples: one or two texts each, and the class number (or the score)."""

    texts: list[tuple[str, ...]] = field(repr=False)
    labels: list[float] = field(repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    def sample(self, count: int | None, seed: int) -> Rows:
        """At most `count` rows, drawn by `seed`, in their order in the file."""
        return self.take(sample_rows(range(len(self)), count, seed))

    def split(self, split: Split, where: str) -> Rows:
        """The rows of a split; those with the same first text (a premise) are in the same one."""
        return self.take(
            take_split(range(len(self)), split, where, lambda row: self.texts[row][0])
        )

    def take(self, chosen: Sequence[int]) -> Rows:
        """The rows of those numbers."""
        return Rows([self.texts[i] for i in chosen], [self.labels[i] for i in chosen])


@dataclass(frozen=True)
class GlueData:
    """A task with its rows; `dev` by name of the set (`MNLI` and `MNLI-mm`)."""

    task: GlueTask
    train: Rows
    dev: Mapping[str, Rows]
    digest: str  # hash of the data and of the row limits

    @property
    def unit(self) -> tuple[float, float] | None:
        """Mean and deviation of the training scores, where they are learnt standardised, else
        None; DataError where all are one, or float32 weights cannot hold the deviation."""
        if not (self.task.standardised and self.task.regression):
            return None
        scores, (least, most) = np.array(self.train.labels), SPREADS
        mean, deviation = float(scores.mean()), float(scores.std()) if np.ptp(scores) else 0.0
        if not least <= deviation <= most:
            remedy = f"divide all by {deviation:.0e}" if deviation else "give rows of several"
            raise DataError(
                f"{self.task.name}: the scores of {len(scores)} training rows deviate by "
                f"{deviation:.3g} from {mean:g}, and {least:g} to {most:g} can be learnt; {remedy}"
            )
        return mean, deviation


def load_glue(
    folder: Path | str,
    task: str | GlueTask,
    rows: int | None = None,
    *,
    dev_rows: int | None = None,
    seed: int = 0,
    split: Split = "all",
) -> GlueData:
    """Reads a task from `folder/<task>/`, or from the Hub.

    Args:
        folder: The GLUE folder, with one folder a task in the official TSV layout; or
            `"hf:<owner>/<name>"` (`"hf:nyu-mll/glue"`), or `"hf:<folder>"` for a local folder in
            the Hub's form (see `_read_hub`).
        task: A name of `TASKS`, or a task of your own.
        rows: Largest number of training rows; more are sampled by `seed`.
        dev_rows: The same for every development set.
        seed: Seed of the samples.
        split: Which rows of the development sets, before any are sampled: `"validation"` or
            `"holdout"` (a hash of a row's first text decides), or `"all"`; `"test"` = those of the
            test sets, where their labels are told (GLUE's own are not).

    Returns:
        The rows. Equal rows have different digests when read from TSV and in the Hub's form. A
        warning counts the rows of a development set whose texts a training row has, too.

    Raises:
        DataError: If a folder, file or column is missing, a file is empty, a line is malformed
            or a label is wrong or hidden (names the file and the line), or if the Hub cannot be
            reached, or no row is in the split.
        UnknownNameError: If there is no such task.
    """
    row = task_named(task)
    if is_hub(folder):
        parts, content = _read_hub(str(folder), row, test=split == "test")
    else:
        files = task_files(Path(folder), row)
        if split == "test":
            tests = _labelled_test_files(Path(folder), row, [*files.values()])
            files = {"train": files["train"], **tests}
        parts = {name: read_rows(path, row) for name, path in files.items()}
        content = content_hash(list(files.values()))
    train = parts.pop("train")
    trained = set(train.texts)
    for name, part in parts.items():
        if shared := sum(texts in trained for texts in part.texts):
            warn(
                f"{folder}, {name}: {shared} of {len(part)} rows have the texts of a training "
                "row, so a model may know their labels by heart; remove them from one of the two"
            )
    rows_of_own = [] if TASKS.get(row.name) == row else [repr(differences(row))]
    read = (text for part in (train, *parts.values()) for texts in part.texts for text in texts)
    if rows_of_own and not is_hub(folder) and any(tidy(text) != text for text in read):
        rows_of_own.append("white space")  # as it stands; once such texts were read as one line
    return GlueData(
        row,
        train.sample(rows, seed),
        {
            name: part.split(split, f"{folder}, {name}").sample(dev_rows, seed)
            for name, part in parts.items()
        },
        short_hash(content, str(rows), str(dev_rows), str(seed), *rows_of_own),
    )


def differences(task: GlueTask) -> dict[str, object]:
    """The columns of a task's row that are not the default ones."""
    return {n: v for n, v in vars(task).items() if v != getattr(GlueTask, n, None)}


def task_files(folder: Path, task: GlueTask) -> dict[str, Path]:
    """A task's files: "train", then its development sets by name."""
    path = folder / task.name
    if not path.is_dir():
        raise DataError(f"no folder {path}: {_explain_folder(folder)}")
    train = path / "train.tsv"
    files = {"train": train if train.is_file() else train.with_suffix(".csv")}
    if not files["train"].is_file():
        raise DataError(f"no file {train} (or .csv); put the training rows of {task.name} there")
    for name, candidates in task.dev_files.items():
        there = [path / file for file in candidates if (path / file).is_file()]
        if there:
            files[name] = there[0]
        elif name == next(iter(task.dev_files)):
            raise DataError(
                f"{path} holds no {' or '.join(candidates)}; put the development set of "
                f"{task.name} there, on which a mask is scored"
            )
    return files


def _labelled_test_files(folder: Path, task: GlueTask, taken: Collection[Path]) -> dict[str, Path]:
    """The files of a task's labelled test sets, by the names of its development sets: called
    test where those are called dev, and none of those that are taken.

    Raises:
        DataError: If there is none, or its labels are hidden.
    """
    path = folder / task.name
    by_task = {}
    for name, candidates in task.dev_files.items():
        spelled = [path / file.replace("dev", "test") for file in candidates if "dev" in file]
        for file in [each for each in spelled if each.is_file() and each not in taken][:1]:
            try:
                read_rows(file, task)
            except DataError as error:
                raise DataError(f"{HIDDEN_TESTS} ({error})") from error
            by_task[name] = file
    if task.name not in by_task:
        raise DataError(f"{path} holds no test set with labels: {HIDDEN_TESTS}")
    return by_task


def _explain_folder(folder: Path) -> str:
    """The remedy for a folder that does not hold the task's folder."""
    if (folder / "train.tsv").is_file():
        return f"{folder} is a task's own folder; give the GLUE folder around it ({folder.parent})"
    there = [name for name in TASKS if (folder / name).is_dir()]
    return (
        f"{folder} is no GLUE folder with this task: one holds a folder a task "
        f"({', '.join(TASKS)}), each with train.tsv and dev.tsv (MNLI: dev_matched.tsv, "
        f"dev_mismatched.tsv); this one has {', '.join(there) or 'none'}"
    )


def read_rows(path: Path, task: GlueTask) -> Rows:
    """Reads one file, texts as they stand there; see `read_cells`.

    Args:
        path: The file, TSV or CSV.
        task: Whose columns to read; further columns are allowed.

    Raises:
        DataError: If the file lacks a column, has no row or a malformed one, or an unknown label;
            names the file and the line.
    """
    rows = read_cells(path, task, (*task.texts, task.label))
    labels = [task.class_number(row[-1], f"{path}, line {at}") for at, row in rows.items()]
    return Rows([row[:-1] for row in rows.values()], labels)


def read_cells(path: Path, task: GlueTask, names: Sequence[Column]) -> dict[int, tuple[str, ...]]:
    """Line -> the cells of those columns in a file of a task; see `read_table`."""
    columns, rows = read_table(path, task.fields, task.broken_lines)
    places = names if task.fields else _find_columns(f"{path}, line 1", columns, names, task)
    return {line: tuple(cells[int(at)] for at in places) for line, cells in rows.items()}


def _find_columns(
    where: str, columns: Sequence[str], needed: Sequence[Column], task: GlueTask
) -> list[int]:
    """The places of needed columns among those of a table, which `where` names in the error."""
    missing = [str(column) for column in needed if column not in columns]
    if missing:
        hint = " (test sets hold no labels and cannot be scored here)"
        raise DataError(
            f"{where}: no column {', '.join(missing)}{did_you_mean(missing[0], columns)}; "
            f"{task.name} needs the columns {', '.join(map(str, needed))}, found "
            f"{', '.join(columns)}{hint if missing == [needed[-1]] else ''}"
        )
    return [columns.index(str(column)) for column in needed]


def describe_rows(task: GlueTask, rows: Rows) -> str:
    """Says how the labels of rows were understood.

    >>> tone = GlueTask("tone", ("text",), "tone", labels=("calm", "angry"))
    >>> describe_rows(tone, Rows([("a",), ("b",), ("c",)], [0, 1, 0]))
    '2 classes: calm 2, angry 1'
    """
    if task.regression:
        low, high = min(rows.labels), max(rows.labels)
        return f"regression, {len(rows)} rows, scores {low} to {high}"
    counts = [f"{tidy(name)} {rows.labels.count(at)}" for at, name in enumerate(task.labels)]
    more = f" and {len(counts) - SHOWN} more" if len(counts) > SHOWN else ""
    return f"{len(counts)} classes: {', '.join(counts[:SHOWN])}{more}"


def glue_source(source: Path | str) -> Path | str:
    """A GLUE folder as it can be stored: absolute, or a name on the Hub left as it is.

    >>> glue_source("hf:nyu-mll/glue")
    'hf:nyu-mll/glue'
    """
    folder = hub_folder(str(source)) if is_hub(source) else None
    return absolute_source(source) if folder is None else f"{PREFIX}{folder}"


def _read_hub(source: str, task: GlueTask, *, test: bool = False) -> tuple[dict[str, Rows], str]:
    """Reads a task in the Hub's form.

    A local folder holds one folder a configuration (`cola`, `sst2`, `mrpc`, ..), in it
    `<split>-*.parquet` or `<split>.parquet` (a copy of the Hub's repository) or `<split>/` (as
    `Dataset.save_to_disk` writes it).

    Args:
        source: `"hf:<owner>/<name>"` or `"hf:<folder>"`.
        task: One with a `hub` form.
        test: Whether the test sets are read in place of the development sets.

    Returns:
        The rows of "train" and of the development sets by name, and a hash of them. It differs
        from that of the same rows read from TSV, where the bytes of the files are hashed.

    Raises:
        DataError: If the Hub cannot be reached, or a configuration, split or column is missing,
            or a label is wrong or hidden.
    """
    form = task.hub
    if form is None:
        raise DataError(f"{task.name} is not on the Hub; give a folder of TSV files")
    splits = {"train": "train", **task.hub_splits}
    if test:
        splits = {name: split.replace("validation", "test") for name, split in splits.items()}
    folder = hub_folder(source)
    if folder is None:
        tables = load_hub(source.removeprefix(PREFIX), form.config, LOCAL_GLUE)
    else:
        tables = _open_folder(folder / form.config, list(splits.values()))
    required = list(splits.values())[:2]  # further development sets are optional
    missing = [split for split in required if split not in tables]
    if missing:
        raise DataError(
            f"{source}, configuration {form.config}: no split {', '.join(missing)}; it holds "
            f"{', '.join(tables) or 'none'}"
        )
    parts = {}
    for name, split in splits.items():
        if split in tables:
            try:
                parts[name] = _read_columns(
                    f"{source} {form.config}/{split}", tables[split], form, task
                )
            except DataError as error:
                if name == "train" or not test:
                    raise
                raise DataError(f"{HIDDEN_TESTS} ({error})") from error
    digest = hashlib.sha256()
    for name, rows in parts.items():
        digest.update(json.dumps([name, rows.texts, rows.labels]).encode())
    return parts, digest.hexdigest()


def _open_folder(folder: Path, splits: list[str]) -> dict[str, Any]:
    """The splits of a local folder that are there, as `datasets.Dataset` over what is read in
    place: no copy goes to a cache."""
    if not folder.is_dir():
        raise DataError(
            f"no folder {folder}: a GLUE folder in the Hub's form holds one folder a "
            "configuration (cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, wnli), in it "
            "<split>-*.parquet; a folder of TSV files is given without the prefix hf:"
        )
    tables = {}
    with hub_problems(str(folder), LOCAL_GLUE):
        from datasets import Dataset, load_from_disk
        from datasets.table import InMemoryTable
        from pyarrow.parquet import read_table

        for split in splits:
            files = sorted([*folder.glob(f"{split}-*.parquet"), *folder.glob(f"{split}.parquet")])
            if files:
                tables[split] = Dataset(InMemoryTable(read_table(files)))
            elif (folder / split / "state.json").is_file():
                tables[split] = load_from_disk(str(folder / split))
    return tables


def _read_columns(where: str, table: Any, form: HubForm, task: GlueTask) -> Rows:
    """Texts and labels of one split; `where` names it in errors."""
    _find_columns(where, table.column_names, (*form.texts, form.label), task)
    if len(table) == 0:
        raise DataError(f"{where} is empty; {task.name} needs at least one row")
    names = getattr(table.features[form.label], "names", None)
    if names and form.names and tuple(names) != form.names:
        raise DataError(
            f"{where}: the classes are {', '.join(names)}, but {task.name} has "
            f"{', '.join(form.names)} in this order; reorder the labels"
        )
    columns = [list(table[column]) for column in form.texts]
    for column, texts in zip(form.texts, columns, strict=True):
        bad = next((at for at, text in enumerate(texts) if not isinstance(text, str)), None)
        if bad is not None:
            raise DataError(f"{where}, row {bad}: {column} is {texts[bad]!r}, not a text")
    labels = [
        task.class_number(label, f"{where}, row {number}")
        for number, label in enumerate(table[form.label])
    ]
    return Rows(list(zip(*columns, strict=True)), labels)
