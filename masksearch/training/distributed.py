"""One training on several processes: each computes its rows of every batch, under torchrun.

with distributed.join_processes():                 # does nothing outside of torchrun
    for step in train(model, batches, config): ...

Every process draws the same batches from the same seed, and after the step all hold the same
weights, those that one process with the whole batches would have (but for rounding). Gradients
are summed after the backward pass, not by the hooks of DistributedDataParallel, so that a process
whose memory runs out can halve its parts alone, and attached masks see the bare model.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed
from torch import Tensor

from masksearch.contracts import Batch
from masksearch.errors import ResumeError


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
        if self.size == 1:
            return
        trained = list(parameters)
        reached = self.set_anywhere([parameter.grad is not None for parameter in trained], device)
        known = [parameter for parameter, flag in zip(trained, reached, strict=True) if flag]
        for parameter in known:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.sum_tensors([p.grad for p in known if p.grad is not None], device)

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
        found = torch.tensor(flags, dtype=torch.int32, device=device_of_numbers(device))
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
        return [bool(flag) for flag in found.tolist()]

    def check_same_step(self, step: int, device: torch.device) -> None:
        """Checks that every process goes on from the same step.

        Raises:
            ResumeError: On every process, if they do not.
        """
        if self.size == 1:
            return
        ends = torch.tensor([step, -step], device=device_of_numbers(device))
        torch.distributed.all_reduce(ends, torch.distributed.ReduceOp.MAX)
        last, first = ends.tolist()
        if last != -first:
            raise ResumeError(
                f"the {self.size} processes go on from different steps ({-first} to {last}): not "
                "all of them see the newest checkpoint; put the folder on a file system that "
                "they share"
            )


def device_of_numbers(device: torch.device) -> torch.device:
    """Where a message of a few numbers lies: on the CPU, which does not wait for a GPU, unless
    the processes can only send what lies on the training's device."""
    known = torch.distributed.get_backend_config()
    return torch.device("cpu") if "cpu:" in known else device


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
