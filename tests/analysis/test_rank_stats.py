"""Rank agreement within bands, its intervals, and the variance of masks and seeds."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from masksearch.analysis.rank_stats import (
    Resampling,
    Spread,
    align_seeds,
    best,
    chance,
    front,
    seed_mean,
    spread,
    tau_b,
)

FEW = settings(max_examples=40, deadline=None)
SMALL = st.integers(-3, 3).map(float) | st.just(math.nan)


@st.composite
def ranked(draw, missing: bool = True):
    """Two measures of some masks, with ties (and missing values), and their bands."""
    number = draw(st.integers(2, 12))
    values = st.lists(SMALL if missing else st.integers(-9, 9).map(float),
                      min_size=number, max_size=number)  # fmt: skip
    bands = draw(st.lists(st.integers(0, 2), min_size=number, max_size=number))
    return np.array(draw(values)), np.array(draw(values)), np.array(bands)


def oracle(x, y, bands) -> float:
    """Pooled over bands: (concordant - discordant) / sqrt(untied in x * untied in y)."""
    agreed = untied_x = untied_y = 0
    for i, j in itertools.combinations(range(len(x)), 2):
        if bands[i] != bands[j] or not np.isfinite([x[i], x[j], y[i], y[j]]).all():
            continue
        product = (x[i] - x[j]) * (y[i] - y[j])
        agreed += int(product > 0) - int(product < 0)
        untied_x += x[i] != x[j]
        untied_y += y[i] != y[j]
    return agreed / math.sqrt(untied_x * untied_y) if untied_x and untied_y else math.nan


@FEW
@given(ranked())
def test_tau_within_bands_matches_the_loop_over_pairs(case):
    x, y, bands = case
    assert tau_b(x, y, bands) == pytest.approx(oracle(x, y, bands), nan_ok=True)


@FEW
@given(ranked(missing=False))
def test_tau_with_one_band_is_scipys_tau_b(case):
    x, y, _ = case
    plain = tau_b(x, y)
    assert tau_b(x, y, np.zeros(len(x), dtype=int)) == pytest.approx(plain, nan_ok=True)
    assert plain == pytest.approx(stats.kendalltau(x, y).statistic, nan_ok=True)


@FEW
@given(ranked())
def test_tau_of_a_measure_with_itself_is_1(case):
    x, _, bands = case
    tau = tau_b(x, x, bands)
    assert math.isnan(tau) or tau == 1
    assert math.isnan(tau) or tau_b(x, -x, bands) == -1


@FEW
@given(ranked())
def test_monotone_transforms_change_no_rank_statistic(case):
    x, y, bands = case
    before, after = tau_b(x, y, bands), tau_b(np.exp(x), 2 * y**3 + 1, bands)
    assert after == pytest.approx(before, nan_ok=True)


@FEW
@given(ranked(), st.randoms(use_true_random=False))
def test_the_order_of_masks_does_not_matter(case, random):
    x, y, bands = case
    order = list(range(len(x)))
    random.shuffle(order)
    moved = tau_b(x[order], y[order], bands[order])
    assert moved == pytest.approx(tau_b(x, y, bands), nan_ok=True)


@FEW
@given(ranked(), st.data())
def test_draws_of_masks_are_the_masks_copied(case, data):
    x, y, bands = case
    drawn = [data.draw(st.integers(0, len(x) - 1)) for _ in x]
    counts = np.bincount(drawn, minlength=len(x))
    direct = tau_b(x[drawn], y[drawn], bands[drawn])
    assert tau_b(x, y, bands, counts[None])[0] == pytest.approx(direct, nan_ok=True)


def test_density_alone_gives_no_agreement_within_bands():
    random = np.random.default_rng(0)
    bands = np.repeat(np.arange(10), 10)
    x, y = 100 * bands + random.normal(size=(2, 100))
    assert tau_b(x, y) > 0.9
    assert abs(tau_b(x, y, bands)) < 0.2


def test_chance_is_the_spread_of_unrelated_rankings():
    assert chance(np.zeros(10, dtype=int)) < 0.5 < chance(np.zeros(9, dtype=int))
    assert math.isinf(chance(np.arange(5)))
    random, bands = np.random.default_rng(0), np.repeat([0, 1, 2], [7, 4, 9])
    taus = [tau_b(random.permutation(20), np.arange(20.0), bands) for _ in range(2000)]
    assert 1.96 * np.std(taus) == pytest.approx(chance(bands), rel=0.08)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    """Normal pairs have tau = 2/pi asin(rho); 100 samples of 40 masks, one seed."""
    random, truth, held = np.random.default_rng(1), 2 / math.pi * math.asin(0.7), 0
    bands = np.zeros(40, dtype=int)
    for case in range(100):
        x = random.normal(size=(40, 1))
        y = 0.7 * x + math.sqrt(1 - 0.49) * random.normal(size=(40, 1))
        found = Resampling(bands, 1, 200, case).tau(x, y, banded=True)
        held += found.low <= truth <= found.high
    assert 86 <= held <= 100


def test_intervals_are_reproducible_and_bring_their_level():
    x, y = np.random.default_rng(0).normal(size=(2, 20, 3))
    bands = np.arange(20) % 2
    wide = Resampling(bands, 3, 300, 5, 0.95).tau(x, y, banded=True)
    assert Resampling(bands, 3, 300, 5, 0.95).tau(x, y, banded=True) == wide
    assert Resampling(bands, 3, 300, 6, 0.95).tau(x, y, banded=True) != wide
    narrow = Resampling(bands, 3, 300, 5, 0.5).tau(x, y, banded=True)
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high
    assert math.isnan(Resampling(bands, 3, 0, 5).tau(x, y, banded=True).low)


def test_draws_stay_within_their_band():
    bands = np.array([0, 0, 0, 1, 1, 2])
    resampling = Resampling(bands, 2, 50, 0)
    for band, size in ((0, 3), (1, 2), (2, 1)):
        assert (resampling.within[:, bands == band].sum(axis=1) == size).all()
    assert (resampling.across.sum(axis=1) == 6).all()


def test_tau_between_seeds_is_the_mean_over_pairs_of_different_seeds():
    x, y = np.random.default_rng(0).normal(size=(2, 15, 3))
    resampling = Resampling(np.zeros(15, dtype=int), 3, 20, 0)
    pairs = [tau_b(x[:, a], y[:, b]) for a in range(3) for b in range(3) if a != b]
    assert resampling.tau_between_seeds(x, y, False).value == pytest.approx(np.mean(pairs))
    ceiling = [tau_b(x[:, a], x[:, b]) for a, b in ((0, 1), (0, 2), (1, 2))]
    assert resampling.tau_between_seeds(x, x, False).value == pytest.approx(np.mean(ceiling))
    assert resampling.tau_between_seeds(x, x.copy(), False).value == pytest.approx(
        np.mean(ceiling)
    )
    alone = resampling.tau_between_seeds(x[:, :1], x[:, :1], False)
    assert math.isnan(alone.value)


@pytest.mark.parametrize("banded", [False, True])
def test_spread_recovers_the_simulated_sigmas(banded):
    random = np.random.default_rng(3)
    bands = np.repeat(np.arange(8), 100)
    values = 2 * random.normal(size=(800, 1)) + 0.5 * random.normal(size=(800, 4))
    if banded:
        values += 30 * bands[:, None]
    values[::5, 3] = np.nan
    values[::7, 1:] = np.nan
    found = spread(values, bands if banded else None)
    assert found.sigma_mask == pytest.approx(2, rel=0.06)
    assert found.sigma_seed == pytest.approx(0.5, rel=0.06)
    assert found.reliability == pytest.approx(4 / 4.25, abs=0.01)


def test_spread_of_a_balanced_table_is_the_textbook_one():
    values = np.array([[1.0, 2.0], [3.0, 5.0], [8.0, 7.0]])
    between = 2 * np.var(values.mean(axis=1), ddof=1)
    within = np.mean(np.var(values, axis=1, ddof=1))
    found = spread(values)
    assert found.sigma_seed == pytest.approx(math.sqrt(within))
    assert found.sigma_mask == pytest.approx(math.sqrt((between - within) / 2))
    icc = (between - within) / (between + within)  # ICC(1) for two seeds
    assert found.reliability == pytest.approx(icc)
    assert found.of_seeds(2) == pytest.approx((between - within) / between)


def test_spread_says_what_it_cannot_know():
    alone = spread(np.array([[1.0], [3.0]]))
    assert alone.sigma_mask == pytest.approx(math.sqrt(2))
    assert math.isnan(alone.sigma_seed)
    assert math.isnan(alone.reliability)
    noise = spread(np.array([[0.0, 9.0], [9.0, 0.0]]))
    assert noise == Spread(0.0, pytest.approx(math.sqrt(40.5)), 0.0)
    assert math.isnan(spread(np.array([[1.0, 2.0]])).sigma_mask)


def test_a_seed_that_moves_all_masks_does_not_rank_them():
    truth = np.arange(6.0)
    values = np.stack([truth, truth + 10], axis=1)
    assert align_seeds(values) is values
    values[4:, 1] = np.nan  # the last two have seed 0 alone
    assert tau_b(seed_mean(values), truth) < 1
    assert tau_b(seed_mean(align_seeds(values)), truth) == 1
    apart = np.array([[1.0, np.nan], [np.nan, 2.0]])
    assert np.array_equal(align_seeds(apart), apart, equal_nan=True)


def test_best_takes_the_first_of_equals_and_no_nan():
    assert list(best(np.array([1.0, np.nan, 3.0, 3.0]), 2)) == [2, 3]
    assert list(best(np.array([np.nan, 1.0]), 5)) == [1]


@FEW
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 4)), min_size=1, max_size=9))
def test_front_matches_the_definition(points):
    values, densities = np.array(points, dtype=float).T
    wanted = {
        i
        for i, (v, d) in enumerate(points)
        if not any(w >= v and e <= d and (w, e) != (v, d) for w, e in points)
    }
    assert front(values, densities) == wanted
