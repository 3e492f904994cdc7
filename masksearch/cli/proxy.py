"""The command that says how far to trust a short run: proxy-card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from masksearch.cli import options


def proxy_card(
    runs: Annotated[list[Path], typer.Argument(help="Run folders of searches or comparisons.")],
    proxy: Annotated[str, typer.Option(help="Reported value that is cheap.")] = "loss",
    target: Annotated[
        str | None,
        typer.Option(help="Reported value that counts; default: the proxy at the longest budget."),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(help="Run folder that judges the others, where protocols differ."),
    ] = None,
    bands: Annotated[
        str | None,
        typer.Option(
            help="Density bands: a number, or inner edges such as 0.05,0.1; "
            "default: factors of two."
        ),
    ] = None,
    top: Annotated[
        str, typer.Option(help="Sizes of the best sets: counts, or shares below 1.")
    ] = "1,3,0.25",
    fraction: Annotated[
        float, typer.Option(help="Share of the noise ceiling that a trusted budget keeps.")
    ] = 0.9,
    resamples: Annotated[int, typer.Option(help="Draws of the bootstrap.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Write the figure there.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write the table there.")] = None,
    as_json: options.Json = False,
) -> None:
    """How far to trust a short run that judges masks: from which budget on, and how well."""
    from masksearch.cli.output import print_proxy_card
    from masksearch.report.proxy import proxy_card as card_of

    card = card_of(
        runs,
        proxy=proxy,
        target=target,
        reference=reference,
        bands=bands_of(bands),
        top=numbers("--top", top),
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
    return int(text) if text.strip().isdigit() else numbers("--bands", text)


def numbers(option: str, text: str) -> list[float]:
    """Numbers between commas.

    Raises:
        OptionsError: If one is none.
    """
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise options.OptionsError(
            f"{option} takes numbers between commas, such as 0.05,0.1; got {text!r}"
        ) from None
