"""`--set NAME=VALUE`: any argument of an evaluator, a strategy or a scheduler, by its Python name.

A name alone belongs to the evaluator; `dam.steps=300` to what stands before the dot. Every name
and every value is checked before anything is built.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from masksearch.cli.options import OptionsError
from masksearch.errors import unknown_name

SPELLED: dict[Any, str] = {  # what a setting takes, in words
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    tuple: 'a list such as ["a", "b"]',
    NoneType: "null",
}
PREFIXES = ("dam", "allocate", "units", "shared", "evolution", "strategy", "halving", "cost")


def split_settings(settings: Sequence[str]) -> dict[str, dict[str, str]]:
    """Prefix ("" = the evaluator's) -> name -> text.

    >>> split_settings(["epochs=3", "dam.steps=300"])
    {'': {'epochs': '3'}, 'dam': {'steps': '300'}}

    Raises:
        OptionsError: If there is no "=", or a name is given twice.
        UnknownNameError: If nothing has that prefix.
    """
    found: dict[str, dict[str, str]] = {}
    for setting in settings:
        whole, equals, text = setting.partition("=")
        if not equals:
            raise OptionsError(f"--set takes NAME=VALUE, got {setting!r}")
        prefix, dot, name = whole.rpartition(".")
        if dot and prefix not in PREFIXES:
            raise unknown_name("prefix of --set", prefix, PREFIXES)
        if name in found.setdefault(prefix, {}):
            raise OptionsError(f"--set names {whole} twice: {found[prefix][name]!r} and {text!r}")
        found[prefix][name] = text
    return found


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
        if name not in hints:
            raise unknown_name(f"setting of {owner}", name, sorted(hints))
        values[name] = read_setting(f"{prefix}.{name}" if prefix else name, text, hints[name])
    return values


def read_setting(name: str, text: str, hint: Any) -> Any:
    """The value of `--set name=text`, of the type that the annotation asks for.

    >>> read_setting("lr", ".1", float), read_setting("held_out", "7", str | None)
    (0.1, '7')

    Raises:
        OptionsError: If the text is none.
    """
    value = read_value(text)
    given = [hint] if get_origin(hint) in (Literal, Sequence) else get_args(hint) or [hint]
    kinds = {get_origin(one) or one for one in given}
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
    wanted = " or ".join(spelled for one, spelled in SPELLED.items() if one in kinds)
    raise OptionsError(f"--set {name} takes {wanted}, got {text!r}")


def read_value(text: str) -> Any:
    """The value that a text is in JSON or in Python, or else the text itself.

    >>> read_value("true"), read_value(".2"), read_value("[.1, 1_000]"), read_value("flip")
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
    own = {"sparsebert": ["dam"], "dam": ["dam"], "evolution": ["evolution"]}.get(strategy, [])
    if strategy == "allocate":
        by_gates = "gates" in settings.get("allocate", {}).values()
        own = ["allocate", "dam"] if by_gates else ["allocate"]
    if strategy.startswith("shared+"):
        own = ["shared"]
    if ".py:" in strategy:
        own = ["strategy"]
    for prefix in ("dam", "allocate", "shared", "evolution", "strategy"):
        if prefix in settings and prefix not in own:
            name = next(iter(settings[prefix]))
            wanted = {"strategy": "a strategy of your own (FILE.py:NAME)", "shared": "shared+tpe"}
            raise OptionsError(
                f"--set {prefix}.{name} belongs to strategy {wanted.get(prefix, prefix)}"
                + (", and to allocate by gates" if prefix == "dam" else "")
                + f"; the strategy is {strategy!r}"
            )
    options: dict[str, Any] = {}
    if "dam" in own:
        options |= dam_options(settings.get("dam", {}), strategy)
    if "allocate" in own:
        from masksearch.strategies.allocate import OPTIONS as OF_ALLOCATE

        hints = dict.fromkeys(OF_ALLOCATE, Any) | {"tries": int, "budgets": Sequence[float]}
        options |= read_settings(settings.get("allocate", {}), hints, "allocate", "allocate")
    if "evolution" in own:
        hints = {"population": int, "sample": int}
        options |= read_settings(settings.get("evolution", {}), hints, "evolution", "evolution")
    if "shared" in own:
        from masksearch.evaluators.shared import SharedWeights
        from masksearch.strategies.supernet import OPTIONS

        known = get_type_hints(SharedWeights)
        hints = {name: known.get(name, int) for name in OPTIONS}
        options |= read_settings(settings.get("shared", {}), hints, strategy, "shared")
    if "strategy" in own:
        options |= {name: read_value(text) for name, text in settings.get("strategy", {}).items()}
    return options


def dam_options(texts: Mapping[str, str], strategy: str) -> dict[str, Any]:
    """`gates`, `config`, `densities`, `merge_heads` and `cost` of strategy dam.

    Raises:
        OptionsError: If strategy sparsebert is given settings of gates or of masks.
    """
    from masksearch.gates.config import DamConfig
    from masksearch.gates.gates import Gates

    of_gates = {k: v for k, v in hints_of(Gates).items() if k not in ("length", "seed")}
    of_config = hints_of(DamConfig)
    cutting = {"densities": Sequence[float], "merge_heads": bool, "cost": str}
    known = of_gates | of_config | cutting | {"preset": str}
    values = read_settings(texts, known, "dam", "dam")
    gates = {k: v for k, v in values.items() if k in of_gates or k == "preset"}
    config = {k: v for k, v in values.items() if k in of_config or k == "preset"}
    cut = {k: v for k, v in values.items() if k in cutting}
    if strategy == "sparsebert":
        if gates or cut:
            raise OptionsError(
                "strategy sparsebert trains the gates of the published table and cuts its masks; "
                "of their settings it takes those of the training alone (--set dam.steps=..)"
            )
        return {"config": config}
    return {"gates": gates, "config": config, **cut}
