"""Combinations of masks: union, intersection, complement, and one mask per head or layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from masksearch.errors import HeadCountError, LayerCountError, LengthError
from masksearch.masks.checks import settle
from masksearch.masks.core import Mask, Points


@dataclass(frozen=True, eq=False, repr=False)
class Either(Mask):
    """Kept where any part keeps: `a | b`."""

    kind = "or"
    of: tuple[Mask, ...]

    def __post_init__(self) -> None:
        children(self, self.of)

    @property
    def parts(self) -> tuple[Mask, ...]:
        return self.of

    def allows(self, at: Points) -> Tensor:
        result = self.of[0].allows(at)
        for part in self.of[1:]:
            result = result | part.allows(at)
        return result

    def resolve(self, length: int) -> Mask:
        return Either(tuple(part.resolve(length) for part in self.of))


@dataclass(frozen=True, eq=False, repr=False)
class Both(Mask):
    """Kept where every part keeps: `a & b`; also `a - b` as `a & ~b`."""

    kind = "and"
    of: tuple[Mask, ...]

    def __post_init__(self) -> None:
        children(self, self.of)

    @property
    def parts(self) -> tuple[Mask, ...]:
        return self.of

    def allows(self, at: Points) -> Tensor:
        result = self.of[0].allows(at)
        for part in self.of[1:]:
            result = result & part.allows(at)
        return result

    def resolve(self, length: int) -> Mask:
        return Both(tuple(part.resolve(length) for part in self.of))


@dataclass(frozen=True, eq=False, repr=False)
class Complement(Mask):
    """Kept where the part does not keep: `~a`."""

    kind = "not"
    of: Mask

    def __post_init__(self) -> None:
        children(self, (self.of,))

    @property
    def parts(self) -> tuple[Mask, ...]:
        return (self.of,)

    def allows(self, at: Points) -> Tensor:
        return ~self.of.allows(at)

    def resolve(self, length: int) -> Mask:
        return Complement(self.of.resolve(length))


@dataclass(frozen=True, eq=False, repr=False)
class PerHead(Mask):
    """Head h uses the h-th mask.

    Raises:
        HeadCountError: If a part itself tells heads apart.
    """

    kind = "per_head"
    of: tuple[Mask, ...]

    def __post_init__(self) -> None:
        children(self, self.of)
        if any(part.heads is not None for part in self.of):
            raise HeadCountError("per_head takes masks that do not tell heads apart themselves")

    @property
    def parts(self) -> tuple[Mask, ...]:
        return self.of

    @property
    def heads(self) -> int | None:
        return len(self.of)

    def allows(self, at: Points) -> Tensor:
        if isinstance(at.head, int):
            return self.of[at.head].allows(at)
        result = self.of[-1].allows(at)  # inside a mask_mod the head is a tensor
        for index, part in enumerate(self.of[:-1]):
            result = torch.where(at.head == index, part.allows(at), result)
        return result

    def resolve(self, length: int) -> Mask:
        return PerHead(tuple(part.resolve(length) for part in self.of))


@dataclass(frozen=True, eq=False, repr=False)
class PerLayer(Mask):
    """Layer l uses the l-th mask (parts may tell heads apart).

    Raises:
        LayerCountError: If a part itself tells layers apart.
    """

    kind = "per_layer"
    of: tuple[Mask, ...]

    def __post_init__(self) -> None:
        children(self, self.of)
        if any(part.layers is not None for part in self.of):
            raise LayerCountError("per_layer takes masks that do not tell layers apart themselves")

    @property
    def parts(self) -> tuple[Mask, ...]:
        return self.of

    @property
    def layers(self) -> int | None:
        return len(self.of)

    def allows(self, at: Points) -> Tensor:
        return self.of[at.layer].allows(at)

    def resolve(self, length: int) -> Mask:
        return PerLayer(tuple(part.resolve(length) for part in self.of))


@dataclass(frozen=True, eq=False, repr=False)
class Cropped(Mask):
    """The top-left corner of the mask at `at` positions, for inputs of at most that length.

    Attention under it equals attention under the mask at `at` positions with the inputs padded
    to that length, because padding is never attended to. So a searched table serves short
    inputs too, and a family means the same at every length. A row whose kept keys all lie
    beyond the input attends to nothing there, as it does in the padded form.

    Args:
        of: The mask.
        at: The length that it is taken at, in positions (>= 1).

    >>> from masksearch import masks
    >>> masks.cropped(masks.blocks(2), at=4).dense(3)[0, 0].int().tolist()
    [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    """

    kind = "cropped"
    of: Mask
    at: int

    def __post_init__(self) -> None:
        children(self, (self.of,))
        settle(self, "at", 1)
        if self.of.length not in (None, self.at):
            raise LengthError(
                f"a table of {self.of.length} positions cannot be taken at {self.at}; "
                f"crop it at={self.of.length}"
            )

    @property
    def parts(self) -> tuple[Mask, ...]:
        return (self.of,)

    @property
    def length(self) -> int | None:
        return None

    def allows(self, at: Points) -> Tensor:
        if at.length > self.at:
            raise LengthError(
                f"the mask is cropped from {self.at} positions, asked for {at.length}; "
                f"give inputs of at most {self.at} positions"
            )
        return self.of.allows(replace(at, length=self.at))

    def resolve(self, length: int) -> Mask:
        return Cropped(self.of.resolve(self.at), self.at)


def children(mask: Mask, of: Sequence[Mask]) -> None:
    """Checks the parts of a combination when it is built, so that errors name the culprit."""
    if isinstance(of, Mask) or not of or not all(isinstance(part, Mask) for part in of):
        raise TypeError(f"{mask.kind} combines one or more masks of positions, got {of!r}")
    _ = mask.heads, mask.layers, mask.length


def joined(kind: type[Either] | type[Both], *of: Mask) -> tuple[Mask, ...]:
    """Parts of a chain `a | b | c` side by side instead of nested."""
    flat: list[Mask] = []
    for part in of:
        if not isinstance(part, Mask):
            raise TypeError(f"masks combine with masks only, got {part!r}")
        flat.extend(part.parts if isinstance(part, kind) else (part,))
    return tuple(flat)
