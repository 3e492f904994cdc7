"""Downstream tasks of the planted process: is a sequence intact, does its end follow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from masksearch.contracts import Batch, generator
from masksearch.tasks.planted.process import FOLLOWS, HELD_OUT, INTACT, PlantedProcess


@dataclass(frozen=True)
class IntactTask:
    """Downstream: is the sequence from the process (1), or was one pair broken (0)?

    In half of the sequences the last token of one random pair is replaced by the token that
    another key would give, or with one key by any other token. So nothing but that pair, read
    together with the key, gives it away: the chance is 0.5, the ceiling 1.0, and a reader that
    sees a share f of the pairs with their key can reach (1 + f) / 2.

    Args:
        process: The distribution.
        batch: Sequences of a batch, half of each label (even).
        held_out_sequences: Number of held-out sequences (even).
    """

    process: PlantedProcess
    batch: int = 64
    held_out_sequences: int = 1024

    def __post_init__(self) -> None:
        even(self.batch, self.held_out_sequences)

    @property
    def name(self) -> str:
        """The task's name."""
        return "intact"

    @property
    def ceiling(self) -> float:
        """Largest expected accuracy: a replaced token always differs from the true one."""
        return 1.0

    def batches(self, seed: int) -> Iterator[Batch]:
        """Endless balanced batches: `input_ids` `[batch, length]`, `labels` `[batch]`."""
        random = generator(seed, INTACT)
        while True:
            yield self.draw(self.batch, random)

    def held_out(self) -> list[Batch]:
        """The held-out sequences, the same in every call."""
        return [self.draw(self.held_out_sequences, generator(self.process.seed, INTACT, HELD_OUT))]

    def draw(self, count: int, random: torch.Generator) -> Batch:
        """Draws `count` sequences; the first half is intact."""
        tokens = self.process.sample(count, random)
        broken = tokens[count // 2 :]
        chosen = torch.randint(len(self.process.pairs), (len(broken),), generator=random)
        members = self.process.paired[chosen]
        row, last, key = torch.arange(len(broken)), members[:, -1], self.process.key(broken)
        if self.process.keys > 1:
            step = torch.randint(1, self.process.keys, (len(broken),), generator=random)
            other = (key + step) % self.process.keys
            others = broken.gather(1, members[:, :-1])
            broken[row, last] = self.process.last_tokens(other, others)
        else:
            step = torch.randint(1, self.process.vocabulary, (len(broken),), generator=random)
            broken[row, last] = (broken[row, last] + step) % self.process.vocabulary
        return {"input_ids": tokens, "labels": (torch.arange(count) < count // 2).long()}


@dataclass(frozen=True)
class FollowsTask:
    """Downstream: does the second segment belong to the first (1), or to another sequence (0)?

    The segments meet at `process.split`. In half of the sequences the second segment comes from
    another sequence with the same key, so that only the pairs across the cut give it away; their
    partners suffice, the key is not needed. The chance is 0.5.

    Args:
        process: The distribution.
        batch: Sequences of a batch, half of each label (even).
        held_out_sequences: Number of held-out sequences (even).
    """

    process: PlantedProcess
    batch: int = 64
    held_out_sequences: int = 1024

    def __post_init__(self) -> None:
        even(self.batch, self.held_out_sequences)

    @property
    def name(self) -> str:
        """The task's name."""
        return "follows"

    @property
    def ceiling(self) -> float:
        """Largest expected accuracy: 1 - vocabulary^-c / 2, with c pairs across the cut.

        With probability vocabulary^-c a strange segment fits by accident; then it is taken for
        the true one.
        """
        crossing = len(self.process.crossing(self.process.split))
        return 1 - float(self.process.vocabulary) ** -crossing / 2

    def batches(self, seed: int) -> Iterator[Batch]:
        """Endless balanced batches: `input_ids` `[batch, length]`, `labels` `[batch]`."""
        random = generator(seed, FOLLOWS)
        while True:
            yield self.draw(self.batch, random)

    def held_out(self) -> list[Batch]:
        """The held-out sequences, the same in every call."""
        random = generator(self.process.seed, FOLLOWS, HELD_OUT)
        return [self.draw(self.held_out_sequences, random)]

    def draw(self, count: int, random: torch.Generator) -> Batch:
        """Draws `count` sequences; in the first half the second segment follows."""
        tokens = self.process.sample(count, random)
        strange = tokens[count // 2 :]
        other = self.process.sample(len(strange), random)
        if self.process.keys > 1:
            other[:, 0] = strange[:, 0]
        self.process.completed(other)
        strange[:, self.process.split :] = other[:, self.process.split :]
        return {"input_ids": tokens, "labels": (torch.arange(count) < count // 2).long()}


def even(*counts: int) -> None:
    """Refuses numbers of sequences that cannot hold both labels equally often."""
    for count in counts:
        if count < 2 or count % 2:
            even_one = max(2, count + count % 2)
            raise ValueError(
                f"balanced labels need an even number of sequences, got {count}; use {even_one}"
            )
