"""Dense models: what masks are put on, fine-tuned without a mask once and kept for all of them.

models = DenseModels(start, trainer, folder, ("RTE",), 1)
head = models.provide(recipe, rows, head)          # trains it, or loads what was trained
head, turned = models.open(recipe, kind, names, known)   # a checkpoint that is one already

Their weights lie in `folder`, in files that are named after the hash of all that they depend on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from masksearch.errors import DataError
from masksearch.evaluators.tuning import TaskTraining, rescale
from masksearch.files import short_hash
from masksearch.models.pretrained import Pretrained, open_tuned
from masksearch.training.checkpoints import provide_dense
from masksearch.training.loop import TrainConfig, check_frozen


@dataclass(frozen=True)
class DenseRecipe:
    """Everything that a task's dense model depends on, beside the checkpoint and the trainer.

    Args:
        task: The task's name.
        rows: Hash of its training rows; None = the checkpoint is the dense model, untrained here.
        unit: Mean and deviation by which its labels are learnt standardised; None = as they are.
        seed: Of the run.
        task_seed: Of the head; the same for all tasks, or each task's own.
        order: Seed of the order of the rows.
        noise: Seed of the dropout.
        epochs: Passes over the rows.
        steps: Optimiser steps of all epochs.
        rate: Peak learning rate.
        dropout: Probability for hidden states and attention weights; None = as configured.
        centred: Whether a head that could begin at 0 begins at the mean of the labels.
    """

    task: str
    rows: str | None
    unit: tuple[float, float] | None
    seed: int
    task_seed: int
    order: int
    noise: int
    epochs: int
    steps: int
    rate: float
    dropout: float | None
    centred: bool = False


@dataclass(frozen=True)
class DenseModels:
    """The dense models of a checkpoint, each made once for every mask, search and process.

    Args:
        start: The checkpoint.
        trainer: Fine-tunes it.
        folder: Where dense models and their scores are kept.
        tasks: The tasks that they are asked for.
        seeds: How many of each task.
    """

    start: Pretrained
    trainer: TaskTraining
    folder: Path
    tasks: tuple[str, ...]
    seeds: int

    def provide(self, recipe: DenseRecipe, rows: Any, head: nn.Module) -> nn.Module:
        """The dense model: the kept one, fine-tuned where there is none yet.

        Args:
            recipe: How it is fine-tuned.
            rows: The training rows.
            head: What becomes the dense model: the checkpoint under a new head; changed in place.

        Raises:
            DataError: If more layers are to be frozen than there are.
            SearchError: If the folder cannot be written.
        """
        trainer, config = self.trainer, TrainConfig(recipe.steps, recipe.rate)
        check_frozen(head.get_submodule("encoder"), trainer.frozen)
        title = f"dense model of {recipe.task}, seed {recipe.seed}"
        finetune = partial(
            trainer.fit, head, rows, config, order=recipe.order, noise=recipe.noise, title=title
        )
        provide_dense(head, self.path(recipe, head), self.key(recipe, head), finetune)
        return head

    def open(
        self, recipe: DenseRecipe, kind: str, names: Sequence[str] | None, known: Sequence[str]
    ) -> tuple[nn.Module, dict[int, str]]:
        """The checkpoint that was fine-tuned already, and its two classes by its own numbers, as
        if they stood the other way round (none = they cannot).

        Args:
            recipe: Of the one task.
            kind: Which head is needed, a name of `masksearch.models.pretrained.KINDS`.
            names: The task's classes; see `open_tuned`.
            known: The same by other names.

        Raises:
            DataError: If several tasks or seeds ask for it, or its head is missing or does not
                fit the task.
        """
        location = self.start.locate()
        if len(self.tasks) > 1 or self.seeds > 1:
            raise DataError(
                f"{location} is fine-tuned already, one model of one task, and asked for are "
                f"finetune_seeds={self.seeds} of {', '.join(self.tasks)}; give one task and seed, "
                "or a pre-trained checkpoint, whose dense models are fine-tuned here"
            )
        head = open_tuned(location, kind, names, known, dropout=recipe.dropout)
        turned = dict[int, str]()
        if names and len(names) == 2:
            turned = dict(sorted(zip(head.order or (0, 1), names[::-1], strict=True)))
        return rescale(head, recipe.unit, inverse=True).to(self.trainer.device), turned

    def path(self, recipe: DenseRecipe, head: nn.Module) -> Path:
        """The file of the weights, named after the hash of what they depend on."""
        stem = f"{recipe.task}-{self.key(recipe, head)}"
        if recipe.rows is None:
            stem = short_hash("tuned-1", self.start.digest, *map(repr, recipe.unit or ()))
        return self.folder / f"{stem}.safetensors"

    def key(self, recipe: DenseRecipe, head: nn.Module) -> str:
        """Hash of everything that the weights of a dense model depend on."""
        shapes = {n: list(part.shape) for n, part in head.named_parameters()}
        trainer = self.trainer
        settings: dict[str, object] = {"epochs": recipe.epochs, "finetune_lr": recipe.rate}
        settings |= {"finetune_batch": trainer.batch, "frozen": trainer.frozen}
        settings |= {"precision": trainer.how.precision, "dropout": recipe.dropout}
        if recipe.centred:  # other keys stay as they were
            settings["centred"] = True
        parts = [self.start.digest, recipe.rows, shapes, settings]
        return short_hash("dense-1", repr(parts), str(recipe.seed), str(recipe.task_seed))
