"""Streams of token ids, and the packed sequences that are read from them.

stream = encode_stream(tokenizer, marked_pieces(files), spool)
rows = Sequences.packed(stream.ids, length=128, cls=2, sep=3)
rows[torch.tensor([0, 7])]      # int32 [2, 128], `[CLS] ... [SEP]`
rows[0::2]                      # every second one, still not copied
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from masksearch.tasks.text.files import DOCUMENT, PARAGRAPH
from masksearch.tasks.text.tokenizer import encode, id_count

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from masksearch.tasks.text.token_cache import TokenSpool

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
            first = np.zeros(1 if stop > start else 0, np.int64)
            kept.append(np.union1d(first, inside))
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


def id_type(tokenizer: Tokenizer) -> np.dtype[Any]:
    """The smallest of uint8, uint16 and int32 that holds the tokenizer's ids."""
    kind = np.min_scalar_type(max(id_count(tokenizer) - 1, 0))
    return kind if kind.itemsize <= 2 else np.dtype(np.int32)


def encode_stream(
    tokenizer: Tokenizer,
    texts: Iterable[tuple[int, str]],
    spool: TokenSpool,
    limit: int | None = None,
) -> TokenStream:
    """All token ids of the texts, encoded in chunks by the tokenizer's own threads.

    Args:
        tokenizer: Encodes without special tokens.
        texts: Pieces of text, each with what begins there (`marked_pieces`).
        spool: Takes the ids, so that memory holds one chunk.
        limit: Number of tokens to stop at; None = all.
    """
    begins: dict[int, list[NDArray[np.int64]]] = {DOCUMENT: [], PARAGRAPH: []}
    count = 0
    for marks, chunk in chunks(texts):
        ids = encode(tokenizer, chunk)
        ends = count + np.cumsum([len(one) for one in ids], dtype=np.int64)
        starts = np.concatenate([[count], ends[:-1]])
        for least, found in begins.items():
            found.append(starts[np.array(marks) >= least])
        count = int(ends[-1])
        spool.append(np.fromiter(chain.from_iterable(ids), dtype=id_type(tokenizer)))
        if limit is not None and count >= limit:
            break
    stream = spool.finished(id_type(tokenizer))
    stream = stream if limit is None else stream[:limit]
    known = [
        np.unique(np.concatenate([np.zeros(1, np.int64), *begins[least]]))
        for least in (DOCUMENT, PARAGRAPH)
    ]
    return TokenStream(
        stream, Boundaries(len(stream), *(found[found < len(stream)] for found in known))
    )


def chunks(texts: Iterable[tuple[int, str]]) -> Iterator[tuple[list[int], list[str]]]:
    """The marks and pieces of about `CHUNK` characters at a time."""
    marks: list[int] = []
    held: list[str] = []
    size = 0
    for mark, piece in texts:
        marks.append(mark)
        held.append(piece)
        size += len(piece)
        if size >= CHUNK:
            yield marks, held
            marks, held, size = [], [], 0
    if held:
        yield marks, held


class Sequences:
    """Rows `[CLS] ... [SEP]` over a stream of ids that stays where it is (a mapped file).

    It is read like an int32 tensor `[sequences, length]`: `len`, `shape`, rows by number, slice,
    list or tensor, and torch functions, which take it as a whole. A slice of rows is another
    view; everything else is a tensor of its own.

    Args:
        body: Ids `[sequences, length - 2]`.
        cls: Id that begins a row.
        sep: Id that ends a row.
    """

    dtype = torch.int32

    def __init__(self, body: NDArray[Any], cls: int, sep: int) -> None:
        self.body, self.cls, self.sep = body, cls, sep

    @classmethod
    def packed(cls, ids: NDArray[Any], length: int, special: dict[str, int]) -> Self:
        """Sequences without padding; the incomplete last one is dropped.

        Args:
            ids: The stream.
            length: Positions of a sequence (>= 3).
            special: Token ids by role, with `cls` and `sep`.
        """
        inner = length - 2
        body = ids[: len(ids) // inner * inner].reshape(-1, inner)
        return cls(body, special["cls"], special["sep"])

    @property
    def shape(self) -> torch.Size:
        """(sequences, length)."""
        return torch.Size((len(self.body), self.body.shape[1] + 2))

    def __len__(self) -> int:
        return len(self.body)

    def numel(self) -> int:
        """Ids in all rows."""
        return self.shape.numel()

    def rows(self, index: Any) -> NDArray[np.int32]:
        """Some rows, copied: int32 `[rows, length]`; `index` as numpy takes it."""
        body = self.body[index]
        made = np.empty((len(body), body.shape[1] + 2), np.int32)
        made[:, 0], made[:, 1:-1], made[:, -1] = self.cls, body, self.sep
        return made

    def numpy(self) -> NDArray[np.int32]:
        """All rows, copied: int32 `[sequences, length]`."""
        return self.rows(slice(None))

    def tensor(self) -> Tensor:
        """All rows, copied: int32 `[sequences, length]`."""
        return torch.from_numpy(self.numpy())

    def tolist(self) -> list[list[int]]:
        """All rows as lists."""
        return self.numpy().tolist()  # type: ignore[no-any-return]

    def __iter__(self) -> Iterator[Tensor]:
        return (self[row] for row in range(len(self)))

    def __getitem__(self, index: Any) -> Any:
        """Rows: a slice gives another view, a number int32 `[length]`, a list or a tensor of
        numbers int32 `[rows, length]`; a tuple goes on to the columns."""
        if isinstance(index, slice):
            return Sequences(self.body[index], self.cls, self.sep)
        if isinstance(index, tuple):
            chosen = self[index[0]]
            chosen = chosen.tensor() if isinstance(chosen, Sequences) else chosen
            rest = index[1:] if isinstance(index[0], int) else (slice(None), *index[1:])
            return chosen[rest]
        if isinstance(index, int):
            if not -len(self) <= index < len(self):
                raise IndexError(f"row {index} of {len(self)} sequences")
            return torch.from_numpy(self.rows([index])[0])
        if isinstance(index, Tensor):
            index = index.cpu().numpy()
        return torch.from_numpy(self.rows(index))

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        def whole(value: Any) -> Any:
            if isinstance(value, list | tuple):
                return type(value)(map(whole, value))
            return value.tensor() if isinstance(value, cls) else value

        return function(*whole(args), **{k: whole(v) for k, v in (kwargs or {}).items()})

    def __repr__(self) -> str:
        return f"Sequences({self.shape[0]:,} x {self.shape[1]}, {self.body.dtype} on disk)"
