"""Running text for decoders: packed sequences to train on, held-out ones by document.

text = NextTokenText.load("wikitext-2", tokenizer="models/smollm2", length=1024)
next(text.batches(seed=0, batch=16))            # {"input_ids", "labels"}: int64 [16, 1024]
rows = text.held_out("validation", 64)          # tokens, their documents, what each token needs
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from masksearch.contracts import Batch, Split, generator
from masksearch.files import short_hash
from masksearch.tasks.mlm import epoch_batches
from masksearch.tasks.splits import FEW, check_sequences, evenly_spaced, is_part
from masksearch.tasks.text.corpus import deal_stretches, pack_parts, read_test_text, tokenize_text
from masksearch.tasks.text.files import paragraph_pieces
from masksearch.tasks.text.packing import Boundaries, Sequences
from masksearch.tasks.text.tokenizer import id_count, text_prefix

if TYPE_CHECKING:
    from tokenizers import Tokenizer

ORDER = 61  # stream of random numbers
COUNTED = 10_000_000  # training tokens, about, in which frequencies are counted


@dataclass(frozen=True, eq=False)
class NextTokenRows:
    """Sequences whose tokens are judged.

    Args:
        tokens: Ids `[rows, length]`, int64.
        labels: The same, -100 where a token is not scored; the first of a row never is.
        documents: Which document each row belongs to, `[rows]`: any numbers.
        needs: How far back the nearest evidence of a token lies, in positions, int64 `[rows,
            length]`; 0 = nowhere in the sequence.
        answers: Which tokens are answers, bool `[rows, length]`; None = there are none.
        guess: Loss of these for who knows how they are drawn and reads no context, in nats a
            token: nobody's is less on the average; inf = unknown.
    """

    tokens: Tensor
    labels: Tensor
    documents: NDArray[np.int64]
    needs: Tensor = field(repr=False)
    answers: Tensor | None = field(default=None, repr=False)
    guess: float = float("inf")

    def digest(self) -> str:
        """Hash of the tokens and of their marks (scored or not)."""
        total = hashlib.sha256()
        for part in (self.tokens, self.labels):
            total.update(part.numpy().astype("<i8").tobytes())
        return total.hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class NextTokenText:
    """Token ids of a training and a held-out text in sequences of one length.

    Pickles self-contained: with the ids, in the smallest integer type that holds them.

    Args:
        train: The sequences, each behind what the tokenizer puts in front of a text (Llama's
            `<s>`), which is not scored.
        held: The same, of the held-out text.
        tokenizer: A `tokenizers.Tokenizer`.
        digest: Hash of the text, the tokenizer and the length.
        train_digest: The same of what is trained on, whatever is held out of it for a test.
        begins: Where documents and paragraphs begin in the held-out text.
    """

    train: Sequences
    held: Sequences
    tokenizer: Tokenizer = field(repr=False)
    digest: str
    train_digest: str
    begins: Boundaries = field(repr=False)

    @classmethod
    def load(
        cls,
        path: Path | str,
        *,
        tokenizer: str | Path | None = None,
        vocabulary: int = 4096,
        length: int = 256,
        cache: Path | str | None = None,
        held_out: Path | str | float | None = None,
        test: bool = False,
    ) -> NextTokenText:
        """Reads, tokenizes and packs plain text, as `Corpus.load` does, for a decoder.

        Line breaks and the blank lines of paragraphs are tokens where the tokenizer knows them.

        Args:
            path: A text file, a folder of `*.txt` files, or a dataset `hf:..`.
            tokenizer: As of `Corpus.load`; none of BERT's special tokens is needed.
            vocabulary: Size of the vocabulary that is trained where there is no tokenizer.
            length: Positions of a sequence (>= 3).
            cache: Folder of the token cache.
            held_out: As of `Corpus.load`.
            test: Whether the test text takes the place of the held-out one.

        Raises:
            DataError: As `Corpus.load`.
        """
        if length < 3:
            raise ValueError(f"a sequence has at least 3 tokens, got length {length}")
        stored = tokenize_text(path, held_out, tokenizer, vocabulary, cache, paragraph_pieces)
        made, content = stored.tokenizer, list(stored.content)
        prefix, about = text_prefix(made), (made.to_str(), str(length))
        named = "next token", paragraph_pieces.__name__
        train, scored = stored.parts(length - len(prefix))
        train_digest = short_hash(*named, *content, *about)
        if test:
            tested = read_test_text(path, made, cache, paragraph_pieces)
            scored, content = tested.held_out, [content[0], "test", tested.content[1]]
        (train_rows, _), (held_rows, begins) = pack_parts(path, (train, scored), length, prefix)
        return cls(
            train=train_rows,
            held=held_rows,
            tokenizer=made,
            digest=short_hash(*named, *content, *about),
            train_digest=train_digest,
            begins=begins,
        )

    @property
    def length(self) -> int:
        """Positions of a sequence."""
        return self.train.shape[1]

    @property
    def vocabulary(self) -> int:
        """Number of token ids: the largest one and one."""
        return id_count(self.tokenizer)

    @cached_property
    def frequencies(self) -> Tensor:
        """How frequent each token id is in the training text, float64 `[ids]`, summing to 1; every
        id counts as seen once more than it is."""
        rows = self.train.body[:: 1 + len(self.train) * self.length // COUNTED]
        counts = np.bincount(rows.reshape(-1), minlength=self.vocabulary) + 1.0
        return torch.from_numpy(counts / counts.sum())

    def scored(self, tokens: Tensor) -> Tensor:
        """Labels: every token but those in front that nothing predicts."""
        labels = tokens.clone()
        labels[:, : max(1, len(self.train.before))] = -100
        return labels

    def batches(self, seed: int, batch: int, start: int = 0) -> Iterator[Batch]:
        """Endless training batches, a function of `seed` alone; every sequence comes once before
        any comes again.

        Args:
            seed: Source of the order.
            batch: Sequences.
            start: Batches to leave out.
        """
        order = epoch_batches(len(self.train), batch, generator(seed, ORDER))
        for number, chosen in enumerate(order):
            if number >= start:
                tokens = self.train[chosen].long()
                yield {"input_ids": tokens, "labels": self.scored(tokens)}

    def held_out(self, split: Split, most: int) -> NextTokenRows:
        """Held-out sequences of a split, at most so many, spread evenly over the text.

        A sequence belongs to the document in which it begins. Documents are files and WikiText
        articles; where there are fewer than 16, paragraphs take their place, and where there are
        fewer than 16 of those, sequences.

        Args:
            split: `"validation"` or `"holdout"`; any other takes all.
            most: Largest number of sequences.

        Raises:
            DataError: If there is none.
        """
        rows, documents = self.dealt(split)
        check_sequences(len(rows), len(self.held), split, self.length)
        chosen = evenly_spaced(len(rows), most).numpy()
        rows, documents = rows[chosen], documents[chosen]
        tokens = self.held[torch.from_numpy(rows)].long()
        return NextTokenRows(tokens, self.scored(tokens), documents, repeat_distances(tokens))

    def dealt(self, split: Split) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The numbers of a split's sequences, and of the documents that they belong to."""
        inner = self.held.body.shape[1]
        starts, final = deal_stretches(self.held.body.reshape(-1), self.begins, inner)
        rows = np.arange(len(self.held))
        of = np.searchsorted(starts, rows * inner, "right") - 1
        if is_part(split):
            rows = rows[final[of] == (split == "holdout")]
        return rows, of[rows]

    def judging(self, most: int) -> int:
        """Whole documents of the holdout that so many sequences lie in; 0 where pieces stand
        in their place."""
        if len(self.begins.documents) < FEW:
            return 0
        documents = self.dealt("holdout")[1]
        return len({*documents[evenly_spaced(len(documents), most).numpy()].tolist()})


def repeat_distances(tokens: Tensor) -> Tensor:
    """How far back each token last stood behind the same token as now, in positions; 0 = never.

    What an induction head needs to see: for `.. A B .. A B`, the distance between the two `B`.

    Args:
        tokens: Ids `[rows, length]`.

    Returns:
        int64 `[rows, length]`.

    Reference: Olsson et al., arXiv 2209.11895 (induction heads).

    >>> repeat_distances(torch.tensor([[5, 6, 7, 5, 6, 9]])).tolist()
    [[0, 0, 0, 0, 3, 0]]
    """
    distances = torch.zeros_like(tokens)
    pairs = tokens[:, :-1] * (int(tokens.max()) + 1) + tokens[:, 1:]
    ordered, index = pairs.sort(dim=1, stable=True)
    same = ordered[:, 1:] == ordered[:, :-1]
    gaps = torch.where(same, index[:, 1:] - index[:, :-1], 0)
    distances.scatter_(1, index[:, 1:] + 1, gaps)
    return distances
