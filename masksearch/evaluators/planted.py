"""Judges a mask in seconds on sequences whose right mask is known.

evaluator = PlantedEvaluator()
for report in evaluator(masks.star(), seed=0, workdir=Path("run")):
    print(report.step, report.values)      # the last one holds "score"
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import KW_ONLY, asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from masksearch.analysis.row_scores import RowScores, lower_bound
from masksearch.attention.attach import attach
from masksearch.contracts import (
    LOW,
    MAJORITY,
    POINT,
    STORED_SPLITS,
    Batch,
    Differentiable,
    Evaluator,
    Objective,
    Report,
    Shape,
    mixed_seed,
)
from masksearch.evaluators.assembled import TrainingBase
from masksearch.files import text_hash
from masksearch.masks.core import Mask
from masksearch.masks.measure import keys_of_rows
from masksearch.models.encoders import MaskedLanguageModel, Output, encoder
from masksearch.models.sizes import AnySize, find_size
from masksearch.tasks.planted.graded import GradedProcess
from masksearch.tasks.planted.process import PlantedLabelTask, PlantedProcess, PlantedTask
from masksearch.training.loop import TrainConfig, one_thread, report_steps, train
from masksearch.training.parts import at_least, positive

WEIGHTS, HEAD, DATA, DOWNSTREAM = 21, 22, 23, 24  # streams of random numbers
NARROW = 64  # width up to which one thread trains a model
PARTS = "parts"  # the one task of a graded process
GRADED: dict[str, Any] = {  # four heads: two parts, near and far
    "size": "1x64x4",
    "steps": 160,
    "batch": 24,
    "lr": 6e-3,
    "initializer_range": 0.15,
    "reports": 2,
}


@dataclass(frozen=True)
class PlantedEvaluator(TrainingBase, Evaluator):
    """Trains a small BERT under the mask on a planted process, then on two downstream tasks.

    Pre-training is masked prediction; the pre-trained model is then fine-tuned, from the same
    weights each time, to tell intact sequences from broken ones and following segments from
    strange ones. The score is the mean of the two accuracies, 0.5 without the planted edges.
    On a `GradedProcess` there is nothing downstream: the score is the accuracy of the masked
    prediction itself, from `process.chance` to `process.expected(mask)`.
    The weights, the order of the data and what is hidden derive from the seed alone, so that
    masks judged with one seed differ in nothing but the mask.

    Models of width 64 or less are trained on one thread. Many small steps leave the plateaus,
    where the partner is found before the key, sooner than few large ones.

    Args:
        process: The distribution, a `PlantedProcess` or a `GradedProcess`; its `length` is the
            mask's.
        held_out_sequences: Held-out sequences of each task (even).
        size: As of `Model`. One layer makes the planted edges the only way; more can go round
            through other positions.
        initializer_range: Standard deviation of the initial weights, 1 to 1.5 / sqrt(width):
            with BERT's 0.02 attention starts flat and stays so for hundreds of steps.
        downstream_steps: Optimiser steps of each downstream task.
        downstream_batch: Sequences of a downstream batch (even).
        gate_batch: Sequences of a batch of a one-shot search; gates want less noise than weights.
            This and the next are no part of the protocol.
        gate_initializer_range: Standard deviation of a one-shot search's initial weights. At the
            spread of a trial, dense attention can saturate on a query's own position for good,
            and DAM then loses that position's edges.
        downstream_lr: Peak learning rate downstream.

    >>> import masksearch as ms
    >>> evaluator = ms.PlantedEvaluator.graded(steps=240)  # the best accuracy of any mask is known
    >>> f"{evaluator.process.expected(ms.masks.star()):.3f} of {evaluator.process.ceiling:.3f}"
    '0.601 of 0.855'
    """

    process: PlantedProcess | GradedProcess = field(default_factory=PlantedProcess)
    _: KW_ONLY
    held_out_sequences: int = at_least(1, 1024)
    size: AnySize = "nano"
    initializer_range: float | None = positive(0.18)
    steps: int = 500
    batch: int = 16
    lr: float | None = 4e-3
    reports: int = 5
    downstream_steps: int = at_least(1, 24)
    downstream_batch: int = 32
    gate_batch: int = at_least(1, 64)
    gate_initializer_range: float = 0.12
    downstream_lr: float = positive(2e-3)

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = (self.train_config, self.downstream_tasks)  # refuse wrong values here

    @classmethod
    def graded(cls, process: GradedProcess | None = None, **settings: Any) -> Self:
        """An evaluator whose true front is known: a graded process, and a training in which masks
        come near the accuracy that they allow.

        Args:
            process: Default: `GradedProcess()`.
            settings: Further fields; two seconds of a core with those that are not given.
        """
        return cls(process or GradedProcess(), **{**GRADED, **settings})

    @property
    def draw(self) -> int:
        """Number of the held-out draw."""
        return {"holdout": 1, "test": 2}.get(self.split, 0)

    @property
    def shape(self) -> Shape:
        """The sizes that a mask is lowered to."""
        size = find_size(self.size)
        return Shape(self.process.length, size.layers, size.heads)

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """The score (worst: nothing right, of a graded process chance) and the mask's sparsity."""
        worst = self.process.chance if isinstance(self.process, GradedProcess) else 0.0
        return (Objective("score", "max", worst, POINT), Objective("sparsity", "max", 0.0))

    @property
    def _downstream_config(self) -> TrainConfig:
        """Settings of each downstream task."""
        return TrainConfig(steps=self.downstream_steps, lr=self.downstream_lr)

    @property
    def task(self) -> PlantedTask:
        """The pre-training task."""
        return PlantedTask(self.process, self.batch, self.held_out_sequences, self.draw)

    @property
    def downstream_tasks(self) -> tuple[PlantedLabelTask, ...]:
        """The tasks that the score is the mean of; of a graded process none."""
        if isinstance(self.process, GradedProcess):
            return ()
        sizes = self.downstream_batch, self.held_out_sequences, self.draw
        return (
            PlantedLabelTask(self.process, "intact", *sizes),
            PlantedLabelTask(self.process, "follows", *sizes),
        )

    @property
    def protocol(self) -> str:
        """Short hash of everything that a report depends on, beside mask and seed."""
        parts = (
            "planted-2",  # 1 had a prediction head of our own
            self.process.digest,
            asdict(find_size(self.size)),
            self.train_config.identity,
            self._downstream_config.identity,
            self.batch,
            self.downstream_batch,
            self.initializer_range,
            self.held_out_sequences,
            *([STORED_SPLITS[self.split]] if self.draw else []),
        )
        return text_hash(repr(parts))

    @property
    def meanings(self) -> dict[str, str]:
        """The meanings of the accuracies."""
        if isinstance(self.process, GradedProcess):
            return {PARTS: "naming the parts of masked tokens"}
        return {
            "intact": "telling whole sequences from those with one changed token",
            "follows": "telling whether the second half belongs to the first",
        }

    def data_hashes(self) -> dict[str, str]:
        """Hash of the planted process, which draws all data."""
        return {"planted process": self.process.digest}

    def build_model(self, seed: int) -> MaskedLanguageModel:
        """A fresh model without a mask, its weights drawn from `seed`."""
        body = encoder(
            self.size,
            self.process.ids,
            self.process.length,
            seed=mixed_seed(seed, WEIGHTS),
            initializer_range=self.initializer_range,
        )
        return MaskedLanguageModel(body, seed=mixed_seed(seed, HEAD))

    def differentiable(self, seed: int) -> Differentiable:
        """For a one-shot search: the same model and process, without a mask."""
        batches = replace(self.task, batch=self.gate_batch).batches(mixed_seed(seed, DATA))
        model = replace(self, initializer_range=self.gate_initializer_range).build_model(seed)
        config = self.train_config
        return Differentiable(model, batches, self.task.held_out(), config.steps, config.lr)

    def __call__(self, mask: Mask, *, seed: int, workdir: Path) -> Iterator[Report]:
        """Trains and yields reports.

        Args:
            mask: Any mask that fits `shape`.
            seed: Seed of weights, data and hiding.
            workdir: Where the answers are written; a run is too short for checkpoints.

        Yields:
            `{"accuracy", "loss"}` of the held-out masked tokens (accuracy on the paired ones
            alone, in [0, process.ceiling]; loss in nats), and lastly the same with `score`,
            `intact`, `follows` in [0, 1], the majority's accuracy `intact/majority`,
            `follows/majority`, and the lower ends of 95% intervals `intact/low`, `follows/low`.
            Of a graded process `parts` takes the place of `intact` and `follows`.

        Raises:
            EmptyRowError: If a query of the mask may attend to no key.
            NonFiniteLossError: If a loss becomes NaN or infinite.
        """
        keys_of_rows(mask, self.shape)  # refuses masks that do not fit before any training
        # two threads are no faster on so small a model, and much slower beside another program
        narrow = find_size(self.size).width <= NARROW
        with one_thread() if narrow else nullcontext():
            yield from self.trained(mask, seed, workdir)

    def trained(self, mask: Mask, seed: int, workdir: Path) -> Iterator[Report]:
        """The reports of a training under a mask that fits."""
        model, held_out = self.build_model(seed), self.task.held_out()
        attach(model, mask, inputs={"input_ids": held_out[0]["input_ids"][:1]})
        due = report_steps(self.steps, self.reports)
        for step in train(model, self.task.batches(mixed_seed(seed, DATA)), self.train_config):
            if step.number in due:
                values, rows = self.masked_prediction(model, held_out)
                yield Report(step.number, values)
        predictions, right, chance = dict[str, NDArray[Any]](), dict[str, NDArray[Any]](), 0.5
        pretrained = {name: value.clone() for name, value in model.state_dict().items()}
        for task in self.downstream_tasks:
            model.load_state_dict(pretrained)
            predictions[task.name], right[task.name] = self._fine_tuned(model, task, seed)
        if not right:
            right, chance = {PARTS: rows}, self.process.chance
        scores = {name: float(hits.sum()) / len(hits) for name, hits in right.items()}
        sides = {f"{name}{MAJORITY}": chance for name in right}
        sides |= {f"{name}{LOW}": lower_bound(hits) for name, hits in right.items()}
        score = sum(scores.values()) / len(scores)
        last = self.steps + len(self.downstream_tasks) * self.downstream_steps
        drawn = f"{self.process.digest} {self.draw} {self.held_out_sequences}"
        weights = dict.fromkeys(right, 1 / len(right))
        RowScores(right, weights, dict.fromkeys(right, drawn), predictions).save(workdir)
        yield Report(last, {**values, "score": score, **scores, **sides})

    def masked_prediction(
        self, model: nn.Module, batches: list[Batch]
    ) -> tuple[dict[str, float], NDArray[Any]]:
        """Held-out accuracy on what depends on something and loss on all masked tokens; also what
        each sequence adds to the accuracy."""
        hits, asked, total, tokens = list[Tensor](), list[Tensor](), 0.0, 0
        model.eval()
        with torch.no_grad():
            for batch in batches:
                scored = batch["labels"] != -100
                output = model(**batch)
                predicted = torch.zeros_like(batch["labels"])
                predicted[scored] = output.logits.argmax(-1)
                right, counted = self.process.mark(predicted, batch["labels"])
                hits.append(right.sum(1))
                asked.append(counted.sum(1))
                total += output.loss.item() * int(scored.sum())
                tokens += int(scored.sum())
        model.train()
        right, among = torch.cat(hits), max(1, int(torch.cat(asked).sum()))
        values = {"accuracy": int(right.sum()) / among, "loss": total / tokens}
        return values, (right.double() * len(right) / among).numpy()

    def _fine_tuned(
        self, model: MaskedLanguageModel, task: PlantedLabelTask, seed: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Fine-tunes the model on the task; what it says of every held-out sequence, and whether
        that is right (1 or 0)."""
        hidden = torch.zeros(self.process.length, dtype=torch.bool)
        hidden[task.process.pair_positions[:, 1]] = True
        classifier = LikelihoodClassifier(model, hidden, self.process.mask_id)
        batches = task.batches(mixed_seed(seed, DOWNSTREAM))
        for _ in train(classifier, batches, self._downstream_config):
            pass
        classifier.eval()
        (batch,) = task.held_out()
        with torch.no_grad():
            predicted = classifier(batch["input_ids"]).logits.argmax(-1)
        right = (predicted == batch["labels"]).numpy()
        return predicted.numpy().astype(np.uint8), right.astype(np.float32)


class LikelihoodClassifier(nn.Module):
    """Tells real sequences from false ones by what the model says of their masked tokens.

    Some positions are hidden; the features are the sum and the minimum of the log-probabilities
    that the model gives to the tokens that stood there, normalised over the batch, and a linear
    layer turns them into two logits. Gradients reach every weight of the model. With one
    attention layer a token cannot be compared with its partner before they meet, which is why
    the comparison is made in the prediction head and not on pooled states.

    Args:
        model: The pre-trained model, with the mask on it; trained in place.
        hidden: bool `[length]`, the positions that are hidden and scored.
        mask_id: The id that masks a token.

    Reference: Masked Language Model Scoring, arXiv 1910.14659 (pseudo-log-likelihood).
    """

    def __init__(self, model: MaskedLanguageModel, hidden: Tensor, mask_id: int) -> None:
        super().__init__()
        self.model = model
        self.mask_id = mask_id
        self.register_buffer("hidden", hidden, persistent=False)
        self.norm = nn.BatchNorm1d(2, momentum=None)
        # Likelier sequences start as class 1.
        self.weight = nn.Parameter(torch.tensor([[-1.0, -1.0], [1.0, 1.0]]))
        self.bias = nn.Parameter(torch.zeros(2))

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> Output:
        """Returns logits `[batch, 2]` and, given labels `[batch]`, the mean loss."""
        hidden = self.get_buffer("hidden")
        scored = torch.where(hidden, input_ids, -100)
        logits = self.model(input_ids.masked_fill(hidden, self.mask_id), labels=scored).logits
        answers = input_ids[:, hidden].flatten()
        surprise = F.cross_entropy(logits.float(), answers, reduction="none")
        likelihoods = -surprise.view(len(input_ids), -1)
        features = self.norm(torch.stack([likelihoods.sum(1), likelihoods.amin(1)], 1))
        decided = F.linear(features, self.weight, self.bias)
        if labels is None:
            return Output(decided)
        return Output(decided, F.cross_entropy(decided, labels))
