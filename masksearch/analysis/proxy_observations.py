"""What a proxy card is made of: one tidy table of measured values, from study records too."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pandas as pd

from masksearch.analysis.pareto import sparsity_of
from masksearch.analysis.rank_stats import Floats, align_seeds
from masksearch.contracts import Objective, Record, is_side_value
from masksearch.errors import SearchError, unknown_name

Goal = Literal["min", "max"]
COLUMNS = ("mask", "density", "seed", "budget", "measure", "value")
KINDS = {"mask": str, "density": float, "seed": int, "budget": int, "measure": str, "value": float}
CURVE = "one run"  # every budget of a mask is a report along one and the same run
OWN_END = "own runs"  # every budget is the end of a run of its own
NOT_ANNEALED = (
    "Every budget is a report along one run of the full length: its learning rate was not "
    "annealed to 0 there, so a run that is planned to be that short may rank masks differently."
)
BOTH_KINDS = (
    f"'{OWN_END}': each budget is the end of runs of its own protocol, annealed to that end. "
    f"'{CURVE}': reports along the reference's runs, not annealed there."
)
SETTINGS = (
    "Every run folder is a setting of its own, judged at its end; steps are those under the mask."
)


@dataclass(frozen=True)
class Observation:
    """One measured value of one mask.

    Args:
        mask: What tells masks apart: a fingerprint or a name.
        density: Kept share of the cells, in (0, 1].
        seed: Of the run; the same seed of two masks or measures is taken as a pair.
        budget: Optimiser steps under the mask (0 = it was put on a trained model).
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

    observations: pd.DataFrame | Sequence[Observation]
    left_out: Mapping[str, int] = field(default_factory=dict)
    reference: str | None = None  # schedule whose longest budget is the reference
    facts: tuple[str, ...] = ()


def tidy(observations: pd.DataFrame | Iterable[Observation]) -> pd.DataFrame:
    """Observations as a table, one row a value, with the columns of an `Observation`.

    Args:
        observations: They themselves, or a table with the columns mask, density, seed, budget,
            measure, value (and schedule, name).

    Raises:
        ValueError: If a column is missing, a density is not in (0, 1], a mask has two
            densities, a budget is below 0, or two values of one cell disagree.
    """
    if isinstance(observations, pd.DataFrame):
        missing = [name for name in COLUMNS if name not in observations.columns]
        if missing:
            raise ValueError(
                f"observations need the columns {', '.join(COLUMNS)}; "
                f"missing: {', '.join(missing)}"
            )
        table = observations.assign(
            schedule=observations.get("schedule", CURVE), name=observations.get("name", "")
        )
    else:
        columns = [*COLUMNS, "schedule", "name"]
        table = pd.DataFrame([vars(o) for o in observations], columns=columns)
    table = table.astype(KINDS)
    table["name"] = table["name"].where(table["name"] != "", table["mask"])
    for row in table[~table["density"].between(0, 1, inclusive="right")].itertuples():
        raise ValueError(f"a density is in (0, 1], got {row.density:g} for mask {row.mask}")
    for row in table[table["budget"] < 0].itertuples():
        raise ValueError(f"a budget is at least 0 steps, got {row.budget} for {row.mask}")
    for mask, densities in table.groupby("mask")["density"]:
        if not math.isclose(densities.min(), densities.max()):
            raise ValueError(
                f"mask {mask} has two densities, {densities.min()} and {densities.max()}; give "
                "every mask a name of its own"
            )
    cell = ["schedule", "budget", "measure", "mask", "seed"]
    table = table.drop_duplicates([*cell, "value"])
    for row in table[np.isfinite(table["value"]) & table.duplicated(cell)].itertuples():
        raise ValueError(
            f"mask {row.name}, seed {row.seed}, {row.budget} steps has two values of "
            f"{row.measure}, one of them {row.value}; leave one out, or give runs of other "
            "protocols another schedule"
        )
    return table


class ScoreTables:
    """Observations laid out as tables of masks and seeds, in an order that rows cannot change.

    Args:
        table: As `tidy` returns it.
        goals: Measure -> the direction that is better; those not named by `default_goal`.
    """

    def __init__(self, table: pd.DataFrame, goals: Mapping[str, Goal] | None = None) -> None:
        finite = np.isfinite(table["value"].to_numpy())
        self.rows, self.not_finite = table[finite], int((~finite).sum())
        known = table.drop_duplicates("mask").set_index("mask").sort_index()
        self.masks: list[str] = known.index.tolist()
        self.density = dict(zip(self.masks, known["density"].tolist(), strict=True))
        self.name: dict[str, str] = dict(zip(self.masks, known["name"], strict=True))
        self.seeds = sorted(set(self.rows["seed"].tolist()))
        self.measures = sorted(set(self.rows["measure"]))
        given = goals or {}
        self.goals = {m: given.get(m) or default_goal(m) for m in self.measures}

    def budgets(self, measure: str) -> list[tuple[str, int]]:
        """(schedule, budget) of every table of a measure, shortest first."""
        rows = self.rows[self.rows["measure"] == measure]
        return sorted(set(zip(rows["schedule"].tolist(), rows["budget"].tolist(), strict=True)))

    def table(self, schedule: str, budget: int, measure: str) -> Floats:
        """float `[masks, seeds]`; NaN where nothing was observed."""
        r = self.rows
        rows = r[(r["schedule"] == schedule) & (r["budget"] == budget) & (r["measure"] == measure)]
        pivot = rows.pivot(index="mask", columns="seed", values="value")
        whole = pivot.reindex(index=self.masks, columns=self.seeds)
        return np.asarray(whole, dtype=np.float64)

    def gains(self, schedule: str, budget: int, measure: str) -> Floats:
        """The same with larger = better, and seeds made comparable (`align_seeds`)."""
        table = align_seeds(self.table(schedule, budget, measure))
        return table if self.goals[measure] == "max" else -table

    def longest(self, measure: str, schedule: str | None = None) -> tuple[str, int]:
        """(schedule, budget) of the longest budget at which a measure was observed.

        Raises:
            UnknownNameError: If the measure was never observed under that schedule.
        """
        found = self.budgets(measure)
        known = sorted({name for name, _ in found})
        if schedule is not None and schedule not in known:
            raise unknown_name(f"schedule with a {measure}", schedule, known)
        allowed = [place for place in found if schedule in (None, place[0])]
        return max(allowed, key=lambda place: place[1])


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
    measures: set[str] = set()
    for found in records.values():
        for record in found:
            measures.update(record.values, *(report.values for report in record.curve))
    return {name: default_goal(name, objectives) for name in sorted(measures)}


# -- records -----------------------------------------------------------------------------------
def from_records(runs: Mapping[str, Sequence[Record]], reference: str | None = None) -> Observed:
    """Every report of every finished run, as observations.

    Records of one protocol are merged: their curves give the lower budgets, which are not
    re-annealed. Runs of several protocols (200, 800, 3,200 steps, each annealed to its own
    end) give their last report each; the curve of the reference is then kept beside them, as
    a schedule of its own, so that both kinds of short run are judged. Where no run reports along
    the way (masks on trained models), the protocols are no budgets of one another, and each is a
    schedule under its run's name.

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
    records = [record for found in runs.values() for record in found]
    statuses = [r.status for r in records if r.mask is not None or r.status == "failed"]
    left_out = {
        "failed runs": statuses.count("failed"),
        "runs that were stopped or are not finished": statuses.count("stopped")
        + statuses.count("running"),
    }
    finished = {
        (r.protocol, r.fingerprint or str(r.mask), r.seed): r
        for r in records
        if r.scored and r.values
    }
    if not finished:
        raise SearchError(
            f"no finished run of a mask in {', '.join(runs) or 'nothing'}; a proxy card needs "
            "runs that report along the way"
        )
    protocols = list(dict.fromkeys(protocol for protocol, *_ in finished))
    several, judge = len(protocols) > 1, protocols[0]
    if several:
        judge = reference_protocol(runs, reference, len(protocols))
    at_end = all(len(record.curve) < 2 for record in finished.values())
    if at_end and not several:
        raise SearchError(
            f"{', '.join(runs)}: the runs hold no curves (one report each), so there is no "
            "shorter budget to judge; use an evaluator that reports along the way"
        )
    if at_end:
        named = {r.protocol: name for name, records in runs.items() for r in records if r.scored}
        named[judge] = str(reference)
        table = [
            each
            for (protocol, mask, _), record in finished.items()
            for each in of_record(record, mask, named[protocol])
        ]
        return Observed(table, left_out, named[judge], (SETTINGS,))
    found = [
        each
        for (protocol, mask, _), record in finished.items()
        for schedule, wanted in ((CURVE, protocol == judge), (OWN_END, several))
        if wanted
        for each in of_record(record, mask, schedule)
    ]
    curves = drop_repeated_ends(pd.DataFrame([vars(each) for each in found]))
    if several:
        return Observed(curves, left_out, OWN_END, (BOTH_KINDS,))
    return Observed(curves, left_out, CURVE, (NOT_ANNEALED,))


def reference_protocol(
    runs: Mapping[str, Sequence[Record]], reference: str | None, protocols: int
) -> str:
    """The one protocol of the reference's finished runs."""
    if reference is None:
        raise SearchError(
            f"the runs come from {protocols} protocols, whose scores cannot be merged; "
            "say which run judges the others: --reference RUN (reference=RUN)"
        )
    own = {record.protocol for record in runs[reference] if record.scored}
    if len(own) != 1:
        raise SearchError(
            f"the reference {reference} holds {len(own)} protocols of finished runs; "
            "name a run folder with one"
        )
    return own.pop()


def of_record(record: Record, mask: str, schedule: str) -> list[Observation]:
    """The reports of one run; of runs of several lengths only the end."""
    density = 1 - sparsity_of(record) if record.measures else math.nan
    reports = {report.step: report.values for report in record.curve if schedule == CURVE}
    reports[record.step] = record.values  # a reused record may have no curve
    return [
        Observation(
            *(mask, density, record.seed, step, measure, value, schedule),
            record.name or str(record.mask),
        )
        for step, values in sorted(reports.items())
        for measure, value in values.items()
        if (step > 0 or step == record.step) and not is_side_value(measure)
    ]


def drop_repeated_ends(table: pd.DataFrame) -> pd.DataFrame:
    """Leaves out a last budget that only says again what the one before it said.

    An evaluator that fine-tunes reports the pre-training's loss a second time at its end; that
    is no longer budget of the loss.
    """
    repeated: list[int] = []
    for _, rows in table.groupby(["schedule", "measure"]):
        ends = [rows[rows["budget"] == budget] for budget in sorted(set(rows["budget"]))[-2:]]
        said = [{(r.mask, r.seed): r.value for r in end.itertuples()} for end in ends]
        if len(said) == 2 and said[1].items() <= said[0].items():
            repeated += list(ends[1].index)
    return table.drop(index=repeated)


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
