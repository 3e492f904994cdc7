"""Error of a mean over seeds and evaluation rows, both drawn at random and crossed.

A run of seed s scores row r with `x[s, r] = mean + seed[s] + row[r] + rest[s, r]`: every seed
meets the same rows. More seeds make `seed` and `rest` average out and leave `row` as it is, so
that the mean's variance has two parts, `MS_seed / seeds + var(row) / rows` with MS_seed the
variance of the seeds' scores. `var(row) = (MS_row - MS_rest) / seeds`, not below 0, is its
estimate by analysis of variance.

Reference: Searle, Casella and McCulloch, Variance Components, 1992 (crossed random effects); for
seeds and rows of language models, Sellam et al., The MultiBERTs, ICLR 2022.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from masksearch.analysis.row_scores import RowScores

LEAST_P = 1e-100  # smaller p-values are given as this


class ErrorPart(NamedTuple):
    """One part of a mean's variance, and the degrees of freedom of its estimate."""

    variance: float
    df: int


@dataclass(frozen=True)
class RowTables:
    """Scores row by row of several runs over the same rows.

    Args:
        tables: Part of the data -> float `[runs, rows]`.
        weights: Part -> its weight in the score.
    """

    tables: Mapping[str, NDArray[np.float64]]
    weights: Mapping[str, float]

    def errors(self) -> list[ErrorPart]:
        """Variance of the score that comes from the draw of the rows, of each part of the data.

        A single run cannot tell a row's own effect from the rest: both count.
        """
        found = []
        for part, table in self.tables.items():
            runs, rows = table.shape
            if rows < 2:
                continue
            by_row = table.mean(0)
            variance = float(by_row.var(ddof=1))  # MS_row / runs
            if runs > 1:
                rest = table - by_row - table.mean(1, keepdims=True) + table.mean()
                of_rest = float((rest**2).sum()) / ((runs - 1) * (rows - 1))
                variance = max(0.0, variance - of_rest / runs)
            found.append(ErrorPart(self.weights[part] ** 2 * variance / rows, rows - 1))
        return found


def stack_rows(runs: Sequence[RowScores], others: Sequence[RowScores] = ()) -> RowTables | None:
    """The scores of runs as tables, minus those of others.

    Returns:
        None without runs, or where they have not all seen the same rows.
    """
    everything = [*runs, *others]
    about = [(run.digests, run.weights) for run in everything]
    if not everything or any(each != about[0] for each in about):
        return None
    weights = runs[0].weights
    tables: dict[str, NDArray[np.float64]] = {}
    for part in weights:
        tables[part] = np.stack([run.scores[part] for run in runs]).astype(np.float64)
        if others:
            tables[part] -= np.stack([run.scores[part] for run in others])
    return RowTables(tables, weights)


def seed_error(values: Sequence[float], tick: float = 0.0) -> ErrorPart:
    """Variance of a mean over seeds: that of the values, not below `tick ** 2`, over their number.

    Scores that are counted in ticks (one row more or less) can agree by luck; that seeds agree
    to less than one tick is no evidence.
    """
    return ErrorPart(max(float(np.var(values, ddof=1)), tick**2) / len(values), len(values) - 1)


def half_width(parts: Sequence[ErrorPart], level: float) -> float:
    """Half the width of a mean's interval: `sqrt(sum of t(df)^2 * variance)`.

    With one part it is Student's. With several the interval covers with at least `level`
    whatever their true sizes. Satterthwaite's degrees of freedom do not: with three seeds and a
    fifth of the variance in the rows they reject at 0.4 % five times too often.

    Reference: Banerjee, Sankhya 22, 357 (1960).
    """
    return math.sqrt(
        math.fsum(float(stats.t.isf((1 - level) / 2, p.df)) ** 2 * p.variance for p in parts)
    )


def two_sided_p(mean: float, parts: Sequence[ErrorPart]) -> float:
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
