"""The hand-designed families and other recipes; sweeps of them, and random masks as dense.

`FAMILIES` holds the six masks of SparseBERT's table (arXiv 2102.12871, results table) at the
parameters that reproduce its sparsity at n = 128: strided 70.386 %, fixed 72.656 %,
log_sparse 89.832 %, longformer 88.623 %, bigbird 93.1 %, star 96.130 %.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from masksearch.masks.checks import at_least, distinct
from masksearch.masks.core import FAMILIES, Mask, family, recipe
from masksearch.masks.leaves import (
    BlockColumns,
    Blocks,
    Columns,
    GlobalTokens,
    Offsets,
    PowersOfTwo,
    RandomKeys,
    Stride,
    Window,
)
from masksearch.masks.measure import counts_all_alike, effective_density
from masksearch.masks.shape import Shape
from masksearch.masks.tables import PerHead, PerLayer


@recipe
def without_diagonal(mask: Mask) -> Mask:
    """The mask without |i - j| = 0 (SparseBERT, Section 3.3: the diagonal can be dropped)."""
    return mask - Offsets((0,))


@family
def strided(period: int = 4) -> Mask:
    """Strided attention: |i - j| < period, or a multiple of it.

    Reference: Sparse Transformer, arXiv 1904.10509, Section 4.2, in both directions.
    """
    period = at_least("period", period, 1)
    return Window(period - 1) | Stride(period)


@family
def fixed(size: int = 4, last: int = 1) -> Mask:
    """Fixed attention: the own block, and the last columns of every block.

    Reference: Sparse Transformer, arXiv 1904.10509, Section 4.2, in both directions.
    """
    return Blocks(size) | BlockColumns(size, last)


@family
def longformer(reach: int = 6, count: int = 1) -> Mask:
    """Longformer: a window of `reach` on each side, and `count` global tokens in front.

    Reference: arXiv 2004.05150, Fig. 2d. SparseBERT does not print its parameters; reach +
    count = 7 gives the 88.6 % that its table shows.
    """
    return Window(reach) | GlobalTokens(count)


@family
def log_sparse() -> Mask:
    """LogSparse attention: the query itself and distances 1, 2, 4, 8, ...

    Reference: LogSparse, arXiv 1907.00235, Section 4.2, in both directions.
    """
    return Offsets((0,)) | PowersOfTwo()


@family
def bigbird(reach: int = 2, count: int = 1, keys: int = 2, seed: int = 0) -> Mask:
    """BigBird: a window, `count` global tokens in front, and `keys` random keys a query.

    Reference: arXiv 2007.14062, Section 2.
    """
    return Window(reach) | GlobalTokens(count) | RandomKeys(keys, seed)


@family
def star() -> Mask:
    """Star-Transformer: the direct neighbours, and position 0 as the hub.

    Reference: arXiv 1902.09113, Section 3.1.
    """
    return Window(1) | GlobalTokens(1)


@recipe
def a_shape(sinks: int, reach: int) -> Mask:
    """A-shape: the first `sinks` keys, and a window of `reach` on each side.

    Reference: StreamingLLM, arXiv 2309.17453, Section 3.2 (attention sinks and recent tokens;
    there causal: intersect with `causal()`).
    """
    return Columns(sinks) | Window(reach)


@recipe
def vertical_slash(columns: Iterable[int], offsets: Iterable[int]) -> Mask:
    """Vertical-slash: some keys for every query, and some diagonals on both sides.

    Args:
        columns: Positions of the kept keys (>= 0).
        offsets: Kept distances |i - j| (>= 0).

    Reference: MInference, arXiv 2407.02490, Section 3.1 (there causal: intersect with
    `causal()`).
    """
    kept = Columns(positions=distinct("columns", columns, 0))
    return kept | Offsets(distinct("offsets", offsets, 0))


# -- what a mask is set beside: families and random masks that keep as much as it does ----------
FAIR = 0.01  # a member may keep one point more than the mask that it stands beside
VALUES = 160  # of a family's parameter that are tried at most
SWEPT: dict[str, tuple[Callable[..., Mask], int]] = {  # family -> its size, and its least value
    "strided": (strided, 1),
    "fixed": (fixed, 1),
    "longformer": (longformer, 0),
    "bigbird": (bigbird, 0),
}
SCRAMBLED = "scrambled"  # begins the name of a control: random keys, as many as a mask keeps
FIRST_KEY = " + first key"  # ends it where the control keeps that key in every row
NEAR = 0.002  # difference of effective densities that is near enough
ATTEMPTS = 32  # draws, of which the nearest is taken where none is near enough


def sweep_families(shape: Shape, densities: Sequence[float]) -> dict[str, Mask]:
    """Chooses a hand-designed mask for each density, to compare with the front of a search.

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

    Raises:
        ValueError: If there are fewer masks than densities.

    >>> from masksearch import Shape
    >>> list(sweep_families(Shape(128, 1, 1), [0.039, 0.04, 0.12]))
    ['star', 'bigbird(0)', 'longformer']
    """
    by_density = [
        (effective_density(mask, shape), family, name, mask)
        for family, name, mask in members(shape.length)
    ]
    by_density.sort(key=lambda member: member[0])
    chosen: dict[str, Mask] = {}
    taken = dict.fromkeys(FAMILIES, 0)
    for density in densities:
        free = [member for member in by_density if member[2] not in chosen]
        if not free:
            raise ValueError(
                f"at {shape.length} positions the families have {len(by_density)} different "
                f"masks, and {len(densities)} are asked for; give fewer densities"
            )
        fair = [member for member in free if member[0] <= density + FAIR] or free[:1]
        nearest = min(abs(member[0] - density) for member in fair)
        near = [m for m in fair if abs(m[0] - density) <= max(FAIR, nearest)]
        _, family, name, mask = min(near, key=lambda m: (taken[m[1]], abs(m[0] - density)))
        chosen[name] = mask
        taken[family] += 1
    return chosen


def members(length: int) -> list[tuple[str, str, Mask]]:
    """(family, name, mask) of the families' members at a length; equal masks only once."""
    by_mask: dict[Mask, tuple[str, str, Mask]] = {
        mask: (name, name, mask) for name, mask in FAMILIES.items()
    }
    for name, (make, least) in SWEPT.items():
        values = np.unique(np.geomspace(1, max(2, length), VALUES // 2).astype(int))
        more = np.linspace(1, length, VALUES // 2).astype(int)
        for value in sorted({least, *values.tolist(), *more.tolist()}):
            mask = make(value)
            by_mask.setdefault(mask, (name, f"{name}({value})", mask))
    return list(by_mask.values())


def random_like(mask: Mask, shape: Shape, seed: int = 0, *, first_key: bool = False) -> Mask:
    """Random keys that keep as much as a mask does: its fair opponent at equal density.

    Where all cells count alike (`pair_weights`), these are `random_keys` in the number that gives
    the mask's density, at least one a row. Where sequences are padded or the shape is causal, the
    drawn keys of a query may all be padding, or all lie later. So the diagonal is kept too (but
    for a padded mask that keeps fewer pairs than the diagonal), and of several draws one is taken
    whose effective density agrees. Where the mask tells layers or heads apart, each has keys of
    its own.

    Args:
        mask: Any mask of that shape.
        shape: What it is lowered to, and the lengths of the data.
        seed: Of the draws.
        first_key: Keep the diagonal and the first key ([CLS], or a decoder's sink) in every row;
            the control is denser than a mask that keeps fewer pairs than these.

    >>> from masksearch import Shape, masks
    >>> random_like(masks.window(3), Shape(64, 1, 1))
    random_keys(7, 0)
    """
    apart = mask.layers is not None or mask.heads is not None
    planes = shape.layers * shape.heads if apart else 1

    def draw(keys: int, first: int) -> Mask:
        """So many keys of a query in all planes together."""
        each = [RandomKeys((keys + at) // planes, first * planes + at) for at in range(planes)]
        rows = [each[at : at + shape.heads] for at in range(0, planes, shape.heads)]
        return PerLayer([PerHead(row) for row in rows]) if apart else each[0]

    target = effective_density(mask, shape)
    if counts_all_alike(shape) and not (apart or first_key):
        return draw(max(1, round(target * shape.length)), seed)
    kept = Window(0) | Columns(1) if first_key else Window(0)
    if first_key or shape.causal or target >= effective_density(kept, shape):
        return match_density(lambda keys, s: draw(keys, s) | kept, target, shape, seed, planes)
    return match_density(lambda keys, s: draw(max(planes, keys), s), target, shape, seed, planes)


def match_density(
    make: Callable[[int, int], Mask], target: float, shape: Shape, seed: int, planes: int = 1
) -> Mask:
    """A mask with random keys whose effective density is near a given one.

    Args:
        make: (keys of a row in all planes, seed of their draw) -> mask; its density changes
            evenly with the number of keys.
        target: Effective density, in [0, 1].
        shape: Length, causality, and lengths of the data.
        seed: Of the first draw; the same seed gives the same mask.
        planes: Layers and heads with keys of their own.

    Returns:
        The first of some draws that is near enough, or the nearest of them.
    """
    most = planes * shape.length
    none, all_ = (effective_density(make(keys, seed), shape) for keys in (0, most))
    if none == all_:  # one position: there is nothing to draw
        return make(0, seed)
    count = most * (target - none) / (all_ - none)
    if counts_all_alike(shape):  # then another draw has the same density
        return make(max(0, round(count)), seed)
    tries: list[tuple[float, int, Mask]] = []
    for attempt in range(ATTEMPTS):
        keys = int(count) + attempt % 2
        drawn = make(max(0, min(most, keys)), seed + 1_000_003 * (attempt // 2))
        gap = abs(effective_density(drawn, shape) - target)
        if gap <= NEAR:
            return drawn
        tries.append((gap, attempt, drawn))
    return min(tries)[2]
