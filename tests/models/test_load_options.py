"""What load_pretrained takes beside the folder, and what it says to the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from architectures import BERT, TEXT

from masksearch import masks
from masksearch.attention.attach import attach, attached
from masksearch.errors import AttachError, DataError
from masksearch.models.saved import load_pretrained, save_pretrained

MASK = masks.window(2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT with a pooler and no head."""
    config = hf.BertConfig(**BERT, num_hidden_layers=1, max_position_embeddings=TEXT)
    model = attach(hf.BertModel(config).eval(), MASK)
    return save_pretrained(model, tmp_path_factory.mktemp("saved"))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a head of two classes."""
    config = hf.BertConfig(**BERT, num_hidden_layers=1, max_position_embeddings=TEXT)
    model = attach(hf.BertForSequenceClassification(config).eval(), MASK)
    return save_pretrained(model, tmp_path_factory.mktemp("classifier"))


@pytest.mark.parametrize(
    ("auto", "expected"),
    [
        (hf.AutoModel, hf.BertModel),
        (hf.AutoModelForSequenceClassification, hf.BertForSequenceClassification),
        (hf.AutoModelForMaskedLM, hf.BertForMaskedLM),
        (hf.AutoModelForPreTraining, hf.BertForPreTraining),
    ],
)
def test_auto_classes_give_the_class_for_the_model(folder, auto, expected):
    model = load_pretrained(folder, model_class=auto)
    assert type(model) is expected
    assert attached(model) == {"self": MASK}


def test_an_auto_class_of_other_models_is_refused(folder):
    message = "no AutoModelForSpeechSeq2Seq for the model_type 'bert' of .*; give the class itself"
    with pytest.raises(AttachError, match=message):
        load_pretrained(folder, model_class=hf.AutoModelForSpeechSeq2Seq)


@pytest.mark.parametrize("given", [hf.AutoConfig, "BertModel", int, hf.BertConfig])
def test_what_is_no_class_of_models_is_refused(folder, given):
    with pytest.raises(TypeError, match="or AutoModelForSequenceClassification, got"):
        load_pretrained(folder, model_class=given)


def test_entries_of_the_configuration_are_changed(folder):
    auto = hf.AutoModelForSequenceClassification
    model = load_pretrained(folder, model_class=auto, num_labels=3, hidden_dropout_prob=0.25)
    assert model.classifier.weight.shape[0] == model.config.num_labels == 3
    assert model.bert.embeddings.dropout.p == 0.25
    names = {0: "bad", 1: "good"}
    model = load_pretrained(folder, model_class=auto, id2label=names)
    assert model.config.id2label == names


def test_an_entry_that_does_not_fit_the_stored_head_says_so(classifier):
    assert load_pretrained(classifier).config.num_labels == 2
    with pytest.raises(DataError, match="num_labels may not fit what is stored: leave out what"):
        load_pretrained(classifier, num_labels=5)


@pytest.mark.parametrize("given", ["cpu", torch.device("cpu"), {"": "cpu"}, None])
def test_one_device_is_taken(folder, given):
    assert load_pretrained(folder, device_map=given).device.type == "cpu"


def test_the_model_goes_to_the_device(folder, monkeypatch):
    asked: list[Any] = []
    with monkeypatch.context() as patched:
        to = hf.BertModel.to
        patched.setattr(
            hf.BertModel, "to", lambda self, device: asked.append(device) or to(self, "cpu")
        )
        load_pretrained(folder, device_map="cuda:1")
        load_pretrained(folder, device_map={"": "cuda:2"})
    assert asked == [torch.device("cuda:1"), torch.device("cuda:2")]


@pytest.mark.parametrize(
    "given", ["auto", "balanced", {"encoder": 0, "embeddings": "cpu"}, "nowhere", 1.5, True, {}]
)
def test_several_devices_are_refused(folder, given):
    with pytest.raises(ValueError, match=r"one device, got device_map=.*give one such as 'cpu'"):
        load_pretrained(folder, device_map=given)


@pytest.mark.parametrize("given", [torch.bfloat16, "bfloat16"])
def test_both_names_of_the_type_are_taken(folder, given):
    for name in ("dtype", "torch_dtype"):
        model = load_pretrained(folder, **{name: given})
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert load_pretrained(folder, dtype="auto").dtype == torch.float32


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"dtype": "bfloat"}, TypeError, "dtype is a type of torch such as .*got 'bfloat'"),
        ({"torch_dtype": float}, TypeError, "dtype is a type of torch such as"),
        ({"dtype": torch.int8}, ValueError, "floating type .*got dtype=torch.int8; quantise"),
        (
            {"dtype": torch.float16, "torch_dtype": torch.float32},
            ValueError,
            "torch_dtype is the earlier name of dtype, got both .*give dtype alone",
        ),
        ({"revision": "main"}, TypeError, r"so revision= has no meaning; fetch .*snapshot_down"),
        ({"token": "x"}, TypeError, "so token= has no meaning"),
        ({"attn_implementation": "eager"}, TypeError, "chosen by backend=, not by attn_impl"),
        ({"_attn_implementation": "a/b"}, TypeError, "chosen by backend="),
        ({"quantization_config": {}}, TypeError, r"no option 'quantization_config'; .*ms\.attach"),
        ({"use_kernels": True}, TypeError, "no option 'use_kernels'"),
        ({"allow_all_kernels": True}, TypeError, "no option 'allow_all_kernels'"),
        ({"add_pooling_layer": False}, TypeError, "no option 'add_pooling_layer'"),
        ({"state_dict": {}}, TypeError, "no option 'state_dict'"),
        ({"config": {}}, TypeError, "no option 'config'"),
        ({"auto_map": {}}, TypeError, "no option 'auto_map'"),
        ({"architectures": ["X"]}, TypeError, "no option 'architectures'"),
        ({"transformers_weights": "x"}, TypeError, "no option 'transformers_weights'"),
        ({"verif": False}, TypeError, "no option 'verif'; did you mean verify"),
        ({"num_label": 3}, TypeError, "did you mean num_labels"),
        ({"num_labels": torch.ones(1)}, TypeError, "plain data, got num_labels=.*give a number"),
    ],
    ids=lambda given: next(iter(given)) if isinstance(given, dict) else "",
)
def test_what_is_refused_says_why_and_what_to_do(folder, given, error, message):
    with pytest.raises(error, match=message):
        load_pretrained(folder, **given)
