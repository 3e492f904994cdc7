"""A decoder of four heads that has learned a little, in half a second."""

from pathlib import Path

import pytest
import torch
from cli_runs import run

import masksearch as ms
from masksearch import masks
from masksearch_bench import Table, TableSpec, load
from masksearch_bench.__main__ import main
from masksearch_decoders import CausalEvaluator
from masksearch_decoders.tasks.recall import Recall

TASK = Recall(pairs=2, keys=4, values=4, fillers=4, middle=8)


@pytest.fixture(scope="session")
def table() -> Table:
    return load("recall-1")


@pytest.fixture(scope="session")
def learnt(tmp_path_factory) -> dict[str, Path]:
    """Folders of a Llama and a Qwen3 that know the fillers' rule."""
    return {name: learn(name, tmp_path_factory.mktemp(name)) for name in ("llama", "qwen3")}


def learn(architecture: str, folder: Path) -> Path:
    model = CausalEvaluator(TASK, size="2x32x2", architecture=architecture).build_model(0)
    optimiser = torch.optim.AdamW(model.parameters(), 1e-2)
    batches = TASK.batches(0, 32)
    for _ in range(60):
        optimiser.zero_grad()
        model(**next(batches)).loss.backward()
        optimiser.step()
    model.model.save_pretrained(folder)
    return folder


def spec_of(folder: Path, **given) -> TableSpec:
    """All 16 choices of the heads of a decoder."""
    judge = CausalEvaluator(
        TASK, weights=folder, held_out_sequences=16, kl=True, device="cpu", bands=()
    )
    units = ms.Units(judge.shape, (masks.window(2), masks.full()), given.pop("unit", "head"))
    given = {"name": "tiny", "block": 6, "lengths": (64, 128), **given}
    return TableSpec(judge=judge, units=units, what="a tiny decoder", **given)


@pytest.fixture
def program(monkeypatch, capsys, tmp_path):
    """Exit code, output and errors of `masksearch-bench ..` in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *words: run(monkeypatch, capsys, *words, program=main)


@pytest.fixture
def spec(learnt) -> TableSpec:
    return spec_of(learnt["llama"])
