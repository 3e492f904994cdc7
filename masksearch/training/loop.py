"""Trains a model step by step, with checkpoints: the loop behind every evaluator.

for step in train(model, batches, TrainConfig(steps=300)):
    print(step.number, step.loss)

`Training.step` is the whole of one optimiser step; the rest is where batches come from, where
checkpoints go, and when a loss is looked at. Parts of a batch (micro-batches, memory that runs
out) and several processes are in `accumulation`.
"""

from __future__ import annotations

import logging
import math
import os
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from masksearch.contracts import Batch, mixed_seed
from masksearch.errors import NonFiniteLossError
from masksearch.training.accumulation import Accumulator, group
from masksearch.training.checkpoints import (
    Checkpoints,
    restore_random,
    restore_state,
    training_state,
)
from masksearch.training.lamb import Lamb
from masksearch.training.parts import Frozen, Optimiser, Precision, Schedule

log = logging.getLogger(__name__)

Batches = Iterator[Batch] | Callable[[int], Iterator[Batch]]
FIRST = ("steps", "lr", "warmup", "weight_decay", "betas", "clip")  # always part of an identity
UNREAD = 20  # steps on a GPU between two looks at the losses: each look waits for the GPU


@dataclass(frozen=True)
class TrainConfig:
    """How a proxy is trained: linear warm-up, then decay to zero.

    With `micro_batches`, that many batches are one optimiser step; its loss and gradient are
    those of one batch of all their rows.
    """

    steps: int = 800  # optimiser steps
    lr: float = 2e-3  # peak learning rate
    warmup: float = 0.06  # share of the steps in which the rate rises
    weight_decay: float = 0.01  # on matrices only; biases and norms have none
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = 1.0  # largest norm of the gradient
    micro_batches: int = 1  # batches of an optimiser step
    optimiser: Optimiser = "adamw"  # "lamb": for large effective batches
    schedule: Schedule = "linear"  # of the decay; "sqrt": as sqrt(1 - progress), as in SparseBERT

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")

    @property
    def identity(self) -> dict[str, object]:
        """The fields as plain data, for protocols: those of the first version, and of later
        ones only what differs from its default, so that old protocols keep their ids."""
        defaults = asdict(TrainConfig())
        settings = asdict(self).items()
        return {
            name: value for name, value in settings if name in FIRST or value != defaults[name]
        }


@dataclass(frozen=True)
class Step:
    """One finished optimiser step."""

    number: int  # from 1
    value: float | Tensor  # the loss; on a GPU a tensor there, which `loss` fetches
    tokens: int  # token positions of this step's batches
    title: str = ""  # of its training, for whoever shows it

    @property
    def loss(self) -> float:
        """Mean loss of this step's batches, before the update. On a GPU, reading it waits for
        the step to finish."""
        return float(self.value)


Follower = Callable[[Step, TrainConfig], None]
# What a caller far above wants to see of every training below it: a progress bar around a search
# reaches the loop inside an evaluator that knows nothing of bars. Set by `follow_trainings`
# alone, read once a step in `Training.run`.
FOLLOWERS: ContextVar[tuple[Follower, ...]] = ContextVar("followers", default=())


@contextmanager
def follow_trainings(callback: Follower) -> Iterator[None]:
    """Calls back after every step of every `train` in this context (thread or task).

    with follow_trainings(lambda step, config: bar.update(step.number / config.steps)):
        reports = list(evaluator(mask, seed=0, workdir=folder))

    Args:
        callback: Called with the step and the settings of its training. Reading `step.loss` at
            every step slows a GPU down; read it now and then.
    """
    token = FOLLOWERS.set((*FOLLOWERS.get(), callback))
    try:
        yield
    finally:
        FOLLOWERS.reset(token)


def rate(step: int, config: TrainConfig) -> float:
    """Factor on the learning rate of step `step` (from 0): up linearly, then down to 0."""
    if config.schedule == "sqrt":
        progress = (step + 1) / config.steps
        return progress / config.warmup if progress < config.warmup else (1 - progress) ** 0.5
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


def on_device(model: nn.Module, batch: Batch) -> Batch:
    """The batch where the model's weights are."""
    device = next(model.parameters()).device
    return {name: tensor.to(device) for name, tensor in batch.items()}


def finite_loss(model: nn.Module, batch: Batch, number: int) -> Tensor:
    """The loss of batch `number`, computed where the model's weights are.

    Raises:
        NonFiniteLossError: If it is NaN or infinite.
    """
    loss = model_loss(model, on_device(model, batch))
    if not math.isfinite(loss.item()):
        raise NonFiniteLossError(
            f"the loss of batch {number} is {loss.item()}; every batch needs a scored label, "
            "and the model finite weights"
        )
    return loss


@contextmanager
def one_thread() -> Iterator[None]:
    """Has torch compute on one thread, then on as many as before."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def seeded_noise(device: torch.device, *seeds: int) -> Iterator[None]:
    """Draws from torch's global generators (dropout) follow from these seeds; afterwards
    the generators are as they were."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        _seed_generators(device, mixed_seed(*seeds))
        yield


def _seed_generators(device: torch.device, seed: int) -> None:
    """Seeds torch's global generators, of the CPU and of a GPU."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)


def train(
    model: nn.Module,
    batches: Batches,
    config: TrainConfig,
    loss: Callable[[nn.Module, Batch], Tensor] = model_loss,
    *,
    checkpoints: Checkpoints | None = None,
    memory: dict[str, Any] | None = None,
    noise_seed: int | None = None,
    title: str = "",
) -> Generator[Step, None, None]:
    """Trains in place and yields after every step; stop by closing the iterator.

    Where memory runs out, every batch is computed in halves, quarters, .. of its rows, down to
    one row, with one warning: the gradient stays that of the whole batch (but for rounding, and
    for a model with batch normalisation).

    Under `accumulation.join_processes` each process computes its rows of every batch; losses,
    gradients and weights are those of one process with the whole batches (but for rounding).
    Model and batches must be the same on all; the first process writes the checkpoints.

    Args:
        model: Any module; left in training mode.
        batches: At least `config.steps * config.micro_batches` batches, as an iterator, or as a
            function `start -> iterator` that begins at batch `start` (a run that goes on draws
            and drops the earlier ones of an iterator).
        config: Steps, rates and decay.
        loss: Scalar loss of (model, batch): a mean over its scored labels (`count_scored`).
        checkpoints: Where the state is kept; None = nowhere. What a killed run has left there
            is gone on from; the end is the same bit for bit on a CPU. They are not cleared.
        memory: Plain data (JSON) of the caller's that goes into checkpoints; it is brought back
            in place, before `train` returns.
        noise_seed: Seed of what the model draws from torch's global generator (dropout), which
            is left as it was; several processes draw differently from it. None = it draws from
            that generator.
        title: What is trained, for a display.

    Yields:
        One `Step` per optimiser step; in a run that goes on, from the next one.

    Raises:
        NonFiniteLossError: If a loss is NaN or infinite; names the step. On a GPU it is found
            up to 20 steps late.
        ValueError: If the batches end too early.
        RuntimeError: If memory runs out with a single row (torch.OutOfMemoryError is one).
        ResumeError: If several processes find different checkpoints.
    """
    return Training(
        model,
        batches,
        config,
        loss,
        checkpoints,
        memory,
        noise_seed,
        title,
    ).run()


@dataclass
class Training:
    """A training under way; the arguments are those of `train`."""

    model: nn.Module
    batches: Batches
    config: TrainConfig
    loss: Callable[[nn.Module, Batch], Tensor]
    checkpoints: Checkpoints | None
    memory: dict[str, Any] | None
    noise_seed: int | None
    title: str = ""

    def __post_init__(self) -> None:
        groups = parameter_groups(self.model, self.config.weight_decay)
        self.trained = [p for group in groups for p in cast("list[Tensor]", group["params"])]
        self.device = self.trained[0].device if self.trained else torch.device("cpu")
        self.optimiser = _build_optimiser(groups, self.config)
        self.group = group()
        self.accumulator = Accumulator(group=self.group)
        self.done = 0  # optimiser steps
        self.unread: list[tuple[int, Tensor]] = []  # losses on a GPU nobody has looked at
        self.random: dict[str, Tensor] = {}  # states of global generators, to be put back
        self.restore()
        self.group.check_same_step(self.done, self.device)
        gone = self.done * self.config.micro_batches
        if callable(self.batches):
            self.stream = self.batches(gone)
        else:
            self.stream = self.batches
            for _ in range(gone):
                self.next_batch()
        self.model.train()

    def run(self) -> Generator[Step, None, None]:
        """The remaining steps."""
        if self.random and self.noise_seed is None and self.group.first:
            restore_random(self.random, self.device)
        saved, full = time.monotonic(), False
        while self.done < self.config.steps:
            step = self.step()
            for follower in FOLLOWERS.get():
                follower(step, self.config)
            yield step
            if self.checkpoints is None or not self.group.first:
                continue
            if time.monotonic() - saved < self.checkpoints.seconds:
                continue
            self._check_losses()
            full = save_or_warn(self.checkpoints, self.done, *self.state(), warned=full)
            saved = time.monotonic()

    def step(self) -> Step:
        """One optimiser step: its rate, the gradient of its batches, clip, update."""
        for parameters in self.optimiser.param_groups:
            parameters["lr"] = self.config.lr * rate(self.done, self.config)
        batches = [self.next_batch() for _ in range(self.config.micro_batches)]

        cuda = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(cuda, enabled=self.noise_seed is not None):
            loss = self.accumulator.gradients(self.model, batches, self.loss, self.begin)
        self.group.sum_tensors([loss], self.device)
        self.unread.append((self.done + 1, loss))
        last = self.done + 1 == self.config.steps
        if not cuda or last or len(self.unread) >= UNREAD:
            self._check_losses()  # before the update, on every process: none waits for another
        self.group.sum_gradients(self.trained, self.device)

        if self.config.optimiser == "adamw":  # LAMB clips by itself
            torch.nn.utils.clip_grad_norm_(self.trained, self.config.clip)
        self.optimiser.step()
        self.done += 1
        tokens = sum(batch["input_ids"].numel() for batch in batches)
        return Step(self.done, loss if cuda else loss.item(), tokens, self.title)

    def begin(self) -> None:
        """Before an attempt at a step: no gradients, and this step's own noise."""
        self.optimiser.zero_grad(set_to_none=True)
        if self.noise_seed is None:
            return
        rank = () if self.group.first else (self.group.rank,)
        _seed_generators(self.device, mixed_seed(self.noise_seed, self.done, *rank))

    def next_batch(self) -> Batch:
        """The next batch.

        Raises:
            ValueError: If there is none.
        """
        batch = next(self.stream, None)
        if batch is None:
            raise ValueError(f"the batches ended after {self.done} of {self.config.steps} steps")
        return batch

    def _check_losses(self) -> None:
        """Looks at the losses since the last look, with one wait for a GPU.

        Raises:
            NonFiniteLossError: If one is NaN or infinite.
        """
        unread, self.unread = self.unread, []
        read_losses(unread, self.config.steps, "lower the learning rate")

    # -- checkpoints ---------------------------------------------------------------------------
    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and plain facts after the steps that are done."""
        key = "" if self.checkpoints is None else self.checkpoints.key
        facts = {"key": key, "rows": self.accumulator.rows, "memory": self.memory or {}}
        return training_state(self.model, {"optimiser": self.optimiser}), facts

    def restore(self) -> None:
        """Goes back to the newest checkpoint of this run, if there is one."""
        stored = None if self.checkpoints is None else self.checkpoints.load()
        if stored is None or self.checkpoints is None:
            return
        if stored.facts.get("key") != self.checkpoints.key:
            log.warning(
                "%s holds a checkpoint of another run (%s); this one starts anew",
                self.checkpoints.folder,
                stored.facts.get("key"),
            )
            self.checkpoints.clear()
            return
        restore_state(stored.tensors, self.model, {"optimiser": self.optimiser})
        self.accumulator.rows = stored.facts["rows"]
        if self.memory is not None:
            self.memory.update(stored.facts["memory"])
        self.done = stored.step
        self.random = {n: value for n, value in stored.tensors.items() if n.startswith("random")}


def save_or_warn(
    checkpoints: Checkpoints,
    step: int,
    tensors: dict[str, Tensor],
    facts: dict[str, Any],
    *,
    warned: bool,
) -> bool:
    """Saves a checkpoint as `Checkpoints.save`; a full disk costs a warning, the first time.

    Returns:
        Whether the run has warned, now or before (`warned`).
    """
    try:
        checkpoints.save(step, tensors, facts)
    except OSError as error:
        if not warned:
            warnings.warn(
                f"no checkpoint after step {step} ({error}); the run goes on, and the last good "
                "checkpoint is kept",
                stacklevel=3,
            )
        return True
    return warned


def _build_optimiser(
    groups: list[dict[str, object]], config: TrainConfig
) -> torch.optim.Optimizer:
    """The optimiser of that configuration."""
    if config.optimiser == "lamb":
        return Lamb(
            cast("Any", groups), lr=config.lr, betas=config.betas, max_grad_norm=config.clip
        )
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


# -- where and how exactly is computed ---------------------------------------------------------
def autocast(batch: Batch, precision: Precision | None) -> torch.autocast:
    """The context in which a batch is computed."""
    return torch.autocast(
        batch["input_ids"].device.type, torch.bfloat16, enabled=precision == "bfloat16"
    )


def read_losses(unread: Sequence[tuple[int, Tensor]], steps: int, remedy: str) -> list[float]:
    """The values of losses, with one wait for a GPU.

    Args:
        unread: The step of each, and the loss, without dimensions.
        steps: Of the run.
        remedy: Ends the error.

    Raises:
        NonFiniteLossError: If one is NaN or infinite; names its step.
    """
    if not unread:
        return []
    values: list[float] = torch.stack([loss for _, loss in unread]).tolist()
    for (step, _), value in zip(unread, values, strict=True):
        if not math.isfinite(value):
            late = "" if step == unread[-1][0] else f" (seen at step {unread[-1][0]})"
            raise NonFiniteLossError(
                f"the loss became {value} at step {step} of {steps}{late}; {remedy}"
            )
    return values


def find_device(name: str) -> torch.device:
    """The device of that name; of `"auto"` the GPU where there is one.

    Raises:
        ValueError: If this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # torch's own: no such name, or not built in
        raise ValueError(f"no device {name!r} on this machine; take 'auto' or 'cpu'") from error


def device_memory(device: torch.device) -> int | None:
    """Bytes that tensors of this process may take on a device; None where it does not say."""
    if device.type == "cuda":
        share = torch.cuda.get_per_process_memory_fraction(device)
        return int(share * torch.cuda.get_device_properties(device).total_memory)
    return (
        os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if device.type == "cpu" else None
    )


def find_precision(name: Precision | None, device: str) -> Precision:
    """The precision of that name on a device; of None bfloat16 on a GPU that computes in it, else
    float32. A device that this machine lacks may be that of another one.

    Raises:
        ValueError: If this machine's GPU does not compute in bfloat16.
    """
    if not device.startswith(("auto", "cuda")) or not torch.cuda.is_available():
        return name or "float32"
    able = torch.cuda.is_bf16_supported(including_emulation=False)
    if name == "bfloat16" and not able:
        raise ValueError(
            "bfloat16 needs a GPU of compute capability 8.0 or more, got "
            f"{torch.cuda.get_device_name()}; take precision='float32'"
        )
    return name or ("bfloat16" if able else "float32")


def move_batches(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """The batches on that device. The host does not wait for a copy to a GPU; the copy itself
    waits there for the work before it, as they share a stream."""
    for batch in batches:
        if device.type == "cuda":
            pinned = {name: tensor.pin_memory() for name, tensor in batch.items()}
            yield {name: tensor.to(device, non_blocking=True) for name, tensor in pinned.items()}
        else:
            yield {name: tensor.to(device) for name, tensor in batch.items()}


def report_steps(steps: int, count: int) -> tuple[int, ...]:
    """At most `count` steps, each about twice the one before, the last at `steps`.

    >>> report_steps(800, 8)
    (6, 12, 25, 50, 100, 200, 400, 800)
    """
    return tuple(sorted({max(1, steps >> halvings) for halvings in range(count)}))


# -- what is not trained -------------------------------------------------------------------------
def freeze(encoder: nn.Module, frozen: Frozen) -> None:
    """Takes the embeddings and the lowest layers (or everything) out of the training.

    Args:
        encoder: A Hugging Face encoder.
        frozen: Lower layers that stay as they are, the embeddings included (0 = the embeddings
            alone); `"all"` = only the head is trained; None = everything is.

    Raises:
        ValueError: See `check_frozen`.
    """
    stacks = check_frozen(encoder, frozen)
    if frozen == "all":
        encoder.requires_grad_(False)
    if not isinstance(frozen, int):
        return
    layers = [{id(p) for p in layer.parameters()} for layer in stacks[0]]
    trained = set().union(*layers[frozen:])
    inside, above = set().union(*layers), False
    for parameter in encoder.parameters():  # in order: embeddings, layers, a last norm
        above = above or id(parameter) in inside
        trains = id(parameter) in trained or (above and id(parameter) not in inside)
        parameter.requires_grad_(trains)


def check_frozen(encoder: nn.Module, frozen: Frozen) -> list[nn.ModuleList]:
    """The encoder's lists of layers, where only some of them are frozen.

    Raises:
        ValueError: If there is no such list, or it has fewer layers than are to be frozen.
    """
    if not isinstance(frozen, int):
        return []
    config: Any = encoder.config
    stacks = [
        module
        for module in encoder.modules()
        if isinstance(module, nn.ModuleList) and len(module) == config.num_hidden_layers
    ]
    if not stacks:
        raise ValueError(
            f"{type(encoder).__name__} has no list of {config.num_hidden_layers} layers (they "
            "share weights, perhaps); use frozen='all' or None"
        )
    if frozen > len(stacks[0]):
        raise ValueError(
            f"frozen={frozen}, but the encoder has {len(stacks[0])} layers; use at most that many"
        )
    return stacks
