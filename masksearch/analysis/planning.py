"""What differences a comparison can show, before it is run: power of the paired test.

The test is that of `stats.paired_difference`: an error over seeds, estimated with `seeds - 1`
degrees of freedom, and one over rows that more seeds leave as it is. Without the second this is
the noncentral t distribution. Every comparison is taken to be tested at Holm's first, strictest
level, 0.05 / comparisons; one that comes later in Holm's order has more power.
"""

from __future__ import annotations

import bisect
import math

import numpy as np
from scipy import optimize, stats

from masksearch.analysis.stats import CLAIM_SEEDS, check_level

POWER = 0.8  # usual in plans: four of five true differences of that size are found
MOST_SEEDS = 1000


def power(
    difference: float,
    seeds: int,
    comparisons: int = 1,
    *,
    sd: float,
    row_error: float = 0.0,
    level: float = 0.95,
) -> float:
    """Probability that a true difference is told from 0.

    Args:
        difference: Between two masks, in units of the score.
        seeds: Common to both; 0 power below `CLAIM_SEEDS`.
        comparisons: Corrected together (>= 1).
        sd: Over seeds, of the paired difference; that of one mask's scores times sqrt(2) where
            seeds have nothing in common.
        row_error: Standard error that more seeds leave: `row_error`.
        level: Coverage of an interval, in (0, 1).
    """
    if comparisons < 1 or sd < 0 or row_error < 0:
        raise ValueError(
            f"a plan needs comparisons >= 1, sd and row_error >= 0; got {comparisons}, {sd} and "
            f"{row_error}"
        )
    alpha = (1 - check_level(level)) / comparisons
    if seeds < CLAIM_SEEDS or sd + row_error == 0:
        return float(seeds >= CLAIM_SEEDS and difference != 0)
    df = seeds - 1
    t, z = float(stats.t.isf(alpha / 2, df)), float(stats.norm.isf(alpha / 2))
    # Over the distribution of the estimated sd, at the midpoints of 2,000 equal shares
    variances = stats.chi2.ppf((np.arange(2000) + 0.5) / 2000, df) / df * sd**2 / seeds
    halves = np.sqrt(t**2 * variances + z**2 * row_error**2)
    error = math.sqrt(sd**2 / seeds + row_error**2)
    both = (
        stats.norm.sf((halves - difference) / error),
        stats.norm.sf((halves + difference) / error),
    )
    return float(np.mean(both[0] + both[1]))


def error_over_rows(disagreement: float, rows: int) -> float:
    """Standard error of a difference of accuracies that comes from the draw of the rows.

    Args:
        disagreement: Share of rows that runs of two masks answer differently (right against
            wrong), minus the share that two runs of one mask do, in [0, 1]: what is left is
            the masks' own, the mean over rows of `(p - q) ** 2` with p and q the probabilities
            that a run of either answers the row rightly.
        rows: Of the evaluation data (>= 1).
    """
    return math.sqrt(disagreement / rows)


def detectable_difference(
    seeds: int,
    rows: int | None = None,
    comparisons: int = 1,
    *,
    sd: float,
    disagreement: float = 0.0,
    level: float = 0.95,
) -> float:
    """The true difference that is found with a probability of 0.8; inf below `CLAIM_SEEDS` seeds.

    Args:
        seeds: Common to both masks.
        rows: Of the evaluation data; None = as many as one likes. The sd is not taken below
            one row's share.
        comparisons: Corrected together.
        sd: Over seeds, of the paired difference (see `power`).
        disagreement: See `error_over_rows`.
        level: Coverage of an interval, in (0, 1).

    >>> round(detectable_difference(5, comparisons=3, sd=0.01), 4)
    0.0229
    >>> round(detectable_difference(5, 277, 3, sd=0.01, disagreement=0.1), 4)
    0.0653
    """
    if seeds < CLAIM_SEEDS:
        return math.inf
    row_error = error_over_rows(disagreement, rows) if rows else 0.0
    sd = max(sd, 1 / rows if rows else 0.0)

    def missing(difference: float) -> float:
        found = power(difference, seeds, comparisons, sd=sd, row_error=row_error, level=level)
        return found - POWER

    most = sd + row_error
    if most == 0:
        return 0.0
    while missing(most) < 0:
        most *= 2
    return float(optimize.brentq(missing, 0, most, rtol=1e-6))


def seeds_needed(
    difference: float,
    comparisons: int = 1,
    *,
    sd: float,
    row_error: float = 0.0,
    level: float = 0.95,
) -> int | None:
    """The least number of seeds with which a true difference is found with probability 0.8.

    Args:
        difference: See `power`, as all others.
        comparisons: Corrected together.
        sd: Over seeds, of the paired difference.
        row_error: Standard error that more seeds leave.
        level: Coverage of an interval, in (0, 1).

    Returns:
        None where 1,000 seeds are too few: the evaluation data has too few rows for that
        difference, or there is none.

    >>> seeds_needed(0.0128, sd=0.0082 * 2**0.5)
    9
    >>> seeds_needed(0.0128, sd=0.0082 * 2**0.5, row_error=0.01)
    """
    candidates = range(CLAIM_SEEDS, MOST_SEEDS + 1)

    def enough(seeds: int) -> bool:
        found = power(difference, seeds, comparisons, sd=sd, row_error=row_error, level=level)
        return found >= POWER

    first = bisect.bisect_left(candidates, True, key=enough)
    return candidates[first] if first < len(candidates) else None
