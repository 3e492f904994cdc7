"""The commands that judge masks: search and compare."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from masksearch.cli.options import (
    ALLOCATION,
    COMPARED,
    MASK_TEXT,
    OUTPUT,
    SEARCHED,
    Json,
    JudgeOptions,
    OptionsError,
    Run,
    Storage,
    argument,
    described,
    flag,
    option,
    takes,
)
from masksearch.cli.resuming import resumable
from masksearch.errors import MaskSearchError, SearchError, check_name
from masksearch.neighbours import offered

if TYPE_CHECKING:
    from masksearch.analysis.runs import Candidate
    from masksearch.contracts import Evaluator
    from masksearch.driver import Comparison, Study
    from masksearch.strategies.build import StrategySpec


@dataclass(frozen=True, kw_only=True)
class SearchOptions(JudgeOptions):
    """Options of search."""

    space: str | None = argument(
        "The search space: a function in a file that draws a mask, or one of the "
        "package (masksearch.spaces:NAME); dam, allocate and --local need none.",
        *(SEARCHED, "FILE.py:NAME"),
        default=None,
    )
    run: Run = Path("runs/search")
    strategy: str = option(
        "What proposes the masks: random, tpe, nsga2, nsga3, gp, qmc, allocate, dam, "
        "prune, sparsebert (the published DAM and its table), or your own as FILE.py:NAME.",
        *(SEARCHED, "", "NAME"),
        default="tpe",
    )
    trials: int | None = option(
        "Number of masks to judge.", SEARCHED, "20, without --seconds", "N"
    )
    storage: Storage = None
    constraint: list[str] | None = option(
        "What a mask must keep, such as 'effective_sparsity >= 0.9'; repeatable.",
        *(SEARCHED, "none", "TEXT"),
    )
    budget: list[float] | None = option(
        "Largest share of dense attention's cost for a mask; repeatable, draws take turns.",
        *(SEARCHED, "no limit", "SHARE"),
    )
    work: list[float] | None = option(
        "In place of --budget: largest share of a dense encoder's multiplications that is left "
        "once tokens that nobody needs are left out; repeatable.",
        *(SEARCHED, "no limit", "SHARE"),
    )
    baselines: bool | None = option(
        "Evaluate hand-designed masks as well, first: with --budget or --work those of that "
        "cost, else the six families.",
        *(SEARCHED, "with --budget"),
        name="--baselines/--no-baselines",
    )
    halving: str | None = option(
        "Stop weak trials early, at these steps, such as 62,125,250: trials are compared by loss "
        "and sparsity, and the better half goes on (--set halving.metric=loss, "
        "halving.factor=2).",
        *(SEARCHED, "every trial is finished", "STEPS"),
    )
    enqueue: Path | None = option(
        "Parameters that the space draws first, in a JSON file: a list of "
        '{"name": value, ...}, one a mask.',
        *(SEARCHED, "none", "FILE"),
    )
    local: list[str] | None = option(
        "Search which units (--unit) have this mask, such as 'window(8) | global_tokens(1)', and "
        "which full attention; no space is needed. Repeatable, the cheapest first; without full "
        'attention: --set units.levels=["star()", ..].',
        *(ALLOCATION, "none: no units", "MASK"),
    )
    unit: str | None = option(
        "What a unit is: head, layer, or kv_head (of decoders: the heads that share keys).",
        *(ALLOCATION, "head", "NAME"),
    )
    as_json: Json = False
    seconds: float | None = described(SEARCHED)
    seed: int | None = described(SEARCHED)


@dataclass(frozen=True, kw_only=True)
class CompareOptions(JudgeOptions):
    """Options of compare."""

    mask: list[str] | None = argument(
        f"Masks, or NAME=MASK. {MASK_TEXT}",
        *(COMPARED, "[MASK]..."),
        default=None,
    )
    front: Path | None = option(
        "Run folder of a search: judge every mask of its front again, beside as many "
        "hand-designed and scrambled masks of their densities.",
        *(COMPARED, "none", "FOLDER"),
    )
    run: Run = Path("runs/compare")
    storage: Storage = None
    seeds: int = option(
        "Seeds to train each mask with, from 1000 on: others than a search's; all masks share "
        "them.",
        *(COMPARED, "", "N"),
        default=5,
    )
    budget: list[float] | None = option(
        "Largest share of dense attention that a run's mask costs: RUN stands for its best mask "
        "within each, beside hand-designed masks within each; repeatable.",
        *(COMPARED, "no limit", "SHARE"),
    )
    work: list[float] | None = option(
        "In place of --budget: largest share of the work, as of search.",
        *(COMPARED, "no limit", "SHARE"),
    )
    controls: str = option(
        "What is judged beside the masks named: `all` (dense attention, the hand-designed masks, "
        "and scrambled ones: random keys, as many), `dense` or `none`.",
        *(COMPARED, "", "NAME"),
        default="all",
    )
    as_json: Json = False
    verbose: bool = flag(
        "verbose", "A line for each opponent that no MASK names: hand-designed, control.", OUTPUT
    )
    split: str | None = described(COMPARED)
    against: list[str] | None = described(COMPARED)
    margin: float | None = described(COMPARED)


FIRST_SEED = 1000
CONTROLS = ("all", "dense", "none")
FIRST = "data text label decoder evaluator weights length set slots run".split()  # of a first run

TAKEN_FROM = {
    "": "masksearch.evaluators.mlm:MlmEvaluator",
    "--glue": "masksearch.evaluators.glue:GlueEvaluator",
    **{name: each.value for name, each in offered("evaluators").items()},
    "planted corpus": "masksearch.evaluators.planted:PlantedEvaluator",
    "ray": "masksearch.executors.ray:RayTune",
    "search": "masksearch.driver:search",
    "compare": "masksearch.driver:compare",
}


def run_search(options: SearchOptions) -> Study:
    """The search that options ask for."""
    from masksearch.cli.build import (
        build_evaluator,
        build_executor,
        read_halving,
        split_settings,
        strategy_options,
        unit_levels,
    )
    from masksearch.driver import search
    from masksearch.evaluators.wrappers import read_limits
    from masksearch.gates.unit_costs import build_units
    from masksearch.masks import FAMILIES
    from masksearch.strategies.build import spec_of
    from masksearch.user_code import load_function

    strategy, run = options.strategy, options.run
    spec = spec_of(strategy)
    settings = split_settings(options.set or ())
    levels = unit_levels(options.local, options.unit, settings.get("units", {}))
    check_space(options.space, strategy, spec, levels)
    of_strategy = strategy_options(strategy, settings)
    units = {"unit": options.unit or "head", "levels": levels}
    if levels and spec.with_units is not None:
        of_strategy = spec.with_units(units, of_strategy)
    halving = read_halving(options.halving, settings.get("halving", {}))
    if options.trials is None and options.seconds is None:
        options = replace(options, trials=spec.trials)
    enqueued = _read_enqueued(options.enqueue)
    executor = build_executor(options)
    space: Any = None if options.space is None else load_function(options.space)
    evaluator = build_evaluator(options, None)
    evaluator, budgets = read_limits(evaluator, options.budget, options.work)
    if halving is not None:
        goals = {objective.name: objective.goal for objective in evaluator.objectives}
        halving = replace(halving, goal=goals.get(halving.metric, "min"))
    baselines = FAMILIES if options.baselines and not budgets else None
    baselines = {} if options.baselines is False else baselines
    if levels and spec.space != "none":
        space = build_units(units, evaluator.shape, evaluator.kv_head_count)
    with resumable(run, "search", vars(options)):
        return search(
            space,
            evaluator,
            run=run,
            storage=options.storage,
            trials=options.trials,
            seconds=options.seconds,
            strategy=strategy,
            strategy_options=of_strategy,
            seed=options.seed or 0,
            executor=executor,
            scheduler=halving,
            constraints=tuple(options.constraint or ()),
            budget=budgets,
            baselines=baselines,
            enqueue=enqueued,
        )


def check_space(
    space: str | None, strategy: str, spec: StrategySpec, levels: Sequence[str]
) -> None:
    """Raises OptionsError where a strategy lacks a space, or takes none, or there are two."""
    if space is None and spec.space == "needed" and not levels:
        raise OptionsError(
            f"strategy {strategy!r} needs a space: file.py:function or masksearch.spaces:NAME"
        )
    if space is not None and spec.space == "none":
        raise OptionsError(f"strategy {strategy!r} takes no space; drop {space}")
    if levels and spec.space == "none" and spec.with_units is None:
        raise OptionsError(f"strategy {strategy!r} takes no space: drop --local")
    if space is not None and levels:
        raise OptionsError(f"--local and --unit are a space of their own; drop {space}")


def _read_enqueued(path: Path | None) -> list[Any]:
    """Reads a file of `--enqueue`.

    Raises:
        OptionsError: If it is not there, or no list in JSON.
    """
    if path is None:
        return []
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise OptionsError(f"--enqueue {path}: there is no such file") from error
    except ValueError as error:
        raise OptionsError(f"--enqueue {path} is no JSON: {error}") from error
    if not isinstance(rows, list):
        raise OptionsError(
            f'--enqueue {path} holds a list of parameters, such as [{{"reach": 3}}]; it holds '
            f"a {type(rows).__name__}"
        )
    return rows


def run_compare(options: CompareOptions) -> Comparison:
    """The comparison that options ask for."""
    from masksearch.analysis.stats import CLAIM_SEEDS
    from masksearch.cli.build import build_evaluator, build_executor
    from masksearch.driver import compare
    from masksearch.evaluators.wrappers import read_limits
    from masksearch.strategies.candidates import on_split

    split: Any = options.split  # another name is refused
    named, executor = _named_masks(options), build_executor(options)
    evaluator = on_split(build_evaluator(options), split)
    evaluator, budgets = read_limits(evaluator, options.budget, options.work)
    compared = _masks_to_compare(options, named, evaluator, budgets)
    if options.seeds < CLAIM_SEEDS and not evaluator.seedless:
        typer.echo(
            f"fewer than {CLAIM_SEEDS} seeds decide nothing: take --seeds {CLAIM_SEEDS} or more",
            err=True,
        )
    with resumable(options.run, "compare", vars(options)):
        return compare(
            **compared,
            evaluator=evaluator,
            run=options.run,
            split=split,
            executor=executor,
        )


def _named_masks(options: CompareOptions) -> dict[str, Candidate]:
    """The masks that are given by `MASK`, by names; none stands for two masks."""
    from masksearch.cli.build import named_candidates

    named: dict[str, Candidate] = {}
    for text in dict.fromkeys(options.mask or []):
        whole, storage = bool(options.budget or options.work), options.storage
        for name, each in named_candidates(text, whole=whole, storage=storage).items():
            if name in named and "=" in text and named[name] != each:
                raise OptionsError(f"{name!r} names two masks; give one another name (NAME=MASK)")
            if name in named and "=" not in text:  # another run of that name
                path = Path(text).resolve()
                name = f"{name} ({'/'.join(path.parts[-2:])})"
                name = f"{name} ({path})" if name in named else name
            named[name] = each
    return named


def _masks_to_compare(
    options: CompareOptions,
    named: Mapping[str, Candidate],
    evaluator: Evaluator,
    budgets: Sequence[float],
) -> dict[str, Any]:
    """The masks, seeds and opponents that options name, as arguments of `compare`."""
    from masksearch.analysis.runs import draws_keys, masks_of_candidates, names_alike
    from masksearch.driver import Study
    from masksearch.masks import FAMILIES, full
    from masksearch.masks.families import FIRST_KEY, random_like
    from masksearch.strategies.opening import hand_designed
    from masksearch.study.references import best_baselines, within_budgets
    from masksearch.study.store import StudyStore

    about = evaluator.objectives, options.storage
    inside = within_budgets(named, budgets, *about)[0] if budgets else named
    mine = masks_of_candidates(inside) if inside else {}
    candidates, kinds = dict(named), {}
    check_name("controls in --controls", options.controls, CONTROLS)
    if options.controls == "dense":
        candidates, kinds = {"dense": full(), **named}, {"dense": "control"}
    elif options.controls == "all":
        alike = {
            other: random_like(chosen, evaluator.shape, first_key=other.endswith(FIRST_KEY))
            for name, chosen in mine.items()
            if name not in FAMILIES
            for other in names_alike(name)
        }
        for other in [name for name, control in alike.items() if not draws_keys(control)]:
            kept = f"{alike.pop(other)}".partition(" | ")[2]
            why = f"{kept} alone keeps as many pairs as the mask, or more: none is left to draw"
            typer.echo(f"{other} is left out: {why}", err=True)
        families: dict[str, Candidate] = {}
        if options.front is None:  # a front brings its own
            families = {} if budgets else dict(FAMILIES)
            for budget in budgets:  # those that a search prefers or, where it has none, all
                best = best_baselines(named, budget, *about)
                families |= best or hand_designed(evaluator, [budget])
        added: dict[str, Candidate] = {"dense": full(), **families, **alike}
        if taken := [name for name in added if mine.get(name, added[name]) != added[name]]:
            raise OptionsError(
                f"{taken[0]!r} is the name of a mask that compare adds itself, {added[taken[0]]}; "
                "give yours another one (NAME=MASK), or --controls none"
            )
        kinds = {"dense": "control", **dict.fromkeys(alike, "control")}
        kinds |= dict.fromkeys(families, "hand-designed")
        candidates = {**added, **named}
    typed = [name for name, each in named.items() if each in FAMILIES.values()]
    kinds |= dict.fromkeys(typed, "candidate")  # they were asked about
    front, against = options.front, options.against or "named"
    return {
        "candidates": candidates,
        "seeds": range(FIRST_SEED, FIRST_SEED + options.seeds),
        "front_of": front
        and Study(front, store=StudyStore(front, write=False, allowed=options.storage)),
        "kinds": kinds,
        "against": against[0] if len(against) == 1 else against,
        "margin": options.margin,
        "budget": budgets or None,
        "storage": options.storage,
    }


def _say_cuts(study: Study) -> None:
    """How sparse the gates of the published DAM became, and where their masks were cut."""
    from masksearch.strategies.dam import describe_cut, is_published_dam

    for record in study.records():
        if is_published_dam(record):
            typer.echo(describe_cut(record))


def _taken_within(comparison: Comparison, budget: float) -> str:
    """Which mask a comparison recommends within a budget; or why none."""
    try:
        return f"within {budget:g}: {comparison.recommend(budget)} Attach it with:"
    except SearchError as error:
        return f"within {budget:g}: {error}. Then:"


def _say_where(run: Path) -> None:
    """Where the results lie, and what writes their page."""
    typer.echo(f"run folder: {run}   page: masksearch report {shlex.quote(str(run))}")


@takes(TAKEN_FROM, config=True, first=["space", "strategy", "trials", "budget", *FIRST])
def search(options: SearchOptions) -> None:
    """Search for sparse masks that score well. Repeating the command goes on where it stopped.

    Examples:
        masksearch search masksearch.spaces:distances --trials 12
        masksearch search --strategy dam --set dam.steps=300 --trials 4 --run runs/dam
    """
    from masksearch.cli.output import print_front

    study = run_search(options)
    print_front(study, options.as_json)
    records = study.records()
    failed = [record for record in records if record.status == "failed"]
    if failed and not any(record.scored for record in records):
        raise MaskSearchError(f"no trial of {study.run} has a score: {failed[0].reason}")
    if not options.as_json:
        _say_cuts(study)
        _say_where(study.run)


@takes(TAKEN_FROM, config=True, first=["mask", "seeds", "budget", *FIRST])
def compare(options: CompareOptions) -> None:
    """Judge masks side by side: found, hand-designed, random, dense. All share their seeds.

    Examples:
        masksearch compare runs/search "mine=offsets([0, 11])"
        masksearch compare --front runs/search --run runs/front
        masksearch compare star bigbird --controls none --steps 60
    """
    from masksearch.cli.output import print_comparison

    comparison = run_compare(options)
    print_comparison(comparison, options.as_json)
    if not options.as_json:
        typer.echo(comparison.verdict(verbose=options.verbose))
        _say_where(options.run)
        place = shlex.quote(str(options.run))
        attach = f"masksearch attach MODEL {place} --time --out FOLDER --budget"
        for budget in (budgets := options.budget or options.work or []):
            typer.echo(f"{_taken_within(comparison, budget)} {attach} {budget:g}")
        if not budgets:
            typer.echo(f"put a mask on your model, and time it: {attach} SHARE")
    failed = [record for record in comparison.records if record.status == "failed"]
    if failed and len(failed) == len(comparison.records):
        raise MaskSearchError(f"all {len(failed)} runs failed: {failed[0].reason}")
