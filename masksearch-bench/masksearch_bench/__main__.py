"""The program `masksearch-bench`, and `python -m masksearch_bench`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from masksearch import Local
from masksearch.cli.main import run_program
from masksearch.cli.options import (
    OUTPUT,
    WIDEST,
    CommandWithExamples,
    Json,
    OptionsError,
    Slots,
    declare,
    new_program,
)
from masksearch.strategies.build import every_spec
from masksearch.user_code import load_function
from masksearch_bench.builder import TableSpec, build
from masksearch_bench.judging import BUDGETS, judge, strategy, summary
from masksearch_bench.table import family_of, load, names

JUDGED, BUILT = "What is judged, and on which tables", "What is built"
TRIALS = 60  # of a strategy, where the option is not given
LOOK: Any = {"cls": CommandWithExamples, "context_settings": WIDEST}

app = new_program("masksearch-bench")


@app.callback()
def about() -> None:
    """Tables of masks whose best choice is known, and selectors of masks judged on them.

    Each command explains itself: masksearch-bench COMMAND --help.
    """


def what(help: str, group: str) -> Any:
    """The argument that names a function of a file."""
    return typer.Argument(help=help, rich_help_panel=group, metavar="WHAT", show_default=False)


@app.command("list", **LOOK)
def list_tables(as_json: Json = False) -> None:
    """List the tables that are installed.

    Examples:
        masksearch-bench
        masksearch-bench list --json
    """
    rows = []
    for name, table in ((name, load(name)) for name in names()):
        state = "complete" if table.complete else "half-built"
        rows.append({"table": name, "cells": len(table), "state": state, "what": table.sheet.what})
    lines = ["{table:<12}{cells:>6} {state:<11}{what}".format(**row) for row in rows]
    typer.echo(json.dumps(rows) if as_json else "\n".join(["tables of masks", *lines]))


@app.command("judge", **LOOK)
def judge_selector(
    selector: Annotated[
        str, what("FILE.py:NAME, a selector, or a strategy of masksearch search.", JUDGED)
    ],
    tables: Annotated[
        list[str] | None,
        declare(
            "A table to judge on: a name, a family (recall) or a .parquet file; repeatable.",
            *(JUDGED, "all that are installed, complete, and searched by what is judged", "TABLE"),
        ),
    ] = None,
    budget: Annotated[
        list[float] | None,
        declare(
            "Largest share of the dense cost that a choice may have; repeatable.",
            *(JUDGED, "0.3, 0.4, 0.5 and 0.6", "SHARE"),
        ),
    ] = None,
    trials: Annotated[
        int | None, declare("Masks that a strategy judges.", JUDGED, str(TRIALS), "N")
    ] = None,
    as_json: Json = False,
) -> None:
    """Judge a selector of masks by its regret, with intervals over tables.

    Regret is how much more its choice loses than what exhaustive search picks, on tokens that
    neither has seen.

    Examples:
        masksearch-bench judge allocate --budget 0.4 --tables recall-1
        masksearch-bench judge mine.py:last_layers --tables recall
    """
    searches = selector in every_spec()
    if trials is not None and not searches:
        raise OptionsError(
            f"--trials belongs to a strategy of masksearch search; {selector} is a selector, "
            "which asks for as many losses as it wants"
        )
    judged: Any
    if searches:
        judged = strategy(selector, TRIALS if trials is None else trials)
    else:
        judged = load_function(selector)
    installed = names()
    if tables:
        families = {name: [n for n in installed if family_of(n) == name] for name in tables}
        chosen = [load(each) for name in tables for each in families[name] or [name]]
    else:
        chosen = [t for t in map(load, installed) if t.complete and (t.whole or not searches)]
    found = summary(judge(judged, chosen, budget or BUDGETS, name=selector))
    if as_json:
        typer.echo(found.to_json(orient="records"))
        return
    typer.echo(f"{selector} on {', '.join(table.sheet.name for table in chosen)}")
    typer.echo(found.to_string(index=False, float_format="{:.4f}".format))


@app.command("build", **LOOK)
def build_tables(
    tables: Annotated[
        str, what("FILE.py:NAME, a function that gives a TableSpec or a list of them.", BUILT)
    ],
    out: Annotated[
        Path, declare("Folder of the tables that are built.", OUTPUT, "", "FOLDER")
    ] = Path("tables"),
    slots: Slots = 1,
) -> None:
    """Build tables, block by block; what was stopped goes on.

    Examples:
        masksearch-bench build mine.py:tables
        masksearch-bench build mine.py:tables --out tables --slots 2
    """
    made = load_function(tables)()
    for spec in [made] if isinstance(made, TableSpec) else made:
        typer.echo(f"wrote {build(spec, out, executor=Local(slots))}")


def main() -> None:
    """Runs a command; without one it lists the tables."""
    run_program(app, sys.argv[1:] or ["list"])


if __name__ == "__main__":
    main()
