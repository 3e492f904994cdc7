"""`masksearch table`: what it prints, writes, and refuses."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
from cli_runs import run

import masksearch as ms
from masksearch.analysis.published import read_published


@dataclass(frozen=True)
class TwoTasks:
    """Scores a mask by its sparsity, on two columns of the table."""

    shape = ms.Shape(length=32, layers=1, heads=1)
    objectives = (ms.Objective("glue", "max", 0.0),)
    protocol = "two"

    def __call__(self, mask, *, seed, workdir):
        score = 0.9 - 0.3 * mask.sparsity(32) + seed / 100
        yield ms.Report(1, {"glue": score, "CoLA": score, "RTE": score + 0.01})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    families = {name: ms.FAMILIES[name] for name in ("strided", "fixed", "star")}
    ms.compare(families, TwoTasks(), run=tmp_path / "r", seeds=[0, 1], progress=None)
    return tmp_path / "r"


@pytest.mark.slow  # continuous integration runs it
def test_table_is_printed_and_written(folder, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    code, text, _ = run(monkeypatch, capsys, "table", "sparsebert", folder, "--out", out)
    assert code == 0
    assert "DAM_u 1e-4" in text
    assert "over the 2 columns that all our masks have (CoLA, RTE)" in text
    assert "no run holds Longformer, LogSparse, BigBird, DAM_u 1e-4" in text
    frame = pd.read_csv(out / "sparsebert.csv")
    assert list(frame["mask"]) == [row.name for row in read_published("sparsebert").rows]
    assert frame["average ours"].notna().sum() == 3
    assert r"\toprule" in (out / "sparsebert.tex").read_text(encoding="utf-8")
    code, text, _ = run(monkeypatch, capsys, "table", "sparsebert", folder, "--json")
    found = json.loads(text)
    assert found["columns"] == ["CoLA", "RTE"]
    assert set(found["tau_b"]) == {"average", "without RTE", "CoLA", "RTE"}
    assert found["masks"][0]["average ours"] == pytest.approx(frame["average ours"][0])


def test_what_the_table_refuses_is_one_line(folder, tmp_path, monkeypatch, capsys):
    code, _, err = run(monkeypatch, capsys, "table", "sparsebrt", folder)
    assert (code, err.count("\n")) == (2, 1)
    assert "did you mean 'sparsebert'" in err
    code, _, err = run(monkeypatch, capsys, "table", "sparsebert", tmp_path / "none")
    assert (code, err.count("\n")) == (2, 1)
    assert "holds no study" in err
