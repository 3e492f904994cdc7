"""Fine-tuning on short texts: batches of similar length, padded to 128, padded by batch.

The first is masksearch's, the others are what `run_glue.py` of transformers does with and without
`--pad_to_max_length`. All three train the same `SequenceClassifier` from the same weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from proxy_sides import fast_tokenizer, on, random_corpus, timed, trained
from torch import Tensor, nn

from masksearch import masks
from masksearch.attention.attach import attach
from masksearch.evaluators.tuning import batches_by_length, bucket_batches
from masksearch.models.encoders import SequenceClassifier, encoder
from masksearch.tasks.text.corpus import Corpus
from masksearch.tasks.text.rows import TokenRows, tokenize_rows
from masksearch.training.loop import TrainConfig, train

LENGTH, VOCABULARY = 128, 4096
LR = 5e-4
MASK = masks.cropped(masks.star(), LENGTH)


@dataclass(frozen=True)
class Texts:
    """Training and development rows of two classes."""

    corpus: Corpus
    train: TokenRows
    dev: TokenRows


class ForTrainer(nn.Module):
    """A classifier as the Trainer wants it: its forward returns a dictionary."""

    def __init__(self, inner: SequenceClassifier) -> None:
        super().__init__()
        self.inner = inner

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor, labels: Tensor
    ) -> dict[str, Tensor | None]:
        found = self.inner(input_ids, labels, attention_mask, token_type_ids)
        return {"loss": found.loss, "logits": found.logits}


def classifier(size: str, seed: int) -> SequenceClassifier:
    """A fresh model under star; masks of shorter batches are its top-left corner."""
    made = SequenceClassifier(encoder(size, VOCABULARY, LENGTH, seed=seed), 2, seed=seed)
    attach(made, MASK)
    return made


def texts(data: Path | None, rows: int) -> Texts:
    """SST-2, or rows as long as SST-2's, of random words."""
    if data is not None:
        corpus = Corpus.load(data / "wikitext-2", vocabulary=VOCABULARY, length=LENGTH)
        parts = [read(data / "glue" / "SST-2" / f"{name}.tsv") for name in ("train", "dev")]
        draw = torch.Generator().manual_seed(0)
        order = torch.randperm(len(parts[0]), generator=draw)[:rows].tolist()
        made = [
            tokenize_rows(corpus, [(text,) for text, _ in part], [at for _, at in part])
            for part in ([parts[0][index] for index in order], parts[1])
        ]
        return Texts(corpus, *made)
    corpus = random_corpus(LENGTH, VOCABULARY, 64)
    return Texts(corpus, made_up(corpus, rows, 0), made_up(corpus, 256, 1))


def read(path: Path) -> list[tuple[str, int]]:
    """Sentences and labels of SST-2."""
    lines = path.read_text(encoding="utf-8").splitlines()[1:]
    pairs = (line.rsplit("\t", 1) for line in lines)
    return [(sentence, int(label)) for sentence, label in pairs]


def made_up(corpus: Corpus, number: int, seed: int) -> TokenRows:
    """Rows of random words, their lengths log-normal; class 1 holds more odd than even ids."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randn(number, generator=draw).mul(0.75).add(2.35).exp().long().clamp(1, 120)
    rows, labels = [], []
    for length in lengths.tolist():
        ids = torch.randint(5, VOCABULARY, (length,), generator=draw).tolist()
        labels.append(int(2 * sum(each % 2 for each in ids) > length))
        rows.append(corpus.layout.join(ids))
    return TokenRows.of(rows, labels, corpus.layout)


def own(
    found: Texts,
    model: SequenceClassifier,
    batch: int,
    steps: int,
    seed: int,
    device: torch.device,
) -> list[float]:
    """Trains with masksearch's loop; seconds of each step."""
    chosen = bucket_batches(found.train.lengths, batch, seed)
    batches = on(device, (found.train.batch(rows) for rows in chosen))
    run = train(model.to(device), batches, TrainConfig(steps=steps, lr=LR))
    return timed(run, steps, device)


def trainers(
    found: Texts,
    model: SequenceClassifier,
    batch: int,
    steps: int,
    seed: int,
    device: torch.device,
    *,
    full: bool,
) -> list[float]:
    """Trains with the Trainer, padded to 128 beforehand (`full`) or by its collator."""
    from transformers import DataCollatorWithPadding, default_data_collator

    rows: list[dict[str, Any]] = []
    for at, label in enumerate(found.train.labels.tolist()):
        ids = found.train.ids[at]
        space = [0] * (LENGTH - len(ids) if full else 0)
        rows.append(
            {
                "input_ids": ids + [found.corpus.special["pad"]] * len(space),
                "attention_mask": [1] * len(ids) + space,
                "token_type_ids": [0] * len(ids) + space,
                "labels": label,
            }
        )
    collator: Callable[..., Any] = default_data_collator
    if not full:
        collator = DataCollatorWithPadding(fast_tokenizer(found.corpus))
    return trained(ForTrainer(model), rows, collator, batch, steps, device, seed=seed, lr=LR)


WAYS: dict[str, Callable[..., list[float]]] = {
    "own": own,
    "padded": partial(trainers, full=True),
    "dynamic": partial(trainers, full=False),
}


def finetuning(
    data: Path | None, size: str, batch: int, steps: int, device: torch.device
) -> dict[str, Callable[[], list[float]]]:
    """The three ways, each as a function that trains a fresh model and returns its seconds; every
    call takes other batches."""
    found = texts(data, max(256, 4 * steps * batch))
    seeds = {name: count() for name in WAYS}

    def side(name: str) -> list[float]:
        return WAYS[name](found, classifier(size, 0), batch, steps, next(seeds[name]), device)

    return {name: partial(side, name) for name in WAYS}


def scores(
    data: Path | None,
    size: str,
    batch: int,
    rows: int,
    seeds: int,
    epochs: int,
    device: torch.device,
) -> dict[str, list[float]]:
    """Accuracy on the development rows after training each way, for every seed."""
    found = texts(data, rows)
    steps = epochs * math.ceil(rows / batch)
    values: dict[str, list[float]] = {name: [] for name in WAYS}
    for seed in range(seeds):
        for name, way in WAYS.items():
            model = classifier(size, seed)
            way(found, model, batch, steps, seed, device)
            values[name].append(accuracy(model, found, device))
    return values


def accuracy(model: SequenceClassifier, found: Texts, device: torch.device) -> float:
    """Share of the development rows that are classified as they should be."""
    model.eval()
    hits = 0
    with torch.no_grad():
        for chosen in batches_by_length(found.dev.lengths):
            batch = found.dev.batch(chosen)
            labels = batch.pop("labels")
            logits = model(**{name: part.to(device) for name, part in batch.items()}).logits
            hits += int((logits.argmax(-1).cpu() == labels).sum())
    return hits / len(found.dev)
