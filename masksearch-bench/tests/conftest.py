"""A decoder of four heads that has learned a little, in half a second."""

from pathlib import Path

import pytest
from cli_runs import run
from tiny_table import learn, spec_of

from masksearch_bench import Table, TableSpec, load
from masksearch_bench.__main__ import main


@pytest.fixture(scope="session")
def table() -> Table:
    return load("recall-1")


@pytest.fixture(scope="session")
def learnt(tmp_path_factory) -> dict[str, Path]:
    """Folders of a Llama and a Qwen3 that know the fillers' rule."""
    return {name: learn(name, tmp_path_factory.mktemp(name)) for name in ("llama", "qwen3")}


@pytest.fixture
def program(monkeypatch, capsys, tmp_path):
    """Exit code, output and errors of `masksearch-bench ..` in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *words: run(monkeypatch, capsys, *words, program=main)


@pytest.fixture
def spec(learnt) -> TableSpec:
    return spec_of(learnt["llama"])
