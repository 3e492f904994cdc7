"""Judges a mask on a decoder: one that is trained already, or one that learns under the mask.

evaluator = CausalEvaluator("books", weights="models/smollm2", length=1024)
for report in evaluator(masks.window(255) | masks.columns(4), seed=0, workdir=Path("run")):
    print(report.values["nll"])      # nats a held-out token, under the mask
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import KW_ONLY, asdict, dataclass, field, replace
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, Literal, Self, cast, get_args

import torch
from torch import Tensor, nn

from masksearch.analysis.row_scores import lower_bound
from masksearch.attention.attach import attach, detach
from masksearch.contracts import (
    LOW,
    MAJORITY,
    Batch,
    Differentiable,
    Half,
    Objective,
    Report,
    Shape,
    mixed_seed,
)
from masksearch.errors import SearchError, unknown_name
from masksearch.evaluators.dense_models import FOLDER, provide_dense
from masksearch.evaluators.mlm import Precision, autocast, report_steps
from masksearch.evaluators.pretraining_task import move_batches
from masksearch.evaluators.token_scores import (
    TokenScores,
    band_edges,
    band_means,
    dense_features,
    document_scores,
    row_scores,
    score_tokens,
)
from masksearch.masks.core import Mask
from masksearch.masks.lower import lower
from masksearch.models.decoders import (
    DECODERS,
    NextTokenModel,
    StoredDecoder,
    decoder,
    divergence,
    open_decoder,
)
from masksearch.models.encoders import AnySize, find_size, initial_spread, size_name
from masksearch.tasks.next_token import NextTokenRows, NextTokenTask, NextTokenText
from masksearch.tasks.recall import Recall
from masksearch.tasks.text.corpus import cache_folder
from masksearch.tasks.text.files import short_hash
from masksearch.tasks.text.hub import is_hub
from masksearch.training.checkpoints import Checkpoints
from masksearch.training.loop import TrainConfig, train

WEIGHTS, DATA, NOISE, GATES = 71, 72, 73, 74  # streams of random numbers
Adapted = Literal["none", "recover", "train"]
LOSS, RECALL = "nll", "recall"  # the score; the share of right answers, and its task
LENGTH = 256  # positions of a sequence of text

open_weights = lru_cache(maxsize=4)(open_decoder)  # once a process
read_text = lru_cache(maxsize=4)(NextTokenText.load)


@dataclass(frozen=True)
class CausalEvaluator:
    """Judges a mask by what a decoder loses under it on held-out text.

    With `weights` the decoder is a checkpoint, and by default nothing is trained: the mask is put
    on, and held-out tokens are judged, which costs a forward pass of them. Without, a decoder of
    random weights is trained under the mask. The weights and the order of the data derive from
    the seed alone, so that masks judged with one seed differ in nothing but the mask; a
    checkpoint that is judged as it is gives every seed the same scores.

    The last report holds `"nll"`, in nats a token, and its means over bands of tokens (`bands`):
    `"nll/at-64-255"`, tokens with 64 to 255 others before them; `"nll/back-64-255"`, tokens that
    stood behind the same token 64 to 255 positions earlier, which a model can copy; `"nll/new"`,
    the others. A mask that forgets what lies far back shows it in the far bands first.

    Args:
        text: A text file, a folder of `*.txt` files, or a dataset `hf:..`; see `Corpus.load`. The
            held-out part is judged, the rest trains. Or planted recall, `"recall"` (a file of that
            name is `"./recall"`) or a `Recall`: then `"recall"` in the report is the share of
            right answers, and it is known how far back each token needs to see.
        held_out: Text to hold out; default: see `Corpus.load`.
        held_out_sequences: Largest number of held-out sequences that are judged.
        half: Which of them: `"search"`, or those that no search has seen (`"final"`); whole
            documents are dealt out by a hash of their first tokens. `"all"` = both; `"test"` = the
            folder's test.txt, or the split of that name of `hf:..`.
        tokenizer: A tokenizer on disk or on the Hub; None = the checkpoint's, or one trained on
            the text.
        vocabulary: Size of a trained vocabulary.
        length: Positions of a sequence; None = 256 of a text, and the planted task's own.
        cache: Folder of the token cache and of dense models; default: see `Corpus.load`.
        weights: A checkpoint: a folder or a Hub name, see `masksearch.models.decoders`; None =
            random weights.
        architecture: Of a decoder with random weights: `"llama"`, `"qwen3"` or `"gpt2"`.
        size: Its layers x width x heads, as of `MlmEvaluator`.
        kv_heads: Its key-value heads a layer; None = as many as heads.
        initializer_range: Standard deviation of its weights; None = as of `MlmEvaluator`.
        adapt: What is trained under the mask. `"none"`: nothing. `"recover"`: all weights, for
            `recover_tokens`, towards the predictions of the dense model. `"train"`: all weights,
            from the start. None = `"none"` with `weights`, else `"train"`. Without weights,
            `"none"` and `"recover"` take a dense model that is trained once for each seed,
            without a mask, and kept in the cache.
        recover_tokens: Tokens of the training text that `"recover"` learns on, about.
        recover_lr: Its peak learning rate.
        learn_from: What gates of a one-shot search on frozen weights learn from: the next token
            (`"labels"`), or the predictions of the `"dense"` model.
        bands: First positions of the bands but the first, rising; None = powers of 4 from 16.
        kl: Whether `"kl"` is reported too: how far the predictions are from those of the same
            weights without a mask, in nats a token. It costs the output layer once more, and
            memory for the hidden states of all judged tokens.
        steps: Optimiser steps of a training from random weights.
        batch: Sequences of a batch.
        lr: Peak learning rate of that training.
        warmup: Share of the steps in which the rate rises.
        reports: Number of reports of a training; their steps double.
        device: `"cpu"`, `"cuda"`, .., or `"auto"`: the GPU where there is one.
        precision: `"float32"`, or `"bfloat16"` for autocast.
        checkpoint_seconds: Wall time between two checkpoints of a training.

    Raises:
        DataError: When it is called, or asked for its protocol, and the text is missing, too short
            or not UTF-8, or the checkpoint is no decoder.
    """

    text: Path | str | Recall
    _: KW_ONLY
    # The text.
    held_out: Path | str | None = None
    held_out_sequences: int = 64
    half: Half = "search"
    tokenizer: str | Path | None = None
    vocabulary: int = 4096
    length: int | None = None
    cache: Path | None = None
    # The model, and what is trained.
    weights: str | Path | None = None
    architecture: str = "llama"
    size: AnySize = "tiny"
    kv_heads: int | None = None
    initializer_range: float | None = None
    adapt: Adapted | None = None
    recover_tokens: int = 200_000
    recover_lr: float = 3e-4
    learn_from: Literal["labels", "dense"] = "labels"
    # What is reported.
    bands: tuple[int, ...] | None = None
    kl: bool = False
    # The training and its machine.
    steps: int = 800
    batch: int = 16
    lr: float = 2e-3
    warmup: float = 0.06
    reports: int = 8
    device: str = "auto"
    precision: Precision = "float32"
    checkpoint_seconds: float = 60.0
    packed_text: NextTokenTask | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        least = {"reports": 1, "batch": 1, "held_out_sequences": 1, "recover_tokens": 1}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ValueError(f"{name} must be at least {value}, got {getattr(self, name)}")
        if self.precision not in get_args(Precision):
            raise ValueError(f"precision is float32 or bfloat16, got {self.precision!r}")
        if self.architecture not in DECODERS:
            raise unknown_name("architecture of a decoder", self.architecture, DECODERS)
        if self.half not in get_args(Half):
            raise unknown_name("half", self.half, get_args(Half))
        if self.adapt not in (None, *get_args(Adapted)):
            raise unknown_name("adapt", str(self.adapt), get_args(Adapted))
        if self.learn_from not in ("labels", "dense"):
            raise unknown_name("learn_from", self.learn_from, ("labels", "dense"))
        object.__setattr__(self, "size", size_name(self.size))  # one text for equal sizes
        if self.bands is not None:
            edges = tuple(self.bands)
            if any(a >= b for a, b in zip((1, *edges), edges, strict=False)):
                raise ValueError(f"bands are positions from 2 on, rising, got {list(edges)}")
            object.__setattr__(self, "bands", edges)
        _ = (self.train_config, self.recover_config)  # check steps and rates
        self.find_planted()
        for name in ("text", "held_out"):
            path = getattr(self, name)
            if isinstance(path, Path | str) and not is_hub(
                path
            ):  # workers may run in another folder
                object.__setattr__(self, name, Path(path).expanduser().resolve())
        for name in ("tokenizer", "weights"):
            given = getattr(self, name)
            if given is not None and Path(given).expanduser().exists():
                object.__setattr__(self, name, Path(given).expanduser().resolve())

    def find_planted(self) -> None:
        """Puts the planted task in the place of its name.

        Raises:
            ValueError: If something is given that belongs to text.
        """
        if self.text == RECALL:
            made = Recall() if self.length is None else Recall.of_length(self.length)
            object.__setattr__(self, "text", made)
        if not isinstance(self.text, Recall):
            return
        if self.length not in (None, self.text.length):
            raise ValueError(
                f"this planted recall has {self.text.length} positions, got length={self.length}; "
                "leave length out"
            )
        for name in ("weights", "tokenizer", "held_out"):
            if getattr(self, name) is not None:
                raise ValueError(
                    f"planted recall has token ids of its own, so {name}= belongs to text; leave "
                    "it out (architecture= and size= say what learns it)"
                )

    # -- rows ----------------------------------------------------------------------------------
    def on(self, half: Half) -> Self:
        """The same evaluator on other held-out documents: another protocol, the same training.

        Raises:
            DataError: If the text has none.
        """
        if half == self.half:
            return self
        made = replace(self, half=half)
        made.rows  # noqa: B018  (refuses an empty half)
        return made

    def final(self) -> Self:
        """The same evaluator on documents that no search has seen."""
        return self.on("final")

    def task(self) -> NextTokenTask:
        """The text, read once a process, or the planted task."""
        if self.packed_text is not None:
            return self.packed_text
        if isinstance(self.text, Recall):
            return self.text
        tokenizer = self.tokenizer
        if self.start is not None and tokenizer is None:
            tokenizer = self.start.tokenizer_source
        found = read_text(
            self.text,
            tokenizer=tokenizer,
            vocabulary=self.vocabulary,
            length=self.positions,
            cache=self.cache,
            held_out=self.held_out,
            test=self.half == "test",
        )
        if self.start is not None:
            self.start.check_tokens(found.vocabulary)
        return found

    @property
    def rows(self) -> NextTokenRows:
        """The tokens that are judged.

        Raises:
            DataError: If there are none.
        """
        return read_rows(self.task(), self.half, self.held_out_sequences)

    def packed(self) -> Self:
        """The same evaluator with its text in memory, for machines that do not see the file. The
        weights of a checkpoint stay where they are."""
        if self.packed_text is not None:
            return self
        made = copy.copy(self)
        object.__setattr__(made, "packed_text", self.task())
        return made

    def data_hashes(self) -> dict[str, str]:
        """Hashes of the text and of the checkpoint, where there is one."""
        named = {"text": self.task().digest}
        return named if self.start is None else named | {"weights": self.start.digest}

    # -- what it is ----------------------------------------------------------------------------
    @property
    def start(self) -> StoredDecoder | None:
        """The checkpoint, opened once a process; None = random weights.

        Raises:
            DataError: If it cannot be opened, or is no decoder.
        """
        return None if self.weights is None else open_weights(self.weights)

    @property
    def positions(self) -> int:
        """Positions of a sequence."""
        if isinstance(self.text, Recall):
            return self.text.length
        return LENGTH if self.length is None else self.length

    @property
    def adapts(self) -> Adapted:
        """What is trained under a mask."""
        return self.adapt or ("train" if self.weights is None else "none")

    @property
    def shape(self) -> Shape:
        """What a mask is lowered to: causal."""
        if self.start is not None:
            return self.start.shape(self.positions)
        size = find_size(self.size)
        return Shape(self.positions, size.layers, size.heads, causal=True)

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """Held-out loss in nats a token (worst: a uniform guess), and the share of the earlier
        tokens that the mask hides."""
        if isinstance(self.text, Recall):
            tokens = self.text.vocabulary
        else:
            tokens = self.vocabulary if self.start is None else self.start.vocabulary
        return (
            Objective(LOSS, "min", math.log(tokens)),
            Objective("effective_sparsity", "max", 0.0),
        )

    @property
    def meanings(self) -> dict[str, str]:
        """What the reported values measure."""
        return {
            LOSS: "negative log-likelihood of held-out tokens, in nats a token",
            RECALL: "share of right answers to the questions of planted recall",
            "kl": "divergence from the same weights without a mask, in nats a token",
        }

    @property
    def train_config(self) -> TrainConfig:
        """Settings of a training from random weights."""
        return TrainConfig(steps=self.steps, lr=self.lr, warmup=self.warmup)

    @property
    def recover_config(self) -> TrainConfig:
        """Settings of the recovery."""
        steps = math.ceil(self.recover_tokens / (self.batch * self.positions))
        return TrainConfig(steps=steps, lr=self.recover_lr, warmup=self.warmup)

    @property
    def protocol(self) -> str:
        """Hash of the text, the model and the training; reads the text."""
        return short_hash("causal-1", repr(self.settings()))

    def settings(self) -> dict[str, object]:
        """Everything that a score depends on, beside mask and seed."""
        rows = self.rows
        return {
            "model": self.weights_settings(),
            "rows": rows.digest(),
            "half": self.half,
            "adapt": self.adapts,
            "recover": (self.task_digest(), self.batch, self.recover_config.identity)
            if self.adapts == "recover"
            else None,
            "bands": self.edges,
            "kl": self.kl,
            "precision": self.precision,
        }

    def weights_settings(self) -> dict[str, object]:
        """What the weights depend on that a mask is put on, or that are trained under it."""
        if self.start is not None and self.adapts != "train":
            return {"weights": self.start.digest, "length": self.positions}
        size = find_size(self.size)
        scratch = {
            "architecture": self.architecture,
            "size": asdict(size),
            "kv_heads": self.kv_heads,
            "initializer_range": self.initializer_range or initial_spread(size.width),
        }
        return {
            "start": scratch if self.start is None else self.start.digest,
            "text": self.task_digest(),
            "train": self.train_config.identity,
            "batch": self.batch,
            "precision": self.precision,
        }

    def task_digest(self) -> str:
        """Hash of what is trained on, the same for every half."""
        one = replace(self, half="search") if self.half == "test" else self
        return one.task().digest

    @property
    def edges(self) -> tuple[int, ...]:
        """First positions of the bands but the first."""
        return band_edges(self.positions) if self.bands is None else self.bands

    @property
    def place(self) -> torch.device:
        """The device that computes."""
        found = "cuda" if torch.cuda.is_available() else "cpu"
        return torch.device(found if self.device == "auto" else self.device)

    # -- models --------------------------------------------------------------------------------
    def model(self, seed: int) -> NextTokenModel:
        """A fresh model without a mask: its weights drawn from `seed`, or the checkpoint's."""
        if self.start is not None:
            return NextTokenModel(self.start.decoder()).to(self.place)
        body = decoder(
            self.architecture,
            self.size,
            self.task().vocabulary,
            self.positions,
            seed=mixed_seed(seed, WEIGHTS),
            kv_heads=self.kv_heads,
            initializer_range=self.initializer_range,
        )
        return NextTokenModel(body).to(self.place)

    def dense(self, seed: int) -> NextTokenModel:
        """The model that masks are put on: the checkpoint, or what was trained without a mask for
        this seed, once, and kept in the cache. A fresh copy."""
        made = self.model(seed)
        if self.start is None:
            key = short_hash("dense-decoder-1", repr(self.weights_settings()), str(seed))
            path = cache_folder(self.cache) / FOLDER / f"decoder-{key}.safetensors"

            def pretrain(kept: Checkpoints) -> None:
                for _ in self.steps_of(made, self.train_config, seed, key, kept, "dense decoder"):
                    pass

            provide_dense(made, path, key, pretrain)
        made.eval().requires_grad_(False)
        return made

    def provide_models(self, seed: int) -> None:
        """Trains, or finds, the dense model of a seed, and checks that it has learned something.

        Raises:
            SearchError: If it has learned nothing, so that no masks can be compared on it.
        """
        if self.adapts == "train":
            return
        found = frozen_model(self, self.model_seed(seed))
        scores = self.judge(found)
        loss, constant = self.mean(scores.nll), self.constant_loss()
        if loss >= constant:
            raise SearchError(
                f"without a mask the decoder loses {loss:.3f} nats a token, and a guess by how "
                f"frequent tokens are {constant:.3f}, so no masks can be compared on it; train it "
                "for longer, or take the tokenizer that it was trained with"
            )

    def model_seed(self, seed: int) -> int:
        """The seed that the dense model depends on: none where it is a checkpoint."""
        return seed if self.weights is None else 0

    def steps_of(
        self,
        model: NextTokenModel,
        config: TrainConfig,
        seed: int,
        key: str,
        kept: Checkpoints | None,
        title: str = "",
        teacher: NextTokenModel | None = None,
        memory: dict[str, Any] | None = None,
    ) -> Iterator[int]:
        """Trains a model in place on the text; yields the number of each step."""

        def loss(student: nn.Module, batch: Batch) -> Tensor:
            with autocast(batch, self.precision):
                found = student(**batch)
                if teacher is None:
                    return cast(Tensor, found.loss)
                with torch.no_grad():
                    target = teacher(**batch).logits
                return divergence(found.logits.float(), target.float()).mean()

        order, text = mixed_seed(seed, DATA), self.task()
        model.requires_grad_(True)
        run = train(
            model,
            lambda start: move_batches(text.batches(order, self.batch, start), self.place),
            config,
            loss,
            checkpoints=kept,
            checkpoint_seconds=self.checkpoint_seconds,
            key=key,
            memory=memory,
            noise_seed=mixed_seed(seed, NOISE),
            title=title,
        )
        for step in run:
            yield step.number

    # -- judging -------------------------------------------------------------------------------
    def __call__(self, mask: Mask, *, seed: int, workdir: Path) -> Iterator[Report]:
        """Yields reports of the held-out loss; the last one is the result.

        It also says what a guess by how frequent tokens are loses, `"nll/majority"`, and the upper
        end of the loss's 95% interval over documents, `"nll/low"`.
        """
        lower(mask, self.shape)  # refuses a mask that does not fit before anything is read
        if self.adapts == "none":
            model = frozen_model(self, self.model_seed(seed))
            attach(model, mask)
            try:
                scores = self.judge(model, seed)
            finally:
                detach(model)
            yield Report(0, self.last_values(scores, workdir))
            return
        recovers = self.adapts == "recover"
        config = self.recover_config if recovers else self.train_config
        teacher = frozen_model(self, self.model_seed(seed)) if recovers else None
        model = copy.deepcopy(teacher) if teacher is not None else self.model(seed)
        attach(model, mask)
        kept = Checkpoints(workdir, self.adapts)
        memory: dict[str, Any] = {"curve": []}
        due = report_steps(config.steps, self.reports)
        key = short_hash(self.protocol, mask.digest, str(seed))
        steps = self.steps_of(model, config, seed, key, kept, teacher=teacher, memory=memory)
        first = next(steps, None)  # a run that goes on brings its curve back
        for number, values in memory["curve"]:
            yield Report(number, values)
        for number in chain([] if first is None else [first], steps):
            if number in due and number < config.steps:
                values = self.values(self.judge(model, seed))
                memory["curve"].append([number, values])
                yield Report(number, values)
        yield Report(config.steps, self.last_values(self.judge(model, seed), workdir))
        kept.clear()

    def judge(self, model: NextTokenModel, seed: int | None = None) -> TokenScores:
        """What a model says of the held-out tokens.

        Args:
            model: With its mask on.
            seed: Of the dense model that it is compared with where `kl` is asked for; None = with
                none.

        Raises:
            NonFiniteLossError: If it says NaN.
        """
        half = self.precision == "bfloat16"
        dense = None
        if self.kl and seed is not None and self.adapts == "none":
            dense = features_without_mask(self, self.model_seed(seed))
        return score_tokens(model, self.rows.tokens, dense=dense, half_precision=half)

    def mean(self, values: Tensor) -> float:
        """The mean over the scored tokens."""
        rows = self.rows
        return float(document_scores(values, rows).mean())

    def values(self, scores: TokenScores) -> dict[str, float]:
        """What a report holds."""
        rows = self.rows
        found = {LOSS: self.mean(scores.nll)}
        means = band_means(scores.nll, rows, self.edges)
        found |= {f"{LOSS}/{band}": mean for band, mean in means.items()}
        if scores.kl is not None:
            found["kl"] = self.mean(scores.kl)
        if rows.answers is not None:
            found[RECALL] = scores.right[rows.answers].double().mean().item()
            found[f"{LOSS}/{RECALL}"] = scores.nll[rows.answers].double().mean().item()
        return found

    def last_values(self, scores: TokenScores, workdir: Path) -> dict[str, float]:
        """What the last report holds; the scores of documents go to the working folder."""
        documents = row_scores(scores.nll, self.rows)
        documents.save(workdir)
        sides = {f"{LOSS}{MAJORITY}": self.constant_loss()}
        if len(losses := documents.scores["text"]) > 1:  # one document has no interval
            sides[f"{LOSS}{LOW}"] = -lower_bound(-losses, -math.inf)
        return self.values(scores) | sides

    def constant_loss(self) -> float:
        """What a guess by how frequent tokens are in the training text loses, in nats a token."""
        share, labels = self.task().frequencies.log(), self.rows.labels
        return -share[labels[labels != -100]].mean().item()

    # -- gates ---------------------------------------------------------------------------------
    @property
    def weights_frozen(self) -> bool:
        """Whether `differentiable` trains gates alone."""
        return self.adapts != "train"

    def differentiable(self, seed: int) -> Differentiable:
        """What a one-shot search trains on: the model and the text, without a mask. With
        `adapt="none"` or `"recover"` the dense model's weights are frozen, so that gates alone are
        trained."""
        text, order = self.task(), mixed_seed(seed, DATA, GATES)
        model = self.dense(self.model_seed(seed)) if self.weights_frozen else self.model(seed)
        teacher = None
        if self.weights_frozen and self.learn_from == "dense":
            teacher = frozen_model(self, self.model_seed(seed))

        def stream(part: NextTokenTask) -> Iterator[Batch]:
            return with_targets(move_batches(part.batches(order, self.batch), self.place), teacher)

        rows, size = self.rows, self.batch
        held_out: Iterator[Batch] = (
            {"input_ids": rows.tokens[at : at + size], "labels": rows.labels[at : at + size]}
            for at in range(0, len(rows.tokens), size)
        )
        return Differentiable(
            model.train(),
            stream(text),
            list(with_targets(move_batches(held_out, self.place), teacher)),
            (stream(text.part(0)), stream(text.part(1))),
        )


@lru_cache(maxsize=2)
def frozen_model(judge: CausalEvaluator, seed: int) -> NextTokenModel:
    """The dense model of an evaluator, one object for all masks of a process; whoever puts a mask
    on it takes it off again."""
    return judge.dense(seed)


@lru_cache(maxsize=1)
def features_without_mask(judge: CausalEvaluator, seed: int) -> list[Tensor]:
    """The hidden states of the dense model over the held-out tokens, made once a process. The
    model carries a mask when they are asked for, so they come from a copy of it."""
    model = detach(copy.deepcopy(frozen_model(judge, seed)), missing_ok=True)
    half = judge.precision == "bfloat16"
    return dense_features(cast(NextTokenModel, model), judge.rows.tokens, half_precision=half)


@lru_cache(maxsize=4)
def read_rows(text: NextTokenTask, half: Half, most: int) -> NextTokenRows:
    """The tokens that are judged, made once a process."""
    return text.held_out(half, most)


def with_targets(batches: Iterator[Batch], teacher: NextTokenModel | None) -> Iterator[Batch]:
    """The batches with a dense model's features as targets, where there is one."""
    for batch in batches:
        if teacher is not None:
            with torch.no_grad():
                batch = batch | {"target": teacher.features(batch["input_ids"])}
        yield batch
