"""Columns, grids, butterflies and block layouts, each against its rule as a loop."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_block_mask, create_mask, flex_attention

import masksearch as ms
from masksearch import masks
from masksearch.errors import HeadCountError, LayerCountError, LengthError, MaskFormatError
from masksearch.masks.lower import tile_counts


def generated(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape))) > 0.5


def row_and_column(position, columns, prefix):
    return divmod(position - prefix, columns)


def axial(columns, prefix=0):
    def rule(q, k):
        if min(q, k) < prefix:
            return True
        (a, b), (c, d) = (row_and_column(p, columns, prefix) for p in (q, k))
        return a == c or b == d

    return rule


BITS, NINE = generated(4, 4), generated(1, 1, 9, 9)
RULES = [
    (masks.columns(2), lambda q, k: k < 2),
    (masks.columns(positions=[1, 5, 70]), lambda q, k: k in (1, 5)),
    (masks.axial(3, 5), axial(5)),
    (masks.axial(5, 3), axial(3)),
    (masks.axial(3, 4, prefix=1), axial(4, 1)),
    (masks.axial(2, 6, 3), axial(6, 3)),
    (masks.axial(1, 99), lambda q, k: True),
    (masks.axial(99, 1), lambda q, k: True),
    (masks.butterfly(), lambda q, k: bin(q ^ k).count("1") <= 1),
    (masks.butterfly(3), lambda q, k: bin(q // 3 ^ k // 3).count("1") <= 1),
    (masks.block_layout(BITS, 4), lambda q, k: bool(BITS[q // 4, k // 4])),
    (masks.block_layout(NINE, 3), lambda q, k: bool(NINE[0, 0, q // 3, k // 3])),
    (masks.a_shape(2, 3), lambda q, k: k < 2 or abs(q - k) <= 3),
    (masks.vertical_slash([0, 7], [1, 4]), lambda q, k: k in (0, 7) or abs(q - k) in (1, 4)),
    (masks.a_shape(2, 3) & masks.causal(), lambda q, k: k <= q and (k < 2 or q - k <= 3)),
    (masks.axial(3, 5) & masks.causal(), lambda q, k: k <= q and axial(5)(q, k)),
    (masks.butterfly() & masks.causal(), lambda q, k: k <= q and bin(q ^ k).count("1") < 2),
    (masks.block_layout(BITS, 4) & masks.causal(), lambda q, k: k <= q and BITS[q // 4, k // 4]),
    (masks.vertical_slash([0], [0]) & masks.causal(), lambda q, k: k == 0 or k == q),
]
IDS = [str(mask)[:40] for mask, _ in RULES]


@pytest.mark.parametrize(("mask", "rule"), RULES, ids=IDS)
def test_leaf_matches_loop(mask, rule):
    dense = mask.dense(13)
    assert dense.shape == (1, 1, 13, 13)
    assert dense.dtype == torch.bool
    assert all(bool(dense[0, 0, q, k]) == bool(rule(q, k)) for q in range(13) for k in range(13))
    assert masks.parse(str(mask)) == mask
    assert ms.Mask.from_json(mask.to_json()) == mask
    assert copy.deepcopy(mask) == mask


def test_flex_attention_takes_layouts_with_heads():
    bits = generated(2, 4, 4) | torch.eye(4, dtype=torch.bool)
    mask = masks.block_layout(bits, 4) & (masks.axial(4, 4) | masks.columns(3))
    query, key, value = torch.randn(3, 1, 2, 16, 8, generator=torch.Generator().manual_seed(0))
    block = create_block_mask(mask.mask_mod(16), 1, 2, 16, 16, device="cpu", BLOCK_SIZE=16)
    with torch.no_grad(), pytest.warns(UserWarning, match="without torch.compile"):
        found = flex_attention(query, key, value, block_mask=block)
    wanted = torch.nn.functional.scaled_dot_product_attention(query, key, value, mask.dense(16)[0])
    assert torch.allclose(found, wanted, atol=1e-5)


@pytest.mark.slow
def test_compiled_flex_attention_takes_every_layout():
    bits = generated(2, 8, 8) | torch.eye(8, dtype=torch.bool)
    query, key, value = torch.randn(3, 1, 2, 128, 16, generator=torch.Generator().manual_seed(0))
    compiled = torch.compile(flex_attention)
    for mask in (
        masks.block_layout(bits, 16),
        masks.axial(9, 14, prefix=2),
        masks.butterfly(4),
        masks.vertical_slash([0, 50], [0, 3]),
    ):
        block = ms.flex_block_mask(mask, 128, block=32)
        with torch.no_grad():
            found = compiled(query, key, value, block_mask=block)
        kept = mask.dense(128, 1, 2)[0]
        wanted = torch.nn.functional.scaled_dot_product_attention(query, key, value, kept)
        assert torch.allclose(found, wanted, atol=1e-5), str(mask)


def test_block_layout_per_layer_and_head():
    bits = generated(2, 3, 4, 4)
    mask = masks.block_layout(bits, 4)
    assert (mask.layers, mask.heads, mask.length) == (2, 3, None)
    dense = mask.dense(15)
    wanted = bits.repeat_interleave(4, 2).repeat_interleave(4, 3)[..., :15, :15]
    assert torch.equal(dense, wanted)
    for layer in range(2):
        single = masks.layer_of(mask, layer)
        assert torch.equal(single.dense(15)[0], wanted[layer])
        made = create_mask(single.mask_mod(15), 1, 3, 15, 15, device="cpu")
        assert torch.equal(made[0], wanted[layer])
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


def test_str_of_long_layouts_shows_shape_and_digest():
    mask = masks.block_layout(generated(2, 16, 16), 8)
    assert str(mask) == f"block_layout(2x16x16, 8, {mask.digest[:8]})"
    with pytest.raises(MaskFormatError):
        masks.parse(str(mask))
    assert str(masks.block_layout(torch.eye(2) > 0, 8)) == "block_layout([[1,0],[0,1]], 8)"
    assert str(masks.a_shape(4, 8)) == "columns(4) | window(8)"
    assert str(masks.vertical_slash([3], [0])) == "columns(positions=[3]) | offsets([0])"
    assert masks.parse("a_shape(4, 8) & causal") == masks.a_shape(4, 8) & masks.causal()


# -- messages ----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: masks.columns(), ValueError, "columns takes a count or positions"),
        (lambda: masks.columns(1, positions=[0]), ValueError, "exactly one of them"),
        (lambda: masks.columns(0), ValueError, "count must be a whole number >= 1, got 0"),
        (lambda: masks.columns(positions=[-1]), ValueError, "positions must be >= 0, got -1"),
        (lambda: masks.axial(0, 3), ValueError, "rows must be a whole number >= 1, got 0"),
        (lambda: masks.axial(3, 1.0), ValueError, "columns must be a whole number >= 1, got 1.0"),
        (lambda: masks.axial(3, 3, -1), ValueError, "prefix must be a whole number >= 0, got -1"),
        (
            lambda: masks.axial(3, 4, 1).dense(14),
            LengthError,
            r"axial\(3, 4, 1\) has 13 positions, asked for 14; give the grid",
        ),
        (lambda: masks.axial(3, 4, 1).kept(1400), LengthError, "has 13 positions, asked for 1400"),
        (lambda: masks.butterfly(0), ValueError, "block must be a whole number >= 1, got 0"),
        (
            lambda: masks.block_layout(torch.ones(2, 2), 4),
            MaskFormatError,
            "a block_layout is a bool tensor, got torch.float32",
        ),
        (lambda: masks.block_layout([[3]], 4), MaskFormatError, r"got \[\[3\]\]"),
        (lambda: masks.block_layout(np.ones((2, 2)), 4), MaskFormatError, "got float64"),
        (lambda: masks.table(np.ones((2, 2))), MaskFormatError, "bool tensor, got float64"),
        (lambda: masks.block_layout(torch.ones(2, 3) > 0, 4), MaskFormatError, r"got \[2, 3\]"),
        (lambda: masks.block_layout(torch.ones(2, 2) > 0, 0), ValueError, "block must be a whole"),
        (
            lambda: masks.block_layout(torch.ones(2, 2) > 0, 4).dense(9),
            LengthError,
            "has 2 blocks of 4 positions, asked for 9 positions; .*at most 8",
        ),
        (lambda: masks.parse("block_layout([[1,2],[0,0]], 4)"), MaskFormatError, "lists of 0 and"),
        (lambda: masks.vertical_slash([], [0]), ValueError, "columns must be a non-empty list"),
        (lambda: masks.vertical_slash([0], [-1]), ValueError, "offsets must be >= 0, got -1"),
        (lambda: masks.a_shape(4, -1), ValueError, "reach must be a whole number >= 0, got -1"),
    ],
)
def test_messages(build, error, message):
    with pytest.raises(error, match=message):
        build()


def test_butterfly_reaches_every_position_in_as_many_layers_as_bits():
    table = masks.butterfly(2).dense(32)[0, 0].float()
    reached = torch.linalg.matrix_power(table, 4) > 0
    assert reached.all()
    assert not (torch.linalg.matrix_power(table, 3) > 0).all()


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_tiles_match_the_table_at_every_block(data):
    block = data.draw(st.sampled_from([1, 2, 3, 4, 5, 8, 12, 16]))
    mask = data.draw(
        st.sampled_from(
            [
                masks.axial(6, 11, 3),
                masks.axial(23, 3),
                masks.butterfly(1),
                masks.butterfly(4),
                masks.butterfly(6),
                masks.columns(positions=[0, 1, 2, 3, 4, 5, 6, 7, 31, 60]),
                masks.block_layout(generated(2, 3, 9, 9), 8),
                masks.block_layout(generated(70, 9, 9), 8),
                masks.block_layout(generated(18, 18), 4),
            ]
        )
    )
    length = data.draw(st.integers(60, 69))
    count = -(-length // block)
    table = mask.dense(length)
    padded = torch.zeros(*table.shape[:2], count * block, count * block, dtype=torch.bool)
    padded[..., :length, :length] = table
    wanted = padded.view(*table.shape[:2], count, block, count, block).sum((3, 5))
    assert torch.equal(tile_counts(mask, length, block), wanted)
