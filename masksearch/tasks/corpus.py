"""Plain text on disk -> packed sequences of token ids, cached.

corpus = Corpus.load("wikitext-2", length=128)
corpus.train        # int32 [sequences, 128], every row `[CLS] ... [SEP]`, no padding
corpus.digest       # changes with the text, the tokenizer and the length
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from masksearch.errors import DataError
from masksearch.tasks.token_cache import read_cache, write_cache

if TYPE_CHECKING:
    from tokenizers import Tokenizer

HELD_OUT_STEMS = ("valid", "validation", "dev")
HELD_OUT_SHARE = 0.05  # of the tokens, where no file is held out
SPECIALS = {  # role -> spellings, the first one is used by trained vocabularies
    "pad": ("[PAD]", "<pad>"),
    "unknown": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "mask": ("[MASK]", "<mask>"),
}
LINES = 16_384  # pieces of text encoded at once
WORDS = 1_000  # a longer line is cut into pieces of that many words
FORMAT = "1"  # of the cache files


@dataclass(frozen=True, eq=False)
class Corpus:
    """Token sequences of one length, with the tokenizer that made them.

    Pickles small: the ids in the smallest integer type that holds them, the tokenizer as its
    JSON text.

    Args:
        train: int32 `[sequences, length]`, every row `[CLS] ... [SEP]`.
        held_out: int32 `[sequences, length]`.
        tokenizer: A `tokenizers.Tokenizer`.
        special: Token ids by role: pad, unknown, cls, sep, mask.
        digest: Hash of the text, the tokenizer and the length.
    """

    train: Tensor
    held_out: Tensor
    tokenizer: Tokenizer = field(repr=False)
    special: dict[str, int]
    digest: str

    def __reduce__(self) -> tuple[Any, ...]:
        ids = small(self.train.numpy()), small(self.held_out.numpy())
        return unpickled, (*ids, self.tokenizer.to_str(), self.special, self.digest)

    @property
    def length(self) -> int:
        """Positions of a sequence."""
        return self.train.shape[1]

    @property
    def vocabulary(self) -> int:
        """Number of token ids."""
        return int(self.tokenizer.get_vocab_size())

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, without special tokens."""
        encoded = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [one.ids for one in encoded]

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
    ) -> Corpus:
        """Reads, tokenizes and packs plain text (UTF-8, with or without a byte-order mark).

        In a folder, a file called valid, validation or dev (.txt) is held out and one called
        test is left out. Where nothing is held out that way or by `held_out`, the last 5% of
        the tokens are.

        Args:
            path: A text file, or a folder of `*.txt` files (read in the order of their names).
            tokenizer: A folder, `vocab.txt` or `tokenizer.json` on disk, or a name on the
                Hugging Face Hub. None = train a lower-case WordPiece vocabulary on the
                training text.
            vocabulary: Size of the trained vocabulary (ignored with `tokenizer`).
            length: Positions of a sequence, with `[CLS]` and `[SEP]` (>= 3).
            cache: Folder of the cache; default `$MASKSEARCH_CACHE` or `~/.cache/masksearch`.
            held_out: A text file or folder to hold out.

        Raises:
            DataError: If a path is missing, a file is not UTF-8, the text is too short, or the
                tokenizer cannot be found or lacks a special token.
        """
        if length < 3:
            raise ValueError(f"length must be at least 3 ([CLS], a token, [SEP]), got {length}")
        train_files, held_files = split_files(Path(path), held_out)
        folder = cache or Path(os.environ.get("MASKSEARCH_CACHE") or "~/.cache/masksearch")
        content = [content_hash(train_files), content_hash(held_files)]
        given = None if tokenizer is None else open_tokenizer(tokenizer)
        spelled = f"trained:{vocabulary}" if given is None else given.to_str()
        target = (
            folder.expanduser() / f"corpus-{short_hash(FORMAT, *content, spelled)}.safetensors"
        )
        stored = read_cache(target) if target.exists() else None
        if stored is None:
            made = given or train_tokenizer(train_files, vocabulary, whole=bool(held_files))
            streams = {
                "train": encode_stream(made, pieces(train_files)),
                "held_out": encode_stream(made, pieces(held_files)),
            }
            write_cache(target, streams, made.to_str())
        else:
            from tokenizers import Tokenizer

            streams, text = stored
            made = Tokenizer.from_str(text)
        train, held = streams["train"], streams["held_out"]
        if not held_files:
            cut = max(round(HELD_OUT_SHARE * len(train)), min(length - 2, len(train)))
            train, held = train[: len(train) - cut], train[len(train) - cut :]
        if len(train) < 2 * (length - 2) or len(held) < length - 2:
            raise DataError(
                f"{path} holds {len(train):,} tokens to train on and {len(held):,} held out; "
                f"at least two training sequences and one held-out sequence of {length} "
                f"positions are needed: give more text or a smaller length"
            )
        special = special_ids(made)
        return cls(
            train=pack(train, length, special),
            held_out=pack(held, length, special),
            tokenizer=made,
            special=special,
            digest=short_hash(*content, made.to_str(), str(length)),
        )


def unpickled(
    train: NDArray[Any], held_out: NDArray[Any], text: str, special: dict[str, int], digest: str
) -> Corpus:
    """A corpus from what its pickle holds: small arrays of ids and the tokenizer's JSON."""
    from tokenizers import Tokenizer

    tensors = [torch.from_numpy(ids.astype(np.int32)) for ids in (train, held_out)]
    return Corpus(tensors[0], tensors[1], Tokenizer.from_str(text), special, digest)


def small(numbers: NDArray[Any]) -> NDArray[Any]:
    """Integers from 0 in the smallest type that holds them.

    >>> small(np.array([0, 4095])).dtype
    dtype('uint16')
    """
    return numbers.astype(np.min_scalar_type(int(numbers.max())))


def short_hash(*parts: str) -> str:
    """16 hexadecimal digits of SHA-256 over the parts, which cannot run into each other."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def text_files(path: Path) -> list[Path]:
    """The file itself, or the *.txt files of a folder by name."""
    if path.is_dir():
        files = sorted(file for file in path.glob("*.txt") if file.is_file())
        if not files:
            raise DataError(f"{path} holds no *.txt file; give a text file or a folder of them")
        return files
    if not path.is_file():
        raise DataError(f"no such text file or folder: {path}")
    return [path]


def split_files(path: Path, held_out: Path | str | None) -> tuple[list[Path], list[Path]]:
    """Training files and held-out files.

    Files called test (and, beside an explicit `held_out`, valid) belong to neither.
    """
    files = text_files(path)
    held = [file for file in files if file.stem.lower() in HELD_OUT_STEMS]
    if not path.is_dir():
        held = []
    left_out = {*held, *(file for file in files if path.is_dir() and file.stem.lower() == "test")}
    if held_out is not None:
        held = text_files(Path(held_out))
    train = [file for file in files if file not in left_out and file not in held]
    if not train:
        raise DataError(f"{path} holds no training text beside its held-out and test files")
    return train, held


def content_hash(files: list[Path]) -> str:
    """Hash of the bytes of the files, in order."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()


def pieces(files: list[Path], stop: int | None = None) -> Iterator[str]:
    """Lines that are not blank, long ones cut at words, of the first `stop` bytes."""
    seen = 0
    for file in files:
        with file.open("rb") as handle:
            for number, raw in enumerate(handle, start=1):
                try:
                    line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise DataError(
                        f"{file}, line {number}: byte 0x{raw[error.start]:02x} is not UTF-8; "
                        "convert the file to UTF-8 (iconv -t utf-8)"
                    ) from error
                if len(line) <= 8 * WORDS:
                    if stop is not None and seen >= stop:
                        return
                    if not line.isspace():
                        yield line
                    seen += len(raw)
                    continue
                words = line.split()
                for start in range(0, len(words), WORDS):
                    if stop is not None and seen >= stop:
                        return
                    piece = " ".join(words[start : start + WORDS])
                    yield piece
                    seen += len(piece.encode())


def encode_stream(tokenizer: Tokenizer, texts: Iterable[str]) -> Tensor:
    """All token ids of the texts, one after the other: int32 `[tokens]`."""
    texts = iter(texts)
    parts = [torch.empty(0, dtype=torch.int32)]
    while chunk := list(islice(texts, LINES)):
        encoded = tokenizer.encode_batch_fast(chunk, add_special_tokens=False)
        ids = [token for one in encoded for token in one.ids]
        parts.append(torch.tensor(ids, dtype=torch.int32))
    return torch.cat(parts)


def pack(stream: Tensor, length: int, special: dict[str, int]) -> Tensor:
    """Sequences `[CLS] ... [SEP]` without padding; the incomplete last one is dropped."""
    body = stream[: len(stream) // (length - 2) * (length - 2)].view(-1, length - 2)
    edge = body.new_ones((len(body), 1))
    return torch.cat([edge * special["cls"], body, edge * special["sep"]], 1)


def word_piece(vocabulary: dict[str, int]) -> Tokenizer:
    """BERT's WordPiece tokenizer over that vocabulary; lower case unless it holds capitals."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    names = [spellings[0] for spellings in SPECIALS.values()]
    cased = any(token != token.lower() for token in vocabulary if token[:1] != "[")
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=not cased, strip_accents=not cased)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.add_special_tokens([name for name in names if name in vocabulary])
    return made


def train_tokenizer(files: list[Path], vocabulary: int, *, whole: bool) -> Tokenizer:
    """A lower-case WordPiece vocabulary, the same on every machine.

    The trainer numbers letters in the order of a hash table, and breaks ties by number. So it
    runs twice: once for the alphabet, then with the alphabet in a fixed order.

    Args:
        files: Training text.
        vocabulary: Largest number of token ids, the five special ones among them.
        whole: Whether all of the text is trained on, or only what the held-out share leaves.
    """
    from tokenizers import Tokenizer, models, trainers

    if vocabulary < 32:
        raise ValueError(f"a vocabulary needs at least 32 token ids, got {vocabulary}")
    stop = None
    if not whole:
        stop = round((1 - HELD_OUT_SHARE) * sum(file.stat().st_size for file in files))
    first = [spellings[0] for spellings in SPECIALS.values()]
    alphabet: list[str] = []
    for size in (len(first), vocabulary):
        made = word_piece({name: number for number, name in enumerate(first)})
        plain = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        plain.normalizer, plain.pre_tokenizer = made.normalizer, made.pre_tokenizer
        trainer = trainers.WordPieceTrainer(
            vocab_size=size, special_tokens=first + alphabet, show_progress=False
        )
        plain.train_from_iterator(pieces(files, stop), trainer)
        alphabet = sorted(set(plain.get_vocab()) - set(first)) if not alphabet else alphabet
    return word_piece(plain.get_vocab())


def open_tokenizer(name: str | Path) -> Tokenizer:
    """A tokenizer from a folder, a file, or the Hugging Face Hub (no code of its own is run).

    Raises:
        DataError: If there is none, or it cannot be read.
    """
    from tokenizers import Tokenizer

    path = Path(name).expanduser()
    if path.is_dir():
        known = [path / "tokenizer.json", path / "vocab.txt"]
        path = next((file for file in known if file.is_file()), path)
    if path.is_file() and path.suffix == ".json":
        text = path.read_text(encoding="utf-8")
        try:
            made = Tokenizer.from_str(text)
        except Exception as error:  # the library raises plain Exception
            raise DataError(f"{path} is not a tokenizer.json file: {error}") from error
        made.no_padding()
        made.no_truncation()
        return made
    if path.is_file():
        tokens = path.read_text(encoding="utf-8-sig").splitlines()
        if "[UNK]" not in tokens:
            raise DataError(
                f"{path} is not a WordPiece list (one token a line) with [UNK] in it; "
                "give a vocab.txt, a tokenizer.json or a folder that holds one"
            )
        return word_piece({token: number for number, token in enumerate(tokens)})
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(str(name), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise DataError(
            f"no tokenizer {str(name)!r}: neither a vocab.txt, a tokenizer.json or a folder on "
            "disk nor a name that the Hugging Face Hub answered for; without a network, give a "
            "local one with --tokenizer PATH (tokenizer=PATH in Python), or none to train one"
        ) from error
    fast = getattr(loaded, "backend_tokenizer", None)
    if fast is None:
        raise DataError(f"tokenizer {str(name)!r} has no fast version (tokenizer.json)")
    made = Tokenizer.from_str(fast.to_str())
    made.no_padding()
    made.no_truncation()
    return made


def special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Ids of the five special tokens by role.

    Raises:
        DataError: If the tokenizer lacks one; names the spellings that were tried.
    """
    found = {}
    for role, spellings in SPECIALS.items():
        ids = [tokenizer.token_to_id(name) for name in spellings]
        known = [number for number in ids if number is not None]
        if not known:
            raise DataError(
                f"the tokenizer has no {role} token ({' or '.join(spellings)}); "
                "masked-language-model training needs one: use a BERT-like tokenizer"
            )
        found[role] = int(known[0])
    return found
