"""The command that sets a published table beside runs: table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from masksearch.cli import options
from masksearch.cli.options import COMPARED, OUTPUT, RUN, declare


def table(
    name: Annotated[
        str,
        typer.Argument(
            help="The published table: sparsebert.", rich_help_panel=COMPARED, metavar="NAME"
        ),
    ],
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="Folders of comparisons or searches that hold its masks, by name or by bits; of "
            "several ones the masks, seeds and tasks are joined.",
            rich_help_panel=RUN,
            metavar="RUN...",
        ),
    ],
    out: Annotated[
        Path | None,
        declare(
            "Also write the table into this folder, as CSV and LaTeX.", OUTPUT, "none", "FOLDER"
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Set the scores of a published table beside those of runs, and compare the two orders.

    Examples:
        masksearch table sparsebert runs/table
        masksearch table sparsebert runs/table runs/dam --out runs/printed
    """
    import json

    from masksearch.cli.output import print_table
    from masksearch.report.published_scores import compare_published

    beside = compare_published(runs, name)
    frame = beside.frame()
    written = []
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        written = [out / f"{name}.csv", out / f"{name}.tex"]
        for path, text in zip(written, (frame.to_csv(index=False), beside.latex()), strict=True):
            path.write_text(text, encoding="utf-8")
    if as_json:
        taus = {name: beside.agreement(columns) for name, columns in beside.quantities.items()}
        found = {
            "masks": json.loads(frame.to_json(orient="records")),
            "columns": beside.common,
            "tau_b": {name: [tau.value, tau.low, tau.high] for name, tau in taus.items()},
            "notes": beside.notes(),
        }
        typer.echo(json.dumps(found).replace("NaN", "null"))
        return
    for each in beside.tables():
        print_table(each)
    for line in (*beside.orders(), *beside.notes()):
        typer.echo(line)
    for path in written:
        typer.echo(f"written: {path}")
