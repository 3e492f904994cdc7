"""Sizes of models: layers, hidden width and heads. Nothing here loads torch."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields

from masksearch.errors import unknown_name
from masksearch.files import own_numbers


@dataclass(frozen=True)
class Size:
    """Layers, hidden width and heads of an encoder; the feed-forward part is 4 x width.

    Raises:
        ValueError: If one is no whole number of at least 1, or the heads do not share the width
            evenly.

    >>> str(Size(layers=4, width=128, heads=4))
    '4x128x4'
    """

    layers: int
    width: int
    heads: int

    def __post_init__(self) -> None:
        own_numbers(self)
        for each in fields(self):
            value = getattr(self, each.name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{each.name} is a whole number of at least 1, got {value!r}")
        if self.width % self.heads:
            below = self.width - self.width % self.heads
            near = " or ".join(str(width) for width in (below, below + self.heads) if width)
            raise ValueError(
                f"the width of a model is a multiple of its heads, got width {self.width} with "
                f"{self.heads} heads; {near} is"
            )

    def __str__(self) -> str:
        return f"{self.layers}x{self.width}x{self.heads}"


AnySize = str | Size | Mapping[str, int]  # as people give it
WRITTEN = re.compile(r"(\d+) *x *(\d+) *x *(\d+)")  # layers x width x heads

SIZES = {
    "nano": Size(layers=1, width=64, heads=2),  # the planted corpus
    "tiny": Size(layers=2, width=128, heads=4),
    "mini": Size(layers=4, width=256, heads=4),
    "small": Size(layers=4, width=512, heads=8),
    "medium": Size(layers=8, width=512, heads=8),
    "base": Size(layers=12, width=768, heads=12),  # SparseBERT's model
}


def find_size(size: AnySize) -> Size:
    """The size that is meant: a name of `SIZES`, text such as "4x128x4" (layers x width x heads),
    a mapping with these three, or a `Size`.

    Raises:
        UnknownNameError: If a text is neither a name nor such numbers.
        ValueError: If a mapping has other keys, or no model has that size; see `Size`.

    >>> find_size({"layers": 4, "width": 128, "heads": 4})
    Size(layers=4, width=128, heads=4)
    """
    if isinstance(size, Size):
        return size
    if isinstance(size, str):
        written = WRITTEN.fullmatch(size.strip())
        if written is not None:
            return Size(*map(int, written.groups()))
        if size not in SIZES:
            example = "layers x width x heads such as 4x128x4"
            raise unknown_name("model size", size, [*SIZES, example])
        return SIZES[size]
    if not isinstance(size, Mapping) or set(size) != {"layers", "width", "heads"}:
        raise ValueError(
            'a model size is a name, "4x128x4" or {"layers": 4, "width": 128, "heads": 4}, got '
            f"{size!r}"
        )
    return Size(**size)


def size_name(size: AnySize) -> str:
    """The one text of a size: the name that it has in `SIZES`, or its numbers.

    >>> size_name("1x64x2"), size_name({"layers": 4, "width": 128, "heads": 4})
    ('nano', '4x128x4')
    """
    sizes = find_size(size)
    return next((name for name, named in SIZES.items() if named == sizes), str(sizes))


def initial_spread(width: int) -> float:
    """Standard deviation of the initial weights at a width: BERT's 0.02 at 768, as 1/sqrt."""
    return 0.02 * math.sqrt(768 / width)
