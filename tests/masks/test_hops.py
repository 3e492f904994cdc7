"""Hops on bits against products of float matrices."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from masksearch import masks
from masksearch.masks import hops as reachability
from masksearch.masks.hops import Relation, along, hops, packed, unpacked


def by_matrices(table: Tensor) -> float:
    """One step after another, as matrix products."""
    size = table.shape[-1]
    own = torch.eye(size)
    steps = [(layer.any(0) | own.bool()).float() for layer in table]
    reached, count = own, 0
    while not reached.all():
        before = reached
        for step in steps:
            reached, count = (step @ reached > 0).float(), count + 1
            if reached.all():
                return count
        if torch.equal(before, reached):
            return float("inf")
    return count


def tables(layers: int, size: int, keys: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(layers, 2, size, size, generator=generator) < keys / size


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 3),
    st.integers(1, 140),
    st.sampled_from([0.3, 0.6, 1.2, 3, 30, 1000]),
    st.integers(0, 99),
    st.sampled_from([0, 2, 100]),
    st.sampled_from([1, 50, 1 << 20]),
)
def test_hops_of_random_tables(layers, size, keys, seed, products, words):
    table = tables(layers, size, keys, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reachability, "PRODUCTS", products)
        patch.setattr(reachability, "GATHERED", words)
        patch.setattr(reachability, "LOOKED_UP", words * 256)
        assert hops(table) == by_matrices(table)


@pytest.mark.parametrize(
    "mask",
    [
        masks.window(1),
        masks.window(5),
        masks.window(40),
        masks.shifts([-1]),
        masks.bigbird(),
        masks.blocks(50) | masks.stride(50),
        masks.per_layer([masks.causal(), masks.shifts([1, 5])]),
        masks.per_layer([masks.window(1), masks.window(0), masks.window(3)]),
    ],
    ids=str,
)
@pytest.mark.parametrize("products", [0, 2])
def test_hops_of_long_chains(mask, products, monkeypatch):
    monkeypatch.setattr(reachability, "PRODUCTS", products)
    table = mask.dense(150)
    assert hops(table) == by_matrices(table)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 140), st.sampled_from([1.0, 9.0, 1000.0]), st.integers(0, 99))
def test_both_products_are_the_matrix_product(size, keys, seed):
    own = torch.eye(size, dtype=torch.bool)
    later, earlier = (tables(2, size, keys, seed)[:, 0] | own).unbind()
    wanted = (later.double() @ earlier.double() > 0).numpy()
    relation = Relation(later.numpy())
    assert (unpacked(relation.looked_up(packed(earlier.numpy())), size) == wanted).all()
    if relation.sparse:
        found = along(relation.start, relation.key, packed(earlier.numpy()))
        assert (unpacked(found, size) == wanted).all()
