"""The GLUE tasks from TSV folders on disk or from the Hub, their metrics and majority scores.

data = load_glue("glue", "MRPC", rows=2_000)               # or "hf:nyu-mll/glue"
data.train.texts[0], data.train.labels[0]
score(data.task, predictions, data.dev["MRPC"].labels)     # {"accuracy": .., "f1": ..}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from masksearch.errors import DataError
from masksearch.tasks.glue.hub import glue_place, read_hub
from masksearch.tasks.glue.metrics import (
    GlueScore,
    at_majority,
    glue_score,
    majority,
    majority_scores,
    reported,
    score,
)
from masksearch.tasks.glue.rows import Rows, read_rows
from masksearch.tasks.glue.table import (
    KNOWN,
    NLI,
    PAIR,
    PLANTED,
    TASKS,
    TWO_WAY,
    GlueTask,
    task_named,
    task_number,
)
from masksearch.tasks.text.corpus import content_hash, short_hash
from masksearch.tasks.text.hub import is_hub

__all__ = [
    "NLI",
    "PAIR",
    "PLANTED",
    "TASKS",
    "TWO_WAY",
    "GlueData",
    "GlueScore",
    "GlueTask",
    "Rows",
    "at_majority",
    "glue_place",
    "glue_score",
    "load_glue",
    "majority",
    "majority_scores",
    "read_rows",
    "reported",
    "score",
    "task_named",
    "task_number",
]


@dataclass(frozen=True)
class GlueData:
    """A task with its rows; `dev` by name of the set (`MNLI` and `MNLI-mm`)."""

    task: GlueTask
    train: Rows
    dev: Mapping[str, Rows]
    digest: str  # hash of the data and of the row limits


def load_glue(
    folder: Path | str,
    task: str,
    rows: int | None = None,
    *,
    dev_rows: int | None = None,
    seed: int = 0,
) -> GlueData:
    """Reads a task from `folder/<task>/`, or from the Hub.

    Args:
        folder: The GLUE folder, with one folder a task in the official TSV layout; or
            `"hf:<owner>/<name>"` (`"hf:nyu-mll/glue"`), or `"hf:<folder>"` for a local folder in
            the Hub's form (see `masksearch.tasks.glue.hub.read_hub`).
        task: A name of `TASKS` or `PLANTED`.
        rows: Largest number of training rows; more are sampled by `seed`.
        dev_rows: The same for every development set.
        seed: Seed of the samples.

    Returns:
        The rows. Equal rows have different digests when read from TSV and in the Hub's form.

    Raises:
        DataError: If a folder, file or column is missing, a file is empty, a line is malformed
            or a label is wrong or hidden (names the file and the line), or if the Hub cannot be
            reached.
        UnknownNameError: If there is no such task.
    """
    row = task_named(task)
    if is_hub(folder):
        train, dev, content = read_hub(str(folder), row)
    else:
        files = task_files(Path(folder), row)
        dev = {name: read_rows(path, row) for name, path in files.items()}
        train, content = dev.pop("train"), content_hash(list(files.values()))
    return GlueData(
        row,
        train.sample(rows, seed),
        {name: part.sample(dev_rows, seed) for name, part in dev.items()},
        short_hash(content, str(rows), str(dev_rows), str(seed)),
    )


def task_files(folder: Path, task: GlueTask) -> dict[str, Path]:
    """A task's files: "train", then its development sets by name."""
    place = folder / task.name
    if not place.is_dir():
        raise DataError(f"no folder {place}: {advice(folder)}")
    files = {"train": place / "train.tsv"}
    if not files["train"].is_file():
        raise DataError(f"no file {files['train']}; put the training rows of {task.name} there")
    for name, candidates in task.dev_files.items():
        found = [place / file for file in candidates if (place / file).is_file()]
        if found:
            files[name] = found[0]
        elif name == next(iter(task.dev_files)):
            raise DataError(
                f"{place} holds no {' or '.join(candidates)}; put the development set of "
                f"{task.name} there, on which a mask is scored"
            )
    return files


def advice(folder: Path) -> str:
    """What to do about a folder that does not hold the task's folder."""
    if (folder / "train.tsv").is_file():
        return (
            f"{folder} is a task's own folder; give the GLUE folder that holds it "
            f"({folder.parent})"
        )
    held = [name for name in KNOWN if (folder / name).is_dir()]
    if held:
        return f"a GLUE folder holds one folder a task, this one has {', '.join(held)}"
    inside = sorted(path for path in folder.glob("*") if is_glue(path))
    if inside:
        return f"the GLUE folder seems to be {inside[0]}"
    return (
        f"{folder} is no GLUE folder, which holds one folder a task ({', '.join(TASKS)}), each "
        "with train.tsv and dev.tsv (MNLI: dev_matched.tsv, dev_mismatched.tsv)"
    )


def is_glue(folder: Path) -> bool:
    """Whether a folder holds the folder of an official task."""
    return any((folder / name).is_dir() for name in TASKS)
