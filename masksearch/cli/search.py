"""The commands that judge masks: evaluate, search, resume, compare."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from masksearch.cli import options
from masksearch.cli.options import COMPARED, OUTPUT, PLACE, RUN, SEARCHED, declare
from masksearch.cli.resuming import read_command, resumable
from masksearch.errors import MaskSearchError

if TYPE_CHECKING:
    from masksearch.contracts import Evaluator, Executor, Record
    from masksearch.driver import Comparison, Study
    from masksearch.masks import Mask


@options.taking(options.EvaluatorOptions, options.ExecutorOptions)
def evaluate(
    mask: options.MaskArgument,
    seeds: Annotated[
        int, declare("Trainings of the mask, with the seeds 0, 1, 2, ...", COMPARED, "", "N")
    ] = 1,
    run: Annotated[
        Path | None,
        declare("Keep the results in this folder.", OUTPUT, "thrown away", "FOLDER"),
    ] = None,
    as_json: options.Json = False,
    **given: Any,
) -> None:
    """Train one mask and print its score, with an interval over seeds.

    Examples:
        masksearch evaluate "offsets([0, 11]) | global_tokens(1)" --seeds 3
        masksearch evaluate longformer --corpus README.md --size 1x64x4 --steps 60 --set half=all
    """
    options_given = {**locals(), **given}
    del options_given["given"]
    import tempfile

    from masksearch.cli.build import named_mask
    from masksearch.cli.output import print_comparison
    from masksearch.driver import compare

    built, (name, found) = evaluator_of(given), named_mask(mask)
    with ExitStack() as stack:
        if run is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "evaluate"
        else:
            folder = run
            stack.enter_context(resumable(run, "evaluate", options_given))
        comparison = compare(
            {name: found},
            built,
            run=folder,
            seeds=range(seeds),
            half=built.half,  # as a search does
            executor=executor_of(given),
        )
    failed = [record for record in comparison.records if record.status == "failed"]
    print_comparison(comparison, as_json)
    if failed:
        reason = failed[0].reason or "no reason given"
        raise MaskSearchError(f"{len(failed)} of {seeds} runs failed: {reason}")
    if run is not None and not as_json:
        say_where(run)


@options.taking(
    options.EvaluatorOptions,
    options.AllocationOptions,
    options.DamOptions,
    options.ExecutorOptions,
)
def search(
    space: Annotated[
        str | None,
        typer.Argument(
            help="The search space: a function in a file that draws a mask; dam, allocate and "
            "--local need none.",
            rich_help_panel=SEARCHED,
            metavar="FILE.py:NAME",
            show_default=False,
        ),
    ] = None,
    run: options.Run = Path("runs/search"),
    strategy: Annotated[
        str,
        declare(
            "What proposes the masks: random, tpe, nsga2, nsga3, gp, qmc, evolution, allocate, "
            "dam, sparsebert (the published DAM and its table), shared+tpe, or your own as "
            "FILE.py:NAME.",
            SEARCHED,
            "",
            "NAME",
        ),
    ] = "tpe",
    trials: Annotated[
        int | None,
        declare("Masks to judge; the search ends then.", SEARCHED, "20, without --seconds", "N"),
    ] = None,
    seconds: Annotated[
        float | None,
        declare("End after this much time, between two trials.", SEARCHED, "no limit", "SECONDS"),
    ] = None,
    seed: Annotated[
        int, declare("Seed of what is proposed, and of the trainings.", SEARCHED, "", "N")
    ] = 0,
    storage: options.Storage = None,
    constraint: Annotated[
        list[str] | None,
        declare(
            "What a mask must keep, such as 'effective_sparsity >= 0.9'; repeatable.",
            SEARCHED,
            "none",
            "TEXT",
        ),
    ] = None,
    families: Annotated[
        bool,
        declare(
            "Judge the six hand-designed masks first, beside the trials.",
            SEARCHED,
            name="--families",
        ),
    ] = False,
    halving: Annotated[
        str | None,
        declare(
            "Stop weak trials early: the steps at which trials are compared, such as 62,125,250.",
            SEARCHED,
            "every trial is finished",
            "STEPS",
        ),
    ] = None,
    halving_metric: Annotated[
        str,
        declare(
            "--halving: the reported value that is compared, beside sparsity.",
            SEARCHED,
            "",
            "NAME",
        ),
    ] = "loss",
    halving_factor: Annotated[
        int,
        declare(
            "--halving: of this many trials about one goes on at each of the steps.",
            SEARCHED,
            "",
            "N",
        ),
    ] = 2,
    enqueue: Annotated[
        Path | None,
        declare(
            "Parameters that the space draws first, in a JSON file: a list of "
            '{"name": value, ...}, one a mask.',
            SEARCHED,
            "none",
            "FILE",
        ),
    ] = None,
    log: options.Log = None,
    as_json: options.Json = False,
    **given: Any,
) -> None:
    """Search for sparse masks that score well. Repeating the command goes on where it stopped.

    Examples:
        masksearch search search_spaces/distances.py:space --trials 12
        masksearch search --strategy dam --dam-steps 300 --trials 4 --run runs/dam
    """
    options_given = {**locals(), **given}
    del options_given["given"]
    from masksearch.cli.output import print_front

    study = run_search(options_given)
    print_front(study, as_json)
    records = study.records()
    failed = [record for record in records if record.status == "failed"]
    if failed and not any(record.scored for record in records):
        raise MaskSearchError(f"no trial of {run} has a score: {failed[0].reason}")
    if not as_json:
        say_cuts(study)
        say_where(run)


def run_search(given: dict[str, Any]) -> Study:
    """The search that a command's options ask for."""
    from masksearch.cli.build import (
        allocation_options,
        build_halving,
        dam_options,
        shared_options,
        switch_options,
        units_space,
    )
    from masksearch.driver import search
    from masksearch.loggers.files import open_loggers
    from masksearch.masks import FAMILIES
    from masksearch.user_code import load_function

    space, strategy, run = given["space"], given["strategy"], given["run"]
    allocation = options.given_to(options.AllocationOptions, given)
    own = strategy in ("dam", "sparsebert", "allocate") or ".py:" in strategy
    if space is None and not own and allocation.local is None:
        raise options.OptionsError(f"strategy {strategy!r} needs a space: file.py:function")
    if space is not None and strategy in ("dam", "sparsebert"):
        raise options.OptionsError(f"strategy {strategy!r} takes no space; drop {space}")
    if space is not None and any(vars(allocation).values()):
        raise options.OptionsError(f"--local, --full, ... are a space of their own; drop {space}")
    if given["trials"] is None and given["seconds"] is None:
        given = given | {"trials": 16 if strategy == "sparsebert" else 20}
    built = evaluator_of(given)
    dam = options.given_to(options.DamOptions, given)
    gates = strategy == "allocate" and allocation.score == "gates"
    of_strategy = dam_options(dam, "dam" if gates else strategy)
    of_strategy |= shared_options(dam.shared or (), strategy)
    of_strategy |= allocation_options(allocation, strategy)
    if strategy == "dam":
        of_strategy["gates"] = switch_options(allocation) | of_strategy["gates"]
    scheduler = build_halving(
        given["halving"], given["halving_metric"], given["halving_factor"], built
    )
    names = [name.strip() for name in (given["log"] or "").split(",") if name.strip()]
    with (
        open_loggers(names, run, built.objectives) as loggers,
        resumable(run, "search", given),
    ):
        return search(
            units_space(allocation, strategy, built) if space is None else load_function(space),
            built,
            run=run,
            storage=given["storage"],
            trials=given["trials"],
            seconds=given["seconds"],
            strategy=strategy,
            strategy_options=of_strategy,
            seed=given["seed"],
            executor=executor_of(given),
            scheduler=scheduler,
            constraints=tuple(given["constraint"] or ()),
            baselines=FAMILIES if given["families"] else {},
            listeners=loggers,
            enqueue=read_enqueued(given["enqueue"]),
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
        raise options.OptionsError(f"--enqueue {path}: there is no such file") from error
    except ValueError as error:
        raise options.OptionsError(f"--enqueue {path} is no JSON: {error}") from error
    if not isinstance(found, list):
        raise options.OptionsError(
            f'--enqueue {path} holds a list of parameters, such as [{{"reach": 3}}]; it holds '
            f"a {type(found).__name__}"
        )
    return found


def resume(
    run: options.RunArgument,
    trials: Annotated[
        int | None, declare("Another number of trials.", RUN, options.AS_BEFORE, "N")
    ] = None,
    seconds: Annotated[
        float | None, declare("Another limit of time.", RUN, options.AS_BEFORE, "SECONDS")
    ] = None,
    executor: Annotated[
        str | None, declare("Another executor.", PLACE, options.AS_BEFORE, "NAME")
    ] = None,
    slots: Annotated[
        int | None, declare("Another number of trials at a time.", PLACE, options.AS_BEFORE, "N")
    ] = None,
    address: Annotated[
        str | None, declare("Another Ray cluster.", PLACE, options.AS_BEFORE, "ADDRESS")
    ] = None,
) -> None:
    """Go on with a search, an allocation, a comparison, a demo or a pre-training.

    Examples:
        masksearch resume runs/search
        masksearch resume runs/search --trials 16 --slots 2
    """
    changed = {
        "trials": trials,
        "seconds": seconds,
        "executor": executor,
        "slots": slots,
        "address": address,
    }
    command, given = read_command(run, changed)
    commands: dict[str, Callable[..., None]]
    commands = {"search": search, "compare": compare, "evaluate": evaluate}
    if command == "demo":
        from masksearch.cli.demo import show_demo

        commands[command] = show_demo
    elif command == "allocate":
        from masksearch.cli.allocate import allocate

        commands[command] = allocate
    elif command == "pretrain":
        from masksearch.cli.pretrain import pretrain

        commands[command] = pretrain
    commands[command](**given)


@options.taking(options.EvaluatorOptions, options.ExecutorOptions)
def compare(
    mask: Annotated[
        list[str] | None,
        declare(
            "A mask, or NAME=MASK: an expression, a family, a file or a run; repeatable.",
            COMPARED,
            "none",
            "MASK",
        ),
    ] = None,
    found: Annotated[
        list[Path] | None,
        declare(
            "Run folder of a search, whose best mask is compared, or RUN#7, RUN@0.9; repeatable.",
            COMPARED,
            "none",
            "FOLDER",
        ),
    ] = None,
    sparsity: Annotated[
        list[float] | None,
        declare(
            "Take the best mask of --found that is at least this sparse; repeatable.",
            COMPARED,
            "0",
            "SHARE",
        ),
    ] = None,
    front: Annotated[
        Path | None,
        declare(
            "Run folder of a search: judge every mask of its front again, beside as many "
            "hand-designed and random masks of their densities.",
            COMPARED,
            "none",
            "FOLDER",
        ),
    ] = None,
    run: options.Run = Path("runs/compare"),
    seeds: Annotated[
        int, declare("Trainings of each mask, on seeds that all share.", COMPARED, "", "N")
    ] = 5,
    first_seed: Annotated[
        int, declare("First of these seeds; use others than the search's.", COMPARED, "", "N")
    ] = 1000,
    half: Annotated[
        str | None,
        declare(
            "Which rows judge: final (no search has seen them), search, test or all.",
            COMPARED,
            "final, where the evaluator splits its rows",
            "NAME",
        ),
    ] = None,
    against: Annotated[
        str,
        declare(
            "Hand-designed masks that are opponents of a searched one: nearest (in sparsity), or "
            "all, which pays for as many comparisons.",
            COMPARED,
            "",
            "NAME",
        ),
    ] = "nearest",
    controls: Annotated[
        bool,
        declare(
            "Also judge dense attention, the hand-designed masks, and random keys in the same "
            "number.",
            COMPARED,
        ),
    ] = True,
    as_json: options.Json = False,
    **given: Any,
) -> None:
    """Judge masks side by side: found, hand-designed, random, dense. All share their seeds.

    Examples:
        masksearch compare --found runs/search --mask "mine=offsets([0, 11])"
        masksearch compare --front runs/search --run runs/front
    """
    options_given = {**locals(), **given}
    del options_given["given"]
    from masksearch.cli.output import print_comparison

    comparison = run_compare(options_given)
    print_comparison(comparison, as_json)
    if not as_json:
        typer.echo(comparison.verdict())
        say_where(run)


def run_compare(given: dict[str, Any]) -> Comparison:
    """The comparison that a command's options ask for."""
    from masksearch.driver import compare
    from masksearch.study.halves import judge_on

    run = given["run"]
    judge = judge_on(evaluator_of(given), given["half"])
    compared = masks_to_compare(given, judge)
    with resumable(run, "compare", given):
        return compare(
            **compared,
            evaluator=judge,
            run=run,
            half=given["half"],
            executor=executor_of(given),
        )


def masks_to_compare(given: Mapping[str, Any], judge: Evaluator) -> dict[str, Any]:
    """What `compare` is given: masks, seeds and opponents."""
    from masksearch.analysis.candidates import read_candidates
    from masksearch.cli.build import found_masks, named_candidate
    from masksearch.driver import open_study
    from masksearch.masks import FAMILIES, full
    from masksearch.masks.random_controls import random_like

    seed = given["first_seed"]
    given_masks: dict[str, Mask | Record] = {}
    for name, each in map(named_candidate, given["mask"] or []):
        if given_masks.setdefault(name, each) != each:
            raise options.OptionsError(
                f"--mask names two masks {name!r}; give one of them another name (NAME=MASK)"
            )
    for folder in given["found"] or []:
        for name, record in found_masks(folder, given["sparsity"] or []).items():
            given_masks[name if name not in given_masks else f"{name} ({folder})"] = record
    mine = read_candidates(given_masks) if given_masks else {}
    candidates, kinds = dict(given_masks), {}
    if given["controls"]:
        alike = {
            f"random keys like {name}": random_like(chosen, judge.shape)
            for name, chosen in mine.items()
            if name not in FAMILIES
        }
        families = FAMILIES if given["front"] is None else {}  # a front brings its own
        own = {"dense": full(), **families, **alike}
        if taken := [name for name in own if mine.get(name, own[name]) != own[name]]:
            raise options.OptionsError(
                f"{taken[0]!r} is the name of a mask that compare adds itself, {own[taken[0]]}; "
                "give yours another one (--mask NAME=MASK), or --no-controls"
            )
        kinds = {"dense": "control", **dict.fromkeys(alike, "control")}
        candidates = {**own, **given_masks}
    return {
        "candidates": candidates,
        "seeds": range(seed, seed + given["seeds"]),
        "front_of": None if given["front"] is None else open_study(given["front"]),
        "kinds": kinds,
        "against": given["against"],
    }


# -- what the commands share -------------------------------------------------------------------
def evaluator_of(given: Mapping[str, Any]) -> Evaluator:
    """The evaluator that a command's options name."""
    from masksearch.cli.build import build_evaluator

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise options.OptionsError(
            "under torchrun every process would open the same study; torchrun is for "
            "`masksearch pretrain`: use --slots, or --executor ray"
        )
    return build_evaluator(options.given_to(options.EvaluatorOptions, given))


def executor_of(given: Mapping[str, Any]) -> Executor:
    """The executor that a command's options name."""
    from masksearch.cli.build import build_executor

    return build_executor(options.given_to(options.ExecutorOptions, given))


def say_cuts(study: Study) -> None:
    """How sparse the gates of the published DAM became, and where their masks were cut."""
    from masksearch.strategies.published_dam import describe_cut, is_published_dam

    for record in study.records():
        if is_published_dam(record):
            typer.echo(describe_cut(record))


def say_where(run: Path) -> None:
    """Where the results lie, and what writes their page."""
    typer.echo(f"run folder: {run}   page: masksearch report {shlex.quote(str(run))}")
