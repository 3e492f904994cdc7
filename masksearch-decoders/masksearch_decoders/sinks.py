"""Attention sinks as logits: what a mask keeps of the first tokens, in a form that engines serve.

    to_native(model, masks.per_layer([masks.columns(4) | masks.window(127), ..]),
              sinks="tune", text="books")

No configuration names sinks, but a GraniteSWA has a learned logit a head, which takes part in the
softmax with a value of 0. Where a mask keeps sinks, such a logit takes their place:

    measure   one pass under the mask: each query's log-sum-exp over its window, the share of its
              attention that the sinks get, and their mean value v in each KV head
    write     a head's logit is the s with mean sigmoid(s - log-sum-exp) = mean share. A sink of
              constant value v is exactly a value bias of -v and an output bias of W v, because
              attention with the sink sums to 1
    tune      steps on these logits and biases alone, towards what the model says without a mask

What is lost: a logit that follows the query, and values that follow the text.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import reduce
from operator import and_, or_
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel

from masksearch.attention.attach import attach, detach
from masksearch.attention.call import AttentionCall
from masksearch.attention.probe import keeping_modes
from masksearch.contracts import Batch, generator
from masksearch.errors import DataError
from masksearch.masks.core import Both, Either, Mask
from masksearch.masks.leaves import Columns
from masksearch.tasks.splits import evenly_spaced
from masksearch.training.checkpoints import Checkpoints, digest
from masksearch.training.loop import TrainConfig, train
from masksearch_decoders.decoders import divergence
from masksearch_decoders.tasks.next_token import NextTokenText

Sinks = Literal["none", "calibrate", "tune"]
NO_SINK = -1e4  # the logit of a sink that nobody sees
MEASURED = 16  # sequences that are measured
LENGTH = 512  # positions of a sequence, unless windows are wider than half of that
LEAST = 1000  # queries that have all sinks behind their window, below which nothing is measured
RATE, FASTER = 4e-3, 25.0  # peak learning rate of biases; that of sinks is so many times larger


def without_sinks(mask: Mask) -> Mask:
    """The mask of one layer without the tokens of fixed positions that it keeps."""
    if isinstance(mask, Either):
        parts = [without_sinks(part) for part in mask.of if not isinstance(part, Columns)]
        return reduce(or_, parts) if parts else mask
    return reduce(and_, map(without_sinks, mask.of)) if isinstance(mask, Both) else mask


def keeps_sinks(mask: Mask, layers: int) -> bool:
    """Whether a mask keeps tokens of fixed positions beside something else, in some layer."""
    every = (mask.of_layer(layer) for layer in range(layers))
    return any(each != without_sinks(each) for each in every)


def calibration_text(
    text: Path | str | Tensor | None, model: PreTrainedModel, most: int, first: int
) -> Tensor:
    """Token ids to measure and tune on, int64 `[sequences, positions]`.

    Args:
        text: As of `to_native`.
        model: Whose tokens they are.
        most: Sequences that are used.
        first: The first position that has all sinks behind its window.

    Raises:
        DataError: If they are too few, or no tokens of this model.
    """
    if text is None:
        raise DataError("sinks are measured on a text: give text=, a file or a folder of *.txt")
    if not isinstance(text, Tensor) and not model.name_or_path:
        raise DataError(
            "this model was loaded from no folder that has its tokenizer; give text= as token ids "
            "[sequences, positions]"
        )
    if isinstance(text, Tensor):
        tokens = text
    else:
        longest = getattr(model.config, "max_position_embeddings", LENGTH)
        length = min(max(LENGTH, 2 * first), longest)
        train = NextTokenText.load(text, tokenizer=model.name_or_path, length=length).train
        tokens = train[evenly_spaced(len(train), most)].long()
    queries = min(MEASURED, len(tokens)) * max(0, tokens.shape[1] - first)
    if queries < LEAST:
        raise DataError(
            f"{len(tokens)} sequences of {tokens.shape[1]} tokens have {queries} queries from "
            f"position {first} on, which see sinks beside their window; sinks are measured on at "
            f"least {LEAST:,}: give more text, or longer sequences"
        )
    if not 0 <= int(tokens.min()) <= int(tokens.max()) < model.config.vocab_size:
        raise DataError(
            f"token ids go from {int(tokens.min())} to {int(tokens.max())}, and the model embeds "
            f"{model.config.vocab_size}; give the ids of its own tokenizer"
        )
    return tokens.to(model.device)


class SinkMeter(nn.Module):
    """A model's attention under a mask, and what the sinks get of it; follows `GateBank`.

    Args:
        kept: The mask of each layer.
        local: The same without sinks.
        heads: Query heads of a layer.

    Attributes:
        sums: Layer -> log-sum-exp over the window, float `[heads, queries]` of each sequence, of
            the queries that have all sinks behind their window.
        shares: Layer -> the sinks' share of the attention, likewise.
        values: Layer -> sum of the sinks' weighted values, float `[heads, head_dim]`.
    """

    def __init__(self, kept: list[Mask], local: list[Mask], heads: int) -> None:
        super().__init__()
        self.kept, self.local, self.length = kept, local, 0
        self.layers, self.heads = len(kept), heads
        self.sums: dict[int, list[Tensor]] = {}
        self.shares: dict[int, list[Tensor]] = {}
        self.values: dict[int, Tensor] = {}

    def draw(self) -> None:
        """Nothing is random here."""

    def attend(self, layer: int, call: AttentionCall) -> Tensor:
        """Attention under the mask of the layer; see `GateBank.attend`."""
        size, device = call.key.shape[2], call.key.device
        kept, local = (each[layer].dense(size)[0].to(device) for each in (self.kept, self.local))
        if call.visible is not None:
            kept, local = kept & call.visible[0], local & call.visible[0]
        call = replace(call, visible=kept[None])
        if self.kept[layer] == self.local[layer]:
            return call.attend()
        weights, behind = call.weights(), (kept & ~local).sum(-1)[0]
        rows = behind == behind.max()
        sums = call.scores().masked_fill(~local, -torch.inf)[0, :, rows].logsumexp(-1)
        sinks = weights.masked_fill(local, 0)[0, :, rows]
        self.sums.setdefault(layer, []).append(sums)
        self.shares.setdefault(layer, []).append(sinks.sum(-1))
        values = (sinks.sum(-2, keepdim=True) @ call.value[0].to(sinks))[:, 0]
        self.values[layer] = self.values.get(layer, torch.zeros_like(values)) + values
        return weights.to(call.value.dtype) @ call.value


@torch.no_grad()
def calibrate(model: Any, native: Any, meter: SinkMeter, tokens: Tensor) -> None:
    """Writes the sinks that a mask keeps into the logits, and biases, of a GraniteSWA.

    Args:
        model: The model without a mask.
        native: The GraniteSWA of its weights; it gets parameters of its own.
        meter: Of the mask.
        tokens: What is measured on.
    """
    with keeping_modes(model):
        attach(model.eval(), meter)
        try:
            for row in tokens[evenly_spaced(len(tokens), MEASURED)]:
                model(row[None], use_cache=False)
        finally:
            detach(model)
    for layer, values in meter.values.items():
        attention = native.base_model.layers[layer].self_attn
        sums, shares = (torch.cat(each[layer], -1) for each in (meter.sums, meter.shares))
        parameters: dict[str, Tensor] = {"sinks": _matching_logit(sums, shares.mean(-1))}
        if native.config.attention_bias:
            groups = attention.num_key_value_groups
            mass = shares.sum(-1).view(-1, groups).sum(1)
            value = values.view(len(mass), groups, -1).sum(1) / mass[:, None]
            weight = attention.o_proj.weight
            output = weight.to(value) @ value.repeat_interleave(groups, 0).flatten()
            parameters["v_proj.bias"] = attention.v_proj.bias - value.flatten()
            parameters["o_proj.bias"] = attention.o_proj.bias + output
        for name, value_found in parameters.items():
            module, _, last = name.rpartition(".")
            holder, before = attention.get_submodule(module), attention.get_parameter(name)
            setattr(holder, last, nn.Parameter(value_found.to(before)))


def _matching_logit(sums: Tensor, share: Tensor) -> Tensor:
    """The logit that gets a share of the attention in the mean, by bisection: float64 `[heads]`.

    Args:
        sums: Log-sum-exp of the other scores, `[heads, queries]`.
        share: In (0, 1), `[heads]`.
    """
    sums = sums.double()
    low, high = sums.amin(-1) - 40, sums.amax(-1) + 40
    for _ in range(60):
        middle = (low + high) / 2
        over = (middle[:, None] - sums).sigmoid().mean(-1) > share
        low, high = torch.where(over, low, middle), torch.where(over, middle, high)
    return low


def tune(
    model: Any, native: Any, meter: SinkMeter, tokens: Tensor, steps: int, folder: Path | None
) -> None:
    """Trains the sinks, and their biases, towards what the model says without a mask.

    One sequence a step, all positions. Weights that are shared with the model get no gradient.

    Args:
        model: The model without a mask.
        native: The GraniteSWA that `calibrate` has written to.
        meter: Of the mask.
        tokens: What is trained on.
        steps: Optimiser steps.
        folder: Keeps checkpoints, from which a killed run goes on; None = nowhere.
    """
    weights = {name: each.detach() for name, each in native.named_parameters()}
    ends = ("sinks", "v_proj.bias", "o_proj.bias")[: 3 if native.config.attention_bias else 1]
    places = tuple(f".layers.{layer}.self_attn." for layer in meter.values)
    names = [
        name for name in weights if name.endswith(ends) and any(place in name for place in places)
    ]
    factors = {name: FASTER if name.endswith("sinks") else 1.0 for name in names}
    knobs = nn.ParameterList([weights[name].float() / factors[name] for name in names])

    def turned() -> dict[str, Tensor]:
        pairs = zip(factors.items(), knobs, strict=True)
        return {name: (knob * factor).to(weights[name]) for (name, factor), knob in pairs}

    def loss(_: nn.Module, batch: Batch) -> Tensor:
        output = functional_call(native, weights | turned(), kwargs={**batch, "use_cache": False})
        with torch.no_grad():
            target = model(**batch, use_cache=False).logits
        return divergence(output.logits.float(), target.float()).mean()

    def batches(start: int) -> Iterator[Batch]:
        order = torch.randperm(len(tokens), generator=generator(0))
        for step in range(start, steps):
            yield {"input_ids": tokens[order[step % len(order)]][None]}

    config = TrainConfig(steps=steps, lr=RATE, weight_decay=0.0)
    kept = None
    if folder is not None:
        about = f"{config} {names} {[mask.digest for mask in meter.kept]}"
        values = {name: each.cpu() for name, each in weights.items()}
        key = digest(about, {**values, "tokens": tokens.cpu()})
        kept = Checkpoints(folder, "sinks", key)
    with keeping_modes(model, native):
        model.eval()
        native.eval()
        for _ in train(knobs, batches, config, loss, checkpoints=kept, title="sinks"):
            pass
    for name, value in turned().items():
        holder = native.get_submodule(name.rpartition(".")[0])
        setattr(holder, name.rpartition(".")[2], nn.Parameter(value.detach()))
