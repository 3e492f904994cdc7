"""Masked-language-model batches from a corpus, with BERT's masking.

task = MlmTask(Corpus.load("wikitext-2"))
batch = next(task.batches(seed=0))      # {"input_ids", "labels"}: int64 [32, 128]
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from masksearch.contracts import Batch, generator
from masksearch.tasks.corpus import Corpus

ORDER, MASKING, HELD_OUT = 1, 2, 3  # streams of random numbers


@dataclass(frozen=True)
class MlmTask:
    """Predict hidden tokens of plain text.

    Of the scored tokens 80% are shown as `[MASK]`, 10% as a random token, 10% as they are.
    `[CLS]`, `[SEP]` and padding are never scored.

    Args:
        corpus: Packed sequences.
        batch: Sequences of a batch.
        probability: Share of a sequence's tokens that are scored, in (0, 1]; rounded to a whole
            number of tokens, at least one, so that every batch has the same shapes.
        held_out_sequences: Largest number of held-out sequences, spread evenly over them.

    Reference: BERT, arXiv 1810.04805, Section 3.1 and Appendix A.1.
    """

    corpus: Corpus
    batch: int = 32
    probability: float = 0.15
    held_out_sequences: int = 512

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"batch must be at least 1 sequence, got {self.batch}")
        if not 0 < self.probability <= 1:
            raise ValueError(f"probability is a share in (0, 1], got {self.probability}")
        if self.held_out_sequences < 1:
            raise ValueError(f"held_out_sequences must be >= 1, got {self.held_out_sequences}")

    @property
    def name(self) -> str:
        """The task's name."""
        return "mlm"

    def batches(self, seed: int) -> Iterator[Batch]:
        """Endless training batches, a function of `seed` alone.

        Every sequence comes once before any comes again; what is masked is drawn anew.
        """
        order, masking = generator(seed, ORDER), generator(seed, MASKING)
        rows = torch.empty(0, dtype=torch.int64)
        while True:
            while len(rows) < self.batch:
                rows = torch.cat([rows, torch.randperm(len(self.corpus.train), generator=order)])
            yield self.masked(self.corpus.train[rows[: self.batch]], masking)
            rows = rows[self.batch :]

    def held_out(self) -> list[Batch]:
        """The held-out sequences, masked once: the same batches in every call."""
        random = generator(HELD_OUT)
        count = min(len(self.corpus.held_out), self.held_out_sequences)
        rows = torch.arange(count) * len(self.corpus.held_out) // count
        return [
            self.masked(self.corpus.held_out[rows[start : start + self.batch]], random)
            for start in range(0, count, self.batch)
        ]

    def masked(self, tokens: Tensor, random: torch.Generator) -> Batch:
        """Hides tokens.

        Args:
            tokens: Token ids `[batch, length]`.
            random: Source of the draws.

        Returns:
            `input_ids` and `labels` (-100 = not scored), int64 `[batch, length]`.
        """
        special = self.corpus.special
        tokens = tokens.to(torch.int64)
        draw = torch.rand(tokens.shape, generator=random)
        for role in ("cls", "sep", "pad"):
            draw.masked_fill_(tokens == special[role], 2.0)
        count = max(1, round(self.probability * (tokens.shape[1] - 2)))
        chosen = draw.topk(count, dim=1, largest=False).indices
        scored = torch.zeros_like(draw, dtype=torch.bool).scatter_(1, chosen, True) & (draw < 2)
        how = torch.rand(tokens.shape, generator=random)
        noise = torch.randint(self.corpus.vocabulary, tokens.shape, generator=random)
        shown = torch.where(scored & (how < 0.8), special["mask"], tokens)
        shown = torch.where(scored & (how >= 0.9), noise, shown)
        return {"input_ids": shown, "labels": tokens.masked_fill(~scored, -100)}
