"""Holds the density of gates at its target while they learn."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from masksearch.gates.config import DamConfig
from masksearch.gates.gates import Gates
from masksearch.gates.sparsebert import published_penalty

SMALLEST = 1e-30  # root mean square of a gradient that is divided by
LATE = 0.02  # excess of log density above which the hinge grows stronger
GROWTH = 1.02  # factor on its strength at such a step; undone at any other
SHORT = 0.004  # density by which the last target may be fallen short of without a pull upwards


class DensityControl:
    """Pushes the density of gates to its target, through the loss or the logits' gradient.

    Args:
        config: Names the control and the target (one, or one a layer).
        gates: As they are at the start.

    Attributes:
        initial: Densities at the start, one for each target.
        strength: Of the hinge, one for each target; grows while the density lags behind.
        power: Sum of the mean squares of the task's gradient, one for each target.
        count: Number of gradients in that sum.
        since: Step at which the target sinks, or sinks again after a pause.
        span: Steps from there until it has arrived.
        part: How much of its way, in log density, it had gone by then; in [0, 1].
        paused: Whether it stands still.
    """

    def __init__(self, config: DamConfig, gates: Gates) -> None:
        self.config = config
        self.initial: list[float] = self.densities(gates).tolist()
        self.strength = [config.strength] * len(config.targets)
        self.power = [0.0] * len(config.targets)
        self.count = 0
        self.since, self.span, self.part, self.paused = 0, 1.0, 0.0, False
        self.begin(config.warmup_steps)

    def begin(self, step: int) -> None:
        """The target sinks from that step on, over the `anneal` share of those that are left."""
        self.since, self.part, self.paused = step, 0.0, False
        self.span = self.config.anneal * (self.config.steps - step)

    def pause(self, step: int) -> None:
        """The target stands still from that step on."""
        self.part, self.paused = self.gone(step), True

    def go_on(self, step: int) -> None:
        """The target sinks again; it arrives when it would have without the pause."""
        self.span = max(1.0, self.since + self.span - step)
        self.since, self.paused = step, False

    def gone(self, step: int) -> float:
        """The share of its way, in log density, that the target has gone at a step."""
        if self.paused:
            return self.part
        return self.part + (1 - self.part) * min(1.0, max(0, step - self.since) / self.span)

    def state(self) -> dict[str, Any]:
        """Everything that changes during a run, as plain data for a checkpoint."""
        return {name: value for name, value in vars(self).items() if name != "config"}

    def target(self, step: int) -> Tensor:
        """Densities that are asked for at that step (from 0): float `[1]` or `[layers]`."""
        config = self.config
        if not config.holds_density:
            return torch.tensor(config.targets)
        part = self.gone(step)
        return torch.tensor(
            [
                first * (min(last, first) / first) ** part
                for first, last in zip(self.initial, config.targets, strict=True)
            ]
        )

    def densities(self, gates: Gates) -> Tensor:
        """Mean probability of an edge: float `[1]`, or `[layers]` with a target for each."""
        one = len(self.config.targets) == 1
        return gates.whole_density()[None] if one else gates.density().mean(-1)

    def cost(self, gates: Gates) -> Tensor:
        """The term of the loss, in nats: a fp32 scalar."""
        if self.config.control == "sum":
            return published_penalty(gates, self.config.penalty)
        return gates.logits.new_zeros(())

    def push(self, gates: Gates, step: int) -> float:
        """Adds the hinge's gradient to that of the logits, before an optimiser step.

        It pushes down where a target is exceeded and, once the target has stopped sinking, pulls
        up where the density is below it by more than `SHORT`.

        Returns:
            The largest factor on the gradient of log density; 0 where nothing was to be done.
        """
        gradient = gates.logits.grad
        if self.config.control != "hinge" or gradient is None:
            return 0.0
        self.count += 1
        densities = self.densities(gates)
        target = self.target(step).to(densities.device)
        excess = (densities.detach() / target).log().tolist()
        settled = self.target(step - 1).tolist() == target.tolist()
        low = [settled and short for short in (target - densities.detach() > SHORT).tolist()]
        due = [below or part > 0 for below, part in zip(low, excess, strict=True)]
        slope = gradient
        if any(due):  # its graph is not needed otherwise
            (slope,) = torch.autograd.grad(densities.log().sum(), gates.logits)
        largest = 0.0
        for place, (task, own) in enumerate(
            zip(self.parts(gradient), self.parts(slope), strict=True)
        ):
            self.power[place] += task.square().mean().item()
            lags = low[place] or excess[place] > LATE
            grown = self.strength[place] * (GROWTH if lags else 1 / GROWTH)
            self.strength[place] = max(self.config.strength, grown)
            if due[place]:
                usual = math.sqrt(self.power[place] / self.count)
                size = max(own.square().mean().sqrt().item(), SMALLEST)
                factor = self.strength[place] * usual / size
                task.add_(own, alpha=math.copysign(factor, excess[place]))
                largest = max(largest, factor)
        return largest

    def parts(self, logits: Tensor) -> list[Tensor]:
        """Views of logits (or their gradient), one for each target."""
        if len(self.config.targets) == 1:
            return [logits]
        return [logits[place : place + 1] for place in range(len(self.config.targets))]
