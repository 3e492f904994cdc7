"""The mask that a comparison recommends: the searched one only where it is shown to be better."""

import json
from dataclasses import replace

import pytest

from masksearch import Comparison, masks
from masksearch.errors import SearchError

NOISE = (0.001, -0.002, 0.0005, 0.0015, -0.001)
SEARCHED, OTHER = masks.window(1), masks.window(2)
KINDS = {"mine": "searched", "again": "searched", "hand": "hand-designed", "two": "hand-designed"}


@pytest.fixture
def judged(compared, objectives, shape):
    """A comparison of masks with means; noise is their own, so that differences vary. `found` says
    of some as a stored comparison does with which seeds they were found, whether on rows of the
    comparison, their score in the search and its protocol."""

    def make(means, seeds=5, found=(), **fields):
        by_name = {"mine": SEARCHED, "again": OTHER, "hand": masks.star(), "two": masks.full()}
        runs = {
            name: (by_name[name], [mean + NOISE[(seed + at) % 5] for seed in range(seeds)])
            for at, (name, mean) in enumerate(means.items())
        }
        kinds = {name: kind for name, kind in KINDS.items() if name in means}
        stored = {"comparison": json.dumps({"kinds": kinds, "found_with": dict(found)})}
        return Comparison.of(compared(runs, **fields), objectives, stored, shape=shape)

    return make


@pytest.mark.parametrize(
    ("mine", "outcome", "taken"),
    [(0.75, "better", "mine"), (0.7, "not shown", "hand"), (0.65, "worse", "hand")],
)
def test_the_searched_mask_is_taken_only_where_it_is_shown_to_be_better(
    judged, mine, outcome, taken
):
    advice = judged({"mine": mine, "hand": 0.7}).recommend()
    assert (advice.outcome, advice.name) == (outcome, taken)
    assert advice.mask == (SEARCHED if taken == "mine" else masks.star())
    assert advice.difference.value == pytest.approx(mine - 0.7, abs=1e-3)
    assert advice.difference.level == 0.95
    assert str(advice).startswith("mine is ")
    assert "5 seeds" in str(advice)


def test_a_score_that_falls_when_better_is_read_so(compared, objectives, shape):
    runs = {"mine": (SEARCHED, [0.5, 0.51, 0.49]), "hand": (masks.star(), [0.7, 0.73, 0.7])}
    loss = (replace(objectives[0], goal="min"), objectives[1])
    comparison = Comparison(tuple(compared(runs)), loss, shape=shape, kinds={"mine": "searched"})
    assert comparison.recommend().outcome == "better"


def test_below_three_seeds_and_of_a_mask_that_learned_nothing_it_is_the_hand_designed_one(judged):
    few = judged({"mine": 0.9, "hand": 0.7}, seeds=2).recommend()
    assert (few.outcome, few.name) == ("too few seeds", "hand")
    values = {"glue": 0.6, "RTE": 0.53, "RTE/majority": 0.53}
    nothing = judged({"mine": 0.9, "hand": 0.7}, values=values)
    assert nothing.recommend().outcome == "learned nothing"
    assert nothing.recommend().name == "hand"


def test_search_scores_choose_of_each_kind_and_are_not_judged_again(judged):
    found = {
        "mine": ([1], False, 0.6, "p"),
        "again": ([1], False, 0.5, "p"),
        "hand": ([1], False, 0.3, "p"),
        "two": ([1], False, 0.2, "p"),
    }
    means = {"mine": 0.75, "again": 0.9, "hand": 0.7, "two": 0.8}
    advice = judged(means, found=found).recommend()
    assert advice.name == "mine"  # "again" is better here, which no search could know
    assert advice.difference.level == 0.95
    assert "than hand" in advice.sentence


@pytest.mark.parametrize(
    "found",
    [{}, {"mine": ([1], False, 0.6, "p"), "again": ([1], False, 0.5, "other")}],
)
def test_where_judged_masks_choose_the_interval_is_the_familys(judged, found):
    means = {"mine": 0.75, "again": 0.9, "hand": 0.7, "two": 0.8}
    advice = judged(means, found=found).recommend()
    assert advice.name == "again"
    assert "than two" in advice.sentence
    assert advice.difference.level == pytest.approx(1 - 0.05 / 4)


def test_a_budget_leaves_out_what_costs_more(judged):
    means = {"mine": 0.75, "hand": 0.7, "two": 0.9}
    assert judged(means).recommend(1.0).name == "two"
    dense = 1 - masks.star().sparsity(16)
    assert judged(means).recommend(dense).name == "mine"
    with pytest.raises(SearchError, match="within that budget"):
        judged(means).recommend(0.01)


def test_one_kind_alone_is_taken_and_said_to_be_alone(judged):
    advice = judged({"mine": 0.75}).recommend()
    assert (advice.outcome, advice.name, advice.difference) == ("alone", "mine", None)
    assert "no hand-designed mask of the same cost was evaluated" in str(advice)
    advice = judged({"hand": 0.75}).recommend()
    assert (advice.outcome, advice.name) == ("alone", "hand")


def test_what_a_search_scored_is_kept_with_the_comparison(judged):
    comparison = judged({"mine": 0.75, "hand": 0.7}, found={"mine": ([1], True, 0.6, "p")})
    about = comparison.records, comparison.objectives, comparison.facts
    assert Comparison.of(*about).found_with == {"mine": ((1,), True, 0.6, "p")}
    older = {
        **comparison.facts,
        "comparison": comparison.facts["comparison"].replace(', 0.6, "p"', ""),
    }
    assert Comparison.of(*about[:2], older).found_with == {"mine": ((1,), True, None, "")}
