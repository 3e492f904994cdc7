"""The fine-tuned models of several tasks as one model, for gates that all of them share.

model = TaskModels([sts_b, qnli])              # two heads, each on an encoder of its own
attach(model, gates)                           # gates of one encoder's layers and heads
model(task=torch.tensor(1), **batch).loss      # QNLI's model under the gates
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from masksearch.evaluators.token_rows import bucket_batches
from masksearch.models.heads import Output

SET_ASIDE, EVERY = 256, 10  # rows held out of the training of gates: at most, and each how many


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
