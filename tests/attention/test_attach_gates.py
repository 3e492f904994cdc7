"""Gates on tiny random Hugging Face models: drawn once, a submodule while attached, checked."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from architectures import ARCHITECTURES, BERT, HEADS, TEXT
from torch import Tensor, nn

from masksearch import masks
from masksearch.attention.attach import attach, detach
from masksearch.attention.call import AttentionCall
from masksearch.errors import HeadCountError, LayerCountError

AT = ARCHITECTURES["bert"]
GIVEN = AT.inputs(4)
MIXED = masks.per_head([masks.window(1), masks.star(), masks.bigbird(1, 1, 2), masks.stride(3)])


def generated(*shape: int) -> Tensor:
    return torch.randint(3, 50, shape, generator=torch.Generator().manual_seed(0))


def output(model: nn.Module, given: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**given)[0]


class Bank(nn.Module):
    """A gate bank that keeps everything and writes down how it is asked."""

    def __init__(self, layers: int = 2, heads: int = HEADS) -> None:
        super().__init__()
        self.length, self.layers, self.heads = TEXT, layers, heads
        self.weight = nn.Parameter(torch.ones(1))
        self.draws = 0
        self.calls: list[dict[str, Any]] = []

    def draw(self) -> None:
        self.draws += 1

    def attend(self, layer: int, call: AttentionCall) -> Tensor:
        assert call.query.shape == call.key.shape == call.value.shape
        self.calls.append({"layer": layer, "visible": call.visible, "dropout": call.dropout})
        out = F.scaled_dot_product_attention(
            call.query, call.key, call.value, call.visible, scale=call.scaling
        )
        return out * self.weight


def test_gates_are_drawn_once_in_a_pass():
    model, bank = AT.made(), Bank()
    before = output(model, GIVEN)
    attach(model, bank)
    assert bank.draws == 0
    for passes in (1, 2):
        assert torch.allclose(output(model, GIVEN), before, atol=1e-5)
        assert bank.draws == passes
    assert [call["layer"] for call in bank.calls] == [0, 1] * 2
    assert {call["dropout"] for call in bank.calls} == {0.0}


def test_gates_see_attention_dropout_in_training():
    config = hf.BertConfig(**{**BERT, "attention_probs_dropout_prob": 0.25}, num_hidden_layers=1)
    model, bank = hf.BertModel(config).train(), Bank(layers=1)
    attach(model, bank)(input_ids=generated(1, 5))
    assert bank.calls[0]["dropout"] == 0.25


def test_gates_are_a_submodule_until_detached():
    model, bank = AT.made(), Bank()
    keys = list(model.state_dict())
    attach(model, bank)
    assert model.get_submodule("masksearch_gates") is bank
    assert any(parameter is bank.weight for parameter in model.parameters())
    model(**GIVEN)[0].square().sum().backward()
    assert bank.weight.grad is not None
    assert bank.weight.grad != 0
    detach(model)
    assert list(model.state_dict()) == keys
    draws = bank.draws
    output(model, GIVEN)
    assert bank.draws == draws


def test_gates_counts_are_checked():
    with pytest.raises(LayerCountError, match="the gates have 3 layers, the model 2"):
        attach(AT.made(), Bank(layers=3))
    with pytest.raises(HeadCountError, match="the gates have 2 heads, the model 4"):
        attach(AT.made(), Bank(heads=2))
    model = AT.made()
    attach(model, Bank(layers=1, heads=1))
    output(model, GIVEN)


class Square(Bank):
    """A bank that insists on as many queries as keys."""

    def attend(self, layer: int, call: AttentionCall) -> Tensor:
        assert call.query.shape[2] == call.key.shape[2]
        return super().attend(layer, call)


def test_gates_of_parts_are_drawn_where_they_are_used():
    model = ARCHITECTURES["bart-cross"].made()
    given = {"input_ids": generated(2, 9), "decoder_input_ids": generated(2, 6)}
    before = output(model, given)
    banks = {part: Square() for part in ("encoder", "decoder", "cross")}
    attach(model, banks)
    assert torch.allclose(output(model, given), before, atol=1e-5)
    assert [bank.draws for bank in banks.values()] == [1, 1, 1]
    assert {bank.calls[0]["visible"] is None for bank in banks.values()} == {True, False}
    assert set(model.get_submodule("masksearch_gates").children()) == set(banks.values())
    model.get_encoder()(given["input_ids"])
    assert [bank.draws for bank in banks.values()] == [2, 1, 1]
    detach(model)
    assert torch.equal(output(model, given), before)


def test_gates_shared_by_parts_are_drawn_once():
    model, bank = ARCHITECTURES["bart-cross"].made(), Square()
    attach(model, {"encoder": bank, "cross": bank})
    output(model, {"input_ids": generated(2, 9), "decoder_input_ids": generated(2, 6)})
    assert bank.draws == 1
    assert len(bank.calls) == 4
    assert model.get_submodule("masksearch_gates") is bank


def test_masks_and_gates_side_by_side():
    model, bank = ARCHITECTURES["bart-cross"].made(), Square()
    given = {"input_ids": generated(2, 9), "decoder_input_ids": generated(2, 9)}
    attach(model, {"encoder": MIXED, "cross": bank}, backend="gather")
    found = output(model, given | {"attention_mask": (torch.arange(9) < 7).long().expand(2, -1)})
    attach(model, MIXED, part="encoder")
    given["attention_mask"] = (torch.arange(9) < 7).long().expand(2, -1)
    assert torch.allclose(found, output(model, given), atol=1e-5)
