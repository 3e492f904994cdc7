"""The probes in a layer's attention while its positions are studied, and how they get there.

Every class here follows `GateBank`, so that `attach` puts it on any model that it reaches
(`attached_probe`, for a while). All of them see the attention that the model computes anyway: its
padding, its causality, and the mask that is attached to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masksearch.attention.attach import ATTACHMENT, Attachment, attach, put_on, take_off
from masksearch.attention.call import AttentionCall
from masksearch.attention.probe import (
    find_part,
    keeping_modes,
    parts_of,
    pretrained_models,
    probe,
    unwrapped,
)
from masksearch.contracts import Batch, Shape
from masksearch.errors import AttachError, HeadCountError, LengthError
from masksearch.gates.estimators import flip
from masksearch.positions.result import Special
from masksearch.training.loop import on_device

Observe = Callable[[int, Tensor, Tensor], None]


def _valid_pairs(visible: Tensor | None, batch: int, length: int, device: torch.device) -> Tensor:
    """Non-padding query-key pairs in which the query may attend to the key.

    A position that no query can see is padding; its row then does not count either.

    Args:
        visible: The model's own bool `[batch | 1, heads | 1, n, n]`, or None = everything.
        batch: Sequences.
        length: Positions n.
        device: Where the result lies.

    Returns:
        bool `[batch, heads | 1, n, n]`.
    """
    if visible is None:
        visible = torch.ones(1, 1, length, length, dtype=torch.bool, device=device)
    visible = visible.expand(batch, -1, length, length)
    return visible & visible.any(-2).any(1)[:, None, :, None]


def ignore(layer: int, tensor: Tensor, valid: Tensor) -> None:
    """Observes nothing; what a probe calls unless it is given something else."""


class PositionProbe(nn.Module):
    """Base of the probes: their sizes, the mask in force, and the pairs that count.

    Args:
        length: Positions of every batch.
        heads: Heads of a layer of the model.
        layers: Layers of the model.
        observe: Called with the layer, a tensor of the probe's own and the valid pairs.

    Attributes:
        under: Layer -> bool `[1, heads | 1, n, n]`, the mask that was attached to the model.
    """

    def __init__(self, length: int, heads: int, layers: int, observe: Observe = ignore) -> None:
        super().__init__()
        self.length, self.heads, self.layers, self.observe = length, heads, layers, observe
        self.under: dict[int, Tensor] = {}

    def draw(self) -> None:
        """Nothing is random here."""

    def attend(self, layer: int, call: AttentionCall) -> Tensor:
        """One layer's attention, as each probe computes it; see `GateBank.attend`."""
        raise NotImplementedError

    def masked(self, layer: int, call: AttentionCall) -> tuple[AttentionCall, Tensor]:
        """The call under the mask in force, and the pairs that count (see `_valid_pairs`).

        Raises:
            LengthError: If the sequences are not `length` positions long.
        """
        queries, keys = call.query.shape[-2], call.key.shape[-2]
        if queries != keys or keys != self.length:
            raise LengthError(
                f"every batch has the length of the first one, {self.length} positions, got "
                f"{queries} queries and {keys} keys; pad the batches to one length, without cache"
            )
        valid = _valid_pairs(call.visible, len(call.query), keys, call.query.device)
        kept = self.under.get(layer)
        if kept is None:
            return call, valid
        visible = kept if call.visible is None else call.visible & kept
        return replace(call, visible=visible), valid & kept


class WatchedAttention(PositionProbe):
    """The model's own attention, shown to `observe(layer, weights, valid)` on the way.

    Weights are P `[batch, heads, n, n]`, and with gradients enabled they require one.
    """

    def attend(self, layer: int, call: AttentionCall) -> Tensor:
        """P V; see `GateBank.attend`."""
        call, valid = self.masked(layer, call)
        weights = call.weights()
        if torch.is_grad_enabled() and not weights.requires_grad:  # a model of frozen weights
            weights.requires_grad_()
        self.observe(layer, weights, valid)
        return F.dropout(weights, call.dropout).to(call.value.dtype) @ call.value


class FlippedAttention(PositionProbe):
    """The model's own attention with an open gate on every edge of every sequence.

    `observe(layer, gate, valid)` gets the gates, ones `[batch * heads, n, n]`, whose gradient is
    that of `gates.estimators.flip`.
    """

    def attend(self, layer: int, call: AttentionCall) -> Tensor:
        """P V; see `GateBank.attend`. Sequences stand where heads do."""
        call, valid = self.masked(layer, call)
        batch, heads, length, _ = call.query.shape
        gate = torch.ones(
            batch * heads, length, length, device=call.query.device, requires_grad=True
        )
        self.observe(layer, gate, valid)
        parts = {
            name: part.expand(batch, heads, -1, -1).flatten(0, 1)[None]
            for name in ("query", "key", "value", "visible", "bias")
            if (part := getattr(call, name)) is not None
        }
        sinks = None if call.sinks is None else call.sinks.repeat(batch)
        return flip(replace(call, sinks=sinks, **parts), gate).view(call.query.shape)


class BiasedKeys(PositionProbe):
    """The model's own attention with a bias of 0 on every key of every sequence.

    `observe(layer, bias, valid)` gets it, `[batch, 1, 1, n]`; its gradient is the slope by the
    scores of all queries for that key, in all heads. No mask may be on the model.
    """

    def attend(self, layer: int, call: AttentionCall) -> Tensor:
        """Attention; see `GateBank.attend`. Batches may differ in length."""
        batch, _, keys, _ = call.key.shape
        bias = torch.zeros(batch, 1, 1, keys, device=call.key.device, requires_grad=True)
        self.observe(layer, bias, _valid_pairs(call.visible, batch, keys, bias.device))
        whole = bias.expand(-1, -1, call.query.shape[-2], -1)
        return replace(call, bias=whole if call.bias is None else call.bias + whole).attend()


class ThinnedAttention(PositionProbe):
    """Exact attention without the pairs `removed`, renormalised over the remaining keys.

    A row that would be left without any key keeps what it has: nothing is dropped there.

    Attributes:
        removed: bool `[batch | 1, 1, n, n]`, or None = nothing.
        layer: The only layer in which pairs are dropped; None = all.
        head: The only head in which pairs are dropped; None = all.
        cells: Of each call that dropped, the mean number of dropped pairs a sequence and head.
    """

    def __init__(self, length: int, heads: int, layers: int) -> None:
        super().__init__(length, heads, layers)
        self.removed: Tensor | None = None
        self.layer: int | None = None
        self.head: int | None = None
        self.cells: list[float] = []

    def attend(self, layer: int, call: AttentionCall) -> Tensor:
        """Masked attention; see `GateBank.attend`."""
        call, valid = self.masked(layer, call)
        if self.removed is None or self.layer not in (None, layer):
            return call.attend()
        whole = call.visible
        if whole is None:
            whole = torch.ones(1, 1, self.length, self.length, dtype=torch.bool)
            whole = whole.to(call.query.device)
        kept = whole & ~(self.removed & valid)
        kept = kept | (whole & ~kept.any(-1, keepdim=True))
        self.cells.append((valid & ~kept).sum((-2, -1)).double().mean().item())
        if self.head is not None:
            chosen = torch.arange(call.query.shape[1], device=kept.device) == self.head
            kept = torch.where(chosen[None, :, None, None], kept, whole)
        return replace(call, visible=kept).attend()


# -- on a model and off again ------------------------------------------------------------------
def shape_of(model: nn.Module, batch: Batch) -> Shape:
    """Length, layers and heads of the model on such a batch.

    Raises:
        AttachError: If the model's attention cannot be reached, or has several parts.
        HeadCountError: If its layers have different numbers of heads.
    """
    inputs = example(model, batch)
    calls = probe(model, pretrained_models(model), inputs)
    find_part(model, parts_of(model, calls, inputs), None)
    heads = {call.heads for call in calls}
    if len(heads) > 1:
        raise HeadCountError(
            f"layers with {sorted(heads)} heads do not fit in one table; "
            "study a model with the same number in every layer"
        )
    return Shape(calls[0].keys, len({call.module for call in calls}), heads.pop())


def example(model: nn.Module, batch: Batch) -> Batch:
    """The first sequence of a batch, on the model's device."""
    batch = on_device(model, batch)
    return {name: part[:1] if part.ndim else part for name, part in batch.items()}


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
    listed = list(batches)
    if not listed:
        raise ValueError("importance is a mean over batches, got none; pass at least one")
    return listed


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
