"""The command that finds which layers or heads of a decoder keep full attention: allocate."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from masksearch.cli import options
from masksearch.cli.options import ALLOCATION, JUDGE, MODEL, declare, takes
from masksearch.cli.resuming import resumable

if TYPE_CHECKING:
    from masksearch.models.plan import Plan

OPTIONS = {ALLOCATION: "unit local method tries trials", JUDGE: "length sequences held_out"}


def show_plans(given: Mapping[str, Any]) -> None:
    """Finds the plans that a command's options ask for, and says what they hold."""
    from masksearch.allocation import allocate as search_plan
    from masksearch.allocation import allocate_each

    known = inspect.signature(search_plan).parameters.items()
    settings = {name: parameter.default for name, parameter in known if name != "budget"}
    settings |= {name: value for name, value in given.items() if value is not None}
    budgets, run = settings.pop("budget"), settings["run"]
    with resumable(run, "allocate", given):
        plans = allocate_each(budgets=budgets, **settings)
    for limit, plan in plans.items():
        path = run / ("plan.json" if len(plans) == 1 else f"plan-{limit:g}.json")
        for line in report_lines(plan, path, given["model"]):
            typer.echo(line)


@takes(OPTIONS, {"": "masksearch.allocation:allocate"}, calls=show_plans)
def allocate(
    model: Annotated[
        str,
        typer.Argument(
            help="A decoder: a folder, a name on the Hugging Face Hub, or a GGUF file.",
            rich_help_panel=MODEL,
            metavar="MODEL",
        ),
    ],
    text: Annotated[
        str,
        typer.Argument(
            help="The text that decides: a file, a folder of .txt files, or hf:OWNER/NAME.",
            rich_help_panel=JUDGE,
            metavar="TEXT",
        ),
    ],
    budget: Annotated[
        list[float],
        declare(
            "Largest share of the bytes of the dense cache of keys and values; repeatable, one "
            "plan for each.",
            ALLOCATION,
            "",
            "SHARE",
        ),
    ],
    run: options.Run = Path("runs/allocate"),
    check: Annotated[
        bool,
        declare(
            "Judge the plans and dense attention on text that the search has not seen.", JUDGE
        ),
    ] = True,
    **_: object,
) -> None:
    """Find which layers or heads of a decoder keep full attention, within a budget of cache bytes.

    Nothing is trained, but gates. The run folder gets a plan for each budget, which `masksearch
    attach` puts on the model, and the model's own configuration where it can name the mask.

    Examples:
        masksearch allocate my-llama/ books/ --budget .25
        masksearch allocate my-llama/ books/ --budget .25 --budget .5 --method restore
    """


def report_lines(plan: Plan, path: Path, model: str) -> list[str]:
    """What the command says of a plan."""
    top, found = len(plan.levels) - 1, plan.found
    full = [name for name, level in plan.units.items() if level == top]
    cost, limit = found["budget"]["cost"], found["budget"]["limit"]
    lines = [
        f"budget {limit:g}: {len(full)} of {len(plan.units)} units full "
        f"({', '.join(full) or 'none'}), the others {plan.levels[0]}",
        f"  {cost} {found['cache'][cost]:.4f} of the dense cache at {found['length']:,} tokens; "
        f"nll {found['nll']['search']:.4f} on the text of the search",
    ]
    if unseen := found["nll"]["unseen"]:
        over = f" [{unseen['low']:+.4f}, {unseen['high']:+.4f}]" if "low" in unseen else ""
        judged = f"{unseen['documents']} documents"
        if "pieces_of" in unseen:
            whole = unseen["pieces_of"]
            judged = f"{unseen['documents']} pieces of {whole} document{'s' * (whole != 1)}"
        lines.append(
            f"  on unseen text: dense {unseen['dense']:.4f}, masked {unseen['masked']:.4f}, "
            f"difference {unseen['difference']:+.4f}{over} over {judged}"
        )
    native = found["native"]
    if "configuration" in native:
        served = f"{path.parent / native['configuration']} ({native['model_type']})"
        lines.append(f"  served by transformers alone with the configuration {served}")
    else:
        lines.append(f"  not in the model's own configuration: {native['refused']}")
    words = f"masksearch attach {shlex.quote(model)} {shlex.quote(str(path))} --out FOLDER"
    return [*lines, f"  plan: {path}; put it on: {words}"]
