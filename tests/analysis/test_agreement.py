"""How far a masked model answers as the dense one, against the counts and formulas of a loop."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from masksearch.analysis.agreement import agreement


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1))
def test_of_classes_it_is_a_share_with_wilson_s_interval(rows):
    dense, masked = (np.array(each, np.int8) for each in zip(*rows, strict=True))
    found, same = agreement(dense, masked), sum(one == two for one, two in rows)
    assert found.value == same / len(rows)
    n, z = len(rows), 1.959963985
    middle, half = same + z**2 / 2, z * math.sqrt(same * (n - same) / n + z**2 / 4)
    wilson = (middle - half) / (n + z**2), (middle + half) / (n + z**2)
    assert (found.low, found.high) == pytest.approx(wilson, abs=1e-9)
    assert found.slope is found.shift is None
    assert str(found).startswith(f"answers {found.value:.3f} of {n} rows as the dense model")


@given(
    st.lists(st.floats(-5, 5), min_size=5, max_size=30, unique_by=lambda x: round(x, 2)),
    st.floats(0.2, 3),
    st.floats(-4, 4),
)
def test_of_scores_it_says_how_they_are_moved_and_stretched(dense, slope, shift):
    dense = np.array(dense)
    found = agreement(dense, dense * slope + shift)
    assert found.value == pytest.approx(1)
    assert found.slope == pytest.approx(slope)
    moved = (dense.mean() * (slope - 1) + shift) / dense.std()
    assert found.shift == pytest.approx(moved, abs=1e-6)
    assert ("move by" in str(found)) == (not 0.9 <= found.slope <= 1.1)


def test_the_interval_of_a_correlation_is_fisher_s():
    draw = np.random.default_rng(0)
    dense = draw.normal(size=100)
    masked = dense + draw.normal(size=100)
    found = agreement(dense, masked)
    z, half = math.atanh(np.corrcoef(dense, masked)[0, 1]), 1.959964 / math.sqrt(97)
    assert (found.low, found.high) == pytest.approx((math.tanh(z - half), math.tanh(z + half)))


def test_a_constant_answer_agrees_with_nothing():
    found = agreement(np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 2.0]))
    assert (found.value, found.slope, found.shift) == (0, 0, 0)
