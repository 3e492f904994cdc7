"""What the evaluators that fine-tune share: pre-training, then copies of the encoder on tasks."""

from __future__ import annotations

import copy
import json
import logging
import shutil
import statistics
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from masksearch import masks
from masksearch.analysis.row_scores import ROWS, RowScores
from masksearch.attention.attach import attach, detach
from masksearch.contracts import (
    LOW,
    MAJORITY,
    Batch,
    Half,
    Objective,
    Report,
    Shape,
    mixed_seed,
)
from masksearch.evaluators.mlm import PRETRAINING, MlmEvaluator, autocast
from masksearch.evaluators.pretraining_task import move_batches
from masksearch.evaluators.token_rows import (
    Vocabulary,
    batches_an_epoch,
    batches_by_length,
    bucket_batches,
    pooled_lengths,
    read_vocabulary,
)
from masksearch.masks.core import Mask
from masksearch.masks.lower import lower
from masksearch.models.heads import MaskedLanguageModel
from masksearch.tasks.text.corpus import Corpus
from masksearch.tasks.text.files import short_hash
from masksearch.tasks.text.tokenizer import TokenSource
from masksearch.training.checkpoints import Checkpoints
from masksearch.training.distributed import group
from masksearch.training.loop import TrainConfig, train

log = logging.getLogger(__name__)


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
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps({"key": key, "scores": scores}, indent=1), encoding="utf-8")
        partial.replace(path)


def save(model: nn.Module, path: Path, key: str, curve: list[Report]) -> None:
    """Keeps the pre-trained weights and their reports, in one move; several processes once."""
    if not group().first:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    text = json.dumps([[report.step, dict(report.values)] for report in curve])
    save_file(weights, partial, {"key": key, "curve": text})
    partial.replace(path)


def restore(model: nn.Module, path: Path, key: str) -> list[Report] | None:
    """Loads weights that were kept under the same key; returns their reports, else None."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("key") != key:
                return None
            weights = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        warnings.warn(f"{path} is corrupt ({error}); pre-training again", stacklevel=4)
        return None
    model.load_state_dict(weights)
    return [Report(step, values) for step, values in json.loads(metadata["curve"])]


ROUND, DROPOUT = 25, 26  # streams of random numbers
LABELS = ("labels", "start_positions", "end_positions")  # in a batch: what is learnt from
CHECKPOINT = "pretrained.safetensors"
SCORES = "scores.json"


@dataclass(frozen=True)
class FineTuning(MlmEvaluator, ABC):
    """Pre-trains like `MlmEvaluator`, then fine-tunes copies of the encoder under the mask.

    A subclass names its tasks and says how their rows become batches and scores:

        streams                             of random numbers: the head's, the order of the rows
        downstream -> tuple[str, ...]       (property) names of the tasks, in order
        task_settings() -> dict             what the scores depend on: hashes of the data, limits
        tokenize(name) -> TaskTokens        reads and tokenizes a task, once a process
        head(encoder, name, seed)           a head on `encoder`
        inputs(rows, chosen) -> Batch       those rows, padded, with what the head learns from
        scores(head, name) -> TaskScores    scores of the trained head by name; use `predict`
        summary(values) -> dict             what the last report adds to all scores (optional)

    The rest is here: reports, the working folder, seeds, frozen layers; `self.source` tokenizes,
    `self.place` is the device. A pre-training that is finished, scores of finished tasks and the
    state of the training under way are kept in the working folder and found there again, so that
    a killed run ends as it would have, on a CPU bit for bit.

    With `corpus=None` (and `weights`) nothing is pre-trained.

    `half` says which of the rows that are scored: `"search"`, or those that no search has seen
    (`"final"`); `"all"` = both, with the objectives of versions that knew no halves; `"test"` =
    labelled test rows. The pre-training's text is halved likewise.

    `shape.lengths` are those of the training rows, the same for every half but `"all"`, so that
    sparsity is measured over pairs of tokens. Each of several tasks weighs the same there.

    Every sequence sees the mask at the evaluator's `length`. A batch of shorter ones is computed
    on the mask's top-left corner, which gives the same numbers as padding to `length`, because
    padded keys are hidden anyway, in less time.

    Args:
        rows: Largest number of training rows of a task; a fixed sample; None = all.
        dev_rows: The same for the rows that are scored.
        finetune_lr: Peak learning rate of fine-tuning.
        finetune_batch: Rows of a fine-tuning batch.
        epochs: Passes over the training rows.
        finetune_seeds: Fine-tuning runs of a task, from the same pre-trained weights. A score is
            their mean; with two or more, `"<score>/std"` is their standard deviation.
        frozen: Lower layers that fine-tuning leaves as they are, the embeddings included (0 =
            the embeddings alone); `"all"` = only the head is trained; None = everything is.
    """

    _: KW_ONLY
    rows: int | None = 10_000
    dev_rows: int | None = 2_000
    finetune_lr: float = 5e-4
    finetune_batch: int = 32
    epochs: int = 3
    finetune_seeds: int = 1
    frozen: int | Literal["all"] | None = None
    packed_source: Vocabulary | None = field(default=None, init=False, repr=False, compare=False)
    packed_tasks: Mapping[str, Any] | None = field(
        default=None, init=False, repr=False, compare=False
    )

    needs_corpus: ClassVar[bool] = False
    streams: ClassVar[tuple[int, int]]

    def __post_init__(self) -> None:
        super().__post_init__()
        for limit in ("epochs", "finetune_batch", "finetune_seeds", "rows", "dev_rows"):
            value = getattr(self, limit)
            if value is not None and value < 1:
                raise ValueError(f"{limit} must be at least 1, got {value}")
        if self.length < 8:
            raise ValueError(
                f"fine-tuning needs a length of at least 8 positions, got {self.length}"
            )
        TrainConfig(steps=1, lr=self.finetune_lr)
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
        """What a mask is lowered to, and how many tokens the training rows have."""
        shape = super().shape
        return shape if self.half == "all" else replace(shape, lengths=self.lengths)

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
        for name in ("epochs", "finetune_lr", "finetune_batch"):
            found[name] = getattr(self, name)
        later = {"finetune_seeds": 1, "frozen": None}  # hashed where they are not the default
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

    def finetune_steps(self, name: str) -> int:
        """Optimiser steps of a task's fine-tuning."""
        return self.epochs * batches_an_epoch(len(self.tokens(name).train), self.finetune_batch)

    def __call__(self, mask: Mask, *, seed: int, workdir: Path) -> Iterator[Report]:
        """Yields pre-training reports `{"loss": ..}`, then one with every score.

        Raises:
            DataError: Before any training, if a task cannot be read.
        """
        table, key = lower(mask, self.shape), short_hash(self.protocol, mask.digest, str(seed))
        for name in self.downstream:
            self.tokens(name)
        model, steps, values = self.model(seed), 0, dict[str, float]()
        check_frozen(model.encoder, self.frozen)
        if self.corpus is not None:
            steps = self.steps
            for report in self.pretrain_once(model, mask, key, seed=seed, workdir=workdir):
                values = dict(report.values)
                yield report
        scores = read_scores(workdir / SCORES, key)
        if not scores:
            (workdir / ROWS).unlink(missing_ok=True)  # of another run
        for name in self.downstream:
            runs = []
            for number in range(self.finetune_seeds):
                run, own = f"{name}.{number}", mixed_seed(seed, ROUND, number) if number else seed
                if run not in scores:
                    encoder = copy.deepcopy(model.get_submodule("encoder"))
                    found = self.finetune(encoder, name, table, seed=own, workdir=workdir)
                    scores[run] = found.values
                    if found.rows is not None and group().first:
                        found.rows.save(workdir / run)
                    write_scores(workdir / SCORES, key, scores)
                    Checkpoints(workdir, training_name(name, own)).clear()
                runs.append(scores[run])
            values |= mean_scores(runs)
            steps += self.finetune_steps(name)
        if group().first:
            join_rows(workdir, [(name, self.finetune_seeds) for name in self.downstream])
        yield Report(steps, values | self.summary(values))

    def pretrain_once(
        self, model: MaskedLanguageModel, mask: Mask, key: str, *, seed: int, workdir: Path
    ) -> Iterator[Report]:
        """Pre-trains in place, or loads a finished pre-training of the same mask, seed, settings.

        Yields:
            The reports of the pre-training, again where it is found. The model is then without
            a mask.
        """
        path = workdir / CHECKPOINT
        curve = restore(model, path, key) if self.steps else None
        if curve is not None:
            yield from curve
            return
        curve = []
        for report in self.pretrain(model, mask, seed=seed, workdir=workdir):
            curve.append(report)
            yield report
        if self.steps:  # otherwise there is nothing to keep
            save(model, path, key, curve)
            Checkpoints(workdir, PRETRAINING).clear()
        detach(model, missing_ok=True)

    def finetune(
        self, encoder: nn.Module, name: str, table: Tensor, *, seed: int, workdir: Path
    ) -> TaskScores:
        """Trains a head and the encoder below it under the mask, with checkpoints; scores it.

        Args:
            encoder: A copy of the pre-trained encoder, without a mask, to be trained in place.
            name: The task.
            table: The mask, bool `[layers, heads, length, length]`.
            seed: Seed of the head, the order of the rows and the dropout; names the checkpoints.
            workdir: Where checkpoints are kept.

        Raises:
            NonFiniteLossError: If a loss is NaN or infinite.
        """
        (head_stream, order_stream), own = self.streams, self.task_seed(name, seed)
        head = self.head(encoder, name, mixed_seed(own, head_stream)).to(self.place)
        rows, order = self.tokens(name).train, mixed_seed(own, order_stream)
        attach(head, masks.cropped(masks.table(table), self.length))
        freeze(head.get_submodule("encoder"), self.frozen)
        run = train(
            head,
            lambda start: move_batches(self.batches(rows, order, start), self.place),
            TrainConfig(steps=self.finetune_steps(name), lr=self.finetune_lr),
            self.loss,
            checkpoints=Checkpoints(workdir, training_name(name, seed)),
            checkpoint_seconds=self.checkpoint_seconds,
            key=short_hash(self.protocol, masks.table(table).digest, name, str(seed)),
            noise_seed=mixed_seed(seed, DROPOUT),
        )
        for _ in run:
            pass
        return self.scores(head, name)

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


def mean_scores(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means of several runs' scores and, where there are two or more, their deviations."""
    values: dict[str, float] = {}
    for score in runs[0]:
        each = [run[score] for run in runs]
        values[score] = statistics.fmean(each)
        if len(each) > 1 and not score.endswith((MAJORITY, LOW)):
            values[f"{score}/std"] = statistics.stdev(each)
    return values


def join_rows(workdir: Path, runs: Sequence[tuple[str, int]]) -> None:
    """Writes the rows of all fine-tuning runs into one file, each task's mean over its runs,
    and deletes those of the single runs; nothing where some are missing.

    Args:
        workdir: The working folder.
        runs: Name of each task, and number of its runs.
    """
    paths = [[workdir / f"{name}.{number}" / ROWS for number in range(n)] for name, n in runs]
    if all(path.is_file() for each in paths for path in each):
        tasks = [RowScores.mean([RowScores.load(path) for path in each]) for each in paths]
        RowScores.joined(tasks).save(workdir)
        for path in chain.from_iterable(paths):
            shutil.rmtree(path.parent)


def training_name(name: str, seed: int) -> str:
    """Name of a fine-tuning's checkpoints."""
    return f"finetuning.{name}.{seed:x}"


def check_frozen(encoder: nn.Module, frozen: int | Literal["all"] | None) -> list[nn.ModuleList]:
    """The encoder's lists of layers, where only some of them are frozen.

    Raises:
        ValueError: If there is no such list, or it has fewer layers than are to be frozen.
    """
    if not isinstance(frozen, int):
        return []
    config: Any = encoder.config
    stacks = [
        module
        for module in encoder.modules()
        if isinstance(module, nn.ModuleList) and len(module) == config.num_hidden_layers
    ]
    if not stacks:
        raise ValueError(
            f"{type(encoder).__name__} has no list of {config.num_hidden_layers} layers (they "
            "share weights, perhaps); use frozen='all' or None"
        )
    if frozen > len(stacks[0]):
        raise ValueError(
            f"frozen={frozen}, but the encoder has {len(stacks[0])} layers; use at most that many"
        )
    return stacks


def freeze(encoder: nn.Module, frozen: int | Literal["all"] | None) -> None:
    """Takes the embeddings and the lowest layers (or everything) out of the training.

    Args:
        encoder: A Hugging Face encoder.
        frozen: See `FineTuning`.

    Raises:
        ValueError: See `check_frozen`.
    """
    stacks = check_frozen(encoder, frozen)
    if frozen == "all":
        encoder.requires_grad_(False)
    if not isinstance(frozen, int):
        return
    layers = [{id(p) for p in layer.parameters()} for layer in stacks[0]]
    trained = set().union(*layers[frozen:])
    inside, above = set().union(*layers), False
    for parameter in encoder.parameters():  # in order: embeddings, layers, a last norm
        above = above or id(parameter) in inside
        own = id(parameter) in trained or (above and id(parameter) not in inside)
        parameter.requires_grad_(own)
