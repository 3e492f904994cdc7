"""The rows of a proxy card: each budget of the proxy against the reference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np

from masksearch.errors import unknown_name
from masksearch.results.proxy_observations import Cells, Goal, band_edges, band_of
from masksearch.results.proxy_stats import (
    Bands,
    Floats,
    Interval,
    Resampling,
    Spread,
    aligned,
    best,
    front,
    overlap,
    seed_mean,
    spearman,
    spread,
)


@dataclass(frozen=True)
class Choice:
    """The mask that the proxy picks in one density band, and what that costs."""

    low: float  # densities of the band: above `low`,
    high: float  # up to `high`
    masks: int
    picked: str
    best: str
    regret: float  # reference measure of the best minus that of the picked, better = positive
    at_random: float  # the same for a mask picked at random, on average


@dataclass(frozen=True)
class Budget:
    """What the proxy at one budget says of the reference."""

    schedule: str
    budget: int  # optimiser steps
    masks: int  # that have both
    is_reference: bool  # the row compares the reference with itself
    across: Interval  # tau-b over all pairs of masks, means over seeds
    within: Interval  # tau-b over the pairs within a density band
    between_seeds: Interval  # within bands, one seed of the proxy, another of the reference
    spearman: float
    spearman_within: float
    overlaps: Mapping[str, float]  # share of the reference's best k that the proxy's best k hold
    pareto_recall: float  # share of the reference's front of (value, density)
    choices: tuple[Choice, ...]
    spread: Spread  # of the proxy, all masks
    spread_within: Spread  # around the means of the bands

    @property
    def regret(self) -> float:
        """Mean regret over bands with at least two masks, in the reference's unit."""
        return mean([choice.regret for choice in self.choices])

    @property
    def at_random(self) -> float:
        """Mean regret of picking at random in each band."""
        return mean([choice.at_random for choice in self.choices])


@dataclass(frozen=True)
class Other:
    """The proxy against another measure at the same budget (its last value up to there)."""

    measure: str
    schedule: str
    budget: int
    proxy_budget: int
    masks: int
    across: Interval
    within: Interval
    spearman: float
    ceiling: Interval  # of the other measure: two of its seeds, within bands


class Work:
    """Computes a card's rows from its cells."""

    def __init__(
        self, cells: Cells, proxy: str, target: str, goals: Mapping[str, Goal],
        judge: tuple[str, int], bands: int | Sequence[float] | None, top: Sequence[float],
        resamples: int, seed: int, level: float,
    ) -> None:  # fmt: skip
        self.cells, self.proxy, self.target, self.goals = cells, proxy, target, goals
        self.judge, self.top = judge, top
        self.densities = np.array([cells.density[mask] for mask in cells.masks])
        self.edges = band_edges(self.densities, bands)
        self.bands: Bands = band_of(self.densities, self.edges)
        self.draws = Resampling(self.bands, len(cells.seeds), resamples, seed, level)

    def value(self, schedule: str, budget: int, measure: str) -> Floats:
        """Table of a measure, larger = better, seeds made comparable (`aligned`)."""
        table = aligned(self.cells.table(schedule, budget, measure))
        return table if self.goals[measure] == "max" else -table

    def rows(self) -> tuple[Budget, ...]:
        """One for every budget of the proxy at which two masks can be compared."""
        truth = self.value(*self.judge, self.target)
        found = []
        for schedule, budget in self.cells.budgets(self.proxy):
            plain = self.cells.table(schedule, budget, self.proxy)
            short = self.value(schedule, budget, self.proxy)
            x, y = seed_mean(short), seed_mean(truth)
            both = np.isfinite(x) & np.isfinite(y)
            same = self.proxy == self.target and np.array_equal(short, truth, equal_nan=True)
            if both.sum() < 2 or (same and schedule != self.judge[0]):
                continue
            sizes = {self.label(k): self.count(k, int(both.sum())) for k in self.top}
            known = np.where(both, y, np.nan)
            found.append(
                Budget(
                    schedule,
                    budget,
                    int(both.sum()),
                    same,
                    self.draws.tau(short, truth, banded=False),
                    self.draws.tau(short, truth, banded=True),
                    self.draws.tau_between_seeds(short, truth, banded=True),
                    spearman(x, y),
                    spearman(x, y, self.bands),
                    {
                        name: overlap(np.where(both, x, np.nan), known, size)
                        for name, size in sizes.items()
                    },
                    self.recall(np.where(both, x, np.nan), known),
                    self.choose(x, known),
                    spread(plain),
                    spread(plain, self.bands),
                )
            )
        return tuple(found)

    @staticmethod
    def label(k: float) -> str:
        """Name of a best set."""
        return f"top {100 * k:g}%" if k < 1 else f"top {k:g}"

    @staticmethod
    def count(k: float, masks: int) -> int:
        """Size of a best set."""
        return max(1, math.ceil(k * masks)) if k < 1 else int(k)

    def recall(self, x: Floats, y: Floats) -> float:
        """Share of the reference's front that is also on the proxy's."""
        wanted = front(y, self.densities)
        return len(wanted & front(x, self.densities)) / len(wanted) if wanted else math.nan

    def choose(self, x: Floats, y: Floats) -> tuple[Choice, ...]:
        """The pick in every band with at least two masks."""
        limits = [0.0, *self.edges, 1.0]
        names = [self.cells.name[mask] for mask in self.cells.masks]
        found = []
        for band in np.unique(self.bands):
            inside = np.flatnonzero((self.bands == band) & np.isfinite(x) & np.isfinite(y))
            if len(inside) < 2:
                continue
            pick, top = inside[best(x[inside], 1)[0]], inside[best(y[inside], 1)[0]]
            found.append(
                Choice(
                    limits[band], limits[band + 1], len(inside), names[pick], names[top],
                    float(y[top] - y[pick]), float(y[top] - y[inside].mean()),
                )
            )  # fmt: skip
        return tuple(found)

    def others(self) -> tuple[Other, ...]:
        """Every further measure against the proxy, at each budget of its own."""
        found = []
        for measure in self.cells.measures():
            for schedule, budget in self.cells.budgets(measure):
                reached = [
                    shorter
                    for name, shorter in self.cells.budgets(self.proxy)
                    if name == schedule and shorter <= budget
                ]
                if measure == self.proxy or not reached:
                    continue
                x = self.value(schedule, max(reached), self.proxy)
                y = self.value(schedule, budget, measure)
                both = np.isfinite(seed_mean(x)) & np.isfinite(seed_mean(y))
                if both.sum() < 2:
                    continue
                found.append(
                    Other(
                        measure,
                        schedule,
                        budget,
                        max(reached),
                        int(both.sum()),
                        self.draws.tau(x, y, banded=False),
                        self.draws.tau(x, y, banded=True),
                        spearman(seed_mean(x), seed_mean(y)),
                        self.draws.tau_between_seeds(y, y, banded=True),
                    )
                )
        return tuple(found)


def mean(values: Sequence[float]) -> float:
    """Mean; NaN for none."""
    return math.fsum(values) / len(values) if values else math.nan


def longest(cells: Cells, measure: str, schedule: str | None) -> tuple[str, int]:
    """(schedule, budget) of the longest budget at which a measure was observed.

    Raises:
        UnknownNameError: If the measure was never observed under that schedule.
    """
    found = cells.budgets(measure)
    if schedule is not None:
        known = sorted({name for name, _ in found})
        if schedule not in known:
            raise unknown_name(f"schedule with a {measure}", schedule, known)
        found = [place for place in found if place[0] == schedule]
    return max(found, key=lambda place: place[1])


def names_of(cells: Cells) -> dict[str, float]:
    """Name -> density of the masks; equal names get the beginning of what tells them apart."""
    names = [cells.name[mask] for mask in cells.masks]
    return {
        name if names.count(name) == 1 else f"{name} ({mask[:8]})": cells.density[mask]
        for name, mask in zip(names, cells.masks, strict=True)
    }


def flat(row: Any) -> dict[str, Any]:
    """A row's fields as columns: an interval gives three, a spread three."""
    columns: dict[str, Any] = {}
    names = {"across": "tau", "is_reference": "reference"}
    for entry in fields(row):
        name, value = names.get(entry.name, entry.name), getattr(row, entry.name)
        if isinstance(value, Interval):
            columns |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
        elif isinstance(value, Spread):
            end = name.removeprefix("spread")
            columns |= {f"{part.name}{end}": getattr(value, part.name) for part in fields(value)}
        elif isinstance(value, Mapping):
            columns |= value
        elif name == "choices":
            columns |= {"regret": row.regret, "regret_at_random": row.at_random}
        else:
            columns[name] = value
    return columns


def plain_json(value: Any) -> Any:
    """Dataclasses, tuples and numbers as JSON has them; what is not finite is None."""
    if is_dataclass(value) and not isinstance(value, type):
        return {part.name: plain_json(getattr(value, part.name)) for part in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
