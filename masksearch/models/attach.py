"""Puts a mask, or trainable gates, on the attention layers of a Hugging Face model.

The only file that touches transformers' attention interface. Layers are found by a probe
forward, in the order in which they are called, because `layer_idx` is missing or repeated in
many models. A module that is called several times (ALBERT) is one layer.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from masksearch.errors import AttachError, HeadCountError, LayerCountError, unknown_name
from masksearch.masks.combinators import Cropped
from masksearch.masks.core import Mask
from masksearch.masks.families import layer_of
from masksearch.masks.lower import no_empty_rows
from masksearch.models.probe import (
    PROBE,
    Probe,
    implementation,
    pretrained,
    probe,
    probing_attention,
)

if TYPE_CHECKING:
    from masksearch.contracts import GateBank

NAME = "masksearch"
BACKENDS = ("auto", "sdpa")
BIAS = (
    "{name} adds a bias to its attention scores, which gates would drop; search on a model "
    "without one, such as BERT"
)
TABLES = 8  # lengths whose lowered table a layer keeps
GATES = "masksearch_gates"  # the submodule that holds the gates while they are attached


class Rows:
    """Position of the first query of the running forward pass; None = keys minus queries.

    Belongs to one configuration object, by which `mask_with_rows` finds it. A copied or
    unpickled model has a configuration, and so rows, of its own.
    """

    def __init__(self, config: Any) -> None:
        self.config = weakref.ref(config)
        self.start: int | None = None
        ROWS[id(config)] = self
        weakref.finalize(config, ROWS.pop, id(config), None)

    def __getstate__(self) -> dict[str, Any]:
        return {"config": self.config()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["config"])  # type: ignore[misc]


@dataclass
class Slot:
    """What one attention module does under our name."""

    layer: int
    mask: Mask | None
    bank: GateBank | None
    rows: Rows
    tables: dict[tuple[int, torch.device], Tensor | None] = field(default_factory=dict)

    def table(self, keys: int, device: torch.device) -> Tensor | None:
        """Bool `[1, heads | 1, keys, keys]`, or None where everything is kept."""
        if (keys, device) not in self.tables:
            assert self.mask is not None
            dense = self.mask.dense(keys)
            if isinstance(self.mask, Cropped):  # its rows are judged at its own length
                no_empty_rows(self.mask.of.dense(self.mask.at))
            else:
                no_empty_rows(dense)
            while len(self.tables) >= TABLES:  # generation asks for a new length at every token
                del self.tables[next(iter(self.tables))]
            self.tables[keys, device] = None if dense.all() else dense[0][None].to(device)
        return self.tables[keys, device]


@dataclass
class Attachment:
    """What `detach` needs to undo an attach."""

    modules: list[nn.Module]
    previous: list[tuple[PreTrainedModel, str]]
    hook: Any = None


ROWS: dict[int, Rows] = {}  # id(config) -> rows
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
    roots = pretrained(model)
    if ATTACHMENT not in model.__dict__ and NAME in map(implementation, roots):
        raise AttachError(
            f"{type(model).__name__} already has a mask, put on through another module or through "
            "a model with the same configuration object; detach that one first"
        )
    calls = probe(model, roots, inputs)
    modules = list(dict.fromkeys(call.module for call in calls))
    heads = {call.heads for call in calls}
    if len(heads) > 1:
        raise AttachError(f"layers with {sorted(heads)} heads cannot share one mask")
    mask = mask_or_gates if isinstance(mask_or_gates, Mask) else None
    bank = None if mask is not None else cast("GateBank", mask_or_gates)
    check_counts(mask, bank, len(modules), heads.pop())
    detach(model, missing_ok=True)  # only now: a refused mask leaves the earlier one in force
    attachment = Attachment(modules, [(root, implementation(root)) for root in roots])
    if bank is not None:
        model.add_module(GATES, cast(nn.Module, bank))
        attachment.hook = model.register_forward_pre_hook(draw_gates)
    layers = {module: layer for layer, module in enumerate(modules)}
    for root in roots:
        root.set_attn_implementation(NAME)
        rows = ROWS.get(id(root.config)) or Rows(root.config)
        for module in layers.keys() & set(root.modules()):
            single = layer_of(mask, layers[module]) if mask is not None else None
            module.__dict__[SLOT] = Slot(layers[module], single, bank, rows)
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
    if attachment.hook is not None:
        attachment.hook.remove()
    if GATES in model._modules:
        del model._modules[GATES]
    return model


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
    if Probe.calls is not None:
        return
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
        if rest.get("position_bias") is not None:
            raise AttachError(BIAS.format(name=type(module).__name__))
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
        seen = visible > torch.finfo(visible.dtype).min / 2
        if visible[seen].any():
            raise AttachError(BIAS.format(name=type(module).__name__))
        visible = seen
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
    """Transformers' own SDPA path."""
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


def mask_with_rows(*args: Any, **rest: Any) -> Any:
    """SDPA's padding and causal mask; notes where the queries stand (static caches)."""
    rows = ROWS.get(id(rest.get("config")))
    if rows is not None:
        rows.start = int(rest.get("q_offset", 0)) - int(rest.get("kv_offset", 0))
    return sdpa_mask(*args, **rest)


AttentionInterface.register(NAME, masked_attention)
AttentionMaskInterface.register(NAME, mask_with_rows)  # without it padding silently vanishes
AttentionInterface.register(PROBE, probing_attention)
AttentionMaskInterface.register(PROBE, sdpa_mask)
