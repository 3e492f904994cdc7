"""Rows of one or two texts as token ids: by a checkpoint's own tokenizer, or as BERT has them.

source = read_tokenizer("roberta-base", length=64)      # as transformers opens the folder
rows = tokenize_rows(source, [("one text", "another")], labels=[1])
batch = rows.batch([0])                                 # input_ids, attention_mask, labels
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from masksearch.contracts import Batch
from masksearch.errors import DataError
from masksearch.files import short_hash
from masksearch.tasks.text.layout import RowLayout
from masksearch.tasks.text.packing import IdLists, shrink
from masksearch.tasks.text.tokenizer import (
    Vocabulary,
    open_tokenizer,
    open_whole,
    read_vocabulary,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FED = ("input_ids", "attention_mask", "token_type_ids")  # what masksearch feeds a model
ROLES = ("pad", "cls", "sep", "mask")
PADS = ("pad_token_id", "eos_token_id", "sep_token_id")
COUNTED, CELLS = 1000, 1 << 26  # rows in which masks that follow the tokens are counted, at most
Texts = Sequence[tuple[str, ...]]  # of rows: one each, or two
Ids = tuple[list[int], int]  # of a row, and how many of them have token type 0


@dataclass(frozen=True, eq=False)
class CheckpointTokenizer:
    """A checkpoint's tokenizer, as transformers opens it, and a length.

    It makes the rows that its model has learned from: it alone knows what stands around the texts,
    their token types, and on which side a long row loses its tokens.

    Args:
        name: The folder, the file, or the name on the Hub.
        whole: The tokenizer of transformers.
        length: Largest number of positions of a row.
        bert: The same tokens for rows in BERT's layout, on which protocol ids rest where the rows
            are the same; None = it has no such rows.
    """

    name: str | Path
    whole: Any = field(repr=False)
    length: int
    bert: Vocabulary | None = field(repr=False)

    @cached_property
    def vocabulary(self) -> int:
        """Number of token ids: the largest one and one."""
        return 1 + max(map(int, self.whole.get_vocab().values()))

    @cached_property
    def digest(self) -> str:
        """Hash of the tokens and the length."""
        if self.bert is not None:
            return self.bert.digest
        tokens = repr(sorted(self.whole.get_vocab().items()))
        return short_hash(type(self.whole).__name__, tokens, str(self.length))

    @cached_property
    def special(self) -> dict[str, int]:
        """Ids of the special tokens that it has, by role: pad, cls, sep, mask."""
        named = {role: getattr(self.whole, f"{role}_token_id") for role in ROLES}
        named |= self.bert.special if self.bert is not None else {}
        return {role: number for role, number in named.items() if number is not None}

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The same without what it puts around a text; DataError if it is a slow one."""
        return open_tokenizer(self.name)

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, without special tokens."""
        ids: list[list[int]] = self.whole(texts, add_special_tokens=False)["input_ids"]
        return ids

    @cached_property
    def layout(self) -> RowLayout:
        """Where it puts special tokens, read off a pair of words. Where it has no padding, the
        end of a text pads; the attention mask hides it.

        Raises:
            DataError: If it feeds a model something else than ids and token types.
        """
        word = next(each for each in ("a", *self.whole.get_vocab()) if self.encode([each])[0])
        (ids,), pair = self.encode([word]), self.whole(word, word)
        row, count = pair["input_ids"], len(ids)
        one, *_, two = (at for at in range(len(row)) if row[at : at + count] == ids)
        types = pair.get("token_type_ids", [0] * len(row))
        first = types.count(0)
        if {*pair} - {*FED} or {*types} - {0, 1} or types != sorted(types):
            raise DataError(
                f"{self.name}: its tokenizer gives a pair of words the inputs {', '.join(pair)} "
                f"and the token types {types}; masksearch feeds {', '.join(FED)}, and the types "
                "0, then 1: it cannot judge this checkpoint"
            )
        pads = [getattr(self.whole, name) for name in PADS] + [self.special.get("pad"), 0]
        return RowLayout(
            before=tuple(row[:one]),
            between=tuple(row[one + count : two]),
            after=tuple(row[two + count :]),
            zeros=first - one - count if any(types) else None,
            typed="token_type_ids" in pair,
            pad=next(number for number in pads if number is not None),
            length=self.length,
        )

    def rows(self, texts: Texts) -> list[Ids]:
        """The rows of these texts, cut to the length."""
        columns = [list(column) for column in zip(*texts, strict=True)]
        made = self.whole(*columns, truncation=True, max_length=self.length)
        ids = made["input_ids"]
        types = made.get("token_type_ids") or [[0] * len(row) for row in ids]
        return [(row, kinds.count(0)) for row, kinds in zip(ids, types, strict=True)]

    def other_rows(self, texts: Texts, rows: Sequence[Ids]) -> str:
        """A hash of the rows where they are not those of BERT's layout, else nothing: protocol
        ids rest on it. Only rows that may have been cut are made twice, and the first one."""
        chosen = [at for at, (ids, _) in enumerate(rows) if at == 0 or len(ids) >= self.length]
        if self.bert is not None and self.layout.typed:
            made = bert_rows(self.bert, [texts[at] for at in chosen])
            if made == [rows[at] for at in chosen]:
                return ""
        return short_hash(repr(self.layout), repr(rows))


RowSource = Vocabulary | CheckpointTokenizer  # what turns texts into rows


def read_tokenizer(name: str | Path, length: int) -> CheckpointTokenizer | Vocabulary:
    """The tokenizer of that folder, file or name on the Hub; of a list of tokens BERT's.

    Raises:
        DataError: If there is none, or it cannot be read.
    """
    whole = open_whole(name)
    if whole is None:
        return read_vocabulary(name, length)
    try:
        bert = read_vocabulary(name, length)
    except DataError:  # a slow one, or one that lacks a special token of BERT's
        bert = None
    return CheckpointTokenizer(name, whole, length, bert)


def bert_rows(source: Vocabulary, texts: Texts) -> list[Ids]:
    """Rows in BERT's layout, for models from scratch; where one is too long, the end of its
    longer text is cut."""
    pair, layout = len(texts[0]) == 2, source.layout
    columns = [source.encode([text[part] for text in texts]) for part in range(1 + pair)]
    spare = layout.room(pair=pair)
    rows = []
    for one, *rest in zip(*columns, strict=True):
        two = rest[0] if pair else []
        if len(one) + len(two) > spare:
            most = spare // 2
            if len(one) <= most:
                two = two[: spare - len(one)]
            elif len(two) <= most:
                one = one[: spare - len(two)]
            else:
                one, two = one[: spare - most], two[:most]
        rows.append(layout.join(one, two if pair else None))
    return rows


def digest_in_layout(source: RowSource, digest: str) -> str:
    """A digest of data that a task cuts into rows of its own, with the layout where it is not
    BERT's, by which such rows were made before: protocol ids rest on it."""
    layout = source.layout
    plain = source.bert if isinstance(source, CheckpointTokenizer) else source
    usual = plain is not None and replace(plain.layout, pad=layout.pad) == layout
    return digest if usual else short_hash(digest, repr(layout))


@dataclass(frozen=True)
class TokenRow:
    """A tokenized example."""

    ids: list[int]
    first: int  # tokens of type 0
    label: float  # a score, or a class number (an int)


@dataclass(frozen=True, eq=False)
class TokenRows:
    """Many labelled rows in arrays, in memory and in a pickle; a row is made where it is read.

    Args:
        ids: Every row's ids.
        firsts: How many tokens of each row have type 0.
        labels: Each row's label: integers, or floats of a regression.
        layout: How they are padded.
        digest: See `CheckpointTokenizer.other_rows`.
    """

    ids: IdLists = field(repr=False)
    firsts: NDArray[Any] = field(repr=False)
    labels: NDArray[Any] = field(repr=False)
    layout: RowLayout
    digest: str = ""

    @classmethod
    def of(
        cls, rows: Sequence[Ids], labels: Sequence[float], layout: RowLayout, digest: str = ""
    ) -> TokenRows:
        """Those rows (one or more), whole labels in the smallest type that holds them."""
        numbers = np.array(labels)
        return cls(
            IdLists.of([ids for ids, _ in rows]),
            shrink(np.array([first for _, first in rows])),
            numbers if numbers.dtype.kind == "f" else shrink(numbers),
            layout,
            digest,
        )

    @property
    def lengths(self) -> list[int]:
        """Number of ids of each row."""
        lengths: list[int] = self.ids.lengths.tolist()
        return lengths

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> TokenRow:
        return TokenRow(self.ids[index], int(self.firsts[index]), self.labels[index].item())

    def batch(self, chosen: Sequence[int]) -> Batch:
        """The padded rows of those numbers, and their labels `[rows]`."""
        firsts, labels = self.firsts[[*chosen]].tolist(), self.labels[[*chosen]].tolist()
        inputs = self.layout.pad_rows([self.ids[at] for at in chosen], firsts)
        return inputs | {"labels": torch.tensor(labels)}


def tokenize_rows(source: RowSource, texts: Texts, labels: Sequence[float]) -> TokenRows:
    """Rows (one or more) of one text each or of two, as the source makes them."""
    other = ""
    if isinstance(source, CheckpointTokenizer):
        rows = source.rows(texts)
        other = source.other_rows(texts, rows)
    else:
        rows = bert_rows(source, texts)
    return TokenRows.of(rows, labels, source.layout, other)


def sample_tokens(tasks: Sequence[TokenRows], length: int) -> Tensor:
    """The `tokens` of a `Shape`: of each task every k-th row such that they are at most 1,000 in
    all, and fewer beyond 256 positions; padded with -1."""
    sequences, most = list[Tensor](), min(COUNTED, CELLS // length**2)
    for rows in tasks:
        step = -(-len(rows) * len(tasks) // most)
        sequences += [torch.tensor(rows.ids[at]) for at in range(0, len(rows), step)]
    return torch.stack([F.pad(ids, (0, length - len(ids)), value=-1) for ids in sequences])
