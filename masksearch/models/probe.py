"""Finds a model's attention layers: one probe forward that records every attention call."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from masksearch.errors import AttachError

PROBE = "masksearch_probe"
REACHABLE = "BERT, RoBERTa, DistilBERT, ELECTRA, ALBERT, ModernBERT, ESM, ViT, GPT-2, Llama, Qwen"
CROSS = (
    "{name} has cross-attention; attach to its encoder alone: ms.attach(model.get_encoder(), mask)"
)


@dataclass(frozen=True)
class Call:
    """One attention call that the probe has seen."""

    module: nn.Module
    heads: int
    queries: int
    keys: int


class Probe:
    """Collects attention calls while it is active."""

    calls: list[Call] | None = None


def pretrained(model: nn.Module) -> list[PreTrainedModel]:
    """The outermost Hugging Face models inside a module."""
    if isinstance(model, PreTrainedModel):
        return [model]
    return [root for child in model.children() for root in pretrained(child)]


def implementation(root: PreTrainedModel) -> str:
    """Name of the attention implementation that a model uses now."""
    return str(root.config._attn_implementation or "sdpa")


def probe(
    model: nn.Module, roots: list[PreTrainedModel], inputs: Mapping[str, Any] | None
) -> list[Call]:
    """One forward pass without gradient that records every attention call in order."""
    name = type(model).__name__
    if not roots:
        raise AttachError(f"{name} contains no Hugging Face model (PreTrainedModel)")
    if any(getattr(root.config, "is_encoder_decoder", False) for root in roots):
        raise AttachError(CROSS.format(name=name))
    previous = [implementation(root) for root in roots]
    training = [(module, module.training) for module in model.modules()]
    device = next(model.parameters()).device
    given = dict(inputs) if inputs is not None else example_inputs(model, roots[0], device)
    Probe.calls = []
    try:
        for root in roots:
            root.set_attn_implementation(PROBE)
        model.eval()
        with torch.no_grad():
            model(**given)
        calls = Probe.calls
    finally:
        Probe.calls = None
        for root, before in zip(roots, previous, strict=True):
            root.set_attn_implementation(before)
        for module, mode in training:
            module.training = mode
    if not calls:
        raise AttachError(
            f"{name} does not use transformers' attention interface, so no mask can be put on "
            f"it; models that do include {REACHABLE}"
        )
    if any(call.queries != call.keys for call in calls):
        raise AttachError(CROSS.format(name=name))
    return calls


def example_inputs(
    model: nn.Module, root: PreTrainedModel, device: torch.device
) -> dict[str, Tensor]:
    """A few tokens or one empty image, by the name of the model's main input."""
    names = inspect.signature(model.forward).parameters
    config = root.config
    if "input_ids" in names:
        return {"input_ids": torch.ones(1, 5, dtype=torch.int64, device=device)}
    if "pixel_values" in names:
        side, channels = getattr(config, "image_size", 224), getattr(config, "num_channels", 3)
        return {"pixel_values": torch.zeros(1, channels, side, side, device=device)}
    raise AttachError(
        f"{type(model).__name__}.forward takes {', '.join(names)}; give inputs={{...}} with "
        "example arguments, so that the attention layers can be found"
    )


def probing_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **rest: Any
) -> tuple[Tensor, Tensor | None]:
    """Records the call, then computes it as SDPA does."""
    if Probe.calls is not None:
        call = Call(module, query.shape[1], query.shape[2], key.shape[2])
        Probe.calls.append(call)
    out: tuple[Tensor, Tensor | None] = sdpa_attention_forward(
        module, query, key, value, attention_mask, **rest
    )
    return out
