"""GLUE's official metrics against definitions written out here, row by row, and their average."""

import math
import random
from collections import Counter
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from masksearch.analysis.row_scores import lower_bound
from masksearch.errors import UnknownNameError
from masksearch.tasks.glue.tasks import (
    TASKS,
    constant_scores,
    glue_score,
    majority,
    reported,
    row_scores,
    score,
)

pytestmark = pytest.mark.filterwarnings("error")

two_way = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=60)
number = st.integers(-1000, 1000).map(lambda value: value / 100)
scores = st.lists(st.tuples(number, number), min_size=2, max_size=40)


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


def test_constant_answers_and_one_class_score_0_and_warn_of_nothing() -> None:
    for constant in (0, 1):
        assert score(TASKS["CoLA"], [constant] * 3, [0, 1, 1])["matthews"] == 0.0
    assert score(TASKS["STS-B"], [1.0] * 2, [2.0, 3.0]) == {"pearson": 0.0, "spearman": 0.0}
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


# -- row by row, against the metrics without each row -------------------------------------------
PAIRS = st.integers(2, 12).flatmap(
    lambda n: st.tuples(*[st.lists(st.integers(0, 2), min_size=n, max_size=n)] * 2)
)


def without_each(task, metric, guess, truth) -> list[float]:
    """The metric of all rows but one, by taking it anew."""
    rows = range(len(truth))
    return [
        score(task, [guess[i] for i in rows if i != row], [truth[i] for i in rows if i != row])[
            metric
        ]
        for row in rows
    ]


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("name", "metric"),
    [("CoLA", "matthews"), ("MRPC", "f1"), ("STS-B", "pearson"), ("STS-B", "spearman")],
)
@settings(max_examples=30)
@given(PAIRS)
def test_rows_are_the_pseudo_values_of_the_jackknife(name, metric, pair):
    task, (guess, truth) = TASKS[name], pair
    if not task.regression:
        guess, truth = ([min(1, number) for number in side] for side in pair)
    value = score(task, guess, truth)[metric]
    found = row_scores(task, metric, guess, truth, value)
    without, n = np.array(without_each(task, metric, guess, truth)), len(guess)
    expected = n * value - (n - 1) * without  # the jackknife, moved onto the metric
    assert found.mean() == pytest.approx(value, abs=1e-9)
    assert found == pytest.approx(expected + value - expected.mean(), abs=1e-7)


@given(PAIRS)
def test_an_accuracy_is_its_rows(pair):
    guess, truth = pair
    found = row_scores(TASKS["MNLI"], "accuracy", guess, truth, math.nan)
    assert found.tolist() == [one == two for one, two in zip(guess, truth, strict=True)]


def test_wilsons_bound():
    """Golden: Newcombe, Statistics in Medicine 17, 857 (1998), Table I: 81 of 263 is .2553 to
    .3662, 15 of 148 .0624 to .1605, 0 of 20 0 to .1611."""
    for hits, rows, low in ((81, 263, 0.2553), (15, 148, 0.0624), (0, 20, 0.0)):
        assert lower_bound(np.arange(rows) < hits) == pytest.approx(low, abs=5e-5)


def test_bound_of_other_scores():
    scores = np.array([0.2, 0.4, 0.9, 0.7])
    error = scores.std(ddof=1) / 2
    assert lower_bound(scores) == pytest.approx(max(0.0, scores.mean() - 3.182446 * error))
    assert lower_bound(np.array([0.5])) == 0.0
    assert lower_bound(np.array([-0.9, 0.95, 0.1]), least=-1.0) == -1.0


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["CoLA", "MRPC", "STS-B", "RTE"])
def test_who_guesses_is_seldom_above_chance(name):
    """The share of guessers whose bound lies above what a constant answer earns: 2.5% is the
    aim; at 71 rows, as WNLI has."""
    task, random, above = TASKS[name], np.random.default_rng(0), 0
    metric, draws = task.primary, 400
    for _ in range(draws):
        guess, truth = (
            random.normal(size=(2, 71)).clip(-2.5, 2.5) + 2.5
            if task.regression
            else (random.random((2, 71)) < 0.5).astype(float)
        )
        value = score(task, guess, truth)[metric]
        rows = row_scores(task, metric, guess, truth, value)
        least = 0.0 if metric == "accuracy" else -1.0
        above += lower_bound(rows, least) > majority(task, truth.tolist())
    assert above / draws <= 0.045  # 2.5% and two and a half standard errors of 400 draws


def test_constant_answers_earn_what_some_constant_answer_earns():
    random = np.random.default_rng(1)
    for name in ("MRPC", "CoLA", "RTE", "MNLI", "QQP"):
        task = TASKS[name]
        truth = random.integers(0, task.classes, 30).tolist()
        answers = [score(task, [label] * 30, truth) for label in range(task.classes)]
        for metric, value in constant_scores(task, truth).items():
            assert value == pytest.approx(max(answer[metric] for answer in answers))
    assert constant_scores(TASKS["STS-B"], [1.0, 2.5]) == {"pearson": 0.0, "spearman": 0.0}


# -- the nine-column average; experiment 12's test holds the rows that SparseBERT printed --------
COLUMNS = ("MNLI", "MNLI-mm", "QQP", "QNLI", "SST-2", "CoLA", "STS-B", "MRPC", "RTE")


def test_the_average_is_that_of_nine_columns() -> None:
    row = [82.2, 82.6, 87.3, 89.7, 92.4, 57.3, 86.5, 89.2, 70.8]  # SparseBERT prints 82.0
    found = glue_score(dict(zip(COLUMNS, row, strict=True)))
    assert found.nine == pytest.approx(sum(row) / 9)
    assert found.nine == pytest.approx(82.0, abs=0.1)
    assert found.without_rte == pytest.approx(sum(row[:8]) / 8)
    assert (tuple(found.values), found.missing) == (COLUMNS, ())
    assert str(found).startswith("GLUE (9 columns): ")


def test_a_partial_set_has_no_full_score() -> None:
    found = glue_score({"RTE": 0.5, "MNLI": 0.7, "WNLI": 0.1, "acceptability": 1.0, "loss": 3.0})
    assert tuple(found.values) == ("MNLI", "RTE")
    assert found.nine is None
    assert found.without_rte is None
    assert found.partial == pytest.approx(0.6)
    assert set(found.values) | set(found.missing) == set(COLUMNS)
    assert str(found).startswith("mean of 2 of 9 GLUE columns (MNLI, RTE): 0.6; missing: MNLI-mm")


@pytest.mark.parametrize("missing", COLUMNS)
def test_one_missing_column_is_enough(missing: str) -> None:
    found = glue_score({column: 0.5 for column in COLUMNS if column != missing})
    assert found.nine is None
    assert found.missing == (missing,)
    assert (found.without_rte is None) == (missing != "RTE")


def test_conventions_choose_among_two_metrics() -> None:
    draw = random.Random(0)
    values: dict[str, float] = {column: 0.5 for column in COLUMNS}
    expected = {"primary": 9 * [0.5], "bert": 9 * [0.5], "leaderboard": 9 * [0.5]}
    for column, other in (("MRPC", "f1"), ("QQP", "f1"), ("STS-B", "spearman")):
        truth = [draw.randint(0, 1) for _ in range(50)]
        guess = [label if draw.random() < 0.8 else 1 - label for label in truth]
        found = score(TASKS[column], guess, truth)
        values |= reported(column, found)
        one, two = found[TASKS[column].primary], found[other]
        at = COLUMNS.index(column)
        expected["primary"][at], expected["bert"][at] = one, two
        expected["leaderboard"][at] = (one + two) / 2
    values |= reported("CoLA", {"matthews": 0.4, "accuracy": 0.9})
    for convention, columns in expected.items():
        columns[COLUMNS.index("CoLA")] = 0.4
        found_score = glue_score(values, convention)  # type: ignore[arg-type]
        assert list(found_score.values.values()) == pytest.approx(columns)
        assert found_score.nine == pytest.approx(sum(columns) / 9)
        assert found_score.convention == convention


def test_what_is_no_score_is_named() -> None:
    with pytest.raises(ValueError, match=r"no GLUE column in WNLI, glue; .* is one of MNLI"):
        glue_score({"WNLI": 0.5, "glue": 0.5})
    with pytest.raises(ValueError, match="CoLA is nan"):
        glue_score({"CoLA": math.nan})
    with pytest.raises(ValueError, match="'bert' average needs MRPC/f1"):
        glue_score({"MRPC": 0.5}, "bert")
    with pytest.raises(ValueError, match="needs STS-B/pearson, STS-B/spearman"):
        glue_score({"STS-B": 0.5}, "leaderboard")
    with pytest.raises(UnknownNameError, match="did you mean 'bert'"):
        glue_score({"MRPC": 0.5}, "berd")  # type: ignore[arg-type]
