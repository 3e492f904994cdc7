"""Judges a mask by GLUE: pre-training under the mask, then fine-tuning under it.

evaluator = GlueEvaluator("wikitext-2", "glue", tasks=("SST-2", "QQP"))
*curve, last = evaluator(masks.star(), seed=0, workdir=Path("run"))
print(last.values["glue"], at_majority(last.values))
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Self, overload

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from masksearch import masks
from masksearch.contracts import Batch, Objective, Report, generator, mixed_seed
from masksearch.evaluators.mlm import MlmEvaluator, moved
from masksearch.masks.core import Mask
from masksearch.masks.lower import lower
from masksearch.models.attach import attach, detach
from masksearch.models.heads import MaskedLanguageModel, SequenceClassifier
from masksearch.tasks.corpus import Corpus, short_hash, small
from masksearch.tasks.glue import (
    TASKS,
    GlueData,
    GlueTask,
    Rows,
    load_glue,
    majority,
    score,
    task_named,
)
from masksearch.train import TrainConfig, train

CLASSIFIER, ROW_ORDER = 21, 22  # streams of random numbers
WIDTH = 16  # batches are padded to a multiple of that many positions
POOL = 50  # batches of similar length are formed among that many batches' rows
CHECKPOINT = "pretrained.safetensors"


@dataclass(frozen=True)
class GlueEvaluator(MlmEvaluator):
    """Pre-trains like `MlmEvaluator`, then fine-tunes a copy of the encoder on each task.

    Every sequence sees the mask at the evaluator's `length`. A batch of shorter ones is
    computed on the mask's top-left corner, which gives the same numbers as padding to `length`,
    because padded keys are hidden anyway, in less time.

    A finished pre-training is kept in the working folder and found there again.

    Args:
        glue: Folder with one folder a task, official TSV layout.
        tasks: Names of `masksearch.tasks.glue.TASKS`.
        rows: Largest number of training rows of a task; a fixed sample.
        dev_rows: The same for the development sets; None = all.
        epochs: Passes over the training rows.
        finetune_lr: Peak learning rate of fine-tuning.
        finetune_batch: Rows of a fine-tuning batch.
    """

    glue: Path | str
    tasks: tuple[str, ...] = ("SST-2", "QQP", "MNLI")
    rows: int | None = 10_000
    dev_rows: int | None = 2_000
    epochs: int = 3
    finetune_lr: float = 5e-4
    finetune_batch: int = 32
    carried_tasks: Mapping[str, GlueTokens] | None = field(
        default=None, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "glue", Path(self.glue).expanduser().resolve())
        object.__setattr__(self, "tasks", tuple(self.tasks))
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"tasks must be at least one name, each once, got {self.tasks}")
        for name in self.tasks:
            task_named(name)
        for limit in ("epochs", "finetune_batch", "rows", "dev_rows"):
            value = getattr(self, limit)
            if value is not None and value < 1:
                raise ValueError(f"{limit} must be at least 1, got {value}")
        if self.length < 8:
            raise ValueError(f"GLUE needs a length of at least 8 positions, got {self.length}")

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """Mean of the tasks' primary metrics, and the mask's sparsity."""
        return (Objective("glue", "max", 0.0), Objective("sparsity", "max", 0.0))

    def settings(self) -> dict[str, object]:
        """Everything that a score depends on, beside mask and seed."""
        source = self.data if self.carried_tasks is None else self.tokens
        return super().settings() | {
            "glue": {name: source(name).digest for name in self.tasks},
            "epochs": self.epochs,
            "finetune_lr": self.finetune_lr,
            "finetune_batch": self.finetune_batch,
        }

    def data(self, task: str) -> GlueData:
        """A task's rows as text, read once a process."""
        return read_glue(self.glue, task, self.rows, self.dev_rows)

    def tokens(self, task: str) -> GlueTokens:
        """A task's tokenized rows: the carried ones, or read and tokenized once a process."""
        if self.carried_tasks is not None:
            return self.carried_tasks[task]
        return read_tokens(self.task().corpus, self.glue, task, self.rows, self.dev_rows)

    def packed(self) -> Self:
        """The same evaluator with corpus and tokenized rows in memory; see `MlmEvaluator`."""
        made = super().packed()
        if made.carried_tasks is None:
            tokens = {name: self.tokens(name) for name in self.tasks}
            object.__setattr__(made, "carried_tasks", tokens)
        return made

    def __call__(self, mask: Mask, *, seed: int, workdir: Path) -> Iterator[Report]:
        """Yields pre-training reports `{"loss": ..}`, then one with every score.

        Yields:
            At last a report with `"glue"` (mean of the primary metrics), `"loss"`, each task's
            primary metric under its name (and `"MNLI-mm"`), and under `"<task>/majority"` what
            a constant answer earns.

        Raises:
            DataError: Before any training, if a task cannot be read.
        """
        table = lower(mask, self.shape)
        data = {name: self.tokens(name) for name in self.tasks}
        model = self.model(seed)
        key = short_hash(self.protocol, mask.digest, str(seed))
        loss = restore(model, workdir / CHECKPOINT, key)
        if loss is None:
            for report in self.pretrain(model, mask, seed=seed):
                yield report
                loss = report.values["loss"]
            assert loss is not None  # train() yields at least one step
            save(model, workdir / CHECKPOINT, key, loss)
        else:
            yield Report(self.steps, {"loss": loss})
        detach(model, missing_ok=True)
        values = {"loss": loss}
        steps = self.steps
        for name in self.tasks:
            values |= self.finetune(model, data[name], table, seed=seed)
            steps += self.finetune_config(data[name]).steps
        values["glue"] = math.fsum(values[name] for name in self.tasks) / len(self.tasks)
        yield Report(steps, values)

    def finetune_config(self, data: GlueTokens) -> TrainConfig:
        """Settings of a task's fine-tuning."""
        steps = self.epochs * math.ceil(len(data.train) / self.finetune_batch)
        return TrainConfig(steps=steps, lr=self.finetune_lr)

    def finetune(
        self, model: MaskedLanguageModel, data: GlueTokens, table: Tensor, *, seed: int
    ) -> dict[str, float]:
        """Fine-tunes a copy of the encoder on one task.

        Args:
            model: The pre-trained model, without a mask; left as it is.
            data: The task.
            table: The mask, bool `[layers, heads, length, length]`.
            seed: Seed of the evaluation.

        Returns:
            `"<set>"` and `"<set>/majority"` for every development set: primary metrics.
        """
        corpus, task = self.task().corpus, data.task
        seed = mixed_seed(seed, list(TASKS).index(task.name))
        classifier = SequenceClassifier(
            copy.deepcopy(model.encoder),
            max(1, len(task.labels)),
            seed=mixed_seed(seed, CLASSIFIER),
        ).to(self.place)
        attach(classifier, masks.cropped(masks.table(table), self.length))
        batches = shuffled(data.train, self.finetune_batch, mixed_seed(seed, ROW_ORDER), corpus)
        config = self.finetune_config(data)
        for _ in train(classifier, moved(batches, self.place), config, self.loss):
            pass
        values = {}
        for name, part in data.dev.items():
            predictions, labels = self.predict(classifier, part, corpus), part.labels.tolist()
            values[name] = score(task, predictions, labels)[task.metrics[0]]
            values[f"{name}/majority"] = majority(task, labels)
        return values

    def predict(
        self, classifier: SequenceClassifier, rows: Sequence[Row], corpus: Corpus
    ) -> list[float]:
        """Class numbers, or scores of a regression, in the order of the rows."""
        order = sorted(range(len(rows)), key=lambda index: len(rows[index].ids))
        predictions = [0.0] * len(rows)
        classifier.eval()
        with torch.no_grad():
            for start in range(0, len(order), 64):
                chosen = order[start : start + 64]
                batch = padded([rows[index] for index in chosen], corpus)
                batch = {name: part.to(self.place) for name, part in batch.items()}
                del batch["labels"]
                with torch.autocast(
                    self.place.type, torch.bfloat16, enabled=self.precision == "bfloat16"
                ):
                    logits = classifier(**batch).logits.float()
                found = logits.squeeze(-1) if logits.shape[-1] == 1 else logits.argmax(-1)
                for index, value in zip(chosen, found.tolist(), strict=True):
                    predictions[index] = float(value)
        return predictions


@dataclass(frozen=True)
class Row:
    """A tokenized example: `[CLS] a [SEP]` or `[CLS] a [SEP] b [SEP]`."""

    ids: list[int]
    first: int  # positions of the first segment
    label: float  # a score, or a class number (an int)


@dataclass(frozen=True, eq=False)
class TokenRows(Sequence[Row]):
    """Many rows in four arrays, in memory and in a pickle; a row is made where it is read.

    Args:
        ids: Every row's ids, one row after the other.
        ends: Where each row's ids end.
        firsts: Each row's `first`.
        labels: Each row's label: integers, or floats of a regression.
    """

    ids: NDArray[Any] = field(repr=False)
    ends: NDArray[Any] = field(repr=False)
    firsts: NDArray[Any] = field(repr=False)
    labels: NDArray[Any] = field(repr=False)

    @classmethod
    def of(cls, rows: Sequence[Row]) -> TokenRows:
        """Those rows (one or more), integers in the smallest type that holds them."""
        labels = np.array([row.label for row in rows])
        return cls(
            small(np.concatenate([row.ids for row in rows])),
            small(np.cumsum([len(row.ids) for row in rows])),
            small(np.array([row.first for row in rows])),
            labels if labels.dtype.kind == "f" else small(labels),
        )

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self[each] for each in range(len(self))[index]]
        index = range(len(self))[index]
        start = int(self.ends[index - 1]) if index else 0
        ids = self.ids[start : int(self.ends[index])].tolist()
        return Row(ids, int(self.firsts[index]), self.labels[index].item())


@dataclass(frozen=True, eq=False)
class GlueTokens:
    """A task with its tokenized rows; otherwise like `GlueData`."""

    task: GlueTask
    train: TokenRows
    dev: Mapping[str, TokenRows]
    digest: str


def sequences(corpus: Corpus, rows: Rows) -> list[Row]:
    """Tokenizes rows; where they are too long, the end of the longer text is cut."""
    special, pairs = corpus.special, len(rows.texts[0]) == 2
    columns = [corpus.encode([text[part] for text in rows.texts]) for part in range(1 + pairs)]
    found = []
    for index, label in enumerate(rows.labels):
        one = columns[0][index]
        two = columns[1][index] if pairs else []
        spare = corpus.length - 2 - pairs
        if len(one) + len(two) > spare:
            half = spare // 2
            if len(one) <= half:
                two = two[: spare - len(one)]
            elif len(two) <= half:
                one = one[: spare - len(two)]
            else:
                one, two = one[: spare - half], two[:half]
        ids = [special["cls"], *one, special["sep"]]
        first = len(ids)
        if pairs:
            ids += [*two, special["sep"]]
        found.append(Row(ids, first, label))
    return found


def padded(rows: list[Row], corpus: Corpus) -> Batch:
    """One batch: ids, attention mask, segment ids `[rows, width]` and labels `[rows]`."""
    longest = max(len(row.ids) for row in rows)
    width = min(corpus.length, -(-longest // WIDTH) * WIDTH)
    lengths = torch.tensor([[len(row.ids)] for row in rows])
    first = torch.tensor([[row.first] for row in rows])
    at = torch.arange(width)
    pad = corpus.special["pad"]
    ids = [row.ids + [pad] * (width - len(row.ids)) for row in rows]
    labels = torch.tensor([row.label for row in rows])
    return {
        "input_ids": torch.tensor(ids),
        "attention_mask": (at < lengths).long(),
        "token_type_ids": ((at >= first) & (at < lengths)).long(),
        "labels": labels,
    }


def shuffled(rows: Sequence[Row], size: int, seed: int, corpus: Corpus) -> Iterator[Batch]:
    """Endless batches of similar length; every row comes once an epoch."""
    random = generator(seed)
    while True:
        order = torch.randperm(len(rows), generator=random).tolist()
        batches = []
        for start in range(0, len(order), POOL * size):
            pool = sorted(order[start : start + POOL * size], key=lambda i: len(rows[i].ids))
            batches += [pool[first : first + size] for first in range(0, len(pool), size)]
        for index in torch.randperm(len(batches), generator=random).tolist():
            yield padded([rows[i] for i in batches[index]], corpus)


@lru_cache(maxsize=16)
def read_glue(folder: Path | str, task: str, rows: int | None, dev_rows: int | None) -> GlueData:
    """A task's rows, read once a process."""
    return load_glue(folder, task, rows, dev_rows=dev_rows)


@lru_cache(maxsize=16)
def read_tokens(
    corpus: Corpus, folder: Path | str, task: str, rows: int | None, dev_rows: int | None
) -> GlueTokens:
    """A task's tokenized rows, made once a process."""
    data = read_glue(folder, task, rows, dev_rows)
    dev = {name: TokenRows.of(sequences(corpus, part)) for name, part in data.dev.items()}
    train = TokenRows.of(sequences(corpus, data.train))
    return GlueTokens(data.task, train, dev, data.digest)


def save(model: nn.Module, path: Path, key: str, loss: float) -> None:
    """Keeps the pre-trained weights, in one move."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    weights = {name: weight.contiguous() for name, weight in model.state_dict().items()}
    save_file(weights, partial, {"key": key, "loss": repr(loss)})
    partial.replace(path)


def restore(model: nn.Module, path: Path, key: str) -> float | None:
    """Loads weights that were kept under the same key; returns their loss, else None."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("key") != key:
                return None
            weights = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        warnings.warn(f"{path} is corrupt ({error}); pre-training again", stacklevel=3)
        return None
    model.load_state_dict(weights)
    return float(metadata["loss"])
