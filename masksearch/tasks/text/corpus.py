"""Plain text -> packed sequences of token ids, cached.

corpus = Corpus.load("wikitext-2", length=128)
corpus.train        # int32 [sequences, 128], every row `[CLS] ... [SEP]`, no padding
corpus.digest       # changes with the text, the tokenizer and the length
"""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from masksearch.contracts import Split
from masksearch.errors import DataError
from masksearch.files import cache_folder, content_hash, short_hash
from masksearch.tasks.splits import FEW, check_sequences, in_holdout, is_part
from masksearch.tasks.text.files import (
    HELD_OUT_SHARE,
    HubText,
    has_long_lines,
    is_hub,
    marked_pieces,
    split_files,
    text_files,
)
from masksearch.tasks.text.packing import (
    Boundaries,
    Sequences,
    TokenStream,
    bare_ids,
    encode_stream,
    id_type,
    read_stream,
)
from masksearch.tasks.text.tokenizer import (
    Vocabulary,
    open_tokenizer,
    special_ids,
    train_tokenizer,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FORMAT = "7"  # of the cached tokens
STREAMS = ("train", "held_out")
HASHED = 64  # ids of a document that decide its split
PieceReader = Callable[[list[Path]], Iterable[tuple[int, str]]]  # as `marked_pieces`


@dataclass(frozen=True, eq=False)
class Corpus(Vocabulary):
    """Token sequences of one length, with the tokenizer that made them.

    Pickles self-contained: with the ids, in the smallest integer type that holds them.

    Args:
        tokenizer: A `tokenizers.Tokenizer`.
        special: Token ids by role: pad, unknown, cls, sep, mask.
        length: Positions of a sequence.
        digest: Hash of the text, the tokenizer and the length.
        train: int32 `[sequences, length]`, every row `[CLS] ... [SEP]`: a tensor, or
            `Sequences` over a mapped file, which are read like one.
        held_out: The same.
        begins: Where documents and paragraphs begin in the text of `train` and `held_out`
            (all rows without `[CLS]` and `[SEP]`, one after the other); None = not known.
    """

    train: Tensor | Sequences
    held_out: Tensor | Sequences
    begins: tuple[Boundaries, Boundaries] | None = field(default=None, repr=False)

    @cached_property
    def held_out_splits(self) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Where stretches of the held-out text begin (token numbers, rising), and which of them
        are in the holdout.

        A stretch is a document, or a paragraph where there are fewer than 16 documents, or a
        sequence where there are fewer than 16 paragraphs. A hash of its first 64 ids decides, so
        that equal texts go together, and of a long text little is read.
        """
        ids = bare_ids(self.held_out)
        return deal_stretches(ids, self.begins and self.begins[1], self.length - 2)

    def held_out_rows(self, split: Split) -> Tensor:
        """Numbers of the held-out sequences of a split, int64, rising.

        A sequence belongs to the stretch of text in which it begins (`held_out_splits`); so no
        token is in both splits, and nothing is copied.

        Args:
            split: `"validation"` or `"holdout"`; any other takes all.

        Raises:
            DataError: If there is none.
        """
        rows = torch.arange(len(self.held_out))
        if not is_part(split):
            return rows
        starts, final = self.held_out_splits
        of = np.searchsorted(starts, rows.numpy() * (self.length - 2), "right") - 1
        rows = rows[torch.from_numpy(final[of] == (split == "holdout"))]
        check_sequences(len(rows), len(self.held_out), split, self.length)
        return rows

    @classmethod
    def load(
        cls,
        path: Path | str,
        *,
        tokenizer: str | Path | None = None,
        vocabulary: int = 4096,
        length: int = 128,
        cache: Path | str | None = None,
        held_out: Path | str | float | None = None,
        test: bool = False,
    ) -> Corpus:
        """Reads, tokenizes and packs plain text (UTF-8, with or without a byte-order mark).

        In a folder, a file called valid, validation or dev (.txt) is held out and one called
        test is left out. Where nothing is held out that way or by `held_out`, the last 5% of
        the tokens are.

        Args:
            path: A text file, a folder of `*.txt` files (read in the order of their names), or
                a dataset `hf:OWNER/NAME[@CONFIG][#COLUMN][?rows=N]` of the Hugging Face Hub
                (`masksearch.tasks.text.files`).
            tokenizer: A folder, `vocab.txt` or `tokenizer.json` on disk, or a name on the
                Hugging Face Hub. None = train a lower-case WordPiece vocabulary on the
                training text.
            vocabulary: Size of the trained vocabulary (ignored with `tokenizer`).
            length: Positions of a sequence, with `[CLS]` and `[SEP]` (>= 3).
            cache: Folder of the cache; default `$MASKSEARCH_CACHE` or `~/.cache/masksearch`.
            held_out: What to hold out, spelled like `path`; or in the place of the 5% another
                share.
            test: Whether the test text takes the place of the held-out one: a folder's test.txt,
                or the split "test" of a dataset.

        Raises:
            DataError: If a path is missing, a file is not UTF-8, the text is too short, the
                tokenizer cannot be found or lacks a special token, or the Hub cannot be reached.
        """
        if length < 3:
            raise ValueError(f"length must be at least 3 ([CLS], a token, [SEP]), got {length}")
        stored = tokenize_text(path, held_out, tokenizer, vocabulary, cache)
        made = stored.tokenizer
        special = special_ids(made, tokenizer)
        train, scored = stored.parts(length - 2)
        content = [one or content_hash([]) for one in stored.content]
        digest = short_hash(*content, made.to_str(), str(length))
        if test:
            tested = read_test_text(path, made, cache)
            scored, digest = tested.held_out, short_hash(digest, "test", tested.content[1])
        around = (special["cls"],), (special["sep"],)
        train_rows, held_rows = pack_parts(path, (train, scored), length, *around)
        return cls(
            train=train_rows[0],
            held_out=held_rows[0],
            tokenizer=made,
            special=special,
            length=length,
            digest=digest,
            begins=(train_rows[1], held_rows[1]),
        )


def pack_parts(
    path: Path | str,
    parts: tuple[TokenStream, TokenStream],
    length: int,
    before: tuple[int, ...],
    after: tuple[int, ...] = (),
) -> list[tuple[Sequences, Boundaries]]:
    """The sequences of a training and a held-out text; see `TokenStream.packed`.

    Raises:
        DataError: If either is shorter than a sequence.
    """
    inner = length - len(before) - len(after)
    train, scored = (len(part.ids) for part in parts)
    if min(train, scored) < inner:
        raise DataError(
            f"{path} holds {train:,} tokens to train on and {scored:,} held out; at least a "
            f"sequence of {length} positions of each is needed: give more text or a smaller length"
        )
    return [part.packed(length, before, after) for part in parts]


class StoredTokens(NamedTuple):
    """Tokenized text, as it lies in a folder of the cache."""

    train: TokenStream
    held_out: TokenStream
    tokenizer: Tokenizer
    content: list[str]  # hashes of the training and the held-out text; empty = no such text
    share: float = HELD_OUT_SHARE  # of the tokens, held out where no text is

    def parts(self, inner: int) -> tuple[TokenStream, TokenStream]:
        """The training part and the held-out part: the end of the text, where no text is, and at
        least the `inner` tokens of a sequence."""
        if self.content[1]:
            return self.train, self.held_out
        count = len(self.train.ids)
        cut = max(round(self.share * count), min(inner, count))
        return self.train.part(0, count - cut), self.train.part(count - cut, count)


def tokenize_text(
    path: Path | str,
    held_out: Path | str | float | None,
    tokenizer: str | Path | None,
    vocabulary: int,
    cache: Path | str | None,
    read: PieceReader = marked_pieces,
) -> StoredTokens:
    """The tokens of a text, from the cache where they are there.

    Args:
        path: As of `Corpus.load`, and the next ones.
        held_out: What to hold out.
        tokenizer: Its name; None = it is trained on the text.
        vocabulary: Size of a trained vocabulary.
        cache: Folder of the cache.
        read: Reads the pieces of files.

    Raises:
        DataError: As `Corpus.load`.
    """
    share, held_out = (held_out, None) if isinstance(held_out, float) else (None, held_out)
    unread = max(share or 0, HELD_OUT_SHARE)  # by a vocabulary that is trained
    opened = None if tokenizer is None else open_tokenizer(tokenizer)
    trained = f"trained:{vocabulary}" + f":{unread:g}" * (unread > HELD_OUT_SHARE)
    spelled = trained if opened is None else opened.to_str()
    key = short_hash(FORMAT, read.__name__, *_source_key(path, held_out), spelled)

    def write(folder: Path) -> None:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            files, held_files = _local_text(path, held_out, Path(scratch))
            made = opened or train_tokenizer(files, vocabulary, 0 if held_files else unread)
            write_tokens(folder, made, files, held_files, read)

    stored = _cached_tokens(cache_folder(cache) / f"corpus-{key}", write)
    if share is not None:
        stored = stored._replace(share=share, content=[*stored.content, f"{share:g}"])
    return stored if opened is None else stored._replace(tokenizer=opened)


def _cached_tokens(target: Path, write: Callable[[Path], None]) -> StoredTokens:
    """The tokens of the cache folder `target`, which are made where they are missing or damaged.

    One process at a time makes them, in a folder beside it that is then renamed, so that a killed
    process leaves no half of them.

    Args:
        target: The folder.
        write: Makes the tokens in a folder.

    Raises:
        DataError: If they cannot be written.
    """
    from filelock import FileLock

    partial = target.with_suffix(".partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_suffix(".lock")):
            if target.exists():
                try:
                    return read_tokens(target)
                except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
                    warnings.warn(f"{target} is damaged ({error}); it is made again", stacklevel=3)
            for old in (target, partial):  # damaged, or left by a killed process
                shutil.rmtree(old, ignore_errors=True)
            partial.mkdir()
            try:
                write(partial)
                partial.rename(target)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
            return read_tokens(target)
    except (OSError, NotImplementedError) as error:  # of a file system without locks
        raise DataError(
            f"the tokens cannot be kept in {target.parent}: {error}; set MASKSEARCH_CACHE to a "
            "folder on a local disk that can be written and has room"
        ) from error


def deal_stretches(
    ids: NDArray[Any], begins: Boundaries | None, inner: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Where stretches of a text begin, and which of them are in the holdout; see
    `Corpus.held_out_splits`.

    Args:
        ids: The text, `[tokens]`.
        begins: Where its documents and paragraphs begin; None = not known.
        inner: Tokens of a sequence.
    """
    starts = np.arange(0, len(ids), inner)
    for finer in (begins.paragraphs, begins.documents) if begins is not None else ():
        starts = finer if len(finer) >= FEW else starts
    ends = np.append(starts[1:], len(ids))
    firsts = (ids[a : min(b, a + HASHED)] for a, b in zip(starts, ends, strict=True))
    final = [in_holdout(first.astype("<i4").tobytes()) for first in firsts]
    return starts, np.array(final, bool)


def read_test_text(
    path: Path | str,
    tokenizer: Tokenizer,
    cache: Path | str | None,
    read: PieceReader = marked_pieces,
) -> StoredTokens:
    """The tokens of a test text, as held-out ones.

    Args:
        path: A folder with a test.txt, or a dataset `hf:..` with a split "test".
        tokenizer: Makes the ids.
        cache: As in `Corpus.load`.
        read: Reads the pieces of files.

    Raises:
        DataError: If there is no test text.
    """
    hub = HubText.parse(path) if is_hub(path) else None
    files = [] if hub else [f for f in text_files(Path(path)) if f.stem.lower() == "test"]
    if hub is None and not (files and Path(path).is_dir()):
        raise DataError(
            f"{path} has no test text; split='test' needs a folder with a test.txt, or a "
            "dataset hf:.. with a split test. split='holdout' judges by held-out text that no "
            "search has seen"
        )

    def write(folder: Path) -> None:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            file = Path(scratch) / "test.txt"
            texts = files if hub is None else [hub.write(file, "test") or file]
            write_tokens(folder, tokenizer, [], texts, read)

    named = hub.key() if hub else [content_hash(files)]
    key = short_hash(FORMAT, "test", read.__name__, *named, tokenizer.to_str())
    return _cached_tokens(cache_folder(cache) / f"corpus-{key}", write)


def write_tokens(
    folder: Path, tokenizer: Tokenizer, train: list[Path], held_out: list[Path], read: PieceReader
) -> None:
    """Tokenizes the text of files into files of a folder; see `tokenize_text`."""
    counts, content = [], []
    for name, files in zip(STREAMS, (train, held_out), strict=True):
        counts.append(encode_stream(tokenizer, read(files), folder, name))
        content.append(content_hash(files) + " cut" * has_long_lines(files) if files else "")
    tokenizer.save(str(folder / "tokenizer.json"))
    about = json.dumps({"tokens": counts, "content": content})
    (folder / "about.json").write_text(about, encoding="utf-8")


def read_tokens(folder: Path) -> StoredTokens:
    """Reads the tokens that `write_tokens` has written.

    Raises:
        OSError: If a file is missing.
        ValueError: If one is damaged.
    """
    made = open_tokenizer(folder / "tokenizer.json")
    about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    train, held_out = (
        read_stream(folder, name, count, id_type(made))
        for name, count in zip(STREAMS, about["tokens"], strict=True)
    )
    return StoredTokens(train, held_out, made, about["content"])


def _source_key(path: Path | str, held_out: Path | str | None) -> list[str]:
    """The parts of the name of a text's cache: hashes of its files, or the dataset's name."""
    if not is_hub(path) and not is_hub(held_out or ""):
        return [content_hash(files) for files in split_files(Path(path), held_out)]
    parts = [] if held_out is None else ["held out"]
    for one in (path, held_out):
        if one is not None and is_hub(one):
            parts += HubText.parse(one).key()
        elif one is not None:
            parts.append(content_hash(split_files(Path(one), None)[0]))
    return parts


def _local_text(
    path: Path | str, held_out: Path | str | None, folder: Path
) -> tuple[list[Path], list[Path]]:
    """Files of training and held-out text; what comes from the Hub is written to `folder`."""
    if is_hub(path):
        text = HubText.parse(path)
        (folder / "text").mkdir()
        text.write(folder / "text" / "train.txt", "train")
        if held_out is None:
            text.write(folder / "text" / "valid.txt")
        path = folder / "text"
    if held_out is not None and is_hub(held_out):
        text, held_file = HubText.parse(held_out), folder / "held.txt"
        held_out = text.write(held_file) or text.write(held_file, "train")
    return split_files(Path(path), held_out)
