"""Attached models under torch.export, torch.jit.trace and torch.func, each as the first call."""

from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES, states
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from masksearch import masks
from masksearch.attention.attach import attach
from masksearch.errors import AttachError, EmptyRowError

LONG = 300
MASK = masks.window(5) | masks.global_tokens(1)


class States(nn.Module):
    """The hidden states alone, of tensors alone."""

    def __init__(self, name: str, model: nn.Module) -> None:
        super().__init__()
        self.name, self.model = name, model

    def forward(self, given: dict[str, Tensor]) -> Tensor:
        at = ARCHITECTURES[self.name]
        plain = {"use_cache": False} if at.causal or at.takes == "texts" else {}
        return at.read(self.model(**given, **plain))


def made(name: str, length: int, backend: str = "auto", layers: int = 1) -> States:
    at = ARCHITECTURES[name]
    model = attach(at.made(layers, length), MASK, part=at.part, backend=backend)
    return States(name, model).eval()


def exported(model: nn.Module, given: dict[str, Tensor], **how: Any) -> Any:
    with torch.no_grad():
        program = torch.export.export(model, (given,), strict=False, **how)
    assert not [node for node in program.graph.nodes if "masksearch" in str(node.target)]
    return program.module()


def check(name: str, found: Any, model: nn.Module, given: dict[str, Tensor]) -> None:
    real = ARCHITECTURES[name].real(given)
    with torch.no_grad():
        assert torch.allclose(found(given)[real], model(given)[real], atol=1e-5)


# -- torch.export ------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize(("name", "length"), [("bert", 17), ("gpt2", LONG), ("bart-cross", 17)])
def test_exported_models_equal_eager_ones(name, length):
    at, model = ARCHITECTURES[name], made(name, length)
    found = exported(model, at.inputs(length=length))
    for padding in (0, 5):
        check(name, found, model, at.inputs(padding, length=length))


@pytest.mark.nightly
@pytest.mark.parametrize("backend", ["auto", "sdpa", "gather", "flex"])
@pytest.mark.parametrize("length", [17, LONG])
def test_strict_export_equals_eager(backend, length):
    at, model = ARCHITECTURES["bert"], made("bert", length, backend)
    given = at.inputs(3, length=length)
    with torch.no_grad():
        program = torch.export.export(model.model, (), given, strict=True)
    assert not [node for node in program.graph.nodes if "masksearch" in str(node.target)]
    attach(model.model, MASK, backend="sdpa")
    check("bert", lambda given: program.module()(**given)[0], model, given)


@pytest.mark.slow
def test_exported_graphs_hold_tables_in_place_of_plans():
    at, model = ARCHITECTURES["bert"], made("bert", LONG, "gather")
    found = exported(model, at.inputs(3, length=LONG))
    (state,) = states(model)
    assert state.fallback == "the model is exported: SDPA computes"
    assert {what for what, *_ in state.lowered.lowered[LONG]} == {"table"}
    attach(model.model, MASK, backend="sdpa")
    check("bert", found, model, at.inputs(9, length=LONG))


@pytest.mark.nightly
def test_an_exported_model_takes_any_batch_and_one_length():
    at, model = ARCHITECTURES["bert"], made("bert", 17)
    given = at.inputs(3)
    batch = {name: {0: torch.export.Dim("batch", min=1, max=64)} for name in given}
    found = exported(model, given, dynamic_shapes=(batch,))
    check("bert", found, model, {name: some.repeat(3, 1) for name, some in given.items()})
    length = {name: {1: torch.export.Dim("length", min=2, max=17)} for name in given}
    with pytest.raises(torch._dynamo.exc.UserError, match=r"specialized it to be a constant \(17"):
        exported(model, given, dynamic_shapes=(length,))


@pytest.mark.parametrize(
    "record",
    [
        lambda model, given: exported(States("bert", model), given),
        lambda model, given: torch.jit.trace(model, (given["input_ids"],), strict=False),
    ],
    ids=["export", "trace"],
)
@pytest.mark.parametrize("leaf", [masks.special_tokens(3), masks.same_token()], ids=str)
def test_content_masks_are_refused(record, leaf):
    at = ARCHITECTURES["bert"]
    model, given = attach(at.made(1), masks.window(2) | leaf), at.inputs(3)
    with pytest.raises(AttachError, match="another table in each batch, which an exported or"):
        record(model, given)


@pytest.mark.slow
def test_empty_rows_are_refused_in_an_export():
    at = ARCHITECTURES["bert"]
    model = States("bert", attach(at.made(1), masks.shifts((1,))))
    with pytest.raises(EmptyRowError, match="row 16 keeps no key"):
        exported(model, at.inputs())
    attach(model.model, MASK)
    check("bert", exported(model, at.inputs()), model, at.inputs())


# -- torch.jit.trace ---------------------------------------------------------------------------
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "length", "backend"),
    [("bert", 17, "auto"), ("gpt2", LONG, "gather"), ("bert", LONG, "gather")],
)
def test_traced_models_equal_eager_ones(name, length, backend):
    at, model = ARCHITECTURES[name], made(name, length, backend)
    found = torch.jit.trace(model, (at.inputs(length=length),), check_trace=backend == "auto")
    if backend != "auto":
        assert states(model)[0].fallback == "torch.jit.trace records the model: SDPA computes"
    attach(model.model, MASK, backend="sdpa", part=at.part)
    for padding in (0, 5):  # traced without padding: it counts nevertheless
        check(name, found, model, at.inputs(padding, length=length))


# -- torch.func --------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "length", "backend", "padding"),
    [
        ("bert", LONG, "auto", None),
        ("bert", LONG, "auto", 0),
        ("gpt2", LONG, "auto", 9),
        ("bert", 17, "gather", 9),
        ("gpt2", 17, "sdpa", 9),
    ],
)
def test_gradients_of_single_examples(name, length, backend, padding):
    at, model = ARCHITECTURES[name], made(name, length, backend)
    given = at.inputs(padding or 0, length=length)
    if padding is None:
        del given["attention_mask"]
    weights = {key: some.detach() for key, some in model.named_parameters()}

    def loss(weights: dict[str, Tensor], some: dict[str, Tensor]) -> Tensor:
        one = {key: value[None] for key, value in some.items()}
        found = functional_call(model, weights, (one,))
        return found[0, : length - (padding or 0)].square().mean()

    found = vmap(grad(loss), in_dims=(None, 0))(weights, given)
    (state,) = states(model)
    reason = "torch.func transforms the model: SDPA computes"
    assert state.fallback == ("" if backend == "sdpa" else reason)
    for example in range(2):
        own = {key: some.detach().requires_grad_() for key, some in weights.items()}
        some = {key: value[example] for key, value in given.items()}
        attach(model.model, MASK, backend="sdpa", part=at.part)
        expected = torch.autograd.grad(loss(own, some), list(own.values()), allow_unused=True)
        for key, wanted in zip(own, expected, strict=True):
            one = found[key][example]
            assert torch.allclose(one, torch.zeros(1) if wanted is None else wanted, atol=1e-5)


def test_what_was_lowered_under_a_transform_serves_later_calls():
    at, model = ARCHITECTURES["bert"], made("bert", 17)
    given = at.inputs(3)

    def loss(weights: dict[str, Tensor]) -> Tensor:
        return functional_call(model, weights, (given,)).square().mean()

    grad(loss)({key: some.detach() for key, some in model.named_parameters()})
    fresh = made("bert", 17)
    assert torch.equal(model(given), fresh(given))
