"""What a mask is set beside: hand-designed masks and random ones that keep as much as it does."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from masksearch.masks.core import FAMILIES, Mask
from masksearch.masks.families import bigbird, fixed, longformer, strided
from masksearch.masks.leaves import RandomKeys, Window
from masksearch.masks.lower import HasShape
from masksearch.masks.measure import counts_all_alike, effective_density

FAIR = 0.01  # a member may keep one point more than the mask that it stands beside
VALUES = 160  # of a family's parameter that are tried at most
SWEPT: dict[str, tuple[Callable[..., Mask], int]] = {  # family -> its size, and its least value
    "strided": (strided, 1),
    "fixed": (fixed, 1),
    "longformer": (longformer, 0),
    "bigbird": (bigbird, 0),
}
NEAR = 0.002  # difference of effective densities that is near enough
ATTEMPTS = 32  # draws, of which the nearest is taken where none is near enough


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


def random_like(mask: Mask, shape: HasShape, seed: int = 0) -> Mask:
    """Random keys that keep as much as a mask does: its fair opponent at equal density.

    Where all cells count alike (`pair_weights`), these are `random_keys` in the number that gives
    the mask's density, at least one a row. Where sequences are padded or the shape is causal, the
    drawn keys of a query may all be padding, or all lie later. So the diagonal is kept too (but
    for a padded mask that keeps fewer pairs than the diagonal), and of several draws one is taken
    whose effective density agrees.

    Args:
        mask: Any mask of that shape.
        shape: What it is lowered to, and the lengths of the data.
        seed: Of the draws.

    >>> from masksearch import Shape, masks
    >>> random_like(masks.window(3), Shape(64, 1, 1))
    random_keys(7, 0)
    """
    target = effective_density(mask, shape)
    if counts_all_alike(shape):
        return RandomKeys(max(1, round(target * shape.length)), seed)
    if shape.causal or target >= effective_density(Window(0), shape):
        return match_density(
            lambda count, s: RandomKeys(count, s) | Window(0), target, shape, seed
        )
    return match_density(lambda count, s: RandomKeys(max(1, count), s), target, shape, seed)


def match_density(
    make: Callable[[int, int], Mask], target: float, shape: HasShape, seed: int
) -> Mask:
    """A mask with random keys whose effective density is near a given one.

    Args:
        make: (keys of a row, seed of their draw) -> mask; its density changes evenly with the
            number of keys.
        target: Effective density, in [0, 1].
        shape: Length, causality, and lengths of the data.
        seed: Of the first draw; the same seed gives the same mask.

    Returns:
        The first of some draws that is near enough, or the nearest of them.
    """
    none, all_ = (effective_density(make(keys, seed), shape) for keys in (0, shape.length))
    if none == all_:  # one position: there is nothing to draw
        return make(0, seed)
    wanted = shape.length * (target - none) / (all_ - none)
    if counts_all_alike(shape):  # then another draw has the same density
        return make(round(wanted), seed)
    found: list[tuple[float, int, Mask]] = []
    for attempt in range(ATTEMPTS):
        keys = int(wanted) + attempt % 2
        drawn = make(max(0, min(shape.length, keys)), seed + 1_000_003 * (attempt // 2))
        gap = abs(effective_density(drawn, shape) - target)
        if gap <= NEAR:
            return drawn
        found.append((gap, attempt, drawn))
    return min(found)[2]
