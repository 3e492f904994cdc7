"""Training and held-out parts of a data set, and the splits of what is held out.

train = sample_rows(train, 10_000, 0, 41)
held_out = take_split(held_out, "holdout", "questions", attrgetter("article"), attrgetter("text"))
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from functools import cache
from typing import TypeVar, get_args

import torch
from torch import Tensor

from masksearch.contracts import Split, generator
from masksearch.errors import DataError, check_name

log = logging.getLogger(__name__)

ENOUGH = 10  # sequences of a split; from fewer no ranking can be read
FEW = 16  # fewer groups than that are not dealt out to splits; finer ones are
Row = TypeVar("Row")


def in_holdout(text: str | bytes) -> bool:
    """Whether a text belongs to the holdout: by a hash of it, the same on every machine."""
    raw = text.encode(errors="surrogatepass") if isinstance(text, str) else text
    return hashlib.sha256(raw).digest()[0] % 2 == 1


def is_part(split: Split) -> bool:
    """Whether a split has a part of the held-out rows; `"all"` and `"test"` have all of theirs.

    Raises:
        UnknownNameError: If there is no such split.
    """
    check_name("split", split, get_args(Split))
    return split in ("validation", "holdout")


def take_split(
    rows: Sequence[Row], split: Split, where: str, *groups: Callable[[Row], str]
) -> list[Row]:
    """The rows of a split, in their order; rows of one group are in the same split.

    Args:
        rows: All held-out rows.
        split: `"validation"` or `"holdout"`; the others are not splits, and take every row.
        where: Where the rows come from, for the error.
        groups: Texts that a row may be grouped by, the coarsest first. The first of which there
            are at least `FEW` is taken, or the last.

    Raises:
        DataError: If the split is empty.
        UnknownNameError: If there is no such split.
    """
    if not is_part(split):
        return list(rows)
    texts_of = [{group(row) for row in rows} for group in groups[:-1]]
    group = next(
        (g for g, texts in zip(groups, texts_of, strict=False) if len(texts) >= FEW), None
    )
    group = group or groups[-1]
    kept = [row for row in rows if in_holdout(group(row)) == (split == "holdout")]
    if not kept:
        raise _empty_split(where, f"{len(rows)} rows", split)
    return kept


def _empty_split(where: str, among: str, split: Split, enough: str = "") -> DataError:
    """The error for a split without rows."""
    return DataError(
        f"{where}: none of {among} belongs to {split} (a hash of each text decides); give "
        f"more held-out data{enough}, or judge by all of it: split='all' (--set split=all)"
    )


def check_sequences(count: int, among: int, split: Split, length: int) -> None:
    """Says, before anything is trained, that there is too little held-out text, and how much is
    needed: a warning in the log, once a process, where a split has fewer than ten sequences.

    Args:
        count: Sequences of the split.
        among: Sequences of all held-out text.
        split: Which.
        length: Positions of a sequence.

    Raises:
        DataError: If the split has none.
    """
    enough = f" (about {2 * ENOUGH} sequences, {2 * ENOUGH * length:,} tokens)"
    if not count:
        raise _empty_split("the held-out text", f"{among} sequences", split, enough)
    if count < ENOUGH and is_part(split):
        _tell_once(
            f"judged by {count} held-out sequence{'s' if count > 1 else ''}, the {split} split of "
            f"{among}: no ranking can be read from so few; hold out more text{enough}"
        )


@cache
def _tell_once(text: str) -> None:
    """Writes a warning to the log, unless this process has."""
    log.warning(text)


def evenly_spaced(among: int, most: int) -> Tensor:
    """At most so many of that many numbers, rising and evenly spread: int64."""
    count = min(among, most)
    return torch.arange(count) * among // count


def sample_rows(rows: Sequence[Row], limit: int | None, *seed: int) -> Sequence[Row]:
    """At most `limit` rows, in their order.

    Args:
        rows: The rows.
        limit: How many are wanted; None = all.
        seed: Of the draw, made only where there are more than wanted.
    """
    if limit is None or limit >= len(rows):
        return rows
    order = torch.randperm(len(rows), generator=generator(*seed)).tolist()
    return [rows[index] for index in sorted(order[:limit])]
