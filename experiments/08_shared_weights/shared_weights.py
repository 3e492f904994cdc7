"""Judges masks by forward passes of one super-net that was trained with masks of a space.

    shared = SharedWeights(ms.PlantedEvaluator(), space, steps=500)
    shared.judge([masks.star(), masks.window(3)])  # trains the super-net, once; then milliseconds

The weights are trained with masks that a space draws, several in every batch, and judge any mask
afterwards. The ranking is that of the weights at hand: it says which masks this model can use,
not which would have trained a better one (Yu et al., arXiv 1902.08142, find little correlation
on recurrent cells), which is why the best are trained for real.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, replace
from functools import cached_property
from itertools import chain, islice
from operator import attrgetter
from pathlib import Path
from typing import Any, Self

import filelock
import optuna
import torch
from optuna.samplers import RandomSampler
from optuna.trial import BaseTrial
from torch import Tensor, nn

import masksearch as ms
from masksearch import masks
from masksearch.attention.call import AttentionCall
from masksearch.contracts import (
    Batch,
    Differentiable,
    Evaluator,
    Objective,
    Report,
    Split,
    mixed_seed,
)
from masksearch.errors import LengthError
from masksearch.files import cache_folder, short_hash
from masksearch.masks.core import DenseMask
from masksearch.masks.lower import lower
from masksearch.masks.measure import fingerprint
from masksearch.study.store import quiet
from masksearch.training.checkpoints import Checkpoints, copy_weights
from masksearch.training.loop import Step, TrainConfig, model_loss, train

Space = Callable[[BaseTrial], ms.Mask]
ATTEMPTS = 20  # draws of a space that may fail in a row
SAMPLE = 32  # draws that stand for a space in a digest
DRAWS, ADAPTATION = 31, 32  # streams of random numbers
MASK_OF_ROW = "mask_of_row"  # in a batch: which mask of the step each row is under
UNSCORED = -100  # label of a token that does not count
TOKENS = 2048  # positions of a forward pass
DEFAULT_STEPS, DEFAULT_LR = 1000, 2e-3  # where the wrapped evaluator says nothing
GENTLE = 0.25  # of the super-net's rate: the rate of an adaptation
REPORTS = 50  # of a super-net's training
WORST = 10.0  # nats; reference for the hypervolume where the wrapped evaluator has no loss


# -- training ----------------------------------------------------------------------------------


class SpaceDraws:
    """Masks drawn from a space at random, each a function of the seed and its number alone.

    A draw that fails (the space raises a `MaskSearchError` or a `ValueError`, returns no mask, or
    one that does not fit the shape) is made again, as a search passes over such a trial.

    Args:
        space: A pure function of an Optuna trial that returns a mask.
        shape: What masks are lowered to.
        seed: Seed of all draws.
    """

    def __init__(self, space: Space, shape: ms.Shape, seed: int) -> None:
        self.space, self.shape, self.seed = space, shape, seed

    def table(self, number: int) -> DenseMask:
        """The lowered mask of a draw: bool `[layers, heads, n, n]`.

        Raises:
            SearchError: If it fails 20 times; gives the first reason.
        """
        reasons = []
        for attempt in range(ATTEMPTS):
            try:
                return lower(self.draw(number, attempt), self.shape)
            except (ms.errors.MaskSearchError, ValueError) as error:
                reasons.append(f"{type(error).__name__}: {error}")
        raise ms.errors.SearchError(
            f"the space gave no mask that fits {self.shape} in {ATTEMPTS} draws; the first "
            f"failed with {reasons[0]}"
        )

    def draw(self, number: int, attempt: int) -> ms.Mask:
        """One attempt at a draw."""
        seed = mixed_seed(self.seed, DRAWS, number, attempt) % 2**32
        with quiet():
            mask = self.space(optuna.create_study(sampler=RandomSampler(seed=seed)).ask())
        if not isinstance(mask, ms.Mask):
            raise ms.errors.SearchError(
                f"the space returned {type(mask).__name__}, not a Mask; end it with for example "
                "`return masks.window(reach)`"
            )
        return mask

    def digest(self) -> str:
        """Hash of the space: its source, and the first masks that it draws.

        The masks tell apart what one source makes in two surroundings (other closures, other
        globals, partial applications).
        """
        tables = (masks.table(self.table(number)) for number in range(SAMPLE))
        prints = [fingerprint(table, self.shape) for table in tables]
        return hashlib.sha256(
            "|".join([hash_space_source(self.space), *prints]).encode()
        ).hexdigest()


class MaskBank(nn.Module):
    """Hard masks on a batch, each row under one of them; `attach` puts it on a model as gates.

    It has no weights: what lies in it is set with `put` before every forward pass.

    Args:
        shape: Of the masks.
    """

    def __init__(self, shape: ms.Shape) -> None:
        super().__init__()
        self.length, self.layers, self.heads = shape.length, shape.layers, shape.heads
        self.tables: Tensor | None = None
        self.rows: Tensor | None = None

    def put(self, tables: Tensor, rows: Tensor) -> None:
        """Sets the masks of the next forward passes.

        Args:
            tables: bool `[masks, layers, heads, n, n]`.
            rows: int64 `[batch]`, the mask of each row.
        """
        self.tables, self.rows = tables, rows

    def draw(self) -> None:
        """Nothing is sampled."""

    def attend(self, layer: int, call: AttentionCall) -> Tensor:
        """One layer's attention, every row under its mask; see `GateBank.attend`.

        Sequences shorter than the masks use their first positions. A row whose kept keys are all
        invisible (a padded query) has the output 0.

        Raises:
            LengthError: If there are more keys than the masks have.
            ValueError: If the batch has another number of rows than was set.
            RuntimeError: If no masks are set.
        """
        if self.tables is None or self.rows is None:
            raise RuntimeError("no masks are set; call put(tables, rows) before the model")
        queries, keys = call.query.shape[-2], call.key.shape[-2]
        if keys > self.length:
            raise LengthError(
                f"these masks hold {self.length} positions, got {keys} keys; searched masks do "
                "not stretch: use batches of that length"
            )
        kept = self.tables[:, layer, :, keys - queries : keys, :keys].to(call.query.device)
        if len(kept) > 1:
            if len(self.rows) != len(call.query):
                raise ValueError(f"masks are set for {len(self.rows)} rows, not {len(call.query)}")
            kept = kept.index_select(0, self.rows.to(call.query.device))
        if call.visible is not None:
            kept = kept & call.visible
        return replace(call, visible=kept).attend()


def share_rows(rows: int, masks: int) -> Tensor:
    """Which mask each row of a batch gets, as evenly as can be: int64 `[rows]`.

    >>> share_rows(5, 2).tolist()
    [0, 0, 0, 1, 1]
    """
    return torch.arange(rows) * masks // rows


@dataclass(frozen=True)
class SuperNetConfig:
    """How the shared weights are trained: AdamW as in `TrainConfig`, under drawn masks."""

    steps: int = 2000  # optimiser steps
    masks_per_step: int = 4  # masks drawn for a batch; its rows are shared out among them
    sandwich: bool = False  # the dense mask is one mask more in every batch
    lr: float = 2e-3  # peak learning rate

    def __post_init__(self) -> None:
        if self.masks_per_step < 1:
            raise ValueError(f"masks_per_step must be at least 1, got {self.masks_per_step}")
        _ = self.train_config  # checks steps and lr

    @property
    def train_config(self) -> TrainConfig:
        """The optimiser's part."""
        return TrainConfig(steps=self.steps, lr=self.lr)


def train_supernet(
    source: Differentiable,
    draws: SpaceDraws,
    config: SuperNetConfig,
    *,
    checkpoints: Checkpoints | None = None,
    identity: str = "",
) -> Iterator[Step]:
    """Trains a model in place under masks that change from step to step and row to row.

    A run that is killed goes on from its checkpoint and ends with the same weights, bit for bit
    on one machine, given the same batches from their beginning.

    Args:
        source: Model and batches, whose `input_ids` are `[batch, length]`.
        draws: Where the masks come from: step s takes the numbers from s * masks_per_step on.
        config: Steps, masks and rate.
        checkpoints: Where the state is kept.
        identity: Names what is trained; a checkpoint of another name is passed over.

    Yields:
        One `Step` per optimiser step; its loss is the mean over the masks of the batch.

    Raises:
        NonFiniteLossError: If a loss is NaN or infinite.
        ValueError: If a batch has fewer rows than masks, or the batches end too early.

    Reference: Guo et al., Single Path One-Shot, arXiv 1904.00420 (uniform sampling); Yu & Huang,
        arXiv 1903.05134 (the sandwich rule: the largest network is in every step).
    """
    bank = MaskBank(draws.shape)
    first = next(source.batches, None)
    if first is None:
        raise ValueError("a super-net needs batches to train on, got none")
    if "task" in first:
        raise ms.errors.SearchError(
            "a super-net is trained on text, and these batches are the rows of tasks; give the "
            "evaluator a corpus, or use another strategy (dam searches on fine-tuned models)"
        )
    ms.attach(source.model, bank, inputs={n: t[:1] for n, t in first.items() if n != "labels"})

    def batches(start: int) -> Iterator[Batch]:
        """The batches from step `start` on; each row says which mask of the step it is under."""
        for step, batch in enumerate(islice(chain([first], source.batches), start, None), start):
            tables = step_masks(draws, config, step)
            rows = len(batch["input_ids"])
            if len(tables) > rows:
                raise ValueError(
                    f"a batch of {rows} rows cannot carry {len(tables)} masks; lower "
                    "masks_per_step or raise the evaluator's batch"
                )
            bank.tables = tables
            yield batch | {MASK_OF_ROW: share_rows(rows, len(tables))}

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        """The loss of some rows of a batch, each under its mask."""
        bank.rows = batch[MASK_OF_ROW]
        return model_loss(model, {n: part for n, part in batch.items() if n != MASK_OF_ROW})

    key = short_hash(identity, repr(asdict(config)))
    try:
        yield from train(
            source.model,
            batches,
            config.train_config,
            loss,
            checkpoints=checkpoints and replace(checkpoints, key=key),
        )
    finally:
        ms.detach(source.model)


def step_masks(draws: SpaceDraws, config: SuperNetConfig, step: int) -> Tensor:
    """The masks of one step: bool `[masks, layers, heads, n, n]`."""
    first = step * config.masks_per_step
    tables = [draws.table(first + index) for index in range(config.masks_per_step)]
    return torch.stack([*tables, torch.ones_like(tables[0])] if config.sandwich else tables)


class HeldOut:
    """Judges masks on fixed batches by forward passes, one mask at a time.

    The model is used, never changed; it is in eval mode afterwards and without the masks.

    Args:
        model: The super-net.
        shape: Of the masks.
        batches: Held-out batches.
        tokens: Largest number of positions in a forward pass, about: the batches are put together
            (where their shapes agree) and cut into passes of that size. A few thousand stay in a
            CPU's cache; a GPU wants a hundred times as many.
    """

    def __init__(
        self, model: nn.Module, shape: ms.Shape, batches: Sequence[Batch], tokens: int = TOKENS
    ) -> None:
        if not batches:
            raise ValueError("masks are judged on held-out batches, got none")
        self.model, self.shape, self.batches = model, shape, list(batches)
        shapes = [{name: part.shape[1:] for name, part in batch.items()} for batch in batches]
        if all(each == shapes[0] for each in shapes):
            batches = [{name: torch.cat([b[name] for b in batches]) for name in shapes[0]}]
        rows = max(1, tokens // shape.length)
        self.passes = [
            {name: part[start : start + rows] for name, part in batch.items()}
            for batch in batches
            for start in range(0, len(batch["input_ids"]), rows)
        ]

    def losses(self, tables: Sequence[DenseMask]) -> list[float]:
        """Held-out loss of each mask: the mean over all scored tokens of all batches.

        Args:
            tables: bool `[layers, heads, n, n]` each.

        Returns:
            In nats (the model's own unit), in the order given.
        """
        bank = MaskBank(self.shape)
        inputs = {name: t[:1] for name, t in self.passes[0].items() if name != "labels"}
        counts = [int((batch["labels"] != UNSCORED).sum()) for batch in self.passes]
        scored = [(b, count) for b, count in zip(self.passes, counts, strict=True) if count]
        self.model.eval()
        ms.attach(self.model, bank, inputs=inputs)
        found = []
        try:
            with torch.no_grad():
                for table in tables:
                    bank.put(table[None], torch.zeros(1, dtype=torch.int64))
                    sums = [self.model(**batch).loss.item() * count for batch, count in scored]
                    found.append(math.fsum(sums) / sum(counts))
        finally:
            ms.detach(self.model)
        return found


def hash_space_source(space: Callable[..., ms.Mask]) -> str:
    """Hash of what a space does: its source, or its byte code where there is no source."""
    text = getattr(space, "masksearch_source", None)
    if text is None:
        try:
            text = inspect.getsource(space)
        except (OSError, TypeError):
            code = getattr(space, "__code__", None)
            text = repr((code.co_code, code.co_consts)) if code else type(space).__qualname__
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# -- the evaluator -----------------------------------------------------------------------------


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

    shape, split = (property(attrgetter(f"evaluator.{name}")) for name in ("shape", "split"))

    def __post_init__(self) -> None:
        if not self.evaluator.offers("differentiable"):
            raise ms.errors.SearchError(
                f"shared weights need an evaluator with differentiable(seed), "
                f"{type(self.evaluator).__name__} has none; use for example a PlantedEvaluator "
                "or an MlmEvaluator"
            )
        if self.evaluator.weights_frozen:
            raise ms.errors.SearchError(
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

    def on(self, split: Split) -> Self:
        """The same super-net, judging by other held-out rows."""
        made = self.evaluator.on(split)
        return self if made is self.evaluator else replace(self, evaluator=made)

    @property
    def trained(self) -> Evaluator:
        """The wrapped evaluator as far as its training goes, which no split changes."""
        one = self.evaluator
        return one if one.split is None else one.on("all")

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
            running = Checkpoints(self.place, "training", seconds=self.checkpoint_seconds)
            steps = self.config.steps
            for step in train_supernet(
                source,
                self.draws,
                self.config,
                checkpoints=running,
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
            raise ms.errors.SearchError(
                f"the super-net in {self.place} cannot be read; give another folder"
            )
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
    def judge(self, masks: Sequence[ms.Mask], seed: int = 0) -> list[dict[str, float]]:
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
        ms.attach(model, bank, inputs=inputs)
        for _ in train(model, iter(batches), self.adapted):
            pass
        ms.detach(model)
        return HeldOut(model, self.shape, held_out.batches, self.tokens).losses([table])[0]

    def __call__(self, mask: ms.Mask, *, seed: int, workdir: Path) -> Iterator[Report]:
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
