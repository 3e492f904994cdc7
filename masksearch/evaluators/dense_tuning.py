"""Masks on dense models: fine-tuned once for each task and seed, judged as they are or after some
steps, and searched by gates with their weights frozen."""

from __future__ import annotations

import copy
import logging
from abc import ABC
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from masksearch import masks
from masksearch.analysis.pareto import beats_constant
from masksearch.attention.attach import attach
from masksearch.contracts import MAJORITY, Batch, Differentiable, mixed_seed
from masksearch.errors import DataError, SearchError
from masksearch.evaluators.dense_models import FOLDER, hash_batches, hold_lock, provide_dense
from masksearch.evaluators.downstream import (
    DROPOUT,
    LABELS,
    DownstreamEvaluator,
    TaskScores,
    read_scores,
    run_seed,
    training_name,
    write_scores,
)
from masksearch.evaluators.frozen_layers import check_frozen, freeze
from masksearch.evaluators.mlm import autocast
from masksearch.evaluators.pretraining_task import move_batches
from masksearch.evaluators.task_models import (
    TaskModels,
    batches_among,
    deal_rows,
    distance_of_logits,
)
from masksearch.evaluators.token_rows import batches_by_length
from masksearch.files import cache_folder
from masksearch.models.pretrained import TunedHead, open_tuned, tuned_kind
from masksearch.tasks.text.files import short_hash
from masksearch.training.checkpoints import Checkpoints
from masksearch.training.distributed import group
from masksearch.training.loop import TrainConfig

log = logging.getLogger(__name__)


RECOVER, GATES = 27, 28  # streams of random numbers
HELD_OUT = 32  # rows of a batch that is held out of the training of gates


@dataclass(frozen=True)
class DenseTuning(DownstreamEvaluator, ABC):
    """What `FineTuning` does with `adapt` other than `"finetune"`, and for one-shot searches."""

    head_kind: ClassVar[str]  # of `masksearch.models.pretrained.KINDS`

    # -- dense models --------------------------------------------------------------------------
    def dense(self, name: str, seed: int) -> nn.Module:
        """The dense model of a task and seed: the kept one, fine-tuned where there is none yet, or
        the checkpoint itself where it was fine-tuned already.

        Raises:
            DataError: If the checkpoint's head is missing, or does not fit the task.
            SearchError: If the dense model knows no more than a constant answer, so that nothing
                can be compared on it.
        """
        if group().size > 1:
            raise SearchError(
                f"adapt={self.adapt!r} trains in one process, and torchrun has started "
                f"{group().size}; start one, or give adapt='finetune'"
            )
        place, found = cache_folder(self.cache) / FOLDER, self.tuned_head(name)
        if found is not None:
            self.check_learned(found, name, place / short_hash("tuned-1", self.start.digest))
            return found
        head = self.new_head(self.start.encoder(dropout=self.dropout), name, seed)
        check_frozen(head.get_submodule("encoder"), self.frozen)
        key = self.dense_key(head, name, seed)
        path = place / f"{name}-{key}.safetensors"
        order = mixed_seed(self.task_seed(name, seed), self.streams[1])
        config = TrainConfig(steps=self.finetune_steps(name), lr=self.rate("finetune_lr"))

        def finetune(kept: Checkpoints) -> None:
            noise = mixed_seed(seed, DROPOUT)
            title = f"dense model of {name}, seed {seed}"
            self.fit(head, name, config, kept, key, order=order, noise=noise, title=title)

        provide_dense(head, path, key, finetune)
        self.check_learned(head, name, path.with_suffix(""))
        return head

    def provide_models(self, seed: int) -> None:
        """Fine-tunes, or finds, the dense models of a seed, and checks that they have learned.

        Raises:
            DataError, SearchError: See `dense`.
        """
        if self.adapt != "finetune":
            for name in self.downstream:
                for number in range(self.finetune_seeds):
                    self.dense(name, run_seed(seed, number))

    def tuned_head(self, name: str) -> TunedHead | None:
        """The checkpoint with its own head; None where it is only pre-trained."""
        folder = self.start.locate()
        if tuned_kind(folder) is None:
            return None
        if len(self.downstream) > 1 or self.finetune_seeds > 1:
            several = ", ".join(self.downstream)
            raise DataError(
                f"{folder} is fine-tuned already, one model of one task, and asked for are "
                f"finetune_seeds={self.finetune_seeds} of {several}; give one task and seed, or a "
                "pre-trained checkpoint, whose dense models are fine-tuned here"
            )
        found = open_tuned(folder, self.head_kind, self.class_names(name))
        return found.to(self.place)

    @property
    def seedless(self) -> bool:
        """Whether every seed gives a mask the same scores: a fine-tuned folder that is judged as
        it is."""
        return (
            self.weights is not None
            and self.adapt == "none"
            and tuned_kind(self.start.locate()) is not None
        )

    def class_names(self, name: str) -> Sequence[str] | None:
        """A task's classes in the order of their numbers; None = its head is of another kind."""
        return None

    @cached_property
    def row_hashes(self) -> dict[str, str]:
        """Task -> hash of its training rows as tensors, made once for all masks."""
        found = {}
        for name in self.downstream:
            rows = self.tokens(name).train
            inputs = (self.inputs(rows, chosen) for chosen in batches_by_length(rows.lengths))
            found[name] = hash_batches(inputs)
        return found

    def dense_key(self, head: nn.Module, name: str, seed: int) -> str:
        """Hash of everything that the weights of a task's dense model depend on."""
        shapes = {n: list(part.shape) for n, part in head.named_parameters()}
        chosen = ("epochs", "finetune_lr", "finetune_batch", "frozen", "precision", "dropout")
        settings = {each: getattr(self, each) for each in chosen}
        settings["finetune_lr"] = self.rate("finetune_lr")
        found = [self.start.digest, self.row_hashes[name], shapes, settings]
        return short_hash("dense-1", repr(found), str(seed), str(self.task_seed(name, seed)))

    def check_learned(self, head: nn.Module, name: str, beside: Path) -> None:
        """Refuses a dense model that a constant answer equals; its scores are kept.

        Args:
            head: The dense model.
            name: Its task.
            beside: Where it is kept; the scores' file begins with that name.
        """
        key = short_hash(self.protocol, name)
        path = beside.with_name(f"{beside.name}.{key}.json")
        with hold_lock(path):
            values = read_scores(path, key).get(name)
            if values is None:
                values = self.scores(head, name).values
                write_scores(path, key, {name: values})
        beaten = beats_constant(values)
        if beaten and not any(beaten.values()):
            first = next(iter(beaten))
            raise SearchError(
                f"the dense model of {name} has the {first} {values[first]:.3f}, a constant "
                f"answer {values[first + MAJORITY]:.3f} (no more than noise between them), so no "
                "masks can be compared on it; fine-tune it on more rows, for more epochs or at "
                "another rate (rows=, epochs=, finetune_lr=), or leave the task out"
            )

    def adapted(self, name: str, table: Tensor, *, seed: int, workdir: Path) -> TaskScores:
        """Scores of a task's dense model under a mask, after the steps that `adapt` asks for.

        Args:
            name: The task.
            table: The mask, bool `[layers, heads, length, length]`.
            seed: Seed of the dense model, and of the order and the dropout of the steps.
            workdir: Where the checkpoints of these steps are kept.

        Raises:
            NonFiniteLossError: If a loss is NaN or infinite.
        """
        head = self.dense(name, seed)
        teacher = self.teacher(head) if self.adapt == "recover" else None
        attach(head, masks.cropped(masks.table(table), self.length))
        if self.adapt == "recover":
            rate = self.recover_lr or self.rate("finetune_lr")
            config = TrainConfig(steps=self.recover_steps, lr=rate)

            def gap(model: nn.Module, batch: Batch) -> Tensor:
                assert teacher is not None
                inputs = {n: part for n, part in batch.items() if n not in LABELS}
                with autocast(batch, self.precision):
                    with torch.no_grad():
                        target = teacher(**inputs).logits
                    return distance_of_logits(model(**inputs).logits, target)

            self.fit(
                head,
                name,
                config,
                Checkpoints(workdir, training_name(name, seed)),
                short_hash(self.protocol, masks.table(table).digest, name, str(seed)),
                order=mixed_seed(self.task_seed(name, seed), self.streams[1], RECOVER),
                noise=mixed_seed(seed, DROPOUT, RECOVER),
                loss=None if teacher is None else gap,
            )
        return self.scores(head, name)

    def teacher(self, head: nn.Module) -> nn.Module | None:
        """A copy of a dense model whose logits are learnt from; None = labels are."""
        if self.learn_from == "labels":
            return None
        return copy.deepcopy(head).eval().requires_grad_(False)

    # -- gates ---------------------------------------------------------------------------------
    @property
    def weights_frozen(self) -> bool:
        """Whether `differentiable` trains gates alone."""
        return self.adapt != "finetune"

    @property
    def weight_lr(self) -> float | None:
        """As of `MlmEvaluator`; without a corpus the rate of fine-tuning."""
        return super().weight_lr if self.corpus is not None else self.rate("finetune_lr")

    def differentiable(self, seed: int) -> Differentiable:
        """What a one-shot search trains on.

        With a corpus the pre-training, as of `MlmEvaluator`. Without one the tasks: the dense
        models with frozen weights, so that gates alone are trained; with `adapt="finetune"` the
        checkpoint under a head for each task, so that gates and all weights but the `frozen` ones
        are. The batches are the tasks' in turn, and so are those that are held out: every tenth
        training row (at most 256 of a task).

        Raises:
            ValueError: If more layers are to be frozen than there are.
        """
        if self.corpus is not None:
            return super().differentiable(seed)
        if self.adapt == "finetune":
            encoder = self.start.encoder(dropout=self.dropout)
            freeze(encoder, self.frozen)  # as under a mask that is judged
            heads = [self.new_head(encoder, name, seed) for name in self.downstream]
        else:
            heads = [self.dense(name, seed) for name in self.downstream]
        learns = self.adapt != "finetune"
        teachers = [self.teacher(head) if learns else None for head in heads]
        streams, held_out = [list[Iterator[Batch]]() for _ in range(3)], list[list[Batch]]()
        for number, (name, teacher) in enumerate(zip(self.downstream, teachers, strict=True)):
            rows = self.tokens(name).train
            learnt, aside = deal_rows(len(rows))
            order = mixed_seed(self.task_seed(name, seed), self.streams[1], GATES)
            for stream, part in zip(streams, (learnt, learnt[::2], learnt[1::2]), strict=True):
                chosen = batches_among(part or learnt, rows.lengths, self.finetune_batch, order)
                stream.append(self.task_batches(rows, chosen, number, teacher))
            chosen = iter(aside[at : at + HELD_OUT] for at in range(0, len(aside), HELD_OUT))
            held_out.append(list(self.task_batches(rows, chosen, number, teacher)))
        model = TaskModels(heads).to(self.place)
        if learns:
            model.requires_grad_(False)
        whole, even, odd = (chain.from_iterable(zip(*each, strict=False)) for each in streams)
        in_turn = chain.from_iterable(zip_longest(*held_out))
        return Differentiable(model, whole, [b for b in in_turn if b is not None], (even, odd))

    def task_batches(
        self, rows: Any, chosen: Iterable[list[int]], number: int, teacher: nn.Module | None
    ) -> Iterator[Batch]:
        """Batches of a task for `TaskModels`, where the training is.

        Args:
            rows: The task's training rows.
            chosen: Numbers of the rows of each batch.
            number: Of the task.
            teacher: Whose logits are to be learnt; None = the labels are.
        """
        task = torch.tensor(number)
        for batch in move_batches((self.inputs(rows, each) for each in chosen), self.place):
            if teacher is not None:
                batch = {n: part for n, part in batch.items() if n not in LABELS}
                with torch.no_grad(), autocast(batch, self.precision):
                    batch = {**batch, "target": teacher(**batch).logits}
            yield {**batch, "task": task}
