import pytest
import torch
from torch import Tensor

from masksearch.attention.call import AttentionCall
from masksearch.positions.probes import WatchedAttention

ONE_HEAD = torch.ones(2, 2, 5, 5, dtype=torch.bool)
ONE_HEAD[:, 1, :, 4] = False
CAUSAL = torch.ones(1, 1, 5, 5, dtype=torch.bool).tril()


@pytest.mark.parametrize("visible", [ONE_HEAD, CAUSAL], ids=["seen by one head", "seen once"])
def test_pairs_that_are_seen_are_no_padding(visible):
    seen: list[Tensor] = []
    bank = WatchedAttention(5, 2, 1, lambda layer, weights, valid: seen.append(valid))
    parts = torch.randn(3, 2, 2, 5, 3, generator=torch.Generator().manual_seed(0))
    bank.attend(0, AttentionCall(*parts, visible=visible, scaling=1.0))
    assert torch.equal(seen[0], visible.expand(seen[0].shape))
