"""Rank agreement of two measures of the same masks: tau-b within bands, and its bootstrap.

Everywhere rows are masks, columns are seeds, NaN is a cell that was not run, and larger values
are better (the caller turns the sign of a loss).
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from masksearch.analysis.stats import Floats, Interval
from masksearch.contracts import mixed_seed


def tau_b(x: Floats, y: Floats, bands: NDArray[np.int64], counts: Any = None) -> Any:
    """Kendall's tau-b over the pairs of masks that lie in one band.

    With P concordant and Q discordant pairs, and T_x, T_y the pairs not tied in x, in y, each
    counted within bands and summed over them: `sum (P - Q) / sqrt(sum T_x * sum T_y)`. Pairs of
    masks of two bands count nowhere, so a difference between bands cannot raise it.

    Args:
        x: float `[masks]`; a mask that is NaN in x or y is left out.
        y: float `[masks]`.
        bands: Band of each mask.
        counts: How often each mask is taken, `[draws, masks]`; None = once. A mask and its own
            copy are no pair: they would be tied in both measures.

    Returns:
        A float, or `[draws]` of them, in [-1, 1]; NaN where x or y is tied in every pair.

    Reference: Kendall, Biometrika 33, 1945 (tau-b); Simon, JASA 73, 1978 (pairs of one stratum).
    """
    known = np.isfinite(x) & np.isfinite(y)
    pairs = known[:, None] & known & (bands[:, None] == bands)
    above, beyond = (np.sign(v[:, None] - v) * pairs for v in (np.nan_to_num(x), np.nan_to_num(y)))
    weights = np.ones((1, len(x))) if counts is None else np.asarray(counts, np.float64)
    terms = (above * beyond, np.abs(above), np.abs(beyond))
    agreed, free_x, free_y = (((weights @ term) * weights).sum(1) for term in terms)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = agreed / np.sqrt(free_x * free_y)
    return float(found[0]) if counts is None else found


def seed_mean(values: Floats, counts: Floats | None = None) -> Floats:
    """Mean of each mask over its seeds, `[masks]`; `counts` say how often each seed is taken."""
    weights = np.isfinite(values) * (np.ones(values.shape[1]) if counts is None else counts)
    with np.errstate(invalid="ignore"):
        return np.asarray((np.nan_to_num(values) * weights).sum(1) / weights.sum(1))


def align_seeds(values: Floats) -> Floats:
    """The table with each seed's shift taken out where masks have different seeds.

    A seed moves all masks (its data are easier, say), so a mean over seed 0 alone is not
    comparable with one over seeds 0 and 1. The shift of a seed is the median, over the masks that
    both have, of its difference from the seed with the most masks; 0 where they share none.
    """
    known = np.isfinite(values)
    if values.size == 0 or (known == known[0]).all():
        return values
    base = int(known.sum(axis=0).argmax())
    both = known & known[:, [base]]
    shifts = [
        float(np.median(values[both[:, s], s] - values[both[:, s], base]))
        if both[:, s].any()
        else 0.0
        for s in range(values.shape[1])
    ]
    return np.asarray(values - np.array(shifts))


def chance(bands: NDArray[np.int64]) -> float:
    """Half-width of the 95% range of tau-b within bands between two unrelated rankings.

    1.96 sd of tau when every order is equally likely: the variance of P - Q in a band of n
    masks is n (n - 1) (2 n + 5) / 18. Infinite where no band holds two masks.
    """
    sizes = np.unique(bands, return_counts=True)[1].astype(np.float64)
    pairs = float((sizes * (sizes - 1) / 2).sum())
    variance = float((sizes * (sizes - 1) * (2 * sizes + 5) / 18).sum())
    return 1.96 * math.sqrt(variance) / pairs if pairs else math.inf


class Resampling:
    """Draws of masks and seeds, the same for every statistic of a card.

    Each draw takes as many masks as there are, with replacement, within every band, and
    independently as many seeds as there are. A drawn seed is taken for every mask and for both
    measures (a proxy and its reference come from the same run), so both stay paired.
    Reference: the Multi-Bootstrap, Sellam et al., arXiv 2106.16163.

    Args:
        bands: Band of each mask.
        seeds: Number of seeds.
        resamples: Number of draws.
        seed: Of the draws.
        level: Coverage of the intervals, in (0, 1).
    """

    def __init__(
        self, bands: NDArray[np.int64], seeds: int, resamples: int, seed: int, level: float = 0.95
    ) -> None:
        self.bands, self.level = bands, level
        random = np.random.default_rng(mixed_seed(seed, len(bands), seeds))
        everything = np.zeros_like(bands)  # drawn first, for agreement across bands
        self.across, self.within = (
            draw_within(random, each, resamples) for each in (everything, bands)
        )
        drawn = random.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples)
        self.seeds, which = np.unique(drawn, axis=0, return_inverse=True)
        self.which = which.reshape(-1)

    def interval(self, value: float, draws: Floats, n: int) -> Interval:
        """The percentile interval of the draws that are defined; none where half are not."""
        found = draws[np.isfinite(draws)]
        if math.isnan(value) or 2 * len(found) < len(draws) or len(draws) == 0:
            return Interval(value, n=n)
        low, high = np.quantile(found, [(1 - self.level) / 2, 1 - (1 - self.level) / 2])
        return Interval(value, float(low), float(high), n)

    def tau(self, x: Floats, y: Floats) -> Interval:
        """tau-b between the means over seeds; masks and seeds are drawn."""
        draws = np.full(len(self.within), math.nan)
        for index, taken in enumerate(self.seeds):
            here = self.which == index
            means = seed_mean(x, taken), seed_mean(y, taken)
            draws[here] = tau_b(*means, self.bands, self.within[here])
        whole = tau_b(seed_mean(x), seed_mean(y), self.bands)
        return self.interval(whole, draws, x.shape[1])

    def tau_between_seeds(self, x: Floats, y: Floats) -> Interval:
        """Mean tau-b between one seed of x and ANOTHER seed of y, over all ordered pairs.

        Where y is x, this is the noise ceiling: how well one run tells what another run of the
        same protocol will say. A proxy and a reference of the same run share that run's luck;
        taken from two seeds they do not, so this may be set against the ceiling. Masks are
        drawn, seeds are not: it is an interval for these seeds.
        """
        choose = itertools.combinations if x is y else itertools.permutations
        values, draws = [], []
        for a, b in choose(range(x.shape[1]), 2):
            value = tau_b(x[:, a], y[:, b], self.bands)
            if math.isfinite(value):
                values.append(value)
                draws.append(tau_b(x[:, a], y[:, b], self.bands, self.within))
        if not values:
            return Interval(math.nan)
        table = np.stack(draws)
        with np.errstate(invalid="ignore"):
            means = np.nan_to_num(table).sum(axis=0) / np.isfinite(table).sum(axis=0)
        return self.interval(float(np.mean(values)), means, x.shape[1])


def draw_within(
    random: np.random.Generator, bands: NDArray[np.int64], resamples: int
) -> NDArray[np.int64]:
    """How often each mask is drawn, `[resamples, masks]`: every band keeps its size."""
    found = np.zeros((resamples, len(bands)), dtype=np.int64)
    for band in np.unique(bands):
        inside = np.flatnonzero(bands == band)
        share = np.full(len(inside), 1 / len(inside))
        found[:, inside] = random.multinomial(len(inside), share, size=resamples)
    return found
