import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from masksearch import Comparison, masks
from masksearch.analysis.row_scores import RowScores
from masksearch.analysis.stats import (
    estimate,
    holm,
    holm_levels,
    judge_margins,
    largest_sd,
    paired_difference,
    power,
    rows_needed,
    seeds_needed,
)
from masksearch.contracts import Evaluate, Objective, Record

scores = st.lists(st.integers(-1000, 1000).map(lambda x: x / 100), min_size=2, max_size=9)
p_values = st.lists(st.floats(0, 1), max_size=8)


@given(scores.filter(lambda values: len(set(values)) > 1), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_interval_matches_scipy(values, level):
    found = estimate(values, level)
    low, high = scipy_stats.ttest_1samp(values, 0).confidence_interval(level)
    assert (found.low, found.high) == pytest.approx((low, high))


@given(scores.filter(lambda values: len(values) > 2))
def test_paired_difference_matches_scipy(values):
    a = dict(enumerate(values))
    b = {seed: 0.37 * value**2 for seed, value in a.items()}
    found = paired_difference(a | {99: 5.0}, b | {98: 5.0})  # seeds of one side are left out
    assert found.n == len(values)
    if len({round(a[seed] - b[seed], 9) for seed in a}) == len(a):  # none repeats
        expected = scipy_stats.ttest_rel(list(a.values()), list(b.values()))
        assert found.p_value == pytest.approx(expected.pvalue)
        low, high = expected.confidence_interval(0.95)
        assert (found.low, found.high) == pytest.approx((low, high))


def test_one_seed_has_no_interval():
    found = estimate([0.7])
    assert (found.value, found.n) == (0.7, 1)
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert "1 seed, no interval" in str(found)
    difference = paired_difference({0: 0.7}, {0: 0.6, 1: 0.2})
    assert difference.n == 1
    assert math.isnan(difference.p_value)
    assert str(estimate([])) == "no result"
    assert paired_difference({0: 1.0}, {1: 1.0}).n == 0


def test_equal_differences_are_no_evidence():
    # star has 152, 149, 150 of 277 right and the other always one more
    star = {seed: right / 277 for seed, right in enumerate((152, 149, 150))}
    found = {seed: score + 1 / 277 for seed, score in star.items()}
    unknown = paired_difference(found, star)
    assert unknown.value == pytest.approx(1 / 277)
    assert math.isnan(unknown.p_value)
    assert math.isnan(unknown.high)
    # an sd of one row: t(2) = sqrt(3)
    known = paired_difference(found, star, tick=1 / 277)
    assert known.p_value == pytest.approx(2 * scipy_stats.t.sf(math.sqrt(3), 2))
    assert known.low < 0
    assert math.isnan(paired_difference(star, star).p_value)
    assert paired_difference(star, star, tick=1 / 277).p_value == 1


@given(
    st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 3)), min_size=3, max_size=6),
    st.integers(2, 1000),
)
def test_accuracies_are_judged_as_counts_of_rows_are(counts, rows):
    b = {seed: count for seed, (count, _) in enumerate(counts)}
    a = {seed: count + more for seed, (count, more) in enumerate(counts)}
    shares = [{seed: count / rows for seed, count in each.items()} for each in (a, b)]
    as_counts, as_shares = paired_difference(a, b), paired_difference(*shares)
    assert as_shares.p_value == pytest.approx(as_counts.p_value, rel=1e-6, nan_ok=True)
    assert as_shares.sd * rows == pytest.approx(as_counts.sd, abs=1e-9)


def rows_of(table, digest="rows"):
    """Seed -> its row scores, of a table `[seeds, rows]`."""
    runs = enumerate(np.asarray(table, float))
    return {seed: RowScores({"RTE": row}, {"RTE": 1.0}, {"RTE": digest}) for seed, row in runs}


def scores_of(rows):
    return {seed: row.score for seed, row in rows.items()}


TABLE = np.random.default_rng(1).normal(size=(4, 6)) + np.arange(6) / 4  # seeds, rows


def test_error_over_rows_matches_loops():
    seeds, rows = TABLE.shape
    cells = [(s, r, TABLE[s, r]) for s in range(seeds) for r in range(rows)]
    by_seed = [sum(x for t, _, x in cells if t == s) / rows for s in range(seeds)]
    by_row = [sum(x for _, q, x in cells if q == r) / seeds for r in range(rows)]
    mean = sum(by_seed) / seeds
    ms_row = seeds * sum((x - mean) ** 2 for x in by_row) / (rows - 1)
    ms_rest = sum((x - by_seed[s] - by_row[r] + mean) ** 2 for s, r, x in cells)
    ms_rest /= (seeds - 1) * (rows - 1)
    over_rows = (ms_row - ms_rest) / seeds / rows
    over_seeds = sum((x - mean) ** 2 for x in by_seed) / (seeds - 1) / seeds
    t = [scipy_stats.t.ppf(0.975, df) for df in (rows - 1, seeds - 1)]
    half = math.sqrt(t[0] ** 2 * over_rows + t[1] ** 2 * over_seeds)

    of_a = rows_of(TABLE)
    of_b = rows_of(np.zeros_like(TABLE))
    a, b = scores_of(of_a), scores_of(of_b)
    found = paired_difference(a, b, rows_a=of_a, rows_b=of_b)
    assert found.n_rows
    assert found.row_error == pytest.approx(math.sqrt(over_rows))
    assert (found.low, found.high) == pytest.approx((mean - half, mean + half))
    alone = estimate(list(a.values()), rows=of_a.values())
    assert (alone.low, alone.high) == pytest.approx((mean - half, mean + half))


@given(st.floats(0.5, 0.9999))
def test_interval_over_rows_agrees_with_its_p_value(level):
    of_a, of_b = rows_of(TABLE), rows_of(np.zeros_like(TABLE))
    found = paired_difference(scores_of(of_a), scores_of(of_b), level, rows_a=of_a, rows_b=of_b)
    if abs(found.p_value - (1 - level)) > 1e-9:
        assert (found.p_value < 1 - level) == (found.low > 0 or found.high < 0)


def test_rows_widen_what_seeds_alone_would_claim():
    # The same 60 rows of 1,000 go to a whatever the seed, 40 to b: seeds agree, rows do not
    draws = np.random.default_rng(0)
    base = (draws.random(1000) < 0.7).astype(float)
    of_a, of_b = np.tile(base, (10, 1)), np.tile(base, (10, 1))
    of_a[:, :60], of_b[:, :60] = 1, 0
    of_a[:, 60:100], of_b[:, 60:100] = 0, 1
    noise = draws.random((10, 1000)) < 0.01
    rows_a, rows_b = rows_of(np.where(noise, 1 - of_a, of_a)), rows_of(of_b)
    a, b = scores_of(rows_a), scores_of(rows_b)
    assert paired_difference(a, b).p_value < 0.001
    found = paired_difference(a, b, rows_a=rows_a, rows_b=rows_b)
    assert found.p_value > 0.05
    assert found.low < 0 < found.high


def test_rows_count_only_where_they_are_the_same():
    of_a, of_b = rows_of(TABLE), rows_of(0 * TABLE, digest="others")
    a, b = scores_of(of_a), scores_of(of_b)
    found = paired_difference(a, b, rows_a=of_a, rows_b=of_b)
    plain = paired_difference(a, b)
    assert not found.n_rows
    assert found.row_error == 0
    assert not paired_difference(a, b, rows_a=of_a).n_rows
    assert (found.low, found.p_value) == (plain.low, plain.p_value)
    # runs without rows (a diverged one) count with their scores; the others give the rows
    rows_b = rows_of(0 * TABLE)
    del rows_b[2]
    some = paired_difference(a, b, rows_a=of_a, rows_b=rows_b)
    assert some.n_rows
    assert some.n == 4
    assert some.value == plain.value


def test_rows_say_the_tick():
    # every run of a is right on the same row more: 1 of 6
    of_a, of_b = rows_of(np.ones((3, 6))), rows_of(np.repeat([[1, 1, 1, 1, 1, 0]], 3, 0))
    found = paired_difference(scores_of(of_a), scores_of(of_b), rows_a=of_a, rows_b=of_b)
    assert found.sd == pytest.approx(1 / 6)
    assert estimate([1.0, 1.0, 1.0], rows=of_a.values()).low < 1


def test_rows_of_several_parts_add_up():
    def scored(table, weights):
        return {
            seed: RowScores(dict.fromkeys(weights, row), weights, dict.fromkeys(weights, "rows"))
            for seed, row in enumerate(table)
        }

    def row_error(weights, other=None):
        of_a, of_b = scored(TABLE, weights), scored(0 * TABLE, other or weights)
        return paired_difference(
            scores_of(of_a), scores_of(of_b), rows_a=of_a, rows_b=of_b
        ).row_error

    whole = row_error({"RTE": 1.0})
    assert whole > 0
    both = row_error({"RTE": 0.25, "MRPC": 0.75})
    assert both == pytest.approx(whole * math.sqrt(0.25**2 + 0.75**2))
    assert row_error({"RTE": 0.25, "MRPC": 0.75}, {"RTE": 0.5, "MRPC": 0.5}) == 0


def test_rows_that_differ_less_than_chance_have_no_error_of_their_own():
    of_a = rows_of([[1, 0], [0, 1], [1, 0], [0, 1]])
    of_b = rows_of(np.zeros((4, 2)))
    found = paired_difference(scores_of(of_a), scores_of(of_b), rows_a=of_a, rows_b=of_b)
    assert found.n_rows
    assert found.row_error == 0


def test_a_single_seed_has_an_interval_over_rows_alone():
    rows = rows_of([[1, 0, 1, 1]])
    found = estimate([0.75], rows=rows.values())
    half = scipy_stats.t.ppf(0.975, 3) * 0.5 / 2  # sd of 1, 0, 1, 1 is 0.5
    assert (found.low, found.high) == pytest.approx((0.75 - half, 0.75 + half))
    assert str(found) == "0.750 [-0.046, 1.546], 1 seed, interval over rows alone"


def test_no_finished_run_is_worse_than_a_diverged_one():
    def worst(objective, scores):
        runs = [
            Record(n, "done", Evaluate(masks.full()), seed=n, name="m", values={"score": score})
            for n, score in enumerate(scores)
        ]
        return Comparison(tuple(runs), (objective,)).worst

    assert worst(Objective("score", "max", 0.4), [0.7, math.nan, 0.6]) == 0.4
    assert worst(Objective("score", "max", 0.4), [0.7, 0.3]) == 0.3
    assert worst(Objective("score", "min", 9.0), [4.0, 5.0]) == 9
    assert worst(Objective("score", "min", math.inf), [4.0, math.inf, 5.0]) == 5
    assert math.isnan(worst(Objective("score", "min", math.inf), []))


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


@given(st.floats(0, 5), st.integers(3, 30), st.integers(1, 20), st.floats(0.1, 10))
def test_power_over_seeds_is_the_noncentral_t(difference, seeds, comparisons, sd):
    edge = scipy_stats.t.isf(0.025 / comparisons, seeds - 1)
    shift = difference / sd * math.sqrt(seeds)
    expected = 1 - np.diff(scipy_stats.nct.cdf([-edge, edge], seeds - 1, shift))[0]
    if math.isfinite(expected):  # scipy's has holes far out
        assert power(difference, seeds, comparisons, sd=sd) == pytest.approx(expected, abs=2e-3)


def test_largest_sd_is_where_the_power_is_enough():
    for difference, seeds, comparisons in ((0.01, 3, 1), (0.01, 3, 12), (1.0, 5, 3), (2.0, 40, 1)):
        sd = largest_sd(difference, seeds, comparisons)
        assert power(difference, seeds, comparisons, sd=sd) == pytest.approx(0.8, abs=1e-6)


def test_seeds_needed_is_the_least_number():
    n = seeds_needed(1.0, 3, sd=1.2)
    assert power(1.0, n - 1, 3, sd=1.2) < 0.8 <= power(1.0, n, 3, sd=1.2)
    assert seeds_needed(0.0128, sd=0.0116) == 9  # docs/statistics.md, as is the next
    assert power(0.033, 5, 3, sd=0.0116, row_error=math.sqrt(4e-5)) == pytest.approx(0.8, abs=0.01)
    assert seeds_needed(100.0, sd=1.0) == 3
    assert seeds_needed(0.0, sd=1.0) is None
    assert seeds_needed(1.0, sd=0.1, row_error=0.5) is None


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: estimate([1.0, math.nan]), "leave it out and count it"),
        (lambda: power(1.0, 5, 0, sd=1.0), "comparisons >= 1"),
    ],
)
def test_messages(act, message):
    with pytest.raises(ValueError, match=message):
        act()


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
    named = dict(zip(("value", "low", "high"), figures, strict=False))
    assert replace(estimate([]), **named).text() == text


def test_differences_that_repeat_show_the_tick():
    star = dict(enumerate((150, 152, 149, 151)))
    found = {0: 152, 1: 155, 2: 151, 3: 153}  # 2, 3, 2 and 2 more
    counted = paired_difference(found, star)
    known = paired_difference(found, star, tick=1)
    assert (counted.sd, counted.p_value) == (1, known.p_value)


# -- margins -----------------------------------------------------------------------------------
gains = st.lists(st.floats(-0.05, 0.05), min_size=3, max_size=7, unique=True)


@given(gains, st.sampled_from([0.001, 0.01, 0.03]), st.sampled_from([1, -1]))
def test_margin_tests_match_scipy(values, margin, sign):
    found = paired_difference(dict(enumerate(values)), dict.fromkeys(range(len(values)), 0.0))
    if not found.errors or abs(found.sd - np.std(values, ddof=1)) > 1e-12:
        return
    better = [sign * value for value in values]
    for edge in (-margin, margin):
        expected = scipy_stats.ttest_1samp(better, edge, alternative="greater").pvalue
        assert found.p_above(edge, sign) == pytest.approx(expected, abs=1e-12)
    outcome, p = judge_margins([found], margin, sign)[0]
    tests = {
        "gains more than": scipy_stats.ttest_1samp(better, margin, alternative="greater").pvalue,
        "loses at most": scipy_stats.ttest_1samp(better, -margin, alternative="greater").pvalue,
        "loses more than": scipy_stats.ttest_1samp(better, -margin, alternative="less").pvalue,
    }
    shown = [kind for kind, value in tests.items() if value <= 0.025]
    assert outcome == (shown[0] if shown else "undecided")
    assert p == pytest.approx(tests.get(outcome, tests["loses at most"]), abs=1e-12)


def test_holm_corrects_every_kind_of_outcome_by_its_own_tests():
    noise = (-0.001, 0.0, 0.001)
    dense = dict.fromkeys(range(3), 0.0)
    near, far = ({s: mean + e for s, e in enumerate(noise)} for mean in (0.0, -0.05))
    one = paired_difference(near, dense).p_above(-0.004)
    assert one == pytest.approx(0.0101, abs=1e-4)
    alone = judge_margins([paired_difference(near, dense)], 0.004, 1)
    beside = judge_margins([paired_difference(each, dense) for each in (near, far)], 0.004, 1)
    many = judge_margins([paired_difference(near, dense)] * 3, 0.004, 1)
    assert alone[0] == ("loses at most", pytest.approx(one))
    assert beside[0] == ("loses at most", pytest.approx(2 * one))
    assert beside[1][0] == "loses more than"
    assert many[0] == ("undecided", pytest.approx(3 * one))


def test_a_comparison_that_cannot_be_made_stays_in_the_family():
    lost = paired_difference({0: 0.5}, {0: 0.5})
    near = paired_difference({0: 0.0, 1: 0.001, 2: -0.001}, dict.fromkeys(range(3), 0.0))
    outcomes = judge_margins([lost, near], 0.004, 1)
    assert outcomes[0] == ("undecided", 1.0)
    assert outcomes[1][1] == pytest.approx(2 * near.p_above(-0.004))


@pytest.mark.slow
@given(st.floats(0.002, 0.05), st.sampled_from([0.0, 0.004, 0.02]), st.integers(3, 9))
def test_rows_needed_is_where_power_reaches_four_fifths(difference, sd, seeds):
    about = {"sd": sd, "row_error": 0.01}
    rows = rows_needed(difference, seeds, rows=500, **about)

    def reached(count):
        error = 0.01 * math.sqrt(500 / count)
        return power(difference, seeds, sd=sd, row_error=error) >= 0.8

    if rows is None:
        assert not reached(499_999)
    else:
        assert reached(rows)
        assert rows == 500 or not reached(rows - 1)


# -- row scores in their file --------------------------------------------------------------------
ROWS = RowScores(
    {"RTE": np.array([1.0, 0.0, 1.0, 1.0]), "STS-B": np.array([0.25, 0.5])},
    {"RTE": 0.5, "STS-B": 0.5},
    {"RTE": "a1", "STS-B": "b2"},
    {"RTE": np.array([2, 0, 1, 1], np.int8)},
)


def test_score_and_tick():
    assert ROWS.score == 0.5 * 0.75 + 0.5 * 0.375
    assert ROWS.tick == 0.25  # one of the two rows of STS-B, at half the weight


def test_round_trip(tmp_path: Path):
    ROWS.save(tmp_path / "trials" / "0")
    found = RowScores.load(tmp_path / "trials" / "0" / "rows.safetensors")
    assert (found.weights, found.digests) == (ROWS.weights, ROWS.digests)
    assert {part: array.tolist() for part, array in found.scores.items()} == {
        "RTE": [1, 0, 1, 1],
        "STS-B": [0.25, 0.5],
    }
    assert found.predictions["RTE"].dtype == np.int8
    assert found.score == pytest.approx(ROWS.score)
