"""The command check: one's own space, evaluator, strategy or mask, tried once before a search."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from masksearch.cli.options import RUN, EvaluatorOptions, OptionsError, argument, takes
from masksearch.cli.search import TAKEN_FROM
from masksearch.user_code import call_user, check_evaluator, load_function

if TYPE_CHECKING:
    from masksearch.contracts import Evaluator, Job, Record, Shape

SAME = "run twice: the same results"
FAILS = "  fails: "
BLOCK = 64  # side of a kernel's block, in positions
DRAWS = 20  # of a space
LENGTH = 128  # positions at which masks of a space are counted
LAYERS, HEADS = 6, 12  # of the model that a space is told of


@dataclass(frozen=True, kw_only=True)
class CheckOptions(EvaluatorOptions):
    """Options of check."""

    target: str = argument(
        "A function or class in a file: a space, an evaluator, a strategy, or what returns a "
        "mask.",
        *(RUN, "FILE.py:NAME"),
    )


@takes(TAKEN_FROM)
def check(options: CheckOptions) -> None:
    """Try your own space, evaluator, strategy or mask, twice, and say whether both runs agree.

    A space is drawn 20 times and nothing is trained; with the options that name an evaluator, its
    masks are drawn for that model and cost what the search will count. An evaluator judges two
    masks; a strategy proposes masks of a small space. Nothing is kept.

    Examples:
        masksearch check my_space.py:space
        masksearch check my_space.py:space --weights my-bert --glue glue/ --tasks SST-2
        masksearch check my_proxy.py:Judge
    """
    from masksearch.cli.build import build_evaluator
    from masksearch.cli.report import facts_of_mask, mask_lines
    from masksearch.masks import Mask

    target, values = options.target, vars(options).items()
    given = [name for name, value in values if name != "target" and value is not None]
    made = load_function(target)
    needed = [p for p in inspect.signature(made).parameters.values() if p.default is p.empty]
    with tempfile.TemporaryDirectory() as folder:
        if inspect.isclass(made) and hasattr(made, "ask"):
            if given:
                raise OptionsError(f"--{given[0]} names an evaluator, and a strategy takes none")
            lines, use = _check_strategy(target, Path(folder)), f"SPACE --strategy {target}"
        elif len(needed) == 1 and not inspect.isclass(made):
            lines, use = check_space(made, build_evaluator(options) if given else None), target
        else:
            own = replace(options, evaluator=target)
            made = build_evaluator(own) if given else call_user(target, made, {})
            if isinstance(made, Mask):
                typer.echo("\n".join(mask_lines(facts_of_mask(made, LENGTH, BLOCK))))
                return
            lines, use = _try_evaluator(made, Path(folder)), f"SPACE --evaluator {target}"
    typer.echo("\n".join(lines))
    if lines[-1] != SAME or any(line.startswith(FAILS) for line in lines):
        raise typer.Exit(2)
    typer.echo(f"use it: masksearch search {use}")


def _try_evaluator(made: object, folder: Path) -> list[str]:
    """Lets an evaluator judge two masks.

    Raises:
        EvaluatorError: If it is none.
    """
    from masksearch.driver import compare
    from masksearch.masks import full, window

    check_evaluator(made)
    evaluator: Any = made
    goals = ", ".join(f"{each.name} ({each.goal})" for each in evaluator.objectives)
    lines = [f"an evaluator of {goals}; shape {evaluator.shape}"]
    masks = {"full()": full(), "window(2)": window(2)}

    def run(path: Path) -> Sequence[Record]:
        return compare(masks, evaluator, run=path, seeds=[0], progress=None).records

    records, agree = twice(run, folder)
    for record in records:
        values = ", ".join(f"{name} {value:.6g}" for name, value in record.values.items())
        took = f"(step {record.step}, {record.seconds:.1f} s)"
        failure = "" if record.scored else f"{FAILS}{record.name}: {record.reason}"
        lines.append(failure or f"  {record.name}: {values} {took}")
    return [*lines, agree]


def check_space(space: Callable[..., Any], evaluator: Evaluator | None) -> list[str]:
    """Draws from a space: for the model and data of an evaluator, or else for a model of the
    layers and heads that its first mask has."""
    from masksearch.analysis.pareto import cost_of
    from masksearch.contracts import Evaluate, Record, Refused, Shape
    from masksearch.errors import MaskSearchError
    from masksearch.masks.measure import fingerprint, measures

    told = Shape(LENGTH, LAYERS, HEADS) if evaluator is None else evaluator.shape
    first, second = draws(space, told), draws(space, told)
    jobs = [job for job, _ in first if isinstance(job, Evaluate)]
    reasons = [job.reason for job, _ in first if isinstance(job, Refused)]
    lines = [f"a space: {len(jobs)} masks in {len(first)} draws"]
    costs: dict[str, float] = {}
    shape = told
    if jobs and not evaluator:
        shape = Shape(LENGTH, jobs[0].mask.layers or 1, jobs[0].mask.heads or 1)
    for job in jobs:
        try:
            measured = measures(job.mask, shape)
            measured |= evaluator.measures_of(job.mask) if evaluator else {}
            record = Record(0, "done", job, measures=measured)
            costs[fingerprint(job.mask, shape)] = cost_of(
                record, evaluator.objectives if evaluator else ()
            )
        except MaskSearchError as error:
            reasons.append(f"{type(error).__name__}: {error} (mask {job.mask})")
    if costs:
        low, high = min(costs.values()), max(costs.values())
        where = "at the lengths of the data" if evaluator else f"at {LENGTH} positions"
        lines[0] += f"; different ones that a model can have: {len(costs)}, "
        lines[0] += f"which cost {low:.3g} to {high:.3g} of dense attention {where}"
    for name in dict.fromkeys(name for _, params in first for name in params):
        values = list(dict.fromkeys(params[name] for _, params in first if name in params))
        numbers = all(isinstance(each, int | float) for each in values)
        lines.append(f"  {name}: {', '.join(map(str, sorted(values) if numbers else values))}")
    lines += [f"{FAILS}{reason.splitlines()[-1]}" for reason in dict.fromkeys(reasons)]
    agree = _say_equal(sum(a == b for a, b in zip(first, second, strict=True)), len(first))
    return [*lines, agree]


def draws(space: Callable[..., Any], told: Shape) -> list[tuple[Job, dict[str, Any]]]:
    """Random draws of a space, as a search's first ones: jobs, with the parameters drawn.

    The space is told of a model, and of its data (`shape_of`)."""
    import optuna

    from masksearch.strategies.samplers import Parameters, draw_job
    from masksearch.study.store import quiet

    with quiet():
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        parameters = Parameters((), told)
        return [draw_job(space, study.ask(), parameters, number) for number in range(DRAWS)]


def _check_strategy(target: str, folder: Path) -> list[str]:
    """Lets a strategy propose masks of a small space, which is judged by sparsity and hops."""
    from masksearch import masks
    from masksearch.contracts import Evaluator, Objective, Report, Shape
    from masksearch.driver import search
    from masksearch.masks.measure import hops

    class Untrained(Evaluator):
        """Sparsity, which every record has, and hops: `length` where a key is never reached."""

        shape = Shape(16, layers=1, heads=4)
        objectives = (Objective("sparsity", "max", 0.0), Objective("hops", "min", 16.0))
        protocol = "sparsity and hops"

        def __call__(self, mask: masks.Mask, *, seed: int, workdir: Path) -> Iterator[Report]:
            yield Report(0, {"hops": min(hops(mask, 16), 16.0)})

    def space(trial: Any) -> masks.Mask:
        return masks.window(trial.suggest_int("reach", 0, 7))

    def run(path: Path) -> Sequence[Record]:
        options: dict[str, Any] = {"strategy": target, "trials": 4, "progress": None}
        return search(space, Untrained(), run=path, **options).records()

    records, agree = twice(run, folder)
    lines = [
        f"  #{each.number}: {each.mask}" if each.scored else f"{FAILS}{each.reason}"
        for each in records
    ]
    lines = [f"a strategy: {len(records)} proposals over masks.window(0 .. 7)", *lines]
    return [*lines, agree]


def _say_equal(equal: int, count: int) -> str:
    """In words, how many results of a second run equal those of the first."""
    if equal == count:
        return SAME
    return (
        f"run twice: {count - equal} of {count} results differ, so that a search could not be "
        "repeated or resumed: let everything random follow from the trial, or from the seed"
    )


def twice(run: Callable[[Path], Sequence[Record]], folder: Path) -> tuple[Sequence[Record], str]:
    """The records of a first run, and in words whether those of a second equal them."""
    first, second = run(folder / "a"), run(folder / "b")

    def result(record: Record) -> tuple[object, ...]:
        return record.params, record.fingerprint, record.values, record.status

    equal = sum(result(a) == result(b) for a, b in zip(first, second, strict=False))
    return first, _say_equal(equal, max(len(first), len(second)))
