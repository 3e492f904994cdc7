"""The tables of single layers and heads that a mask consists of, each one once.

A decoder of 30 layers and 9 heads whose heads are full or local has 270 planes, of two kinds. So
figures of a mask are computed for each kind, and not for each plane.
"""

from __future__ import annotations

from dataclasses import dataclass

from masksearch.masks.core import Mask


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
