"""What the evaluators of downstream tasks share: their rows, settings, batches and trainings."""

from __future__ import annotations

import copy
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, Self, get_args

import torch
from torch import Tensor, nn

from masksearch.analysis.row_scores import RowScores
from masksearch.contracts import Batch, Half, Objective, Shape, mixed_seed
from masksearch.errors import check_name
from masksearch.evaluators.frozen_layers import freeze
from masksearch.evaluators.mlm import MlmEvaluator, autocast
from masksearch.evaluators.pretraining_task import move_batches
from masksearch.evaluators.token_rows import (
    Vocabulary,
    batches_an_epoch,
    batches_by_length,
    bucket_batches,
    pooled_lengths,
    read_vocabulary,
)
from masksearch.files import write_in_one_move
from masksearch.models.pretrained import rows_read
from masksearch.tasks.text.corpus import Corpus
from masksearch.tasks.text.tokenizer import TokenSource
from masksearch.training.checkpoints import Checkpoints
from masksearch.training.distributed import group
from masksearch.training.loop import TrainConfig, train

log = logging.getLogger(__name__)


ROUND, DROPOUT = 25, 26  # streams of random numbers
Adapt = Literal["none", "recover", "finetune"]
LearnFrom = Literal["labels", "dense"]
LABELS = ("labels", "start_positions", "end_positions")  # in a batch: what is learnt from


@dataclass(frozen=True, eq=False)
class TaskScores:
    """What a trained head has scored.

    Args:
        values: Name -> score.
        rows: The same row by row, with the weights of its parts in the first objective; None =
            not known.
    """

    values: dict[str, float]
    rows: RowScores | None = None


class TaskTokens(Protocol):
    """A task's tokenized rows; a part of them has `lengths`, `len()` and rows by number."""

    @property
    def train(self) -> Any:
        """What is trained on; the evaluator scores what else there is."""
        ...

    @property
    def digest(self) -> str:
        """Hash of the data and of the row limits."""
        ...


def read_scores(path: Path, key: str) -> dict[str, dict[str, float]]:
    """Scores of finished fine-tuning runs, by task and number; those under another key are not
    given."""
    if not path.is_file():
        return {}
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        return dict(stored["scores"]) if stored["key"] == key else {}
    except (ValueError, KeyError, TypeError) as error:
        log.warning("%s is damaged (%s); its tasks are fine-tuned again", path, error)
        return {}


def write_scores(path: Path, key: str, scores: Mapping[str, Mapping[str, float]]) -> None:
    """Keeps the scores of finished runs, in one move; several processes once."""
    if group().first:
        with write_in_one_move(path) as beside:
            beside.write_text(json.dumps({"key": key, "scores": scores}, indent=1), "utf-8")


@dataclass(frozen=True)
class DownstreamEvaluator(MlmEvaluator, ABC):
    """The tasks of an evaluator that fine-tunes; see `FineTuning`."""

    _: KW_ONLY
    rows: int | None = 10_000
    dev_rows: int | None = 2_000
    finetune_lr: float | None = None
    finetune_batch: int = 32
    epochs: int = 3
    finetune_seeds: int = 1
    frozen: int | Literal["all"] | None = None
    adapt: Adapt = "finetune"
    recover_steps: int = 100
    recover_lr: float | None = None
    learn_from: LearnFrom = "labels"
    packed_source: Vocabulary | None = field(default=None, init=False, repr=False, compare=False)
    packed_tasks: Mapping[str, Any] | None = field(
        default=None, init=False, repr=False, compare=False
    )

    needs_corpus: ClassVar[bool] = False
    streams: ClassVar[tuple[int, int]]
    head_reads: ClassVar[int | None] = None  # leading rows of hidden states that `head` reads

    def __post_init__(self) -> None:
        super().__post_init__()
        limits = ("epochs", "finetune_batch", "finetune_seeds", "rows", "dev_rows")
        for limit in (*limits, "recover_steps"):
            value = getattr(self, limit)
            if value is not None and value < 1:
                raise ValueError(f"{limit} must be at least 1, got {value}")
        if self.length < 8:
            raise ValueError(
                f"fine-tuning needs a length of at least 8 positions, got {self.length}"
            )
        TrainConfig(steps=1, lr=self.rate("finetune_lr"))
        for name, known in {"adapt": Adapt, "learn_from": LearnFrom}.items():
            check_name(name, getattr(self, name), get_args(known))
        if self.recover_lr is not None and not self.recover_lr > 0:
            raise ValueError(f"recover_lr must be positive, got {self.recover_lr}")
        if self.adapt != "finetune" and (self.weights is None or self.corpus is not None):
            stray = "has no weights" if self.weights is None else "also has a corpus"
            raise ValueError(
                f"adapt={self.adapt!r} puts masks on a fine-tuned checkpoint, and this evaluator "
                f"{stray}; give weights= and corpus=None, or adapt='finetune'"
            )
        if not (self.frozen in (None, "all") or (type(self.frozen) is int and self.frozen >= 0)):
            raise ValueError(
                f"frozen is a number of layers (>= 0), 'all' or None, got {self.frozen!r}"
            )

    # -- what a subclass says ------------------------------------------------------------------
    @property
    @abstractmethod
    def downstream(self) -> tuple[str, ...]:
        """Names of the tasks, in order."""

    @abstractmethod
    def task_settings(self) -> dict[str, object]:
        """What the scores depend on beside `MlmEvaluator`'s settings and the fields below."""

    @abstractmethod
    def tokenize(self, name: str) -> TaskTokens:
        """Reads and tokenizes a task's rows, once a process.

        Raises:
            DataError: If they cannot be read.
        """

    @abstractmethod
    def head(self, encoder: Any, name: str, seed: int) -> nn.Module:
        """A new head of a task on `encoder`; `head(**inputs).loss` is what is trained."""

    @abstractmethod
    def inputs(self, rows: Any, chosen: list[int]) -> Batch:
        """A padded batch of those rows, `LABELS` included."""

    @abstractmethod
    def scores(self, head: nn.Module, name: str) -> TaskScores:
        """Score of a trained head -> value; of a name that ends in `/majority` what knowing
        nothing earns, of one in `/low` the lower end of the score's interval over rows."""

    def summary(self, values: Mapping[str, float]) -> dict[str, float]:
        """What the last report adds, given every score; by default nothing."""
        return {}

    def sequence_lengths(self, rows: Any) -> Sequence[int]:
        """Tokens of every sequence of a task's training rows."""
        found: Sequence[int] = rows.lengths
        return found

    def task_seed(self, name: str, seed: int) -> int:
        """The seed of a task's head and order; tasks of one evaluator may have their own."""
        return seed

    # -- what is shared ------------------------------------------------------------------------
    @property
    def shape(self) -> Shape:
        """What a mask is lowered to, how many tokens the training rows have, and which rows of
        the last layer are read."""
        shape = super().shape
        if self.half == "all":
            return shape
        return replace(shape, lengths=self.lengths, read=self.read)

    @cached_property
    def read(self) -> int | None:
        """Leading rows of the last layer that reach a score; None = all. A pre-training reads all
        of them."""
        if self.half == "all" or self.corpus is not None:
            return None
        tuned = self.adapt != "finetune"
        return rows_read(self.start.locate(), self.head_reads, tuned=tuned)

    @cached_property
    def lengths(self) -> dict[int, int]:
        """How many training sequences have how many tokens; see `pooled_lengths`."""
        tasks = [self.sequence_lengths(self.tokens(name).train) for name in self.downstream]
        return pooled_lengths(tasks, self.length)

    @property
    def sparsity(self) -> Objective:
        """The second objective: sparsity over pairs of tokens, since rows are padded."""
        return Objective("sparsity" if self.half == "all" else "effective_sparsity", "max", 0.0)

    @property
    def text_half(self) -> Half:
        """Rows of the tasks' test sets go with the final half of the pre-training's text."""
        return "final" if self.half == "test" else self.half

    def check_rows(self) -> None:
        """Raises a DataError if the half has no rows, of a task or of the text."""
        super().check_rows()
        self.task_settings()

    def data_hashes(self) -> dict[str, str]:
        """Hashes of the text, of the checkpoint and of the tasks' rows."""
        named = super().data_hashes()
        for name, found in self.task_settings().items():  # of one task, or of each by its name
            each = found if isinstance(found, Mapping) else {name: found}
            named |= {task: value for task, value in each.items() if isinstance(value, str)}
        return named

    def settings(self) -> dict[str, object]:
        """Everything that a score depends on, beside mask and seed."""
        found = super().settings()
        if self.corpus is None:
            found["data"] = self.source.digest
        found |= self.task_settings()
        found["epochs"], found["finetune_lr"] = self.epochs, self.rate("finetune_lr")
        found["finetune_batch"] = self.finetune_batch
        later = {  # hashed where they are not the default
            "finetune_seeds": 1,
            "frozen": None,
            "adapt": "finetune",
            "learn_from": "labels",
            **({"recover_steps": 0, "recover_lr": None} if self.adapt == "recover" else {}),
            "read": None,  # decides what sparsity counts, though no score
        }
        own = {name: getattr(self, name) for name in later}
        return found | {name: value for name, value in own.items() if value != later[name]}

    @property
    def source(self) -> TokenSource:
        """What turns the tasks' text into ids: the corpus, or the checkpoint's tokenizer."""
        if self.corpus is not None:
            corpus: Corpus = self.task().corpus
            return corpus
        if self.packed_source is not None:
            return self.packed_source
        self.start.shape(self.length)
        made = read_vocabulary(self.tokenizer or self.start.tokenizer_source, self.length)
        self.start.check_tokens(made.vocabulary, made.special["pad"])
        return made

    def tokens(self, name: str = "") -> Any:
        """A task's tokenized rows: the packed ones, or read and tokenized once a process.

        Args:
            name: The task; empty = the first.
        """
        name = name or self.downstream[0]
        return self.tokenize(name) if self.packed_tasks is None else self.packed_tasks[name]

    def packed(self) -> Self:
        """The same evaluator with corpus and tokenized rows in memory; see `MlmEvaluator`."""
        if self.packed_tasks is not None:
            return self
        if self.corpus is not None:
            made = super().packed()
        else:
            made = copy.copy(self)
            object.__setattr__(made, "packed_start", self.start)
            object.__setattr__(made, "packed_source", self.source)
        tokens = {name: self.tokens(name) for name in self.downstream}
        object.__setattr__(made, "packed_tasks", tokens)
        return made

    def steps_of(self, name: str) -> int:
        """Optimiser steps under a mask, of a task."""
        if self.adapt == "finetune":
            return self.finetune_steps(name)
        return self.recover_steps if self.adapt == "recover" else 0

    def finetune_steps(self, name: str) -> int:
        """Optimiser steps of a task's fine-tuning."""
        return self.epochs * batches_an_epoch(len(self.tokens(name).train), self.finetune_batch)

    def new_head(self, encoder: nn.Module, name: str, seed: int) -> nn.Module:
        """A task's head on an encoder, where the training is."""
        drawn = mixed_seed(self.task_seed(name, seed), self.streams[0])
        return self.head(encoder, name, drawn).to(self.place)

    def fit(
        self,
        head: nn.Module,
        name: str,
        config: TrainConfig,
        checkpoints: Checkpoints,
        key: str,
        *,
        order: int,
        noise: int,
        loss: Callable[[nn.Module, Batch], Tensor] | None = None,
        title: str = "",
    ) -> None:
        """Trains a head, and the layers below it that are not frozen, on a task's rows.

        Args:
            head: Trained in place.
            name: The task.
            config: Steps and rate.
            checkpoints: Where the state is kept.
            key: Of the run; checkpoints of others are not taken.
            order: Seed of the order of the rows.
            noise: Seed of the dropout.
            loss: Scalar loss of (head, batch); None = the head's own.
            title: What is trained, for a display.
        """
        freeze(head.get_submodule("encoder"), self.frozen)
        rows = self.tokens(name).train
        run = train(
            head,
            lambda start: move_batches(self.batches(rows, order, start), self.place),
            config,
            loss or self.loss,
            checkpoints=checkpoints,
            checkpoint_seconds=self.checkpoint_seconds,
            key=key,
            noise_seed=noise,
            title=title,
        )
        for _ in run:
            pass

    def batches(self, rows: Any, seed: int, start: int = 0) -> Iterator[Batch]:
        """Endless batches of similar length from number `start` on; see `bucket_batches`."""
        for chosen in bucket_batches(rows.lengths, self.finetune_batch, seed, start):
            yield self.inputs(rows, chosen)

    def predict(self, head: nn.Module, rows: Any) -> list[Tensor]:
        """Logits of every row, in their order: float32, on the CPU.

        Args:
            head: A trained one; put into evaluation mode.
            rows: As in `inputs`.
        """
        head.eval()
        found: dict[int, Tensor] = {}
        for chosen in batches_by_length(rows.lengths):
            inputs = self.inputs(rows, chosen)
            batch = {n: part.to(self.place) for n, part in inputs.items() if n not in LABELS}
            with torch.no_grad(), autocast(batch, self.precision):
                logits = head(**batch).logits
            found |= zip(chosen, logits.float().cpu(), strict=True)
        return [found[index] for index in range(len(rows))]


def training_name(name: str, seed: int) -> str:
    """Name of a fine-tuning's checkpoints."""
    return f"finetuning.{name}.{seed:x}"


def run_seed(seed: int, number: int) -> int:
    """The seed of a task's fine-tuning run; of run 0 that of the evaluation."""
    return mixed_seed(seed, ROUND, number) if number else seed
