"""Decoders in GGUF files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_decoder import letter_decoder
from transformers import AutoModelForCausalLM

import masksearch as ms
from masksearch.models.decoders import open_decoder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MASKSEARCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_what_cannot_be_read_says_why(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(ms.errors.DataError, match=r"no such file: .*none\.gguf"):
        open_decoder(tmp_path / "none.gguf")
    path = tmp_path / "model.gguf"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(
        ms.errors.DataError, match=r"cannot read this GGUF file .*pip install gguf accel"
    ):
        open_decoder(path)
    assert not [each for each in cache.iterdir() if each.is_dir() and each.suffix == ""]


@pytest.mark.slow
def test_a_llama_is_read_by_transformers(cache: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    folder = letter_decoder(tmp_path / "made", "abcdefgh=") / "model"
    model = AutoModelForCausalLM.from_pretrained(folder)
    path = ms.to_gguf(model, tmp_path / "tiny.gguf", tokenizer=folder)
    stored = open_decoder(path)
    assert open_decoder(str(path)) == stored  # converted once
    assert sorted(each.suffix for each in cache.iterdir()) == ["", ".lock"]
    assert stored.shape(16) == ms.Shape(16, 3, 4, causal=True)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.allclose(stored.decoder()(ids).logits, model.eval()(ids).logits, atol=1e-5)
