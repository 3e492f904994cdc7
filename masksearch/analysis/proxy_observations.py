"""What a proxy card is made of: plain observations, from a table or from study records."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from masksearch.analysis.rank_stats import Bands, Floats
from masksearch.contracts import Objective, Record
from masksearch.errors import SearchError, unknown_name

if TYPE_CHECKING:
    import pandas as pd

Goal = Literal["min", "max"]
COLUMNS = ("mask", "density", "seed", "budget", "measure", "value")
CURVE = "one run"  # every budget of a mask is a report along one and the same run
NOT_ANNEALED = (
    "Every budget is a report along one run of the full length: its learning rate was not "
    "annealed to 0 there, so a run that is planned to be that short may rank masks differently."
)
OWN_END = "own runs"  # every budget is the end of a run of its own


@dataclass(frozen=True)
class Observation:
    """One measured value of one mask.

    Args:
        mask: What tells masks apart: a fingerprint or a name.
        density: Kept share of the cells, in (0, 1].
        seed: Of the run; the same seed of two masks or measures is taken as a pair.
        budget: Optimiser steps spent (>= 1).
        measure: `"loss"`, `"glue"`, a task's name, ...
        value: In the measure's unit; not finite = a failed run.
        schedule: Which kind of run the budget belongs to: values along one run are not
            re-annealed, those of runs of their own are.
        name: What people call the mask; empty = as `mask`.
    """

    mask: str
    density: float
    seed: int
    budget: int
    measure: str
    value: float
    schedule: str = CURVE
    name: str = ""


@dataclass(frozen=True)
class Observed:
    """Observations, and what was left out on the way (reason -> number)."""

    observations: tuple[Observation, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)
    reference: str | None = None  # schedule whose longest budget is the reference
    facts: tuple[str, ...] = ()


def plain(observations: pd.DataFrame | Iterable[Observation]) -> list[Observation]:
    """Observations of a table with the columns mask, density, seed, budget, measure, value
    (and schedule, name), or the observations themselves.

    Raises:
        ValueError: If a column is missing.
    """
    table: Any = observations
    if hasattr(table, "columns"):
        missing = [name for name in COLUMNS if name not in table.columns]
        if missing:
            raise ValueError(
                f"observations need the columns {', '.join(COLUMNS)}; "
                f"missing: {', '.join(missing)}"
            )
        return [
            Observation(
                str(row["mask"]), float(row["density"]), int(row["seed"]), int(row["budget"]),
                str(row["measure"]), float(row["value"]), str(row.get("schedule", CURVE)),
                str(row.get("name", "")),
            )
            for row in table.to_dict("records")
        ]  # fmt: skip
    return list(table)


def default_goal(measure: str, objectives: Iterable[Objective] = ()) -> Goal:
    """The direction in which a measure is better: its objective's, else min for a loss."""
    for objective in objectives:
        if objective.name == measure:
            return objective.goal
    lower = ("loss", "perplexity", "error", "seconds", "latency", "memory")
    return "min" if measure.lower().endswith(lower) else "max"


def goals_of(
    records: Mapping[str, Sequence[Record]], objectives: Sequence[Objective]
) -> dict[str, Goal]:
    """Measure -> goal: that of the studies' objective of that name, else by its name."""
    measures = {
        name for found in records.values() for record in found for name in record.values
    } | {
        name
        for found in records.values()
        for record in found
        for report in record.curve
        for name in report.values
    }
    return {name: default_goal(name, objectives) for name in sorted(measures)}


def from_records(runs: Mapping[str, Sequence[Record]], reference: str | None = None) -> Observed:
    """Every report of every finished run, as observations.

    Records of one protocol are merged: their curves give the lower budgets, which are not
    re-annealed. Runs of several protocols (200, 800, 3,200 steps, each annealed to its own
    end) give their last report each; the curve of the reference is then kept beside them, as
    a schedule of its own, so that both kinds of short run are judged.

    Args:
        runs: Name -> records of a study. Of several runs of one (mask, seed, protocol) the
            last one counts.
        reference: Name of the run by which the others are judged; needed for more than one
            protocol.

    Raises:
        SearchError: If nothing has finished, or several protocols come without a reference.
        UnknownNameError: If `reference` is not among the runs.
    """
    if reference is not None and reference not in runs:
        raise unknown_name("run", reference, runs)
    everything = [record for records in runs.values() for record in records]
    masked = [r for r in everything if r.mask is not None or r.status == "failed"]
    left_out = {
        "failed runs": sum(r.status == "failed" for r in masked),
        "runs that were stopped or are not finished": sum(
            r.status in ("stopped", "running") for r in masked
        ),
    }
    finished = {
        (r.protocol, mask_key(r), r.seed): r for r in everything if r.scored and r.step > 0
    }
    if not finished:
        raise SearchError(
            f"no finished run of a mask in {', '.join(runs) or 'nothing'}; a proxy card needs "
            "runs that report along the way"
        )
    protocols = list(dict.fromkeys(protocol for protocol, *_ in finished))
    chosen = protocols[0]
    if len(protocols) > 1:
        if reference is None:
            raise SearchError(
                f"the runs come from {len(protocols)} protocols, whose scores cannot be merged; "
                "say which run judges the others: --reference RUN (reference=RUN)"
            )
        own = sorted({r.protocol for r in runs[reference] if r.scored})
        if len(own) != 1:
            raise SearchError(
                f"the reference {reference} holds {len(own)} protocols of finished runs; "
                "name a run folder with one"
            )
        chosen = own[0]
    observations: list[Observation] = []
    for (protocol, _, _), record in finished.items():
        if protocol == chosen:
            observations += of_record(record, CURVE)
        if len(protocols) > 1:
            observations += of_record(record, OWN_END, last=True)
    observations = without_repeats(observations)
    if len(protocols) == 1:
        if all(len(record.curve) < 2 for record in finished.values()):
            raise SearchError(
                f"{', '.join(runs)}: the runs hold no curves (one report each), so there is no "
                "shorter budget to judge; use an evaluator that reports along the way"
            )
        return Observed(tuple(observations), left_out, CURVE, (NOT_ANNEALED,))
    facts = (
        f"'{OWN_END}': each budget is the end of runs of its own protocol, annealed to that end. "
        f"'{CURVE}': reports along the reference's runs, not annealed there.",
    )
    return Observed(tuple(observations), left_out, OWN_END, facts)


def mask_key(record: Record) -> str:
    """What tells the record's mask from others."""
    return record.fingerprint or str(record.mask)


def of_record(record: Record, schedule: str, last: bool = False) -> list[Observation]:
    """The reports of one run; with `last` only its end."""
    density = 1 - record.measures.get("sparsity", math.nan)
    name = str(record.params.get("mask", "")) or record.origin.partition("baseline:")[2]
    reports = {report.step: dict(report.values) for report in record.curve}
    reports[record.step] = dict(record.values)  # a reused record may have no curve
    return [
        Observation(
            mask_key(record), density, record.seed, step, measure, value, schedule,
            name or str(record.mask),
        )
        for step, values in sorted(reports.items())
        if step > 0 and (step == record.step or not last)
        for measure, value in values.items()
        if not measure.endswith("/majority")
    ]  # fmt: skip


def without_repeats(observations: Sequence[Observation]) -> list[Observation]:
    """Leaves out a last budget that only says again what the one before it said.

    An evaluator that fine-tunes reports the pre-training's loss a second time at its end; that
    is no longer budget of the loss.
    """
    cells: dict[tuple[str, str], dict[int, dict[tuple[str, int], float]]] = {}
    for o in observations:
        budgets = cells.setdefault((o.schedule, o.measure), {})
        budgets.setdefault(o.budget, {})[o.mask, o.seed] = o.value
    repeated = set()
    for (schedule, measure), budgets in cells.items():
        if len(budgets) > 1:
            *_, before, last = sorted(budgets)
            same = budgets[before].keys() >= budgets[last].keys()
            if same and all(budgets[before][key] == v for key, v in budgets[last].items()):
                repeated.add((schedule, measure, last))
    return [o for o in observations if (o.schedule, o.measure, o.budget) not in repeated]


class Cells:
    """Observations laid out as tables of masks and seeds, in an order that rows cannot change.

    Raises:
        ValueError: If two observations of one cell disagree, a density is not in (0, 1], a
            mask has two densities, or a budget is below 1.
    """

    def __init__(self, observations: Iterable[Observation], masks: Sequence[str] = ()) -> None:
        self.tables: dict[tuple[str, int, str], dict[tuple[str, int], float]] = {}
        self.density: dict[str, float] = {}
        self.name: dict[str, str] = {}
        self.not_finite = 0
        for o in observations:
            if not 0 < o.density <= 1:
                raise ValueError(f"a density is in (0, 1], got {o.density} for mask {o.mask}")
            if o.budget < 1:
                raise ValueError(f"a budget is at least 1 step, got {o.budget} for {o.mask}")
            if not math.isclose(self.density.setdefault(o.mask, o.density), o.density):
                raise ValueError(
                    f"mask {o.mask} has two densities, {self.density[o.mask]} and {o.density}; "
                    "give every mask a name of its own"
                )
            self.name.setdefault(o.mask, o.name or o.mask)
            if not math.isfinite(o.value):
                self.not_finite += 1
                continue
            table = self.tables.setdefault((o.schedule, o.budget, o.measure), {})
            if table.setdefault((o.mask, o.seed), o.value) != o.value:
                raise ValueError(
                    f"mask {o.name or o.mask}, seed {o.seed}, {o.budget} steps has two values of "
                    f"{o.measure}: {table[o.mask, o.seed]} and {o.value}; leave one out, or give "
                    "runs of other protocols another schedule"
                )
        self.masks = list(masks) or sorted(self.density)
        self.seeds = sorted({seed for table in self.tables.values() for _, seed in table})

    def measures(self) -> list[str]:
        """Every measure, in order of name."""
        return sorted({measure for *_, measure in self.tables})

    def budgets(self, measure: str) -> list[tuple[str, int]]:
        """(schedule, budget) of every table of a measure, shortest first."""
        return sorted((s, b) for s, b, m in self.tables if m == measure)

    def table(self, schedule: str, budget: int, measure: str) -> Floats:
        """float `[masks, seeds]`; NaN where nothing was observed."""
        known = self.tables.get((schedule, budget, measure), {})
        nan = math.nan
        rows = [[known.get((mask, seed), nan) for seed in self.seeds] for mask in self.masks]
        return np.array(rows, dtype=np.float64).reshape(len(self.masks), len(self.seeds))


def band_edges(densities: Floats, bands: int | Sequence[float] | None) -> list[float]:
    """Inner edges of the density bands, increasing, in (0, 1).

    Args:
        densities: Of the masks, in (0, 1].
        bands: None = factors of two: (1/2, 1], (1/4, 1/2], ...; a number = so many bands with
            about equally many masks; a sequence = the edges themselves.

    Raises:
        ValueError: If a number of bands is below 1 or an edge is not in (0, 1).
    """
    if bands is None:
        deepest = int(np.floor(-np.log2(densities)).max(initial=0))
        return [2.0**-power for power in range(deepest, 0, -1)]
    if isinstance(bands, int):
        if bands < 1:
            raise ValueError(f"at least 1 density band is needed, got {bands}")
        cuts = np.quantile(densities, [k / bands for k in range(1, bands)], method="lower")
        return sorted({float(cut) for cut in cuts if cut < densities.max()})
    edges = sorted(set(map(float, bands)))
    if not edges or not all(0 < edge < 1 for edge in edges):
        raise ValueError(f"edges of density bands are in (0, 1), got {list(bands)}")
    return edges


def band_of(densities: Floats, edges: Sequence[float]) -> Bands:
    """Number of the band of each mask: above edge k - 1, up to and including edge k."""
    return np.digitize(densities, edges, right=True).astype(np.int64)
