"""The hand-designed masks: published sparsity, rules as loops, sweeps; and random controls."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import masksearch as ms
from masksearch import masks
from masksearch.contracts import Shape
from masksearch.masks.families import random_like
from masksearch.masks.lower import lower
from masksearch.masks.measure import effective_density

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
