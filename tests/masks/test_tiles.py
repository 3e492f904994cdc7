"""Tiles against the dense table, cut up by reshaping."""

import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_trees import leaves, sized_trees
from torch import Tensor

from masksearch import masks
from masksearch.errors import LengthError
from masksearch.masks import bands, core, lower, tiles
from masksearch.masks.measure import (
    block_density,
    distance_histogram,
    overlap,
    sparsity_over,
)
from masksearch.masks.tiles import (
    distinct_tiles,
    offset_counts,
    on_diagonal,
    row_counts,
    table_rows,
    tile_counts,
    tile_view,
    whole_columns,
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
    assert torch.equal(tile_view(mask, length, block), wanted.flatten(-2).any(-1))
    layer, head = (mask.layers or 1) - 1, (mask.heads or 1) - 1
    distinct = distinct_tiles(mask, length, block, layer, head)
    assert torch.equal(distinct.patterns[distinct.index], wanted[layer, head])
    assert not distinct.patterns[0].any()
    assert len(distinct.patterns.unique(dim=0)) == len(distinct.patterns)


@settings(deadline=None, max_examples=60)
@given(sized_trees(longest=9), BLOCK, st.sampled_from([1, 40, 1 << 20]))
def test_tiles_of_random_masks_equal_the_tables(sized, block, band):
    length, mask = sized
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bands, "BAND", band)
        agrees(mask, length, block)


@settings(deadline=None, max_examples=40)
@given(sized_trees(longest=9), st.integers(1, 9), st.sampled_from([1, 200]))
def test_lines_of_random_masks_equal_the_tables(sized, side, scattered):
    length, mask = sized
    table = mask.dense(length)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bands, "BAND", 40)
        patch.setattr(tiles, "TILE", side)
        patch.setattr(tiles, "SCATTERED", scattered)
        patch.setattr(tiles, "SKEWED", 100)
        assert tiles.kept(mask, length) == int(table.sum())
        assert torch.equal(row_counts(mask, length), table.sum(-1))
        assert torch.equal(whole_columns(mask, length), table.all(-2))
        assert torch.equal(on_diagonal(mask, length), table.diagonal(0, -2, -1))
        rows = [torch.from_numpy(some) for some in table_rows(mask, length, 0, 0)]
        assert torch.equal(torch.cat(rows), table[0, 0])
        offsets = [table.diagonal(o, -2, -1).sum(-1) for o in range(1 - length, length)]
        assert torch.equal(offset_counts(mask, length), torch.stack(offsets, -1))


@settings(max_examples=40)
@given(sized_trees())
def test_masks_taken_by_tiles_have_the_same_figures(sized):
    length, mask = sized
    known = mask.kept(length), mask.density(length), lower.block_view(mask, length, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(core, "SHORT", 0)
        patch.setattr(lower, "SHORT", 0)
        assert mask.kept(length) == known[0]
        assert mask.density(length) == known[1]
        assert torch.equal(lower.block_view(mask, length, 3), known[2])


@settings(deadline=None, max_examples=150)
@given(leaves(64, tables=False), BLOCK)
def test_tiles_with_equal_keys_hold_equal_cells(leaf, block):
    count = 64 // block  # whole tiles only
    first = torch.arange(count) * block
    key = leaf.tile_key(first[:, None], first[None, :], block)
    if key is None:
        return
    assert key.dtype == torch.int64
    assert key.abs().max() < 2**62
    table = leaf.dense(64)[0, 0, : count * block, : count * block]
    seen: dict[int, Tensor] = {}
    for number, tile in zip(
        key.expand(count, count).flatten().tolist(), cut(table, block).flatten(0, 1), strict=True
    ):
        assert torch.equal(seen.setdefault(number, tile), tile)


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


@pytest.mark.parametrize("block", [257, 272, 320, 512, 1000])
def test_large_tiles_are_put_together(block):
    for mask in FAMILIES[-5:]:
        wanted = cut(mask.dense(700), block)
        assert torch.equal(tile_counts(mask, 700, block), wanted.sum((-2, -1)))
        assert torch.equal(tile_view(mask, 700, block), wanted.flatten(-2).any(-1))


def test_a_leaf_without_keys_is_looked_at_tile_by_tile():
    class Odd(masks.Mask):
        def allows(self, at):
            return (at.query * at.key) % 7 == 3

    agrees(Odd() | masks.window(2), 100, 16)


def test_alike_tiles_are_looked_at_once(monkeypatch):
    asked = 0
    allows = type(masks.window(1)).allows

    def counted(self, at):
        nonlocal asked
        asked += torch.broadcast_shapes(at.query.shape, at.key.shape).numel()
        return allows(self, at)

    monkeypatch.setattr(type(masks.window(1)), "allows", counted)
    assert masks.window(1).kept(8192) == 3 * 8192 - 2
    assert asked < 3 * 8192


def test_no_tensor_of_all_pairs_is_made():
    length, largest = 8192, 0
    mask = masks.per_head([masks.bigbird(), ~masks.longformer(3, 2) & masks.causal()])

    class Sizes(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            if isinstance(result, Tensor) and result.untyped_storage().nbytes() > largest:
                largest = result.untyped_storage().nbytes()
            return result

    tracemalloc.start()  # NumPy's arrays, which torch does not see
    try:
        with Sizes():
            mask.sparsity(length)
            block_density(mask, length, 32)
            sparsity_over(mask, length, diagonal=False, global_tokens=False, padding=7)
            distance_histogram(mask, length, signed=True)
            overlap(mask, masks.window(9), length)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 0 < largest < length * length / 16
    assert peak < length * length / 1.5  # a bool table alone would be length x length


MEASURED = """
import resource, time, torch
torch.set_num_threads(1)
from masksearch import masks
from masksearch.masks import lower, tiles
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.thread_time()
sparsity = masks.bigbird().sparsity(65536)
seconds = time.thread_time() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(sparsity, seconds, (peak - before) / 1024)
"""


@pytest.mark.slow
def test_sparsity_of_bigbird_at_65536_positions():
    run = [sys.executable, "-c", MEASURED]
    root = Path(__file__).parents[2]
    out = subprocess.run(run, capture_output=True, text=True, check=True, cwd=root).stdout
    sparsity, seconds, megabytes = map(float, out.split())
    length = 65536
    position = torch.arange(length)
    near = position[:, None] + torch.arange(-2, 3)
    keys = torch.cat([near, masks.random_keys(2).keys(position, length)], 1)
    cells = (position[:, None] * length + keys)[(keys >= 0) & (keys < length)]
    cells = torch.cat([cells, position, position * length])  # the global token
    assert sparsity == 1 - len(cells.unique()) / length**2
    assert seconds < 2
    assert megabytes < 500


def test_refusals():
    with pytest.raises(ValueError, match="block must be at least 1 position, got 0"):
        tile_counts(masks.full(), 4, 0)
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
