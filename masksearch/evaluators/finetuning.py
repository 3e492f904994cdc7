"""The base of evaluators that fine-tune: copies of an encoder on tasks, under a mask."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Self, cast

from torch import Tensor, nn

from masksearch import masks
from masksearch.analysis.row_scores import ROWS
from masksearch.attention.attach import attach, detach
from masksearch.contracts import (
    POINT,
    STORED_SPLITS,
    Batch,
    Differentiable,
    Evaluator,
    Objective,
    Report,
    Shape,
    Split,
    mixed_seed,
)
from masksearch.errors import DataError, SearchError, check_name
from masksearch.evaluators.assembled import NO_CORPUS, TOKENIZERS, EncoderBase
from masksearch.evaluators.dense_models import DenseModels, DenseRecipe
from masksearch.evaluators.mlm import MlmEvaluator
from masksearch.evaluators.tuning import (
    TaskScores,
    TaskTraining,
    batches_an_epoch,
    check_learned,
    frozen_copy,
    join_rows,
    mean_scores,
    pooled_lengths,
    read_scores,
    rescale,
    train_together,
    write_scores,
)
from masksearch.files import cache_folder, read_once, short_hash
from masksearch.masks.core import Mask
from masksearch.masks.lower import lower
from masksearch.models.pretrained import rows_read, tuned_kind
from masksearch.tasks.text.rows import RowSource, read_tokenizer
from masksearch.tasks.text.tokenizer import Vocabulary
from masksearch.training.accumulation import group
from masksearch.training.checkpoints import DENSE, Checkpoints, provide_dense
from masksearch.training.loop import TrainConfig, check_frozen, freeze
from masksearch.training.parts import (
    FINETUNE_RATES,
    AdaptConfig,
    Frozen,
    How,
    LearnFrom,
    at_least,
    positive,
    settings_fields,
)

ROUND, DROPOUT, RECOVER, GATES = 25, 26, 27, 28  # streams of random numbers
RECOVERED = "recovered"  # folder of recovered models in that of the cache


@dataclass(frozen=True, kw_only=True)
class FineTuning(EncoderBase, AdaptConfig, Evaluator, ABC):
    """Pre-trains like `MlmEvaluator`, then fine-tunes copies of the encoder under the mask.

    A subclass names its tasks, says how their rows become batches and scores (the abstract
    methods below), and has two `streams` of random numbers: the head's, the order of the rows.
    The rest is here: `pretrainer` pre-trains where there is a corpus, `start` is the checkpoint,
    `trainer` fine-tunes and predicts, `source` tokenizes. A pre-training that is
    finished, scores of finished tasks and the state of the training under way are kept in the
    working folder and found there again, so that a killed run ends as it would have, on a CPU bit
    for bit.

    With `corpus=None` (and `weights`) nothing is pre-trained, and `adapt` says what a mask is put
    on: the checkpoint, fine-tuned under the mask from the start (`"train"`), or a dense model,
    which is fine-tuned without a mask once for each task and seed, and kept in the folder `dense`
    of the cache for every mask, search and process. Then the masked model is judged as it is
    (`"none"`), or after some steps under the mask (`"recover"`). A checkpoint that was fine-tuned
    on the one task already (its configuration names a class with a head, such as
    BertForSequenceClassification) is itself the dense model.

    `split` says which of the rows that are scored: `"validation"`, or those that no search has
    seen (`"holdout"`); `"all"` = both, with the objectives of versions that knew no splits;
    `"test"` = labelled test rows. The pre-training's text is halved likewise.

    `shape.lengths` are those of the training rows (not with `split="all"`), so that sparsity is
    measured over pairs of tokens. Each of several tasks weighs the same there.

    A batch of shorter sequences is computed on the mask's top-left corner, which gives the same
    numbers as padding to `length`, in less time.

    Args:
        recover_steps: Optimiser steps under the mask, for `"recover"`.
        gates_learn_from: What the gates of DAM learn from on frozen weights; None = as
            `learn_from`, and the labels where that is `"both"`.
        gates_batch: Rows of a batch for these gates; None = `finetune_batch`.
        keep_recovered: Whether weights after `"recover"` are kept in the folder `recovered` of
            the cache, for each dense model, mask and seed: other rows then score them without
            training again.
        finetune_lr: Peak learning rate of fine-tuning; None = 5e-4 where the model began with
            random weights, 5e-5 for a checkpoint.
        finetune_batch: Rows of a fine-tuning batch.
        epochs: Passes over the training rows.
        finetune_seeds: Fine-tuning runs of a task, from the same pre-trained weights. A score is
            their mean; with two or more, `"<score>/std"` is their standard deviation.
        frozen: Lower layers that fine-tuning leaves as they are, the embeddings included (0 =
            the embeddings alone); `"all"` = only the head is trained; None = everything is.
        rows: Largest number of training rows of a task; a fixed sample; None = all.
        dev_rows: The same for the rows that are scored.
        split_seed: Seed of the split of a file that stands alone, and of the samples.
    """

    adapt: How = "train"
    recover_steps: int = at_least(1, 100)
    gates_learn_from: LearnFrom | None = None
    gates_batch: int | None = at_least(1, None)
    keep_recovered: bool = False
    finetune_lr: float | None = positive(None)
    finetune_batch: int = at_least(1, 32)
    epochs: int = at_least(1, 3)
    finetune_seeds: int = at_least(1, 1)
    frozen: Frozen = None
    rows: int | None = at_least(1, 10_000)
    dev_rows: int | None = at_least(1, 2_000)
    split_seed: int = 0

    score_name: ClassVar[str]  # what a search improves
    streams: ClassVar[tuple[int, int]]
    head_kind: ClassVar[str]  # of `masksearch.models.pretrained.KINDS`
    head_reads: ClassVar[int | None] = None  # leading rows of hidden states that `head` reads
    own_head: ClassVar[str | None] = None  # `head_kind` where transformers' own head is taken

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.frozen in (None, "all") or (type(self.frozen) is int and self.frozen >= 0)):
            raise ValueError(f"frozen is a number of layers, 'all' or None, got {self.frozen!r}")
        weights, corpus, how = self.weights, self.corpus, self.adapt
        if corpus is None and weights is None:
            raise ValueError(f"{NO_CORPUS}, or the weights of a checkpoint to fine-tune")
        if corpus is not None:
            self.pretrainer  # noqa: B018  (checks what a pre-training is told)
        if self.length < 8:
            raise ValueError(f"fine-tuning needs at least 8 positions, got {self.length}")
        check_name("learn_from", self.learn_from, ("labels", "dense", "both"))
        if (source := self.gates_learn_from) is not None:
            check_name("gates_learn_from", source, ("labels", "dense"))
        if how != "train" and (weights is None or corpus is not None):
            stray = "has no weights" if weights is None else "also has a corpus"
            raise ValueError(
                f"adapt={how!r} puts masks on a fine-tuned checkpoint, and this evaluator "
                f"{stray}; give weights= and corpus=None, or adapt='train'"
            )

    # -- what a subclass says ------------------------------------------------------------------
    @property
    @abstractmethod
    def downstream(self) -> tuple[str, ...]:
        """Names of the tasks, in order."""

    @property
    @abstractmethod
    def constant_score(self) -> float:
        """The score of constant answers to the rows that are scored."""

    @abstractmethod
    def task_settings(self) -> dict[str, object]:
        """The settings that the scores depend on beside those here."""

    @abstractmethod
    def tokenize(self, name: str) -> Any:
        """A task's rows, tokenized once a process: `train`, with `lengths` and rows by number;
        `digest`, of data and row limits; what is scored. DataError if they cannot be read."""

    @abstractmethod
    def head(self, encoder: Any, name: str, seed: int) -> nn.Module:
        """A new head of a task on `encoder`; `head(**inputs).loss` is what is trained."""

    @abstractmethod
    def inputs(self, rows: Any, chosen: list[int]) -> Batch:
        """A padded batch of those rows, `LABELS` included."""

    @abstractmethod
    def scores(self, head: nn.Module, name: str) -> TaskScores:
        """Scores of a trained head, `<score>/majority` and `<score>/low` beside them."""

    def summary(self, values: Mapping[str, float]) -> dict[str, float]:
        """The values that the last report adds, given every score; by default none."""
        return {}

    def sequence_lengths(self, rows: Any) -> Sequence[int]:
        """Tokens of every sequence of a task's training rows."""
        lengths: Sequence[int] = rows.lengths
        return lengths

    @property
    def token_rows(self) -> Tensor | None:
        """`Shape.tokens`; None = masks that follow the tokens are refused."""
        return None

    def class_names(self, name: str) -> tuple[Sequence[str] | None, Sequence[str]]:
        """A task's classes in the order of their numbers (None = its head is of another kind),
        and by other names that checkpoints have."""
        return None, ()

    def unit(self, name: str) -> tuple[float, float] | None:
        """Mean and deviation by which a task's labels are learnt standardised; a saved model
        answers in the unit of the labels. None = they are learnt as they are."""
        unit: tuple[float, float] | None = getattr(self.tokens(name), "unit", None)
        return unit

    def task_seed(self, name: str, seed: int) -> int:
        """The seed of a task's head and order; tasks of one evaluator may have their own."""
        return seed

    @cached_property
    def pretrainer(self) -> MlmEvaluator:
        """The pre-training, where there is a corpus; with test rows go its text's holdout."""
        split: Split = "holdout" if self.split == "test" else self.split
        names = settings_fields(MlmEvaluator)
        settings: dict[str, Any] = {name: getattr(self, name) for name in names}
        return MlmEvaluator(**settings | {"split": split})

    @property
    def trainer(self) -> TaskTraining:
        """The trainer that fine-tunes a head, and has it predict."""
        return TaskTraining(self.inputs, self.finetune_batch, self.frozen, self, self.torch_device)

    @property
    def source(self) -> RowSource:
        """The source of the tasks' rows: the checkpoint's tokenizer, or the one that was given; of
        a model from scratch the corpus."""
        if "source" in self.held:
            return cast(RowSource, self.held["source"])
        named = self.tokenizer or (self.start.tokenizer_source if self.weights else None)
        how = self.states(named, pattern=TOKENIZERS), read_tokenizer, named, self.length
        made: RowSource | None = None if named is None else read_once(*how)
        if made is None or (self.corpus is not None and isinstance(made, Vocabulary)):
            return self.pretrainer.task().corpus
        if self.weights is not None:
            self.start.shape(self.length)
            added = made.special.get("mask") == made.vocabulary - 1  # no row holds it
            self.start.check_tokens(made.vocabulary - added, made.layout.pad)
            if self.is_tuned and self.start.pad is None:
                raise DataError(
                    f"{self.start.name} names no pad_token_id in its config.json, so whoever "
                    f"opens it cannot pad its rows; set it to that of padding, {made.layout.pad}"
                )
        return made

    @cached_property
    def _token_digest(self) -> str:
        """Hash of the tokenizer, and the length."""
        return str(self.held.get("digest") or self.source.digest)

    def tokens(self, name: str = "") -> Any:
        """The tokenized rows of a task (of the first one without a name), read once a process."""
        name = name or self.downstream[0]
        return self.held["tasks"][name] if self.held else self.tokenize(name)

    def packed(self) -> Self:
        """The same evaluator with corpus and tokenized rows in memory; see `MlmEvaluator`."""
        if self.held:
            return self
        tasks = {name: self.tokens(name) for name in self.downstream}
        if self.corpus is None:
            return self.holding(tasks=tasks, start=self.start, digest=self._token_digest)
        made = self.holding(tasks=tasks)
        made.__dict__["pretrainer"] = self.pretrainer.packed()
        return made

    # -- what it is ----------------------------------------------------------------------------
    @property
    def shape(self) -> Shape:
        """The sizes of a mask, with the training rows' lengths and the last layer's rows."""
        alone = self.corpus is None
        shape = self.start.shape(self.length) if alone else self.pretrainer.shape
        if self.split == "all":
            return shape
        return replace(shape, lengths=self.lengths, read=self.read, tokens=self.token_rows)

    @cached_property
    def read(self) -> int | None:
        """Leading rows of the last layer that reach a score; None = all, as in a pre-training."""
        if self.split == "all" or self.corpus is not None:
            return None
        folder, tuned = self.start.locate(), self.weights_frozen
        return rows_read(folder, self.head_reads, tuned=tuned, kind=self.own_head)

    @cached_property
    def lengths(self) -> dict[int, int]:
        """How many training sequences have how many tokens; see `pooled_lengths`."""
        tasks = [self.sequence_lengths(self.tokens(name).train) for name in self.downstream]
        return pooled_lengths(tasks, self.length)

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """The score (worst: constant answers) and the mask's sparsity over pairs of tokens, since
        rows are padded; of all rows as versions without splits had them."""
        whole = self.split == "all"
        score = Objective(self.score_name, "max", 0.0 if whole else self.constant_score, POINT)
        return (score, Objective("sparsity" if whole else "effective_sparsity", "max", 0.0))

    @property
    def seedless(self) -> bool:
        """Whether a fine-tuned folder is judged as it is, which no seed changes."""
        return self.adapt == "none" and self.is_tuned

    @cached_property
    def is_tuned(self) -> bool:
        """Whether the checkpoint is fine-tuned already."""
        return tuned_kind(self.start.locate()) is not None

    @property
    def weights_frozen(self) -> bool:
        """Whether `differentiable` trains gates alone."""
        return self.adapt != "train"

    @property
    def weight_lr(self) -> float | None:
        """As of `MlmEvaluator`; without a corpus the rate of fine-tuning."""
        return self._finetune_rate if self.corpus is None else super().weight_lr

    @property
    def _finetune_rate(self) -> float:
        """Peak learning rate of fine-tuning."""
        rate = self.finetune_lr
        return FINETUNE_RATES[not self.scratch] if rate is None else rate

    def data_hashes(self) -> dict[str, str]:
        """Hashes of the text, of the checkpoint and of the tasks' rows."""
        if self.corpus is None:
            named = {"tokenizer": self._token_digest, "weights": self.start.digest}
        else:
            named = dict(self.pretrainer.data_hashes())
        for name, settings in self.task_settings().items():  # of one task, or of each by its name
            each = settings if isinstance(settings, Mapping) else {name: settings}
            named |= {task: value for task, value in each.items() if isinstance(value, str)}
        return named

    def settings(self) -> dict[str, object]:
        """Everything that a score depends on, beside mask and seed."""
        dropout = self.dropout
        if self.corpus is not None:
            settings = self.pretrainer.settings()
        else:
            settings = {"data": self._token_digest, "size": self.start.digest}
            settings |= dict.fromkeys(("train", "batch", "initializer_range", "probability"))
            settings |= {"held_out": None, "precision": self.precision}
            settings |= {} if dropout is None else {"dropout": dropout}
        if self.split != "all":
            settings["half"] = STORED_SPLITS[self.split]
        settings |= self.task_settings()
        settings |= {"epochs": self.epochs, "finetune_lr": self._finetune_rate}
        settings["finetune_batch"] = self.finetune_batch
        later: dict[str, tuple[object, object]] = {  # hashed where they are not the default
            "finetune_seeds": (self.finetune_seeds, 1),
            "frozen": (self.frozen, None),
            "adapt": (self.adapt, "train"),
            "learn_from": (self.learn_from, "labels"),
            "gates_learn_from": (self.gates_learn_from, None),
            "gates_batch": (self.gates_batch, None),
        }
        if self.adapt == "recover":
            later |= {"recover_steps": (self.recover_steps, 0)}
            later |= {"recover_lr": (self.recover_lr, None)}
        later["read"] = self.read, None  # decides what sparsity counts, though no score
        return settings | {name: value for name, (value, usual) in later.items() if value != usual}

    def finetune_steps(self, name: str) -> int:
        """Optimiser steps of a task's fine-tuning."""
        rows = len(self.tokens(name).train)
        return self.epochs * batches_an_epoch(rows, self.finetune_batch)

    def order(self, name: str, seed: int, *more: int) -> int:
        """Seed of the order of a task's rows."""
        return mixed_seed(self.task_seed(name, seed), self.streams[1], *more)

    def new_head(self, encoder: nn.Module, name: str, seed: int) -> nn.Module:
        """A task's head on an encoder, where the training is."""
        drawn = mixed_seed(self.task_seed(name, seed), self.streams[0])
        return self.head(encoder, name, drawn).to(self.torch_device)

    def begin(self, name: str, seed: int) -> nn.Module:
        """The model that becomes a task's dense one: the checkpoint under a new head."""
        return self.new_head(self.start.encoder(dropout=self.dropout), name, seed)

    def run_seed(self, seed: int, number: int) -> int:
        """The seed of a task's fine-tuning run; of run 0 that of the evaluation."""
        return mixed_seed(seed, ROUND, number) if number else seed

    def __call__(self, mask: Mask, *, seed: int, workdir: Path) -> Iterator[Report]:
        """Yields pre-training reports `{"loss": ..}`, then one with every score. DataError, before
        any training, if a task cannot be read."""
        table, key = self._as_table(mask), short_hash(self.protocol, mask.digest, str(seed))
        for name in self.downstream:
            self.tokens(name)
        steps, values = 0, dict[str, float]()
        encoder: nn.Module | None = None
        if self.corpus is not None:
            steps, model = self.steps, self.pretrainer.build_model(seed)
            encoder = model.encoder
            check_frozen(encoder, self.frozen)
            for report in self.pretrainer.pretrain_once(model, mask, seed=seed, workdir=workdir):
                values = dict(report.values)
                yield report
        elif not self.weights_frozen:
            encoder = self.start.encoder(dropout=self.dropout)
        scores = read_scores(workdir / "scores.json", key)
        if not scores:
            (workdir / ROWS).unlink(missing_ok=True)  # of another run
        for name in self.downstream:
            runs = []
            for number in range(self.finetune_seeds):
                run, run_seed = f"{name}.{number}", self.run_seed(seed, number)
                if run not in scores:
                    kept = Checkpoints(workdir, f"finetuning.{name}.{run_seed:x}")
                    result = self.scores(self.under(encoder, name, table, kept, run_seed), name)
                    scores[run] = result.values
                    if group().first:
                        result.rows.save(workdir / run)
                    write_scores(workdir / "scores.json", key, scores)
                    kept.clear()
                runs.append(scores[run])
            values |= mean_scores(runs)
            steps += self._steps_under_mask(name)
        if group().first:
            join_rows(workdir, [(name, self.finetune_seeds) for name in self.downstream])
        yield Report(steps, values | self.summary(values))

    def adapted(
        self, mask: Mask, *, seed: int, task: str = "", drop_tokens: bool | int = False
    ) -> nn.Module:
        """The model that a mask is judged on, in evaluation mode, with the mask attached: what
        `__call__` makes and does not keep. It is trained anew, unless `keep_recovered` has kept
        it; `detach` and `save_pretrained` take it.

        Args:
            mask: Any mask that fits `shape`.
            seed: Of the dense model and of the training under the mask.
            task: Its task; "" = the first one.
            drop_tokens: As of `attach`.

        Returns:
            Of a fine-tuned folder, and of `read_out="own"`, a model of transformers' own class;
            else the encoder under a head of ours.

        Raises:
            DataError: If there is a corpus: the model of a pre-training is not made again.
        """
        if self.corpus is not None:
            raise DataError(
                "a model that is pre-trained under the mask is not made again; leave "
                "corpus out, or train it with MlmEvaluator and save that"
            )
        name, table = task or self.downstream[0], self._as_table(mask)
        encoder = None if self.weights_frozen else self.start.encoder(dropout=self.dropout)
        with TemporaryDirectory() as folder:
            head = self.under(encoder, name, table, Checkpoints(Path(folder)), seed)
        head = rescale(detach(head.eval()), self.unit(name))
        whole: nn.Module = getattr(head, "whole", head)
        return attach(whole, masks.cropped(table, self.length), drop_tokens=drop_tokens)

    def _as_table(self, mask: Mask) -> Mask:
        """The mask as it is judged: its table, unless it follows the tokens."""
        follows = mask.needs_tokens and self.shape.tokens is not None
        return mask if follows else masks.table(lower(mask, self.shape))

    def under(
        self, encoder: nn.Module | None, name: str, mask: Mask, kept: Checkpoints, seed: int
    ) -> nn.Module:
        """The model of one run of a task under the mask, after the steps that `adapt` asks for.

        Args:
            encoder: Without a mask; a copy is trained. None = the task's dense model is taken.
            name: The task.
            mask: A table.
            kept: Where checkpoints are kept.
            seed: Seed of the head, the order of the rows and the dropout.

        Raises:
            NonFiniteLossError: If a loss is NaN or infinite.
        """
        stream, rate, loss = tuple[int, ...](), self._finetune_rate, None
        if encoder is not None:
            head = self.new_head(copy.deepcopy(encoder), name, seed)
        else:
            head, source = self.dense(name, seed), self.learn_from
            stream, rate = (RECOVER,), self.recover_lr or rate
            if source != "labels" and self.adapt == "recover":
                loss = self.trainer.imitating(frozen_copy(head), labels=source == "both")
        attach(head, masks.cropped(mask, self.length))
        if not (steps := self._steps_under_mask(name)):
            return head
        order, noise = self.order(name, seed, *stream), mixed_seed(seed, DROPOUT, *stream)
        rows, config = self.tokens(name).train, TrainConfig(steps, rate)
        train = partial(self.trainer.fit, head, rows, config, order=order, noise=noise, loss=loss)
        if self.keep_recovered and self.adapt == "recover":
            model = self.dense_models.path(self.dense_recipe(name, seed), head).stem
            how = self.learn_from, self.finetune_batch, self.frozen, steps, rate, order, noise
            parts = [
                model,
                self._row_hashes[name],
                self.dropout,
                mask.digest,
                *how,
                self.precision,
            ]
            key = short_hash("recovered-1", repr(parts))
            path = cache_folder(self.cache) / RECOVERED / f"{name}-{key}.safetensors"
            provide_dense(head, path, key, train)
        else:
            train(replace(kept, key=short_hash(self.protocol, mask.digest, name, str(seed))))
        return head

    def _steps_under_mask(self, name: str) -> int:
        """Optimiser steps under a mask, of a task."""
        if self.adapt == "train":
            return self.finetune_steps(name)
        return self.recover_steps if self.adapt == "recover" else 0

    # -- on dense models -----------------------------------------------------------------------
    def dense(self, name: str, seed: int) -> nn.Module:
        """The dense model of a task and seed: the kept one, fine-tuned where there is none yet, or
        the checkpoint itself where it was fine-tuned already.

        Raises:
            DataError: If the checkpoint's head is missing, or does not fit the task.
            SearchError: If the dense model knows no more than a constant answer, so that nothing
                can be compared on it.
        """
        if (count := group().size) > 1:
            raise SearchError(
                f"adapt={self.adapt!r} trains in one process, and torchrun has started {count}; "
                "start one, or give adapt='train'"
            )
        models, recipe, turned = self.dense_models, self.dense_recipe(name, seed), dict[int, str]()
        if self.is_tuned:
            head, turned = models.open(recipe, self.head_kind, *self.class_names(name))
        else:
            head = models.provide(recipe, self.tokens(name).train, self.begin(name, seed))
        key = short_hash(self.protocol, name)
        path = models.path(recipe, head).with_suffix(f".{key}.json")
        check_learned(path, key, name, lambda: self.scores(head, name).values, turned)
        return head

    @property
    def dense_models(self) -> DenseModels:
        """The dense models of the checkpoint, in the folder `dense` of the cache."""
        folder, asked = cache_folder(self.cache) / DENSE, (self.downstream, self.finetune_seeds)
        return DenseModels(self.start, self.trainer, folder, *asked)

    def dense_recipe(self, name: str, seed: int) -> DenseRecipe:
        """The recipe of a task's dense model for a seed."""
        rows = None if self.is_tuned else self._row_hashes[name]
        seeds = seed, self.task_seed(name, seed), self.order(name, seed), mixed_seed(seed, DROPOUT)
        how = self.epochs, self.finetune_steps(name), self._finetune_rate, self.dropout
        return DenseRecipe(name, rows, self.unit(name), *seeds, *how)

    def provide_models(self, seed: int) -> None:
        """Fine-tunes, or finds, the dense models of a seed, and checks them: see `dense`."""
        if self.weights_frozen:
            for name in self.downstream:
                for number in range(self.finetune_seeds):
                    self.dense(name, self.run_seed(seed, number))

    @cached_property
    def _row_hashes(self) -> dict[str, str]:
        """Task -> hash of its training rows as tensors, made once for all masks."""
        return {n: self.trainer.hash_rows(self.tokens(n).train) for n in self.downstream}

    def differentiable(self, seed: int) -> Differentiable:
        """The model and batches that a one-shot search trains on.

        With a corpus the pre-training, as of `MlmEvaluator`. Without one the tasks: the dense
        models with frozen weights, so that gates alone are trained; with `adapt="train"` the
        checkpoint under a head for each task, so that gates and all weights but the `frozen` ones
        are.
        """
        if self.corpus is not None:
            return self.pretrainer.differentiable(seed)
        if not self.weights_frozen:
            encoder = self.start.encoder(dropout=self.dropout)
            freeze(encoder, self.frozen)  # as under a mask that is judged
            heads = [self.new_head(encoder, name, seed) for name in self.downstream]
        else:
            heads = [self.dense(name, seed) for name in self.downstream]
        rows = [(self.tokens(n).train, self.order(n, seed, GATES)) for n in self.downstream]
        trainer = replace(self.trainer, batch=self.gates_batch or self.finetune_batch)
        imitate = self.weights_frozen and (self.gates_learn_from or self.learn_from) == "dense"
        made = train_together(heads, rows, trainer, imitate=imitate)
        if self.weights_frozen:
            made.model.requires_grad_(False)
        return made
