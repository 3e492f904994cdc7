"""The tables of the report: plain cells, ready to be laid out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from masksearch.contracts import Evaluate, Objective, Record
from masksearch.results.comparison import Comparison
from masksearch.results.frontier import hypervolume, pareto

DASH = "-"  # where there is nothing to say


@dataclass(frozen=True)
class Cell:
    """Text of a table's cell; `number` columns are set flush right."""

    text: str
    number: bool = False
    code: bool = False
    mark: Literal["", "majority", "searched"] = ""


@dataclass(frozen=True)
class Table:
    """A head and rows of as many cells."""

    head: tuple[Cell, ...] = ()
    rows: tuple[tuple[Cell, ...], ...] = ()


def heads(*names: str, text: Sequence[str] = ()) -> tuple[Cell, ...]:
    """A table's head; every column not named in `text` holds numbers."""
    return tuple(Cell(name, number=name not in text) for name in names)


def words(name: str) -> str:
    """A value's name as a column's head."""
    return name.replace("_", " ")


def figure(value: float, places: int = 4) -> str:
    """A number to `places` significant digits; a dash for NaN."""
    return DASH if math.isnan(value) else f"{value:.{places}g}"


def percent(value: float) -> str:
    """A share as a percentage; a dash for NaN."""
    return DASH if math.isnan(value) else f"{100 * value:.1f}%"


def spent(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    if seconds >= 7200:
        return f"{seconds / 3600:.1f} hours"
    return f"{seconds / 60:.1f} minutes" if seconds >= 120 else f"{seconds:.1f} seconds"


def runs_table(studies: Mapping[str, Sequence[Record]], objectives: Sequence[Objective]) -> Table:
    """What each strategy did, what it cost and reached; baselines in rows of their own."""
    head = heads(
        "strategy",
        "trials",
        "finished",
        "reused",
        "stopped early",
        "failed",
        "running",
        "masks",
        "compute",
        "hypervolume",
        text=("strategy",),
    )
    rows: list[tuple[Cell, ...]] = []
    for name, study in studies.items():
        hand = [record for record in study if record.origin.startswith("baseline:")]
        own = [record for record in study if not record.origin.startswith("baseline:")]
        for title, group in ((name, own), (f"{name}: baselines", hand)):
            if not group and title != name:
                continue
            counts = [
                sum(record.status == status for record in group)
                for status in ("done", "reused", "stopped", "failed", "running")
            ]
            masks = len({record.fingerprint for record in group if record.fingerprint})
            cells = [str(count) for count in (len(group), *counts, masks)]
            seconds = spent(sum(record.seconds for record in group))
            front = pareto(group, objectives)
            points = [[record.value(o.name) for o in objectives] for record in front]
            reached = figure(hypervolume(points, objectives))
            rows.append((Cell(title), *map(Cell, (*cells, seconds, reached))))
    return Table(head, tuple(rows))


def front_table(studies: Mapping[str, Sequence[Record]], objectives: Sequence[Objective]) -> Table:
    """The joint front of all studies, best score first."""
    names = [objective.name for objective in objectives]
    also = [name for name in ("sparsity", "block_density") if name not in names]
    head = heads(
        "strategy",
        "trial",
        *map(words, names),
        *map(words, also),
        "seed",
        "mask",
        text=("strategy", "mask"),
    )
    rows: list[tuple[Cell, ...]] = []
    owners = {id(record): name for name, study in studies.items() for record in study}
    front = pareto([record for study in studies.values() for record in study], objectives)
    for record in front:
        values = [
            percent(record.value(name))
            if name in ("sparsity", "block_density")
            else figure(record.value(name))
            for name in names
        ] + [percent(record.measures.get(name, math.nan)) for name in also]
        origin = record.origin if record.origin.startswith("baseline:") else owners[id(record)]
        text = str(record.job.mask) if isinstance(record.job, Evaluate) else ""
        rows.append(
            (
                Cell(origin),
                Cell(str(record.number)),
                *(Cell(value) for value in values),
                Cell(str(record.seed)),
                Cell(text, code=True),
            )
        )
    return Table(head, tuple(rows))


def comparison_table(comparison: Comparison) -> Table:
    """One row per mask: means over seeds, intervals, and tasks with the majority mark."""
    judged = [
        objective.name
        for objective in comparison.objectives
        if objective.name not in ("sparsity", "block_density")
    ]
    tasks = comparison.tasks
    head = heads(
        "mask", "kind", "sparsity", "block density", *judged, "seeds", "failed", *tasks,
        "expression",
        text=("mask", "kind", "expression"),
    )  # fmt: skip
    rows: list[tuple[Cell, ...]] = []
    for row in comparison.frame().to_dict("records"):
        searched: Literal["", "searched"] = "searched" if row["kind"] == "searched" else ""
        rows.append(
            (
                Cell(row["mask"], mark=searched),
                Cell(row["kind"]),
                Cell(percent(row["sparsity"])),
                Cell(percent(row["block_density"])),
                *(task_cell(row, name, interval=True) for name in judged),
                Cell(str(row["n_seeds"])),
                Cell(str(row["failed"] or DASH)),
                *(task_cell(row, name, interval=False) for name in tasks),
                Cell(row["expression"], code=True),
            )
        )
    return Table(head, tuple(rows))


def task_cell(row: Mapping[Any, Any], name: str, interval: bool) -> Cell:
    """A mean, with its interval where asked for, marked where it is at the majority's."""
    text = figure(row[name])
    if interval and not math.isnan(row[f"{name} low"]):
        text += f" [{figure(row[f'{name} low'])}, {figure(row[f'{name} high'])}]"
    elif interval and row["n_seeds"] == 1:
        text += " (1 seed)"
    return Cell(text, mark="majority" if row.get(f"{name} at majority", False) else "")


def findings_table(comparison: Comparison) -> Table:
    """The declared comparisons, one row each."""
    head = heads(
        "searched", "against", "because it is", "outcome", "difference", "interval",
        "adjusted p", "common seeds", "sparser by",
        text=("searched", "against", "because it is", "outcome"),
    )  # fmt: skip
    rows: list[tuple[Cell, ...]] = []
    for finding in comparison.findings():
        difference = finding.difference
        interval = DASH
        if difference.n_seeds >= 2:
            interval = (
                f"[{difference.low:+.4g}, {difference.high:+.4g}] at {100 * difference.level:.4g}%"
            )
        rows.append(
            (
                Cell(finding.mask, mark="searched"),
                Cell(finding.against),
                Cell(finding.role),
                Cell("the same mask" if finding.same else finding.outcome),
                Cell(DASH if difference.n_seeds == 0 else f"{difference.mean:+.4g}"),
                Cell(interval),
                Cell(DASH if difference.n_seeds < 2 else f"{finding.adjusted:.2g}"),
                Cell(str(difference.n_seeds)),
                Cell(DASH if math.isnan(finding.gap) else f"{100 * finding.gap:+.1f} points"),
            )
        )
    return Table(head, tuple(rows))


def health_table(health: Mapping[str, float]) -> Table:
    """DAM's health card."""
    rows = tuple((Cell(name.replace("_", " ")), Cell(figure(v))) for name, v in health.items())
    return Table(heads("figure", "value", text=("figure",)), rows)
