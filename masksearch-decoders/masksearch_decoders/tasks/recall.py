"""Planted recall: pairs of a key and a value, text that a small window predicts, then questions.

    k3 v7 k1 v2 ..   f4 f0 f6 ..   k1 v2 k3 v7 ..
    pairs            filler        questions and answers, in another order

The value behind a question stands only with its pair, far back; each filler follows from the one
before it. So it is known how far back every token needs to see, and what a perfect model loses.

task = Recall()
next(task.batches(seed=0, batch=64))     # {"input_ids", "labels"}: int64 [64, 56]
task.floor                               # .478 nats a token
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Self

import numpy as np
import torch
from torch import Tensor

from masksearch.contracts import Batch, Split, generator
from masksearch.files import text_hash
from masksearch_decoders.tasks.next_token import NextTokenRows, NextTokenText

RULE, TRAIN, JUDGED = 64, 65, 66  # streams of random numbers
DRAWS: dict[Split, tuple[int, ...]] = {
    "validation": (0,),
    "holdout": (1,),
    "test": (2,),
    "all": (0, 1),
}


@dataclass(frozen=True)
class Recall:
    """Sequences of key-value pairs, filler and questions; their distribution is the task.

    Scored are the answers and the fillers but the first. A key is asked for once; the answers of a
    row are `middle + 2` to `middle + 4 * pairs - 2` positions behind their values.

    Args:
        pairs: Of a row.
        keys: Ids that keys are drawn from, without repetition (>= `pairs`).
        values: Ids that values are drawn from.
        fillers: Ids that fillers are drawn from.
        middle: Fillers of a row (>= 2).
        follow: How often a filler is the one that the rule names; otherwise it is drawn from all.

    Reference: multi-query associative recall, Zoology, arXiv 2312.04927, Section 4.1; there
        without filler that needs a window.
    """

    pairs: int = 8
    keys: int = 16
    values: int = 16
    fillers: int = 8
    middle: int = 24
    follow: float = 0.85

    def __post_init__(self) -> None:
        least = {"pairs": 1, "keys": self.pairs, "values": 2, "fillers": 2, "middle": 2}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ValueError(f"{name} must be at least {value}, got {getattr(self, name)}")
        if not 0 <= self.follow <= 1:
            raise ValueError(f"follow is a probability in [0, 1], got {self.follow}")

    @classmethod
    def of_length(cls, length: int) -> Self:
        """The task with so many positions, by its number of fillers.

        Raises:
            ValueError: If that leaves fewer than two.
        """
        pairs = cls().pairs
        if length < 4 * pairs + 2:
            raise ValueError(
                f"planted recall of {pairs} pairs has a length of at least {4 * pairs + 2}, got "
                f"{length}; give Recall(pairs=..) for shorter ones"
            )
        return cls(middle=length - 4 * pairs)

    @property
    def length(self) -> int:
        """Positions of a row."""
        return 4 * self.pairs + self.middle

    @property
    def vocabulary(self) -> int:
        """Number of token ids."""
        return self.keys + self.values + self.fillers

    @property
    def digest(self) -> str:
        """Hash of the distribution."""
        return text_hash(f"recall-1 {asdict(self)}")

    @property
    def train_digest(self) -> str:
        """The same: training rows have no end."""
        return self.digest

    @cached_property
    def rule(self) -> Tensor:
        """Which filler follows each, int64 `[fillers]`: a permutation."""
        return torch.randperm(self.fillers, generator=generator(RULE))

    @property
    def floor(self) -> float:
        """The loss of a model that knows the distribution and sees everything, in nats a scored
        token: nothing on the answers, the entropy of the noise on the fillers."""
        other = (1 - self.follow) / self.fillers
        named = self.follow + other
        noise = -(self.fillers - 1) * (other * math.log(other) if other else 0.0)
        fillers = self.middle - 1
        return fillers * (noise - named * math.log(named)) / (fillers + self.pairs)

    @cached_property
    def frequencies(self) -> Tensor:
        """How frequent each id is among the scored tokens, float64 `[ids]`, summing to 1."""
        share = torch.zeros(self.vocabulary, dtype=torch.float64)
        share[self.keys : self.keys + self.values] = self.pairs / self.values
        share[self.keys + self.values :] = (self.middle - 1) / self.fillers
        share[: self.keys] = 1e-9  # never scored
        return share / share.sum()

    def rows(self, count: int, random: torch.Generator) -> NextTokenRows:
        """Fresh rows, with what each token needs."""
        n, middle, first = self.pairs, self.middle, 2 * self.pairs
        keys = torch.rand(count, self.keys, generator=random).argsort(1)[:, :n]
        values = torch.randint(self.values, (count, n), generator=random) + self.keys
        order = torch.rand(count, n, generator=random).argsort(1)
        filler = torch.randint(self.fillers, (count, middle), generator=random)
        follows = torch.rand(count, middle, generator=random) < self.follow
        for at in range(1, middle):
            named = self.rule[filler[:, at - 1]]
            filler[:, at] = torch.where(follows[:, at], named, filler[:, at])
        pairs = torch.stack([keys, values], -1).flatten(1)
        asked = torch.stack([keys.gather(1, order), values.gather(1, order)], -1).flatten(1)
        tokens = torch.cat([pairs, filler + self.keys + self.values, asked], 1)
        needs, answers = torch.zeros_like(tokens), torch.zeros(tokens.shape, dtype=torch.bool)
        answers[:, first + middle + 1 :: 2] = True
        needs[:, first + 1 : first + middle] = 1
        needs[:, first + middle + 1 :: 2] = first + middle + 2 * torch.arange(n) - 2 * order
        labels = torch.where(needs > 0, tokens, -100)
        return NextTokenRows(tokens, labels, np.arange(count), needs, answers)

    def batches(self, seed: int, batch: int, start: int = 0) -> Iterator[Batch]:
        """Endless training batches of fresh rows, a function of `seed` alone.

        Args:
            seed: Source of the draws.
            batch: Rows.
            start: Batches to leave out.
        """
        number = start
        while True:
            rows = self.rows(batch, generator(seed, TRAIN, number))
            yield {"input_ids": rows.tokens, "labels": rows.labels}
            number += 1

    def held_out(self, split: Split, most: int) -> NextTokenRows:
        """Rows to judge by, `most` of them, the same in every call; those of a search, of a
        comparison (`"holdout"`) and of a test are different draws; `"all"` are the first two
        together."""
        draws = [self.rows(most, generator(JUDGED, draw)) for draw in DRAWS[split]]
        tokens, labels, needs = (
            torch.cat([getattr(one, name) for one in draws])
            for name in ("tokens", "labels", "needs")
        )
        answers = torch.cat([one.answers for one in draws if one.answers is not None])
        return NextTokenRows(tokens, labels, np.arange(len(tokens)), needs, answers)


NextTokenTask = NextTokenText | Recall  # the data that a decoder learns, and is judged by
