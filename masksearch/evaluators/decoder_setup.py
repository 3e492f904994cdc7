"""What a `CausalEvaluator` is told: its text, its model, what is trained, and what that is called.

setup = CausalEvaluator("books", weights="models/smollm2")      # a DecoderSetup
setup.shape, setup.protocol                                     # reads the text
"""

from __future__ import annotations

import copy
import math
from dataclasses import KW_ONLY, asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal, Self, get_args

import torch
from transformers import PreTrainedConfig

from masksearch.contracts import Evaluator, Half, Objective, Shape
from masksearch.errors import check_name, unknown_name
from masksearch.evaluators.token_scores import band_edges
from masksearch.masks.core import Mask
from masksearch.models.decoders import DECODERS, StoredDecoder, decoder_config, open_decoder
from masksearch.models.encoders import AnySize, find_size, initial_spread, size_name
from masksearch.serving.kv_cache import kv_bytes
from masksearch.tasks.next_token import NextTokenRows, NextTokenTask, NextTokenText, hide_passkeys
from masksearch.tasks.recall import Recall
from masksearch.tasks.text.files import absolute_if_local, absolute_source, short_hash
from masksearch.training.loop import Precision, TrainConfig, find_device, peak_rate

Adapted = Literal["none", "recover", "train"]
Cost = Literal["effective_sparsity", "kv_bytes", "kv_bytes_per_head"]
SPARSITY, CACHE, CACHE_PER_HEAD = get_args(Cost)
LOSS, RECALL = "nll", "recall"  # the score; the share of right answers, and its task
LENGTH = 256  # positions of a sequence of text

open_weights = lru_cache(maxsize=4)(open_decoder)  # once a process
read_text = lru_cache(maxsize=4)(NextTokenText.load)


@dataclass(frozen=True)
class DecoderSetup(Evaluator):
    """Data, model and settings of an evaluator on decoders; see `CausalEvaluator`."""

    text: Path | str | Recall
    _: KW_ONLY
    # The text.
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
    learn_from: Literal["labels", "dense", "hidden"] = "labels"
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

    def __post_init__(self) -> None:
        least = {"reports": 1, "batch": 1, "held_out_sequences": 1, "recover_tokens": 1}
        least |= {"passkeys": 0}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ValueError(f"{name} must be at least {value}, got {getattr(self, name)}")
        if self.precision not in get_args(Precision):
            raise ValueError(f"precision is float32 or bfloat16, got {self.precision!r}")
        check_name("architecture of a decoder", self.architecture, DECODERS)
        check_name("half", self.half, get_args(Half))
        if self.adapt not in (None, *get_args(Adapted)):
            raise unknown_name("adapt", str(self.adapt), get_args(Adapted))
        if self.kl and self.adapts != "none":
            raise ValueError(
                f"kl compares the same weights with and without a mask, and adapt={self.adapts!r} "
                "changes them; leave kl out, or judge with adapt='none'"
            )
        check_name("cost", self.cost, get_args(Cost))
        check_name("learn_from", self.learn_from, ("labels", "dense", "hidden"))
        object.__setattr__(self, "size", size_name(self.size))  # one text for equal sizes
        if self.bands is not None:
            edges = tuple(self.bands)
            if any(a >= b for a, b in zip((1, *edges), edges, strict=False)):
                raise ValueError(f"bands are positions from 2 on, rising, got {list(edges)}")
            object.__setattr__(self, "bands", edges)
        _ = (self.train_config, self.recover_config)  # check steps and rates
        self.find_planted()
        for name in ("text", "held_out", "cache"):
            if isinstance(path := getattr(self, name), Path | str):
                object.__setattr__(self, name, absolute_source(path))
        for name in ("tokenizer", "weights"):
            if (given := getattr(self, name)) is not None:
                object.__setattr__(self, name, absolute_if_local(given))

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
        for name in ("weights", "tokenizer", "held_out", "passkeys"):
            if getattr(self, name):
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
        made.rows  # noqa: B018 (refuses an empty half)
        return made

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

    @property
    def hidden_rows(self) -> NextTokenRows | None:
        """The sequences with passkeys; None where there are none.

        Raises:
            DataError: If none can be hidden in the text.
        """
        text = self.task()
        if not self.passkeys or not isinstance(text, NextTokenText):
            return None
        return read_passkeys(text, self.half, self.passkeys)

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
        """Held-out loss in nats a token (worst: a uniform guess), and `cost`."""
        if isinstance(self.text, Recall):
            tokens = self.text.vocabulary
        else:
            tokens = self.vocabulary if self.start is None else self.start.vocabulary
        cost = {
            SPARSITY: Objective(SPARSITY, "max", 0.0),
            CACHE: Objective(CACHE, "min", 1.0),
            CACHE_PER_HEAD: Objective(CACHE_PER_HEAD, "min", 1.0),
        }
        return (Objective(LOSS, "min", math.log(tokens)), cost[self.cost])

    @property
    def measure_names(self) -> tuple[str, ...]:
        """What is known of a mask before it is judged."""
        return (CACHE, CACHE_PER_HEAD)

    def measures_of(self, mask: Mask) -> dict[str, float]:
        """The bytes of the cache of keys and values under a mask, at the evaluator's length, as a
        share of the dense cache's: of one that frees keys of whole layers, and of one that frees
        those of each KV head. Nothing of a mask that follows the tokens."""
        if mask.needs_tokens:
            return {}
        config, length = self.config, self.positions
        return {
            CACHE: kv_bytes(mask, config, length).share,
            CACHE_PER_HEAD: kv_bytes(mask, config, length, account="head").share,
        }

    @property
    def kv_head_count(self) -> int:
        """KV heads of a layer."""
        found = self.config.get_text_config(decoder=True)
        heads = getattr(found, "num_key_value_heads", None) or found.num_attention_heads
        return int(heads)

    @property
    def config(self) -> PreTrainedConfig:
        """The decoder's configuration, but for the size of a trained vocabulary."""
        if self.start is not None:
            return self.start.config
        return decoder_config(
            self.architecture,
            self.size,
            self.vocabulary,
            self.positions,
            kv_heads=self.kv_heads,
            initializer_range=self.initializer_range,
        )

    @property
    def meanings(self) -> dict[str, str]:
        """What the reported values measure."""
        return {
            LOSS: "negative log-likelihood of held-out tokens, in nats a token",
            "passkey": "share of numbers hidden in the text that are repeated in full",
            RECALL: "share of right answers to the questions of planted recall",
            "kl": "divergence from the same weights without a mask, in nats a token",
        }

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
        return short_hash("causal-1", repr(self.settings()))

    def settings(self) -> dict[str, object]:
        """Everything that a score depends on, beside mask and seed."""
        hidden = self.hidden_rows
        found = {} if hidden is None else {"passkeys": hidden.digest()}
        return found | {
            "model": self.weights_settings(),
            "rows": self.rows.digest(),
            "half": self.half,
            "adapt": self.adapts,
            "recover": (self.task().train_digest, self.batch, self.recover_config.identity)
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
    def place(self) -> torch.device:
        """The device that computes."""
        return find_device(self.device)


@lru_cache(maxsize=4)
def read_rows(text: NextTokenTask, half: Half, most: int) -> NextTokenRows:
    """The tokens that are judged, made once a process."""
    return text.held_out(half, most)


read_passkeys = lru_cache(maxsize=4)(hide_passkeys)
