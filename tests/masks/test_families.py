"""The hand-designed masks: published sparsity, and their rules as loops."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import masksearch as ms
from masksearch import masks

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
