"""One mask for each head or layer, and a mask that is taken at a longer length."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from masksearch.errors import HeadCountError, LayerCountError, LengthError
from masksearch.masks.checks import check_field
from masksearch.masks.core import Mask, Points, check_parts


@dataclass(frozen=True, eq=False, repr=False)
class PerHead(Mask):
    """Head h uses the h-th mask.

    Args:
        of: One mask for each head.

    Raises:
        TypeError: If it is not a list of one or more masks.
        LayerCountError: If the masks tell different numbers of layers apart.
        HeadCountError: If one of them tells heads apart itself.
    """

    kind = "per_head"
    of: Sequence[Mask]

    def __post_init__(self) -> None:
        listed(self)
        if any(part.heads is not None for part in self.of):
            raise HeadCountError("per_head takes masks that do not tell heads apart themselves")

    @property
    def heads(self) -> int | None:
        """Number of masks."""
        return len(self.of)

    def allows(self, at: Points) -> Tensor:
        if isinstance(at.head, int):
            return self.of[at.head].allows(at)
        result = self.of[-1].allows(at)  # inside a mask_mod the head is a tensor
        for index, part in enumerate(self.of[:-1]):
            result = torch.where(at.head == index, part.allows(at), result)
        return result

    def of_head(self, head: int) -> Mask:
        """The mask of that head."""
        return self.of[head]


@dataclass(frozen=True, eq=False, repr=False)
class PerLayer(Mask):
    """Layer l uses the l-th mask (parts may tell heads apart).

    Args:
        of: One mask for each layer.

    Raises:
        TypeError: If it is not a list of one or more masks.
        HeadCountError: If the masks tell different numbers of heads apart.
        LayerCountError: If one of them tells layers apart itself.
    """

    kind = "per_layer"
    of: Sequence[Mask]

    def __post_init__(self) -> None:
        listed(self)
        if any(part.layers is not None for part in self.of):
            raise LayerCountError("per_layer takes masks that do not tell layers apart themselves")

    @property
    def layers(self) -> int | None:
        """Number of masks."""
        return len(self.of)

    def allows(self, at: Points) -> Tensor:
        return self.of[at.layer].allows(at)

    def single_layer(self, layer: int) -> Mask:
        """The mask of that layer."""
        return self.of[layer]


def listed(mask: PerHead | PerLayer) -> None:
    """Makes the masks of a list a tuple; says so where there is no list."""
    if not isinstance(mask.of, Iterable):
        raise TypeError(
            f"{mask.kind} takes a list of masks, got {mask.of!r}; write {mask.kind}([mask, mask])"
        )
    object.__setattr__(mask, "of", tuple(mask.of))
    check_parts(mask, mask.of)


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

    Raises:
        ValueError: If `at` is below 1.
        LengthError: If the mask has another length; and later, if an input is longer.

    >>> from masksearch import masks
    >>> masks.cropped(masks.blocks(2), at=4).dense(3)[0, 0].int().tolist()
    [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    """

    kind = "cropped"
    of: Mask
    at: int

    def __post_init__(self) -> None:
        check_parts(self, (self.of,))
        check_field(self, "at", 1)
        if self.of.length not in (None, self.at):
            raise LengthError(
                f"a table of {self.of.length} positions cannot be taken at {self.at}; "
                f"crop it at={self.of.length}"
            )

    @property
    def length(self) -> int | None:
        """None: it has every length up to `at`."""
        return None

    @property
    def longest(self) -> int | None:
        """`at`."""
        return self.at

    def allows(self, at: Points) -> Tensor:
        if at.length > self.at:
            raise LengthError(
                f"the mask is cropped from {self.at} positions, asked for {at.length}; "
                f"give inputs of at most {self.at} positions"
            )
        return self.of.allows(replace(at, length=self.at))

    def resolve(self, length: int) -> Mask:
        return Cropped(self.of.resolve(self.at), self.at)


def layer_of(mask: Mask, layer: int) -> Mask:
    """The mask of one layer alone (the mask itself where it does not tell layers apart).

    Raises:
        ValueError: If there is no such layer.
    """
    return mask.of_layer(layer)


# -- the tables of single layers and heads, each one once ----------------------------------------
@dataclass(frozen=True)
class Plane:
    """One layer and head of a mask.

    Args:
        mask: A mask that does not tell layers apart.
        head: Which head of it, where it tells heads apart.
    """

    mask: Mask
    head: int = 0


def distinct_planes(mask: Mask) -> tuple[list[Plane], list[int]]:
    """The planes of a mask, equal expressions once.

    Returns:
        The planes, and for each of `mask.planes` its place among them.

    >>> from masksearch import masks
    >>> distinct_planes(masks.per_layer([masks.star(), masks.full(), masks.star()]))[1]
    [0, 1, 0]
    """
    if mask.layers is None and mask.heads is None:
        return [Plane(mask)], [0]
    found: list[Plane] = []
    places: dict[Mask, int] = {}
    index: list[int] = []
    for layer in range(mask.layers or 1):
        own = mask.of_layer(layer)
        for head in range(mask.heads or 1):
            single = own.of_head(head)
            if single.heads is not None:  # bits of several heads: not looked at
                place = len(found)
            else:
                place = places.setdefault(single, len(found))
            if place == len(found):
                found.append(Plane(single, 0 if single.heads is None else head))
            index.append(place)
    return found, index
