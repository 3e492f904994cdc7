"""When gates are pruned and how far, and whether the run collapses on the way.

`WarmupWatch` says when: after attention has learned, and its loss has settled. `DensityControl`
pushes the gates towards their target density; `CollapseWatch` sees where nothing is left of the
task, of the gates, or of the pruning.

Gates that are pruned before attention has learned are pruned at random. Whether it has is a cheap
question: what does the loss lose when all attention is taken away? Taken away means that every
query sees itself alone. That is where pruning leads (a row keeps one key at least), so the answer
is what all the gates together are worth, and it is in the model's own terms: a value output of
zero is something that no mask can produce, and many a model has learned to rely on its size.

A model on a plateau may lean on its attention as on a bias: then taking it away costs something,
although attention has told it nothing. So the loss without attention is the least one that any
test of the run has found.

    nothing lost          wait; where that lasts until the end, the gates are never pruned
    falling or stepping   wait
    settled               prune; the target stands still while the loss steps down again
    trained already       prune at once
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import fmean
from typing import Any, Literal

import torch
from torch import Tensor

from masksearch.contracts import Report
from masksearch.gates.config import DamConfig
from masksearch.gates.gates import Gates
from masksearch.gates.sparsebert import published_penalty

# -- when --------------------------------------------------------------------------------------
LOOKS = 50  # of a run, about
SPAN = 3  # looks whose mean loss is held against that of as many before
LEARNED = 0.02  # share of the loss without attention that attention must be worth
TRAINED = 0.1  # the same for a model that is pruned at its first test
SETTLED = 0.03  # share of what attention is worth by which a settled loss may fall between looks
STEP = 0.1  # the same for a loss that steps below where it was, which pauses the pruning
LATEST = 0.75  # share of the steps after which no pruning begins, and none is paused
QUIET = 0.5  # a plateau may last this share of the steps that came before it, and end in a step

Verdict = Literal["wait", "begin", "pause", "go on"]
AttentionLoss = tuple[float, float]
"""Of a model on the same batches: as it is, and where every query sees itself alone."""


class WarmupWatch:
    """Decides from a run's losses when its gates are pruned; see the module.

    Args:
        config: Of the run. A share as `dense_warmup`, or frozen weights, leave nothing to decide.

    Attributes:
        begin: Step from which on the gates act; None = not yet.
        worth: What the loss loses without attention, at the last test; NaN before the first one.
        without: Least loss without attention of any test.
        settled: Whether the loss had settled when pruning began.
        means: Mean training loss of each look, oldest first.
        losses: Training losses since the last look.
        moved: Step at which the loss was last falling.
        level: The loss that a step is held against.
        paused: Whether pruning pauses.
        tests: Number of tests.
    """

    def __init__(self, config: DamConfig) -> None:
        self.config = config
        self.begin = None if config.waits else config.warmup_steps
        self.worth, self.without = math.nan, math.inf
        self.settled = True
        self.means: list[float] = []
        self.losses: list[float] = []
        self.moved, self.level, self.paused, self.tests = 0, math.inf, False, 0

    @property
    def every(self) -> int:
        """Steps between two looks."""
        return max(1, self.config.steps // LOOKS)

    @property
    def deadline(self) -> int:
        """Last step at which pruning may begin."""
        return max(self.config.warmup_steps, int(LATEST * self.config.steps))

    @property
    def learned(self) -> bool:
        """Whether attention is worth something."""
        return self.worth > LEARNED * abs(self.without)

    def values(self, step: int) -> dict[str, float]:
        """The values of a report after so many steps.

        Returns:
            `pruned_steps`: those in which the gates have acted; `attention_worth`: what the loss
            loses without attention, where it was tested; `attention_learned`: 1 where that is
            enough, else 0; `settled`: 0 where pruning began before the loss had settled, else 1.
        """
        measured = {
            "pruned_steps": 0.0 if self.begin is None else float(step - self.begin),
            "attention_learned": float(self.learned),
            "settled": float(self.settled),
        }
        return measured | ({"attention_worth": self.worth} if self.tests else {})

    def acts(self, step: int) -> bool:
        """Whether the gates act at a step (from 0)."""
        return self.begin is not None and step >= self.begin

    def at_start(self, test: Callable[[], AttentionLoss]) -> Verdict:
        """Before the first step: a model that comes trained is pruned at once."""
        if not self.config.waits:
            return "wait"
        self.measure(test)
        return self.prune(0) if self.worth > TRAINED * abs(self.without) else "wait"

    def look(self, step: int, losses: list[float], test: Callable[[], AttentionLoss]) -> Verdict:
        """Takes the losses of a step's batches and says what is due before the next step.

        Args:
            step: Optimiser steps that are done.
            losses: Of the training batches that no earlier look was given; at a look, of all.
            test: Measures the model; called at some looks.
        """
        if not self.config.waits:
            return "wait"
        self.losses += losses
        last = step == self.config.steps
        if step % self.every and not last:
            return "wait"
        self.means.append(fmean(self.losses))
        self.losses = []
        if self.begin is not None:
            return self._watch_steps(step)
        self.measure(test)
        if self.tests == 1 and self.worth > TRAINED * abs(self.without):
            return self.prune(step)
        falls = self.fall > SETTLED * self.worth
        if falls:
            self.moved = max(0, step - SPAN * self.every)  # between the looks that are compared
        if not self.learned:
            self.moved = step
        if step < self.config.warmup_steps or step > self.deadline or last or not self.learned:
            return "wait"
        quiet = not falls and step - self.moved >= QUIET * self.moved
        if quiet or step + self.every > self.deadline:
            return self.prune(step, settled=quiet)
        return "wait"

    def _watch_steps(self, step: int) -> Verdict:
        """Whether pruning pauses at a look because the loss steps down, or goes on."""
        now, late = self.means[-1], step > self.deadline
        if self.paused:
            if not late and self.fall > SETTLED * self.worth:
                return "wait"
            self.paused, self.level = False, now
            return "go on"
        if late or now >= self.level - STEP * self.worth:
            return "wait"
        self.paused = True
        return "pause"

    def measure(self, test: Callable[[], AttentionLoss]) -> None:
        """Measures what attention is worth."""
        dense, alone = test()
        self.tests += 1
        self.without = min(self.without, alone)
        self.worth = self.without - dense

    def prune(self, step: int, *, settled: bool = True) -> Verdict:
        """Pruning begins at that step."""
        self.begin, self.settled = step, settled
        self.level = min(self.means[-SPAN:], default=self.without - self.worth)
        return "begin"

    @property
    def fall(self) -> float:
        """By how much the mean loss of the last looks lies below that of those before."""
        if len(self.means) < 2 * SPAN:
            return math.inf
        return fmean(self.means[-2 * SPAN : -SPAN]) - fmean(self.means[-SPAN:])


def changing(part: WarmupWatch | DensityControl) -> dict[str, Any]:
    """Everything of it that changes during a run, as plain data for a checkpoint, which goes back
    by `vars(part).update(..)`."""
    return {
        name: value.item() if isinstance(value, Tensor) else value
        for name, value in vars(part).items()
        if name != "config"
    }


# -- how far -----------------------------------------------------------------------------------
SMALLEST = 1e-30  # root mean square of a gradient that is divided by
LATE = 0.02  # excess of log density above which the hinge grows stronger
GROWTH = 1.02  # factor on its strength at such a step; undone at any other
SHORT = 0.004  # density by which the last target may be fallen short of without a pull upwards


class DensityControl:
    """Pushes the density of gates to its target, through the loss or the logits' gradient.

    Args:
        config: Names the control and the target.
        gates: As they are at the start.

    Attributes:
        initial: Density at the start.
        strength: Of the hinge; grows while the density lags behind. This and the next one are
            float64 scalars on the gates' device once the hinge has acted.
        power: Sum of the mean squares of the task's gradient.
        count: Number of gradients in that sum.
        since: Step at which the target sinks, or sinks again after a pause.
        span: Steps from there until it has arrived.
        part: How much of its way, in log density, it had gone by then; in [0, 1].
        paused: Whether it stands still.
    """

    def __init__(self, config: DamConfig, gates: Gates) -> None:
        self.config = config
        self.initial = gates.whole_density().item()
        self.strength: float | Tensor = config.strength
        self.power: float | Tensor = 0.0
        self.count = 0
        self.since, self.span, self.part, self.paused = 0, 1.0, 0.0, False
        self.begin(config.warmup_steps)

    def begin(self, step: int) -> None:
        """The target sinks from that step on, over the `anneal` share of those that are left."""
        self.since, self.part, self.paused = step, 0.0, False
        self.span = self.config.anneal * (self.config.steps - step)

    def pause(self, step: int) -> None:
        """The target stands still from that step on."""
        self.part, self.paused = self.progress(step), True

    def go_on(self, step: int) -> None:
        """The target sinks again; it arrives when it would have without the pause."""
        self.span = max(1.0, self.since + self.span - step)
        self.since, self.paused = step, False

    def progress(self, step: int) -> float:
        """The share of its way, in log density, that the target has gone at a step."""
        if self.paused:
            return self.part
        return self.part + (1 - self.part) * min(1.0, max(0, step - self.since) / self.span)

    def target(self, step: int) -> Tensor:
        """Density that is asked for at that step (from 0): a float scalar."""
        config, first = self.config, self.initial
        if config.control != "hinge":
            return torch.tensor(config.density)
        return torch.tensor(first * (min(config.density, first) / first) ** self.progress(step))

    def cost(self, gates: Gates) -> Tensor:
        """The term of the loss, in nats: a fp32 scalar."""
        if self.config.control == "sum":
            return published_penalty(gates, self.config.penalty)
        return gates.logits.new_zeros(())

    def push(self, gates: Gates, step: int) -> float | Tensor:
        """Adds the hinge's gradient to that of the logits, before an optimiser step.

        It pushes down where the target is exceeded and, once the target has stopped sinking,
        pulls up where the density is below it by more than `SHORT`. Nothing of it waits for a
        GPU.

        Returns:
            The factor on the gradient of log density, a float64 scalar; 0 where nothing was to
            be done.
        """
        gradient = gates.logits.grad
        if self.config.control != "hinge" or gradient is None:
            return 0.0
        self.count += 1
        self.power = gradient.square().mean().double() + self.power
        density = gates.whole_density()
        (slope,) = torch.autograd.grad(density.log(), gates.logits)
        slope = slope.nan_to_num(0.0)  # of gates that are all closed to the last bit
        now, asked = density.detach(), self.target(step).item()
        target = torch.full_like(now, asked)
        excess = (now / target).log().double()
        settled = self.target(step - 1).item() == asked
        short = (target - now > SHORT) & settled
        strength = torch.zeros_like(excess) + self.strength
        late = short | (excess > LATE)
        strength = torch.where(late, strength * GROWTH, strength * (1 / GROWTH))
        self.strength = strength.clamp(min=self.config.strength)
        usual = (self.power / self.count).sqrt()
        size = slope.square().mean().sqrt().double().clamp(min=SMALLEST)
        factor = torch.where(short | (excess > 0), self.strength * usual / size, 0.0)
        signed = factor.copysign(excess)
        if gradient.is_cuda:  # to look at the factor would be to wait
            gradient.add_(slope * signed)
        else:
            gradient.add_(slope, alpha=signed.item())
        return factor


# -- collapse ----------------------------------------------------------------------------------
RISE = 0.3  # nats by which a loss must rise, at least, to count as lost function
RISE_SHARE = 0.2  # and the share of the loss at the end of the warm-up
FALL_SHARE = 0.5  # and the share of what the warm-up had gained
PATIENCE = 5  # reports in a row above that
SMOOTH = 3  # reports whose mean is the loss at the end of the warm-up
PRUNE_MORE = "train for more steps, or raise gate_lr or the control's strength"


class CollapseWatch:
    """Says of the reports of a run where it collapses, once for each kind of collapse.

    - Everything is pruned: density below a quarter of that step's target.
    - Nothing is pruned: after half of the steps with gates the density is above 0.9 of the first
      one, although that step's target is lower.
    - The function is lost: for `PATIENCE` reports in a row the loss lies above that at the end
      of the warm-up (mean of its last `SMOOTH` reports; without a warm-up: the lowest mean of
      `SMOOTH` reports so far) by more than the largest of 0.3 nats, 20% of it, and half of
      what it had fallen by since the first report. (The noise of sampled gates alone took back
      a third of that in a run whose mask was good.)

    Args:
        config_target: Density that is asked for at the end, in (0, 1).
        initial: Density at the start.
        warmup_steps: Steps before the gates act.
        steps: Optimiser steps of the run.
        frozen: Whether the gates alone are trained.

    Attributes:
        above: Reports in a row, up to the last one, whose loss counts as lost function.
        level: The loss that they are held against; infinite while it is not known.
    """

    def __init__(
        self, config_target: float, initial: float, warmup_steps: int, steps: int, frozen: bool
    ) -> None:
        self.config_target, self.initial = config_target, initial
        self.warmup_steps, self.steps, self.frozen = warmup_steps, steps, frozen
        self.first, self.level = math.nan, math.inf
        self.recent: list[float] = []  # losses that the level is made of
        self.above = 0
        self.said: set[str] = set()

    def look(self, report: Report) -> str | None:
        """Takes the next report (`loss`, `density`, `target`); returns a new warning or None."""
        values = report.values
        self.follow(report.step, values["loss"])
        if report.step <= self.warmup_steps:
            return None
        target = values.get("target", self.config_target)
        problems = self.problems(report.step, values["loss"], values["density"], target)
        for kind, words in problems.items():
            if kind not in self.said:
                self.said.add(kind)
                return f"step {report.step}: {words}"
        return None

    def problems(self, step: int, loss: float, density: float, target: float) -> dict[str, str]:
        """Kind of each collapse that holds after a step -> what happens and the remedy.

        Kinds are `"pruned_away"`, `"nothing_pruned"` and `"function_lost"`.

        Args:
            step: Optimiser steps that are done.
            loss: In nats; one that `follow` has seen.
            density: That of the gates.
            target: That step's target density.
        """
        texts = {}
        asked = max(target, self.config_target)
        if density < asked / 4:
            texts["pruned_away"] = (
                f"nearly everything is pruned (density {density:.4g}, target {asked:.4g}); "
                "lower gate_lr, or use control='hinge'"
            )
        halfway = step >= (self.warmup_steps + self.steps) / 2
        if halfway and density > 0.9 * self.initial and target < 0.9 * self.initial:
            texts["nothing_pruned"] = (
                f"nothing is pruned (density {density:.4g}, at the start {self.initial:.4g}, "
                f"target {target:.4g}); {PRUNE_MORE}"
            )
        if self.above >= PATIENCE:
            risen = f"the loss has risen to {loss:.4g} from {self.level:.4g} before the gates; "
            texts["function_lost"] = risen + (
                "the weights are frozen: train on under the mask, or ask for a higher density"
                if self.frozen
                else "edges go faster than the weights can follow: train for more steps, lower "
                "gate_lr, or ask for a higher density"
            )
        return texts

    def follow(self, step: int, loss: float) -> None:
        """Updates the level of the loss, and counts the reports that lie above it."""
        warm = step <= self.warmup_steps
        if math.isnan(self.first):
            self.first = loss
        if not warm:
            self.above = self.above + 1 if self.lost(loss) else 0
        if warm or not self.warmup_steps:
            self.recent = [*self.recent, loss][-SMOOTH:]
            if warm:
                self.level = fmean(self.recent)
            elif len(self.recent) == SMOOTH:
                self.level = min(self.level, fmean(self.recent))

    def lost(self, loss: float) -> bool:
        """Whether a loss lies so far above the level that the function counts as lost."""
        fall = self.first - self.level
        return loss > self.level + max(RISE, RISE_SHARE * self.level, FALL_SHARE * fall)
