"""DAM: weights and attention gates trained together, from dense attention to a sparse mask.

    result = dam(model, batches, Gates("free", length=32, heads=2), DamConfig(density=0.05))
    result.mask(sparsity=0.95)

The weights first learn with dense attention (gates that are pruned before attention has learned
are pruned at random); then the gates are sampled, learn from the loss, and are pushed together
towards the target density.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from masksearch.contracts import Batch, Report
from masksearch.errors import NonFiniteLossError, unknown_name
from masksearch.gates.bank import Gates
from masksearch.gates.health import entropy_bits
from masksearch.gates.result import DamResult as DamResult
from masksearch.train import model_loss, parameter_groups

Control = Literal["hinge", "multiplier", "penalty"]


@dataclass(frozen=True)
class DamConfig:
    """How gates and weights are trained together.

    The density is held by one of three controls, none of which depends on length, heads or
    layers: `"hinge"` adds `strength` x log(density / target) while that is positive, the target
    sinking geometrically from the first density to the last; `"multiplier"` adds m x density,
    where m grows every step by `multiplier_rate` x log(density / target) and never falls below
    0; `"penalty"` adds `penalty` x density (the original DAM; its density is not known before).

    Raises:
        ValueError: If a value is out of range.
        UnknownNameError: For an unknown control.
    """

    steps: int = 1500  # optimiser steps
    warmup: float = 0.4  # share of the steps with dense attention, gates at rest
    density: float = 0.05  # target: mean probability of an edge, in (0, 1)
    control: Control = "hinge"
    strength: float = 1.0  # weight of the hinge, in nats of loss per e-fold of density
    anneal: float = 0.8  # share of the steps after the warm-up in which the target sinks
    multiplier_rate: float = 0.05  # growth of the multiplier, per step and e-fold of density
    penalty: float = 0.3  # nats of loss at density 1
    lr: float = 2e-3  # AdamW on the weights
    rise: float = 0.03  # share of the steps in which that rate rises
    gate_lr: float = 0.02  # Adam on the gates' logits
    weight_decay: float = 0.01  # on the weight matrices, never on gates
    clip: float = 5.0  # largest norm of the weights' gradient; 1 loses edges

    def __post_init__(self) -> None:
        if self.control not in get_args(Control):
            raise unknown_name("density control", self.control, get_args(Control))
        if self.steps < 2:
            raise ValueError(f"steps must be at least 2, got {self.steps}")
        if not 0 < self.density < 1:
            raise ValueError(f"density is a share of the edges in (0, 1), got {self.density}")
        for name in ("warmup", "rise"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is a share in [0, 1), got {getattr(self, name)}")
        if not 0 < self.anneal <= 1:
            raise ValueError(f"anneal is a share in (0, 1], got {self.anneal}")
        for name in ("lr", "gate_lr", "clip", "strength", "multiplier_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("penalty", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")

    @property
    def warmup_steps(self) -> int:
        """Steps before the gates act; at least one step is left for them."""
        return min(round(self.warmup * self.steps), self.steps - 1)


class DensityControl:
    """What is added to the loss so that the gates reach the target density."""

    def __init__(self, config: DamConfig, initial: float) -> None:
        self.config = config
        self.initial = initial
        self.multiplier = 0.0

    def target(self, step: int) -> float:
        """Density that is asked for at that step (from 0)."""
        config = self.config
        if config.control != "hinge":
            return config.density
        last = min(config.density, self.initial)
        gated = config.anneal * (config.steps - config.warmup_steps)
        part = min(1.0, max(0, step - config.warmup_steps) / gated)
        return float(self.initial * (last / self.initial) ** part)

    def cost(self, density: Tensor, step: int) -> Tensor:
        """The term of the loss, in nats; call it once a step."""
        config = self.config
        if config.control == "penalty":
            return config.penalty * density
        excess = (density / self.target(step)).log()
        if config.control == "hinge":
            return config.strength * excess.clamp_min(0)
        grown = self.multiplier + config.multiplier_rate * excess.item()
        self.multiplier = max(0.0, grown)
        return self.multiplier * density


def dam_reports(
    model: nn.Module,
    batches: Iterator[Batch],
    gates: Gates,
    config: DamConfig,
    *,
    held_out: Sequence[Batch] = (),
) -> Iterator[Report]:
    """Trains in place and reports about a hundred times; stop by closing the iterator.

    The gates are attached to the model unless they are part of it already; what was attached
    here is detached at the end.

    Args:
        model: A Hugging Face model, or a module holding one, whose `model(**batch).loss` is
            differentiable.
        batches: At least `config.steps` batches.
        gates: Trained in place; read them afterwards.
        config: Steps, rates and target.
        held_out: Batches on which the last report's `held_out` loss is measured.

    Yields:
        Reports with `loss` (mean over the batches since the last report), `density`, `target`,
        `entropy` (bits) and `control` (the term added to the loss).

    Raises:
        NonFiniteLossError: If a loss is NaN or infinite; names the step.
        ValueError: If the target density is below one key a row, or the batches end too early.
    """
    if config.density * gates.length < 1:
        raise ValueError(
            f"every row keeps a key, so density is at least 1/n = {1 / gates.length:.6g} at "
            f"length {gates.length}, got {config.density}"
        )
    from masksearch.models.attach import attach, detach

    device = next(model.parameters()).device
    gates.to(device)
    ours = all(module is not gates for module in model.modules())
    training = model.training
    model.train()
    if ours:
        attach(model, gates)
    try:
        yield from joint_steps(model, batches, gates, config, device, held_out)
    finally:
        gates.enabled = True
        if ours:
            detach(model)
        model.train(training)


def joint_steps(
    model: nn.Module,
    batches: Iterator[Batch],
    gates: Gates,
    config: DamConfig,
    device: torch.device,
    held_out: Sequence[Batch],
) -> Iterator[Report]:
    """The loop of `dam_reports`, on a model that has the gates."""
    own = {id(parameter) for parameter in gates.parameters()}
    groups: list[dict[str, object]] = []
    weights: list[Tensor] = []
    for group in parameter_groups(model, config.weight_decay):
        members = [p for p in group["params"] if id(p) not in own]  # type: ignore[attr-defined]
        weights += members
        groups.append({**group, "params": members, "lr": config.lr, "betas": (0.9, 0.98)})
    gate_group = {"params": [gates.logits], "lr": config.gate_lr, "weight_decay": 0.0}
    optimiser = torch.optim.AdamW([*groups, gate_group], betas=(0.9, 0.999), fused=True)
    rising = max(1, round(config.rise * config.steps))
    control = DensityControl(config, gates.density().mean().item())
    pause = max(1, config.steps // 100)
    losses: list[float] = []
    for step in range(config.steps):
        for group in optimiser.param_groups[:-1]:
            group["lr"] = config.lr * min(1.0, (step + 1) / rising)
        gates.enabled = step >= config.warmup_steps
        batch = next(batches, None)
        if batch is None:
            raise ValueError(f"the batches ended after {step} of {config.steps} steps")
        loss = model_loss(model, on(batch, device))
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise NonFiniteLossError(
                f"the loss became {losses[-1]} at step {step + 1} of {config.steps}; "
                "lower lr or gate_lr"
            )
        optimiser.zero_grad(set_to_none=True)
        density = gates.density().mean()
        cost = torch.zeros_like(density)
        if gates.enabled:
            cost = control.cost(density, step)
            loss = loss + cost
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(weights, config.clip)
        optimiser.step()
        last = step + 1 == config.steps
        if (step + 1) % pause == 0 or last:
            values = {
                "loss": sum(losses) / len(losses),
                "density": density.item(),
                "target": control.target(step),
                "entropy": entropy_bits(gates.probabilities().detach()).item(),
                "control": cost.item(),
            }
            if last and held_out:
                values["held_out"] = held_out_loss(model, held_out, device)
            losses.clear()
            yield Report(step + 1, values)


def on(batch: Batch, device: torch.device) -> Batch:
    """The batch on that device."""
    return {name: tensor.to(device) for name, tensor in batch.items()}


@torch.no_grad()
def held_out_loss(model: nn.Module, batches: Sequence[Batch], device: torch.device) -> float:
    """Mean loss over the batches in eval mode, where gates are rounded."""
    model.eval()
    total = sum(model_loss(model, on(batch, device)).item() for batch in batches)
    model.train()
    return total / len(batches)


def finished(gates: Gates, config: DamConfig, curve: Sequence[Report]) -> DamResult:
    """The result of gates after `dam_reports`; warns where the run collapsed."""
    probabilities = gates.probabilities().detach().float().cpu()
    result = DamResult(
        probabilities, tuple(curve), config.density, gates.arguments, asdict(config)
    )
    for problem in result.health()["problems"]:
        warnings.warn(f"DAM: {problem}", stacklevel=3)
    return result


def dam(
    model: nn.Module,
    batches: Iterator[Batch],
    gates: Gates,
    config: DamConfig | None = None,
    *,
    held_out: Sequence[Batch] | None = None,
    on_report: Callable[[Report], None] | None = None,
) -> DamResult:
    """Trains weights and gates together and returns what the gates have learned.

    Args:
        model: A Hugging Face model, or a module holding one, whose `model(**batch).loss` is
            differentiable; trained in place and left without the gates (unless it had them).
        batches: At least `config.steps` batches (dicts of tensors).
        gates: Trained in place.
        config: Steps, rates and target; None = `DamConfig()`.
        held_out: Batches for a final loss under the rounded gates.
        on_report: Called about a hundred times with a `Report`.

    Returns:
        Probabilities, curve, masks at any sparsity, and `health()`.

    Raises:
        NonFiniteLossError: If a loss is NaN or infinite.
        ValueError: If the target density is below one key a row, or the batches end too early.

    Reference: SparseBERT, arXiv 2102.12871, Section 4 (the idea; gradient and density control
        are our own).
    """
    config = config or DamConfig()
    curve = []
    for report in dam_reports(model, batches, gates, config, held_out=held_out or ()):
        curve.append(report)
        if on_report:
            on_report(report)
    return finished(gates, config, curve)
