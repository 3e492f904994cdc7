"""Aging evolution over define-by-run spaces, for any number of objectives.

masksearch search my_space.py:space --strategy experiments/rivals/evolution.py:evolution
ms.search(space, judge, strategy=as_strategy("evolution"), strategy_options={"population": 20}, ..)

A child replays its parent's parameters through the space with one of them changed, so the
parameters of whichever branch the space takes are inherited, and those that a changed branch
brings along are drawn at random: conditional spaces evolve.

Reference:
    Regularised (aging) evolution: Real et al., "Regularized Evolution for Image Classifier
    Architecture Search", 2019, algorithm 1. Ranks and crowding: Deb et al., NSGA-II, 2002.
"""

from __future__ import annotations

import bisect
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import optuna
import torch
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import RandomSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from masksearch.analysis.pareto import crowding, gains_of, nondominated_ranks
from masksearch.contracts import (
    Evaluate,
    Evaluator,
    Objective,
    Proposal,
    Record,
    Shape,
    generator,
)
from masksearch.strategies.samplers import Parameters, Space, draw_job, drawn_kinds, excesses
from masksearch.study.records import Constraint, drawn_distributions
from masksearch.study.store import quiet

FAR = 0.2  # share of mutations of an integer that go anywhere
WIDTH = 0.1  # standard deviation of a float's mutation, as a share of its range
REACH = 0.3  # the most that a float's mutation moves it, as a share of its range
NEAR = 0.05  # mean distance of a near integer beyond the next one, as a share of its range


def random_value(kind: BaseDistribution, draws: torch.Generator) -> Any:
    """A uniform value of a parameter (uniform in its logarithm where it is logarithmic)."""
    if isinstance(kind, CategoricalDistribution):
        return kind.choices[draw_index(len(kind.choices), draws)]
    assert isinstance(kind, IntDistribution | FloatDistribution)
    # values that are evenly spaced, and equally likely
    if not kind.log if isinstance(kind, IntDistribution) else kind.step is not None:
        return at_index(kind, draw_index(steps_of(kind), draws))
    return at_share(kind, uniform(draws))


def near_value(kind: BaseDistribution, value: Any, draws: torch.Generator) -> Any:
    """Another value of a parameter: near for numbers, any other for categories.

    Integers move to a near neighbour, or with probability `FAR` anywhere; floats by a normal
    step of at most `REACH` of their range. A parameter with one value keeps it.
    """
    if kind.single():
        return value
    if isinstance(kind, CategoricalDistribution):
        others = [choice for choice in kind.choices if choice != value]
        return others[draw_index(len(others), draws)]
    if isinstance(kind, FloatDistribution) and kind.step is None:
        move = max(-REACH, min(REACH, WIDTH * normal(draws)))
        share = share_of(kind, value) + move
        share = -share if share < 0 else 2 - share if share > 1 else share
        return at_share(kind, share)
    assert isinstance(kind, IntDistribution | FloatDistribution)
    count, index = steps_of(kind), index_of(kind, value)
    if uniform(draws) < FAR:
        other = draw_index(count - 1, draws)
        return at_index(kind, other + (other >= index))
    scale = NEAR * (count if not getattr(kind, "log", False) else index + 1)
    distance = 1 + int(-scale * math.log(1 - uniform(draws)))
    sign = 1 if uniform(draws) < 0.5 else -1
    for move in (sign * distance, -sign * distance, sign, -sign):
        if 0 <= index + move < count:
            return at_index(kind, index + move)
    raise AssertionError("an integer with several values has a neighbour")


def fitted_value(kind: BaseDistribution, value: Any) -> Any:
    """The nearest value that a parameter can have; None where there is none.

    Ranges may depend on parameters that were drawn before.
    """
    if isinstance(kind, CategoricalDistribution):
        return value if value in kind.choices else None
    assert isinstance(kind, IntDistribution | FloatDistribution)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    clipped = min(max(value, kind.low), kind.high)
    if isinstance(kind, FloatDistribution) and kind.step is None:
        return float(clipped)
    return at_index(kind, min(index_of(kind, clipped), steps_of(kind) - 1))


class Replay(RandomSampler):
    """Answers with a parent's values, one of them changed; random where the parent has none.

    Args:
        values: The parent's parameters.
        mutated: Name of the parameter to change; empty = none.
        draws: Where randomness comes from.
    """

    def __init__(self, values: Mapping[str, Any], mutated: str, draws: torch.Generator) -> None:
        super().__init__(seed=0)  # which draws nothing: what it would draw is drawn here
        self.values, self.mutated, self.draws = dict(values), mutated, draws

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """The parent's value, changed, fitted to the range, or a random one."""
        if param_name not in self.values:
            return random_value(param_distribution, self.draws)
        fitted = fitted_value(param_distribution, self.values[param_name])
        if fitted is None:
            return random_value(param_distribution, self.draws)
        if param_name == self.mutated:
            return near_value(param_distribution, fitted, self.draws)
        return fitted


def steps_of(kind: IntDistribution | FloatDistribution) -> int:
    """How many values an integer, or a float with a step, can have."""
    return round((kind.high - kind.low) / (kind.step or 1)) + 1


def index_of(kind: IntDistribution | FloatDistribution, value: float) -> int:
    """Which of them a value is."""
    return round((value - kind.low) / (kind.step or 1))


def at_index(kind: IntDistribution | FloatDistribution, index: int) -> Any:
    """The value of that index."""
    value = kind.low + index * (kind.step or 1)
    return int(value) if isinstance(kind, IntDistribution) else min(float(value), kind.high)


def share_of(kind: FloatDistribution, value: float) -> float:
    """Where a value lies in its range, in [0, 1]."""
    if kind.log:
        return math.log(value / kind.low) / math.log(kind.high / kind.low)
    return (value - kind.low) / (kind.high - kind.low)


def at_share(kind: IntDistribution | FloatDistribution, share: float) -> Any:
    """The value at a place in [0, 1] of a range without a grid."""
    if isinstance(kind, IntDistribution):  # logarithmic: every integer owns its rounding interval
        low, high = math.log(kind.low - 0.5), math.log(kind.high + 0.5)
        whole = round(math.exp(low + share * (high - low)))
        return min(max(whole, kind.low), kind.high)
    if kind.log:
        value = kind.low * (kind.high / kind.low) ** share
    else:
        value = kind.low + share * (kind.high - kind.low)
    return min(max(value, kind.low), kind.high)


def uniform(draws: torch.Generator) -> float:
    """In [0, 1)."""
    return float(torch.rand((), generator=draws, dtype=torch.float64))


def normal(draws: torch.Generator) -> float:
    """Standard normal."""
    return float(torch.randn((), generator=draws, dtype=torch.float64))


def draw_index(count: int, draws: torch.Generator) -> int:
    """In 0 .. count - 1."""
    return int(torch.randint(count, (), generator=draws))


RETRIES = 24  # draws of one proposal, until its mask is new: in a space of thresholds few are


class EvolutionStrategy:
    """Proposes children of the best among the latest.

    Draws below `population` are random. After that a parent wins a tournament of `sample`
    among the last `population` scored records (by draw): masks that violate a constraint rank
    behind all that do not, by how much they violate it; the others by non-dominated rank, then
    crowding distance. As long as nothing was scored, stopped records that violate a constraint
    take part in their place, so that the search climbs towards what is feasible; where there are
    none either, draws stay random. Old records leave, however good they were: a lucky score does
    not rule for ever. Baselines that are draws of the space stay.

    Args:
        space: A pure function of an Optuna trial that returns a mask.
        objectives: In the study's order.
        seed: Seed of all draws.
        name: Origin of the proposals.
        population: How many records can become parents, and how many draws are random; >= 2.
        sample: Size of a tournament, 1 to `population`; None = a quarter of the population.
        constraints: What the search's masks must keep.
        budgets: What the masks of the draws may cost, in turn; a child has its own draw's.
        shape: What the space is told of the model and its data (`shape_of`).

    Proposals carry the draw of their `parent` and the `changed` parameter in their strategy_state.
    """

    learns_from_starts = True

    def __init__(
        self,
        space: Space,
        objectives: Sequence[Objective],
        *,
        seed: int,
        name: str = "evolution",
        population: int = 24,
        sample: int | None = None,
        constraints: Sequence[Constraint] = (),
        budgets: Sequence[float] = (),
        shape: Shape | None = None,
    ) -> None:
        if population < 2:
            raise ValueError(f"population must be at least 2, got {population}")
        sample = max(2, population // 4) if sample is None else sample
        if not 1 <= sample <= population:
            raise ValueError(f"sample must be between 1 and the population, got {sample}")
        self.space, self.objectives, self.name = space, tuple(objectives), name
        self.population, self.sample = population, sample
        self.constraints = tuple(constraints)
        self.seeds = (seed, zlib.crc32(name.encode()))
        self.records: dict[int, Record] = {}  # draw -> a possible parent
        self.scored: list[int] = []  # draws, ascending
        self.violating: list[int] = []  # draws that were stopped by a constraint, ascending
        self.drawn: set[int] = set()
        self.seen: set[str] = set()  # parameters and masks that were drawn
        self.parameters = Parameters(budgets, shape)
        self.next = 0

    def ask(self) -> Proposal | Literal["wait", "done"]:
        """The next draw; a space that fails becomes a `Refused` job with its traceback.

        Raises:
            SpaceError: If a parameter's kind or range is not what it was before.
        """
        draw = self.next
        draws = generator(*self.seeds, draw)
        parents = [] if draw < self.population else self.rank_parents()
        another: Proposal | None = None  # with new parameters, if not a new mask
        for _ in range(RETRIES):
            proposal = self.breed(draw, parents, draws)
            repeated = self.seen.intersection(texts := identity(proposal))
            if not repeated:
                break
            if len(repeated) < len(texts) and another is None:
                another = proposal
        else:
            proposal = another or proposal
        self.note(draw, proposal)
        return proposal

    def tell(self, record: Record) -> None:
        """Takes a result, or (status "running") learns that a draw is out."""
        self.note(record.number, record)
        self.parameters.learn(record)
        if record.number in self.records:
            return
        if record.scored:
            if not any(math.isnan(record.value(o.name)) for o in self.objectives):
                self.records[record.number] = record
                bisect.insort(self.scored, record.number)
        elif record.status == "stopped" and violation(record, self.constraints) > 0:
            self.records[record.number] = record
            bisect.insort(self.violating, record.number)

    def note(self, draw: int, what: Proposal | Record) -> None:
        """Learns that a draw is out, and what it is."""
        self.next = max(self.next, draw + 1)
        if draw not in self.drawn:
            self.drawn.add(draw)
            self.seen |= identity(what)

    def rank_parents(self) -> list[Record]:
        """The possible parents, best first."""
        known = [self.records[draw] for draw in self.scored or self.violating]
        starts = [each for each in known[: -self.population] if each.role == "baseline"]
        records = starts + known[-self.population :]
        excess = {record.number: violation(record, self.constraints) for record in records}
        feasible = [record for record in records if excess[record.number] == 0]
        others = [record for record in records if excess[record.number] > 0]
        others.sort(key=lambda record: excess[record.number])
        return by_rank_and_crowding(feasible, self.objectives) + others

    def breed(self, draw: int, parents: Sequence[Record], draws: torch.Generator) -> Proposal:
        """A child of a tournament's winner, or a random draw where nothing can be a parent."""
        values: dict[str, Any] = {}
        strategy_state, changed = {}, ""
        if parents:
            order = torch.randperm(len(parents), generator=draws)
            winner = parents[int(order[: self.sample].min())]
            choices = drawn_distributions(winner)
            changeable = [name for name, kind in choices.items() if not kind.single()]
            if changeable:
                values = dict(winner.params)
                changed = changeable[draw_index(len(changeable), draws)]
                strategy_state = {"parent": str(winner.number), "changed": changed}
        with quiet():
            trial = optuna.create_study(sampler=Replay(values, changed, draws)).ask()
        job, params = draw_job(self.space, trial, self.parameters, draw)
        return Proposal(
            draw, job, params, self.name, strategy_state=strategy_state | drawn_kinds(trial)
        )


def evolution(
    space: Space,
    objectives: Sequence[Objective],
    *,
    seed: int,
    evaluator: Evaluator,
    constraints: Sequence[Constraint] = (),
    budgets: Sequence[float] = (),
    population: int = 24,
    sample: int | None = None,
) -> EvolutionStrategy:
    """The strategy of a search, as `strategy=` takes it; see `EvolutionStrategy`."""
    return EvolutionStrategy(
        space,
        objectives,
        seed=seed,
        population=population,
        sample=sample,
        constraints=constraints,
        budgets=budgets,
        shape=evaluator.shape,
    )


def identity(drawn: Proposal | Record) -> set[str]:
    """The parameters, and the mask if there is one, as texts that are the same after storing."""
    texts = {json.dumps(dict(drawn.params), sort_keys=True, default=repr)}
    return texts | {drawn.job.mask.digest} if isinstance(drawn.job, Evaluate) else texts


def by_rank_and_crowding(
    records: Sequence[Record], objectives: Sequence[Objective]
) -> list[Record]:
    """Records by non-dominated rank, within a rank the lonelier first, then the younger."""
    youngest_first = sorted(records, key=lambda record: record.number, reverse=True)
    gains = gains_of(youngest_first, objectives)
    ranks = nondominated_ranks(gains)
    ordered = []
    for rank in range(max(ranks, default=-1) + 1):
        front = np.flatnonzero(ranks == rank)
        lonely = crowding(gains[front])
        ordered += [youngest_first[at] for at in front[np.argsort(-lonely, kind="stable")]]
    return ordered


def violation(record: Record, constraints: Sequence[Constraint]) -> float:
    """Sum of all excesses; 0 = every known constraint is kept."""
    return sum(max(excess, 0.0) for excess in excesses(record, constraints).values())
