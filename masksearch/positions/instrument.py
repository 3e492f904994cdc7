"""Puts a probe on a model for a while, and leaves the model as it was found."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from masksearch.attention.attach import ATTACHMENT, Attachment, attach, put_on, take_off
from masksearch.attention.probe import find_part, parts_of, pretrained_models, probe, unwrapped
from masksearch.contracts import Batch, Shape
from masksearch.errors import AttachError, HeadCountError
from masksearch.positions.probes import PositionProbe
from masksearch.positions.result import Special
from masksearch.training.loop import keeping_modes, on_device


def shape_of(model: nn.Module, batch: Batch) -> Shape:
    """Length, layers and heads of the model on such a batch.

    Raises:
        AttachError: If the model's attention cannot be reached, or has several parts.
        HeadCountError: If its layers have different numbers of heads.
    """
    given = example(model, batch)
    calls = probe(model, pretrained_models(model), given)
    find_part(model, parts_of(model, calls, given), None)
    heads = {call.heads for call in calls}
    if len(heads) > 1:
        raise HeadCountError(
            f"layers with {sorted(heads)} heads do not fit in one table; "
            "study a model with the same number in every layer"
        )
    layers = len({call.module for call in calls})
    return Shape(calls[0].keys, layers, heads.pop())


def example(model: nn.Module, batch: Batch) -> Batch:
    """The first sequence of a batch, on the model's device."""
    return {name: tensor[:1] for name, tensor in on_device(model, batch).items()}


def list_batches(batches: Iterable[Batch]) -> list[Batch]:
    """The batches as a list.

    Raises:
        ValueError: If there are none, or if their number is not known.
    """
    if not isinstance(batches, Sized):
        raise ValueError(
            f"batches are measured as a list of known length, got {type(batches).__name__}, which "
            "may be endless; pass list(itertools.islice(batches, 16))"
        )
    found = list(batches)
    if not found:
        raise ValueError("importance is a mean over batches, got none; pass at least one")
    return found


@contextmanager
def attached_probe(model: nn.Module, probe: PositionProbe, batch: Batch) -> Iterator[None]:
    """Attaches the probe; afterwards restores attachment, modes and gradients.

    A mask on the model stays in force: the probe computes under it.

    Raises:
        AttachError: If trainable gates are on the model, or attach refuses it.
    """
    model = unwrapped(model)
    before: Attachment | None = model.__dict__.get(ATTACHMENT)
    device = next(model.parameters()).device
    for state in before.states.values() if before is not None else ():
        if state.bank is not None:
            raise AttachError(
                "positions are studied under a fixed mask, and this model carries trainable "
                "gates; detach them, or attach the mask that was cut from them"
            )
        if state.token_mask is not None:
            raise AttachError(
                f"positions are studied under a mask of positions, and this model carries "
                f"{state.mask}, which follows the tokens; detach it first"
            )
        kept = None if state.lowered is None else state.lowered.table(probe.length, device)
        if kept is not None:
            probe.under[state.layer] = kept
    grads = [(parameter, parameter.grad) for parameter in model.parameters()]
    with keeping_modes(model):
        attach(model, probe.to(device), inputs=example(model, batch))
        try:
            yield
        finally:
            take_off(model)
            if before is not None:
                put_on(model, before)
            for parameter, grad in grads:
                parameter.grad = grad


def special_keys(batch: Batch, special: Special) -> dict[str, Tensor]:
    """Where each special token stands: name -> bool `[batch, n]`.

    Raises:
        ValueError: If the batch has no `input_ids`.
    """
    if not special:
        return {}
    if "input_ids" not in batch:
        raise ValueError(
            f"special tokens are found by their ids, and the batch has only {', '.join(batch)}; "
            "give batches with input_ids, or special=None"
        )
    tokens = batch["input_ids"]
    return {
        name: torch.isin(tokens, torch.tensor(ids, device=tokens.device))
        for name, ids in special.items()
    }
