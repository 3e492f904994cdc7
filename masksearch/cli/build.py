"""From command-line words to objects: evaluators, executors, masks and spaces."""

from __future__ import annotations

import ast
import contextlib
import inspect
import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer

from masksearch.cli.options import (
    EVALUATOR,
    MODEL,
    EvaluatorOptions,
    JudgeOptions,
    OptionsError,
    TaskOptions,
)
from masksearch.contracts import Evaluator, Executor, Record
from masksearch.errors import check_name, without_controls
from masksearch.masks import parse
from masksearch.masks.core import Mask
from masksearch.masks.text import names_run
from masksearch.neighbours import load_part
from masksearch.training.parts import unknown_setting
from masksearch.user_code import call_user, check_evaluator, load_function, load_object

if TYPE_CHECKING:
    from masksearch.analysis.runs import Candidate
    from masksearch.strategies.halving import ParetoHalving

EXECUTORS = ("local", "ray")
TASK = [each.name for each in fields(TaskOptions)]
FIELDS = [  # options that are fields of evaluators, under their names
    each.name
    for each in fields(EvaluatorOptions)
    if each.metadata.get("group") in (EVALUATOR, MODEL)
]


def build_evaluator(options: EvaluatorOptions, prefixes: Collection[str] | None = ()) -> Evaluator:
    """The evaluator that options name, which answers from `--reuse` where that is given.

    Args:
        options: Of the command line.
        prefixes: Of `--set`, that the command takes; None = all.

    Raises:
        OptionsError: If options do not go together; says which.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise OptionsError(
            "under torchrun every process would open the same study; torchrun is for "
            "`masksearch pretrain`: use --slots, or --executor ray"
        )
    settings = split_settings(options.set or (), prefixes)
    evaluator = _judging_evaluator(options, settings.get("", {}))
    if options.reuse is not None:
        from masksearch.evaluators.wrappers import Cached

        return Cached(evaluator, options.reuse)
    return evaluator


def _judging_evaluator(options: EvaluatorOptions, texts: Mapping[str, str]) -> Evaluator:
    """The evaluator itself: the user's own, a decoder's, an embedding model's, GLUE's, that of
    masked language modelling on a corpus, or the planted one."""
    judging = ("corpus", *TASK, "decoder", "evaluator", "preset", *FIELDS)
    values = {n: value for n in judging if (value := getattr(options, n)) is not None}
    if "evaluator" in values:
        return own_evaluator(values, texts)
    if "decoder" in values:
        other = ("corpus", *TASK, "preset")
        if stray := [name for name in other if name in values]:
            raise OptionsError(
                f"--decoder names the text that a decoder is judged by, and --{stray[0]} belongs "
                "to encoders; give one"
            )
        text = values.pop("decoder")
        judged: Evaluator = load_part("parts", "--decoder", "option")(text, values, texts)
        return judged
    task = read_task(options, values.get("weights"))
    if options.data is not None and "weights" in values:
        from masksearch.evaluators.embedding import embeds_texts

        if embeds_texts(values["weights"], *task["tasks"]):
            if stray := [name for name in ("corpus", "preset") if name in values]:
                raise OptionsError(
                    f"--{stray[0]} is for encoders that are trained, and an embedding model is "
                    "judged as it is; leave it out"
                )
            return _embedding_evaluator(options, texts)
    tuned = "weights" in values and task
    if "adapt" in values and ("corpus" in values or not tuned):
        raise OptionsError(
            "--adapt needs --weights with --glue or --data, and no --corpus: it says how masks "
            "are put on a fine-tuned checkpoint"
        )
    if "corpus" not in values and not tuned:
        return _planted_evaluator(values, texts)
    from masksearch.evaluators.glue import GlueEvaluator
    from masksearch.evaluators.mlm import MlmEvaluator

    kind: Any = GlueEvaluator if task else MlmEvaluator
    corpus, preset = values.pop("corpus", None), values.pop("preset", None)
    values = {n: value for n, value in values.items() if n not in TASK} | task
    values |= further_settings(kind, texts)
    made: Evaluator = (
        kind(corpus, **values) if preset is None else kind.preset(preset, corpus, **values)
    )
    if isinstance(made, GlueEvaluator) and options.data is not None:
        typer.echo(made.describe(*made.downstream), err=True)
    return made


def _embedding_evaluator(options: EvaluatorOptions, texts: Mapping[str, str]) -> Evaluator:
    """That of an embedding model, on texts without labels."""
    from masksearch.evaluators.embedding import EmbeddingEvaluator as Kind

    values = {n: value for n in FIELDS if (value := getattr(options, n)) is not None}
    if stray := sorted(values.keys() - _setting_hints(Kind)):
        raise unknown_setting(Kind, stray[0])
    values |= further_settings(Kind, texts)
    return Kind(options.data or "", columns=options.text or (), **values)


def read_task(options: TaskOptions, weights: str | None) -> dict[str, Any]:
    """The folder and the tasks that options name, as fields of `GlueEvaluator`; empty = none. With
    an embedding model's weights the task is None where there are no columns.

    Raises:
        OptionsError: If they do not go together; says which.
    """
    glue, data = options.glue, options.data
    if glue is not None and data is not None:
        raise OptionsError("give --glue FOLDER --tasks NAME, or --data FOLDER --text A --label Y")
    for name, folder in (("tasks", "glue"), ("text", "data"), ("label", "data")):
        if getattr(options, name) is not None and getattr(options, folder) is None:
            raise OptionsError(f"--{name} needs --{folder} FOLDER")
    if data is not None:
        from masksearch.evaluators.embedding import embeds_texts
        from masksearch.tasks.glue.columns import Columns

        columns = Columns(tuple(options.text), options.label) if options.text else None
        if columns is None and not (weights and embeds_texts(weights, options.label)):
            raise OptionsError("--data needs --text COLUMN")
        return {"glue": data, "tasks": (columns,)}
    names = [name.strip() for name in (options.tasks or "").split(",") if name.strip()]
    names = [load_object(name) if ".py:" in name else name for name in names]
    fields_given = {"glue": glue, "tasks": tuple(names)}
    return {name: value for name, value in fields_given.items() if value}


def own_evaluator(values: Mapping[str, Any], texts: Mapping[str, str]) -> Evaluator:
    """The evaluator of `--evaluator FILE.py:NAME`: what the function there returns, or the class
    there makes, of the settings that `--set` gives it."""
    if others := sorted(set(values) - {"evaluator"}):
        raise OptionsError(
            f"--evaluator names what judges, and --{others[0]} belongs to the built-in "
            f"evaluators; an argument of yours is given by --set {others[0]}=VALUE"
        )
    function = load_function(values["evaluator"])
    hints = _plain_hints(function) if texts else {}
    for name in texts:
        check_name(f"argument of {function.__name__}", name, hints)
    arguments = {name: read_setting(name, text, hints[name]) for name, text in texts.items()}
    evaluator: Evaluator = call_user(values["evaluator"], function, arguments)
    check_evaluator(evaluator)
    return evaluator


def _plain_hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Argument of a user's function or class -> its type, where that is a number, a word or a
    switch, by its annotation or its default; else Any."""
    try:
        hints = hints_of(function)
    except NameError:  # types that are imported for type checkers alone
        hints = {}
    types: dict[str, Any] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        hint, default = hints.get(name, Any), parameter.default
        if hint is Any and isinstance(default, int | float):
            hint = bool if isinstance(default, bool) else int | float
        kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else [hint]
        types[name] = hint if {*kinds} <= {int, float, bool, str, NoneType} else Any
    return types


def _planted_evaluator(values: Mapping[str, Any], texts: Mapping[str, str]) -> Evaluator:
    """The embedded corpus, which needs no file."""
    from masksearch.evaluators.planted import PlantedEvaluator

    names = ("steps", "size")
    if stray := sorted(set(values) - set(names)):
        raise OptionsError(
            f"--{stray[0]} needs --corpus FILE_OR_FOLDER (or --weights with --glue or --data); "
            "without a corpus the planted one is used, which takes "
            f"{', '.join('--' + name for name in (*sorted(names), 'set'))}"
        )
    return PlantedEvaluator(**values, **further_settings(PlantedEvaluator, texts))


def further_settings(kind: Any, texts: Mapping[str, str]) -> dict[str, Any]:
    """The settings of `--set NAME=VALUE`, beside the options that have names of their own.

    Args:
        kind: Its class.
        texts: Name -> text.

    Raises:
        OptionsError: If the setting has an option, or the value is not of its type.
        UnknownNameError: If the evaluator has no such setting; names the nearest.
    """
    options, hints = (*FIELDS, *TASK, "corpus"), _setting_hints(kind)
    settings: dict[str, Any] = {}
    for name, text in texts.items():
        if name in options:
            raise OptionsError(f"{name} has an option of its own: --{name}")
        if name not in hints:
            raise unknown_setting(kind, name)
        settings[name] = read_setting(name, text, hints[name])
    return settings


def _setting_hints(kind: Any) -> dict[str, Any]:
    """Name -> type of what `--set` gives an evaluator."""
    without = ("glue", "corpus", "process", "texts", "columns")
    return {name: hint for name, hint in hints_of(kind).items() if name not in without}


def build_executor(options: JudgeOptions) -> Executor:
    """The executor that options name.

    Raises:
        OptionsError: If options of Ray are given for the local one.
        UnknownNameError: If the executor is unknown.
    """
    name, slots = options.executor or "local", options.slots
    if ".py:" in name:
        executor: Executor = call_user(name, load_function(name), {})
        return executor
    check_name("executor", name, (*EXECUTORS, "file.py:Name"))
    if name == "local":
        for option in ("address", "cpus", "storage_path"):
            if getattr(options, option) is not None:
                raise OptionsError(f"--{option.replace('_', '-')} belongs to --executor ray")
        from masksearch.executors.local import Local

        return Local(slots, limit_seconds=options.limit_seconds, gpus=options.gpus)
    from masksearch.executors.ray import RayTune

    resources = {"cpu": 1.0 if options.cpus is None else options.cpus}
    return RayTune(
        options.address,
        slots=slots,
        resources=resources | ({} if options.gpus is None else {"gpu": options.gpus}),
        storage_path=options.storage_path,
        limit_seconds=options.limit_seconds,
    )


def read_halving(steps: str | None, texts: Mapping[str, str]) -> ParetoHalving | None:
    """The scheduler that `--halving 62,125` asks for, with the settings behind `halving.`; None =
    no halving. Its goal is still that of a loss.

    Raises:
        OptionsError: If the steps are no integers, or there are settings and no steps.
    """
    if steps is None:
        if texts:
            raise OptionsError(f"--set halving.{next(iter(texts))} belongs to --halving STEPS")
        return None
    from masksearch.strategies.halving import ParetoHalving

    try:
        rungs = tuple(int(text) for text in steps.split(","))
    except ValueError:
        raise OptionsError(f"--halving takes steps such as 62,125,250, got {steps!r}") from None
    hints = {k: v for k, v in hints_of(ParetoHalving).items() if k not in ("rungs", "goal")}
    return ParetoHalving(rungs, **read_settings(texts, hints, "ParetoHalving", "halving"))


def unit_levels(
    local: Sequence[str] | None, unit: str | None, texts: Mapping[str, str]
) -> list[str]:
    """The masks of a unit, the cheapest first: each `--local` and full attention, or
    `units.levels`.

    Raises:
        OptionsError: If units are given without their masks.
    """
    local = list(local or ())
    settings = read_settings(texts, {"levels": Sequence[str]}, "units", "units")
    if "levels" in settings:
        levels = [str(each) for each in settings["levels"]]
        if levels[: len(local)] != local:
            given, wanted = ", ".join(levels), ", ".join(local)
            raise OptionsError(f"units.levels begins with --local, {wanted}; got {given}")
        return levels
    if unit and not local:
        raise OptionsError("--unit goes with --local, the mask of the other units")
    return [*local, "full()"] if local else []


def read_mask(text: str, storage: str | None = None) -> Mask:
    """A mask of positions, as `masks.parse` reads it; a run may name that storage.

    Raises:
        TokensNeededError: If its cells follow the tokens.
    """
    from masksearch.study.references import read_run_mask

    mask = read_run_mask(text, storage) if names_run(text) else parse(text)
    mask.refuse_tokens()
    return mask


def split_name(text: str) -> tuple[str, str]:
    """Name and text of `NAME=MASK`; a mask alone is its own name."""
    name, separator, rest = text.partition("=")
    if separator and name and not set(name) & set("()[]|&~"):  # an = inside a call is no name
        return name, rest
    return text, text


def named_candidates(
    text: str, *, whole: bool = False, storage: str | None = None
) -> dict[str, Candidate]:
    """Reads `NAME=MASK` or `MASK`: a mask, or what a run has recorded of one; `whole` = a run
    without a trial or sparsity stays one; runs may name `storage`.

    The mask of a search is named by its strategy, unless it is given a name; a run of strategy
    sparsebert stands for all of its masks, under their names in the published table.
    """
    from masksearch.strategies.dam import is_published_dam
    from masksearch.study.references import parse_reference, read_run_record
    from masksearch.study.store import StudyStore

    name, mask = split_name(text)
    if not names_run(mask):
        return {name: parse(mask)}
    reference = parse_reference(mask)
    whole = whole and reference.trial is None and not reference.sparsity
    record = mask if whole else read_run_record(mask, storage)
    if name != text:
        return {name: record}
    store = StudyStore(reference.run, write=False, allowed=storage)
    label = without_controls(store.facts()).get("strategy", reference.run.name)
    if reference.trial is not None:
        return {f"{label} #{reference.trial}": record}
    if isinstance(record, Record) and not reference.sparsity and is_published_dam(record):
        return {each.name: each for each in store.records() if is_published_dam(each)}
    return {label if not reference.sparsity else f"{label} >= {reference.sparsity:g}": record}


SPELLED: dict[Any, str] = {  # what a setting takes, in words
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    tuple: 'a list such as ["a", "b"] or [64, 16]',
    NoneType: "null",
}
PREFIXES = ("units", "halving")  # beside those of strategies


def split_settings(
    settings: Sequence[str], prefixes: Collection[str] | None = None
) -> dict[str, dict[str, str]]:
    """Prefix ("" = the evaluator's) -> name -> text.

    >>> split_settings(["epochs=3", "dam.steps=300"])
    {'': {'epochs': '3'}, 'dam': {'steps': '300'}}

    Args:
        settings: As they were given.
        prefixes: Those that the command takes; None = all, as a search does.

    Raises:
        OptionsError: If there is no "=", a name is given twice, or the command has no such prefix.
        UnknownNameError: If nothing has that prefix.
    """
    parts: dict[str, dict[str, str]] = {}
    for setting in settings:
        whole, equals, text = setting.partition("=")
        if not equals:
            raise OptionsError(f"--set takes NAME=VALUE, got {setting!r}")
        prefix, dot, name = whole.rpartition(".")
        if dot and prefix not in PREFIXES:
            from masksearch.strategies.build import owners

            check_name("prefix of --set", prefix, (*owners(), *PREFIXES))
        if dot and prefixes is not None and prefix not in prefixes:
            taken = ", ".join(["NAME=VALUE", *(f"{each}.NAME=VALUE" for each in prefixes)])
            raise OptionsError(
                f"--set {whole} belongs to masksearch search; here --set takes {taken}"
            )
        if name in parts.setdefault(prefix, {}):
            raise OptionsError(f"--set names {whole} twice: {parts[prefix][name]!r} and {text!r}")
        parts[prefix][name] = text
    return parts


def hints_of(target: Any) -> dict[str, Any]:
    """Name -> type of what a function takes, or of the fields that a dataclass takes."""
    hints = get_type_hints(target if is_dataclass(target) else getattr(target, "__init__", target))
    if is_dataclass(target):
        names = [field.name for field in fields(target) if field.init]
    else:
        names = list(inspect.signature(target).parameters)
    return {name: hints.get(name, Any) for name in names}


def read_settings(
    texts: Mapping[str, str], hints: Mapping[str, Any], owner: str, prefix: str = ""
) -> dict[str, Any]:
    """The values of settings, of the types that annotations ask for.

    Args:
        texts: Name -> text, one part of `split_settings`.
        hints: Name -> type of everything that may be set.
        owner: What has these settings, for messages.
        prefix: Their prefix.

    Raises:
        OptionsError: If a value is not of its setting's type.
        UnknownNameError: If there is no such setting; names the nearest.
    """
    values = {}
    for name, text in texts.items():
        check_name(f"setting of {owner}", name, sorted(hints))
        values[name] = read_setting(f"{prefix}.{name}" if prefix else name, text, hints[name])
    return values


def read_setting(name: str, text: str, hint: Any) -> Any:
    """The value of `--set name=text`, of the type that the annotation asks for.

    >>> read_setting("lr", ".1", float), read_setting("held_out", "7", str | None)
    (0.1, '7')

    Raises:
        OptionsError: If the text is none.
    """
    value = _read_value(text)
    if is_dataclass(hint) and isinstance(value, dict):
        texts = {key: str(each) for key, each in value.items()}
        made: Any = hint
        return made(**read_settings(texts, hints_of(hint), made.__name__, name))
    allowed = [hint] if get_origin(hint) in (Literal, Sequence) else get_args(hint) or [hint]
    kinds = {get_origin(one) or one for one in allowed}
    if Any in kinds:
        return value
    kinds |= {tuple} if Sequence in kinds else set()
    if isinstance(value, list):
        value = tuple(value)
    if float in kinds and isinstance(value, str | int) and not isinstance(value, bool):
        with contextlib.suppress(ValueError):
            value = value if int in kinds and isinstance(value, int) else float(value)
    if type(value) in kinds:
        return value
    if kinds & {str, Path, Literal}:
        return text if kinds & {str, Literal} else Path(text)
    expected = " or ".join(spelled for one, spelled in SPELLED.items() if one in kinds)
    expected = expected or 'settings such as {"length": 32768}'
    raise OptionsError(f"--set {name} takes {expected}, got {text!r}")


def _read_value(text: str) -> Any:
    """The value that a text is in JSON or in Python, or else the text itself.

    >>> _read_value("true"), _read_value(".2"), _read_value("[.1, 1_000]"), _read_value("flip")
    (True, 0.2, [0.1, 1000], 'flip')
    """
    for read in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError, TypeError, RecursionError):
            return read(text)
    return text


def strategy_options(strategy: str, settings: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """Options of a strategy, from the settings behind its prefix; those of others are refused.

    `dam.NAME` are arguments of `Gates` and of `DamConfig` (`preset` of both), or `densities`,
    `merge_heads` and `cost` of the masks that are cut.

    Args:
        strategy: Its name on the command line.
        settings: As `split_settings` returns them.

    Raises:
        OptionsError: If settings belong to another strategy, or a value is of another type.
        UnknownNameError: If the strategy has no such setting.
    """
    from masksearch.strategies.build import GATES, owners, spec_of

    spec = spec_of(strategy)
    texts = settings.get(spec.prefix, {}) if spec.prefix else {}
    options: dict[str, Any] = {}
    if spec.options is None:
        options = {name: _read_value(text) for name, text in texts.items()}
    elif spec.prefix != GATES:
        options = read_settings(texts, spec.options, strategy, spec.prefix)
    gated = spec.gated is not None and spec.gated(options)
    for prefix, owner in owners().items():
        if prefix in settings and prefix != spec.prefix and not (prefix == GATES and gated):
            raise OptionsError(
                f"--set {prefix}.{next(iter(settings[prefix]))} belongs to strategy {owner}; the "
                f"strategy is {strategy!r}"
            )
    return _gate_options(settings.get(GATES, {}), strategy) | options if gated else options


def _gate_options(texts: Mapping[str, str], strategy: str) -> dict[str, Any]:
    """`gates`, `config` and what else a strategy has that trains gates (`densities`, ..).

    Raises:
        OptionsError: If its gates or its masks cannot be set.
    """
    from masksearch.gates.config import DamConfig
    from masksearch.gates.gates import Gates
    from masksearch.strategies.build import GATES, spec_of

    spec = spec_of(strategy)
    of_gates = {k: v for k, v in hints_of(Gates).items() if k not in ("length", "seed")}
    of_config, of_strategy = hints_of(DamConfig), spec.options or {}
    cutting = {k: v for k, v in of_strategy.items() if k not in ("gates", "config")}
    cutting = cutting if spec.prefix == GATES else {}
    values = read_settings(texts, of_gates | of_config | cutting | {"preset": str}, GATES, GATES)
    config = {k: v for k, v in values.items() if k in of_config or k == "preset"}
    others = {k: v for k, v in values.items() if k not in of_config}
    if "gates" not in of_strategy:
        if others:
            raise OptionsError(
                f"strategy {strategy} trains the gates of the published table and cuts its masks; "
                "of their settings it takes those of the training alone (--set dam.steps=..)"
            )
        return {"config": config}
    gates = {k: v for k, v in values.items() if k in of_gates or k == "preset"}
    return {"gates": gates, "config": config, **{k: v for k, v in values.items() if k in cutting}}
