"""Random controls keep as much as the mask that they stand beside, of the pairs that exist."""

import pytest

from masksearch import masks
from masksearch.contracts import Shape
from masksearch.masks.families import random_like
from masksearch.masks.lower import lower
from masksearch.masks.measure import effective_density

SENTENCES = {7: 2, 12: 9, 20: 30, 31: 12, 44: 5, 61: 1}  # tokens of short texts in 64 positions
SHAPES = [
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
@pytest.mark.parametrize("shape", SHAPES, ids=str)
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
    for shape in (Shape(32, 1, 1), *SHAPES[:3]):
        drawn = [random_like(masks.window(2), shape, seed) for seed in (0, 1, 2)]
        assert len(set(drawn)) == 3
        assert drawn[1] == random_like(masks.window(2), shape, 1)
