"""What a sampler is told of a record, above all of a stopped one."""

import json
from dataclasses import replace

import pytest
from optuna.distributions import IntDistribution, distribution_to_json
from optuna.trial import TrialState
from toy import built

from masksearch import masks
from masksearch.contracts import Evaluate, Objective, Record
from masksearch.study.records import Constraint

ONE = (Objective("loss", "min", 10.0),)
TWO = (*ONE, Objective("sparsity", "max", 0.0))
SPARSE, FAST = Constraint("sparsity", ">=", 0.5), Constraint("ms", "<", 4.0)


def windows(trial):
    return masks.window(trial.suggest_int("reach", 0, 9))


def record(number=0, status="done", **known):
    measures = {name: known.pop(name) for name in ("sparsity",) if name in known}
    return Record(
        number, status, Evaluate(masks.window(1)), params={"reach": 1}, values=known,
        measures=measures, step=3,
        strategy_state={
            "distributions": json.dumps({"reach": distribution_to_json(IntDistribution(0, 9))})
        },
    )  # fmt: skip


SAMPLER = {"none": "tpe", "worst": "nsga2", "median": "gp"}  # by what fills a lost value


def told(status, filler, objectives=TWO, constraints=(SPARSE,), others=(), **known):
    """Trial 0 as its sampler sees it."""
    strategy = built(SAMPLER[filler], windows, objectives, constraints=constraints)
    for number, other in enumerate(others, start=1):
        strategy.tell(replace(other, number=number))
    strategy.tell(record(0, status, **known))
    strategy.ask()
    return strategy.study.trials[0]


def test_scored_record_has_its_values_and_its_excess():
    for status in ("done", "reused"):
        outcome = told(status, "none", loss=2.0, sparsity=0.75)
        assert (outcome.state, outcome.values) == (TrialState.COMPLETE, [2.0, 0.75])
        assert outcome.constraints == {"sparsity >= 0.5": -0.25}


@pytest.mark.parametrize("status", ["failed", "done"])
def test_nan_and_failure_are_failures(status):
    assert told(status, "median", loss=float("nan"), sparsity=0.9).state is TrialState.FAIL


def test_trial_that_a_scheduler_stopped_is_pruned_and_gets_no_score():
    for filler in ("none", "worst", "median"):
        outcome = told("stopped", filler, loss=2.0, sparsity=0.75)
        assert (outcome.state, outcome.values, outcome.intermediate_values) == (
            TrialState.PRUNED,
            None,
            {},
        )
        alone = told("stopped", filler, objectives=ONE, loss=2.0, sparsity=0.75)
        assert alone.intermediate_values == {3: 2.0}


def test_violating_mask_is_told_as_its_sampler_can_learn_it():
    pruned = told("stopped", "none", sparsity=0.25)
    assert (pruned.state, pruned.constraints) == (TrialState.PRUNED, {"sparsity >= 0.5": 0.25})
    worst = told("stopped", "worst", sparsity=0.25)
    assert (worst.state, worst.values) == (TrialState.COMPLETE, [10.0, 0.25])
    others = [record(loss=loss, sparsity=0.9) for loss in (1.0, 2.0, 6.0)]
    median = told("stopped", "median", others=others, sparsity=0.25)
    assert (median.state, median.values) == (TrialState.COMPLETE, [2.0, 0.25])


def test_gaussian_processes_get_every_constraint():
    others = [record(loss=1.0, sparsity=0.9, ms=ms) for ms in (3.0, 5.0, 6.0)]
    limits = (SPARSE, FAST)
    assert told("stopped", "worst", constraints=limits, sparsity=0.25).constraints.keys() == {
        "sparsity >= 0.5"
    }
    median = told("stopped", "median", constraints=limits, others=others, sparsity=0.25)
    assert median.constraints == {"sparsity >= 0.5": 0.25, "ms < 4": 1.0}


def test_value_on_a_strict_limit_is_infeasible():
    known = {"loss": 1.0, "sparsity": 0.5}
    assert told("done", "none", constraints=(FAST,), ms=4.0, **known).constraints["ms < 4"] > 0
    assert told("done", "none", **known).constraints["sparsity >= 0.5"] <= 0
    assert not told("done", "none", constraints=(FAST,), **known).constraints


def test_draws_of_others_keep_their_numbers_in_any_order():
    made = []
    for told_first in (1, 2):
        strategy = built("random", windows, TWO)
        strategy.tell(record(told_first, loss=1.0, sparsity=0.5))
        strategy.tell(record(3 - told_first, "running"))
        assert strategy.ask().number == 3
        made.append([trial.params for trial in strategy.study.trials[:3]])
    assert made == [[{}, {"reach": 1}, {"reach": 1}]] * 2


@pytest.mark.parametrize(
    ("name", "state"),
    [("tpe", "PRUNED"), ("qmc", "PRUNED"), ("nsga2", "COMPLETE"), ("nsga3", "COMPLETE"),
     ("gp", "COMPLETE")],
)  # fmt: skip
def test_every_sampler_is_told_of_a_violating_mask(name, state):
    strategy = built(name, windows, TWO, constraints=(SPARSE,))
    strategy.tell(record(0, "stopped", sparsity=0.25))
    strategy.ask()
    assert strategy.study.trials[0].state.name == state
    assert strategy.study.trials[0].constraints == {"sparsity >= 0.5": 0.25}
