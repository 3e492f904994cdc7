"""Masks cut into rows and tiles, against the dense table."""

import tracemalloc

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from largest_tensor import LargestTensor
from mask_trees import sized_trees

from masksearch import masks
from masksearch.contracts import Shape
from masksearch.masks.measure import measures


def agrees(mask: masks.Mask, length: int, block: int) -> None:
    """The tiles that hold a kept cell, against the table."""
    missing = -length % block
    table = F.pad(mask.dense(length)[0], (0, missing, 0, missing))
    tiles = table.unflatten(-1, (-1, block)).unflatten(1, (-1, block)).any(-1).any(2)
    assert torch.equal(masks.to_block_layout(mask, length, block), tiles.long())


@pytest.mark.slow
@settings(deadline=None, max_examples=40)
@given(sized_trees(longest=9), st.integers(1, 90))
def test_rows_of_random_masks_equal_the_tables(sized, chunk):
    length, mask = sized
    table = mask.dense(length)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("masksearch.masks.core.CELLS_AT_ONCE", chunk)
        assert mask.kept(length) == int(table.sum())
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


@pytest.mark.nightly
def test_no_tensor_of_all_pairs_is_made():
    length = 8256  # hops, which take tables, are not counted
    mask = masks.per_head([masks.bigbird(), ~masks.longformer(3, 2) & masks.causal()])

    tracemalloc.start()  # NumPy's arrays, which torch does not see
    try:
        with LargestTensor() as largest:
            measures(mask | masks.window(0), Shape(length, 1, 2))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 0 < largest.bytes < length * length / 16
    assert peak < length * length / 1.5  # a bool table alone would be length x length
