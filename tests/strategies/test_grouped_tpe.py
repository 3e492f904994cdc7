"""The grouped TPE is Optuna's TPE: the same model of the same trials."""

from __future__ import annotations

import random

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import TPESampler
from optuna.search_space.group_decomposed import _GroupDecomposedSearchSpace
from optuna.trial import TrialState, create_trial

from masksearch.contracts import Objective
from masksearch.strategies.grouped_tpe import GroupedTpe, groups_of
from masksearch.strategies.replay import ToldStudy
from masksearch.study.store import quiet

KINDS = {
    "family": CategoricalDistribution(["a", "b"]),
    "reach": IntDistribution(0, 20),
    "gap": IntDistribution(1, 64, log=True),
    "rate": FloatDistribution(0.0, 1.0),
    "only": IntDistribution(3, 3),
}
OBJECTIVES = (Objective("loss", "min", 10.0), Objective("sparsity", "max", 0.0))


def filled(count: int, objectives: int, seed: int = 0) -> ToldStudy:
    """A study with every state, and constraints, on a conditional space."""
    draws = random.Random(seed)
    memory = ToldStudy(OBJECTIVES[:objectives], TPESampler(seed=0))
    for _ in range(count):
        params = {"family": draws.choice("ab"), "only": 3}
        if params["family"] == "a":
            params |= {"reach": draws.randint(0, 20), "gap": draws.randint(1, 64)}
        else:
            params |= {"rate": draws.random()}
        state = draws.choice(
            [TrialState.COMPLETE] * 4 + [TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING]
        )
        values = [draws.random() for _ in range(objectives)]
        memory.study.add_trial(
            create_trial(
                state=state,
                values=values if state is TrialState.COMPLETE else None,
                params=params,
                distributions={name: KINDS[name] for name in params},
                constraints={"c": draws.random() - 0.7} if state.is_finished() else {},
            )
        )
    return memory


@pytest.mark.parametrize("objectives", [1, 2])
@pytest.mark.parametrize("names", [("family",), ("gap", "reach"), ("rate",)])
def test_model_is_that_of_optuna(names, objectives):
    study = filled(60, objectives).study
    with quiet():
        theirs = TPESampler(multivariate=True, constant_liar=True, n_startup_trials=5, seed=3)
    ours = GroupedTpe(seed=3, startup=5)
    space = {name: KINDS[name] for name in names}
    trial = study.trials[-1]
    wanted = theirs._sample(study, trial, space)
    assert ours._sample(study, trial, space) == wanted
    again = ours._get_internal_repr(study.trials, space, study)
    for name, column in theirs._get_internal_repr(study.trials, space, study).items():
        assert np.array_equal(again[name], column)


@pytest.mark.parametrize("seed", range(4))
def test_groups_are_those_of_optuna(seed):
    study = filled(25, 2, seed).study
    finished = study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))
    theirs = _GroupDecomposedSearchSpace(True).calculate(study).search_spaces
    wanted = [frozenset(group) - {"only"} for group in theirs]
    assert set(map(frozenset, groups_of(finished))) == set(filter(None, wanted))


def test_group_is_drawn_together_and_only_where_it_is_needed():
    memory = filled(60, 2)
    sampler = GroupedTpe(seed=0, startup=5)
    asked = []
    sample = sampler._sample
    sampler._sample = lambda study, trial, space: (
        asked.append(set(space)) or sample(study, trial, space)
    )
    trial = memory.draw(sampler)
    trial.suggest_int("reach", 0, 20)
    trial.suggest_int("gap", 1, 64, log=True)
    assert asked == [{"reach", "gap"}]


def test_unknown_parameter_and_other_range_are_drawn_alone():
    memory = filled(60, 2)
    trial = memory.draw(GroupedTpe(seed=0, startup=5))
    assert 0 <= trial.suggest_int("new", 0, 4) <= 4
    assert 30 <= trial.suggest_int("reach", 30, 40) <= 40


def test_startup_is_random():
    drawn = []
    for sampler in (GroupedTpe(seed=1, startup=5), optuna.samplers.RandomSampler(seed=1)):
        drawn.append(filled(0, 2).draw(sampler))
        drawn[-1].suggest_int("reach", 0, 20)
        drawn[-1].suggest_float("rate", 0, 1)
    assert drawn[0].params == drawn[1].params
