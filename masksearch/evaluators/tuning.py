"""A fine-tuning: the training of a head and the layers below it on a task's rows, and its scores.

training = TaskTraining(evaluator.inputs, 32, 2, MachineConfig(precision="bfloat16"), device)
training.fit(head, rows, TrainConfig(steps=100), checkpoints, order=0, noise=1)
training.predict(head, rows)                   # logits of every row
source = train_together(heads, rows, training, teachers)   # for gates that several tasks share
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import shutil
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from masksearch.analysis.pareto import beats_constant
from masksearch.analysis.row_scores import ROWS, RowScores
from masksearch.contracts import LOW, MAJORITY, Batch, Differentiable, generator
from masksearch.errors import DataError, SearchError
from masksearch.files import write_text_in_one_move
from masksearch.models.pretrained import TaskModels, distance_of_logits
from masksearch.training.accumulation import group
from masksearch.training.checkpoints import Checkpoints, hold_lock
from masksearch.training.loop import TrainConfig, autocast, freeze, move_batches, train
from masksearch.training.parts import Frozen, MachineConfig

log = logging.getLogger(__name__)

LABELS = ("labels", "start_positions", "end_positions")  # in a batch: what is learnt from
SET_ASIDE, EVERY = 256, 10  # rows held out of the training of gates: at most, and each how many
MOST_MEAN = 1e5  # deviations that a mean can be from 0, by the digits of float32
HELD_OUT = 32  # rows of a batch of them
EACH = 10_000  # sequences of each of several tasks in a histogram of lengths
POOL = 50  # batches of similar length are formed among that many batches' rows


@dataclass(frozen=True)
class TaskTraining:
    """Trains heads on the rows of tasks, and has them predict.

    Args:
        inputs: A padded batch of some rows (by number), `LABELS` included.
        batch: Rows of a batch.
        frozen: See `freeze`.
        how: The precision, and the time between checkpoints.
        device: That trains.
    """

    inputs: Callable[[Any, list[int]], Batch]
    batch: int
    frozen: Frozen
    how: MachineConfig
    device: torch.device

    def fit(
        self,
        head: nn.Module,
        rows: Any,
        config: TrainConfig,
        checkpoints: Checkpoints,
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
            order: Seed of the order of the rows.
            noise: Seed of the dropout.
            loss: Scalar loss of (head, batch); None = the head's own.
            title: What is trained, for a display.
        """
        freeze(head.get_submodule("encoder"), self.frozen)
        run = train(
            head,
            lambda start: move_batches(self.batches(rows, order, start), self.device),
            config,
            loss or self.loss,
            checkpoints=replace(checkpoints, seconds=self.how.checkpoint_seconds),
            noise_seed=noise,
            title=title,
        )
        for _ in run:
            pass

    def loss(self, head: nn.Module, batch: Batch) -> Tensor:
        """The head's own loss."""
        with autocast(batch, self.how.precision):
            loss: Tensor = head(**batch).loss
            return loss

    def imitating(
        self, teacher: nn.Module, *, labels: bool = False
    ) -> Callable[[nn.Module, Batch], Tensor]:
        """The loss of learning another model's logits in place of labels, or beside them.

        Args:
            teacher: The other model.
            labels: Whether the labels are learnt, too: half of the loss is theirs.
        """

        def gap(head: nn.Module, batch: Batch) -> Tensor:
            with torch.no_grad():
                target = self.logits(teacher, batch)
            if not labels:
                return distance_of_logits(self.logits(head, batch), target)
            with autocast(batch, self.how.precision):
                output = head(**batch)
            loss: Tensor = (output.loss + distance_of_logits(output.logits, target)) / 2
            return loss

        return gap

    def logits(self, head: nn.Module, batch: Batch) -> Tensor:
        """The logits of a head on a batch, which may hold labels."""
        with autocast(batch, self.how.precision):
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
        outputs: dict[int, Tensor] = {}
        for chosen in batches_by_length(rows.lengths):
            inputs = self.inputs(rows, chosen)
            batch = {n: part.to(self.device) for n, part in inputs.items() if n not in LABELS}
            with torch.no_grad():
                logits = self.logits(head, batch)
            outputs |= zip(chosen, logits.float().cpu(), strict=True)
        return [outputs[index] for index in range(len(rows))]


def begin_at(head: nn.Module, value: float) -> None:
    """Has a regression answer that value at first: the bias of its last layer."""
    *_, last = (part for part in head.modules() if isinstance(part, nn.Linear))
    nn.init.constant_(last.bias, value)


def rescale(head: nn.Module, unit: tuple[float, float] | None, inverse: bool = False) -> nn.Module:
    """Has a regression that answers standardised answer in a unit: changes its last layer.

    Args:
        head: The model, without a mask; changed in place.
        unit: Mean and deviation of its answers; None = it stays as it is.
        inverse: Whether it answers in the unit now, and standardised then.

    Raises:
        DataError: If its answers are not those of a linear layer, or float32 cannot hold them.
    """
    if unit is None:
        return head
    (mean, deviation), training, answers = unit, head.training, list[Tensor]()
    if abs(mean) > MOST_MEAN * deviation:
        raise DataError(
            f"the scores have the mean {mean:g} and the deviation {deviation:.3g}, too little "
            f"beside it for a saved model's float32 answers; subtract {mean:g} from all scores"
        )
    *_, last = (part for part in head.modules() if isinstance(part, nn.Linear))
    hook = last.register_forward_hook(lambda layer, inputs, answer: answers.append(answer))
    with hook, torch.no_grad():
        logits = head.eval()(torch.ones(1, 4, dtype=torch.int64, device=last.weight.device)).logits
        head.train(training)
        if last.bias is None or not (answers and torch.equal(answers[-1], logits)):
            raise DataError(
                f"{type(getattr(head, 'whole', head)).__name__} does not end in a linear layer "
                "with a bias, which could put its scores into their unit; take a class such as "
                "BERT's or RoBERTa's"
            )
        factor, shift = (1 / deviation, -mean / deviation) if inverse else (deviation, mean)
        last.weight.copy_(last.weight.double() * factor)
        last.bias.copy_(last.bias.double() * factor + shift)
    return head


def frozen_copy(head: nn.Module) -> nn.Module:
    """A copy of a model, whose logits are learnt from."""
    return copy.deepcopy(head).eval().requires_grad_(False)


# -- scores, and the files that they are kept in --------------------------------------------------
@dataclass(frozen=True, eq=False)
class TaskScores:
    """The scores of a trained head.

    Args:
        values: Name -> score.
        rows: The same row by row, with the weights of its parts in the first objective.
    """

    values: dict[str, float]
    rows: RowScores


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
        write_text_in_one_move(path, json.dumps({"key": key, "scores": scores}, indent=1))


def check_learned(
    path: Path,
    key: str,
    name: str,
    scored: Callable[[], Mapping[str, float]],
    turned: Mapping[int, str],
) -> None:
    """Refuses a dense model that a constant answer equals.

    Args:
        path: The file in which its scores are kept.
        key: Of what they depend on.
        name: Its task.
        scored: Takes its scores, where none are kept.
        turned: The two classes of a checkpoint by its numbers, if they stand the other way round;
            none = they cannot.

    Raises:
        SearchError: If none of its scores is above that of a constant answer.
    """
    with hold_lock(path):
        values = read_scores(path, key).get(name)
        if values is None:
            values = dict(scored())
            write_scores(path, key, {name: values})
    beaten = beats_constant(values)
    if beaten and not any(beaten.values()):
        first = next(iter(beaten))
        constant, right = values[first + MAJORITY], values.get(f"{first}/accuracy", values[first])
        turn = f"turn its classes, id2label in its config.json: {json.dumps(turned)}, and "
        turn += f"{1 - right:.0%} of its answers are right; or "
        raise SearchError(
            f"the dense model of {name} has the {first} {values[first]:.3f}, a constant answer "
            f"{constant:.3f} (no more than noise between them), so no masks can be compared on "
            f"it; {turn if turned and 1 - right > max(0.75, (1 + constant) / 2) else ''}fine-tune "
            "it on more rows, for more epochs or at another rate (rows, epochs, finetune_lr: "
            "--set rows=, epochs=, finetune_lr=), or leave the task out"
        )


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


# -- gates that tasks share -------------------------------------------------------------------
def train_together(
    heads: Sequence[nn.Module],
    tasks: Sequence[tuple[Any, int]],
    training: TaskTraining,
    *,
    imitate: bool = False,
) -> Differentiable:
    """The batches that gates of several tasks are trained on.

    The batches are the tasks' in turn, and so are those that are held out: every tenth training
    row (at most 256 of a task).

    Args:
        heads: A model of each task.
        tasks: Its training rows, and the seed of their order.
        training: Makes batches of rows.
        imitate: Whether the logits of a copy of each model are learnt, in place of the labels.
    """
    streams, held_out = list[Iterator[Batch]](), list[list[Batch]]()
    for number, (head, (rows, order)) in enumerate(zip(heads, tasks, strict=True)):
        teacher = frozen_copy(head) if imitate else None
        lengths, (learnt, aside) = rows.lengths, _deal_rows(len(rows))
        buckets = bucket_batches([lengths[row] for row in learnt], training.batch, order)
        streams.append(_task_batches(training, rows, learnt, buckets, number, teacher))
        parts = (range(len(aside))[at : at + HELD_OUT] for at in range(0, len(aside), HELD_OUT))
        held_out.append(list(_task_batches(training, rows, aside, parts, number, teacher)))
    model = TaskModels(heads).to(training.device)
    whole = chain.from_iterable(zip(*streams, strict=False))
    in_turn = chain.from_iterable(zip_longest(*held_out))
    return Differentiable(model, whole, [b for b in in_turn if b is not None])


def _task_batches(
    training: TaskTraining,
    rows: Any,
    among: Sequence[int],
    chosen: Iterable[Sequence[int]],
    number: int,
    teacher: nn.Module | None,
) -> Iterator[Batch]:
    """Batches of a task for `TaskModels`, where the training is.

    Args:
        training: Makes batches of rows.
        rows: The task's training rows.
        among: Numbers of the rows that are taken.
        chosen: Places in `among` of the rows of each batch.
        number: Of the task.
        teacher: Whose logits are to be learnt; None = the labels are.
    """
    task = torch.tensor(number)
    inputs = (training.inputs(rows, [among[at] for at in numbers]) for numbers in chosen)
    for batch in move_batches(inputs, training.device):
        if teacher is not None:
            batch = {n: part for n, part in batch.items() if n not in LABELS}
            with torch.no_grad():
                batch = {**batch, "target": training.logits(teacher, batch)}
        yield {**batch, "task": task}


def _deal_rows(count: int) -> tuple[list[int], list[int]]:
    """Numbers of the training rows that gates learn on, and of those that are held out.

    >>> _deal_rows(11)
    ([0, 1, 2, 3, 4, 5, 6, 7, 8, 10], [9])
    >>> _deal_rows(1)  # one row is in both
    ([0], [0])
    """
    aside = list(range(min(EVERY, count) - 1, count, EVERY))[:SET_ASIDE]
    return sorted(set(range(count)) - set(aside)) or aside, aside


# -- rows --------------------------------------------------------------------------------------
def pooled_lengths(tasks: Sequence[Sequence[int]], longest: int) -> dict[int, int]:
    """How many sequences have how many tokens: the `lengths` of a `Shape`.

    Args:
        tasks: Lengths of the sequences of each task, in tokens. Of one task they are counted as
            they are. Each of several weighs the same, as it does in the score, however many rows
            it has: as 10,000 sequences.
        longest: Longer ones are cut to that many tokens.

    >>> pooled_lengths([[3, 3, 9]], 8)
    {3: 2, 8: 1}
    >>> pooled_lengths([[3, 3, 3], [5]], 8)
    {3: 10000, 5: 10000}
    """
    pooled: dict[int, int] = {}
    for lengths in tasks:
        sizes, counts = np.unique(np.minimum(lengths, longest), return_counts=True)
        if len(tasks) > 1:
            counts = np.maximum(1, np.rint(counts * (EACH / len(lengths)))).astype(int)
        for tokens, count in zip(sizes.tolist(), counts.tolist(), strict=True):
            pooled[tokens] = pooled.get(tokens, 0) + count
    return dict(sorted(pooled.items()))


def bucket_batches(
    lengths: Sequence[int], size: int, seed: int, start: int = 0
) -> Iterator[list[int]]:
    """Endless batches of row numbers of similar length; every row comes once an epoch.

    Args:
        lengths: Length of each row.
        size: Rows of a batch; where it does not divide the rows, some batches are smaller.
        seed: Of the order.
        start: Batches to leave out at the beginning, at no cost beyond drawing their order.
    """
    random = generator(seed)
    while True:
        order = torch.randperm(len(lengths), generator=random).tolist()
        count = batches_an_epoch(len(order), size)
        if start >= count:
            torch.randperm(count, generator=random)
            start -= count
            continue
        batches = []
        for at in range(0, len(order), POOL * size):
            pool = sorted(order[at : at + POOL * size], key=lambda row: lengths[row])
            batches += [pool[first : first + size] for first in range(0, len(pool), size)]
        for index in torch.randperm(len(batches), generator=random).tolist()[start:]:
            yield batches[index]
        start = 0


def batches_an_epoch(rows: int, size: int) -> int:
    """How many batches `bucket_batches` makes of that many rows.

    >>> batches_an_epoch(70, 8)
    9
    """
    return -(-rows // size)


def batches_by_length(lengths: Sequence[int], size: int = 64) -> Iterator[list[int]]:
    """Batches of row numbers from short to long, each row once: for predictions."""
    order = sorted(range(len(lengths)), key=lambda row: lengths[row])
    for start in range(0, len(order), size):
        yield order[start : start + size]
