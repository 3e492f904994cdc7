"""Judges a mask on a decoder: one that is trained already, or one that learns under the mask.

evaluator = CausalEvaluator("books", weights="models/smollm2", length=1024)
for report in evaluator(masks.window(255) | masks.columns(4), seed=0, workdir=Path("run")):
    print(report.values["nll"])      # nats a held-out token, under the mask
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, Self, cast, get_args

import torch
from torch import nn
from transformers import PreTrainedConfig

from masksearch.analysis.row_scores import lower_bound
from masksearch.attention.attach import attach, detach
from masksearch.contracts import (
    LOW,
    MAJORITY,
    MAX_NLL_INCREASE,
    NATS,
    NLL_INCREASE,
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
from masksearch.errors import SearchError, check_name, warn
from masksearch.evaluators.assembled import NO_CORPUS, TOKENIZERS, TrainingBase
from masksearch.files import cache_folder, read_once, short_hash
from masksearch.masks.core import Mask
from masksearch.masks.measure import keys_of_rows
from masksearch.models.sizes import find_size, initial_spread
from masksearch.training.checkpoints import DENSE, Checkpoints, provide_dense
from masksearch.training.loop import TrainConfig, move_batches, report_steps
from masksearch.training.parts import (
    PLANTED,
    AdaptConfig,
    Default,
    How,
    MachineConfig,
    ModelConfig,
    Precision,
    TextConfig,
    at_least,
)
from masksearch_decoders import decoders
from masksearch_decoders.cache.cache_bytes import CacheSizes, needed_bytes
from masksearch_decoders.decoders import (
    DECODERS,
    NextTokenModel,
    StoredDecoder,
    copy_beside,
    decoder,
    decoder_config,
)
from masksearch_decoders.next_tokens import (
    LOSS,
    RECALL,
    TEXT,
    DenseDecoder,
    NextTokenTraining,
    TokenScores,
    band_edges,
    constant_loss,
    row_scores,
    score_tokens,
    task_values,
    token_values,
)
from masksearch_decoders.tasks.long_context import GROUPS, TASKS, task_rows
from masksearch_decoders.tasks.next_token import NextTokenRows, NextTokenText
from masksearch_decoders.tasks.recall import NextTokenTask, Recall

WEIGHTS, DATA, NOISE, GATES = 71, 72, 73, 74  # streams of random numbers
Cost = Literal["effective_sparsity", "kv_bytes", "kv_bytes_per_head"]
SPARSITY, CACHE, CACHE_PER_HEAD = get_args(Cost)
COPIES = {"none": 1, "train": 4, "recover": 5}  # with gradient, two moments; and the teacher
MEANINGS = {
    LOSS: "negative log-likelihood of held-out tokens, in nats a token",
    MAX_NLL_INCREASE: "rise of the loss under a mask, of the text or group of tasks it harms most",
    RECALL: "share of right answers to the questions of planted recall",
    "kl": "divergence from the same weights without a mask, in nats a token",
}
PROTOCOL = "causal-1"  # of these scores: protocol ids are hashes of it and of all settings


@dataclass(frozen=True)
class CausalEvaluator(
    TextConfig, ModelConfig, MachineConfig, AdaptConfig, TrainingBase, Evaluator
):
    """Judges a mask by what a decoder loses under it on held-out text.

    With `weights` the decoder is a checkpoint, and by default nothing is trained: the mask is put
    on, and held-out tokens are judged. Without, a decoder of random weights is trained under the
    mask. Weights and the order of the data derive from the seed alone, so that masks judged with
    one seed differ in nothing but the mask; a checkpoint judged as it is knows no seed.

    The last report holds `"nll"`, in nats a token, and its means over bands of tokens (`bands`):
    `"nll/at-64-255"`, tokens with 64 to 255 others before them; `"nll/back-64-255"`, tokens that
    stood behind the same token 64 to 255 positions earlier, which a model can copy; `"nll/new"`,
    the others. A mask that forgets what lies far back shows it in the far bands first.

    `adapt` says what is trained under the mask. `"none"`: nothing. `"recover"`: all weights, for
    `recover_tokens`, towards the predictions of the dense model. `"train"`: all weights, from the
    start. Without weights, `"none"` and `"recover"` take a dense model that is trained once for
    each seed, without a mask, and kept in the cache.

    Of planted recall the report holds `"recall"`, the share of right answers.

    Args:
        kv_heads: Key-value heads of a layer of a decoder with random weights; None = as many as
            heads.
        recover_tokens: Tokens of the training text that `"recover"` learns on, about.
        cost: The second objective: `"effective_sparsity"`, the share of the earlier tokens that a
            mask hides; `"kv_bytes"`, the share of the dense cache of keys and values that is held
            after `length` tokens (`kv_bytes`); or `"kv_bytes_per_head"`, where the
            cache frees keys of single KV heads. Every record has all three; those of engines are
            added by `EngineEvaluator`.
        bands: First positions of the bands but the first, rising; None = powers of 4 from 16.
        kl: Whether `"kl"` is reported too, with `adapt="none"`: the divergence from predictions of
            the same weights without a mask. It takes memory for the judged tokens' hidden states.
        tasks: Tasks of long context that are judged beside the text: names of
            `tasks.long_context.TASKS`, RULER's thirteen and `"passkey"`. `"vt"` is the
            share of its rows whose whole answer is likeliest token by token, `"nll/vt"` the loss
            of the answers' tokens, `"nll/retrieval"` the mean over a group's tasks (`tracing`,
            `aggregation`, `answering`). Then `"max_nll_increase"` is the first objective: what a
            mask adds to the dense model's loss, of the text (`"nll_increase/text"`) or of a group
            (`"nll_increase/retrieval"`), whichever is the largest; so a mask adds at most that in
            each. Tasks in which the dense model is no better than a guess without the context are
            left out of it, with a warning.
        task_rows: Rows of each task.

    Raises:
        DataError: When it reads a text that is missing, too short or not UTF-8, or no decoder, or
            one that the device has no room for.
        SearchError: When it judges by tasks, and in each the dense model is no better than a guess
            without the context.
    """

    _: KW_ONLY
    held_out_sequences: int = 64
    length: int = Default(256)
    architecture: str = "llama"
    kv_heads: int | None = at_least(1, None)
    batch: int = 16
    precision: Precision | None = None
    recover_lr: float | None = 3e-4
    recover_tokens: int = at_least(1, 200_000)
    cost: Cost = "effective_sparsity"
    bands: Sequence[int] | None = None
    kl: bool = False
    tasks: Sequence[str] = ()
    task_rows: int = at_least(1, 16)

    measure_names = (CACHE, CACHE_PER_HEAD)

    def __post_init__(self) -> None:
        length = None if isinstance(self.length, Default) else self.length
        if self.corpus == PLANTED:
            made = Recall() if length is None else Recall.of_length(length)
            object.__setattr__(self, "corpus", made)
        if isinstance(self.corpus, Recall):
            if length not in (None, self.corpus.length):
                raise ValueError(
                    f"this planted recall has {self.corpus.length} positions, got "
                    f"length={length}; leave length out"
                )
            for name in ("tokenizer", "held_out", "tasks"):
                if getattr(self, name):
                    raise ValueError(
                        f"planted recall has token ids of its own, so {name}= belongs to text; "
                        "leave it out (weights=, or architecture= and size=, say what is judged)"
                    )
            length = self.corpus.length
        object.__setattr__(self, "length", int(self.length) if length is None else length)
        super().__post_init__()
        if self.corpus is None:
            raise ValueError(f"{NO_CORPUS}, or 'recall', a planted task")
        check_name("architecture of a decoder", self.architecture, DECODERS)
        check_name("learn_from", self.learn_from, ("labels", "dense", "hidden"))
        check_name("cost", self.cost, get_args(Cost))
        named = (self.tasks,) if isinstance(self.tasks, str) else tuple(self.tasks)
        for name in named:
            check_name("task", name, TASKS)
        object.__setattr__(self, "tasks", tuple(dict.fromkeys(named)))
        if self.kl and self.adapts != "none":
            raise ValueError(
                f"kl compares the same weights with and without a mask, and adapt={self.adapts!r} "
                "changes them; leave kl out, or judge with adapt='none'"
            )
        if any(a >= b for a, b in pairwise((1, *(self.bands or ())))):
            raise ValueError(f"bands are positions from 2 on, rising, got {[*(self.bands or ())]}")
        if self.bands is not None:
            object.__setattr__(self, "bands", tuple(self.bands))
        _ = (self.train_config, self.recover_config)  # check steps and rates

    # -- what it is ----------------------------------------------------------------------------
    @property
    def meanings(self) -> dict[str, str]:
        """Reported value -> what it measures."""
        return MEANINGS | {n: f"share of right answers in the task {n}" for n in self.tasks}

    def task(self) -> NextTokenTask:
        """The text, read once a process, or the planted task."""
        if self.held:
            stored: NextTokenTask = self.held["text"]
            return stored
        start = self.start
        if isinstance(self.corpus, Recall):
            task: NextTokenTask = self.corpus
        else:
            task = read_once(
                self.states(self.corpus, self.held_out)
                + self.states(self.tokenizer, self.weights, pattern=TOKENIZERS),
                NextTokenText.load,
                cast("Path | str", self.corpus),
                tokenizer=self.tokenizer or (start and start.tokenizer_source),
                vocabulary=self.vocabulary,
                length=self.length,
                cache=self.cache,
                held_out=self.held_out,
                test=self.split == "test",
            )
        if start is not None:
            start.check_tokens(task.vocabulary)
        return task

    @property
    def rows(self) -> NextTokenRows:
        """The tokens that are judged; DataError if there are none."""
        return read_rows(self.task(), self.split, self.held_out_sequences)

    @property
    def prompts(self) -> dict[str, NextTokenRows]:
        """Task -> its rows; DataError if they do not fit into a sequence."""
        text = self.task()
        if not isinstance(text, NextTokenText):
            return {}
        return {name: read_task(text, self.split, name, self.task_rows) for name in self.tasks}

    def packed(self) -> Self:
        """The same evaluator with its text, not with a checkpoint's weights, in memory."""
        return self if self.held else self.holding(text=self.task())

    def data_hashes(self) -> dict[str, str]:
        """Hashes of the text and of the checkpoint, where there is one."""
        named = {"text": self.task().digest}
        return named if self.start is None else named | {"weights": self.start.digest}

    @property
    def start(self) -> StoredDecoder | None:
        """The checkpoint, opened once a process; None = random weights."""
        if (weights := self.weights) is None:
            return None
        each, files = (
            self.dtype.itemsize * COPIES[self.adapts],
            self.states(weights, pattern="*.[js]*"),
        )
        read_once(files, decoders.check_fit, weights, each, self.torch_device)
        start: StoredDecoder = read_once(files, decoders.open_decoder, weights)
        return start

    @property
    def positions(self) -> int:
        """Positions of a sequence."""
        return self.length

    @property
    def adapts(self) -> How:
        """The weights that are trained under a mask."""
        return self.adapt or ("train" if self.scratch else "none")

    @property
    def shape(self) -> Shape:
        """The sizes that a mask is lowered to: causal."""
        if self.start is not None:
            return self.start.shape(self.length)
        size = find_size(self.size)
        return Shape(self.length, size.layers, size.heads, causal=True)

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """Held-out loss in nats a token (worst: a uniform guess), or with tasks what is added to
        the dense model's, and `cost`."""
        corpus = self.corpus
        source = corpus if isinstance(corpus, Recall) else self.start or self
        cost = Objective(self.cost, "min", 1.0)
        if self.cost == SPARSITY:
            cost = Objective(SPARSITY, "max", 0.0)
        name = MAX_NLL_INCREASE if self.tasks and self.adapts != "train" else LOSS
        return (Objective(name, "min", math.log(source.vocabulary), NATS), cost)

    def measures_of(self, mask: Mask) -> dict[str, float]:
        """Shares of the dense cache's bytes: of a cache that frees keys layer by layer, and of one
        that frees those of single KV heads. Nothing of a mask that follows the tokens."""
        if mask.needs_tokens:
            return {}
        sizes = CacheSizes.read(self.config)
        ways = {CACHE: False, CACHE_PER_HEAD: True}
        return {
            name: needed_bytes(mask, sizes, self.length, by_head=by_head).share
            for name, by_head in ways.items()
        }

    @property
    def kv_head_count(self) -> int:
        """KV heads of a layer."""
        config = self.config.get_text_config(decoder=True)
        return int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)

    @property
    def config(self) -> PreTrainedConfig:
        """The decoder's configuration, but for the size of a trained vocabulary."""
        if self.start is not None:
            return self.start.config
        return decoder_config(
            *(self.architecture, self.size, self.vocabulary, self.length),
            kv_heads=self.kv_heads,
            initializer_range=self.initializer_range,
        )

    @property
    def recover_config(self) -> TrainConfig:
        """Settings of the recovery."""
        config = self.train_config
        tokens = self.batch * config.micro_batches * self.length  # of a step
        lr = config.lr if self.recover_lr is None else self.recover_lr
        return replace(config, steps=math.ceil(self.recover_tokens / tokens), lr=lr)

    @property
    def protocol(self) -> str:
        """Hash of the text, the model and the training; reads the text."""
        return short_hash(PROTOCOL, repr(self.settings()))

    def settings(self) -> dict[str, object]:
        """Everything that a score depends on, beside mask and seed."""
        prompts = {name: (self.task_rows, rows.digest()) for name, rows in self.prompts.items()}
        recover = None
        if self.adapts == "recover":
            batch = self.batch
            recover = self.task().train_digest, batch, self.recover_config.identity
        return ({"tasks": prompts} if prompts else {}) | {
            "model": self._weights_settings(),
            "rows": self.rows.digest(),
            "half": STORED_SPLITS[self.split],
            "adapt": self.adapts,
            "recover": recover,
            "bands": self.edges,
            "kl": self.kl,
            "precision": self.precision,
        }

    def _weights_settings(self) -> dict[str, object]:
        """The settings of the weights that a mask is put on, or that are trained under it."""
        if self.start is not None and self.adapts != "train":
            named = {"weights": self.start.digest, "length": self.length}
            return named if self.dtype == torch.float32 else named | {"dtype": str(self.dtype)}
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
        return band_edges(self.length) if self.bands is None else tuple(self.bands)

    @property
    def seedless(self) -> bool:
        """Whether every seed gives a mask the same scores: a checkpoint, judged as it is."""
        return not self.scratch and self.adapts == "none"

    @property
    def dtype(self) -> torch.dtype:
        """The type of a checkpoint's weights in memory: bfloat16 where that is the precision, and
        nothing is trained."""
        short = self.precision == "bfloat16" and self.seedless
        return torch.bfloat16 if short else torch.float32

    @property
    def weights_frozen(self) -> bool:
        """Whether `differentiable` trains gates alone."""
        return self.adapts != "train"

    @property
    def trainer(self) -> NextTokenTraining:
        """The trainer of a decoder on the text."""
        return NextTokenTraining(self.task(), self.batch, self, self.torch_device)

    # -- models --------------------------------------------------------------------------------
    def build_model(self, seed: int) -> NextTokenModel:
        """A fresh model without a mask: its weights drawn from `seed`, or the checkpoint's."""
        if self.start is not None:
            return read_weights(self.start, self.dtype, self.torch_device)
        body = decoder(
            *(self.architecture, self.size, self.task().vocabulary, self.length),
            seed=mixed_seed(seed, WEIGHTS),
            kv_heads=self.kv_heads,
            initializer_range=self.initializer_range,
        )
        return NextTokenModel(body).to(self.torch_device)

    def dense(self, seed: int) -> NextTokenModel:
        """The model that masks are put on: the checkpoint, or what was trained without a mask for
        this seed, once, and kept in the cache. A fresh copy; of a checkpoint that is judged as
        it is all copies have the same weights in memory."""
        if self.start is not None and self.seedless:
            return copy_beside(_read_frozen(self.start, self.dtype, self.torch_device))
        made = self.build_model(seed)
        if self.start is None:
            key = short_hash("dense-decoder-1", repr(self._weights_settings()), str(seed))
            path = cache_folder(self.cache) / DENSE / f"decoder-{key}.safetensors"

            def pretrain(kept: Checkpoints) -> None:
                how = self.train_config, seed, kept
                for _ in self.trainer.steps(made, *how, title="dense decoder"):
                    pass

            provide_dense(made, path, key, pretrain)
        made.eval().requires_grad_(False)
        return made

    def dense_decoder(self, seed: int) -> DenseDecoder:
        """`dense`, one object for all masks; a checkpoint is one for all seeds."""
        return _read_dense(self, seed if self.scratch else 0, self.protocol)

    def provide_models(self, seed: int) -> None:
        """Trains, or finds, the dense model of a seed; SearchError if it has learned nothing, or
        none of the tasks."""
        if self.adapts == "train":
            return
        loss = _measure_text(self, seed if self.scratch else 0, self.protocol)
        if loss >= (constant := constant_loss(self.task(), self.rows)):
            raise SearchError(
                f"without a mask the decoder loses {loss:.3f} nats a token, and a guess by how "
                f"frequent tokens are {constant:.3f}, so no masks can be compared on it; train it "
                "for longer, or take the tokenizer that it was trained with"
            )
        self._dense_losses(seed)

    # -- judging -------------------------------------------------------------------------------
    def __call__(self, mask: Mask, *, seed: int, workdir: Path) -> Iterator[Report]:
        """Yields reports of the held-out loss; the last one is the result.

        It also says what a guess by how frequent tokens are loses, `"nll/majority"`, and the upper
        end of the loss's 95% interval over documents, `"nll/low"`.
        """
        keys_of_rows(mask, self.shape)  # refuses a mask that does not fit before anything is read
        if self.adapts == "none":
            shared = self.dense_decoder(seed)
            self._dense_losses(seed)  # while no mask is on
            with shared.under(mask) as model:
                values = self.last_values(model, workdir, seed, shared)
            yield Report(0, values)
            return
        model, config, teacher = self.under(mask, seed)
        memory: dict[str, Any] = {"curve": []}
        due = report_steps(config.steps, self.reports)
        key = short_hash(self.protocol, mask.digest, str(seed))
        kept = Checkpoints(workdir, self.adapts, key)
        steps = self.trainer.steps(model, config, seed, kept, teacher=teacher, memory=memory)
        for number, values in memory["curve"]:  # of a run that goes on
            yield Report(number, values)
        for number in steps:
            if number in due and number < config.steps:
                values = token_values(self.score(model), self.rows, self.edges)
                memory["curve"].append([number, values])
                yield Report(number, values)
        yield Report(config.steps, self.last_values(model, workdir, seed))
        kept.clear()

    def under(
        self, mask: Mask, seed: int
    ) -> tuple[NextTokenModel, TrainConfig, NextTokenModel | None]:
        """A model of its own with the mask on; how it is trained; the teacher of `"recover"`."""
        teacher = None if self.adapts == "train" else self.dense_decoder(seed).model
        model = self.build_model(seed) if teacher is None else copy.deepcopy(teacher)
        attach(model, mask)
        return model, self.train_config if teacher is None else self.recover_config, teacher

    def adapted(self, mask: Mask, *, seed: int) -> nn.Module:
        """The decoder that a mask is judged on, in evaluation mode, with the mask attached: what
        `__call__` makes and does not keep. It is trained anew with `"recover"` and `"train"`;
        `detach`, `to_native` and `save_pretrained` take it."""
        model, config, teacher = self.under(mask, seed)
        if self.adapts != "none":
            for _ in self.trainer.steps(model, config, seed, None, teacher=teacher):
                pass
        detach(model.eval())  # from around the decoder, which the mask then is on
        decoder: nn.Module = model.model
        return attach(decoder, mask)

    def score(self, model: NextTokenModel, shared: DenseDecoder | None = None) -> TokenScores:
        """A model's scores on the held-out tokens. Of a shared dense decoder, states of layers
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
        self, model: NextTokenModel, workdir: Path, seed: int, shared: DenseDecoder | None = None
    ) -> dict[str, float]:
        """The values of the last report; the scores of documents go to the working folder."""
        rows, scores = self.rows, self.score(model, shared)
        documents = row_scores(scores.nll, rows)
        documents.save(workdir)
        values = token_values(scores, rows, self.edges)
        values[f"{LOSS}{MAJORITY}"] = constant_loss(self.task(), rows)
        if len(losses := documents.scores["text"]) > 1:  # one document has no interval
            values[f"{LOSS}{LOW}"] = -lower_bound(-losses, -math.inf)
        values |= self.score_tasks(model)
        if dense := self._dense_losses(seed):
            added = {f"{NLL_INCREASE}/{TEXT}": values[LOSS] - dense[LOSS]}
            for group, members in GROUPS.items():
                each = [values[f"{LOSS}/{n}"] - dense[n] for n in members if n in dense]
                added |= {f"{NLL_INCREASE}/{group}": fmean(each)} if each else {}
            values |= added | {MAX_NLL_INCREASE: max(added.values())}
        return values

    def score_tasks(self, model: NextTokenModel) -> dict[str, float]:
        """Right answers and losses of the tasks, and the mean loss of each group of them."""
        values: dict[str, float] = {}
        for name, rows in self.prompts.items():
            how: dict[str, Any] = {"answers": True, "precision": self.precision}
            values |= task_values(name, score_tokens(model, rows.tokens, **how), rows)
        for group, members in (GROUPS if self.tasks else {}).items():
            losses = [values[f"{LOSS}/{name}"] for name in self.tasks if name in members]
            values |= {f"{LOSS}/{group}": fmean(losses)} if losses else {}
        return values

    def _dense_losses(self, seed: int) -> dict[str, float]:
        """The dense model's losses on the text and in each task that it can do; empty where
        there is no such model, or no task."""
        if not self.tasks or self.adapts == "train":
            return {}
        return _measure_dense(self, seed if self.scratch else 0, self.protocol)

    # -- gates ---------------------------------------------------------------------------------
    def differentiable(self, seed: int) -> Differentiable:
        """For a one-shot search: the model and the text, without a mask. Weights of a
        dense model are frozen, so that gates alone are trained."""
        order, rows, size = mixed_seed(seed, DATA, GATES), self.rows, self.batch
        model, teacher = self.build_model(seed), None
        if self.weights_frozen:
            model = self.dense(seed)
            teacher = None if self.learn_from == "labels" else self.dense_decoder(seed).model

        def targets(batches: Iterator[Batch]) -> Iterator[Batch]:
            for batch in move_batches(batches, self.torch_device):
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


# -- made once a process: what is read of files, for each protocol --------------------------------
read_task = lru_cache(maxsize=16)(task_rows)


def read_weights(start: StoredDecoder, dtype: torch.dtype, device: torch.device) -> NextTokenModel:
    """A fresh model of a checkpoint, its weights in that type on that device."""
    return NextTokenModel(cast(Any, start.decoder(dtype)).to(device))


@lru_cache(maxsize=1)
def _read_frozen(start: StoredDecoder, dtype: torch.dtype, device: torch.device) -> NextTokenModel:
    """The same with frozen weights, which all models of a checkpoint that is judged share."""
    return read_weights(start, dtype, device).requires_grad_(False).eval()


@lru_cache(maxsize=4)
def read_rows(text: NextTokenTask, split: Split, most: int) -> NextTokenRows:
    """The tokens that are judged."""
    return text.held_out(split, most)


@lru_cache(maxsize=4)
def _measure_dense(evaluator: CausalEvaluator, seed: int, protocol: str) -> dict[str, float]:
    """Losses of the dense model of an evaluator, which has no mask on: of the text, and of each
    task in which it is better than a guess. SearchError if there is none; warns of the others."""
    values = evaluator.score_tasks(evaluator.dense_decoder(seed).model)
    losses, failed = {LOSS: _measure_text(evaluator, seed, protocol)}, list[str]()
    for name, rows in evaluator.prompts.items():
        if (loss := values[f"{LOSS}/{name}"]) < rows.guess:
            losses[name] = loss
        else:
            failed.append(f"{loss:.3f} nats a token of {name} (a guess: {rows.guess:.3f})")
    if failed:
        left = ", ".join([*losses][1:])
        problem = (
            f"without a mask the decoder loses {', '.join(failed)}, no less than a guess without "
            f"context; tasks left: {left or 'none'}; take others, shorter texts or other weights"
        )
        if not left:
            raise SearchError(problem)
        warn(problem)
    return losses


@lru_cache(maxsize=4)
def _measure_text(evaluator: CausalEvaluator, seed: int, protocol: str) -> float:
    """Loss of that model on the text."""
    scores = evaluator.score(evaluator.dense_decoder(seed).model)
    return token_values(scores, evaluator.rows, evaluator.edges)[LOSS]


@lru_cache(maxsize=2)
def _read_dense(evaluator: CausalEvaluator, seed: int, protocol: str) -> DenseDecoder:
    """The dense model of an evaluator, for all masks."""
    return DenseDecoder(evaluator.dense(seed), evaluator.rows.tokens, evaluator.precision)
