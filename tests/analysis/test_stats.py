from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from masksearch.analysis.stats import (
    decimals_for,
    estimate,
    format_estimate,
    holm,
    holm_levels,
    paired_difference,
)

scores = st.lists(st.integers(-1000, 1000).map(lambda x: x / 100), min_size=2, max_size=9)
p_values = st.lists(st.floats(0, 1), max_size=8)


def test_interval_by_hand():
    # mean 3, sd sqrt(2.5), t(4, 0.975) = 2.776445: half width 1.9632
    found = estimate([1, 2, 3, 4, 5])
    assert found.mean == 3
    assert found.low == pytest.approx(3 - 1.963243, abs=1e-6)
    assert found.high == pytest.approx(3 + 1.963243, abs=1e-6)
    assert found.n_seeds == 5


@given(scores.filter(lambda values: len(set(values)) > 1), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_interval_matches_scipy(values, level):
    found = estimate(values, level)
    low, high = scipy_stats.ttest_1samp(values, 0).confidence_interval(level)
    assert (found.low, found.high) == pytest.approx((low, high))


@given(scores)
def test_paired_difference_matches_scipy(values):
    a = dict(enumerate(values))
    b = {seed: 0.37 * value**2 for seed, value in a.items()}
    found = paired_difference(a | {99: 5.0}, b | {98: 5.0})  # seeds of one side are left out
    assert found.n_seeds == len(values)
    if len({round(a[seed] - b[seed], 9) for seed in a}) > 1:
        expected = scipy_stats.ttest_rel(list(a.values()), list(b.values()))
        assert found.p_value == pytest.approx(expected.pvalue)
        low, high = expected.confidence_interval(0.95)
        assert (found.low, found.high) == pytest.approx((low, high))


@given(scores)
def test_paired_difference_is_antisymmetric(values):
    a, b = dict(enumerate(values)), dict(enumerate(reversed(values)))
    there, back = paired_difference(a, b), paired_difference(b, a)
    assert there.mean == pytest.approx(-back.mean)
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))
    assert there.p_value == pytest.approx(back.p_value)


def test_one_seed_has_no_interval():
    found = estimate([0.7])
    assert (found.mean, found.n_seeds) == (0.7, 1)
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert "1 seed, no interval" in str(found)
    difference = paired_difference({0: 0.7}, {0: 0.6, 1: 0.2})
    assert difference.n_seeds == 1
    assert math.isnan(difference.p_value)
    assert str(estimate([])) == "no result"
    assert paired_difference({0: 1.0}, {1: 1.0}).n_seeds == 0


def test_equal_differences():
    same = paired_difference({0: 0.5, 1: 0.6}, {0: 0.5, 1: 0.6})
    assert (same.mean, same.p_value, same.low, same.high) == (0, 1, 0, 0)
    apart = paired_difference({0: 2.0, 1: 3.0}, {0: 1.0, 1: 2.0})
    assert (apart.mean, apart.p_value, apart.low) == (1, 0, 1)


def test_holm_by_hand():
    # Holm (1979): 4 x 0.005, then 3 x 0.01, 2 x 0.03, 1 x 0.04 raised to the one before
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.2, math.nan]) == pytest.approx([0.4, 1.0])
    assert holm([]) == []


@given(p_values)
def test_holm_lies_between_none_and_bonferroni(raw):
    for p, adjusted in zip(raw, holm(raw), strict=True):
        assert p <= adjusted <= min(1.0, len(raw) * p) + 1e-12


@given(p_values)
def test_levels_reject_what_holm_rejects(raw):
    # An interval at level L excludes 0 exactly when p <= 1 - L.
    for p, adjusted, level in zip(raw, holm(raw), holm_levels(raw), strict=True):
        if abs(p - (1 - level)) > 1e-9:
            assert (p < 1 - level) == (adjusted <= 0.05)


def test_messages():
    with pytest.raises(ValueError, match=r"in \(0, 1\), got 95; 0.95 is usual"):
        estimate([1.0], level=95)
    with pytest.raises(ValueError, match="leave it out and count it"):
        estimate([1.0, math.nan])
    with pytest.raises(ValueError, match=r"p-value is in \[0, 1\], got 1.5"):
        holm([1.5])


@pytest.mark.parametrize(
    ("figures", "text"),
    [
        ((0.7477, 0.71861, 0.7768), "0.748 [0.719, 0.777]"),
        ((1.0, 1.0, 1.0), "1.000 [1.000, 1.000]"),
        ((0.0, 0.0, 0.0), "0.000 [0.000, 0.000]"),
        ((-1e-9, -0.5, 0.5), "0.000 [-0.500, 0.500]"),
        ((0.001147, 0.0002, 0.002), "0.00115 [0.00020, 0.00200]"),
        ((123.456, 99.0, 140.0), "123.5 [99.0, 140.0]"),
        ((0.5,), "0.500"),
        ((math.nan,), "-"),
        ((0.5, -math.inf, math.inf), "0.500 [-inf, inf]"),
    ],
)
def test_numbers_of_an_interval_have_the_same_decimals(figures, text):
    assert format_estimate(*figures) == text


def test_rows_of_a_column_share_their_decimals():
    places = decimals_for([12.0, 0.3])
    assert [format_estimate(v, decimals=places) for v in (12.0, 0.3)] == ["12.00", "0.30"]
    assert format_estimate(0.25, 0.1, 0.4, signed=True) == "+0.250 [+0.100, +0.400]"
