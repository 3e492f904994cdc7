"""Hypervolume over compute, of several searches by each strategy: means and bands over seeds."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Literal

import numpy as np

from masksearch.analysis.pareto import Snapshot, hypervolume_curve
from masksearch.analysis.stats import (
    CLAIM_SEEDS,
    Interval,
    VolumeFinding,
    format_p,
    judge_volumes,
    mean_of_searches,
    paired_difference,
)
from masksearch.contracts import RANDOM, Objective, Record

Compute = Literal["trials", "seconds"]
Searches = Mapping[str, Mapping[int, Sequence[Record]]]  # strategy -> search seed -> records
Curves = Mapping[str, Mapping[int, list[Snapshot]]]


@dataclass(frozen=True)
class StrategyReached:
    """A strategy's hypervolumes where every search still ran; NaN if one of its had no mask yet.

    `finding` is its hypervolume minus the reference's over common search seeds, at equal seconds;
    None for the reference itself.
    """

    strategy: str
    seeds: int
    at_trials: Interval
    at_seconds: Interval
    finding: VolumeFinding | None

    @property
    def outcome(self) -> str:
        """In a word or two, for tables."""
        if math.isnan(self.at_seconds.value):
            return "no mask yet"
        return "reference" if self.finding is None else self.finding.outcome


def curves_of(
    searches: Searches, objectives: Sequence[Objective]
) -> dict[str, dict[int, list[Snapshot]]]:
    """The curve of each search, its baselines left out: every strategy starts from nothing."""
    return {
        name: {
            seed: hypervolume_curve([r for r in records if r.role != "baseline"], objectives)
            for seed, records in runs.items()
        }
        for name, runs in searches.items()
    }


def reached(curve: Sequence[Snapshot], compute: float, by: Compute) -> float:
    """The hypervolume once that many trials or seconds were spent; 0 before the first result."""
    spent = bisect_right(curve, compute, key=attrgetter(by))
    return curve[spent - 1].hypervolume if spent else 0.0


def begun(curve: Sequence[Snapshot], by: Compute) -> float:
    """Trials or seconds that a search had spent when it had its first mask; else infinite."""
    return next((float(getattr(s, by)) for s in curve if s.best or s.unlearned), math.inf)


def ended(curve: Sequence[Snapshot], by: Compute) -> float:
    """Trials or seconds that a search has spent in all."""
    return float(getattr(curve[-1], by)) if curve else 0.0


def band_of(
    curves: Mapping[int, Sequence[Snapshot]], by: Compute, most: int | None = None
) -> dict[float, Interval]:
    """Trials or seconds, rising from where every search has a mask to where the shortest one ends
    -> `mean_of_searches` of their hypervolumes; at `most` points, evenly over them, or at all."""
    begin = max((begun(curve, by) for curve in curves.values()), default=0.0)
    end = min((ended(curve, by) for curve in curves.values()), default=0.0)
    steps = {float(getattr(state, by)) for curve in curves.values() for state in curve}
    points = sorted(step for step in steps if begin <= step <= end)
    if points and most is not None:
        chosen = np.unique(np.linspace(0, len(points) - 1, most).astype(int))
        points = [points[index] for index in chosen]
    return {at: mean_of_searches([reached(c, at, by) for c in curves.values()]) for at in points}


def compare_searches(curves: Curves) -> list[StrategyReached]:
    """Final hypervolumes of strategies at equal compute, and whether they differ from random's.

    The reference is `"random"`, or the first strategy where that was not run. Search seed by
    search seed the differences are paired, and corrected together (Holm, 5%); below
    `CLAIM_SEEDS` common seeds nothing is claimed.

    Args:
        curves: Of strategies; see `curves_of`. Leave unfinished searches out: all others are
            compared where the shortest one ends.

    Returns:
        One a strategy that has searched, in the order given.
    """
    curves = {name: runs for name, runs in curves.items() if any(runs.values())}
    if not curves:
        return []
    every = [curve for runs in curves.values() for curve in runs.values() if curve]
    finals: dict[Compute, dict[str, dict[int, float]]] = {}
    for by in ("trials", "seconds"):
        spent = min(ended(curve, by) for curve in every)
        finals[by] = {
            name: {seed: reached(curve, spent, by) for seed, curve in runs.items() if curve}
            if all(begun(curve, by) <= spent for curve in runs.values() if curve)
            else {}
            for name, runs in curves.items()
        }
    reference = RANDOM if RANDOM in curves else next(iter(curves))
    at = finals["seconds"]
    judged = judge_volumes(
        [name for name in curves if name != reference],
        lambda name, level: paired_difference(at[name], at[reference], level),
    )
    return [
        StrategyReached(
            name,
            sum(map(bool, curves[name].values())),
            mean_of_searches(list(finals["trials"][name].values())),
            mean_of_searches(list(at[name].values())),
            judged.get(name),
        )
        for name in curves
    ]


def without_rte(
    searches: Searches, objectives: Sequence[Objective]
) -> tuple[Objective, ...] | None:
    """The objectives with the score that leaves RTE out; None where none is reported.

    It is measured from the same `worst`.
    """
    name = f"{objectives[0].name}/without_rte"
    scored = [r for runs in searches.values() for each in runs.values() for r in each if r.scored]
    if not scored or not all(name in record.values for record in scored):
        return None
    return (replace(objectives[0], name=name), *objectives[1:])


def describe_searches(strategies: Sequence[StrategyReached]) -> list[str]:
    """One line for each strategy but the reference: by how much its hypervolume differs."""
    reference = next((each.strategy for each in strategies if each.finding is None), "")
    early = {each.strategy for each in strategies if math.isnan(each.at_seconds.value)}
    lines = []
    for each in strategies:
        if (judged := each.finding) is None:
            continue
        d = judged.difference
        seeds = f"{d.n} search seed{'s' * (d.n != 1)}"
        line = f"Hypervolume at equal compute, {each.strategy} minus {reference}: "
        text = d.text(signed=True)
        if none := early & {each.strategy, reference}:
            line += f"no number, because {' and '.join(sorted(none))} had no mask yet."
        elif d.decides:
            line += f"{text}, p {format_p(judged.adjusted)}, {judged.outcome} ({seeds})."
        else:
            line += f"{text}; not decided: {seeds}, claims need {CLAIM_SEEDS}."
        lines.append(line)
    return lines
