"""Random masks that keep as much as another one, of the pairs that real tokens form."""

from __future__ import annotations

from collections.abc import Callable

from masksearch.masks.core import Mask
from masksearch.masks.leaves import RandomKeys, Window
from masksearch.masks.lower import HasShape
from masksearch.masks.measure import counts_all_alike, effective_density

NEAR = 0.002  # difference of effective densities that is near enough
ATTEMPTS = 32  # draws, of which the nearest is taken where none is near enough


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
