"""What is no model, no mask, no part or no length: one sentence that says what is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES
from torch import nn

from masksearch import masks
from masksearch.errors import AttachError, UnknownNameError
from masksearch.models.attach import attach, attached, detach
from masksearch.models.explain import explain


class PassesOn(nn.Module):
    """As DataParallel and adapters do."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: object, **given: object) -> object:
        return self.model(*args, **given)


@pytest.mark.parametrize("what", [None, 3, [masks.full()], torch.ones(5, 5).bool()])
def test_no_mask(what):
    model = ARCHITECTURES["bert"].made()
    for given in (what, {"self": what}):
        with pytest.raises(
            TypeError, match=r"a mask or gates, got .*; a bool table .*masks\.table"
        ):
            attach(model, given)
    assert attached(model) == {}


def test_an_expression_is_no_folder():
    with pytest.raises(FileNotFoundError, match=r"no such folder; give .*masks\.parse"):
        attach(ARCHITECTURES["bert"].made(), "window(3)")


@pytest.mark.parametrize("model", [None, "bert", nn.Linear])
def test_no_model(model):
    for call in (lambda: attach(model, masks.full()), lambda: detach(model)):
        with pytest.raises(TypeError, match=r"takes a model \(torch.nn.Module\) first, got"):
            call()


def test_no_part_and_no_backend():
    model = ARCHITECTURES["bert"].made()
    for call in (
        lambda: attach(model, masks.full(), part=3),
        lambda: attach(model, {0: masks.full()}),
    ):
        with pytest.raises(TypeError, match="a part is named by a string such as 'encoder'"):
            call()
    for name in ("decoder", ""):
        with pytest.raises(UnknownNameError, match=r"unknown part of BertModel .* Known: self"):
            attach(model, masks.full(), part=name)
    with pytest.raises(UnknownNameError, match="unknown backend 'None'"):
        attach(model, masks.full(), backend=None)


def test_no_length():
    model = attach(ARCHITECTURES["bert"].made(), masks.window(2))
    for length in (2.5, "8", True):
        with pytest.raises(ValueError, match="length must be a whole number of positions, got"):
            explain(model, length=length)
    assert explain(model, length=np.int64(8)).rows == explain(model, length=8).rows


@pytest.mark.parametrize("wrap", [lambda m: torch.compile(m, backend="eager"), PassesOn])
def test_wrappers_that_pass_their_inputs_on_need_no_example(wrap):
    at = ARCHITECTURES["bert"]
    model, given = at.made(), at.inputs()
    expected = attach(at.made(), masks.window(1))(**given)[0]
    whole = wrap(model)
    attach(whole, masks.window(1))
    assert torch.allclose(whole(**given)[0], expected, atol=1e-6)
    plain = detach(whole)(**given)[0]
    assert torch.allclose(plain, at.made()(**given)[0], atol=1e-6)
    assert not torch.allclose(plain, expected, atol=1e-3)


def test_wrapped_models_are_detached_as_they_were_attached():
    class Wrapper(nn.Module):
        def __init__(self, base: nn.Module) -> None:
            super().__init__()
            self.base = base

        def forward(self, **given: torch.Tensor) -> torch.Tensor:
            return self.base(**given)[0]

    at = ARCHITECTURES["bert"]
    model, given = at.made(), at.inputs()
    expected = attach(at.made(), masks.window(1))(**given)[0]
    whole = Wrapper(model).eval()
    attach(whole, masks.window(1), inputs=given)
    assert torch.equal(whole(**given), expected)
    with pytest.raises(AttachError, match="put on through another module"):
        attach(model, masks.window(2))
    with pytest.raises(AttachError, match="nothing is attached to this BertModel"):
        detach(model)
    assert torch.equal(whole(**given), expected)
    detach(whole)
    assert torch.equal(whole(**given), model(**given)[0])
