"""Measures against definitions written out again."""

import math
import re
import tracemalloc

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from largest_tensor import LargestTensor
from mask_trees import HEADS, LAYERS, sized_trees
from torch import Tensor

from masksearch import masks
from masksearch.contracts import Shape
from masksearch.errors import EmptyRowError, HeadCountError, LayerCountError, LengthError
from masksearch.masks.lower import lower
from masksearch.masks.measure import effective_density, fingerprint, hops, measures, pair_weights


@pytest.mark.parametrize(
    ("mask", "length", "block", "expected"),
    [
        (masks.window(0), 128, 32, 1 / 4),
        (masks.window(1), 128, 32, 10 / 16),
        (masks.blocks(32), 128, 32, 1 / 4),
        (masks.star(), 100, 64, 1.0),
        (masks.per_head([masks.full(), masks.window(0)]), 64, 32, 3 / 4),
    ],
)
def test_block_density_by_hand(mask, length, block, expected):
    assert measures(mask, Shape(length, 1, 2), block=block)["block_density"] == expected


SHAPE = Shape(12, 2, 2)


@pytest.mark.slow
@settings(max_examples=40)
@given(sized_trees(9))
def test_fingerprint_without_a_table_is_that_of_the_table(sized):
    length, mask = sized
    shape = Shape(length, LAYERS, HEADS)
    try:
        wanted = fingerprint(masks.table(lower(mask, shape)), shape)
    except EmptyRowError as error:
        with pytest.raises(EmptyRowError, match=re.escape(str(error))):
            fingerprint(mask, shape)
    else:
        assert fingerprint(mask, shape) == wanted


def test_fingerprint_of_a_long_mask():
    mask = masks.per_head([masks.bigbird(), masks.full() - masks.shifts([7])])
    shape = Shape(301, 2, 2)
    assert fingerprint(mask, shape) == fingerprint(masks.table(mask.dense(301, 2, 2)), shape)
    with pytest.raises(HeadCountError, match="2 heads, asked for 3"):
        fingerprint(mask, Shape(301, 2, 3))


def test_fingerprint_tells_bits_and_shapes_apart():
    found = {
        fingerprint(mask, shape)
        for mask in [*masks.FAMILIES.values(), masks.full(), masks.window(0)]
        for shape in [SHAPE, Shape(12, 2, 1), Shape(12, 1, 2), Shape(13, 2, 2)]
    }
    assert len(found) == (len(masks.FAMILIES) + 2) * 4


@pytest.mark.slow
@given(sized_trees())
def test_measures_match_the_table(sized):
    length, mask = sized[0], sized[1] | masks.window(0)
    table = mask.dense(length, LAYERS, HEADS).double()
    found = measures(mask, Shape(length, LAYERS, HEADS), block=2)
    assert found["density"] == pytest.approx(table.mean().item())
    assert found["sparsity"] == pytest.approx(1 - table.mean().item())
    blocks = torch.nn.functional.max_pool2d(table.flatten(0, 1), 2, ceil_mode=True)
    assert found["block_density"] == pytest.approx(blocks.mean().item())
    assert found["hops"] == hops(masks.table(table.bool()), length)
    if length > 1:
        off = table[..., ~torch.eye(length, dtype=torch.bool)]
        assert found["sparsity_off_diagonal"] == pytest.approx(1 - off.mean().item(), abs=1e-6)


def test_measures_need_no_table():
    mask, shape = masks.per_layer([masks.bigbird(), masks.window(2)]), Shape(300, 2, 3)
    assert measures(mask, shape) == measures(masks.table(lower(mask, shape)), shape)
    with pytest.raises(EmptyRowError, match="layer 0, head 0, row 0 keeps no key"):
        measures(masks.shifts([-1]), Shape(300, 1, 1))
    with pytest.raises(LayerCountError, match="2 layers, asked for 1"):
        measures(mask, Shape(300, 1, 3))


def shapes(length: int) -> st.SearchStrategy[Shape]:
    """Shapes of that length: with and without padding, causal or not, some rows read or all."""
    lengths = st.dictionaries(st.integers(1, length), st.integers(1, 3), min_size=1)
    return st.builds(
        Shape,
        st.just(length),
        st.just(LAYERS),
        st.just(HEADS),
        causal=st.booleans(),
        lengths=st.none() | lengths,
        read=st.none() | st.integers(1, length),
    )


def real_pairs(shape: Shape) -> list[tuple[int, int]]:
    """Every (query, key) that tokens of a sequence form, sequence by sequence."""
    return [
        (query, key)
        for tokens, count in dict(shape.lengths or {shape.length: 1}).items()
        for _ in range(count)
        for query in range(tokens)
        for key in range(query + 1 if shape.causal else tokens)
    ]


@pytest.mark.slow
@given(sized_trees(), st.data())
def test_effective_density_counts_the_pairs_of_every_sequence(sized, data):
    length, mask = sized
    shape = data.draw(shapes(length))
    table, pairs = mask.dense(length, LAYERS, HEADS), real_pairs(shape)
    weights = pair_weights(shape).expand(LAYERS, 1, length, length)
    sequences = sum(dict(shape.lengths or {length: 1}).values())
    kept = counted = 0
    for layer in range(LAYERS):
        read = shape.read if shape.read and layer == LAYERS - 1 else length
        own = [(query, key) for query, key in pairs if query < read]
        kept += sum(int(table[layer, :, query, key].sum()) for query, key in own)
        counted += HEADS * len(own)
        for query in range(length):
            for key in range(length):
                served = own.count((query, key)) / sequences
                assert weights[layer, 0, query, key].item() == pytest.approx(served)
    assert effective_density(mask, shape) == pytest.approx(kept / counted)


def test_what_is_read_is_checked_and_stored_where_it_is_said():
    assert Shape(**Shape(8, 2, 2, read=1).to_dict()) == Shape(8, 2, 2, read=1)
    assert "read" not in Shape(8, 2, 2).to_dict()
    for read in (0, 9):
        with pytest.raises(ValueError, match=rf"read must lie in 1\.\.length = 1\.\.8 .* {read}"):
            Shape(8, 2, 2, read=read)
    with pytest.raises(LayerCountError):
        effective_density(masks.per_layer([masks.star()] * 3), Shape(8, 2, 2, read=1))


@given(sized_trees(), st.data())
@pytest.mark.slow
def test_effective_sparsity_is_the_tables_without_padding_or_causality(sized, data):
    length, mask = sized[0], sized[1] | masks.window(0)
    sequences = data.draw(st.integers(1, 9))
    for lengths in (None, {length: sequences}):
        shape = Shape(length, LAYERS, HEADS, lengths=lengths)
        found = measures(mask, shape, block=2)
        assert found["effective_sparsity"] == found["sparsity"] == mask.sparsity(length)


@pytest.mark.slow
@given(sized_trees())
def test_density_of_a_decoder_counts_what_it_can_use(sized):
    length, mask = sized
    table, usable = mask.dense(length), torch.ones(length, length).tril().bool()
    assert mask.density(length, causal=True) == pytest.approx(
        table[..., usable].double().mean().item()
    )
    shape = Shape(length, LAYERS, HEADS, causal=True)
    assert effective_density(mask, shape) == mask.density(length, causal=True)
    assert mask.sparsity(length, causal=True) == 1 - mask.density(length, causal=True)


@pytest.mark.slow
@given(sized_trees(), st.data())
def test_a_causal_shape_lowers_what_a_decoder_uses(sized, data):
    length, mask = sized
    shape = Shape(length, LAYERS, HEADS, causal=True, lengths={length: 2, 1: 1})
    plain, seen = Shape(length, LAYERS, HEADS), mask & masks.causal()
    try:
        table = lower(seen, plain)
    except EmptyRowError:
        for look in (lower, fingerprint, measures):
            with pytest.raises(EmptyRowError, match="keeps no key"):
                look(mask, shape)
        return
    assert torch.equal(lower(mask, shape), table)
    wanted = measures(mask, shape)
    assert fingerprint(mask, shape) == fingerprint(masks.table(table), plain)
    assert measures(masks.table(table), shape) == wanted
    assert wanted["sparsity"] == pytest.approx(1 - table.double().mean().item())
    assert wanted["effective_sparsity"] == 1 - effective_density(mask, shape)


def test_a_mask_that_drops_padding_alone_is_dense():
    """Half of the sentences have 31 tokens, half 20, at 64 positions."""
    corner = torch.zeros(64, 64, dtype=torch.bool)
    corner[:31, :31] = True
    mask = masks.table(corner) | masks.window(0)
    found = measures(mask, Shape(64, 1, 1, lengths={31: 50, 20: 50}))
    assert found["sparsity"] == pytest.approx(1 - (31 * 31 + 33) / 64**2)
    assert found["effective_sparsity"] == 0


def test_hops_of_a_decoder_lead_to_later_positions():
    found = [
        measures(mask, Shape(9, 1, 1, causal=True))["hops"]
        for mask in (masks.full(), masks.window(1), masks.window(3), masks.window(0))
    ]
    assert found == [1, 8, 3, float("inf")]
    assert hops(masks.causal(), 9) == float("inf")


@pytest.mark.slow
def test_masks_of_many_layers_and_heads_are_measured_by_their_kinds_of_planes():
    """30 x 9 planes of 1,024 positions, two kinds of them."""
    local = masks.window(255) | masks.columns(4)
    layers = [masks.per_head([masks.full()] * n + [local] * (9 - n)) for n in 10 * [0, 1, 2]]
    mask, shape = masks.per_layer(layers), Shape(1024, 30, 9, causal=True)
    found = measures(mask, shape)
    small, few = Shape(48, 30, 9, causal=True), masks.per_layer(layers[:6])
    table = lower(mask, small)
    assert fingerprint(mask, small) == fingerprint(masks.table(table), Shape(48, 30, 9))
    assert measures(masks.table(table), small) == measures(mask, small)
    assert found["sparsity"] == pytest.approx(
        measures(few, Shape(1024, 6, 9, causal=True))["sparsity"]
    )


@pytest.mark.slow
def test_effective_density_of_a_long_mask_takes_no_table():
    shape = Shape(5_000, 1, 1, causal=True, lengths={5_000: 1, 100: 7})
    kept = sum(count * (4 * tokens - 6) for tokens, count in shape.histogram)
    pairs = sum(count * tokens * (tokens + 1) // 2 for tokens, count in shape.histogram)
    mask = masks.shifts([0, -1, -2, -3])
    assert effective_density(mask, shape) == kept / pairs


# -- hops, against products of float matrices ---------------------------------------------------
LONG = 2048


def by_matrices(table: Tensor) -> float:
    """One step after another, as matrix products."""
    size = table.shape[-1]
    own = torch.eye(size)
    steps = [(layer.any(0) | own.bool()).float() for layer in table]
    reached, count = own, 0
    while not reached.all():
        before = reached
        for step in steps:
            reached, count = (step @ reached > 0).float(), count + 1
            if reached.all():
                return count
        if torch.equal(before, reached):
            return float("inf")
    return count


def tables(layers: int, size: int, keys: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(layers, 2, size, size, generator=generator) < keys / size


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 3),
    st.integers(1, 140),
    st.sampled_from([0.3, 0.6, 1.2, 3, 30, 1000]),
    st.integers(0, 99),
    st.sampled_from([1, 50, 1 << 20]),
)
def test_hops_of_random_tables(layers, size, keys, seed, words):
    table = tables(layers, size, keys, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("masksearch.masks.measure.GATHERED", words)
        assert hops(masks.table(table), table.shape[-1]) == by_matrices(table)


@pytest.mark.parametrize(
    "mask",
    [
        masks.window(1),
        masks.window(5),
        masks.window(40),
        masks.shifts([-1]),
        masks.bigbird(),
        masks.blocks(50) | masks.stride(50),
        masks.per_layer([masks.causal(), masks.shifts([1, 5])]),
        masks.per_layer([masks.window(1), masks.window(0), masks.window(3)]),
    ],
    ids=str,
)
def test_hops_of_long_chains(mask):
    table = mask.dense(150)
    assert hops(masks.table(table), table.shape[-1]) == by_matrices(table)


FORMS: list[tuple[masks.Mask, float]] = [
    (masks.full(), 1),
    (masks.causal(), math.inf),  # no way to a later key
    (masks.a_shape(4, 512), 4),  # from the first to the last only by the window: 2,047 / 512
    (masks.star(), 2),  # by way of the hub
    (masks.strided(256), 2),  # a key of the right remainder is in the window
    (masks.blocks(64), math.inf),
    (masks.per_layer([masks.columns(1), masks.global_tokens(1)]), 3),  # in, and out again
    (masks.window(1), LONG - 1),  # the ends are n - 1 apart: ceil((n - 1) / reach)
    (masks.window(1000), 3),
    (masks.dilated(64, 2) | masks.window(1), 33),  # 31 x 64, 62 in one, and 1
    (masks.longformer(256, 16), 2),
    (masks.bigbird(192, 128, 3), 2),
    (masks.fixed(4, 1), 2),  # the last key of the other block
    (masks.axial(32, 64), 2),  # the corner of row and column
    (masks.butterfly(), 11),
    (masks.blocks(64) | masks.stride(64), 2),  # row and column of a grid of 64 columns
    (masks.shifts([1, 1 - LONG]), LONG - 1),  # a ring in one direction
    (masks.per_layer([masks.blocks(256), masks.stride(256)]), 2),
]


@pytest.mark.parametrize(("mask", "expected"), FORMS, ids=str)
@pytest.mark.slow
def test_closed_forms_of_long_masks(mask, expected):
    assert hops(mask, LONG) == expected


def test_hops_take_masks_and_tables():
    mask = masks.window(3)
    assert hops(mask, 1) == 0
    assert hops(mask, 100) == hops(masks.table(mask.dense(100)), 100) == 33
    with pytest.raises(LengthError, match="holds 4 positions, asked for 1"):
        hops(masks.table(torch.eye(4, dtype=torch.bool)), 1)


# -- rows and tiles, against the dense table ----------------------------------------------------
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
def test_no_tensor_of_all_pairsis_made():
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
