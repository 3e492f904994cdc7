"""Which calls belong to which part, and what is said where none is named."""

from typing import Any

import pytest
import torch
import transformers as hf
from architectures import ARCHITECTURES, BERT, states
from torch import Tensor, nn

import masksearch as ms
from masksearch import masks
from masksearch.attention.attach import attach, attached, detach
from masksearch.errors import (
    AttachError,
    EmptyRowError,
    HeadCountError,
    LayerCountError,
    UnknownNameError,
)


def by_part(model: nn.Module) -> dict[str, list[str]]:
    """Part -> names of its modules, in their order."""
    found: dict[str, list[str]] = {}
    for slot in sorted(states(model), key=lambda slot: slot.layer):
        found.setdefault(slot.part, []).append(slot.name)
    return found


def bert_decoder() -> nn.Module:
    config = hf.BertConfig(
        **{**BERT, "num_hidden_layers": 2, "is_decoder": True, "add_cross_attention": True}
    )
    return hf.BertModel(config, add_pooling_layer=False).eval()


def texts(queries: int, keys: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "input_ids": torch.randint(3, 50, (1, queries), generator=generator),
        "encoder_hidden_states": torch.randn(1, keys, 32, generator=generator),
    }


@pytest.mark.parametrize("name", ["t5-encoder", "bart-encoder"])
def test_encoder_decoders_have_three_parts(name):
    model = ARCHITECTURES[name].made()
    attach(model, {part: masks.star() for part in ("cross", "encoder", "decoder")})
    found = by_part(model)
    assert set(found) == {"encoder", "decoder", "cross"}
    for part, words in (
        ("encoder", ("encoder.",)),
        ("decoder", ("decoder.", "self")),
        ("cross", ("decoder.", "enc")),
    ):
        assert len(found[part]) == 2
        assert all(word in name.lower() for name in found[part] for word in words), found[part]
    assert not set(found["decoder"]) & set(found["cross"])
    assert [slot.causal for slot in states(model)].count(True) == 2
    assert list(attached(model)) == ["cross", "encoder", "decoder"]
    detach(model)
    assert attached(model) == {}
    assert not states(model)


def test_a_part_has_to_be_named():
    model = ARCHITECTURES["bart-encoder"].made()
    with pytest.raises(
        AttachError,
        match=r"BartModel has several kinds of attention: encoder \(2 layers, 4 heads\); decoder "
        r"\(2 .*; cross \(2 .*ms\.attach\(model, mask, part=\"encoder\"\), or several at once: "
        r"ms\.attach\(model, \{\"encoder\": mask, \"decoder\": mask\}\)",
    ):
        attach(model, masks.star())
    with pytest.raises(UnknownNameError, match=r"unknown part of BartModel 'encodr'.*'encoder'"):
        attach(model, masks.star(), part="encodr")
    with pytest.raises(ValueError, match="a mapping names the parts itself, got part='cross'"):
        attach(model, {"cross": masks.star()}, part="cross")
    with pytest.raises(ValueError, match="names at least one part of encoder, decoder, cross"):
        attach(model, {})
    with pytest.raises(AttachError, match=r"'decoder.layers.0' of BartModel holds self-attention"):
        attach(model, masks.star(), part="decoder.layers.0")
    with pytest.raises(AttachError, match=r"self_attn is in two of the parts 'encoder', 'encoder"):
        attach(model, {"encoder": masks.star(), "encoder.layers.1": masks.star()})
    assert not states(model)


def test_a_plain_model_has_one_part():
    model = ARCHITECTURES["bert"].made()
    assert by_part(attach(model, masks.star(), part="self")) == by_part(
        attach(model, masks.star())
    )


def test_layers_below_a_submodule():
    model, other = ARCHITECTURES["bert"].made(), ARCHITECTURES["bert"].made()
    given = ARCHITECTURES["bert"].inputs(3)
    attach(model, masks.window(1), part="encoder.layer.1")
    assert [slot.name for slot in states(model)] == ["encoder.layer.1.attention.self"]
    attach(other, masks.per_layer([masks.full(), masks.window(1)]))
    assert torch.equal(model(**given)[0], other(**given)[0])


@pytest.mark.parametrize("name", ["t5-encoder", "bart-encoder"])
def test_the_encoder_alone_is_the_encoder_part(name):
    at = ARCHITECTURES[name]
    model, other, given = at.made(), at.made(), at.inputs(3)
    mask = masks.per_layer([masks.window(2), masks.star()])
    attach(model, mask, part="encoder")
    attach(other.get_encoder(), mask)
    assert torch.equal(at.run(model, given), at.run(other, given))
    assert attached(other.get_encoder()) == {"self": mask}
    with pytest.raises(AttachError, match="put on through another module"):
        attach(other, mask, part="encoder")
    detach(other.get_encoder())
    before = at.run(other, given)
    assert not torch.allclose(before, at.run(model, given), atol=1e-3)
    assert torch.equal(at.run(detach(model), given), before)


def test_towers_by_name():
    at = ARCHITECTURES["clip-text"]
    model, given = at.made(), at.inputs(3)
    before = model(**given)
    with pytest.raises(AttachError, match=r"CLIPModel has several kinds .*text_model.*vision_m"):
        attach(model, masks.star())
    attach(model, masks.star(), part="vision_model")
    found = model(**given)
    assert torch.equal(found.text_embeds, before.text_embeds)
    assert not torch.allclose(found.image_embeds, before.image_embeds, atol=1e-4)
    assert model.text_model.config._attn_implementation == "sdpa"
    attach(model, {"text_model": masks.window(1), "vision_model": masks.full()})
    found = model(**given)
    assert torch.equal(found.image_embeds, before.image_embeds)
    assert not torch.allclose(found.text_embeds, before.text_embeds, atol=1e-4)


def test_each_tower_has_its_own_counts():
    sizes = {"hidden_size": 32, "intermediate_size": 32, "projection_dim": 8}
    config = hf.CLIPConfig(
        text_config={**sizes, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 9},
        vision_config={
            **{**sizes, "num_attention_heads": 4, "num_hidden_layers": 3},
            **{"image_size": 4, "patch_size": 2},
        },
        projection_dim=8,
    )
    model = hf.CLIPModel(config).eval()
    two, four = masks.per_head([masks.star()] * 2), masks.per_head([masks.star()] * 4)
    attach(model, {"text_model": two, "vision_model": four})
    with pytest.raises(
        HeadCountError,
        match=r"the mask has 2 heads, asked for 4; .*'vision_model' of CLIPModel has 3 lay",
    ):
        attach(model, two, part="vision_model")
    with pytest.raises(LayerCountError, match="'text_model' of CLIPModel has 1 layers of 2 heads"):
        attach(model, masks.per_layer([masks.star()] * 3), part="text_model")
    assert attached(model) == {"text_model": two, "vision_model": four}


# -- cross-attention ---------------------------------------------------------------------------
def test_bert_as_a_decoder_with_cross_attention():
    model, given = bert_decoder(), texts(6, 9)
    with pytest.raises(AttachError, match=r"several kinds of attention: decoder .*; cross \(2 l"):
        attach(model, masks.star(), inputs=given)
    kept = masks.window(1) | masks.global_tokens(1)
    attach(model, kept, inputs=given, part="cross")
    assert by_part(model) == {
        "cross": [f"encoder.layer.{i}.crossattention.self" for i in range(2)]
    }
    cells = kept.dense(9)[0, 0, :6, :9]
    states = given["encoder_hidden_states"].requires_grad_()
    out = model(**given)[0]
    (grad,) = torch.autograd.grad(out[0, 0].square().sum(), states)  # of itself it sees row 0
    assert torch.equal(grad[0].abs().amax(-1) > 0, cells[0])


def test_inputs_of_equal_lengths_hide_the_cross_attention():
    with pytest.raises(AttachError, match=r"inputs of equal length.*different"):
        attach(bert_decoder(), masks.star(), inputs=texts(6, 6), part="cross")


def test_rows_of_cross_attention_are_judged_within_its_corner():
    model = attach(ARCHITECTURES["bart-cross"].made(), masks.window(1), part="cross")
    five, nine = torch.full((1, 5), 3), torch.full((1, 9), 3)
    model(input_ids=nine, decoder_input_ids=five)
    with pytest.raises(
        EmptyRowError,
        match="cross layer 0, head 0: query 6 keeps none of the 5 keys of the encoder; rows are",
    ):
        model(input_ids=five, decoder_input_ids=nine)


# -- what cannot be probed ---------------------------------------------------------------------
@pytest.mark.slow
def test_models_that_cannot_be_probed():
    with torch.device("meta"):
        empty = hf.BertModel(hf.BertConfig(**BERT, num_hidden_layers=1))
    with pytest.raises(AttachError, match="BertModel is on the meta device"):
        attach(empty, masks.star())
    config = hf.IBertConfig(**BERT | {"attn_implementation": "eager"})
    with pytest.raises(AttachError, match=r"IBertModel does not use .*T5, BART"):
        ms.attach(hf.IBertModel(config), masks.star())


@pytest.mark.parametrize(
    "head", ["BartForSequenceClassification", "BartForQuestionAnswering", "T5ForQuestionAnswering"]
)
def test_encoder_decoders_with_a_head_of_their_own(head):
    """Their forward takes no decoder length of its own, so the model below is probed."""
    if head.startswith("Bart"):
        config: Any = hf.BartConfig(
            vocab_size=50, d_model=32, encoder_layers=2, decoder_layers=2,
            encoder_attention_heads=4, decoder_attention_heads=4, max_position_embeddings=40,
            init_std=0.3,
        )  # fmt: skip
    else:
        config = hf.T5Config(
            vocab_size=50, d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=4,
            decoder_start_token_id=0,
        )  # fmt: skip
    model = getattr(hf, head)(config).eval()
    tokens = torch.tensor([[0, 5, 6, 7, 8, 2]])
    before = model(input_ids=tokens)[0]
    attach(model, {"encoder": masks.window(0), "cross": masks.global_tokens(6)})
    assert {part: len(names) for part, names in by_part(model).items()} == {
        "encoder": 2,
        "cross": 2,
    }
    assert not torch.allclose(model(input_ids=tokens)[0], before, atol=1e-5)
