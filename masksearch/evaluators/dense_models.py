"""The models that masks are put on: fine-tuned without a mask, kept, and shared by all.

provide_dense(head, folder / "STS-B-1f3a.safetensors", key, finetune)     # trains it, or loads it
model = TaskModels([sts_b, qnli])              # two heads, each on an encoder of its own
attach(model, gates)                           # gates of one encoder's layers and heads
model(task=torch.tensor(1), **batch).loss      # QNLI's model under the gates

A model lies in one safetensors file, named after its task and the hash of everything that its
weights depend on. Whoever needs it first holds a lock file beside it while it is fine-tuned;
others wait and read it. A killed fine-tuning goes on from its checkpoint, whoever begins it again.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import filelock
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.func import functional_call

from masksearch.analysis.pareto import beats_constant
from masksearch.contracts import MAJORITY, Batch, Differentiable
from masksearch.errors import DataError, SearchError
from masksearch.evaluators.token_rows import bucket_batches
from masksearch.evaluators.tuning import (
    LABELS,
    TaskTraining,
    distance_of_logits,
    read_scores,
    write_scores,
)
from masksearch.files import read_weights, write_weights
from masksearch.models.encoders import Output
from masksearch.models.pretrained import TunedHead, open_tuned, tuned_kind
from masksearch.training.checkpoints import Checkpoints, copy_weights
from masksearch.training.loop import move_batches

FOLDER = "dense"  # in the folder of the cache
SET_ASIDE, EVERY = 256, 10  # rows held out of the training of gates: at most, and each how many
HELD_OUT = 32  # rows of a batch of them


def provide_dense(
    head: nn.Module, path: Path, key: str, finetune: Callable[[Checkpoints], None]
) -> None:
    """Gives a model its fine-tuned weights: those that are kept, or else new ones, then kept.

    Args:
        head: Head and encoder; changed in place.
        path: Where the weights are kept, a `.safetensors` file; its folder is made if missing.
        key: Hash of everything that the weights depend on.
        finetune: Trains `head` in place, with its checkpoints there.

    Raises:
        DataError: If the file holds a model of another key.
        SearchError: If the folder cannot be written.
    """
    if restore_dense(head, path, key):
        return
    with hold_lock(path):
        if restore_dense(head, path, key):  # by the process that held the lock
            return
        checkpoints = Checkpoints(path.parent, f"{path.stem}.training")
        finetune(checkpoints)
        with naming_remedy(path):
            write_weights(path, copy_weights(head), {"key": key})
        checkpoints.clear()


def open_tuned_head(
    folder: Path, kind: str, classes: Sequence[str] | None, tasks: Sequence[str], runs: int
) -> TunedHead | None:
    """A checkpoint with its own head; None where it is only pre-trained.

    Args:
        folder: The checkpoint.
        kind: Of the head, one of `masksearch.models.pretrained.KINDS`.
        classes: The task's, in the order of their numbers; None = it has none.
        tasks: Names of the tasks that are asked for.
        runs: Fine-tuning runs of each that are asked for.

    Raises:
        DataError: If more than one model is asked for, or the head is not of that kind.
    """
    if tuned_kind(folder) is None:
        return None
    if len(tasks) > 1 or runs > 1:
        raise DataError(
            f"{folder} is fine-tuned already, one model of one task, and asked for are "
            f"finetune_seeds={runs} of {', '.join(tasks)}; give one task and seed, or a "
            "pre-trained checkpoint, whose dense models are fine-tuned here"
        )
    return open_tuned(folder, kind, classes)


@contextmanager
def hold_lock(path: Path) -> Iterator[None]:
    """Holds the lock file of a kept file, waiting for whoever holds it; makes the folder.

    Raises:
        SearchError: If the folder cannot be written.
    """
    lock = filelock.FileLock(path.with_suffix(".lock"))
    with naming_remedy(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def naming_remedy(path: Path) -> Iterator[None]:
    """Says what to do where a file of a dense model cannot be written.

    Raises:
        SearchError: If the disk is full or cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise SearchError(
            f"cannot keep a dense model in {path.parent}: {error.strerror or error}; give another "
            "cache folder (cache=, or MASKSEARCH_CACHE), or free space"
        ) from error


def restore_dense(head: nn.Module, path: Path, key: str) -> bool:
    """Loads weights that were kept under the same key; whether there are any.

    A damaged file is as good as none, with a warning.

    Raises:
        DataError: If the file holds a model of another key.
    """
    if not path.is_file():
        return False
    try:
        weights, metadata = read_weights(path)
        if metadata.get("key") != key:
            raise DataError(
                f"{path} holds a dense model of another protocol ({metadata.get('key')}, not "
                f"{key}); remove it, or give another cache folder (cache=, or MASKSEARCH_CACHE)"
            )
        if not all(torch.isfinite(weight).all() for weight in weights.values()):
            raise ValueError("it holds numbers that are not finite")
        head.load_state_dict(weights)
    except DataError:
        raise
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        warnings.warn(
            f"{path} is damaged ({reason}); its dense model is fine-tuned again", stacklevel=4
        )
        return False
    return True


def check_learned(
    path: Path, key: str, name: str, scored: Callable[[], Mapping[str, float]]
) -> None:
    """Refuses a dense model that a constant answer equals.

    Args:
        path: The file in which its scores are kept.
        key: Of what they depend on.
        name: Its task.
        scored: Takes its scores, where none are kept.

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
        raise SearchError(
            f"the dense model of {name} has the {first} {values[first]:.3f}, a constant answer "
            f"{values[first + MAJORITY]:.3f} (no more than noise between them), so no masks can "
            "be compared on it; fine-tune it on more rows, for more epochs or at another rate "
            "(rows, epochs, finetune_lr: --rows, --set epochs=, --set finetune_lr=), or leave "
            "the task out"
        )


# -- several of them as one, for gates ----------------------------------------------------------
class TaskModels(nn.Module):
    """Models of one architecture, of which every batch names one.

    All are computed by the modules of the first one's encoder, with their own weights in them,
    so what is attached to that encoder acts on each.

    Args:
        models: Heads (`head.encoder`, `head(**batch).loss`), one a task. Encoders may be one and
            the same object, which is then trained on all tasks. The encoders of all but the first
            are taken off their heads; their weights stay as they are.
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        first = models[0].get_submodule("encoder")
        self.own: list[dict[str, Tensor]] = []  # weights to compute each task with
        for model in models:
            encoder = model.get_submodule("encoder")
            own: dict[str, Tensor] = {}
            if encoder is not first:
                encoder.requires_grad_(False)
                own = {f"encoder.{n}": part for n, part in encoder.named_parameters()}
                own |= {f"encoder.{n}": part for n, part in encoder.named_buffers()}
                model.encoder = first
            self.own.append(own)
        self.models = nn.ModuleList(models)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        task: Tensor | None = None,
        target: Tensor | None = None,
        **inputs: Any,
    ) -> Output:
        """What the model of a task returns.

        Args:
            input_ids: Token ids, shaped as that task's head takes them.
            attention_mask: 1 for tokens, 0 for padding, shaped likewise.
            task: Number of the model, a tensor without axes; None = the first.
            target: Logits that are to be learnt in place of labels, shaped as the model's.
            inputs: Its other inputs, labels included.
        """
        number = 0 if task is None else int(task)
        given = {"input_ids": input_ids, "attention_mask": attention_mask, **inputs}
        found: Output = functional_call(self.models[number], self.own[number], kwargs=given)
        if target is None:
            return found
        return Output(found.logits, distance_of_logits(found.logits, target))


def train_together(
    heads: Sequence[nn.Module],
    tasks: Sequence[tuple[Any, int]],
    training: TaskTraining,
    teachers: Sequence[nn.Module | None],
) -> Differentiable:
    """What gates that several tasks share are trained on.

    The batches are the tasks' in turn, and so are those that are held out: every tenth training
    row (at most 256 of a task).

    Args:
        heads: A model of each task.
        tasks: Its training rows, and the seed of their order.
        training: Makes batches of rows.
        teachers: Whose logits are learnt; None = the labels are.
    """
    streams, held_out = list[Iterator[Batch]](), list[list[Batch]]()
    for number, ((rows, order), teacher) in enumerate(zip(tasks, teachers, strict=True)):
        learnt, aside = deal_rows(len(rows))
        chosen = batches_among(learnt, rows.lengths, training.batch, order)
        streams.append(task_batches(training, rows, chosen, number, teacher))
        chosen = iter(aside[at : at + HELD_OUT] for at in range(0, len(aside), HELD_OUT))
        held_out.append(list(task_batches(training, rows, chosen, number, teacher)))
    model = TaskModels(heads).to(training.place)
    whole = chain.from_iterable(zip(*streams, strict=False))
    in_turn = chain.from_iterable(zip_longest(*held_out))
    return Differentiable(model, whole, [b for b in in_turn if b is not None])


def task_batches(
    training: TaskTraining,
    rows: Any,
    chosen: Iterable[list[int]],
    number: int,
    teacher: nn.Module | None,
) -> Iterator[Batch]:
    """Batches of a task for `TaskModels`, where the training is.

    Args:
        training: Makes batches of rows.
        rows: The task's training rows.
        chosen: Numbers of the rows of each batch.
        number: Of the task.
        teacher: Whose logits are to be learnt; None = the labels are.
    """
    task = torch.tensor(number)
    inputs = (training.inputs(rows, each) for each in chosen)
    for batch in move_batches(inputs, training.place):
        if teacher is not None:
            batch = {n: part for n, part in batch.items() if n not in LABELS}
            with torch.no_grad():
                batch = {**batch, "target": training.logits(teacher, batch)}
        yield {**batch, "task": task}


def deal_rows(count: int) -> tuple[list[int], list[int]]:
    """Numbers of the training rows that gates learn on, and of those that are held out.

    >>> deal_rows(11)
    ([0, 1, 2, 3, 4, 5, 6, 7, 8, 10], [9])
    >>> deal_rows(1)  # one row is in both
    ([0], [0])
    """
    aside = list(range(min(EVERY, count) - 1, count, EVERY))[:SET_ASIDE]
    return sorted(set(range(count)) - set(aside)) or aside, aside


def batches_among(
    chosen: Sequence[int], lengths: Sequence[int], size: int, seed: int
) -> Iterator[list[int]]:
    """Endless batches of similar length, as `bucket_batches`, among some of the rows.

    Args:
        chosen: Numbers of those rows.
        lengths: Length of each of all rows.
        size: Rows of a batch.
        seed: Of the order.
    """
    for batch in bucket_batches([lengths[number] for number in chosen], size, seed):
        yield [chosen[place] for place in batch]
