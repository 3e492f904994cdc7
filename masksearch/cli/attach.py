"""The command that puts a mask on a stored model: attach."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from masksearch.cli.options import MASK_TEXT, OUTPUT, declare

if TYPE_CHECKING:
    pass

ATTACHED = "Which mask, on which model"
LONGEST = 4096  # positions that are explained where nothing is said


def attach(
    model: Annotated[
        str,
        typer.Argument(
            help="A Hugging Face model: a folder, or a name on the Hub.",
            rich_help_panel=ATTACHED,
            metavar="MODEL",
        ),
    ],
    mask: Annotated[
        str,
        typer.Argument(
            help=f"{MASK_TEXT} special_tokens(..) is taken too.",
            rich_help_panel=ATTACHED,
            metavar="MASK",
        ),
    ],
    out: Annotated[
        Path | None,
        declare(
            "Write model and mask to this folder, which ms.load_pretrained opens.",
            OUTPUT,
            "not written",
            "FOLDER",
        ),
    ] = None,
    part: Annotated[
        str | None,
        declare(
            "Part of the model that gets the mask: encoder, decoder, cross, or a submodule's "
            "name.",
            ATTACHED,
            "the whole model",
            "NAME",
        ),
    ] = None,
    backend: Annotated[
        str,
        declare(
            "What computes attention: auto (the fastest), sdpa, gather or flex.",
            ATTACHED,
            "",
            "NAME",
        ),
    ] = "auto",
    length: Annotated[
        int | None,
        declare(
            "Length of the sequences that are explained.",
            OUTPUT,
            "the model's longest, up to 4096",
            "POSITIONS",
        ),
    ] = None,
    train: Annotated[
        bool,
        declare("Explain steps of training, not inference.", OUTPUT, name="--train"),
    ] = False,
) -> None:
    """Put a mask on a model, say what computes each layer and why, and save both together.

    Examples:
        masksearch attach google-bert/bert-base-uncased longformer --out runs/masked
        masksearch attach runs/model "window(16)" --length 64 --train
    """
    from masksearch.attention.attach import attach as attach_to
    from masksearch.attention.explain import explain
    from masksearch.masks.text import parse
    from masksearch.models.checkpoints import download_checkpoint, find_local_folder
    from masksearch.models.saving import open_model, save_pretrained

    if length is not None and length < 1:
        raise ValueError(f"--length is at least 1 position, got {length}")
    found = parse(mask)
    whole = open_model(find_local_folder(model) or download_checkpoint(model))
    attach_to(whole, found, backend=backend, part=part)
    longest = getattr(whole.config, "max_position_embeddings", LONGEST)
    length = min(longest, LONGEST) if length is None else length
    typer.echo(str(explain(whole, length, train)))
    if out is not None:
        typer.echo(f"model and mask: {save_pretrained(whole, out)}")
