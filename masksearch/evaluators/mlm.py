"""Judges a mask by masked-language-model pre-training on text of the user's own.

evaluator = MlmEvaluator("wikitext-2", steps=800)
for report in evaluator(masks.star(), seed=0, workdir=Path("run")):
    print(report.step, report.values["loss"])
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import KW_ONLY, asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal, Self

import torch
from torch import Tensor, nn

from masksearch.contracts import (
    Batch,
    Differentiable,
    Objective,
    Report,
    Shape,
    mixed_seed,
)
from masksearch.masks.core import Mask
from masksearch.masks.lower import lower
from masksearch.models.attach import attach
from masksearch.models.heads import MaskedLanguageModel
from masksearch.models.sizes import encoder, initial_spread, size_named
from masksearch.tasks.corpus import Corpus, short_hash
from masksearch.tasks.mlm import MlmTask
from masksearch.train import TrainConfig, train

WEIGHTS, HEAD, DATA = 11, 12, 13  # streams of random numbers


@dataclass(frozen=True)
class MlmEvaluator:
    """Trains a small BERT from scratch under the mask; the score is its held-out loss.

    The weights, the order of the data and what is hidden derive from the seed alone, so that
    masks judged with one seed differ in nothing but the mask.

    Args:
        corpus: A text file or a folder of `*.txt` files.
        steps: Optimiser steps of pre-training.
        size: A name of `masksearch.models.sizes.SIZES`.
        length: Positions of a sequence.
        vocabulary: Size of the vocabulary that is trained where `tokenizer` is None.
        batch: Sequences of a batch.
        lr: Peak learning rate of AdamW.
        initializer_range: Standard deviation of the initial weights; None = BERT's 0.02 at a
            width of 768, scaled by 1 / sqrt(width) (0.049 for "tiny").
        tokenizer: A tokenizer on disk, or its name on the Hugging Face Hub.
        held_out: Text to hold out; default: see `Corpus.load`.
        held_out_sequences: Largest number of held-out sequences in a report.
        reports: Number of reports; their steps double up to `steps`.
        cache: Folder of the token cache; default: see `Corpus.load`.
        device: `"cpu"`, `"cuda"`, .., or `"auto"`: the GPU where there is one.
        precision: `"float32"`, or `"bfloat16"` for autocast.

    Raises:
        DataError: When it is called, or asked for its protocol, and the corpus is missing,
            too small or not UTF-8.
    """

    corpus: Path | str
    _: KW_ONLY
    steps: int = 800
    size: str = "tiny"
    length: int = 128
    vocabulary: int = 4096
    batch: int = 32
    lr: float = 2e-3
    initializer_range: float | None = None
    tokenizer: str | Path | None = None
    held_out: Path | str | None = None
    held_out_sequences: int = 512
    reports: int = 8
    cache: Path | None = None
    device: str = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"
    carried: Corpus | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.reports < 1:
            raise ValueError(f"reports must be at least 1, got {self.reports}")
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision is float32 or bfloat16, got {self.precision!r}")
        size_named(self.size)
        self.train_config  # noqa: B018  (checks steps and lr)
        # Workers may run in another folder.
        object.__setattr__(self, "corpus", Path(self.corpus).expanduser().resolve())
        if self.held_out is not None:
            object.__setattr__(self, "held_out", Path(self.held_out).expanduser().resolve())
        if self.tokenizer is not None and Path(self.tokenizer).expanduser().exists():
            object.__setattr__(self, "tokenizer", Path(self.tokenizer).expanduser().resolve())

    @property
    def shape(self) -> Shape:
        """What a mask is lowered to."""
        size = size_named(self.size)
        return Shape(self.length, size.layers, size.heads)

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """Held-out loss in nats a token (worst: a uniform guess) and the mask's sparsity."""
        return (
            Objective("loss", "min", math.log(self.vocabulary)),
            Objective("sparsity", "max", 0.0),
        )

    @property
    def train_config(self) -> TrainConfig:
        """Settings of the pre-training."""
        return TrainConfig(steps=self.steps, lr=self.lr)

    @property
    def protocol(self) -> str:
        """Hash of the data, the model and the training; reads the corpus."""
        return short_hash("mlm-1", repr(self.settings()))

    def settings(self) -> dict[str, object]:
        """Everything that a pre-training loss depends on, beside mask and seed."""
        task = self.task()
        width = size_named(self.size).width
        return {
            "data": task.corpus.digest,
            "size": asdict(size_named(self.size)),
            "train": self.train_config.identity,
            "batch": self.batch,
            "initializer_range": self.initializer_range or initial_spread(width),
            "probability": task.probability,
            "held_out": self.held_out_sequences,
            "precision": self.precision,
        }

    def packed(self) -> Self:
        """The same evaluator with its data in memory, for machines that do not see its files.

        A `dataclasses.replace` of it holds no data: another length or vocabulary is another
        corpus, and is read.

        Raises:
            DataError: If the data cannot be read here.
        """
        if self.carried is not None:
            return self
        made = copy.copy(self)
        object.__setattr__(made, "carried", self.task().corpus)
        return made

    def task(self) -> MlmTask:
        """The pre-training task; the corpus is read once a process."""
        corpus = self.carried or read_corpus(
            self.corpus, self.tokenizer, self.vocabulary, self.length, self.cache, self.held_out
        )
        return MlmTask(corpus, self.batch, held_out_sequences=self.held_out_sequences)

    def model(self, seed: int) -> MaskedLanguageModel:
        """A fresh model without a mask, its weights drawn from `seed`."""
        vocabulary = self.task().corpus.vocabulary
        body = encoder(
            self.size,
            vocabulary,
            self.length,
            seed=mixed_seed(seed, WEIGHTS),
            initializer_range=self.initializer_range,
        )
        return MaskedLanguageModel(body, seed=mixed_seed(seed, HEAD)).to(self.place)

    @property
    def place(self) -> torch.device:
        """The device that trains."""
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device(self.device)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Loss of a batch at the evaluator's precision."""
        with torch.autocast(self.place.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            loss: Tensor = model(**batch).loss
        return loss

    def differentiable(self, seed: int) -> Differentiable:
        """What a one-shot search trains on: the same model and data, without a mask."""
        task = self.task()
        even, odd = (
            replace(task, corpus=replace(task.corpus, train=task.corpus.train[part::2]))
            for part in (0, 1)
        )
        return Differentiable(
            self.model(seed),
            moved(task.batches(mixed_seed(seed, DATA)), self.place),
            list(moved(iter(task.held_out()), self.place)),
            (
                moved(even.batches(mixed_seed(seed, DATA)), self.place),
                moved(odd.batches(mixed_seed(seed, DATA)), self.place),
            ),
        )

    def pretrain(self, model: MaskedLanguageModel, mask: Mask, *, seed: int) -> Iterator[Report]:
        """Trains a fresh `self.model(seed)` in place under the mask, which stays on it.

        Yields:
            Reports with the held-out loss; the last one at `steps`.
        """
        task = self.task()
        held_out = list(moved(iter(task.held_out()), self.place))
        attach(model, mask, inputs={"input_ids": held_out[0]["input_ids"][:1]})
        batches = moved(task.batches(mixed_seed(seed, DATA)), self.place)
        due = report_steps(self.steps, self.reports)
        for step in train(model, batches, self.train_config, self.loss):
            if step.number in due:
                yield Report(step.number, {"loss": self.held_out_loss(model, held_out)})

    def held_out_loss(self, model: nn.Module, batches: list[Batch]) -> float:
        """Mean cross-entropy of the hidden held-out tokens, in nats; the mode is restored."""
        training = model.training
        model.eval()
        total, tokens = 0.0, 0
        with torch.no_grad():
            for batch in batches:
                count = int((batch["labels"] != -100).sum())
                total += self.loss(model, batch).item() * count
                tokens += count
        model.train(training)
        return total / tokens

    def __call__(self, mask: Mask, *, seed: int, workdir: Path) -> Iterator[Report]:
        """Yields reports `{"loss": ..}`; the last one, at `steps`, is the result."""
        lower(mask, self.shape)  # refuses a mask that does not fit before anything is read
        yield from self.pretrain(self.model(seed), mask, seed=seed)


def report_steps(steps: int, count: int) -> tuple[int, ...]:
    """At most `count` steps, each about twice the one before, the last at `steps`.

    >>> report_steps(800, 8)
    (6, 12, 25, 50, 100, 200, 400, 800)
    """
    return tuple(sorted({max(1, steps >> halvings) for halvings in range(count)}))


def moved(batches: Iterator[Batch], place: torch.device) -> Iterator[Batch]:
    """The batches on that device."""
    for batch in batches:
        yield {name: tensor.to(place) for name, tensor in batch.items()}


@lru_cache(maxsize=4)
def read_corpus(
    path: Path | str,
    tokenizer: str | Path | None,
    vocabulary: int,
    length: int,
    cache: Path | None,
    held_out: Path | str | None,
) -> Corpus:
    """The corpus, read once a process."""
    return Corpus.load(
        path,
        tokenizer=tokenizer,
        vocabulary=vocabulary,
        length=length,
        cache=cache,
        held_out=held_out,
    )
