"""One plain training loop, used by every evaluator and by DAM's warm-up.

for step in train(model, batches, TrainConfig(steps=300)):
    print(step.number, step.loss)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from masksearch.contracts import Batch
from masksearch.errors import NonFiniteLossError


@dataclass(frozen=True)
class TrainConfig:
    """How a proxy is trained: AdamW, linear warm-up, then linear decay to zero."""

    steps: int = 800  # optimiser steps
    lr: float = 2e-3  # peak learning rate
    warmup: float = 0.06  # share of the steps in which the rate rises
    weight_decay: float = 0.01  # on matrices only; biases and norms have none
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = 1.0  # largest norm of the gradient

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if not self.lr > 0:
            raise ValueError(f"lr must be positive, got {self.lr}")
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"warmup is a share of the steps in [0, 1], got {self.warmup}")


@dataclass(frozen=True)
class Step:
    """One finished optimiser step."""

    number: int  # from 1
    loss: float  # of this step's batch, before the update
    tokens: int  # token positions of this step's batch


def rate(step: int, config: TrainConfig) -> float:
    """Factor on the learning rate before step `step` (from 0): up linearly, then down to 0."""
    rising = max(1, round(config.warmup * config.steps))
    if step < rising:
        return (step + 1) / rising
    return max(0.0, (config.steps - step) / max(1, config.steps - rising))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Trainable parameters, matrices with decay and the rest without; gates are left out
    (they are trained by DAM with an optimiser of their own)."""
    decayed: list[Tensor] = []
    plain: list[Tensor] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "masksearch_gates" not in name:
            (decayed if parameter.ndim >= 2 else plain).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]


def model_loss(model: nn.Module, batch: Batch) -> Tensor:
    """The loss that the model itself computes from a batch with labels."""
    loss: Tensor = model(**batch).loss
    return loss


def train(
    model: nn.Module,
    batches: Iterator[Batch],
    config: TrainConfig,
    loss: Callable[[nn.Module, Batch], Tensor] = model_loss,
) -> Iterator[Step]:
    """Trains in place and yields after every step; stop by closing the iterator.

    Args:
        model: Any module; left in training mode.
        batches: At least `config.steps` batches.
        config: Steps, rates and decay.
        loss: Scalar loss of (model, batch).

    Yields:
        One `Step` per optimiser step.

    Raises:
        NonFiniteLossError: If a loss is NaN or infinite; names the step.
        ValueError: If the batches end too early.
    """
    groups = parameter_groups(model, config.weight_decay)
    trained = [p for group in groups for p in cast("list[Tensor]", group["params"])]
    optimiser = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: rate(step, config))
    model.train()
    for number in range(1, config.steps + 1):
        batch = next(batches, None)
        if batch is None:
            raise ValueError(f"the batches ended after {number - 1} of {config.steps} steps")
        value = loss(model, batch)
        number_value = value.item()
        if not math.isfinite(number_value):
            raise NonFiniteLossError(
                f"the loss became {number_value} at step {number} of {config.steps}; "
                "lower the learning rate"
            )
        optimiser.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trained, config.clip)
        optimiser.step()
        schedule.step()
        yield Step(number, number_value, batch["input_ids"].numel())
