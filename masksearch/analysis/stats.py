"""Means with intervals over seeds and rows, paired differences, Holm's correction, and power.

Seeds and evaluation rows are both drawn at random, and crossed: a run of seed s scores row r with
`x[s, r] = mean + seed[s] + row[r] + rest[s, r]`. More seeds make `seed` and `rest` average out and
leave `row` as it is, so that the mean's variance has two parts,
`MS_seed / seeds + var(row) / rows` with MS_seed the variance of the seeds' scores.
`var(row) = (MS_row - MS_rest) / seeds`, not below 0, is its estimate by analysis of variance.

Reference: Searle, Casella and McCulloch, Variance Components, 1992 (crossed random effects); for
seeds and rows of language models, Sellam et al., The MultiBERTs, ICLR 2022.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from masksearch.analysis.row_scores import RowScores
from masksearch.contracts import Objective

Floats = NDArray[np.float64]
Pair = TypeVar("Pair")
CLAIM_SEEDS = 3  # below so many common seeds nothing is claimed
EQUAL = 1e-9  # differences that agree to this share of the scores are equal but for rounding
ALPHA = 1 - 0.95  # rate of false outcomes, where a difference is tested
ONE_SIDED = 0.025  # rate of false outcomes of one kind, where a margin is tested
LEAST_P = 1e-100  # smaller p-values are given as this
POWER = 0.8  # usual in plans: four of five true differences of that size are found
MOST_SEEDS = 1000


@dataclass(frozen=True)
class Interval:
    """A value and the interval that it was measured with.

    Args:
        value: A mean, a difference, a rank correlation; NaN where it is not defined.
        low: NaN where nothing tells how far it may be off: of one seed whose rows are not known.
        high: Likewise.
        n: Seeds behind it. The interval of a single seed is of its rows alone, and says nothing
            of other seeds.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    n: int = 0

    def text(self, *, signed: bool = False, decimals: int | None = None) -> str:
        """The value with its interval; see `format_estimate`."""
        return format_estimate(self.value, self.low, self.high, signed=signed, decimals=decimals)

    def __str__(self) -> str:
        if self.n == 0:
            return "no result"
        if self.n == 1:
            basis = "no interval" if math.isnan(self.low) else "interval over rows alone"
            return f"{self.text()}, 1 seed, {basis}"
        return f"{self.text()}, {self.n} seeds"


@dataclass(frozen=True)
class PairedDifference(Interval):
    """Mean of `a - b` over the `n` seeds that both have.

    `low`, `high` and `p_value` are NaN below `CLAIM_SEEDS` common seeds, and where all
    differences are equal and no tick is known: neither decides anything.
    """

    p_value: float = math.nan  # two-sided, of no difference
    level: float = 0.95  # of the interval
    n_rows: int = 0  # that the interval covers too; 0 = it covers seeds alone
    sd: float = math.nan  # of the differences over seeds, at least a tick; NaN for one seed
    row_error: float = 0.0  # standard error that more seeds leave: from the draw of the rows
    seedless: bool = False  # every seed gives the same, so that one is enough and rows decide
    errors: tuple[ErrorPart, ...] = ()  # of the mean; none where nothing decides

    @property
    def decides(self) -> bool:
        """Whether there are seeds enough to claim anything."""
        return self.seedless or self.n >= CLAIM_SEEDS

    def p_above(self, edge: float, sign: Literal[1, -1] = 1) -> float:
        """The one-sided p-value that speaks for a true `sign * difference` above `edge`; NaN
        where nothing decides."""
        if not self.errors:
            return math.nan
        beyond = sign * self.value - edge
        p = _two_sided_p(beyond, self.errors) / 2
        return p if beyond > 0 else 1 - p


# -- seeds x rows ------------------------------------------------------------------------------
class ErrorPart(NamedTuple):
    """One part of a mean's variance, and the degrees of freedom of its estimate."""

    variance: float
    df: int


@dataclass(frozen=True)
class RowTables:
    """Scores row by row of several runs of each of some masks, all over the same rows.

    Args:
        tables: Part of the data -> float `[masks, runs, rows]`.
        weights: Part -> its weight in the score.
    """

    tables: Mapping[str, Floats]
    weights: Mapping[str, float]

    @property
    def n_rows(self) -> int:
        """Of all parts of the data."""
        return sum(table.shape[2] for table in self.tables.values())

    def _covariances(self) -> list[tuple[Floats, int]]:
        """The part of the draw of the rows in the covariance of the masks' mean scores.

        A single run cannot tell a row's own effect from the rest: both count.

        Returns:
            Of each part of the data with two rows or more: `weight^2 * (C(row means) -
            C(residuals) / runs) / rows`, float `[masks, masks]`, and its degrees of freedom.
        """
        matrices = []
        for part, table in self.tables.items():
            masks, runs, rows = table.shape
            if rows < 2:
                continue
            by_row = table.mean(1, keepdims=True)
            centred = (by_row - by_row.mean(2, keepdims=True))[:, 0]
            covariance = centred @ centred.T / (rows - 1)  # MS_row / runs
            if runs > 1:
                rest = table - by_row - table.mean(2, keepdims=True)
                rest = (rest + table.mean((1, 2), keepdims=True)).reshape(masks, -1)
                covariance -= rest @ rest.T / ((runs - 1) * (rows - 1) * runs)
            matrices.append((self.weights[part] ** 2 * covariance / rows, rows - 1))
        return matrices

    def errors(self) -> list[ErrorPart]:
        """The same of a single mask, or of the difference of two, not below 0."""
        return [ErrorPart(max(0.0, float(c[0, 0])), df) for c, df in self._covariances()]

    def covariance(self) -> Floats:
        """The sum over all parts, `[masks, masks]`, without a negative eigenvalue."""
        masks = next(iter(self.tables.values())).shape[0]
        total = sum((each for each, _ in self._covariances()), np.zeros((masks, masks)))
        values, vectors = np.linalg.eigh(total)
        result: Floats = (vectors * values.clip(0)) @ vectors.T
        return result


def stack_rows(
    masks: Sequence[Sequence[RowScores]], others: Sequence[RowScores] = ()
) -> RowTables | None:
    """The scores of each mask's runs as tables, minus those of others.

    Returns:
        None without runs, or where they have not all seen the same rows.
    """
    everything = [*itertools.chain.from_iterable(masks), *others]
    about = [(run.digests, run.weights) for run in everything]
    if not everything or any(each != about[0] for each in about):
        return None
    weights = everything[0].weights
    tables: dict[str, Floats] = {}
    for part in weights:
        tables[part] = np.array([[run.scores[part] for run in runs] for runs in masks], np.float64)
        if others:
            tables[part] -= np.stack([run.scores[part] for run in others])
    return RowTables(tables, weights)


def seed_error(values: Sequence[float], tick: float = 0.0) -> ErrorPart:
    """Variance of a mean over seeds: that of the values, not below `tick ** 2`, over their number.

    Scores that are counted in ticks (one row more or less) can agree by luck; that seeds agree
    to less than one tick is no evidence.
    """
    return ErrorPart(max(float(np.var(values, ddof=1)), tick**2) / len(values), len(values) - 1)


def _half_width(parts: Sequence[ErrorPart], level: float) -> float:
    """Half the width of a mean's interval: `sqrt(sum of t(df)^2 * variance)`.

    With one part it is Student's. With several the interval covers with at least `level`
    whatever their true sizes. Satterthwaite's degrees of freedom do not: with three seeds and a
    fifth of the variance in the rows they reject at 0.4 % five times too often.

    Reference: Banerjee, Sankhya 22, 357 (1960).
    """
    return math.sqrt(
        math.fsum(float(stats.t.isf((1 - level) / 2, p.df)) ** 2 * p.variance for p in parts)
    )


def _two_sided_p(mean: float, parts: Sequence[ErrorPart]) -> float:
    """The p-value of a true mean of 0: 1 - the level of the widest interval without 0."""
    if len(parts) == 1:
        return 2 * float(stats.t.sf(abs(mean) / math.sqrt(parts[0].variance), parts[0].df))

    def excess(log_p: float) -> float:
        # not 1 - level: a p-value below 1e-16 would be lost in it
        ts = [float(stats.t.isf(math.exp(log_p) / 2, part.df)) for part in parts]
        return math.fsum(t * t * p.variance for t, p in zip(ts, parts, strict=True)) - mean**2

    least = math.log(LEAST_P)
    if mean == 0:
        return 1.0
    return LEAST_P if excess(least) < 0 else math.exp(float(optimize.brentq(excess, least, 0)))


# -- means and differences ---------------------------------------------------------------------
def estimate(
    values: Sequence[float],
    level: float = 0.95,
    *,
    tick: float = 0.0,
    rows: Iterable[RowScores] = (),
) -> Interval:
    """Mean over seeds with Student's t-interval `mean -+ t(n - 1) * sd / sqrt(n)`.

    Where scores row by row are known, the interval covers other rows as well as other seeds
    (`_half_width`); that of a single seed covers other rows alone.

    Args:
        values: One finite score per seed, in any unit.
        level: Coverage of the interval, in (0, 1).
        tick: By how much one row changes the score; the sd is not taken to be smaller. 0 = not
            known, unless `rows` say it.
        rows: Scores row by row of those runs that have them.

    Raises:
        ValueError: If a value is not finite.

    >>> print(estimate([1.0, 2.0, 3.0]))
    2.000 [-0.484, 4.484], 3 seeds
    >>> print(estimate([1.0]))
    1.000, 1 seed, no interval
    """
    if not all(map(math.isfinite, values)):
        raise ValueError(
            f"an interval needs finite values, got {list(values)}; a run with a "
            "non-finite score is a failed run: leave it out and count it"
        )
    if not len(values):
        return Interval(math.nan)
    mean, tables = float(np.mean(values)), stack_rows([rows := list(rows)])
    parts = tables.errors() if tables else []
    if len(values) > 1:
        ticks = [run.tick for run in rows] if tables or tick else []
        parts.append(seed_error(values, max([tick, *ticks])))
    if not parts:
        return Interval(mean, n=len(values))
    half = _half_width(parts, level)
    return Interval(mean, mean - half, mean + half, len(values))


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
    test allow for other rows as well as other seeds (`_half_width`).

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
        ValueError: If a score is not finite.
    """
    seeds = sorted(a.keys() & b.keys())
    differences = [a[seed] - b[seed] for seed in seeds]
    mean = estimate(differences, level).value
    rows_a, rows_b = rows_a or {}, rows_b or {}
    if len(seeds) < (1 if seedless else 2):
        return PairedDifference(mean, n=len(seeds), level=level)
    both = [seed for seed in seeds if seed in rows_a and seed in rows_b]
    if seedless:
        both = [seed for seed in both if seed == seeds[0]]
    mine, others = [rows_a[seed] for seed in both], [rows_b[seed] for seed in both]
    tables = stack_rows([mine], others)
    scale = max(abs(score) for seed in seeds for score in (a[seed], b[seed]))
    gaps = [more - less for less, more in itertools.pairwise(sorted(differences))]
    seen = min((gap for gap in gaps if gap > EQUAL * scale), default=0.0)
    tick = max([tick, *(run.tick for run in mine)]) or seen
    over_rows = tables.errors() if tables else []
    parts, sd = [part for part in over_rows if part.variance > 0], math.nan
    has_rows = bool(tables and (parts or not seedless))
    if not seedless:
        over_seeds = seed_error(differences, tick)
        sd = math.sqrt(over_seeds.variance * len(seeds))
        decides = len(seeds) >= CLAIM_SEEDS and sd > EQUAL * scale
        parts = [over_seeds, *over_rows] if decides else []
    p_value = low = high = math.nan
    if parts:
        half = _half_width(parts, level)
        low, high, p_value = mean - half, mean + half, _two_sided_p(mean, parts)
    return PairedDifference(
        *(mean, low, high, 1 if seedless else len(seeds), p_value, level),
        n_rows=tables.n_rows if tables and has_rows else 0,
        sd=sd,
        row_error=math.sqrt(math.fsum(part.variance for part in over_rows)),
        seedless=seedless,
        errors=tuple(parts),
    )


def diverged_score(objective: Objective, scores: Iterable[float]) -> float:
    """The score of a run that has diverged, for comparisons; NaN where nothing tells it.

    Left out, a mask would be the better the more of its bad runs are lost. It counts as the
    objective's `worst`, or as the worst finite score of the comparison where that is worse, or
    `worst` not finite: no finished run is judged to be worse than a diverged one.

    Args:
        objective: The score.
        scores: Of all runs of all masks that are compared; others than finite ones are left out.
    """
    finite = [score for score in (objective.worst, *scores) if math.isfinite(score)]
    worst = min if objective.goal == "max" else max
    return worst(finite, default=math.nan)


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
    digits = decimals_for((mean, low, high)) if decimals is None else decimals
    sign = "+" if signed else ""
    text, least, most = (f"{value:{sign}z.{digits}f}" for value in (mean, low, high))
    return text if math.isnan(low) else f"{text} [{least}, {most}]"


def mean_of_searches(values: Sequence[float]) -> Interval:
    """Mean over search seeds, from `CLAIM_SEEDS` on with its 95% t-interval, which is not below 0
    where no value is."""
    mean = estimate(values)
    if mean.n < CLAIM_SEEDS:
        return Interval(mean.value, n=mean.n)
    return replace(mean, low=max(mean.low, 0.0)) if min(values) >= 0 else mean


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

    Reference: Holm, Scandinavian Journal of Statistics 6, 1979.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    values = [1.0 if math.isnan(p) else float(p) for p in p_values]
    adjusted = [1.0] * len(values)
    floor = 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        floor = max(floor, min(1.0, (len(values) - rank) * values[index]))
        adjusted[index] = floor
    return adjusted


def holm_levels(p_values: Sequence[float]) -> list[float]:
    """Coverage at which to draw each comparison's interval so that it agrees with Holm's test.

    The k-th smallest p-value is tested at `0.05 / (m - k + 1)`; from the first one that is not
    rejected on, all share its level. An interval drawn so excludes 0 exactly where Holm rejects
    at 5 %.
    """
    adjusted = holm(p_values)
    values = [1.0 if math.isnan(p) else p for p in p_values]
    levels = [0.95] * len(values)
    share, rejecting = ALPHA, True
    for rank, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        if rejecting:
            share = ALPHA / (len(values) - rank)
            rejecting = adjusted[index] <= ALPHA
        levels[index] = 1 - share
    return levels


def correct_family(
    family: Sequence[Pair], difference: Callable[[Pair, float], PairedDifference]
) -> list[tuple[PairedDifference, float]]:
    """The differences of comparisons that were declared together, with Holm's p-values (5%).

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


MarginOutcome = Literal["loses at most", "loses more than", "gains more than", "undecided"]


def judge_margins(
    differences: Sequence[PairedDifference], margin: float, sign: Literal[1, -1]
) -> list[tuple[MarginOutcome, float]]:
    """Which masks lose at most a margin, lose more, or gain more than it.

    Each kind of outcome has one-sided tests of its own, corrected by Holm over all masks at
    2.5 %: at most that often is any mask wrongly said to lose at most the margin, and as often
    any to lose more.

    Args:
        differences: Of each mask to the reference.
        margin: In units of the score, above 0.
        sign: 1 where more of the score is better, else -1.

    Returns:
        Each outcome with the adjusted p-value that it rests on; of one that is undecided that
        of "loses at most".
    """
    kept = [each.p_above(-margin, sign) for each in differences]
    claims: dict[MarginOutcome, list[float]] = {  # who gains more loses at most, too
        "gains more than": holm([each.p_above(margin, sign) for each in differences]),
        "loses at most": holm(kept),
        "loses more than": holm([1 - p for p in kept]),
    }
    outcomes: list[tuple[MarginOutcome, float]] = []
    for at in range(len(differences)):
        shown = [(kind, p[at]) for kind, p in claims.items() if p[at] <= ONE_SIDED]
        outcomes.append(shown[0] if shown else ("undecided", claims["loses at most"][at]))
    return outcomes


@dataclass(frozen=True)
class VolumeFinding:
    """Whether one hypervolume is larger than another."""

    against: str
    difference: PairedDifference  # in units of hypervolume
    adjusted: float  # Holm's p-value over the comparisons that were declared with it
    outcome: str  # "larger", "smaller", "not distinguishable" or "too few seeds"


def judge_volumes(
    family: Sequence[str], difference: Callable[[str, float], PairedDifference]
) -> dict[str, VolumeFinding]:
    """Hypervolumes that are compared together; arguments as those of `correct_family`."""
    findings = {}
    for name, (each, adjusted) in zip(family, correct_family(family, difference), strict=True):
        outcome = "not distinguishable"
        if each.n < CLAIM_SEEDS:
            outcome = "too few seeds"
        elif adjusted <= 0.05:
            outcome = "larger" if each.value > 0 else "smaller"
        findings[name] = VolumeFinding(name, each, adjusted, outcome)
    return findings


# -- power -------------------------------------------------------------------------------------
def power(
    difference: float,
    seeds: int,
    comparisons: int = 1,
    *,
    sd: float,
    row_error: float = 0.0,
) -> float:
    """Probability that a true difference is shown to be other than 0.

    Args:
        difference: Between two masks, in units of the score.
        seeds: Common to both; 0 power below `CLAIM_SEEDS`.
        comparisons: Corrected together (>= 1).
        sd: Over seeds, of the paired difference; that of one mask's scores times sqrt(2) where
            seeds have nothing in common.
        row_error: Standard error that more seeds leave: `row_error`.
    """
    if comparisons < 1 or sd < 0 or row_error < 0:
        raise ValueError(
            f"give comparisons >= 1, sd, row_error >= 0; got {comparisons}, {sd} and {row_error}"
        )
    alpha = ALPHA / comparisons
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


def least(candidates: Sequence[int], enough: Callable[[int], bool]) -> int | None:
    """The first of rising numbers that is enough, as are all above it; None where none is."""
    first = bisect.bisect_left(candidates, True, key=enough)
    return candidates[first] if first < len(candidates) else None


def seeds_needed(
    difference: float, comparisons: int = 1, *, sd: float, row_error: float = 0.0
) -> int | None:
    """The least number of seeds with which a true difference is found with probability 0.8.

    Args:
        difference: See `power`, as all others.
        comparisons: Corrected together.
        sd: Over seeds, of the paired difference.
        row_error: Standard error that more seeds leave.

    Returns:
        None where 1,000 seeds are too few: the evaluation data has too few rows for that
        difference, or there is none.

    >>> seeds_needed(0.0128, sd=0.0082 * 2**0.5)
    9
    >>> seeds_needed(0.0128, sd=0.0082 * 2**0.5, row_error=0.01)
    """

    def enough(seeds: int) -> bool:
        return power(difference, seeds, comparisons, sd=sd, row_error=row_error) >= POWER

    return least(range(CLAIM_SEEDS, MOST_SEEDS + 1), enough)


def largest_sd(difference: float, seeds: int, comparisons: int = 1) -> float:
    """The largest `sd` of `power` with which so many seeds find a difference with probability 0.8.

    Args:
        difference: See `power`, as all others; above 0.
        seeds: As many as there are, at least `CLAIM_SEEDS`.
        comparisons: Corrected together.

    >>> round(largest_sd(0.0128, 9), 4)
    0.012
    """

    def lacking(sd: float) -> float:
        return power(difference, seeds, comparisons, sd=sd) - POWER

    return float(optimize.brentq(lacking, difference / 1000, difference * seeds))


def rows_needed(
    difference: float, seeds: int, comparisons: int = 1, *, rows: int, sd: float, row_error: float
) -> int | None:
    """The least number of rows with which a difference is found with probability 0.8.

    Args:
        difference: See `power`, as all others.
        seeds: As many as there are.
        comparisons: Corrected together.
        rows: That `row_error` was found on.
        sd: Over seeds, of the paired difference; 0 where rows alone decide.
        row_error: On that many rows.

    Returns:
        None where a thousand times the rows are too few, for want of seeds.
    """

    def enough(more: int) -> bool:
        error = row_error * math.sqrt(rows / more)
        return power(difference, seeds, comparisons, sd=sd, row_error=error) >= POWER

    return least(range(max(rows, 1), 1000 * rows), enough)
