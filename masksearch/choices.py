"""From command-line words to objects: masks, executor, scheduler and a strategy's options."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from masksearch.contracts import Evaluator, Executor, Scheduler
from masksearch.errors import MaskFormatError, unknown_name
from masksearch.judging import ChoiceError, read_value
from masksearch.masks import parse
from masksearch.masks.core import Mask
from masksearch.masks.lower import load_mask

if TYPE_CHECKING:
    from masksearch.driver import Study


EXECUTORS = ("local", "together", "ray")
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
        if self.executor not in EXECUTORS:
            raise unknown_name("executor", self.executor, EXECUTORS)
        if self.executor != "ray":
            for name in ("address", "cpus", "gpus", "scratch"):
                if getattr(self, name) is not None:
                    raise ChoiceError(f"--{name} belongs to --executor ray")
        if self.executor == "together":
            if self.limit is not None:
                raise ChoiceError(
                    "--limit does not go with --executor together: a group's jobs "
                    "are one program; use --executor local"
                )
            from masksearch.executors.together import Together

            return Together(self.slots)
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
    from masksearch.executors.halving import ParetoHalving

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
        from masksearch.gates.bank import Gates
        from masksearch.gates.config import DamConfig

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
    from masksearch.strategies.shared import NAMES, OPTIONS

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
