"""The command that takes a mask out of a run: export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from masksearch.cli import options
from masksearch.cli.options import COMPARED, OUTPUT, OptionsError, declare

if TYPE_CHECKING:
    from masksearch.masks import Mask


def export(
    mask: options.MaskArgument,
    out: Annotated[
        Path,
        declare(
            "The file: NAME.json (any mask), NAME.safetensors (tables as tensors) or NAME.npy (a "
            "block layout of 0 and 1, for block-sparse kernels).",
            OUTPUT,
            "",
            "FILE",
        ),
    ],
    block: Annotated[
        int | None,
        declare("NAME.npy: side of a block, in positions.", COMPARED, "none", "N"),
    ] = None,
    length: Annotated[
        int | None,
        declare("NAME.npy: positions that the layout covers.", COMPARED, "none", "N"),
    ] = None,
) -> None:
    """Write a mask to a file: the mask of a trial, the best of a run, or any other.

    Examples:
        masksearch export "runs/search#7" --out mask.json
        masksearch export "longformer(16, 2)" --out layout.npy --block 16 --length 128
    """
    from masksearch.masks import parse
    from masksearch.masks.files import save_mask
    from masksearch.masks.text import short_text

    found = parse(mask)
    if out.suffix == ".npy":
        if block is None or length is None:
            raise OptionsError(
                "a block layout needs --block and --length, such as --block 64 --length 512"
            )
        note = save_layout(found, out, block, length)
        use = f"masks.from_block_layout(numpy.load({str(out)!r}), {block})"
    else:
        if block is not None or length is not None:
            raise OptionsError(
                f"--block and --length belong to a block layout, --out NAME.npy; got {out.name!r}"
            )
        save_mask(found, out)
        note = short_text(found)
        use = f"ms.load_mask({str(out)!r}), or masksearch report {out}"
    typer.echo(f"{out}: {note}; use it: {use}")


def save_layout(mask: Mask, out: Path, block: int, length: int) -> str:
    """Writes which blocks of a mask hold a kept cell.

    Returns:
        What the file holds, in words.

    Raises:
        OptionsError: If the mask tells layers apart.
    """
    import numpy as np

    from masksearch.masks import to_block_layout

    if (mask.layers or 1) > 1:
        raise OptionsError(
            f"a block layout has no layers, this mask has {mask.layers}; in Python, "
            "masks.layer_of(mask, 0) is its first layer"
        )
    if block < 1 or length < 1:
        raise ValueError(f"--block and --length are at least 1, got {block} and {length}")
    mask.refuse_tokens()
    layout = to_block_layout(mask, length, block, heads=mask.heads or 1)
    whole = float(layout.double().mean())
    kept = mask.density(length)
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("wb") as file:
        np.save(file, layout.numpy().astype(np.uint8), allow_pickle=False)
    size = "x".join(map(str, layout.shape))
    return f"{size} blocks of {block} positions, {whole:.1%} of them kept (the mask: {kept:.1%})"
