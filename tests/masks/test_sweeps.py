"""Hand-designed fronts: as many masks as densities, none of them favoured by its density."""

import pytest

from masksearch import masks
from masksearch.contracts import Shape
from masksearch.masks.lower import lower
from masksearch.masks.measure import effective_density

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
