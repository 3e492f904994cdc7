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

# Groups of options in `--help`.
SEARCHED = "What to search"
COMPARED = "Which masks"
RUN = "Which run"
JUDGE = "What judges a mask"
MODEL = "The model that is trained, and how"
ONE_SHOT = "Settings of the strategies dam and shared+tpe"
ALLOCATION = "Units that are full or local: strategy allocate, or a space for any other"
PLACE = "Where it runs"
OUTPUT = "Output"

SIZES = (
    "Layers x width x heads of the model, such as 4x128x4, or a name: nano = 1x64x2, "
    "tiny = 2x128x4, mini = 4x256x4, small = 4x512x8, medium = 8x512x8, base = 12x768x12."
)


class OptionsError(MaskSearchError, ValueError):
    """Options that do not go together, or cannot be read."""


def declare(
    help: str, group: str, shown: str = "", value: str | None = None, *, name: str = ""
) -> Any:
    """A typer option.

    Args:
        help: Sentences that someone understands who sees the option for the first time.
        group: Heading that it stands under.
        shown: The default in words, where the declared one is None; "" = typer shows it.
        value: What stands for the value, such as FOLDER; None = its type.
        name: Its name, where that is not the parameter's; given to a flag, it has no `--no-` form.
    """
    help = f"{help}  [default: {shown}]" if shown else help
    names = [name] if name else []
    return typer.Option(*names, help=help, rich_help_panel=group, metavar=value)


MASK_TEXT = (
    "An expression such as 'bigbird(2,1,2) | window(3)', the name of a family, a file, or a run: "
    "RUN is the best mask of a search, RUN@0.9 the best that is at least 90 % sparse, RUN#7 that "
    "of trial 7."
)
AS_BEFORE = "as before"

MaskArgument = Annotated[
    str, typer.Argument(help=MASK_TEXT, rich_help_panel=COMPARED, metavar="MASK")
]
RunArgument = Annotated[
    Path,
    typer.Argument(help="Folder of a search or a comparison.", rich_help_panel=RUN, metavar="RUN"),
]
Run = Annotated[
    Path, declare("Folder of the run; a run that it holds goes on.", OUTPUT, "", "FOLDER")
]
Json = Annotated[
    bool, declare("Print JSON instead of tables, for programs.", OUTPUT, name="--json")
]
Slots = Annotated[int, declare("Trials at a time.", PLACE, "", "N")]
Storage = Annotated[
    str | None,
    declare(
        "Where trials are stored: journal:PATH (for shared file systems) or postgresql://...",
        OUTPUT,
        "study.db, an SQLite file in the run folder",
        "PLACE",
    ),
]
Log = Annotated[
    str | None,
    declare(
        "Loggers, separated by commas: csv, tensorboard, mlflow, wandb.", OUTPUT, "none", "NAMES"
    ),
]


def option(
    help: str, group: str, shown: str = "", value: str | None = None, default: Any = None
) -> Any:
    """A field that is also an option of the command line; see `declare`."""
    return field(default=default, metadata={"given": (help, group, shown, value)})


@dataclass(frozen=True)
class EvaluatorOptions:
    """How a mask is judged; None = the evaluator's own default."""

    corpus: str | None = option(
        "Plain text for pre-training: a file, a folder of .txt files, or hf:OWNER/NAME.",
        JUDGE,
        "the planted corpus, which needs no file",
        "TEXT",
    )
    glue: str | None = option(
        "Fine-tune on GLUE, and judge by its score: a folder with GLUE's TSV files, or "
        "hf:nyu-mll/glue.",
        JUDGE,
        "not fine-tuned",
        "FOLDER",
    )
    squad: str | None = option(
        "Fine-tune on SQuAD: a JSON file, or a folder with train and dev.",
        JUDGE,
        "not fine-tuned",
        "PATH",
    )
    swag: str | None = option(
        "Fine-tune on SWAG: a file (JSONL, CSV, Parquet), or a folder.",
        JUDGE,
        "not fine-tuned",
        "PATH",
    )
    decoder: str | None = option(
        "Judge on a decoder, by the next tokens of this text: a file, a folder of .txt files, "
        "hf:OWNER/NAME, or recall, a planted task.",
        JUDGE,
        "no decoder",
        "TEXT",
    )
    tasks: str | None = option(
        "The tasks of --glue, separated by commas; your own as file.py:NAME.",
        JUDGE,
        "SST-2,QQP,MNLI",
        "NAMES",
    )
    rows: int | None = option("Training rows of a task, at most.", JUDGE, "10000", "N")
    evaluator: str | None = option(
        "Your own evaluator instead: a function in a file, which returns it.",
        JUDGE,
        "none",
        "FILE.py:NAME",
    )
    latency: bool = option(
        "Also minimise the time of attention, measured as a share of dense attention's.",
        JUDGE,
        default=False,
    )
    memory: bool = option(
        "Also minimise the memory that attention scores take, in bytes.", JUDGE, default=False
    )
    cost_length: int | None = option(
        "Length at which --latency and --memory are taken.", JUDGE, "--length", "N"
    )
    reuse: Path | None = option(  # noqa: RUF009
        "A folder of results that several runs share: a mask that it knows under this protocol "
        "and seed is not trained again.",
        JUDGE,
        "none",
        "FOLDER",
    )
    size: str | None = option(
        SIZES,
        MODEL,
        "tiny; planted corpus: nano",
        "SIZE",
    )
    weights: str | None = option(
        "Start from this checkpoint instead: a folder, or a name on the Hugging Face Hub.",
        MODEL,
        "random weights",
        "MODEL",
    )
    adapt: str | None = option(
        "With --weights and a task: what is trained under a mask. none: the mask is put on a "
        "dense model, fine-tuned once for each task and seed and kept in the cache; recover: "
        "that, then some steps under the mask (--set recover_steps=100); finetune: the "
        "checkpoint, from the start. With --decoder none, recover (--set "
        "recover_tokens=200000) or train, from the start.",
        MODEL,
        "finetune; --decoder: none with --weights, else train",
        "NAME",
    )
    tokenizer: str | None = option(
        "A tokenizer: a folder, or a name on the Hugging Face Hub.",
        MODEL,
        "trained on the text, or the checkpoint's",
        "NAME",
    )
    length: int | None = option(
        "Length of a sequence, in tokens. With --decoder 256 unless told, and 56 of recall.",
        MODEL,
        "128; the planted corpus has 24",
        "N",
    )
    vocabulary: int | None = option(
        "Entries of the vocabulary that is trained on the text.", MODEL, "4096", "N"
    )
    steps: int | None = option(
        "Optimiser steps of pre-training.", MODEL, "800; planted corpus: 500", "N"
    )
    batch: int | None = option("Sequences in a batch.", MODEL, "32; planted corpus: 16", "N")
    lr: float | None = option(
        "Peak learning rate of pre-training.",
        MODEL,
        "0.002; from a checkpoint: 0.0001; planted corpus: 0.004",
        "RATE",
    )
    preset: str | None = option(
        "Start from published settings in place of these defaults: sparsebert.",
        MODEL,
        "none",
        "NAME",
    )
    set: list[str] | None = option(  # noqa: RUF009
        "Any other setting of the evaluator; repeatable. For --glue, --squad and --swag: "
        "epochs=3, finetune_lr=0.0005 (5e-05 for a checkpoint), finetune_batch=32, "
        "finetune_seeds=1; for any text: precision=float32, pretraining=mlm, dropout=0, "
        "warmup=0.06 (these are the defaults).",
        MODEL,
        "",
        "NAME=VALUE",
    )


@dataclass(frozen=True)
class DamOptions:
    """Settings of the strategies that train one model for many masks."""

    density: float | None = option(
        "dam: share of the query-key pairs that the gates are trained to keep.",
        ONE_SHOT,
        "0.05",
        "SHARE",
    )
    structure: str | None = option(
        "dam: which cells share a gate: free, symmetric, toeplitz, toeplitz+global or block; with "
        "--local it is switch: units choose whole masks.",
        ONE_SHOT,
        "free",
        "NAME",
    )
    signed: bool = option(
        "dam: keys before and behind a query have gates of their own.", ONE_SHOT, default=False
    )
    gate_layers: int | None = option(
        "dam: layers with gates of their own; 1 = all layers share one set.",
        ONE_SHOT,
        "1; on frozen weights all",
        "N",
    )
    dam_steps: int | None = option("dam: optimiser steps.", ONE_SHOT, "2500", "N")
    dam: list[str] | None = option(  # noqa: RUF009
        "dam: any other setting of its gates or its training; repeatable: levels=2, "
        "control=multiplier, form=log, preset=sparsebert, densities=[0.02,0.05].",
        ONE_SHOT,
        "see docs/dam.md",
        "NAME=VALUE",
    )
    shared: list[str] | None = option(  # noqa: RUF009
        "shared+tpe: a setting of the shared model, or of what it judges; repeatable: "
        "steps=1000, masks_per_step=4, candidates=300, bands=4, adapt_steps=0.",
        ONE_SHOT,
        "see docs/proxy.md",
        "NAME=VALUE",
    )


@dataclass(frozen=True)
class AllocationOptions:
    """Layers or heads that each take one of several masks: the units of strategy allocate, the
    switches of strategy dam, the space of any other."""

    local: str | None = option(
        "The mask of a unit that needs little, such as 'window(8) | global_tokens(1)'.",
        ALLOCATION,
        "none: no units",
        "MASK",
    )
    full: str | None = option("The mask of a unit that needs much.", ALLOCATION, "full()", "MASK")
    between: list[str] | None = option(  # noqa: RUF009
        "Further masks of a unit, from local to full; repeatable.", ALLOCATION, "none", "MASK"
    )
    unit: str | None = option(
        "What is allocated: head, layer, or kv_head (of decoders: the heads that share keys).",
        ALLOCATION,
        "head",
        "NAME",
    )
    score: str | None = option(
        "allocate: what a unit is worth: restore (it alone full), ablate (it alone local), gates "
        "(trained first, with the settings of dam), mass, switch, gradient or flip (of the dense "
        "model, with --adapt none), or a file of gates or importance.",
        ALLOCATION,
        "restore; ablate for backward",
        "NAME",
    )
    grow: str | None = option(
        "allocate: ranked (units by their scores), exact (the best sum of scores within each of "
        "--budgets), greedy (add the best, round by round) or backward (take away the most "
        "useless).",
        ALLOCATION,
        "ranked",
        "NAME",
    )
    tries: int | None = option(
        "allocate: units that a round of greedy or backward judges.", ALLOCATION, "all", "N"
    )
    budgets: list[float] | None = option(  # noqa: RUF009
        "allocate: what a mask of --grow exact costs at most, as a share of full attention's; "
        "repeatable.",
        ALLOCATION,
        "none",
        "SHARE",
    )
    cost: str | None = option(
        "allocate: what units cost: density, or on a decoder kv_bytes, or kv_bytes_per_head for "
        "--unit kv_head.",
        ALLOCATION,
        "the second objective, or density",
        "NAME",
    )


@dataclass(frozen=True)
class ExecutorOptions:
    """Where trials run."""

    executor: str = option(
        "local (this machine), ray (this machine or a cluster), or your own: FILE.py:NAME.",
        PLACE,
        "",
        "NAME",
        "local",
    )
    slots: int = option(
        "Trials at a time. With 1, a local trial runs inside this process.", PLACE, "", "N", 1
    )
    limit: float | None = option(
        "Seconds after which a trial is ended, as failed.", PLACE, "no limit", "SECONDS"
    )
    address: str | None = option(
        "ray: the cluster to join: auto, or HOST:PORT.",
        PLACE,
        "a Ray of its own on this machine",
        "ADDRESS",
    )
    cpus: float | None = option("ray: CPU cores of a trial.", PLACE, "1", "N")
    gpus: float | None = option(
        "ray: GPUs of a trial; 0.25 = four trials share one.", PLACE, "0", "N"
    )
    scratch: str | None = option(
        "ray: a path or s3://... through which files travel, where machines do not share the run "
        "folder.",
        PLACE,
        "the run folder",
        "PLACE",
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
    return declare(*metadata["given"], name=f"--{name.replace('_', '-')}" if flag else "")


def given_to(table: type[Options], given: Mapping[str, Any]) -> Options:
    """The dataclass of a command's options; a stored command may lack newer ones."""
    names = [f.name for f in fields(table)]  # type: ignore[arg-type]
    return table(**{name: given[name] for name in names if name in given})
