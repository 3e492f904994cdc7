"""Options that several commands share: each is one field, with its help, of one dataclass.

`taking(EvaluatorOptions)` gives a command the options of a dataclass; `given_to` makes the
dataclass from what the command was given; `build` makes evaluators and executors of it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

from masksearch.errors import MaskSearchError

Command = TypeVar("Command", bound=Callable[..., None])
Options = TypeVar("Options")

Run = Annotated[Path, typer.Option("--run", help="Folder of the run; resumed if it exists.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
Slots = Annotated[int, typer.Option(help="Jobs at a time; locally 1 works in this process.")]
Storage = Annotated[
    str | None, typer.Option(help="journal:PATH or postgresql://...; default: SQLite in the run.")
]
Log = Annotated[
    str | None, typer.Option(help="csv, tensorboard, mlflow, wandb; separated by commas.")
]


class OptionsError(MaskSearchError, ValueError):
    """Options that do not go together, or cannot be read."""


def option(help: str, default: Any = None) -> Any:
    """A field that is also an option of the command line."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class EvaluatorOptions:
    """How a mask is judged; None = the evaluator's own default."""

    evaluator: str | None = option("Your own evaluator: file.py:function that returns one.")
    corpus: str | None = option(
        "Plain text: a file, a folder or hf:OWNER/NAME; default: the planted corpus."
    )
    tokenizer: str | None = option("A tokenizer on disk or on the Hub; default: trained, cached.")
    weights: str | None = option("Start from a checkpoint: a folder or a name on the Hub.")
    glue: str | None = option("Fine-tune on GLUE: a folder in its TSV layout, or hf:nyu-mll/glue.")
    squad: str | None = option("Fine-tune on SQuAD: a JSON file, or a folder with train and dev.")
    swag: str | None = option("Fine-tune on SWAG: a file (JSONL, CSV, Parquet), or a folder.")
    tasks: str | None = option("GLUE tasks, such as SST-2,QQP,MNLI; your own as file.py:NAME.")
    rows: int | None = option("Largest number of training rows of a task.")
    size: str | None = option("Encoder: nano, tiny, mini, small, medium, base.")
    length: int | None = option("Positions of a sequence.")
    vocabulary: int | None = option("Size of the vocabulary that is trained.")
    steps: int | None = option("Optimiser steps of pre-training.")
    batch: int | None = option("Sequences of a batch.")
    lr: float | None = option("Peak learning rate.")
    preset: str | None = option("Published settings: sparsebert.")
    set: list[str] | None = option(  # noqa: RUF009
        "Any other setting of the evaluator, as name=value; repeatable: precision=bfloat16, "
        "pretraining=mlm+order, epochs=2, finetune_seeds=3, frozen=1."
    )
    reuse: Path | None = option(  # noqa: RUF009
        "Keep results there; what it holds is not run again in any study."
    )
    latency: bool = option("Also minimise the measured time over dense's.", False)
    memory: bool = option("Also minimise the bytes of the scores.", False)
    cost_length: int | None = option("Positions at which these costs are taken.")


@dataclass(frozen=True)
class DamOptions:
    """Settings of the strategies that train one model for many masks."""

    density: float | None = option("dam: density that the gates are trained for.")
    structure: str | None = option("dam: free, symmetric, toeplitz, toeplitz+global, block.")
    signed: bool = option("dam: offsets have a direction.", False)
    gate_layers: int | None = option("dam: layers with gates of their own; 1 = shared.")
    dam_steps: int | None = option("dam: optimiser steps.")
    dam: list[str] | None = option(  # noqa: RUF009
        "dam: any other setting of its gates or run, as name=value; repeatable: "
        "levels=2, control=multiplier, form=log, preset=sparsebert, densities=[0.02,0.05]."
    )
    shared: list[str] | None = option(  # noqa: RUF009
        "shared+tpe: a setting of its super-net or of what that judges, as name=value; "
        "repeatable: steps=1000, masks_per_step=4, candidates=300, bands=4, adapt_steps=0."
    )


@dataclass(frozen=True)
class ExecutorOptions:
    """Where trials run."""

    executor: str = option("local, ray, or your own: file.py:Name.", "local")
    slots: int = option("Jobs at a time; locally 1 works in this process.", 1)
    limit: float | None = option("Seconds after which a trial is ended as failed.")
    address: str | None = option(
        "ray: 'auto' or HOST:PORT of a cluster; default: a Ray of its own."
    )
    cpus: float | None = option("ray: CPU cores of a trial; default: 1.")
    gpus: float | None = option("ray: GPUs of a trial, such as 0.25.")
    scratch: str | None = option(
        "ray: s3://... or a path, where nodes do not share the run folder."
    )


def taking(*tables: type) -> Callable[[Command], Command]:
    """Gives a command that ends in `**given` the options of these dataclasses."""

    def decorate(command: Command) -> Command:
        own = inspect.signature(command, eval_str=True).parameters.values()
        everything = [p for p in own if p.kind is not inspect.Parameter.VAR_KEYWORD]
        for table in tables:
            hints = get_type_hints(table)
            everything += [
                inspect.Parameter(
                    f.name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=f.default,
                    annotation=Annotated[hints[f.name], declare_option(f.name, hints, f.metadata)],
                )
                for f in fields(table)
            ]
        command.__signature__ = inspect.Signature(everything)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in everything}
        return command

    return decorate


def declare_option(name: str, hints: Mapping[str, Any], metadata: Mapping[str, Any]) -> Any:
    """The option of a field; a flag has no `--no-` form."""
    flag = hints[name] in (bool, bool | None)
    names = [f"--{name.replace('_', '-')}"] if flag else []
    return typer.Option(*names, help=metadata["help"])


def given_to(table: type[Options], given: Mapping[str, Any]) -> Options:
    """The dataclass of a command's options; a stored command may lack newer ones."""
    names = [f.name for f in fields(table)]  # type: ignore[arg-type]
    return table(**{name: given[name] for name in names if name in given})
