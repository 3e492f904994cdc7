"""A saved model comes back with the same modules, tensors and types, however it was built."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

import pytest
import torch
import transformers as hf
from architectures import ARCHITECTURES, BERT, GENERATORS, IMAGE, TEXT, Architecture
from torch import nn

from masksearch import masks
from masksearch.attention.attach import attach, attached
from masksearch.errors import AttachError
from masksearch.models.manifest import saved_masks
from masksearch.models.rebuilt import Build, floating
from masksearch.models.saved import load_pretrained, save_pretrained

MASK = masks.window(2) | masks.global_tokens(1)


def same(model: nn.Module, again: nn.Module) -> None:
    """Asserts the same modules, and tensors equal bit for bit."""
    assert type(again) is type(model)
    modules = [(name, type(module)) for name, module in model.named_modules()]
    assert [(name, type(module)) for name, module in again.named_modules()] == modules
    own, other = model.state_dict(), again.state_dict()
    assert list(own) == list(other)
    for name, tensor in own.items():
        assert other[name].dtype == tensor.dtype, name
        assert torch.equal(other[name], tensor), name
    buffers = [name for name, _ in model.named_buffers()]
    assert [name for name, _ in again.named_buffers()] == buffers


@pytest.mark.parametrize("each", ARCHITECTURES.values(), ids=list(ARCHITECTURES))
def test_every_architecture_comes_back_bit_for_bit(tmp_path, each):
    model = each.made()
    attach(model, MASK, part=each.part)
    given = each.inputs()
    folder = save_pretrained(model, tmp_path)
    before = torch.random.get_rng_state()
    again = load_pretrained(folder)
    assert torch.equal(torch.random.get_rng_state(), before)  # nothing was drawn
    same(model, again)
    assert attached(again) == attached(model) == saved_masks(folder)
    assert list(attached(again).values()) == [MASK]
    assert torch.equal(each.run(again, given), each.run(model, given))
    dense = each.run(each.made(), given)
    assert not torch.equal(each.run(again, given), dense)  # the mask is in force


@pytest.mark.parametrize("name", GENERATORS)
def test_generators_come_back_bit_for_bit(tmp_path, name):
    model = GENERATORS[name](2, TEXT).eval()
    part = "cross" if model.config.is_encoder_decoder else None
    save_pretrained(attach(model, MASK, part=part), tmp_path)
    same(model, load_pretrained(tmp_path))


def bert_config(layers: int = 2) -> Any:
    return hf.BertConfig(**BERT, num_hidden_layers=layers, max_position_embeddings=TEXT)


def vit_config() -> Any:
    return hf.ViTConfig(**IMAGE, image_size=4, num_hidden_layers=2)


@pytest.mark.parametrize("head", ["TokenClassification", "QuestionAnswering", "MaskedLM"])
def test_the_encoder_inside_a_model_comes_back_without_a_pooler(tmp_path, head):
    whole = getattr(hf, f"BertFor{head}")(bert_config()).eval()
    save_pretrained(attach(whole.bert, MASK), tmp_path)
    again = load_pretrained(tmp_path)
    assert again.pooler is None
    same(whole.bert, again)
    build = json.loads((tmp_path / "masksearch.json").read_text())["build"]
    assert build == {"options": {"add_pooling_layer": False}}


@pytest.mark.parametrize("pooler", [True, False])
@pytest.mark.parametrize("mask_token", [True, False])
def test_options_are_found(tmp_path, pooler, mask_token):
    model = hf.ViTModel(vit_config(), add_pooling_layer=pooler, use_mask_token=mask_token).eval()
    options = {} if pooler else {"add_pooling_layer": False}
    options |= {"use_mask_token": True} if mask_token else {}
    assert Build.of(model) == Build(options)
    save_pretrained(attach(model, masks.window(3)), tmp_path)
    again = load_pretrained(tmp_path)
    assert (again.pooler is None, again.embeddings.mask_token is None) == (
        not pooler,
        not mask_token,
    )
    same(model, again)


def test_finding_them_draws_nothing_and_leaves_the_model_alone():
    model = hf.BertModel(bert_config(), add_pooling_layer=False)
    config, before = model.config.to_dict(), torch.random.get_rng_state()
    assert Build.of(model).options == {"add_pooling_layer": False}
    assert torch.equal(torch.random.get_rng_state(), before)
    assert model.config.to_dict() == config
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"cpu"}


def test_another_class_gets_what_it_is_built_with(tmp_path):
    model = hf.BertModel(bert_config(), add_pooling_layer=False)
    save_pretrained(attach(model, MASK), tmp_path)
    assert load_pretrained(tmp_path, model_class=hf.BertModel).pooler is None
    assert load_pretrained(tmp_path, model_class=hf.AutoModel).pooler is None
    other = load_pretrained(tmp_path, model_class=hf.BertForSequenceClassification)
    assert other.bert.pooler is not None
    assert torch.equal(
        other.bert.embeddings.word_embeddings.weight, model.embeddings.word_embeddings.weight
    )


class Own(hf.BertModel):
    """A class of the user, with a module of its own and a required argument."""

    def __init__(self, config: Any, extra: bool = False, *, width: int = 3) -> None:
        super().__init__(config, add_pooling_layer=False)
        self.extra = nn.Linear(config.hidden_size, width) if extra else None
        self.post_init()


@pytest.mark.parametrize("extra", [True, False])
def test_classes_of_the_user_come_back(tmp_path, extra):
    model = Own(bert_config(), extra).eval()
    save_pretrained(attach(model, MASK), tmp_path)
    same(model, load_pretrained(tmp_path, model_class=Own))


def cut_layers() -> Any:
    model = hf.BertModel(bert_config())
    model.encoder.layer = model.encoder.layer[:1]
    return model


def more() -> Any:
    model = hf.BertModel(bert_config())
    model.prompt = nn.Parameter(torch.zeros(2, 3))
    return model


def wide_head() -> Any:
    model = hf.BertForSequenceClassification(bert_config())
    model.classifier = nn.Linear(model.config.hidden_size, 5)
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (cut_layers, r"the model lacks encoder\.layer\.1\..* differ\); change the configuration"),
        (more, r"the model has beside them prompt \(1 differ"),
        (wide_head, r"the model has another size of classifier\.bias \(2 differ\); .*num_labels"),
    ],
    ids=["fewer", "more", "wider"],
)
def test_what_nothing_could_load_is_refused_before_it_is_written(tmp_path, make, message):
    with pytest.raises(AttachError, match=f"nothing could load it again: {message}"):
        save_pretrained(attach(make(), MASK), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_remedy_of_that_error_works(tmp_path):
    model = cut_layers()
    model.config.num_hidden_layers = 1
    save_pretrained(attach(model.eval(), MASK), tmp_path)
    same(model, load_pretrained(tmp_path))


def in_thirds(module: nn.Module) -> None:
    """Weights that only their own type holds exactly."""
    with torch.no_grad():
        for weights in module.parameters():
            weights.copy_(1 / torch.arange(3, 3 + weights.numel()).double().view_as(weights))


@pytest.mark.parametrize("body", [torch.bfloat16, torch.float16])
def test_tensors_of_several_types_keep_theirs(tmp_path, body):
    model = hf.BertModel(bert_config(), add_pooling_layer=False).to(body).eval()
    in_thirds(model.encoder.layer[1].output.LayerNorm.float())
    save_pretrained(attach(model, MASK), tmp_path)
    again = load_pretrained(tmp_path)
    same(model, again)
    assert again.config.dtype == model.dtype == body
    for dtype in (torch.float32, torch.float16):
        assert {p.dtype for p in load_pretrained(tmp_path, dtype=dtype).parameters()} == {dtype}


@pytest.mark.parametrize("rest", [torch.bfloat16, torch.float32])
def test_the_widest_type_holds_all(rest):
    model = hf.BertModel(bert_config()).to(rest)
    in_thirds(model.pooler.double())
    build = Build.of(model)
    again = deepcopy(model).to(build.widest())
    assert {p.dtype for p in again.parameters()} == {torch.float64}
    build.cast(again)
    same(model, again)


def test_a_build_is_written_and_read_alike():
    build = Build({"add_pooling_layer": False}, "bfloat16", {"norm.weight": "float32"})
    assert Build.read(json.loads(json.dumps(build.written()))) == build
    assert Build().written() == {}
    assert (build.widest(), Build().widest()) == (torch.float32, None)
    assert Build({}, "bfloat16", {"x": "float64"}).widest() == torch.float64
    assert floating("float16") is torch.float16
    with pytest.raises(ValueError, match="'int8' is no floating type of torch such as"):
        floating("int8")


def test_all_architectures_are_there():
    assert len(ARCHITECTURES) > 20
    assert all(isinstance(each, Architecture) for each in ARCHITECTURES.values())
