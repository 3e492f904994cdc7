"""Block layouts per layer and head, and of NumPy."""

import numpy as np
import pytest
import torch

from masksearch import masks
from masksearch.errors import HeadCountError, LayerCountError


def generated(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape))) > 0.5


def test_block_layout_per_layer_and_head():
    bits = generated(2, 3, 4, 4)
    mask = masks.block_layout(bits, 4)
    assert (mask.layers, mask.heads, mask.length) == (2, 3, None)
    dense = mask.dense(15)
    wanted = bits.repeat_interleave(4, 2).repeat_interleave(4, 3)[..., :15, :15]
    assert torch.equal(dense, wanted)
    with pytest.raises(LayerCountError):
        mask.counts(3, 3)
    with pytest.raises(HeadCountError):
        mask.counts(2, 4)


def test_numpy_bools_are_taken():
    bits = generated(2, 4, 4).numpy()
    for made in (masks.table(bits), masks.table(np.asfortranarray(bits)), masks.table(bits[::-1])):
        assert torch.equal(made.dense(4)[0, 0], torch.tensor(made.bits[0].tolist()))
    assert masks.table(bits) == masks.table(torch.from_numpy(bits))
    assert masks.toeplitz(bits[0, 0]) == masks.toeplitz(torch.from_numpy(bits[0, 0]))
    assert masks.block_layout(bits, 2) == masks.block_layout(torch.from_numpy(bits), 2)
    kept = masks.table(bits)
    bits[:] = False
    assert kept.kept(4) > 0
