"""The drawn masks without the diagonal of experiments 22 and 23."""

import sys
from pathlib import Path

import pytest
import torch

from masksearch import Shape, masks
from masksearch.masks.measure import effective_density

sys.path.append(str(Path(__file__).parents[1] / "22_as_it_is"))
import offset_masks

SHAPE = Shape(16, 2, 4, lengths={9: 2, 16: 1})


@pytest.mark.parametrize("budget", [0.2, 0.3])
def test_near_offsets_are_those_of_the_list_of_drawn_masks(budget):
    families = offset_masks.families(budget, SHAPE, None)
    drawn = masks.equal_cost_baselines(budget, SHAPE)["offsets by head"]
    near = families["near offsets by head"]
    assert torch.equal(near.dense(16, 2, 4), drawn.dense(16, 2, 4))
    assert not torch.equal(families["offsets by head"].dense(16, 2, 4), near.dense(16, 2, 4))


def test_every_offset_goes_to_one_head_before_any_goes_to_two():
    steps = [1, -1, 2, -2, 3]
    assert offset_masks.each_once(steps, 2, 5) == [[1, 2, 3], [-1, -2]]
    assert offset_masks.each_once(steps, 2, 7) == [[1, 2, 3, -1], [-1, -2, 1]]
    assert offset_masks.neighbours(steps, 2, 5) == [[1, -1, 2], [-1, 2]]


def test_a_last_layer_of_its_own_counts_towards_the_budget():
    last = masks.per_head([masks.full()] + [masks.columns(1)] * 3)
    for mask in offset_masks.families(0.3, SHAPE, last).values():
        assert mask.of_layer(1) == last
        assert effective_density(mask, SHAPE) <= 0.3
