"""Attention under gates of every form and bank: hard and soft, padded, with biased scores."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from masksearch.attention.call import AttentionCall
from masksearch.gates.estimators import FORMS
from masksearch.gates.gates import Gates
from masksearch.gates.sparsebert import PublishedGates

flip = FORMS["flip"]
BATCH, HEADS, LENGTH, WIDTH = 2, 3, 5, 4
SCALING = 0.6
ALL_FORMS = {
    **FORMS,
    "soft": FORMS["log"],
    "published": PublishedGates(length=LENGTH, heads=HEADS).compute,
}
SHAPES = [(1, HEADS), (BATCH, HEADS), (BATCH, 1), (1, 1)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=source, dtype=torch.float64).requires_grad_()


def parts() -> tuple[Tensor, Tensor, Tensor]:
    shape = (BATCH, HEADS, LENGTH, WIDTH)
    return normal(*shape, seed=1), normal(*shape, seed=2), normal(*shape, seed=3)


def score_bias(shape: tuple[int, int] = (1, HEADS)) -> Tensor:
    return normal(*shape, LENGTH, LENGTH, seed=4)


def upstream() -> Tensor:
    return normal(BATCH, HEADS, LENGTH, WIDTH, seed=5).detach()


def hard_gate(heads: int = HEADS) -> Tensor:
    """Random, without an empty row under `padding`."""
    source = torch.Generator().manual_seed(6)
    gate = torch.rand(heads, LENGTH, LENGTH, generator=source) < 0.5
    gate[..., 0] = True
    gate[..., 2] = False
    return gate.double().requires_grad_()


def moved(device: str, *leaves: Tensor) -> list[Tensor]:
    """Leaves of another device."""
    return [leaf.detach().to(device).requires_grad_() for leaf in leaves]


def padding() -> Tensor:
    visible = torch.ones(BATCH, 1, LENGTH, LENGTH, dtype=torch.bool)
    visible[1, :, :, 3:] = False
    return visible


def written_out(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    visible: Tensor | None,
    bias: Tensor,
    added: Tensor | float = 0.0,
    factor: Tensor | float = 1.0,
) -> Tensor:
    """exp(score + bias + added) * factor over the visible keys, divided by its sum, times v."""
    scores = SCALING * torch.einsum("bhqw,bhkw->bhqk", query, key) + bias + added
    odds = (scores - scores.detach().amax(-1, keepdim=True)).exp() * factor
    if visible is not None:
        odds = odds * visible
    return torch.einsum("bhqk,bhkw->bhqw", odds / odds.sum(-1, keepdim=True), value)


def expected(form: str, *tensors: Any, gate: Tensor, visible: Tensor | None) -> Tensor:
    """The form by its formula; for `flip` the masked attention, whose gate learns nothing."""
    query, key, value, bias = tensors
    if form in ("log", "soft"):
        added = gate.clamp_min(1e-30).log()
        return written_out(query, key, value, visible, bias, added=added)
    if form in ("additive", "published"):
        return written_out(query, key, value, visible, bias, added=(gate - 1) * 1e4)
    factor = (gate > 0.5).double()
    return written_out(query, key, value, visible, bias, factor=factor)


def loop_attention(
    query: Tensor, key: Tensor, value: Tensor, gate: Tensor, visible: Tensor | None
) -> Tensor:
    """Attention by loops in float64, over the open keys; a closed row has the query's own."""
    query, key, value, gate = (each.cpu() for each in (query, key, value, gate))
    output = torch.zeros(BATCH, HEADS, LENGTH, WIDTH, dtype=torch.float64)
    for b in range(BATCH):
        for h in range(HEADS):
            for i in range(LENGTH):
                row = gate[h % gate.shape[0], i]
                keys = [j for j in range(LENGTH) if row[j] > 0.5] or [i]
                keys = [j for j in keys if visible is None or visible[b, 0, i, j]]
                if not keys:
                    continue
                scores = [(query[b, h, i] @ key[b, h, j]).item() * SCALING for j in keys]
                odds = [math.exp(score - max(scores)) for score in scores]
                for j, odd in zip(keys, odds, strict=True):
                    output[b, h, i] += odd / sum(odds) * value[b, h, j].detach()
    return output


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("visible", [None, padding() | torch.eye(LENGTH, dtype=torch.bool)])
def test_forms_agree_with_loop_on_hard_gates(form: str, visible: Tensor | None, device: str):
    drawn = hard_gate().detach()
    drawn[:, 4] = 0  # a closed row
    gate, *tensors = moved(device, drawn, *parts())
    visible = None if visible is None else visible.to(device)
    got = FORMS[form](AttentionCall(*tensors, visible=visible, scaling=SCALING), gate)
    want = loop_attention(*tensors, gate, visible).to(device)
    if form == "additive":  # a row without an open visible key is dense there, as published
        blind = (want == 0).all(-1)
        got = got.masked_fill(blind.unsqueeze(-1), 0.0)
    torch.testing.assert_close(got, want, atol=2e-6, rtol=0)


def test_a_nearly_closed_soft_gate_weighs_what_it_is_in_the_log_form():
    query, key, value = parts()
    gate = torch.ones(1, LENGTH, LENGTH, dtype=torch.float64)
    gate[..., 1:] = 1e-5
    got = FORMS["log"](AttentionCall(query, key, value, scaling=SCALING), gate)
    odds = (query @ key.mT * SCALING).exp() * gate
    torch.testing.assert_close(got, odds / odds.sum(-1, keepdim=True) @ value)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("visible", [None, padding()], ids=["all", "padded"])
@pytest.mark.parametrize("form", ALL_FORMS)
def test_forms_add_the_bias_and_learn_it(form, visible, shape, device):
    gate, bias, *tensors = moved(device, hard_gate(), score_bias(shape), *parts())
    visible = None if visible is None else visible.to(device)
    weight = upstream().to(device)
    if form == "soft":
        soft = normal(HEADS, LENGTH, LENGTH, seed=7).detach().sigmoid()
        gate = soft.to(device).requires_grad_()
    got = ALL_FORMS[form](
        AttentionCall(*tensors, visible=visible, scaling=SCALING, bias=bias), gate
    )
    want = expected(form, *tensors, bias, gate=gate, visible=visible)
    torch.testing.assert_close(got, want, atol=2e-6, rtol=1e-6)
    leaves = [*tensors, bias] if form == "flip" else [*tensors, bias, gate]
    found = torch.autograd.grad((got * weight).sum(), leaves)
    right = torch.autograd.grad((want * weight).sum(), leaves)
    assert found[3].abs().max() > 0.01
    for mine, other in zip(found, right, strict=True):
        scale = other.abs().max().item()
        torch.testing.assert_close(mine, other, atol=3e-6 * max(1, scale), rtol=1e-5)


@pytest.mark.parametrize("visible", [None, padding()], ids=["all", "padded"])
def test_flips_gate_learns_the_effect_of_one_edge_under_the_bias(visible: Tensor | None):
    tensors, gate, bias = parts(), hard_gate(), score_bias()

    def loss(of: Tensor) -> float:
        out = written_out(*tensors, visible, bias, factor=of)
        return float((out * upstream()).sum().detach())

    out = flip(AttentionCall(*tensors, visible=visible, scaling=SCALING, bias=bias), gate)
    (found,) = torch.autograd.grad((out * upstream()).sum(), gate)
    scores = SCALING * tensors[0] @ tensors[1].mT + bias
    seen = torch.ones(1, dtype=torch.bool) if visible is None else visible
    share = scores.masked_fill(~(seen & (gate > 0.5)), -torch.inf).softmax(-1).amax(0)
    before, judged = loss(gate.detach()), 0
    for place in [tuple(index) for index in torch.ones_like(gate).nonzero().tolist()]:
        if share[place] > 0.9:  # its removal is weighed less on purpose
            continue
        other = gate.detach().clone()
        other[place] = 1 - other[place]
        effect = (loss(other) - before) * (1 if other[place] else -1)
        assert float(found[place]) == pytest.approx(effect, abs=1e-5)
        judged += 1
    assert judged > 0.75 * gate.numel()


@pytest.mark.parametrize("form", ALL_FORMS)
def test_invisible_keys_and_their_bias_neither_leak_nor_learn(form: str):
    parts_, gate, bias = [part.detach().float() for part in parts()], hard_gate(1), score_bias()
    visible = torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool).tril()
    visible[:, :, 3] = False  # a query that sees nothing
    outs = []
    for high in (0.0, 1e4):
        raised = (bias + high * ~visible).float().detach().requires_grad_()
        for part in parts_[1:]:  # of the last key, which only the last query sees
            part[:, :, -1] += high / 100
        call = AttentionCall(*parts_, visible=visible, scaling=SCALING, bias=raised)
        out = ALL_FORMS[form](call, gate.float())
        for grad in torch.autograd.grad(out.square().sum(), [raised, gate]):
            assert grad.isfinite().all()
            assert (grad.view(-1, LENGTH, LENGTH)[:, ~visible[0, 0]] == 0).all()
        outs.append(out)
    assert torch.equal(outs[0][:, :, :-1], outs[1][:, :, :-1])
    assert outs[0].isfinite().all()
    assert (outs[0][:, :, 3] == 0).all()


@pytest.mark.parametrize("form", ALL_FORMS)
def test_low_precision_keeps_the_dtypes_and_is_finite_under_extreme_scores(form, device):
    query, key, value = parts()
    low = moved(device, *(part.bfloat16() for part in (60 * query, 60 * key, value)))
    gate, bias = moved(device, hard_gate().float(), score_bias().float())
    seen = padding().to(device)
    out = ALL_FORMS[form](
        AttentionCall(*low, visible=seen, dropout=0.3, scaling=SCALING, bias=bias), gate
    )
    assert out.dtype == torch.bfloat16
    assert out.isfinite().all()
    grads = torch.autograd.grad(out.float().square().sum(), [*low, bias, gate])
    assert [grad.dtype for grad in grads] == [torch.bfloat16] * 3 + [torch.float32] * 2
    assert all(grad.isfinite().all() for grad in grads)


def test_flip_learns_the_bias_under_dropout():
    tensors, bias = parts(), score_bias()
    low = [part.detach().float().requires_grad_() for part in tensors]
    added = bias.detach().float().requires_grad_()
    gate = torch.ones(1, LENGTH, LENGTH)
    grads = []
    for ours in (True, False):
        with torch.random.fork_rng():
            torch.manual_seed(5)
            if ours:
                out = flip(AttentionCall(*low, dropout=0.3, scaling=SCALING, bias=added), gate)
            else:
                weights = (low[0] @ low[1].mT * SCALING + added).softmax(-1)
                out = weights * (torch.empty_like(weights).bernoulli_(0.7) / 0.7) @ low[2]
        grads.append(torch.autograd.grad(out.square().sum(), [*low, added]))
    for got, want in zip(*grads, strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


# -- banks -------------------------------------------------------------------------------------
def drawn(gates: Gates) -> Gates:
    """With the gates of `hard_gate` as its sample."""
    gates.fixed = hard_gate().detach()[None]
    gates.draw()
    return gates


def switched_off() -> Gates:
    gates = Gates(length=LENGTH, heads=HEADS)
    gates.enabled = False
    return gates


BANKS: dict[str, tuple[Callable[[], Any], Tensor]] = {
    **{
        form: (
            lambda form=form: drawn(Gates(length=LENGTH, heads=HEADS, form=form)),
            hard_gate().detach(),
        )
        for form in FORMS
    },
    "published": (lambda: drawn(PublishedGates(length=LENGTH, heads=HEADS)), hard_gate().detach()),
    "off": (switched_off, torch.ones(1, 1, 1, dtype=torch.float64)),
}


@pytest.mark.parametrize("shape", [(1, HEADS), (BATCH, 1)], ids=str)
@pytest.mark.parametrize("visible", [None, padding()], ids=["all", "padded"])
@pytest.mark.parametrize("name", BANKS)
def test_banks_add_the_bias_and_learn_it(name, visible, shape):
    make, factor = BANKS[name]
    bank = make()
    tensors, bias = parts(), score_bias(shape)
    got = bank.attend(0, AttentionCall(*tensors, visible=visible, scaling=SCALING, bias=bias))
    want = written_out(*tensors, visible, bias, factor=factor)
    torch.testing.assert_close(got, want, atol=2e-6, rtol=1e-6)
    leaves = [*tensors, bias]
    found = torch.autograd.grad((got * upstream()).sum(), leaves)
    right = torch.autograd.grad((want * upstream()).sum(), leaves)
    for mine, other in zip(found, right, strict=True):
        torch.testing.assert_close(mine, other, atol=5e-6, rtol=1e-5)
    without = bank.attend(0, AttentionCall(*tensors, visible=visible, scaling=SCALING))
    zero = torch.zeros(1, 1, LENGTH, LENGTH, dtype=torch.float64)
    same = bank.attend(0, AttentionCall(*tensors, visible=visible, scaling=SCALING, bias=zero))
    torch.testing.assert_close(same, without, atol=1e-6, rtol=1e-6)
    assert not torch.allclose(got, without, atol=1e-2)


def test_the_file_of_a_form_is_read_again_by_new_gates_alone(tmp_path):
    file = tmp_path / "forms.py"
    file.write_text("def form(call, gate):\n    return 1\n")
    first = Gates(length=LENGTH, heads=HEADS, form=f"{file}:form")
    file.write_text(
        "def form(call, gate):\n    return 1 + 1\n"
    )  # Python keeps code by size and second
    second = Gates(length=LENGTH, heads=HEADS, form=f"{file}:form")
    call: Any = None
    assert [gates.compute(call, torch.ones(1)) for gates in (first, second)] == [1, 2]
