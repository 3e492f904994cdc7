"""Masks hand-designed at the cost of a searched one."""

from dataclasses import replace

import pytest
import torch

from masksearch import Shape, masks
from masksearch.masks.baselines import whole_heads
from masksearch.masks.measure import effective_density, fingerprint

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


@pytest.mark.parametrize("read", [None, 1])
@pytest.mark.parametrize("limit", OF_BUDGETS)
def test_whole_heads_are_within_every_budget_and_spend_it(limit, read):
    shape = replace(MINILM, read=read)
    drawn = masks.equal_cost_baselines(limit, shape)
    names = whole_heads(drawn)
    assert len(names) >= OF_BUDGETS[limit] - (4 if read else 0)
    for name in names:
        assert effective_density(drawn[name], shape) <= limit * (1 + 1e-9)
        if "layer" in name and read is None:  # what is left pays for no further one
            assert effective_density(drawn[name], shape) > limit - 1 / 72
        layers = wholes(drawn[name], shape)
        used = [layer for layer, count in enumerate(layers) if count]
        assert used, name
        for place, end in (("first", 0), ("last", 5)):
            assert place not in name or (end in used and max(used) - min(used) < len(used) < 5)
        if name.startswith("more ") and name[5:] in drawn:
            assert sum(layers) > sum(wholes(drawn[name[5:]], shape))
    prints = {fingerprint(drawn[name], shape) for name in names}
    assert len(prints) == len(names)


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
    loop = [masks.window(reach) | masks.special_tokens(101, 102) for reach in range(8)]
    within = [mask for mask in loop if effective_density(mask, ENCODER) <= 0.9]
    assert drawn == within[-1]
    assert len(within) < len(loop)
    other = Shape(8, 2, 1, lengths={5: 1, 8: 1}, tokens=ROWS.flip(1).clamp(min=3))
    assert "widest window and special tokens" not in masks.equal_cost_baselines(0.9, other)


def test_nothing_is_drawn_where_the_least_costs_too_much():
    assert masks.equal_cost_baselines(0.01, DECODER, local=LOCAL) == {}
    drawn = masks.equal_cost_baselines(0.5, DECODER, lambda mask: 1.0, local=LOCAL)
    assert drawn == {}
