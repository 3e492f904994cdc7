"""How a DAM run is carried out: steps, rates, density; and settings and gates from plain data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from masksearch.contracts import OneShot, Shape
from masksearch.errors import (
    HeadCountError,
    LayerCountError,
    SearchError,
    check_name,
    unknown_name,
)
from masksearch.files import own_numbers
from masksearch.gates.discretise import key_in_every_row
from masksearch.gates.gates import Gates
from masksearch.gates.sparsebert import PublishedGates, published_rate
from masksearch.training.parts import Optimiser, Precision, Schedule

Control = Literal["hinge", "sum"]
Trained = Literal["both", "gates"]
CHOICES = {
    "control": Control,
    "optimiser": Optimiser,
    "precision": Precision,
    "schedule": Schedule,
    "train": Trained,
}
RANGES: tuple[tuple[tuple[str, ...], str, Callable[[float], bool]], ...] = (
    # fields, what their values must do, whether one does
    (("steps",), "be at least 2", lambda value: value >= 2),
    (("micro_batches",), "be at least 1", lambda value: value >= 1),
    (("lr_warmup",), "lie in [0, 1)", lambda value: 0 <= value < 1),
    (("anneal", "cooling"), "lie in (0, 1]", lambda value: 0 < value <= 1),
    (("density",), "be a share of the edges in (0, 1)", lambda value: 0 < value < 1),
    (("lr", "gate_lr", "clip"), "be above 0", lambda value: value > 0),
    (("strength",), "be above 0", lambda value: value > 0),
    (("penalty", "weight_decay"), "be at least 0", lambda value: value >= 0),
)
AUTO = "auto"
EARLIEST = 0.5  # share of the steps that a warm-up which finds its own end takes at least


@dataclass(frozen=True)
class DamConfig:
    """Settings of `dam`: how gates and weights are trained together.

    The density of the gates (mean probability of an edge) is held by one of two controls:

    - `"hinge"`: while the density is above its target, the gradient of log density is added to
      that of the gates, `strength` times as large as the task's has been (root mean squares). So
      the scale of the task's loss does not matter. Once the target has stopped sinking, it is
      subtracted where the density is more than .004 below.
      Its target sinks geometrically from the first density to `density`.
    - `"sum"`: `penalty` x the number of open edges of the sample is added to the loss, as
      published. Which density that gives is not known before; `density` only says where the mask
      of the health card is cut. It changes its meaning with length, heads or layers.

    With `dense_warmup="auto"` pruning begins when attention has learned and the loss has settled:
    after half of the steps at the earliest, at once where the model comes trained, never where
    attention has learned nothing (see `masksearch.gates.pruning`).

    With `train="gates"` the weights stay as they are, and so do dropout (off) and the running
    statistics of the model; there is no warm-up then. A model whose weights are all frozen
    (`requires_grad` off) is trained like this in any case.

    Raises:
        ValueError: If a value is out of range, or two do not go together.
        UnknownNameError: For an unknown control, optimiser, precision, schedule or `train`.

    Reference: SparseBERT, arXiv 2102.12871. What lost against these is in experiments/rivals.
    """

    steps: int = 2500  # optimiser steps
    dense_warmup: float | Literal["auto"] = "auto"  # share of the steps with dense attention
    density: float = 0.05  # target: share of the edges, in (0, 1)
    control: Control = "hinge"
    strength: float = 0.3  # size of the hinge's gradient, as a multiple of the task's
    anneal: float = 0.8  # share of the steps after the warm-up in which the target sinks
    penalty: float = 0.3  # nats of loss of one edge, for control "sum"
    micro_batches: int = 1  # batches whose gradients are averaged, each with its own sample
    cooling: float = 1.0  # factor on the gates' temperature at the end, reached geometrically
    lr: float = 2e-3  # peak rate of the weights
    lr_warmup: float = 0.03  # share of the steps in which that rate rises
    schedule: Schedule = "linear"  # a rise, then level; "sqrt": the published one, for gates too
    gate_lr: float = 0.02  # Adam on the gates' logits
    weight_decay: float = 0.01  # on the weight matrices, never on gates
    clip: float = 5.0  # largest norm of the weights' gradient; 1 loses edges
    optimiser: Optimiser = "adamw"  # "lamb": the published one, for weights and gates together
    precision: Precision = "float32"  # "bfloat16": autocast; gates and their costs stay fp32
    train: Trained = "both"  # "gates": the weights are frozen

    def __post_init__(self) -> None:
        own_numbers(self)
        for name, choices in CHOICES.items():
            check_name(f"DAM {name}", getattr(self, name), get_args(choices))
        for names, rule, fits in RANGES:
            for name in names:
                value = getattr(self, name)
                if not isinstance(value, int | float) or not fits(value):
                    raise ValueError(f"{name} must {rule}, got {value!r}")
        if self.dense_warmup != AUTO and (
            isinstance(self.dense_warmup, str) or not 0 <= self.dense_warmup < 1
        ):
            raise ValueError(f"dense_warmup is in [0, 1) or 'auto', got {self.dense_warmup!r}")
        if self.optimiser == "lamb" and self.control == "hinge":
            raise ValueError(
                "LAMB trains weights and gates in one step with one clip, so it takes "
                "control='sum', got control='hinge'"
            )

    @property
    def waits(self) -> bool:
        """Whether the run itself decides when its warm-up ends."""
        return self.dense_warmup == AUTO and self.train == "both"

    @property
    def warmup_steps(self) -> int:
        """Steps before the gates act (before they may, for "auto"); at least one is left."""
        return warmup_steps(vars(self))

    def lr_factor(self, step: int) -> float:
        """Factor on the learning rate at a step (from 0); of the gates too, where "sqrt"."""
        if self.schedule == "sqrt":
            return published_rate(step + 1, self.steps, warmup=self.lr_warmup)
        rising = max(1, round(self.lr_warmup * self.steps))
        return min(1.0, (step + 1) / rising)

    def temperature_factor(self, step: int, begin: int | None = None) -> float:
        """Factor on the gates' temperature at a step (from 0); they act from `begin` on (None =
        after `warmup_steps`)."""
        first = self.warmup_steps if begin is None else begin
        gated = max(1, self.steps - 1 - first)
        return float(self.cooling ** min(1.0, max(0, step - first) / gated))


def warmup_steps(config: Mapping[str, Any]) -> int:
    """Steps before the gates act, from the fields of a `DamConfig`; 0 where they do not say.

    For "auto" the fewest that a model from scratch takes; what a run took, its result knows.
    """
    if config.get("train") == "gates":
        return 0
    steps = int(config.get("steps", 0))
    share = config.get("dense_warmup", 0.0)
    share = EARLIEST if share == AUTO else float(share)
    return max(0, min(round(share * steps), steps - 1))


def preset(name: str) -> DamConfig:
    """A published configuration by its name.

    `"sparsebert"`: the published run (see `masksearch.gates.sparsebert`), which took 7,038 steps
    of 128 micro-batches; change either with `dataclasses.replace`.

    Raises:
        UnknownNameError: For another name.
    """
    if name != "sparsebert":
        raise unknown_name("DAM preset", name, ("sparsebert",))
    return DamConfig(
        steps=7038,
        dense_warmup=0.0,
        control="sum",
        penalty=5e-5,
        micro_batches=128,
        optimiser="lamb",
        lr=6e-3,
        gate_lr=6e-3,
        schedule="sqrt",
        lr_warmup=0.2843,
        weight_decay=0.01,
        clip=1.0,
    )


def build_config(arguments: Mapping[str, Any]) -> DamConfig:
    """A configuration from plain data: fields of `DamConfig`, over those of a `preset`.

    >>> build_config({"preset": "sparsebert", "steps": 100}).control
    'sum'
    """
    changed = dict(arguments)
    name = changed.pop("preset", None)
    return DamConfig(**changed) if name is None else replace(preset(name), **changed)


def refuse_unreachable(config: DamConfig, gates: Gates) -> None:
    """Refuses what gates cannot reach.

    Raises:
        ValueError: If the target density is too low, or the control counts what the gates lack.
    """
    if config.control == "sum":
        if gates.units is not None:
            raise ValueError("control='sum' counts open edges, and a switch has none; use 'hinge'")
    elif config.density < gates.least_density:
        if gates.units is not None:
            gates.units.refuse_less(config.density)
        rule = key_in_every_row("density is at least", gates.weights, gates.block, "1/n = ")
        raise ValueError(
            f"{rule}{gates.least_density:.6g} at length {gates.length}, got {config.density}"
        )


def one_shot_parts(job: OneShot, shape: Shape, seed: int) -> tuple[DamConfig, Gates]:
    """Settings and gates of a job.

    Args:
        job: `job.gates` are arguments of `Gates` beside `length` and `heads`, `job.config` those
            of `DamConfig`; `"preset": "sparsebert"` in the one makes them `PublishedGates`, in
            the other starts from the published settings. Where `layers` is not given, all layers
            share their gates, but switches, and gates that are trained alone, are each layer's
            own: frozen layers cannot adapt to one another's masks.
        shape: Of the model.
        seed: Of the gates' noise.

    Raises:
        SearchError: If the job names an unknown argument.
        LayerCountError, HeadCountError: If the gates do not fit.
        UnknownNameError, ValueError: If a value is none of those that it may be.
    """
    settings = dict(job.gates)
    published = settings.pop("preset", None)
    if published not in (None, "sparsebert"):
        raise unknown_name("gate preset", published, ("sparsebert",))
    try:
        config = build_config(job.config)
        arguments = {**shape.to_dict(), "seed": seed}
        if published:
            del arguments["layers"]
        elif config.train != "gates" and settings.get("structure") != "switch":
            arguments["layers"] = 1
        arguments |= settings
        if arguments.get("layers") != shape.layers:
            arguments.pop("read", None)  # other layers need the rows that the last one does not
        gates = PublishedGates(**arguments) if published else Gates(**arguments)
    except TypeError as error:
        raise SearchError(f"a job holds arguments of Gates and DamConfig: {error}") from None
    for name, misfit in (("layers", LayerCountError), ("heads", HeadCountError)):
        count, needed = getattr(gates, name), getattr(shape, name)
        if count not in (1, needed):
            raise misfit(
                f"these gates have {count} {name}, the model {needed}; give {name}={needed}, or "
                f"{name}=1 to share them"
            )
    return config, gates
