"""Searches and comparisons as terminal tables, or as JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from masksearch.analysis.pareto import SPARSITIES, sparsities_differ, sparsity_of
from masksearch.masks.measure import unread_note
from masksearch.masks.text import short_text

if TYPE_CHECKING:
    from masksearch.analysis.compare import ComparedMasks
    from masksearch.analysis.proxy_card import ProxyAgreement
    from masksearch.contracts import Shape
    from masksearch.driver import Study
    from masksearch.report.tables import TextTable


OF_PAIRS = (
    "sparsity: left-out share of the pairs that real tokens form; of the table: of all n x n cells"
)


def wide_console() -> Console:
    """Standard output; where it is no terminal, tables are not squeezed into 80 columns."""
    console = Console()
    return console if console.is_terminal else Console(width=160)


def print_front(study: Study, as_json: bool) -> None:
    """The front of a search as JSON rows or as a table."""
    shown = [o.name for o in study.objectives if o.name not in SPARSITIES]
    if as_json:
        rows = [
            {
                **{"trial": record.number, "origin": record.origin, "mask": str(record.mask)},
                "sparsity": record.measures["sparsity"],
                "effective_sparsity": sparsity_of(record),
                **{name: record.value(name) for name in shown},
            }
            for record in study.frontier()
        ]
        typer.echo(json.dumps(rows))
        return
    from masksearch.analysis.cautions import nothing_learned, unlearned_gates

    two = ("of the table",) * sparsities_differ(study.frontier())
    table = Table(title=f"Front of {study.run}", title_justify="left")
    for column in ("trial", "origin", "sparsity", *two, *shown, "mask"):
        left = column in ("origin", "mask")
        fold: Any = "fold" if column == "mask" else "ellipsis"
        table.add_column(
            column, justify="left" if left else "right", no_wrap=column != "mask", overflow=fold
        )
    console = wide_console()
    room = max(24, min(console.width, 120) - 56)
    for record in study.frontier():
        table.add_row(
            str(record.number),
            record.origin,
            f"{sparsity_of(record):.4f}",
            *(f"{record.measures['sparsity']:.4f}" for _ in two),
            *(f"{record.value(name):.4f}" for name in shown),
            escape(short_text(record.mask or "", room)),  # its brackets are no markup
        )
    if table.rows:
        console.print(table)
    if two:
        typer.echo(OF_PAIRS)
    print_note(study.shape)
    if nothing := nothing_learned(study.records()):
        typer.echo(nothing)
    for caution in unlearned_gates(study.records()):
        typer.echo(caution)


def print_note(shape: Shape | None) -> None:
    """Says which pairs are not counted, where there are any."""
    if shape is not None and (note := unread_note(shape)):
        typer.echo(note)


def print_comparison(comparison: ComparedMasks, as_json: bool) -> None:
    """A comparison as JSON rows or as a table."""
    frame = comparison.frame()
    if as_json:
        typer.echo(frame.to_json(orient="records"))
        return
    two = ("of the table",) * sparsities_differ(comparison.records)
    table = Table()
    score = comparison.objectives[0].name
    lost = (*(["diverged"] if frame["diverged"].any() else []), "failed")
    for column in (
        "mask",
        "kind",
        "sparsity",
        *two,
        escape(f"{score} [95% interval]"),
        "seeds",
        *lost,
    ):
        left = column in ("mask", "kind")
        table.add_column(column, justify="left" if left else "right", no_wrap=column != "mask")
    tasks = comparison.tasks
    for task in tasks:
        table.add_column(task, justify="right", no_wrap=True)
    for row in frame.to_dict("records"):
        name = str(row["mask"])
        figures = [task_text(row, task) for task in tasks]
        entry = comparison.entries[name]
        score_text = (
            str(entry.score) + "=" * entry.learned_nothing if entry.scores else "no result"
        )
        table.add_row(
            escape(name),
            str(row["kind"]),
            f"{row['effective_sparsity']:.4f}",
            *(f"{row['sparsity']:.4f}" for _ in two),
            score_text,
            str(row["n_seeds"]),
            *(str(row[name]) for name in lost),
            *figures,
        )
    wide_console().print(table)
    if two:
        typer.echo(OF_PAIRS)
    print_note(comparison.shape)
    if any(entry.at_majority for entry in comparison.entries.values()):
        typer.echo("= no better than a constant answer: the model has learned nothing there")


def print_table(cells: TextTable) -> None:
    """A table of plain cells."""
    table = Table()
    for cell in cells.head:
        side: Any = "right" if cell.number else "left"
        table.add_column(escape(cell.text), justify=side)
    for row in cells.rows:
        table.add_row(*(escape(cell.text) for cell in row))
    wide_console().print(table)


def print_proxy_card(card: ProxyAgreement) -> None:
    """The budgets of a proxy card as a table."""
    from masksearch.report.tables import REFERENCE, brief_table

    print_table(brief_table(card))
    if any(row.is_reference for row in card.rows):
        typer.echo(f"{REFERENCE} the reference itself")


def task_text(row: dict[Any, Any], task: str) -> str:
    """A task's mean, marked where it is no better than a constant answer's."""
    value = row.get(task)
    if value is None or value != value:
        return "-"
    return f"{value:.4f}" + ("=" if row.get(f"{task} at majority") else "")


def sketch(table: Any) -> list[str]:
    """A small mask as text; large ones need --png."""
    if table.shape[-1] > 64:
        return ["(--png FILE draws it; masks of up to 64 positions are drawn here)"]
    plane = table.any(0).any(0)
    return ["".join("##" if kept else " ." for kept in row) for row in plane.tolist()]
