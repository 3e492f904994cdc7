"""Judges a mask by masked-language-model pre-training on text of the user's own.

evaluator = MlmEvaluator("wikitext-2", steps=800)
for report in evaluator(masks.star(), seed=0, workdir=Path("run")):
    print(report.step, report.values["loss"])
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Iterator
from dataclasses import KW_ONLY, asdict, dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Self, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masksearch.analysis.row_scores import RowScores, lower_bound
from masksearch.attention.attach import attach, detach
from masksearch.contracts import (
    LOW,
    MAJORITY,
    NATS,
    Batch,
    Differentiable,
    Evaluator,
    Half,
    Objective,
    Report,
    Shape,
    mixed_seed,
)
from masksearch.errors import NonFiniteLossError, check_name
from masksearch.files import short_hash
from masksearch.masks.core import Mask
from masksearch.masks.lower import lower
from masksearch.models.encoders import (
    ARCHITECTURES,
    PRESETS,
    AnySize,
    Head,
    MaskedLanguageModel,
    StateImitator,
    encoder,
    find_size,
    initial_spread,
    size_name,
)
from masksearch.models.pretrained import Pretrained, open_pretrained
from masksearch.tasks.mlm import MlmTask, mark_scored
from masksearch.tasks.sentence_pairs import SentencePairTask, build_task
from masksearch.tasks.text.corpus import Corpus
from masksearch.tasks.text.files import absolute_if_local, make_absolute
from masksearch.tasks.text.tokenizer import id_count, open_tokenizer, special_ids
from masksearch.training.accumulation import count_scored, group
from masksearch.training.checkpoints import Checkpoints, copy_weights
from masksearch.training.loop import (
    Optimiser,
    Precision,
    Schedule,
    TrainConfig,
    autocast,
    find_device,
    keeping_modes,
    move_batches,
    peak_rate,
    report_steps,
    train,
)

PAIR_LABEL = "next_sentence_label"  # in batches with sentence pairs
Pretraining = Literal["mlm", "mlm+next", "mlm+order", "distil"]
PAIRS: dict[str, Literal["next", "order"]] = {"mlm+next": "next", "mlm+order": "order"}
NO_CORPUS = "there is no corpus; give a text file or a folder"
WEIGHTS, HEAD, DATA, NOISE = 11, 12, 13, 14  # streams of random numbers
PRETRAINING = "pretraining"  # name of its checkpoints
PRETRAINED = "pretrained"  # and of that of a finished one


@dataclass(frozen=True)
class MlmEvaluator(Evaluator):
    """Trains a small BERT from scratch under the mask; the score is its held-out loss.

    The weights, the order of the data and what is hidden derive from the seed alone, so that
    masks judged with one seed differ in nothing but the mask.

    With `weights` the training starts from a checkpoint, whose shape, vocabulary and (where none
    is given) tokenizer are taken; `size`, `architecture`, `vocabulary` and `initializer_range`
    are then ignored, and `steps=0` judges the checkpoint under the mask as it is.

    Args:
        corpus: A text file, a folder of `*.txt` files, or a dataset `hf:...`; see `Corpus.load`.
        held_out: Text to hold out; default: see `Corpus.load`.
        held_out_sequences: Largest number of held-out sequences in a report.
        half: Which held-out sequences: `"search"`, or those that no search has seen (`"final"`);
            whole documents are dealt out by a hash of their first tokens, see
            `Corpus.held_out_rows`. `"all"` = both; `"test"` = the folder's test.txt, or the split
            of that name of `hf:..`. Nothing that is trained depends on it.
        tokenizer: A tokenizer on disk, or its name on the Hugging Face Hub; None = the
            checkpoint's, or one trained on the text.
        vocabulary: Size of the vocabulary that is trained where `tokenizer` is None.
        length: Positions of a sequence.
        pretraining: `"mlm"`; `"mlm+next"` adds BERT's next-sentence prediction, `"mlm+order"`
            ALBERT's sentence order: two segments a sequence, with padding. `"distil"`: the
            model imitates the last hidden states that its checkpoint (`weights`) has without a
            mask, on text where nothing is hidden; it needs no head for masked words. The loss is
            then a share, 0 = the same states, 1 = zeros; see `StateImitator`.
        whole_words: Whether all tokens of a word are masked together.
        cache: Folder of the token cache; default: see `Corpus.load`.
        size: Layers x width x heads of the model: "nano" (1x64x2), "tiny" (2x128x4), "mini"
            (4x256x4), "small" (4x512x8), "medium" (8x512x8), "base" (12x768x12), or your own as
            "4x128x4" or {"layers": 4, "width": 128, "heads": 4}. Equal sizes are one protocol.
        architecture: A name of `masksearch.models.encoders.ARCHITECTURES`.
        initializer_range: Standard deviation of the initial weights; None = BERT's 0.02 at a
            width of 768, scaled by 1 / sqrt(width) (0.049 for "tiny").
        dropout: Of hidden states and attention weights, in [0, 1); None = 0 from scratch, and
            what a checkpoint configures.
        weights: A checkpoint to start from: a folder or a name on the Hugging Face Hub, see
            `masksearch.models.checkpoints.open_pretrained`; None = random weights.
        steps: Optimiser steps of pre-training.
        batch: Sequences of a batch.
        micro_batches: Batches of an optimiser step: `batch * micro_batches` sequences.
        lr: Peak learning rate; None = 2e-3 from random weights, 1e-4 from a checkpoint.
        warmup: Share of the steps in which the learning rate rises (its warm-up).
        schedule: How it falls then: `"linear"`, or `"sqrt"` of what is left (SparseBERT).
        optimiser: `"adamw"`, or `"lamb"` for large batches.
        reports: Number of reports; their steps double up to `steps`.
        device: `"cpu"`, `"cuda"`, .., or `"auto"`: the GPU where there is one.
        precision: `"float32"`, or `"bfloat16"` for autocast.
        compile: Whether pre-training is compiled (`torch.compile`); it pays in long runs.
        checkpoint_seconds: Wall time between two checkpoints, in the working folder, from which
            a killed run goes on; on a CPU it ends bit for bit as it would have.

    Raises:
        DataError: When it is called, or asked for its protocol, and the corpus is missing,
            too small or not UTF-8.
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
    packed_corpus: Corpus | None = field(default=None, init=False, repr=False, compare=False)
    packed_start: Pretrained | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.corpus is None:
            raise ValueError(NO_CORPUS)
        if self.reports < 1:
            raise ValueError(f"reports must be at least 1, got {self.reports}")
        check_name("pre-training", self.pretraining, get_args(Pretraining))
        if self.distils and self.weights is None:
            raise ValueError(
                "pretraining='distil' imitates a checkpoint, and this evaluator trains from "
                "scratch; give the checkpoint as weights=, or pretraining='mlm'"
            )
        check_name("architecture", self.architecture, ARCHITECTURES)
        check_settings(self)
        if self.steps != 0 or self.weights is None:
            self.train_config  # noqa: B018  (checks steps, lr and the like)

    @classmethod
    def preset(cls, name: str, *args: Any, **changes: Any) -> Self:
        """An evaluator with published settings.

        evaluator = MlmEvaluator.preset("sparsebert", "wikipedia", device="cuda")

        Args:
            name: `"sparsebert"`: BERT-base as in SparseBERT (arXiv 2102.12871), whose batches
                of 65,536 sequences are 1,024 batches of 64 each step; change `batch` and
                `micro_batches` together.
            args: Positional arguments of the evaluator, such as the corpus.
            changes: Settings in place of the preset's.

        Raises:
            UnknownNameError: If there is no such preset.
        """
        return cls(*args, **(preset_of(cls, name) | changes))

    def on(self, half: Half) -> Self:
        """The same evaluator on other held-out rows: another protocol, and the same training.

        Args:
            half: `"search"`, `"final"`, `"test"` or `"all"`.

        Raises:
            DataError: If the data has no such rows.
        """
        if half == self.half:
            return self
        made = replace(self, half=half)
        made.task().held_out_rows  # noqa: B018 (refuses an empty half)
        return made

    @property
    def distils(self) -> bool:
        """Whether hidden states are imitated."""
        return self.pretraining == "distil"

    @property
    def start(self) -> Pretrained:
        """The checkpoint that the training starts from, opened once a process.

        Raises:
            DataError: If it cannot be opened.
        """
        return self.packed_start or read_weights(self.weights)

    @property
    def shape(self) -> Shape:
        """What a mask is lowered to."""
        if self.weights is not None:
            return self.start.shape(self.length)
        size = find_size(self.size)
        return Shape(self.length, size.layers, size.heads)

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """Held-out loss in nats a token (worst: a uniform guess), of a distillation as a share
        (worst: zeros), and the mask's sparsity."""
        sparsity = Objective("sparsity", "max", 0.0)
        if self.distils:
            return Objective("loss", "min", 1.0), sparsity
        vocabulary = self.vocabulary if self.weights is None else self.start.vocabulary
        return Objective("loss", "min", math.log(vocabulary), NATS), sparsity

    @property
    def train_config(self) -> TrainConfig:
        """Settings of the pre-training."""
        return TrainConfig(
            steps=self.steps,
            lr=peak_rate("lr", self.lr, scratch=self.weights is None),
            warmup=self.warmup,
            micro_batches=self.micro_batches,
            optimiser=self.optimiser,
            schedule=self.schedule,
        )

    @property
    def weight_lr(self) -> float | None:
        """Peak learning rate of a checkpoint's weights beside gates; None from random weights."""
        return None if self.weights is None else self.train_config.lr

    @property
    def protocol(self) -> str:
        """Hash of the data, the model and the training; reads the corpus."""
        return short_hash("mlm-1", repr(self.settings()))

    def settings(self) -> dict[str, object]:
        """Everything that a pre-training loss depends on, beside mask and seed."""
        scratch, size, task = self.weights is None, find_size(self.size), self.task()
        spread = self.initializer_range or initial_spread(size.width)
        found: dict[str, object] = {
            "data": task.corpus.digest,
            "size": asdict(size) if scratch else self.start.digest,
            "train": self.train_config.identity if self.steps else None,
            "batch": self.batch,
            "initializer_range": spread if scratch else None,
            "probability": task.probability,
            "held_out": self.held_out_sequences,
            "precision": self.precision,
        }
        later = ("pretraining", "whole_words", "architecture", "dropout", "compile")
        defaults = {each.name: each.default for each in fields(self)}
        # where they are the default, older protocols keep their ids
        found |= {n: value for n in later if (value := getattr(self, n)) != defaults[n]}
        if self.half == "all":
            return found
        task.corpus.held_out_rows(self.half)  # refuses an empty half before any training
        return found | {"half": self.half}

    def data_hashes(self) -> dict[str, str]:
        """Hashes of the text and of the checkpoint, where there is one."""
        named = {"text": self.task().corpus.digest}
        return named if self.weights is None else named | {"weights": self.start.digest}

    def packed(self) -> Self:
        """The same evaluator with its data in memory, for machines that do not see its files.

        A `dataclasses.replace` of it holds no data: another length or vocabulary is another
        corpus, and is read.

        Raises:
            DataError: If the data cannot be read here.
        """
        if self.packed_corpus is not None:
            return self
        made = copy.copy(self)
        object.__setattr__(made, "packed_corpus", self.task().corpus)
        if self.weights is not None:
            object.__setattr__(made, "packed_start", self.start)
        return made

    def task(self) -> MlmTask | SentencePairTask:
        """The pre-training task; the corpus is read once a process."""
        assert self.corpus is not None
        corpus = self.packed_corpus or read_corpus(
            self.corpus,
            self.tokenizer,
            self.vocabulary,
            self.length,
            self.cache,
            self.held_out,
            None if self.weights is None else self.start,
            self.half == "test",
        )
        pairs, rows = PAIRS.get(self.pretraining), self.held_out_sequences
        return build_task(corpus, self.batch, rows, pairs, self.whole_words, self.half)

    def prepared(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Batches where the training is; of a distillation the text as it was, with the hidden
        states of the checkpoint as `target`."""
        there = move_batches(batches, self.place)
        if not self.distils:
            yield from there
            return
        teacher = StateImitator(self.start.encoder(dropout=0.0)).to(self.place).eval()
        for batch in there:
            plain = batch["labels"] == -100
            ids = torch.where(plain, batch["input_ids"], batch["labels"])
            with torch.no_grad(), autocast(batch, self.precision):
                target = teacher.hidden(ids, None, None).float()
            yield {"input_ids": ids, "target": target}

    def held_out_batches(self) -> list[Batch]:
        """The held-out batches, where the training is."""
        return list(self.prepared(iter(self.task().held_out())))

    def model(self, seed: int) -> MaskedLanguageModel | StateImitator:
        """A fresh model without a mask: its weights drawn from `seed`, or the checkpoint's."""
        if self.distils:
            return StateImitator(self.start.encoder(dropout=self.dropout)).to(self.place)
        head, pairs = mixed_seed(seed, HEAD), self.pretraining in PAIRS
        if self.weights is not None:
            start = self.start.masked_language_model(head, pairs=pairs, dropout=self.dropout)
            return start.to(self.place)
        corpus = self.task().corpus
        body = encoder(
            self.size,
            corpus.vocabulary,
            self.length,
            seed=mixed_seed(seed, WEIGHTS),
            dropout=self.dropout or 0.0,
            initializer_range=self.initializer_range,
            architecture=self.architecture,
            pad=0 if self.architecture == "bert" else corpus.special["pad"],
        )
        return MaskedLanguageModel(body, seed=head, pairs=pairs).to(self.place)

    @property
    def place(self) -> torch.device:
        """The device that trains."""
        return find_device(self.device)

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Losses of a batch, each a mean over its labels; their sum is what is learnt.

        Returns:
            The model's loss, a scalar; with sentence pairs `[masked tokens, pairs]`.
        """
        with autocast(batch, self.precision):
            if PAIR_LABEL not in batch:
                loss: Tensor = model(**batch).loss
                return loss
            found = model(**{name: part for name, part in batch.items() if name != PAIR_LABEL})
            pairs = F.cross_entropy(found.pair_logits.float(), batch[PAIR_LABEL])
            return torch.stack([found.loss, pairs])

    def held_out_values(self, model: nn.Module, batches: list[Batch]) -> dict[str, float]:
        """What a report holds; the model's mode is restored.

        Returns:
            `"loss"`: mean cross-entropy of the masked held-out tokens, in nats, or the mean error
            of imitated states; with sentence pairs also `"pair_loss"`, in nats, and
            `"pair_accuracy"`, in [0, 1] (chance: 0.5).
        """
        total, tokens, pair_total, hits, pairs = 0.0, 0, 0.0, 0, 0
        with torch.no_grad(), keeping_modes(model):
            model.eval()
            for batch in batches:
                count = count_scored(batch)[0]
                with autocast(batch, self.precision):
                    found = model(**{name: t for name, t in batch.items() if name != PAIR_LABEL})
                total += found.loss.item() * count
                tokens += count
                if PAIR_LABEL in batch:
                    logits, truth = found.pair_logits.float(), batch[PAIR_LABEL]
                    pair_total += F.cross_entropy(logits, truth, reduction="sum").item()
                    hits += int((logits.argmax(-1) == truth).sum())
                    pairs += len(truth)
        values = {"loss": total / tokens}
        if pairs:
            values |= {"pair_loss": pair_total / pairs, "pair_accuracy": hits / pairs}
        return values

    def context_free_loss(self) -> float:
        """Least held-out loss without context: see `MlmTask.context_free_loss`; of a
        distillation that of the best constant state."""
        if not self.distils:
            return self.task().context_free_loss
        targets = [batch["target"].flatten(0, 1) for batch in self.held_out_batches()]
        states = torch.cat(targets).double()
        weights = states.square().sum(1, keepdim=True).reciprocal()
        best = (weights * states).sum(0) / weights.sum()
        return float((weights * (states - best).square()).sum(1).mean())

    def sequence_scores(self, model: nn.Module) -> RowScores:
        """The held-out loss sequence by sequence: the mean over them is that of a report.

        A sequence's score is its mean loss in nats, weighted by its number of masked tokens over
        their mean number (they differ with sentence pairs only).
        """
        losses, counts, digest = list[Tensor](), list[Tensor](), hashlib.sha256()
        with torch.no_grad(), keeping_modes(model):
            model.eval()
            for batch in self.held_out_batches():
                with autocast(batch, self.precision):
                    found = model(**{name: t for name, t in batch.items() if name != PAIR_LABEL})
                labels, table = batch.get("labels"), found.logits.double().cpu()
                scored = torch.ones_like(table, dtype=torch.bool)
                digest.update(batch["input_ids"].cpu().numpy().tobytes())
                if labels is not None:
                    scored = (labels != -100).cpu()
                    truth = labels[labels != -100]
                    each = F.cross_entropy(found.logits.float(), truth, reduction="none")
                    table = torch.zeros(scored.shape, dtype=torch.float64)
                    table[scored] = each.double().cpu()
                    digest.update(labels.cpu().numpy().tobytes())
                losses.append(table.sum(1))
                counts.append(scored.sum(1))
        rows = (torch.cat(losses) / torch.cat(counts).double().mean()).numpy()
        return RowScores({"text": rows}, {"text": 1.0}, {"text": digest.hexdigest()[:16]})

    def differentiable(self, seed: int) -> Differentiable:
        """What a one-shot search trains on: the same model and data, without a mask."""
        return Differentiable(
            self.model(seed),
            self.prepared(self.task().batches(mixed_seed(seed, DATA))),
            self.held_out_batches(),
            self.steps or None,
            peak_rate("lr", self.lr, scratch=self.weights is None),
        )

    def pretrain(
        self, model: Head, mask: Mask, *, seed: int, workdir: Path | None = None
    ) -> Iterator[Report]:
        """Trains a fresh `self.model(seed)` in place under the mask, which stays on it.

        Args:
            model: The model.
            mask: A mask that fits `shape`.
            seed: Seed of the evaluation.
            workdir: Where checkpoints are kept and found again; None = nowhere.

        Yields:
            Reports with the held-out loss; the last one at `steps`. A run that goes on from a
            checkpoint yields the earlier reports again first.
        """
        task, held_out = self.task(), self.held_out_batches()
        attach(model, mask, inputs={"input_ids": held_out[0]["input_ids"][:1]})
        if self.steps == 0:
            yield Report(0, self.held_out_values(model, held_out))
            return
        if self.compile:
            model.compile()
        due = report_steps(self.steps, self.reports)
        kept = None if workdir is None else Checkpoints(workdir, PRETRAINING)
        memory: dict[str, Any] = {"curve": []}
        data_seed = mixed_seed(seed, DATA)
        steps = train(
            model,
            lambda start: self.prepared(mark_scored(task.batches(data_seed, start))),
            self.train_config,
            self.losses,
            checkpoints=kept,
            checkpoint_seconds=self.checkpoint_seconds,
            key=short_hash(self.protocol, mask.digest, str(seed)),
            memory=memory,
            noise_seed=mixed_seed(seed, NOISE),
        )
        for number, values in memory["curve"]:
            yield Report(number, values)
        for step in steps:
            if step.number in due:
                values = self.held_out_values(model, held_out)
                if not all(map(math.isfinite, values.values())):
                    raise NonFiniteLossError(
                        f"the held-out loss became {values['loss']} at step {step.number} of "
                        f"{self.steps}; lower the learning rate (--lr)"
                    )
                memory["curve"].append([step.number, values])
                yield Report(step.number, values)

    def pretrain_once(
        self, model: Head, mask: Mask, *, seed: int, workdir: Path
    ) -> Iterator[Report]:
        """Pre-trains in place, or loads a finished pre-training of the same mask, seed, settings.

        Yields:
            The reports of the pre-training, again where it is found. The model is then without
            a mask.
        """
        key = short_hash(self.protocol, mask.digest, str(seed))
        kept = Checkpoints(workdir, PRETRAINED)
        found = kept.load()
        if found is not None and found.facts["key"] == key:
            model.load_state_dict(found.tensors)
            for step, values in found.facts["curve"]:
                yield Report(step, values)
            return
        curve = []
        for report in self.pretrain(model, mask, seed=seed, workdir=workdir):
            curve.append((report.step, dict(report.values)))
            yield report
        kept.clear()  # of another run
        if self.steps and group().first:  # without a step there is nothing to keep
            kept.save(self.steps, copy_weights(model), {"key": key, "curve": curve})
        Checkpoints(workdir, PRETRAINING).clear()
        detach(model, missing_ok=True)

    def __call__(self, mask: Mask, *, seed: int, workdir: Path) -> Iterator[Report]:
        """Yields reports `{"loss": ..}`; the last one, at `steps`, is the result.

        It also says what a model without context earns, `"loss/majority"` (see
        `context_free_loss`), and the upper end of the loss's 95% interval over held-out
        sequences, `"loss/low"`; not with `half="all"`, as versions without halves had it.
        """
        lower(mask, self.shape)  # refuses a mask that does not fit before anything is read
        model = self.model(seed)
        for report in self.pretrain(model, mask, seed=seed, workdir=workdir):
            if report.step == self.steps and group().first:
                rows = self.sequence_scores(model)
                rows.save(workdir)
                if self.half != "all":
                    losses = rows.scores["text"]
                    sides = {f"loss{MAJORITY}": self.context_free_loss()}
                    if len(losses) > 1:  # one sequence has no interval
                        sides[f"loss{LOW}"] = -lower_bound(-losses, -math.inf)
                    report = Report(report.step, {**report.values, **sides})
            yield report
        Checkpoints(workdir, PRETRAINING).clear()


def check_settings(evaluator: Any) -> None:
    """Checks what every evaluator on text is told, and makes places absolute, as workers may run
    in another folder.

    Args:
        evaluator: An `MlmEvaluator` or a `FineTuning`, which has its fields.

    Raises:
        ValueError: If one is out of its range.
    """
    if evaluator.precision not in ("float32", "bfloat16"):
        raise ValueError(f"precision is float32 or bfloat16, got {evaluator.precision!r}")
    check_name("half", evaluator.half, get_args(Half))
    if evaluator.dropout is not None and not 0 <= evaluator.dropout < 1:
        raise ValueError(f"dropout must lie in [0, 1), got {evaluator.dropout}")
    object.__setattr__(evaluator, "size", size_name(evaluator.size))  # one text for equal sizes
    make_absolute(evaluator, "corpus", "held_out", "cache")
    make_absolute(evaluator, "tokenizer", "weights", resolve=absolute_if_local)


@lru_cache(maxsize=4)
def read_weights(name_or_folder: str | Path | None) -> Pretrained:
    """A checkpoint, opened once a process; see `open_pretrained`.

    Raises:
        ValueError: If there is none.
    """
    if name_or_folder is None:
        raise ValueError("this evaluator trains from scratch; it has no weights to open")
    return open_pretrained(name_or_folder)


@lru_cache(maxsize=4)
def read_corpus(
    path: Path | str,
    tokenizer: str | Path | None,
    vocabulary: int,
    length: int,
    cache: Path | str | None,
    held_out: Path | str | None,
    start: Pretrained | None = None,
    test: bool = False,
) -> Corpus:
    """The corpus, read once a process; its tokenizer is the given one, or that of `start`. With
    `test` its held-out text is the test text.

    Raises:
        DataError: If it is missing or too small, or its tokenizer does not fit `start`.
        LengthError: If `start` has fewer positions than `length`.
    """
    if start is not None:
        start.shape(length)
        tokenizer = tokenizer or start.tokenizer_source
        made = open_tokenizer(tokenizer)
        start.check_tokens(id_count(made), special_ids(made)["pad"])
    return Corpus.load(
        path,
        tokenizer=tokenizer,
        vocabulary=vocabulary,
        length=length,
        cache=cache,
        held_out=held_out,
        test=test,
    )


def preset_of(kind: type, name: str) -> dict[str, Any]:
    """Those of a preset's settings that an evaluator has."""
    check_name("preset", name, PRESETS)
    known = {each.name for each in fields(kind)}
    return {key: value for key, value in PRESETS[name].items() if key in known}
