"""Tiles against the dense table, cut up by reshaping."""

import tracemalloc

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from largest_tensor import LargestTensor
from mask_trees import sized_trees
from torch import Tensor

from masksearch import masks
from masksearch.errors import LengthError
from masksearch.masks.lower import block_view, distinct_tiles, row_counts, tile_counts
from masksearch.masks.measure import (
    block_density,
    on_diagonal,
)

BLOCK = st.integers(1, 10)


def cut(table: Tensor, block: int) -> Tensor:
    """bool `[.., n, n]` as `[.., nb, nb, block, block]`, False beyond the end."""
    length = table.shape[-1]
    count = -(-length // block)
    missing = count * block - length
    padded = F.pad(table, (0, missing, 0, missing))
    return padded.view(*table.shape[:-2], count, block, count, block).transpose(-2, -3)


def agrees(mask: masks.Mask, length: int, block: int) -> None:
    """Every figure of the tiles against the table."""
    table = mask.dense(length)
    wanted = cut(table, block)
    found = tile_counts(mask, length, block)
    assert found.dtype == torch.int64
    assert torch.equal(found, wanted.sum((-2, -1)))
    assert torch.equal(block_view(mask, length, block), wanted.flatten(-2).any(-1))
    layer, head = (mask.layers or 1) - 1, (mask.heads or 1) - 1
    distinct = distinct_tiles(mask, length, block, layer, head)
    assert torch.equal(distinct.patterns[distinct.index], wanted[layer, head])
    assert not distinct.patterns[0].any()
    assert len(distinct.patterns.unique(dim=0)) == len(distinct.patterns)


@settings(deadline=None, max_examples=60)
@given(sized_trees(longest=9), BLOCK, st.sampled_from([1, 40, 1 << 20]))
def test_tiles_of_random_masks_equal_the_tables(sized, block, chunk):
    length, mask = sized
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("masksearch.masks.core.CELLS_AT_ONCE", chunk)
        agrees(mask, length, block)


@settings(deadline=None, max_examples=40)
@given(sized_trees(longest=9), st.integers(1, 90))
def test_lines_of_random_masks_equal_the_tables(sized, chunk):
    length, mask = sized
    table = mask.dense(length)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("masksearch.masks.core.CELLS_AT_ONCE", chunk)
        assert mask.kept(length) == int(table.sum())
        assert torch.equal(row_counts(mask, length), table.sum(-1))
        assert torch.equal(on_diagonal(mask, length), table.diagonal(0, -2, -1))
        assert torch.equal(torch.cat(list(mask.row_chunks(length))), table[0, 0])


FAMILIES = [
    *masks.FAMILIES.values(),
    masks.causal() & masks.window(70),
    masks.dilated(300, 7),
    masks.blocks(100) - masks.block_columns(48, 5),
    masks.global_tokens(positions=[0, 63, 64, 300, 699, 5000]),
    masks.butterfly(48) - masks.columns(positions=[5, 640]),
    masks.block_layout(torch.eye(24, dtype=torch.bool).roll(1, 0), 30) | masks.butterfly(3),
    masks.shifts([-200, 3]) | masks.offsets([64, 65, 2**62]),
    ~masks.random_keys(20, 3) | masks.random_keys(9, 4),
    masks.cropped(masks.bigbird(3, 2, 4) | masks.stride(60), 800),
    masks.dilated(2**62, 2**62) | masks.stride(2**62) | masks.blocks(2**62),
    masks.butterfly(5) & masks.butterfly(2**62) | masks.window(0),
]


@pytest.mark.parametrize("mask", FAMILIES, ids=lambda mask: str(mask)[:40])
def test_tiles_of_families_at_every_width_of_a_word(mask):
    for length, block in ((700, 64), (640, 128), (700, 100), (701, 17), (130, 257)):
        agrees(mask, length, block)


def test_a_leaf_without_keys_is_looked_at_tile_by_tile():
    class Odd(masks.Mask):
        def allows(self, at):
            return (at.query * at.key) % 7 == 3

    agrees(Odd() | masks.window(2), 100, 16)


@pytest.mark.slow
def test_no_tensor_of_all_pairs_is_made():
    length = 8192
    mask = masks.per_head([masks.bigbird(), ~masks.longformer(3, 2) & masks.causal()])

    tracemalloc.start()  # NumPy's arrays, which torch does not see
    try:
        with LargestTensor() as largest:
            mask.sparsity(length)
            block_density(mask, length, 32)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 0 < largest.bytes < length * length / 16
    assert peak < length * length / 1.5  # a bool table alone would be length x length


def test_refusals():
    for tiles in (tile_counts, block_view):
        with pytest.raises(ValueError, match="block must be at least 1 position, got 0"):
            tiles(masks.full(), 4, 0)
    with pytest.raises(ValueError, match="length must be at least 1 position, got 0"):
        tile_counts(masks.full(), 0, 4)
    with pytest.raises(LengthError, match="cropped from 4 positions, asked for 9"):
        tile_counts(masks.cropped(masks.bigbird(), 4), 9, 4)
    with pytest.raises(LengthError, match="cropped from 4 positions, asked for 900"):
        masks.cropped(masks.bigbird(), 4).kept(900)
    with pytest.raises(LengthError, match="Toeplitz bits reach 3 positions, asked for 9"):
        distinct_tiles(masks.toeplitz(torch.ones(3, dtype=torch.bool)), 9, 4)
    with pytest.raises(ValueError, match=r"head must be in \[0, 2\), got 2"):
        distinct_tiles(masks.per_head([masks.full()] * 2), 9, 4, head=2)
    with pytest.raises(ValueError, match="layer must be at least 0, got -1"):
        distinct_tiles(masks.full(), 9, 4, layer=-1)
