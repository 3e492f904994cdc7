"""The command line. Heavy imports stand inside the commands, so that `--help` is quick."""

from __future__ import annotations

import json
import math
import os
import platform
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from masksearch.cli import options
from masksearch.cli.allocate import allocate
from masksearch.cli.attach import attach
from masksearch.cli.export import export
from masksearch.cli.help import WIDEST, CommandsInGroups, CommandWithExamples
from masksearch.cli.options import COMPARED, OUTPUT, RUN, declare
from masksearch.cli.pretrain import pretrain
from masksearch.cli.proxy import proxy_card
from masksearch.cli.search import compare, evaluate, resume, search
from masksearch.cli.verdict import verdict
from masksearch.errors import MaskSearchError
from masksearch.user_code import load_file

ClickError: Any = typer.BadParameter.__mro__[2]  # typer's ClickException, wherever it lives

Command = TypeVar("Command", bound=Callable[..., Any])

INTERRUPTED = 130  # exit code after Ctrl-C, as shells have it
LONGEST_TABLE = 4096  # positions up to which `show` looks at every cell
DOTS = 1024  # rows of tiles in the picture of a longer one

# Groups of commands in `masksearch --help`, in the order of use.
BEGIN = "Begin here"
STUDY = "Search, and see what was found"
MODELS = "Use a mask"

app = typer.Typer(
    name="masksearch",
    cls=CommandsInGroups,
    context_settings=WIDEST,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def command(group: str, name: str | None = None) -> Callable[[Command], Command]:
    """Makes a function a command, listed in that group, with its examples below its options."""
    return app.command(
        name, cls=CommandWithExamples, context_settings=WIDEST, rich_help_panel=group
    )


def print_versions(asked: bool) -> None:
    """Prints what a report of a mistake should say, without loading any of it."""
    if not asked:
        return
    packages = ("torch", "optuna", "transformers")
    versions = ", ".join(f"{name} {installed_version(name)}" for name in packages)
    typer.echo(f"masksearch {installed_version('masksearch')}")
    typer.echo(f"Python {platform.python_version()}, {versions}")
    raise typer.Exit


def installed_version(name: str) -> str:
    """The version of an installed package."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "(not installed)"


@app.callback()
def load_user_files(
    load: Annotated[
        list[Path] | None,
        declare(
            "A Python file with masks of your own, which the command then knows; repeatable. "
            "Stands before the command.",
            "Options",
            "none",
            "FILE.py",
        ),
    ] = None,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Print the versions of masksearch, Python, torch, optuna and transformers.",
            callback=print_versions,
            is_eager=True,
        ),
    ] = False,
) -> None:
    """Search the attention masks of Transformers, and compare them with hand-designed ones.

    Each command explains itself: masksearch COMMAND --help.
    """
    for path in load or []:
        load_file(path)


@command(BEGIN)
def demo(
    run: options.Run = Path("runs/demo"),
    slots: options.Slots = 2,
    record: Annotated[
        Path | None,
        declare(
            "Only search, with the seeds of the package's records, and write records here.",
            OUTPUT,
            "the demonstration",
            "FILE",
        ),
    ] = None,
) -> None:
    """Four strategies in four minutes look for masks whose true front is known.

    DAM, TPE, evolution and random search run once each on planted text, where the best accuracy
    of every mask is known exactly. So the page can say how near each of them came.

    Examples:
        masksearch demo
        masksearch demo --run runs/recorded --record records.json
    """
    from masksearch.cli.demo import show_demo

    show_demo(run, slots, record)


@command(BEGIN)
def show(
    mask: options.MaskArgument,
    length: Annotated[
        int, declare("Length of the sequence, in positions.", COMPARED, "", "N")
    ] = 128,
    layers: Annotated[
        int | None, declare("Layers of the model.", COMPARED, "those of the mask, else 1", "N")
    ] = None,
    heads: Annotated[
        int | None, declare("Heads of a layer.", COMPARED, "those of the mask, else 1", "N")
    ] = None,
    block: Annotated[
        int,
        declare("Side of a kernel's block, for the block density.", COMPARED, "", "POSITIONS"),
    ] = 64,
    png: Annotated[
        Path | None,
        declare(
            "Write the picture to this file.",
            OUTPUT,
            "drawn in the terminal, up to length 64",
            "FILE",
        ),
    ] = None,
    nearest: Annotated[
        bool,
        declare(
            "Also name the structured mask that explains this one best.",
            COMPARED,
            name="--nearest",
        ),
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Show what a mask is: its sparsity, block density, empty rows, and a picture.

    Examples:
        masksearch show "bigbird(2,1,2) | window(3)" --length 48
        masksearch show longformer --length 512 --png runs/longformer.png
    """
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
        from masksearch.masks.text import short_text
        from masksearch.report.figures.masks import plot_masks

        png.parent.mkdir(parents=True, exist_ok=True)
        title = short_text(found, 60)
        title = title if side == 1 else f"tiles of {side}: {short_text(found, 40)}"
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


command(STUDY)(search)


@command(STUDY)
def status(
    run: options.RunArgument,
    as_json: options.Json = False,
) -> None:
    """Print what runs, what failed and why, the best so far, and the time left.

    Examples:
        masksearch status runs/search
        masksearch status runs/search --json
    """
    from masksearch.study.status import read_status, status_lines

    state = read_status(run)
    if as_json:
        typer.echo(json.dumps(state))
        return
    for line in status_lines(run, state):
        typer.echo(line)


command(STUDY)(resume)


@command(STUDY)
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="Folders of searches and comparisons, or folders that hold several.",
            rich_help_panel=RUN,
            metavar="RUN...",
        ),
    ],
    out: Annotated[
        Path | None,
        declare(
            "Write the page to this file.",
            OUTPUT,
            "report.html in the folder; here, where there are several",
            "FILE",
        ),
    ] = None,
    watch: Annotated[
        bool,
        declare("Write the page again and again while a run goes on.", OUTPUT, name="--watch"),
    ] = False,
    storage: options.Storage = None,
) -> None:
    """Write the page of a run, or of all runs in a folder, with its figures and tables for print.

    Examples:
        masksearch report runs/search --watch
        masksearch report runs/a runs/b --out runs/all.html
    """
    from masksearch.report.collect import report_on, watch_runs

    for run in runs:
        if not run.is_dir():
            raise FileNotFoundError(f"{run}: no such run folder")
    place = out or (runs[0] / "report.html" if len(runs) == 1 else Path("report.html"))
    if not watch:
        page = report_on(runs, place, storage=storage)
        typer.echo(f"report: {page.resolve()}")
        return
    typer.echo(f"watching; the page loads itself again: {place.resolve()}")
    *_, page = watch_runs(runs, place, storage=storage)
    typer.echo(f"report: {page.resolve()}")


command(STUDY)(compare)
command(STUDY)(verdict)
command(STUDY)(evaluate)
command(STUDY, "proxy-card")(proxy_card)
command(MODELS)(allocate)
command(MODELS)(export)
command(MODELS)(attach)
command(MODELS)(pretrain)


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
        fail(usage_mistake(error))
    except (MaskSearchError, ValueError, OSError) as error:
        if os.environ.get("MASKSEARCH_DEBUG"):
            traceback.print_exc()
        fail(str(error))
    sys.exit(code or 0)  # (typer answers Ctrl-C with 130)


def usage_mistake(error: Any) -> str:
    """What typer says of words that are no command line of ours; the nearest option first."""
    near = getattr(error, "possibilities", None)
    if near:
        return f"{error.message}; did you mean {near[0]!r}?"
    said = error.format_message()
    if said.endswith("?") or error.ctx is None:
        return str(said)
    return f"{said.rstrip('.')}; see: {error.ctx.command_path} --help"


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
