"""Hypervolume over compute, of several searches by each strategy: means and bands over seeds."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from masksearch.analysis.pareto import Snapshot, hypervolume_curve
from masksearch.analysis.stats import (
    CLAIM_SEEDS,
    Estimate,
    PairedDifference,
    correct_family,
    estimate,
    format_estimate,
    format_p,
    paired_difference,
)
from masksearch.contracts import Objective, Record

Compute = Literal["trials", "seconds"]
Searches = Mapping[str, Mapping[int, Sequence[Record]]]  # strategy -> search seed -> records
Curves = Mapping[str, Mapping[int, list[Snapshot]]]


@dataclass(frozen=True)
class Band:
    """Mean hypervolume of a strategy's searches at equal compute, with its interval.

    All are float `[points]`; `low` and `high` are NaN for one search.
    """

    compute: NDArray[np.float64]  # trials or seconds, rising from 0
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


@dataclass(frozen=True)
class StrategyReached:
    """What a strategy's searches reached where every search of the comparison still ran.

    `difference` is its hypervolume minus the reference's over common search seeds; None for the
    reference itself.
    """

    strategy: str
    seeds: int
    at_trials: Estimate
    at_seconds: Estimate
    difference: PairedDifference | None  # at equal seconds
    adjusted: float  # Holm's p-value over all strategies
    outcome: str


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


def ended(curve: Sequence[Snapshot], by: Compute) -> float:
    """What a search has spent in all."""
    return float(getattr(curve[-1], by)) if curve else 0.0


def band_of(curves: Mapping[int, Sequence[Snapshot]], by: Compute) -> Band:
    """Mean and 95% t-interval over searches, up to where the shortest of them ends."""
    end = min((ended(curve, by) for curve in curves.values()), default=0.0)
    steps = {float(getattr(state, by)) for curve in curves.values() for state in curve}
    compute = np.array(sorted({0.0, *(step for step in steps if step <= end)}))
    heights = [
        estimate([reached(curve, each, by) for curve in curves.values()]) for each in compute
    ]
    mean, low, high = (
        np.array([getattr(each, name) for each in heights]) for name in ("mean", "low", "high")
    )
    return Band(compute, mean, low, high)


def compare_searches(curves: Curves) -> list[StrategyReached]:
    """Final hypervolumes of strategies at equal compute, and whether they differ from random's.

    The reference is `"random"`, or the first strategy where that was not run. Search seed by
    search seed the differences are paired, and corrected together (Holm, 5%); below
    `CLAIM_SEEDS` common seeds nothing is claimed.

    Args:
        curves: Of strategies; see `curves_of`.

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
            for name, runs in curves.items()
        }
    reference = "random" if "random" in curves else next(iter(curves))
    others = [name for name in curves if name != reference]

    at = finals["seconds"]
    corrected = correct_family(
        others, lambda name, level: paired_difference(at[name], at[reference], level)
    )
    known = dict(zip(others, corrected, strict=True))
    found = []
    for name in curves:
        against, p_value = known.get(name, (None, math.nan))
        found.append(
            StrategyReached(
                strategy=name,
                seeds=len(finals["seconds"][name]),
                at_trials=estimate(list(finals["trials"][name].values())),
                at_seconds=estimate(list(finals["seconds"][name].values())),
                difference=against,
                adjusted=p_value,
                outcome="reference" if against is None else outcome_of(against, p_value),
            )
        )
    return found


def outcome_of(difference: PairedDifference, adjusted: float) -> str:
    """Larger, smaller or not distinguishable; too few seeds decide nothing."""
    if difference.n_seeds < CLAIM_SEEDS:
        return f"not decided: {difference.n_seeds} common seeds"
    if adjusted > 0.05:
        return "not distinguishable"
    return "larger" if difference.mean > 0 else "smaller"


def without_rte(
    searches: Searches, objectives: Sequence[Objective]
) -> tuple[Objective, ...] | None:
    """The objectives with the score that leaves RTE out; None where none is reported.

    It is measured from the same `worst`.
    """
    name = f"{objectives[0].name}/without_rte"
    scored = [
        r for runs in searches.values() for records in runs.values() for r in records if r.scored
    ]
    if not scored or not all(name in record.values for record in scored):
        return None
    return (replace(objectives[0], name=name), *objectives[1:])


def describe_searches(found: Sequence[StrategyReached]) -> list[str]:
    """One line for each strategy but the reference: by how much its hypervolume differs."""
    reference = next((each.strategy for each in found if each.difference is None), "")
    lines = []
    for each in found:
        if (d := each.difference) is None:
            continue
        line = f"Hypervolume at equal compute, {each.strategy} minus {reference}: "
        line += format_estimate(d.mean, d.low, d.high, signed=True)
        if d.n_seeds >= CLAIM_SEEDS:
            line += f", p {format_p(each.adjusted)}, {each.outcome} ({d.n_seeds} search seeds)."
        else:
            line += f"; {each.outcome}, claims need {CLAIM_SEEDS}."
        lines.append(line)
    return lines
