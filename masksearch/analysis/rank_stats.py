"""Rank agreement of two measures of the same masks: tau-b, bootstrap, seeds against masks.

Everywhere rows are masks, columns are seeds, NaN is a cell that was not run, and larger values
are better (the caller turns the sign of a loss).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from masksearch.analysis.pareto import on_front
from masksearch.contracts import mixed_seed

Floats = NDArray[np.float64]
Bands = NDArray[np.int64]  # the band of each mask


@dataclass(frozen=True)
class Interval:
    """A statistic with its percentile bootstrap interval; NaN where it is not defined."""

    value: float
    low: float = math.nan
    high: float = math.nan

    def __str__(self) -> str:
        if math.isnan(self.value):
            return "undefined"
        if math.isnan(self.low):
            return f"{self.value:.2f}"
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True)
class Spread:
    """How far masks differ, against how far seeds of one mask do.

    One-way random effects: `value = mean + mask + seed`, by the analysis of variance. Within
    bands, the mean is one a band. `sigma_seed` is NaN where no mask has two seeds.
    """

    sigma_mask: float  # between masks, in the measure's unit; 0 where seeds explain it all
    sigma_seed: float  # within a mask, in the measure's unit
    reliability: float  # of one seed: ICC(1) = var_mask / (var_mask + var_seed), in [0, 1]

    def of_seeds(self, count: int) -> float:
        """Reliability of a mean over that many seeds (Spearman and Brown's formula)."""
        return count * self.reliability / (1 + (count - 1) * self.reliability)


def tau_b(x: Floats, y: Floats, bands: Bands | None = None, counts: Any = None) -> Any:
    """Kendall's tau-b over the pairs of masks that lie in one band.

    With P concordant and Q discordant pairs, and T_x, T_y the pairs not tied in x, in y, each
    counted within bands and summed over them:

        tau = sum_b (P_b - Q_b) / sqrt(sum_b T_x,b * sum_b T_y,b)

    One band gives the plain tau-b. Pairs of masks of two bands count nowhere, so a difference
    between bands (of density, say) cannot raise it.

    Args:
        x: float `[masks]`; a mask that is NaN in x or y is left out.
        y: float `[masks]`.
        bands: Band of each mask; None = one band.
        counts: How often each mask is taken, `[draws, masks]`; None = once. A mask and its own
            copy are no pair: they would be tied in both measures.

    Returns:
        A float, or `[draws]` of them, in [-1, 1]; NaN where x or y is tied in every pair.

    Reference: Kendall, Biometrika 33, 1945 (tau-b); Simon, JASA 73, 1978 (pairs of one stratum).
    """
    known = np.isfinite(x) & np.isfinite(y)
    pairs = known[:, None] & known[None, :]
    if bands is not None:
        pairs &= bands[:, None] == bands[None, :]
    x, y = np.where(known, x, 0.0), np.where(known, y, 0.0)
    above = np.sign(x[:, None] - x[None, :]) * pairs
    beyond = np.sign(y[:, None] - y[None, :]) * pairs
    terms = (above * beyond, np.abs(above), np.abs(beyond))
    if counts is None:
        agreed, free_x, free_y = (float(term.sum()) for term in terms)
        return agreed / math.sqrt(free_x * free_y) if free_x * free_y > 0 else math.nan
    weights = np.asarray(counts, dtype=np.float64)
    sums = [((weights @ term) * weights).sum(axis=1) for term in terms]
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums[0] / np.sqrt(sums[1] * sums[2])


def seed_mean(values: Floats, counts: Floats | None = None) -> Floats:
    """Mean of each mask over its seeds, `[masks]`; NaN for a mask without one.

    Args:
        values: float `[masks, seeds]`.
        counts: How often each seed is taken, `[seeds]`; None = once.
    """
    weights = np.isfinite(values) * (np.ones(values.shape[1]) if counts is None else counts)
    total = (np.where(np.isfinite(values), values, 0.0) * weights).sum(axis=1)
    with np.errstate(invalid="ignore"):
        return np.asarray(total / weights.sum(axis=1))


def align_seeds(values: Floats) -> Floats:
    """The table with each seed's shift taken out where masks have different seeds.

    A seed moves all masks (its data are easier, say). Where every mask has the same seeds that
    changes no ranking and nothing is done; else a mean over seed 0 alone is not comparable with
    one over seeds 0 and 1. The shift of a seed is the median, over the masks that both have, of
    its difference from the seed with the most masks; 0 where they share none.

    Args:
        values: float `[masks, seeds]`.
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


class Resampling:
    """Draws of masks and seeds, the same for every statistic of a card.

    Each draw takes as many masks as there are, with replacement, once from all masks and once
    within every band, and independently as many seeds as there are, with replacement. A drawn
    seed is taken for every mask and for both measures (the same seed serves every mask, and a
    proxy and its reference come from the same run), so masks and measures stay paired.
    Reference: the Multi-Bootstrap, Sellam et al., arXiv 2106.16163.

    Args:
        bands: Band of each mask.
        seeds: Number of seeds.
        resamples: Number of draws.
        seed: Of the draws.
        level: Coverage of the intervals, in (0, 1).
    """

    def __init__(
        self, bands: Bands, seeds: int, resamples: int, seed: int, level: float = 0.95
    ) -> None:
        self.bands, self.level = bands, level
        random = np.random.default_rng(mixed_seed(seed, len(bands), seeds))
        number = len(bands)
        self.across = random.multinomial(number, np.full(number, 1 / number), size=resamples)
        self.within = np.zeros((resamples, number), dtype=np.int64)
        for band in np.unique(bands):
            inside = np.flatnonzero(bands == band)
            share = np.full(len(inside), 1 / len(inside))
            self.within[:, inside] = random.multinomial(len(inside), share, size=resamples)
        drawn = random.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples)
        self.seeds, self.which = np.unique(drawn, axis=0, return_inverse=True)
        self.which = self.which.reshape(-1)

    def masks(self, banded: bool) -> tuple[Bands | None, NDArray[np.int64]]:
        """The bands that pairs must share, and the draws of masks that go with them."""
        return (self.bands, self.within) if banded else (None, self.across)

    def interval(self, value: float, draws: Floats) -> Interval:
        """The percentile interval of the draws that are defined; none where half are not."""
        found = draws[np.isfinite(draws)]
        if math.isnan(value) or 2 * len(found) < len(draws) or len(draws) == 0:
            return Interval(value)
        tail = (1 - self.level) / 2
        low, high = np.quantile(found, [tail, 1 - tail])
        return Interval(value, float(low), float(high))

    def tau(self, x: Floats, y: Floats, banded: bool) -> Interval:
        """tau-b between the means over seeds; masks and seeds are drawn.

        Args:
            x: float `[masks, seeds]`.
            y: float `[masks, seeds]`, of the same seeds.
            banded: Only pairs within a band.
        """
        bands, counts = self.masks(banded)
        draws = np.full(len(counts), math.nan)
        for index, taken in enumerate(self.seeds):
            here = self.which == index
            draws[here] = tau_b(seed_mean(x, taken), seed_mean(y, taken), bands, counts[here])
        return self.interval(tau_b(seed_mean(x), seed_mean(y), bands), draws)

    def tau_between_seeds(self, x: Floats, y: Floats, banded: bool) -> Interval:
        """Mean tau-b between one seed of x and ANOTHER seed of y, over all ordered pairs.

        Where y is x, this is the noise ceiling: how well one run tells what another run of the
        same protocol will say. A proxy and a reference of the same run share that run's luck;
        taken from two seeds they do not, so this may be set against the ceiling. Masks are
        drawn, seeds are not: it is an interval for these seeds.
        """
        bands, counts = self.masks(banded)
        same = x is y
        values, draws = [], []
        choose = itertools.combinations if same else itertools.permutations
        for a, b in choose(range(x.shape[1]), 2):
            value = tau_b(x[:, a], y[:, b], bands)
            if math.isfinite(value):
                values.append(value)
                draws.append(tau_b(x[:, a], y[:, b], bands, counts))
        if not values:
            return Interval(math.nan)
        table = np.stack(draws)
        known = np.isfinite(table)
        with np.errstate(invalid="ignore"):
            mean = np.where(known, table, 0.0).sum(axis=0) / known.sum(axis=0)
        return self.interval(float(np.mean(values)), mean)


def spread(values: Floats, bands: Bands | None = None) -> Spread:
    """Standard deviations between masks and between seeds of one mask, and the reliability.

    Unequal numbers of seeds are allowed: the mean squares are set equal to their expectations,
    E[MS_between] = var_seed + n0 * var_mask. A negative estimate of var_mask counts as 0.

    Args:
        values: float `[masks, seeds]`.
        bands: Band of each mask; the squares between masks are then taken around the mean of
            each band, and pooled.

    Reference: Searle, Casella, McCulloch, Variance Components, 1992, section 3.6; ICC(1) of
    Shrout and Fleiss, Psychological Bulletin 86, 1979.
    """
    groups = np.zeros(len(values), dtype=np.int64) if bands is None else bands
    known = np.isfinite(values)
    number = known.sum(axis=1)
    means = seed_mean(values)
    within = float(np.nansum((values - means[:, None]) ** 2))
    freedom = int((number - 1)[number > 0].sum())
    between, degrees, size = 0.0, 0, 0.0
    for band in np.unique(groups):
        inside = (groups == band) & (number > 0)
        if inside.sum() < 2:
            continue
        n = number[inside]
        centre = float((n * means[inside]).sum() / n.sum())
        between += float((n * (means[inside] - centre) ** 2).sum())
        degrees += int(inside.sum()) - 1
        size += float(n.sum() - (n**2).sum() / n.sum())
    if degrees == 0:
        return Spread(math.nan, math.sqrt(within / freedom) if freedom else math.nan, math.nan)
    if freedom == 0:  # one seed: what it varies by is masks and seeds together
        return Spread(math.sqrt(between / degrees), math.nan, math.nan)
    of_seed = within / freedom
    of_mask = max(0.0, (between / degrees - of_seed) / (size / degrees))
    total = of_mask + of_seed
    return Spread(
        math.sqrt(of_mask), math.sqrt(of_seed), of_mask / total if total > 0 else math.nan
    )


def chance(bands: Bands) -> float:
    """Half-width of the 95% range of tau-b within bands between two unrelated rankings.

    1.96 sd of tau when every order is equally likely: the variance of P - Q in a band of n
    masks is n (n - 1) (2 n + 5) / 18. Infinite where no band holds two masks.
    """
    sizes = np.unique(bands, return_counts=True)[1].astype(np.float64)
    pairs = float((sizes * (sizes - 1) / 2).sum())
    variance = float((sizes * (sizes - 1) * (2 * sizes + 5) / 18).sum())
    return 1.96 * math.sqrt(variance) / pairs if pairs else math.inf


def best(values: Floats, count: int) -> NDArray[np.intp]:
    """Positions of the `count` largest values; of equal ones the first, NaN never."""
    order = np.argsort(np.where(np.isfinite(values), -values, np.inf), kind="stable")
    return order[: min(count, int(np.isfinite(values).sum()))]


def front(values: Floats, densities: Floats) -> set[int]:
    """Masks of which no other is as sparse and as good, and better in one of the two."""
    kept = on_front(np.stack([values, -densities], axis=1)) & np.isfinite(values)
    return set(np.flatnonzero(kept).tolist())
