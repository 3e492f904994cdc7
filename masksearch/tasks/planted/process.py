"""Sequences whose dependencies are planted, so that the right mask is known.

process = PlantedProcess(length=24, offsets=(11,), keys=2)
process.edges                                    # bool [24, 24]: who depends on whom
next(PlantedTask(process).batches(seed=0))       # {"input_ids", "labels"}: int64 [64, 24]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from masksearch import masks
from masksearch.contracts import Batch, generator
from masksearch.files import text_hash
from masksearch.masks.core import Mask
from masksearch.tasks.planted.graded import GradedProcess

Groups = tuple[tuple[int, ...], ...]


def pair_by_offsets(length: int, offsets: Sequence[int], size: int = 2) -> Groups:
    """Groups of equally spaced positions, in the order in which they were found.

    The offsets take turns. At its turn an offset d groups s, s + d, s + 2d, .. (`size`
    positions), for the smallest s >= 1 with all of them free and inside the sequence; it ends
    when no offset finds a group.

    Args:
        length: Positions of the sequence; position 0 is in no group.
        offsets: Distances of neighbours in a group, from 1.
        size: Positions of a group (>= 2).
    """
    free = [position > 0 for position in range(length)]
    groups: list[tuple[int, ...]] = []
    before = -1
    while before < len(groups):
        before = len(groups)
        for offset in offsets:
            for first in range(1, length - (size - 1) * offset):
                group = tuple(first + step * offset for step in range(size))
                if all(free[position] for position in group):
                    for position in group:
                        free[position] = False
                    groups.append(group)
                    break
    return tuple(groups)


PERMUTATIONS, HELD_OUT, INTACT, FOLLOWS = 1, 2, 3, 4  # streams of random numbers


def _check_groups(groups: Groups, length: int) -> None:
    """Raises ValueError unless the groups can be planted."""
    positions = sorted(position for group in groups for position in group)
    alike = len({len(group) for group in groups}) == 1 and len(groups[0]) > 1
    rising = all(tuple(sorted(group)) == group for group in groups)
    inside = positions and positions[0] > 0 and positions[-1] < length
    if not (alike and rising and inside and len(set(positions)) == len(positions)):
        raise ValueError(
            f"groups hold two or more of the positions 1 .. {length - 1} in rising order, all "
            f"equally many and no position twice; got {groups}"
        )


@dataclass(frozen=True)
class PlantedProcess:
    """A distribution over sequences in which each paired token determines its partner.

    Position 0 holds the key, one of `keys` ids, uniformly (with one key it holds a free token).
    Of the other positions the offsets make pairs in turn: at its turn an offset d pairs the
    smallest free s >= 1 whose s + d is free and inside the sequence, until no offset finds a pair;
    or the pairs are given. No position is in two pairs. The first token of a pair and every
    unpaired token are uniform and independent; the second one is

        x[t] = r^-1((k - r(x[s])) mod vocabulary),     k = the key's number, from 0

    with r a relabelling of the vocabulary drawn from `seed`. For each key this is a permutation
    of the vocabulary that is its own inverse, and two keys never agree on any token. So a masked
    token is certain given its partner and the key, one of `keys` equally likely tokens given its
    partner alone, and uniform without its partner.

    Where `groups` of three or more positions are given, the last token is a function of all
    others: the labels r of a group add up to k modulo the vocabulary. Each token of it is then
    certain given all others and the key, and uniform as long as one of the others is unknown.

    Ids: tokens 0 .. vocabulary - 1, the mask id `vocabulary`, then the keys.

    Args:
        length: Positions of a sequence (>= 3).
        vocabulary: Number of tokens (>= 2).
        offsets: Distances of paired positions (distinct, 1 .. length - 2); set to () where groups
            are given.
        keys: Number of permutations that the token at position 0 chooses from, 1 .. vocabulary;
            1 = no global token.
        hidden: Probability that a position other than 0 is masked in masked prediction.
        seed: Seed of the relabelling.
        groups: Positions whose tokens determine each other, all groups of one size (>= 2), each in
            rising order; None = the pairs that the offsets make.

    Raises:
        ValueError: If a value is out of its range or an offset finds no pair.

    >>> PlantedProcess(length=8, offsets=(3,), keys=1).pairs
    ((1, 4), (2, 5), (3, 6))
    """

    length: int = 24
    vocabulary: int = 8
    offsets: tuple[int, ...] = (11,)
    keys: int = 2
    hidden: float = 0.15
    seed: int = 0
    groups: Groups | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "offsets", tuple(self.offsets) if self.groups is None else ())
        if self.length < 3:
            raise ValueError(f"length must be at least 3 positions, got {self.length}")
        if self.vocabulary < 2:
            raise ValueError(f"vocabulary must be at least 2 tokens, got {self.vocabulary}")
        if not 1 <= self.keys <= self.vocabulary:
            raise ValueError(
                f"keys must lie in 1 .. vocabulary = {self.vocabulary}, got {self.keys}; "
                "more keys than tokens cannot all disagree: raise vocabulary or lower keys"
            )
        if not 0 < self.hidden < 1:
            raise ValueError(f"hidden is a probability in (0, 1), got {self.hidden}")
        if self.groups is not None:
            _check_groups(self.groups, self.length)
            return
        if not self.offsets or len(set(self.offsets)) < len(self.offsets):
            raise ValueError(f"offsets must be distinct and at least one, got {self.offsets}")
        for offset in self.offsets:
            if not 1 <= offset <= self.length - 2:
                raise ValueError(
                    f"offsets must lie in 1 .. length - 2 = {self.length - 2}, got {offset}; "
                    "position 0 is in no pair: raise length or lower the offset"
                )
        unpaired = set(self.offsets) - {pair[1] - pair[0] for pair in self.pairs}
        if unpaired:
            raise ValueError(
                f"every offset needs a pair, {sorted(unpaired)} found no free positions in "
                f"length {self.length}; raise length or drop the offset"
            )

    @cached_property
    def pairs(self) -> Groups:
        """Paired positions (first, second), or the groups that were given, in rising order."""
        return self.groups or pair_by_offsets(self.length, self.offsets)

    @cached_property
    def pair_positions(self) -> Tensor:
        """The same as `pairs`: int64 `[pairs, 2]`, or `[groups, size]`."""
        return torch.tensor(self.pairs)

    @cached_property
    def edges(self) -> Tensor:
        """The edges that a masked token needs: bool `[length, length]`, query by key.

        Each position of a pair to the others of it and, with several keys, every paired
        position to position 0. Without the diagonal.
        """
        needed = torch.zeros(self.length, self.length, dtype=torch.bool)
        needed[self.pair_positions[:, :, None], self.pair_positions[:, None, :]] = True
        needed.fill_diagonal_(False)
        if self.keys > 1:
            needed[self.pair_positions.flatten(), 0] = True
        return needed

    @cached_property
    def oracle(self) -> Mask:
        """The sparsest mask that loses nothing: `edges`, and the diagonal so that no row is
        empty.
        """
        return masks.table(self.edges | torch.eye(self.length, dtype=torch.bool))

    @property
    def ids(self) -> int:
        """Number of token ids: the vocabulary, the mask id and the keys."""
        return self.vocabulary + 1 + (self.keys if self.keys > 1 else 0)

    @property
    def mask_id(self) -> int:
        """The id that masks a token."""
        return self.vocabulary

    @property
    def chance(self) -> float:
        """Expected accuracy on masked partner tokens without any edge: 1 / vocabulary.

        A paired token is uniform, alone and given everything but one of its partners.
        """
        return 1 / self.vocabulary

    @property
    def ceiling(self) -> float:
        """Largest expected accuracy on masked partner tokens: known + (1 - known) / vocabulary,
        with known = (1 - hidden)^partners.

        All partners of a masked token are visible with probability `known`, and then the token
        is certain, since the key is never hidden; otherwise nothing tells about it.
        """
        chance_of_all = (1 - self.hidden) ** (self.pair_positions.shape[1] - 1)
        return chance_of_all + (1 - chance_of_all) / self.vocabulary

    @property
    def split(self) -> int:
        """First position of the second segment: the cut that separates most pairs, the nearest
        to the middle among equals.
        """

        def joined(cut: int) -> int:
            return sum(pair[0] < cut <= pair[-1] for pair in self.pairs)

        return min(
            range(1, self.length), key=lambda cut: (-joined(cut), abs(2 * cut - self.length))
        )

    @cached_property
    def permutations(self) -> Tensor:
        """int64 `[keys, vocabulary]`: the partner of each token under each key (of several others:
        of the token whose label is the sum of theirs).
        """
        key = torch.arange(self.keys)[:, None]
        return self.labels.argsort()[(key - self.labels) % self.vocabulary]

    @cached_property
    def labels(self) -> Tensor:
        """The relabelling r: int64 `[vocabulary]`."""
        return torch.randperm(self.vocabulary, generator=generator(self.seed, PERMUTATIONS))

    def last_tokens(self, key: Tensor, others: Tensor) -> Tensor:
        """The last token of a pair, given the key's number and its other tokens.

        Args:
            key: int64 `[..]`.
            others: int64 `[.., partners]`.

        Returns:
            int64 `[..]`.
        """
        label = self.labels[others].sum(-1) % self.vocabulary
        return self.permutations[key, self.labels.argsort()[label]]

    @cached_property
    def digest(self) -> str:
        """Short hash of everything that the distribution depends on."""
        fields = (self.length, self.vocabulary, self.offsets, self.keys, self.hidden, self.seed)
        return text_hash(repr(("planted-1", fields, self.pairs, self.permutations.tolist())))

    def sample(self, count: int, random: torch.Generator) -> Tensor:
        """Draws sequences: int64 `[count, length]`."""
        tokens = torch.randint(self.vocabulary, (count, self.length), generator=random)
        if self.keys > 1:
            key = torch.randint(self.keys, (count,), generator=random)
            tokens[:, 0] = self.vocabulary + 1 + key
        return self.complete_pairs(tokens)

    def complete_pairs(self, tokens: Tensor) -> Tensor:
        """Puts the last token of every pair in its place, in place: int64 `[count, length]`."""
        others = tokens[:, self.pair_positions[:, :-1]]
        tokens[:, self.pair_positions[:, -1]] = self.last_tokens(self.key(tokens)[:, None], others)
        return tokens

    def key(self, tokens: Tensor) -> Tensor:
        """Numbers of the sequences' keys: int64 `[count]`, from 0."""
        if self.keys == 1:
            return torch.zeros(len(tokens), dtype=torch.int64)
        return tokens[:, 0] - (self.vocabulary + 1)

    def mark(self, predicted: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Counts right answers on the paired positions, and all that are asked for there.

        Args:
            predicted: Token ids `[count, length]`.
            labels: int64 `[count, length]`; -100 = not scored.

        Returns:
            Right answers, and those asked for: int64 `[count, length]` each, 0 or 1.
        """
        paired = torch.zeros(self.length, dtype=torch.bool)
        paired[self.pair_positions.flatten()] = True
        asked = paired & (labels != -100)
        return (asked & (predicted == labels)).long(), asked.long()


Process = PlantedProcess | GradedProcess


def mask_tokens(process: Process, tokens: Tensor, random: torch.Generator) -> Batch:
    """Masks tokens, each with probability `process.hidden`; never position 0.

    Args:
        process: The distribution.
        tokens: Token ids `[count, length]`.
        random: Source of the draws.

    Returns:
        `input_ids` and `labels` (-100 = not scored), int64 `[count, length]`; at least one
        token is scored.
    """
    draw = torch.rand(tokens.shape, generator=random)
    draw[:, 0] = 2.0
    scored = draw < process.hidden
    if not scored.any():
        scored = draw == draw.min()
    return {
        "input_ids": tokens.masked_fill(scored, process.mask_id),
        "labels": tokens.masked_fill(~scored, -100),
    }


def _held_out_stream(draw: int) -> tuple[int, ...]:
    """The seed parts that a draw of held-out sequences adds to its stream; the first adds none."""
    return (draw,) if draw else ()


@dataclass(frozen=True)
class PlantedTask:
    """Masked prediction on a planted process; every training batch is drawn anew.

    Args:
        process: The distribution.
        batch: Sequences of a batch.
        held_out_sequences: Number of held-out sequences.
        draw_number: Number of their draw, from 0; two draws have nothing in common.
    """

    process: Process
    batch: int = 64
    held_out_sequences: int = 1024
    draw_number: int = 0

    def __post_init__(self) -> None:
        for name in ("batch", "held_out_sequences"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1 sequence, got {getattr(self, name)}")

    @property
    def name(self) -> str:
        """The task's name."""
        return "planted"

    def batches(self, seed: int) -> Iterator[Batch]:
        """Endless training batches, a function of `seed` alone."""
        random = generator(seed)
        while True:
            yield mask_tokens(self.process, self.process.sample(self.batch, random), random)

    def held_out(self) -> list[Batch]:
        """The held-out sequences, the same in every call."""
        random = generator(self.process.seed, HELD_OUT, *_held_out_stream(self.draw_number))
        tokens = self.process.sample(self.held_out_sequences, random)
        return [
            mask_tokens(self.process, tokens[start : start + 256], random)
            for start in range(0, len(tokens), 256)
        ]


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
      is not needed. The chance is 0.5; with c pairs across the cut a strange segment fits by
      accident with probability vocabulary^-c.

    Args:
        process: The distribution.
        rule: `"intact"` or `"follows"`.
        batch: Sequences of a batch, half of each label (even).
        held_out_sequences: Number of held-out sequences (even).
        draw_number: Number of their draw, from 0.

    Raises:
        ValueError: If a number of sequences is odd or below 2.
    """

    process: PlantedProcess
    rule: Rule
    batch: int = 64
    held_out_sequences: int = 1024
    draw_number: int = 0

    def __post_init__(self) -> None:
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

    def batches(self, seed: int) -> Iterator[Batch]:
        """Endless balanced batches: `input_ids` `[batch, length]`, `labels` `[batch]`."""
        random = generator(seed, STREAMS[self.rule])
        while True:
            yield self.draw(self.batch, random)

    def held_out(self) -> list[Batch]:
        """The held-out sequences, the same in every call."""
        stream = _held_out_stream(self.draw_number)
        random = generator(self.process.seed, STREAMS[self.rule], HELD_OUT, *stream)
        return [self.draw(self.held_out_sequences, random)]

    def draw(self, count: int, random: torch.Generator) -> Batch:
        """Draws `count` sequences; the second half is changed."""
        tokens = self.process.sample(count, random)
        change = _break_one_pair if self.rule == "intact" else _replace_end
        change(self.process, tokens[count // 2 :], random)
        return {"input_ids": tokens, "labels": (torch.arange(count) < count // 2).long()}


def _break_one_pair(process: PlantedProcess, tokens: Tensor, random: torch.Generator) -> None:
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


def _replace_end(process: PlantedProcess, tokens: Tensor, random: torch.Generator) -> None:
    """Gives every sequence another one's second segment, in place: int64 `[count, length]`."""
    other = process.sample(len(tokens), random)
    if process.keys > 1:
        other[:, 0] = tokens[:, 0]
    process.complete_pairs(other)
    tokens[:, process.split :] = other[:, process.split :]
