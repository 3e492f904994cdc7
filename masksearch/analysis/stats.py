"""Means with intervals over seeds and rows, paired differences, and Holm's correction."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from scipy import stats

from masksearch.analysis.crossed import half_width, seed_error, stack_rows, two_sided_p
from masksearch.analysis.row_scores import RowScores
from masksearch.contracts import Objective

Pair = TypeVar("Pair")
CLAIM_SEEDS = 3  # below so many common seeds nothing is claimed
EQUAL = 1e-9  # differences that agree to this share of the scores are equal but for rounding


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its interval.

    `low` and `high` are NaN below two seeds, unless the rows of the single seed are known: then
    they are of the rows alone, and say nothing of other seeds.
    """

    mean: float
    low: float
    high: float
    n_seeds: int
    level: float = 0.95  # of the interval
    by_rows: bool = False  # the interval also covers other rows

    def __str__(self) -> str:
        if self.n_seeds == 0:
            return "no result"
        text = format_estimate(self.mean, self.low, self.high)
        if self.n_seeds == 1:
            return (
                f"{text}, 1 seed, {'interval over rows alone' if self.by_rows else 'no interval'}"
            )
        return f"{text}, {self.n_seeds} seeds"


@dataclass(frozen=True)
class PairedDifference:
    """Mean of `a - b` over the seeds that both have.

    `low`, `high` and `p_value` are NaN below `CLAIM_SEEDS` common seeds, and where all
    differences are equal and no tick is known: neither decides anything.
    """

    mean: float
    low: float
    high: float
    p_value: float  # two-sided, of no difference
    n_seeds: int  # common to both
    level: float = 0.95  # of the interval
    by_rows: bool = False  # the interval also covers other rows
    sd: float = math.nan  # of the differences over seeds, at least a tick; NaN for one seed
    row_error: float = 0.0  # standard error that more seeds leave: from the draw of the rows
    seedless: bool = False  # every seed gives the same, so that one is enough and rows decide

    @property
    def decides(self) -> bool:
        """Whether there are seeds enough to claim anything."""
        return self.seedless or self.n_seeds >= CLAIM_SEEDS


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


def estimate(
    values: Sequence[float],
    level: float = 0.95,
    *,
    tick: float = 0.0,
    rows: Iterable[RowScores] = (),
) -> Estimate:
    """Mean over seeds with Student's t-interval `mean -+ t(n - 1) * sd / sqrt(n)`.

    Where scores row by row are known, the interval covers other rows as well as other seeds
    (`crossed.half_width`); that of a single seed covers other rows alone.

    Args:
        values: One finite score per seed, in any unit.
        level: Coverage of the interval, in (0, 1).
        tick: By how much one row changes the score; the sd is not taken to be smaller. 0 = not
            known, unless `rows` say it.
        rows: Scores row by row of those runs that have them.

    Returns:
        With `n_seeds` stated; a single seed without rows has a mean and no interval.

    Raises:
        ValueError: If a value is not finite or the level is not in (0, 1).

    >>> print(estimate([1.0, 2.0, 3.0]))
    2.000 [-0.484, 4.484], 3 seeds
    >>> print(estimate([1.0]))
    1.000, 1 seed, no interval
    """
    mean, low, high = interval(values, level)
    tables = stack_rows(rows := list(rows))
    if values and (tables or tick):
        parts = tables.errors() if tables else []
        if len(values) > 1:
            parts.append(seed_error(values, max([tick, *(run.tick for run in rows)])))
        if parts:
            half = half_width(parts, level)
            low, high = mean - half, mean + half
    return Estimate(mean, low, high, len(values), level, tables is not None)


def paired_difference(
    a: Mapping[int, float],
    b: Mapping[int, float],
    level: float = 0.95,
    *,
    tick: float = 0.0,
    rows_a: Mapping[int, RowScores] | None = None,
    rows_b: Mapping[int, RowScores] | None = None,
    seedless: bool = False,
) -> PairedDifference:
    """Mean of `a[seed] - b[seed]` over common seeds, with interval and paired t-test.

    The same seed gives both masks the same initial weights and batches, so that the
    difference varies less than either score. Where scores row by row are known, interval and
    test allow for other rows as well as other seeds (`crossed.half_width`).

    Args:
        a: Seed -> score.
        b: Seed -> score; seeds that only one of them has are left out.
        level: Coverage of the interval, in (0, 1).
        tick: By how much one row changes a score; the differences' sd is not taken to be
            smaller. 0 = not known, unless rows say it: then, as ticks show by differences that
            repeat, the smallest gap between differences (which, where none repeat, changes
            nothing). Where all are equal, there is neither interval nor p-value.
        rows_a: Seed -> scores row by row, of those seeds of `a` that have them. Rows count
            where two common seeds have them for both masks, all of the same rows.
        rows_b: The same of `b`.
        seedless: Every seed gives the same scores: the first common one counts, and interval and
            test are over its rows alone (Student's, paired).

    Raises:
        ValueError: If a score is not finite or the level is not in (0, 1).
    """
    seeds = sorted(a.keys() & b.keys())
    differences = [a[seed] - b[seed] for seed in seeds]
    mean, low, high = interval(differences, level)
    rows_a, rows_b = rows_a or {}, rows_b or {}
    if seedless and seeds:
        return row_difference(mean, rows_a.get(seeds[0]), rows_b.get(seeds[0]), level)
    if len(seeds) < 2:
        return PairedDifference(mean, low, high, math.nan, len(seeds), level)
    both = [seed for seed in seeds if seed in rows_a and seed in rows_b]
    mine, others = [rows_a[seed] for seed in both], [rows_b[seed] for seed in both]
    tables = stack_rows(mine, others)
    scale = max(abs(score) for seed in seeds for score in (a[seed], b[seed]))
    ordered = sorted(differences)
    gaps = [more - less for less, more in itertools.pairwise(ordered)]
    seen = min((gap for gap in gaps if gap > EQUAL * scale), default=0.0)
    tick = max([tick, *(run.tick for run in mine)]) or seen
    over_seeds = seed_error(differences, tick)
    sd = math.sqrt(over_seeds.variance * len(seeds))
    over_rows = tables.errors() if tables else []
    p_value = low = high = math.nan
    if len(seeds) >= CLAIM_SEEDS and sd > EQUAL * scale:
        parts = [over_seeds, *over_rows]
        half = half_width(parts, level)
        low, high, p_value = mean - half, mean + half, two_sided_p(mean, parts)
    row_error = math.sqrt(math.fsum(part.variance for part in over_rows))
    return PairedDifference(
        mean, low, high, p_value, len(seeds), level, tables is not None, sd, row_error
    )


def row_difference(
    mean: float, mine: RowScores | None, other: RowScores | None, level: float
) -> PairedDifference:
    """A difference whose only error is the draw of the rows; no interval without them."""
    tables = None if mine is None or other is None else stack_rows([mine], [other])
    parts = [part for part in (tables.errors() if tables else []) if part.variance > 0]
    low = high = p_value = math.nan
    if parts:
        half = half_width(parts, level)
        low, high, p_value = mean - half, mean + half, two_sided_p(mean, parts)
    error = math.sqrt(math.fsum(part.variance for part in parts))
    known = (mean, low, high, p_value, 1, level, bool(parts), math.nan, error)
    return PairedDifference(*known, seedless=True)


def diverged_score(objective: Objective, scores: Iterable[float]) -> float:
    """The score of a run that has diverged, for comparisons.

    Left out, a mask would be the better the more of its bad runs are lost. It counts as the
    objective's `worst`, or as the worst finite score of the comparison where that is worse, or
    `worst` not finite: no finished run is judged to be worse than a diverged one.

    Args:
        objective: The score.
        scores: Of all runs of all masks that are compared; others than finite ones are left out.

    Raises:
        ValueError: If neither `worst` nor any score is finite.
    """
    finite = [score for score in (objective.worst, *scores) if math.isfinite(score)]
    if not finite:
        raise ValueError(f"no run has a finite {objective.name}: nothing to compare")
    return min(finite) if objective.goal == "max" else max(finite)


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


def correct_family(
    family: Sequence[Pair], difference: Callable[[Pair, float], PairedDifference]
) -> list[tuple[PairedDifference, float]]:
    """The differences of comparisons that were declared together, with Holm's p-values.

    Args:
        family: What is compared.
        difference: One comparison, at a level.

    Returns:
        Each difference, its interval at the level that agrees with Holm's test, and its adjusted
        p-value; in the order given.
    """
    p_values = [difference(each, 0.95).p_value for each in family]
    levels = holm_levels(p_values)
    differences = [difference(each, level) for each, level in zip(family, levels, strict=True)]
    return list(zip(differences, holm(p_values), strict=True))
