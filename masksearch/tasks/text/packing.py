"""Streams of token ids in mapped files, and the packed sequences that are read from them.

count = encode_stream(tokenizer, marked_pieces(files), folder, "train")
stream = read_stream(folder, "train", count, id_type(tokenizer))
rows, begins = stream.packed(128, before=(2,), after=(3,))
rows[torch.tensor([0, 7])]      # int32 [2, 128], `[CLS] ... [SEP]`
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from masksearch.tasks.text.files import DOCUMENT, PARAGRAPH
from masksearch.tasks.text.tokenizer import encode, id_count

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CHUNK = 1_000_000  # characters that are encoded at once, by all threads of the tokenizer


@dataclass(frozen=True, eq=False)
class Boundaries:
    """Where documents and paragraphs of a stream begin.

    Args:
        tokens: Length of the stream.
        documents: int64, rising; the first is 0. Begins of files and of WikiText articles.
        paragraphs: The same with what follows blank lines; holds all of `documents`.
    """

    tokens: int
    documents: NDArray[np.int64]
    paragraphs: NDArray[np.int64]

    def part(self, start: int, stop: int) -> Boundaries:
        """The boundaries of the tokens from `start` up to `stop`, counted from `start`."""
        kept = []
        for begins in (self.documents, self.paragraphs):
            inside = begins[np.searchsorted(begins, start) : np.searchsorted(begins, stop)] - start
            kept.append(np.union1d(np.zeros(1 if stop > start else 0, np.int64), inside))
        return Boundaries(stop - start, *kept)


@dataclass(frozen=True, eq=False)
class TokenStream:
    """All token ids of a text, one after the other.

    Args:
        ids: `[tokens]`, in the smallest integer type that holds the vocabulary (`id_type`).
        begins: Where documents and paragraphs begin.
    """

    ids: NDArray[Any]
    begins: Boundaries

    def part(self, start: int, stop: int) -> TokenStream:
        """The tokens from `start` up to `stop`; nothing is copied."""
        return TokenStream(self.ids[start:stop], self.begins.part(start, stop))

    def packed(
        self, length: int, before: tuple[int, ...], after: tuple[int, ...] = ()
    ) -> tuple[Sequences, Boundaries]:
        """Sequences without padding, and the boundaries of the text in them; the incomplete last
        one is dropped.

        Args:
            length: Positions of a sequence, with what stands around it.
            before: Ids that begin it.
            after: Ids that end it.
        """
        inner = length - len(before) - len(after)
        whole = self.part(0, len(self.ids) // inner * inner)
        return Sequences(whole.ids.reshape(-1, inner), before, after), whole.begins


def shrink(numbers: NDArray[Any]) -> NDArray[Any]:
    """Integers from 0 in the smallest type that holds them.

    >>> shrink(np.array([0, 4095])).dtype
    dtype('uint16')
    """
    return numbers.astype(np.min_scalar_type(int(numbers.max(initial=0))))


def id_type(tokenizer: Tokenizer) -> np.dtype[Any]:
    """The smallest of uint8, uint16 and int32 that holds the tokenizer's ids."""
    kind = np.min_scalar_type(max(id_count(tokenizer) - 1, 0))
    return kind if kind.itemsize <= 2 else np.dtype(np.int32)


def encode_stream(
    tokenizer: Tokenizer, texts: Iterable[tuple[int, str]], folder: Path, name: str
) -> int:
    """Writes all token ids of the texts into a file; memory holds one chunk of them.

    Args:
        tokenizer: Encodes without special tokens, by its own threads.
        texts: Pieces of text, each with what begins there (`marked_pieces`).
        folder: Where `NAME.ids` (bare numbers) and the begins of documents and paragraphs
            (`NAME.documents.npy`, `NAME.paragraphs.npy`) are written.
        name: Of the stream.

    Returns:
        Number of tokens.
    """
    begins: dict[int, list[NDArray[np.int64]]] = {DOCUMENT: [], PARAGRAPH: []}
    count = 0
    with (folder / f"{name}.ids").open("wb") as file:
        for marks, chunk in chunks(texts):
            ids = encode(tokenizer, chunk)
            ends = count + np.cumsum([len(one) for one in ids], dtype=np.int64)
            starts = np.concatenate([[count], ends[:-1]])
            for least, marked in begins.items():
                marked.append(starts[np.array(marks) >= least])
            flat = np.fromiter(chain.from_iterable(ids), dtype=id_type(tokenizer))
            file.write(flat.tobytes())
            count += len(flat)
    for mark, kind in ((DOCUMENT, "documents"), (PARAGRAPH, "paragraphs")):
        starts_known = np.unique(np.concatenate([np.zeros(1, np.int64), *begins[mark]]))
        np.save(folder / f"{name}.{kind}.npy", starts_known[starts_known < count])
    return count


def chunks(texts: Iterable[tuple[int, str]]) -> Iterator[tuple[list[int], list[str]]]:
    """The marks and pieces of about `CHUNK` characters at a time."""
    marks: list[int] = []
    pieces: list[str] = []
    size = 0
    for mark, piece in texts:
        marks.append(mark)
        pieces.append(piece)
        size += len(piece)
        if size >= CHUNK:
            yield marks, pieces
            marks, pieces, size = [], [], 0
    if pieces:
        yield marks, pieces


def read_stream(folder: Path, name: str, count: int, kind: np.dtype[Any]) -> TokenStream:
    """Reads the output of `encode_stream`; the ids are mapped, so that processes on one machine
    share them, and a text larger than the memory can be trained on.

    Raises:
        OSError: If a file is missing.
        ValueError: If one is damaged.
    """
    path = folder / f"{name}.ids"
    if path.stat().st_size != count * kind.itemsize:
        raise ValueError(f"{path.name} does not hold {count} tokens")
    ids = np.asarray(np.memmap(path, kind, "r")) if count else np.empty(0, kind)
    begins = [np.load(folder / f"{name}.{part}.npy") for part in ("documents", "paragraphs")]
    return TokenStream(ids, Boundaries(count, *begins))


@dataclass(frozen=True, eq=False)
class Sequences:
    """Rows over a stream of ids that stays where it is (a mapped file), with the same special
    tokens around each: `[CLS] ... [SEP]`.

    Args:
        body: Ids `[sequences, length - len(before) - len(after)]`.
        before: Ids that begin a row.
        after: Ids that end a row.
    """

    body: NDArray[Any]
    before: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def shape(self) -> torch.Size:
        """(sequences, length)."""
        around = len(self.before) + len(self.after)
        return torch.Size((len(self.body), self.body.shape[1] + around))

    def __len__(self) -> int:
        return len(self.body)

    def __getitem__(self, index: Tensor) -> Tensor:
        """Copies the rows of those numbers: int32 `[numbers, length]`."""
        body = self.body[index.numpy()]
        first, last = (
            np.full((len(body), len(ids)), ids, np.int32) for ids in (self.before, self.after)
        )
        return torch.from_numpy(np.concatenate([first, body, last], 1, dtype=np.int32))


def bare_ids(rows: Tensor | Sequences) -> NDArray[Any]:
    """The ids of all rows without `[CLS]` and `[SEP]`, one row after the other."""
    body = rows.body if isinstance(rows, Sequences) else rows[:, 1:-1].numpy()
    return body.reshape(-1)


@dataclass(frozen=True, eq=False)
class IdLists:
    """Lists of token ids of different lengths, in two arrays; one is made where it is read.

    Args:
        flat: All ids, one list after the other.
        ends: Where each list ends.
    """

    flat: NDArray[Any]
    ends: NDArray[Any]

    @classmethod
    def of(cls, lists: Sequence[Sequence[int]]) -> IdLists:
        """Those lists, in the smallest types that hold their numbers."""
        flat = np.fromiter(chain.from_iterable(lists), np.int64)
        return cls(shrink(flat), shrink(np.cumsum([len(one) for one in lists], dtype=np.int64)))

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of ids of each list."""
        sizes: NDArray[np.int64] = np.diff(self.ends, prepend=0).astype(np.int64)
        return sizes

    def span(self, index: int) -> slice:
        """Where a list stands in `flat`."""
        return slice(int(self.ends[index - 1]) if index else 0, int(self.ends[index]))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> list[int]:
        ids: list[int] = self.flat[self.span(range(len(self))[index])].tolist()
        return ids
