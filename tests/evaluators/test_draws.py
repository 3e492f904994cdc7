"""Masks for a super-net: draws from a space, and batches whose rows carry different masks."""

import functools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from masksearch import lower, masks
from masksearch.attention.call import AttentionCall
from masksearch.contracts import Shape
from masksearch.errors import LengthError, SearchError
from masksearch.evaluators.supernet import MaskBank, SpaceDraws, share_rows

SHAPE = Shape(length=6, layers=2, heads=2)


def windows(trial):
    return masks.window(trial.suggest_int("reach", 0, 5))


def moody(trial):
    """Half of its draws have empty rows."""
    mask = masks.window(trial.suggest_int("reach", 0, 5))
    if trial.suggest_categorical("hollow", [True, False]):
        return mask - masks.full()
    return mask


def broken(trial):
    raise ValueError("no such family")


def of_width(trial, widest):
    return masks.window(trial.suggest_int("reach", 0, widest))


def test_draw_is_a_function_of_seed_and_number():
    draws, other = SpaceDraws(windows, SHAPE, 0), SpaceDraws(windows, SHAPE, 0)
    tables = {number: draws.table(number) for number in (5, 0, 300, 2)}
    for number in (0, 2, 5, 300):
        assert torch.equal(other.table(number), tables[number])
    third = SpaceDraws(windows, SHAPE, 1)
    assert any(not torch.equal(third.table(n), draws.table(n)) for n in range(8))
    seen = {int(draws.table(number).sum()) for number in range(60)}
    assert len(seen) == 6  # every window comes up


def test_draws_that_fail_are_made_again():
    draws = SpaceDraws(moody, SHAPE, 0)
    assert all(draws.table(number).any(-1).all() for number in range(40))


@pytest.mark.parametrize(
    ("space", "reason"),
    [
        (broken, "no mask that fits.*ValueError: no such family"),
        (lambda trial: None, "returned NoneType, not a Mask"),
        (lambda trial: masks.per_head([masks.full()] * 3), "HeadCountError"),
        (lambda trial: masks.full() - masks.full(), "EmptyRowError"),
    ],
)
def test_space_without_a_mask_is_refused_with_its_reason(space, reason):
    with pytest.raises(SearchError, match=reason):
        SpaceDraws(space, SHAPE, 0).table(0)


def test_other_exceptions_of_a_space_come_through():
    with pytest.raises(ZeroDivisionError):
        SpaceDraws(lambda trial: 1 / 0, SHAPE, 0).table(0)  # type: ignore[arg-type, return-value]


def test_digest_tells_one_source_in_two_surroundings_apart():
    digests = {
        SpaceDraws(functools.partial(of_width, widest=widest), SHAPE, 0).digest()
        for widest in (3, 4, 5)
    }
    assert len(digests) == 3
    assert SpaceDraws(windows, SHAPE, 0).digest() == SpaceDraws(windows, SHAPE, 0).digest()
    assert SpaceDraws(windows, SHAPE, 0).digest() != SpaceDraws(moody, SHAPE, 0).digest()


@pytest.mark.parametrize("padded", [False, True])
def test_each_row_attends_under_its_own_mask(padded):
    chosen = [masks.window(1), masks.full(), masks.per_head([masks.causal(), masks.window(0)])]
    tables = torch.stack([lower(mask, SHAPE) for mask in chosen])
    rows = torch.tensor([0, 0, 1, 2, 2])
    random = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 5, 2, 6, 4, generator=random)
    visible = torch.ones(5, 1, 1, 6, dtype=torch.bool)
    visible[1, ..., 4:] = not padded
    bank = MaskBank(SHAPE)
    bank.put(tables, rows)
    for layer in (0, 1):
        out = bank.attend(
            layer,
            AttentionCall(query, key, value, visible=visible if padded else None, scaling=0.5),
        )
        for row in range(5):
            kept = tables[rows[row], layer] & visible[row]
            scores = (query[row] @ key[row].mT * 0.5).masked_fill(~kept, -math.inf)
            alone = torch.nan_to_num(scores.softmax(-1)) @ value[row]
            torch.testing.assert_close(out[row], alone)


def test_one_mask_for_all_rows_is_plain_attention():
    bank = MaskBank(SHAPE)
    bank.put(torch.ones(1, 2, 2, 6, 6, dtype=torch.bool), torch.zeros(3, dtype=torch.int64))
    q, k, v = torch.randn(3, 3, 2, 6, 4, generator=torch.Generator().manual_seed(1))
    out = bank.attend(1, AttentionCall(q, k, v, scaling=0.5))
    torch.testing.assert_close(out, F.scaled_dot_product_attention(q, k, v, scale=0.5))


def test_bank_refuses_what_does_not_fit():
    bank = MaskBank(SHAPE)
    q = torch.zeros(3, 2, 6, 4)
    with pytest.raises(RuntimeError, match="call put"):
        bank.attend(0, AttentionCall(q, q, q, scaling=1.0))
    bank.put(torch.ones(2, 2, 2, 6, 6, dtype=torch.bool), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="set for 2 rows, not 3"):
        bank.attend(0, AttentionCall(q, q, q, scaling=1.0))
    long = torch.zeros(2, 2, 7, 4)
    with pytest.raises(LengthError, match="hold 6 positions, got 7"):
        bank.attend(0, AttentionCall(long, long, long, scaling=1.0))
    assert not list(bank.parameters())
    assert not bank.state_dict()


@given(st.integers(1, 40), st.data())
def test_rows_are_shared_out_evenly(rows, data):
    count = data.draw(st.integers(1, rows))
    found = share_rows(rows, count).bincount(minlength=count)
    assert found.sum() == rows
    assert found.max() - found.min() <= 1
