"""Tokenizers: trained on the text, read from disk, or from the Hugging Face Hub.

made = train_tokenizer([Path("train.txt")], 4096)
made = open_tokenizer("bert-vocab")     # a folder with vocab.txt or tokenizer.json
special_ids(made)                       # {"pad": 0, "unknown": 1, "cls": 2, "sep": 3, "mask": 4}
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from masksearch.errors import DataError, warn
from masksearch.files import short_hash
from masksearch.models.special_tokens import SPECIALS, read_special_ids
from masksearch.tasks.text.files import decode_utf8, hub_answers, marked_pieces
from masksearch.tasks.text.layout import RowLayout

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SENTENCE_ENDS = frozenset(".!?…。！？")  # noqa: RUF001  (full-width marks end sentences too)


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


def train_tokenizer(files: list[Path], vocabulary: int, held_out: float = 0) -> Tokenizer:
    """A lower-case WordPiece vocabulary, the same on every machine.

    The trainer numbers letters in the order of a hash table, and breaks ties by number. So it
    runs twice: once for the alphabet, then with the alphabet in a fixed order.

    Args:
        files: Training text.
        vocabulary: Largest number of token ids, the five special ones among them.
        held_out: Share of the text at its end that is not read, in [0, 1).
    """
    from tokenizers import Tokenizer, models, trainers

    if vocabulary < 32:
        raise ValueError(f"a vocabulary needs at least 32 token ids, got {vocabulary}")
    written = sum(file.stat().st_size for file in files)
    stop = round((1 - held_out) * written) if held_out else None
    first = [spellings[0] for spellings in SPECIALS.values()]
    alphabet: list[str] = []
    for size in (len(first), vocabulary):
        made = word_piece({name: number for number, name in enumerate(first)})
        plain = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        plain.normalizer, plain.pre_tokenizer = made.normalizer, made.pre_tokenizer
        trainer = trainers.WordPieceTrainer(
            vocab_size=size, special_tokens=first + alphabet, show_progress=False
        )
        pieces = (piece for _, piece in marked_pieces(files, stop))
        plain.train_from_iterator(pieces, trainer)
        alphabet = sorted(set(plain.get_vocab()) - set(first)) if not alphabet else alphabet
    return word_piece(plain.get_vocab())


def open_tokenizer(name: str | Path) -> Tokenizer:
    """A tokenizer from a folder, a file, or the Hugging Face Hub (no code of its own is run).

    What transformers can read, it reads, with the folder's settings, lines and special tokens; a
    file, and a `vocab.txt` alone in a folder, are read as they are.

    Raises:
        DataError: If there is none, or it cannot be read.
    """
    path = Path(name).expanduser()
    files = [path, path / "tokenizer.json", path / "vocab.txt"]
    plain = next((_read_plain(file) for file in files if file.is_file()), None)
    if plain is None or not _is_plain(path):
        loaded = _load_tokenizer(name)
        if not loaded.is_fast or loaded.split_special_tokens:  # no tokenizer.json holds the latter
            raise DataError(
                f"{name}: no fast tokenizer (tokenizer.json), or split_special_tokens set"
            )
        made: Tokenizer = loaded.backend_tokenizer
        made.no_padding()
        made.no_truncation()
        if plain is None:
            return made
        if _same_rules(plain, made):  # protocol ids rest on the form in which it is written
            return plain
        if files[1].is_file() and not (path / "tokenizer_config.json").is_file():
            warn(
                f"{path} has no tokenizer_config.json, so transformers makes its tokenizer anew "
                "by the model's type, and may cut texts otherwise than tokenizer.json says; if "
                f"the model has learned by that file, give tokenizer={files[1]}"
            )
        return made
    if path.suffix != ".json" and plain.token_to_id("[UNK]") is None:
        raise DataError(
            f"{path} is not a WordPiece list with [UNK]; give vocab.txt or tokenizer.json"
        )
    return plain


def _is_plain(path: Path) -> bool:
    """Whether it is a file, or a folder with a `vocab.txt` and without settings."""
    settings = ("config.json", "tokenizer.json", "tokenizer_config.json")
    listed = (path / "vocab.txt").is_file()
    return path.is_file() or (listed and not any((path / each).is_file() for each in settings))


def _read_plain(path: Path) -> Tokenizer:
    """The tokenizer of a tokenizer.json, or BERT's over a list with one token a line.

    Raises:
        DataError: If it cannot be read.
    """
    from tokenizers import Tokenizer

    text = decode_utf8(path.read_bytes(), path)
    if path.suffix != ".json":
        lines = text.removesuffix("\n").split("\n")  # not splitlines: U+2028 may be a token
        return word_piece({line.removesuffix("\r"): number for number, line in enumerate(lines)})
    try:
        made = Tokenizer.from_str(text)
    except Exception as error:  # the library raises plain Exception
        raise DataError(f"{path} is not a tokenizer.json file: {error}") from error
    made.no_padding()
    made.no_truncation()
    return made


def _same_rules(one: Tokenizer, two: Tokenizer) -> bool:
    """Whether two tokenizers, written down differently, do the same with every text."""
    described = [json.loads(each.to_str()) | {"post_processor": None} for each in (one, two)]
    for normalizer in (each["normalizer"] or {} for each in described):
        if normalizer.get("strip_accents", "") is None:
            normalizer["strip_accents"] = normalizer["lowercase"]
    return described[0] == described[1] and text_prefix(one) == text_prefix(two)


def _load_tokenizer(name: str | Path) -> Any:
    """The tokenizer of a folder, or of a name on the Hub, as transformers reads it.

    Raises:
        DataError: If there is none, or it cannot be read.
    """
    from transformers import AutoTokenizer

    path = Path(name).expanduser()
    source, local = (path, True) if path.is_dir() else (name, not hub_answers())
    how: dict[str, Any] = {"trust_remote_code": False, "local_files_only": local}
    try:
        loaded = AutoTokenizer.from_pretrained(str(source), **how)
    except Exception as error:  # of a tokenizer.json the library raises plain Exception
        raise DataError(
            f"no tokenizer {str(name)!r}: neither a file, nor a folder or a name on the Hub that "
            f"transformers can read ({str(error).strip().partition(':')[0]:.200}); without a "
            "network, give tokenizer=PATH (--set tokenizer=PATH), or none to train one"
        ) from error
    if len(loaded) <= len(loaded.all_special_ids):  # a class is made without its files, too
        raise DataError(f"{name} holds no tokens: no tokenizer.json, vocab.txt or the like")
    return loaded


def open_whole(name: str | Path) -> Any | None:
    """The tokenizer as transformers has it, with what it puts around texts; None where there is
    nothing but tokens: a `vocab.txt`, or a `tokenizer.json` alone that adds nothing.

    Raises:
        DataError: If there is none, or it cannot be read.
    """
    path = Path(name).expanduser()
    if not _is_plain(path):
        return _load_tokenizer(name)
    if path.suffix != ".json" or (made := _read_plain(path)).post_processor is None:
        return None
    from transformers import PreTrainedTokenizerFast

    names = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=made, model_input_names=names)


def special_ids(tokenizer: Tokenizer, source: str | Path | None = None) -> dict[str, int]:
    """Ids of the five special tokens by role; see `read_special_ids`.

    Args:
        tokenizer: A `tokenizers.Tokenizer`.
        source: What it was opened from; a folder's settings may give them any name.
    """
    plain = source is None or _is_plain(Path(source).expanduser())
    return read_special_ids(tokenizer, None if plain else _load_tokenizer(str(source)))


def id_count(tokenizer: Tokenizer) -> int:
    """Rows that an embedding needs: the largest token id and one."""
    return 1 + max(tokenizer.get_vocab().values(), default=-1)


def text_prefix(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The ids that a tokenizer puts in front of a text, such as Llama's `<s>`; none where it puts
    something behind it too (BERT's `[CLS]` and `[SEP]`)."""
    whole = tokenizer.encode("a").ids
    plain = tokenizer.encode("a", add_special_tokens=False).ids
    count = len(whole) - len(plain)
    return tuple(whole[:count]) if whole[count:] == plain else ()


def word_starts(tokenizer: Tokenizer) -> Tensor:
    """Which tokens begin a word, by the tokenizer's own marks.

    WordPiece (and any model with a prefix for continuations): what lacks the prefix `##`.
    Byte-level BPE: what begins with the mark of a space or a line break (`Ġ`, `Ċ`);
    SentencePiece: with `▁`. There a mark of punctuation belongs to the word before it. Special
    and added tokens begin a word and are one.

    Returns:
        bool `[ids]`.

    Raises:
        DataError: If the tokenizer marks neither starts nor continuations.
    """
    described: dict[str, Any] = json.loads(tokenizer.to_str())
    model = described["model"]
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    prefix = model.get("continuing_subword_prefix")
    marks = json.dumps([described.get("pre_tokenizer"), described.get("normalizer")])
    if prefix:
        starts = [token for token in vocabulary if not token.startswith(prefix)]
    elif '"ByteLevel"' in marks:
        starts = [token for token in vocabulary if token[:1] in ("Ġ", "Ċ")]
    elif '"Metaspace"' in marks or any(token[:1] == "▁" for token in vocabulary):
        starts = [token for token in vocabulary if token[:1] == "▁"]
    else:
        raise DataError(
            f"whole words cannot be told in this {model.get('type')} tokenizer: it marks neither "
            "the start of a word (Ġ or ▁) nor its continuation (##); use a WordPiece, byte-level "
            "or SentencePiece tokenizer, or whole_words=False"
        )
    table = torch.zeros(id_count(tokenizer), dtype=torch.bool)
    table[[vocabulary[token] for token in starts]] = True
    table[list(tokenizer.get_added_tokens_decoder())] = True
    return table


def sentence_ends(tokenizer: Tokenizer) -> Tensor:
    """Which tokens end a sentence: those whose last character is one of `. ! ? …` (and the
    full-width ones) and that hold no letter or digit. bool `[ids]`."""
    table = torch.zeros(id_count(tokenizer), dtype=torch.bool)
    for token, number in tokenizer.get_vocab().items():
        plain = token.removeprefix("##")
        if plain[-1:] in SENTENCE_ENDS and not any(map(str.isalnum, plain.lstrip("ĠĊ▁"))):
            table[number] = True
    return table


def encode(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """Token ids of each text, without special tokens."""
    return [one.ids for one in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


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
        """Number of token ids: the largest one and one."""
        return id_count(self.tokenizer)

    @cached_property
    def layout(self) -> RowLayout:
        """BERT's rows of these tokens."""
        return RowLayout.bert(self.special, self.length)

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, without special tokens."""
        return encode(self.tokenizer, texts)


def read_vocabulary(tokenizer: str | Path, length: int) -> Vocabulary:
    """The tokenizer of that folder, file or name.

    Raises:
        DataError: If there is none, or it lacks a special token.
    """
    made = open_tokenizer(tokenizer)
    special = special_ids(made, tokenizer)
    return Vocabulary(made, special, length, short_hash(made.to_str(), str(length)))
