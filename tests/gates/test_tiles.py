"""Attention under gates of tiles is the flip form's under the same gates of edges."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaModel,
    T5Config,
    T5EncoderModel,
)

from masksearch.attention.attach import attach, detach
from masksearch.attention.call import AttentionCall
from masksearch.gates import tiles as module
from masksearch.gates.estimators import flip
from masksearch.gates.gates import Gates
from masksearch.gates.sparsebert import published_penalty
from masksearch.gates.tiles import flip_tiles
from masksearch.masks.lower import spread_tiles

WIDTH, SCALING = 4, 0.6


class Case:
    """A call with gates of tiles, all drawn from one seed."""

    def __init__(self, seed: int, length: int, block: tuple[int, int], **about: Any) -> None:
        self.source, self.block = torch.Generator().manual_seed(seed), block
        batch, heads = about.get("batch", 2), about.get("heads", 2)
        states = [self.normal(batch, heads, length, WIDTH) for _ in range(3)]
        extra: dict[str, Tensor | None] = {"visible": self.seen(about.get("seen"), batch, length)}
        if about.get("bias"):
            extra["bias"] = self.normal(*about["bias"], length, length)
        self.call = AttentionCall(*states, scaling=SCALING, **extra)
        rows, columns = -(-length // block[0]), -(-length // block[1])
        gate = torch.rand(about.get("shared", heads), rows, columns, generator=self.source)
        self.gate = (gate < about.get("kept", 0.5)).float().requires_grad_()
        self.weight = torch.randn(states[0].shape, generator=self.source, dtype=torch.float64)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.source, dtype=torch.float64).requires_grad_()

    def seen(self, kind: str | None, batch: int, length: int) -> Tensor | None:
        if kind is None:
            return None
        seen = torch.ones(batch, 1, length, length, dtype=torch.bool)
        if kind == "padded":
            seen[0, :, :, length - length // 3 :] = False
        elif kind == "causal":
            return seen[:1].tril()
        elif kind == "of all queries":
            return seen[:, :, :1] & (torch.arange(length) <= length // 2)
        elif kind == "blind":
            seen[-1, :, length // 2] = False
        return seen

    @property
    def leaves(self) -> list[Tensor]:
        call = self.call
        return [
            call.query,
            call.key,
            call.value,
            self.gate,
            *([] if call.bias is None else [call.bias]),
        ]

    def outcome(self, tiled: bool = True) -> list[Tensor]:
        """The output, and the gradients of all leaves."""
        call = self.call
        if tiled:
            output = flip_tiles(call, self.gate, self.block)
        else:
            length = call.query.shape[2]
            output = flip(call, spread_tiles(self.gate, length, self.block))
        return [output, *torch.autograd.grad((output * self.weight).sum(), self.leaves)]


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """One row of tiles at a time."""
    monkeypatch.setattr(module, "AT_ONCE", 1)


cases = st.builds(
    Case,
    st.integers(0, 999),
    st.integers(1, 9),
    st.sampled_from([(1, 1), (4, 2), (2, 4), (3, 3), (8, 1), (12, 6)]),
    batch=st.integers(1, 3),
    heads=st.sampled_from([1, 2]),
    shared=st.just(1),
    kept=st.sampled_from([0.0, 0.3, 0.8]),
    seen=st.sampled_from([None, "padded", "causal", "blind", "of all queries"]),
    bias=st.sampled_from([None, (1, 1)]),
)
own_gates = st.builds(
    Case,
    st.integers(0, 999),
    st.integers(4, 9),
    st.sampled_from([(4, 2), (2, 4), (3, 3)]),
    seen=st.sampled_from([None, "padded"]),
    bias=st.sampled_from([(2, 2), (2, 1), (1, 2)]),
)


@pytest.mark.slow
@pytest.mark.usefixtures("small_parts")
@given(cases | own_gates)
@settings(max_examples=150, deadline=None)
def test_tiles_compute_and_learn_what_their_edges_do(case: Case):
    for got, want in zip(case.outcome(), case.outcome(tiled=False), strict=True):
        torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-4, check_dtype=False)


@pytest.mark.parametrize("kept", [0.0, 0.5])
def test_the_parts_do_not_matter(kept: float, monkeypatch: pytest.MonkeyPatch):
    case = Case(3, 40, (8, 4), seen="padded", bias=(1, 2), kept=kept)
    whole = case.outcome()
    monkeypatch.setattr(module, "AT_ONCE", 1)
    for one, other in zip(case.outcome(), whole, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_types_stay_and_extreme_scores_are_finite(kind: torch.dtype, device: str):
    case = Case(1, 9, (4, 2), seen="padded", bias=(1, 1))
    call, gate = case.call, case.gate.detach().to(device).requires_grad_()
    states = [
        (60 * each).detach().to(device, kind).requires_grad_() for each in (call.query, call.key)
    ]
    states.append(call.value.detach().to(device, kind).requires_grad_())
    bias = call.bias.detach().float().to(device).requires_grad_()
    how = {"visible": call.visible.to(device), "scaling": SCALING}
    output = flip_tiles(AttentionCall(*states, **how, bias=bias), gate, case.block)
    leaves = [*states, gate, bias]
    grads = torch.autograd.grad(output.float().square().sum(), leaves)
    assert output.dtype == kind
    assert [grad.dtype for grad in grads] == [leaf.dtype for leaf in leaves]
    assert all(bool(each.isfinite().all()) for each in (output, *grads))


def test_under_autocast_both_passes_see_the_same_scores():
    case = Case(2, 9, (4, 2))
    query, key, value = (each.detach().float().requires_grad_() for each in case.leaves[:3])
    low = [each.detach().bfloat16().requires_grad_() for each in (query, key, value)]
    call = AttentionCall(query, key, low[2], scaling=SCALING)  # rotary states stay wide
    with torch.autocast("cpu", torch.bfloat16):
        output = flip_tiles(call, case.gate, case.block)
    assert output.dtype == torch.bfloat16
    want = flip_tiles(AttentionCall(*low, scaling=SCALING), case.gate, case.block)
    assert torch.equal(output, want)
    grads = torch.autograd.grad(output.float().sum(), [query, key, low[2], case.gate])
    others = torch.autograd.grad(want.float().sum(), [*low, case.gate])
    assert all(
        map(torch.equal, (each.float() for each in grads), (each.float() for each in others))
    )


# -- the bank ----------------------------------------------------------------------------------
def bank(**arguments: Any) -> Gates:
    gates = Gates("block", block=(4, 2), length=12, heads=2, **arguments)
    gates.draw()
    return gates


def edges_of(gates: Gates) -> Gates:
    """Gates of edges with the same sample."""
    free = Gates(length=gates.length, heads=gates.heads, form=gates.form, hard=gates.hard)
    assert gates.drawn is not None
    free.fixed = gates.table(gates.drawn.detach())
    free.draw()
    return free


@pytest.mark.parametrize(
    "more", [{}, {"sinks": torch.tensor([0.3, -1.0])}, {"dropout": 0.4}], ids=lambda more: [*more]
)
@pytest.mark.parametrize("form", [{}, {"form": "log", "hard": False}, {"form": "additive"}])
@pytest.mark.parametrize(("queries", "keys"), [(12, 12), (7, 7), (2, 9)])
def test_banks_of_tiles_attend_as_those_of_edges(form: Any, queries: int, keys: int, more: Any):
    gates = bank(**form)
    source = torch.Generator().manual_seed(0)
    query = torch.randn(2, 2, queries, WIDTH, generator=source)
    key, value = torch.randn(2, 2, 2, keys, WIDTH, generator=source)
    call = AttentionCall(query, key, value, scaling=SCALING, **more)
    outputs = []
    for each in (gates, edges_of(gates)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            outputs.append(each.attend(0, call))
    torch.testing.assert_close(*outputs)


def small_model(name: str) -> Any:
    sizes = {"vocab_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2}
    if name == "T5EncoderModel":
        config = T5Config(**sizes, d_model=8, d_kv=4, d_ff=8, dropout_rate=0.0)
        return T5EncoderModel(config)
    sizes |= {"hidden_size": 8, "intermediate_size": 8}
    if name == "LlamaModel":
        return LlamaModel(LlamaConfig(**sizes, num_key_value_heads=1))
    return BertModel(
        BertConfig(**sizes, attention_probs_dropout_prob=0.0, hidden_dropout_prob=0.0)
    )


@pytest.mark.parametrize("name", ["BertModel", "T5EncoderModel", "LlamaModel"])
def test_models_feed_tiles_their_padding_and_biases(name: str):
    torch.manual_seed(0)
    model = small_model(name)
    ids = torch.randint(1, 20, (2, 10))
    mask = (torch.arange(10) < torch.tensor([[10], [6]])).long()
    gates = Gates("block", block=(4, 2), length=12, heads=2)
    edges = Gates(length=12, heads=2)
    tiles = (torch.rand(gates.logits.shape) < 0.6).float().requires_grad_()
    table = gates.table(tiles)
    gates.fixed, edges.fixed = tiles, table.detach().requires_grad_()
    found = []
    for bank in (gates, edges):
        attach(model, bank)
        model.zero_grad()
        hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state[mask.bool()]
        (hidden * torch.arange(8)).sum().backward()
        grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        found.append({"output": hidden.detach(), **grads})
        detach(model)
    for part, want in found[1].items():
        torch.testing.assert_close(found[0][part], want, atol=1e-5, rtol=1e-4)
    (want,) = torch.autograd.grad(table, tiles, edges.fixed.grad)
    assert (want != 0).float().mean() > 0.3
    torch.testing.assert_close(tiles.grad, want, atol=1e-5, rtol=1e-4)


def test_the_published_penalty_counts_edges():
    gates = bank()
    assert gates.drawn is not None
    count = edges_of(gates).drawn.sum()
    torch.testing.assert_close(published_penalty(gates, 0.5), 0.5 * count)


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor that any operation makes, backward passes included."""

    bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        result = function(*args, **(kwargs or {}))
        sizes = [
            each.untyped_storage().nbytes()
            for each in tree_leaves(result)
            if isinstance(each, Tensor)
        ]
        self.bytes = max([self.bytes, *sizes])
        return result


def test_no_tensor_of_all_queries_and_keys_is_made(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "AT_ONCE", 1)
    gates = Gates("block", block=(64, 16), length=512, heads=2)
    states = [torch.randn(2, 2, 512, WIDTH, requires_grad=True) for _ in range(3)]
    with Largest() as largest:
        gates.draw()
        gates.attend(0, AttentionCall(*states, scaling=SCALING)).sum().backward()
        gates.entropy()
    assert largest.bytes < 4 * 512**2  # one head's
    assert gates.logits.grad.abs().min() > 0
