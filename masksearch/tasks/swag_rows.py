"""SWAG's items as sequences, one a choice: `[CLS] start [SEP] choice [SEP]`.

rows = make_choices(corpus, data.train)
rows[0].ids[rows[0].label]           # the sequence of the right choice
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import overload

import numpy as np

from masksearch.tasks.corpus import small
from masksearch.tasks.squad_windows import Numbers, Source, joined
from masksearch.tasks.swag import Item


@dataclass(frozen=True)
class Choices:
    """A tokenized item.

    Args:
        ids: For every choice `[CLS] start [SEP] choice [SEP]`.
        first: Positions of the first segment, with its `[SEP]`, for every choice.
        label: The right one.
    """

    ids: list[list[int]]
    first: list[int]
    label: int


@dataclass(frozen=True, eq=False)
class ChoiceRows(Sequence[Choices]):
    """Many tokenized items in arrays; one is made where it is read.

    Args:
        starts: Token ids of the starts, one after the other.
        start_ends: Where each start's ids end.
        endings: Token ids of the endings, item by item.
        ending_ends: Where each ending's ids end.
        labels: The right ending of each item.
        special: Token ids by role.
        length: Largest length of a sequence; longer ones lose the beginning of their start, down
            to a third of the room, then the end of their ending.
    """

    starts: Numbers = field(repr=False)
    start_ends: Numbers = field(repr=False)
    endings: Numbers = field(repr=False)
    ending_ends: Numbers = field(repr=False)
    labels: Numbers = field(repr=False)
    special: dict[str, int] = field(repr=False)
    length: int

    @property
    def choices(self) -> int:
        """Endings of an item."""
        return len(self.ending_ends) // len(self.labels)

    @property
    def lengths(self) -> list[int]:
        """Positions of the longest sequence of each item."""
        start = np.diff(self.start_ends.astype(np.int64), prepend=0)
        ending = np.diff(self.ending_ends.astype(np.int64), prepend=0)
        longest = start + ending.reshape(-1, self.choices).max(1) + 3
        found: list[int] = longest.clip(max=self.length).tolist()
        return found

    def __len__(self) -> int:
        return len(self.labels)

    @overload
    def __getitem__(self, index: int) -> Choices: ...
    @overload
    def __getitem__(self, index: slice) -> list[Choices]: ...
    def __getitem__(self, index: int | slice) -> Choices | list[Choices]:
        if isinstance(index, slice):
            return [self[each] for each in range(len(self))[index]]
        index = range(len(self))[index]
        start = part(self.starts, self.start_ends, index)
        cls, sep, spare = self.special["cls"], self.special["sep"], self.length - 3
        rows, firsts = [], []
        for number in range(index * self.choices, (index + 1) * self.choices):
            ending = part(self.endings, self.ending_ends, number)
            kept = min(len(start), max(spare - len(ending), spare // 3))
            shown = [cls, *start[len(start) - kept :], sep]
            rows.append([*shown, *ending[: spare - kept], sep])
            firsts.append(len(shown))
        return Choices(rows, firsts, int(self.labels[index]))


def part(flat: Numbers, ends: Numbers, index: int) -> list[int]:
    """The ids of one text among texts that stand one after the other."""
    found: list[int] = flat[int(ends[index - 1]) if index else 0 : int(ends[index])].tolist()
    return found


def make_choices(source: Source, found: Sequence[Item]) -> ChoiceRows:
    """Tokenizes items (one or more, with the same number of choices)."""
    return ChoiceRows(
        *joined(source.encode([item.start for item in found])),
        *joined(source.encode([choice for item in found for choice in item.choices])),
        small(np.array([item.label for item in found])),
        source.special,
        source.length,
    )
