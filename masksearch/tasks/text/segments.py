"""A stream of ids, cut at its documents and sentences into the stretches that become pairs.

starts = sentence_starts(ids, sentence_ends(tokenizer).numpy())
windows = TextWindows.cut(ids, documents, starts, size=125)
windows.second_starts(torch.tensor([0, 7]), torch.rand(2))     # where their second segments begin
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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
        inside: Number of sentences that begin in it, without the first.
        stop: End of the window's document.
        group: First window of its document, and the number of its windows: `[2, windows]`.
    """

    ids: NDArray[Any]
    sentences: Tensor
    begin: Tensor
    end: Tensor
    first: Tensor
    inside: Tensor
    stop: Tensor
    group: Tensor

    def __len__(self) -> int:
        return len(self.begin)

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
        inside = np.searchsorted(starts, end) - 1 - first
        _, group, member, count = np.unique(
            of[first], return_index=True, return_inverse=True, return_counts=True
        )
        return cls(
            ids,
            sentences=torch.from_numpy(starts),
            begin=torch.from_numpy(starts[first]),
            end=torch.from_numpy(end),
            first=torch.from_numpy(first),
            inside=torch.from_numpy(inside),
            stop=torch.from_numpy(stop[first]),
            group=torch.from_numpy(np.stack([group[member], count[member]])),
        )

    def part(self, kept: NDArray[np.bool_]) -> TextWindows:
        """Some of the windows, in their order: bool `[windows]`, True = kept."""
        at = torch.from_numpy(np.flatnonzero(kept))
        _, first, member, count = np.unique(
            self.group[0, at], return_index=True, return_inverse=True, return_counts=True
        )
        columns = {n: getattr(self, n)[at] for n in ("begin", "end", "first", "inside", "stop")}
        group = torch.from_numpy(np.stack([first[member], count[member]]))
        return replace(self, **columns, group=group)

    def second_starts(self, windows: Tensor, draw: Tensor) -> Tensor:
        """Where the second segment of each window begins: with a random sentence; anywhere, where
        the window holds only one. int64 `[windows]`."""
        begin, inside = self.begin[windows], self.inside[windows]
        place = (draw * inside).long()
        sentence = self.sentences[
            (self.first[windows] + 1 + place).clamp(max=len(self.sentences) - 1)
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
    found = [
        start + 1 + np.flatnonzero(ends[ids[start : start + SCANNED]])
        for start in range(0, len(ids), SCANNED)
    ]
    starts = np.concatenate([np.empty(0, np.int64), *found])
    starts = starts[starts < len(ids)]
    inside: NDArray[np.int64] = starts[~ends[ids[starts]]]
    return inside
