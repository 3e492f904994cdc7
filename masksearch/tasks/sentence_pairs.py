"""Pairs of segments with masked tokens: BERT's next sentence, ALBERT's sentence order.

task = SentencePairTask(Corpus.load("wikitext-2"), kind="next")
batch = next(task.batches(seed=0))
# input_ids labels attention_mask token_type_ids: int64 [32, 128]; next_sentence_label: int64 [32]
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from masksearch.contracts import Batch, Split, generator
from masksearch.errors import DataError
from masksearch.tasks.mlm import HELD_OUT, MASKING, ORDER, MlmTask, epoch_batches, skip_draws
from masksearch.tasks.splits import evenly_spaced, is_part
from masksearch.tasks.text.corpus import Corpus
from masksearch.tasks.text.packing import Sequences, bare_ids
from masksearch.tasks.text.tokenizer import sentence_ends

PAIRS = 4  # stream of random numbers, beside those of the masked language model
DRAWS = (
    4  # of a pair: where it is parted, which kind it is, the other window, where that is parted
)


@dataclass(frozen=True)
class SentencePairTask(MlmTask):
    """Tell whether one segment follows the other, and predict masked tokens, at the same time.

    A sequence is `[CLS] a [SEP] b [SEP]`, padded where a document is too short to fill it.

    * `kind="next"` (BERT): in half of the pairs b is what follows a (label 0), in the others it
      comes from another document (label 1), and as many tokens of it as it has.
    * `kind="order"` (ALBERT): b follows a (label 0), or a follows b (label 1: swapped).

    The labels are those of Hugging Face's `next_sentence_label`. Segments are whole stretches
    of text, as in BERT ("an arbitrary span of contiguous text"): each begins with a sentence, and
    together they are cut at the length of a sequence. A sentence ends with `.`, `!`, `?` or the
    like, or with its document.

    A document is what a file holds or, in a file with headings of WikiText articles
    (` = Title = `), an article; in a file without such headings blank lines part documents too.
    A row of a dataset of the Hub is a document. Of the tokens,
    those that `corpus.train` leaves out at its end are left out here.

    Args:
        corpus: A loaded corpus; its sequences are not used, only its text.
        batch: Pairs of a batch.
        probability: Share of a pair's tokens that are scored, in (0, 1], rounded to a whole
            number, at least one: the same in all pairs that fill the sequence, fewer in short
            ones.
        held_out_sequences: Largest number of held-out pairs, spread evenly over them.
        whole_words: Whether all tokens of a word are masked together (`Masking`).
        kind: `"next"` or `"order"`.

    Raises:
        ValueError: If an argument is out of its range.
        DataError: On the first batch, if the corpus holds too few documents.

    Reference: BERT, arXiv 1810.04805, Sections 3.1 and A.2; ALBERT, arXiv 1909.11942,
        Section 3.1.
    """

    kind: Literal["next", "order"] = "next"

    def __post_init__(self) -> None:
        if self.corpus.length < SHORTEST + 3:
            raise ValueError(
                f"a pair needs at least {SHORTEST + 3} positions, got {self.corpus.length}"
            )

    @property
    def name(self) -> str:
        """The task's name."""
        return f"mlm+{self.kind}"

    @cached_property
    def windows(self) -> TextWindows:
        """The training text, cut; made once."""
        return self._cut_text("train", self.corpus.train, 0)

    def _cut_text(self, part: str, rows: Tensor | Sequences, number: int) -> TextWindows:
        """The text of `rows`, cut into windows."""
        assert self.corpus.begins is not None  # `Corpus.load` knows them
        ids, begins = bare_ids(rows), self.corpus.begins[number].paragraphs
        starts = sentence_starts(ids, sentence_ends(self.corpus.tokenizer).numpy())
        made = TextWindows.cut(ids, begins, starts, self.corpus.length - 3)
        return self.enough(made, f"{part} text")

    def enough(self, made: TextWindows, what: str) -> TextWindows:
        """The windows, if they are of enough documents for pairs."""
        groups = len(set(made.group[0].tolist()))
        if groups < 1 + (self.kind == "next"):
            raise DataError(
                f"the {what} holds {groups} documents of at least {SHORTEST} tokens; "
                f"kind={self.kind!r} needs {1 + (self.kind == 'next')}: part documents by blank "
                "lines or files" + (", or use kind='order'" if self.kind == "next" else "")
            )
        return made

    def batches(self, seed: int, start: int = 0) -> Iterator[Batch]:
        """Endless training batches, a function of `seed` alone.

        Every window of the text comes once before any comes again; how it is parted, its kind
        and what is masked are drawn anew.

        Args:
            seed: Source of the order, the pairs and the masking.
            start: Batches to leave out: the first one is what an iterator from 0 gives as
                number `start`. Their draws are made again, their text is not read.
        """
        order, masking = generator(seed, ORDER), generator(seed, MASKING)
        pairs = generator(seed, PAIRS)
        shape = torch.Size((self.batch, self.corpus.length))
        for number, items in enumerate(epoch_batches(len(self.windows), self.batch, order)):
            if number < start:
                torch.rand(self.batch, DRAWS, generator=pairs, dtype=torch.float64)
                skip_draws(shape, self.corpus.vocabulary, masking)
            else:
                yield self._make_pairs(self.windows, items, pairs, masking)

    @cached_property
    def held_out_windows(self) -> TextWindows:
        """The held-out text of the split, cut; made once."""
        windows = self._cut_text("held-out", self.corpus.held_out, 1)
        if not is_part(self.split):
            return windows
        starts, final = self.corpus.held_out_splits
        of = np.searchsorted(starts, windows.begin.numpy(), "right") - 1
        changes = np.append(starts[1:][final[1:] != final[:-1]], len(windows.ids))  # of the split
        stop = changes[np.searchsorted(changes, windows.begin.numpy(), "right")]
        windows = windows.part(final[of] == (self.split == "holdout"), stop)
        return self.enough(windows, f"held-out text of the {self.split} split")

    @cached_property
    def held_out_rows(self) -> Tensor:
        """Numbers of the windows that are scored, int64, rising."""
        return evenly_spaced(len(self.held_out_windows), self.held_out_sequences)

    def held_out(self) -> list[Batch]:
        """Pairs of the held-out text, drawn once: the same batches in every call."""
        masking, pairs = generator(HELD_OUT), generator(HELD_OUT, PAIRS)
        return [
            self._make_pairs(self.held_out_windows, items, pairs, masking)
            for items in torch.split(self.held_out_rows, self.batch)
        ]

    def _make_pairs(
        self, windows: TextWindows, items: Tensor, pairs: torch.Generator, masking: torch.Generator
    ) -> Batch:
        """The pairs of some windows, masked.

        Args:
            windows: The text.
            items: Numbers of the windows, int64 `[batch]`.
            pairs: Source of where they are parted, and of their kinds.
            masking: Source of the masking.

        Returns:
            `input_ids`, `labels` (-100 = not scored), `attention_mask` (0 = padding) and
            `token_type_ids` (1 = the second segment and its `[SEP]`), int64 `[batch, length]`;
            `next_sentence_label`, int64 `[batch]`.
        """
        draws = torch.rand(len(items), DRAWS, generator=pairs, dtype=torch.float64)
        part, changed, other, other_part = draws.unbind(1)
        wrong = changed < 0.5
        left, middle = windows.begin[items], windows.second_starts(items, part)
        right, size = middle, windows.end[items] - middle
        if self.kind == "next":
            drawn = windows.other_documents(items, other)
            begin = windows.second_starts(drawn, other_part)
            right = torch.where(wrong, begin, right)
            size = torch.where(wrong, torch.minimum(size, windows.stop[drawn] - begin), size)
            sizes = middle - left, size
        else:
            swapped = torch.where(wrong, right, left), torch.where(wrong, left, right)
            sizes = (
                torch.where(wrong, size, middle - left),
                torch.where(wrong, middle - left, size),
            )
            left, right = swapped
        position = torch.arange(self.corpus.length)
        one, two = (1 + sizes[0])[:, None], (2 + sizes[0] + sizes[1])[:, None]  # the two [SEP]
        source = torch.where(
            position < one, left[:, None] + position - 1, right[:, None] + position - one - 1
        )
        special = self.corpus.special
        ids = windows.ids[source.clamp(0, len(windows.ids) - 1).numpy()]
        tokens = torch.from_numpy(ids.astype(np.int64))
        tokens[:, 0] = special["cls"]
        tokens.masked_fill_((position == one) | (position == two), special["sep"])
        tokens.masked_fill_(position > two, special["pad"])
        return {
            **self.masking(tokens, self.masking.count(sizes[0] + sizes[1]), masking),
            "attention_mask": (position <= two).long(),
            "token_type_ids": ((position > one) & (position <= two)).long(),
            "next_sentence_label": wrong.long(),
        }


@lru_cache(maxsize=4)
def build_task(
    corpus: Corpus,
    batch: int,
    held_out_sequences: int,
    pairs: Literal["next", "order"] | None,
    whole_words: bool,
    split: Split,
) -> MlmTask | SentencePairTask:
    """The task, made once a process: it keeps how it has cut the text into pairs."""
    rows: dict[str, Any] = {
        "held_out_sequences": held_out_sequences,
        "whole_words": whole_words,
        "split": split,
    }
    if pairs is None:
        return MlmTask(corpus, batch, **rows)
    return SentencePairTask(corpus, batch, kind=pairs, **rows)


SHORTEST = 4  # tokens of a window; a shorter rest of a document is left out
SCANNED = 1 << 24  # tokens that are searched for ends of sentences at once


@dataclass(frozen=True, eq=False)
class TextWindows:
    """A stream of ids, cut into the stretches that become pairs. All tensors int64.

    Args:
        ids: The stream.
        sentences: Where sentences begin in it, rising.
        begin: First token of each window, `[windows]`; a sentence begins there.
        end: Behind its last token.
        first: Number of the sentence that begins a window.
        stop: End of the window's document.
        group: First window of its document, and the number of its windows: `[2, windows]`.
    """

    ids: NDArray[Any]
    sentences: Tensor
    begin: Tensor
    end: Tensor
    first: Tensor
    stop: Tensor
    group: Tensor

    def __len__(self) -> int:
        return len(self.begin)

    @cached_property
    def inside(self) -> Tensor:
        """Number of sentences that begin in each window, without the first, int64 `[windows]`."""
        return torch.searchsorted(self.sentences, self.end) - 1 - self.first

    @classmethod
    def cut(
        cls,
        ids: NDArray[Any],
        documents: NDArray[np.int64],
        sentences: NDArray[np.int64],
        size: int,
    ) -> TextWindows:
        """Cuts each document into windows of at most `size` tokens.

        A window begins with a sentence and ends `size` tokens later or with its document; the
        next one begins with the sentence that was cut. A sentence of more than `size` tokens is
        taken as several.
        """
        starts = np.union1d(documents, sentences)
        counts = -(-np.diff(starts, append=len(ids)) // size)
        behind = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
        starts = np.repeat(starts, counts) + size * behind
        of = np.searchsorted(documents, starts, "right") - 1
        stop = np.append(documents, len(ids))[of + 1]
        reach = np.searchsorted(starts, starts + size, "right") - 1
        following = np.where(starts + size >= stop, np.searchsorted(starts, stop), reach)
        chosen, at = [], 0
        while at < len(starts):
            chosen.append(at)
            at = int(following[at])
        first = np.array(chosen, np.int64)
        end = np.minimum(starts[first] + size, stop[first])
        kept = end - starts[first] >= SHORTEST
        first, end = first[kept], end[kept]
        _, group, member, count = np.unique(
            of[first], return_index=True, return_inverse=True, return_counts=True
        )
        return cls(
            ids,
            sentences=torch.from_numpy(starts),
            begin=torch.from_numpy(starts[first]),
            end=torch.from_numpy(end),
            first=torch.from_numpy(first),
            stop=torch.from_numpy(stop[first]),
            group=torch.from_numpy(np.stack([group[member], count[member]])),
        )

    def part(self, kept: NDArray[np.bool_], stop: NDArray[np.int64]) -> TextWindows:
        """Some of the windows, in their order, each cut at its `stop`.

        Args:
            kept: Which, bool `[windows]`.
            stop: Where the text of each ends at the latest, `[windows]`.
        """
        latest = torch.from_numpy(stop)
        end = torch.minimum(self.end, latest)
        at = torch.from_numpy(np.flatnonzero(kept & (end - self.begin >= SHORTEST).numpy()))
        _, first, member, count = np.unique(
            self.group[0, at], return_index=True, return_inverse=True, return_counts=True
        )
        return replace(
            self,
            begin=self.begin[at],
            end=end[at],
            first=self.first[at],
            stop=torch.minimum(self.stop, latest)[at],
            group=torch.from_numpy(np.stack([first[member], count[member]])),
        )

    def second_starts(self, windows: Tensor, draw: Tensor) -> Tensor:
        """Where the second segment of each window begins: with a random sentence; anywhere, where
        the window holds only one. int64 `[windows]`."""
        begin, inside = self.begin[windows], self.inside[windows]
        index = (draw * inside).long()
        sentence = self.sentences[
            (self.first[windows] + 1 + index).clamp(max=len(self.sentences) - 1)
        ]
        anywhere = begin + 1 + (draw * (self.end[windows] - begin - 1)).long()
        return torch.where(inside > 0, sentence, anywhere)

    def other_documents(self, windows: Tensor, draw: Tensor) -> Tensor:
        """A random window of another document for each, all of them alike. int64 `[windows]`."""
        group, count = self.group[:, windows]
        other = (draw * (len(self) - count)).long()
        return torch.where(other >= group, other + count, other)


def sentence_starts(ids: NDArray[Any], ends: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Where sentences begin: behind a token that ends one, unless another such token follows.

    Args:
        ids: The stream.
        ends: Which ids end a sentence, bool `[ids]`.
    """
    parts = [
        start + 1 + np.flatnonzero(ends[ids[start : start + SCANNED]])
        for start in range(0, len(ids), SCANNED)
    ]
    starts = np.concatenate([np.empty(0, np.int64), *parts])
    starts = starts[starts < len(ids)]
    inside: NDArray[np.int64] = starts[~ends[ids[starts]]]
    return inside
