"""The hand-designed families at other densities than those of SparseBERT's table."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from masksearch.masks.core import FAMILIES, Mask
from masksearch.masks.families import bigbird, fixed, longformer, strided
from masksearch.masks.lower import HasShape
from masksearch.masks.measure import effective_density

FAIR = 0.01  # a member may keep one point more than the mask that it stands beside
VALUES = 160  # of a family's parameter that are tried at most
SWEPT: dict[str, tuple[Callable[..., Mask], int]] = {  # family -> its size, and its least value
    "strided": (strided, 1),
    "fixed": (fixed, 1),
    "longformer": (longformer, 0),
    "bigbird": (bigbird, 0),
}


def sweep_families(shape: HasShape, densities: Sequence[float]) -> dict[str, Mask]:
    """A hand-designed mask for each density: a front of them as large as a search's.

    For each density a member is taken that keeps at most one point more: of the families with one
    within a point, that which was taken least often, so that they take turns; else the nearest.
    Where nothing keeps so little, it is the sparsest that is left.

    What sets a family's size is swept (the period of strided, the block of fixed, the reach of
    longformer and bigbird); its other parameters, and the families without any (star,
    log_sparse), are as in `masks.FAMILIES`.

    Args:
        shape: What masks are lowered to, and the lengths of the data.
        densities: Effective ones, in [0, 1]; see `masks.measure.effective_density`.

    Returns:
        Name -> mask, as many as densities and each once.

    >>> from masksearch import Shape
    >>> list(sweep_families(Shape(128, 1, 1), [0.039, 0.04, 0.12]))
    ['star', 'bigbird(0)', 'longformer']
    """
    known = [
        (effective_density(mask, shape), family, name, mask)
        for family, name, mask in members(shape.length)
    ]
    known.sort(key=lambda member: member[0])
    chosen: dict[str, Mask] = {}
    taken = dict.fromkeys(FAMILIES, 0)
    for density in densities:
        free = [member for member in known if member[2] not in chosen]
        fair = [member for member in free if member[0] <= density + FAIR] or free[:1]
        nearest = min(abs(member[0] - density) for member in fair)
        near = [m for m in fair if abs(m[0] - density) <= max(FAIR, nearest)]
        _, family, name, mask = min(near, key=lambda m: (taken[m[1]], abs(m[0] - density)))
        chosen[name] = mask
        taken[family] += 1
    return chosen


def members(length: int) -> list[tuple[str, str, Mask]]:
    """(family, name, mask) of the families' members at a length; equal masks only once."""
    found: dict[Mask, tuple[str, str, Mask]] = {
        mask: (name, name, mask) for name, mask in FAMILIES.items()
    }
    for family, (make, least) in SWEPT.items():
        values = np.unique(np.geomspace(1, max(2, length), VALUES // 2).astype(int))
        more = np.linspace(1, length, VALUES // 2).astype(int)
        for value in sorted({least, *values.tolist(), *more.tolist()}):
            mask = make(value)
            found.setdefault(mask, (family, f"{family}({value})", mask))
    return list(found.values())
