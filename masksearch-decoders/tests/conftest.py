"""A decoder with its text, for plans."""

from pathlib import Path

import pytest
from tiny_decoder import tiny_decoder, written_text

WORDS = [*(f"w{number}" for number in range(12)), "="]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two decoders of 3 layers, of 4 heads and 2 KV heads, a text of 40 articles, and a novel."""
    folder = tmp_path_factory.mktemp("decoder")
    for seed, name in enumerate(("model", "other")):
        narrow = {"num_hidden_layers": 3, "initializer_range": 0.05}
        tiny_decoder(folder / name, WORDS, seed=seed, **narrow)
    written_text(folder / "model", folder / "text", WORDS)
    novel = (folder / "text" / "valid.txt").read_text().replace("=", "w0").replace("\n", " ")
    (folder / "novel.txt").write_text(novel * 2)
    return folder


@pytest.fixture
def in_place(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That folder, in which a test runs, with a cache of its own."""
    monkeypatch.setenv("MASKSEARCH_CACHE", str(place / "cache"))
    monkeypatch.chdir(place)
    return place
