"""Hidden states of lower layers that are computed once for several masks."""

from __future__ import annotations

import pytest
import torch
from tiny_decoder import tiny_decoder
from transformers import AutoModelForCausalLM, Gemma3nForCausalLM, Gemma3nTextConfig

import masksearch as ms
from masksearch import masks
from masksearch.evaluators.next_tokens import score_tokens
from masksearch.models import layer_states
from masksearch.models.decoders import NextTokenModel
from masksearch.models.layer_states import LayerStates

LAYERS = 6
LOCAL = masks.window(2) | masks.columns(1)


@pytest.fixture(params=["llama", "qwen3", "gpt2"])
def model(request, tmp_path):
    named = {"n_layer": LAYERS} if request.param == "gpt2" else {"num_hidden_layers": LAYERS}
    folder = tiny_decoder(tmp_path / "d", list("abcdef"), kind=request.param, **named)
    return NextTokenModel(AutoModelForCausalLM.from_pretrained(folder).eval())


def judge_all(model, several, tokens, states=None):
    found = []
    for mask in several:
        ms.attach(model, mask)
        if states == "made":
            states = LayerStates(model, tokens.numel())
        found.append(score_tokens(model, tokens, states=states).nll)
        ms.detach(model)
    return found, states


def leave_one_out():
    full = [masks.full()] * LAYERS
    return [masks.full(), *(masks.per_layer([*full[:k], LOCAL, *full[k + 1 :]]) for k in range(6))]


@pytest.mark.parametrize("kept", [1 << 30, 3 * 4 * 512 * 8 * 32])  # all layers; every second
def test_scores_are_those_without_reuse_bit_for_bit(model, kept, monkeypatch):
    monkeypatch.setattr(layer_states, "KEPT_BYTES", kept)
    tokens = torch.randint(0, 7, (512, 8), generator=torch.Generator().manual_seed(0))
    heads = masks.per_head([masks.full(), LOCAL, LOCAL, masks.full()])
    other = masks.per_layer([*[masks.full()] * 4, heads, LOCAL])
    several = [*leave_one_out(), LOCAL, other, masks.full(), masks.full()]
    plain, _ = judge_all(model, several, tokens)
    reused, states = judge_all(model, several, tokens, "made")
    assert states.every == (1 if kept == 1 << 30 else 2)
    assert all(torch.equal(a, b) for a, b in zip(plain, reused, strict=True))
    assert states.computed < 0.8 * len(several) * LAYERS


def test_leaving_one_layer_out_computes_little_more_than_half(model):
    tokens = torch.ones(2, 8, dtype=torch.int64)
    _, states = judge_all(model, leave_one_out(), tokens, "made")
    runs = states.computed - LAYERS  # beside the dense pass
    assert runs == 6 + 6 + 5 + 4 + 3 + 2  # of 36


def test_an_interrupted_pass_leaves_nothing_wrong(model, monkeypatch):
    tokens = torch.randint(0, 7, (1024, 8), generator=torch.Generator().manual_seed(1))
    dense, local, *_ = leave_one_out()
    (wanted, other), states = judge_all(model, [dense, local], tokens, "made")
    features, calls = NextTokenModel.features, []

    def fail(self, given):
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return features(self, given)

    monkeypatch.setattr(NextTokenModel, "features", fail)
    with pytest.raises(KeyboardInterrupt):
        judge_all(model, [dense], tokens, states)
    monkeypatch.setattr(NextTokenModel, "features", features)
    ms.detach(model, missing_ok=True)
    assert len(calls) == 2
    (again, last), _ = judge_all(model, [dense, local], tokens, states)
    assert torch.equal(again, wanted)
    assert torch.equal(last, other)


def test_layers_that_share_keys_with_lower_ones_are_not_reused():
    config = Gemma3nTextConfig(
        vocab_size=11, vocab_size_per_layer_input=11, hidden_size=16, intermediate_size=16,
        num_hidden_layers=4, num_attention_heads=2, num_key_value_heads=1, head_dim=8,
        hidden_size_per_layer_input=4, laurel_rank=2, num_kv_shared_layers=2,
        layer_types=["full_attention"] * 4, activation_sparsity_pattern=[0.0] * 4,
        max_position_embeddings=32,
    )  # fmt: skip
    model = NextTokenModel(Gemma3nForCausalLM(config).eval())
    ms.attach(model, masks.full())
    assert not LayerStates(model, 8).layers
