"""Until when each key is of use: against a loop over the cells."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig

from masksearch import masks
from masksearch.errors import LengthError
from masksearch_decoders import kv_bytes
from masksearch_decoders.cache.lifetimes import last_queries
from tests.mask_trees import bits, sized_trees

ONE = LlamaConfig(hidden_size=4, num_hidden_layers=1, num_attention_heads=1)


def held(mask: masks.Mask, count: int) -> int:
    """Keys of four numbers that a decoder of one layer and head holds after so many."""
    return kv_bytes(mask, ONE, count).bytes // (2 * 4 * 4)


INTERVALS = [
    masks.full(),
    masks.causal() & masks.window(3),
    masks.columns(2) | masks.window(1),
    masks.columns(positions=[1, 4]) | masks.window(0),
    (masks.global_tokens(2) | masks.window(5)) & (masks.columns(1) | masks.window(2)),
]


@pytest.mark.slow
@settings(max_examples=60)
@given(sized_trees(longest=7), st.integers(0, 6))
def test_last_queries_match_a_loop(sized, start):
    length, mask = sized
    table = mask.dense(length)
    for layer, head in mask.planes:
        cells = table[layer, head]
        single = mask.of_layer(layer)
        found = last_queries(single, torch.arange(length), length, head=head, start=start)
        for key in range(length):
            seen = [query for query in range(key, length) if cells[query, key]]
            last = max(seen, default=-1)
            assert int(found[key]) == last if last >= start else int(found[key]) < start


@pytest.mark.parametrize("mask", INTERVALS, ids=str)
@pytest.mark.parametrize("count", [1, 5, 9])
def test_held_keys_are_those_that_a_later_query_keeps(mask, count):
    until = 2 * count
    later = mask.dense(until)[0, 0][count:, :count].any(0)
    assert held(mask, count) == int(later.sum())


def test_long_windows_are_not_looked_at_cell_by_cell():
    assert held(masks.columns(4) | masks.window(255), 1 << 20) == 259


def test_the_longest_length_is_that_of_tables_layouts_and_corners():
    table = masks.table(torch.ones(5, 5, dtype=torch.bool))
    assert masks.window(3).longest is None
    assert (masks.window(3) | table).longest == 5
    assert (masks.cropped(masks.window(3), at=8) | masks.full()).longest == 8
    assert masks.per_head([masks.full(), masks.cropped(table, at=5)]).longest == 5


@pytest.mark.slow
@settings(max_examples=60)
@given(sized_trees(longest=6))
def test_a_mask_has_no_cells_beyond_its_longest_length(sized):
    length, mask = sized
    assert mask.longest is None or mask.longest >= length
    if mask.longest is not None:
        with pytest.raises(LengthError):
            mask.dense(mask.longest + 1)


TABLES = st.integers(1, 6).flatmap(lambda n: bits(n, n)).map(masks.table)


@settings(max_examples=60)
@given(TABLES, st.integers(1, 6))
def test_a_table_holds_at_fewer_positions_what_its_corner_holds(table, count):
    count = min(count, table.longest)
    until = min(2 * count, table.longest)
    cells = table.dense(table.longest)[0, 0, :until, :count]
    assert held(table, count) == int(cells.tril()[min(count, until - 1) :].any(0).sum())
