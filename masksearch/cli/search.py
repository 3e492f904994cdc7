"""The commands that judge masks: search and compare."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from masksearch.cli import options
from masksearch.cli.options import (
    ALLOCATION,
    COMPARED,
    DOWNSTREAM,
    JUDGE,
    MODEL,
    OUTPUT,
    PLACE,
    SEARCHED,
    OptionsError,
    flag,
    optional,
    takes,
    valued,
)
from masksearch.cli.resuming import resumable
from masksearch.errors import MaskSearchError

if TYPE_CHECKING:
    from masksearch.analysis.runs import Candidate
    from masksearch.contracts import Evaluator
    from masksearch.driver import Comparison, Study

DECLARED = {  # options of both commands
    "corpus": optional(
        "Plain text for pre-training: a file, a folder of .txt files, or hf:OWNER/NAME.",
        *(JUDGE, "the planted corpus, which needs no file", "TEXT"),
    ),
    **{
        name: optional(does, JUDGE, "not fine-tuned", takes)
        for name, (_, does, takes) in DOWNSTREAM.items()
    },
    "decoder": optional(
        "Judge on a decoder, by the next tokens of this text: a file, a folder of .txt files, "
        "hf:OWNER/NAME, or recall, a planted task.",
        *(JUDGE, "no decoder", "TEXT"),
    ),
    "evaluator": optional(
        "Your own evaluator instead: a class in a file, or a function that returns one; --set "
        "gives it arguments.",
        *(JUDGE, "none", "FILE.py:NAME"),
    ),
    "latency": flag(
        "latency",
        "Also minimise the time of attention, measured as a share of dense attention's (at "
        "--set cost.length=N, another length than the model's).",
        JUDGE,
    ),
    "memory": flag("memory", "Also minimise the memory of attention scores, in bytes.", JUDGE),
    "reuse": optional(
        "A folder of results that several runs share: a mask that it knows under this protocol "
        "and seed is not trained again.",
        *(JUDGE, "none", "FOLDER", Path),
    ),
    "preset": (options.Preset, None),
    "set": (options.Settings, None),
    "executor": optional(
        "local (this machine), ray (this machine or a cluster), or your own: FILE.py:NAME.",
        *(PLACE, "local", "NAME"),
    ),
    "slots": (options.Slots, 1),
    "cpus": optional("ray: CPU cores of a trial.", PLACE, "1", "N", float),
    "gpus": optional("ray: GPUs of a trial; 0.25 = four share one.", *(PLACE, "0", "N", float)),
}
SEARCHING = {
    "space": (
        Annotated[
            str | None,
            typer.Argument(
                help="The search space: a function in a file that draws a mask, or one of the "
                "package (masksearch.spaces:NAME); dam, allocate and --local need none.",
                rich_help_panel=SEARCHED,
                metavar="FILE.py:NAME",
                show_default=False,
            ),
        ],
        None,
    ),
    "run": (options.Run, Path("runs/search")),
    "strategy": valued(
        "tpe",
        "What proposes the masks: random, tpe, nsga2, nsga3, gp, qmc, evolution, allocate, dam, "
        "prune, sparsebert (the published DAM and its table), or your own as FILE.py:NAME.",
        *(SEARCHED, "NAME"),
    ),
    "trials": optional(
        "Number of masks to judge.", *(SEARCHED, "20, without --seconds", "N", int)
    ),
    "storage": (options.Storage, None),
    "constraint": optional(
        "What a mask must keep, such as 'effective_sparsity >= 0.9'; repeatable.",
        *(SEARCHED, "none", "TEXT", list[str]),
    ),
    "budget": optional(
        "Largest share of dense attention's cost for a mask; repeatable, draws take turns.",
        *(SEARCHED, "no limit", "SHARE", list[float]),
    ),
    "families": flag("families", "Judge the six hand-designed masks as well, first.", SEARCHED),
    "halving": optional(
        "Stop weak trials early, at these steps, such as 62,125,250: trials are compared by loss "
        "and sparsity, and the better half goes on (--set halving.metric=loss, "
        "halving.factor=2).",
        *(SEARCHED, "every trial is finished", "STEPS"),
    ),
    "enqueue": optional(
        "Parameters that the space draws first, in a JSON file: a list of "
        '{"name": value, ...}, one a mask.',
        *(SEARCHED, "none", "FILE", Path),
    ),
    "local": optional(
        "Search which units (--unit) have this mask, such as 'window(8) | global_tokens(1)', and "
        "which full attention; no space is needed. Several masks, the cheapest first: "
        '--set units.levels=["star()", ..].',
        *(ALLOCATION, "none: no units", "MASK"),
    ),
    "unit": optional(
        "What a unit is: head, layer, or kv_head (of decoders: the heads that share keys).",
        *(ALLOCATION, "head", "NAME"),
    ),
    "log": optional(
        "Loggers, separated by commas: csv, tensorboard, mlflow, wandb.",
        *(OUTPUT, "none", "NAMES"),
    ),
    "as_json": (options.Json, False),
}
COMPARING = {
    "mask": (
        Annotated[
            list[str] | None,
            typer.Argument(
                help=f"Masks, or NAME=MASK. {options.MASK_TEXT}",
                rich_help_panel=COMPARED,
                metavar="[MASK]...",
                show_default=False,
            ),
        ],
        None,
    ),
    "front": optional(
        "Run folder of a search: judge every mask of its front again, beside as many "
        "hand-designed and random masks of their densities.",
        *(COMPARED, "none", "FOLDER", Path),
    ),
    "run": (options.Run, Path("runs/compare")),
    "storage": (options.Storage, None),
    "seeds": valued(5, "Seeds to train each mask with; all masks share them.", COMPARED, "N"),
    "first_seed": valued(1000, "First seed; use others than the search's.", COMPARED, "N"),
    "budget": optional(
        "Largest share of dense attention that a run's mask costs: RUN stands for its best mask "
        "within each, beside masks drawn by hand within each; repeatable.",
        *(COMPARED, "no limit", "SHARE", list[float]),
    ),
    "controls": valued(
        True,
        "Also judge dense attention, the hand-designed masks, and random keys in the same number.",
        COMPARED,
    ),
    "as_json": (options.Json, False),
}
JUDGING = {  # options of evaluators and executors, from their docstrings
    JUDGE: "tasks rows",
    MODEL: "size weights adapt tokenizer length vocabulary steps batch lr",
    PLACE: "address limit_seconds storage_path",
}
TAKEN_FROM = {
    "": "masksearch.evaluators.mlm:MlmEvaluator",
    "--glue": DOWNSTREAM["glue"][0],
    "--decoder": "masksearch.evaluators.causal:CausalEvaluator",
    "planted corpus": "masksearch.evaluators.planted:PlantedEvaluator",
    "ray": "masksearch.executors.ray:RayTune",
    "search": "masksearch.driver:search",
    "compare": "masksearch.driver:compare",
}


def show_search(given: Mapping[str, Any]) -> None:
    """Runs the search that a command's options ask for, and prints its front."""
    from masksearch.cli.output import print_front

    study, as_json = run_search(given), given["as_json"]
    print_front(study, as_json)
    records = study.records()
    failed = [record for record in records if record.status == "failed"]
    if failed and not any(record.scored for record in records):
        raise MaskSearchError(f"no trial of {study.run} has a score: {failed[0].reason}")
    if not as_json:
        say_cuts(study)
        say_where(study.run)


def run_search(given: Mapping[str, Any]) -> Study:
    """The search that a command's options ask for."""
    from masksearch.cli.build import (
        build_evaluator,
        build_executor,
        halving_settings,
        split_settings,
        strategy_options,
        unit_levels,
    )
    from masksearch.driver import search
    from masksearch.loggers.trackers import open_loggers
    from masksearch.masks import FAMILIES
    from masksearch.strategies.allocate import build_units
    from masksearch.strategies.build import kind_of
    from masksearch.strategies.halving import ParetoHalving
    from masksearch.user_code import load_function

    space, strategy, run = given["space"], given["strategy"], given["run"]
    kind = kind_of(strategy)
    settings = split_settings(given["set"] or ())
    levels = unit_levels(given, settings.get("units", {}))
    if space is None and kind.space == "needed" and not levels:
        raise OptionsError(
            f"strategy {strategy!r} needs a space: file.py:function or masksearch.spaces:NAME"
        )
    if space is not None and kind.space == "none":
        raise OptionsError(f"strategy {strategy!r} takes no space; drop {space}")
    if levels and kind.space == "none" and kind.with_units is None:
        raise OptionsError(f"strategy {strategy!r} takes no space: drop --local")
    if space is not None and levels:
        raise OptionsError(f"--local and --unit are a space of their own; drop {space}")
    of_strategy = strategy_options(strategy, settings)
    units = {"unit": given["unit"] or "head", "levels": levels}
    if levels and kind.with_units is not None:
        of_strategy = kind.with_units(units, of_strategy)
    halving = halving_settings(given["halving"], settings.get("halving", {}))
    limits = {name: given[name] for name in ("trials", "seconds") if given[name] is not None}
    limits = limits or {"trials": kind.trials}
    enqueued = read_enqueued(given["enqueue"])
    judge = build_evaluator(given)
    goals = {objective.name: objective.goal for objective in judge.objectives}
    scheduler = None
    if halving is not None:
        scheduler = ParetoHalving(goal=goals.get(halving["metric"], "min"), **halving)
    names = [name.strip() for name in (given["log"] or "").split(",") if name.strip()]
    own: Any = None if space is None else load_function(space)
    if levels and kind.space != "none":
        own = build_units(units, judge.shape, judge.kv_head_count)
    with (
        open_loggers(names, run, judge.objectives) as loggers,
        resumable(run, "search", {**given, **limits}),
    ):
        return search(
            own,
            judge,
            run=run,
            storage=given["storage"],
            **limits,
            strategy=strategy,
            strategy_options=of_strategy,
            seed=given["seed"] or 0,
            executor=build_executor(given),
            scheduler=scheduler,
            constraints=tuple(given["constraint"] or ()),
            budget=given["budget"],
            baselines=FAMILIES if given["families"] else {},
            listeners=loggers,
            enqueue=enqueued,
        )


def read_enqueued(path: Path | None) -> list[Any]:
    """What a file of `--enqueue` holds.

    Raises:
        OptionsError: If it is not there, or no list in JSON.
    """
    if path is None:
        return []
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise OptionsError(f"--enqueue {path}: there is no such file") from error
    except ValueError as error:
        raise OptionsError(f"--enqueue {path} is no JSON: {error}") from error
    if not isinstance(found, list):
        raise OptionsError(
            f'--enqueue {path} holds a list of parameters, such as [{{"reach": 3}}]; it holds '
            f"a {type(found).__name__}"
        )
    return found


def show_comparison(given: Mapping[str, Any]) -> None:
    """Runs the comparison that a command's options ask for, and prints it with its verdict."""
    from masksearch.cli.output import print_comparison

    comparison, as_json = run_compare(given), given["as_json"]
    print_comparison(comparison, as_json)
    if not as_json:
        typer.echo(comparison.verdict())
        say_where(given["run"])
    failed = [record for record in comparison.records if record.status == "failed"]
    if failed and len(failed) == len(comparison.records):
        raise MaskSearchError(f"all {len(failed)} runs failed: {failed[0].reason}")


def run_compare(given: Mapping[str, Any]) -> Comparison:
    """The comparison that a command's options ask for."""
    from masksearch.analysis.stats import CLAIM_SEEDS
    from masksearch.cli.build import build_evaluator, build_executor
    from masksearch.driver import compare
    from masksearch.study.halves import judge_on

    judge = judge_on(build_evaluator(given), given["half"])
    compared = masks_to_compare(given, judge)
    if given["seeds"] < CLAIM_SEEDS and not judge.seedless:
        typer.echo(
            f"fewer than {CLAIM_SEEDS} seeds decide nothing: take --seeds {CLAIM_SEEDS} or more",
            err=True,
        )
    with resumable(given["run"], "compare", given):
        return compare(
            **compared,
            evaluator=judge,
            run=given["run"],
            half=given["half"],
            executor=build_executor(given),
        )


def masks_to_compare(given: Mapping[str, Any], judge: Evaluator) -> dict[str, Any]:
    """The masks, seeds and opponents that options name, as arguments of `compare`."""
    from masksearch.analysis.runs import read_candidates
    from masksearch.cli.build import named_candidates
    from masksearch.masks import FAMILIES, full, rivals_within
    from masksearch.masks.families import FIRST_KEY, random_like
    from masksearch.strategies.allocate import DENSITY, find_cost
    from masksearch.study.records import read_budgets
    from masksearch.study.references import within_budgets

    named: dict[str, Candidate] = {}
    for text in dict.fromkeys(given["mask"] or []):
        whole, storage = bool(given["budget"]), given["storage"]
        for name, each in named_candidates(text, whole=whole, storage=storage).items():
            if name in named and "=" in text and named[name] != each:
                raise OptionsError(f"{name!r} names two masks; give one another name (NAME=MASK)")
            if name in named and "=" not in text:  # another run of that name
                place = Path(text).resolve()
                name = f"{name} ({'/'.join(place.parts[-2:])})"
                name = f"{name} ({place})" if name in named else name
            named[name] = each
    budgets = read_budgets(given["budget"])
    found = within_budgets(named, budgets, given["storage"])[0] if budgets else named
    mine = read_candidates(found) if found else {}
    candidates, kinds = dict(named), {}
    if given["controls"]:
        alike = {
            f"random keys like {name}{end}": random_like(chosen, judge.shape, first_key=bool(end))
            for name, chosen in mine.items()
            if name not in FAMILIES
            for end in ("", FIRST_KEY)
        }
        families = FAMILIES if given["front"] is None else {}  # a front brings its own
        if budgets and families:  # drawn at equal cost
            cost = find_cost(judge)
            price = None if cost == DENSITY else lambda mask: judge.measures_of(mask)[cost]
            families = {
                f"{name} within {limit:g}": mask
                for limit in budgets
                for name, mask in rivals_within(limit, judge.shape, price).items()
            }
        own = {"dense": full(), **families, **alike}
        if taken := [name for name in own if mine.get(name, own[name]) != own[name]]:
            raise OptionsError(
                f"{taken[0]!r} is the name of a mask that compare adds itself, {own[taken[0]]}; "
                "give yours another one (NAME=MASK), or --no-controls"
            )
        kinds = {"dense": "control", **dict.fromkeys(alike, "control")}
        kinds |= dict.fromkeys(families, "hand-designed")
        candidates = {**own, **named}
    first = given["first_seed"]
    return {
        "candidates": candidates,
        "seeds": range(first, first + given["seeds"]),
        "front_of": None if given["front"] is None else read_search(given),
        "kinds": kinds,
        "against": given["against"] or "nearest",
        "margin": given["margin"],
        "budget": given["budget"],
        "storage": given["storage"],
    }


def read_search(given: Mapping[str, Any]) -> Study:
    """The search whose front is judged again."""
    from masksearch.driver import Study
    from masksearch.study.store import StudyStore

    store = StudyStore(given["front"], write=False, allowed=given["storage"])
    return Study(given["front"], store=store)


def say_cuts(study: Study) -> None:
    """How sparse the gates of the published DAM became, and where their masks were cut."""
    from masksearch.strategies.dam import describe_cut, is_published_dam

    for record in study.records():
        if is_published_dam(record):
            typer.echo(describe_cut(record))


def say_where(run: Path) -> None:
    """Where the results lie, and what writes their page."""
    typer.echo(f"run folder: {run}   page: masksearch report {shlex.quote(str(run))}")


@takes({SEARCHED: "seconds seed", **JUDGING}, TAKEN_FROM, SEARCHING | DECLARED, calls=show_search)
def search(**_: object) -> None:
    """Search for sparse masks that score well. Repeating the command goes on where it stopped.

    Examples:
        masksearch search masksearch.spaces:distances --trials 12
        masksearch search --strategy dam --set dam.steps=300 --trials 4 --run runs/dam
    """


@takes(
    {COMPARED: "half against margin", **JUDGING},
    TAKEN_FROM,
    COMPARING | DECLARED,
    calls=show_comparison,
)
def compare(**_: object) -> None:
    """Judge masks side by side: found, hand-designed, random, dense. All share their seeds.

    Examples:
        masksearch compare runs/search "mine=offsets([0, 11])"
        masksearch compare --front runs/search --run runs/front
        masksearch compare star --no-controls --half all --corpus README.md --size nano --steps 60
    """
