"""Hybrids: linear and recurrent layers are passed over, and those that attend are masked."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_decoder import tiny_decoder, written_text
from transformers import AutoModelForCausalLM, PreTrainedModel

import masksearch as ms
from masksearch import masks
from masksearch.errors import AttachError, LayerCountError, NativeError
from masksearch_decoders import MaskedCache, allocate, kv_bytes, to_native

NARROW = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
NARROW |= {"num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 64}
NARROW |= dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
TYPES = ["linear_attention", "full_attention"] * 2
LINEAR = {"head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4}
LINEAR |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
MAMBA = {"num_local_experts": 0, "shared_intermediate_size": 32, "mamba_n_heads": 8}
MAMBA |= {
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_expand": 2,
    "mamba_chunk_size": 8,
}
KINDS: dict[str, dict[str, Any]] = {
    "Qwen3Next": {**LINEAR, **EXPERTS, "shared_expert_intermediate_size": 16},
    "Qwen3_5": LINEAR,
    "GraniteMoeHybrid": {**MAMBA, "position_embedding_type": "rope"},
    "Lfm2": {"layer_types": ["conv", "full_attention"] * 2},
}


def build(kind: str) -> PreTrainedModel:
    """A small decoder of random weights whose layers 1 and 3 attend."""
    made = getattr(transformers, f"{kind}ForCausalLM")
    torch.manual_seed(0)
    return made(made.config_class(**({**NARROW, "layer_types": TYPES} | KINDS[kind]))).eval()


@pytest.fixture(params=KINDS)
def hybrid(request):
    return build(request.param)


PROMPT = torch.arange(1, 19)[None]
LAYERS = masks.per_layer([masks.columns(1) | masks.window(3), masks.full()])


def test_layer_0_of_a_mask_is_the_first_that_attends(hybrid):
    """The reference: tables in the place of the layers' own masks."""
    tables = iter(LAYERS.dense(18))

    def narrowed(module, args, kwargs):
        kept = next(tables) & masks.causal().dense(18)[0]
        return args, kwargs | {"attention_mask": kept[None]}

    hooks = [
        each.register_forward_pre_hook(narrowed, with_kwargs=True)
        for name, each in hybrid.named_modules()
        if name.endswith("self_attn")
    ]
    assert len(hooks) == 2
    with torch.no_grad():
        expected = hybrid(PROMPT, use_cache=False).logits
        for hook in hooks:
            hook.remove()
        found = ms.attach(hybrid, LAYERS)(PROMPT, use_cache=False).logits
        dense = ms.detach(hybrid)(PROMPT, use_cache=False).logits
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found, dense, atol=1e-4)


def test_its_cache_drops_keys_and_keeps_states(hybrid):
    ms.attach(hybrid, LAYERS)
    how = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    cache = MaskedCache(hybrid)
    tokens = hybrid.generate(PROMPT, past_key_values=cache, **how)
    assert torch.equal(tokens, hybrid.generate(PROMPT, use_cache=False, **how))
    counted = kv_bytes(LAYERS, hybrid, 29)  # the last token is not in
    assert cache.bytes == counted.bytes == (1 + 3 + 29) * 2 * 2 * 8 * 4
    assert counted.dense_bytes == 2 * 29 * 2 * 2 * 8 * 4


def test_masks_of_linear_layers_and_engines_are_refused(hybrid):
    four = masks.per_layer([masks.full(), masks.window(3)] * 2)
    problem = r"has 2 layers of 4 heads; layers 0, 2 attend to no keys and take no mask$"
    with pytest.raises(LayerCountError, match=problem):
        ms.attach(hybrid, four)
    with pytest.raises(NativeError, match=r"no engine is known to window the others: ms\.attach"):
        to_native(hybrid, masks.window(3))
    with pytest.raises(NativeError, match="the others; cache_layout='mask' counts"):
        kv_bytes(masks.window(3), hybrid, 16, cache_layout="vllm")


def test_a_model_without_attention_has_no_cache_to_count():
    with pytest.raises(AttachError, match="no layer of Mamba2Config attends to keys"):
        kv_bytes(masks.full(), transformers.Mamba2Config(), 16)


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore:.*fewer than 16 show no plan")
def test_plans_are_of_the_layers_that_attend(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("MASKSEARCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    words = [*(f"w{number}" for number in range(8)), "="]
    how = {"kind": "granite", "num_hidden_layers": 4, "initializer_range": 0.05}
    tiny_decoder(tmp_path / "model", words, **how, **MAMBA, layer_types=TYPES)
    written_text(tmp_path / "model", tmp_path / "text", words, length=60)
    plan = allocate(
        *("model", "text", 0.6), length=24, sequences=16, local="window(3)", progress=None
    )
    assert set(plan.units) == {"l0", "l1"}
    assert sum(plan.units.values()) <= 1
    assert plan.found["cache"]["kv_bytes"] <= 0.6
    assert "no engine is known to window" in plan.found["native"]["refused"]
    model = AutoModelForCausalLM.from_pretrained("model")
    assert ms.attached(ms.attach(model, plan.mask)) == {"self": plan.mask}
