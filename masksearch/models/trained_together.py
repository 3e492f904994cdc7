"""Trains many small models as one program; each result is that of its own single training.

for steps in train_together(models, [masks.full(), masks.star()], batches, TrainConfig()):
    print([step.loss for step in steps if isinstance(step, Step)])
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Literal

import torch
from torch import Tensor

from masksearch.contracts import Batch, Shape
from masksearch.errors import NonFiniteLossError
from masksearch.masks.core import Mask
from masksearch.masks.lower import lower
from masksearch.models.heads import MaskedLanguageModel
from masksearch.models.stacked import StackedModels
from masksearch.training.loop import Step, TrainConfig, rate

KNOWN = ("steps", "lr", "warmup", "weight_decay", "betas", "clip")  # what is followed here
Outcome = Step | NonFiniteLossError


class TrainedTogether:
    """Several models in training, step by step; any of them can leave before the end.

    Every model has its own gradient clipping, and a model whose loss is not finite leaves alone.

    Args:
        models: Models of one architecture, all on one device; their weights are copied, and
            written back when a model leaves or `finish` is called.
        tables: Their masks, bool `[models, layers, heads, length, length]`; None = dense.
        config: As in `masksearch.training.loop.train`.
        precision: `"float32"`, or `"bfloat16"` for autocast.
        compiled: Whether `torch.compile` translates the forward first (minutes at the start).

    Raises:
        ValueError, AttachError: See `StackedModels`; also if `config` sets something that this
            program does not follow.
    """

    def __init__(
        self,
        models: Sequence[MaskedLanguageModel],
        tables: Tensor | None,
        config: TrainConfig,
        *,
        precision: Literal["float32", "bfloat16"] = "float32",
        compiled: bool = False,
    ) -> None:
        check_known(config)
        self.models, self.config, self.precision = list(models), config, precision
        self.stack = StackedModels(models, tables)
        self.place = self.stack.words.device
        self.running = list(range(len(models)))  # indices of the models, one for each row
        self.number = 0  # steps that are done
        self.optimiser = self.optimiser_for([])
        self.forward = torch.compile(self.stack) if compiled else self.stack

    def optimiser_for(self, state: list[dict[str, Tensor]]) -> torch.optim.AdamW:
        """AdamW over the stack, with the state of an earlier one (by parameter)."""
        config, stack = self.config, self.stack
        groups: list[dict[str, object]] = [
            {"params": [stack.words, stack.matrices], "weight_decay": config.weight_decay},
            {"params": [stack.vectors], "weight_decay": 0.0},
        ]
        made = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)
        for parameter, values in zip(stack.parameters(), state, strict=False):
            made.state[parameter] = values
        return made

    def step(self, batches: Sequence[Batch]) -> dict[int, Outcome]:
        """One optimiser step of every running model.

        Args:
            batches: One batch for all, or one for each of `running`, in that order.

        Returns:
            Index of the model -> its step, or the error with which it left.
        """
        losses = self.losses(batches)
        losses.sum().backward()  # type: ignore[no-untyped-call]
        self.number += 1
        tokens = batches[0]["input_ids"].numel()
        outcomes: dict[int, Outcome] = {}
        for index, loss in zip(self.running, losses.tolist(), strict=True):
            outcomes[index] = (
                Step(self.number, loss, tokens)
                if math.isfinite(loss)
                else NonFiniteLossError(
                    f"the loss became {loss} at step {self.number} of {self.config.steps}; "
                    "lower the learning rate"
                )
            )
        self.leave([index for index, end in outcomes.items() if not isinstance(end, Step)])
        if self.running:
            self.update()
        return outcomes

    def losses(self, batches: Sequence[Batch]) -> Tensor:
        """Each running model's loss, `[running]`."""
        batch = self.stack.arranged(batches).to(self.place)
        with torch.autocast(self.place.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            found: Tensor = self.forward(batch)
        return found

    def update(self) -> None:
        """Clips every model's own gradient and takes the optimiser's step."""
        parameters = list(self.stack.parameters())
        gradients = [p.grad.flatten(1) for p in parameters if p.grad is not None]
        norms = [torch.linalg.vector_norm(gradient, dim=1) for gradient in gradients]
        total = torch.linalg.vector_norm(torch.stack(norms), dim=0)
        factor = (self.config.clip / (total + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(factor[:, None])
        for group in self.optimiser.param_groups:
            group["lr"] = self.config.lr * rate(self.number - 1, self.config)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)

    def held_out(self, batches: Sequence[Batch]) -> dict[int, float]:
        """Each running model's mean cross-entropy of the scored tokens, in nats."""
        totals, tokens = torch.zeros(len(self.running), dtype=torch.float64), 0
        with torch.no_grad():
            for batch in batches:
                count = int((batch["labels"] != -100).sum())
                totals += self.losses([batch]).double().cpu() * count
                tokens += count
        return dict(zip(self.running, (totals / tokens).tolist(), strict=True))

    def leave(self, indices: Sequence[int]) -> None:
        """Takes models out and writes their weights back; the others go on as they were."""
        leaving = [index for index in indices if index in self.running]
        if not leaving:
            return
        self.write(leaving)
        rows = [row for row, index in enumerate(self.running) if index not in leaving]
        self.running = [self.running[row] for row in rows]
        at = torch.tensor(rows, dtype=torch.int64, device=self.place)
        state = [
            {
                name: value.index_select(0, at) if value.ndim else value
                for name, value in self.optimiser.state[parameter].items()
            }
            for parameter in self.stack.parameters()
            if parameter in self.optimiser.state
        ]
        self.stack.keep(rows)
        self.optimiser = self.optimiser_for(state)

    def write(self, indices: Sequence[int]) -> None:
        """Copies the weights of running models into the models themselves."""
        for index in indices:
            self.stack.write(self.running.index(index), self.models[index])

    def finish(self) -> None:
        """Writes back the weights of all that still run."""
        self.write(self.running)


def train_together(
    models: Sequence[MaskedLanguageModel],
    masks: Sequence[Mask],
    batches: Iterator[Batch] | Sequence[Iterator[Batch]],
    config: TrainConfig,
    *,
    precision: Literal["float32", "bfloat16"] = "float32",
    compiled: bool = False,
) -> Iterator[list[Outcome]]:
    """Trains models in place under their masks, as one program; see `TrainedTogether`.

    Args:
        models: Masked language models of one architecture, without masks of their own.
        masks: One for each model.
        batches: One iterator for all models, or one for each; at least `config.steps` batches,
            of the same size in all.
        config: As in `masksearch.training.loop.train`.
        precision: `"float32"`, or `"bfloat16"` for autocast.
        compiled: Whether `torch.compile` translates the forward first.

    Yields:
        After every optimiser step, for each model its `Step`; a model whose loss became NaN or
        infinite has its `NonFiniteLossError` there from then on, and the others go on. The
        models hold their weights when the iterator has ended or is closed.

    Raises:
        ValueError: If the numbers of models, masks and batches do not fit, the batches end too
            early, or a model cannot train with the others.
    """
    if len(masks) != len(models):
        raise ValueError(f"{len(models)} models need as many masks, got {len(masks)}")
    sources = [batches] if isinstance(batches, Iterator) else list(batches)
    if not isinstance(batches, Iterator) and len(sources) != len(models):
        raise ValueError(f"{len(models)} models need as many batches, got {len(sources)}")
    outcomes: list[Outcome] = []
    run: TrainedTogether | None = None
    try:
        for number in range(config.steps):
            alive = range(len(models)) if run is None else run.running
            drawn = [
                next(source, None)
                for index, source in enumerate(sources)
                if len(sources) == 1 or index in alive
            ]
            found = [batch for batch in drawn if batch is not None]
            if len(found) < len(drawn):
                raise ValueError(f"the batches ended after {number} of {config.steps} steps")
            if run is None:
                tables = lowered(masks, models, found[0]["input_ids"].shape[1])
                run = TrainedTogether(
                    models, tables, config, precision=precision, compiled=compiled
                )
            news = run.step(found)
            outcomes = (
                [news[index] for index in range(len(models))]
                if not outcomes
                else [news.get(index, old) for index, old in enumerate(outcomes)]
            )
            yield outcomes
            if not run.running:
                return
    finally:
        if run is not None:
            run.finish()


def lowered(
    masks: Sequence[Mask], models: Sequence[MaskedLanguageModel], length: int
) -> Tensor | None:
    """The masks as one tensor, bool `[models, layers, heads, length, length]`."""
    if not models:
        raise ValueError("at least one model is needed, got none")
    config = models[0].config
    shape = Shape(length, config.num_hidden_layers, config.num_attention_heads)
    return torch.stack([lower(mask, shape) for mask in masks])


def check_known(config: TrainConfig) -> None:
    """Refuses settings that this program would silently pass over."""
    plain = TrainConfig(**{name: getattr(config, name) for name in KNOWN})
    for field in fields(config):
        if getattr(plain, field.name) != getattr(config, field.name):
            raise ValueError(
                f"models that train together follow {', '.join(KNOWN)}; "
                f"{field.name} = {getattr(config, field.name)!r} is not followed: "
                "train them one after the other"
            )
