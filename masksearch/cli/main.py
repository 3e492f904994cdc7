"""The command line. Heavy imports stand inside the commands, so that `--help` is quick."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import traceback
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from masksearch.cli import options
from masksearch.cli.attach import attach
from masksearch.cli.pretrain import pretrain
from masksearch.cli.proxy import proxy_card
from masksearch.cli.search import compare, evaluate, resume, search
from masksearch.errors import MaskSearchError
from masksearch.user_code import load_file

ClickError: Any = typer.BadParameter.__mro__[2]  # typer's ClickException, wherever it lives

INTERRUPTED = 130  # exit code after Ctrl-C, as shells have it
LONGEST_TABLE = 4096  # positions up to which `show` looks at every cell
DOTS = 1024  # rows of tiles in the picture of a longer one
RESUMABLE = (
    "stopped; what was finished is kept. "
    "`masksearch resume RUN`, or the same command again, goes on where it stopped"
)

app = typer.Typer(
    name="masksearch",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def load_user_files(
    load: Annotated[
        list[Path] | None,
        typer.Option(help="A Python file whose mask leaves the command knows; repeatable."),
    ] = None,
) -> None:
    """Search the attention masks of Transformers, and compare them with hand-designed ones."""
    for path in load or []:
        load_file(path)


@app.command()
def demo(
    run: options.Run = Path("runs/demo"),
    slots: options.Slots = 2,
) -> None:
    """Search the planted corpus with DAM, TPE and random search, and say who found its mask."""
    from masksearch.cli.demo import run_demo

    page, lines = run_demo(run, slots=slots)
    for line in lines:
        typer.echo(line)
    typer.echo(f"report: {page.resolve()}")


@app.command()
def show(
    mask: Annotated[
        str, typer.Argument(help="An expression, such as 'bigbird(2,1,2)', or a file.")
    ],
    length: Annotated[int, typer.Option(help="Positions.")] = 128,
    layers: Annotated[int | None, typer.Option(help="Layers; default: those of the mask.")] = None,
    heads: Annotated[int | None, typer.Option(help="Heads; default: those of the mask.")] = None,
    block: Annotated[int, typer.Option(help="Side of a kernel's block, in positions.")] = 64,
    png: Annotated[Path | None, typer.Option(help="Write the picture there.")] = None,
    nearest: Annotated[
        bool, typer.Option("--nearest", help="Name the structured mask that explains it best.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """What a mask is: sparsity, block density, empty rows, and a picture."""
    from masksearch.cli.build import read_mask
    from masksearch.cli.output import sketch
    from masksearch.errors import UncountedHops
    from masksearch.masks.hops import hops
    from masksearch.masks.lower import block_view, row_counts

    if length < 1 or block < 1:
        raise ValueError(f"--length and --block are at least 1, got {length} and {block}")
    if nearest and length > LONGEST_TABLE:
        raise ValueError(f"--nearest takes --length up to {LONGEST_TABLE}, got {length}")
    found = read_mask(mask)
    layers = found.layers or 1 if layers is None else layers
    heads = found.heads or 1 if heads is None else heads
    found.counts(layers, heads)
    side = 1 if length <= LONGEST_TABLE else -(-length // DOTS)
    if side == 1:
        table = found.dense(length, layers, heads)
    else:  # a picture of tiles: the table of all cells would not fit in memory
        table = block_view(found, length, side)
    counts = row_counts(found, length)
    empty = int((counts == 0).sum())
    steps, uncounted = math.inf, ""
    if not empty:
        try:
            steps = hops(found, length)
        except UncountedHops as error:
            uncounted = str(error)
    facts: dict[str, Any] = {
        "mask": str(found),
        "shape": [*table.shape[:2], length, length],
        "sparsity": 1 - int(counts.sum()) / (counts.numel() * length),
        "block_density": float(block_view(found, length, block).double().mean()),
        "block": block,
        "empty_rows": empty,
        "hops": int(steps) if steps < math.inf else None,  # JSON knows no infinity
    }
    if uncounted:
        facts["hops_uncounted"] = uncounted
    if nearest:
        from masksearch.masks.nearest import nearest_family

        named = nearest_family(found, length, layers=table.shape[0], heads=table.shape[1])
        facts["nearest"] = {
            "mask": named.text, "iou": named.iou, "explained": named.explained
        }  # fmt: skip
    if png is not None:
        from masksearch.report.figures.masks import plot_masks

        png.parent.mkdir(parents=True, exist_ok=True)
        title = str(found)[:60] if side == 1 else f"tiles of {side}: {str(found)[:40]}"
        picture = plot_masks({title: table}, table.shape[-1], *table.shape[:2])
        picture.savefig(png, dpi=150, bbox_inches="tight")
        facts["png"] = str(png)
    if as_json:
        typer.echo(json.dumps(facts))
        return
    size = "x".join(map(str, facts["shape"]))
    typer.echo(f"{found}  [layers x heads x queries x keys: {size}]")
    typer.echo(f"sparsity {facts['sparsity']:.5f}   block density {facts['block_density']:.3f} ")
    reach = "infinite" if facts["hops"] is None else facts["hops"]  # as under a causal mask
    reach = f"not counted ({uncounted})" if uncounted else reach
    typer.echo(f"(blocks of {block})   empty rows {empty}   hops {reach}")
    if nearest:
        verdict = "explains it" if named.explained else "does not explain it"
        typer.echo(f"nearest structured mask ({verdict}; IoU {named.iou:.3f}): {named.text}")
    if empty:
        typer.echo("a mask with empty rows cannot be attached; add for example | window(0)")
    if png is None:
        for row in sketch(table):
            typer.echo(row)
    else:
        typer.echo(f"picture: {png}")


app.command()(evaluate)
app.command()(search)


@app.command()
def status(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    as_json: options.Json = False,
) -> None:
    """What runs, what failed and why, the best so far, the time left."""
    from masksearch.study.status import read_status, status_lines

    state = read_status(run)
    if as_json:
        typer.echo(json.dumps(state))
        return
    for line in status_lines(run, state):
        typer.echo(line)


app.command()(resume)
app.command()(compare)
app.command("proxy-card")(proxy_card)
app.command()(pretrain)
app.command()(attach)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="A run folder, or one that holds several.")],
    out: Annotated[Path | None, typer.Option(help="The page; default: report.html in it.")] = None,
    storage: options.Storage = None,
) -> None:
    """Write the page of a run folder, and its figures as PNG and PDF."""
    from masksearch.report.collect import report_on

    if not run.is_dir():
        raise FileNotFoundError(f"{run}: no such run folder")
    page = report_on(run, out or run / "report.html", storage=storage)
    typer.echo(f"report: {page.resolve()}")


def main() -> None:
    """Entry point: a user's mistake is one line on standard error and exit code 2."""
    signal.signal(signal.SIGTERM, raise_interrupt)
    warnings.formatwarning = one_line
    try:
        code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    except ClickError as error:
        fail(error.format_message())
    except (MaskSearchError, ValueError, OSError) as error:
        if os.environ.get("MASKSEARCH_DEBUG"):
            traceback.print_exc()
        fail(str(error))
    if code == INTERRUPTED:  # typer answers Ctrl-C with this exit code
        typer.echo(RESUMABLE, err=True)
    sys.exit(code or 0)


def fail(message: str) -> None:
    """One line, exit code 2."""
    typer.echo(f"error: {' '.join(message.split())}", err=True)
    sys.exit(2)


def one_line(message: Warning | str, *where: object, **line: object) -> str:
    """A warning as people read it: without the place in the code."""
    return f"warning: {' '.join(str(message).split())}\n"


def raise_interrupt(number: int, frame: object) -> None:
    """A cluster's polite end (SIGTERM) is Ctrl-C."""
    raise KeyboardInterrupt
