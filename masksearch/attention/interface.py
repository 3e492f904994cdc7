"""What transformers calls in place of SDPA while a mask, or gates, are attached."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import (
    bidirectional_mask_function,
    causal_mask_function,
    sdpa_mask,
)

from masksearch.attention.kernels.custom_op import compute
from masksearch.attention.kernels.states import asks_gradient
from masksearch.attention.lowered import (
    Lowered,
    left_to_sdpa,
    lowered_backend,
    lowered_plan,
    whole,
)
from masksearch.attention.slots import ROWS, SLOT, Rows, Slot
from masksearch.attention.tokens import carry
from masksearch.contracts import AttentionCall
from masksearch.errors import AttachError

BIAS = (
    "{name} gives its attention mask finite numbers (a bias on its scores), which trainable "
    "gates would drop; search on a model without one, such as BERT"
)


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
    queries, keys = query.shape[2], key.shape[2]
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    if attention_mask is not None and attention_mask.ndim > 4:
        causal = attention_mask.ndim == CAUSAL
    if slot is not None and slot.lowered is not None:
        out = sparse(slot, query, key, value, attention_mask, causal, dropout, scaling, rest)
        if out is not None:
            return out.transpose(1, 2).contiguous(), None
    kept = None
    if slot is not None:
        kept = slot.kept(query.shape[0], queries, keys, key.device, attention_mask)
    if attention_mask is not None and attention_mask.ndim > 4:
        attention_mask = written_out(attention_mask, queries)
    if slot is None or (kept is None and slot.bank is None):
        return sdpa(module, query, key, value, attention_mask, dropout, scaling, is_causal, rest)
    visible = attention_mask
    if visible is None and causal and queries > 1:
        start, _ = slot.start(queries, keys)
        visible = torch.ones(queries, keys, dtype=torch.bool, device=query.device)
        visible = visible.tril(int(start))[None, None]
    bias = rest.get("position_bias")
    if slot.bank is not None:
        return gated(slot, module, query, key, value, visible, dropout, scaling, bias)
    assert kept is not None
    if visible is None:
        combined = kept
    elif visible.dtype == torch.bool:
        combined = visible & kept
    else:  # an additive bias: -inf, never the smallest finite number (that leaks)
        combined = visible.masked_fill(~kept, -torch.inf)
    if bias is not None:  # transformers would fill in the smallest finite number
        rest = {**rest, "position_bias": None}
        if combined.dtype == torch.bool:
            combined = torch.where(combined, bias, -torch.inf)
        else:
            combined = combined + bias
    return sdpa(module, query, key, value, combined, dropout, scaling, False, rest)


# -- sparse backends ---------------------------------------------------------------------------
def sparse(
    slot: Slot,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    causal: bool,
    dropout: float,
    scaling: float | None,
    rest: dict[str, Any],
) -> Tensor | None:
    """Attention by block gather or FlexAttention, `[batch, heads, n, width]`.

    None where SDPA is to compute: it was asked for, it is the faster, or the call is more than
    self-attention over whole sequences under padding and causality (`slot.fallback` says so).

    Raises:
        AttachError: If FlexAttention was asked for on the CPU, where it has no gradient.
    """
    lowered = slot.lowered
    assert lowered is not None
    length = query.shape[2]
    if not lowered.may_be_sparse(length):
        return None
    slot.fallback = ineligible(slot, query, key, attention_mask, causal, rest)
    if slot.fallback:
        return None
    trains = asks_gradient(query, key, value)
    device, size = query.device, whole(length)
    visible = None if attention_mask is None else attention_mask.flatten(1)
    factor = query.shape[-1] ** -0.5 if scaling is None else scaling
    if lowered.unmeasured(size, device, trains):
        from masksearch.attention.kernels.timed import Call, fastest

        call = Call(lowered, query, key, value, visible, factor, dropout)
        lowered.choices[size, device, trains] = fastest(call)
    backend = lowered_backend(lowered.key, size, device, trains)
    if not backend:
        return None
    if backend == "flex" and device.type == "cpu" and trains:
        raise AttachError(
            f"{lowered.where}: FlexAttention has no backward pass on the CPU; attach with "
            'backend="gather", or compute under torch.no_grad()'
        )
    if dropout > 0 and torch.compiler.is_compiling():
        slot.fallback = "attention dropout in a compiled graph: SDPA computes"
        return None
    if backend == "flex" and dropout > 0:
        backend, slot.fallback = "gather", "FlexAttention has no dropout: block gather computes"
    if torch.compiler.is_compiling():
        if torch.is_autocast_enabled(device.type):
            dtype = torch.get_autocast_dtype(device.type)
            query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
        lowered_plan(lowered.key, backend, size, device)  # made, and its errors raised, now
        operator = torch.ops.masksearch.attention
        made: Tensor = operator(query, key, value, visible, lowered.key, backend, factor)
        return made
    plan = lowered.plan(backend, size, device)
    return compute(query, key, value, visible, plan, backend, factor, dropout)


def ineligible(
    slot: Slot,
    query: Tensor,
    key: Tensor,
    attention_mask: Tensor | None,
    causal: bool,
    rest: dict[str, Any],
) -> str:
    """Why only SDPA can compute a call; empty where a sparse backend can."""
    if traced := left_to_sdpa():
        return traced
    if slot.cross:
        return "cross-attention: SDPA computes"
    if query.shape[2] != key.shape[2]:
        return "keys come from a cache: SDPA computes"
    if rest.get("position_bias") is not None:
        return "the model adds a bias to the scores: SDPA computes"
    if attention_mask is not None and attention_mask.ndim == 4:
        return "the model's own mask is more than padding and causality: SDPA computes"
    if bool(causal) != slot.causal:
        return "causality is not as it was when the mask was attached: SDPA computes"
    if any(rest.get(name) is not None for name in ("softcap", "s_aux", "cache")):
        return "the model changes the scores or pages its cache: SDPA computes"
    return ""


def some_sparse(several: list[Lowered], length: int, device: torch.device, causal: bool) -> bool:
    """Whether one of these masks computes whole sequences of that length without a table."""
    if left_to_sdpa():
        return False
    trains = torch.is_grad_enabled()
    for lowered in several:
        if lowered.causal != causal or not lowered.plain or not lowered.may_be_sparse(length):
            continue
        if lowered.unmeasured(length, device, trains):
            return True
        if lowered_backend(lowered.key, length, device, trains):
            return True
    return False


BIDIRECTIONAL, CAUSAL = 5, 6  # dimensions: no model makes a mask with as many


def packed(padding: Tensor, causal: bool) -> Tensor:
    """Padding `[batch, n]` as a mask that is not written out, for layers without a table.

    Its number of dimensions says whether later keys are hidden as well. That survives what
    happens to a mask between here and the layers: gradient checkpoints, moves, copies.
    """
    return padding.view(len(padding), *[1] * ((CAUSAL if causal else BIDIRECTIONAL) - 2), -1)


def written_out(mask: Tensor, queries: int) -> Tensor:
    """A packed mask as SDPA takes it, bool `[batch, 1, queries, keys]`."""
    padding = mask.flatten(1)[:, None, None]
    visible = padding.expand(-1, -1, queries, -1)
    if mask.ndim == CAUSAL:
        visible = visible & torch.ones_like(visible[0, 0]).tril()
    return visible


def gated(
    slot: Slot,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    visible: Tensor | None,
    dropout: float,
    scaling: float | None,
    bias: Tensor | None,
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
    call = AttentionCall(
        query,
        key,
        value,
        visible=visible,
        dropout=dropout,
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        bias=bias,
    )
    queries, keys = query.shape[2], key.shape[2]
    start, _ = slot.start(queries, keys)
    before = int(start)
    if slot.cross or before != keys - queries:
        call = squared(call, before, max(before + queries, keys))
    out = slot.bank.attend(slot.layer if slot.bank.layers > 1 else 0, call)
    if out.shape[2] != queries:
        out = out[:, :, before : before + queries]
    return out.transpose(1, 2).contiguous(), None


def squared(call: AttentionCall, before: int, size: int) -> AttentionCall:
    """As many queries as keys, because a bank counts both from the first position.

    Queries stand at `before`; rows around them see everything and are cut off afterwards. Keys
    that are added at the end are invisible.
    """
    queries, keys = call.query.shape[2], call.key.shape[2]
    after, more = size - before - queries, size - keys
    visible = call.visible
    if visible is None:
        visible = torch.ones(1, 1, queries, keys, dtype=torch.bool, device=call.query.device)
    visible = F.pad(visible.expand(-1, -1, queries, -1), (0, more), value=False)
    return replace(
        call,
        query=F.pad(call.query, (0, 0, before, after)),
        key=F.pad(call.key, (0, 0, 0, more)),
        value=F.pad(call.value, (0, 0, 0, more)),
        visible=F.pad(visible, (0, 0, before, after), value=True),
        bias=None if call.bias is None else F.pad(call.bias, (0, more, before, after)),
    )


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
    """SDPA's padding and causal mask; notes where queries and keys stand (caches).

    One configuration object may serve an encoder, a decoder and their cross-attention. Only
    self-attention of the decoder moves on, so what is asked for without causality is not noted.
    """
    found = ROWS.get(id(rest.get("config")))
    if found is None:
        return sdpa_mask(*args, **rest)
    rows, several = found
    mask = mask_for(rows, several, args, rest)
    if not rows.contents or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return mask
    if mask is None:
        rest |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
        mask = sdpa_mask(*args, **rest)
    elif mask.ndim > 4:
        mask = mask.clone()  # it shares its memory with the caller's
    return carry(mask, rows.contents)


def mask_for(rows: Rows, several: list[Lowered], args: tuple[Any, ...], rest: Any) -> Any:
    """What `mask_with_rows` says of the model's masks, without what they carry."""
    function = rest.get("mask_function")
    queries, keys = rest["q_length"], rest["kv_length"]
    offset, skipped = rest.get("q_offset", 0), int(rest.get("kv_offset", 0))
    if function is not bidirectional_mask_function:
        rows.note(queries, keys, offset, skipped)
    padding = rest.get("attention_mask")
    plain = function is bidirectional_mask_function or function is causal_mask_function
    if plain and padding is not None and queries == keys == padding.shape[1]:
        causal = function is causal_mask_function
        if not torch.compiler.is_compiling() and is_functorch_wrapped_tensor(padding):
            return packed(padding, causal)  # sdpa_mask reads values, of which vmap has none
        if some_sparse(several, whole(queries), padding.device, causal):
            if not torch.compiler.is_compiling() and padding.all():
                return None  # as sdpa_mask does
            return packed(padding, causal)
    return sdpa_mask(*args, **rest)
