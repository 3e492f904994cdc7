"""Judges a mask by GLUE: pre-training under the mask, then fine-tuning under it.

evaluator = GlueEvaluator("wikitext-2", "glue", tasks=("SST-2", "QQP"))
*curve, last = evaluator(masks.star(), seed=0, workdir=Path("run"))
print(last.values["glue"], at_majority(last.values))
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Self

from torch import Tensor, nn

from masksearch.contracts import Batch, Objective, mixed_seed
from masksearch.evaluators.finetuning import FineTuning
from masksearch.evaluators.token_rows import (
    TokenRows,
    batches_an_epoch,
    padded,
    sequences,
    shuffled,
)
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

CLASSIFIER, ROW_ORDER = 21, 22  # streams of random numbers


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
        tasks: Names of `masksearch.tasks.glue.TASKS`, or of planted ones.
        rows: Largest number of training rows of a task; a fixed sample.
        dev_rows: The same for the development sets; None = all.
    """

    glue: Path | str
    tasks: tuple[str, ...] = ("SST-2", "QQP", "MNLI")
    rows: int | None = 10_000
    dev_rows: int | None = 2_000
    carried_tasks: Mapping[str, GlueTokens] | None = field(
        default=None, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "glue", glue_place(self.glue))
        object.__setattr__(self, "tasks", tuple(self.tasks))
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"tasks must be at least one name, each once, got {self.tasks}")
        for name in self.tasks:
            task_named(name)
        for limit in ("rows", "dev_rows"):
            value = getattr(self, limit)
            if value is not None and value < 1:
                raise ValueError(f"{limit} must be at least 1, got {value}")
        if self.length < 8:
            raise ValueError(f"GLUE needs a length of at least 8 positions, got {self.length}")

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """The GLUE score, and the mask's sparsity."""
        return (Objective("glue", "max", 0.0), Objective("sparsity", "max", 0.0))

    @property
    def downstream(self) -> tuple[str, ...]:
        """The tasks."""
        return self.tasks

    def task_settings(self) -> dict[str, object]:
        """Hashes of the tasks' data and row limits."""
        source = self.data if self.carried_tasks is None else self.tokens
        return {"glue": {name: source(name).digest for name in self.tasks}}

    def data(self, task: str) -> GlueData:
        """A task's rows as text, read once a process."""
        return read_glue(self.glue, task, self.rows, self.dev_rows)

    def tokens(self, task: str) -> GlueTokens:
        """A task's tokenized rows: the carried ones, or read and tokenized once a process."""
        if self.carried_tasks is not None:
            return self.carried_tasks[task]
        return read_tokens(self.source, self.glue, task, self.rows, self.dev_rows)

    def prepare(self) -> None:
        """Reads and tokenizes every task."""
        for name in self.tasks:
            self.tokens(name)

    def packed(self) -> Self:
        """The same evaluator with corpus and tokenized rows in memory; see `MlmEvaluator`."""
        made = super().packed()
        if made.carried_tasks is None:
            tokens = {name: self.tokens(name) for name in self.tasks}
            object.__setattr__(made, "carried_tasks", tokens)
        return made

    def finetune_steps(self, name: str) -> int:
        """Optimiser steps of a task's fine-tuning."""
        return self.epochs * batches_an_epoch(len(self.tokens(name).train), self.finetune_batch)

    def finetune(
        self, encoder: nn.Module, name: str, table: Tensor, *, seed: int, workdir: Path
    ) -> dict[str, float]:
        """Fine-tunes on one task; scores every development set."""
        data, source = self.tokens(name), self.source
        own = mixed_seed(seed, task_number(name))
        classifier = SequenceClassifier(
            encoder,  # type: ignore[arg-type]
            max(1, len(data.task.labels)),
            seed=mixed_seed(own, CLASSIFIER),
        )
        order = mixed_seed(own, ROW_ORDER)
        self.finetuned(
            classifier,
            lambda start: shuffled(data.train, self.finetune_batch, order, source, start),
            self.finetune_steps(name),
            table,
            name=name,
            seed=seed,
            workdir=workdir,
        )
        values: dict[str, float] = {}
        for part, rows in data.dev.items():
            labels = rows.labels.tolist()
            found = score(data.task, self.predict(classifier, rows), labels)
            values |= reported(part, found) if len(found) > 1 else {part: found[data.task.primary]}
            values[f"{part}/majority"] = majority(data.task, labels)
        return values

    def predict(self, classifier: nn.Module, rows: TokenRows) -> list[float]:
        """Class numbers, or scores of a regression, in the order of the rows."""
        predictions = [0.0] * len(rows)

        def inputs(chosen: list[int]) -> Batch:
            return padded([rows[index] for index in chosen], self.source)

        for chosen, logits in self.predicted(classifier, rows.lengths, inputs):
            found = logits.squeeze(-1) if logits.shape[-1] == 1 else logits.argmax(-1)
            for index, value in zip(chosen, found.tolist(), strict=True):
                predictions[index] = float(value)
        return predictions

    def summary(self, values: Mapping[str, float]) -> dict[str, float]:
        """The GLUE score."""
        if set(COLUMNS) <= set(values):
            found = glue_score(values)
            assert found.nine is not None
            assert found.without_rte is not None
            return {"glue": found.nine, "glue/without_rte": found.without_rte}
        return {"glue": math.fsum(values[name] for name in self.tasks) / len(self.tasks)}


@dataclass(frozen=True, eq=False)
class GlueTokens:
    """A task with its tokenized rows; otherwise like `GlueData`."""

    task: GlueTask
    train: TokenRows
    dev: Mapping[str, TokenRows]
    digest: str


@lru_cache(maxsize=16)
def read_glue(folder: Path | str, task: str, rows: int | None, dev_rows: int | None) -> GlueData:
    """A task's rows, read once a process."""
    return load_glue(folder, task, rows, dev_rows=dev_rows)


@lru_cache(maxsize=16)
def read_tokens(
    source: TokenSource, folder: Path | str, task: str, rows: int | None, dev_rows: int | None
) -> GlueTokens:
    """A task's tokenized rows, made once a process."""
    data = read_glue(folder, task, rows, dev_rows)
    dev = {
        name: TokenRows.of(sequences(source, part.texts, part.labels))
        for name, part in data.dev.items()
    }
    train = TokenRows.of(sequences(source, data.train.texts, data.train.labels))
    return GlueTokens(data.task, train, dev, data.digest)
