"""The files of a task: a training part and a held-out one, or one file that is split.

files = two_files(Path("squad"), None, {"train": [..], "dev": [..]}, "SQuAD")
train, held_out, source = two_parts(files, read_squad, attrgetter("article"), "articles", (0, 41))
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from masksearch.contracts import Split, generator
from masksearch.errors import DataError
from masksearch.files import State, content_hash, state_of

log = logging.getLogger(f"masksearch.{__name__}")  # so that the commands show it

HELD_OUT_SHARE = 0.2  # of the groups, where one file serves both ends
Row = TypeVar("Row")


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

    @property
    def states(self) -> tuple[State, ...]:
        """The state of the files, for `read_once`."""
        return tuple(state_of(Path(each)) for each in (self.path, self.held_out) if each)

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


def read_task(load: Callable[..., Any], files: TaskFiles) -> Any:
    """Reads a task's files with `load`; the log says where the training and the held-out rows
    come from."""
    data = load(files)
    log.info("%s: %s", files.path, data.source)
    return data
