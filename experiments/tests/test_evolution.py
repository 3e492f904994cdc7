"""Aging evolution: children differ in one parameter, parents are the best of the latest."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from toy import ToyEvaluator, built
from toy import space as conditional

import masksearch as ms
from experiments.rivals import as_strategy
from experiments.rivals.evolution import fitted_value, near_value, random_value
from masksearch import masks
from masksearch.contracts import Evaluate, Objective, Record, Refused, Shape, Strategy, generator
from masksearch.study.records import Constraint
from masksearch.testing import StrategyContract, assert_law

EVOLUTION = as_strategy("evolution")
ONE = (Objective("loss", "min", 10.0),)
TWO = (*ONE, Objective("sparsity", "max", 0.0))
MASK = Evaluate(masks.window(1))


def nested(trial):
    """A tree: each family has parameters of its own, and each layer a family."""
    total = 0
    for layer in range(2):
        family = trial.suggest_categorical(f"l{layer}.family", ["window", "stride", "both"])
        if family != "stride":
            total += trial.suggest_int(f"l{layer}.reach", 0, 9)
        if family != "window":
            total += trial.suggest_int(f"l{layer}.period", 2, 9)
    return masks.window(total)


def finished(proposal, status="done", loss=1.0, **measures):
    values = {"loss": loss} if status == "done" else {}
    return Record(
        proposal.number, status, proposal.job, params=proposal.params, values=values,
        measures=measures, strategy_state=proposal.strategy_state,
    )  # fmt: skip


def record(number, loss, sparsity=0.5):
    return Record(number, "done", MASK, values={"loss": loss}, measures={"sparsity": sparsity})


def ranked(records, objectives):
    """The numbers of possible parents, best first."""
    strategy = built(EVOLUTION, nested, objectives, population=len(records))
    for each in records:
        strategy.tell(each)
    return [each.number for each in strategy.rank_parents()]


def flat(trial):
    return masks.window(trial.suggest_int("reach", 0, 11)) | masks.global_tokens(
        trial.suggest_int("count", 1, 5)
    )


SPARSE = Constraint("sparsity", ">=", 0.3)
MAKERS: dict[str, Callable[[], Strategy]] = {
    "conditional": lambda: built(EVOLUTION, conditional, TWO, population=8),
    "flat": lambda: built(EVOLUTION, flat, TWO, population=8),
    "constrained": lambda: built(EVOLUTION, flat, TWO, constraints=(SPARSE,), population=8),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
class TestStrategy(StrategyContract):
    @pytest.mark.slow
    def test_resumed_copy_asks_what_the_original_asks(self, make):
        assert_law(make, 50, any_order=True)


@pytest.mark.slow
def test_a_search_learns_from_given_draws_and_keeps_budgets(tmp_path):
    """As a strategy of one's own: `--strategy FILE.py:evolution`."""
    judge, given = ToyEvaluator(), [{"reach": 1, "count": 2}, {"reach": 2, "count": 1}]
    how = {"strategy": EVOLUTION, "strategy_options": {"population": 2}, "budget": 0.9}
    run = {"enqueue": given, "trials": 8, "baselines": {}, "progress": None, "run": tmp_path}
    records = ms.search(flat, judge, **how, **run).records()
    assert {record.origin for record in records} == {"enqueued", "evolution"}
    assert all(record.params["budget"] == 0.9 for record in records)
    assert all("parent" in record.strategy_state for record in records[2:])


@pytest.mark.slow
def test_child_differs_from_its_parent_in_one_parameter_and_what_hangs_on_it():
    strategy, drawn, children = built(EVOLUTION, nested, ONE, population=6), {}, 0
    for _ in range(60):
        proposal = strategy.ask()
        drawn[proposal.number] = dict(proposal.params)
        if "parent" in proposal.strategy_state:
            parent, child = drawn[int(proposal.strategy_state["parent"])], proposal.params
            shared = parent.keys() & child.keys()
            assert [n for n in shared if parent[n] != child[n]] == [
                proposal.strategy_state["changed"]
            ]
            if not proposal.strategy_state["changed"].endswith("family"):
                assert parent.keys() == child.keys()
            children += 1
        strategy.tell(finished(proposal, loss=len(proposal.params)))
    assert children == 54


@pytest.mark.slow
def test_first_draws_are_random_and_later_ones_have_parents_among_the_latest():
    strategy = built(EVOLUTION, nested, ONE, population=5)
    for number in range(40):
        proposal = strategy.ask()
        assert ("parent" in proposal.strategy_state) == (number >= 5)
        if number >= 5:
            assert number - 5 <= int(proposal.strategy_state["parent"]) < number
        strategy.tell(finished(proposal, loss=float(number)))


@pytest.mark.slow
def test_parameters_are_not_proposed_twice_while_others_are_near():
    strategy, seen = built(EVOLUTION, nested, ONE, population=6), []
    for _ in range(80):
        proposal = strategy.ask()
        seen.append(json.dumps(proposal.params, sort_keys=True))
        strategy.tell(finished(proposal))
    assert len(set(seen)) >= 79


@pytest.mark.nightly
def test_children_are_new_masks_where_most_changes_cross_no_threshold():
    def thresholds(trial):
        share = trial.suggest_float("share", 0, 1)
        full = [trial.suggest_float(f"h{head}", 0, 1) < share for head in range(40)]
        return masks.per_head([masks.full() if each else masks.star() for each in full])

    many = Shape(length=16, layers=1, heads=40)
    strategy, drawn = built(EVOLUTION, thresholds, ONE, shape=many, population=6), set()
    for number in range(60):
        proposal = strategy.ask()
        drawn.add(proposal.job.mask)
        strategy.tell(finished(proposal, loss=float(number % 7)))
    assert len(drawn) >= 55


@pytest.mark.slow
def test_failed_and_stopped_records_have_no_children_beside_a_scored_one():
    limit = Constraint("sparsity", ">=", 0.9)
    strategy = built(EVOLUTION, nested, ONE, population=4, constraints=(limit,))
    parents = set()
    for number in range(30):
        proposal = strategy.ask()
        if number > 4:
            parents.add(int(proposal.strategy_state["parent"]))
        if number == 4:
            strategy.tell(finished(proposal, sparsity=0.95))
        else:
            status = "stopped" if number % 2 else "failed"
            strategy.tell(finished(proposal, status, sparsity=number / 100))
    assert parents == {4}


def test_stopped_records_breed_by_their_violation_where_nothing_was_scored():
    limit = Constraint("sparsity", ">=", 0.9)
    strategy = built(EVOLUTION, nested, ONE, population=4, sample=4, constraints=(limit,))
    for sparsity in (0.1, 0.7, 0.3, 0.2):
        strategy.tell(finished(strategy.ask(), "stopped", sparsity=sparsity))
    assert strategy.ask().strategy_state["parent"] == "1"


def test_feasible_parent_wins_over_a_better_one_that_violates_a_limit():
    limit = Constraint("latency", "<=", 5)
    strategy = built(EVOLUTION, nested, ONE, population=2, sample=2, constraints=(limit,))
    strategy.tell(finished(strategy.ask(), loss=0.1, latency=9.0))
    strategy.tell(finished(strategy.ask(), loss=0.9, latency=4.0))
    assert strategy.ask().strategy_state["parent"] == "1"


def test_without_any_parent_draws_stay_random():
    strategy = built(EVOLUTION, nested, ONE, population=2)
    for _ in range(8):
        proposal = strategy.ask()
        assert "parent" not in proposal.strategy_state
        strategy.tell(finished(proposal, "failed"))


def test_ranking_puts_fronts_first_and_the_lonely_before_the_crowded():
    rows = {0: (1, 0.1), 1: (2, 0.5), 2: (2.1, 0.52), 3: (3, 0.9), 4: (3, 0.2), 5: (9, 0.1)}
    records = [record(number, *row) for number, row in rows.items()]
    order = ranked(records, TWO)
    assert set(order[:2]) == {0, 3}
    assert set(order[2:4]) == {1, 2}
    assert order[4:] == [4, 5]


def test_one_objective_ranks_by_value():
    assert ranked([record(n, loss) for n, loss in enumerate((3, 1, 2))], ONE) == [1, 2, 0]


def test_space_that_raises_is_refused_with_its_reason():
    def broken(trial):
        trial.suggest_int("reach", 0, 3)
        raise KeyError("no such family")

    job = built(EVOLUTION, broken, ONE).ask().job
    assert isinstance(job, Refused)
    assert "no such family" in job.reason


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"population": 1}, "population must be at least 2, got 1"),
        ({"population": 4, "sample": 5}, "sample must be between 1 and the population, got 5"),
    ],
)
def test_wrong_sizes_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        built(EVOLUTION, nested, ONE, **arguments)


def test_hand_designed_parents_of_evolution_do_not_age():
    old = built(EVOLUTION, nested, ONE, population=2)
    record = Record(0, "done", MASK, values={"loss": 0.1}, measures={"sparsity": 0.5})
    for number, role in enumerate(["baseline", "trial", "baseline", "trial", "trial"]):
        old.tell(replace(record, number=number, role=role, params={"reach": number}))
    assert sorted(parent.number for parent in old.rank_parents()) == [0, 2, 3, 4]


# -- values near a parent's ----------------------------------------------------------------------
KINDS = st.one_of(
    st.builds(
        lambda low, span, step: IntDistribution(low, low + span * step, step=step),
        st.integers(-50, 50),
        st.integers(0, 40),
        st.integers(1, 4),
    ),
    st.builds(lambda low, span: IntDistribution(low, low + span, log=True),
              st.integers(1, 50), st.integers(0, 900)),
    st.builds(lambda low, span: FloatDistribution(low, low + span),
              st.floats(-9, 9), st.floats(0.1, 9)),
    st.builds(lambda low, factor: FloatDistribution(low, low * factor, log=True),
              st.floats(0.001, 9), st.floats(1.1, 1e4)),
    st.builds(lambda count: FloatDistribution(0.0, count * 0.25, step=0.25), st.integers(1, 30)),
    st.builds(lambda count: CategoricalDistribution(["a", True, 3, None][:count]),
              st.integers(1, 4)),
)  # fmt: skip


def contains(kind, value) -> bool:
    return kind._contains(kind.to_internal_repr(value))


@given(KINDS, st.integers(0, 10**6))
def test_values_are_valid_and_a_near_one_is_another(kind, seed):
    draws = generator(seed)
    value = random_value(kind, draws)
    assert contains(kind, value)
    assert fitted_value(kind, value) == pytest.approx(value)
    near = near_value(kind, value, draws)
    assert contains(kind, near)
    assert type(near) is type(value) or isinstance(kind, CategoricalDistribution)
    if not kind.single() and not (isinstance(kind, FloatDistribution) and kind.step is None):
        assert near != value


def test_random_values_are_uniform():
    kind = IntDistribution(2, 8, step=2)
    counts = Counter(random_value(kind, draws) for draws in [generator(0)] for _ in range(2000))
    assert sorted(counts) == [2, 4, 6, 8]
    assert all(400 < count < 600 for count in counts.values())


def test_logarithmic_integers_are_uniform_in_their_logarithm():
    kind, draws = IntDistribution(1, 1024, log=True), generator(0)
    small = sum(random_value(kind, draws) < 32 for _ in range(2000))
    assert 900 < small < 1200


def test_integers_mutate_mostly_to_near_values():
    kind, draws = IntDistribution(0, 100), generator(0)
    moves = [abs(near_value(kind, 50, draws) - 50) for _ in range(1000)]
    assert sum(move <= 10 for move in moves) > 600
    assert max(moves) > 40


def test_value_is_fitted_to_a_range_that_moved():
    assert fitted_value(IntDistribution(0, 3), 9) == 3
    assert fitted_value(IntDistribution(0, 9, step=3), 4) == 3
    assert fitted_value(FloatDistribution(2, 3), 1.0) == 2.0
    assert fitted_value(CategoricalDistribution(["a"]), "b") is None
    assert fitted_value(IntDistribution(0, 3), "b") is None
