"""An Optuna study in memory that is filled from told records.

Its trial numbers are draw numbers, so the study that a resumed search builds is the one that an
uninterrupted search has, whatever the order in which the records arrived. What a sampler wrote
into trial or study attributes while it drew (a generation, a sequence's position, the point that
it had in mind) travels in the proposal's memo and is written back from there.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import optuna
from optuna.distributions import distribution_to_json, json_to_distribution
from optuna.samplers import BaseSampler
from optuna.storages import InMemoryStorage
from optuna.trial import Trial, TrialState, create_trial

from masksearch.contracts import Objective, Record
from masksearch.masks.measure import MEASURES
from masksearch.strategies.branches import Branches
from masksearch.study.constraints import Constraint
from masksearch.study.store import STATES, directions, quiet

STRICT = 1e-12  # excess of a value that sits on the limit of a strict constraint
NAME = "told"

Filler = Literal["none", "worst", "median"]


class EndableStudy(optuna.Study):
    """A study that samplers of a finite space (grid, brute force) may declare exhausted."""

    over = False

    def __init__(self, storage: InMemoryStorage, sampler: BaseSampler) -> None:
        super().__init__(NAME, storage, sampler=sampler)
        self.rows: dict[int, dict[str, float]] = {}  # what a sampler remembers of finished trials
        self.branches = Branches()  # and of the sets of parameters that they had

    def stop(self) -> None:
        """Notes that there is nothing left to draw."""
        self.over = True


@dataclass(frozen=True)
class Outcome:
    """What the study in memory is told of a finished record.

    Args:
        state: Of the trial.
        values: One for each objective; None unless the state is COMPLETE.
        excess: Constraint -> by how much it is violated (feasible at 0 and below).
        partial: Step -> value of the only objective, for a trial that a scheduler stopped.
    """

    state: TrialState
    values: Sequence[float] | None = None
    excess: Mapping[str, float] = field(default_factory=dict)
    partial: Mapping[int, float] = field(default_factory=dict)


class ToldStudy:
    """A study in memory; trial number = draw number.

    Args:
        objectives: Become the study's directions, in order.
        sampler: The study's sampler until another is asked for.
    """

    def __init__(self, objectives: Sequence[Objective], sampler: BaseSampler) -> None:
        self.storage = InMemoryStorage()
        with quiet():
            self.id = self.storage.create_new_study(directions(objectives), NAME)
            self.study = EndableStudy(self.storage, sampler)
        self.count = 0  # trials so far
        self.finished: set[int] = set()

    def draw(self, sampler: BaseSampler) -> Trial:
        """A new trial, number `count`."""
        self.study.sampler = sampler
        with quiet():
            trial = self.study.ask()
        self.count += 1
        return trial

    def memo(self, trial: Trial, before: Mapping[str, Any]) -> dict[str, str]:
        """What a copy needs to know of a draw beside its parameters.

        Args:
            trial: After the space has been drawn.
            before: The study's attributes before the draw.

        Returns:
            `distributions`, and `trial_attrs` and `study_attrs` where the sampler wrote any;
            all JSON.
        """
        kinds = {name: distribution_to_json(kind) for name, kind in trial.distributions.items()}
        found = {"distributions": json.dumps(kinds)}
        after = self.attributes()
        changed = {key: after[key] for key in after if before.get(key) != after[key]}
        own = self.storage.get_trial(self.trial_id(trial.number)).system_attrs
        for name, attributes in (("trial_attrs", own), ("study_attrs", changed)):
            if attributes:
                found[name] = json.dumps(attributes)
        return found

    def attributes(self) -> dict[str, Any]:
        """The study's attributes as they are now (a later write leaves this dict alone)."""
        return self.storage.get_study_system_attrs(self.id)

    def trial_id(self, number: int) -> int:
        """The storage's name for a trial."""
        return self.storage.get_trial_id_from_study_id_trial_number(self.id, number)

    def place(self, record: Record) -> None:
        """Writes a draw that another process made, as a running trial with its memo.

        Draws before it that are not known yet become running trials without parameters.
        """
        while self.count <= record.number:
            self.storage.create_new_trial(self.id)
            self.count += 1
        number = self.trial_id(record.number)
        for name, text in json.loads(record.memo.get("distributions", "{}")).items():
            if name not in record.params:
                continue
            kind = json_to_distribution(text)
            value = kind.to_internal_repr(record.params[name])
            self.storage.set_trial_param(number, name, value, kind)
        for key, value in json.loads(record.memo.get("trial_attrs", "{}")).items():
            self.storage.set_trial_system_attr(number, key, value)
        for key, value in json.loads(record.memo.get("study_attrs", "{}")).items():
            self.storage.set_study_system_attr(self.id, key, value)

    def finish(self, number: int, outcome: Outcome) -> None:
        """Ends a running trial; a trial that has ended stays as it is."""
        if number in self.finished:
            return
        self.finished.add(number)
        key = self.trial_id(number)
        if outcome.excess:
            feasibility = create_trial(
                state=TrialState.RUNNING, constraints=dict(outcome.excess)
            ).system_attrs
            for name, value in feasibility.items():
                self.storage.set_trial_system_attr(key, name, value)
        for step, value in outcome.partial.items():
            self.storage.set_trial_intermediate_value(key, step, value)
        values = None if outcome.values is None else list(outcome.values)
        self.study.tell(number, values=values, state=outcome.state)


def excesses(record: Record, constraints: Sequence[Constraint]) -> dict[str, float]:
    """By how much a record violates each constraint; feasible at 0 and below.

    A constraint on a value that the record does not hold is left out.
    """
    found = {}
    for constraint in constraints:
        try:
            value = record.value(constraint.name)
        except KeyError:
            continue
        if not math.isnan(value):
            excess = constraint.excess(value)
            found[str(constraint)] = (
                min(excess, 0.0) if constraint.holds(value) else max(excess, STRICT)
            )
    return found


def violation(record: Record, constraints: Sequence[Constraint]) -> float:
    """Sum of all excesses; 0 = every known constraint is kept."""
    return sum(max(excess, 0.0) for excess in excesses(record, constraints).values())


class Verdicts:
    """What the study in memory is told of a record.

    Scored records are COMPLETE with their values, failed ones FAIL. A stopped record has no
    full-fidelity score, and none is made up for it where that score would be learnt from:

    - A feasible one (a scheduler stopped it) is PRUNED; with one objective its last report goes
      along, at its step. TPE ranks it behind every scored trial; the others pass it over.
    - One that violates a constraint is PRUNED with its excess where `filler` is `"none"` (TPE:
      infeasible, ranked by excess).
    - With `"worst"` it is COMPLETE with its excess: samplers that see nothing but COMPLETE
      trials, and that compare infeasible ones by their excess only (NSGA-II, NSGA-III). Measures
      among the objectives are exact, every other objective has its `worst`.
    - With `"median"` it is COMPLETE with its excess, and an objective that was not measured has
      the median of those that were: a model of the objective through all COMPLETE trials
      (a Gaussian process) then learns nothing of it, the constraint's model everything.

    Args:
        objectives: In the study's order.
        constraints: Of the search.
        filler: What stands for objectives that were not measured.
    """

    def __init__(
        self, objectives: Sequence[Objective], constraints: Sequence[Constraint], filler: Filler
    ) -> None:
        self.objectives, self.constraints = tuple(objectives), tuple(constraints)
        self.filler: Filler = filler

    def outcome(self, record: Record, told: Mapping[int, Record]) -> Outcome:
        """The outcome of a finished record, given all that was told."""
        excess = excesses(record, self.constraints)
        state = STATES[record.status]
        if state is TrialState.COMPLETE:
            values = [record.value(objective.name) for objective in self.objectives]
            if any(math.isnan(value) for value in values):
                return Outcome(TrialState.FAIL)
            return Outcome(state, values, self.completed(excess, told))
        if state is not TrialState.PRUNED:
            return Outcome(state)
        if self.filler != "none" and any(value > 0 for value in excess.values()):
            values = [self.filled(record, objective, told) for objective in self.objectives]
            return Outcome(TrialState.COMPLETE, values, self.completed(excess, told))
        partial = {}
        if len(self.objectives) == 1 and self.objectives[0].name in record.values:
            partial[record.step] = record.values[self.objectives[0].name]
        return Outcome(state, None, excess, partial)

    def filled(self, record: Record, objective: Objective, told: Mapping[int, Record]) -> float:
        """An objective of a mask that was not trained to the end."""
        if objective.name in MEASURES and objective.name in record.measures:
            return record.measures[objective.name]
        if self.filler == "worst":
            return objective.worst
        known = [other.value(objective.name) for other in told.values() if other.scored]
        return statistics.median([v for v in known if not math.isnan(v)] or [objective.worst])

    def completed(self, excess: dict[str, float], told: Mapping[int, Record]) -> dict[str, float]:
        """With `"median"`, every constraint: a Gaussian process needs them all."""
        if self.filler == "median":
            for constraint in self.constraints:
                if str(constraint) not in excess:
                    known = [excesses(other, [constraint]) for other in told.values()]
                    found = [value for each in known for value in each.values()]
                    excess[str(constraint)] = statistics.median(found or [0.0])
        return excess
