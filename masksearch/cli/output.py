"""Searches and comparisons as terminal tables, or as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from masksearch.analysis.pareto import SPARSITIES, score_title, sparsities_differ, sparsity_of
from masksearch.masks.measure import unread_note

if TYPE_CHECKING:
    from masksearch.analysis.compare import ComparedMasks
    from masksearch.contracts import Record, Shape
    from masksearch.driver import Study
    from masksearch.report.layout import TextTable


WHOLE = 1_000  # characters of an expression that is printed
LONGEST = 256  # positions at which a mask of any length is drawn
OF_PAIRS = (
    "sparsity: left-out share of the non-padding query-key pairs; of the table: of all n x n cells"
)


def print_front(study: Study, as_json: bool) -> None:
    """The front of a search as JSON rows or as a table."""
    shown = [o.name for o in study.objectives if o.name not in SPARSITIES]
    if as_json:
        rows = [
            {
                **{"trial": record.number, "origin": record.origin, "name": record.name},
                "mask": str(record.mask),
                "sparsity": record.measures["sparsity"],
                "effective_sparsity": sparsity_of(record),
                **{name: record.value(name) for name in shown},
            }
            for record in study.frontier()
        ]
        typer.echo(json.dumps(rows))
        return
    from masksearch.analysis.pareto import nothing_learned, unlearned_gates
    from masksearch.report.tables import by_origin, front_table

    records = study.records()
    front = front_table(by_origin(records), study.objectives).without("block density")
    if front.rows:
        print_table(front, f"Front of {study.run}")
        _print_masks(study.frontier(), study.shape)
    for budget in json.loads(study.store.facts().get("budget") or "[]"):
        inside, score = study.within(budget), study.objectives[0].name
        title = score_title(score, inside)
        best = [f"best #{each.number}, {title} {each.value(score):.4f}" for each in inside[:1]]
        typer.echo("; ".join([f"masks judged within {budget:g}: {len(inside)}", *best]))
    _print_note(study.frontier(), study.shape)
    if nothing := nothing_learned(records):
        typer.echo(nothing)
    for caution in unlearned_gates(records):
        typer.echo(caution)


def _print_masks(records: Sequence[Record], shape: Shape | None) -> None:
    """Masks whole that a table has no room for, and on a terminal, unless `NO_COLOR` is set,
    drawings of some in block characters."""
    console = Console()
    for record in records:
        text = str(record.mask or "")
        if _table_room(console) < len(text) <= WHOLE:
            typer.echo(f"#{record.number}: {text}")
    if not console.is_terminal or console.no_color or console.is_dumb_terminal:
        return
    from masksearch.masks.picture import CELLS, LENGTH, in_blocks

    apart, length = 2 * CELLS + 2, LENGTH if shape is None else min(shape.length, LONGEST)
    drawn = [r for r in records if r.mask is not None and not r.mask.needs_tokens]
    step = -(-len(drawn) // max(1, console.width // apart)) or 1
    columns = [
        [
            f"#{record.number}, {100 * sparsity_of(record):.0f}% sparse",
            *in_blocks(record.mask.dense(record.mask.length or length)),
        ]
        for record in drawn[::step]
        if record.mask is not None
    ]
    for row in zip_longest(*columns, fillvalue=""):
        typer.echo("".join(text.ljust(apart) for text in row).rstrip())


def _table_room(console: Console) -> int:
    """Characters of an expression in a table."""
    return max(24, min(console.width if console.is_terminal else 160, 120) - 56)


def _print_note(records: Sequence[Record], shape: Shape | None) -> None:
    """Says what sparsities count, where there is something to say."""
    if sparsities_differ(records):
        typer.echo(OF_PAIRS)
    if shape is not None and (note := unread_note(shape)):
        typer.echo(note)


def print_comparison(comparison: ComparedMasks, as_json: bool) -> None:
    """A comparison as JSON rows or as a table."""
    if as_json:
        typer.echo(comparison.frame().to_json(orient="records"))
        return
    from masksearch.report.tables import comparison_table

    frame, table = comparison.frame(), comparison_table(comparison, comparison.tasks)
    none = [name for name in ("diverged", "failed") if not frame[name].any()]
    table = table.without("density", "block density", *none)
    print_table(table, width=100 if len(table.head) < 9 else 160)
    _print_note(comparison.records, comparison.shape)
    if any(entry.at_majority for entry in comparison.entries.values()):
        typer.echo("= no better than a constant answer: the model has learned nothing there")


def print_table(table: TextTable, title: str | None = None, width: int = 160) -> None:
    """A table of plain cells; masks are shortened to the room that there is."""
    console = Console()
    if not console.is_terminal:  # tables are not squeezed into 80 columns
        console = Console(width=width)
    console.print(table.terminal(title, room=_table_room(console)))


def sketch(table: Any) -> list[str]:
    """A small mask as text; large ones need --out."""
    if table.shape[-1] > 64:
        return ["(--out FILE.png draws it; masks of up to 64 positions are drawn here)"]
    plane = table.any(0).any(0)
    return ["".join("##" if kept else " ." for kept in row) for row in plane.tolist()]
