"""The official metrics against definitions written out here."""

import math
from collections import Counter
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from masksearch.tasks.glue.tasks import TASKS, majority, score

pytestmark = pytest.mark.filterwarnings("error")

two_way = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=60)
number = st.integers(-1000, 1000).map(lambda value: value / 100)
scores = st.lists(st.tuples(number, number), min_size=2, max_size=40)

three_way = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=60)


def plain_matthews(pairs: list[tuple[int, int]]) -> float:
    """(TP TN - FP FN) / sqrt of the product of the four margins, 0 where one is empty."""
    count = Counter(pairs)
    hit, false, miss, right = count[1, 1], count[1, 0], count[0, 1], count[0, 0]
    below = (hit + false) * (hit + miss) * (right + false) * (right + miss)
    return (hit * right - false * miss) / math.sqrt(below) if below else 0.0


def plain_f1(pairs: list[tuple[int, int]]) -> float:
    """Harmonic mean of precision and recall of class 1, 0 without a true positive."""
    count = Counter(pairs)
    if not count[1, 1]:
        return 0.0
    precision = Fraction(count[1, 1], count[1, 1] + count[1, 0])
    recall = Fraction(count[1, 1], count[1, 1] + count[0, 1])
    return float(2 * precision * recall / (precision + recall))


def plain_correlation(a: list[float], b: list[float]) -> float:
    """Exact sums; 0 where one side is constant."""
    x, y = [Fraction(v) for v in a], [Fraction(v) for v in b]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    both = sum((p - mean_x) * (q - mean_y) for p, q in zip(x, y, strict=True))
    below = sum((p - mean_x) ** 2 for p in x) * sum((q - mean_y) ** 2 for q in y)
    return float(both) / math.sqrt(below) if below else 0.0


def ranks(values: list[float]) -> list[float]:
    """Ranks from 1, the mean rank for equals."""
    low = [sum(other < value for other in values) for value in values]
    same = [sum(other == value for other in values) for value in values]
    return [first + (count + 1) / 2 for first, count in zip(low, same, strict=True)]


@pytest.mark.slow
@settings(max_examples=25)
@given(two_way)
def test_class_metrics_follow_their_definitions(pairs: list[tuple[int, int]]) -> None:
    guess, truth = [p for p, _ in pairs], [t for _, t in pairs]
    right = sum(p == t for p, t in pairs) / len(pairs)
    for name in ("MRPC", "QQP"):
        found = score(TASKS[name], guess, truth)
        assert found["accuracy"] == pytest.approx(right)
        assert found["f1"] == pytest.approx(plain_f1(pairs), abs=1e-12)
        assert list(found) == ["accuracy", "f1"]
    found = score(TASKS["CoLA"], guess, truth)
    assert found["matthews"] == pytest.approx(plain_matthews(pairs), abs=1e-12)
    assert list(found) == ["matthews", "accuracy"]


@settings(max_examples=25)
@given(scores)
def test_correlations_follow_their_definitions(pairs: list[tuple[float, float]]) -> None:
    guess, truth = [p for p, _ in pairs], [t for _, t in pairs]
    found = score(TASKS["STS-B"], guess, truth)
    assert found["pearson"] == pytest.approx(plain_correlation(guess, truth), abs=1e-9)
    by_rank = plain_correlation(ranks(guess), ranks(truth))
    assert found["spearman"] == pytest.approx(by_rank, abs=1e-9)


@pytest.mark.parametrize("constant", [0, 1])
def test_constant_predictions_score_0_and_warn_of_nothing(constant: int) -> None:
    truth = [0, 1, 1, 0, 1]
    assert score(TASKS["CoLA"], [constant] * 5, truth)["matthews"] == 0.0
    found = score(TASKS["MRPC"], [constant] * 5, truth)
    assert found["f1"] == pytest.approx(2 * 3 / (5 + 3) if constant else 0.0)
    assert score(TASKS["STS-B"], [constant] * 3, [2.0, 3.0, 5.0]) == {
        "pearson": 0.0,
        "spearman": 0.0,
    }


def test_one_class_only() -> None:
    assert score(TASKS["MRPC"], [0, 0], [0, 0]) == {"accuracy": 1.0, "f1": 0.0}
    assert score(TASKS["MRPC"], [1, 1], [1, 1]) == {"accuracy": 1.0, "f1": 1.0}
    assert score(TASKS["MRPC"], [0, 1], [0, 0]) == {"accuracy": 0.5, "f1": 0.0}
    assert score(TASKS["CoLA"], [1, 1], [1, 1]) == {"matthews": 0.0, "accuracy": 1.0}
    assert score(TASKS["CoLA"], [1, 0], [1, 1]) == {"matthews": 0.0, "accuracy": 0.5}
    assert score(TASKS["STS-B"], [1.0, 2.0], [3.0, 3.0])["pearson"] == 0.0
    assert score(TASKS["STS-B"], [1.0], [3.0]) == {"pearson": 0.0, "spearman": 0.0}
    assert score(TASKS["WNLI"], [1], [1]) == {"accuracy": 1.0}


def test_rounding_is_no_correlation() -> None:
    """A collapsed regression differs from a constant by rounding alone."""
    found = score(TASKS["STS-B"], [0.1 + 0.2, 0.3, 0.3], [1.0, 2.0, 3.0])
    assert found == {"pearson": 0.0, "spearman": 0.0}


@pytest.mark.parametrize(
    ("task", "guess", "truth", "message"),
    [
        ("STS-B", [1.0, math.nan, math.inf], [1.0] * 3, "prediction 1 of 3 is nan; 2 are not fin"),
        ("SST-2", [math.nan], [1], r"SST-2: prediction 0 of 1 is nan"),
    ],
)
def test_what_cannot_be_scored_is_named(task: str, guess: Any, truth: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score(TASKS[task], guess, truth)


def test_majority_is_the_commonest_label() -> None:
    assert majority(TASKS["CoLA"], [1, 1, 0]) == 0.0
    assert majority(TASKS["MNLI"], [2, 2, 0, 1]) == 0.5
    assert majority(TASKS["STS-B"], [1.5, 2.5, 2.5]) == 0.0
