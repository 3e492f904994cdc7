"""The command that says how far to trust a short run: proxy-card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from masksearch.cli import options
from masksearch.cli.options import OUTPUT, declare

RUNS = "Which runs"
STATISTICS = "How agreement is measured"


def proxy_card(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="Run folders of searches or comparisons.", rich_help_panel=RUNS, metavar="RUN"
        ),
    ],
    proxy: Annotated[
        str, declare("The reported value that a short run gives.", RUNS, "", "NAME")
    ] = "loss",
    target: Annotated[
        str | None,
        declare(
            "The reported value that counts, such as glue.",
            RUNS,
            "--proxy, after the most steps",
            "NAME",
        ),
    ] = None,
    reference: Annotated[
        Path | None,
        declare(
            "Run folder that judges the others, where their protocols differ.",
            RUNS,
            "none",
            "FOLDER",
        ),
    ] = None,
    bands: Annotated[
        str | None,
        declare(
            "Bands of density, within which masks are ranked: how many, or their inner edges "
            "such as 0.05,0.1.",
            STATISTICS,
            "factors of two",
            "BANDS",
        ),
    ] = None,
    fraction: Annotated[
        float,
        declare(
            "A short run is trusted where it ranks masks as the reference does, at least to this "
            "share of how well two seeds of the reference agree.",
            STATISTICS,
            "",
            "SHARE",
        ),
    ] = 0.9,
    resamples: Annotated[
        int, declare("Bootstrap samples behind the intervals.", STATISTICS, "", "N")
    ] = 1000,
    seed: Annotated[int, declare("Seed of the bootstrap.", STATISTICS, "", "N")] = 0,
    out: Annotated[
        Path | None, declare("Write the figure to this file.", OUTPUT, "not written", "FILE")
    ] = None,
    csv: Annotated[
        Path | None, declare("Write the table to this file.", OUTPUT, "not written", "FILE")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Say how far to trust short runs: whether they rank masks as longer ones or GLUE do.

    Examples:
        masksearch proxy-card runs/search
        masksearch proxy-card runs/search --target score --out runs/card.png
    """
    from masksearch.cli.output import print_proxy_card
    from masksearch.report.proxy import proxy_card as card_of

    card = card_of(
        runs,
        proxy=proxy,
        target=target,
        reference=reference,
        bands=bands_of(bands),
        fraction=fraction,
        resamples=resamples,
        seed=seed,
    )
    if csv is not None:
        csv.parent.mkdir(parents=True, exist_ok=True)
        card.frame().to_csv(csv, index=False)
    if out is not None:
        card.plot(out)
    if as_json:
        typer.echo(json.dumps(card.to_dict()))
        return
    print_proxy_card(card)
    typer.echo(card.verdict())
    for path in (out, csv):
        if path is not None:
            typer.echo(f"written: {path}")


def bands_of(text: str | None) -> int | list[float] | None:
    """Bands from a word: a whole number of them, or their edges."""
    if text is None:
        return None
    if text.strip().isdigit():
        return int(text)
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise options.OptionsError(
            f"--bands takes a number, or edges between commas, such as 0.05,0.1; got {text!r}"
        ) from None
