"""GLUE from the Hugging Face Hub, or from a local folder in the Hub's form.

parts, digest = read_hub("hf:nyu-mll/glue", task_named("MRPC"))
parts, digest = read_hub("hf:/data/glue-parquet", task_named("MRPC"))
texts, labels = parts["train"]
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from masksearch.errors import DataError
from masksearch.tasks.glue.tasks import GlueTask, HubForm
from masksearch.tasks.text.hub import (
    PREFIX,
    absolute_source,
    hub_folder,
    hub_problems,
    is_hub,
    load_hub,
)

Columns = tuple[list[tuple[str, ...]], list[float]]  # texts and labels
LOCAL_GLUE = (
    "give a folder of TSV files (--glue FOLDER), or a local copy in the Hub's form "
    "(--glue hf:/FOLDER with FOLDER/<config>/<split>-*.parquet); HF_HUB_OFFLINE=1 reads what was "
    "downloaded before"
)


HIDDEN_TESTS = (
    "the labels of GLUE's test sets are hidden, only its server scores them; judge by "
    "half='final', the development rows that no search has seen"
)


def glue_place(place: Path | str) -> Path | str:
    """A GLUE folder as it can be stored: absolute, or a name on the Hub left as it is.

    >>> glue_place("hf:nyu-mll/glue")
    'hf:nyu-mll/glue'
    """
    folder = hub_folder(str(place)) if is_hub(place) else None
    return absolute_source(place) if folder is None else f"{PREFIX}{folder}"


def read_hub(place: str, task: GlueTask, *, test: bool = False) -> tuple[dict[str, Columns], str]:
    """Reads a task in the Hub's form.

    A local folder holds one folder a configuration (`cola`, `sst2`, `mrpc`, ..), in it
    `<split>-*.parquet` or `<split>.parquet` (a copy of the Hub's repository) or `<split>/` (as
    `Dataset.save_to_disk` writes it).

    Args:
        place: `"hf:<owner>/<name>"` or `"hf:<folder>"`.
        task: One with a `hub` form.
        test: Whether the test sets are read in place of the development sets.

    Returns:
        Texts and labels of "train" and of the development sets by name, and a hash of them. It
        differs from that of the same rows read from TSV, where the bytes of the files are hashed.

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
    folder = hub_folder(place)
    if folder is None:
        tables = load_hub(place.removeprefix(PREFIX), form.config, LOCAL_GLUE)
    else:
        tables = open_folder(folder / form.config, list(splits.values()))
    required = list(splits.values())[:2]  # further development sets are optional
    missing = [split for split in required if split not in tables]
    if missing:
        raise DataError(
            f"{place}, configuration {form.config}: no split {', '.join(missing)}; it holds "
            f"{', '.join(tables) or 'none'}"
        )
    parts = {}
    for name, split in splits.items():
        if split in tables:
            try:
                parts[name] = read_columns(
                    f"{place} {form.config}/{split}", tables[split], form, task
                )
            except DataError as error:
                if name == "train" or not test:
                    raise
                raise DataError(f"{HIDDEN_TESTS} ({error})") from error
    digest = hashlib.sha256()
    for name, (texts, labels) in parts.items():
        digest.update(json.dumps([name, texts, labels]).encode())
    return parts, digest.hexdigest()


def open_folder(folder: Path, splits: list[str]) -> dict[str, Any]:
    """The splits of a local folder that are there, as `datasets.Dataset` over what is read in
    place: no copy goes to a cache."""
    if not folder.is_dir():
        raise DataError(
            f"no folder {folder}: a GLUE folder in the Hub's form holds one folder a "
            "configuration (cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, wnli), in it "
            "<split>-*.parquet; a folder of TSV files is given without the prefix hf:"
        )
    found = {}
    with hub_problems(str(folder), LOCAL_GLUE):
        from datasets import Dataset, load_from_disk
        from datasets.table import InMemoryTable
        from pyarrow.parquet import read_table

        for split in splits:
            files = sorted([*folder.glob(f"{split}-*.parquet"), *folder.glob(f"{split}.parquet")])
            if files:
                found[split] = Dataset(InMemoryTable(read_table(files)))
            elif (folder / split / "state.json").is_file():
                found[split] = load_from_disk(str(folder / split))
    return found


def read_columns(place: str, table: Any, form: HubForm, task: GlueTask) -> Columns:
    """Texts and labels of one split; `place` names it in errors."""
    wanted = (*form.texts, form.label)
    missing = [column for column in wanted if column not in table.column_names]
    if missing:
        raise DataError(
            f"{place}: no column {', '.join(missing)}; {task.name} needs {', '.join(wanted)}, "
            f"found {', '.join(table.column_names)}"
        )
    if len(table) == 0:
        raise DataError(f"{place} is empty; {task.name} needs at least one row")
    names = getattr(table.features[form.label], "names", None)
    if names and form.names and tuple(names) != form.names:
        raise DataError(
            f"{place}: the classes are {', '.join(names)}, but {task.name} has "
            f"{', '.join(form.names)} in this order; reorder the labels"
        )
    columns = [list(table[column]) for column in form.texts]
    for column, texts in zip(form.texts, columns, strict=True):
        bad = next((at for at, text in enumerate(texts) if not isinstance(text, str)), None)
        if bad is not None:
            raise DataError(f"{place}, row {bad}: {column} is {texts[bad]!r}, not a text")
    labels = [
        class_number(f"{place}, row {number}", label, task)
        for number, label in enumerate(table[form.label])
    ]
    return list(zip(*columns, strict=True)), labels


def class_number(place: str, label: Any, task: GlueTask) -> float:
    """Class number or score, checked."""
    if isinstance(label, bool) or not isinstance(label, int | float):
        raise DataError(f"{place}: label {label!r} is not a number")
    if task.regression:
        return task.checked_score(float(label), place)
    if label == -1:
        raise task.hidden_label(place)
    if label not in range(task.classes):
        raise DataError(f"{place}: unknown label {label}; {task.name} has 0 .. {task.classes - 1}")
    return int(label)
