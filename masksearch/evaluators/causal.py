"""Judges a mask on a decoder: one that is trained already, or one that learns under the mask.

evaluator = CausalEvaluator("books", weights="models/smollm2", length=1024)
for report in evaluator(masks.window(255) | masks.columns(4), seed=0, workdir=Path("run")):
    print(report.values["nll"])      # nats a held-out token, under the mask
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from masksearch.analysis.row_scores import lower_bound
from masksearch.attention.attach import attach, detach
from masksearch.contracts import (
    LOW,
    MAJORITY,
    Batch,
    Differentiable,
    Report,
    mixed_seed,
)
from masksearch.errors import SearchError
from masksearch.evaluators.decoder_setup import LOSS, RECALL, DecoderSetup
from masksearch.evaluators.token_scores import (
    TokenScores,
    band_means,
    dense_features,
    document_scores,
    row_scores,
    score_tokens,
)
from masksearch.files import cache_folder
from masksearch.masks.core import Mask
from masksearch.masks.lower import lower
from masksearch.models.decoders import (
    NextTokenModel,
    decoder,
    divergence,
)
from masksearch.models.layer_states import LayerStates
from masksearch.tasks.next_token import NextTokenTask
from masksearch.tasks.text.files import short_hash
from masksearch.training.checkpoints import DENSE, Checkpoints, provide_dense
from masksearch.training.loop import TrainConfig, autocast, move_batches, report_steps, train

WEIGHTS, DATA, NOISE, GATES = 71, 72, 73, 74  # streams of random numbers


@dataclass(frozen=True)
class CausalEvaluator(DecoderSetup):
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
            mask hides, or `"kv_bytes"`, what the cache of keys and values holds under it after
            `length` tokens as a share of the dense cache (`masksearch.kv_bytes`), or
            `"kv_bytes_per_head"`, the same of a cache that frees keys of single KV heads. Every
            record has all three; they are known before anything is judged.
        bands: First positions of the bands but the first, rising; None = powers of 4 from 16.
        kl: With `adapt="none"`: whether `"kl"` is reported too, how far the predictions are from
            those of the same weights without a mask, in nats a token. It costs the output layer
            once more, and memory for the hidden states of all judged tokens.
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
        DataError: When it is called, or asked for its protocol, and the text is missing, too short
            or not UTF-8, or the checkpoint is no decoder.
    """

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
            path = cache_folder(self.cache) / DENSE / f"decoder-{key}.safetensors"

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

    @property
    def seedless(self) -> bool:
        """Whether every seed gives a mask the same scores: a checkpoint, judged as it is."""
        return self.weights is not None and self.adapts == "none"

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
                values = self.last_values(model, self.judge(model, seed), workdir)
            finally:
                detach(model)
            yield Report(0, values)
            return
        model, config, teacher = self.under(mask, seed)
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
        yield Report(config.steps, self.last_values(model, self.judge(model, seed), workdir))
        kept.clear()

    def under(
        self, mask: Mask, seed: int
    ) -> tuple[NextTokenModel, TrainConfig, NextTokenModel | None]:
        """A model of its own with the mask on; how it is trained; the teacher of `"recover"`."""
        if self.adapts == "train":
            model, config, teacher = self.model(seed), self.train_config, None
        else:
            teacher = frozen_model(self, self.model_seed(seed))
            model, config = copy.deepcopy(teacher), self.recover_config
        attach(model, mask)
        return model, config, teacher

    def adapted(self, mask: Mask, *, seed: int) -> nn.Module:
        """The decoder that a mask is judged on, with the mask attached.

        It is what `__call__` makes and does not keep: after the training of `"recover"` or
        `"train"`, from its start; as it is with `"none"`. `detach`, `to_native` and `save_masked`
        take it.

        Args:
            mask: The mask.
            seed: As of a call.

        Returns:
            A model of transformers, in evaluation mode.
        """
        model, config, teacher = self.under(mask, seed)
        if self.adapts != "none":
            for _ in self.steps_of(model, config, seed, "adapted", None, teacher=teacher):
                pass
        detach(model.eval())  # from around the decoder, which the mask then is on
        attach(model.model, mask)
        return model.model

    def judge(self, model: NextTokenModel, seed: int | None = None) -> TokenScores:
        """What a model says of the held-out tokens.

        Args:
            model: With its mask on.
            seed: Of the dense model whose mask it carries: hidden states of layers that are as
                under the mask before are reused, and `kl` compares with it; None = of none.

        Raises:
            NonFiniteLossError: If it says NaN.
        """
        half = self.precision == "bfloat16"
        dense = states = None
        if seed is not None and self.adapts == "none":
            states = layer_states(self, self.model_seed(seed))
            if self.kl:
                dense = features_without_mask(self, self.model_seed(seed))
        rows = self.rows
        return score_tokens(
            *(model, rows.tokens),
            answers=rows.answers is not None,
            dense=dense,
            half_precision=half,
            states=states,
        )

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
        if rows.answers is not None and scores.right is not None:
            found[RECALL] = scores.right[rows.answers].double().mean().item()
            found[f"{LOSS}/{RECALL}"] = scores.nll[rows.answers].double().mean().item()
        return found

    def last_values(
        self, model: NextTokenModel, scores: TokenScores, workdir: Path
    ) -> dict[str, float]:
        """What the last report holds; the scores of documents go to the working folder.

        Args:
            model: With its mask on.
            scores: What it says of the held-out tokens.
            workdir: The working folder.
        """
        documents = row_scores(scores.nll, self.rows)
        documents.save(workdir)
        sides = {f"{LOSS}{MAJORITY}": self.constant_loss()}
        if len(losses := documents.scores["text"]) > 1:  # one document has no interval
            sides[f"{LOSS}{LOW}"] = -lower_bound(-losses, -math.inf)
        return self.values(scores) | sides | self.passkey_values(model)

    def passkey_values(self, model: NextTokenModel) -> dict[str, float]:
        """Whether hidden numbers are repeated; empty where none are asked for."""
        rows = self.hidden_rows
        if rows is None or rows.answers is None:
            return {}
        half = self.precision == "bfloat16"
        found = score_tokens(model, rows.tokens, answers=True, half_precision=half)
        assert found.right is not None
        whole = (found.right | ~rows.answers).all(1)
        loss = found.nll[rows.answers].double().mean().item()
        return {"passkey": whole.double().mean().item(), f"{LOSS}/passkey": loss}

    def constant_loss(self) -> float:
        """What a guess by how frequent tokens are in the training text loses, in nats a token."""
        share, labels = self.task().frequencies.log(), self.rows.labels
        return -share[labels[labels != -100]].mean().item()

    # -- gates ---------------------------------------------------------------------------------
    @property
    def weights_frozen(self) -> bool:
        """Whether `differentiable` trains gates alone."""
        return self.adapts != "train"

    @property
    def weight_lr(self) -> float | None:
        """Peak learning rate of a checkpoint's weights beside gates; None from random weights."""
        return None if self.weights is None else self.train_config.lr

    def differentiable(self, seed: int) -> Differentiable:
        """What a one-shot search trains on: the model and the text, without a mask. With
        `adapt="none"` or `"recover"` the dense model's weights are frozen, so that gates alone are
        trained."""
        text, order = self.task(), mixed_seed(seed, DATA, GATES)
        model = self.dense(self.model_seed(seed)) if self.weights_frozen else self.model(seed)
        teacher = None
        if self.weights_frozen and self.learn_from != "labels":
            teacher = frozen_model(self, self.model_seed(seed))

        def stream(part: NextTokenTask) -> Iterator[Batch]:
            batches = move_batches(part.batches(order, self.batch), self.place)
            return with_targets(batches, teacher, self.learn_from)

        rows, size = self.rows, self.batch
        held_out: Iterator[Batch] = (
            {"input_ids": rows.tokens[at : at + size], "labels": rows.labels[at : at + size]}
            for at in range(0, len(rows.tokens), size)
        )
        return Differentiable(
            model.train(),
            stream(text),
            list(with_targets(move_batches(held_out, self.place), teacher, self.learn_from)),
        )


@lru_cache(maxsize=2)
def frozen_model(judge: CausalEvaluator, seed: int) -> NextTokenModel:
    """The dense model of an evaluator, one object for all masks of a process; whoever puts a mask
    on it takes it off again."""
    return judge.dense(seed)


@lru_cache(maxsize=1)
def layer_states(judge: CausalEvaluator, seed: int) -> LayerStates:
    """Hidden states of the dense model's lower layers over the held-out tokens. It carries a mask
    when they are asked for first."""
    return LayerStates(frozen_model(judge, seed), judge.rows.tokens.numel())


@lru_cache(maxsize=1)
def features_without_mask(judge: CausalEvaluator, seed: int) -> list[Tensor]:
    """The hidden states of the dense model over the held-out tokens, made once a process. The
    model carries a mask when they are asked for, so they come from a copy of it."""
    model = detach(copy.deepcopy(frozen_model(judge, seed)), missing_ok=True)
    half = judge.precision == "bfloat16"
    return dense_features(cast(NextTokenModel, model), judge.rows.tokens, half_precision=half)


def with_targets(
    batches: Iterator[Batch], teacher: NextTokenModel | None, learn_from: str
) -> Iterator[Batch]:
    """The batches with a dense model's features as what is learnt, where there is one."""
    name = "hidden" if learn_from == "hidden" else "target"
    for batch in batches:
        if teacher is not None:
            with torch.no_grad():
                batch = batch | {name: teacher.features(batch["input_ids"])}
        yield batch
