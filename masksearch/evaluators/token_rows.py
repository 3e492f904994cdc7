"""Tokenized rows of fine-tuning tasks, and batches of similar length.

rows = TokenRows.of(sequences(source, texts, labels))
for batch in shuffled(rows, 32, seed=0, source=source):   # endless
    ...
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from numpy.typing import NDArray

from masksearch.contracts import Batch, generator
from masksearch.tasks.text.files import short_hash
from masksearch.tasks.text.packing import shrink
from masksearch.tasks.text.tokenizer import (
    TokenSource,
    encode,
    id_count,
    open_tokenizer,
    special_ids,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer

WIDTH = 16  # batches are padded to a multiple of that many positions
POOL = 50  # batches of similar length are formed among that many batches' rows


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """A tokenizer and a length: what is left of a corpus where there is no text.

    Args:
        tokenizer: A `tokenizers.Tokenizer`.
        special: Token ids by role: pad, unknown, cls, sep, mask.
        length: Largest number of positions of a row.
        digest: Hash of all of it.
    """

    tokenizer: Tokenizer = field(repr=False)
    special: dict[str, int]
    length: int
    digest: str

    @property
    def vocabulary(self) -> int:
        """Number of token ids."""
        return id_count(self.tokenizer)

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, without special tokens."""
        return encode(self.tokenizer, texts)


@lru_cache(maxsize=4)
def read_vocabulary(tokenizer: str | Path, length: int) -> Vocabulary:
    """The tokenizer of that folder, file or name, read once a process.

    Raises:
        DataError: If there is none, or it lacks a special token.
    """
    made = open_tokenizer(tokenizer)
    digest = short_hash(made.to_str(), str(length))
    return Vocabulary(made, special_ids(made), length, digest)


@dataclass(frozen=True)
class Row:
    """A tokenized example: `[CLS] a [SEP]` or `[CLS] a [SEP] b [SEP]`."""

    ids: list[int]
    first: int  # positions of the first segment
    label: float  # a score, or a class number (an int)


@dataclass(frozen=True, eq=False)
class TokenRows(Sequence[Row]):
    """Many rows in four arrays, in memory and in a pickle; a row is made where it is read.

    Args:
        ids: Every row's ids, one row after the other.
        ends: Where each row's ids end.
        firsts: Each row's `first`.
        labels: Each row's label: integers, or floats of a regression.
    """

    ids: NDArray[Any] = field(repr=False)
    ends: NDArray[Any] = field(repr=False)
    firsts: NDArray[Any] = field(repr=False)
    labels: NDArray[Any] = field(repr=False)

    @classmethod
    def of(cls, rows: Sequence[Row]) -> TokenRows:
        """Those rows (one or more), integers in the smallest type that holds them."""
        labels = np.array([row.label for row in rows])
        return cls(
            shrink(np.concatenate([row.ids for row in rows])),
            shrink(np.cumsum([len(row.ids) for row in rows])),
            shrink(np.array([row.first for row in rows])),
            labels if labels.dtype.kind == "f" else shrink(labels),
        )

    @property
    def lengths(self) -> list[int]:
        """Number of ids of each row."""
        found: list[int] = np.diff(self.ends.astype(np.int64), prepend=0).tolist()
        return found

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self[each] for each in range(len(self))[index]]
        index = range(len(self))[index]
        start = int(self.ends[index - 1]) if index else 0
        ids = self.ids[start : int(self.ends[index])].tolist()
        return Row(ids, int(self.firsts[index]), self.labels[index].item())


def sequences(
    source: TokenSource, texts: Sequence[tuple[str, ...]], labels: Sequence[float]
) -> list[Row]:
    """Tokenizes rows of one or two texts each; where a row is too long for the source's length,
    the end of its longer text is cut."""
    special, pairs = source.special, len(texts[0]) == 2
    columns = [source.encode([text[part] for text in texts]) for part in range(1 + pairs)]
    found = []
    for index, label in enumerate(labels):
        one = columns[0][index]
        two = columns[1][index] if pairs else []
        spare = source.length - 2 - pairs
        if len(one) + len(two) > spare:
            half = spare // 2
            if len(one) <= half:
                two = two[: spare - len(one)]
            elif len(two) <= half:
                one = one[: spare - len(two)]
            else:
                one, two = one[: spare - half], two[:half]
        ids = [special["cls"], *one, special["sep"]]
        first = len(ids)
        if pairs:
            ids += [*two, special["sep"]]
        found.append(Row(ids, first, label))
    return found


def padded_ids(ids: Sequence[list[int]], firsts: Sequence[int], source: TokenSource) -> Batch:
    """Model inputs of rows of ids, padded at their end to a multiple of 16 positions.

    Args:
        ids: Token ids of each row, special ones included; at most `source.length`.
        firsts: Positions of each row's first segment.
        source: Gives the id of the padding and the length.

    Returns:
        `input_ids`, `attention_mask` (1 = token) and `token_type_ids` (1 = second segment),
        int64 `[rows, width]`.
    """
    longest = max(len(row) for row in ids)
    width = min(source.length, -(-longest // WIDTH) * WIDTH)
    lengths = torch.tensor([[len(row)] for row in ids])
    first = torch.tensor([[count] for count in firsts])
    at, pad = torch.arange(width), source.special["pad"]
    return {
        "input_ids": torch.tensor([row + [pad] * (width - len(row)) for row in ids]),
        "attention_mask": (at < lengths).long(),
        "token_type_ids": ((at >= first) & (at < lengths)).long(),
    }


def padded(rows: Sequence[Row], source: TokenSource) -> Batch:
    """One batch: the inputs of `padded_ids`, and labels `[rows]`."""
    batch = padded_ids([row.ids for row in rows], [row.first for row in rows], source)
    return batch | {"labels": torch.tensor([row.label for row in rows])}


def bucketed(lengths: Sequence[int], size: int, seed: int, start: int = 0) -> Iterator[list[int]]:
    """Endless batches of row numbers of similar length; every row comes once an epoch.

    Args:
        lengths: Length of each row.
        size: Rows of a batch; where it does not divide the rows, some batches are smaller.
        seed: Of the order.
        start: Batches to leave out at the beginning, at no cost beyond drawing their order.
    """
    random = generator(seed)
    while True:
        order = torch.randperm(len(lengths), generator=random).tolist()
        count = batches_an_epoch(len(order), size)
        if start >= count:
            torch.randperm(count, generator=random)
            start -= count
            continue
        batches = []
        for at in range(0, len(order), POOL * size):
            pool = sorted(order[at : at + POOL * size], key=lambda row: lengths[row])
            batches += [pool[first : first + size] for first in range(0, len(pool), size)]
        for index in torch.randperm(len(batches), generator=random).tolist()[start:]:
            yield batches[index]
        start = 0


def batches_an_epoch(rows: int, size: int) -> int:
    """How many batches `bucketed` makes of that many rows.

    >>> batches_an_epoch(70, 8)
    9
    """
    return -(-rows // size)


def shuffled(
    rows: TokenRows | Sequence[Row], size: int, seed: int, source: TokenSource, start: int = 0
) -> Iterator[Batch]:
    """Endless padded batches of rows; see `bucketed`."""
    lengths = rows.lengths if isinstance(rows, TokenRows) else [len(row.ids) for row in rows]
    for chosen in bucketed(lengths, size, seed, start):
        yield padded([rows[index] for index in chosen], source)


def by_length(lengths: Sequence[int], size: int = 64) -> Iterator[list[int]]:
    """Batches of row numbers from short to long, each row once: for predictions."""
    order = sorted(range(len(lengths)), key=lambda row: lengths[row])
    for start in range(0, len(order), size):
        yield order[start : start + size]
