"""Masks and gates on tiny random Hugging Face models, one contract for all of them."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

import masksearch as ms
from masksearch import masks
from masksearch.attention.attach import attach, detach
from masksearch.attention.layer import STATE
from masksearch.errors import (
    AttachError,
    EmptyRowError,
    HeadCountError,
    LayerCountError,
    LengthError,
    UnknownNameError,
)
from masksearch.models.encoders import encoder
from masksearch.models.heads import MaskedLanguageModel

HEADS, VOCABULARY, WIDTH = 4, 50, 32
SMALL = {"vocab_size": VOCABULARY, "initializer_range": 0.3, "attn_implementation": "sdpa"}
BERT = {
    **SMALL,
    "hidden_size": WIDTH,
    "num_attention_heads": HEADS,
    "intermediate_size": WIDTH,
    "max_position_embeddings": 40,
}


def bert(layers: int) -> nn.Module:
    return hf.BertModel(hf.BertConfig(**BERT, num_hidden_layers=layers), add_pooling_layer=False)


def distilbert(layers: int) -> nn.Module:
    config = hf.DistilBertConfig(
        **SMALL, dim=WIDTH, n_heads=HEADS, hidden_dim=WIDTH, n_layers=layers
    )
    return hf.DistilBertModel(config)


def roberta(layers: int) -> nn.Module:
    config = hf.RobertaConfig(**BERT, num_hidden_layers=layers)
    return hf.RobertaModel(config, add_pooling_layer=False)


def gpt2_config(layers: int) -> hf.GPT2Config:
    return hf.GPT2Config(
        **SMALL, n_embd=WIDTH, n_head=HEADS, n_positions=40, n_layer=layers, eos_token_id=None
    )


def llama_config(layers: int) -> hf.LlamaConfig:
    return hf.LlamaConfig(
        **BERT, num_key_value_heads=2, num_hidden_layers=layers, eos_token_id=None
    )


def vit(layers: int) -> nn.Module:
    config = hf.ViTConfig(
        **{k: v for k, v in BERT.items() if k not in ("vocab_size", "max_position_embeddings")},
        image_size=4,
        patch_size=1,
        num_channels=3,
        num_hidden_layers=layers,
    )
    return hf.ViTModel(config, add_pooling_layer=False)


def albert(layers: int) -> nn.Module:
    config = hf.AlbertConfig(**BERT, embedding_size=16, num_hidden_layers=layers)
    return hf.AlbertModel(config, add_pooling_layer=False)


MAKERS: dict[str, Callable[[int], nn.Module]] = {
    "bert": bert,
    "distilbert": distilbert,
    "roberta": roberta,
    "gpt2": lambda layers: hf.GPT2Model(gpt2_config(layers)),
    "llama": lambda layers: hf.LlamaModel(llama_config(layers)),
    "vit": vit,
    "albert": albert,
}
CAUSAL = ("gpt2", "llama")
LENGTH = 17  # of the images' patches with [CLS], and of the texts


def made(name: str, layers: int = 2) -> nn.Module:
    """A random model in evaluation mode, the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return MAKERS[name](layers).eval()


def generated(*shape: int) -> Tensor:
    return torch.randint(3, VOCABULARY, shape, generator=torch.Generator().manual_seed(0))


def inputs(name: str, padded: int = 4) -> dict[str, Tensor]:
    """Two examples; the last `padded` positions of the second text are padding."""
    if name == "vit":
        return {
            "pixel_values": torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
        }
    visible = torch.ones(2, LENGTH, dtype=torch.int64)
    visible[1, LENGTH - padded :] = 0
    return {"input_ids": generated(2, LENGTH), "attention_mask": visible}


def output(model: nn.Module, given: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        out: Tensor = model(**given)[0]
    return out


MIXED = masks.per_head(
    [masks.window(1), masks.star(), masks.bigbird(1, 1, 2, seed=1), masks.stride(3)]
)
OTHER = masks.per_head([masks.causal(), masks.window(0), masks.fixed(), masks.strided(3)])


def reference(mask: masks.Mask, modules: list[nn.Module]) -> Callable[..., tuple[Tensor, None]]:
    """Attention written out: softmax over the visible and kept keys."""

    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        **rest: Any,
    ) -> tuple[Tensor, None]:
        size, layer = query.shape[2], modules.index(module)
        key, value = (part.repeat_interleave(HEADS // part.shape[1], 1) for part in (key, value))
        visible = mask.dense(size, mask.layers or 1, HEADS)[layer if mask.layers else 0][None]
        if attention_mask is not None:
            visible = visible & attention_mask
        elif getattr(module, "is_causal", False):
            visible = visible & torch.ones(size, size, dtype=torch.bool).tril()
        scores = query @ key.transpose(-1, -2) * (scaling or query.shape[-1] ** -0.5)
        weights = scores.masked_fill(~visible, -torch.inf).softmax(-1).nan_to_num(0)
        return (weights @ value).transpose(1, 2), None

    return attend


def attention_modules(model: nn.Module) -> list[nn.Module]:
    """The attention layers, in their order, by their class names."""
    return [
        module
        for module in model.modules()
        if type(module).__name__.endswith("SelfAttention")
        or type(module).__name__ in ("GPT2Attention", "LlamaAttention", "ViTAttention")
        or (type(module).__name__ == "AlbertAttention")
    ]


@pytest.mark.parametrize("name", sorted(MAKERS))
class TestContract:
    def test_full_mask_is_exactly_sdpa(self, name):
        model, given = made(name), inputs(name)
        before = output(model, given)
        for mask in (masks.full(), masks.window(LENGTH), masks.per_head([masks.full()] * HEADS)):
            assert torch.equal(output(attach(model, mask), given), before)

    def test_masked_attention_matches_reference(self, name):
        model, given = made(name), inputs(name)
        layered = masks.per_layer([MIXED, OTHER])
        modules = attention_modules(model)
        several = [
            MIXED,
            *([layered, masks.per_layer([OTHER, MIXED])] if len(modules) > 1 else []),
        ]
        found = [output(attach(model, mask), given) for mask in several]
        detach(model)
        AttentionMaskInterface.register("written_out", sdpa_mask)
        for mask, masked in zip(several, found, strict=True):
            AttentionInterface.register("written_out", reference(mask, modules))
            model.set_attn_implementation("written_out")
            expected = output(model, given)
            valid = given.get("attention_mask", torch.ones(2, LENGTH)).bool()
            assert torch.allclose(masked[valid], expected[valid], atol=2e-5)
        assert len({float(out[0, :, 0].sum()) for out in found}) == len(found)

    def test_gradient_crosses_kept_edges_only(self, name):
        model = made(name, layers=1)
        leaves: list[Tensor] = []

        def replaced(module: nn.Module, given: Any, out: Tensor) -> Tensor:
            leaves.append(out.detach().requires_grad_())
            return leaves[-1]

        embeddings = {"gpt2": "drop", "llama": "embed_tokens"}.get(name, "embeddings")
        model.get_submodule(embeddings).register_forward_hook(replaced)
        attach(model, masks.per_head([masks.window(reach) for reach in range(HEADS)]))
        leaves.clear()
        given = {key: value[:1] for key, value in inputs(name).items()}
        out = model(**given)[0]
        direction = torch.randn(WIDTH, generator=torch.Generator().manual_seed(1))
        for query in range(LENGTH):
            (grad,) = torch.autograd.grad(
                (out[0, query] * direction).sum(), leaves[-1], retain_graph=True
            )
            assert grad.isfinite().all()
            for key in range(LENGTH):
                kept = abs(query - key) < HEADS and (name not in CAUSAL or key <= query)
                assert bool(grad[0, key].abs().max() > 0) == kept, (query, key)

    def test_right_padding_changes_nothing(self, name):
        if name == "vit":
            pytest.skip("images have no padding")
        mask = masks.window(1) | masks.global_tokens(1) | masks.shifts([-3])
        model = attach(made(name), mask)
        tokens = generated(1, 9)
        padded = torch.cat([tokens, torch.full((1, 5), 1)], 1)
        visible = (torch.arange(14) < 9).long()[None]
        alone = output(model, {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)})
        inside = output(model, {"input_ids": padded, "attention_mask": visible})[:, :9]
        assert torch.allclose(alone, inside, atol=2e-5)
        assert torch.allclose(alone, output(model, {"input_ids": tokens}), atol=2e-5)

    def test_detach_restores(self, name):
        model, given = made(name), inputs(name)
        before, keys = output(model, given), list(model.state_dict())
        assert attach(model, MIXED) is model
        assert not torch.allclose(output(model, given), before, atol=1e-3)
        assert list(model.state_dict()) == keys
        assert detach(model) is model
        assert torch.equal(output(model, given), before)
        assert model.config._attn_implementation == "sdpa"
        assert not any(STATE in module.__dict__ for module in model.modules())
        with pytest.raises(AttachError, match=r"nothing is attached to this .*; detach takes"):
            detach(model)
        detach(model, missing_ok=True)

    def test_attach_twice_replaces(self, name):
        model, given = made(name), inputs(name)
        before = output(model, given)
        alone = output(attach(made(name), OTHER), given)
        assert torch.equal(output(attach(attach(model, MIXED), OTHER), given), alone)
        assert torch.equal(output(detach(model), given), before)

    def test_copies_keep_the_mask(self, name):
        model, given = attach(made(name), MIXED), inputs(name)
        masked = output(model, given)
        plain = output(made(name), given)
        for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(output(copied, given), masked)
            assert torch.equal(output(detach(copied), given), plain)
        assert torch.equal(output(model, given), masked)

    def test_counts_and_lengths_are_checked(self, name):
        model, given = made(name), inputs(name)
        with pytest.raises(HeadCountError, match="the mask has 3 heads, asked for 4"):
            attach(model, masks.per_head([masks.full()] * 3))
        with pytest.raises(LayerCountError, match="the mask has 5 layers, asked for"):
            attach(model, masks.per_layer([masks.full()] * 5))
        attach(model, masks.table(torch.ones(LENGTH - 1, LENGTH - 1, dtype=torch.bool).tril()))
        with pytest.raises(LengthError, match=f"a table of {LENGTH - 1} positions serves"):
            output(model, given)
        attach(model, masks.shifts([-2]))
        with pytest.raises(EmptyRowError, match="row 0 keeps no key"):
            output(model, given)
        attach(model, masks.cropped(masks.table(torch.eye(LENGTH + 1) > 0), LENGTH + 1))
        output(model, given)

    def test_probe_leaves_mode_and_generator_alone(self, name):
        model = made(name).train()
        model.get_submodule(next(n for n, m in model.named_modules() if n)).eval()
        modes = [module.training for module in model.modules()]
        state = torch.get_rng_state()
        attach(model, masks.star())
        assert [module.training for module in model.modules()] == modes
        assert torch.equal(torch.get_rng_state(), state)


# -- other ways in -----------------------------------------------------------------------------
def test_refused_mask_leaves_the_earlier_one():
    model, given = attach(made("bert"), MIXED), inputs("bert")
    masked = output(model, given)
    with pytest.raises(HeadCountError):
        attach(model, masks.per_head([masks.full()] * 3))
    assert torch.equal(output(model, given), masked)
    detach(model)


def test_wrapped_models_and_public_names():
    model = MaskedLanguageModel(encoder("nano", VOCABULARY, 40, seed=0), seed=0).eval()
    tokens = generated(1, 9)
    before = model(tokens).logits
    assert ms.attach(model, masks.window(0)) is model
    assert not torch.allclose(model(tokens).logits, before, atol=1e-4)
    with pytest.raises(AttachError, match=r"already has a mask, put on through another module"):
        attach(model.encoder, masks.full())
    assert torch.equal(ms.detach(model)(tokens).logits, before)


def test_detach_goes_back_to_the_implementation_before():
    model = made("bert")
    model.set_attn_implementation("eager")
    detach(attach(model, masks.star()))
    assert model.config._attn_implementation == "eager"


def test_given_inputs_find_the_layers():
    class Renamed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = made("bert")

        def forward(self, tokens: Tensor) -> Tensor:
            out: Tensor = self.inner(input_ids=tokens)[0]
            return out

    model, tokens = Renamed(), generated(1, 9)
    with pytest.raises(AttachError, match=r"forward takes tokens; give inputs=\{...\}"):
        attach(model, masks.star())
    attach(model, masks.window(0), inputs={"tokens": tokens})
    other = torch.cat([tokens[:, :4], tokens[:, :5]], 1)
    assert torch.allclose(model(tokens)[:, :4], model(other)[:, :4], atol=1e-6)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            lambda: hf.MPNetModel(hf.MPNetConfig(**{**BERT, "attn_implementation": "eager"})),
            "MPNetModel does not use transformers' attention interface.*models that do include",
        ),
        (
            lambda: hf.T5Model(
                hf.T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
            ),
            r"T5Model has several kinds of attention: encoder \(1 layers, 2 heads\); decoder "
            r"\(1 layers, 2 heads\); cross .*part=\"encoder\"",
        ),
        (lambda: nn.Linear(2, 2), "Linear contains no Hugging Face model"),
    ],
)
def test_unreachable_models_are_refused(model, message):
    built = model()
    with pytest.raises(AttachError, match=message):
        attach(built, masks.full())
    with pytest.raises(AttachError, match="nothing is attached"):
        detach(built)


def test_unknown_backend():
    with pytest.raises(UnknownNameError, match="unknown backend 'sdpaa'; did you mean 'sdpa'"):
        attach(made("bert"), masks.full(), backend="sdpaa")


def test_t5_encoder_keeps_its_position_bias():
    config = hf.T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=HEADS)
    model, given = hf.T5EncoderModel(config).eval(), {"input_ids": torch.arange(8)[None]}
    before = output(model, given)
    assert torch.equal(output(attach(model, masks.full()), given), before)
    masked = output(attach(model, masks.window(0)), given)
    assert not torch.allclose(masked, before, atol=1e-4)


@pytest.mark.slow
def test_compiled_model_equals_eager():
    model, given = attach(made("bert"), MIXED), inputs("bert")
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert torch.allclose(output(compiled, given), output(model, given), atol=1e-6)


@pytest.mark.slow
def test_masks_of_several_layers_stay_apart_in_one_graph():
    torch.manual_seed(0)
    model = bert(2).eval()
    attach(model, masks.per_layer([masks.window(1), masks.window(4)]))
    ids = torch.randint(0, VOCABULARY, (1, 12))
    with torch.no_grad():
        compiled = torch.compile(model, backend="aot_eager")(ids).last_hidden_state
        torch.testing.assert_close(compiled, model(ids).last_hidden_state)
    torch.compiler.reset()
