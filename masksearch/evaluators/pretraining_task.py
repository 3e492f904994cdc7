"""What a pre-training reads: its corpus and its task, made once a process, and their batches.

corpus = read_corpus("wikitext-2", None, 4096, 128, None, None)
task = build_task(corpus, 32, 512, None, False, "search")
for batch in move_batches(mark_scored(task.batches(0)), torch.device("cuda")):
    ...
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch

from masksearch.contracts import Batch, Half
from masksearch.models.pretrained import Pretrained
from masksearch.tasks.mlm import MlmTask
from masksearch.tasks.sentence_pairs import SentencePairTask
from masksearch.tasks.text.corpus import Corpus
from masksearch.tasks.text.tokenizer import id_count, open_tokenizer, special_ids


@lru_cache(maxsize=4)
def read_corpus(
    path: Path | str,
    tokenizer: str | Path | None,
    vocabulary: int,
    length: int,
    cache: Path | None,
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
    corpus = Corpus.load(
        path,
        tokenizer=tokenizer,
        vocabulary=vocabulary,
        length=length,
        cache=cache,
        held_out=held_out,
    )
    return corpus.on_test_text(path, cache) if test else corpus


@lru_cache(maxsize=4)
def build_task(
    corpus: Corpus,
    batch: int,
    held_out_sequences: int,
    pairs: Literal["next", "order"] | None,
    whole_words: bool,
    half: Half,
) -> MlmTask | SentencePairTask:
    """The task, made once a process: it keeps how it has cut the text into pairs."""
    rows: dict[str, Any] = {
        "held_out_sequences": held_out_sequences,
        "whole_words": whole_words,
        "half": half,
    }
    if pairs is None:
        return MlmTask(corpus, batch, **rows)
    return SentencePairTask(corpus, batch, kind=pairs, **rows)


def half_of_task(task: MlmTask | SentencePairTask, part: int) -> MlmTask | SentencePairTask:
    """The task on every second sequence (or pair) of its training text, from `part` (0 or 1)."""
    if isinstance(task, SentencePairTask):
        return replace(task, share=(part, 2))
    return replace(task, corpus=replace(task.corpus, train=task.corpus.train[part::2]))


def mark_scored(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Adds to each batch where its scored tokens stand (`scored` of `MaskedLanguageModel`), which
    a model on a GPU would have to wait for; not where rows have different numbers of them."""
    for batch in batches:
        marked = batch["labels"] != -100
        counts = marked.sum(1)
        if (counts == counts[0]).all():
            batch = batch | {"scored": marked.nonzero()[:, 1].view(len(marked), -1)}
        yield batch


def move_batches(batches: Iterator[Batch], place: torch.device) -> Iterator[Batch]:
    """The batches on that device; copies to a GPU run beside its work."""
    for batch in batches:
        if place.type == "cuda":
            pinned = {name: tensor.pin_memory() for name, tensor in batch.items()}
            yield {name: tensor.to(place, non_blocking=True) for name, tensor in pinned.items()}
        else:
            yield {name: tensor.to(place) for name, tensor in batch.items()}
