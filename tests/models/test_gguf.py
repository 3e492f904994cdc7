"""Decoders in GGUF files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

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
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "tiny.gguf"
    weights = write_llama(gguf, path)
    stored = open_decoder(path)
    assert open_decoder(str(path)) == stored  # converted once
    assert sorted(each.suffix for each in cache.iterdir()) == ["", ".lock"]
    assert stored.shape(16) == ms.Shape(16, 1, 2, causal=True)
    read = stored.decoder().get_input_embeddings().weight
    assert torch.allclose(read, torch.from_numpy(weights))
    text = tmp_path / "text.txt"
    text.write_text(" ".join("abcdefgh"[n % 7] for n in range(3000)))
    judge = ms.CausalEvaluator(text, weights=path, length=16, cache=cache)
    *_, last = judge(ms.masks.window(3), seed=0, workdir=tmp_path / "run")
    assert last.values["nll"] > 0


def write_llama(gguf: Any, path: Path) -> Any:
    """A Llama of one layer with random weights, whose tokens are bytes; returns its embeddings."""
    from tokenizers.pre_tokenizers import ByteLevel

    tokens = [*sorted(ByteLevel.alphabet()), "ab", "<|endoftext|>"]
    draw = np.random.default_rng(0)

    def matrix(*shape: int) -> Any:
        return draw.normal(0, 0.1, shape).astype(np.float32)

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(32)
    writer.add_embedding_length(8)
    writer.add_block_count(1)
    writer.add_feed_forward_length(16)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * len(tokens))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    embeddings = matrix(len(tokens), 8)
    writer.add_tensor("token_embd.weight", embeddings)
    writer.add_tensor("output.weight", matrix(len(tokens), 8))
    writer.add_tensor("output_norm.weight", np.ones(8, np.float32))
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        writer.add_tensor(f"blk.0.{name}.weight", matrix(8, 8))
    for name, shape in (("ffn_gate", (16, 8)), ("ffn_up", (16, 8)), ("ffn_down", (8, 16))):
        writer.add_tensor(f"blk.0.{name}.weight", matrix(*shape))
    for name in ("attn_norm", "ffn_norm"):
        writer.add_tensor(f"blk.0.{name}.weight", np.ones(8, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return embeddings
