"""Aging evolution over define-by-run spaces, for any number of objectives.

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
from collections.abc import Sequence
from typing import Any, Literal

import optuna
import torch
from optuna.distributions import distribution_to_json, json_to_distribution

from masksearch.constraints import Constraint
from masksearch.contracts import Objective, Proposal, Record, generator
from masksearch.results.frontier import dominates
from masksearch.results.study_store import quiet
from masksearch.strategies.mutation import Replay, below
from masksearch.strategies.optuna_study import Space, drawn_job
from masksearch.strategies.told_study import violation

RETRIES = 8  # draws of one proposal, until one has parameters that no other had


class EvolutionStrategy:
    """Proposes children of the best among the latest.

    Draws below `population` are random. After that a parent wins a tournament of `sample`
    among the last `population` scored records (by draw): masks that violate a constraint rank
    behind all that do not, by how much they violate it; the others by non-dominated rank, then
    crowding distance. As long as nothing was scored, stopped records that violate a constraint
    take part in their place, so that the search climbs towards what is feasible; where there are
    none either, draws stay random. Old records leave, however good they were: a lucky score does
    not rule for ever.

    Args:
        space: A pure function of an Optuna trial that returns a mask.
        objectives: In the study's order.
        seed: Seed of all draws.
        name: Origin of the proposals.
        population: How many records can become parents, and how many draws are random; >= 2.
        sample: Size of a tournament, 1 to `population`; None = a quarter of the population.
        constraints: What the search's masks must keep.

    Proposals carry the draw of their `parent` and the `changed` parameter in their memo.
    """

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
        self.drawn: dict[int, str] = {}  # draw -> its parameters
        self.seen: set[str] = set()
        self.next = 0

    def ask(self) -> Proposal | Literal["wait", "done"]:
        """The next draw; a space that fails becomes a `Refused` job with its traceback."""
        draw = self.next
        draws = generator(*self.seeds, draw)
        parents = [] if draw < self.population else self.ranked()
        for _ in range(RETRIES):
            proposal = self.bred(draw, parents, draws)
            if written(proposal.params) not in self.seen:
                break
        self.note(draw, proposal.params)
        return proposal

    def tell(self, record: Record) -> None:
        """Takes a result, or (status "running") learns that a draw is out."""
        self.note(record.number, record.params)
        if record.number in self.records:
            return
        if record.scored:
            if not any(math.isnan(record.value(o.name)) for o in self.objectives):
                self.records[record.number] = record
                bisect.insort(self.scored, record.number)
        elif record.status == "stopped" and violation(record, self.constraints) > 0:
            self.records[record.number] = record
            bisect.insort(self.violating, record.number)

    def note(self, draw: int, params: Any) -> None:
        """Learns that a draw is out, and with which parameters."""
        self.next = max(self.next, draw + 1)
        if draw not in self.drawn:
            self.drawn[draw] = written(params)
            self.seen.add(self.drawn[draw])

    def ranked(self) -> list[Record]:
        """The possible parents, best first."""
        latest = (self.scored or self.violating)[-self.population :]
        records = [self.records[draw] for draw in latest]
        excess = {record.number: violation(record, self.constraints) for record in records}
        feasible = [record for record in records if excess[record.number] == 0]
        others = [record for record in records if excess[record.number] > 0]
        others.sort(key=lambda record: excess[record.number])
        return by_rank_and_crowding(feasible, self.objectives) + others

    def bred(self, draw: int, parents: Sequence[Record], draws: torch.Generator) -> Proposal:
        """A child of a tournament's winner, or a random draw where nothing can be a parent."""
        values: dict[str, Any] = {}
        memo, changed = {}, ""
        if parents:
            order = torch.randperm(len(parents), generator=draws)
            winner = parents[int(order[: self.sample].min())]
            changeable = [
                name
                for name, text in json.loads(winner.memo.get("distributions", "{}")).items()
                if not json_to_distribution(text).single()
            ]
            if changeable:
                values = dict(winner.params)
                changed = changeable[below(len(changeable), draws)]
                memo = {"parent": str(winner.number), "changed": changed}
        with quiet():
            trial = optuna.create_study(sampler=Replay(values, changed, draws)).ask()
        job = drawn_job(self.space, trial)
        kinds = {name: distribution_to_json(kind) for name, kind in trial.distributions.items()}
        memo["distributions"] = json.dumps(kinds)
        return Proposal(draw, job, dict(trial.params), self.name, memo=memo)


def written(params: Any) -> str:
    """Parameters as text, the same before and after they were stored."""
    return json.dumps(params, sort_keys=True, default=repr)


def by_rank_and_crowding(
    records: Sequence[Record], objectives: Sequence[Objective]
) -> list[Record]:
    """Records by non-dominated rank, within a rank the lonelier first, then the younger."""
    points = {
        record.number: tuple(
            record.value(o.name) if o.goal == "max" else -record.value(o.name) for o in objectives
        )
        for record in records
    }
    left, ordered = list(records), []
    while left:
        front = [
            record
            for record in left
            if not any(dominates(points[o.number], points[record.number]) for o in left)
        ]
        lonely = crowding({record.number: points[record.number] for record in front})
        front.sort(key=lambda record: (-lonely[record.number], -record.number))
        ordered += front
        taken = {record.number for record in front}
        left = [record for record in left if record.number not in taken]
    return ordered


def crowding(points: dict[int, tuple[float, ...]]) -> dict[int, float]:
    """NSGA-II's crowding distance of each point of a front; the ends of an axis are infinite.

    Args:
        points: Name -> coordinates.
    """
    found = dict.fromkeys(points, 0.0)
    for axis in range(len(next(iter(points.values()), ()))):
        order = sorted(points, key=lambda name: (points[name][axis], name))
        low, high = points[order[0]][axis], points[order[-1]][axis]
        if low == high:
            continue
        found[order[0]] = found[order[-1]] = math.inf
        for before, name, after in zip(order, order[1:], order[2:], strict=False):
            gap = points[after][axis] - points[before][axis]
            found[name] += gap / (high - low) if math.isfinite(high - low) else 0.0
    return found
