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
from itertools import chain, pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Self, get_args

import torch
from torch import nn
from transformers import PreTrainedConfig

from masksearch.analysis.row_scores import lower_bound
from masksearch.attention.attach import attach, detach
from masksearch.attention.cache_bytes import CacheSizes, needed_bytes
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
from masksearch.errors import SearchError, check_name
from masksearch.evaluators.next_tokens import (
    LOSS,
    RECALL,
    DenseDecoder,
    NextTokenTraining,
    TokenScores,
    band_edges,
    constant_loss,
    passkey_values,
    row_scores,
    score_tokens,
    token_values,
)
from masksearch.files import cache_folder, short_hash
from masksearch.masks.core import Mask
from masksearch.masks.lower import lower
from masksearch.models.decoders import (
    DECODERS,
    NextTokenModel,
    StoredDecoder,
    decoder,
    decoder_config,
    open_decoder,
)
from masksearch.models.encoders import AnySize, find_size, initial_spread, size_name
from masksearch.tasks.next_token import NextTokenRows, NextTokenTask, NextTokenText, hide_passkeys
from masksearch.tasks.recall import Recall
from masksearch.tasks.text.files import absolute_if_local, make_absolute
from masksearch.training.checkpoints import DENSE, Checkpoints, provide_dense
from masksearch.training.loop import (
    Precision,
    TrainConfig,
    find_device,
    move_batches,
    peak_rate,
    report_steps,
)

WEIGHTS, DATA, NOISE, GATES = 71, 72, 73, 74  # streams of random numbers
Adapted = Literal["none", "recover", "train"]
LearnFrom = Literal["labels", "dense", "hidden"]
Cost = Literal["effective_sparsity", "kv_bytes", "kv_bytes_per_head"]
SPARSITY, CACHE, CACHE_PER_HEAD = get_args(Cost)
LENGTH = 256  # positions of a sequence of text
PROTOCOL = "causal-1"  # of these scores: protocol ids are hashes of it and of all settings


@dataclass(frozen=True)
class CausalEvaluator(Evaluator):
    """Judges a mask by what a decoder loses under it on held-out text.

    With `weights` the decoder is a checkpoint, and by default nothing is trained: the mask is put
    on, and held-out tokens are judged. Without, a decoder of random weights is trained under the
    mask. Weights and the order of the data derive from the seed alone, so that masks judged with
    one seed differ in nothing but the mask; a checkpoint judged as it is knows no seed.

    The last report holds `"nll"`, in nats a token, and its means over bands of tokens (`bands`):
    `"nll/at-64-255"`, tokens with 64 to 255 others before them; `"nll/back-64-255"`, tokens that
    stood behind the same token 64 to 255 positions earlier, which a model can copy; `"nll/new"`,
    the others. A mask that forgets what lies far back shows it in the far bands first.

    Args:
        text: A text file, a folder of `*.txt` files, or a dataset `hf:..`; see `Corpus.load`. The
            held-out part is judged, the rest trains. Or planted recall, `"recall"` (a file of that
            name is `"./recall"`) or a `Recall`: then the report holds `"recall"`, the share of
            right answers.
        held_out: Text to hold out; default: see `Corpus.load`.
        held_out_sequences: Largest number of held-out sequences that are judged.
        half: Which of them, as of `MlmEvaluator`: `"search"`, `"final"`, `"all"` or `"test"`.
        tokenizer: A tokenizer on disk or on the Hub; None = the checkpoint's, or a trained one.
        vocabulary: Size of a trained vocabulary.
        length: Positions of a sequence; None = 256 of a text, and the planted task's own.
        cache: Folder of the token cache and of dense models; default: see `Corpus.load`.
        weights: A checkpoint: a folder, a Hub name or a GGUF file, see
            `masksearch.models.decoders`; None = random weights.
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
            (`"labels"`), the predictions of the `"dense"` model, or its last `"hidden"` states.
        cost: The second objective: `"effective_sparsity"`, the share of the earlier tokens that a
            mask hides; `"kv_bytes"`, the share of the dense cache of keys and values that is held
            after `length` tokens (`masksearch.kv_bytes`); or `"kv_bytes_per_head"`, where the
            cache frees keys of single KV heads. Every record has all three; those of engines are
            added by `masksearch.Served`.
        bands: First positions of the bands but the first, rising; None = powers of 4 from 16.
        kl: Whether `"kl"` is reported too, with `adapt="none"`: the divergence from predictions of
            the same weights without a mask. It takes memory for the judged tokens' hidden states.
        passkeys: Number of further held-out sequences in which a number is hidden, and asked for
            at the end: `"passkey"` is the share of those that are repeated in full, and
            `"nll/passkey"` the loss of their tokens; see `masksearch.tasks.next_token`.
        steps: Optimiser steps of a training from random weights.
        batch: Sequences of a batch.
        lr: Peak learning rate of that training; None = 2e-3, or 1e-4 from a checkpoint.
        warmup: Share of the steps in which the rate rises.
        reports: Number of reports of a training; their steps double.
        device: `"cpu"`, `"cuda"`, .., or `"auto"`: the GPU where there is one.
        precision: `"float32"`, or `"bfloat16"` for autocast.
        checkpoint_seconds: Wall time between two checkpoints of a training.

    Raises:
        DataError: When it reads a text that is missing, too short or not UTF-8, or no decoder.
    """

    text: Path | str | Recall
    _: KW_ONLY
    held_out: Path | str | None = None
    held_out_sequences: int = 64
    half: Half = "search"
    tokenizer: str | Path | None = None
    vocabulary: int = 4096
    length: int | None = None
    cache: Path | str | None = None
    # The model, and what is trained.
    weights: str | Path | None = None
    architecture: str = "llama"
    size: AnySize = "tiny"
    kv_heads: int | None = None
    initializer_range: float | None = None
    adapt: Adapted | None = None
    recover_tokens: int = 200_000
    recover_lr: float = 3e-4
    learn_from: LearnFrom = "labels"
    # What is reported.
    cost: Cost = "effective_sparsity"
    bands: tuple[int, ...] | None = None
    kl: bool = False
    passkeys: int = 0
    # The training and its machine.
    steps: int = 800
    batch: int = 16
    lr: float | None = None
    warmup: float = 0.06
    reports: int = 8
    device: str = "auto"
    precision: Precision = "float32"
    checkpoint_seconds: float = 60.0
    packed_text: NextTokenTask | None = field(default=None, init=False, repr=False, compare=False)

    measure_names = (CACHE, CACHE_PER_HEAD)
    meanings = MappingProxyType(
        {
            LOSS: "negative log-likelihood of held-out tokens, in nats a token",
            "passkey": "share of numbers hidden in the text that are repeated in full",
            RECALL: "share of right answers to the questions of planted recall",
            "kl": "divergence from the same weights without a mask, in nats a token",
        }
    )

    def __new__(cls, *_: object, **settings: object) -> Self:
        """Names the new place of settings that were fields until 0.2.0."""
        if moved := [name for name in ("account", "serving", "sinks") if name in settings]:
            raise TypeError(
                f"CausalEvaluator has no {moved[0]}: engines serve what it judges, so write "
                f"ms.Served(ms.CausalEvaluator(..), {moved[0]}={settings[moved[0]]!r})"
            )
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for name in ("reports", "batch", "held_out_sequences", "recover_tokens", "passkeys"):
            least = 0 if name == "passkeys" else 1
            if (value := getattr(self, name)) < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if self.precision not in get_args(Precision):
            raise ValueError(f"precision is float32 or bfloat16, got {self.precision!r}")
        check_name("architecture of a decoder", self.architecture, DECODERS)
        check_name("half", self.half, get_args(Half))
        check_name("adapt", str(self.adapts), get_args(Adapted))
        check_name("cost", self.cost, get_args(Cost))
        check_name("learn_from", self.learn_from, get_args(LearnFrom))
        if self.kl and self.adapts != "none":
            raise ValueError(
                f"kl compares the same weights with and without a mask, and adapt={self.adapts!r} "
                "changes them; leave kl out, or judge with adapt='none'"
            )
        if any(a >= b for a, b in pairwise((1, *(self.bands or ())))):
            raise ValueError(f"bands are positions from 2 on, rising, got {[*(self.bands or ())]}")
        made: dict[str, object] = {"size": size_name(self.size)}  # one text for equal sizes
        if self.bands is not None:
            made["bands"] = tuple(self.bands)
        if self.text == RECALL:
            made["text"] = Recall() if self.length is None else Recall.of_length(self.length)
        for name, value in made.items():
            object.__setattr__(self, name, value)
        make_absolute(self, "text", "held_out", "cache")
        make_absolute(self, "tokenizer", "weights", resolve=absolute_if_local)
        _ = (self.train_config, self.recover_config)  # check steps and rates
        if not isinstance(self.text, Recall):
            return
        if self.length not in (None, own := self.text.length):
            given = f"got length={self.length}; leave length out"
            raise ValueError(f"this planted recall has {own} positions, {given}")
        for name in ("tokenizer", "held_out", "passkeys"):
            if getattr(self, name):
                raise ValueError(
                    f"planted recall has token ids of its own, so {name}= belongs to text; leave "
                    "it out (weights=, or architecture= and size=, say what is judged)"
                )

    # -- what it is ----------------------------------------------------------------------------
    def on(self, half: Half) -> Self:
        """The same on other held-out documents (DataError if there are none)."""
        if half == self.half:
            return self
        made = replace(self, half=half)
        made.rows  # noqa: B018 (refuses an empty half)
        return made

    def task(self) -> NextTokenTask:
        """The text, read once a process, or the planted task."""
        if self.packed_text is not None:
            return self.packed_text
        start = self.start
        if isinstance(self.text, Recall):
            if start is not None:
                start.check_tokens(self.text.vocabulary)
            return self.text
        found = read_text(
            self.text,
            tokenizer=self.tokenizer or (start and start.tokenizer_source),
            vocabulary=self.vocabulary,
            length=self.positions,
            cache=self.cache,
            held_out=self.held_out,
            test=self.half == "test",
        )
        if start is not None:
            start.check_tokens(found.vocabulary)
        return found

    @property
    def rows(self) -> NextTokenRows:
        """The tokens that are judged; DataError if there are none."""
        return read_rows(self.task(), self.half, self.held_out_sequences)

    @property
    def hidden_rows(self) -> NextTokenRows | None:
        """The sequences with passkeys, if any; DataError if none can be hidden in the text."""
        text = self.task()
        known = self.passkeys > 0 and isinstance(text, NextTokenText)
        return read_passkeys(text, self.half, self.passkeys) if known else None

    def packed(self) -> Self:
        """The same evaluator with its text, not with a checkpoint's weights, in memory."""
        if self.packed_text is not None:
            return self
        made = copy.copy(self)
        object.__setattr__(made, "packed_text", self.task())
        return made

    def data_hashes(self) -> dict[str, str]:
        """Hashes of the text and of the checkpoint, where there is one."""
        named = {"text": self.task().digest}
        return named if self.start is None else named | {"weights": self.start.digest}

    @property
    def start(self) -> StoredDecoder | None:
        """The checkpoint, opened once a process; None = random weights."""
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
        """Held-out loss in nats a token (worst: a uniform guess), and `cost`."""
        source = self.text if isinstance(self.text, Recall) else self.start or self
        cost = Objective(self.cost, "min", 1.0)
        if self.cost == SPARSITY:
            cost = Objective(SPARSITY, "max", 0.0)
        return (Objective(LOSS, "min", math.log(source.vocabulary), NATS), cost)

    def measures_of(self, mask: Mask) -> dict[str, float]:
        """Shares of the dense cache's bytes: of a cache that frees keys layer by layer, and of one
        that frees those of single KV heads. Nothing of a mask that follows the tokens."""
        if mask.needs_tokens:
            return {}
        sizes = CacheSizes.read(self.config)
        ways = {CACHE: False, CACHE_PER_HEAD: True}
        return {
            name: needed_bytes(mask, sizes, self.positions, by_head=by_head).share
            for name, by_head in ways.items()
        }

    @property
    def kv_head_count(self) -> int:
        """KV heads of a layer."""
        found = self.config.get_text_config(decoder=True)
        return int(getattr(found, "num_key_value_heads", None) or found.num_attention_heads)

    @property
    def config(self) -> PreTrainedConfig:
        """The decoder's configuration, but for the size of a trained vocabulary."""
        if self.start is not None:
            return self.start.config
        return decoder_config(
            *(self.architecture, self.size, self.vocabulary, self.positions),
            kv_heads=self.kv_heads,
            initializer_range=self.initializer_range,
        )

    @property
    def train_config(self) -> TrainConfig:
        """Settings of a training of all weights."""
        lr = peak_rate("lr", self.lr, scratch=self.weights is None)
        return TrainConfig(steps=self.steps, lr=lr, warmup=self.warmup)

    @property
    def recover_config(self) -> TrainConfig:
        """Settings of the recovery."""
        steps = math.ceil(self.recover_tokens / (self.batch * self.positions))
        return TrainConfig(steps=steps, lr=self.recover_lr, warmup=self.warmup)

    @property
    def protocol(self) -> str:
        """Hash of the text, the model and the training; reads the text."""
        return short_hash(PROTOCOL, repr(self.settings()))

    def settings(self) -> dict[str, object]:
        """Everything that a score depends on, beside mask and seed."""
        hidden, recover = self.hidden_rows, None
        if self.adapts == "recover":
            recover = self.task().train_digest, self.batch, self.recover_config.identity
        return ({} if hidden is None else {"passkeys": hidden.digest()}) | {
            "model": self.weights_settings(),
            "rows": self.rows.digest(),
            "half": self.half,
            "adapt": self.adapts,
            "recover": recover,
            "bands": self.edges,
            "kl": self.kl,
            "precision": self.precision,
        }

    def weights_settings(self) -> dict[str, object]:
        """What the weights depend on that a mask is put on, or that are trained under it."""
        if self.start is not None and self.adapts != "train":
            return {"weights": self.start.digest, "length": self.positions}
        size = find_size(self.size)
        scratch: dict[str, object] = {"architecture": self.architecture, "size": asdict(size)}
        scratch["kv_heads"] = self.kv_heads
        scratch["initializer_range"] = self.initializer_range or initial_spread(size.width)
        return {
            "start": scratch if self.start is None else self.start.digest,
            "text": self.task().train_digest,
            "train": self.train_config.identity,
            "batch": self.batch,
            "precision": self.precision,
        }

    @property
    def edges(self) -> tuple[int, ...]:
        """First positions of the bands but the first."""
        return band_edges(self.positions) if self.bands is None else self.bands

    @property
    def seedless(self) -> bool:
        """Whether every seed gives a mask the same scores: a checkpoint, judged as it is."""
        return self.weights is not None and self.adapts == "none"

    @property
    def weights_frozen(self) -> bool:
        """Whether `differentiable` trains gates alone."""
        return self.adapts != "train"

    @property
    def weight_lr(self) -> float | None:
        """Peak learning rate of a checkpoint's weights beside gates; None from random weights."""
        return None if self.weights is None else self.train_config.lr

    @property
    def training(self) -> NextTokenTraining:
        """What trains a decoder on the text."""
        how = self.batch, find_device(self.device), self.precision, self.checkpoint_seconds
        return NextTokenTraining(self.task(), *how)

    # -- models --------------------------------------------------------------------------------
    def model(self, seed: int) -> NextTokenModel:
        """A fresh model without a mask: its weights drawn from `seed`, or the checkpoint's."""
        if self.start is not None:
            return NextTokenModel(self.start.decoder()).to(find_device(self.device))
        body = decoder(
            *(self.architecture, self.size, self.task().vocabulary, self.positions),
            seed=mixed_seed(seed, WEIGHTS),
            kv_heads=self.kv_heads,
            initializer_range=self.initializer_range,
        )
        return NextTokenModel(body).to(find_device(self.device))

    def dense(self, seed: int) -> NextTokenModel:
        """The model that masks are put on: the checkpoint, or what was trained without a mask for
        this seed, once, and kept in the cache. A fresh copy."""
        made = self.model(seed)
        if self.start is None:
            key = short_hash("dense-decoder-1", repr(self.weights_settings()), str(seed))
            path = cache_folder(self.cache) / DENSE / f"decoder-{key}.safetensors"

            def pretrain(kept: Checkpoints) -> None:
                how = self.train_config, seed, key, kept
                for _ in self.training.steps(made, *how, title="dense decoder"):
                    pass

            provide_dense(made, path, key, pretrain)
        made.eval().requires_grad_(False)
        return made

    def shared(self, seed: int) -> DenseDecoder:
        """The dense model, one object for all masks; a checkpoint is one for all seeds."""
        return share_dense(self, seed if self.weights is None else 0)

    def provide_models(self, seed: int) -> None:
        """Trains, or finds, the dense model of a seed; SearchError if it has learned nothing."""
        if self.adapts == "train":
            return
        scores = self.judge(self.shared(seed).model)
        loss = token_values(scores, self.rows, self.edges)[LOSS]
        if loss >= (constant := constant_loss(self.task(), self.rows)):
            raise SearchError(
                f"without a mask the decoder loses {loss:.3f} nats a token, and a guess by how "
                f"frequent tokens are {constant:.3f}, so no masks can be compared on it; train it "
                "for longer, or take the tokenizer that it was trained with"
            )

    # -- judging -------------------------------------------------------------------------------
    def __call__(self, mask: Mask, *, seed: int, workdir: Path) -> Iterator[Report]:
        """Yields reports of the held-out loss; the last one is the result.

        It also says what a guess by how frequent tokens are loses, `"nll/majority"`, and the upper
        end of the loss's 95% interval over documents, `"nll/low"`.
        """
        lower(mask, self.shape)  # refuses a mask that does not fit before anything is read
        if self.adapts == "none":
            shared = self.shared(seed)
            attach(shared.model, mask)
            try:
                values = self.last_values(shared.model, workdir, shared)
            finally:
                detach(shared.model)
            yield Report(0, values)
            return
        model, config, teacher = self.under(mask, seed)
        kept = Checkpoints(workdir, self.adapts)
        memory: dict[str, Any] = {"curve": []}
        due = report_steps(config.steps, self.reports)
        key = short_hash(self.protocol, mask.digest, str(seed))
        how = config, seed, key, kept
        steps = self.training.steps(model, *how, teacher=teacher, memory=memory)
        first = next(steps, None)  # a run that goes on brings its curve back
        for number, values in memory["curve"]:
            yield Report(number, values)
        for number in chain([] if first is None else [first], steps):
            if number in due and number < config.steps:
                values = token_values(self.judge(model), self.rows, self.edges)
                memory["curve"].append([number, values])
                yield Report(number, values)
        yield Report(config.steps, self.last_values(model, workdir))
        kept.clear()

    def under(
        self, mask: Mask, seed: int
    ) -> tuple[NextTokenModel, TrainConfig, NextTokenModel | None]:
        """A model of its own with the mask on; how it is trained; the teacher of `"recover"`."""
        teacher = None if self.adapts == "train" else self.shared(seed).model
        model = self.model(seed) if teacher is None else copy.deepcopy(teacher)
        attach(model, mask)
        return model, self.train_config if teacher is None else self.recover_config, teacher

    def adapted(self, mask: Mask, *, seed: int) -> nn.Module:
        """The decoder that a mask is judged on, in evaluation mode, with the mask attached: what
        `__call__` makes and does not keep. It is trained anew with `"recover"` and `"train"`;
        `detach`, `to_native` and `save_masked` take it."""
        model, config, teacher = self.under(mask, seed)
        if self.adapts != "none":
            for _ in self.training.steps(model, config, seed, "adapted", None, teacher=teacher):
                pass
        detach(model.eval())  # from around the decoder, which the mask then is on
        attach(model.model, mask)
        return model.model

    def judge(self, model: NextTokenModel, shared: DenseDecoder | None = None) -> TokenScores:
        """What a model says of the held-out tokens. Of a shared dense decoder, states of layers
        that are as under the mask before are reused, and `kl` compares with it."""
        return score_tokens(
            model,
            self.rows.tokens,
            answers=self.rows.answers is not None,
            dense=shared.features if shared is not None and self.kl else None,
            precision=self.precision,
            states=shared.states if shared is not None and model is shared.model else None,
        )

    def last_values(
        self, model: NextTokenModel, workdir: Path, shared: DenseDecoder | None = None
    ) -> dict[str, float]:
        """What the last report holds; the scores of documents go to the working folder."""
        rows, hidden, scores = self.rows, self.hidden_rows, self.judge(model, shared)
        documents = row_scores(scores.nll, rows)
        documents.save(workdir)
        values = token_values(scores, rows, self.edges)
        values[f"{LOSS}{MAJORITY}"] = constant_loss(self.task(), rows)
        if len(losses := documents.scores["text"]) > 1:  # one document has no interval
            values[f"{LOSS}{LOW}"] = -lower_bound(-losses, -math.inf)
        if hidden is not None:
            said = score_tokens(model, hidden.tokens, answers=True, precision=self.precision)
            values |= passkey_values(said, hidden)
        return values

    # -- gates ---------------------------------------------------------------------------------
    def differentiable(self, seed: int) -> Differentiable:
        """What a one-shot search trains on: the model and the text, without a mask. Weights of a
        dense model are frozen, so that gates alone are trained."""
        order, rows, size = mixed_seed(seed, DATA, GATES), self.rows, self.batch
        model, teacher = self.model(seed), None
        if self.weights_frozen:
            model = self.dense(seed)
            teacher = None if self.learn_from == "labels" else self.shared(seed).model

        def targets(batches: Iterator[Batch]) -> Iterator[Batch]:
            for batch in move_batches(batches, find_device(self.device)):
                if teacher is not None:
                    name = "hidden" if self.learn_from == "hidden" else "target"
                    with torch.no_grad():
                        batch = batch | {name: teacher.features(batch["input_ids"])}
                yield batch

        held_out: Iterator[Batch] = (
            {"input_ids": rows.tokens[at : at + size], "labels": rows.labels[at : at + size]}
            for at in range(0, len(rows.tokens), size)
        )
        batches = targets(self.task().batches(order, size))
        how = list(targets(held_out)), self.steps, self.train_config.lr
        return Differentiable(model.train(), batches, *how)


# -- made once a process -----------------------------------------------------------------------
open_weights = lru_cache(maxsize=4)(open_decoder)
read_text = lru_cache(maxsize=4)(NextTokenText.load)
read_passkeys = lru_cache(maxsize=4)(hide_passkeys)


@lru_cache(maxsize=4)
def read_rows(text: NextTokenTask, half: Half, most: int) -> NextTokenRows:
    """The tokens that are judged."""
    return text.held_out(half, most)


@lru_cache(maxsize=2)
def share_dense(judge: CausalEvaluator, seed: int) -> DenseDecoder:
    """The dense model of an evaluator, for all masks."""
    return DenseDecoder(judge.dense(seed), judge.rows.tokens, judge.precision)
