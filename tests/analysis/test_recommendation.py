"""The mask that a comparison recommends, by the better mean, and what it shows apart from that."""

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
    ("mine", "outcome", "taken", "said"),
    [
        (0.75, "better", "mine", "ahead on 5 of 5 seeds; mine is shown to be better"),
        (0.701, "not told apart", "mine", "mine is taken, by the better mean"),
        (0.70000001, "not told apart", "hand", "hand is taken, of equal means the one drawn by"),
        (0.699, "not told apart", "hand", "hand is taken, by the better mean"),
        (0.65, "worse", "hand", "ahead on 0 of 5 seeds; mine is shown to be worse"),
    ],
)
def test_the_better_mean_is_taken_and_what_is_shown_is_said_apart(
    judged, mine, outcome, taken, said
):
    advice = judged({"mine": mine, "hand": 0.7}).recommend()
    assert (advice.outcome, advice.name) == (outcome, taken)
    assert advice.mask == (SEARCHED if taken == "mine" else masks.star())
    assert advice.difference.value == pytest.approx(mine - 0.7, abs=1e-6)
    assert [*advice.by_seed] == [*range(5)]
    assert sum(advice.by_seed.values()) / 5 == pytest.approx(advice.difference.value)
    assert advice.difference.level == 0.95
    assert said in str(advice)
    assert f"mine minus hand: glue {advice.difference.text(signed=True)}" in str(advice)


def test_a_score_that_falls_when_better_is_read_so(compared, objectives, shape):
    runs = {"mine": (SEARCHED, [0.5, 0.51, 0.49]), "hand": (masks.star(), [0.7, 0.73, 0.7])}
    loss = (replace(objectives[0], goal="min"), objectives[1])
    comparison = Comparison(tuple(compared(runs)), loss, shape=shape, kinds={"mine": "searched"})
    advice = comparison.recommend()
    assert (advice.name, advice.outcome) == ("mine", "better")
    assert "ahead on 3 of 3 seeds" in str(advice)


def test_a_score_that_is_no_mean_over_tasks_is_named_itself(compared, objectives, shape):
    runs = {"mine": (SEARCHED, [0.9, 0.8, 0.9]), "hand": (masks.star(), [0.7, 0.6, 0.8])}
    values = {"other": 0.6, "glue/majority": 0.0, "glue/low": 0.1}
    records, kinds = compared(runs, values=values), {"mine": "searched"}
    comparison = Comparison(tuple(records), objectives, shape=shape, kinds=kinds)
    assert "mine minus hand: glue +" in str(comparison.recommend())


def test_below_three_seeds_the_better_mean_is_taken_and_nothing_shown(judged):
    few = judged({"mine": 0.9, "hand": 0.7}, seeds=2).recommend()
    assert (few.outcome, few.name) == ("too few seeds", "mine")
    assert "too few seeds to tell them apart" in str(few)


def test_a_mask_that_has_learned_nothing_is_never_taken(compared, objectives, shape):
    def judged(unlearned):
        records = compared(
            {"mine": (SEARCHED, [0.9] * 3), "hand": (masks.star(), [0.7] * 3)},
            values={"RTE": 0.53, "RTE/majority": 0.53, "RTE/low": 0.5},
        )
        learned = {"RTE": 0.7, "RTE/majority": 0.53, "RTE/low": 0.65}
        records = [
            record if record.name in unlearned else replace(record, values=record.values | learned)
            for record in records
        ]
        return Comparison(tuple(records), objectives, shape=shape, kinds={"mine": "searched"})

    for unlearned, taken in (("mine", "hand"), ("hand", "mine")):
        advice = judged([unlearned]).recommend()
        assert (advice.outcome, advice.name) == ("alone", taken)
        assert f"no {KINDS[unlearned]} mask of that cost has learned anything" in str(advice)
    with pytest.raises(SearchError, match="has learned anything; give a larger budget"):
        judged(["mine", "hand"]).recommend()


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
    assert "mine minus hand" in advice.sentence


@pytest.mark.parametrize(
    "found", [{}, {"mine": ([1], False, 0.6, "p"), "again": ([1], False, 0.5, "other")}]
)
def test_where_judged_masks_choose_the_interval_is_the_familys(judged, found):
    means = {"mine": 0.75, "again": 0.9, "hand": 0.7, "two": 0.8}
    advice = judged(means, found=found).recommend()
    assert advice.name == "again"
    assert "again minus two" in advice.sentence
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
