"""Hand-designed masks: published sparsity, rules as loops, sweeps, equal costs; controls."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import masksearch as ms
from masksearch import masks
from masksearch.contracts import Shape
from masksearch.masks.baselines import whole_heads
from masksearch.masks.families import random_like
from masksearch.masks.lower import lower
from masksearch.masks.measure import effective_density, fingerprint

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "sparsebert.json").read_text())
LENGTH = GOLDEN["length"]


@pytest.mark.parametrize("name", sorted(GOLDEN["published"]))
def test_family_sparsity_is_the_published_one(name):
    percent = 100 * masks.FAMILIES[name].sparsity(LENGTH)
    assert percent == pytest.approx(GOLDEN["published"][name], abs=0.1)
    assert percent == pytest.approx(
        GOLDEN["exact"][name], abs=0.1 if name == "bigbird" else 0.0006
    )


@settings(max_examples=25)
@given(st.integers(0, 2**63 - 1))
def test_bigbird_sparsity_for_any_seed(seed):
    assert 100 * masks.bigbird(seed=seed).sparsity(LENGTH) == pytest.approx(93.12, abs=0.1)


@pytest.mark.parametrize("name", sorted(GOLDEN["published"]))
def test_without_diagonal_adds_its_share(name):
    family = masks.FAMILIES[name]
    without = masks.without_diagonal(family)
    gain = 100 * (without.sparsity(LENGTH) - family.sparsity(LENGTH))
    assert gain == pytest.approx(GOLDEN["diagonal"])
    assert not without.dense(LENGTH)[0, 0].diagonal().any()


RULES = {
    "strided": lambda q, k: abs(q - k) < 4 or (q - k) % 4 == 0,
    "fixed": lambda q, k: q // 4 == k // 4 or k % 4 == 3,
    "longformer": lambda q, k: abs(q - k) <= 6 or q == 0 or k == 0,
    "log_sparse": lambda q, k: abs(q - k) in (0, 1, 2, 4, 8, 16, 32, 64),
    "star": lambda q, k: abs(q - k) <= 1 or q == 0 or k == 0,
}


@pytest.mark.parametrize("name", sorted(RULES))
def test_family_matches_loop(name):
    dense = masks.FAMILIES[name].dense(70)[0, 0]
    rule = RULES[name]
    assert all(dense[q, k] == rule(q, k) for q in range(70) for k in range(70))


def test_bigbird_is_window_global_and_random_keys():
    dense = masks.bigbird(1, 2, 3, seed=4).dense(40)[0, 0]
    chosen = masks.random_keys(3, seed=4).dense(40)[0, 0]
    assert all(
        dense[q, k] == (abs(q - k) <= 1 or q < 2 or k < 2 or bool(chosen[q, k]))
        for q in range(40)
        for k in range(40)
    )


def test_families_hold_those_of_the_table_and_are_public():
    assert set(GOLDEN["published"]) <= set(masks.FAMILIES)
    assert ms.masks.FAMILIES is masks.FAMILIES
    for name, family in masks.FAMILIES.items():
        assert family == getattr(masks, name)()


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 17, 64])
@pytest.mark.parametrize("name", sorted(masks.FAMILIES))
def test_families_have_no_empty_row_at_any_length(name, length):
    assert masks.FAMILIES[name].dense(length).any(-1).all()


def test_parameters_reach_the_parts():
    assert masks.strided(3) == masks.window(2) | masks.stride(3)
    assert masks.fixed(8, 2) == masks.blocks(8) | masks.block_columns(8, 2)
    assert masks.longformer(2, 3) == masks.window(2) | masks.global_tokens(3)
    assert torch.equal(masks.star().dense(9), masks.longformer(1, 1).dense(9))


# -- hand-designed fronts: as many masks as densities -------------------------------------------
DENSITIES = [0.04, 0.06, 0.08, 0.1, 0.12, 0.16, 0.2, 0.25, 0.3, 0.4, 0.55, 0.7]
SHAPES = [
    Shape(128, 1, 1),
    Shape(128, 2, 2, causal=True),
    Shape(128, 1, 1, lengths={20: 5, 64: 9, 101: 3, 128: 2}),
]


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_each_density_has_a_member_of_its_own_that_is_no_denser(shape):
    found = masks.sweep_families(shape, DENSITIES)
    assert len(found) == len(DENSITIES)
    assert len(set(found.values())) == len(DENSITIES)
    sparsest = effective_density(next(iter(masks.sweep_families(shape, [0.0]).values())), shape)
    for density, mask in zip(DENSITIES, found.values(), strict=True):
        own = effective_density(mask, shape)
        lower(mask, shape)
        if density > 3 * sparsest:  # there is enough to choose from
            assert own == pytest.approx(density, abs=0.015)
            assert own <= density + 0.01


def test_families_take_turns():
    found = masks.sweep_families(SHAPES[0], DENSITIES)
    families = [name.partition("(")[0] for name in found]
    assert set(families) == set(masks.FAMILIES)
    assert max(map(families.count, families)) <= 4


def test_more_densities_than_members_are_refused():
    with pytest.raises(ValueError, match=r"at 2 positions .* and 30 are asked for; give fewer"):
        masks.sweep_families(Shape(2, 1, 1), [0.5] * 30)


@pytest.mark.slow
def test_members_of_table_keep_their_names():
    densities = [mask.density(128) for mask in masks.FAMILIES.values()]
    found = masks.sweep_families(SHAPES[0], densities)
    for name, mask in found.items():
        assert masks.FAMILIES.get(name, mask) == mask
        assert masks.parse(name if "(" in name else f"{name}()") == mask


@pytest.mark.slow
def test_a_density_below_the_sparsest_member_gets_that_one():
    assert list(masks.sweep_families(SHAPES[0], [0.001])) == ["longformer(0)"]
    assert masks.sweep_families(SHAPES[0], []) == {}


# -- random controls ----------------------------------------------------------------------------
SENTENCES = {7: 2, 12: 9, 20: 30, 31: 12, 44: 5, 61: 1}  # tokens of short texts in 64 positions
CONTROLLED = [
    Shape(64, 1, 2, causal=True),
    Shape(100, 1, 2, causal=True),
    Shape(64, 1, 2, lengths=SENTENCES),
    Shape(100, 1, 2, lengths=SENTENCES),
    Shape(64, 1, 2, causal=True, lengths=SENTENCES),
    Shape(32, 1, 2, lengths={9: 3, 17: 5, 30: 1}),
    Shape(24, 1, 2, causal=True),
    Shape(1, 1, 2, causal=True),
    Shape(4, 1, 2, lengths={1: 5}),
]
MASKS = [
    masks.full(),
    masks.star(),
    masks.window(3),
    masks.random_keys(9, 1) | masks.window(0),
    masks.per_head([masks.window(1), masks.columns(4) | masks.window(0)]),
]


@pytest.mark.nightly
@pytest.mark.parametrize("shape", CONTROLLED, ids=str)
@pytest.mark.parametrize("mask", MASKS, ids=lambda mask: str(mask)[:20])
def test_random_controls_match_within_one_point_on_every_seed(mask, shape):
    target = effective_density(mask, shape)
    for seed in range(5):
        control = random_like(mask, shape, seed)
        assert effective_density(control, shape) == pytest.approx(target, abs=0.01)
        lower(control, shape)  # no row is empty


@pytest.mark.slow
def test_a_mask_sparser_than_the_diagonal_has_a_control_too():
    shape = Shape(64, 1, 1, lengths=SENTENCES)
    sparser = masks.random_keys(1, 5)
    target = effective_density(sparser, shape)
    assert target < effective_density(masks.window(0), shape) - 0.01
    for seed in range(10):
        control = random_like(sparser, shape, seed)
        assert effective_density(control, shape) == pytest.approx(target, abs=0.01)
        lower(control, shape)


@pytest.mark.parametrize("name", masks.FAMILIES)
@pytest.mark.parametrize("lengths", [None, {64: 7}])
def test_random_control_without_padding_is_as_dense_as_its_mask(name, lengths):
    """Half the density would not do."""
    mask = masks.FAMILIES[name]
    control = random_like(mask, Shape(64, 1, 1, lengths=lengths), seed=3)
    rows = control.dense(64).sum(-1)
    assert rows.min() == rows.max()  # every query keeps as many keys
    assert abs(int(rows.max()) - float(mask.dense(64).sum(-1).double().mean())) <= 0.5
    assert control == masks.random_keys(int(rows.max()), 3)


@pytest.mark.slow
@pytest.mark.parametrize("first_key", [False, True])
@pytest.mark.parametrize("shape", [Shape(24, 2, 3, lengths={9: 3, 17: 5}), Shape(24, 2, 3)])
def test_a_mask_for_each_head_has_a_control_with_keys_for_each_head(shape, first_key):
    heads = [masks.window(4), masks.columns(3) | masks.window(1), masks.full()]
    mask = masks.per_head(heads)
    control = random_like(mask, shape, 1, first_key=first_key)
    planes = lower(control, shape).flatten(0, 1)
    assert len({plane.numpy().tobytes() for plane in planes}) == 6
    assert planes[:, :, 0].all().item() == first_key
    assert planes.diagonal(dim1=1, dim2=2).all()
    target = effective_density(mask, shape)
    assert effective_density(control, shape) == pytest.approx(target, abs=0.01)
    assert control == random_like(mask, shape, 1, first_key=first_key)
    assert control != random_like(mask, shape, 2, first_key=first_key)


@pytest.mark.slow
def test_random_controls_are_drawn_by_their_seed():
    for shape in (Shape(32, 1, 1), *CONTROLLED[:3]):
        drawn = [random_like(masks.window(2), shape, seed) for seed in (0, 1, 2)]
        assert len(set(drawn)) == 3
        assert drawn[1] == random_like(masks.window(2), shape, 1)


# -- masks hand-designed at the cost of a searched one ------------------------------------------
DECODER = Shape(48, 6, 2, causal=True)
LOCAL = masks.columns(2) | masks.window(3)
ROWS = torch.tensor([[101, 7, 8, 9, 102, -1, -1, -1], [101, 7, 5, 5, 5, 5, 6, 102]])
ENCODER = Shape(8, 2, 1, lengths={5: 1, 8: 1}, tokens=ROWS)


def cells(mask: masks.Mask, shape: Shape) -> float:
    """The kept share of the pairs that exist, counted one by one."""
    table = mask.dense(shape.length, shape.layers, shape.heads)
    exist = torch.ones(shape.length, shape.length, dtype=torch.bool)
    exist = exist.tril() if shape.causal else exist
    return float((table & exist).sum() / (exist.sum() * shape.layers * shape.heads))


@pytest.mark.parametrize("limit", [0.2, 0.35, 0.5, 0.8])
def test_one_window_in_every_layer_is_the_widest_of_its_cost(limit):
    widest = masks.equal_cost_baselines(limit, DECODER, local=LOCAL)["widest window"]
    loop = [masks.columns(2) | masks.window(reach) for reach in range(DECODER.length)]
    assert widest == max((m for m in loop if cells(m, DECODER) <= limit), key=loop.index)


@pytest.mark.parametrize("layers", [6, 30])
@pytest.mark.parametrize("name", ["first", "middle", "last", "every n-th", "every n-th, shifted"])
def test_as_many_layers_are_full_as_the_limit_pays_for(name, layers):
    shape = replace(DECODER, layers=layers)
    drawn = masks.equal_cost_baselines(0.5, shape, local=LOCAL)[name]
    full = [drawn.of_layer(layer) == masks.full() for layer in range(layers)]
    assert all(drawn.of_layer(at) == LOCAL for at in range(layers) if not full[at])
    assert cells(drawn, shape) <= 0.5
    local = cells(LOCAL, replace(shape, layers=1))
    assert sum(full) == int(layers * (0.5 - local) / (1 - local) + 1e-9)


@pytest.mark.parametrize("limit", [0.1, 0.3, 0.6])
def test_families_are_as_dense_as_the_limit_allows(limit):
    shape = Shape(32, 1, 1)
    drawn = masks.equal_cost_baselines(limit, shape)
    for name in ("strided", "fixed", "longformer", "bigbird"):
        make, least = getattr(masks, name), int(name in ("strided", "fixed"))
        inside = [
            density for size in range(least, 33) if (density := cells(make(size), shape)) <= limit
        ]
        assert (name in drawn) == bool(inside)
        if inside:
            assert cells(drawn[name], shape) == max(inside)


@pytest.mark.parametrize("limit", [0.05, 0.2, 0.5, 0.99])
def test_as_many_heads_are_full_as_the_limit_pays_for(limit):
    shape, local = Shape(32, 2, 6), (32 + 2 * 31) / 32**2  # the diagonal, a row and a column
    most = max((k for k in range(6) if (k + (6 - k) * local) / 6 <= limit), default=0)
    drawn = masks.equal_cost_baselines(limit, shape).get("full heads")
    assert (drawn is None) == (most == 0)
    if drawn is not None:
        planes = [drawn.of_head(head) for head in range(6)]
        assert planes[:most] == [masks.full()] * most
        assert {*planes[most:]} == {masks.window(0) | masks.global_tokens(1)}


@pytest.mark.parametrize(("limit", "pairs"), [(0.3, 1), (0.5, 2), (0.7, 3)])
def test_a_pair_of_heads_each_way_costs_a_full_head_and_a_local_one(limit, pairs):
    shape, local = Shape(32, 2, 6), masks.window(0) | masks.global_tokens(1)
    drawn = masks.equal_cost_baselines(limit, shape)["heads each way"]
    tables = drawn.dense(32, 2, 6)[0]
    assert cells(drawn, shape) == pytest.approx(
        (pairs + (6 - pairs) * cells(local, shape)) / 6
    )  # so it is as dense as so many full heads
    both = tables[:pairs] | tables[pairs : 2 * pairs]
    assert both.all()
    assert not tables[:pairs, 9, 8].any()  # nothing earlier but the global token
    assert (tables[2 * pairs :] == local.dense(32)[0]).all()


MINILM = Shape(64, 6, 12, lengths={17: 3, 24: 4, 28: 4, 33: 3, 52: 1})  # as sentence pairs have
OF_BUDGETS = {0.3: 20, 0.2: 20, 0.12: 16, 0.06: 6}  # how many masks of whole heads at least


def wholes(mask: masks.Mask, shape: Shape) -> list[int]:
    """How many heads of each layer see all that is ahead, or behind, or both, one by one."""
    table = mask.dense(shape.length, shape.layers, shape.heads)
    ahead = torch.ones(shape.length, shape.length, dtype=torch.bool).triu()
    sees = (table | ~ahead).all((-1, -2)) | (table | ~ahead.T).all((-1, -2))
    return sees.sum(1).tolist()


@pytest.mark.slow
@pytest.mark.parametrize("read", [None, 1])
@pytest.mark.parametrize("limit", OF_BUDGETS)
def test_whole_heads_are_within_every_budget_and_spend_it(limit, read):
    shape = replace(MINILM, read=read)
    drawn = masks.equal_cost_baselines(limit, shape)
    names = whole_heads(drawn)
    assert len(names) >= OF_BUDGETS[limit] - (4 if read else 0)
    dealt = 5 if read else 6  # where [CLS]'s row alone is read, the last layer is full
    for name in names:
        assert effective_density(drawn[name], shape) <= limit * (1 + 1e-9)
        if "layer" in name and read is None:  # what is left pays for no further one
            assert effective_density(drawn[name], shape) > limit - 1 / 72
        layers = wholes(drawn[name], shape)[:dealt]
        assert (drawn[name].of_layer(5) == masks.full()) == (read == 1)
        used = [layer for layer, count in enumerate(layers) if count]
        assert used, name
        for place, end in (("first", 0), ("last", len(layers) - 1)):
            assert place not in name or (end in used and max(used) - min(used) < len(used) < 5)
        if name.startswith("more ") and name[5:] in drawn:
            assert sum(layers) > sum(wholes(drawn[name[5:]], shape)[:dealt])
    prints = {fingerprint(drawn[name], shape) for name in names}
    assert len(prints) == len(names)


@pytest.mark.parametrize("heads", [1, 3, 5])
def test_pairs_of_heads_fit_into_odd_numbers_of_heads(heads):
    shape = Shape(16, 3, heads)
    drawn = masks.equal_cost_baselines(0.8, shape)
    assert any("each way" in name for name in drawn) == (heads > 1)
    assert all(effective_density(mask, shape) <= 0.8 * (1 + 1e-9) for mask in drawn.values())


@pytest.mark.slow
def test_no_name_says_that_no_mask_of_whole_heads_fits():
    assert whole_heads(masks.equal_cost_baselines(0.03, MINILM)) == []
    assert whole_heads(masks.equal_cost_baselines(0.99, DECODER)) == []


def test_others_are_the_richest_that_leave_most_for_whole_heads():
    shape = Shape(32, 1, 4)
    column = masks.window(0) | masks.columns(1)
    limit = (2 + 2 * cells(column, shape)) / 4
    drawn = masks.equal_cost_baselines(limit, shape)
    assert drawn["more full heads"] == masks.per_head([masks.full()] * 2 + [column] * 2)
    assert wholes(drawn["full heads"], shape) == [1]
    less = masks.equal_cost_baselines(limit - 1e-3, shape)["more full heads"]
    assert less == masks.per_head([masks.full()] * 2 + [masks.window(0)] * 2)


def test_heads_become_whole_in_the_order_that_is_given():
    shape, order = Shape(32, 2, 6), [[5, 1, 0, 2, 3, 4], [2, 0, 1, 3, 4, 5]]
    drawn, plain = (masks.equal_cost_baselines(0.45, shape, order=each) for each in (order, None))
    assert drawn.keys() == plain.keys()
    for name in whole_heads(drawn):
        for layer in range(2):
            heads = [plain[name].of_layer(layer).of_head(head) for head in range(6)]
            own = drawn[name].of_layer(layer)
            assert [own.of_head(head) for head in order[layer]] == heads
    with pytest.raises(ValueError, match=r"6 heads of each of 2 layers once, from 0; got"):
        masks.equal_cost_baselines(0.45, shape, order=[[0] * 6] * 2)
    with pytest.raises(ValueError, match=r"got \[\[5, 1, 0"):
        masks.equal_cost_baselines(0.45, shape, order=order[:1])


def test_special_tokens_are_those_that_rows_begin_and_end_with():
    drawn = masks.equal_cost_baselines(0.9, ENCODER)["widest window and special tokens"]
    wide, narrow = (masks.window(reach) | masks.special_tokens(101, 102) for reach in (3, 2))
    assert drawn == masks.per_layer([wide, narrow])
    assert effective_density(drawn, ENCODER) <= 0.9 < effective_density(wide, ENCODER)
    other = Shape(8, 2, 1, lengths={5: 1, 8: 1}, tokens=ROWS.flip(1).clamp(min=3))
    assert "widest window and special tokens" not in masks.equal_cost_baselines(0.9, other)


def test_what_follows_the_words_is_drawn_where_the_tokens_are_known():
    drawn = masks.equal_cost_baselines(0.8, ENCODER)
    words = masks.same_token([101, 102]) | masks.columns(1)
    assert drawn["same token"] == masks.window(0) | words
    wide, narrow = (masks.window(reach) | words for reach in (3, 2))
    assert drawn["same token, widest window"] == masks.per_layer([wide, narrow])
    assert effective_density(masks.per_layer([wide, narrow]), ENCODER) <= 0.8
    assert effective_density(wide, ENCODER) > 0.8
    unknown = masks.equal_cost_baselines(0.8, replace(ENCODER, tokens=None))
    assert not any("token" in name for name in unknown)
    least = masks.equal_cost_baselines(0.4, ENCODER)
    assert not any("same token" in name for name in least)


OFFSETS = "offsets by head"


def offsets_by_loop(count: int, length: int, heads: int) -> torch.Tensor:
    """A layer with so many offsets, dealt one by one, and the first column in every head."""
    ranked = [step for reach in range(1, length + heads + 1) for step in (reach, -reach)]
    own: list[list[int]] = [[] for _ in range(heads)]
    for at in range(count):
        own[at % heads].append(ranked[at % heads + at // heads])
    table = torch.zeros(heads, length, length, dtype=torch.bool)
    for head, query, key in product(range(heads), range(length), range(length)):
        table[head, query, key] = key == 0 or key - query in own[head]
    return table


@pytest.mark.slow
@pytest.mark.parametrize(("length", "heads"), [(9, 4), (5, 12), (12, 1)])
@pytest.mark.parametrize("limit", [0.15, 0.3, 0.55])
def test_offsets_are_dealt_over_the_heads_as_a_loop_deals_them(length, heads, limit):
    drawn = masks.equal_cost_baselines(limit, Shape(length, 1, heads)).get(OFFSETS)
    tables = [offsets_by_loop(n, length, heads) for n in range(heads, 2 * length * heads)]
    within = [table for table in tables if float(table.double().mean()) <= limit]
    assert (drawn is None) == (not within)
    if drawn is not None:
        assert (drawn.dense(length, 1, heads)[0] == within[-1]).all()


@pytest.mark.slow
@settings(deadline=None, max_examples=15)
@given(st.floats(0.02, 0.8), st.integers(1, 3), st.integers(1, 6))
def test_offsets_leave_the_token_out_and_spend_what_the_limit_pays_for(limit, layers, heads):
    shape = Shape(24, layers, heads, lengths={13: 2, 24: 1})
    drawn = masks.equal_cost_baselines(limit, shape).get(OFFSETS)
    least = masks.per_head([masks.columns(1) | masks.shifts([1])] * heads)  # the nearest offset
    another = effective_density(least, shape) - effective_density(masks.columns(1), shape)
    assert drawn is not None or limit < effective_density(least, shape)
    if drawn is not None:
        share = effective_density(drawn, shape)
        assert share <= limit * (1 + 1e-9)
        assert share > limit - another / (layers * heads)  # one more offset of a head of a layer
        table = drawn.dense(24, layers, heads)
        assert table[..., 0].all()  # so that no row is empty, the first one neither
        assert not table.diagonal(0, -2, -1)[..., 1:].any()


@pytest.mark.slow
def test_offsets_are_an_encoder_s_and_not_whole_heads():
    drawn = masks.equal_cost_baselines(0.5, replace(MINILM, read=1))
    assert drawn[OFFSETS].of_layer(5) == masks.full()
    assert OFFSETS not in whole_heads(drawn)
    assert OFFSETS not in masks.equal_cost_baselines(0.5, DECODER, local=LOCAL)


@pytest.mark.slow
@settings(deadline=None, max_examples=20)
@given(st.floats(0.02, 0.9), st.integers(2, 5), st.sampled_from([None, 1, 2]))
def test_the_last_layer_is_full_where_one_row_of_it_is_read_and_that_leaves_room(
    limit, count, read
):
    shape, last = Shape(16, count, 2, lengths={9: 2, 16: 1}, read=read), masks.full()
    drawn = masks.equal_cost_baselines(limit, shape)
    assert all(effective_density(mask, shape) <= limit * (1 + 1e-9) for mask in drawn.values())
    least = masks.per_layer([masks.longformer(0)] * (count - 1) + [last])
    fits = read == 1 and effective_density(least, shape) <= limit
    if "longformer" in drawn:
        assert (drawn["longformer"].of_layer(count - 1) == last) == fits
    priced = masks.equal_cost_baselines(limit, shape, lambda mask: mask.density(16))
    assert "longformer" not in priced or priced["longformer"].of_layer(count - 1) != last


@pytest.mark.parametrize("limit", [0.2, 0.4, 0.7])
def test_between_two_sizes_of_a_family_the_first_layers_have_the_larger_one(limit):
    shape = Shape(32, 4, 1)
    for name in ("longformer", "bigbird"):
        make = getattr(masks, name)
        size = max(size for size in range(33) if cells(make(size), shape) <= limit)
        mixed = [
            masks.per_layer([make(size + 1)] * some + [make(size)] * (4 - some))
            for some in range(4)
        ]
        drawn = masks.equal_cost_baselines(limit, shape)[name]
        best = max(m for m in range(4) if cells(mixed[m], shape) <= limit)
        assert drawn == (mixed[best] if best else make(size))


def test_nothing_is_drawn_where_the_least_costs_too_much():
    assert masks.equal_cost_baselines(0.01, DECODER, local=LOCAL) == {}
    drawn = masks.equal_cost_baselines(0.5, DECODER, lambda mask: 1.0, local=LOCAL)
    assert drawn == {}
