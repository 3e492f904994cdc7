"""The command line. Heavy imports stand inside the commands, so that `--help` is quick."""

from __future__ import annotations

import json
import os
import shlex
import sys
import traceback
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from masksearch.errors import MaskSearchError

if TYPE_CHECKING:
    from masksearch.contracts import Listener, Objective

ClickError: Any = typer.BadParameter.__mro__[2]  # typer's ClickException, wherever it lives


class UsageMistake(MaskSearchError):
    """Options that do not go together."""


app = typer.Typer(
    name="masksearch",
    help="Search the attention masks of Transformers, and compare them with hand-designed ones.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

RunOption = Annotated[Path, typer.Option("--run", help="Folder of the run; resumed if it exists.")]
Evaluator = Annotated[
    str | None, typer.Option(help="Your own evaluator: file.py:function that returns one.")
]
Corpus = Annotated[
    Path | None, typer.Option(help="Plain text, a file or a folder; default: the planted corpus.")
]
Tokenizer = Annotated[
    str | None,
    typer.Option(help="A tokenizer on disk or on the Hub; default: trained and cached."),
]
Glue = Annotated[Path | None, typer.Option(help="Folder in GLUE's TSV layout.")]
Tasks = Annotated[str | None, typer.Option(help="GLUE tasks, such as SST-2,QQP,MNLI.")]
Rows = Annotated[int | None, typer.Option(help="Largest number of training rows of a task.")]
Size = Annotated[str | None, typer.Option(help="Encoder: nano, tiny, mini, small, medium, base.")]
Length = Annotated[int | None, typer.Option(help="Positions of a sequence.")]
Vocabulary = Annotated[int | None, typer.Option(help="Size of the vocabulary that is trained.")]
Steps = Annotated[int | None, typer.Option(help="Optimiser steps of pre-training.")]
Batch = Annotated[int | None, typer.Option(help="Sequences of a batch.")]
Lr = Annotated[float | None, typer.Option(help="Peak learning rate.")]
Slots = Annotated[int, typer.Option(help="Worker processes; 1 works in this one.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]


@app.command()
def demo(
    run: RunOption = Path("runs/demo"),
    slots: Slots = 2,
) -> None:
    """Search the planted corpus with DAM, TPE and random search, and say who found its mask."""
    from masksearch.demo import run_demo

    page, lines = run_demo(run, watching, slots=slots)
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
    as_json: Json = False,
) -> None:
    """What a mask is: sparsity, block density, empty rows, and a picture."""
    from masksearch.choices import read_mask
    from masksearch.masks.lower import block_view
    from masksearch.masks.measure import empty_rows, hops
    from masksearch.printing import sketch

    if length < 1 or block < 1:
        raise UsageMistake(f"--length and --block are at least 1, got {length} and {block}")
    found = read_mask(mask)
    table = found.dense(length, layers or found.layers or 1, heads or found.heads or 1)
    empty = empty_rows(table)
    facts: dict[str, Any] = {
        "mask": str(found),
        "shape": list(table.shape),
        "sparsity": 1 - float(table.double().mean()),
        "block_density": float(block_view(found, length, block).double().mean()),
        "block": block,
        "empty_rows": empty,
        "hops": hops(table) if not empty else None,
    }
    if png is not None:
        from masksearch.results.pictures import plot_masks

        png.parent.mkdir(parents=True, exist_ok=True)
        picture = plot_masks({str(found)[:60]: table}, length, *table.shape[:2])
        picture.savefig(png, dpi=150, bbox_inches="tight")
        facts["png"] = str(png)
    if as_json:
        typer.echo(json.dumps(facts))
        return
    size = "x".join(map(str, table.shape))
    typer.echo(f"{found}  [layers x heads x queries x keys: {size}]")
    typer.echo(f"sparsity {facts['sparsity']:.5f}   block density {facts['block_density']:.3f} ")
    typer.echo(f"(blocks of {block})   empty rows {empty}   hops {facts['hops']}")
    if empty:
        typer.echo("a mask with empty rows cannot be attached; add for example | window(0)")
    if png is None:
        for row in sketch(table):
            typer.echo(row)
    else:
        typer.echo(f"picture: {png}")


@app.command()
def evaluate(
    mask: Annotated[str, typer.Argument(help="An expression, a family, or a mask file.")],
    seeds: Annotated[int, typer.Option(help="Number of seeds, from 0.")] = 1,
    run: Annotated[
        Path | None,
        typer.Option("--run", help="Keep the results there; default: a temporary one."),
    ] = None,
    slots: Slots = 1,
    evaluator: Evaluator = None,
    corpus: Corpus = None,
    tokenizer: Tokenizer = None,
    glue: Glue = None,
    tasks: Tasks = None,
    rows: Rows = None,
    size: Size = None,
    length: Length = None,
    vocabulary: Vocabulary = None,
    steps: Steps = None,
    batch: Batch = None,
    lr: Lr = None,
    as_json: Json = False,
) -> None:
    """One mask's score under a protocol, with its interval over seeds."""
    import tempfile

    from masksearch.choices import Judging, read_mask
    from masksearch.driver import compare
    from masksearch.executors.local import Local
    from masksearch.printing import last_line, print_comparison

    judging = Judging(
        evaluator, corpus, tokenizer, glue, tasks, rows, size, length, vocabulary, steps, batch, lr
    )
    built, found = judging.build(), read_mask(mask)
    with tempfile.TemporaryDirectory() as scratch:
        folder = run or Path(scratch) / "evaluate"
        with watching(built.objectives, seeds, "evaluate") as listener:
            comparison = compare(
                {mask: found},
                built,
                run=folder,
                seeds=range(seeds),
                executor=Local(slots),
                listeners=[listener],
            )
    failed = [record for record in comparison.records if record.status == "failed"]
    print_comparison(comparison, as_json)
    if failed:
        raise MaskSearchError(f"{len(failed)} of {seeds} runs failed: {last_line(failed[0])}")


@app.command()
def search(
    space: Annotated[
        str | None, typer.Argument(help="file.py:function that draws a mask; none for dam.")
    ] = None,
    run: RunOption = Path("runs/search"),
    strategy: Annotated[str, typer.Option(help="random, tpe or dam.")] = "tpe",
    trials: Annotated[int | None, typer.Option(help="End after that many trials.")] = None,
    seconds: Annotated[float | None, typer.Option(help="End after that much time.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of proposals and evaluations.")] = 0,
    storage: Annotated[
        str | None, typer.Option(help="journal:PATH or a database URL; default: SQLite.")
    ] = None,
    constraint: Annotated[
        list[str] | None, typer.Option(help="Such as 'sparsity >= 0.9'; repeatable.")
    ] = None,
    families: Annotated[
        bool, typer.Option("--families", help="Judge the hand-designed families first.")
    ] = False,
    density: Annotated[
        float | None, typer.Option(help="dam: density that the gates are trained for.")
    ] = None,
    structure: Annotated[
        str | None, typer.Option(help="dam: free, symmetric, toeplitz, toeplitz+global, block.")
    ] = None,
    signed: Annotated[
        bool, typer.Option("--signed", help="dam: offsets have a direction.")
    ] = False,
    gate_layers: Annotated[
        int | None, typer.Option(help="dam: layers with gates of their own; 1 = shared.")
    ] = None,
    dam_steps: Annotated[int | None, typer.Option(help="dam: optimiser steps.")] = None,
    slots: Slots = 1,
    evaluator: Evaluator = None,
    corpus: Corpus = None,
    tokenizer: Tokenizer = None,
    glue: Glue = None,
    tasks: Tasks = None,
    rows: Rows = None,
    size: Size = None,
    length: Length = None,
    vocabulary: Vocabulary = None,
    steps: Steps = None,
    batch: Batch = None,
    lr: Lr = None,
) -> None:
    """Search masks. Repeating the command goes on where it stopped."""
    from masksearch.choices import Judging, dam_options
    from masksearch.driver import search as run_search
    from masksearch.executors.local import Local
    from masksearch.masks import FAMILIES
    from masksearch.printing import print_front
    from masksearch.user_code import load_function

    if space is None and strategy != "dam":
        raise UsageMistake(f"strategy {strategy!r} needs a space: file.py:function")
    judging = Judging(
        evaluator, corpus, tokenizer, glue, tasks, rows, size, length, vocabulary, steps, batch, lr
    )
    built = judging.build()
    options = dam_options(density, structure, signed, gate_layers, dam_steps, strategy)
    if trials is None and seconds is None:
        trials = 20
    baselines = FAMILIES if families else {}
    total = None if trials is None else trials + len(baselines)
    with watching(built.objectives, total, strategy) as listener:
        study = run_search(
            load_function(space) if space is not None and strategy != "dam" else None,
            built,
            run=run,
            storage=storage,
            trials=trials,
            seconds=seconds,
            strategy=strategy,
            strategy_options=options,
            seed=seed,
            executor=Local(slots),
            constraints=tuple(constraint or ()),
            baselines=baselines,
            listeners=[listener],
        )
    print_front(study)
    typer.echo(f"run folder: {run}   page: masksearch report {shlex.quote(str(run))}")


@app.command()
def compare(
    mask: Annotated[list[str] | None, typer.Option(help="MASK or NAME=MASK; repeatable.")] = None,
    found: Annotated[
        list[Path] | None, typer.Option(help="Run folder of a search: its best mask; repeatable.")
    ] = None,
    sparsity: Annotated[
        list[float] | None, typer.Option(help="Least sparsity of the masks from --found.")
    ] = None,
    run: RunOption = Path("runs/compare"),
    seeds: Annotated[int, typer.Option(help="Number of seeds.")] = 3,
    first_seed: Annotated[
        int, typer.Option(help="First seed; use others than the search's.")
    ] = 1000,
    controls: Annotated[
        bool, typer.Option(help="Also judge dense attention, the families and random keys.")
    ] = True,
    slots: Slots = 1,
    evaluator: Evaluator = None,
    corpus: Corpus = None,
    tokenizer: Tokenizer = None,
    glue: Glue = None,
    tasks: Tasks = None,
    rows: Rows = None,
    size: Size = None,
    length: Length = None,
    vocabulary: Vocabulary = None,
    steps: Steps = None,
    batch: Batch = None,
    lr: Lr = None,
    as_json: Json = False,
) -> None:
    """Judge masks side by side on shared seeds: searched, hand-designed, random, dense."""
    from masksearch.choices import Judging, found_masks, named_mask, random_like
    from masksearch.driver import Study
    from masksearch.driver import compare as run_compare
    from masksearch.executors.local import Local
    from masksearch.masks import FAMILIES, full
    from masksearch.printing import print_comparison

    judging = Judging(
        evaluator, corpus, tokenizer, glue, tasks, rows, size, length, vocabulary, steps, batch, lr
    )
    built = judging.build()
    mine = dict(named_mask(text) for text in mask or [])
    for folder in found or []:
        for name, chosen in found_masks(Study(folder), sparsity or []).items():
            mine[name if name not in mine else f"{name} ({folder.name})"] = chosen
    candidates = dict(mine)
    if controls:
        alike = {
            f"random like {name}": random_like(chosen, built.shape.length, seed=0)
            for name, chosen in mine.items()
            if name not in FAMILIES
        }
        candidates = {"dense": full(), **FAMILIES, **alike, **mine}
    with watching(built.objectives, len(candidates) * seeds, "compare") as listener:
        comparison = run_compare(
            candidates,
            built,
            run=run,
            seeds=range(first_seed, first_seed + seeds),
            executor=Local(slots),
            listeners=[listener],
        )
    print_comparison(comparison, as_json)
    if not as_json:
        typer.echo(comparison.verdict())
        typer.echo(f"run folder: {run}   page: masksearch report {shlex.quote(str(run))}")


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="A run folder, or one that holds several.")],
    out: Annotated[Path | None, typer.Option(help="The page; default: report.html in it.")] = None,
    storage: Annotated[
        str | None, typer.Option(help="The search's --storage, if it had one.")
    ] = None,
) -> None:
    """Write the page of a run folder, and its figures as PNG and PDF."""
    from masksearch.reporting import report_on

    if not run.is_dir():
        raise FileNotFoundError(f"{run}: no such run folder")
    page = report_on(run, out or run / "report.html", storage=storage)
    typer.echo(f"report: {page.resolve()}")


# -- what the commands share -----------------------------------------------------------------
def watching(
    objectives: tuple[Objective, ...], total: int | None, title: str
) -> AbstractContextManager[Listener]:
    """A progress display on standard error."""
    from masksearch.results.listeners import Watcher

    return Watcher(objectives, total, title)


def main() -> None:
    """Entry point: a user's mistake is one line on standard error and exit code 2."""
    try:
        code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        typer.echo("stopped; repeat the command to go on where it stopped", err=True)
        sys.exit(130)
    except ClickError as error:
        fail(error.format_message())
    except (MaskSearchError, ValueError, OSError) as error:
        if os.environ.get("MASKSEARCH_DEBUG"):
            traceback.print_exc()
        fail(str(error))
    sys.exit(code or 0)


def fail(message: str) -> None:
    """One line, exit code 2."""
    typer.echo(f"error: {' '.join(message.split())}", err=True)
    sys.exit(2)
