"""Judges masks by forward passes of one super-net that was trained with masks of a space.

shared = SharedWeights(PlantedEvaluator(), space, steps=500)
shared.judge([masks.star(), masks.window(3)])     # trains the super-net, once; then milliseconds
"""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Self

import filelock
import torch
from torch import Tensor

from masksearch.attention.attach import attach, detach
from masksearch.contracts import (
    Batch,
    Differentiable,
    Evaluator,
    Half,
    Objective,
    Report,
    mixed_seed,
)
from masksearch.errors import SearchError
from masksearch.evaluators.supernet import (
    TOKENS,
    HeldOut,
    MaskBank,
    Space,
    SpaceDraws,
    SuperNetConfig,
    train_supernet,
)
from masksearch.evaluators.wrappers import inner
from masksearch.files import cache_folder
from masksearch.masks.core import DenseMask, Mask
from masksearch.masks.lower import lower
from masksearch.training.checkpoints import Checkpoints, copy_weights
from masksearch.training.loop import TrainConfig, train

ADAPTATION = 32  # stream of random numbers
DEFAULT_STEPS, DEFAULT_LR = 1000, 2e-3  # where the wrapped evaluator says nothing
GENTLE = 0.25  # of the super-net's rate: the rate of an adaptation
REPORTS = 50  # of a super-net's training
WORST = 10.0  # nats; reference for the hypervolume where the wrapped evaluator has no loss


@dataclass(frozen=True)
class SharedWeights(Evaluator):
    """An evaluator that trains one super-net and judges any mask with its weights.

    The super-net is the wrapped evaluator's model, trained with masks that the space draws; the
    rows of a batch are shared out among several. Then the loss of a mask is that of the shared
    weights under it on fixed held-out batches: the same masks and weights give the same figures,
    at a small part of the cost of a training. What it ranks by is which masks the shared weights
    can use. It is a filter before trainings, not a score: experiments/08_shared_weights measures
    how far its order is that of trained masks.

    The super-net is trained once, when it is first needed, and kept in `folder` under a key of
    everything that it depends on; other processes wait for it and find it there.

    Args:
        evaluator: Any evaluator with `differentiable(seed)`: model, batches, held-out batches.
        space: Draws the masks that the super-net is trained with.
        steps: Optimiser steps of the super-net; None = as many as the wrapped evaluator trains one
            mask for (`Differentiable.steps`), or 1,000 where it does not say.
        masks_per_step: Masks in a batch; its rows are shared out among them.
        sandwich: Whether every batch also carries the dense mask.
        seed: Seed of the super-net's weights, data and masks.
        lr: Its peak learning rate; None = the wrapped evaluator's, where it has one.
        adapt_steps: Steps that a copy of the weights is trained under a mask before it is judged
            (0 = none). The data of these steps is all that the seed of an evaluation decides.
        adapt_lr: Peak learning rate of these steps; None = a quarter of the super-net's.
        held_out_sequences: Largest number of held-out sequences; None = all.
        tokens: Positions of a forward pass, about (see `HeldOut`); no part of the protocol.
        folder: Where the super-net is kept; default `$MASKSEARCH_CACHE/supernets` or
            `~/.cache/masksearch/supernets`.
        checkpoint_seconds: Wall time between two checkpoints of its training.

    Raises:
        SearchError: If the evaluator has no `differentiable`, or the space gives no mask.
    """

    evaluator: Evaluator
    space: Space
    _: KW_ONLY
    steps: int | None = None
    masks_per_step: int = 4
    sandwich: bool = False
    seed: int = 0
    lr: float | None = None
    adapt_steps: int = 0
    adapt_lr: float | None = None
    held_out_sequences: int | None = 256
    tokens: int = TOKENS
    folder: Path | None = None
    checkpoint_seconds: float = 60.0

    shape, half = inner("shape"), inner("half")

    def __post_init__(self) -> None:
        if not self.evaluator.offers("differentiable"):
            raise SearchError(
                f"shared weights need an evaluator with differentiable(seed), "
                f"{type(self.evaluator).__name__} has none; use for example a PlantedEvaluator "
                "or an MlmEvaluator"
            )
        if self.evaluator.weights_frozen:
            raise SearchError(
                f"shared weights are trained on text, and the weights of this "
                f"{type(self.evaluator).__name__} are frozen; give it a corpus to train on, or "
                "use another strategy (dam searches on trained models)"
            )
        steps = 1 if self.steps is None else self.steps
        SuperNetConfig(steps, self.masks_per_step, self.sandwich, self.lr or DEFAULT_LR)
        for name, least in (("adapt_steps", 0), ("held_out_sequences", 1), ("tokens", 1)):
            if (value := getattr(self, name)) is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if self.folder is not None:  # workers may run in another folder
            object.__setattr__(self, "folder", Path(self.folder).expanduser().resolve())

    def __getstate__(self) -> dict[str, Any]:
        """Without the model: a process finds the super-net in the folder."""
        return {name: value for name, value in self.__dict__.items() if name != "loaded"}

    def on(self, half: Half) -> Self:
        """The same super-net, judging by other held-out rows."""
        made = self.evaluator.on(half)
        return self if made is self.evaluator else replace(self, evaluator=made)

    @property
    def trained(self) -> Evaluator:
        """The wrapped evaluator as far as its training goes, which no half changes."""
        one = self.evaluator
        return one if one.half is None else one.on("all")

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """The held-out loss under the shared weights, and the mask's sparsity."""
        own = [o for o in self.evaluator.objectives if o.name == "loss" and o.goal == "min"]
        loss = own[0] if own else Objective("loss", "min", WORST)
        return (loss, Objective("sparsity", "max", 0.0))

    @cached_property
    def begun(self) -> tuple[str, SuperNetConfig]:
        """Hash of what the training starts from, and how it goes on."""
        source = self.evaluator.differentiable(self.seed)
        steps = source.steps or DEFAULT_STEPS if self.steps is None else self.steps
        lr = self.lr or source.lr or DEFAULT_LR
        return hash_start(source), SuperNetConfig(steps, self.masks_per_step, self.sandwich, lr)

    @property
    def config(self) -> SuperNetConfig:
        """How the super-net is trained."""
        return self.begun[1]

    @property
    def draws(self) -> SpaceDraws:
        """The masks of the training."""
        return SpaceDraws(self.space, self.shape, self.seed)

    @cached_property
    def key(self) -> str:
        """Short hash of everything that the shared weights depend on."""
        parts = (
            "supernet-1",
            self.trained.protocol,
            self.begun[0],
            {name: value for name, value in vars(self.shape).items() if name != "tokens"},
            self.draws.digest(),
            asdict(self.config),
            self.seed,
        )
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    @cached_property
    def protocol(self) -> str:
        """Short hash of everything that a report depends on, beside mask and seed."""
        adaptation = (self.adapt_steps, self.adapted.lr) if self.adapt_steps else ()
        parts: tuple[object, ...] = ("shared-1", self.key, adaptation, self.held_out_sequences)
        if self.evaluator.protocol != self.trained.protocol:
            parts += (self.evaluator.protocol,)
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    @property
    def adapted(self) -> TrainConfig:
        """Settings of the steps under one mask."""
        return TrainConfig(max(1, self.adapt_steps), self.adapt_lr or GENTLE * self.config.lr)

    @property
    def place(self) -> Path:
        """The super-net's own folder."""
        return (self.folder or cache_folder(None) / "supernets") / self.key

    # -- the super-net --------------------------------------------------------------------------
    def prepare(self) -> Iterator[Report]:
        """Trains the super-net, if nobody has, and yields reports of it.

        One process trains, others wait; a training that was killed goes on. What is yielded is
        `{"supernet_loss": mean training loss since the last report}`.

        Raises:
            NonFiniteLossError, ValueError: As `train_supernet`.
            OSError: If the folder cannot be written.
        """
        finished = Checkpoints(self.place, "weights")
        if finished.load() is not None:
            return
        self.place.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(self.place / ".lock"):
            if finished.load() is not None:
                return
            source = self.evaluator.differentiable(self.seed)
            started, losses = time.monotonic(), list[float]()
            running, steps = Checkpoints(self.place, "training"), self.config.steps
            for step in train_supernet(
                source,
                self.draws,
                self.config,
                checkpoints=running,
                checkpoint_seconds=self.checkpoint_seconds,
                identity=self.key,
            ):
                losses.append(step.loss)
                if step.number == steps or step.number % max(1, steps // REPORTS) == 0:
                    mean = sum(losses) / len(losses)
                    losses.clear()
                    yield Report(step.number, {"supernet_loss": mean})
            facts = {
                "key": self.key,
                "evaluator": self.evaluator.protocol,
                "config": asdict(self.config),
                "seed": self.seed,
                "seconds": time.monotonic() - started,  # since the last start
            }
            finished.save(steps, copy_weights(source.model), facts)
            running.clear()

    @cached_property
    def loaded(self) -> tuple[HeldOut, Mapping[str, Tensor]]:
        """The super-net at work, and a copy of its weights."""
        for _ in self.prepare():
            pass
        found = Checkpoints(self.place, "weights").load()
        if found is None:
            raise SearchError(f"the super-net in {self.place} cannot be read; give another folder")
        source = self.evaluator.differentiable(self.seed)
        source.model.load_state_dict(found.tensors)
        batches = first_sequences(source.held_out, self.held_out_sequences)
        return HeldOut(source.model, self.shape, batches, self.tokens), found.tensors

    def packed(self) -> Self:
        """The same with the wrapped evaluator's data in memory. The super-net stays in its folder,
        which workers on other machines must see, or they train it again."""
        made = self.evaluator.packed()
        return self if made is self.evaluator else replace(self, evaluator=made)

    def data_hashes(self) -> Mapping[str, str]:
        """The wrapped evaluator's."""
        return self.evaluator.data_hashes()

    # -- judging --------------------------------------------------------------------------------
    def judge(self, masks: Sequence[Mask], seed: int = 0) -> list[dict[str, float]]:
        """Judges many masks at once.

        Args:
            masks: Masks that fit `shape`.
            seed: Decides the data of an adaptation; without one it changes nothing.

        Returns:
            For each mask `{"loss": held-out loss in the model's unit (nats a token)}`, and with
            an adaptation also `"shared_loss"`, the loss before it.

        Raises:
            EmptyRowError, HeadCountError, ...: If a mask does not fit, before anything is trained.
        """
        tables = [lower(mask, self.shape) for mask in masks]  # refuses before any training
        before = self.loaded[0].losses(tables)
        if not self.adapt_steps:
            return [{"loss": loss} for loss in before]
        source = self.evaluator.differentiable(mixed_seed(self.seed, seed, ADAPTATION))
        batches = list(islice(source.batches, self.adapt_steps))  # the same for every mask
        return [
            {"loss": self.adapted_loss(table, batches), "shared_loss": loss}
            for table, loss in zip(tables, before, strict=True)
        ]

    def adapted_loss(self, table: DenseMask, batches: list[Batch]) -> float:
        """Held-out loss of a copy of the weights after a few steps under the mask."""
        held_out = self.loaded[0]
        model = copy.deepcopy(held_out.model)
        bank = MaskBank(self.shape)
        bank.put(table[None], torch.zeros(1, dtype=torch.int64))
        inputs = {name: t[:1] for name, t in batches[0].items() if name != "labels"}
        attach(model, bank, inputs=inputs)
        for _ in train(model, iter(batches), self.adapted):
            pass
        detach(model)
        return HeldOut(model, self.shape, held_out.batches, self.tokens).losses([table])[0]

    def __call__(self, mask: Mask, *, seed: int, workdir: Path) -> Iterator[Report]:
        """Yields one report; its step is the number of steps under this mask.

        Args:
            mask: Any mask that fits `shape`.
            seed: As in `judge`: without an adaptation every seed gives the same figures. What
                they vary by is shown by super-nets of several seeds (`replace(self, seed=1)`).
            workdir: Not used; the super-net lies in `folder`.
        """
        (values,) = self.judge([mask], seed)
        yield Report(self.adapt_steps, values)


def hash_start(source: Differentiable) -> str:
    """Hash of what a training starts from: the first batch, the weights' shapes and spread.

    An evaluator's protocol need not hold what only concerns its `differentiable`. Single weights
    are left out: their last bits may differ between processors.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(next(source.batches).items()):
        plain = tensor.cpu().contiguous()
        digest.update(f"{name} {tuple(plain.shape)} {plain.dtype}".encode())
        digest.update(plain.numpy().tobytes())
    weights = dict(source.model.named_parameters())
    digest.update(repr([(name, tuple(value.shape)) for name, value in weights.items()]).encode())
    matrices = [value.detach().flatten().double() for value in weights.values() if value.dim() > 1]
    digest.update(f"{torch.cat(matrices).std():.3g}".encode() if matrices else b"")
    return digest.hexdigest()


def first_sequences(batches: Sequence[Batch], sequences: int | None) -> list[Batch]:
    """The first sequences of some batches."""
    if sequences is None:
        return list(batches)
    kept, left = list[Batch](), sequences
    for batch in batches:
        kept.append({name: tensor[:left] for name, tensor in batch.items()})
        left = max(0, left - len(batch["input_ids"]))
    return [batch for batch in kept if len(batch["input_ids"])]
