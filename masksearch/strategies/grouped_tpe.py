"""Optuna's grouped TPE, without the work that it repeats for every group of parameters.

A conditional space falls into groups of parameters that always occur together. Optuna draws
every group of every draw, also those of branches that are then not taken, and for each of them
sorts all trials into good and bad again. Here the trials are sorted once a draw, and a group is
drawn when the space asks for one of its parameters. The model is Optuna's own; only the order in
which random numbers are used differs.

It builds on methods of `TPESampler` that Optuna does not promise to keep; a test compares each
of them with the original.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.samplers import TPESampler
from optuna.samplers._tpe.sampler import (
    _split_trials,
    default_gamma,
    default_gamma_multiobjective,
)
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from masksearch.strategies.branches import Branches
from masksearch.strategies.replay import EndableStudy

Cells = dict[str, float]


class GroupedTpe(TPESampler):
    """Multivariate TPE in groups, for one draw of a study that nobody else writes to.

    Running trials count as bad ones (constant liar), trials that violate a constraint too.

    Args:
        seed: Of this draw.
        startup: Finished trials (scored or stopped) before anything is modelled.
    """

    def __init__(self, *, seed: int, startup: int) -> None:
        super().__init__(
            multivariate=True, constant_liar=True, n_startup_trials=startup, seed=seed
        )
        self.halves: tuple[list[FrozenTrial], list[FrozenTrial]] | None = None
        self.groups: list[dict[str, BaseDistribution]] | None = None
        self.drawn: dict[str, tuple[Any, BaseDistribution]] = {}

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Nothing is drawn before it is asked for."""
        return {}

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """A parameter, drawn together with its group; random during startup."""
        value, kind = self.drawn.get(param_name, (None, None))
        if kind == param_distribution:
            return value
        if self.groups is None:
            finished = study._get_trials(
                deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED), use_cache=True
            )
            enough = len(finished) >= self._n_startup_trials
            self.groups = groups_of(finished, study) if enough else []
        if not self.groups:
            return self._random_sampler.sample_independent(
                study, trial, param_name, param_distribution
            )
        for group in self.groups:
            if group.get(param_name) == param_distribution:
                values = self._sample(study, trial, group)
                self.drawn |= {name: (value, group[name]) for name, value in values.items()}
                return values[param_name]
        return self._sample(study, trial, {param_name: param_distribution})[param_name]

    def split(
        self, study: Study, trial: FrozenTrial
    ) -> tuple[list[FrozenTrial], list[FrozenTrial]]:
        """Good and bad trials."""
        states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
        trials = study._get_trials(deepcopy=False, states=states, use_cache=False)
        trials = [other for other in trials if other.number != trial.number]
        finished = sum(other.state != TrialState.RUNNING for other in trials)
        one = len(study.directions) == 1
        good = (default_gamma if one else default_gamma_multiobjective)(finished)
        return _split_trials(study, trials, good)

    def _sample(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if self.halves is None:
            self.halves = self.split(study, trial)
        good, bad = self.halves
        good_model = self._build_parzen_estimator(study, search_space, good, handle_below=True)
        bad_model = self._build_parzen_estimator(study, search_space, bad, handle_below=False)
        samples = good_model.sample(self._rng.rng, self._n_ei_candidates)
        gains = self._compute_acquisition_func(samples, good_model, bad_model)
        best = TPESampler._compare(samples, gains)
        return {name: kind.to_external_repr(best[name]) for name, kind in search_space.items()}

    def _get_internal_repr(
        self, trials: list[FrozenTrial], search_space: dict[str, BaseDistribution], study: Study
    ) -> dict[str, NDArray[np.float64]]:
        rows = [row_of(trial, study) for trial in trials]
        columns = {
            name: np.array([row.get(name, math.nan) for row in rows], dtype=np.float64)
            for name in search_space
        }
        held = np.ones(len(rows), dtype=bool)
        for column in columns.values():
            held &= ~np.isnan(column)
        return {name: column[held] for name, column in columns.items()}


def row_of(trial: FrozenTrial, study: Study) -> Cells:
    """A trial's parameters as numbers; those of a finished trial are remembered."""
    rows: dict[int, Cells] = study.rows if isinstance(study, EndableStudy) else {}
    found = rows.get(trial.number)
    if found is None:
        params, kinds = trial.params, trial.distributions
        found = {name: float(kinds[name].to_internal_repr(params[name])) for name in params}
        if trial.state.is_finished():
            rows[trial.number] = found
    return found


def groups_of(
    trials: Sequence[FrozenTrial], study: Study | None = None
) -> list[dict[str, BaseDistribution]]:
    """Groups of parameters that always occur together, each sorted by name.

    Args:
        trials: Finished trials.
        study: Remembers what was seen of its trials at earlier draws.

    A parameter with one value is left out; of one whose distribution changes, that of the
    earliest trial counts.
    """
    kept = study.branches if isinstance(study, EndableStudy) else Branches()
    for trial in trials:
        kept.add(trial)
    return kept.groups()
