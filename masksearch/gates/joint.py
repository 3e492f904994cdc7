"""The loop of DAM: one optimiser for the weights, one for the gates, one control of density.

Its whole state (weights, logits, both optimisers, random states, reports) goes into checkpoints,
so that a run that was killed ends as it would have.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from masksearch.checkpoints import Checkpoints
from masksearch.contracts import Batch, Report
from masksearch.errors import LengthError, NonFiniteLossError, ResumeError
from masksearch.gates.bank import Gates
from masksearch.gates.chain import loss_chain
from masksearch.gates.config import DamConfig
from masksearch.gates.control import STATE, DensityControl
from masksearch.gates.health import entropy_bits
from masksearch.lamb import Lamb
from masksearch.train import model_loss, parameter_groups
from masksearch.train_state import restore_random, restore_state, training_state

REPORTS = 100  # of a run, about
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
        self.weights: list[Tensor] = []
        self.optimisers = self.built()
        self.control = DensityControl(config, gates)
        self.step = 0  # optimiser steps that are done
        self.losses: list[float] = []  # since the last report
        self.curve: list[Report] = []

    def built(self) -> dict[str, torch.optim.Optimizer]:
        """The optimisers by name: `both` for LAMB, otherwise `weights` and `gates`."""
        config, logits = self.config, list(self.gates.parameters())
        own = {id(parameter) for parameter in logits}
        groups: list[dict[str, Any]] = []
        for group in parameter_groups(self.model, config.weight_decay):
            members = [p for p in group["params"] if id(p) not in own]  # type: ignore[attr-defined]
            self.weights += members
            groups.append({**group, "params": members, "lr": config.lr})
        if config.optimiser == "lamb":
            groups.append({"params": logits, "lr": config.gate_lr, "weight_decay": 0.0})
            return {"both": Lamb(groups, max_grad_norm=config.clip)}
        return {
            "weights": torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True),
            "gates": torch.optim.Adam(logits, lr=config.gate_lr, eps=GATE_EPS, fused=True),
        }

    def reports(
        self,
        batches: Iterator[Batch],
        gate_batches: Iterator[Batch] | None,
        checkpoints: Checkpoints | None,
        checkpoint_seconds: float,
    ) -> Iterator[Report]:
        """Trains to the end; of a run that goes on, the earlier reports come first."""
        own = batches if gate_batches is None else gate_batches
        if checkpoints is not None:
            self.restore(checkpoints)
        for step in range(self.step):
            for _ in range(self.config.micro_batches):
                self.taken(batches, step)
                if self.config.levels == 2 and step >= self.config.warmup_steps:
                    self.taken(own, step)
        yield from tuple(self.curve)
        saved = time.monotonic()
        while self.step < self.config.steps:
            report = self.advance(batches, own)
            if checkpoints is not None and time.monotonic() - saved >= checkpoint_seconds:
                checkpoints.save(self.step, *self.state())
                saved = time.monotonic()
            if report is not None:
                yield report

    def advance(self, batches: Iterator[Batch], gate_batches: Iterator[Batch]) -> Report | None:
        """One step of the weights and, after the warm-up, of the gates."""
        config, gates, step = self.config, self.gates, self.step
        gates.enabled = step >= config.warmup_steps
        gates.cooled = config.cooled(step)
        self.set_rates(config.rate(step))
        joint = gates.enabled and config.levels == 1
        cost = self.gradients(batches, controlled=joint)
        if joint:
            cost += self.control.push(gates, step)
        if config.optimiser == "adamw":
            torch.nn.utils.clip_grad_norm_(self.weights, config.clip)
        for name, optimiser in self.optimisers.items():
            if name != "gates" or joint:
                optimiser.step()
        if gates.enabled and not joint:
            cost = self.gradients(gate_batches, controlled=True) + self.control.push(gates, step)
            self.optimisers["gates"].step()
        self.step += 1
        if self.step % max(1, config.steps // REPORTS) and self.step < config.steps:
            return None
        self.curve.append(self.report(cost))
        return self.curve[-1]

    def gradients(self, batches: Iterator[Batch], *, controlled: bool) -> float:
        """Fresh gradients of everything, mean over the micro-batches.

        Returns:
            What the density control added to the loss, in nats.
        """
        count, cost = self.config.micro_batches, 0.0
        for optimiser in self.optimisers.values():
            optimiser.zero_grad(set_to_none=True)
        if controlled:
            self.control.grow(self.gates, self.step)
        for _ in range(count):
            loss = self.loss(self.taken(batches, self.step))
            value = loss.item()
            self.losses.append(value)
            if not math.isfinite(value):
                raise NonFiniteLossError(
                    f"the loss became {value} at step {self.step + 1} of {self.config.steps}; "
                    "lower lr or gate_lr"
                )
            if controlled:
                term = self.control.cost(self.gates, self.step)
                cost += term.item() / count
                loss = loss + term
            (loss / count).backward()  # type: ignore[no-untyped-call]
        return cost

    def set_rates(self, factor: float) -> None:
        """Sets the learning rates of a step; the gates have a schedule only where "sqrt"."""
        config = self.config
        for optimiser in self.optimisers.values():
            for group in optimiser.param_groups:
                if group["params"][0] is not self.gates.logits:
                    group["lr"] = config.lr * factor
                elif config.schedule == "sqrt":
                    group["lr"] = config.gate_lr * factor

    def taken(self, batches: Iterator[Batch], step: int) -> Batch:
        """The next batch."""
        batch = next(batches, None)
        if batch is None:
            raise ValueError(f"the batches ended after {step} of {self.config.steps} steps")
        tokens = batch.get("input_ids")
        if tokens is not None and tokens.shape[-1] > self.gates.length:
            raise LengthError(
                f"these gates hold {self.gates.length} positions, a batch has "
                f"{tokens.shape[-1]}; build them with the longest sequence's length"
            )
        return batch

    def loss(self, batch: Batch) -> Tensor:
        """Loss of a batch at the run's precision."""
        half = self.config.precision == "bfloat16"
        placed = {name: tensor.to(self.device) for name, tensor in batch.items()}
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            return model_loss(self.model, placed)

    def report(self, cost: float) -> Report:
        """What is known after this step."""
        gates = self.gates
        values = {
            "loss": sum(self.losses) / len(self.losses),
            "density": gates.density().mean().item(),
            "target": self.control.target(self.step - 1).mean().item(),
            "entropy": entropy_bits(gates.probabilities().detach()).item(),
            "control": cost,
        }
        self.losses.clear()
        if self.step == self.config.steps and self.held_out:
            values |= loss_chain(self.model, gates, self.loss, self.held_out, self.config.target)
        return Report(self.step, values)

    # -- checkpoints ---------------------------------------------------------------------------
    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree with to be gone on from, as plain data."""
        found = {"config": asdict(self.config), "gates": self.gates.arguments}
        return dict(json.loads(json.dumps(found)))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and plain facts from which `restore` goes on."""
        tensors = training_state(self.model, self.optimisers)
        tensors["random.gates"] = self.gates.source(self.device).get_state()
        facts = {
            "run": self.identity(),
            "losses": self.losses,
            "curve": [asdict(report) for report in self.curve],
            "control": {name: getattr(self.control, name) for name in STATE},
        }
        return tensors, facts

    def restore(self, checkpoints: Checkpoints) -> None:
        """Goes back to the newest checkpoint, if there is one."""
        found = checkpoints.load()
        if found is None:
            return
        facts, tensors = found.facts, dict(found.tensors)
        if facts["run"] != self.identity():
            differing = [
                f"{part}.{name}"
                for part, ours in self.identity().items()
                for name in ours
                if facts["run"].get(part, {}).get(name) != ours[name]
            ]
            raise ResumeError(
                f"{checkpoints.folder} holds the checkpoint of a run with other "
                f"{', '.join(differing)}; give the same arguments, or another folder"
            )
        restore_state(tensors, self.model, self.optimisers)
        restore_random(tensors, self.device)
        self.gates.source(self.device).set_state(tensors["random.gates"])
        self.losses = list(facts["losses"])
        self.curve = [Report(item["step"], item["values"]) for item in facts["curve"]]
        for name in STATE:
            setattr(self.control, name, facts["control"][name])
        self.step = found.step
