"""Tokenizers: trained on the text, read from disk, or from the Hugging Face Hub.

made = train_tokenizer([Path("train.txt")], 4096, whole=True)
made = open_tokenizer("bert-vocab")     # a folder with vocab.txt or tokenizer.json
special_ids(made)                       # {"pad": 0, "unknown": 1, "cls": 2, "sep": 3, "mask": 4}
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from masksearch.errors import DataError
from masksearch.files import short_hash
from masksearch.tasks.text.files import HELD_OUT_SHARE, hub_answers, pieces

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPECIALS = {  # role -> spellings, the first one is used by trained vocabularies
    "pad": ("[PAD]", "<pad>"),
    "unknown": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "mask": ("[MASK]", "<mask>"),
}
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
    written = sum(file.stat().st_size for file in files)
    stop = None if whole else round((1 - HELD_OUT_SHARE) * written)
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
        files = [path / "tokenizer.json", path / "vocab.txt"]
        path = next((file for file in files if file.is_file()), path)
    if path.is_file() and path.suffix != ".json":
        tokens = path.read_text(encoding="utf-8-sig").splitlines()
        if "[UNK]" not in tokens:
            raise DataError(
                f"{path} is not a WordPiece list (one token a line) with [UNK] in it; "
                "give a vocab.txt, a tokenizer.json or a folder that holds one"
            )
        return word_piece({token: number for number, token in enumerate(tokens)})
    if path.is_file():
        text = path.read_text(encoding="utf-8")
    else:
        text = downloaded_tokenizer(name, local=not path.is_dir() and not hub_answers())
    try:
        made = Tokenizer.from_str(text)
    except Exception as error:  # the library raises plain Exception
        raise DataError(f"{path} is not a tokenizer.json file: {error}") from error
    made.no_padding()
    made.no_truncation()
    return made


def downloaded_tokenizer(name: str | Path, *, local: bool) -> str:
    """The tokenizer.json of a name on the Hub, or of a folder that transformers can read.

    Args:
        name: The name or the folder.
        local: Whether only what was downloaded before is looked at.
    """
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(
            str(name), trust_remote_code=False, local_files_only=local
        )
    except (OSError, ValueError) as error:
        raise DataError(
            f"no tokenizer {str(name)!r}: neither a vocab.txt, a tokenizer.json or a folder on "
            "disk nor a name that the Hugging Face Hub answered for; without a network, give a "
            "local one with tokenizer=PATH (--set tokenizer=PATH), or none to train one"
        ) from error
    fast = getattr(loaded, "backend_tokenizer", None)
    if fast is None:
        raise DataError(f"tokenizer {str(name)!r} has no fast version (tokenizer.json)")
    return str(fast.to_str())


def special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Ids of the five special tokens by role.

    Raises:
        DataError: If the tokenizer lacks one; names the spellings that were tried.
    """
    by_role = {}
    for role, spellings in SPECIALS.items():
        ids = [tokenizer.token_to_id(name) for name in spellings]
        numbers = [number for number in ids if number is not None]
        if not numbers:
            raise DataError(
                f"the tokenizer has no {role} token ({' or '.join(spellings)}); "
                "masked-language-model training needs one: use a BERT-like tokenizer"
            )
        by_role[role] = int(numbers[0])
    return by_role


def id_count(tokenizer: Tokenizer) -> int:
    """Rows that an embedding needs: the largest token id and one."""
    return 1 + max(tokenizer.get_vocab().values(), default=-1)


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
    return Vocabulary(made, special_ids(made), length, short_hash(made.to_str(), str(length)))
