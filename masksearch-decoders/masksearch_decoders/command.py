"""The command `masksearch allocate`, and the evaluator of `--decoder`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from masksearch.cli import options as cli
from masksearch.cli.resuming import resumable

if TYPE_CHECKING:
    from masksearch_decoders.served import EngineEvaluator

SERVED = "The engine that serves it"
OF_ENGINE = ("cache_layout", "serving", "sinks")  # settings of `EngineEvaluator`


@dataclass(frozen=True, kw_only=True)
class AllocateOptions:
    """Options of allocate."""

    model: str = cli.argument(
        "A decoder: a folder, a name on the Hugging Face Hub, or a GGUF file.",
        *(cli.MODEL, "MODEL"),
    )
    text: str = cli.argument(
        "Text to measure losses on: a file, a folder of .txt files, or hf:OWNER/NAME.",
        *(cli.EVALUATOR, "TEXT"),
    )
    budget: list[float] = cli.option(
        "Largest share of the bytes of the dense cache of keys and values; repeatable, one "
        "plan for each.",
        *(cli.ALLOCATION, "", "SHARE"),
        default=cli.REQUIRED,
    )
    run: cli.Run = Path("runs/allocate")
    slots: cli.Slots = 1
    unit: str | None = cli.described(cli.ALLOCATION)
    local: list[str] | None = cli.described(cli.ALLOCATION)
    method: str | None = cli.described(cli.ALLOCATION)
    tries: int | None = cli.described(cli.ALLOCATION)
    trials: int | None = cli.described(cli.ALLOCATION)
    length: int | None = cli.described(cli.EVALUATOR)
    sequences: int | None = cli.described(cli.EVALUATOR)
    held_out: str | None = cli.described(cli.EVALUATOR)
    tasks: list[str] | None = cli.described(cli.EVALUATOR)
    set: list[str] | None = cli.option(
        "The device (device=cpu), the precision (precision=float32), rows of each task "
        "(task_rows=48); repeatable.",
        *(cli.PLACE, "a GPU in bfloat16 where there is one", "NAME=VALUE"),
        name="--set",
    )
    serve: str | None = cli.described(SERVED)
    serving: str | None = cli.described(SERVED)
    sinks: str | None = cli.described(SERVED)
    out: str | None = cli.described(cli.OUTPUT)


@cli.takes({"": "masksearch_decoders.planner:allocate"})
def allocate(options: AllocateOptions) -> None:
    r"""Find which layers or heads of a decoder keep full attention within a budget of cache bytes.

    A plan begins with the widest window in all layers that the budget pays; where nothing is
    better, that is the plan. It can be better only on texts longer than that window: give
    --length. Novels ask little from afar: --tasks judges by what long contexts are for.

    Only gates and sinks are trained, where asked for. The run folder gets a plan for each budget,
    which `masksearch attach` puts on the model; --out gets a folder that an engine serves.

    Examples:
        masksearch allocate my-llama/ books/ --budget .25 --length 4096 \
            --local 'columns(4) | window(127)' --local 'columns(4) | window(511)' \
            --tasks niah_multikey_1 --tasks vt
        masksearch allocate my-llama/ books/ --budget .25 --length 4096 --serve llama.cpp \
            --serving '{"length": 4096, "ubatch": 64}' --sinks tune --out served
    """
    from masksearch.cli.build import hints_of, read_setting, read_settings, split_settings
    from masksearch.executors.local import Local
    from masksearch_decoders.engine import Serving
    from masksearch_decoders.plan import report_lines
    from masksearch_decoders.planner import (
        CacheBudget,
        DecoderOnText,
        Delivery,
        find_plans,
        plan_path,
    )
    from masksearch_decoders.planner import allocate as search_plan

    usual = inspect.signature(search_plan).parameters
    settings = {name: parameter.default for name, parameter in usual.items()}
    settings |= {"model": options.model, "text": options.text, **cli.described_values(options)}
    if options.serving is not None:
        settings["serving"] = read_setting("serving", options.serving, Serving)
    settings |= {"budgets": options.budget, "out": options.out and Path(options.out)}
    hints = {name: hints_of(DecoderOnText)[name] for name in ("device", "precision", "task_rows")}
    for prefix, texts in split_settings(options.set or ()).items():
        named = {f"{prefix}.{name}".lstrip("."): text for name, text in texts.items()}
        settings |= read_settings(named, hints, "allocate")
    decoder = _read_part(DecoderOnText, settings)
    within, delivery = _read_part(CacheBudget, settings), _read_part(Delivery, settings)
    with resumable(options.run, "allocate", vars(options)):
        plans = find_plans(
            *(decoder, within, delivery),
            check=True,
            run=options.run,
            executor=Local(slots=options.slots),
            progress="auto",
        )
    for limit, plan in plans.items():
        for line in report_lines(plan, plan_path(options.run, limit, plans), options.model):
            typer.echo(line)


def _read_part(kind: Any, settings: Mapping[str, Any]) -> Any:
    """The settings that are fields of a dataclass."""
    return kind(**{each.name: settings[each.name] for each in fields(kind)})


def build_evaluator(
    text: str, options: Mapping[str, Any], settings: Mapping[str, str]
) -> EngineEvaluator:
    """The evaluator of `--decoder TEXT`.

    Args:
        text: That it judges by.
        options: Name -> value of the options that are fields of `CausalEvaluator`.
        settings: Name -> text of `--set`: its other fields, and those of `EngineEvaluator`.
    """
    from masksearch.cli.build import further_settings, hints_of, read_settings
    from masksearch_decoders.causal import CausalEvaluator
    from masksearch_decoders.served import EngineEvaluator

    of_engine = {n: each for n, each in settings.items() if n in OF_ENGINE}
    of_decoder = {n: each for n, each in settings.items() if n not in OF_ENGINE}
    further = further_settings(CausalEvaluator, of_decoder)
    served = read_settings(of_engine, hints_of(EngineEvaluator), "EngineEvaluator")
    return EngineEvaluator(CausalEvaluator(text, **options, **further), **served)
