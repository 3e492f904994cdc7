"""The losses of pre-training, its held-out values, and its data on a device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masksearch.contracts import Batch
from masksearch.models.pretrained import Pretrained, open_pretrained
from masksearch.tasks.corpus import Corpus
from masksearch.tasks.mlm import MlmTask
from masksearch.tasks.sentence_pairs import SentencePairTask
from masksearch.tasks.tokenizer import id_count, open_tokenizer, special_ids

PAIR_LABEL = "next_sentence_label"  # in batches with sentence pairs
Pretraining = Literal["mlm", "mlm+next", "mlm+order"]
PAIRS: dict[str, Literal["next", "order"]] = {"mlm+next": "next", "mlm+order": "order"}
Precision = Literal["float32", "bfloat16"]


def autocast(batch: Batch, precision: Precision) -> torch.autocast:
    """The context in which a batch is computed."""
    return torch.autocast(
        batch["input_ids"].device.type, torch.bfloat16, enabled=precision == "bfloat16"
    )


def losses(model: nn.Module, batch: Batch, precision: Precision) -> Tensor:
    """Losses of a batch, each a mean over its labels; their sum is what is learnt.

    Returns:
        The model's loss, a scalar; with sentence pairs `[hidden tokens, pairs]`.
    """
    with autocast(batch, precision):
        if PAIR_LABEL not in batch:
            loss: Tensor = model(**batch).loss
            return loss
        found = model(**{name: part for name, part in batch.items() if name != PAIR_LABEL})
        pairs = F.cross_entropy(found.pair_logits.float(), batch[PAIR_LABEL])
        return torch.stack([found.loss, pairs])


def held_out_values(
    model: nn.Module, batches: list[Batch], precision: Precision
) -> dict[str, float]:
    """What a report holds; the model's mode is restored.

    Returns:
        `"loss"`: mean cross-entropy of the hidden held-out tokens, in nats; with sentence pairs
        also `"pair_loss"`, in nats, and `"pair_accuracy"`, in [0, 1] (chance: 0.5).
    """
    training = model.training
    model.eval()
    total, tokens, pair_total, hits, pairs = 0.0, 0, 0.0, 0, 0
    with torch.no_grad():
        for batch in batches:
            count = int((batch["labels"] != -100).sum())
            with autocast(batch, precision):
                found = model(**{name: t for name, t in batch.items() if name != PAIR_LABEL})
            total += found.loss.item() * count
            tokens += count
            if PAIR_LABEL in batch:
                logits, truth = found.pair_logits.float(), batch[PAIR_LABEL]
                pair_total += F.cross_entropy(logits, truth, reduction="sum").item()
                hits += int((logits.argmax(-1) == truth).sum())
                pairs += len(truth)
    model.train(training)
    values = {"loss": total / tokens}
    if pairs:
        values |= {"pair_loss": pair_total / pairs, "pair_accuracy": hits / pairs}
    return values


@lru_cache(maxsize=4)
def made_task(
    corpus: Corpus,
    batch: int,
    held_out_sequences: int,
    pairs: Literal["next", "order"] | None,
    whole_words: bool,
) -> MlmTask | SentencePairTask:
    """The task, made once a process: it keeps how it has cut the text into pairs."""
    if pairs is None:
        return MlmTask(
            corpus, batch, held_out_sequences=held_out_sequences, whole_words=whole_words
        )
    return SentencePairTask(
        corpus,
        batch,
        held_out_sequences=held_out_sequences,
        kind=pairs,
        whole_words=whole_words,
    )


def half(task: MlmTask | SentencePairTask, part: int) -> MlmTask | SentencePairTask:
    """The task on every second sequence (or pair) of its training text, from `part` (0 or 1)."""
    if isinstance(task, SentencePairTask):
        return replace(task, share=(part, 2))
    return replace(task, corpus=replace(task.corpus, train=task.corpus.train[part::2]))


def located(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Adds to each batch where its scored tokens stand (`scored` of `MaskedLanguageModel`), which
    a model on a GPU would have to wait for; not where rows have different numbers of them."""
    for batch in batches:
        marked = batch["labels"] != -100
        counts = marked.sum(1)
        if (counts == counts[0]).all():
            batch = batch | {"scored": marked.nonzero()[:, 1].view(len(marked), -1)}
        yield batch


def moved(batches: Iterator[Batch], place: torch.device) -> Iterator[Batch]:
    """The batches on that device; copies to a GPU run beside its work."""
    for batch in batches:
        if place.type == "cuda":
            pinned = {name: tensor.pin_memory() for name, tensor in batch.items()}
            yield {name: tensor.to(place, non_blocking=True) for name, tensor in pinned.items()}
        else:
            yield {name: tensor.to(place) for name, tensor in batch.items()}


@lru_cache(maxsize=4)
def read_weights(name: str | Path) -> Pretrained:
    """The checkpoint, opened once a process."""
    return open_pretrained(name)


@lru_cache(maxsize=4)
def read_corpus(
    path: Path | str,
    tokenizer: str | Path | None,
    vocabulary: int,
    length: int,
    cache: Path | None,
    held_out: Path | str | None,
    start: Pretrained | None = None,
) -> Corpus:
    """The corpus, read once a process; its tokenizer is the given one, or that of `start`.

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
    )
