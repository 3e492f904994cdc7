"""Structured masks are found again from their tables, also from noisy ones; noise is not named."""

import math

import pytest
import torch
from experiment_scripts import load_script
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from masksearch import masks
from masksearch.contracts import Shape
from masksearch.masks.lower import lower

nearest = load_script("06_dam_text/nearest.py")
nearest_family, expression_bits = nearest.nearest_family, nearest.expression_bits
N = 32
WORD = 5.0  # bits of a name or an operator, of which there are about 32
small = st.integers(1, 6)
signed = st.integers(-8, 8)
bases = st.one_of(
    st.sampled_from([masks.log_sparse(), masks.star(), masks.causal(), masks.powers_of_two()]),
    small.map(masks.window),
    st.builds(masks.dilated, st.integers(8, 16), st.integers(2, 4)),
    st.integers(2, 8).map(masks.stride),
    st.integers(2, 8).map(masks.strided),
    st.integers(3, 8).map(masks.blocks),
    st.builds(masks.block_columns, st.integers(3, 8), st.integers(1, 2)),
    st.builds(masks.fixed, st.integers(3, 8), st.integers(1, 2)),
    st.builds(masks.longformer, small, st.integers(1, 3)),
    st.sets(signed, min_size=1, max_size=3).map(masks.shifts),
    st.sets(st.integers(0, 16), min_size=1, max_size=3).map(masks.offsets),
    st.sets(st.integers(0, N - 1), min_size=1, max_size=3).map(
        lambda positions: masks.global_tokens(positions=sorted(positions))
    ),
    st.sets(st.integers(0, N - 1), min_size=1, max_size=3).map(
        lambda positions: masks.columns(positions=sorted(positions))
    ),
)
GENERATOR = torch.Generator().manual_seed(5)
NOISE = torch.rand(2, 2, N, N, generator=GENERATOR) < 0.05
LITTLE = torch.rand(1, 2, N, N, generator=GENERATOR) < 0.02
LATER = {  # leaves and recipes beside the offsets, windows, blocks and global tokens
    "first columns": masks.columns(3),
    "columns": masks.columns(positions=[5, 17, 26]),
    "a_shape": masks.a_shape(3, 4),
    "vertical_slash": masks.vertical_slash([4, 9, 30], [7, 12]),
}


def description_bits(mask: masks.Mask, table: Tensor) -> float:
    """Bits that describe a table by way of a mask: the expression, and where it is wrong."""
    if isinstance(mask, masks.per_layer):
        pairs = zip(mask.of, table.unsqueeze(1), strict=True)
        return WORD + sum(description_bits(part, layer) for part, layer in pairs)
    if isinstance(mask, masks.per_head):
        pairs = zip(mask.of, table.unsqueeze(2).unbind(1), strict=True)
        return WORD + sum(description_bits(part, head) for part, head in pairs)
    wrong = int((table ^ mask.dense(table.shape[-1], *table.shape[:2])).sum())
    return expression_bits(mask, table.shape[-1]) + error_bits(wrong, table.numel())


def error_bits(wrong: int, cells: int) -> float:
    """Bits of naming the wrong cells: how many, and which; beyond half of them a bit each."""
    named, further = min(wrong, cells // 2), max(0, wrong - cells // 2)
    return 2 * math.log2(named + 1) + 1 + math.log2(math.comb(cells, named)) + further


@st.composite
def structured(draw: st.DrawFn) -> masks.Mask:
    """A base, with one further set where it adds cells, and perhaps only the earlier keys."""
    mask = draw(bases)
    if draw(st.booleans()):
        mask = mask & masks.causal()
    elif draw(st.booleans()):
        further = draw(st.sampled_from([masks.shifts([9, -11]), masks.global_tokens(2)]))
        mask = mask | further
    return mask


def noisy(mask: masks.Mask) -> masks.Mask:
    """The table of the mask with one cell in twenty flipped."""
    dense = mask.dense(N)
    return masks.table(dense ^ NOISE[: dense.shape[0], : dense.shape[1]])


@pytest.mark.slow
@given(mask=structured())
@settings(max_examples=25)
def test_structured_tables_are_found_again(mask: masks.Mask):
    table = mask.dense(N)
    if not table.any(-1).all():
        return  # the repair of empty rows has its own test
    found = nearest_family(masks.table(table))
    assert found.bits <= description_bits(mask, table) + 1e-9
    assert found.iou == 1
    assert found.missing == found.extra == 0
    assert found.explained


@pytest.mark.slow  # continuous integration runs it
@given(mask=structured(), share=st.floats(0, 0.3), seed=st.integers(0, 99))
@settings(max_examples=8)
def test_result_is_consistent_for_any_table(mask: masks.Mask, share: float, seed: int):
    flipped = torch.rand(N, N, generator=torch.Generator().manual_seed(seed)) < share
    table = mask.dense(N)[0, 0] ^ flipped
    found = nearest_family(masks.table(table))
    dense = lower(found.mask, Shape(N, 1, 1))[0, 0]  # refuses empty rows
    cells = [(bool(table[i, j]), bool(dense[i, j])) for i in range(N) for j in range(N)]
    assert found.missing == cells.count((True, False))
    assert found.extra == cells.count((False, True))
    both, either = cells.count((True, True)), N * N - cells.count((False, False))
    assert found.iou == pytest.approx(both / either)
    assert masks.parse(found.text) == found.mask
    assert found.bits <= description_bits(masks.window(0), table[None, None]) + 1e-9


@given(mask=structured(), share=st.floats(0, 0.3), seed=st.integers(0, 99))
@example(mask=masks.blocks(7) & masks.causal(), share=0.1875, seed=18)  # fixed() & causal()
@settings(max_examples=8)
@pytest.mark.slow
def test_no_part_with_whole_numbers_does_better(mask: masks.Mask, share: float, seed: int):
    flipped = torch.rand(12, 12, generator=torch.Generator().manual_seed(seed)) < share
    table = mask.dense(12) ^ flipped
    single = [masks.full(), masks.causal(), masks.log_sparse(), masks.powers_of_two()]
    for size in range(1, 7):
        single += [masks.window(size), masks.stride(size), masks.dilated(6, size)]
        single += [masks.strided(size), masks.blocks(size), masks.fixed(size, 1)]
        single += [masks.block_columns(size, last) for last in range(1, min(size, 5))]
        single += [masks.columns(size)]
    single += [masks.window(0), *(one & masks.causal() for one in single)]
    found = nearest_family(masks.table(table))
    assert found.bits <= min(description_bits(one, table) for one in single) + 1e-9


@pytest.mark.slow
@pytest.mark.parametrize(
    "mask",
    [
        masks.star(),
        masks.strided(4),
        masks.window(3),
        masks.per_head([masks.shifts([-1, 2]), masks.shifts([-3, 1])]),
        masks.per_layer([masks.window(4), masks.fixed()]),
    ],
    ids=str,
)
def test_flipped_cells_do_not_hide_the_mask(mask: masks.Mask):
    found = nearest_family(noisy(mask))
    assert found.mask == mask
    assert found.explained
    assert 0.4 < found.iou < 1


def parts_of(mask: masks.Mask) -> set[masks.Mask]:
    """The parts of a union, in any order."""
    return {part for one in mask.parts for part in parts_of(one)} or {mask}


@pytest.mark.parametrize("mask", LATER.values(), ids=LATER)
@pytest.mark.parametrize("beside", [None, masks.window(4)], ids=str)
@pytest.mark.slow
def test_later_leaves_are_named_alone_and_beside_a_window(mask, beside):
    union = mask if beside is None or mask == LATER["a_shape"] else mask | beside
    found = nearest_family(masks.table(union.dense(N) ^ LITTLE[:, :1]))
    assert parts_of(found.mask) == parts_of(union)
    assert found.explained
    assert found.bits == pytest.approx(description_bits(union, union.dense(N) ^ LITTLE[:, :1]))


@pytest.mark.slow
@pytest.mark.parametrize("names", [("columns", "a_shape"), ("vertical_slash", "first columns")])
def test_later_leaves_are_named_per_head(names: tuple[str, str]):
    heads = masks.per_head([LATER[name] for name in names])
    found = nearest_family(masks.table(heads.dense(N) ^ LITTLE))
    assert found.mask == heads
    assert found.explained


@pytest.mark.parametrize("density", [0.05, 0.3, 0.5, 0.9])
@pytest.mark.slow
def test_random_tables_are_not_explained(density: float):
    generator = torch.Generator().manual_seed(round(100 * density))
    found = nearest_family(masks.table(torch.rand(2, N, N, generator=generator) < density))
    assert not found.explained
    assert len(found.text) < 80  # noise is not listed shift by shift
    lower(found.mask, Shape(N, 1, 2))


@pytest.mark.nightly
def test_heads_and_layers_have_masks_of_their_own_only_where_they_differ():
    heads = masks.per_head([masks.window(2), masks.stride(4), masks.star()])
    layers = masks.per_layer([masks.window(2), heads])
    assert nearest_family(masks.table(heads.dense(16))).mask == heads
    assert nearest_family(masks.table(layers.dense(16))).mask == layers
    alike = masks.per_layer([heads, heads])
    assert nearest_family(masks.table(alike.dense(16))).mask == heads
    assert nearest_family(masks.table(masks.star().dense(16, 2, 3))).mask == masks.star()


@pytest.mark.slow
def test_the_random_keys_of_bigbird_stay_unnamed():
    assert nearest_family(masks.table(masks.bigbird().dense(64))).text == "window(2) | " + (
        "global_tokens(1)"
    )


@pytest.mark.slow
def test_a_named_table_stretches():
    found = nearest_family(noisy(masks.longformer(3, 1)))
    assert torch.equal(found.mask.dense(256), masks.longformer(3, 1).dense(256))
    assert torch.equal(nearest_family(masks.bigbird(), 64).mask.dense(16), (
        masks.window(2) | masks.global_tokens(1)).dense(16))  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mask", "text"),
    [
        (masks.shifts([-1]), "shifts([-1]) | window(0)"),
        (masks.per_head([masks.shifts([2]), masks.star()]),
         "per_head([shifts([2]) | window(0), star()])"),
    ],
)  # fmt: skip
def test_empty_rows_get_the_diagonal(mask: masks.Mask, text: str):
    found = nearest_family(masks.table(mask.dense(N)))
    assert found.text == text
    assert found.explained
    assert found.extra == N
    lower(found.mask, Shape(N, 1, found.mask.heads or 1))


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("kept", [0, 1])
def test_tiny_uniform_tables(size: int, kept: int):
    found = nearest_family(masks.table(torch.full((size, size), bool(kept))))
    assert found.explained == bool(kept)
    assert found.iou == kept
    lower(found.mask, Shape(size, 1, 1))


# -- prices ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("mask", "bits"),
    [
        (masks.star(), WORD),
        (masks.window(2), WORD + 3),
        (masks.dilated(4, 2), WORD + 6),
        (masks.window(2) & masks.causal(), 3 * WORD + 3),
        (~masks.causal(), 2 * WORD),
        (masks.global_tokens(2), WORD + 1 + 3),
        (masks.offsets([1, 2]), WORD + 2 * math.log2(3) + 1 + math.log2(math.comb(7, 2))),
        (masks.shifts([-1]), WORD + 3 + math.log2(13)),
        (masks.columns(2), WORD + 1 + 3),
        (masks.butterfly(2), WORD + 3),
    ],
    ids=str,
)
def test_expressions_cost_their_words_and_numbers(mask: masks.Mask, bits: float):
    assert expression_bits(mask, 7) == pytest.approx(bits)
