"""A fine-tuning: the training of a head and the layers below it on a task's rows, and its scores.

training = TaskTraining(evaluator.inputs, batch=32, frozen=2)
training.fit(head, rows, TrainConfig(steps=100), checkpoints, "key", order=0, noise=1)
training.predict(head, rows)                   # logits of every row
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import shutil
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masksearch.analysis.row_scores import ROWS, RowScores
from masksearch.contracts import LOW, MAJORITY, Batch, mixed_seed
from masksearch.evaluators.token_rows import batches_by_length, bucket_batches
from masksearch.files import write_in_one_move
from masksearch.training.accumulation import group
from masksearch.training.checkpoints import Checkpoints
from masksearch.training.loop import Precision, TrainConfig, autocast, move_batches, train

log = logging.getLogger(__name__)

ROUND = 25  # stream of random numbers
LABELS = ("labels", "start_positions", "end_positions")  # in a batch: what is learnt from
Frozen = int | Literal["all"] | None


@dataclass(frozen=True)
class TaskTraining:
    """Trains heads on the rows of tasks, and has them predict.

    Args:
        inputs: A padded batch of some rows (by number), `LABELS` included.
        batch: Rows of a batch.
        frozen: See `freeze`.
        place: The device.
        precision: `"float32"`, or `"bfloat16"` for autocast.
        checkpoint_seconds: Wall time between two checkpoints.
    """

    inputs: Callable[[Any, list[int]], Batch]
    batch: int
    frozen: Frozen = None
    place: torch.device = torch.device("cpu")  # noqa: RUF009 (it does not change)
    precision: Precision = "float32"
    checkpoint_seconds: float = 60.0

    def fit(
        self,
        head: nn.Module,
        rows: Any,
        config: TrainConfig,
        checkpoints: Checkpoints,
        key: str,
        *,
        order: int,
        noise: int,
        loss: Callable[[nn.Module, Batch], Tensor] | None = None,
        title: str = "",
    ) -> None:
        """Trains a head, and the layers below it that are not frozen.

        Args:
            head: Trained in place.
            rows: The training rows: they have `lengths`.
            config: Steps and rate.
            checkpoints: Where the state is kept.
            key: Of the run; checkpoints of others are not taken.
            order: Seed of the order of the rows.
            noise: Seed of the dropout.
            loss: Scalar loss of (head, batch); None = the head's own.
            title: What is trained, for a display.
        """
        freeze(head.get_submodule("encoder"), self.frozen)
        run = train(
            head,
            lambda start: move_batches(self.batches(rows, order, start), self.place),
            config,
            loss or self.loss,
            checkpoints=checkpoints,
            checkpoint_seconds=self.checkpoint_seconds,
            key=key,
            noise_seed=noise,
            title=title,
        )
        for _ in run:
            pass

    def loss(self, head: nn.Module, batch: Batch) -> Tensor:
        """The head's own loss."""
        with autocast(batch, self.precision):
            loss: Tensor = head(**batch).loss
            return loss

    def imitating(self, teacher: nn.Module) -> Callable[[nn.Module, Batch], Tensor]:
        """The loss of learning another model's logits in place of labels."""

        def gap(head: nn.Module, batch: Batch) -> Tensor:
            with torch.no_grad():
                target = self.logits(teacher, batch)
            return distance_of_logits(self.logits(head, batch), target)

        return gap

    def logits(self, head: nn.Module, batch: Batch) -> Tensor:
        """What a head says of a batch, which may hold labels."""
        with autocast(batch, self.precision):
            logits: Tensor = head(**{n: t for n, t in batch.items() if n not in LABELS}).logits
            return logits

    def batches(self, rows: Any, seed: int, start: int = 0) -> Iterator[Batch]:
        """Endless batches of similar length from number `start` on; see `bucket_batches`."""
        for chosen in bucket_batches(rows.lengths, self.batch, seed, start):
            yield self.inputs(rows, chosen)

    def hash_rows(self, rows: Any) -> str:
        """16 hexadecimal digits of SHA-256 over names, types, shapes and numbers of all inputs."""
        total = hashlib.sha256()
        for chosen in batches_by_length(rows.lengths):
            for name, tensor in sorted(self.inputs(rows, chosen).items()):
                total.update(f"{name}|{tensor.dtype}|{list(tensor.shape)}|".encode())
                total.update(tensor.contiguous().numpy().tobytes())
        return total.hexdigest()[:16]

    def predict(self, head: nn.Module, rows: Any) -> list[Tensor]:
        """Logits of every row, in their order: float32, on the CPU.

        Args:
            head: A trained one; put into evaluation mode.
            rows: As in `inputs`.
        """
        head.eval()
        found: dict[int, Tensor] = {}
        for chosen in batches_by_length(rows.lengths):
            inputs = self.inputs(rows, chosen)
            batch = {n: part.to(self.place) for n, part in inputs.items() if n not in LABELS}
            with torch.no_grad():
                logits = self.logits(head, batch)
            found |= zip(chosen, logits.float().cpu(), strict=True)
        return [found[index] for index in range(len(rows))]


def distance_of_logits(logits: Tensor, target: Tensor) -> Tensor:
    """How far a model's logits are from those of the model that it learns from, a scalar.

    Args:
        logits: `[rows, classes]`; `[rows, 1]` of a regression; `[rows, positions, 2]` of spans.
        target: The same shape.

    Returns:
        The Kullback-Leibler divergence in nats from the target's distribution over classes (over
        positions, summed over start and end), a mean over rows; of a regression the mean squared
        distance. Positions with the logit -inf (padding) count nothing.
    """
    if logits.ndim == 2 and logits.shape[-1] == 1:
        return F.mse_loss(logits.float(), target.float())
    axis = 1 if logits.ndim == 3 else -1
    wanted = target.float().log_softmax(axis)
    said = logits.float().log_softmax(axis)
    gap = (wanted - said).masked_fill(target == -float("inf"), 0.0)
    return (wanted.exp() * gap).sum() / len(logits)


def frozen_copy(head: nn.Module) -> nn.Module:
    """A copy of a model, whose logits are learnt from."""
    return copy.deepcopy(head).eval().requires_grad_(False)


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
        own = id(parameter) in trained or (above and id(parameter) not in inside)
        parameter.requires_grad_(own)


# -- scores, and the files that they are kept in --------------------------------------------------
@dataclass(frozen=True, eq=False)
class TaskScores:
    """What a trained head has scored.

    Args:
        values: Name -> score.
        rows: The same row by row, with the weights of its parts in the first objective; None =
            not known.
    """

    values: dict[str, float]
    rows: RowScores | None = None


class TaskTokens(Protocol):
    """A task's tokenized rows; a part of them has `lengths`, `len()` and rows by number."""

    @property
    def train(self) -> Any:
        """What is trained on; the evaluator scores what else there is."""
        ...

    @property
    def digest(self) -> str:
        """Hash of the data and of the row limits."""
        ...


def read_scores(path: Path, key: str) -> dict[str, dict[str, float]]:
    """Scores of finished fine-tuning runs, by task and number; those under another key are not
    given."""
    if not path.is_file():
        return {}
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        return dict(stored["scores"]) if stored["key"] == key else {}
    except (ValueError, KeyError, TypeError) as error:
        log.warning("%s is damaged (%s); its tasks are fine-tuned again", path, error)
        return {}


def write_scores(path: Path, key: str, scores: Mapping[str, Mapping[str, float]]) -> None:
    """Keeps the scores of finished runs, in one move; several processes once."""
    if group().first:
        with write_in_one_move(path) as beside:
            beside.write_text(json.dumps({"key": key, "scores": scores}, indent=1), "utf-8")


def mean_scores(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means of several runs' scores and, where there are two or more, their deviations."""
    values: dict[str, float] = {}
    for score in runs[0]:
        each = [run[score] for run in runs]
        values[score] = statistics.fmean(each)
        if len(each) > 1 and not score.endswith((MAJORITY, LOW)):
            values[f"{score}/std"] = statistics.stdev(each)
    return values


def join_rows(workdir: Path, runs: Sequence[tuple[str, int]]) -> None:
    """Writes the rows of all fine-tuning runs into one file, each task's mean over its runs,
    and deletes those of the single runs; nothing where some are missing.

    Args:
        workdir: The working folder.
        runs: Name of each task, and number of its runs.
    """
    paths = [[workdir / f"{name}.{number}" / ROWS for number in range(n)] for name, n in runs]
    if all(path.is_file() for each in paths for path in each):
        tasks = [RowScores.mean([RowScores.load(path) for path in each]) for each in paths]
        RowScores.joined(tasks).save(workdir)
        for path in chain.from_iterable(paths):
            shutil.rmtree(path.parent)


def training_name(name: str, seed: int) -> str:
    """Name of a fine-tuning's checkpoints."""
    return f"finetuning.{name}.{seed:x}"


def run_seed(seed: int, number: int) -> int:
    """The seed of a task's fine-tuning run; of run 0 that of the evaluation."""
    return mixed_seed(seed, ROUND, number) if number else seed
