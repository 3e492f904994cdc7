"""Rank agreement within bands, and its intervals."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from masksearch.analysis.ranks import Resampling, align_seeds, chance, seed_mean, tau_b

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
    plain = tau_b(x, y, np.zeros(len(x), dtype=int))
    assert plain == pytest.approx(stats.kendalltau(x, y).statistic, nan_ok=True)


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
    assert tau_b(x, y, 0 * bands) > 0.9
    assert abs(tau_b(x, y, bands)) < 0.2


def test_chance_is_the_spread_of_unrelated_rankings():
    assert chance(np.zeros(10, dtype=int)) < 0.5 < chance(np.zeros(9, dtype=int))
    assert math.isinf(chance(np.arange(5)))
    random, bands = np.random.default_rng(0), np.repeat([0, 1, 2], [7, 4, 9])
    taus = [
        tau_b(random.permutation(20.0 + np.arange(20)), np.arange(20.0), bands)
        for _ in range(2000)
    ]
    assert 1.96 * np.std(taus) == pytest.approx(chance(bands), rel=0.08)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    """Normal pairs have tau = 2/pi asin(rho); 100 samples of 40 masks, one seed."""
    random, truth, held = np.random.default_rng(1), 2 / math.pi * math.asin(0.7), 0
    bands = np.zeros(40, dtype=int)
    for case in range(100):
        x = random.normal(size=(40, 1))
        y = 0.7 * x + math.sqrt(1 - 0.49) * random.normal(size=(40, 1))
        found = Resampling(bands, 1, 200, case).tau(x, y)
        held += found.low <= truth <= found.high
    assert 86 <= held <= 100


def test_intervals_are_reproducible_and_bring_their_level():
    x, y = np.random.default_rng(0).normal(size=(2, 20, 3))
    bands = np.arange(20) % 2
    wide = Resampling(bands, 3, 300, 5, 0.95).tau(x, y)
    assert Resampling(bands, 3, 300, 5, 0.95).tau(x, y) == wide
    assert Resampling(bands, 3, 300, 6, 0.95).tau(x, y) != wide
    narrow = Resampling(bands, 3, 300, 5, 0.5).tau(x, y)
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high
    assert math.isnan(Resampling(bands, 3, 0, 5).tau(x, y).low)


def test_tau_between_seeds_is_the_mean_over_pairs_of_different_seeds():
    x, y = np.random.default_rng(0).normal(size=(2, 15, 3))
    resampling = Resampling(np.zeros(15, dtype=int), 3, 20, 0)
    bands = np.zeros(15, dtype=int)
    pairs = [tau_b(x[:, a], y[:, b], bands) for a in range(3) for b in range(3) if a != b]
    assert resampling.tau_between_seeds(x, y).value == pytest.approx(np.mean(pairs))
    ceiling = [tau_b(x[:, a], x[:, b], bands) for a, b in ((0, 1), (0, 2), (1, 2))]
    assert resampling.tau_between_seeds(x, x).value == pytest.approx(np.mean(ceiling))
    alone = resampling.tau_between_seeds(x[:, :1], x[:, :1])
    assert math.isnan(alone.value)


def test_a_seed_that_moves_all_masks_does_not_rank_them():
    truth = np.arange(6.0)
    values = np.stack([truth, truth + 10], axis=1)
    assert align_seeds(values) is values
    values[4:, 1] = np.nan  # the last two have seed 0 alone
    one = np.zeros(6, dtype=int)
    assert tau_b(seed_mean(values), truth, one) < 1
    assert tau_b(seed_mean(align_seeds(values)), truth, one) == 1
    apart = np.array([[1.0, np.nan], [np.nan, 2.0]])
    assert np.array_equal(align_seeds(apart), apart, equal_nan=True)
