"""The command that says what a comparison shows: verdict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from masksearch.cli import options
from masksearch.cli.options import COMPARED, declare
from masksearch.errors import SearchError

if TYPE_CHECKING:
    from masksearch.driver import Comparison


def verdict(
    run: options.RunArgument,
    reference: Annotated[
        str, declare("A mask that every other is also compared with.", COMPARED, "", "NAME")
    ] = "dense",
    against: Annotated[
        str | None,
        declare(
            "Hand-designed masks that are opponents: nearest (in sparsity), or all.",
            COMPARED,
            "as the comparison was made",
            "NAME",
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Say what a comparison shows, each sentence with its seeds, rows, interval and p-value.

    docs/statistics.md has the rules, and how often they err.

    Examples:
        masksearch verdict runs/compare
        masksearch verdict runs/compare --against all --json
    """
    from masksearch.analysis.compare import check_against
    from masksearch.report.paper import findings_frame

    comparison = open_comparison(run)
    if comparison.mixture:
        raise SearchError(f"{run}: {comparison.mixture}")
    opponents = comparison.against if against is None else check_against(against)
    text = comparison.verdict(reference, opponents)
    if not as_json:
        typer.echo(text)
        return
    rows = findings_frame(comparison, reference, opponents).to_json(orient="records")
    typer.echo(json.dumps({"verdict": text.splitlines(), "findings": json.loads(rows)}))


def open_comparison(run: Path) -> Comparison:
    """The comparison of a run folder.

    Raises:
        SearchError: If it holds a search, whose scores judge nothing; says what to run.
    """
    from masksearch.driver import Comparison
    from masksearch.report.collect import studies_in

    if not run.is_dir():
        raise SearchError(f"{run}: no such run folder")
    kinds = {study.kind for study in studies_in(run)}
    if "compare" not in kinds:
        raise SearchError(
            f"{run} is a search: its scores have one seed, and chose the masks. Judge what it "
            f"found, then ask for the verdict of that: masksearch compare --found {run}"
        )
    return Comparison.open(run)
