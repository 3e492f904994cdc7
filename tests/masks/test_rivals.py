"""Masks drawn by hand at the cost of a searched one."""

from __future__ import annotations

import pytest
import torch

from masksearch import Shape, masks
from masksearch.masks.families import SWEPT
from masksearch.masks.measure import effective_density
from masksearch.masks.rivals import full_layers, placements, rivals_within, widest_window

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
    widest = rivals_within(limit, DECODER, local=LOCAL)["widest window"]
    loop = [masks.columns(2) | masks.window(reach) for reach in range(DECODER.length)]
    assert widest == max((m for m in loop if cells(m, DECODER) <= limit), key=loop.index)


@pytest.mark.parametrize("name", placements(1, 1))
def test_as_many_layers_are_full_as_the_limit_pays_for(name):
    drawn = rivals_within(0.5, DECODER, local=LOCAL)[name]
    full = [layer for layer in range(6) if drawn.of_layer(layer) == masks.full()]
    assert cells(drawn, DECODER) <= 0.5
    more = full_layers(placements(6, len(full) + 1)[name], 6, LOCAL)
    assert cells(more, DECODER) > 0.5
    assert all(drawn.of_layer(layer) == LOCAL for layer in {*range(6)} - {*full})


@pytest.mark.parametrize("count", range(1, 30))
def test_layers_are_placed_each_once(count):
    for places in placements(30, count).values():
        assert len(places) == count
        assert places <= {*range(30)}


@pytest.mark.parametrize("limit", [0.1, 0.3, 0.6])
def test_families_are_as_dense_as_the_limit_allows(limit):
    shape = Shape(32, 1, 1)
    drawn = rivals_within(limit, shape)
    for name, (make, least) in SWEPT.items():
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
    drawn = rivals_within(limit, shape).get("full heads")
    assert (drawn is None) == (most == 0)
    if drawn is not None:
        planes = [drawn.of_head(head) for head in range(6)]
        assert planes[:most] == [masks.full()] * most
        assert {*planes[most:]} == {masks.window(0) | masks.global_tokens(1)}


@pytest.mark.parametrize(("limit", "pairs"), [(0.3, 1), (0.5, 2), (0.7, 3)])
def test_a_pair_of_heads_each_way_costs_a_full_head_and_a_local_one(limit, pairs):
    shape, local = Shape(32, 2, 6), masks.window(0) | masks.global_tokens(1)
    drawn = rivals_within(limit, shape)["heads each way"]
    tables = drawn.dense(32, 2, 6)[0]
    assert cells(drawn, shape) == pytest.approx(
        (pairs + (6 - pairs) * cells(local, shape)) / 6
    )  # so it is as dense as so many full heads
    both = tables[:pairs] | tables[pairs : 2 * pairs]
    assert both.all()
    assert not tables[:pairs, 9, 8].any()  # nothing earlier but the global token
    assert (tables[2 * pairs :] == local.dense(32)[0]).all()


def test_special_tokens_are_those_that_rows_begin_and_end_with():
    drawn = rivals_within(0.9, ENCODER)["widest window and special tokens"]
    loop = [masks.window(reach) | masks.special_tokens(101, 102) for reach in range(8)]
    within = [mask for mask in loop if effective_density(mask, ENCODER) <= 0.9]
    assert drawn == within[-1]
    assert len(within) < len(loop)
    other = Shape(8, 2, 1, lengths={5: 1, 8: 1}, tokens=ROWS.flip(1).clamp(min=3))
    assert "widest window and special tokens" not in rivals_within(0.9, other)


def test_nothing_is_drawn_where_the_least_costs_too_much():
    assert rivals_within(0.01, DECODER, local=LOCAL) == {}
    assert widest_window(0.5, lambda mask: 1.0, 8, LOCAL) is None
