"""The steps of a DAM run: weights and gates trained together, and what is reported of them.

A step (`JointTraining.advance`): rates and temperature, the gradient of the loss, the push on the
gates towards the density, the optimisers. Of frozen weights only the gates learn, from the first
step on.
When the warm-up ends is told by the configuration, or found by a `WarmupWatch`.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, cast

import torch
from torch import Tensor, nn

from masksearch.contracts import Batch, Report
from masksearch.errors import NonFiniteLossError, ResumeError
from masksearch.gates.config import DamConfig
from masksearch.gates.discretise import at_sparsity
from masksearch.gates.gates import Gates
from masksearch.gates.sparsebert import published_penalty
from masksearch.gates.units import as_shares, cut_switches
from masksearch.gates.warmup import AttentionLoss, Verdict, WarmupWatch
from masksearch.training.checkpoints import (
    Checkpoints,
    restore_random,
    restore_state,
    training_state,
)
from masksearch.training.lamb import Lamb
from masksearch.training.loop import (
    keeping_modes,
    model_loss,
    on_device,
    parameter_groups,
    save_or_warn,
)

REPORTS = 100  # of a run, about
TEST_ROWS = 256  # held-out sequences, about, on which attention is taken away
SAMPLES = 4  # samples of the gates whose losses are averaged at the end
GATE_EPS = 1e-20  # of Adam on the gates: far below any gradient, so that their scale is free


class JointTraining:
    """Trains the weights of a model and the gates that are attached to it.

    Args:
        model: In training mode, with the gates on it.
        gates: Trained in place.
        config: Steps, rates and target.
        held_out: Batches for the losses of the last report.
    """

    def __init__(
        self, model: nn.Module, gates: Gates, config: DamConfig, held_out: Sequence[Batch] = ()
    ) -> None:
        self.model, self.gates, self.config, self.held_out = model, gates, config, held_out
        self.device = next(model.parameters()).device
        self.weights: list[Tensor] = []  # those that are trained
        self.optimisers = self.build_optimisers()
        self.control = DensityControl(config, gates)
        self.warmup = WarmupWatch(config)
        if config.waits:
            self.control.pause(0)  # until pruning begins
        self.tested = few_rows(held_out, TEST_ROWS)  # batches for the tests of attention
        self.latest: Batch = {}  # that the weights were trained on
        self.step = 0  # optimiser steps that are done
        self.losses: list[float] = []  # since the last report
        self.curve: list[Report] = []

    def build_optimisers(self) -> dict[str, torch.optim.Optimizer]:
        """The optimisers by name: `both` for LAMB, otherwise `weights` (if any) and `gates`."""
        config, logits = self.config, self.gates.logits
        groups: list[dict[str, Any]] = []
        for group in parameter_groups(self.model, config.weight_decay):
            members = [p for p in cast("list[Tensor]", group["params"]) if p is not logits]
            if members:
                self.weights += members
                groups.append({**group, "params": members, "lr": config.lr})
        if config.optimiser == "lamb":
            groups.append({"params": [logits], "lr": config.gate_lr, "weight_decay": 0.0})
            return {"both": Lamb(groups, max_grad_norm=config.clip)}
        found: dict[str, torch.optim.Optimizer] = {}
        if groups:
            found["weights"] = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)
        found["gates"] = torch.optim.Adam([logits], config.gate_lr, eps=GATE_EPS, fused=True)
        return found

    def reports(
        self,
        batches: Iterator[Batch],
        checkpoints: Checkpoints | None,
        checkpoint_seconds: float,
    ) -> Iterator[Report]:
        """Trains to the end; of a run that goes on, the earlier reports come first."""
        if checkpoints is not None:
            self.restore(checkpoints)
        for step in range(self.step):  # what the steps that are done have used
            for _ in range(self.config.micro_batches):
                self.next_batch(batches, step)
        yield from tuple(self.curve)
        saved, full = time.monotonic(), False
        while self.step < self.config.steps:
            report = self.advance(batches)
            if checkpoints is not None and time.monotonic() - saved >= checkpoint_seconds:
                full = save_or_warn(checkpoints, self.step, *self.state(), warned=full)
                saved = time.monotonic()
            if report is not None:
                yield report

    def advance(self, batches: Iterator[Batch]) -> Report | None:
        """One optimiser step of the weights and, after the warm-up, of the gates."""
        config, gates, step = self.config, self.gates, self.step
        if step == 0 and self.tested:
            self.follow(self.warmup.at_start(self.attention_loss))
        gates.enabled = self.warmup.acts(step)
        gates.cooling = config.temperature_factor(step, self.warmup.begin)
        self.set_rates(config.lr_factor(step))
        count = len(self.losses)
        cost = self.set_gradients(batches, controlled=gates.enabled)
        of_step = self.losses[count:]  # of the weights' batches
        if config.optimiser == "adamw":
            torch.nn.utils.clip_grad_norm_(self.weights, config.clip)
        for name, optimiser in self.optimisers.items():
            if name != "gates" or gates.enabled:
                optimiser.step()
        self.step += 1
        self.follow(self.warmup.look(self.step, of_step, self.attention_loss))
        if self.step % max(1, config.steps // REPORTS) and self.step < config.steps:
            return None
        self.curve.append(self.report(cost))
        return self.curve[-1]

    def follow(self, verdict: Verdict) -> None:
        """Does what the warm-up's watch says is due before the next step."""
        if verdict == "begin":
            self.control.begin(self.step)
        elif verdict == "pause":
            self.control.pause(self.step)
        elif verdict == "go on":
            self.control.go_on(self.step)

    @torch.no_grad()
    def attention_loss(self) -> AttentionLoss:
        """What the model loses when every query sees itself alone, in eval mode; on the held-out
        batches, or where there are none on the latest training batch."""
        model, gates, before = self.model, self.gates, self.gates.enabled
        batches = self.tested or [self.latest]

        def mean() -> float:
            return sum(self.loss(batch).item() for batch in batches) / len(batches)

        with keeping_modes(model, gates):
            model.eval()
            gates.enabled = False
            try:
                dense = mean()
                gates.alone = True
                return AttentionLoss(dense, mean())
            finally:
                gates.alone, gates.enabled = False, before

    def set_rates(self, factor: float) -> None:
        """Sets the learning rates of a step; the gates have a schedule only where "sqrt"."""
        config = self.config
        for optimiser in self.optimisers.values():
            for group in optimiser.param_groups:
                if group["params"][0] is not self.gates.logits:
                    group["lr"] = config.lr * factor
                elif config.schedule == "sqrt":
                    group["lr"] = config.gate_lr * factor

    def set_gradients(self, batches: Iterator[Batch], *, controlled: bool) -> float:
        """Computes the gradients of weights and gates, a mean over the micro-batches.

        Args:
            batches: One is taken for each micro-batch.
            controlled: Whether the gates are also pushed towards their density.

        Returns:
            What the density control added to the loss, in nats.
        """
        count, cost = self.config.micro_batches, 0.0
        for optimiser in self.optimisers.values():
            optimiser.zero_grad(set_to_none=True)
        for _ in range(count):
            self.latest = self.next_batch(batches, self.step)
            loss = self.loss(self.latest)
            value = loss.item()
            self.losses.append(value)
            if not math.isfinite(value):
                raise NonFiniteLossError(
                    f"the loss became {value} at step {self.step + 1} of {self.config.steps}; "
                    "lower lr or gate_lr"
                )
            if controlled:
                term = self.control.cost(self.gates)
                cost += term.item() / count
                loss = loss + term
            (loss / count).backward()  # type: ignore[no-untyped-call]
        return cost + self.control.push(self.gates, self.step) if controlled else cost

    def next_batch(self, batches: Iterator[Batch], step: int) -> Batch:
        """The next batch; an error where there is none."""
        batch = next(batches, None)
        if batch is None:
            raise ValueError(f"the batches ended after {step} of {self.config.steps} steps")
        return batch

    def loss(self, batch: Batch) -> Tensor:
        """Loss of a batch at the run's precision."""
        half = self.config.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            return model_loss(self.model, on_device(self.model, batch))

    def report(self, cost: float) -> Report:
        """The report after this step."""
        gates = self.gates
        values = {
            "loss": sum(self.losses) / len(self.losses),
            "density": gates.whole_density().item(),
            "target": self.control.target(self.step - 1).mean().item(),
            "entropy": gates.entropy().item(),
            "control": cost,
        }
        self.losses.clear()
        if self.config.waits:
            values |= self.warmup.values(self.step)
        if self.step == self.config.steps and self.held_out:
            values |= self.held_out_losses()
        return Report(self.step, values)

    @torch.no_grad()
    def held_out_losses(self) -> dict[str, float]:
        """Mean held-out loss in eval mode, under four readings of the same gates.

        Returns:
            In nats: `relaxed` (every gate at its probability), `sampled` (mean over four
            samples), `held_out` (every gate rounded), `discretised` (the mask of exactly the
            target density; at least one key a row).
        """
        model, gates = self.model, self.gates
        before = gates.form, gates.deterministic, gates.enabled
        noise = gates.noise_generator(self.device)
        state = noise.get_state()

        def mean() -> float:
            return sum(self.loss(batch).item() for batch in self.held_out) / len(self.held_out)

        found: dict[str, float] = {}
        with keeping_modes(model, gates):
            model.eval()
            gates.enabled = True
            probabilities = gates.probabilities()
            try:
                gates.fixed = probabilities
                if gates.form == "flip":  # which rounds
                    gates.form = "log"
                found["relaxed"] = mean()
                gates.form, gates.fixed = before[0], None
                gates.train()
                gates.deterministic = False
                found["sampled"] = sum(mean() for _ in range(SAMPLES)) / SAMPLES
                gates.eval()
                gates.deterministic = True
                found["held_out"] = mean()
                gates.fixed = self.cut(probabilities.cpu()).to(probabilities)
                found["discretised"] = mean()
            finally:
                gates.fixed = None
                gates.form, gates.deterministic, gates.enabled = before
                noise.set_state(state)
        return found

    def cut(self, probabilities: Tensor) -> Tensor:
        """The mask of the target density, in the form of `Gates.drawn`."""
        gates, density = self.gates, max(self.config.target, self.gates.least_density)
        if gates.units is not None:
            found = cut_switches(gates.units, probabilities, density)
            return as_shares(gates.units, found, probabilities.shape)
        weights = None if gates.weights is None else gates.weights.cpu()
        return at_sparsity(probabilities, 1 - density, weights=weights)

    # -- checkpoints ---------------------------------------------------------------------------
    def identity(self) -> dict[str, Any]:
        """Configuration and gates as plain data: a checkpoint of others is refused."""
        found = {"config": asdict(self.config), "gates": self.gates.arguments}
        return dict(json.loads(json.dumps(found)))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and plain facts from which `restore` goes on."""
        tensors = training_state(self.model, self.optimisers)
        if self.config.train == "gates":  # the weights are whoever called's, as they were
            own = {id(tensor) for tensor in self.gates.state_dict(keep_vars=True).values()}
            for name, tensor in self.model.state_dict(keep_vars=True).items():
                if id(tensor) not in own:
                    del tensors[f"model.{name}"]
        tensors["random.gates"] = self.gates.noise_generator(self.device).get_state()
        facts = {
            "run": self.identity(),
            "losses": self.losses,
            "curve": [asdict(report) for report in self.curve],
            "control": self.control.state(),
            "warmup": self.warmup.state(),
        }
        return tensors, facts

    def restore(self, checkpoints: Checkpoints) -> None:
        """Goes on from the newest checkpoint, if there is one."""
        found = checkpoints.load()
        if found is None:
            return
        facts, tensors = found.facts, dict(found.tensors)
        differing = [
            f"{part}.{name}"
            for part, ours in self.identity().items()
            for name in ours
            if facts["run"][part].get(name) != ours[name]
        ]
        if differing:
            raise ResumeError(
                f"{checkpoints.folder} holds the checkpoint of a run with other "
                f"{', '.join(differing)}; give the same arguments, or another folder"
            )
        as_given = {f"model.{name}": part for name, part in self.model.state_dict().items()}
        restore_state(as_given | tensors, self.model, self.optimisers)
        restore_random(tensors, self.device)
        self.gates.noise_generator(self.device).set_state(tensors["random.gates"])
        self.losses = list(facts["losses"])
        self.curve = [Report(item["step"], item["values"]) for item in facts["curve"]]
        vars(self.control).update(facts["control"])
        self.warmup.restore(facts["warmup"])
        self.step = found.step


def few_rows(batches: Sequence[Batch], rows: int) -> list[Batch]:
    """The first batches with about so many rows; the last is cut where all of it has a first axis
    of rows, but for scalars."""
    found: list[Batch] = []
    for batch in batches:
        sizes = {len(value) for value in batch.values() if value.ndim}
        (size,) = sizes if len(sizes) == 1 else (None,)
        if size is not None and size > rows:
            batch = {name: value[:rows] if value.ndim else value for name, value in batch.items()}
            size = rows
        found.append(batch)
        rows -= 1 if size is None else size
        if rows <= 0:
            break
    return found


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
