"""Masks that follow the tokens: their cells, the algebra with masks, identity, files."""

import itertools
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_trees import HEADS, LAYERS, token_masks

import masksearch as ms
from masksearch import masks
from masksearch.contracts import Shape
from masksearch.errors import (
    EmptyRowError,
    HeadCountError,
    LayerCountError,
    MaskSearchError,
    TokensNeededError,
    UnknownNameError,
)
from masksearch.masks.lower import flex_block_mask, lower
from masksearch.masks.measure import (
    block_density,
    effective_density,
    fingerprint,
    hops,
    measures,
    unit_densities,
)

LENGTH, CLS, SEP = 5, 101, 102
special, same, words = masks.special_tokens, masks.same_token, masks.token_columns
FOLLOW = [special(1), same(), same([1, 7]), words([1, 7])]
IDS = torch.tensor([[0, 0, CLS, 7, SEP], [CLS, 7, SEP, 0, 0]])  # padded left, padded right
ID = st.sampled_from([7, CLS, SEP, 999])
SEVERAL = st.lists(ID, max_size=2)
SOME = st.lists(ID, min_size=1, max_size=2)
IDS_OF = SOME.map(special) | SEVERAL.map(same) | SOME.map(words)
TOKENS = st.lists(
    st.lists(st.sampled_from([-1, 0, 7, CLS, SEP]), min_size=LENGTH, max_size=LENGTH),
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
        case "token_columns":
            return tokens[key] in mask.ids.nonzero()[:, 0].tolist()
        case "same_token":
            alone = {-1, *mask.except_ids}
            return query == key or (tokens[query] == tokens[key] and tokens[key] not in alone)
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


@given(SEVERAL, TOKENS)
def test_same_tokens_see_each_other_and_every_token_itself(ids, tokens):
    table = same(ids).table(torch.tensor(tokens))
    assert torch.equal(table, table.mT)
    for row, cells in zip(tokens, table[:, 0].tolist(), strict=True):
        for query, key in itertools.product(range(LENGTH), repeat=2):
            equal = row[query] == row[key] and row[query] not in (-1, *ids)
            assert cells[query][key] == (query == key or equal)


@given(SOME, TOKENS)
def test_token_columns_are_those_of_the_tokens_and_no_row_opens(ids, tokens):
    table = (words(ids) | masks.window(0)).table(torch.tensor(tokens))
    for row, cells in zip(tokens, table[:, 0].tolist(), strict=True):
        for query, key in itertools.product(range(LENGTH), repeat=2):
            assert cells[query][key] == (query == key or row[key] in ids)


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
    assert same() == same(()) == same([]) != same([0])
    assert same([SEP, CLS]) == same(except_ids=(CLS, SEP, CLS)) == same(iter([CLS, SEP]))
    assert same([SEP, CLS]).except_ids == (CLS, SEP)
    assert len({same(), same([CLS]), same([SEP]), special(CLS), same([CLS, SEP])}) == 5
    mask = same() | masks.columns(1) | masks.window(0)
    assert str(mask) == "same_token() | columns(1) | window(0)"
    assert str(~same([SEP, CLS]) & a) == "~same_token(except_ids=[101, 102]) & window(1)"


@given(SEVERAL.map(same))
def test_same_token_comes_back_from_text_and_json(mask):
    for back in (masks.parse(str(mask)), masks.Mask.from_json(mask.to_json())):
        assert (back, hash(back), back.digest) == (mask, hash(mask), mask.digest)
    assert mask.to_dict() == {"kind": "same_token", "except_ids": [*mask.except_ids]}


def test_token_columns_are_one_mask_however_their_ids_are_given(tmp_path):
    mask = words([SEP, CLS])
    bits = torch.zeros(200, dtype=torch.bool).index_fill(0, torch.tensor([CLS, SEP]), True)
    for again in (words((CLS, SEP, CLS)), words(ids=iter([CLS, SEP])), words(bits),
                  words(torch.tensor([SEP, CLS])), masks.parse(str(mask)),
                  masks.Mask.from_dict({"kind": "token_columns", "ids": [CLS, SEP]})):  # fmt: skip
        assert (again, hash(again), again.to_json()) == (mask, hash(mask), mask.to_json())
    assert str(mask) == "token_columns([101, 102])"
    assert len({mask, words([CLS]), words([SEP]), special(CLS, SEP)}) == 4


@pytest.mark.slow
@given(st.sets(st.integers(0, 30_521), min_size=161, max_size=400))
def test_many_token_columns_come_back_from_small_files(ids):
    mask = words(ids)
    text = mask.to_json()
    assert masks.Mask.from_json(text) == mask
    assert len(text) < 2000
    assert str(mask) == f"token_columns({len(ids)} ids, {mask.digest[:8]})"


def test_half_of_a_vocabulary_is_some_kilobytes_in_either_file(tmp_path):
    ids = torch.randperm(30_522, generator=torch.manual_seed(0))[:20_000]
    mask = masks.per_layer([words(ids), masks.full()]) | masks.window(0)
    for name, most in (("mask.json", 5_500), ("mask.safetensors", 31_000)):
        path = ms.save_mask(mask, tmp_path / name)
        assert path.stat().st_size < most
        assert ms.load_mask(path) == mask
    tokens = torch.randint(30_522, (4, 8))
    columns = torch.isin(tokens, ids)[:, None, None] | torch.eye(8, dtype=torch.bool)
    assert torch.equal(mask.of_layer(0).table(tokens), columns)


@pytest.mark.gpu
def test_table_lies_where_the_ids_lie():
    mask = masks.window(1) | special(CLS) | words([SEP])
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
        (lambda: same(7), ValueError, "except_ids must be a list of whole numbers, got 7"),
        (lambda: same([0, -1]), ValueError, "except_ids must be >= 0, got -1"),
        (lambda: same([1.5]), ValueError, r"except_ids must be a list of whole .*got \[1.5\]"),
        (lambda: same("7"), ValueError, "except_ids must be a list of whole numbers, got '7'"),
        (lambda: same(None), ValueError, "except_ids must be a list of whole numbers, got None"),
        (lambda: words([]), ValueError, "ids must be a non-empty list of whole numbers"),
        (lambda: words(7), ValueError, "ids must be a list of whole numbers, got 7"),
        (lambda: words([-1]), ValueError, "ids must be >= 0, got -1"),
        (lambda: words([1 << 21]), ValueError, r"ids must be at most 2\*\*20, got 2097152"),
        (lambda: words(torch.tensor([1.5])), ValueError, r"ids must be a list .* got \[1.5\]"),
        (lambda: words(torch.ones(2, 2) > 0), ValueError, "ids must be a list of whole numbers"),
        (lambda: words(torch.zeros(9) > 0), ValueError, "ids must be a non-empty list of whole"),
        (lambda: words([CLS]).table(IDS[:, 3:]), EmptyRowError, "example 0, head 0, row 0 keeps"),
        (lambda: special(1).table([[1]]), TypeError, "input_ids is a tensor, got list"),
        (lambda: special(1).table(torch.ones(2, 3)), ValueError,
         r"input_ids is int \[batch, n\], got torch.float32 \[2, 3\]"),
        (lambda: special(1).table(IDS[0]), ValueError, r"got torch.int64 \[5\]"),
        (lambda: (masks.shifts([0]) & special(CLS)).table(IDS), EmptyRowError,
         r"example 0, head 0, row 0 keeps no key under shifts.*8 of 10 in all.*window\(0\)"),
        (lambda: masks.per_head([masks.full(), special(SEP)]).table(IDS[:, :4]), EmptyRowError,
         "example 0, head 1, row 0 keeps no key"),
        (lambda: masks.parse("window(3) | special(1)"), UnknownNameError, "special_token"),
    ],
)  # fmt: skip
def test_messages(build, error, message):
    with pytest.raises(error, match=message):
        build()


@pytest.mark.parametrize("mask", FOLLOW, ids=str)
@pytest.mark.parametrize(
    "ask",
    [
        lambda mask: mask.dense(4),
        lambda mask: lower(mask, Shape(4, 1, 1)),
        lambda mask: fingerprint(mask, Shape(4, 1, 1)),
        lambda mask: (mask | masks.star()).sparsity(128),
        lambda mask: block_density(mask, 128),
        lambda mask: hops(mask, 8),
        lambda mask: mask.mask_mod(128),
        lambda mask: flex_block_mask(mask, 128),
        lambda mask: masks.to_4d(mask, 16),
    ],
)
def test_it_is_refused_where_no_tokens_are_known(mask, ask):
    with pytest.raises(TokensNeededError, match=r"call mask.table\(input_ids\).*or leave out the"):
        ask(mask)


def test_it_says_whether_it_needs_tokens():
    for mask in FOLLOW:
        assert (masks.per_head([masks.window(1), ~mask]) & masks.full()).needs_tokens
    assert not masks.bigbird().needs_tokens


@pytest.mark.parametrize("leaf", FOLLOW, ids=str)
def test_cropped_masks_follow_the_tokens_too(leaf):
    mask = masks.cropped(leaf | masks.blocks(4), 8)
    assert torch.equal(mask.table(IDS), (leaf | masks.blocks(4)).table(IDS))


# -- counted in rows of the data -----------------------------------------------------------------
@st.composite
def rows_of_data(draw):
    """Rows of tokens with padding behind them, and their shape, some rows of which are read."""
    rows = draw(st.lists(st.lists(st.sampled_from([7, 8, CLS, SEP]), min_size=1, max_size=LENGTH),
                         min_size=1, max_size=5))  # fmt: skip
    ids = torch.tensor([row + [-1] * (LENGTH - len(row)) for row in rows])
    read = draw(st.none() | st.integers(1, LENGTH))
    return rows, Shape(LENGTH, 2, 2, lengths=Counter(map(len, rows)), read=read, tokens=ids)


@pytest.mark.slow
@settings(max_examples=60)
@given(rows_of_data(), SEVERAL, st.booleans())
def test_densities_are_those_of_a_loop_over_the_pairs_of_the_data(drawn, ids, both):
    rows, shape = drawn
    mask = masks.per_head([same(ids), ~same(ids) | masks.window(0)]) if both else same(ids)
    found = unit_densities(mask, shape)
    kept, pairs = torch.zeros(2, 2, dtype=torch.int64), [0, 0]
    for row, layer in itertools.product(rows, range(2)):
        read = row[: shape.read] if layer else row
        for (query, one), (key, two) in itertools.product(enumerate(read), enumerate(row)):
            pairs[layer] += 1
            equal = one == two and one not in ids
            kept[layer, 0] += query == key or equal
            kept[layer, 1] += query == key or (not equal if both else equal)
    for layer in range(2):
        assert found[layer] == [int(each) / pairs[layer] for each in kept[layer]]
    whole = int(kept.sum()) / (2 * sum(pairs))
    assert effective_density(mask, shape) == pytest.approx(whole)
    assert measures(mask, shape)["effective_sparsity"] == pytest.approx(1 - whole)


@pytest.mark.slow
def test_pairs_beyond_what_a_float_counts_are_counted():
    rows = torch.zeros(66, 513, dtype=torch.int64)  # 17,301,570 kept pairs, above 2^24
    rows[:, 0] = 1
    share = (512**2 + 1) / 513**2
    assert unit_densities(same(), Shape(513, 1, 1, tokens=rows)) == [[share]]


def test_equal_shapes_of_other_data_have_densities_of_their_own():
    texts = torch.tensor([[7, 7, 7, 8]]), torch.tensor([[7, 8, 9, 9]])
    first, second = (Shape(4, 1, 1, tokens=ids) for ids in texts)
    assert first == second
    assert hash(first) == hash(second)
    for _ in range(2):
        assert effective_density(same(), first) == 10 / 16
        assert effective_density(same(), second) == 6 / 16
    assert fingerprint(same(), first) == fingerprint(same(), second)
    prints = {fingerprint(mask, first) for mask in (same(), same([7]), ~same() | masks.window(0))}
    assert len(prints) == 3


def test_exceptions_need_not_occur_in_the_data():
    shape = Shape(4, 1, 1, tokens=torch.tensor([[7, 7, 8, -1]]))
    kept = words([7, 999]) | masks.window(0)
    assert effective_density(kept, shape) == 7 / 9
    assert effective_density(same([999]), shape) == effective_density(same(), shape) == 5 / 9
    with pytest.raises(MaskSearchError, match="follows the token 999, which no row of the data"):
        effective_density(same([999]) | special(999), shape)
