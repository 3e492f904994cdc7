"""What attach and detach do to a model, whichever it is; architectures have their own contract."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from architectures import ARCHITECTURES, BERT, EVERY, HEADS, TEXT, Architecture
from torch import Tensor, nn

import masksearch as ms
from masksearch import masks
from masksearch.errors import AttachError, EmptyRowError, HeadCountError, LayerCountError

MIXED = masks.per_head(
    [masks.window(1), masks.star(), masks.bigbird(1, 1, 2, seed=1), masks.stride(3)]
)
OTHER = masks.per_head([masks.causal(), masks.window(0), masks.fixed(), masks.strided(3)])
AT = ARCHITECTURES["bert"]
GIVEN = AT.inputs(4)
IDS = GIVEN["input_ids"][:1, :9]


@pytest.mark.parametrize("at", EVERY, ids=lambda at: at.name)
class TestEveryArchitecture:
    def test_attaching_again_replaces_and_detach_restores(self, at: Architecture):
        model, given = at.made(), at.inputs(4)
        before, keys = at.run(model, given), list(model.state_dict())
        assert ms.attach(model, MIXED, part=at.part) is model
        masked = at.run(model, given)
        assert not torch.allclose(masked, before, atol=1e-3)
        assert list(model.state_dict()) == keys
        with pytest.raises(HeadCountError, match="the mask has 3 heads, asked for 4"):
            ms.attach(model, masks.per_head([masks.full()] * 3), part=at.part)
        with pytest.raises(LayerCountError, match="the mask has 5 layers, asked for"):
            ms.attach(model, masks.per_layer([masks.full()] * 5), part=at.part)
        assert torch.equal(at.run(model, given), masked)  # a refused mask leaves the earlier one
        alone = at.run(ms.attach(at.made(), OTHER, part=at.part), given)
        assert torch.equal(at.run(ms.attach(model, OTHER, part=at.part), given), alone)
        assert ms.detach(model) is model
        assert torch.equal(at.run(model, given), before)
        assert model.config._attn_implementation == "sdpa"
        with pytest.raises(AttachError, match=r"nothing is attached to this .*; detach takes"):
            ms.detach(model)
        ms.detach(model, missing_ok=True)

    def test_probe_leaves_mode_and_generator_alone(self, at: Architecture):
        model = at.made().train()
        model.get_submodule(next(n for n, m in model.named_modules() if n)).eval()
        modes = [module.training for module in model.modules()]
        state = torch.get_rng_state()
        ms.attach(model, masks.star(), part=at.part)
        assert [module.training for module in model.modules()] == modes
        assert torch.equal(torch.get_rng_state(), state)


def test_lengths_and_rows_are_checked_in_the_forward_pass():
    model = ms.attach(AT.made(), masks.shifts([-2]))
    with pytest.raises(EmptyRowError, match="row 0 keeps no key"):
        AT.run(model, GIVEN)
    ms.attach(model, masks.cropped(masks.table(torch.eye(TEXT + 1) > 0), TEXT + 1))
    AT.run(model, GIVEN)


# -- other ways in -----------------------------------------------------------------------------
def test_detach_goes_back_to_the_implementation_before():
    model = AT.made()
    model.set_attn_implementation("eager")
    ms.detach(ms.attach(model, masks.star()))
    assert model.config._attn_implementation == "eager"


class Renamed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = AT.made()

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.inner(input_ids=tokens)[0]
        return out


def test_given_inputs_find_the_layers():
    model = Renamed()
    ms.attach(model, masks.window(0), inputs={"tokens": IDS})
    other = torch.cat([IDS[:, :4], IDS[:, :5]], 1)
    assert torch.allclose(model(IDS)[:, :4], model(other)[:, :4], atol=1e-6)


UNREACHABLE: dict[str, tuple[Any, str]] = {
    "no attention interface": (
        lambda: hf.MPNetModel(hf.MPNetConfig(**{**BERT, "attn_implementation": "eager"})),
        "MPNetModel does not use transformers' attention interface.*models that do include",
    ),
    "several kinds": (
        lambda: hf.T5Model(
            hf.T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
        ),
        r"T5Model has several kinds of attention: encoder \(1 layers, 2 heads\); decoder "
        r"\(1 layers, 2 heads\); cross .*part=\"encoder\"",
    ),
    "no model inside": (lambda: nn.Linear(2, 2), "Linear contains no Hugging Face model"),
    "other names of inputs": (Renamed, r"forward takes tokens; give inputs=\{...\}"),
}


@pytest.mark.parametrize(("make", "message"), UNREACHABLE.values(), ids=UNREACHABLE)
def test_unreachable_models_are_refused(make: Any, message: str):
    built = make()
    with pytest.raises(AttachError, match=message):
        ms.attach(built, masks.full())
    with pytest.raises(AttachError, match="nothing is attached"):
        ms.detach(built)


def test_t5_encoder_keeps_its_position_bias():
    config = hf.T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=HEADS)
    model, given = hf.T5EncoderModel(config).eval(), {"input_ids": torch.arange(8)[None]}
    before = AT.run(model, given)
    assert torch.equal(AT.run(ms.attach(model, masks.full()), given), before)
    masked = AT.run(ms.attach(model, masks.window(0)), given)
    assert not torch.allclose(masked, before, atol=1e-4)


@pytest.mark.slow
def test_compiled_models_keep_the_masks_of_their_layers_in_one_graph():
    model = ms.attach(AT.made(), masks.per_layer([MIXED, masks.window(4)]))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.allclose(AT.run(compiled, GIVEN), AT.run(model, GIVEN), atol=1e-6)
    torch.compiler.reset()
