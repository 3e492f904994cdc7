"""Hops on bits against products of float matrices."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from masksearch import masks
from masksearch.errors import LengthError
from masksearch.masks.measure import hops

LONG = 2048


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
    st.sampled_from([1, 50, 1 << 20]),
)
def test_hops_of_random_tables(layers, size, keys, seed, words):
    table = tables(layers, size, keys, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("masksearch.masks.measure.GATHERED", words)
        assert hops(masks.table(table), table.shape[-1]) == by_matrices(table)


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
def test_hops_of_long_chains(mask):
    table = mask.dense(150)
    assert hops(masks.table(table), table.shape[-1]) == by_matrices(table)


FORMS: list[tuple[masks.Mask, float]] = [
    (masks.full(), 1),
    (masks.causal(), math.inf),  # no way to a later key
    (masks.a_shape(4, 512), 4),  # from the first to the last only by the window: 2,047 / 512
    (masks.star(), 2),  # by way of the hub
    (masks.strided(256), 2),  # a key of the right remainder is in the window
    (masks.blocks(64), math.inf),
    (masks.per_layer([masks.columns(1), masks.global_tokens(1)]), 3),  # in, and out again
    (masks.window(1), LONG - 1),  # the ends are n - 1 apart: ceil((n - 1) / reach)
    (masks.window(1000), 3),
    (masks.dilated(64, 2) | masks.window(1), 33),  # 31 x 64, 62 in one, and 1
    (masks.longformer(256, 16), 2),
    (masks.bigbird(192, 128, 3), 2),
    (masks.fixed(4, 1), 2),  # the last key of the other block
    (masks.axial(32, 64), 2),  # the corner of row and column
    (masks.butterfly(), 11),
    (masks.blocks(64) | masks.stride(64), 2),  # row and column of a grid of 64 columns
    (masks.shifts([1, 1 - LONG]), LONG - 1),  # a ring in one direction
    (masks.per_layer([masks.blocks(256), masks.stride(256)]), 2),
]


@pytest.mark.parametrize(("mask", "expected"), FORMS, ids=str)
@pytest.mark.slow
def test_closed_forms_of_long_masks(mask, expected):
    assert hops(mask, LONG) == expected


def test_hops_take_masks_and_tables():
    mask = masks.window(3)
    assert hops(mask, 1) == 0
    assert hops(mask, 100) == hops(masks.table(mask.dense(100)), 100) == 33
    with pytest.raises(LengthError, match="holds 4 positions, asked for 1"):
        hops(masks.table(torch.eye(4, dtype=torch.bool)), 1)
