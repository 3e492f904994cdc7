"""Which positions of a planted sequence depend on each other: groups that share no position.

by_offsets(8, (3,))              # ((1, 4), (2, 5), (3, 6))
mirrored(8)                      # ((1, 7), (2, 6), (3, 5))
at_random(8, 2, generator(0))    # every position from 1 on in one pair, but perhaps one
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

Groups = tuple[tuple[int, ...], ...]


def by_offsets(length: int, offsets: Sequence[int], size: int = 2) -> Groups:
    """Groups of equally spaced positions, in the order in which they were found.

    The offsets take turns. At its turn an offset d groups s, s + d, s + 2d, .. (`size`
    positions), for the smallest s >= 1 with all of them free and inside the sequence; it ends
    when no offset finds a group.

    Args:
        length: Positions of the sequence; position 0 is in no group.
        offsets: Distances of neighbours in a group, from 1.
        size: Positions of a group (>= 2).
    """
    free = [position > 0 for position in range(length)]
    found: list[tuple[int, ...]] = []
    before = -1
    while before < len(found):
        before = len(found)
        for offset in offsets:
            for first in range(1, length - (size - 1) * offset):
                group = tuple(first + step * offset for step in range(size))
                if all(free[position] for position in group):
                    for position in group:
                        free[position] = False
                    found.append(group)
                    break
    return tuple(found)


def mirrored(length: int) -> Groups:
    """The pairs (s, length - s) for s = 1, 2, ..: each at a distance of its own."""
    return tuple((first, length - first) for first in range(1, (length + 1) // 2))


def at_random(length: int, size: int, random: torch.Generator) -> Groups:
    """A random partition of the positions 1 .. length - 1 into groups, each in rising order.

    Up to `size` - 1 positions are left over.
    """
    order = 1 + torch.randperm(length - 1, generator=random)
    groups = order[: (length - 1) // size * size].view(-1, size)
    return tuple(sorted(tuple(sorted(group)) for group in groups.tolist()))
