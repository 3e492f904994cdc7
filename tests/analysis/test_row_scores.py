"""Row scores come back from their file as they were written."""

from pathlib import Path

import numpy as np
import pytest

from masksearch.analysis.row_scores import RowScores

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
