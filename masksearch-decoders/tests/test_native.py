"""Masks in a model's own configuration: the same logits, tokens and caches, without masksearch."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from itertools import product

import pytest
import torch
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_decoder import drawn
from tiny_encoders import sizes
from tiny_gguf import LLAMA3
from transformers.cache_utils import DynamicSlidingWindowLayer
from transformers.masking_utils import (
    sliding_window_bidirectional_overlay,
    sliding_window_causal_mask_function,
)

import masksearch as ms
from masksearch import masks
from masksearch.errors import HeadCountError, UnknownNameError
from masksearch_decoders import kv_bytes, to_native
from masksearch_decoders.native import from_native

SIZES = sizes(99, 32, 3, 4, 48, 256, pad_token_id=0, bos_token_id=1, eos_token_id=None)
GROUPED = SIZES | {"num_key_value_heads": 2}
EVERYTHING = {"layer_types": ["full_attention"] * 3}
BOUND = {  # full layers have no rotary positions, so that layers keep their kind
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "sliding_window": 64,
}
DECODERS = {
    "qwen2": (hf.Qwen2ForCausalLM, GROUPED),
    "qwen3": (hf.Qwen3ForCausalLM, GROUPED | {"head_dim": 16}),
    "smollm3": (hf.SmolLM3ForCausalLM, GROUPED),
    "olmo3": (hf.Olmo3ForCausalLM, GROUPED | EVERYTHING),
    "gemma3": (hf.Gemma3ForCausalLM, GROUPED | EVERYTHING | {"head_dim": 16}),
    "exaone4": (hf.Exaone4ForCausalLM, GROUPED | BOUND),
    "cohere2": (hf.Cohere2ForCausalLM, GROUPED | BOUND),
    "llama": (hf.LlamaForCausalLM, GROUPED),
}
ENDS = {"cls_token_id": 1, "sep_token_id": 2}
MODELS = DECODERS | {"modernbert": (hf.ModernBertForMaskedLM, SIZES | EVERYTHING | ENDS)}
MASK = masks.per_layer([masks.window(5), masks.full(), masks.window(5)])
IDS = torch.arange(80).view(2, 40) * 7 % 96 + 3
QWEN = hf.Qwen3Config(**GROUPED)


def build(name: str, **more):
    make, fields = MODELS[name]
    return drawn(lambda: make(make.config_class(**fields | more)))


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model(IDS.to(model.device)).logits


# -- the same model ----------------------------------------------------------------------------
@pytest.mark.parametrize("name", MODELS)
def test_native_model_equals_attach_bit_for_bit_and_shares_its_weights(name, tmp_path, device):
    model = build(name).to(device)
    before, dense = model.config.to_dict(), logits(model)
    native = to_native(model, MASK)
    assert model.config.to_dict() == before  # the model itself stays as it is
    assert torch.equal(logits(model), dense)
    assert not torch.equal(logits(native), dense)
    own = dict(native.named_parameters())
    assert all(own[key] is weight for key, weight in model.named_parameters())

    native.save_pretrained(tmp_path)
    loader = hf.AutoModelForMaskedLM if name == "modernbert" else hf.AutoModelForCausalLM
    again = loader.from_pretrained(tmp_path).to(device)
    assert "masksearch" not in (tmp_path / "config.json").read_text()

    ms.attach(model, MASK, backend="sdpa")  # what native layers are computed by
    assert torch.equal(logits(native), logits(model))
    assert torch.equal(logits(again), logits(native))
    assert from_native(again) == from_native(native) == from_native(native.config)


@pytest.mark.slow
@pytest.mark.parametrize("name", DECODERS)
def test_generation_is_identical_and_sliding_layers_keep_the_window_without_one(name, device):
    model, ids = build(name).to(device), IDS.to(device)
    native = to_native(model, MASK)
    ms.attach(model, MASK)
    how = {"max_new_tokens": 12, "do_sample": False, "return_dict_in_generate": True}
    ours, theirs = (each.generate(ids, **how) for each in (model, native))
    assert torch.equal(ours.sequences, theirs.sequences)
    assert [layer.keys.shape[-2] for layer in theirs.past_key_values.layers] == [5, 51, 5]
    assert isinstance(theirs.past_key_values.layers[0], DynamicSlidingWindowLayer)
    held = sum(each.keys.nbytes + each.values.nbytes for each in theirs.past_key_values.layers)
    batch, length = IDS.shape[0], 51  # the last token was never put in
    assert held == batch * kv_bytes(from_native(native), native.config, length).bytes
    padded = torch.ones_like(ids)
    padded[0, :9] = 0  # pads in front of the first prompt
    ours, theirs = (each.generate(ids, attention_mask=padded, **how) for each in (model, native))
    assert torch.equal(ours.sequences, theirs.sequences)


ALONE = """
import sys, torch, transformers
folder = sys.argv[1]
kind = getattr(transformers, sys.argv[2])
model = kind.from_pretrained(folder)
assert "masksearch" not in sys.modules
torch.save(model(torch.load(folder + "/ids.pt")).logits.detach(), folder + "/logits.pt")
"""


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["gemma3", "llama", "modernbert"])
def test_saved_model_is_opened_by_transformers_alone(name, tmp_path):
    native = to_native(build(name), MASK)
    native.save_pretrained(tmp_path)
    torch.save(IDS, tmp_path / "ids.pt")
    loader = "AutoModelForMaskedLM" if name == "modernbert" else "AutoModelForCausalLM"
    subprocess.run([sys.executable, "-c", ALONE, str(tmp_path), loader], check=True, timeout=300)
    assert torch.equal(torch.load(tmp_path / "logits.pt"), logits(native))


@pytest.mark.parametrize(
    "more",
    [
        {"head_dim": 16},
        {"tie_word_embeddings": True},
        {"attention_bias": True, "mlp_bias": True},
        {"rope_parameters": LLAMA3},
    ],
    ids=["head_dim", "tied", "biases", "rope"],
)
def test_llama_is_written_as_the_smollm3_that_computes_the_same(more, tmp_path):
    model = build("llama", **more)
    assert type(to_native(model, masks.full())) is hf.LlamaForCausalLM  # needs no other class
    native = to_native(model, masks.window(5))
    assert type(native) is hf.SmolLM3ForCausalLM
    native.save_pretrained(tmp_path)
    ms.attach(model, masks.window(5))
    for one in (native, hf.SmolLM3ForCausalLM.from_pretrained(tmp_path)):
        assert torch.equal(logits(one), logits(model))


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_models_in_half_precision_equal_attach_too(name, tmp_path):
    build(name).save_pretrained(tmp_path)
    model = hf.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    native = to_native(model, MASK)
    assert native.dtype == torch.bfloat16
    ms.attach(model, MASK, backend="sdpa")
    assert torch.equal(logits(native), logits(model))


def test_own_windows_stay_in_force_and_rotary_positions_stay_with_their_layers():
    kinds = ["sliding_attention", "sliding_attention", "full_attention"]
    model = build("gemma3", layer_types=kinds, sliding_window=8)
    own = from_native(model)
    assert own == masks.per_layer([masks.causal() & masks.window(7)] * 2 + [masks.causal()])
    assert torch.equal(logits(to_native(model, masks.full())), logits(model))
    narrower = to_native(model, masks.per_layer([masks.window(3), masks.window(3), masks.full()]))
    with pytest.raises(ms.errors.NativeError, match=r"other angles, .* is per_layer\(") as refused:
        to_native(model, masks.window(7))
    assert to_native(model, refused.value.nearest).config.layer_types == kinds
    ms.attach(model, masks.window(3) | masks.per_layer([masks.window(0)] * 2 + [masks.full()]))
    assert torch.equal(logits(narrower), logits(model))


# -- reading -----------------------------------------------------------------------------------
def window(width: int) -> masks.Mask:
    return masks.causal() & masks.window(width - 1)


SWITCH = {"use_sliding_window": True, "sliding_window": 16}


@pytest.mark.parametrize(
    ("config", "expected"),
    [  # the patterns of transformers' own configurations
        (hf.Qwen2Config(num_hidden_layers=2, sliding_window=16), masks.causal()),
        (hf.Qwen2Config(num_hidden_layers=3, max_window_layers=2, **SWITCH),
         masks.per_layer([masks.causal()] * 2 + [window(16)])),
        (hf.Qwen3Config(num_hidden_layers=2, max_window_layers=0, **SWITCH), window(16)),
        (hf.SmolLM3Config(num_hidden_layers=4, **SWITCH),
         masks.per_layer([masks.causal()] * 3 + [window(16)])),
        (hf.Olmo3Config(num_hidden_layers=4, sliding_window=32),
         masks.per_layer([window(32)] * 3 + [masks.causal()])),
        (hf.Gemma3TextConfig(num_hidden_layers=6, sliding_window=512),
         masks.per_layer([window(512)] * 5 + [masks.causal()])),
        (
            hf.Gemma3TextConfig(
                num_hidden_layers=6, sliding_window=512, use_bidirectional_attention=True
            ),
            masks.per_layer([masks.window(256)] * 5 + [masks.full()]),
        ),
        (hf.ModernBertConfig(num_hidden_layers=4, local_attention=128),
         masks.per_layer([masks.full(), *[masks.window(64)] * 2, masks.full()])),
        (hf.ModernBertConfig(num_hidden_layers=2, global_attn_every_n_layers=2),
         masks.per_layer([masks.full(), masks.window(64)])),
        (hf.LlamaConfig(), masks.causal()),
        (hf.GPT2Config(), masks.causal()),
    ],
)  # fmt: skip
def test_configurations_are_read_as_expressions(config, expected):
    assert from_native(config) == expected
    assert from_native(to_native(config, expected)) == expected
    assert from_native(type(config).from_dict(config.to_dict())) == expected


def test_windows_are_those_of_transformers_mask_functions():
    decoder = hf.Olmo3Config(num_hidden_layers=1, sliding_window=4)
    encoder = hf.ModernBertConfig(
        num_hidden_layers=1, local_attention=6, layer_types=["sliding_attention"]
    )
    for config, function in [
        (decoder, sliding_window_causal_mask_function(4)),
        (encoder, sliding_window_bidirectional_overlay(encoder.sliding_window)),
    ]:
        table = from_native(config).dense(9)[0, 0]
        for q, k in product(torch.arange(9), repeat=2):
            assert table[q, k] == function(0, 0, q, k)


# -- what is refused ---------------------------------------------------------------------------
SINKS = masks.columns(4) | masks.window(15)
FULL, WINDOW = masks.full(), masks.window(15)
HEADS = masks.per_head([FULL, WINDOW, WINDOW, WINDOW])
MODERN = hf.ModernBertConfig(**SIZES)


@pytest.mark.parametrize(
    ("config", "mask", "why", "nearest"),
    [
        (QWEN, masks.per_layer([SINKS, FULL, SINKS]), "layer 0 keeps tokens of fixed positions "
         r"\(sinks\)", masks.per_layer([WINDOW, FULL, WINDOW])),
        (QWEN, masks.per_layer([WINDOW, masks.window(12), FULL]), r"window\(12\) and window\(15\)",
         None),
        (QWEN, HEADS, "layer 0 keeps other keys in each head", WINDOW),
        (QWEN, masks.per_layer([WINDOW, FULL]), "it has 2 layers, the model 3",
         masks.per_layer([WINDOW, WINDOW, FULL])),
        (QWEN, masks.table(masks.window(3).dense(12)[0, 0]), "a table of 12 positions",
         masks.window(3)),
        (QWEN, masks.window(0), "breaks transformers' caches", masks.window(1)),
        (QWEN, masks.special_tokens(7) | WINDOW, "what the tokens say", masks.causal()),
        (QWEN, masks.same_token() | WINDOW, "what the tokens say", masks.causal()),
        (QWEN, masks.stride(2), r"stride\(2\), which is neither", None),
        (MODERN, masks.causal() & WINDOW, r"earlier keys only \(causal\(\)\), and the model is an",
         None),
        (hf.GPT2Config(n_layer=3, n_head=4), WINDOW, "no field for windows", masks.causal()),
    ],
)  # fmt: skip
def test_refusals_give_the_reason_and_a_mask_that_can_be_served(config, mask, why, nearest):
    with pytest.raises(ms.errors.NativeError, match=why) as refused:
        to_native(config, mask)
    message = str(refused.value)
    assert "\n" not in message
    assert message.startswith(f"{type(config).__name__} cannot name")
    assert message.endswith(f"the nearest mask that can be served is {refused.value.nearest}")
    assert nearest is None or refused.value.nearest == nearest
    to_native(config, refused.value.nearest)


def test_models_are_refused_with_the_reason():
    with pytest.raises(
        ms.errors.NativeError, match=r"BertConfig \(bert\) is none of the families"
    ):
        to_native(hf.BertConfig(), WINDOW)
    with pytest.raises(ms.errors.NativeError, match=r"T5Config \(t5\) is none of the families"):
        from_native(hf.T5Config())
    sliding = hf.LlamaConfig(layer_types=["sliding_attention"] * 32, sliding_window=8)
    with pytest.raises(ms.errors.NativeError, match=r"its caches drop keys; delete layer_types"):
        from_native(sliding)
    with pytest.raises(UnknownNameError, match=r"unknown target 'vlm'; did you mean 'vllm'"):
        to_native(QWEN, WINDOW, target="vlm")
    with pytest.raises(HeadCountError, match="the mask has 2 heads"):
        to_native(QWEN, masks.per_head([WINDOW, WINDOW]))
    with pytest.raises(ms.errors.NativeError, match=r"ms.detach\(model\)"):
        to_native(ms.attach(build("qwen3"), WINDOW), WINDOW)
    with pytest.raises(ms.errors.NativeError, match="merge_and_unload"):
        to_native(torch.nn.Sequential(build("qwen3")), WINDOW)
    adapted = build("qwen3")
    adapted.model.layers[0].self_attn.q_proj.lora = torch.nn.Linear(2, 2)
    with pytest.raises(
        ms.errors.NativeError, match=r"differ in the weights .*lora.* merge adapters"
    ):
        to_native(adapted, WINDOW)
    with pytest.raises(TypeError, match="takes a mask second, got 'window"):
        to_native(QWEN, "window(3)")
    with pytest.raises(TypeError, match="takes a configuration or a model"):
        from_native("google/gemma-3-270m")


def test_sliding_layers_that_qwen_forgets_are_refused():
    forgotten = hf.Qwen2Config(
        num_hidden_layers=2, sliding_window=8, layer_types=["sliding_attention"] * 2
    )
    assert forgotten.sliding_window is None  # transformers says nothing
    with pytest.raises(ms.errors.NativeError, match="use_sliding_window=True"):
        from_native(forgotten)
    written = to_native(hf.Qwen2Config(num_hidden_layers=2), masks.window(7))
    assert (written.use_sliding_window, written.sliding_window) == (True, 8)


def test_cache_of_a_window_of_one_key_keeps_all_keys():
    layer = DynamicSlidingWindowLayer(sliding_window=1)  # why window(0) is refused
    for _ in range(3):
        layer.update(torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4))
    assert layer.keys.shape[-2] == 6


# -- laws --------------------------------------------------------------------------------------
LEAVES = st.sampled_from(
    [masks.full(), masks.causal(), masks.columns(1), masks.offsets([0, 1, 2]), masks.blocks(3)]
) | st.integers(1, 6).map(masks.window)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.tuples(inner, inner, st.booleans()).map(
        lambda drawn: drawn[0] | drawn[1] if drawn[2] else drawn[0] & drawn[1]
    ),
    max_leaves=4,
)


@pytest.mark.slow
@given(st.lists(TREES, min_size=3, max_size=3), st.sampled_from([QWEN, MODERN]))
@settings(deadline=None, max_examples=40)
def test_what_is_written_keeps_the_same_cells_and_what_is_not_has_a_servable_neighbour(of, config):
    mask = masks.per_layer(of)
    own = from_native(config)
    try:
        written = from_native(to_native(config, mask))
    except ms.errors.NativeError as refused:
        to_native(config, refused.nearest)
        return
    inside = own & masks.per_layer([written.of_layer(layer) for layer in range(3)])
    assert torch.equal(inside.dense(20), (mask & own).dense(20))


TWO = GROUPED | {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}
NARROW = [  # of two layers: without windows; with one; with one and rotary positions by kind
    hf.Qwen3Config(**GROUPED | {"num_hidden_layers": 2}),
    hf.Olmo3Config(**TWO, sliding_window=3),
    hf.Olmo3Config(**TWO, sliding_window=30),
    hf.Gemma3TextConfig(**TWO, sliding_window=4),
]


@pytest.mark.slow
@given(st.integers(0, 2**72 - 1), st.sampled_from(NARROW))
@settings(deadline=None, max_examples=40)
def test_no_mask_that_can_be_served_is_nearer_than_the_nearest(bits, config):
    length = 6
    table = torch.tensor([bits >> i & 1 for i in range(2 * length**2)], dtype=torch.bool)
    table = table.view(2, 1, length, length)
    wanted = (from_native(config).dense(length, layers=2)) & table
    with pytest.raises(ms.errors.NativeError) as refused:
        to_native(config, masks.per_layer([masks.table(each[0]) for each in table]))

    def apart(other: masks.Mask) -> int:
        served = from_native(to_native(config, other)).dense(length, layers=2)
        return int((served ^ wanted).sum())

    every = []
    for kinds, reach in product(product([True, False], repeat=2), range(1, length - 1)):
        other = masks.per_layer([FULL if full else masks.window(reach) for full in kinds])
        with suppress(ms.errors.NativeError):
            every.append(apart(other))
    assert apart(refused.value.nearest) == min(every)
