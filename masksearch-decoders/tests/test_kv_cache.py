"""Bytes of the cache: against caches of transformers, plans and logs of engines, and a loop."""

import copy
import json
from pathlib import Path

import pytest
import torch
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_encoders import sizes

from masksearch import masks
from masksearch.errors import (
    AttachError,
    HeadCountError,
    LayerCountError,
    LengthError,
    NativeError,
    UnknownNameError,
)
from masksearch_decoders import kv_bytes, to_native

SIZES = sizes(50, 32, 4, 4, 32, 64, pad_token_id=0)
GROUPED = {**SIZES, "num_key_value_heads": 2}
MIXED = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
CONFIGS = {
    "llama": lambda: hf.LlamaConfig(**GROUPED),
    "gpt2": lambda: hf.GPT2Config(**SIZES),
    "qwen2": lambda: hf.Qwen2Config(
        **GROUPED, use_sliding_window=True, sliding_window=5, layer_types=MIXED
    ),
    "qwen3": lambda: hf.Qwen3Config(**GROUPED, head_dim=12),
    "gemma3": lambda: hf.Gemma3TextConfig(
        **{**GROUPED, "num_key_value_heads": 1}, head_dim=16, sliding_window=4, layer_types=MIXED
    ),
    "olmo3": lambda: hf.Olmo3Config(**GROUPED, sliding_window=6, layer_types=MIXED),
    "smollm3": lambda: hf.SmolLM3Config(
        **GROUPED, use_sliding_window=True, sliding_window=3, layer_types=MIXED
    ),
    "mistral": lambda: hf.MistralConfig(**GROUPED, sliding_window=7),
}


def cache_bytes(cache):
    return sum(
        one.numel() * one.element_size()
        for layer in cache.layers
        for one in (layer.keys, layer.values)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CONFIGS)
def test_bytes_are_those_of_transformers_own_cache(name, dtype):
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(CONFIGS[name]()).to(dtype).eval()
    tokens = torch.randint(1, 50, (1, 12))
    with torch.no_grad():
        cache = model(tokens[:, :9], use_cache=True).past_key_values
        first = cache_bytes(cache)
        for place in range(9, 12):
            cache = model(tokens[:, place : place + 1], past_key_values=cache).past_key_values
    for layout in ("mask", "head", "transformers"):
        assert kv_bytes(masks.full(), model, 9, cache_layout=layout).bytes == first
        assert kv_bytes(masks.full(), model, 12, cache_layout=layout).bytes == cache_bytes(cache)
    dense = kv_bytes(masks.full(), model.config, 12, dtype=dtype)
    assert dense.bytes == cache_bytes(cache)
    _, kv_heads, _, width = cache.layers[0].keys.shape
    assert dense.dense_bytes == 4 * 12 * 2 * kv_heads * width * dtype.itemsize


def test_sinks_windows_and_full_layers_are_counted_a_key_at_a_time():
    local = masks.columns(2) | masks.window(3)
    mask = masks.per_layer([masks.full(), local, local, masks.causal()])
    found = kv_bytes(mask, CONFIGS["llama"](), 20, dtype=torch.float16)
    one = 2 * 2 * 8 * 2  # key and value, KV heads, head_dim, bytes
    assert found.bytes == one * (20 + 5 + 5 + 20)
    assert found.dense_bytes == one * 80
    assert found.share == pytest.approx(50 / 80)


def test_heads_that_share_keys_hold_what_one_of_them_needs():
    local, full = masks.window(3), masks.full()
    config = CONFIGS["llama"]()  # query heads 0 and 1 share KV head 0

    def share(heads, layout):
        return kv_bytes(masks.per_head(heads), config, 12, cache_layout=layout).share

    assert share([full, local, local, local], "mask") == 1
    assert share([full, local, local, local], "head") == (12 + 3) / 24
    assert share([full, local, full, local], "head") == 1
    assert share([local] * 4, "mask") == share([local] * 4, "head") == 3 / 12


@pytest.mark.parametrize(
    ("mask", "keys"),
    [
        (masks.window(0), 0),
        (masks.dilated(7, 3), 6),
        (masks.stride(4), 12),
        (masks.powers_of_two(), 12),
        (masks.offsets([5]), 5),
        (masks.blocks(5), 2),
        (masks.blocks(4), 0),
        (masks.fixed(4, 1), 3),
        (masks.global_tokens(1) | masks.window(2), 3),
        (masks.global_tokens(positions=[15]), 12),
    ],
    ids=str,
)
def test_the_rule_asks_every_later_query(mask, keys):
    found = kv_bytes(mask, CONFIGS["gpt2"](), 12)
    assert found.share == keys / 12


def test_queries_behind_until_are_not_asked():
    mask = masks.global_tokens(positions=[15]) | masks.window(1)
    config = CONFIGS["gpt2"]()
    assert kv_bytes(mask, config, 12, until=15).share == 1 / 12
    assert kv_bytes(mask, config, 12, until=16).share == 1


def test_a_mask_of_one_length_is_asked_up_to_its_end():
    rule = masks.causal() & masks.window(2)
    table = masks.table(rule.dense(12)[0, 0])
    config = CONFIGS["gpt2"]()
    assert kv_bytes(table, config, 8).share == kv_bytes(rule, config, 8).share == 2 / 8
    assert kv_bytes(table, config, 12).share == 3 / 12  # the keys of its last query
    assert kv_bytes(masks.cropped(rule, at=12), config, 12).share == 3 / 12
    random = masks.random_keys(2, 0) | masks.window(0)
    assert 1 / 12 <= kv_bytes(random, config, 12).share <= 3 / 12
    with pytest.raises(LengthError, match="reaches 12 positions"):
        kv_bytes(table, config, 13)


@pytest.mark.slow
@settings(max_examples=40)
@given(st.integers(0, 6), st.integers(1, 3), st.integers(1, 24), st.sampled_from([2, 6]))
def test_shares_grow_with_sinks_and_windows(reach, sinks, length, more):
    config = CONFIGS["qwen2"]()
    small = kv_bytes(masks.columns(sinks) | masks.window(reach), config, length)
    large = kv_bytes(masks.columns(sinks + more) | masks.window(reach + 1), config, length)
    assert 0 < small.share <= large.share <= kv_bytes(masks.full(), config, length).share <= 1


# -- cache layouts of engines ---------------------------------------------------------------------
GOLDEN = Path(__file__).parent
LLAMA = hf.LlamaConfig(  # 3 KV heads of 64 numbers, as SmolLM2-135M has
    hidden_size=576, num_attention_heads=9, num_key_value_heads=3, num_hidden_layers=4
)


def layered(full: int, sliding: list[tuple[int, int]]) -> tuple[hf.LlamaConfig, masks.Mask]:
    """A configuration and a mask with so many full layers, and layers of each window in keys."""
    windows = [masks.window(keys - 1) for keys, count in sliding for _ in range(count)]
    layers = [masks.full()] * full + windows
    config = copy.deepcopy(LLAMA)
    config.num_hidden_layers = len(layers)
    return config, masks.per_layer(layers)


def test_vllm_reserves_what_its_planner_says():
    known = json.loads((GOLDEN / "vllm_reserve.json").read_text())["rows"]
    for full, sliding, length, in_flight, block, wanted in known:
        config, mask = layered(full, sliding)
        run = {"in_flight": in_flight, "block": block, "dtype": torch.bfloat16}
        assert kv_bytes(mask, config, length, cache_layout="vllm", **run).bytes == wanted
        dense = kv_bytes(masks.full(), config, length, cache_layout="vllm", **run)
        assert dense.bytes == dense.dense_bytes == -(-length // block) * block * len(mask.of) * 768


@pytest.mark.parametrize(("cache_type", "cell"), [("f16", 768), ("q8_0", 408), ("q4_0", 216)])
def test_llama_cpp_allocates_what_it_logs(cache_type, cell):
    known = json.loads((GOLDEN / "llama_cpp_cells.json").read_text())["rows"]
    assert len(known) == 3 * 4 * 2 * 3
    for window, n_ctx, ubatch, sequences, unified, streams, whole, part in known:
        config, mask = layered(1, [(window, 3)])
        run = {"ubatch": ubatch, "sequences": sequences, "unified": unified}
        found = kv_bytes(
            mask, config, n_ctx, cache_layout="llama.cpp", cache_type=cache_type, **run
        )
        assert found.bytes == streams * (whole + 3 * part) * cell
        assert found.dense_bytes == streams * 4 * whole * cell


def test_tensorrt_llm_holds_the_blocks_that_its_tests_count():
    """Its repository, September 2026: the tests of _torch/pyexecutor/kv_cache/
    lifecycle_slot_counts.py, `test_batch_slots_match_hand_counted_pages` and
    `test_page_need_prefers_the_typical_step_then_constraints_then_a_default`."""
    counts = [(128, 97, 13), (8, 97, 2), (128, 201, 26 - 9), (8, 201, 2), (128, 2049, 17)]
    for window, length, blocks in [*counts, (8, 2049, 2)]:
        config, mask = layered(1, [(window, 1)])
        whole = -(-length // 8)
        found = kv_bytes(mask, config, length, cache_layout="tensorrt-llm", block=8)
        assert found.bytes * 2 * whole == found.dense_bytes * (whole + blocks)
    config, mask = layered(0, [(8, 3)])  # _util.py: None where all layers slide
    assert kv_bytes(mask, config, 2049, cache_layout="tensorrt-llm", block=8).share == 1
    with pytest.raises(NativeError, match="got block=12"):
        kv_bytes(mask, config, 2049, cache_layout="tensorrt-llm", block=12)


def test_transformers_holds_what_its_layout_says():
    model = hf.LlamaForCausalLM(CONFIGS["llama"]()).eval()
    mask = masks.per_layer([masks.full(), masks.window(3), masks.window(3), masks.full()])
    with torch.no_grad():
        cache = to_native(model, mask)(torch.ones(1, 9).long()).past_key_values
    for each in (mask, masks.columns(2) | mask):  # a logit a head stands for sinks
        assert kv_bytes(each, model, 9, cache_layout="transformers").bytes == cache_bytes(cache)


FULL, VLLM, GGML = masks.full(), {"cache_layout": "vllm"}, {"cache_layout": "llama.cpp"}
WINDOWS = masks.per_layer([masks.window(2), masks.window(3)] * 2)


@pytest.mark.parametrize(
    ("mask", "how", "error", "message"),
    [
        (masks.per_layer([FULL] * 3), {}, LayerCountError, "has 3 layers"),
        (masks.per_head([FULL] * 3), {}, HeadCountError, "has 3 heads"),
        (FULL, {"cache_layout": "heads"}, UnknownNameError, "cache_layout"),
        (FULL, {"length": 0}, ValueError, "at least 1 position"),
        (FULL, {"until": 7}, ValueError, "until"),
        (FULL, {"model": hf.DeepseekV3Config()}, AttachError, "compressed keys"),
        (FULL, {"model": hf.T5Config()}, AttachError, "encoder-decoder"),
        (masks.stride(2), VLLM, NativeError, r"layer 0 keeps stride\(2\).*'mask' counts any"),
        (masks.columns(2), {"cache_layout": "transformers"}, NativeError,
         r"layer 0 keeps tokens of fixed positions \(sinks\)"),
        (WINDOWS, GGML, NativeError, r"one window for all layers, got \[3, 4\]"),
        (FULL, VLLM | {"block": 0}, ValueError, "block is at least 1, got 0"),
        (FULL, GGML | {"cache_type": "q8"}, UnknownNameError, "'q8'; did you mean 'q8_0'"),
        (FULL, GGML | {"cache_type": "q8_0"}, ValueError, "packs 32 numbers, and heads have 8"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(mask, how, error, message):
    with pytest.raises(error, match=message):
        kv_bytes(mask, **{"model": CONFIGS["llama"](), "length": 8} | how)


def test_values_of_another_width_are_counted() -> None:
    """A cache of MiMo-V2, whose values are narrower than its keys, holds both as they are."""
    config = hf.LlamaConfig(
        hidden_size=32, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=1,
        head_dim=12, v_head_dim=8,
    )  # fmt: skip
    found = kv_bytes(masks.full(), config, 10, dtype=torch.float32)
    assert found.bytes == 10 * 2 * (12 + 8) * 4
