"""The last layer of a regression, put into the unit of its labels and taken out of it."""

import copy
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_encoders import sizes, tokens
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from masksearch.errors import DataError
from masksearch.evaluators.tuning import rescale
from masksearch.models.encoders import Output, SequenceClassifier
from masksearch.models.pretrained import TunedHead

KINDS = ("Albert", "Bert", "DistilBert", "Electra", "ModernBert", "Roberta")


def regression(kind: str) -> nn.Module:
    """A regression of transformers' own class; "" = our head on BERT."""
    named = sizes(40, 16, 2, 2, 32, 24, num_labels=1, pad_token_id=0)
    named |= {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}
    config = getattr(transformers, f"{kind or 'Bert'}Config")(**named)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = AutoModelForSequenceClassification.from_config(config)
    if kind:
        return TunedHead(model, "SequenceClassification")
    return SequenceClassifier(model.bert, 1, seed=0)


MODELS = {kind: regression(kind) for kind in (*KINDS, "")}


def answers(head: nn.Module) -> Tensor:
    with torch.no_grad():
        logits: Tensor = copy.deepcopy(head).eval()(tokens(3, 8)).logits.double().squeeze(-1)
    return logits


@pytest.mark.slow
@pytest.mark.parametrize("kind", MODELS)
@settings(max_examples=8, deadline=None)
@given(st.integers(-12, 12), st.floats(0.1, 9), st.floats(-99, 99))
def test_answers_are_in_the_unit_and_standardised_again(kind, power, factor, mean):
    unit = mean * 10.0**power, factor * 10.0**power
    head, before = copy.deepcopy(MODELS[kind]), answers(MODELS[kind])
    assert rescale(head, None) is head
    assert torch.equal(answers(head), before)
    assert rescale(head, unit) is head
    torch.testing.assert_close(
        answers(head), unit[0] + unit[1] * before, rtol=1e-5, atol=1e-4 * unit[1]
    )
    assert head.training == MODELS[kind].training
    rescale(head, unit, inverse=True)
    torch.testing.assert_close(answers(head), before, rtol=1e-5, atol=1e-4)


class Ended(nn.Module):
    """A linear layer, and what comes after it."""

    def __init__(self, end: nn.Module, *, bias: bool) -> None:
        super().__init__()
        self.linear, self.end = nn.Linear(4, 1, bias=bias), end

    def forward(self, input_ids: Tensor) -> Output:
        return Output(self.end(self.linear(input_ids.float())))


@pytest.mark.parametrize("head", [Ended(nn.Tanh(), bias=True), Ended(nn.Identity(), bias=False)])
def test_another_last_layer_is_refused_in_words(head):
    before = head.linear.weight.clone()
    with pytest.raises(DataError, match="Ended does not end in a linear layer with a bias, wh"):
        rescale(head, (3.0, 2.0))
    assert torch.equal(head.linear.weight, before)
    assert head.training


def test_a_mean_too_far_from_zero_for_float32_is_refused():
    with pytest.raises(DataError, match=r"mean 100000 and the deviation 0.001, .* subtract 1"):
        rescale(MODELS[""], (1e5, 1e-3))
