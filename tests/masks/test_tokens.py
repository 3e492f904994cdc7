"""Masks that follow the tokens: their cells, the algebra with masks, identity, files."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_trees import HEADS, LAYERS, token_masks

from masksearch import masks
from masksearch.contracts import Shape
from masksearch.errors import (
    EmptyRowError,
    HeadCountError,
    LayerCountError,
    TokensNeededError,
    UnknownNameError,
)
from masksearch.masks.lower import flex_block_mask, lower
from masksearch.masks.measure import fingerprint

LENGTH, CLS, SEP = 5, 101, 102
special = masks.special_tokens
IDS = torch.tensor([[0, 0, CLS, 7, SEP], [CLS, 7, SEP, 0, 0]])  # padded left, padded right
IDS_OF = st.lists(st.sampled_from([7, CLS, SEP, 999]), min_size=1, max_size=2).map(special)
TOKENS = st.lists(
    st.lists(st.sampled_from([0, 7, CLS, SEP]), min_size=LENGTH, max_size=LENGTH),
    min_size=1,
    max_size=3,
)


def cell(mask, tokens, layer, head, query, key):
    """Whether a cell is kept: the meaning of a mask, for one cell."""
    if not mask.needs_tokens:
        return bool(mask.dense(len(tokens), LAYERS, HEADS)[layer, head, query, key])
    inner = [cell(part, tokens, layer, head, query, key) for part in mask.parts]
    match mask.kind:
        case "special_tokens":
            return tokens[query] in mask.ids or tokens[key] in mask.ids
        case "or":
            return any(inner)
        case "and":
            return all(inner)
        case "not":
            return not inner[0]
        case "per_head":
            return inner[head]
        case "per_layer":
            return inner[layer]
    raise AssertionError(mask.kind)


@pytest.mark.slow
@settings(max_examples=12)
@given(token_masks(LENGTH, IDS_OF), TOKENS, st.data())
def test_cells_match_their_meaning(mask, tokens, data):
    layer = data.draw(st.integers(0, LAYERS - 1))
    single = mask.of_layer(layer)
    assert single.layers is None
    cells = (single | ~single).table(torch.tensor(tokens))
    assert cells.all()
    if not filled(single, tokens):
        with pytest.raises(EmptyRowError, match="keeps no key under"):
            single.table(torch.tensor(tokens))
        return
    cells = single.table(torch.tensor(tokens)).expand(-1, HEADS, -1, -1)
    for _ in range(8):
        place = st.integers(0, LENGTH - 1)
        query, key = data.draw(place), data.draw(place)
        example = data.draw(st.integers(0, len(tokens) - 1))
        head = data.draw(st.integers(0, HEADS - 1))
        expected = cell(mask, tokens[example], layer, head, query, key)
        assert bool(cells[example, head, query, key]) == expected


def filled(mask, tokens):
    """Whether every row of every head keeps a key."""
    places, heads = range(LENGTH), range(mask.heads or 1)
    return all(
        any(cell(mask, ids, 0, head, query, key) for key in places)
        for ids in tokens
        for head in heads
        for query in places
    )


# -- what it means -----------------------------------------------------------------------------
def test_special_tokens_keep_rows_and_columns_wherever_they_stand():
    table = (masks.window(0) | special(CLS, SEP)).table(IDS)
    assert table.shape == (2, 1, LENGTH, LENGTH)
    assert table.dtype == torch.bool
    for example, places in enumerate([(2, 4), (0, 2)]):
        at = masks.global_tokens(positions=places) | masks.window(0)
        assert torch.equal(table[example], at.dense(LENGTH)[0])


def test_heads_are_those_that_the_mask_tells_apart():
    mask = masks.per_head([special(CLS) | masks.window(0), masks.window(1), masks.causal()])
    assert mask.heads == 3
    table = mask.table(IDS)
    assert table.shape == (2, 3, LENGTH, LENGTH)
    assert torch.equal(table[1, 1], masks.window(1).dense(LENGTH)[0, 0])
    mask.counts(12, 3)
    with pytest.raises(HeadCountError, match="has 3 heads, asked for 4"):
        mask.counts(12, 4)


def test_layers_are_taken_out_one_by_one():
    mask = masks.per_layer([special(CLS) | masks.window(0), masks.star()]) & masks.window(3)
    assert mask.layers == 2
    assert mask.of_layer(1) == masks.star() & masks.window(3)
    assert masks.layer_of(mask, 1) == mask.of_layer(1)
    assert mask.of_layer(0) == (special(CLS) | masks.window(0)) & masks.window(3)
    with pytest.raises(LayerCountError, match=r"serves one layer, .* call masks\.layer_of"):
        mask.table(IDS)
    with pytest.raises(ValueError, match=r"layer must be in \[0, 2\), got 2"):
        mask.of_layer(2)
    with pytest.raises(LayerCountError, match="has 2 layers, asked for 4"):
        mask.counts(4, 1)
    assert masks.per_layer([special(CLS)]).table(IDS).shape == (2, 1, LENGTH, LENGTH)


def test_canonical_form():
    a, b, s = masks.window(1), masks.stride(2), special(SEP, CLS)
    assert s == special([CLS, SEP]) == special(CLS, SEP, CLS)
    assert str(s - a & (b | special(3))) == (
        "special_tokens(101, 102) - window(1) & (stride(2) | special_tokens(3))"
    )


@pytest.mark.gpu
def test_table_lies_where_the_ids_lie():
    mask = masks.window(1) | special(CLS)
    table = mask.table(IDS.cuda())
    assert table.is_cuda
    assert torch.equal(table.cpu(), mask.table(IDS))


# -- what is refused ---------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: special(), ValueError, "ids must be a non-empty list of whole numbers"),
        (lambda: special([]), ValueError, "ids must be a non-empty list of whole numbers"),
        (lambda: special(-1), ValueError, "ids must be >= 0, got -1"),
        (lambda: special(1.5), ValueError, "ids must be a list of whole numbers, got 1.5"),
        (lambda: special(True), ValueError, "ids must be a list of whole numbers"),
        (lambda: special(1).table([[1]]), TypeError, "input_ids is a tensor, got list"),
        (lambda: special(1).table(torch.ones(2, 3)), ValueError,
         r"input_ids is int \[batch, n\], got torch.float32 \[2, 3\]"),
        (lambda: special(1).table(IDS[0]), ValueError, r"got torch.int64 \[5\]"),
        (lambda: (masks.shifts([0]) & special(CLS)).table(IDS), EmptyRowError,
         r"example 0, head 0, row 0 keeps no key under shifts.*8 of 10 in all.*window\(0\)"),
        (lambda: masks.per_head([masks.full(), special(SEP)]).table(IDS[:, :4]), EmptyRowError,
         "example 0, head 1, row 0 keeps no key"),
        (lambda: masks.parse("window(3) | special(1)"), UnknownNameError, "special_token"),
        (lambda: special(1).dense(4), TokensNeededError, r"call mask.table\(input_ids\)"),
        (lambda: lower(special(1), Shape(4, 1, 1)), TokensNeededError, "special_tokens out"),
        (lambda: fingerprint(special(1), Shape(4, 1, 1)), TokensNeededError, "known: call"),
        (lambda: (special(1) | masks.star()).sparsity(128), TokensNeededError, "known: call mask"),
        (lambda: special(1).mask_mod(128), TokensNeededError, "known: call mask"),
        (lambda: flex_block_mask(special(1), 128), TokensNeededError, "known: call mask"),
        (lambda: masks.to_4d(special(1), 16), TokensNeededError, "known: call mask"),
    ],
)  # fmt: skip
def test_messages(build, error, message):
    with pytest.raises(error, match=message):
        build()


def test_it_says_whether_it_needs_tokens():
    assert (masks.per_head([masks.window(1), ~special(1)]) & masks.full()).needs_tokens
    assert not masks.bigbird().needs_tokens


def test_cropped_masks_follow_the_tokens_too():
    mask = masks.cropped(special(CLS) | masks.blocks(4), 8)
    assert torch.equal(mask.table(IDS), (special(CLS) | masks.blocks(4)).table(IDS))
