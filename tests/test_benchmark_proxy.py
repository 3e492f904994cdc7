"""The benchmark of the proxy's speed runs, and its own figures are what they say."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from masksearch.models.encoders import MaskedLanguageModel, encoder

FOLDER = Path(__file__).parents[1] / "benchmarks"
needs_trainer = pytest.mark.skipif(
    importlib.util.find_spec("accelerate") is None,
    reason="transformers' Trainer needs the package accelerate",
)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(FOLDER / "proxy.py"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def smoke(folder: Path, *parts: str) -> dict[str, dict[str, object]]:
    done = run(*parts, "--smoke", "--out", str(folder))
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((folder / "proxy.json").read_text(encoding="utf-8"))
    assert {"machine", "load", "versions", "seconds"} <= set(found[parts[0]])
    return found


@pytest.mark.slow
def test_parts_without_the_trainer(tmp_path):
    found = smoke(tmp_path, "sizes")
    assert 0 < found["sizes"]["nano"]["share_of_matrix_product"] < 1
    done = run("speed")
    assert done.returncode == 2
    assert "unknown part speed; known: pretrain, finetune" in done.stderr


@needs_trainer
@pytest.mark.slow
def test_parts_with_the_trainer(tmp_path):
    found = smoke(tmp_path, "pretrain", "finetune", "scores")
    for mask in ("dense", "star"):
        assert set(found["pretrain"][mask]["tokens_per_second"]) == {"own", "trainer"}
    assert found["finetune"]["ratio_to_padded"] > 0
    for values in found["scores"]["accuracy"].values():
        assert all(0 <= value <= 1 for value in values)


def test_operations_are_those_of_the_matrices(monkeypatch):
    """Against torch's own count of a forward and backward pass."""
    from torch.utils.flop_counter import FlopCounterMode

    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("proxy_sides", FOLDER / "proxy_sides.py")
    sides = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sides)
    model = MaskedLanguageModel(encoder("nano", 300, 16, seed=0), seed=0)
    model.encoder.set_attn_implementation("eager")
    ids = torch.randint(300, (4, 16), generator=torch.Generator().manual_seed(0))
    labels = torch.where(torch.arange(16) < 4, ids, -100)
    with FlopCounterMode(display=False) as counter:
        model(ids, labels).loss.backward()
    expected = counter.get_total_flops() / ids.numel()
    assert sides.flops("nano", 16, 300, scored=0.25) == pytest.approx(expected, rel=0.05)


def test_only_counted_steps_are_in_the_figure(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("proxy_sides", FOLDER / "proxy_sides.py")
    sides = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sides)
    times = iter([1.0, 5.0, 6.0, 8.0])
    monkeypatch.setattr(sides, "clock", lambda place: next(times))
    assert sides.timed(iter(range(4)), 4, torch.device("cpu")) == [1.0, 2.0]
    times = iter([5.0, 8.0])
    assert sides.timed(iter(range(4)), 4, torch.device("cuda")) == [1.5]
