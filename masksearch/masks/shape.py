"""The sizes that a mask is lowered to, and which pairs of a model's data count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from masksearch.files import own_numbers
from masksearch.masks.checks import LONGEST, MOST_PLANES, at_least


@dataclass(frozen=True)
class Shape:
    """A model's layers, heads and length, and the pairs that real tokens of its data form.

    Args:
        length: Positions.
        layers: Attention layers.
        heads: Query heads of a layer.
        causal: Whether no query sees a later key, whatever the mask says (a decoder).
        lengths: How many sequences of the data have how many tokens: a mapping tokens -> count,
            kept as sorted pairs; padding stands behind the tokens. None = all have `length`.
        read: Leading rows of the last layer that reach the model's output (1 = a classifier reads
            [CLS] alone); what the others attend to counts for no density. None = all.
        tokens: Rows of the data, int64 `[rows, length]`, -1 behind their ends, by which masks that
            follow the tokens are counted; None = not known. No part of what a shape equals, nor
            of `to_dict`; nor are the next two.
        hidden_size: Width of the hidden states, by which `masks.work` is counted; None = not
            known.
        intermediate_size: Width of the FFN between its two linear layers; of a gated one, which
            has three, one and a half times that.

    Raises:
        ValueError: If a number is no whole number of at least 1, a sequence or `read` is beyond
            `length`, or there are more layers and heads, or positions, than a mask can have.
    """

    length: int
    layers: int
    heads: int
    causal: bool = False
    lengths: tuple[tuple[int, int], ...] | Mapping[int, int] | None = None
    read: int | None = None
    tokens: Tensor | None = field(default=None, compare=False, repr=False)
    hidden_size: int | None = field(default=None, compare=False, repr=False)
    intermediate_size: int | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        own_numbers(self)
        for name in ("length", "layers", "heads"):
            at_least(name, getattr(self, name), 1, LONGEST)
        for name in ("hidden_size", "intermediate_size"):
            if getattr(self, name) is not None:
                at_least(name, getattr(self, name), 1)
        at_least("layers x heads", self.layers * self.heads, 1, MOST_PLANES)
        if self.read is not None and not 1 <= self.read <= self.length:
            raise ValueError(
                f"read must lie in 1..length = 1..{self.length} (rows of the last layer), or be "
                f"None for all of them; got {self.read}"
            )
        if self.lengths is not None:
            pairs = tuple(sorted((int(n), int(count)) for n, count in dict(self.lengths).items()))
            if not pairs or pairs[0][0] < 1 or pairs[-1][0] > self.length:
                raise ValueError(
                    f"lengths are of 1 to {self.length} tokens, got {dict(pairs) or 'none'}"
                )
            if min(count for _, count in pairs) < 1:
                raise ValueError(f"a length of lengths counts 1 sequence or more: {dict(pairs)}")
            object.__setattr__(self, "lengths", pairs)

    @property
    def histogram(self) -> tuple[tuple[int, int], ...]:
        """`lengths` as (tokens, sequences), rising; one sequence of `length` where it is None."""
        return tuple(dict(self.lengths or {self.length: 1}).items())

    def to_dict(self) -> dict[str, Any]:
        """As plain data, without what is at its default: `Shape(**shape.to_dict()) == shape`."""
        facts = {"causal": self.causal, "lengths": self.lengths, "read": self.read}
        sizes = {"length": self.length, "layers": self.layers, "heads": self.heads}
        return sizes | {name: value for name, value in facts.items() if value}
