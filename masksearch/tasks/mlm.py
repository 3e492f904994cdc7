"""Masked-language-model batches from a corpus, with BERT's masking.

task = MlmTask(Corpus.load("wikitext-2"))
batch = next(task.batches(seed=0))      # {"input_ids", "labels"}: int64 [32, 128]
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from masksearch.contracts import Batch, Split, generator
from masksearch.tasks.splits import evenly_spaced
from masksearch.tasks.text.corpus import Corpus
from masksearch.tasks.text.tokenizer import word_starts

NEVER = 2.0  # above every draw: a token that is not scored
COUNTED = 50_000  # training sequences in which frequencies are counted


@dataclass(frozen=True, eq=False)
class Masking:
    """Masks tokens: of the scored ones 80% are shown as `[MASK]`, 10% as a random token, 10% as
    they are. `[CLS]`, `[SEP]` and padding are never scored.

    With whole words, words are drawn in a random order, and one that no longer fits is passed
    over (as in BERT's own code). Where no word is left that fits, the first tokens of the next
    one fill the number up: so it is met exactly, at the price of a cut word now and then. Words
    of one token are scored somewhat more often than long ones, since they always fit.

    Args:
        vocabulary: Number of token ids that a random token is drawn from.
        special: Token ids by role.
        probability: Share of the scored tokens, in (0, 1].
        starts: Which tokens begin a word, bool `[ids]`; None = every token is a word.

    Reference: BERT, arXiv 1810.04805, Appendix A.1; whole words: the README of its code, 2019.
    """

    vocabulary: int
    special: dict[str, int]
    probability: float = 0.15
    starts: Tensor | None = None

    def count(self, tokens: int | Tensor) -> Tensor:
        """Scored tokens among that many: a whole number, at least 1. int64."""
        share = torch.as_tensor(tokens, dtype=torch.float64) * self.probability
        return share.round().clamp(min=1).to(torch.int64)

    def __call__(self, tokens: Tensor, count: Tensor, random: torch.Generator) -> Batch:
        """Masks tokens.

        Args:
            tokens: Token ids `[batch, length]`.
            count: Tokens to score, int64 `[]` (all rows alike) or `[batch]`. A row that holds
                fewer has all of them scored.
            random: Source of the draws: three of the size of `tokens`, whatever they are.

        Returns:
            `input_ids` and `labels` (-100 = not scored), int64 `[batch, length]`.
        """
        tokens = tokens.to(torch.int64)
        draw = torch.rand(tokens.shape, generator=random)
        for role in ("cls", "sep", "pad"):
            draw.masked_fill_(tokens == self.special[role], NEVER)
        scored = self.whole_words(tokens, draw, count) if self.starts is not None else None
        if scored is None:
            scored = _mark_lowest(draw, count) & (draw < NEVER)
        how = torch.rand(tokens.shape, generator=random)
        noise = torch.randint(self.vocabulary, tokens.shape, generator=random)
        shown = torch.where(scored & (how < 0.8), self.special["mask"], tokens)
        shown = torch.where(scored & (how >= 0.9), noise, shown)
        return {"input_ids": shown, "labels": tokens.masked_fill(~scored, -100)}

    def whole_words(self, tokens: Tensor, draw: Tensor, count: Tensor) -> Tensor:
        """Scored tokens, bool `[batch, length]`: words in the order of their first token's draw,
        those that fit."""
        assert self.starts is not None
        apart = draw >= NEVER
        first = self.starts[tokens] | apart
        first[:, 1:] |= apart[:, :-1]  # a word does not go on behind a special token
        first[:, 0] = True
        position = torch.arange(tokens.shape[1]).expand_as(tokens)
        begin = position.masked_fill(~first, 0).cummax(1).values  # of the token's word
        sizes = torch.zeros_like(tokens).scatter_add_(1, begin, torch.ones_like(tokens))
        order = draw.gather(1, begin).argsort(dim=1, stable=True)
        size, begin = sizes.gather(1, begin).gather(1, order), begin.gather(1, order)
        within = order - begin  # of its word; the words stand one behind the other in `order`
        free = ~apart.gather(1, order)
        taken = torch.zeros_like(free)
        left = count.expand(len(tokens)).clone()
        while True:
            fits = free & (size <= left[:, None])
            ends = fits.cumsum(1) - within - 1 + size  # tokens up to the end of the word
            new = fits & (ends <= left[:, None])
            if not new.any():
                break
            taken |= new
            free &= ~new
            left -= new.sum(1)
        taken |= free & (free.cumsum(1) <= left[:, None])
        return torch.zeros_like(taken).scatter_(1, order, taken)


def _mark_lowest(draw: Tensor, count: Tensor) -> Tensor:
    """Marks the `count` lowest of each row, bool `[batch, length]`."""
    marked = torch.zeros_like(draw, dtype=torch.bool)
    if count.dim() == 0:
        return marked.scatter_(1, draw.topk(int(count), dim=1, largest=False).indices, True)
    rank = torch.arange(draw.shape[1]).expand_as(draw) < count[:, None]
    return marked.scatter_(1, draw.argsort(dim=1, stable=True), rank)


ORDER, MASKING, HELD_OUT = 1, 2, 3  # streams of random numbers


@dataclass(frozen=True)
class MlmTask:
    """Predict masked tokens of plain text.

    Of the scored tokens 80% are shown as `[MASK]`, 10% as a random token, 10% as they are.
    `[CLS]`, `[SEP]` and padding are never scored.

    Args:
        corpus: Packed sequences.
        batch: Sequences of a batch.
        probability: Share of a sequence's tokens that are scored, in (0, 1]; rounded to a whole
            number of tokens, at least one, so that every batch has the same shapes.
        held_out_sequences: Largest number of held-out sequences, spread evenly over them.
        whole_words: Whether all tokens of a word are masked together. The number of scored
            tokens stays the same; where no word fits into what is left of it, one is cut
            (`Masking`).
        split: Which part of the held-out sequences; see `Corpus.held_out_rows`.

    Raises:
        DataError: On the first batch, if `whole_words` is asked for with a tokenizer that does
            not mark words, or if no held-out sequence is in the split.

    Reference: BERT, arXiv 1810.04805, Section 3.1 and Appendix A.1.
    """

    corpus: Corpus
    batch: int = 32
    probability: float = 0.15
    held_out_sequences: int = 512
    whole_words: bool = False
    split: Split = "all"

    @property
    def name(self) -> str:
        """The task's name."""
        return "mlm"

    @cached_property
    def masking(self) -> Masking:
        """Masks tokens of this corpus."""
        corpus = self.corpus
        starts = word_starts(corpus.tokenizer) if self.whole_words else None
        return Masking(corpus.vocabulary, corpus.special, self.probability, starts)

    def batches(self, seed: int, start: int = 0) -> Iterator[Batch]:
        """Endless training batches, a function of `seed` alone.

        Every sequence comes once before any comes again; what is masked is drawn anew.

        Args:
            seed: Source of the order and of the masking.
            start: Batches to leave out: the first one is what an iterator from 0 gives as
                number `start`. Their draws are made again, their sequences are not read.
        """
        order, masking = generator(seed, ORDER), generator(seed, MASKING)
        shape = torch.Size((self.batch, self.corpus.length))
        for number, rows in enumerate(epoch_batches(len(self.corpus.train), self.batch, order)):
            if number < start:
                skip_draws(shape, self.corpus.vocabulary, masking)
            else:
                yield self.mask_tokens(self.corpus.train[rows], masking)

    @cached_property
    def held_out_rows(self) -> Tensor:
        """Numbers of the held-out sequences that are scored, int64, rising.

        Raises:
            DataError: If there is none.
        """
        rows = self.corpus.held_out_rows(self.split)
        return rows[evenly_spaced(len(rows), self.held_out_sequences)]

    def held_out(self) -> list[Batch]:
        """The held-out sequences, masked once: the same batches in every call."""
        random, rows = generator(HELD_OUT), self.held_out_rows
        return [
            self.mask_tokens(self.corpus.held_out[chosen], random)
            for chosen in torch.split(rows, self.batch)
        ]

    @cached_property
    def context_free_loss(self) -> float:
        """Least held-out loss of a model that sees no other token than the one it predicts, in
        nats: it knows how frequent tokens are, and that a token that is shown may be the right
        one. Training stays on this plateau until attention has learned something.
        """
        corpus, vocabulary = self.corpus, self.corpus.vocabulary
        rows = torch.arange(0, len(corpus.train), 1 + len(corpus.train) // COUNTED)
        counts = torch.bincount(corpus.train[rows].flatten(), minlength=vocabulary).double()
        counts[[self.corpus.special[role] for role in ("cls", "sep", "pad")]] = 0  # never scored
        share = (counts + 1) / (counts + 1).sum()
        total, number = 0.0, 0
        for batch in self.held_out():
            scored = batch["labels"] != -100
            shown, label = batch["input_ids"][scored], batch["labels"][scored]
            kept = share[shown] / (share[shown] + 1 / vocabulary)  # or else drawn at random
            kept[shown == corpus.special["mask"]] = 0
            total -= float(((1 - kept) * share[label] + kept * (shown == label)).log().sum())
            number += len(label)
        return total / number

    def mask_tokens(self, tokens: Tensor, random: torch.Generator) -> Batch:
        """Masks tokens.

        Args:
            tokens: Token ids `[batch, length]`.
            random: Source of the draws.

        Returns:
            `input_ids` and `labels` (-100 = not scored), int64 `[batch, length]`.
        """
        return self.masking(tokens, self.masking.count(tokens.shape[1] - 2), random)


def epoch_batches(items: int, batch: int, random: torch.Generator) -> Iterator[Tensor]:
    """Numbers of the items of each batch, int64 `[batch]`, without end: every item comes once
    before any comes again."""
    rows = torch.empty(0, dtype=torch.int64)
    while True:
        while len(rows) < batch:
            rows = torch.cat([rows, torch.randperm(items, generator=random)])
        yield rows[:batch]
        rows = rows[batch:]


def skip_draws(shape: torch.Size, vocabulary: int, random: torch.Generator) -> None:
    """Makes the draws of one `Masking` and forgets them."""
    torch.rand(shape, generator=random)
    torch.rand(shape, generator=random)
    torch.randint(vocabulary, shape, generator=random)


def mark_scored(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Adds to each batch where its scored tokens stand (`scored` of `MaskedLanguageModel`), which
    a model on a GPU would have to wait for; not where rows have different numbers of them."""
    for batch in batches:
        marked = batch["labels"] != -100
        counts = marked.sum(1)
        if (counts == counts[0]).all():
            batch = batch | {"scored": marked.nonzero()[:, 1].view(len(marked), -1)}
        yield batch
