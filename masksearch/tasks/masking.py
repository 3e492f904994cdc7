"""Which tokens are hidden, and what is shown instead: BERT's masking, also of whole words.

masking = Masking(4096, corpus.special, 0.15, word_starts(corpus.tokenizer))
batch = masking(tokens, count, random)      # {"input_ids", "labels"}
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from masksearch.contracts import Batch

NEVER = 2.0  # above every draw: a token that is not scored


@dataclass(frozen=True, eq=False)
class Masking:
    """Hides tokens: of the scored ones 80% are shown as `[MASK]`, 10% as a random token, 10% as
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
        """Hides tokens.

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
            scored = lowest(draw, count) & (draw < NEVER)
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
        place = torch.arange(tokens.shape[1]).expand_as(tokens)
        begin = place.masked_fill(~first, 0).cummax(1).values  # of the token's word
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


def lowest(draw: Tensor, count: Tensor) -> Tensor:
    """Marks the `count` lowest of each row, bool `[batch, length]`."""
    marked = torch.zeros_like(draw, dtype=torch.bool)
    if count.dim() == 0:
        return marked.scatter_(1, draw.topk(int(count), dim=1, largest=False).indices, True)
    rank = torch.arange(draw.shape[1]).expand_as(draw) < count[:, None]
    return marked.scatter_(1, draw.argsort(dim=1, stable=True), rank)
