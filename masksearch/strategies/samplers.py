"""A search space, and Optuna samplers behind ask and tell that draw from it.

A space is the user's own function: its mistakes are told with the file and the line, and a
parameter has to keep its kind and its range from draw to draw.

The strategy keeps a study in memory, filled from the records that it is told, and gives every draw
a sampler seeded by (seed, draw number):

    records told --frozen_trial--> study in memory --sampler, space--> strategy_state of a Proposal

So its state is a function of its arguments and of the told records, and a search resumed from a
database goes on as if it had never stopped. Trial numbers of the study in memory are draw
numbers, whatever the order in which the records arrived. What a sampler writes into trial or
study attributes while it draws (a generation, a sequence's position) travels in the proposal's
strategy_state, and is written back from there.
"""

from __future__ import annotations

import functools
import json
import math
import statistics
import traceback
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)
from optuna.samplers import BaseSampler
from optuna.storages import InMemoryStorage
from optuna.trial import BaseTrial, FrozenTrial, Trial, TrialState, create_trial
from torch import Tensor

from masksearch.contracts import (
    Evaluate,
    Job,
    Objective,
    Proposal,
    Record,
    Refused,
    Shape,
    mixed_seed,
)
from masksearch.errors import HeadCountError, LayerCountError, MaskSearchError, SpaceError
from masksearch.masks.core import Mask
from masksearch.study.records import STATES, Constraint, drawn_distributions
from masksearch.study.store import directions, quiet
from masksearch.user_code import BUDGET, describe_error

Space = Callable[[BaseTrial], Mask]
BUGS = (AttributeError, ImportError, NameError, TypeError)  # whatever is drawn


def try_space(space: Space, shape: Shape, budget: float | None = None) -> None:
    """Draws from a space once, so that a mistake is found before anything is trained.

    Args:
        space: The user's function.
        shape: What its masks must fit.
        budget: What the mask may cost; None = the search has no budget.

    Raises:
        SpaceError: If it is broken Python, or returns no mask; gives the file and the line.
        LayerCountError, HeadCountError: If the mask is one for another model; names the size that
            it fits.
    """
    with quiet():
        trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
    try:
        mask = space(CheckedTrial(trial, lambda *_: None, budget, shape))  # type: ignore[arg-type]
    except BUGS as error:
        raise SpaceError(f"the space raised {describe_error(error)}") from error
    except SpaceError:
        raise
    except Exception:  # of this draw, maybe: the record of such a trial says what it was
        return
    if not isinstance(mask, Mask):
        raise SpaceError(no_mask(mask))
    try:
        mask.counts(shape.layers, shape.heads)
    except (LayerCountError, HeadCountError) as error:
        layers, heads = mask.layers or shape.layers, mask.heads or shape.heads
        raise type(error)(
            f"{error}: write the space for the model that judges, or where that is trained from "
            f"scratch give it the size of the space (--size {layers}x{32 * heads}x{heads})"
        ) from error


def draw_job(
    space: Space, trial: Trial, parameters: Parameters, draw: int
) -> tuple[Job, dict[str, Any]]:
    """A space's job for a trial; a failure becomes a job that is refused, with its reason.

    Args:
        space: The user's function.
        trial: Optuna's.
        parameters: Of the draws so far.
        draw: Number of this one; its budget is the next in turn.

    Returns:
        The job, and the parameters of the proposal: the trial's, and the `budget` where there is
        one.

    Raises:
        SpaceError: If a parameter's kind or range is not what it was before, or one takes the
            name of the budget.
    """
    budgets = parameters.budgets
    budget = budgets[draw % len(budgets)] if budgets else None
    check = functools.partial(parameters.check, draw)
    job: Job
    try:
        mask = space(CheckedTrial(trial, check, budget, parameters.shape))  # type: ignore[arg-type]
        job = Evaluate(mask) if isinstance(mask, Mask) else Refused(no_mask(mask))
    except SpaceError:
        raise
    except MaskSearchError as error:
        job = Refused(f"{type(error).__name__}: {error}")
    except Exception as error:  # the user's code; the reason becomes a failed record
        trace = traceback.format_exc(limit=-4)
        job = Refused(f"{trace}\nthe space raised {describe_error(error)}")
    return job, {**trial.params, **({} if budget is None else {BUDGET: budget})}


def no_mask(answer: object) -> str:
    """Why a space's answer is refused."""
    way = "`return masks.window(reach)`"
    if isinstance(answer, Tensor):
        way = "`return masks.table(tensor)`, of a bool tensor [n, n] or [layers, heads, n, n]"
    return f"the space returned {type(answer).__name__}, not a Mask; end it with for example {way}"


class Parameters:
    """The kind and range that each parameter of a space had when it was first drawn.

    A sampler learns from earlier draws only what is said of the same choices.

    Args:
        budgets: What the masks of the draws may cost, in turn.
        shape: What the space is told of the model and its data.
    """

    def __init__(self, budgets: Sequence[float] = (), shape: Shape | None = None) -> None:
        self.budgets, self.shape = budgets, shape
        self.first: dict[str, tuple[int, BaseDistribution]] = {}

    def learn(self, record: Record) -> None:
        """Takes a draw as it was told."""
        for name, kind in drawn_distributions(record).items():
            self.first.setdefault(name, (record.number, kind))

    def check(self, draw: int, name: str, kind: BaseDistribution) -> None:
        """Takes a parameter that is being drawn.

        Raises:
            SpaceError: If it was of another kind or range before.
        """
        first, prior = self.first.setdefault(name, (draw, kind))
        if prior != kind:
            raise SpaceError(
                f"parameter {name!r} of the space has changed: draw {first} asked for "
                f"{describe_kind(prior)}, draw {draw} for {describe_kind(kind)}; a parameter has "
                "the same choices whenever it is asked for: give each case a name of its own, "
                "or draw from the widest range always"
            )


def describe_kind(kind: BaseDistribution) -> str:
    """A parameter's kind and range as a space writes them.

    >>> describe_kind(optuna.distributions.IntDistribution(1, 8, log=True))
    'suggest_int(1, 8, log=True)'
    """
    if isinstance(kind, CategoricalDistribution):
        return f"suggest_categorical({list(kind.choices)})"
    assert isinstance(kind, IntDistribution | FloatDistribution)
    step = "" if kind.step in (None, 1) else f", step={kind.step}"
    name = "int" if isinstance(kind, IntDistribution) else "float"
    return f"suggest_{name}({kind.low}, {kind.high}{step}{', log=True' if kind.log else ''})"


def storable_value(name: str, value: Any) -> Any:
    """A value as a study gives it back: NumPy's numbers as Python's, lists and tuples as JSON.

    Raises:
        SpaceError: If no study can hold it.

    >>> storable_value("near", (0, 1)), storable_value("near", [0, 1]), storable_value("far", 2)
    ('[0, 1]', '[0, 1]', 2)
    """
    try:
        text = json.dumps(value, default=lambda other: other.tolist())  # of NumPy and torch
    except (TypeError, ValueError, AttributeError):
        raise SpaceError(
            f"parameter {name!r} of the space: no study can hold {type(value).__name__} as a "
            "value; choose among numbers, texts and lists of them, such as the names of a dict: "
            f"CHOICES[trial.suggest_categorical({name!r}, list(CHOICES))]"
        ) from None
    plain = json.loads(text)
    return text if isinstance(plain, list | dict) else plain


class CheckedTrial:
    """A trial whose parameters are checked before it draws them; otherwise the trial itself.

    Args:
        trial: Optuna's.
        check: Called with each parameter's name, kind and range.
        budget: What the mask may cost (`budget_of`); None = the search has no budget.
        shape: Of the model and its data (`shape_of`).
    """

    def __init__(
        self,
        trial: BaseTrial,
        check: Callable[[str, BaseDistribution], None],
        budget: float | None = None,
        shape: Shape | None = None,
    ) -> None:
        self.trial, self.told, self.budget, self.shape = trial, check, budget, shape

    def check(self, name: str, kind: BaseDistribution) -> None:
        """Takes a parameter before it is drawn.

        Raises:
            SpaceError: If it has the name of the budget, or `check` refuses it.
        """
        if name == BUDGET and self.budget is not None:
            raise SpaceError(f"{name!r} is what a draw may cost: give that parameter another name")
        self.told(name, kind)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.trial, name)

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of the choices, as it was given; the study holds its `storable_value`."""
        stored = [storable_value(name, choice) for choice in choices]
        for at, value in enumerate(stored):
            if (first := stored.index(value)) < at:
                raise SpaceError(
                    f"parameter {name!r} of the space: its choices {choices[first]!r} and "
                    f"{choices[at]!r} are equal, so that no study tells them apart; leave one "
                    "out, or name them by texts"
                )
        kind = CategoricalDistribution(stored)
        self.check(name, kind)
        return choices[int(kind.to_internal_repr(self.trial.suggest_categorical(name, stored)))]

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """A number in [low, high]."""
        self.check(name, FloatDistribution(low, high, log=bool(log), step=step))
        return self.trial.suggest_float(name, low, high, step=step, log=bool(log))

    def suggest_int(self, name: str, low: int, high: int, step: int = 1, log: bool = False) -> int:
        """A whole number in low .. high."""
        self.check(name, IntDistribution(low, high, log=bool(log), step=step))
        return self.trial.suggest_int(name, low, high, step=step, log=bool(log))


BaseTrial.register(CheckedTrial)


SamplerFactory = Callable[[int, int], BaseSampler]  # seed of the draw, seed of the search
Filler = Literal["none", "worst", "median"]
STARTUP = 6  # random draws before TPE models anything; budgets here are tens of trials
POPULATION = 20  # of the genetic algorithms: a budget of 200 is then ten generations
STRICT = 1e-12  # excess of a value that sits on the limit of a strict constraint


def _qmc_sampler(draw_seed: int, search_seed: int) -> BaseSampler:
    """A scrambled Sobol sequence: random search that fills a flat space evenly.

    The search's seed chooses the sequence; parameters that the first finished trial did not
    have are drawn at random, with the draw's seed.
    """
    return optuna.samplers.QMCSampler(
        scramble=True,
        seed=search_seed,
        independent_sampler=optuna.samplers.RandomSampler(seed=draw_seed),
        warn_independent_sampling=False,
    )


def _tpe_sampler(draw_seed: int, search_seed: int) -> BaseSampler:
    """Multivariate TPE; running trials count as bad ones (constant liar).

    Parameters that always occur together form a group and are modelled jointly, so conditional
    spaces are modelled too.
    """
    return optuna.samplers.TPESampler(
        multivariate=True, group=True, constant_liar=True, n_startup_trials=STARTUP, seed=draw_seed
    )


SAMPLERS: dict[str, SamplerFactory] = {
    "random": lambda draw, _: optuna.samplers.RandomSampler(seed=draw),  # the control arm
    "tpe": _tpe_sampler,
    # genetic: for flat spaces and hundreds of trials, of a few objectives or (III) many
    "nsga2": lambda draw, _: optuna.samplers.NSGAIISampler(population_size=POPULATION, seed=draw),
    "nsga3": lambda draw, _: optuna.samplers.NSGAIIISampler(population_size=POPULATION, seed=draw),
    # Gaussian processes: few trials, up to about 20 numbers that all trials have; a second a draw
    "gp": lambda draw, _: optuna.samplers.GPSampler(seed=draw, warn_independent_sampling=False),
    "qmc": _qmc_sampler,
}


class OptunaStrategy:
    """Draws masks from a space with an Optuna sampler.

    Args:
        space: A pure function of an Optuna trial that returns a mask.
        objectives: In the study's order.
        sampler: Builds a sampler from the seed of the draw and the seed of the search (one of
            `SAMPLERS`), or one sampler that is used as it is (then only its own seeding makes
            it reproducible).
        seed: Seed of all draws.
        name: Origin of the proposals.
        constraints: What the search's masks must keep; the sampler learns which do, from early
            stopped masks too (`TrialWriter` says how).
        budgets: What the masks of the draws may cost, in turn; samplers do not model it.
        shape: What the space is told of the model and its data (`shape_of`).
    """

    learns_from_starts = True

    def __init__(
        self,
        space: Space,
        objectives: Sequence[Objective],
        *,
        sampler: SamplerFactory | BaseSampler,
        seed: int,
        name: str,
        constraints: Sequence[Constraint] = (),
        budgets: Sequence[float] = (),
        shape: Shape | None = None,
    ) -> None:
        self.space, self.objectives = space, tuple(objectives)
        self.sampler, self.name = sampler, name
        stream = zlib.crc32(name.encode())  # strategies of one seed draw apart
        self.seeds = (seed, stream)
        first = self._sampler_of(0)
        genetic = optuna.samplers.NSGAIISampler, optuna.samplers.NSGAIIISampler
        self.genetic = isinstance(first, genetic)
        filler: Filler = "worst" if self.genetic else "none"
        if isinstance(first, optuna.samplers.GPSampler):
            filler = "median"
        self.writer = TrialWriter(objectives, constraints, filler)
        self.records: dict[int, Record] = {}  # draw -> the latest that is known of it
        self.changed: set[int] = set()  # draws that the study in memory holds otherwise
        self.next = 0  # the next draw
        self.parameters = Parameters(budgets, shape)
        self.study = StudyInMemory(objectives, first)
        self.parameter_sets: set[frozenset[str]] = set()

    def ask(self) -> Proposal | Literal["wait", "done"]:
        """The next draw; a space that fails becomes a `Refused` job with its traceback.

        "done" where the sampler says that its space is exhausted (grid, brute force).

        Raises:
            SpaceError: If a parameter's kind or range is not what it was before.
        """
        draw, study = self.next, self._replayed_study()
        if study.exhausted:
            return "done"
        study.sampler = self._sampler_of(draw)
        before = study.attributes()
        with quiet():  # a GP says so where it falls back to its default kernel
            trial = study.ask()
            job, params = draw_job(self.space, trial, self.parameters, draw)
        study.drawn.add(draw)
        strategy_state = study.strategy_state(trial, before)
        proposal = Proposal(draw, job, params, self.name, strategy_state=strategy_state)
        self.tell(
            Record(draw, "running", job, params=proposal.params, strategy_state=strategy_state)
        )
        return proposal

    def tell(self, record: Record) -> None:
        """Takes a result, or (status "running") learns that a draw is out."""
        earlier = self.records.get(record.number)
        if earlier is not None:
            if record.status == "running":
                return
            record = replace(record, strategy_state=earlier.strategy_state)
        elif self.genetic:
            self._warn_of_branches(record)
        self.records[record.number] = record
        self.parameters.learn(record)
        self.next = max(self.next, record.number + 1)
        self.changed.add(record.number)

    def _sampler_of(self, draw: int) -> BaseSampler:
        """The sampler of a draw, with seeds of its own."""
        if isinstance(self.sampler, BaseSampler):
            return self.sampler
        with quiet():  # group and multivariate are experimental
            return self.sampler(
                mixed_seed(*self.seeds, draw) % 2**32, mixed_seed(*self.seeds) % 2**32
            )

    def _replayed_study(self) -> StudyInMemory:
        """The study in memory, brought to what was told, in the order of the draws."""
        if self.writer.filler == "median":
            # fillers move with every score: the study is made anew (a GP is slower by far)
            self.study = StudyInMemory(self.objectives, self.study.sampler)
            self.changed = set(self.records)
        for draw in sorted(self.changed):
            record = self.records[draw]
            trial = self.writer.frozen_trial(record, self.records)
            self.study.write(draw, trial, _state_entry(record, "study_attrs"))
        self.changed.clear()
        return self.study

    def _warn_of_branches(self, drawn: Record) -> None:
        """Warns once if draws differ in their parameters, because crossover sees only those
        that all share: the others are redrawn at random."""
        names = frozenset(drawn.params)
        if isinstance(drawn.job, Refused) or names in self.parameter_sets:
            return
        self.parameter_sets.add(names)
        if len(self.parameter_sets) == 2:
            warnings.warn(
                f"strategy {self.name!r} on a conditional space is little more than random "
                "search: it crosses only the parameters that every mask has; use 'tpe'",
                stacklevel=3,
            )


class StudyInMemory(optuna.Study):
    """The study that the samplers see: trial number = draw number.

    Args:
        objectives: Become the study's directions, in order.
        sampler: The study's sampler until another one is set.
    """

    def __init__(self, objectives: Sequence[Objective], sampler: BaseSampler) -> None:
        self.storage = InMemoryStorage()  # its trials' ids are their numbers
        with quiet():
            self.id = self.storage.create_new_study(directions(objectives), "told")
            super().__init__("told", self.storage, sampler=sampler)
        self.drawn: set[int] = set()  # trials that hold their parameters
        self.exhausted = False

    def stop(self) -> None:
        """Notes that there is nothing left to draw; samplers of a finite space call it."""
        self.exhausted = True

    def write(self, number: int, trial: FrozenTrial, attributes: Mapping[str, Any]) -> None:
        """Makes trial `number` what `trial` is; one that has ended stays as it was.

        Draws before it that are not known yet become running trials without parameters.

        Args:
            number: Of the draw.
            trial: What the study is to hold.
            attributes: Of the study, written by the sampler when it made this draw.
        """
        while self.storage.get_n_trials(self.id) <= number:
            self.storage.create_new_trial(self.id)
        if number not in self.drawn:
            self.drawn.add(number)
            for name, kind in trial.distributions.items():
                value = kind.to_internal_repr(trial.params[name])
                self.storage.set_trial_param(number, name, value, kind)
            for key, attribute in attributes.items():
                self.storage.set_study_system_attr(self.id, key, attribute)
        if self.storage.get_trial(number).state.is_finished():
            return
        for key, attribute in trial.system_attrs.items():
            self.storage.set_trial_system_attr(number, key, attribute)
        for step, reported in trial.intermediate_values.items():
            self.storage.set_trial_intermediate_value(number, step, reported)
        if trial.state.is_finished():  # samplers of a finite space may end the search here
            self.tell(number, values=trial.values, state=trial.state)

    def attributes(self) -> dict[str, Any]:
        """The study's attributes as they are now (a later write leaves this dict alone)."""
        return self.storage.get_study_system_attrs(self.id)

    def strategy_state(self, trial: Trial, before: Mapping[str, Any]) -> dict[str, str]:
        """The strategy_state that a replay needs of a draw beside its parameters.

        Args:
            trial: After the space has been drawn.
            before: The study's attributes before the draw.

        Returns:
            `distributions`, and `trial_attrs` and `study_attrs` where the sampler wrote any;
            all JSON.
        """
        after = self.attributes()
        changed = {key: after[key] for key in after if before.get(key) != after[key]}
        of_trial = self.storage.get_trial(trial.number).system_attrs
        attributes = {"trial_attrs": of_trial, "study_attrs": changed}
        texts = {name: json.dumps(each) for name, each in attributes.items() if each}
        return drawn_kinds(trial) | texts


def drawn_kinds(trial: BaseTrial) -> dict[str, str]:
    """The entry of a strategy_state that says what each parameter was drawn from, as JSON."""
    kinds = {name: distribution_to_json(kind) for name, kind in trial.distributions.items()}
    return {"distributions": json.dumps(kinds)}


def _state_entry(record: Record, name: str) -> dict[str, Any]:
    """The entry of a record's strategy_state under that name; empty where there is none."""
    return dict(json.loads(record.strategy_state.get(name, "{}")))


class TrialWriter:
    """Writes records as the trials that a sampler sees.

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

    def frozen_trial(self, record: Record, records: Mapping[int, Record]) -> FrozenTrial:
        """A record as a trial, given all that was told."""
        state = STATES[record.status]
        values: list[float] | None = None
        excess: dict[str, float] = {}
        partial: dict[int, float] = {}
        if state is TrialState.COMPLETE:
            values = [record.value(objective.name) for objective in self.objectives]
            if any(math.isnan(value) for value in values):
                state, values = TrialState.FAIL, None
            else:
                excess = self._complete_excesses(excesses(record, self.constraints), records)
        elif state is TrialState.PRUNED:
            excess = excesses(record, self.constraints)
            if self.filler != "none" and any(value > 0 for value in excess.values()):
                state, excess = TrialState.COMPLETE, self._complete_excesses(excess, records)
                values = [self._fill_value(record, each, records) for each in self.objectives]
            elif len(self.objectives) == 1 and self.objectives[0].name in record.values:
                partial[record.step] = record.values[self.objectives[0].name]
        kinds = {
            name: kind
            for name, kind in drawn_distributions(record).items()
            if name in record.params
        }
        return create_trial(
            state=state,
            values=values,
            params={name: record.params[name] for name in kinds},
            distributions=kinds,
            intermediate_values=partial,
            system_attrs=_state_entry(record, "trial_attrs"),
            constraints=excess or None,
        )

    def _fill_value(
        self, record: Record, objective: Objective, records: Mapping[int, Record]
    ) -> float:
        """An objective of a mask that was not trained to the end."""
        if objective.name in record.measures:
            return record.measures[objective.name]
        if self.filler == "worst":
            return objective.worst
        values = [other.value(objective.name) for other in records.values() if other.scored]
        return statistics.median([v for v in values if not math.isnan(v)] or [objective.worst])

    def _complete_excesses(
        self, excess: dict[str, float], records: Mapping[int, Record]
    ) -> dict[str, float]:
        """With `"median"`, every constraint: a Gaussian process needs them all."""
        if self.filler == "median":
            for constraint in self.constraints:
                if str(constraint) not in excess:
                    others = [excesses(other, [constraint]) for other in records.values()]
                    values = [value for each in others for value in each.values()]
                    excess[str(constraint)] = statistics.median(values or [0.0])
        return excess


def excesses(record: Record, constraints: Sequence[Constraint]) -> dict[str, float]:
    """By how much a record violates each constraint; feasible at 0 and below.

    A constraint on a value that the record does not hold is left out.
    """
    violations = {}
    for constraint in constraints:
        try:
            value = record.value(constraint.name)
        except KeyError:
            continue
        if not math.isnan(value):
            excess = constraint.excess(value)
            violations[str(constraint)] = (
                min(excess, 0.0) if constraint.holds(value) else max(excess, STRICT)
            )
    return violations
