"""Training and held-out parts of a data set, and the splits of what is held out.

files = two_files(Path("squad"), None, {"train": [..], "dev": [..]}, "SQuAD")
train, held_out, source = two_parts(files, read_squad, attrgetter("article"), "articles", (0, 41))
train = sample_rows(train, 10_000, 0, 41)
held_out = take_split(held_out, "holdout", "squad", attrgetter("article"), attrgetter("context"))
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar, get_args

import torch
from torch import Tensor

from masksearch.contracts import Split, generator
from masksearch.errors import DataError, check_name
from masksearch.files import content_hash

log = logging.getLogger(__name__)

ENOUGH = 10  # sequences of a split; from fewer no ranking can be read
HELD_OUT_SHARE = 0.2  # of the groups, where one file serves both ends
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
        raise empty_split(where, f"{len(rows)} rows", split)
    return kept


def empty_split(where: str, among: str, split: Split, enough: str = "") -> DataError:
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
        raise empty_split("the held-out text", f"{among} sequences", split, enough)
    if count < ENOUGH and is_part(split):
        tell_once(
            f"judged by {count} held-out sequence{'s' if count > 1 else ''}, the {split} split of "
            f"{among}: no ranking can be read from so few; hold out more text{enough}"
        )


@cache
def tell_once(text: str) -> None:
    """Writes a warning to the log, unless this process has."""
    log.warning(text)


@dataclass(frozen=True)
class TaskFiles:
    """The files of a task, and which of their rows are taken: a key for what is read once.

    Args:
        path: A file, or a folder with both parts.
        held_out: A file with the rows that are scored; None = the folder's own.
        rows: Largest number of training rows; more are sampled by `seed`; None = all.
        dev_rows: The same of the rows that are scored.
        seed: Of the split of a file that stands alone, and of the samples.
        split: Which of the rows that are scored, before any are sampled.
    """

    path: Path | str
    held_out: Path | str | None
    rows: int | None
    dev_rows: int | None
    seed: int
    split: Split

    def content(self, files: list[Path]) -> tuple[str, ...]:
        """The facts that a hash of the rows holds beside the split: these files and limits."""
        limits = self.rows, self.dev_rows, self.seed
        return (content_hash(files), str(len(files)), *map(str, limits))


def two_files(
    path: Path, held_out: Path | str | None, named: Mapping[str, Sequence[Path]], what: str
) -> list[Path]:
    """The training file and the held-out one, or the one that is to be split.

    Args:
        path: A file, or a folder.
        held_out: The held-out file; None = the folder's own.
        named: Where `path` is a folder: its training and its held-out files, by the beginning of
            their names.
        what: The data set's name.

    Raises:
        DataError: If a file is missing, or a folder holds several of a kind.
    """
    files = [path]
    if path.is_dir():
        first, _ = kinds = list(named)
        for kind in [first] if held_out is not None else kinds:
            if len(named[kind]) > 1:
                names = ", ".join(file.name for file in named[kind])
                raise DataError(f"{path} holds {names}: several {kind} files; give the file")
        files = [*named[first], *([] if held_out is not None else named[kinds[1]])]
        if not files:
            raise DataError(f"{path} holds neither a {' nor a '.join(kinds)} file of {what}")
    files += [Path(held_out)] if held_out is not None else []
    for file in files:
        if not file.is_file():
            raise DataError(
                f"no such {what} file or folder: {file}; give one on disk "
                f"(--{what.lower()} PATH), the Hub is not asked"
            )
    return files


def labelled_test_file(path: Path, named: Iterable[Path], what: str) -> Path:
    """A data set's labelled test file.

    Raises:
        DataError: If there is none, or there are several.
    """
    files = sorted(named)
    if len(files) != 1:
        names = ", ".join(file.name for file in files) or "none"
        raise DataError(
            f"{path} holds {names} as a test file of {what} with labels; split='test' needs one "
            "in the folder. split='holdout' judges by held-out rows that no search has seen"
        )
    return files[0]


def two_parts(
    files: Sequence[Path],
    read: Callable[[Path], Sequence[Row]],
    group: Callable[[Row], str],
    groups: str,
    seed: tuple[int, ...],
) -> tuple[list[Row], list[Row], str]:
    """Training rows, held-out rows, and where both come from, in words.

    Of a file alone a fifth of the groups, at least one, is held out.

    Args:
        files: One or two.
        read: Reads a file.
        group: What a row belongs to; no group is in both parts.
        groups: What the groups are called ("articles").
        seed: Of the draw; the first number is the one that the user has chosen.

    Raises:
        DataError: If a file alone holds fewer than two groups.
    """
    if len(files) == 2:
        train, held_out = (list(read(file)) for file in files)
        return train, held_out, f"{files[0].name}, held out {files[1].name}"
    rows = read(files[0])
    names = list(dict.fromkeys(map(group, rows)))
    if len(names) < 2:
        raise DataError(
            f"{files[0]}: one file is split by {groups} into training and held-out rows, and this "
            f"one holds {len(names)}; give a file to hold out (held_out=)"
        )
    order = torch.randperm(len(names), generator=generator(*seed)).tolist()
    others = {names[index] for index in order[: max(1, round(HELD_OUT_SHARE * len(names)))]}
    source = (
        f"{files[0].name} alone: {len(others)} of {len(names)} {groups}, drawn by seed {seed[0]}, "
        "are held out"
    )
    return (
        [row for row in rows if group(row) not in others],
        [row for row in rows if group(row) in others],
        source,
    )


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
