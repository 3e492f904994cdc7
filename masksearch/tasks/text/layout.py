"""The special tokens around the texts of a row, and how rows become a padded batch.

layout = RowLayout.bert(special, length=64)     # [CLS] a [SEP] or [CLS] a [SEP] b [SEP]
ids, first = layout.join([7, 8], [9])           # ids, and how many of them have token type 0
batch = layout.pad_rows([ids], [first])         # input_ids, attention_mask, token_type_ids
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from masksearch.contracts import Batch

WIDTH = 16  # batches are padded to a multiple of that many positions


@dataclass(frozen=True)
class RowLayout:
    """The special tokens of a row, its padding and its token types.

    Args:
        before: Ids that begin a row.
        between: Ids between two texts.
        after: Ids that end a row.
        zeros: How many of `between` have the first text's token type, 0, where the second text
            has 1; None = all tokens have 0.
        typed: Whether a batch holds token types.
        pad: Id of the padding.
        length: Largest number of positions of a row.
    """

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]
    zeros: int | None
    typed: bool
    pad: int
    length: int

    @classmethod
    def bert(cls, special: Mapping[str, int], length: int) -> RowLayout:
        """`[CLS] a [SEP]`, and `[CLS] a [SEP] b [SEP]` with type 1 behind the first `[SEP]`."""
        end = (special["sep"],)
        return cls((special["cls"],), end, end, 1, True, special["pad"], length)

    def room(self, *, pair: bool) -> int:
        """Positions that are left to the texts."""
        return self.length - len(self.before) - len(self.after) - pair * len(self.between)

    def join(self, one: Sequence[int], two: Sequence[int] | None = None) -> tuple[list[int], int]:
        """A row of the ids of one text or two, and how many of its tokens have type 0."""
        ids = [*self.before, *one]
        first = len(ids) + (len(self.after) if two is None else self.zeros or 0)
        ids += self.after if two is None else [*self.between, *two, *self.after]
        return ids, len(ids) if self.zeros is None else first

    def pad_rows(self, ids: Sequence[Sequence[int]], firsts: Sequence[int]) -> Batch:
        """Model inputs of rows of ids, padded at their end to a multiple of 16 positions.

        Args:
            ids: Token ids of each row, special ones included; at most `length`.
            firsts: How many tokens of each row have type 0.

        Returns:
            `input_ids`, `attention_mask` (1 = token) and, if `typed`, `token_type_ids` (1 = second
            segment), int64 `[rows, width]`.
        """
        longest = max(len(row) for row in ids)
        width = min(self.length, -(-longest // WIDTH) * WIDTH)
        lengths = torch.tensor([[len(row)] for row in ids])
        at = torch.arange(width)
        batch = {
            "input_ids": torch.tensor([[*row, *[self.pad] * (width - len(row))] for row in ids]),
            "attention_mask": (at < lengths).long(),
        }
        if self.typed:
            first = torch.tensor([[count] for count in firsts])
            batch["token_type_ids"] = ((at >= first) & (at < lengths)).long()
        return batch
