"""Drawn masks without the diagonal: [CLS]'s column, and offsets that are dealt over the heads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import masksearch as ms
from masksearch import masks
from masksearch.masks.baselines import fullest
from masksearch.masks.measure import effective_density

Deal = Callable[[int], list[list[int]]]  # how many offsets in all -> those of each head


def families(budget: float, shape: ms.Shape, last: ms.Mask | None) -> dict[str, ms.Mask]:
    """Both families of offsets.toml, filled up to a budget.

    Args:
        budget: Share of the non-padding query-key pairs.
        shape: Whose pairs they are.
        last: The mask of the last layer; None = as the other layers'.
    """
    steps = [step for reach in range(1, shape.length) for step in (reach, -reach)]
    price = partial(effective_density, shape=shape)
    counts, ends = range(1, len(steps) * shape.heads + 1), [[last] if last else []]
    drawn = {}
    for name, deal in {"offsets by head": each_once, "near offsets by head": neighbours}.items():
        make = partial(layer, partial(deal, steps, shape.heads))
        drawn[name] = fullest(budget, price, make, counts, shape.layers, ends)
    return {name: mask for name, mask in drawn.items() if mask is not None}


def layer(deal: Deal, count: int) -> ms.Mask:
    """[CLS]'s column in every head, and the offsets that it is dealt."""
    column = masks.columns(1)
    return masks.per_head([column | masks.shifts(own) if own else column for own in deal(count)])


def each_once(steps: Sequence[int], heads: int, count: int) -> list[list[int]]:
    """Each offset to the next head in turn, then all again, one head further."""
    dealt: list[list[int]] = [[] for _ in range(heads)]
    for at in range(count):
        turn, step = divmod(at, len(steps))
        dealt[(step + turn) % heads].append(steps[step])
    return dealt


def neighbours(steps: Sequence[int], heads: int, count: int) -> list[list[int]]:
    """In turns over the heads: head h begins at the h-th offset and goes on to the next ones."""
    shares = [len(range(head, count, heads)) for head in range(heads)]
    return [
        [steps[(head + turn) % len(steps)] for turn in range(share)]
        for head, share in enumerate(shares)
    ]
