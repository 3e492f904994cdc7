"""Judges a mask by masked-language-model pre-training on text of the user's own.

evaluator = MlmEvaluator("wikitext-2", steps=800)
for report in evaluator(masks.star(), seed=0, workdir=Path("run")):
    print(report.step, report.values["loss"])
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masksearch.analysis.row_scores import RowScores, lower_bound
from masksearch.attention.attach import attach, detach
from masksearch.attention.probe import keeping_modes
from masksearch.contracts import (
    LOW,
    MAJORITY,
    NATS,
    STORED_SPLITS,
    Batch,
    Differentiable,
    Evaluator,
    Objective,
    Report,
    Shape,
    mixed_seed,
)
from masksearch.errors import DataError, NonFiniteLossError
from masksearch.evaluators.assembled import NO_CORPUS, TOKENIZERS, EncoderBase
from masksearch.files import read_once, short_hash
from masksearch.masks.core import Mask
from masksearch.masks.measure import keys_of_rows
from masksearch.models.encoders import (
    Head,
    MaskedLanguageModel,
    StateImitator,
    encoder,
)
from masksearch.models.pretrained import Pretrained
from masksearch.models.sizes import find_size, initial_spread
from masksearch.tasks.mlm import MlmTask, mark_scored
from masksearch.tasks.sentence_pairs import SentencePairTask, build_task
from masksearch.tasks.text.corpus import Corpus
from masksearch.tasks.text.tokenizer import id_count, open_tokenizer, open_whole, special_ids
from masksearch.training.accumulation import count_scored, group
from masksearch.training.checkpoints import Checkpoints, copy_weights
from masksearch.training.loop import (
    autocast,
    move_batches,
    report_steps,
    train,
)

PAIR_LABEL = "next_sentence_label"  # in batches with sentence pairs
PAIRS: dict[str, Literal["next", "order"]] = {"mlm+next": "next", "mlm+order": "order"}
WEIGHTS, HEAD, DATA, NOISE = 11, 12, 13, 14  # streams of random numbers
PRETRAINING = "pretraining"  # name of its checkpoints
PRETRAINED = "pretrained"  # and of that of a finished one


@dataclass(frozen=True)
class MlmEvaluator(EncoderBase, Evaluator):
    """Trains a small BERT from scratch under the mask; the score is its held-out loss.

    The weights, the order of the data and what is hidden derive from the seed alone, so that
    masks judged with one seed differ in nothing but the mask.

    With `weights` the training starts from a checkpoint, and `steps=0` judges the checkpoint under
    the mask as it is. Held-out sequences are halved by whole documents, which are dealt out by a
    hash of their first tokens, see `Corpus.held_out_rows`; `split="test"` = the folder's test.txt,
    or the split of that name of `hf:..`.

    Raises:
        DataError: When it is called, or asked for its protocol, and the corpus is missing,
            too small or not UTF-8.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.corpus is None:
            raise ValueError(NO_CORPUS)
        if self._distils and self.scratch:
            raise ValueError(
                "pretraining='distil' imitates a checkpoint, and this evaluator trains from "
                "scratch; give the checkpoint as weights=, or pretraining='mlm'"
            )
        if self.steps != 0 or self.scratch:
            self.train_config  # noqa: B018  (checks the steps)

    @property
    def _distils(self) -> bool:
        """Whether hidden states are imitated."""
        return self.pretraining == "distil"

    @property
    def shape(self) -> Shape:
        """The sizes that a mask is lowered to."""
        if not self.scratch:
            return self.start.shape(self.length)
        size = find_size(self.size)
        return Shape(self.length, size.layers, size.heads)

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """Held-out loss in nats a token (worst: a uniform guess), of a distillation as a share
        (worst: zeros), and the mask's sparsity."""
        sparsity = Objective("sparsity", "max", 0.0)
        if self._distils:
            return Objective("loss", "min", 1.0), sparsity
        vocabulary = self.vocabulary if self.scratch else self.start.vocabulary
        return Objective("loss", "min", math.log(vocabulary), NATS), sparsity

    def settings(self) -> dict[str, object]:
        """Everything that a pre-training loss depends on, beside mask and seed."""
        task, size = self.task(), find_size(self.size)
        spread = self.initializer_range or initial_spread(size.width)
        settings: dict[str, object] = {
            "data": task.corpus.digest,
            "size": asdict(size) if self.scratch else self.start.digest,
            "train": self.train_config.identity if self.steps else None,
            "batch": self.batch,
            "initializer_range": spread if self.scratch else None,
            "probability": task.probability,
            "held_out": self.held_out_sequences,
            "precision": self.precision,
            **({} if self._distils else {"head": "ForMaskedLM"}),  # of earlier versions: our own
        }
        later = {  # hashed where they are not the default, so that older protocols keep their ids
            "pretraining": (self.pretraining, "mlm"),
            "whole_words": (self.whole_words, False),
            "architecture": (self.architecture, "bert"),
            "dropout": (self.dropout, None),
            "compile": (self.compile, False),
        }
        settings |= {name: value for name, (value, usual) in later.items() if value != usual}
        if self.split == "all":
            return settings
        task.corpus.held_out_rows(self.split)  # refuses an empty split before any training
        return settings | {"half": STORED_SPLITS[self.split]}

    def data_hashes(self) -> dict[str, str]:
        """Hashes of the text and of the checkpoint, where there is one."""
        named = {"text": self.task().corpus.digest}
        return named if self.scratch else named | {"weights": self.start.digest}

    def packed(self) -> Self:
        """The same evaluator with its data in memory, for machines that do not see its files.

        Raises:
            DataError: If the data cannot be read here.
        """
        if self.held:
            return self
        start = {} if self.scratch else {"start": self.start}
        return self.holding(corpus=self.task().corpus, **start)

    def task(self) -> MlmTask | SentencePairTask:
        """The pre-training task; the corpus is read once a process."""
        corpus = self.held.get("corpus") or read_once(
            self.states(self.corpus, self.held_out)
            + self.states(self.tokenizer, self.weights, pattern=TOKENIZERS),
            _read_corpus,
            cast("Path | str", self.corpus),
            None if self.scratch else self.start,
            tokenizer=self.tokenizer,
            vocabulary=self.vocabulary,
            length=self.length,
            cache=self.cache,
            held_out=self.held_out,
            test=self.split == "test",
        )
        return build_task(
            corpus,
            self.batch,
            self.held_out_sequences,
            PAIRS.get(self.pretraining),
            self.whole_words,
            self.split,
        )

    def prepared(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Batches where the training is; of a distillation the text as it was, with the hidden
        states of the checkpoint as `target`."""
        there = move_batches(batches, self.torch_device)
        if not self._distils:
            yield from there
            return
        teacher = StateImitator(self.start.encoder(dropout=0.0)).to(self.torch_device).eval()
        for batch in there:
            plain = batch["labels"] == -100
            ids = torch.where(plain, batch["input_ids"], batch["labels"])
            with torch.no_grad(), autocast(batch, self.precision):
                target = teacher.hidden(ids, None, None).float()
            yield {"input_ids": ids, "target": target}

    def _held_out_batches(self) -> list[Batch]:
        """The held-out batches, where the training is."""
        return list(self.prepared(iter(self.task().held_out())))

    def build_model(self, seed: int) -> MaskedLanguageModel | StateImitator:
        """A fresh model without a mask: its weights drawn from `seed`, or the checkpoint's."""
        head, pairs = mixed_seed(seed, HEAD), self.pretraining in PAIRS
        if self._distils:
            return StateImitator(self.start.encoder(dropout=self.dropout)).to(self.torch_device)
        if not self.scratch:
            start = self.start.masked_language_model(head, pairs=pairs, dropout=self.dropout)
            return start.to(self.torch_device)
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
        return MaskedLanguageModel(body, seed=head, pairs=pairs).to(self.torch_device)

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Losses of a batch, each a mean over its labels; their sum is what is learnt.

        Returns:
            The model's loss, a scalar; with sentence pairs `[masked tokens, pairs]`.
        """
        with autocast(batch, self.precision):
            if PAIR_LABEL not in batch:
                loss: Tensor = model(**batch).loss
                return loss
            output = model(**{name: part for name, part in batch.items() if name != PAIR_LABEL})
            pairs = F.cross_entropy(output.pair_logits.float(), batch[PAIR_LABEL])
            return torch.stack([output.loss, pairs])

    def outputs(self, model: nn.Module, batches: Sequence[Batch]) -> Iterator[tuple[Batch, Any]]:
        """Each batch and what the model says of it in eval mode; its mode is restored."""
        with torch.no_grad(), keeping_modes(model):
            model.eval()
            for batch in batches:
                with autocast(batch, self.precision):
                    output = model(**{name: t for name, t in batch.items() if name != PAIR_LABEL})
                yield batch, output

    def held_out_values(self, model: nn.Module, batches: list[Batch]) -> dict[str, float]:
        """The values of a report; the model's mode is restored.

        Returns:
            `"loss"`: mean cross-entropy of the masked held-out tokens, in nats, or the mean error
            of imitated states; with sentence pairs also `"pair_loss"`, in nats, and
            `"pair_accuracy"`, in [0, 1] (chance: 0.5).
        """
        total, tokens, pair_total, hits, pairs = 0.0, 0, 0.0, 0, 0
        for batch, output in self.outputs(model, batches):
            count = count_scored(batch)[0]
            total += output.loss.item() * count
            tokens += count
            if PAIR_LABEL in batch:
                logits, truth = output.pair_logits.float(), batch[PAIR_LABEL]
                pair_total += F.cross_entropy(logits, truth, reduction="sum").item()
                hits += int((logits.argmax(-1) == truth).sum())
                pairs += len(truth)
        values = {"loss": total / tokens}
        if pairs:
            values |= {"pair_loss": pair_total / pairs, "pair_accuracy": hits / pairs}
        return values

    def context_free_loss(self, batches: Sequence[Batch]) -> float:
        """Least loss of the held-out batches without context: see `MlmTask.context_free_loss`; of
        a distillation that of the best constant state."""
        if not self._distils:
            return self.task().context_free_loss
        states = torch.cat([batch["target"].flatten(0, 1) for batch in batches]).double()
        weights = states.square().sum(1, keepdim=True).reciprocal()
        best = (weights * states).sum(0) / weights.sum()
        return float((weights * (states - best).square()).sum(1).mean())

    def _sequence_scores(self, model: nn.Module, batches: Sequence[Batch]) -> RowScores:
        """The loss of held-out batches by sequence: the mean over them is that of a report.

        A sequence's score is its mean loss in nats, weighted by its number of masked tokens over
        their mean number (they differ with sentence pairs only).
        """
        losses, counts, digest = list[Tensor](), list[Tensor](), hashlib.sha256()
        for batch, output in self.outputs(model, batches):
            labels, table = batch.get("labels"), output.logits.double().cpu()
            scored = torch.ones_like(table, dtype=torch.bool)
            digest.update(batch["input_ids"].cpu().numpy().tobytes())
            if labels is not None:
                scored = (labels != -100).cpu()
                truth = labels[labels != -100]
                each = F.cross_entropy(output.logits.float(), truth, reduction="none")
                table = torch.zeros(scored.shape, dtype=torch.float64)
                table[scored] = each.double().cpu()
                digest.update(labels.cpu().numpy().tobytes())
            losses.append(table.sum(1))
            counts.append(scored.sum(1))
        rows = (torch.cat(losses) / torch.cat(counts).double().mean()).numpy()
        return RowScores({"text": rows}, {"text": 1.0}, {"text": digest.hexdigest()[:16]})

    def differentiable(self, seed: int) -> Differentiable:
        """For a one-shot search: the same model and data, without a mask."""
        return Differentiable(
            self.build_model(seed),
            self.prepared(self.task().batches(mixed_seed(seed, DATA))),
            self._held_out_batches(),
            self.steps or None,
            self.peak_lr,
        )

    def pretrain(
        self, model: Head, mask: Mask, *, seed: int, workdir: Path | None = None
    ) -> Iterator[Report]:
        """Trains a fresh `self.build_model(seed)` in place under the mask, which stays on it.

        Args:
            model: The model.
            mask: A mask that fits `shape`.
            seed: Seed of the evaluation.
            workdir: Where checkpoints are kept and found again; None = nowhere.

        Yields:
            Reports with the held-out loss; the last one at `steps`. A run that goes on from a
            checkpoint yields the earlier reports again first.
        """
        task, held_out = self.task(), self._held_out_batches()
        attach(model, mask, inputs={"input_ids": held_out[0]["input_ids"][:1]})
        if self.steps == 0:
            yield Report(0, self.held_out_values(model, held_out))
            return
        if self.compile:
            torch.compiler.reset()  # a graph holds its mask: after 8 a process would not compile
            model.compile()
        due = report_steps(self.steps, self.reports)
        key = short_hash(self.protocol, mask.digest, str(seed))
        how = key, self.checkpoint_seconds
        kept = None if workdir is None else Checkpoints(workdir, PRETRAINING, *how)
        memory: dict[str, Any] = {"curve": []}
        data_seed = mixed_seed(seed, DATA)
        steps = train(
            model,
            lambda start: self.prepared(mark_scored(task.batches(data_seed, start))),
            self.train_config,
            self.losses,
            checkpoints=kept,
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
                        f"{self.steps}; lower the learning rate (lr)"
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
        finished = kept.load()
        if finished is not None and finished.facts["key"] == key:
            model.load_state_dict(finished.tensors)
            for step, values in finished.facts["curve"]:
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
        sequences, `"loss/low"`; not with `split="all"`, as versions without splits had it.
        """
        keys_of_rows(mask, self.shape)  # refuses a mask that does not fit before anything is read
        model = self.build_model(seed)
        for report in self.pretrain(model, mask, seed=seed, workdir=workdir):
            if report.step == self.steps and group().first:
                held_out = self._held_out_batches()
                rows = self._sequence_scores(model, held_out)
                rows.save(workdir)
                if self.split != "all":
                    losses = rows.scores["text"]
                    sides = {f"loss{MAJORITY}": self.context_free_loss(held_out)}
                    if len(losses) > 1:  # one sequence has no interval
                        sides[f"loss{LOW}"] = -lower_bound(-losses, -math.inf)
                    report = Report(report.step, {**report.values, **sides})
            yield report
        Checkpoints(workdir, PRETRAINING).clear()


def _read_corpus(
    corpus: Path | str,
    start: Pretrained | None,
    *,
    tokenizer: str | Path | None,
    length: int,
    **more: Any,
) -> Corpus:
    """The corpus, read by `Corpus.load`; its tokenizer is the given one, or that of
    `start`.

    Raises:
        DataError: If it is missing or too small, or its tokenizer does not fit `start`.
        LengthError: If `start` has fewer positions than `length`.
    """
    if start is not None:
        start.shape(length)
        tokenizer = tokenizer or start.tokenizer_source
        made = open_tokenizer(tokenizer)
        special = special_ids(made, tokenizer)
        start.check_tokens(id_count(made), special["pad"])
        whole, ends = open_whole(tokenizer), [special["cls"], special["sep"]]
        if whole is not None and (around := whole("")["input_ids"]) != ends:
            raise DataError(
                f"the tokenizer of {tokenizer} puts the ids {around} around a text; masked words "
                f"are learnt in rows of one token before and after it, {ends}: give a checkpoint "
                "whose tokenizer does so (tokenizer=)"
            )
    return Corpus.load(corpus, tokenizer=tokenizer, length=length, **more)
