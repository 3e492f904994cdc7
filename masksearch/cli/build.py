"""From command-line words to objects: masks, executor, scheduler and a strategy's options."""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from masksearch.contracts import Evaluator, Executor, Scheduler
from masksearch.errors import MaskFormatError, MaskSearchError, unknown_name
from masksearch.masks import parse
from masksearch.masks.core import Mask
from masksearch.masks.lower import load_mask
from masksearch.strategies.user_code import load_function

if TYPE_CHECKING:
    from masksearch.driver import Study

SPELLED: dict[Any, str] = {  # what `--set` takes, in words
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    tuple: 'a list such as ["a", "b"]',
    NoneType: "null",
}


class ChoiceError(MaskSearchError, ValueError):
    """Options that do not go together."""


@dataclass(frozen=True)
class Judging:
    """Options that say how a mask is judged; None = the evaluator's own default."""

    evaluator: str | None = None  # file.py:name
    corpus: str | None = None
    tokenizer: str | None = None
    weights: str | None = None
    glue: str | None = None
    squad: str | None = None
    swag: str | None = None
    tasks: str | None = None  # comma-separated
    rows: int | None = None
    size: str | None = None
    length: int | None = None
    vocabulary: int | None = None
    steps: int | None = None
    batch: int | None = None
    lr: float | None = None
    preset: str | None = None
    set: Sequence[str] | None = None  # name=value
    latency: bool = False  # an objective more
    memory: bool = False  # an objective more
    cost_length: int | None = None  # positions at which both are taken
    reuse: Path | None = None  # folder of results that are never run again

    def build(self) -> Evaluator:
        """The evaluator: the user's own, a downstream task, masked LM on a corpus, or the planted
        corpus; with the costs that were asked for.

        Raises:
            ChoiceError: If options do not go together; says which.
        """
        judged = self.judging()
        if self.reuse is not None:
            from masksearch.evaluators.wrappers import Cached

            judged = Cached(judged, self.reuse)
        if self.latency or self.memory:
            from masksearch.evaluators.cost import WithCost

            return WithCost(
                judged, latency=self.latency, memory=self.memory, length=self.cost_length
            )
        if self.cost_length is not None:
            raise ChoiceError("--cost-length needs --latency or --memory")
        return judged

    def judging(self) -> Evaluator:
        """The evaluator without costs."""
        around = ("latency", "memory", "cost_length", "reuse")
        given = {
            name: value
            for name, value in vars(self).items()
            if value not in (None, []) and name not in around
        }
        if self.evaluator is not None:
            others = sorted(set(given) - {"evaluator"})
            if others:
                flags = ", ".join(f"--{name}" for name in others)
                raise ChoiceError(f"--evaluator brings its own settings; drop {flags}")
            built: Evaluator = load_function(self.evaluator)()
            return built
        tasks = [name for name in ("glue", "squad", "swag") if name in given]
        if len(tasks) > 1:
            raise ChoiceError(f"--{tasks[0]} and --{tasks[1]} are two evaluators; give one")
        if self.corpus is None and not (self.weights and tasks):
            return self.planted(given)
        if self.tasks is not None and self.glue is None:
            raise ChoiceError("--tasks needs --glue FOLDER")
        if self.rows is not None and not tasks:
            raise ChoiceError("--rows needs --glue, --squad or --swag")
        kind = evaluator_kind(tasks[0] if tasks else "mlm")
        settings = {name: given[name] for name in given if name not in ("corpus", "set", "preset")}
        if self.tasks is not None:
            names = [name.strip() for name in self.tasks.split(",") if name.strip()]
            settings["tasks"] = tuple(names)
        settings |= set_options(kind, self.set or ())
        if self.preset is not None:
            return kind.preset(self.preset, self.corpus, **settings)  # type: ignore[no-any-return]
        return kind(self.corpus, **settings)  # type: ignore[no-any-return]

    def planted(self, given: dict[str, Any]) -> Evaluator:
        """The embedded corpus, which needs no file."""
        from masksearch.evaluators.planted import PlantedEvaluator

        known = ("steps", "size", "batch", "lr", "set")
        stray = sorted(set(given) - set(known))
        if stray:
            raise ChoiceError(
                f"--{stray[0]} needs --corpus FILE_OR_FOLDER (or --weights with --glue, --squad "
                "or --swag); without a corpus the planted one is used, which takes "
                f"{', '.join('--' + name for name in sorted(known))}"
            )
        settings = {name: value for name, value in given.items() if name != "set"}
        return PlantedEvaluator(**settings, **set_options(PlantedEvaluator, self.set or ()))


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


def set_options(kind: Any, settings: Sequence[str]) -> dict[str, Any]:
    """What `--set name=value` gives an evaluator beside the options that have names of their own.

    Raises:
        ChoiceError: If there is no "=", or the value is not of the setting's type.
        UnknownNameError: If the evaluator has no such setting.
    """
    kinds = get_type_hints(kind)
    own = {option.name for option in fields(Judging)}
    known = [f.name for f in fields(kind) if f.init and f.name not in own | {"process"}]
    found: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise ChoiceError(f"--set takes name=value, got {setting!r}")
        if name in own:
            raise ChoiceError(f"{name} has an option of its own: --{name}")
        if name not in known:
            raise unknown_name(f"setting of {kind.__name__}", name, known)
        found[name] = read_setting(name, text, kinds[name])
    return found


def read_setting(name: str, text: str, hint: Any) -> Any:
    """The value of `--set name=text`, of the type that the annotation asks for.

    >>> read_setting("lr", ".1", float), read_setting("held_out", "7", str | None)
    (0.1, '7')
    """
    kinds = {get_origin(one) or one for one in (get_args(hint) or [hint])}
    kinds = {Literal} if get_origin(hint) is Literal else kinds
    value = read_value(text)
    if isinstance(value, list):
        value = tuple(value)
    if float in kinds and isinstance(value, str | int) and not isinstance(value, bool):
        with contextlib.suppress(ValueError):
            value = value if int in kinds and isinstance(value, int) else float(value)
    if type(value) in kinds:
        return value
    if kinds & {str, Path, Literal}:
        return text
    wanted = " or ".join(spelled for one, spelled in SPELLED.items() if one in kinds)
    raise ChoiceError(f"--set {name} takes {wanted}, got {text!r}")


def read_value(text: str) -> Any:
    """The JSON value that a text is, or else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


EXECUTORS = ("local", "ray")
OF_CUTS = ("densities", "merge_heads")  # settings of the masks that strategy dam cuts


@dataclass(frozen=True)
class Placing:
    """Options that say where jobs run."""

    executor: str = "local"
    slots: int = 1
    limit: float | None = None  # seconds of a trial
    address: str | None = None
    cpus: float | None = None
    gpus: float | None = None
    scratch: str | None = None

    def build(self) -> Executor:
        """The executor.

        Raises:
            ChoiceError: If options of Ray are given for the local one.
            UnknownNameError: If the executor is unknown.
        """
        if self.executor == "together":
            raise ChoiceError(
                "--executor together was removed; small trials share a GPU with "
                "--executor ray --slots 4 --gpus 0.25"
            )
        if self.executor not in EXECUTORS:
            raise unknown_name("executor", self.executor, EXECUTORS)
        if self.executor != "ray":
            for name in ("address", "cpus", "gpus", "scratch"):
                if getattr(self, name) is not None:
                    raise ChoiceError(f"--{name} belongs to --executor ray")
        if self.executor == "local":
            from masksearch.executors.local import Local

            return Local(self.slots, limit_seconds=self.limit)
        from masksearch.executors.on_ray import RayTune

        resources = {"cpu": self.cpus, "gpu": self.gpus}
        return RayTune(
            self.address,
            slots=self.slots,
            resources={"cpu": 1.0}
            | {name: amount for name, amount in resources.items() if amount is not None},
            storage_path=self.scratch,
            limit_seconds=self.limit,
        )


def halving_of(
    steps: str | None, metric: str, factor: int, evaluator: Evaluator
) -> Scheduler | None:
    """The scheduler that `--halving 62,125` asks for.

    Raises:
        ChoiceError: If the steps are no ascending integers.
    """
    if steps is None:
        return None
    from masksearch.strategies.halving import ParetoHalving

    try:
        rungs = tuple(int(text) for text in steps.split(","))
    except ValueError:
        raise ChoiceError(f"--halving takes steps such as 62,125,250, got {steps!r}") from None
    goals: dict[str, Literal["min", "max"]] = {o.name: o.goal for o in evaluator.objectives}
    return ParetoHalving(rungs=rungs, metric=metric, goal=goals.get(metric, "min"), factor=factor)


def read_mask(text: str) -> Mask:
    """A mask named by an expression, a family, or a file (.json, .safetensors).

    Raises:
        MaskFormatError: If it is none of these.
        FileNotFoundError: If a file is named that is not there.
    """
    if text.endswith((".json", ".safetensors")):
        if not Path(text).is_file():
            raise FileNotFoundError(f"{text}: no such mask file")
        return load_mask(text, content=False)
    return parse(text)


def named_mask(text: str) -> tuple[str, Mask]:
    """`NAME=MASK`, or a mask alone, which is its own name."""
    name, separator, rest = text.partition("=")
    if separator and name and not set(name) & set("()[]|&~"):  # an = inside a call is no name
        return name, read_mask(rest)
    return text, read_mask(text)


def found_masks(study: Study, sparsities: list[float]) -> dict[str, Mask]:
    """The best mask of a search at each least sparsity, named by strategy and sparsity."""
    label = study.store.facts().get("strategy", study.run.name)
    chosen: dict[str, Mask] = {}
    for sparsity in sparsities or [0.0]:
        record = study.best(sparsity)
        if record.mask is None:
            raise MaskFormatError(f"trial {record.number} of {study.run} has no mask")
        name = label if not sparsity else f"{label} >= {sparsity:g}"
        chosen[name if name not in chosen else f"{name} {record.number}"] = record.mask
    return chosen


def random_like(mask: Mask, length: int, seed: int) -> Mask:
    """Random keys in the number that gives the mask's density (at least one a row)."""
    from masksearch.masks import random_keys

    return random_keys(max(1, round(mask.density(length) * length)), seed)


def dam_options(
    density: float | None,
    structure: str | None,
    signed: bool,
    gate_layers: int | None,
    steps: int | None,
    settings: Sequence[str],
    strategy: str,
) -> dict[str, Any]:
    """Options of the one-shot strategy; others refuse them.

    Args:
        density: Target density.
        structure: Of the gates.
        signed: Whether offsets have a direction.
        gate_layers: Layers with gates of their own.
        steps: Optimiser steps.
        settings: Further ones as "name=value": arguments of `Gates` or `DamConfig`, `preset`, or
            `densities` and `merge_heads` (of the masks that are cut). Values are read as JSON
            where they can be.
        strategy: Name of the strategy.

    Raises:
        ChoiceError: If another strategy is given such options, or a setting has no "=".
        UnknownNameError: If nothing has that setting.
    """
    named = {"structure": structure, "signed": signed or None, "layers": gate_layers}
    gates = {name: value for name, value in named.items() if value is not None}
    aims = {"density": density, "steps": steps}
    config = {name: value for name, value in aims.items() if value is not None}
    if strategy != "dam":
        if gates or config or settings:
            raise ChoiceError("--density, --structure, --dam, ... belong to strategy dam")
        return {}
    options: dict[str, Any] = {"gates": gates, "config": config}
    if settings:
        from masksearch.gates.config import DamConfig
        from masksearch.gates.gates import Gates

        of_gates = set(inspect.signature(Gates).parameters) - {"length", "seed"}
        of_config = {field.name for field in fields(DamConfig)}
        for setting in settings:
            name, equals, text = setting.partition("=")
            if not equals:
                raise ChoiceError(f"--dam takes name=value, got {setting!r}")
            value = read_value(text)
            known = {"preset", *OF_CUTS} | of_gates | of_config
            if name not in known:
                raise unknown_name("setting of --dam", name, sorted(known))
            if name in OF_CUTS:
                options[name] = value
            if name == "preset" or name in of_gates:
                gates[name] = value
            if name == "preset" or name in of_config:
                config[name] = value
    return options


def shared_options(settings: Sequence[str], strategy: str) -> dict[str, Any]:
    """Options of the strategies that begin with a super-net; others refuse them.

    Args:
        settings: As "name=value"; see `SharedStrategy`. Values are read as JSON where they can be.
        strategy: Name of the strategy.

    Raises:
        ChoiceError: If another strategy is given such options, or a setting has no "=".
        UnknownNameError: If the strategy has no such setting.
    """
    from masksearch.strategies.supernet import NAMES, OPTIONS

    if settings and strategy not in NAMES:
        raise ChoiceError(f"--shared belongs to strategy {', '.join(NAMES)}")
    options: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise ChoiceError(f"--shared takes name=value, got {setting!r}")
        if name not in OPTIONS:
            raise unknown_name("setting of --shared", name, OPTIONS)
        options[name] = read_value(text)
    return options
