"""The command proxy-card."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import typer

from masksearch.cli.options import (
    OUTPUT,
    RUN,
    Json,
    Storage,
    argument,
    described,
    described_values,
    option,
    takes,
)


@dataclass(frozen=True, kw_only=True)
class ProxyCardOptions:
    """Options of proxy-card."""

    runs: list[Path] = argument("Run folders of searches or comparisons.", RUN, "RUN...")
    storage: Storage = None
    out: Path | None = option(
        "Write the table (NAME.csv) or the figure (any other ending) to this file.",
        *(OUTPUT, "not written", "FILE"),
    )
    as_json: Json = False
    proxy: str | None = described(RUN)
    target: str | None = described(RUN)
    reference: str | None = described(RUN)


@takes({"": "masksearch_bench.proxy:proxy_card"})
def proxy_card(options: ProxyCardOptions) -> None:
    """Say how far to trust short runs: whether they rank masks as longer ones or GLUE do.

    Bands of density, bootstrap samples and what is asked of a short run: proxy_card.

    Examples:
        masksearch proxy-card runs/search
        masksearch proxy-card runs/search --target score --out runs/card.png
    """
    from masksearch.cli.output import print_table
    from masksearch.report.pictures import write_proxy
    from masksearch.report.tables import REFERENCE, budgets_table
    from masksearch_bench.proxy import proxy_card as card_of

    out = options.out
    card = card_of(options.runs, storage=options.storage, **described_values(options))
    if out is not None and out.suffix == ".csv":
        out.parent.mkdir(parents=True, exist_ok=True)
        card.frame.to_csv(out, index=False)
    elif out is not None:
        write_proxy(card, out)
    if options.as_json:
        typer.echo(json.dumps(card.to_dict()))
        return
    print_table(budgets_table(card))
    if card.frame["reference"].any():
        typer.echo(f"{REFERENCE} the reference itself")
    typer.echo(card.verdict())
    if out is not None:
        typer.echo(f"written: {out}")
