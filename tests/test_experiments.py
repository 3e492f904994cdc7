"""Experiments: each has a command, a README and small results; its smoke run ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "experiments"
FOLDERS = sorted(path.parent for path in FOLDER.glob("*/run.py"))
DATA = os.environ.get("MASKSEARCH_DATA")
LARGEST = 200_000  # bytes of a result that is kept


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_experiment_is_documented_and_its_results_are_small(folder):
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert f"experiments/{folder.name}/run.py" in text
    for path in (folder / "results").rglob("*"):
        assert path.stat().st_size <= LARGEST, f"{path} is too large to keep"


@pytest.mark.slow
@pytest.mark.skipif(DATA is None, reason="MASKSEARCH_DATA names no folder with real data")
@pytest.mark.filterwarnings("ignore:DAM")
def test_first_search_smoke(tmp_path):
    script = FOLDER / "01_first_search" / "run.py"
    arguments = ["band", "dam", "compare", "tables", "--data", str(DATA), "--smoke"]
    done = subprocess.run(
        [sys.executable, str(script), *arguments, "--runs", str(tmp_path / "runs")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "dam" in done.stdout
    assert (tmp_path / "runs" / "results" / "compare.csv").is_file()
