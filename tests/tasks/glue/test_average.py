"""The nine-column average, against the rows that SparseBERT printed."""

import math
import random

import pytest

from masksearch.errors import UnknownNameError
from masksearch.tasks.glue.tasks import TASKS, glue_score, reported, score

COLUMNS = ("MNLI", "MNLI-mm", "QQP", "QNLI", "SST-2", "CoLA", "STS-B", "MRPC", "RTE")

PRINTED = [  # README of han-shi/SparseBERT, results table: nine columns, then its average
    ("Strided", [81.9, 81.9, 87.1, 89.0, 91.7, 58.4, 86.6, 86.1, 52.7], 79.5),
    ("Longformer", [80.5, 81.0, 86.8, 88.4, 91.8, 57.9, 86.9, 81.7, 65.3], 80.1),
    ("DAM_u 1e-4", [82.2, 82.6, 87.3, 89.7, 92.4, 57.3, 86.5, 89.2, 70.8], 82.0),
    ("DAM_s 1e-4", [81.7, 81.7, 87.0, 88.3, 92.5, 59.4, 86.7, 88.4, 63.2], 80.9),
]
SLACK = 0.1  # the printed averages differ from the mean of their columns by up to 0.09


@pytest.mark.parametrize(("mask", "row", "average"), PRINTED)
def test_the_average_is_the_printed_one(mask: str, row: list[float], average: float) -> None:
    found = glue_score(dict(zip(COLUMNS, row, strict=True)))
    assert found.nine == pytest.approx(average, abs=SLACK)
    assert found.nine == pytest.approx(sum(row) / 9)
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
    with pytest.raises(
        ValueError, match="no GLUE column in WNLI, glue; the average is one of MNLI"
    ):
        glue_score({"WNLI": 0.5, "glue": 0.5})
    with pytest.raises(ValueError, match="CoLA is nan"):
        glue_score({"CoLA": math.nan})
    with pytest.raises(ValueError, match="'bert' average needs MRPC/f1"):
        glue_score({"MRPC": 0.5}, "bert")
    with pytest.raises(ValueError, match="needs STS-B/pearson, STS-B/spearman"):
        glue_score({"STS-B": 0.5}, "leaderboard")
    with pytest.raises(UnknownNameError, match="did you mean 'bert'"):
        glue_score({"MRPC": 0.5}, "berd")  # type: ignore[arg-type]
