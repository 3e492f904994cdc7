"""One set of weights trained under many masks: the super-net and its training.

    for step in train_supernet(source, draws, SuperNetConfig(), checkpoints=Checkpoints(folder)):
        print(step.number, step.loss)
    HeldOut(source.model, shape, source.held_out).losses(tables)      # forward passes only

The weights are trained with masks that a space draws, several in every batch, and judge any mask
afterwards. The ranking is that of the weights at hand: it says which masks this model can use,
not which would have trained a better one (Yu et al., arXiv 1902.08142, find little correlation
on recurrent cells), which is why the best are trained for real.
"""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice

import optuna
import torch
from optuna.samplers import RandomSampler
from optuna.trial import BaseTrial
from torch import Tensor, nn

from masksearch.attention.attach import attach, detach
from masksearch.attention.call import AttentionCall
from masksearch.contracts import Batch, Differentiable, Shape, mixed_seed
from masksearch.errors import LengthError, MaskSearchError, SearchError
from masksearch.files import short_hash
from masksearch.masks.core import DenseMask, Mask
from masksearch.masks.lower import lower
from masksearch.masks.measure import table_fingerprint
from masksearch.study.store import quiet
from masksearch.training.checkpoints import Checkpoints
from masksearch.training.loop import Step, TrainConfig, model_loss, train

Space = Callable[[BaseTrial], Mask]
ATTEMPTS = 20  # draws of a space that may fail in a row
SAMPLE = 32  # draws that stand for a space in a digest
DRAWS = 31  # stream of random numbers


class SpaceDraws:
    """Masks drawn from a space at random, each a function of the seed and its number alone.

    A draw that fails (the space raises a `MaskSearchError` or a `ValueError`, returns no mask, or
    one that does not fit the shape) is made again, as a search passes over such a trial.

    Args:
        space: A pure function of an Optuna trial that returns a mask.
        shape: What masks are lowered to.
        seed: Seed of all draws.
    """

    def __init__(self, space: Space, shape: Shape, seed: int) -> None:
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
            except (MaskSearchError, ValueError) as error:
                reasons.append(f"{type(error).__name__}: {error}")
        raise SearchError(
            f"the space gave no mask that fits {self.shape} in {ATTEMPTS} draws; the first "
            f"failed with {reasons[0]}"
        )

    def draw(self, number: int, attempt: int) -> Mask:
        """One attempt at a draw."""
        seed = mixed_seed(self.seed, DRAWS, number, attempt) % 2**32
        with quiet():
            mask = self.space(optuna.create_study(sampler=RandomSampler(seed=seed)).ask())
        if not isinstance(mask, Mask):
            raise SearchError(
                f"the space returned {type(mask).__name__}, not a Mask; end it with for example "
                "`return masks.window(reach)`"
            )
        return mask

    def digest(self) -> str:
        """Hash of the space: its source, and the first masks that it draws.

        The masks tell apart what one source makes in two surroundings (other closures, other
        globals, partial applications).
        """
        prints = [table_fingerprint(self.table(number)) for number in range(SAMPLE)]
        return hashlib.sha256(
            "|".join([hash_space_source(self.space), *prints]).encode()
        ).hexdigest()


class MaskBank(nn.Module):
    """Hard masks on a batch, each row under one of them; `attach` puts it on a model as gates.

    It has no weights: what lies in it is set with `put` before every forward pass.

    Args:
        shape: Of the masks.
    """

    def __init__(self, shape: Shape) -> None:
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


MASK_OF_ROW = "mask_of_row"  # in a batch: which mask of the step each row is under
UNSCORED = -100  # label of a token that does not count
TOKENS = 2048  # positions of a forward pass


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
    checkpoint_seconds: float = 60.0,
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
        checkpoint_seconds: Wall time between two checkpoints.
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
        raise SearchError(
            "a super-net is trained on text, and these batches are the rows of tasks; give the "
            "evaluator a corpus, or use another strategy (dam searches on fine-tuned models)"
        )
    attach(source.model, bank, inputs={n: t[:1] for n, t in first.items() if n != "labels"})

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

    try:
        yield from train(
            source.model,
            batches,
            config.train_config,
            loss,
            checkpoints=checkpoints,
            checkpoint_seconds=checkpoint_seconds,
            key=short_hash(identity, repr(asdict(config))),
        )
    finally:
        detach(source.model)


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
        self, model: nn.Module, shape: Shape, batches: Sequence[Batch], tokens: int = TOKENS
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
        attach(self.model, bank, inputs=inputs)
        found = []
        try:
            with torch.no_grad():
                for table in tables:
                    bank.put(table[None], torch.zeros(1, dtype=torch.int64))
                    sums = [self.model(**batch).loss.item() * count for batch, count in scored]
                    found.append(math.fsum(sums) / sum(counts))
        finally:
            detach(self.model)
        return found


def hash_space_source(space: Callable[..., Mask]) -> str:
    """Hash of what a space does: its source, or its byte code where there is no source."""
    text = getattr(space, "masksearch_source", None)
    if text is None:
        try:
            text = inspect.getsource(space)
        except (OSError, TypeError):
            code = getattr(space, "__code__", None)
            text = repr((code.co_code, code.co_consts)) if code else type(space).__qualname__
    return hashlib.sha256(text.encode()).hexdigest()[:16]
