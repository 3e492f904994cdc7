"""Puts a mask, or trainable gates, on the attention layers of a Hugging Face model.

The only file that touches transformers' attention interface. Layers are found by a probe
forward, in the order in which they are called, because `layer_idx` is missing or repeated in
many models. A module that is called several times (ALBERT) is one layer.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from masksearch.errors import AttachError, HeadCountError, LayerCountError, unknown_name
from masksearch.masks.core import Cropped, Mask
from masksearch.masks.families import layer_of
from masksearch.masks.lower import no_empty_rows

if TYPE_CHECKING:
    from masksearch.contracts import GateBank

NAME, PROBE = "masksearch", "masksearch_probe"
BACKENDS = ("auto", "sdpa")
GATES = "masksearch_gates"  # the submodule that holds the gates while they are attached
REACHABLE = "BERT, RoBERTa, DistilBERT, ELECTRA, ALBERT, ModernBERT, ESM, ViT, GPT-2, Llama, Qwen"
CROSS = (
    "{name} has cross-attention; attach to its encoder alone: ms.attach(model.get_encoder(), mask)"
)


@dataclass
class Rows:
    """Position of the first query of the running forward pass; None = keys minus queries."""

    start: int | None = None


@dataclass
class Slot:
    """What one attention module does under our name."""

    layer: int
    mask: Mask | None
    bank: GateBank | None
    rows: Rows
    tables: dict[tuple[int, torch.device], Tensor | None] = field(default_factory=dict)

    def table(self, keys: int, device: torch.device) -> Tensor | None:
        """bool `[1, heads | 1, keys, keys]`, or None where everything is kept."""
        if (keys, device) not in self.tables:
            assert self.mask is not None
            dense = self.mask.dense(keys)
            if isinstance(self.mask, Cropped):  # its rows are judged at its own length
                no_empty_rows(self.mask.of.dense(self.mask.at))
            else:
                no_empty_rows(dense)
            self.tables[keys, device] = None if dense.all() else dense[0][None].to(device)
        return self.tables[keys, device]


@dataclass
class Attachment:
    """What `detach` needs to undo an attach."""

    modules: list[nn.Module]
    previous: list[tuple[PreTrainedModel, str]]
    hook: Any = None


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


ROWS: dict[int, Rows] = {}  # id(config) -> rows of the attached model
SLOT = "masksearch_slot"
ATTACHMENT = "masksearch_attachment"


def attach(
    model: nn.Module,
    mask_or_gates: Mask | GateBank,
    inputs: Mapping[str, Any] | None = None,
    backend: str = "auto",
) -> nn.Module:
    """Makes every self-attention layer of a model use a mask, or trainable gates.

    Padding and causal masks of the model stay in force. A mask that keeps everything leaves
    the output exactly as SDPA's. An earlier mask is replaced.

    Args:
        model: A Hugging Face model, or a module that contains one.
        mask_or_gates: A mask (lowered at the length of each input; empty rows are refused
            then), or gates (`masksearch.Gates`), which become a submodule of the model and are
            drawn once per forward pass.
        inputs: Keyword arguments of one forward pass, used to find the layers; by default a
            few tokens, or one empty image.
        backend: `"sdpa"`, or `"auto"` (the same today).

    Returns:
        The same model.

    Raises:
        AttachError: If the model does not go through transformers' attention interface, or
            has cross-attention.
        LayerCountError, HeadCountError: If mask and model do not fit.
    """
    if backend not in BACKENDS:
        raise unknown_name("backend", backend, BACKENDS)
    detach(model, missing_ok=True)
    roots = pretrained(model)
    calls = probe(model, roots, inputs)
    modules = list(dict.fromkeys(call.module for call in calls))
    heads = {call.heads for call in calls}
    if len(heads) > 1:
        raise AttachError(f"layers with {sorted(heads)} heads cannot share one mask")
    mask = mask_or_gates if isinstance(mask_or_gates, Mask) else None
    bank = None if mask is not None else cast("GateBank", mask_or_gates)
    check_counts(mask, bank, len(modules), heads.pop())
    attachment = Attachment(modules, [(root, implementation(root)) for root in roots])
    if bank is not None:
        model.add_module(GATES, cast(nn.Module, bank))
        attachment.hook = model.register_forward_pre_hook(draw_gates)
    rows = Rows()
    for layer, module in enumerate(modules):
        single = layer_of(mask, layer) if mask is not None else None
        module.__dict__[SLOT] = Slot(layer, single, bank, rows)
    for root in roots:
        root.set_attn_implementation(NAME)
        ROWS[id(root.config)] = rows
    model.__dict__[ATTACHMENT] = attachment
    return model


def detach(model: nn.Module, missing_ok: bool = False) -> nn.Module:
    """Takes mask or gates off again and restores the previous attention implementation.

    Raises:
        AttachError: If nothing is attached to this model and `missing_ok` is off.
    """
    attachment: Attachment | None = model.__dict__.pop(ATTACHMENT, None)
    if attachment is None:
        if missing_ok:
            return model
        raise AttachError(
            f"nothing is attached to this {type(model).__name__}; "
            "detach takes the same module that attach was given"
        )
    for module in attachment.modules:
        module.__dict__.pop(SLOT, None)
    for root, previous in attachment.previous:
        root.set_attn_implementation(previous)
        ROWS.pop(id(root.config), None)
    if attachment.hook is not None:
        attachment.hook.remove()
    if GATES in model._modules:
        del model._modules[GATES]
    return model


def pretrained(model: nn.Module) -> list[PreTrainedModel]:
    """The outermost Hugging Face models inside a module."""
    if isinstance(model, PreTrainedModel):
        return [model]
    found = [root for child in model.children() for root in pretrained(child)]
    if not found and not isinstance(model, nn.ModuleList | nn.Sequential):
        return []
    return found


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


def check_counts(mask: Mask | None, bank: GateBank | None, layers: int, heads: int) -> None:
    """Whether mask or gates fit the model's layers and heads."""
    if mask is not None:
        mask.counts(layers, heads)
        return
    assert bank is not None
    if bank.layers not in (1, layers):
        raise LayerCountError(f"the gates have {bank.layers} layers, the model {layers}")
    if bank.heads not in (1, heads):
        raise HeadCountError(f"the gates have {bank.heads} heads, the model {heads}")


def draw_gates(model: nn.Module, inputs: Any) -> None:
    """Pre-forward hook: one sample of the gates serves the whole forward pass."""
    cast("GateBank", model.get_submodule(GATES)).draw()


# -- what transformers calls -------------------------------------------------------------------
def masked_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **rest: Any,
) -> tuple[Tensor, Tensor | None]:
    """SDPA under the slot's mask or gates; see transformers' `sdpa_attention_forward`."""
    slot: Slot | None = module.__dict__.get(SLOT)
    kept = slot.table(key.shape[2], key.device) if slot is not None and slot.mask else None
    if slot is None or (kept is None and slot.bank is None):
        return sdpa(module, query, key, value, attention_mask, dropout, scaling, is_causal, rest)
    queries, keys = query.shape[2], key.shape[2]
    start = keys - queries if slot.rows.start is None else slot.rows.start
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    visible = attention_mask
    if visible is None and causal and queries > 1:
        visible = torch.ones(queries, keys, dtype=torch.bool, device=query.device)
        visible = visible.tril(start)[None, None]
    if slot.bank is not None:
        return gated(slot, module, query, key, value, visible, dropout, scaling)
    assert kept is not None
    rows = kept[:, :, start : start + queries]
    if visible is None:
        combined = rows
    elif visible.dtype == torch.bool:
        combined = visible & rows
    else:  # an additive bias: -inf, never the smallest finite number (that leaks)
        combined = visible.masked_fill(~rows, -torch.inf)
    return sdpa(module, query, key, value, combined, dropout, scaling, False, rest)


def gated(
    slot: Slot,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    visible: Tensor | None,
    dropout: float,
    scaling: float | None,
) -> tuple[Tensor, None]:
    """One layer's attention under trainable gates."""
    assert slot.bank is not None
    groups = getattr(module, "num_key_value_groups", 1)
    if groups > 1 and key.shape[1] != query.shape[1]:
        key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    if visible is not None and visible.dtype != torch.bool:
        visible = visible > torch.finfo(visible.dtype).min / 2
    out = slot.bank.attend(
        slot.layer if slot.bank.layers > 1 else 0,
        query,
        key,
        value,
        visible,
        dropout=dropout,
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
    )
    return out.transpose(1, 2).contiguous(), None


def sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float,
    scaling: float | None,
    is_causal: bool | None,
    rest: dict[str, Any],
) -> tuple[Tensor, Tensor | None]:
    """transformers' own SDPA path."""
    out: tuple[Tensor, Tensor | None] = sdpa_attention_forward(
        module,
        query,
        key,
        value,
        attention_mask,
        dropout=dropout,
        scaling=scaling,
        is_causal=is_causal,
        **rest,
    )
    return out


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


def mask_with_rows(*args: Any, q_offset: int = 0, kv_offset: int = 0, **rest: Any) -> Any:
    """SDPA's padding and causal mask; notes where the queries stand (static caches)."""
    rows = ROWS.get(id(rest.get("config")))
    if rows is not None:
        rows.start = int(q_offset) - int(kv_offset)
    return sdpa_mask(*args, q_offset=q_offset, kv_offset=kv_offset, **rest)


AttentionInterface.register(NAME, masked_attention)
AttentionMaskInterface.register(NAME, mask_with_rows)  # without it padding silently vanishes
AttentionInterface.register(PROBE, probing_attention)
AttentionMaskInterface.register(PROBE, sdpa_mask)
