import math

import pytest
import torch
from torch import Tensor

from masksearch.attention.call import AttentionCall
from masksearch.gates.estimators import FORMS

flip = FORMS["flip"]
BATCH, HEADS, LENGTH, WIDTH = 2, 3, 7, 4
SCALING = WIDTH**-0.5
Calls = tuple[Tensor, Tensor, Tensor]


def inputs(seed: int = 0, dtype: torch.dtype = torch.float64, device: str = "cpu") -> Calls:
    source = torch.Generator().manual_seed(seed)
    shape = (BATCH, HEADS, LENGTH, WIDTH)
    query, key, value = (
        torch.randn(shape, generator=source, dtype=torch.float64)
        .to(device, dtype)
        .requires_grad_()
        for _ in range(3)
    )
    return query, key, value


def hard_gate(
    seed: int = 0, heads: int = HEADS, chance: float = 0.4, device: str = "cpu"
) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    drawn = torch.rand(heads, LENGTH, LENGTH, generator=source) < chance
    drawn[:, 4] = False  # a closed row
    return drawn.float().to(device).requires_grad_()


def padding() -> Tensor:
    visible = torch.ones(BATCH, 1, LENGTH, LENGTH, dtype=torch.bool)
    visible[1, :, :, 5:] = False
    return visible


def padding_with_own() -> Tensor:
    return padding() | torch.eye(LENGTH, dtype=torch.bool)


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
@pytest.mark.parametrize("visible", [None, padding_with_own()])
def test_forms_agree_with_loop_on_hard_gates(form: str, visible: Tensor | None, device: str):
    query, key, value = inputs(dtype=torch.float32, device=device)
    gate, visible = hard_gate(device=device), None if visible is None else visible.to(device)
    got = FORMS[form](AttentionCall(query, key, value, visible=visible, scaling=SCALING), gate)
    want = loop_attention(query.double(), key.double(), value.double(), gate, visible).to(device)
    if form == "additive":  # a row without an open visible key is dense there, as published
        blind = (want == 0).all(-1)
        got = got.masked_fill(blind.unsqueeze(-1), 0.0)
    torch.testing.assert_close(got.double(), want, atol=2e-6, rtol=0)


def test_rows_without_a_visible_key_are_zero_and_finite(device):
    query, key, value = inputs(dtype=torch.float32, device=device)
    visible = padding().to(device)
    visible[0, :, 2] = False
    gate = hard_gate(device=device)
    output = flip(AttentionCall(query, key, value, visible=visible, scaling=SCALING), gate)
    assert (output[0, :, 2] == 0).all()
    output.square().sum().backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in (query, key, value, gate))


def test_a_nearly_closed_soft_gate_weighs_what_it_is_in_the_log_form():
    query, key, value = inputs()
    gate = torch.ones(1, LENGTH, LENGTH, dtype=torch.float64)
    gate[..., 1:] = 1e-5
    got = FORMS["log"](AttentionCall(query, key, value, scaling=SCALING), gate)
    odds = (query @ key.mT * SCALING).exp() * gate
    torch.testing.assert_close(got, odds / odds.sum(-1, keepdim=True) @ value)
