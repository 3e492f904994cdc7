"""What a GGUF file holds, and what is refused; whether llama.cpp agrees: test_llama_cpp.py."""

from __future__ import annotations

import builtins
import errno
import json
import re
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader, GGUFWriter, Keys
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_gguf import (
    FULL,
    LINEAR,
    LLAMA3,
    NEAR,
    SLIDE,
    YARN,
    build,
    tokenizer_folder,
)
from torch import nn

import masksearch as ms
from masksearch import masks
from masksearch.errors import NativeError
from masksearch_decoders import to_gguf
from masksearch_decoders.engines import gguf


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tokenizer_folder(tmp_path_factory.mktemp("tokenizer"), "gpt-2")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_file_holds_the_pattern_the_window_and_the_weights(dtype, folder, tmp_path):
    model = build("granite, all")
    path = to_gguf(model, tmp_path / "new" / "model.gguf", tokenizer=folder, dtype=dtype)
    file = GGUFReader(path)
    held = {name: field.contents() for name, field in file.fields.items()}
    assert held["general.architecture"] == "granite_swa"
    assert held["granite_swa.attention.sliding_window"] == 16
    assert held["granite_swa.attention.sliding_window_pattern"] == [True, False, True, True]
    assert held["tokenizer.ggml.pre"] == "gpt-2"
    assert len(held["tokenizer.ggml.tokens"]) == 310  # 300 and nine that no text becomes
    tensors = {each.name: each for each in file.tensors}
    own = dict(model.named_parameters())
    assert len(tensors) == len(own) + 1  # the factors of the positions
    for theirs, ours in (
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("blk.3.attn_v.weight", "model.layers.3.self_attn.v_proj.weight"),
    ):
        as_written = torch.from_numpy(tensors[theirs].data.copy()).view(dtype)
        assert torch.equal(as_written, own[ours].data.to(dtype))
    sinks = torch.from_numpy(tensors["blk.2.attn_sinks.weight"].data.copy())
    assert torch.equal(sinks, own["model.layers.2.self_attn.sinks"].data)


def test_rows_of_queries_and_keys_are_paired_as_llama_cpp_turns_them(folder, tmp_path):
    model = build("llama, all")
    tensors = GGUFReader(to_gguf(model, tmp_path / "m.gguf", tokenizer=folder)).tensors
    written = next(each.data for each in tensors if each.name == "blk.0.attn_k.bias")
    bias = model.model.layers[0].self_attn.k_proj.bias.tolist()  # two heads of 32
    for head in range(2):
        for pair in range(16):
            low, high = bias[32 * head + pair], bias[32 * head + pair + 16]
            assert written[32 * head + 2 * pair :][:2].tolist() == [low, high]


@pytest.mark.parametrize("name", ["llama", "qwen2", "granite", "gemma3", "exaone4"])
def test_the_output_layer_is_that_of_the_tensors_whatever_the_configuration_says(
    name, folder, tmp_path
):
    for tied in (True, False):
        model = build(name, tie_word_embeddings=True)
        head = model.lm_head.weight
        if not tied:  # as after merging an adapter of the head
            head = model.lm_head.weight = nn.Parameter(head.detach() * 1.5 + 0.1)
        tensors = GGUFReader(to_gguf(model, tmp_path / f"{tied}.gguf", tokenizer=folder)).tensors
        written = {each.name: torch.from_numpy(each.data.copy()) for each in tensors}
        assert ("output.weight" in written) is not tied
        assert torch.equal(written.get("output.weight", written["token_embd.weight"]), head)
    model = build("cohere2")  # of which llama.cpp reads no output layer
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach() + 0.1)
    with pytest.raises(NativeError, match=r"lm_head\.weight, for which llama\.cpp has no place"):
        to_gguf(model, tmp_path / "model.gguf", tokenizer=folder)


def turned_by_llama_cpp(path, arch, width):
    """Angle of each pair per position and factor of attention, as llama.cpp computes them from a
    file: ggml_rope_yarn and rope_yarn_corr_dims in ggml's ops.cpp, llm_build_rope's settings."""
    file, keys = GGUFReader(path), Keys.Rope
    read = lambda key, default: (  # noqa: E731
        default if (field := file.get_field(key.format(arch=arch))) is None else field.contents()
    )
    kind, factor = read(keys.SCALING_TYPE, "none"), read(keys.SCALING_FACTOR, 1.0)
    base, scales = read(keys.FREQ_BASE, 10000.0), {e.name: e.data for e in file.tensors}
    own = base ** (-np.arange(0, width, 2) / width)
    own = own / scales.get("rope_freqs.weight", np.ones(width // 2))
    if kind != "yarn":
        return own / factor, 1.0
    original = read(keys.SCALING_ORIG_CTX_LEN, None)
    ends = [
        width * np.log(original / (beta * 2 * np.pi)) / (2 * np.log(base)) for beta in (32.0, 1.0)
    ]
    low, high = max(0, np.floor(ends[0])), min(width - 1, np.ceil(ends[1]))
    ramp = 1 - np.clip((np.arange(width // 2) - low) / max(0.001, high - low), 0, 1)
    return own / factor * (1 - ramp) + own * ramp, 1 + 0.1 * np.log(factor)


@pytest.mark.slow
@settings(max_examples=25)
@given(
    st.sampled_from([LINEAR, LLAMA3, YARN]),
    st.floats(1, 64),
    st.sampled_from([64, 1000, 8192]),
    st.sampled_from([500.0, 1e4, 5e5]),
    st.sampled_from(["llama", "qwen2"]),
)
def test_positions_are_turned_as_transformers_turns_them(scaling, factor, original, theta, name):
    asked = scaling | {"factor": factor, "rope_theta": theta}
    if "original_max_position_embeddings" in scaling:
        asked |= {"original_max_position_embeddings": original}
    model = build(name, num_hidden_layers=1, rope_parameters=asked)
    with tempfile.TemporaryDirectory() as place:
        folder, path = Path(place), Path(place) / "m.gguf"
        if name == "qwen2" and scaling is LLAMA3:
            with pytest.raises(NativeError, match="turns qwen2 otherwise"):
                to_gguf(model, path, tokenizer=tokenizer_folder(folder, "gpt-2"))
            return
        to_gguf(model, path, tokenizer=tokenizer_folder(folder, "gpt-2"))
        angles, attention = turned_by_llama_cpp(path, name, 16)
    turned = model.model.rotary_emb
    assert turned.inv_freq.tolist() == pytest.approx(angles.tolist(), rel=1e-5)
    assert turned.attention_scaling == pytest.approx(attention)


REFUSED = {
    "is a mamba; to_gguf knows llama, qwen2,": ("granite", {},
        lambda config: setattr(config, "model_type", "mamba")),
    "llama.cpp reads no windows of qwen2": ("qwen2",
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}, None),
    "has no sliding layer": ("granite", {"layer_types": [FULL] * 4}, None),
    "has 4 sliding layers, sliding_window 8; llama.cpp takes some and a window at 64": ("exaone4",
        {"sliding_window": 8, "layer_types": [SLIDE] * 4}, None),
    "has 0 sliding layers, sliding_window 8": ("exaone4", {"sliding_window": 8}, None),
    "has {'hidden_act': 'gelu'}, and llama.cpp computes with {'hidden_act': 'silu'}": ("llama",
        {"hidden_act": "gelu"}, None),
    "llama.cpp takes hidden size / heads": ("qwen2", {"head_dim": 32}, None),
    "lm_head.weight, for which llama.cpp has no place in cohere2": ("cohere2",
        {"tie_word_embeddings": False}, None),
    "query_pre_attn_scalar 16, llama.cpp 32": ("gemma3", {"query_pre_attn_scalar": 16}, None),
    "q_proj.bias, for which llama.cpp has no place": ("olmo3", {"attention_bias": True}, None),
    "llama.cpp turns qwen2 otherwise": ("qwen2", {"rope_parameters": LLAMA3}, None),
    "llama.cpp turns olmo2 otherwise": ("olmo3", {"rope_parameters": {FULL: NEAR, SLIDE: LLAMA3}},
        None),
    "olmo2 otherwise than {'full_attention': {'rope_type': 'yarn": ("olmo3",
        {"rope_parameters": {FULL: YARN, SLIDE: YARN}}, None),
    "llama.cpp turns gemma3 otherwise": ("gemma3",
        {"rope_parameters": {FULL: LINEAR, SLIDE: LINEAR}}, None),
    "llama.cpp turns llama otherwise": ("llama",
        {"rope_parameters": YARN | {"attention_factor": 2.0}}, None),
    "'factor': None}; it takes default or linear or llama3 or yarn, the last with a": ("llama",
        {"rope_parameters": YARN | {"factor": None}}, None),
    "'factor': 0.5}; it takes default": ("qwen2", {"rope_parameters": YARN | {"factor": 0.5}},
        None),
    "{'rope_type': 'dynamic', 'rope_theta'": ("llama",
        {"rope_parameters": LINEAR | {"rope_type": "dynamic"}}, None),
    "llama.cpp turns granite_swa otherwise": ("granite", {"layer_rope_theta": [1e4, 0, 1e4, 1e4]},
        None),
    "the token 300, and the model 300 embeddings": ("llama", {"vocab_size": 300}, None),
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_what_llama_cpp_would_compute_otherwise_is_refused(message, folder, tmp_path):
    name, changes, change = REFUSED[message]
    model = build(name, **changes)
    if change:
        change(model.config)
    with pytest.raises(NativeError, match=re.escape(message)):
        to_gguf(model, tmp_path / "model.gguf", tokenizer=folder)
    assert not any(tmp_path.iterdir())


def test_other_objects_are_refused(folder, tmp_path):
    path = tmp_path / "model.gguf"
    model = build("granite")
    with pytest.raises(NativeError, match="a model of transformers, got Linear"):
        to_gguf(nn.Linear(2, 2), path)
    with pytest.raises(NativeError, match="needs its output layer"):
        to_gguf(build("llama").model, path)
    with pytest.raises(NativeError, match=r"got torch\.int8"):
        to_gguf(model, path, tokenizer=folder, dtype=torch.int8)
    model.model.layers[1].self_attn.v_proj.weight.data[0, 0] = 1e6
    with pytest.raises(NativeError, match=r"attn_v.weight is not finite in F16; give another"):
        to_gguf(model, path, tokenizer=folder, dtype=torch.float16)
    ms.attach(llama := build("llama"), masks.window(3))
    with pytest.raises(NativeError, match=r"give to_native\(model, mask\)"):
        to_gguf(llama, path, tokenizer=folder)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pre_tokenizer": {"type": "Whitespace"}}, 'pre_tokenizer {"type": "Whitespace"}'),
        ({"normalizer": {"type": "Lowercase"}}, 'normalizer {"type": "Lowercase"}'),
        ({"pre_tokenizer": None, "normalizer": None}, "normalizer {}, pre_tokenizer {}"),
    ],
)
def test_unknown_tokenizers_are_refused_before_anything_is_written(
    change, message, folder, tmp_path
):
    data = json.loads((folder / "tokenizer.json").read_text()) | change
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(NativeError, match=re.escape(message)):
        to_gguf(build("llama"), tmp_path / "model.gguf", tokenizer=tmp_path)
    assert len([*tmp_path.iterdir()]) == 1


@pytest.mark.slow
def test_merges_that_sentencepiece_would_not_have_are_refused(tmp_path):
    file = tokenizer_folder(tmp_path, "spm") / "tokenizer.json"
    data = json.loads(file.read_text())
    data["model"]["merges"].pop()
    file.write_text(json.dumps(data))
    with pytest.raises(NativeError, match="other merges than sentencepiece"):
        to_gguf(build("llama", vocab_size=1010), tmp_path / "model.gguf", tokenizer=tmp_path)


def test_missing_tokenizers_existing_files_and_the_missing_package(folder, tmp_path, monkeypatch):
    model, path = build("llama"), tmp_path / "model.gguf"
    with pytest.raises(FileNotFoundError, match="give the folder of the tokenizer as tokenizer="):
        to_gguf(model, path)
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="exists; remove it"):
        to_gguf(model, path, tokenizer=folder)
    assert path.read_text() == "mine"
    load = builtins.__import__

    def without(name, *more):
        if name == "gguf":
            raise ImportError("none")
        return load(name, *more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"needs the package gguf: pip install .*\[decoders\]"):
        to_gguf(model, path)


def test_a_full_disk_leaves_nothing_behind(folder, tmp_path, monkeypatch):
    write, room = GGUFWriter.write_tensor_data, [5]

    def fill(writer, tensor):
        room[0] -= 1
        if room[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(writer, tensor)

    monkeypatch.setattr(GGUFWriter, "write_tensor_data", fill)
    with pytest.raises(OSError, match="No space left"):
        to_gguf(build("llama"), tmp_path / "model.gguf", tokenizer=folder)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "installed", "warned"),
    [
        ("gemma3", "0.3.35", True),
        ("olmo3", "0.2.90+cpu", True),
        ("gemma3", "0.3.36", False),
        ("gemma3", "1.0", False),
        ("granite", "0.3.1", False),  # has always read which layers slide
        ("llama", "0.3.1", False),
    ],
)
def test_an_older_engine_is_named_when_a_file_is_written(
    name, installed, warned, folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(gguf, "find_spec", lambda _: object())
    monkeypatch.setattr(gguf, "version", lambda _: installed)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        path = to_gguf(build(name), tmp_path / "model.gguf", tokenizer=folder)
    told = [str(each.message) for each in caught if "without a word" in str(each.message)]
    assert len(told) == warned
    if warned:
        assert f"llama-cpp-python {installed} may slide" in told[0]
        assert "17 September 2026" in told[0]
        ids = torch.arange(5)
        assert gguf.try_gguf(path, ids, build(name).config) == (f"nothing: {told[0]}", None)
