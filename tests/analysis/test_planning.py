from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from masksearch.analysis.planning import (
    detectable_difference,
    error_over_rows,
    power,
    seeds_needed,
)
from masksearch.analysis.stats import paired_difference


@given(st.floats(0, 5), st.integers(3, 30), st.integers(1, 20), st.floats(0.1, 10))
def test_power_over_seeds_is_the_noncentral_t(difference, seeds, comparisons, sd):
    edge = scipy_stats.t.isf(0.025 / comparisons, seeds - 1)
    shift = difference / sd * math.sqrt(seeds)
    expected = 1 - np.diff(scipy_stats.nct.cdf([-edge, edge], seeds - 1, shift))[0]
    if math.isfinite(expected):  # scipy's has holes far out
        assert power(difference, seeds, comparisons, sd=sd) == pytest.approx(expected, abs=2e-3)


@pytest.mark.slow
def test_power_is_how_often_the_test_finds_it():
    draws = np.random.default_rng(0).normal(size=(1500, 5))
    for difference in (0.0, 1.5, 3.0):
        found = [
            paired_difference(dict(enumerate(row + difference)), dict.fromkeys(range(5), 0.0))
            for row in draws
        ]
        rate = np.mean([each.p_value < 0.05 for each in found])
        assert rate == pytest.approx(power(difference, 5, sd=1), abs=0.03)


def test_detectable_difference_has_its_power():
    found = detectable_difference(5, 277, 12, sd=0.01, disagreement=0.04)
    rows = error_over_rows(0.04, 277)
    assert power(found, 5, 12, sd=0.01, row_error=rows) == pytest.approx(0.8, abs=1e-3)
    # more seeds help as far as the rows allow
    many = detectable_difference(1000, 277, 12, sd=0.01, disagreement=0.04)
    floor = rows * (scipy_stats.norm.isf(0.025 / 12) + scipy_stats.norm.isf(0.2))
    assert floor < many < 1.01 * floor
    assert detectable_difference(2, sd=0.01) == math.inf
    # nothing is told apart to less than a row
    assert detectable_difference(5, 277, sd=0) == detectable_difference(5, 277, sd=1 / 277)


def test_figures_of_the_page():  # docs/statistics.md
    assert round(
        detectable_difference(5, 1000, comparisons=3, sd=0.0116, disagreement=0.04), 3
    ) == (0.033)
    assert seeds_needed(0.0128, sd=0.0116) == 9


def test_seeds_needed_is_the_least_number():
    n = seeds_needed(1.0, 3, sd=1.2)
    assert n is not None
    assert power(1.0, n - 1, 3, sd=1.2) < 0.8 <= power(1.0, n, 3, sd=1.2)
    assert seeds_needed(100.0, sd=1.0) == 3
    assert seeds_needed(0.0, sd=1.0) is None
    assert seeds_needed(1.0, sd=0.1, row_error=0.5) is None


def test_disagreement_beyond_that_of_seeds_is_the_variance_of_rows():
    # 20,000 rows; two masks answer each rightly with probabilities of their own
    draws = np.random.default_rng(0)
    p, q = draws.random((2, 20000))
    between = np.mean(p * (1 - q) + q * (1 - p))
    within = np.mean(p * (1 - p) + q * (1 - q))
    assert error_over_rows(between - within, 20000) == pytest.approx(
        math.sqrt(np.mean((p - q) ** 2) / 20000)
    )


def test_messages():
    with pytest.raises(ValueError, match="comparisons >= 1"):
        power(1.0, 5, 0, sd=1.0)
