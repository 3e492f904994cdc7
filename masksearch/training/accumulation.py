"""The gradient of one optimiser step, taken in parts: several batches, rows at a time, and the
rows of several processes.

value = Accumulator().gradients(model, [batch, another], loss)
with join_processes():                             # does nothing outside of torchrun
    for step in train(model, batches, config): ...

Under torchrun every process draws the same batches from the same seed, computes its rows of each,
and after the step all hold the same weights, those that one process with the whole batches would
have (but for rounding). Gradients are summed after the backward pass, not by the hooks of
DistributedDataParallel, so that a process whose memory runs out can halve its parts alone, and
attached masks see the bare model.
"""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.distributed
from torch import Tensor, nn

from masksearch.contracts import Batch
from masksearch.errors import ResumeError, ran_out_of_memory

log = logging.getLogger(__name__)

Loss = Callable[[nn.Module, Batch], Tensor]


class Accumulator:
    """Adds up gradients over parts of a step's batches, each part at its share of the labels.

    Memory that runs out halves the largest part, for this step and all later ones.

    Args:
        rows: Largest number of rows of a part; None = whole batches.
        group: The processes that share the rows of every batch.
    """

    def __init__(self, rows: int | None = None, group: Group | None = None) -> None:
        self.rows, self.group = rows, group or Group()

    def gradients(
        self, model: nn.Module, batches: Sequence[Batch], loss: Loss, begin: Callable[[], None]
    ) -> Tensor:
        """Fresh gradients of the mean loss over all labels of the batches.

        In a group of several processes each gets the gradient of its own rows, as their part of
        that mean: the whole is the sum over the processes.

        Args:
            model: Its parameters get the gradients.
            batches: One or more.
            loss: Of (model, batch): the mean over the batch's scored labels, or a vector of such
                means, one for each kind of label (`count_scored`), whose sum is the loss.
            begin: Called before every attempt (it drops gradients, and seeds what is drawn).

        Returns:
            The loss (or this process's part of it), detached, on the model's device.

        Raises:
            RuntimeError: If memory runs out with one row (torch.OutOfMemoryError is one).
        """
        shares = [self.group.share(batch) for batch in batches]
        started, largest = self.rows, max(len(batch["input_ids"]) for batch in shares)
        while True:
            begin()
            try:
                value = self.attempt(model, batches, shares, loss)
            except RuntimeError as error:
                rows = min(largest, self.rows or largest)
                if rows <= 1 or not ran_out_of_memory(error):
                    raise
                log.info("out of memory with %d rows at once: %s", rows, error)
            else:
                break
            # Outside of the handler, whose traceback keeps the failed part's tensors alive.
            self.rows = -(-rows // 2)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        if self.rows != started:
            warnings.warn(
                f"out of memory with {started or largest} rows at once: from here on a batch is "
                f"computed in parts of {self.rows} rows or fewer; the effective batch is the same",
                stacklevel=4,
            )
        return value

    def attempt(
        self, model: nn.Module, batches: Sequence[Batch], rows: Sequence[Batch], loss: Loss
    ) -> Tensor:
        """One forward and backward pass of every part of this process's own rows."""
        alone = self.group.size == 1
        parts = [part for batch in rows for part in _split_rows(batch, self.rows)]
        if len(parts) == 1 and alone:
            value = loss(model, parts[0]).sum()
            value.backward()  # type: ignore[no-untyped-call]
            return value.detach()
        counts = [count_scored(part) for part in parts]
        whole = counts if alone else [count_scored(batch) for batch in batches]
        totals = [sum(column) for column in zip(*whole, strict=True)]
        values: list[Tensor] = []
        for part, count in zip(parts, counts, strict=True):
            if not len(part["input_ids"]):  # fewer rows than processes
                continue
            means = loss(model, part).reshape(-1)
            shares = [n / max(1, total) for n, total in zip(count, totals, strict=True)]
            # A mean over no label is NaN; it has no share in the whole.
            terms = [m * s for m, s in zip(means, shares, strict=False) if s > 0]
            if not terms:
                continue
            value = torch.stack(terms).sum()
            value.backward()  # type: ignore[no-untyped-call]
            values.append(value.detach())
        if not values and any(totals):  # the other processes have them
            return torch.zeros((), device=batches[0]["input_ids"].device)
        if not values:
            raise ValueError("no label of the batch is scored (every one is -100)")
        return torch.stack(values).sum()


def _split_rows(batch: Batch, rows: int | None) -> Iterator[Batch]:
    """Parts of at most that many rows, of even size, in order."""
    count = len(batch["input_ids"])
    if rows is None or count <= rows:
        yield batch
        return
    pieces = math.ceil(count / rows)
    ends = [count * number // pieces for number in range(pieces + 1)]
    for start, end in pairwise(ends):
        yield {name: tensor[start:end] for name, tensor in batch.items()}


def count_scored(batch: Batch) -> tuple[int, ...]:
    """How many labels of each kind a batch scores: of `labels`, then of every `*_label`.

    Integer labels of -100 are not scored. Without any labels every row counts once.

    >>> batch = {
    ...     "input_ids": torch.ones(2, 3),
    ...     "labels": torch.tensor([[1, -100, 2], [4, 5, -100]]),
    ... }
    >>> count_scored(batch | {"next_sentence_label": torch.tensor([0, 1])})
    (4, 2)
    """
    names = [name for name in batch if name == "labels" or name.endswith("_label")]
    if not names:
        return (len(batch["input_ids"]),)
    names.sort(key=lambda name: (name != "labels", name))
    return tuple(
        batch[name].numel()
        if batch[name].is_floating_point()
        else int((batch[name] != -100).sum())
        for name in names
    )


# -- several processes -------------------------------------------------------------------------
@dataclass(frozen=True)
class Group:
    """The processes that train one model together, and which of them this is.

    Args:
        rank: Number of this process, from 0.
        size: Number of processes (>= 1).
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def share(self, batch: Batch) -> Batch:
        """This process's rows of a batch: every `size`-th; of all processes, each row once."""
        if self.size == 1:
            return batch
        return {name: tensor[self.rank :: self.size] for name, tensor in batch.items()}

    def sum_gradients(self, parameters: Iterable[Tensor], device: torch.device) -> None:
        """Replaces every gradient by its sum over the processes; the same bits on each.

        A parameter that no row of this process has reached counts as zero; one that no process
        has reached keeps no gradient, as with one process.
        """
        trained = list(parameters)
        reached = self.set_anywhere([parameter.grad is not None for parameter in trained], device)
        used = [parameter for parameter, flag in zip(trained, reached, strict=True) if flag]
        for parameter in used:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.sum_tensors([p.grad for p in used if p.grad is not None], device)

    def sum_tensors(self, tensors: list[Tensor], device: torch.device) -> None:
        """Sums tensors over the processes in place, in one message for each type."""
        if self.size == 1:
            return
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
            alike = [tensor for tensor in tensors if tensor.dtype == dtype]
            flat = torch.cat([tensor.reshape(-1) for tensor in alike]).to(device)
            torch.distributed.all_reduce(flat)
            parts = torch.split(flat, [tensor.numel() for tensor in alike])
            for tensor, part in zip(alike, parts, strict=True):
                tensor.copy_(part.view_as(tensor))

    def set_anywhere(self, flags: Sequence[bool], device: torch.device) -> list[bool]:
        """Which of the flags is set on at least one process."""
        if self.size == 1 or not flags:
            return list(flags)
        any_flags = torch.tensor(flags, dtype=torch.int32, device=_device_of_numbers(device))
        torch.distributed.all_reduce(any_flags, torch.distributed.ReduceOp.MAX)
        return [bool(flag) for flag in any_flags.tolist()]

    def check_same_step(self, step: int, device: torch.device) -> None:
        """Checks that every process goes on from the same step.

        Raises:
            ResumeError: On every process, if they do not.
        """
        if self.size == 1:
            return
        ends = torch.tensor([step, -step], device=_device_of_numbers(device))
        torch.distributed.all_reduce(ends, torch.distributed.ReduceOp.MAX)
        last, first = ends.tolist()
        if last != -first:
            raise ResumeError(
                f"the {self.size} processes go on from different steps ({-first} to {last}): not "
                "all of them see the newest checkpoint; put the folder on a file system that "
                "they share"
            )


def _device_of_numbers(device: torch.device) -> torch.device:
    """Where a message of a few numbers lies: on the CPU, which does not wait for a GPU, unless
    the processes can only send what lies on the training's device."""
    return torch.device("cpu") if "cpu:" in torch.distributed.get_backend_config() else device


def group() -> Group:
    """The processes that this one trains with; a group of one where it is alone."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return Group(torch.distributed.get_rank(), torch.distributed.get_world_size())
    return Group()


@contextmanager
def join_processes() -> Iterator[Group]:
    """Joins the processes that torchrun has started, and leaves them at the end.

    Reads torchrun's variables (`RANK`, `WORLD_SIZE`, `LOCAL_RANK`, ..). With GPUs each process
    takes the one of its local rank (NCCL), otherwise the messages go through gloo.

    Yields:
        The group; of one, and nothing is joined, where torchrun has not started this process;
        the one that is there already, if there is.
    """
    several = "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1
    if not several or torch.distributed.is_initialized():
        yield group()
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    yield group()
    # Not after an error: the others may wait for this process, which ends, and torchrun them.
    torch.distributed.destroy_process_group()
