"""Texts without labels: what a fine-tuned model answers to them is written down as their labels.

folder, task = write_answers(Columns(("review",)), Path("reviews"), start, source, trainer, cache)
data = load_glue(folder, task)      # labelled rows, as of any task

So a mask is searched and judged by how far it keeps the model's own answers.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from masksearch.errors import DataError
from masksearch.evaluators.tuning import TaskTraining
from masksearch.files import content_hash, short_hash
from masksearch.models.pretrained import Pretrained, open_tuned, own_classes, tuned_kind
from masksearch.tasks.glue.columns import DEV_FILES, Columns
from masksearch.tasks.glue.read import read_cells, task_files
from masksearch.tasks.glue.tasks import ANSWER, GlueTask
from masksearch.tasks.tables import ENDINGS
from masksearch.tasks.text.rows import RowSource, Texts, TokenRows, tokenize_rows

ANSWERS = "answers"  # their folder in that of the cache
HEAD = "SequenceClassification"


def write_answers(
    columns: Columns,
    folder: Path,
    start: Pretrained,
    source: RowSource,
    trainer: TaskTraining,
    cache: Path,
) -> tuple[Path, GlueTask]:
    """Files with the answers of a model in the place of labels, made once for texts and model.

    Args:
        columns: Those of the texts.
        folder: Holds the texts' files, as of `Columns.read`; a file test.tsv (or .csv), too.
        start: The fine-tuned model.
        source: Makes rows of texts.
        trainer: Has the model predict.
        cache: The folder of the cache.

    Returns:
        The folder around the files' folder, and the task: the model's classes, by the metric
        `agreement`; of a model with one output a regression, by `pearson`.

    Raises:
        DataError: If the checkpoint has no such head, a file or a column is missing or a row
            malformed, or the model gives one answer to all rows.
    """
    location = start.locate()
    if tuned_kind(location) != HEAD:
        raise DataError(
            f"without labels what is kept are a fine-tuned model's own answers, and {start.name} "
            "has no head that classifies; name the labels' column (--label), or give a model that "
            "was fine-tuned"
        )
    classes = own_classes(location)
    task = task_of_texts(folder.name, columns.texts, classes)
    files = find_tables(folder, task)
    texts = {name: [*read_cells(path, task, task.texts).values()] for name, path in files.items()}
    rows = {name: tokenize_rows(source, each, [0.0] * len(each)) for name, each in texts.items()}
    key = short_hash(
        *(start.digest, str(trainer.how.precision), content_hash([*files.values()])),
        *(folder.name, repr(columns.texts)),
        *map(trainer.hash_rows, rows.values()),
    )
    kept = cache / ANSWERS / key
    if not kept.is_dir():
        model = open_tuned(location, HEAD, classes).to(trainer.device)
        answers = {name: answer(trainer, model, each, classes) for name, each in rows.items()}
        if len({*answers["train"]}) < 2:
            raise DataError(
                f"{start.name} answers {answers['train'][0]} to all {len(texts['train'])} rows of "
                f"{files['train']}, which every mask keeps; give texts of the model's own task"
            )
        kept.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=kept.parent) as part:
            (Path(part) / "whole" / folder.name).mkdir(parents=True)
            for name, each in texts.items():
                path = Path(part) / "whole" / folder.name / f"{name}.csv"
                write_table(path, [*columns.texts, ANSWER], each, answers[name])
            (Path(part) / "whole").rename(kept)
    return kept, task


def task_of_texts(name: str, columns: tuple[str, ...], classes: tuple[str, ...] = ()) -> GlueTask:
    """The task of texts without labels: a model's classes, or without any a regression."""
    return GlueTask(
        name,
        columns,
        ANSWER,
        labels=classes,
        metrics=("agreement",) if classes else ("pearson",),
        dev={name: DEV_FILES},
        score_range=(-math.inf, math.inf),
    )


def find_tables(folder: Path, task: GlueTask) -> dict[str, Path]:
    """A folder's files of texts: train, dev and, where there is one, test."""
    files = dict(zip(("train", "dev"), task_files(folder.parent, task).values(), strict=True))
    for path in (folder / f"test{end}" for end in ENDINGS):
        if path.is_file() and path not in files.values():
            files["test"] = path
    return files


def answer(
    trainer: TaskTraining, model: nn.Module, rows: TokenRows, classes: Sequence[str]
) -> list[str]:
    """The answers of a model to each row: a class's name, or a number."""
    outputs = torch.stack(trainer.predict(model, rows))
    if not classes:
        return [repr(value) for value in outputs.squeeze(-1).tolist()]
    return [classes[at] for at in outputs.argmax(-1).tolist()]


def write_table(path: Path, names: Sequence[str], texts: Texts, answers: Sequence[str]) -> None:
    """Writes a CSV file of texts with their answers."""
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = ([*each, said] for each, said in zip(texts, answers, strict=True))
        csv.writer(file).writerows([names, *rows])
