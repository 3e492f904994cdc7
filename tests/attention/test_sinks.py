"""Models with learned sinks under masks: transformers' own eager attention is the oracle."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from largest_tensor import LargestTensor
from tiny_encoders import sizes
from torch import Tensor, nn

import masksearch as ms
from masksearch import masks
from masksearch.attention.call import AttentionCall
from masksearch.attention.kernels.flex import FlexPlan, flex_attention_under
from masksearch.attention.kernels.gather import GatherPlan, gather_attention
from masksearch.gates.estimators import FORMS
from masksearch.positions.attention_maps import attention_maps
from masksearch_decoders import MaskedCache, to_native
from masksearch_decoders.native import from_native
from tests.attention.architectures import states as layer_states

HEADS, WINDOW = 4, 6
FLOATS = ("query", "key", "value", "sinks")
KINDS = ["full_attention", "sliding_attention", "full_attention"]
SIZES = sizes(50, 32, 3, HEADS, 32, 1024, num_key_value_heads=2, initializer_range=0.3)
SIZES |= {"pad_token_id": 0, "eos_token_id": None, "bos_token_id": None}
SIZES |= {"sliding_window": WINDOW, "layer_types": KINDS}
EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 1, "head_dim": 12}
MIMO = {"moe_intermediate_size": 16, "n_routed_experts": 2, "num_experts_per_tok": 1}
MIMO |= {"head_dim": 16, "v_head_dim": 8, "mlp_layer_types": ["dense"] * 3}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
CONFIGS = {
    "granite_swa": lambda: hf.GraniteSWAConfig(**SIZES, attention_multiplier=0.3),
    "gpt_oss": lambda: hf.GptOssConfig(**SIZES, **EXPERTS, rope_parameters=ROPE),
    "mimo_v2_flash": lambda: hf.MiMoV2FlashConfig(**SIZES, **MIMO),
}
LOCAL = masks.columns(2) | masks.window(9)
MASKS = {
    "full": masks.full(),
    "local": LOCAL,
    "layers": masks.per_layer([LOCAL, masks.full(), masks.window(3)]),
    "heads": masks.per_head([LOCAL, masks.window(3), masks.full(), masks.dilated(8, 2)]),
}


def tiny(name: str) -> Any:
    """A random model in evaluation mode, with sinks of any size."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = hf.AutoModelForCausalLM.from_config(CONFIGS[name]()).eval()
        for key, weight in model.named_parameters():
            if key.endswith("sinks"):
                nn.init.normal_(weight, 0.5, 1.0)
    return model


def tokens(length: int, device: str = "cpu") -> Tensor:
    source = torch.Generator().manual_seed(length)
    return torch.randint(3, 50, (2, length), generator=source).to(device)


def by_eager(model: Any, mask: masks.Mask, ids: Tensor, real: Tensor | None = None) -> Tensor:
    """Logits by transformers: a mask of four dimensions for each kind of layer, layer by layer."""
    model.set_attn_implementation("eager")
    length = ids.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
    window = causal & ~causal.tril(-WINDOW)
    seen = torch.ones_like(ids, dtype=torch.bool) if real is None else real.bool()
    kept = mask.dense(length, 3, HEADS).to(ids.device)

    def narrowed(layer: int) -> Any:
        own = window if model.config.layer_types[layer] == "sliding_attention" else causal
        cells = kept[layer] & own & seen[:, None, None]
        bias = torch.where(cells, 0.0, torch.finfo(torch.float32).min)

        def hook(module: nn.Module, args: Any, named: dict[str, Any]) -> Any:
            return args, named | {"attention_mask": bias}

        return hook

    layers = model.base_model.layers
    hooks = [
        each.self_attn.register_forward_pre_hook(narrowed(index), with_kwargs=True)
        for index, each in enumerate(layers)
    ]
    out: Tensor = model(ids, attention_mask=real).logits
    for hook in hooks:
        hook.remove()
    return out


@pytest.mark.parametrize("backend", ["sdpa", "gather"])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("name", CONFIGS)
def test_attach_equals_transformers_eager(name, mask, backend, device):
    model, ids = tiny(name).to(device), tokens(90, device)
    left = torch.ones_like(ids)
    left[1, :20] = 0
    wanted = [by_eager(model, mask, ids, real)[left > 0] for real in (None, left)]
    ms.attach(model, mask, backend=backend)
    with torch.no_grad():
        found = [model(ids, attention_mask=real).logits[left > 0] for real in (None, left)]
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-4)
    computed = [state.fallback for state in layer_states(model)]
    if backend == "gather" and name != "mimo_v2_flash" and mask is not MASKS["full"]:
        assert not computed[0]
    ms.detach(model)
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize("backend", ["sdpa", "gather"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_sinks_that_nobody_sees(dtype, backend):
    model, ids = tiny("granite_swa"), tokens(90)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.scaling = 0.1  # by which a score of -1e4 is beyond float16
        model.model.layers[0].self_attn.sinks.fill_(-1e4)
        wanted = by_eager(model, LOCAL, ids)
        out = ms.attach(model.to(dtype), LOCAL, backend=backend)(ids).logits.float()
    assert (out - wanted).abs().mean() < 0.05 * wanted.abs().mean()


@pytest.mark.parametrize("name", CONFIGS)
def test_windows_in_their_configurations(name):
    model, own = tiny(name), masks.causal() & masks.window(WINDOW - 1)
    assert from_native(model) == masks.per_layer([masks.causal(), own, masks.causal()])
    mask, ids = masks.per_layer([masks.window(WINDOW - 1), masks.full(), masks.full()]), tokens(40)
    if name == "mimo_v2_flash":  # its sliding layers have weights of their own
        with pytest.raises(ms.errors.NativeError, match="one kind cannot take layers of both"):
            to_native(model, mask)
        return
    native = to_native(model, mask)
    assert native.config.layer_types == ["sliding_attention"] * 2 + ["full_attention"]
    with torch.no_grad():
        wanted = ms.attach(model, mask)(ids).logits
        torch.testing.assert_close(native(ids).logits, wanted, atol=2e-5, rtol=1e-4)


def test_no_table_of_a_long_text_is_made():
    """GraniteSWA asks for the mask of sliding layers even where it has none."""
    config = CONFIGS["granite_swa"]()
    config.layer_types = ["full_attention"] * 3
    model, ids = hf.GraniteSWAModel(config).eval(), tokens(2048)
    ms.attach(model, LOCAL)
    with torch.no_grad(), LargestTensor() as seen:
        model(ids)
    assert seen.bytes < 2048 * 2048


@pytest.mark.parametrize("backend", ["sdpa", "gather"])
def test_sinks_are_trained_as_by_eager(backend, device):
    ids, model, other = tokens(70, device), *(tiny("granite_swa").to(device) for _ in range(2))
    by_eager(other, LOCAL, ids).square().mean().backward()
    ms.attach(model, LOCAL, backend=backend)
    model(ids).logits.square().mean().backward()
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, atol=1e-5, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_generation_from_a_masked_cache(name, device):
    model, ids = tiny(name).to(device), tokens(20, device)
    ms.attach(model, LOCAL)
    how = {"max_new_tokens": 12, "do_sample": False}
    cache = MaskedCache(model)
    ours = model.generate(ids, past_key_values=cache, **how)
    assert torch.equal(ours, model.generate(ids, use_cache=False, **how))
    assert [layer.keys.shape[-2] for layer in cache.layers] == [11, 5, 11]
    plain = model.generate(ids, **how)
    assert torch.equal(ours, plain)


def test_attention_maps_leave_the_sinks_share_out():
    model, ids = tiny("gpt_oss"), tokens(30)
    with torch.no_grad():  # its weights are without the sink's column
        wanted = model(ids, output_attentions=True).attentions
    maps = attention_maps(model, [{"input_ids": ids}])
    for layer, each in enumerate(wanted):
        torch.testing.assert_close(maps.maps[layer], each.mean(0), atol=1e-5, rtol=1e-4)
    assert maps.maps.sum(-1).mean() < 0.95


# -- the kernel, and what gates compute ----------------------------------------------------------
def with_a_column(call: AttentionCall) -> Tensor:
    """The definition: one more column in the softmax, and no value behind it."""
    assert call.visible is not None
    scores = (call.query @ call.key.mT * call.scaling).masked_fill(~call.visible, -torch.inf)
    column = call.sinks[:, None, None].expand(*scores.shape[:-1], 1)
    return torch.cat([scores, column], -1).softmax(-1)[..., :-1] @ call.value


def random_call(heads: int, length: int, table: Tensor, seed: int = 0) -> AttentionCall:
    source = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, 2, heads, length, 8, generator=source, dtype=torch.float64)
    sinks = torch.randn(heads, generator=source, dtype=torch.float64)
    for each in (q, k, v, sinks):
        each.requires_grad_()
    return AttentionCall(q, k, v, visible=table, scaling=0.4, sinks=sinks)


def check(call: AttentionCall, *results: Tensor) -> None:
    """Results and their gradients, sinks' too, are those of the definition."""
    leaves = [call.query, call.key, call.value, call.sinks]
    every = [with_a_column(call), *results]
    weights = torch.linspace(-1, 1, every[0].numel(), dtype=torch.float64).view_as(every[0])
    found = [[each, *torch.autograd.grad((each * weights).sum(), leaves)] for each in every]
    for one, other in pairwise(found):
        for ours, wanted in zip(other, one, strict=True):
            torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-5)


@settings(deadline=None, max_examples=40)
@pytest.mark.slow
@given(
    st.integers(1, 40),
    st.sampled_from(["window(3)", "columns(2) | window(4)", "blocks(5)", "stride(5)"]),
    st.floats(0, 0.2),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_gather_with_sinks_equals_the_definition(length, text, density, own, padded, seed):
    source = torch.Generator().manual_seed(seed)
    noise = torch.rand(HEADS if own else 1, length, length, generator=source) < density
    table = masks.parse(text).dense(length)[0] | noise
    real = torch.rand(2, length, generator=source) < (0.6 if padded else 2.0)
    call = random_call(HEADS, length, table & real[:, None, None], seed)
    plan = GatherPlan.of_mask(masks.table(table if own else table[0]), length, 16)
    states = call.query, call.key, call.value
    how: dict[str, Any] = {"scaling": call.scaling, "visible": real if padded else None}
    ours = [gather_attention(*states, plan, sinks=call.sinks, **how)]
    with pytest.MonkeyPatch.context() as patch:  # the parts for other devices
        patch.setattr("masksearch.attention.kernels.gather.InCache.apply", None)
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        ours.append(gather_attention(*states, plan, sinks=call.sinks, **how))
    check(call, *ours)


def test_gates_compute_with_sinks():
    table = (masks.window(4) & masks.causal()).dense(20)
    call = random_call(HEADS, 20, table)
    gate = torch.ones(HEADS, 20, 20, requires_grad=True)
    check(call, call.attend(), FORMS["flip"](call, gate))
    call = random_call(HEADS, 20, table)  # removing an edge does what its gradient says
    output = FORMS["flip"](call, gate)
    found = torch.autograd.grad(output[:, 1, 9].sum(), gate)[0][1, 9, 7]
    without = table.clone()
    without[..., 9, 7] = False
    less = AttentionCall(
        call.query, call.key, call.value, visible=without, scaling=0.4, sinks=call.sinks
    )
    change = (output - less.attend())[:, 1, 9].sum()
    torch.testing.assert_close(found, change.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_takes_sinks_from_the_log_sum_exp(monkeypatch, device):
    """On the CPU by FlexAttention that is not compiled: compiled, it has no sums there."""
    from torch.nn.attention.flex_attention import flex_attention

    if device == "cpu":
        compiled = "masksearch.attention.kernels.flex.compiled"
        monkeypatch.setattr(compiled, lambda kind: flex_attention)
    mask = masks.columns(2) | masks.window(4)
    plan = FlexPlan.of_mask(mask, 32, 16, device)
    call = random_call(HEADS, 32, mask.dense(32)[0].to(device))
    floats = {name: getattr(call, name).detach().float().to(device) for name in FLOATS}
    call = replace(call, **floats)
    found = flex_attention_under(
        call.query, call.key, call.value, plan, scaling=call.scaling, sinks=call.sinks
    )
    torch.testing.assert_close(found, with_a_column(call), atol=1e-5, rtol=1e-5)


def test_flex_on_a_cpu_leaves_sinks_to_block_gather():
    model = ms.attach(tiny("granite_swa"), LOCAL, backend="flex")
    with torch.no_grad():
        model(tokens(90))
    assert "block gather computes" in layer_states(model)[0].fallback
