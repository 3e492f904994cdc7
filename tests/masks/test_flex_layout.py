"""Block masks for FlexAttention from tile counts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_trees import sized_trees
from torch.nn.attention.flex_attention import create_block_mask, create_mask

from masksearch import masks
from masksearch.errors import EmptyRowError
from masksearch.masks.lower import flex_block_mask


def drawn(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(3)) > 0.6


def same_blocks(mask: masks.Mask, length: int, block: int) -> None:
    """Compares with what torch makes of the mask cell by cell, and the cells with the table."""
    cells = create_mask(mask.mask_mod(length), None, mask.heads, length, length, device="cpu")
    assert torch.equal(cells[0], mask.dense(length)[0])
    ours = flex_block_mask(mask, length, block)
    theirs = create_block_mask(
        mask.mask_mod(length), None, mask.heads, length, length, device="cpu", BLOCK_SIZE=block
    )
    assert ours.shape == theirs.shape
    assert ours.BLOCK_SIZE == theirs.BLOCK_SIZE
    assert torch.equal(ours.to_dense(), theirs.to_dense())
    for name in ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    for name in ("q_num_blocks", "q_indices", "full_q_num_blocks", "full_q_indices"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name


@pytest.mark.parametrize("length", [32, 37])
@pytest.mark.parametrize(
    "mask",
    [
        masks.full(),
        masks.causal(),
        masks.window(9),
        masks.per_head([masks.window(2), masks.bigbird(1, 1, 2, seed=3), masks.causal()]),
        masks.blocks(8) | masks.blocks(16) - masks.shifts([1]),
        masks.cropped(masks.bigbird(1, 1, 2), 64) - masks.shifts([1]),
        masks.toeplitz(drawn(2, 40)) | masks.window(0),
        masks.toeplitz(drawn(79), signed=True) | masks.window(0),
        masks.shifts([-1, 0, 2]) | masks.global_tokens(positions=[3, 30]),
        *masks.FAMILIES.values(),
    ],
    ids=lambda mask: str(mask)[:30],
)
def test_equals_create_block_mask(mask, length):
    same_blocks(mask, length, 8)


def test_equals_create_block_mask_for_a_table():
    tiles = drawn(3, 5, 5).repeat_interleave(8, 1).repeat_interleave(8, 2)
    same_blocks(masks.table(tiles) | masks.window(0), 40, 8)
    same_blocks(masks.table(drawn(3, 40, 40)) | masks.window(0), 40, 8)


@pytest.mark.slow
@settings(max_examples=40)
@given(sized_trees(), st.integers(1, 5))
def test_empty_rows_are_refused_and_only_those(sized, block):
    length, mask = sized
    single = masks.layer_of(mask, 0)
    empty = ~single.dense(length)[0].any(-1)
    if not empty.any():
        same_blocks(single, length, block)
        return
    head, row = empty.nonzero()[0].tolist()
    with pytest.raises(EmptyRowError, match=f"head {head}, row {row} keeps no key.*window"):
        flex_block_mask(single, length, block)
