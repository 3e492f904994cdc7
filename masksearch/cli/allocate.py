"""The command that finds which layers or heads of a decoder keep full attention: allocate."""

from __future__ import annotations

import math
import shlex
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from masksearch.cli import options
from masksearch.cli.options import ALLOCATION, JUDGE, MODEL, OptionsError, declare
from masksearch.cli.resuming import resumable

if TYPE_CHECKING:
    from masksearch.contracts import Record
    from masksearch.driver import Study
    from masksearch.evaluators.causal import CausalEvaluator
    from masksearch.gates.units import Units
    from masksearch.models.plan import Plan

SINKS, WINDOWS = 4, 8  # the default local mask: so many sinks, and this part of the length
EVERY = 1_000_000  # more trials than any plan of allocations has
LEVEL = 0.95  # of intervals over documents


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
    unit: Annotated[
        str,
        declare(
            "What is full or local: layer, kv_head or head. Only layers free memory in the caches "
            "that exist.",
            ALLOCATION,
            "",
            "NAME",
        ),
    ] = "layer",
    local: Annotated[
        str | None,
        declare(
            "The mask of the other units.",
            ALLOCATION,
            f"{SINKS} sinks and a window of an eighth of the length",
            "MASK",
        ),
    ] = None,
    score: Annotated[
        str,
        declare(
            "What a unit is worth: restore (it alone full), ablate (it alone local), mass "
            "(attention beyond the local mask), switch (first order), or a file of scores.",
            ALLOCATION,
            "",
            "NAME",
        ),
    ] = "restore",
    grow: Annotated[
        str,
        declare(
            "exact (the best sum of scores within each budget), or rounds that judge every step: "
            "greedy, backward.",
            ALLOCATION,
            "",
            "NAME",
        ),
    ] = "exact",
    tries: Annotated[
        int | None,
        declare("Units that a round of greedy or backward judges.", ALLOCATION, "all", "N"),
    ] = None,
    length: Annotated[
        int, declare("Tokens of a sequence, and of the cache that is counted.", JUDGE, "", "N")
    ] = 1024,
    sequences: Annotated[
        int, declare("Held-out sequences that are judged, at most.", JUDGE, "", "N")
    ] = 64,
    held_out: Annotated[
        str | None,
        declare("Text to judge by, if not the end of TEXT.", JUDGE, "see docs/proxy.md", "TEXT"),
    ] = None,
    trials: Annotated[
        int | None,
        declare("Masks to judge, at most.", ALLOCATION, "as many as the scores need", "N"),
    ] = None,
    check: Annotated[
        bool,
        declare(
            "Judge the plans and dense attention on text that the search has not seen.", JUDGE
        ),
    ] = True,
    run: options.Run = Path("runs/allocate"),
) -> None:
    """Find which layers or heads of a decoder keep full attention, within a budget of cache bytes.

    Nothing is trained. The run folder gets a plan for each budget, which `masksearch attach` puts
    on the model, and the model's own configuration where it can name the mask.

    Examples:
        masksearch allocate my-llama/ books/ --budget .25
        masksearch allocate my-llama/ books/ --budget .25 --budget .5 --local "window(127)"
    """
    given = dict(locals())
    from masksearch.evaluators.causal import CausalEvaluator

    judge = CausalEvaluator(
        text,
        weights=model,
        length=length,
        held_out=held_out,
        held_out_sequences=sequences,
        adapt="none",
        cost="kv_bytes" if unit == "layer" else "kv_bytes_per_head",
    )
    local = default_local(length) if local is None else local
    chosen: dict[str, Any] = {"unit": unit, "local": local, "score": score, "grow": grow}
    chosen |= {} if tries is None else {"tries": tries}
    units = check_budgets(chosen, judge, budget)
    if grow == "exact":
        chosen["budgets"] = sorted({*budget})
    with resumable(run, "allocate", given):
        study = search_units(judge, chosen, max(budget), run, trials)
    worth = worth_of(study, judge, chosen, run)
    within = {each: best_within(study, judge, each) for each in sorted({*budget})}
    unseen = judge_unseen(judge, within) if check else {}
    for limit, record in within.items():
        name = "plan" if len(within) == 1 else f"plan-{limit:g}"
        plan = make_plan(judge, units, record, model)
        native = write_native(judge, plan, run / f"{name.replace('plan', 'native')}.json")
        found: dict[str, Any] = {
            "budget": {"cost": judge.cost, "limit": limit},
            "length": length,
            "scores": {"method": score, "of_units": worth},
            "cache": dict(judge.measures_of(plan.mask)),
            "nll": {"search": record.values["nll"], "unseen": unseen.get(limit)},
            "native": native,
            "trial": record.number,
        }
        path = plan.with_found(found).save(run / f"{name}.json")
        for line in report_lines(plan, found, path, model):
            typer.echo(line)


def default_local(length: int) -> str:
    """Sinks and a window.

    >>> default_local(1024)
    'columns(4) | window(127)'
    """
    return f"columns({SINKS}) | window({max(1, length // WINDOWS - 1)})"


def check_budgets(
    chosen: dict[str, Any], judge: CausalEvaluator, budgets: Sequence[float]
) -> Units:
    """The units; refuses budgets that nothing can keep before anything is judged.

    Raises:
        OptionsError: If a budget is no share.
        ValueError: If it is less than what the local mask in all units costs.
    """
    from masksearch.strategies.allocate import build_units
    from masksearch.strategies.unit_budgets import solve, unit_costs

    if not budgets or not all(0 < each <= 1 for each in budgets):
        raise OptionsError(
            f"--budget is a share of the dense cache, in (0, 1]; got {list(budgets) or 'none'}"
        )
    units = build_units(chosen, judge.shape, judge.kv_head_count)
    costs = unit_costs(units, judge, judge.cost)
    solve([[0.0] * len(units.levels)] * len(units.names), costs, min(budgets))
    return units


def search_units(
    judge: CausalEvaluator, chosen: dict[str, Any], most: float, run: Path, trials: int | None
) -> Study:
    """The search, which goes on where it was interrupted."""
    from masksearch.driver import search

    limits = [f"{judge.cost} <= {most * (1 + 1e-9)!r}"] if chosen["grow"] == "greedy" else []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the strategy has no more masks")
        return search(
            None,
            judge,
            run=run,
            trials=EVERY if trials is None else trials,
            strategy="allocate",
            strategy_options=chosen,
            constraints=limits,
        )


def best_within(study: Study, judge: CausalEvaluator, budget: float) -> Record:
    """The mask with the lowest loss of those that keep a budget.

    Raises:
        OptionsError: If none was judged.
    """
    inside = [
        record
        for record in study.records()
        if record.scored
        and record.mask is not None
        and record.measures.get(judge.cost, math.inf) <= budget * (1 + 1e-6)
    ]
    if not inside:
        raise OptionsError(
            f"no mask within --budget {budget:g} was judged in {len(study.records())} trials; "
            "give more --trials, and repeat the command"
        )
    return min(inside, key=lambda record: record.values["nll"])


def worth_of(
    study: Study, judge: CausalEvaluator, chosen: dict[str, Any], run: Path
) -> dict[str, list[float]] | None:
    """What each level of each unit was found to be worth above the local one; None = unknown."""
    from masksearch.strategies.allocate import AllocateStrategy
    from masksearch.strategies.build import build_strategy

    strategy = build_strategy("allocate", None, judge, seed=0, run=run, options=chosen)
    assert isinstance(strategy, AllocateStrategy)
    for record in study.records():
        strategy.tell(record)
    strategy.ask()
    return strategy.worth


def judge_unseen(
    judge: CausalEvaluator, within: dict[float, Record]
) -> dict[float, dict[str, float]]:
    """Loss of dense attention and of each mask on documents that the search has not seen, and
    their difference with its interval over documents."""
    from masksearch import masks
    from masksearch.analysis.row_scores import ROWS, RowScores
    from masksearch.analysis.stats import estimate

    final = judge.final()

    def documents(mask: Any) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            for _ in final(mask, seed=0, workdir=Path(folder)):
                pass
            return RowScores.load(Path(folder) / ROWS).scores["text"]

    dense, found = documents(masks.full()), {}
    for budget, record in within.items():
        own = documents(record.mask)
        lost = estimate((own - dense).tolist(), LEVEL)
        found[budget] = {
            "dense": float(dense.mean()),
            "masked": float(own.mean()),
            "difference": lost.value,
            "documents": len(own),
        }
        if math.isfinite(lost.low):
            found[budget] |= {"low": lost.low, "high": lost.high}
    return found


def make_plan(judge: CausalEvaluator, units: Units, record: Record, model: str) -> Plan:
    """The plan of a trial."""
    from masksearch.models.plan import Plan

    start, mask = judge.start, record.mask
    assert start is not None
    assert mask is not None
    name = Path(model).name if Path(model).exists() else model
    named = {"name": name, "architecture": start.architecture, "digest": start.digest}
    levels = dict(zip(units.names, units.allocation(record.params), strict=True))
    return Plan(named, units.unit, units.levels, levels, mask)


def write_native(judge: CausalEvaluator, plan: Plan, path: Path) -> dict[str, str]:
    """Writes the configuration that names the mask, or says why there is none."""
    from masksearch.errors import NativeError
    from masksearch.models.native import native_config

    path.unlink(missing_ok=True)
    try:
        config = native_config(judge.config, plan.mask)
    except NativeError as error:
        return {"refused": str(error)}
    path.write_text(config.to_json_string(use_diff=False), encoding="utf-8")
    return {"configuration": path.name, "model_type": config.model_type}


def report_lines(plan: Plan, found: dict[str, Any], path: Path, model: str) -> list[str]:
    """What the command says of a plan."""
    top = len(plan.levels) - 1
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
        lines.append(
            f"  on unseen text: dense {unseen['dense']:.4f}, masked {unseen['masked']:.4f}, "
            f"difference {unseen['difference']:+.4f}{over} over {unseen['documents']} documents"
        )
    native = found["native"]
    if "configuration" in native:
        served = f"{path.parent / native['configuration']} ({native['model_type']})"
        lines.append(f"  served by transformers alone with the configuration {served}")
    else:
        lines.append(f"  not in the model's own configuration: {native['refused']}")
    words = f"masksearch attach {shlex.quote(model)} {shlex.quote(str(path))} --out FOLDER"
    return [*lines, f"  plan: {path}; put it on: {words}"]
