"""The tables of the report: plain cells, ready to be laid out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from masksearch.analysis.compare import ComparedMasks
from masksearch.analysis.pareto import hypervolume, pareto
from masksearch.analysis.proxy_card import ProxyAgreement
from masksearch.analysis.rank_stats import Interval
from masksearch.contracts import Evaluate, Objective, Record

DASH = "-"  # where there is nothing to say
CARD = ("figure", "value", "what it means")  # head of DAM's health card


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


def comparison_table(comparison: ComparedMasks) -> Table:
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


def findings_table(comparison: ComparedMasks) -> Table:
    """The declared comparisons, one row each."""
    head = heads(
        "mask", "against", "because it is", "outcome", "difference", "interval",
        "adjusted p", "common seeds", "sparser by",
        text=("mask", "against", "because it is", "outcome"),
    )  # fmt: skip
    searched = {e.name for e in comparison.entries.values() if e.kind == "searched"}
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
                Cell(finding.mask, mark="searched" if finding.mask in searched else ""),
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


def health_table(health: Mapping[str, Any]) -> Table:
    """DAM's health card in words: a figure, its value, and what it means.

    Args:
        health: The fields of `masksearch.gates.diagnostics.Health`.
    """
    length = len(health["by_distance"])
    shares = [share for layer in health["by_head"] for share in layer]
    rows = [
        (
            "density",
            f"{percent(health['density'])} (asked for: {percent(health['target'])})",
            "mean probability of an edge at the end",
        ),
        (
            "density by head",
            f"{percent(min(shares))} to {percent(max(shares))}",
            "of the emptiest and of the fullest head",
        ),
        ("entropy", f"{figure(health['entropy'], 3)} bits", "0: every gate has decided; 1: none"),
        (
            "undecided",
            percent(health["undecided"]),
            "edges with a probability between 0.1 and 0.9",
        ),
        (
            "diagonal",
            f"{percent(health['diagonal_mass'])} of the mass",
            f"mean probability {figure(health['diagonal'], 3)}; equal gates would have "
            f"{percent(health['diagonal_uniform'])} of the mass there",
        ),
        (
            "within 4 positions",
            f"{percent(sum(health['mass_by_distance'][:5]))} of the mass",
            f"equal gates would have {percent(near(length, 4))}",
        ),
        (
            "strongest offsets",
            strongest(health["by_offset"]),
            "key minus query, with the mean probability of an edge there",
        ),
    ]
    losses = health["losses"]
    for name, title, meaning in (
        ("relaxed", "loss, soft gates", "held out, nats; gates replaced by their probabilities"),
        ("sampled", "loss, sampled gates", "gates drawn, mean over several draws"),
        ("rounded", "loss, rounded gates", "edges kept from a probability of 1/2"),
        ("discretised", "loss, mask cut", "cut at the target density; the same weights"),
        ("retrained", "loss, retrained", "that mask, trained from scratch"),
    ):
        value = losses[name]
        rows.append((title, "not measured" if value is None else figure(value), meaning))
    found = health["agreement"]
    if found is None:
        rows.append(("agreement of seeds", "one seed", "not known from a single run"))
    else:
        rows += [
            (
                "agreement of seeds",
                f"IoU {figure(found['iou'], 3)} (chance {figure(found['chance'], 3)})",
                f"mean over pairs of {found['seeds']} seeds, masks cut at the target density",
            ),
            (
                "with heads matched",
                f"IoU {figure(found['matched'], 3)} (chance {figure(found['matched_chance'], 3)})",
                "heads of a layer in the order that agrees best",
            ),
        ]
    cells = tuple((Cell(name), Cell(value), Cell(meaning)) for name, value, meaning in rows)
    return Table(heads(*CARD, text=CARD), cells)


def near(length: int, reach: int) -> float:
    """Share of a table's cells with |i - j| <= reach."""
    reach = min(reach, length - 1)
    return (length + sum(2 * (length - distance) for distance in range(1, reach + 1))) / length**2


def strongest(by_offset: Sequence[float], count: int = 4) -> str:
    """The offsets of the largest mean probability, nearer ones first among equals."""
    length = (len(by_offset) + 1) // 2
    order = sorted(
        range(1 - length, length),
        key=lambda offset: (-round(by_offset[offset + length - 1], 6), abs(offset), offset),
    )
    return ", ".join(
        f"{offset:+d} ({by_offset[offset + length - 1]:.2f})" if offset else
        f"0 ({by_offset[length - 1]:.2f})"
        for offset in order[:count]
    )  # fmt: skip


REFERENCE = "="  # marks the budget that is the reference itself


def brief_table(card: ProxyAgreement) -> Table:
    """The columns of `budgets_table` that a terminal has room for."""
    whole = budgets_table(card)
    wanted = {
        "schedule", "steps", "masks", "tau-b, all", "tau-b in bands", "between seeds",
        "front held", f"regret ({card.target})", "at random",
    }  # fmt: skip
    places = [place for place, cell in enumerate(whole.head) if cell.text in wanted]
    return Table(
        tuple(whole.head[place] for place in places),
        tuple(tuple(row[place] for place in places) for row in whole.rows),
    )


def budgets_table(card: ProxyAgreement) -> Table:
    """One row a budget: agreement with the reference, best sets, front, regret, seeds."""
    sets = list(card.rows[0].overlaps) if card.rows else []
    several = len({row.schedule for row in card.rows}) > 1
    names = [
        *(["schedule"] if several else []),
        "steps", "masks", "tau-b, all", "tau-b in bands", "between seeds", "Spearman", "in bands",
        *sets, "front held", f"regret ({card.target})", "at random", "sd masks", "sd seeds",
    ]  # fmt: skip
    rows = []
    for row in card.rows:
        mark = f" {REFERENCE}" if row.is_reference else ""
        rows.append(
            tuple(
                map(
                    Cell,
                    (
                        *([row.schedule] if several else []),
                        f"{row.budget:,}{mark}",
                        str(row.masks),
                        shown(row.across),
                        shown(row.within),
                        shown(row.between_seeds),
                        decimals(row.spearman),
                        decimals(row.spearman_within),
                        *(percent(row.overlaps[name]) for name in sets),
                        percent(row.pareto_recall),
                        figure(row.regret, 3),
                        figure(row.at_random, 3),
                        figure(row.spread.sigma_mask, 3),
                        figure(row.spread.sigma_seed, 3),
                    ),
                )
            )
        )
    return Table(heads(*names, text=("schedule",)), tuple(rows))


def others_table(card: ProxyAgreement) -> Table:
    """One row a further measure and budget: its agreement with the proxy there."""
    head = heads(
        "measure", "schedule", "steps", f"{card.proxy} at", "masks", "tau-b, all",
        "tau-b in bands", "Spearman", "ceiling in bands", text=("measure", "schedule"),
    )  # fmt: skip
    rows = [
        tuple(
            map(
                Cell,
                (
                    other.measure,
                    other.schedule,
                    f"{other.budget:,}",
                    f"{other.proxy_budget:,}",
                    str(other.masks),
                    shown(other.across),
                    shown(other.within),
                    decimals(other.spearman),
                    shown(other.ceiling),
                ),
            )
        )
        for other in card.others
    ]
    return Table(head, tuple(rows))


def shown(interval: Interval) -> str:
    """An interval, or a dash."""
    return DASH if math.isnan(interval.value) else str(interval)


def decimals(value: float) -> str:
    """A correlation to two decimals, or a dash."""
    return DASH if math.isnan(value) else f"{value:.2f}"
