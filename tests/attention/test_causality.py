"""Models that need their mask written out: no later token moves an earlier output."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from architectures import seeded
from torch import Tensor, nn

import masksearch as ms
from masksearch import masks

DOGE = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
DOGE |= {"num_key_value_heads": 2, "intermediate_size": 48, "pad_token_id": 0}


def moved(run: Callable[[Tensor], Tensor], ids: Tensor, kept: int) -> float:
    """How far outputs before `kept` move when the tokens from there on change."""
    later = ids.clone()
    later[:, kept:] = 5
    return (run(ids) - run(later))[:, :kept].abs().max().item()


@pytest.mark.parametrize(("length", "backend"), [(40, "gather"), (300, "auto")])
@pytest.mark.parametrize("padded", [False, True])
def test_a_mask_that_the_model_reads_is_written_out(length, backend, padded):
    """Doge adds its own scores to the mask: a packed form, or none, would lose its causality."""
    model = seeded(lambda: hf.DogeForCausalLM(hf.DogeConfig(**DOGE, max_position_embeddings=512)))
    ids = torch.randint(3, 50, (1, length))
    seen = torch.ones_like(ids)
    seen[:, :2] = not padded

    def run(ids: Tensor) -> Tensor:
        with torch.no_grad():
            return model(ids, attention_mask=seen, use_cache=False).logits * seen[..., None]

    dense = run(ids)
    ms.attach(model, masks.full(), backend=backend)
    assert torch.allclose(run(ids), dense, atol=1e-5)
    ms.attach(model, masks.window(3), backend=backend)
    assert moved(run, ids, length // 2) < 1e-6


@pytest.mark.parametrize("padded", [False, True])
def test_no_code_of_a_model_sees_a_packed_mask(padded):
    """A layer that looks at the mask before it attends gets one of four dimensions."""
    at = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
    model = seeded(lambda: hf.BertModel(hf.BertConfig(vocab_size=60, num_hidden_layers=1, **at)))
    seen: list[int] = []

    def look(module: nn.Module, args: Any, named: dict[str, Any]) -> None:
        mask = args[1] if len(args) > 1 else named.get("attention_mask")
        seen.append(4 if mask is None else mask.ndim)

    layer = model.encoder.layer[0]
    hook = layer.register_forward_pre_hook(look, with_kwargs=True)
    ids, padding = torch.randint(3, 50, (2, 40)), torch.ones(2, 40, dtype=torch.int64)
    padding[0, 30:] = not padded
    ms.attach(model, masks.window(3), backend="gather")
    with torch.no_grad():
        found = model(ids, attention_mask=padding).last_hidden_state
        assert set(seen) == {4}
        hook.remove()
        ms.attach(model, masks.window(3), backend="gather")
        packed = model(ids, attention_mask=padding).last_hidden_state
    assert torch.allclose(found[:, :30], packed[:, :30], atol=1e-5)
