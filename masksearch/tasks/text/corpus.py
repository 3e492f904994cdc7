"""Plain text -> packed sequences of token ids, cached.

corpus = Corpus.load("wikitext-2", length=128)
corpus.train        # int32 [sequences, 128], every row `[CLS] ... [SEP]`, no padding
corpus.digest       # changes with the text, the tokenizer and the length
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from masksearch.errors import DataError
from masksearch.tasks.text.files import (
    HELD_OUT_SHARE,
    content_hash,
    marked_pieces,
    split_files,
    text_files,
)
from masksearch.tasks.text.hub import HubText, is_hub
from masksearch.tasks.text.packing import (
    Boundaries,
    Sequences,
    TokenStream,
    encode_stream,
    id_type,
)
from masksearch.tasks.text.token_cache import Cached, TokenSpool, alone, read_cache, write_cache
from masksearch.tasks.text.tokenizer import (
    encode,
    id_count,
    open_tokenizer,
    special_ids,
    train_tokenizer,
    word_piece,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = [
    "Corpus",
    "content_hash",
    "open_tokenizer",
    "short_hash",
    "small",
    "special_ids",
    "split_files",
    "text_files",
    "train_tokenizer",
    "word_piece",
]

FORMAT = "4"  # of the cache files
BYTES_OF_TOKEN = 8  # text to train a vocabulary on, for each token of a limit


@dataclass(frozen=True, eq=False)
class Corpus:
    """Token sequences of one length, with the tokenizer that made them.

    Pickles small and self-contained: the ids in the smallest integer type that holds them, the
    tokenizer as its JSON text; what comes back holds tensors.

    Args:
        train: int32 `[sequences, length]`, every row `[CLS] ... [SEP]`: a tensor, or
            `Sequences` over a mapped file, which are read like one.
        held_out: The same.
        tokenizer: A `tokenizers.Tokenizer`.
        special: Token ids by role: pad, unknown, cls, sep, mask.
        digest: Hash of the text, the tokenizer and the length.
        begins: Where documents and paragraphs begin in the text of `train` and `held_out`
            (all rows without `[CLS]` and `[SEP]`, one after the other); None = not known.
    """

    train: Tensor | Sequences
    held_out: Tensor | Sequences
    tokenizer: Tokenizer = field(repr=False)
    special: dict[str, int]
    digest: str
    begins: tuple[Boundaries, Boundaries] | None = field(default=None, repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        ids = small(self.train.numpy()), small(self.held_out.numpy())
        begins = self.begins and tuple(
            small(array) for part in self.begins for array in (part.documents, part.paragraphs)
        )
        text = self.tokenizer.to_str()
        return unpickled, (*ids, text, self.special, self.digest, begins)

    @property
    def length(self) -> int:
        """Positions of a sequence."""
        return self.train.shape[1]

    @cached_property
    def vocabulary(self) -> int:
        """Number of token ids: the largest one and one."""
        return id_count(self.tokenizer)

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, without special tokens."""
        return encode(self.tokenizer, texts)

    @classmethod
    def load(
        cls,
        path: Path | str,
        *,
        tokenizer: str | Path | None = None,
        vocabulary: int = 4096,
        length: int = 128,
        cache: Path | None = None,
        held_out: Path | str | None = None,
        tokens: int | None = None,
    ) -> Corpus:
        """Reads, tokenizes and packs plain text (UTF-8, with or without a byte-order mark).

        In a folder, a file called valid, validation or dev (.txt) is held out and one called
        test is left out. Where nothing is held out that way or by `held_out`, the last 5% of
        the tokens are.

        Args:
            path: A text file, a folder of `*.txt` files (read in the order of their names), or
                a dataset `hf:OWNER/NAME[@CONFIG][#COLUMN][?rows=N]` of the Hugging Face Hub
                (`masksearch.tasks.text.hub`).
            tokenizer: A folder, `vocab.txt` or `tokenizer.json` on disk, or a name on the
                Hugging Face Hub. None = train a lower-case WordPiece vocabulary on the
                training text.
            vocabulary: Size of the trained vocabulary (ignored with `tokenizer`).
            length: Positions of a sequence, with `[CLS]` and `[SEP]` (>= 3).
            cache: Folder of the cache; default `$MASKSEARCH_CACHE` or `~/.cache/masksearch`.
            held_out: What to hold out, spelled like `path`.
            tokens: Number of tokens to stop at, in the training and in the held-out text; None
                = all. A vocabulary is then trained on their first 8 bytes a token.

        Raises:
            DataError: If a path is missing, a file is not UTF-8, the text is too short, the
                tokenizer cannot be found or lacks a special token, or the Hub cannot be reached.
        """
        if length < 3:
            raise ValueError(f"length must be at least 3 ([CLS], a token, [SEP]), got {length}")
        if tokens is not None and tokens < 1:
            raise ValueError(f"tokens must be at least 1, got {tokens}")
        folder = cache or Path(os.environ.get("MASKSEARCH_CACHE") or "~/.cache/masksearch")
        folder = folder.expanduser()
        given = None if tokenizer is None else open_tokenizer(tokenizer)
        spelled = f"trained:{vocabulary}" if given is None else given.to_str()
        limit = [] if tokens is None else [f"tokens:{tokens}"]
        key = short_hash(FORMAT, *source_key(path, held_out), spelled, *limit)
        target = folder / f"corpus-{key}.arrow"
        stored = read_cache(target) if target.exists() else None
        if stored is None:
            with alone(target):
                stored = read_cache(target) if target.exists() else None
                stored = stored or tokenized(path, held_out, given, vocabulary, tokens, target)
        from tokenizers import Tokenizer

        made = given or Tokenizer.from_str(stored.tokenizer)
        special = special_ids(made)
        train, held = stored.streams["train"], stored.streams["held_out"]
        count, inner = len(train.ids), length - 2
        if not stored.content[1]:
            cut = max(round(HELD_OUT_SHARE * count), min(inner, count))
            train, held = train.part(0, count - cut), train.part(count - cut, count)
        if len(train.ids) < 2 * inner or len(held.ids) < inner:
            raise DataError(
                f"{path} holds {len(train.ids):,} tokens to train on and {len(held.ids):,} held "
                f"out; at least two training sequences and one held-out sequence of {length} "
                f"positions are needed: give more text or a smaller length"
            )
        whole = [stream.part(0, len(stream.ids) // inner * inner) for stream in (train, held)]
        content = [one or content_hash([]) for one in stored.content]
        return cls(
            train=Sequences.packed(train.ids, length, special),
            held_out=Sequences.packed(held.ids, length, special),
            tokenizer=made,
            special=special,
            digest=short_hash(*content, made.to_str(), str(length), *limit),
            begins=(whole[0].begins, whole[1].begins),
        )


def tokenized(
    path: Path | str,
    held_out: Path | str | None,
    given: Tokenizer | None,
    vocabulary: int,
    tokens: int | None,
    target: Path,
) -> Cached:
    """Reads and tokenizes the text, and writes the cache file `target`.

    Returns:
        The streams `train` and `held_out`, and the hashes of their text (empty = no such text).
    """
    with text_of(path, held_out, target.parent) as (train_files, held_files):
        made = given or train_tokenizer(
            train_files,
            vocabulary,
            whole=bool(held_files),
            limit=None if tokens is None else BYTES_OF_TOKEN * tokens,
        )
        streams = {
            name: encode_stream(made, marked_pieces(files), TokenSpool(target.parent), tokens)
            if files
            else TokenStream(
                np.empty(0, id_type(made)), Boundaries(0, *[np.empty(0, np.int64)] * 2)
            )
            for name, files in (("train", train_files), ("held_out", held_files))
        }
        content = [content_hash(files) if files else "" for files in (train_files, held_files)]
    write_cache(target, streams, made.to_str(), content)
    return Cached(streams, made.to_str(), content)


def source_key(path: Path | str, held_out: Path | str | None) -> list[str]:
    """What the cache of a text is named after: hashes of its files, or the dataset's name."""
    if not is_hub(path) and not is_hub(held_out or ""):
        return [content_hash(files) for files in split_files(Path(path), held_out)]
    parts = [] if held_out is None else ["held out"]
    for one in (path, held_out):
        if one is not None and is_hub(one):
            parts += HubText.parse(one).key()
        elif one is not None:
            parts.append(content_hash(split_files(Path(one), None)[0]))
    return parts


@contextmanager
def text_of(
    path: Path | str, held_out: Path | str | None, folder: Path
) -> Iterator[tuple[list[Path], list[Path]]]:
    """Files of training and held-out text; those of a dataset live as long as the context."""
    if not is_hub(path) and not is_hub(held_out or ""):
        yield split_files(Path(path), held_out)
        return
    place = folder if folder.is_dir() and os.access(folder, os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=place, prefix="text-") as name:
        scratch = Path(name)
        train: list[Path | None]
        held: list[Path | None]
        if is_hub(path):
            text = HubText.parse(path)
            train = [text.write(scratch / "train.txt", "train")]
            held = [text.write(scratch / "held.txt")] if held_out is None else []
        else:
            found = split_files(Path(path), None)
            train, held = [*found[0]], [*found[1]]
        if held_out is not None and is_hub(held_out):
            text = HubText.parse(held_out)
            other = scratch / "held.txt"
            held = [text.write(other) or text.write(other, "train")]
        elif held_out is not None:
            held = [*text_files(Path(held_out))]
        yield [file for file in train if file], [file for file in held if file]


def unpickled(
    train: NDArray[Any],
    held_out: NDArray[Any],
    text: str,
    special: dict[str, int],
    digest: str,
    begins: tuple[NDArray[Any], ...] | None = None,
) -> Corpus:
    """A corpus from what its pickle holds: small arrays of ids and the tokenizer's JSON."""
    from tokenizers import Tokenizer

    tensors = [torch.from_numpy(ids.astype(np.int32)) for ids in (train, held_out)]
    known = None
    if begins is not None:
        wide = [array.astype(np.int64) for array in begins]
        counts = [len(ids) * (ids.shape[1] - 2) for ids in (train, held_out)]
        known = Boundaries(counts[0], *wide[:2]), Boundaries(counts[1], *wide[2:])
    return Corpus(tensors[0], tensors[1], Tokenizer.from_str(text), special, digest, known)


def small(numbers: NDArray[Any]) -> NDArray[Any]:
    """Integers from 0 in the smallest type that holds them.

    >>> small(np.array([0, 4095])).dtype
    dtype('uint16')
    """
    return numbers.astype(np.min_scalar_type(int(numbers.max())))


def short_hash(*parts: str) -> str:
    """16 hexadecimal digits of SHA-256 over the parts, which cannot run into each other."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
