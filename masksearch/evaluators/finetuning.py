"""The base of evaluators that fine-tune: copies of an encoder on tasks, under a mask."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, get_args

from torch import Tensor, nn

from masksearch import masks
from masksearch.analysis.row_scores import ROWS
from masksearch.attention.attach import attach
from masksearch.contracts import (
    POINT,
    Batch,
    Differentiable,
    Evaluator,
    Half,
    Objective,
    Report,
    Shape,
    mixed_seed,
)
from masksearch.errors import DataError, SearchError, check_name
from masksearch.evaluators.mlm import (
    NO_CORPUS,
    MlmEvaluator,
    Pretraining,
    check_settings,
    preset_of,
    read_weights,
)
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
    train_together,
    write_scores,
)
from masksearch.files import cache_folder, short_hash
from masksearch.masks.core import Mask
from masksearch.masks.lower import lower
from masksearch.models.encoders import AnySize
from masksearch.models.pretrained import Pretrained, open_tuned, rows_read, tuned_kind
from masksearch.tasks.text.corpus import TokenSource
from masksearch.tasks.text.tokenizer import Vocabulary, read_vocabulary
from masksearch.training.accumulation import group
from masksearch.training.checkpoints import DENSE, Checkpoints, provide_dense
from masksearch.training.loop import (
    Frozen,
    Optimiser,
    Precision,
    Schedule,
    TrainConfig,
    check_frozen,
    find_device,
    freeze,
    peak_rate,
)

ROUND, DROPOUT, RECOVER, GATES = 25, 26, 27, 28  # streams of random numbers
Adapt = Literal["none", "recover", "train"]
LearnFrom = Literal["labels", "dense"]


@dataclass(frozen=True)
class FineTuning(Evaluator, ABC):
    """Pre-trains like `MlmEvaluator`, then fine-tunes copies of the encoder under the mask.

    A subclass names its tasks, says how their rows become batches and scores (the abstract
    methods below), and has two `streams` of random numbers: the head's, the order of the rows.
    The rest is here, in parts: `text` pre-trains where there is a corpus, `start` is the
    checkpoint, `training` fine-tunes and predicts, `source` tokenizes. A pre-training that is
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

    `half` says which of the rows that are scored: `"search"`, or those that no search has seen
    (`"final"`); `"all"` = both, with the objectives of versions that knew no halves; `"test"` =
    labelled test rows. The pre-training's text is halved likewise.

    `shape.lengths` are those of the training rows (not with `half="all"`), so that sparsity is
    measured over pairs of tokens. Each of several tasks weighs the same there.

    A batch of shorter sequences is computed on the mask's top-left corner, which gives the same
    numbers as padding to `length`, in less time.

    The arguments down to `checkpoint_seconds` are those of `MlmEvaluator`, which describes them.

    Args:
        rows: Largest number of training rows of a task; a fixed sample; None = all.
        dev_rows: The same for the rows that are scored.
        finetune_lr: Peak learning rate of fine-tuning; None = 5e-4 where the model began with
            random weights, 5e-5 for a checkpoint.
        finetune_batch: Rows of a fine-tuning batch.
        epochs: Passes over the training rows.
        finetune_seeds: Fine-tuning runs of a task, from the same pre-trained weights. A score is
            their mean; with two or more, `"<score>/std"` is their standard deviation.
        frozen: Lower layers that fine-tuning leaves as they are, the embeddings included (0 =
            the embeddings alone); `"all"` = only the head is trained; None = everything is.
        adapt: What is trained under a mask: `"none"`, `"recover"` (a dense model, for some steps)
            or `"train"` (from the checkpoint on), see above.
        recover_steps: Optimiser steps under the mask, for `"recover"`.
        recover_lr: Their peak learning rate; None = `finetune_lr`.
        learn_from: What these steps, and the gates of DAM on a dense model, learn from: the
            `"labels"`, or the logits of the `"dense"` model.
    """

    corpus: Path | str | None
    _: KW_ONLY
    # The text, and what is predicted of it.
    held_out: Path | str | None = None
    held_out_sequences: int = 512
    half: Half = "search"
    tokenizer: str | Path | None = None
    vocabulary: int = 4096
    length: int = 128
    pretraining: Pretraining = "mlm"
    whole_words: bool = False
    cache: Path | str | None = None
    # The model.
    size: AnySize = "tiny"
    architecture: str = "bert"
    initializer_range: float | None = None
    dropout: float | None = None
    weights: str | Path | None = None
    # The training, its reports and its machine.
    steps: int = 800
    batch: int = 32
    micro_batches: int = 1
    lr: float | None = None
    warmup: float = 0.06
    schedule: Schedule = "linear"
    optimiser: Optimiser = "adamw"
    reports: int = 8
    device: str = "auto"
    precision: Precision = "float32"
    compile: bool = False
    checkpoint_seconds: float = 60.0
    # The tasks, and what is trained on them.
    rows: int | None = 10_000
    dev_rows: int | None = 2_000
    finetune_lr: float | None = None
    finetune_batch: int = 32
    epochs: int = 3
    finetune_seeds: int = 1
    frozen: Frozen = None
    adapt: Adapt = "train"
    recover_steps: int = 100
    recover_lr: float | None = None
    learn_from: LearnFrom = "labels"
    packed_start: Pretrained | None = field(default=None, init=False, repr=False, compare=False)
    packed_source: Vocabulary | None = field(default=None, init=False, repr=False, compare=False)
    packed_tasks: Mapping[str, Any] | None = field(
        default=None, init=False, repr=False, compare=False
    )

    score_name: ClassVar[str]  # what a search improves
    streams: ClassVar[tuple[int, int]]
    head_kind: ClassVar[str]  # of `masksearch.models.pretrained.KINDS`
    head_reads: ClassVar[int | None] = None  # leading rows of hidden states that `head` reads

    def __post_init__(self) -> None:
        if self.corpus is None and self.weights is None:
            raise ValueError(f"{NO_CORPUS}, or the weights of a checkpoint to fine-tune")
        check_settings(self)
        if self.corpus is not None:
            self.text  # noqa: B018  (checks what a pre-training is told)
        counts = ("epochs", "finetune_batch", "finetune_seeds", "rows", "dev_rows")
        for name in (*counts, "recover_steps"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.length < 8:
            raise ValueError(f"fine-tuning needs at least 8 positions, got {self.length}")
        TrainConfig(steps=1, lr=self.finetune_rate)
        check_name("adapt", self.adapt, get_args(Adapt))
        check_name("learn_from", self.learn_from, get_args(LearnFrom))
        if self.recover_lr is not None and not self.recover_lr > 0:
            raise ValueError(f"recover_lr must be positive, got {self.recover_lr}")
        if self.adapt != "train" and (self.weights is None or self.corpus is not None):
            stray = "has no weights" if self.weights is None else "also has a corpus"
            raise ValueError(
                f"adapt={self.adapt!r} puts masks on a fine-tuned checkpoint, and this evaluator "
                f"{stray}; give weights= and corpus=None, or adapt='train'"
            )
        if not (self.frozen in (None, "all") or (type(self.frozen) is int and self.frozen >= 0)):
            raise ValueError(f"frozen is a number of layers, 'all' or None, got {self.frozen!r}")

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
        """What the scores depend on beside the settings here."""

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
        """What the last report adds, given every score; by default nothing."""
        return {}

    def sequence_lengths(self, rows: Any) -> Sequence[int]:
        """Tokens of every sequence of a task's training rows."""
        found: Sequence[int] = rows.lengths
        return found

    @property
    def token_rows(self) -> Tensor | None:
        """`Shape.tokens`; None = masks that follow the tokens are refused."""
        return None

    def class_names(self, name: str) -> Sequence[str] | None:
        """A task's classes in the order of their numbers; None = its head is of another kind."""
        return None

    def task_seed(self, name: str, seed: int) -> int:
        """The seed of a task's head and order; tasks of one evaluator may have their own."""
        return seed

    @cached_property
    def text(self) -> MlmEvaluator:
        """The pre-training, where there is a corpus; with test rows go its text's final half."""
        names = [each.name for each in fields(MlmEvaluator) if each.init]
        half = {"half": "final"} if self.half == "test" else {}
        return MlmEvaluator(**{name: getattr(self, name) for name in names} | half)

    @property
    def start(self) -> Pretrained:
        """The checkpoint, opened once a process; DataError if it cannot be opened."""
        return self.packed_start or read_weights(self.weights)

    @property
    def training(self) -> TaskTraining:
        """What fine-tunes a head, and has it predict."""
        how = self.frozen, find_device(self.device), self.precision, self.checkpoint_seconds
        return TaskTraining(self.inputs, self.finetune_batch, *how)

    @property
    def source(self) -> TokenSource:
        """What turns the tasks' text into ids: the corpus, or the checkpoint's tokenizer."""
        if self.corpus is not None:
            return self.text.task().corpus
        if self.packed_source is not None:
            return self.packed_source
        start = self.start
        start.shape(self.length)
        made = read_vocabulary(self.tokenizer or start.tokenizer_source, self.length)
        start.check_tokens(made.vocabulary, made.special["pad"])
        return made

    def tokens(self, name: str = "") -> Any:
        """The tokenized rows of a task (of the first one without a name), read once a process."""
        name = name or self.downstream[0]
        return self.tokenize(name) if self.packed_tasks is None else self.packed_tasks[name]

    def packed(self) -> Self:
        """The same evaluator with corpus and tokenized rows in memory; see `MlmEvaluator`."""
        if self.packed_tasks is not None:
            return self
        made = copy.copy(self)
        made.__dict__["packed_tasks"] = {name: self.tokens(name) for name in self.downstream}
        if self.corpus is None:
            made.__dict__.update(packed_start=self.start, packed_source=self.source)
        else:
            made.__dict__["text"] = self.text.packed()
        return made

    @classmethod
    def preset(cls, name: str, *args: Any, **changes: Any) -> Self:
        """An evaluator with published settings; see `MlmEvaluator.preset`."""
        return cls(*args, **(preset_of(cls, name) | changes))

    # -- what it is ----------------------------------------------------------------------------
    def on(self, half: Half) -> Self:
        """The same evaluator on other rows of its tasks: another protocol, the same training.
        DataError if a task, or the text, has no such rows."""
        if half == self.half:
            return self
        made = replace(self, half=half)
        made.settings()  # refuses an empty half
        return made

    @property
    def shape(self) -> Shape:
        """What a mask is lowered to, with the training rows' lengths and the last layer's rows."""
        shape = self.start.shape(self.length) if self.corpus is None else self.text.shape
        if self.half == "all":
            return shape
        return replace(shape, lengths=self.lengths, read=self.read, tokens=self.token_rows)

    @cached_property
    def read(self) -> int | None:
        """Leading rows of the last layer that reach a score; None = all, as in a pre-training."""
        if self.half == "all" or self.corpus is not None:
            return None
        return rows_read(self.start.locate(), self.head_reads, tuned=self.adapt != "train")

    @cached_property
    def lengths(self) -> dict[int, int]:
        """How many training sequences have how many tokens; see `pooled_lengths`."""
        tasks = [self.sequence_lengths(self.tokens(name).train) for name in self.downstream]
        return pooled_lengths(tasks, self.length)

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """The score (worst: constant answers) and the mask's sparsity over pairs of tokens, since
        rows are padded; of all rows as versions without halves had them."""
        whole = self.half == "all"
        score = Objective(self.score_name, "max", 0.0 if whole else self.constant_score, POINT)
        return (score, Objective("sparsity" if whole else "effective_sparsity", "max", 0.0))

    @property
    def seedless(self) -> bool:
        """Whether a fine-tuned folder is judged as it is, which no seed changes."""
        return self.adapt == "none" and tuned_kind(self.start.locate()) is not None

    @property
    def weights_frozen(self) -> bool:
        """Whether `differentiable` trains gates alone."""
        return self.adapt != "train"

    @property
    def weight_lr(self) -> float | None:
        """As of `MlmEvaluator`; without a corpus the rate of fine-tuning."""
        return self.finetune_rate if self.corpus is None else self.text.weight_lr

    @property
    def finetune_rate(self) -> float:
        """Peak learning rate of fine-tuning."""
        return peak_rate("finetune_lr", self.finetune_lr, scratch=self.weights is None)

    def data_hashes(self) -> dict[str, str]:
        """Hashes of the text, of the checkpoint and of the tasks' rows."""
        if self.corpus is None:
            named = {"tokenizer": self.source.digest, "weights": self.start.digest}
        else:
            named = dict(self.text.data_hashes())
        for name, found in self.task_settings().items():  # of one task, or of each by its name
            each = found if isinstance(found, Mapping) else {name: found}
            named |= {task: value for task, value in each.items() if isinstance(value, str)}
        return named

    @property
    def protocol(self) -> str:
        """Hash of the data, the model and the trainings; reads the data."""
        return short_hash("mlm-1", repr(self.settings()))

    def settings(self) -> dict[str, object]:
        """Everything that a score depends on, beside mask and seed."""
        if self.corpus is not None:
            found = self.text.settings()
        else:
            found = {"data": self.source.digest, "size": self.start.digest}
            found |= dict.fromkeys(("train", "batch", "initializer_range", "probability"))
            found |= {"held_out": None, "precision": self.precision}
            found |= {} if self.dropout is None else {"dropout": self.dropout}
        if self.half != "all":
            found["half"] = self.half
        found |= self.task_settings()
        found |= {"epochs": self.epochs, "finetune_lr": self.finetune_rate}
        found["finetune_batch"] = self.finetune_batch
        later = {  # hashed where they are not the default
            "finetune_seeds": 1,
            "frozen": None,
            "adapt": "train",
            "learn_from": "labels",
            **({"recover_steps": 0, "recover_lr": None} if self.adapt == "recover" else {}),
            "read": None,  # decides what sparsity counts, though no score
        }
        own = {name: getattr(self, name) for name in later}
        return found | {name: value for name, value in own.items() if value != later[name]}

    def finetune_steps(self, name: str) -> int:
        """Optimiser steps of a task's fine-tuning."""
        return self.epochs * batches_an_epoch(len(self.tokens(name).train), self.finetune_batch)

    def order(self, name: str, seed: int, *more: int) -> int:
        """Seed of the order of a task's rows."""
        return mixed_seed(self.task_seed(name, seed), self.streams[1], *more)

    def new_head(self, encoder: nn.Module, name: str, seed: int) -> nn.Module:
        """A task's head on an encoder, where the training is."""
        drawn = mixed_seed(self.task_seed(name, seed), self.streams[0])
        return self.head(encoder, name, drawn).to(self.training.place)

    def run_seed(self, seed: int, number: int) -> int:
        """The seed of a task's fine-tuning run; of run 0 that of the evaluation."""
        return mixed_seed(seed, ROUND, number) if number else seed

    def __call__(self, mask: Mask, *, seed: int, workdir: Path) -> Iterator[Report]:
        """Yields pre-training reports `{"loss": ..}`, then one with every score. DataError, before
        any training, if a task cannot be read."""
        follows = mask.needs_tokens and self.shape.tokens is not None
        table = mask if follows else masks.table(lower(mask, self.shape))
        key = short_hash(self.protocol, mask.digest, str(seed))
        for name in self.downstream:
            self.tokens(name)
        steps, values = 0, dict[str, float]()
        encoder: nn.Module | None = None
        if self.corpus is not None:
            steps, model = self.steps, self.text.model(seed)
            encoder = model.encoder
            check_frozen(encoder, self.frozen)
            for report in self.text.pretrain_once(model, mask, seed=seed, workdir=workdir):
                values = dict(report.values)
                yield report
        elif self.adapt == "train":
            encoder = self.start.encoder(dropout=self.dropout)
        scores = read_scores(workdir / "scores.json", key)
        if not scores:
            (workdir / ROWS).unlink(missing_ok=True)  # of another run
        for name in self.downstream:
            runs = []
            for number in range(self.finetune_seeds):
                run, own = f"{name}.{number}", self.run_seed(seed, number)
                if run not in scores:
                    kept = Checkpoints(workdir, f"finetuning.{name}.{own:x}")
                    found = self.adapted(encoder, name, table, kept, seed=own)
                    scores[run] = found.values
                    if group().first:
                        found.rows.save(workdir / run)
                    write_scores(workdir / "scores.json", key, scores)
                    kept.clear()
                runs.append(scores[run])
            values |= mean_scores(runs)
            steps += self.steps_under_mask(name)
        if group().first:
            join_rows(workdir, [(name, self.finetune_seeds) for name in self.downstream])
        yield Report(steps, values | self.summary(values))

    def adapted(
        self, encoder: nn.Module | None, name: str, mask: Mask, kept: Checkpoints, *, seed: int
    ) -> TaskScores:
        """Scores of one run of a task under the mask, after the steps that `adapt` asks for.

        Args:
            encoder: Without a mask; a copy is trained. None = the task's dense model is taken.
            name: The task.
            mask: A table.
            kept: Where checkpoints are kept.
            seed: Seed of the head, the order of the rows and the dropout.

        Raises:
            NonFiniteLossError: If a loss is NaN or infinite.
        """
        stream, rate, teacher = tuple[int, ...](), self.finetune_rate, None
        if encoder is not None:
            head = self.new_head(copy.deepcopy(encoder), name, seed)
        else:
            head = self.dense(name, seed)
            stream, rate = (RECOVER,), self.recover_lr or rate
            teacher = frozen_copy(head) if self.learn_from == "dense" else None
        attach(head, masks.cropped(mask, self.length))
        if steps := self.steps_under_mask(name):
            self.training.fit(
                head,
                self.tokens(name).train,
                TrainConfig(steps, rate),
                kept,
                short_hash(self.protocol, mask.digest, name, str(seed)),
                order=self.order(name, seed, *stream),
                noise=mixed_seed(seed, DROPOUT, *stream),
                loss=None if teacher is None else self.training.imitating(teacher),
            )
        return self.scores(head, name)

    def steps_under_mask(self, name: str) -> int:
        """Optimiser steps under a mask, of a task."""
        recover = self.recover_steps if self.adapt == "recover" else 0
        return self.finetune_steps(name) if self.adapt == "train" else recover

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
        start, folder = self.start, cache_folder(self.cache) / DENSE
        if tuned_kind(given := start.locate()) is not None:
            if len(self.downstream) > 1 or self.finetune_seeds > 1:
                raise DataError(
                    f"{given} is fine-tuned already, one model of one task, and asked for are "
                    f"finetune_seeds={self.finetune_seeds} of {', '.join(self.downstream)}; give "
                    "one task and seed, or a pre-trained checkpoint, whose dense models are "
                    "fine-tuned here"
                )
            head: nn.Module = open_tuned(given, self.head_kind, self.class_names(name))
            head, kept = head.to(self.training.place), folder / short_hash("tuned-1", start.digest)
        else:
            head = self.new_head(start.encoder(dropout=self.dropout), name, seed)
            check_frozen(head.get_submodule("encoder"), self.frozen)
            key = self.dense_key(head, name, seed)
            kept = folder / f"{name}-{key}"
            title, rows = f"dense model of {name}, seed {seed}", self.tokens(name).train
            config = TrainConfig(steps=self.finetune_steps(name), lr=self.finetune_rate)
            order, noise = self.order(name, seed), mixed_seed(seed, DROPOUT)

            def finetune(made: Checkpoints) -> None:
                how = config, made, key
                self.training.fit(head, rows, *how, order=order, noise=noise, title=title)

            provide_dense(head, kept.with_name(f"{kept.name}.safetensors"), key, finetune)
        key = short_hash(self.protocol, name)
        path = kept.with_name(f"{kept.name}.{key}.json")
        check_learned(path, key, name, lambda: self.scores(head, name).values)
        return head

    def provide_models(self, seed: int) -> None:
        """Fine-tunes, or finds, the dense models of a seed, and checks them: see `dense`."""
        if self.adapt != "train":
            for name in self.downstream:
                for number in range(self.finetune_seeds):
                    self.dense(name, self.run_seed(seed, number))

    @cached_property
    def row_hashes(self) -> dict[str, str]:
        """Task -> hash of its training rows as tensors, made once for all masks."""
        return {n: self.training.hash_rows(self.tokens(n).train) for n in self.downstream}

    def dense_key(self, head: nn.Module, name: str, seed: int) -> str:
        """Hash of everything that the weights of a task's dense model depend on."""
        shapes = {n: list(part.shape) for n, part in head.named_parameters()}
        settings = {"epochs": self.epochs, "finetune_lr": self.finetune_rate}
        chosen = ("finetune_batch", "frozen", "precision", "dropout")
        settings |= {each: getattr(self, each) for each in chosen}
        found = [self.start.digest, self.row_hashes[name], shapes, settings]
        return short_hash("dense-1", repr(found), str(seed), str(self.task_seed(name, seed)))

    def differentiable(self, seed: int) -> Differentiable:
        """What a one-shot search trains on.

        With a corpus the pre-training, as of `MlmEvaluator`. Without one the tasks: the dense
        models with frozen weights, so that gates alone are trained; with `adapt="train"` the
        checkpoint under a head for each task, so that gates and all weights but the `frozen` ones
        are.
        """
        if self.corpus is not None:
            return self.text.differentiable(seed)
        if self.adapt == "train":
            encoder = self.start.encoder(dropout=self.dropout)
            freeze(encoder, self.frozen)  # as under a mask that is judged
            heads = [self.new_head(encoder, name, seed) for name in self.downstream]
        else:
            heads = [self.dense(name, seed) for name in self.downstream]
        imitate = self.weights_frozen and self.learn_from == "dense"
        rows = [(self.tokens(n).train, self.order(n, seed, GATES)) for n in self.downstream]
        made = train_together(heads, rows, self.training, imitate=imitate)
        if self.weights_frozen:
            made.model.requires_grad_(False)
        return made
