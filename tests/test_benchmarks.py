"""Benchmarks and the planted DAM experiment: documented, and their smoke runs end."""

from __future__ import annotations

import csv
import importlib.util
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_decoder import tiny_decoder, written_text

from benchmarks.planted_runs import recovery

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks"
PLANTED = ROOT / "experiments" / "03_dam_planted" / "run.py"


@pytest.fixture
def load(monkeypatch):
    """Loads a script by path, with benchmarks/ importable as it is when they run."""
    monkeypatch.syspath_prepend(str(FOLDER))
    names: list[str] = []

    def module(path: Path, name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, path)
        loaded = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
        names.append(name)
        return loaded

    yield module
    for name in (*names, "planted_runs"):
        sys.modules.pop(name, None)


def run(script: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(script), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_every_script_is_in_the_readme():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    for script in FOLDER.glob("*.py"):
        if "__main__" in script.read_text(encoding="utf-8"):
            assert f"`{script.name}`" in text


def test_finished_runs_are_read_and_not_repeated(load, tmp_path):
    runs = load(FOLDER / "planted_runs.py", "planted_runs")
    calls: list[int] = []

    def make(seed: int) -> dict[str, object]:
        calls.append(seed)
        return {"auroc": 0.25 * seed, "problems": "none, or some", "held_out": None}

    path = tmp_path / "runs.csv"
    first = [runs.Cells(path).run("A", "cell, one", seed, make) for seed in (1, 2)]
    again = runs.Cells(path)
    assert [again.run("A", "cell, one", seed, make)["auroc"] for seed in (1, 2)] == [0.25, 0.5]
    assert calls == [1, 2]
    assert [row["auroc"] for row in first] == [0.25, 0.5]
    again.run("A", "another", 1, make)
    again.run("B", "cell, one", 1, make)
    assert calls == [1, 2, 1, 1]
    kept = runs.Cells(path)
    assert list(kept.of("A")) == ["cell, one", "another"]
    assert runs.summary(kept.of("A")["cell, one"])["auroc"]["mean"] == pytest.approx(0.375)
    assert kept.of("A")["another"][0]["problems"] == "none, or some"


def test_planted_masks_reach_full_recovery_by_the_measure_used(load):
    load(FOLDER / "planted_runs.py", "planted_runs")
    experiment = load(PLANTED, "dam_planted")
    for process in experiment.processes().values():
        assert recovery(process.oracle.dense(process.length).float(), process.edges) == (1, 1)


@given(st.integers(0, 10_000), st.integers(3, 4), st.integers(1, 6))
def test_recovery_matches_loops_over_pairs_and_ways_of_breaking_ties(seed, length, levels):
    random = torch.Generator().manual_seed(seed)
    probabilities = torch.randint(levels, (2, 2, length, length), generator=random) / levels
    edges = torch.rand(length, length, generator=random) < 0.3
    edges[0, 1], edges[1, 0] = True, False
    found, best = recovery(probabilities, edges), probabilities.amax((0, 1))
    cells = [(q, k) for q, k in itertools.product(range(length), repeat=2) if q != k]
    true = [best[cell].item() for cell in cells if edges[cell]]
    false = [best[cell].item() for cell in cells if not edges[cell]]
    wins = sum((a > b) + 0.5 * (a == b) for a in true for b in false)
    assert found.auroc == pytest.approx(wins / len(true) / len(false))
    lowest = sorted(true + false, reverse=True)[len(true) - 1]
    sure = [cell for cell in cells if best[cell] > lowest]
    tied = [cell for cell in cells if best[cell] == lowest]
    shares = [
        sum(edges[cell].item() for cell in (*sure, *chosen)) / len(true)
        for chosen in itertools.combinations(tied, len(true) - len(sure))
    ]
    assert found.precision == pytest.approx(sum(shares) / len(shares))


@pytest.mark.slow
def test_dam_benchmark_smoke(tmp_path):
    text = run(FOLDER / "dam.py", "--smoke", "--out", str(tmp_path))
    found = json.loads((tmp_path / "dam.json").read_text(encoding="utf-8"))
    assert set(found) == set("ABCGHI")
    assert 0 <= found["A"]["cells"]["n = 32"]["auroc"]["mean"] <= 1
    assert found["I"]["cells"]["flip"]["ratio"] > 0
    assert "| n = 32 | 1 |" in text
    rows = (tmp_path / "dam_runs.csv").read_text(encoding="utf-8")
    run(FOLDER / "dam.py", "A", "--smoke", "--out", str(tmp_path))
    assert (tmp_path / "dam_runs.csv").read_text(encoding="utf-8") == rows


@pytest.mark.slow
def test_dam_planted_smoke(tmp_path):
    run(PLANTED, "--smoke", "--out", str(tmp_path))
    with (tmp_path / "runs.csv").open(newline="", encoding="utf-8") as file:
        parts = {row["part"] for row in csv.DictReader(file)}
    assert parts == {"density", "retrain", "search", "grid", "plateaus"}
    assert (tmp_path / "planted.png").stat().st_size > 1000
    assert "## grid" in (tmp_path / "tables.md").read_text(encoding="utf-8")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: make gpu measures")
def test_without_a_gpu_the_runner_says_what_it_skips():
    printed = run(FOLDER / "__main__.py", "--device", "cuda")
    assert "no CUDA device here" in printed
    assert "attention" in printed
    assert "proxy" in printed


@pytest.mark.slow
def test_decode_benchmark_smoke(tmp_path):
    text = run(FOLDER / "decode.py", "--smoke", "--out", str(tmp_path))
    found = json.loads((tmp_path / "decode.json").read_text(encoding="utf-8"))
    assert [row["length"] for row in found["rows"]] == [48, 64]
    for row in found["rows"]:
        sides = row["sides"]
        assert sides["sinks"]["bytes"] == sides["window"]["bytes"] == sides["native"]["bytes"]
        assert sides["native"]["share"] == sides["native"]["bytes"] / sides["dense"]["bytes"] < 0.5
        assert sides["dense"]["faster"]["median"] == 1
    assert "| 64 | native |" in text


@pytest.mark.slow
def test_judging_benchmark_on_a_tiny_decoder(tmp_path):
    words = ["=", *(f"w{number}" for number in range(12))]
    model = tiny_decoder(tmp_path / "model", words, num_hidden_layers=4, initializer_range=0.05)
    text = written_text(model, tmp_path / "text", words)
    given = ("--weights", model, "--text", text, "--length", 48, "--rounds", 2, "--out", tmp_path)
    printed = run(FOLDER / "judging.py", *map(str, given))
    found = json.loads((tmp_path / "judging.json").read_text(encoding="utf-8"))
    assert found["layers"] == 4
    assert set(found["share"]) == {"one mask", "leave one out"}
    assert all(0 < share["median"] < 100 for share in found["share"].values())
    assert "| leave one out |" in printed
