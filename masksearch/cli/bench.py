"""The command bench: tables of masks whose best choice is known, and selectors judged on them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import typer

from masksearch.cli.options import (
    JUDGE,
    OUTPUT,
    PLACE,
    Json,
    OptionsError,
    argument,
    option,
    takes,
)


class Action(StrEnum):
    """The actions of `masksearch bench`."""

    list = "list"
    build = "build"
    judge = "judge"


# What each action takes into account; all others are refused.
READS = {"list": "json", "build": "what out slots", "judge": "what tables budget trials json"}


TRIALS, TABLES, SLOTS = 60, "tables", 1  # where the option is not given


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """Options of `masksearch bench`, but for those that an action does not read."""

    action: Action = argument(
        "list, build or judge.  [default: list]", JUDGE, "ACTION", default=Action.list
    )
    what: str | None = argument(
        "To build: FILE.py:NAME, a function that gives a TableSpec or a list of them. To judge: "
        "FILE.py:NAME, a selector, or a strategy of masksearch search.",
        *(JUDGE, "WHAT"),
        default=None,
    )
    tables: list[str] | None = option(
        "A table to judge on: a name, a family (recall) or a .parquet file; repeatable.",
        *(JUDGE, "all that are installed, complete, and searched by what is judged", "TABLE"),
    )
    budget: list[float] | None = option(
        "Largest share of the dense cost that a choice may have; repeatable.",
        *(JUDGE, "0.3, 0.4, 0.5 and 0.6", "SHARE"),
    )
    trials: int | None = option("Masks that a strategy judges.", JUDGE, str(TRIALS), "N")
    out: Path | None = option("Folder of the tables that are built.", OUTPUT, TABLES, "FOLDER")
    slots: int | None = option("Trials at a time.", PLACE, str(SLOTS), "N")
    as_json: Json = False


@takes()
def bench(options: BenchOptions) -> None:
    """List, build or judge on tables of masks whose best choice is known.

    A selector is judged by its regret: how much more its choice loses than what exhaustive search
    picks, on tokens that neither has seen.

    Examples:
        masksearch bench
        masksearch bench judge allocate --budget 0.4
        masksearch bench judge mine.py:last_layers --tables recall-1
        masksearch bench build mine.py:my_tables --out tables
    """
    action, what = options.action, options.what
    values = {name.removeprefix("as_"): value for name, value in vars(options).items()}
    given = {name for name, value in values.items() if value not in (None, False)}
    for name in sorted(given - {"action", *READS[action].split()}):
        readers = " and ".join(f"bench {each}" for each in READS if name in READS[each].split())
        shown = what if name == "what" else f"--{name}"
        raise OptionsError(f"bench {action.value} does not read {shown}: it belongs to {readers}")
    if action is Action.list:
        show_tables(options.as_json)
        return
    if what is None:
        raise OptionsError(
            f"bench {action.value} needs FILE.py:NAME: a function that gives TableSpecs to build, "
            "or a selector to judge"
        )
    if action is Action.build:
        slots = SLOTS if options.slots is None else options.slots
        build_tables(what, options.out or Path(TABLES), slots)
        return
    from masksearch.bench import judge, load, names, strategy, summary
    from masksearch.bench.judge import BUDGETS
    from masksearch.bench.table import family_of
    from masksearch.strategies.build import STRATEGIES
    from masksearch.user_code import load_function

    if what not in STRATEGIES and options.trials is not None:
        raise OptionsError(
            f"--trials belongs to a strategy of masksearch search; {what} is a selector, which "
            "asks for as many losses as it wants"
        )
    if what in STRATEGIES:
        selector: Any = strategy(what, TRIALS if options.trials is None else options.trials)
    else:
        selector = load_function(what)
    installed = names()
    if tables := options.tables:
        families = {name: [n for n in installed if family_of(n) == name] for name in tables}
        chosen = [load(each) for name in tables for each in families[name] or [name]]
    else:
        loaded = [load(name) for name in installed]
        chosen = [t for t in loaded if t.complete and (t.whole or what not in STRATEGIES)]
    rows = judge(selector, chosen, options.budget or BUDGETS, name=what)
    show(
        summary(rows),
        options.as_json,
        f"{what} on {', '.join(table.sheet.name for table in chosen)}",
    )


def show(table: Any, json: bool, title: str) -> None:
    """Rows as a table or as JSON."""
    if json:
        typer.echo(table.to_json(orient="records"))
    else:
        typer.echo(f"{title}\n{table.to_string(index=False, float_format='{:.4f}'.format)}")


def show_tables(json: bool) -> None:
    """The tables that are installed."""
    import pandas as pd

    from masksearch.bench import load, names

    rows = []
    for name in names():
        table = load(name)
        state = "complete" if table.complete else "a sample" if table.sheet.drawn else "half-built"
        rows.append({"table": name, "cells": len(table), "state": state, "what": table.sheet.what})
    if json:
        show(pd.DataFrame(rows), json, "")
        return
    typer.echo("tables of masks (pip install masksearch-bench has more)")
    for row in rows:
        typer.echo("{table:<12}{cells:>6} {state:<11}{what}".format(**row))


def build_tables(what: str, out: Path, slots: int) -> None:
    """Builds what a file says, or goes on with it."""
    from masksearch.bench import TableSpec, build
    from masksearch.executors.local import Local
    from masksearch.user_code import load_function

    made = load_function(what)()
    for spec in [made] if isinstance(made, TableSpec) else made:
        typer.echo(f"wrote {build(spec, out, executor=Local(slots))}")
