"""Hand-designed schedules of live tokens meet a given work, thin out, and keep what they say."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from masksearch import masks
from masksearch.contracts import Shape
from masksearch.masks.live import live_tokens, work
from masksearch.masks.schedules import STEPS, THINNED, rankings, token_schedules

LENGTH, LAYERS, CLS, SEP = 16, 4, 1, 2
PLAIN = Shape(LENGTH, LAYERS, 2, read=1, hidden_size=8, intermediate_size=32)
WORDS = st.lists(st.integers(3, 9), min_size=1, max_size=LENGTH - 2)
TEXTS = st.lists(WORDS, min_size=2, max_size=6)


def shape_of(texts, end=SEP):
    """The shape of texts between [CLS] and an end."""
    rows = [[CLS, *text, end] for text in texts]
    tokens = torch.tensor([row + [-1] * (LENGTH - len(row)) for row in rows])
    return replace(PLAIN, tokens=tokens, lengths=Counter(map(len, rows)))


@pytest.mark.slow
@settings(max_examples=4)
@given(TEXTS, st.floats(0.1, 1))
def test_each_is_the_densest_of_its_kind_within_the_work(texts, limit):
    shape = shape_of(texts)
    drawn = token_schedules(limit, shape)
    for kind, ranking in rankings(shape).items():
        for how, share in THINNED.items():
            steps = [
                [ranking.first(share(step / STEPS, layer, LAYERS)) for layer in range(LAYERS)]
                for step in range(0, STEPS + 1, 64)
            ]
            for counts in steps:
                price = work(ranking.mask(counts), shape)
                assert ranking.work(counts, shape) == pytest.approx(price, rel=1e-12)
            prices = [ranking.work(counts, shape) for counts in steps]
            assert prices == sorted(prices)
            within = [price for price in prices if price <= limit]
            name = f"{kind}, {how}"
            if name in drawn:
                assert max(within, default=0) <= work(drawn[name], shape) <= limit * (1 + 1e-9)
            else:
                known = [work(mask, shape) for mask in drawn.values()]
                assert not within or max(within) <= max(known)


@pytest.mark.slow
@settings(max_examples=6)
@given(TEXTS, st.floats(0.2, 0.9))
def test_tokens_only_leave_and_the_first_stays(texts, limit):
    shape = shape_of(texts)
    for name, mask in token_schedules(limit, shape).items():
        live = live_tokens(mask, replace(shape, read=1))
        if live.ndim == 2:
            live = live[None] & (shape.tokens >= 0)[:, None]
        assert (live[:, 1:] <= live[:, :-1]).all()
        assert live[:, :, 0].all()
        if "[SEP]" in name:
            assert live[:, :-1][(shape.tokens == SEP)[:, None].expand_as(live[:, :-1])].all()


def test_kinds_and_shares_by_hand():
    half = [[True] * 16, [True, False] * 8, [True, False, False, False] * 4]
    drawn = rankings(PLAIN)["every k-th token"]
    for share, expected in zip((1, 0.5, 0.25), half, strict=True):
        kept = drawn.columns(drawn.first(share), []).dense(LENGTH)[0, 0, 3]
        assert kept.tolist() == expected
    assert str(rankings(PLAIN)["first tokens"].mask([16, 8, 0])) == (
        "per_layer([full(), columns(8), columns(1)])"
    )
    shape = shape_of([[7, 7, 7, 8], [7, 8, 9]])
    words = rankings(shape)["rarest words"]
    tokens = torch.tensor([[CLS, 7, 8, 9, 5, SEP, CLS]])  # 5 is no word of the data
    for share, kept in {
        0.7: [True, False, True, True, True, True, True],
        0.5: [True, False, False, True, True, True, True],
        0.2: [True, False, False, True, True, False, False],
        0.0: [True, False, False, False, True, False, False],
    }.items():
        assert words.columns(words.first(share), []).table(tokens)[0, 0, 0].tolist() == kept
    both = words.columns(words.first(0.2), [SEP]).table(tokens)[0, 0, 0]
    assert both.tolist() == [True, False, False, True, True, True, False]


def test_they_are_the_baselines_of_that_cost():
    shape = shape_of([[7, 7, 8], [9, 8, 7, 7, 7]])
    drawn = masks.equal_cost_baselines(0.6, shape, cost=masks.work)
    assert drawn == token_schedules(0.6, shape)
    assert {name.split(", ")[1] for name in drawn} == {*THINNED}
    assert len({*drawn.values()}) == len(drawn)
    for mask in drawn.values():
        assert masks.Mask.from_json(mask.to_json()) == mask
    assert not masks.equal_cost_baselines(0.001, shape, cost=masks.work)
    plain = token_schedules(0.6, replace(shape, tokens=None))
    assert {name.split(", ")[0] for name in plain} == {"every k-th token", "first tokens"}
    other = shape.tokens.clone()
    other[0, 4] = 8
    assert not any("[SEP]" in n for n in token_schedules(0.6, replace(shape, tokens=other)))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (replace(PLAIN, read=None), r"give Shape\(\.\., read=1\) .*, got causal=False, read=None"),
        (replace(PLAIN, causal=True), "got causal=True, read=1"),
        (replace(PLAIN, hidden_size=None), "work counts a model's multiplications"),
    ],
)
def test_messages(shape, message):
    with pytest.raises(ValueError, match=message):
        token_schedules(0.5, shape)
