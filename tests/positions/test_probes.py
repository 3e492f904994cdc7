import math
from typing import Any

import pytest
import torch
from torch import Tensor

from masksearch.attention.call import AttentionCall
from masksearch.positions.probes import FlippedAttention, ThinnedAttention, WatchedAttention

SIZES = (5, 2, 1)  # positions, heads, layers


def parts(batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    source = torch.Generator().manual_seed(0)
    shape = (batch, 2, 5, 3)
    query, key, value = (
        torch.randn(shape, generator=source, dtype=torch.float64) for _ in range(3)
    )
    return query, key, value


def padding() -> Tensor:
    visible = torch.ones(2, 1, 5, 5, dtype=torch.bool)
    visible[1, :, :, 3:] = False
    return visible


def by_hand(query: Tensor, key: Tensor, keep: Tensor, scaling: float) -> Tensor:
    weights = torch.zeros(2, 2, 5, 5, dtype=torch.float64)
    for b, h, i in ((b, h, i) for b in range(2) for h in range(2) for i in range(5)):
        keys = [j for j in range(5) if keep.expand(2, 2, 5, 5)[b, h, i, j]]
        scores = [math.exp(scaling * float(query[b, h, i] @ key[b, h, j])) for j in keys]
        for j, score in zip(keys, scores, strict=True):
            weights[b, h, i, j] = score / sum(scores)
    return weights


ONE_HEAD = torch.ones(2, 2, 5, 5, dtype=torch.bool)
ONE_HEAD[:, 1, :, 4] = False
CAUSAL = torch.ones(1, 1, 5, 5, dtype=torch.bool).tril()


@pytest.mark.parametrize("visible", [ONE_HEAD, CAUSAL], ids=["seen by one head", "seen once"])
def test_pairs_that_are_seen_are_no_padding(visible):
    seen: list[Tensor] = []
    bank = WatchedAttention(*SIZES, lambda layer, weights, valid: seen.append(valid))
    bank.attend(0, AttentionCall(*parts(), visible=visible, scaling=1.0))
    assert torch.equal(seen[0], visible.expand(seen[0].shape))


def test_banks_that_change_nothing_agree_with_each_other():
    query, key, value = parts()
    seen: list[Tensor] = []
    banks: list[Any] = [
        WatchedAttention(*SIZES, lambda layer, weights, valid: seen.append(weights)),
        FlippedAttention(*SIZES, lambda layer, gate, valid: None),
        ThinnedAttention(*SIZES),
    ]
    expected = by_hand(query, key, padding(), 1.0) @ value
    for bank in banks:
        out = bank.attend(0, AttentionCall(query, key, value, visible=padding(), scaling=1.0))
        torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(seen[0], by_hand(query, key, padding(), 1.0))


def test_thinned_rows_that_would_be_empty_keep_what_they_have():
    query, key, value = parts()
    visible = padding()
    visible[0, 0, 1] = torch.tensor([0, 0, 0, 1, 0], dtype=torch.bool)
    bank = ThinnedAttention(*SIZES)
    bank.removed = (torch.arange(5) == 3).expand(1, 1, 5, 5)
    out = bank.attend(0, AttentionCall(query, key, value, visible=visible, scaling=1.0))
    keep = visible & (torch.arange(5) != 3)
    keep[0, 0, 1, 3] = True
    torch.testing.assert_close(out, by_hand(query, key, keep, 1.0) @ value)
    assert bank.cells == [4 / 2]  # 4 of 5 rows of the first sequence, none of the second
