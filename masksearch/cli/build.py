"""From command-line words to objects: masks, executor, scheduler and a strategy's options."""

from __future__ import annotations

import ast
import contextlib
import inspect
import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from masksearch.cli.options import (
    AllocationOptions,
    DamOptions,
    EvaluatorOptions,
    ExecutorOptions,
    OptionsError,
)
from masksearch.contracts import Evaluator, Executor, Scheduler, check_evaluator
from masksearch.errors import unknown_name
from masksearch.masks import parse
from masksearch.masks.core import Mask
from masksearch.user_code import call_user, load_function, load_object

if TYPE_CHECKING:
    from masksearch.contracts import Record
    from masksearch.strategies.space import Space

SPELLED: dict[Any, str] = {  # what `--set` takes, in words
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    tuple: 'a list such as ["a", "b"]',
    NoneType: "null",
}


EXECUTORS = ("local", "ray")
DISCRETISING = ("densities", "merge_heads")  # settings of the masks that strategy dam proposes
WRAPPERS = ("latency", "memory", "cost_length", "reuse")  # go around an evaluator


def build_evaluator(given: EvaluatorOptions) -> Evaluator:
    """The user's own evaluator, a downstream task, masked language modelling on a corpus, or the
    planted corpus; with the costs that were asked for.

    Raises:
        OptionsError: If options do not go together; says which.
    """
    evaluator = without_costs(given)
    if given.reuse is not None:
        from masksearch.evaluators.wrappers import Cached

        evaluator = Cached(evaluator, given.reuse)
    if given.latency or given.memory:
        from masksearch.evaluators.cost import WithCost

        return WithCost(
            evaluator, latency=given.latency, memory=given.memory, length=given.cost_length
        )
    if given.cost_length is not None:
        raise OptionsError("--cost-length needs --latency or --memory")
    return evaluator


def without_costs(given: EvaluatorOptions) -> Evaluator:
    """The evaluator itself."""
    settings = {
        name: value
        for name, value in vars(given).items()
        if value not in (None, []) and name not in WRAPPERS
    }
    if given.evaluator is not None:
        others = sorted(set(settings) - {"evaluator"})
        if others:
            flags = ", ".join(f"--{name}" for name in others)
            raise OptionsError(f"--evaluator brings its own settings; drop {flags}")
        own: Evaluator = call_user(given.evaluator, load_function(given.evaluator), {})
        check_evaluator(own)
        return own
    if given.decoder is not None:
        return decoder_evaluator(settings)
    tasks = [name for name in ("glue", "squad", "swag") if name in settings]
    if len(tasks) > 1:
        raise OptionsError(f"--{tasks[0]} and --{tasks[1]} are two evaluators; give one")
    if given.adapt is not None and (given.corpus or not (given.weights and tasks)):
        raise OptionsError(
            "--adapt needs --weights with --glue, --squad or --swag, and no --corpus: it says how "
            "masks are put on a fine-tuned checkpoint"
        )
    if given.corpus is None and not (given.weights and tasks):
        return planted_evaluator(settings)
    if given.tasks is not None and given.glue is None:
        raise OptionsError("--tasks needs --glue FOLDER")
    if given.rows is not None and not tasks:
        raise OptionsError("--rows needs --glue, --squad or --swag")
    kind = evaluator_kind(tasks[0] if tasks else "mlm")
    for name in ("corpus", "set", "preset"):
        settings.pop(name, None)
    if given.tasks is not None:
        names = [name.strip() for name in given.tasks.split(",") if name.strip()]
        settings["tasks"] = tuple(load_object(n) if ".py:" in n else n for n in names)
    settings |= further_settings(kind, given.set or ())
    if given.preset is not None:
        return kind.preset(given.preset, given.corpus, **settings)  # type: ignore[no-any-return]
    return kind(given.corpus, **settings)  # type: ignore[no-any-return]


def decoder_evaluator(settings: dict[str, Any]) -> Evaluator:
    """What judges on a decoder."""
    from masksearch.evaluators.causal import CausalEvaluator

    other = ("corpus", "glue", "squad", "swag", "tasks", "rows", "preset")
    if stray := [name for name in other if name in settings]:
        raise OptionsError(
            f"--decoder names the text that a decoder is judged by, and --{stray[0]} belongs to "
            "encoders; give one"
        )
    further = further_settings(CausalEvaluator, settings.pop("set", ()))
    return CausalEvaluator(settings.pop("decoder"), **settings, **further)


def planted_evaluator(settings: dict[str, Any]) -> Evaluator:
    """The embedded corpus, which needs no file."""
    from masksearch.evaluators.planted import PlantedEvaluator

    known = ("steps", "size", "batch", "lr", "set")
    stray = sorted(set(settings) - set(known))
    if stray:
        raise OptionsError(
            f"--{stray[0]} needs --corpus FILE_OR_FOLDER (or --weights with --glue, --squad "
            "or --swag); without a corpus the planted one is used, which takes "
            f"{', '.join('--' + name for name in sorted(known))}"
        )
    further = further_settings(PlantedEvaluator, settings.pop("set", ()))
    return PlantedEvaluator(**settings, **further)


def evaluator_kind(task: str) -> Any:
    """The evaluator's class for a downstream task, or for the pre-training alone ("mlm")."""
    match task:
        case "glue":
            from masksearch.evaluators.glue import GlueEvaluator

            return GlueEvaluator
        case "squad":
            from masksearch.evaluators.squad import SquadEvaluator

            return SquadEvaluator
        case "swag":
            from masksearch.evaluators.swag import SwagEvaluator

            return SwagEvaluator
    from masksearch.evaluators.mlm import MlmEvaluator

    return MlmEvaluator


def split_setting(option: str, setting: str) -> tuple[str, str]:
    """Name and text of `name=text`.

    Raises:
        OptionsError: If there is no "=".
    """
    name, equals, text = setting.partition("=")
    if not equals:
        raise OptionsError(f"{option} takes name=value, got {setting!r}")
    return name, text


def further_settings(kind: Any, settings: Sequence[str]) -> dict[str, Any]:
    """What `--set name=value` gives an evaluator beside the options that have names of their own.

    Raises:
        OptionsError: If there is no "=", or the value is not of the setting's type.
        UnknownNameError: If the evaluator has no such setting.
    """
    hints = get_type_hints(kind)
    own = {option.name for option in fields(EvaluatorOptions)}
    known = [f.name for f in fields(kind) if f.init and f.name not in own | {"process", "text"}]
    values: dict[str, Any] = {}
    for setting in settings:
        name, text = split_setting("--set", setting)
        if name in own:
            raise OptionsError(f"{name} has an option of its own: --{name}")
        if name not in known:
            raise unknown_name(f"setting of {kind.__name__}", name, known)
        values[name] = read_setting("--set", name, text, hints[name])
    return values


def read_setting(option: str, name: str, text: str, hint: Any) -> Any:
    """The value of `--set name=text`, of the type that the annotation asks for.

    >>> (
    ...     read_setting("--set", "lr", ".1", float),
    ...     read_setting("--set", "held_out", "7", str | None),
    ... )
    (0.1, '7')

    Raises:
        OptionsError: If the text is none.
    """
    given = [hint] if get_origin(hint) in (Literal, Sequence) else get_args(hint) or [hint]
    kinds = {get_origin(one) or one for one in given}
    kinds |= {tuple} if Sequence in kinds else set()
    value = read_value(text)
    if isinstance(value, list):
        value = tuple(value)
    if float in kinds and isinstance(value, str | int) and not isinstance(value, bool):
        with contextlib.suppress(ValueError):
            value = value if int in kinds and isinstance(value, int) else float(value)
    if type(value) in kinds:
        return value
    if kinds & {str, Path, Literal}:
        return text if kinds & {str, Literal} else Path(text)
    wanted = " or ".join(spelled for one, spelled in SPELLED.items() if one in kinds)
    raise OptionsError(f"{option} {name} takes {wanted}, got {text!r}")


def read_value(text: str) -> Any:
    """The value that a text is in JSON or in Python, or else the text itself.

    >>> read_value("true"), read_value(".2"), read_value("[.1, 1_000]"), read_value("flip")
    (True, 0.2, [0.1, 1000], 'flip')
    """
    for read in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError, TypeError, RecursionError):
            return read(text)
    return text


def build_executor(given: ExecutorOptions) -> Executor:
    """The executor.

    Raises:
        OptionsError: If options of Ray are given for the local one.
        UnknownNameError: If the executor is unknown.
    """
    if ".py:" in given.executor:
        own: Executor = call_user(given.executor, load_function(given.executor), {})
        return own
    if given.executor not in EXECUTORS:
        raise unknown_name("executor", given.executor, [*EXECUTORS, "file.py:Name"])
    if given.executor == "local":
        for name in ("address", "cpus", "gpus", "scratch"):
            if getattr(given, name) is not None:
                raise OptionsError(f"--{name} belongs to --executor ray")
        from masksearch.executors.local import Local

        return Local(given.slots, limit_seconds=given.limit)
    from masksearch.executors.ray import RayTune

    resources = {"cpu": 1.0 if given.cpus is None else given.cpus}
    return RayTune(
        given.address,
        slots=given.slots,
        resources=resources | ({} if given.gpus is None else {"gpu": given.gpus}),
        storage_path=given.scratch,
        limit_seconds=given.limit,
    )


def build_halving(
    steps: str | None, metric: str, factor: int, evaluator: Evaluator
) -> Scheduler | None:
    """The scheduler that `--halving 62,125` asks for.

    Raises:
        OptionsError: If the steps are no ascending integers.
    """
    if steps is None:
        return None
    from masksearch.strategies.halving import ParetoHalving

    try:
        rungs = tuple(int(text) for text in steps.split(","))
    except ValueError:
        raise OptionsError(f"--halving takes steps such as 62,125,250, got {steps!r}") from None
    goals: dict[str, Literal["min", "max"]] = {o.name: o.goal for o in evaluator.objectives}
    return ParetoHalving(rungs=rungs, metric=metric, goal=goals.get(metric, "min"), factor=factor)


def read_mask(text: str) -> Mask:
    """A mask of positions, as `masks.parse` reads it.

    Raises:
        TokensNeededError: If its cells follow the tokens.
    """
    mask = parse(text)
    mask.refuse_tokens()
    return mask


def split_name(text: str) -> tuple[str, str]:
    """Name and text of `NAME=MASK`; a mask alone is its own name."""
    name, separator, rest = text.partition("=")
    if separator and name and not set(name) & set("()[]|&~"):  # an = inside a call is no name
        return name, rest
    return text, text


def named_mask(text: str) -> tuple[str, Mask]:
    """Name and mask of `NAME=MASK`."""
    name, mask = split_name(text)
    return name, read_mask(mask)


def named_candidate(text: str) -> tuple[str, Mask | Record]:
    """Name and mask of `NAME=MASK`, or what a run has recorded of the mask."""
    from masksearch.masks.text import names_run
    from masksearch.study.references import read_run_record

    name, mask = split_name(text)
    return name, read_run_record(mask) if names_run(mask) else read_mask(mask)


def found_masks(run: Path, sparsities: list[float]) -> dict[str, Record]:
    """What a search has found, named by its strategy.

    Args:
        run: Its folder: the best mask is taken at each least sparsity. Or a reference to one mask
            of it, `RUN#7` or `RUN@0.9`.
        sparsities: In [0, 1]; none = the best of all; of strategy sparsebert all of its masks,
            under their names in the table.
    """
    from masksearch.strategies.published_dam import is_published_dam
    from masksearch.study.references import parse_reference, read_run_record
    from masksearch.study.store import StudyStore

    text, reference = str(run), parse_reference(str(run))
    label = StudyStore(reference.run, write=False).facts().get("strategy", reference.run.name)
    if reference.trial is not None:
        return {f"{label} #{reference.trial}": read_run_record(text)}
    if label == "sparsebert" and not (reference.sparsity or sparsities):
        records = StudyStore(reference.run, write=False).records()
        return {record.name: record for record in records if is_published_dam(record)}
    chosen: dict[str, Record] = {}
    for sparsity in [reference.sparsity] if reference.sparsity else sparsities or [0.0]:
        record = read_run_record(f"{reference.run}@{sparsity}")
        name = label if not sparsity else f"{label} >= {sparsity:g}"
        chosen[name if name not in chosen else f"{name} {record.number}"] = record
    return chosen


def dam_options(given: DamOptions, strategy: str) -> dict[str, Any]:
    """Options of the one-shot strategy; others refuse them.

    `--dam name=value` are arguments of `Gates` or `DamConfig`, `preset`, or `densities` and
    `merge_heads` (of the masks that are cut).

    Raises:
        OptionsError: If another strategy is given such options, or a setting has no "=", or a
            value of another type.
        UnknownNameError: If nothing has that setting.
    """
    signed = given.signed or None
    named = {"structure": given.structure, "signed": signed, "layers": given.gate_layers}
    gates = {name: value for name, value in named.items() if value is not None}
    aims = {"density": given.density, "steps": given.dam_steps}
    config = {name: value for name, value in aims.items() if value is not None}
    settings = given.dam or []
    if strategy not in ("dam", "sparsebert"):
        if gates or config or settings:
            raise OptionsError(
                "--density, --structure, --dam, ... belong to strategy dam, and to allocate with "
                "--score gates"
            )
        return {}
    options: dict[str, Any] = {"gates": gates, "config": config}
    if settings:
        from masksearch.gates.config import EARLIER, DamConfig
        from masksearch.gates.gates import Gates

        of_gates = set(inspect.signature(Gates).parameters) - {"length", "seed"}
        of_config = {field.name for field in fields(DamConfig)}
        own = {"preset": str, "densities": Sequence[float], "merge_heads": bool}
        hints = get_type_hints(Gates.__init__) | get_type_hints(DamConfig) | own
        for setting in settings:
            name, text = split_setting("--dam", setting)
            value = read_value(text)
            known = {"preset", *DISCRETISING} | of_gates | of_config
            if name not in known | EARLIER.keys():
                raise unknown_name("setting of --dam", name, sorted(known))
            read_setting("--dam", name, text, hints[EARLIER.get(name, name)])
            if name in DISCRETISING:
                options[name] = value
            if name == "preset" or name in of_gates:
                gates[name] = value
            if name == "preset" or name in of_config | EARLIER.keys():
                config[name] = value
    if strategy == "sparsebert":
        if gates or len(options) > 2:
            raise OptionsError(
                "strategy sparsebert trains the gates of the published table and cuts its masks; "
                "of their settings it takes those of the training alone (--dam-steps, --dam lr=..)"
            )
        del options["gates"]
    return options


def allocation_options(given: AllocationOptions, strategy: str) -> dict[str, Any]:
    """Options of strategy allocate; of others, only the units are taken (`units_space`).

    Raises:
        OptionsError: If another strategy is given an option of allocate alone.
    """
    named = {name: value for name, value in vars(given).items() if value not in (None, [])}
    if strategy == "allocate":
        return named
    own = {"cost": named.pop("cost")} if strategy == "dam" and "cost" in named else {}
    if alone := [name for name in ("score", "grow", "tries", "budgets", "cost") if name in named]:
        raise OptionsError(f"--{alone[0]} belongs to strategy allocate")
    return own


def units_space(given: AllocationOptions, strategy: str, evaluator: Evaluator) -> Space | None:
    """The space of the units that options name, for a strategy that needs one; None without.

    Raises:
        OptionsError: If some of the options are given without --local.
    """
    others = [name for name in ("full", "between", "unit") if getattr(given, name)]
    if strategy == "allocate" or not (given.local or others):
        return None
    if strategy == "sparsebert":
        raise OptionsError(f"strategy {strategy} takes no space: drop --local, --full, ...")
    if given.local is None:
        raise OptionsError(f"--{others[0]} goes with --local, the mask of the other units")
    if strategy == "dam":
        return None  # its gates choose among them: `switch_options`
    from masksearch.strategies.allocate import build_units

    return build_units(vars(given), evaluator.shape, evaluator.kv_head_count)


def switch_options(given: AllocationOptions) -> dict[str, Any]:
    """Arguments of the gates of strategy dam that choose among the masks of units; none without
    `--local`."""
    if given.local is None:
        return {}
    levels = [given.local, *(given.between or ()), given.full or "full()"]
    return {"structure": "switch", "options": levels, "per": given.unit or "head"}


def shared_options(settings: Sequence[str], strategy: str) -> dict[str, Any]:
    """Options of the strategies that begin with a super-net; others refuse them.

    Args:
        settings: As "name=value"; see `SharedStrategy`.
        strategy: Name of the strategy.

    Raises:
        OptionsError: If another strategy is given such options, or a setting has no "=", or a
            value of another type.
        UnknownNameError: If the strategy has no such setting.
    """
    from masksearch.strategies.supernet import NAMES, OPTIONS

    if settings and strategy not in NAMES:
        raise OptionsError(f"--shared belongs to strategy {', '.join(NAMES)}")
    if not settings:
        return {}
    from masksearch.evaluators.shared import SharedWeights

    options: dict[str, Any] = {}
    hints = get_type_hints(SharedWeights)
    for setting in settings:
        name, text = split_setting("--shared", setting)
        if name not in OPTIONS:
            raise unknown_name("setting of --shared", name, OPTIONS)
        read_setting("--shared", name, text, hints.get(name, int))
        options[name] = read_value(text)
    return options
