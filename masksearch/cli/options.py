"""Options that several commands share."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

Command = TypeVar("Command", bound=Callable[..., None])

Run = Annotated[Path, typer.Option("--run", help="Folder of the run; resumed if it exists.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
Slots = Annotated[int, typer.Option(help="Jobs at a time; locally 1 works in this process.")]
Storage = Annotated[
    str | None, typer.Option(help="journal:PATH or postgresql://...; default: SQLite in the run.")
]
Log = Annotated[
    str | None, typer.Option(help="csv, tensorboard, mlflow, wandb; separated by commas.")
]

JUDGING: dict[str, tuple[Any, Any]] = {
    "evaluator": (
        Annotated[
            str | None, typer.Option(help="Your own evaluator: file.py:function that returns one.")
        ],
        None,
    ),
    "corpus": (
        Annotated[
            str | None,
            typer.Option(
                help="Plain text: a file, a folder or hf:OWNER/NAME; default: the planted corpus."
            ),
        ],
        None,
    ),
    "tokenizer": (
        Annotated[
            str | None,
            typer.Option(help="A tokenizer on disk or on the Hub; default: trained and cached."),
        ],
        None,
    ),
    "weights": (
        Annotated[
            str | None,
            typer.Option(help="Start from a checkpoint: a folder or a name on the Hub."),
        ],
        None,
    ),
    "glue": (
        Annotated[
            str | None,
            typer.Option(
                help="Fine-tune on GLUE: a folder in its TSV layout, or hf:nyu-mll/glue."
            ),
        ],
        None,
    ),
    "squad": (
        Annotated[
            str | None,
            typer.Option(help="Fine-tune on SQuAD: a JSON file, or a folder with train and dev."),
        ],
        None,
    ),
    "swag": (
        Annotated[
            str | None,
            typer.Option(help="Fine-tune on SWAG: a file (JSONL, CSV, Parquet), or a folder."),
        ],
        None,
    ),
    "tasks": (
        Annotated[str | None, typer.Option(help="GLUE tasks, such as SST-2,QQP,MNLI.")],
        None,
    ),
    "rows": (
        Annotated[int | None, typer.Option(help="Largest number of training rows of a task.")],
        None,
    ),
    "size": (
        Annotated[
            str | None, typer.Option(help="Encoder: nano, tiny, mini, small, medium, base.")
        ],
        None,
    ),
    "length": (Annotated[int | None, typer.Option(help="Positions of a sequence.")], None),
    "vocabulary": (
        Annotated[int | None, typer.Option(help="Size of the vocabulary that is trained.")],
        None,
    ),
    "steps": (Annotated[int | None, typer.Option(help="Optimiser steps of pre-training.")], None),
    "batch": (Annotated[int | None, typer.Option(help="Sequences of a batch.")], None),
    "lr": (Annotated[float | None, typer.Option(help="Peak learning rate.")], None),
    "preset": (
        Annotated[str | None, typer.Option(help="Published settings: sparsebert.")],
        None,
    ),
    "set": (
        Annotated[
            list[str] | None,
            typer.Option(
                help="Any other setting of the evaluator, as name=value; repeatable: "
                "precision=bfloat16, pretraining=mlm+order, epochs=2, finetune_seeds=3, frozen=1."
            ),
        ],
        None,
    ),
    "reuse": (
        Annotated[
            Path | None,
            typer.Option(help="Keep results there; what it holds is not run again in any study."),
        ],
        None,
    ),
    "latency": (
        Annotated[
            bool,
            typer.Option("--latency", help="Also minimise the measured time over dense's."),
        ],
        False,
    ),
    "memory": (
        Annotated[bool, typer.Option("--memory", help="Also minimise the bytes of the scores.")],
        False,
    ),
    "cost_length": (
        Annotated[int | None, typer.Option(help="Positions at which these costs are taken.")],
        None,
    ),
}

PLACING: dict[str, tuple[Any, Any]] = {
    "executor": (
        Annotated[str, typer.Option(help="local or ray.")],
        "local",
    ),
    "slots": (Slots, 1),
    "limit": (
        Annotated[
            float | None, typer.Option(help="Seconds after which a trial is ended as failed.")
        ],
        None,
    ),
    "address": (
        Annotated[
            str | None,
            typer.Option(help="ray: 'auto' or HOST:PORT of a cluster; default: a Ray of its own."),
        ],
        None,
    ),
    "cpus": (
        Annotated[float | None, typer.Option(help="ray: CPU cores of a trial; default: 1.")],
        None,
    ),
    "gpus": (
        Annotated[float | None, typer.Option(help="ray: GPUs of a trial, such as 0.25.")],
        None,
    ),
    "scratch": (
        Annotated[
            str | None,
            typer.Option(help="ray: s3://... or a path, where nodes do not share the run folder."),
        ],
        None,
    ),
}


def taking(*tables: Mapping[str, tuple[Any, Any]]) -> Callable[[Command], Command]:
    """Gives a command that ends in `**given` the options of these tables."""

    def decorate(command: Command) -> Command:
        own = inspect.signature(command, eval_str=True).parameters.values()
        named = [p for p in own if p.kind is not inspect.Parameter.VAR_KEYWORD]
        shared = [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind
            )
            for table in tables
            for name, (kind, default) in table.items()
        ]
        everything = [*named, *shared]
        command.__signature__ = inspect.Signature(everything)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in everything}
        return command

    return decorate
