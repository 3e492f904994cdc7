"""Values near a parent's: valid, other, and mostly near."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from masksearch.contracts import generator
from masksearch.strategies.evolution import fitted_value, near_value, random_value

KINDS = st.one_of(
    st.builds(
        lambda low, span, step: IntDistribution(low, low + span * step, step=step),
        st.integers(-50, 50),
        st.integers(0, 40),
        st.integers(1, 4),
    ),
    st.builds(lambda low, span: IntDistribution(low, low + span, log=True),
              st.integers(1, 50), st.integers(0, 900)),
    st.builds(lambda low, span: FloatDistribution(low, low + span),
              st.floats(-9, 9), st.floats(0.1, 9)),
    st.builds(lambda low, factor: FloatDistribution(low, low * factor, log=True),
              st.floats(0.001, 9), st.floats(1.1, 1e4)),
    st.builds(lambda count: FloatDistribution(0.0, count * 0.25, step=0.25), st.integers(1, 30)),
    st.builds(lambda count: CategoricalDistribution(["a", True, 3, None][:count]),
              st.integers(1, 4)),
)  # fmt: skip


def contains(kind, value) -> bool:
    return kind._contains(kind.to_internal_repr(value))


@given(KINDS, st.integers(0, 10**6))
def test_values_are_valid_and_a_near_one_is_another(kind, seed):
    draws = generator(seed)
    value = random_value(kind, draws)
    assert contains(kind, value)
    assert fitted_value(kind, value) == pytest.approx(value)
    near = near_value(kind, value, draws)
    assert contains(kind, near)
    assert type(near) is type(value) or isinstance(kind, CategoricalDistribution)
    if not kind.single() and not (isinstance(kind, FloatDistribution) and kind.step is None):
        assert near != value


def test_random_values_are_uniform():
    kind = IntDistribution(2, 8, step=2)
    counts = Counter(random_value(kind, draws) for draws in [generator(0)] for _ in range(2000))
    assert sorted(counts) == [2, 4, 6, 8]
    assert all(400 < count < 600 for count in counts.values())


def test_logarithmic_integers_are_uniform_in_their_logarithm():
    kind, draws = IntDistribution(1, 1024, log=True), generator(0)
    small = sum(random_value(kind, draws) < 32 for _ in range(2000))
    assert 900 < small < 1200


def test_integers_mutate_mostly_to_near_values():
    kind, draws = IntDistribution(0, 100), generator(0)
    moves = [abs(near_value(kind, 50, draws) - 50) for _ in range(1000)]
    assert sum(move <= 10 for move in moves) > 600
    assert max(moves) > 40


def test_value_is_fitted_to_a_range_that_moved():
    assert fitted_value(IntDistribution(0, 3), 9) == 3
    assert fitted_value(IntDistribution(0, 9, step=3), 4) == 3
    assert fitted_value(FloatDistribution(2, 3), 1.0) == 2.0
    assert fitted_value(CategoricalDistribution(["a"]), "b") is None
    assert fitted_value(IntDistribution(0, 3), "b") is None
