"""Downstream tasks of the planted process: is a sequence intact, does its end follow.

task = PlantedLabelTask(PlantedProcess(), "intact")
next(task.batches(seed=0))      # input_ids int64 [64, 24], labels int64 [64]
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from masksearch.contracts import Batch, generator
from masksearch.errors import unknown_name
from masksearch.tasks.planted.process import (
    FOLLOWS,
    HELD_OUT,
    INTACT,
    PlantedProcess,
    held_out_stream,
)

Rule = Literal["intact", "follows"]
STREAMS = {"intact": INTACT, "follows": FOLLOWS}


@dataclass(frozen=True)
class PlantedLabelTask:
    """Tell the sequences of the process (label 1) from those that were changed (0).

    By the rule, a change is:

    * `"intact"`: the last token of one random pair is replaced by the token that another key
      would give, or with one key by any other token. So nothing but that pair, read together
      with the key, gives it away: the chance is 0.5, and a reader that sees a share f of the
      pairs with their key can reach (1 + f) / 2.
    * `"follows"`: the second segment, from `process.split` on, comes from another sequence with
      the same key. So only the pairs across the cut give it away; their partners suffice, the key
      is not needed. The chance is 0.5.

    Args:
        process: The distribution.
        rule: `"intact"` or `"follows"`.
        batch: Sequences of a batch, half of each label (even).
        held_out_sequences: Number of held-out sequences (even).
        draw_number: Number of their draw, from 0.

    Raises:
        ValueError: If a number of sequences is odd or below 2.
        UnknownNameError: For another rule.
    """

    process: PlantedProcess
    rule: Rule
    batch: int = 64
    held_out_sequences: int = 1024
    draw_number: int = 0

    def __post_init__(self) -> None:
        if self.rule not in STREAMS:
            raise unknown_name("rule", self.rule, get_args(Rule))
        for count in (self.batch, self.held_out_sequences):
            if count < 2 or count % 2:
                raise ValueError(
                    f"balanced labels need an even number of sequences, got {count}; use "
                    f"{max(2, count + count % 2)}"
                )

    @property
    def name(self) -> str:
        """The task's name: its rule."""
        return self.rule

    @property
    def ceiling(self) -> float:
        """Largest expected accuracy: 1 for "intact", where a replaced token always differs from
        the true one; for "follows" 1 - vocabulary^-c / 2, with c pairs across the cut.

        With probability vocabulary^-c a strange segment fits by accident; then it is taken for
        the true one.
        """
        if self.rule == "intact":
            return 1.0
        crossing = len(self.process.crossing_pairs(self.process.split))
        return 1 - float(self.process.vocabulary) ** -crossing / 2

    def batches(self, seed: int) -> Iterator[Batch]:
        """Endless balanced batches: `input_ids` `[batch, length]`, `labels` `[batch]`."""
        random = generator(seed, STREAMS[self.rule])
        while True:
            yield self.draw(self.batch, random)

    def held_out(self) -> list[Batch]:
        """The held-out sequences, the same in every call."""
        own = held_out_stream(self.draw_number)
        random = generator(self.process.seed, STREAMS[self.rule], HELD_OUT, *own)
        return [self.draw(self.held_out_sequences, random)]

    def draw(self, count: int, random: torch.Generator) -> Batch:
        """Draws `count` sequences; the second half is changed."""
        tokens = self.process.sample(count, random)
        change = break_one_pair if self.rule == "intact" else replace_end
        change(self.process, tokens[count // 2 :], random)
        return {"input_ids": tokens, "labels": (torch.arange(count) < count // 2).long()}


def break_one_pair(process: PlantedProcess, tokens: Tensor, random: torch.Generator) -> None:
    """Replaces the last token of one pair of every sequence, in place: int64 `[count, length]`."""
    chosen = torch.randint(len(process.pairs), (len(tokens),), generator=random)
    members = process.pair_positions[chosen]
    row, last = torch.arange(len(tokens)), members[:, -1]
    others = tokens.gather(1, members[:, :-1])
    if process.keys > 1:
        step = torch.randint(1, process.keys, (len(tokens),), generator=random)
        other_key = (process.key(tokens) + step) % process.keys
        tokens[row, last] = process.last_tokens(other_key, others)
    else:
        step = torch.randint(1, process.vocabulary, (len(tokens),), generator=random)
        tokens[row, last] = (tokens[row, last] + step) % process.vocabulary


def replace_end(process: PlantedProcess, tokens: Tensor, random: torch.Generator) -> None:
    """Gives every sequence another one's second segment, in place: int64 `[count, length]`."""
    other = process.sample(len(tokens), random)
    if process.keys > 1:
        other[:, 0] = tokens[:, 0]
    process.complete_pairs(other)
    tokens[:, process.split :] = other[:, process.split :]
