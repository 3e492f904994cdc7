"""Means with intervals over seeds, paired differences, and Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its t-interval; `low` and `high` are NaN below two seeds."""

    mean: float
    low: float
    high: float
    n_seeds: int
    level: float = 0.95  # of the interval

    def __str__(self) -> str:
        if self.n_seeds == 0:
            return "no result"
        if self.n_seeds == 1:
            return f"{format_estimate(self.mean)}, 1 seed, no interval"
        return f"{format_estimate(self.mean, self.low, self.high)}, {self.n_seeds} seeds"


@dataclass(frozen=True)
class PairedDifference:
    """Mean of `a - b` over the seeds that both have.

    `low`, `high` and `p_value` are NaN below two common seeds: one seed decides nothing.
    """

    mean: float
    low: float
    high: float
    p_value: float  # two-sided, of no difference
    n_seeds: int  # common to both
    level: float = 0.95  # of the interval


def check_level(level: float) -> float:
    """The level itself, if it is one."""
    if not 0 < level < 1:
        raise ValueError(f"the level of an interval is in (0, 1), got {level}; 0.95 is usual")
    return level


def interval(values: Sequence[float], level: float) -> tuple[float, float, float]:
    """Mean, low and high of Student's t-interval; NaN bounds below two values."""
    check_level(level)
    if not all(map(math.isfinite, values)):
        raise ValueError(
            f"an interval needs finite values, got {list(values)}; a run with a "
            "non-finite score is a failed run: leave it out and count it"
        )
    if len(values) == 0:
        return math.nan, math.nan, math.nan
    mean = float(np.mean(values))
    if len(values) == 1:
        return mean, math.nan, math.nan
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    half = float(stats.t.ppf((1 + level) / 2, len(values) - 1)) * error
    return mean, mean - half, mean + half


def estimate(values: Sequence[float], level: float = 0.95) -> Estimate:
    """Mean over seeds with Student's t-interval `mean -+ t(n - 1) * sd / sqrt(n)`.

    Args:
        values: One finite score per seed, in any unit.
        level: Coverage of the interval, in (0, 1).

    Returns:
        With `n_seeds` stated; a single seed has a mean and no interval.

    Raises:
        ValueError: If a value is not finite or the level is not in (0, 1).

    >>> print(estimate([1.0, 2.0, 3.0]))
    2.000 [-0.484, 4.484], 3 seeds
    >>> print(estimate([1.0]))
    1.000, 1 seed, no interval
    """
    return Estimate(*interval(values, level), len(values), level)


def paired_difference(
    a: Mapping[int, float], b: Mapping[int, float], level: float = 0.95
) -> PairedDifference:
    """Mean of `a[seed] - b[seed]` over common seeds, with interval and paired t-test.

    The same seed gives both masks the same initial weights and batches, so that the
    difference varies less than either score. Where every seed gives exactly the same
    difference, the interval has no width and the p-value is 0 (1 for a difference of 0).

    Args:
        a: Seed -> score.
        b: Seed -> score; seeds that only one of them has are left out.
        level: Coverage of the interval, in (0, 1).

    Raises:
        ValueError: If a score is not finite or the level is not in (0, 1).
    """
    differences = [a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())]
    mean, low, high = interval(differences, level)
    if len(differences) < 2:
        p_value = math.nan
    elif max(differences) == min(differences):
        mean = low = high = differences[0]
        p_value = 0.0 if mean else 1.0
    else:
        p_value = float(stats.ttest_1samp(differences, 0.0).pvalue)
    return PairedDifference(mean, low, high, p_value, len(differences), level)


def decimals_for(values: Iterable[float]) -> int:
    """Decimals at which numbers that stand together are printed: 3 around 1, more for small ones.

    The largest has four significant digits from 1 on, and three below.

    >>> decimals_for([0.0, -0.3411]), decimals_for([12.5, 0.1]), decimals_for([0.001147])
    (3, 2, 5)
    """
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    if largest == 0:
        return 3
    return min(6, max(0, (3 if largest >= 1 else 2) - math.floor(math.log10(largest))))


def format_estimate(
    mean: float,
    low: float = math.nan,
    high: float = math.nan,
    *,
    signed: bool = False,
    decimals: int | None = None,
) -> str:
    """A mean with its interval, all with the same decimals; a dash for NaN.

    Args:
        mean: The mean.
        low: Lower end of its interval; NaN where there is none.
        high: Upper end.
        signed: Whether positive numbers have a plus.
        decimals: How many; None = as `decimals_for` says of the three. Rows of one column share
            them.

    >>> format_estimate(-0.248, -0.3411, -0.155, signed=True)
    '-0.248 [-0.341, -0.155]'
    >>> format_estimate(1)
    '1.000'
    """
    if math.isnan(mean):
        return "-"
    places = decimals_for((mean, low, high)) if decimals is None else decimals
    sign = "+" if signed else ""
    text, least, most = (f"{value:{sign}z.{places}f}" for value in (mean, low, high))
    return text if math.isnan(low) else f"{text} [{least}, {most}]"


def format_p(p_value: float) -> str:
    """A p-value to three decimals; `<0.001` below that.

    >>> format_p(0.62), format_p(6.2e-14)
    ('0.620', '<0.001')
    """
    return "<0.001" if p_value < 0.001 else f"{p_value:.3f}"


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given.

    A NaN (a comparison that could not be made) counts as 1 and stays in the family: a
    comparison that was declared is paid for.

    Raises:
        ValueError: If a p-value is outside [0, 1].

    Reference: Holm, Scandinavian Journal of Statistics 6, 1979.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    known = [1.0 if math.isnan(p) else float(p) for p in p_values]
    for p in known:
        if not 0 <= p <= 1:
            raise ValueError(f"a p-value is in [0, 1], got {p}")
    adjusted = [1.0] * len(known)
    floor = 0.0
    for rank, index in enumerate(sorted(range(len(known)), key=known.__getitem__)):
        floor = max(floor, min(1.0, (len(known) - rank) * known[index]))
        adjusted[index] = floor
    return adjusted


def holm_levels(p_values: Sequence[float], level: float = 0.95) -> list[float]:
    """Coverage at which to draw each comparison's interval so that it agrees with Holm's test.

    The k-th smallest p-value is tested at `(1 - level) / (m - k + 1)`; from the first one that
    is not rejected on, all share its level. An interval drawn so excludes 0 exactly where Holm
    rejects at `1 - level`.

    Raises:
        ValueError: If a p-value is outside [0, 1] or the level is not in (0, 1).
    """
    alpha = 1 - check_level(level)
    adjusted = holm(p_values)
    known = [1.0 if math.isnan(p) else p for p in p_values]
    levels = [level] * len(known)
    share = alpha
    rejecting = True
    for rank, index in enumerate(sorted(range(len(known)), key=known.__getitem__)):
        if rejecting:
            share = alpha / (len(known) - rank)
            rejecting = adjusted[index] <= alpha
        levels[index] = 1 - share
    return levels
