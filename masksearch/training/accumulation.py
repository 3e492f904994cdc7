"""The gradient of one optimiser step, taken in parts: several batches, or rows at a time.

value = Accumulator().gradients(model, [batch, another], loss)
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from masksearch.contracts import Batch
from masksearch.training.distributed import Group

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
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        loss: Loss,
        begin: Callable[[], None],
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
            torch.OutOfMemoryError: If memory runs out with one row (on a CPU a RuntimeError).
        """
        own = [self.group.share(batch) for batch in batches]
        started, largest = self.rows, max(len(batch["input_ids"]) for batch in own)
        while True:
            begin()
            try:
                value = self.attempt(model, batches, own, loss)
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
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        own: Sequence[Batch],
        loss: Loss,
    ) -> Tensor:
        """One forward and backward pass of every part of this process's own rows."""
        alone = self.group.size == 1
        parts = [part for batch in own for part in split_rows(batch, self.rows)]
        if len(parts) == 1 and alone:
            value = loss(model, parts[0]).sum()
            value.backward()  # type: ignore[no-untyped-call]
            return value.detach()
        counts = [count_scored(part) for part in parts]
        whole = counts if alone else [count_scored(batch) for batch in batches]
        totals = [sum(column) for column in zip(*whole, strict=True)]
        found: list[Tensor] = []
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
            found.append(value.detach())
        if not found and any(totals):  # the other processes have them
            return torch.zeros((), device=batches[0]["input_ids"].device)
        if not found:
            raise ValueError("no label of the batch is scored (every one is -100)")
        return torch.stack(found).sum()


def split_rows(batch: Batch, rows: int | None) -> Iterator[Batch]:
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


def ran_out_of_memory(error: RuntimeError) -> bool:
    """Whether memory ran out, on a GPU or on the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
