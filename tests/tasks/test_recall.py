"""Planted recall: what is asked, where the answer lies, and what a perfect model loses."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from masksearch.tasks.next_token import repeat_distances
from masksearch.tasks.recall import Recall

SMALL = Recall(pairs=3, keys=6, values=5, fillers=4, middle=7)


@given(
    st.builds(
        Recall,
        pairs=st.integers(1, 4),
        keys=st.integers(4, 6),
        values=st.integers(2, 5),
        middle=st.integers(2, 9),
        follow=st.floats(0, 1),
    ),
    st.integers(0, 99),
)
def test_every_answer_stands_behind_its_key_as_far_back_as_said(task, seed):
    rows = task.rows(3, torch.Generator().manual_seed(seed))
    assert rows.tokens.shape == (3, task.length)
    assert 0 <= rows.tokens.min()
    assert rows.tokens.max() < task.vocabulary
    assert (rows.answers.sum(1) == task.pairs).all()
    for row, needs, answers in zip(rows.tokens, rows.needs, rows.answers, strict=True):
        for at in answers.nonzero().flatten().tolist():
            back = int(needs[at])
            assert task.middle + 2 <= back <= task.middle + 4 * task.pairs - 2
            assert row[at - back] == row[at]
            assert row[at - back - 1] == row[at - 1] < task.keys
    assert ((rows.labels != -100) == (rows.needs > 0)).all()
    assert (rows.labels != -100).sum() == 3 * (task.pairs + task.middle - 1)


def test_an_answer_is_told_once_before() -> None:
    """So nothing but the pair itself says it: where the question is, its key stood once before."""
    rows = SMALL.held_out("validation", 50)
    assert torch.equal(repeat_distances(rows.tokens)[rows.answers], rows.needs[rows.answers])


def test_the_floor_is_what_the_rule_leaves() -> None:
    task = replace(SMALL, middle=2000, pairs=1)
    rows = task.rows(100, torch.Generator().manual_seed(0))
    first = task.keys + task.values
    filler = rows.tokens[:, 2:2002] - first
    named = filler[:, 1:] == task.rule[filler[:, :-1]]
    other = (1 - task.follow) / task.fillers
    share = torch.where(named, task.follow + other, other)
    total = -share.log().sum() / (100 * (1999 + task.pairs))
    assert total.item() == pytest.approx(task.floor, rel=0.03)
    assert replace(SMALL, follow=1.0).floor == 0
    even = replace(SMALL, follow=0.0)
    assert even.floor == pytest.approx(math.log(4) * 6 / 9)


def test_frequencies_are_those_of_the_scored_tokens() -> None:
    rows = SMALL.rows(4000, torch.Generator().manual_seed(1))
    labels = rows.labels[rows.labels != -100]
    found = torch.bincount(labels, minlength=SMALL.vocabulary) / len(labels)
    assert torch.allclose(found.double(), SMALL.frequencies, atol=0.01)


def test_batches_are_a_function_of_the_seed() -> None:
    first, again = (SMALL.batches(3, 4) for _ in range(2))
    several = [next(first)["input_ids"] for _ in range(4)]
    assert torch.equal(next(again)["input_ids"], several[0])
    assert torch.equal(next(SMALL.batches(3, 4, start=2))["input_ids"], several[2])
    assert not torch.equal(next(SMALL.batches(4, 4))["input_ids"], several[0])
    assert SMALL.digest != replace(SMALL, middle=8).digest


def test_what_is_no_task_says_why() -> None:
    with pytest.raises(ValueError, match="keys must be at least 20"):
        Recall(pairs=20)
    with pytest.raises(ValueError, match="follow is a probability"):
        Recall(follow=1.5)
    with pytest.raises(ValueError, match=r"length of at least 34, got 20"):
        Recall.of_length(20)
    assert Recall.of_length(80).length == 80
