"""Judges a mask by GLUE: pre-training under the mask, then fine-tuning under it.

evaluator = GlueEvaluator("wikitext-2", "glue", tasks=("SST-2", "QQP"))
*curve, last = evaluator(masks.star(), seed=0, workdir=Path("run"))
print(last.values["glue"], at_majority(last.values))
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from masksearch.contracts import Batch, Half, Objective, mixed_seed
from masksearch.evaluators.finetuning import FineTuning
from masksearch.evaluators.token_rows import TokenRows, pad_rows, tokenize_rows
from masksearch.models.heads import SequenceClassifier
from masksearch.tasks.glue import (
    GlueData,
    GlueTask,
    glue_place,
    glue_score,
    load_glue,
    majority,
    reported,
    score,
    task_named,
    task_number,
)
from masksearch.tasks.glue.metrics import COLUMNS
from masksearch.tasks.text.tokenizer import TokenSource


@dataclass(frozen=True)
class GlueEvaluator(FineTuning):
    """Pre-trains like `MlmEvaluator`, then fine-tunes a copy of the encoder on each task.

    With `corpus=None` and `weights` it only fine-tunes a checkpoint; rows are then tokenized by
    the checkpoint's own tokenizer. See `FineTuning` for what is kept in the working folder.

    The last report holds, beside `"loss"` of a pre-training, each development set's primary
    metric under its name (`"SST-2"`, .., and `"MNLI-mm"`), each of several official metrics under
    `"<set>/<metric>"`, under `"<set>/majority"` what a constant answer earns, and `"glue"`: where
    all nine columns of the GLUE average are there, that average (and `"glue/without_rte"`; see
    `ms.glue_score`), otherwise the mean over `tasks` of the primary metrics.

    Args:
        glue: Folder with one folder a task, official TSV layout; or `"hf:..."`, see
            `masksearch.tasks.glue.load_glue`.
        tasks: Names of `masksearch.tasks.glue.TASKS` or of planted ones, or `GlueTask`s of
            one's own.
    """

    glue: Path | str
    tasks: tuple[str | GlueTask, ...] = ("SST-2", "QQP", "MNLI")

    streams: ClassVar[tuple[int, int]] = (21, 22)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "glue", glue_place(self.glue))
        object.__setattr__(self, "tasks", tuple(self.tasks))
        names = self.downstream
        if not names or len(set(names)) < len(names):
            raise ValueError(f"tasks must be at least one name, each once, got {names}")

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """The GLUE score, and the mask's sparsity."""
        return (Objective("glue", "max", 0.0), Objective("sparsity", "max", 0.0))

    @property
    def downstream(self) -> tuple[str, ...]:
        """Names of the tasks."""
        return tuple(task_named(task).name for task in self.tasks)

    def glue_task(self, name: str) -> GlueTask:
        """The task of that name among `tasks`."""
        return task_named(self.tasks[self.downstream.index(name)])

    def task_settings(self) -> dict[str, object]:
        """Hashes of the tasks' data and row limits."""
        source = self.data if self.packed_tasks is None else self.tokens
        return {"glue": {name: source(name).digest for name in self.downstream}}

    def data(self, name: str) -> GlueData:
        """A task's rows as text, read once a process."""
        task = self.glue_task(name)
        return read_glue(self.glue, task, self.rows, dev_rows=self.dev_rows, half=self.half)

    def tokenize(self, name: str) -> GlueTokens:
        """A task's tokenized rows."""
        place = (self.glue, self.glue_task(name), self.rows, self.dev_rows, self.half)
        return read_tokens(self.source, *place)

    def task_seed(self, name: str, seed: int) -> int:
        """Every task has its own numbers, whichever others there are."""
        return mixed_seed(seed, task_number(self.glue_task(name)))

    def head(self, encoder: Any, name: str, seed: int) -> nn.Module:
        """A classifier, or a regression where the task has no classes."""
        return SequenceClassifier(encoder, max(1, len(self.glue_task(name).labels)), seed=seed)

    def inputs(self, rows: TokenRows, chosen: list[int]) -> Batch:
        """Those rows, padded, with their classes or scores."""
        return pad_rows([rows[index] for index in chosen], self.source)

    def scores(self, head: nn.Module, name: str) -> dict[str, float]:
        """The metrics of every development set."""
        data, values = self.tokens(name), dict[str, float]()
        for part, rows in data.dev.items():
            logits = torch.stack(self.predict(head, rows))
            found = logits.squeeze(-1) if logits.shape[-1] == 1 else logits.argmax(-1)
            labels = rows.labels.tolist()
            metrics = score(data.task, [float(each) for each in found.tolist()], labels)
            if len(metrics) > 1:
                values |= reported(part, metrics)
            else:
                values[part] = metrics[data.task.primary]
            values[f"{part}/majority"] = majority(data.task, labels)
        return values

    def summary(self, values: Mapping[str, float]) -> dict[str, float]:
        """The GLUE score."""
        if set(COLUMNS) <= set(values):
            found = glue_score(values)
            assert found.nine is not None
            assert found.without_rte is not None
            return {"glue": found.nine, "glue/without_rte": found.without_rte}
        return {"glue": math.fsum(values[name] for name in self.downstream) / len(self.tasks)}


@dataclass(frozen=True, eq=False)
class GlueTokens:
    """A task with its tokenized rows; otherwise like `GlueData`."""

    task: GlueTask
    train: TokenRows
    dev: Mapping[str, TokenRows]
    digest: str


read_glue = lru_cache(maxsize=16)(load_glue)


@lru_cache(maxsize=16)
def read_tokens(
    source: TokenSource,
    folder: Path | str,
    task: GlueTask,
    rows: int | None,
    dev_rows: int | None,
    half: Half,
) -> GlueTokens:
    """A task's tokenized rows, made once a process."""
    data = read_glue(folder, task, rows, dev_rows=dev_rows, half=half)
    train, *dev = (
        TokenRows.of(tokenize_rows(source, part.texts, part.labels))
        for part in (data.train, *data.dev.values())
    )
    return GlueTokens(data.task, train, dict(zip(data.dev, dev, strict=True)), data.digest)
