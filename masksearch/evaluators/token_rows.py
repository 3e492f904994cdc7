"""Tokenized rows of fine-tuning tasks, and batches of similar length.

rows = TokenRows.of(tokenize_rows(source, texts, labels))
for batch in row_batches(rows, 32, seed=0, source=source):   # endless
    ...
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from masksearch.contracts import Batch, Half, generator
from masksearch.tasks.text.files import short_hash
from masksearch.tasks.text.packing import IdLists, shrink
from masksearch.tasks.text.tokenizer import (
    TokenSource,
    encode,
    id_count,
    open_tokenizer,
    special_ids,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer

log = logging.getLogger(__name__)

WIDTH = 16  # batches are padded to a multiple of that many positions
EACH = 10_000  # sequences of each of several tasks in a histogram of lengths
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

    @cached_property
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
class TaskFiles:
    """The files of a task, and which of their rows are taken: a key for what is read once."""

    path: Path | str  # a file, or a folder with both parts
    held_out: Path | str | None  # the file of the rows that are scored
    rows: int | None  # largest number of training rows; None = all
    dev_rows: int | None  # of the rows that are scored
    seed: int  # of the split and of the samples
    half: Half = "all"  # which of the rows that are scored


@lru_cache(maxsize=8)
def read_task(load: Callable[..., Any], files: TaskFiles) -> Any:
    """What `load` makes of a task's files, read once a process; the log says where the training
    and the held-out rows come from."""
    limits = {"rows": files.rows, "dev_rows": files.dev_rows, "seed": files.seed}
    data = load(files.path, files.held_out, **limits, half=files.half)
    log.info("%s: %s", files.path, data.source)
    return data


@dataclass(frozen=True)
class TokenRow:
    """A tokenized example: `[CLS] a [SEP]` or `[CLS] a [SEP] b [SEP]`."""

    ids: list[int]
    first: int  # positions of the first segment
    label: float  # a score, or a class number (an int)


@dataclass(frozen=True, eq=False)
class TokenRows:
    """Many rows in arrays, in memory and in a pickle; a row is made where it is read.

    Args:
        ids: Every row's ids.
        firsts: Each row's `first`.
        labels: Each row's label: integers, or floats of a regression.
    """

    ids: IdLists = field(repr=False)
    firsts: NDArray[Any] = field(repr=False)
    labels: NDArray[Any] = field(repr=False)

    @classmethod
    def of(cls, rows: Sequence[TokenRow]) -> TokenRows:
        """Those rows (one or more), integers in the smallest type that holds them."""
        labels = np.array([row.label for row in rows])
        return cls(
            IdLists.of([row.ids for row in rows]),
            shrink(np.array([row.first for row in rows])),
            labels if labels.dtype.kind == "f" else shrink(labels),
        )

    @property
    def lengths(self) -> list[int]:
        """Number of ids of each row."""
        found: list[int] = self.ids.lengths.tolist()
        return found

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> TokenRow:
        return TokenRow(self.ids[index], int(self.firsts[index]), self.labels[index].item())


def tokenize_rows(
    source: TokenSource, texts: Sequence[tuple[str, ...]], labels: Sequence[float]
) -> list[TokenRow]:
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
        found.append(TokenRow(ids, first, label))
    return found


def pooled_lengths(tasks: Sequence[Sequence[int]], longest: int) -> dict[int, int]:
    """How many sequences have how many tokens: the `lengths` of a `Shape`.

    Args:
        tasks: Lengths of the sequences of each task, in tokens. Of one task they are counted as
            they are. Each of several weighs the same, as it does in the score, however many rows
            it has: as 10,000 sequences.
        longest: Longer ones are cut to that many tokens.

    >>> pooled_lengths([[3, 3, 9]], 8)
    {3: 2, 8: 1}
    >>> pooled_lengths([[3, 3, 3], [5]], 8)
    {3: 10000, 5: 10000}
    """
    pooled: dict[int, int] = {}
    for lengths in tasks:
        found, counts = np.unique(np.minimum(lengths, longest), return_counts=True)
        if len(tasks) > 1:
            counts = np.maximum(1, np.rint(counts * (EACH / len(lengths)))).astype(int)
        for tokens, count in zip(found.tolist(), counts.tolist(), strict=True):
            pooled[tokens] = pooled.get(tokens, 0) + count
    return dict(sorted(pooled.items()))


def pad_ids(ids: Sequence[list[int]], firsts: Sequence[int], source: TokenSource) -> Batch:
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


def pad_rows(rows: Sequence[TokenRow], source: TokenSource) -> Batch:
    """One batch: the inputs of `pad_ids`, and labels `[rows]`."""
    batch = pad_ids([row.ids for row in rows], [row.first for row in rows], source)
    return batch | {"labels": torch.tensor([row.label for row in rows])}


def bucket_batches(
    lengths: Sequence[int], size: int, seed: int, start: int = 0
) -> Iterator[list[int]]:
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
    """How many batches `bucket_batches` makes of that many rows.

    >>> batches_an_epoch(70, 8)
    9
    """
    return -(-rows // size)


def row_batches(
    rows: TokenRows, size: int, seed: int, source: TokenSource, start: int = 0
) -> Iterator[Batch]:
    """Endless padded batches of rows; see `bucket_batches`."""
    for chosen in bucket_batches(rows.lengths, size, seed, start):
        yield pad_rows([rows[index] for index in chosen], source)


def batches_by_length(lengths: Sequence[int], size: int = 64) -> Iterator[list[int]]:
    """Batches of row numbers from short to long, each row once: for predictions."""
    order = sorted(range(len(lengths)), key=lambda row: lengths[row])
    for start in range(0, len(order), size):
        yield order[start : start + size]
