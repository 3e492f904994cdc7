"""The choice of a kernel: a rule, the same every time, and honest about what was asked for."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_trees import sized_trees

from masksearch import masks
from masksearch.attention.kernels.choose import (
    BLOCK,
    REQUESTS,
    UNIT,
    Choice,
    choose,
    coarse,
    fine,
    gather_pays_from,
)
from masksearch.errors import LengthError, UnknownNameError
from masksearch.masks.lower import tile_counts


def chosen(mask: masks.Mask, length: int, **other: object) -> Choice:
    given = {"heads": 4, "width": 64, "device": "cpu", "trains": False} | other
    return choose(mask, length, **given)


def layout(tiles: torch.Tensor) -> masks.Mask:
    return masks.table(tiles.repeat_interleave(BLOCK, -1).repeat_interleave(BLOCK, -2))


# -- what auto takes ---------------------------------------------------------------------------
@pytest.mark.parametrize("trains", [False, True])
@pytest.mark.parametrize("length", [2048, 4096])
@pytest.mark.parametrize("mask", [masks.window(64), masks.longformer(64, 1)], ids=str)
def test_long_sparse_masks_are_gathered(mask, length, trains):
    made = chosen(mask, length, trains=trains)
    assert made.backend == "gather"
    assert made.ratio > 2
    assert "of the cells" in made.reason


@pytest.mark.parametrize("trains", [False, True])
@pytest.mark.parametrize("length", [256, 512, 1024, 4096])
@pytest.mark.parametrize("mask", [masks.strided(4), ~masks.window(0)], ids=str)
def test_masks_without_an_empty_block_are_left_to_sdpa(mask, length, trains):
    made = chosen(mask, length, trains=trains)
    assert made.backend == "sdpa"
    assert made.block_density == 1
    assert made.ratio < 1


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("length", [1, 64, 128, 255])
def test_nothing_sparse_below_256(length, device):
    assert chosen(masks.causal() & masks.window(0), length, device=device).backend in (
        ("sdpa", "dense") if length == 1 else ("sdpa",)
    )


@settings(max_examples=20)
@given(st.integers(0, 2**31), st.floats(0, 1), st.floats(0, 1), st.booleans())
def test_fewer_blocks_never_lose_the_gather(seed, one, other, trains):
    drawn = torch.rand(17, 17, generator=torch.Generator().manual_seed(seed))
    drawn.fill_diagonal_(0)
    few, many = (
        chosen(layout(drawn <= density), 17 * BLOCK, trains=trains)
        for density in sorted((one, other))
    )
    if many.backend == "gather":
        assert few.backend == "gather"
        assert few.ratio >= many.ratio
    assert few.block_density <= many.block_density


def test_finer_units_are_looked_at_where_blocks_are_full():
    mask = masks.random_keys(2) | masks.window(16)
    length = 4096
    made = chosen(mask, length)
    upper = coarse(tile_counts(mask, length, BLOCK)[0], length)
    exact = fine(mask, length)
    assert exact.cells < 0.5 * upper.cells
    assert made.block_density > 0.7
    assert made.backend == "gather"


def test_nothing_is_timed_or_remembered():
    mask = masks.per_head([masks.window(50), masks.bigbird(9, 1, 1)] * 2)
    made = chosen(mask, 700)
    chosen(masks.full(), 700)
    assert chosen(mask, 700) == made


# -- measures ----------------------------------------------------------------------------------
@settings(max_examples=12)
@given(sized_trees())
def test_densities_are_those_of_the_mask(sized):
    length, mask = sized
    single = masks.layer_of(mask, 0)
    made = chosen(single, length, heads=single.heads or 4)
    assert made.density == pytest.approx(single.density(length))
    assert made.block_density == float(single.dense(length)[0].any(2).any(1).double().mean())
    assert made.length == length


@pytest.mark.parametrize("length", [130, 192])
@pytest.mark.parametrize("mask", [masks.window(9), masks.star(), masks.blocks(48)], ids=str)
@pytest.mark.parametrize("heads", [1, 2])
def test_work_counts_what_is_computed(mask, length, heads):
    if heads == 2:
        mask = masks.per_head([mask, masks.full()])
    table = mask.dense(length)[0]
    for keys in (BLOCK, UNIT):
        cells = biased = 0
        for head in range(heads):
            for row in range(0, length, BLOCK):
                tiles = table[head, row : row + BLOCK].split(keys, dim=1)
                kept = sum(bool(tile.any()) for tile in tiles) * BLOCK * keys
                cells += kept
                biased += kept * any(bool(tile.any()) and not tile.all() for tile in tiles)
        work = (
            fine(mask, length)
            if keys == UNIT
            else coarse(tile_counts(mask, length, BLOCK)[0], length)
        )
        assert (work.cells, work.biased) == (cells / heads, biased / heads)


# -- what is asked for -------------------------------------------------------------------------
@pytest.mark.parametrize("length", [64, 2048])
@pytest.mark.parametrize("backend", ["sdpa", "gather", "flex"])
@pytest.mark.parametrize("device", ["cpu", "cuda", "meta"])
def test_a_request_is_honoured(backend, length, device):
    made = chosen(masks.window(3), length, requested=backend, device=device)
    assert made.backend == backend
    assert f'backend="{backend}" was asked for' in made.reason


@pytest.mark.parametrize("requested", REQUESTS)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_mask_that_keeps_everything_is_plain_sdpa(requested, device):
    made = chosen(masks.full(), 2048, requested=requested, device=device)
    assert made.backend == "dense"
    assert (made.ratio, made.density, made.block_density) == (1, 1, 1)


@pytest.mark.parametrize("trains", [False, True])
@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
@pytest.mark.parametrize("length", [256, 2048])
def test_fastest_is_auto_until_it_has_been_measured(device, length, trains):
    window = masks.window(64)
    made = chosen(window, length, requested="fastest", device=device, trains=trains)
    auto = chosen(window, length, device=device, trains=trains)
    assert replace(made, reason=auto.reason) == auto
    assert made.reason == auto.reason + "; the kernels are timed in the first call at this length"
    assert not made.measured
    short = chosen(window, 255, requested="fastest", device=device, trains=trains)
    assert short == chosen(window, 255, device=device, trains=trains)


def test_flex_that_cannot_train_says_so():
    window = masks.window(3)
    assert "no backward pass" in chosen(window, 64, requested="flex", trains=True).reason
    assert "no backward" not in chosen(window, 64, requested="flex").reason
    on_cuda = chosen(window, 64, requested="flex", trains=True, device="cuda")
    assert "no backward" not in on_cuda.reason


def test_unknown_backends_and_other_lengths_are_refused():
    with pytest.raises(UnknownNameError, match="unknown backend 'gathr'; did you mean 'gather'"):
        chosen(masks.full(), 8, requested="gathr")
    with pytest.raises(LengthError):
        chosen(masks.table(torch.ones(8, 8, dtype=torch.bool)), 16)


# -- other devices -----------------------------------------------------------------------------
@pytest.mark.parametrize("trains", [False, True])
def test_cuda_takes_flex_for_long_inputs(trains):
    for mask in (masks.window(64), masks.strided(4)):
        made = chosen(mask, 1024, device=torch.device("cuda", 0), trains=trains)
        assert (made.backend, made.ratio) == ("flex", None)
        assert chosen(mask, 1023, device="cuda", trains=trains).backend == "sdpa"
    assert chosen(masks.window(64), 4096, device="cuda", width=8).backend == "sdpa"


def test_devices_without_figures_take_sdpa():
    made = chosen(masks.window(64), 4096, device="mps")
    assert made.backend == "sdpa"
    assert 'backend="gather"' in made.reason


# -- from which length -------------------------------------------------------------------------
def test_gather_pays_from_some_length():
    first = gather_pays_from(masks.window(8), 4, 64, trains=False)
    assert first is not None
    assert chosen(masks.window(8), first).backend == "gather"
    assert first == 256 or chosen(masks.window(8), first // 2).backend == "sdpa"
    assert gather_pays_from(masks.strided(4), 4, 64, trains=False) is None
    assert gather_pays_from(layout(torch.eye(8) > 0), 4, 64, trains=False) == 512
