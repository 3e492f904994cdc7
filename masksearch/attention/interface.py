"""The stand-in for SDPA in transformers while a mask, or gates, are attached to a model.

The only file that knows transformers' attention interface. Transformers looks up two functions
under the name in a configuration: one makes the model's own mask, once per forward pass
(`_model_mask`), the other computes attention, once per layer (`_masked_attention`).

The normal path, an encoder under a mask:

    model_mask           makes SDPA's mask of the padding, bool [batch, 1, n, n]; None without any
    masked_attention     finds the layer's state on its module and takes from it the mask's table,
                         bool [1, heads | 1, n, n]: SDPA computes under padding & table
    sparse_attention     instead, for long inputs: block gather or FlexAttention compute by a plan,
                         and take the padding as it is, bool [batch, n]; no n x n tensor is made

What is not the normal path follows each of them: causal masks without padding, keys from a cache
(layer.py knows where queries stand), biases on the scores, gates, graphs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import (
    bidirectional_mask_function,
    causal_mask_function,
    eager_mask,
    sdpa_mask,
)

from masksearch.attention.call import AttentionCall
from masksearch.attention.kernels.choose import compute
from masksearch.attention.kernels.flex import FlexPlan
from masksearch.attention.kernels.plan import computed_type
from masksearch.attention.layer import (
    POSITIONS,
    STATE,
    LayerState,
    SequencePositions,
    fixed,
)
from masksearch.attention.live import Watch
from masksearch.attention.live_call import ARGUMENT, LiveCall, cells, hide_filler, join
from masksearch.attention.own_code import has_adapter
from masksearch.attention.probe import PROBE, Probe, probing_attention, probing_mask
from masksearch.attention.tokens import carry
from masksearch.errors import AttachError

NAME = "masksearch"  # of our functions, in configurations
ENTRY = "masksearch"  # of a configuration: which masks the model has
KEY = "attn_implementation"  # of a configuration's file; transformers takes it out when it reads
ALIGNED = 8  # numbers that a head gets more for its sink: kernels for CUDA take multiples of 8
BIDIRECTIONAL, CAUSAL = 5, 6  # dimensions of packed padding: no model makes a mask with as many
BIAS = (
    "{name} gives its attention mask finite numbers (a bias on its scores), which trainable "
    "gates would drop; search on a model without one, such as BERT"
)


def _masked_attention(
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
    """One layer's attention under its mask or gates; see `sdpa_attention_forward`.

    Args:
        module: The attention module.
        query: `[batch, heads, queries, head_dim]`.
        key: `[batch, KV heads, keys, head_dim]`.
        value: The same shape.
        attention_mask: As `_model_mask` made it, or the model changed it: None, bool or float
            `[batch, 1, queries, keys]`, or packed padding.
        dropout: Probability of dropping an attention weight.
        scaling: Factor of the scores; None = 1 / sqrt(head_dim).
        is_causal: Whether later keys are hidden; None = what the module says.
        rest: What some models add: `position_bias`, learned sinks `s_aux` `[heads]`, ..

    Returns:
        `[batch, queries, heads, head_dim]`, and None in place of attention weights.
    """
    state: LayerState | None = module.__dict__.get(STATE)
    if state is None and hasattr(config := getattr(module, "config", None), ENTRY):
        _refuse_maskless(type(module).__name__, config)
    queries, keys = query.shape[2], key.shape[2]
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    visible = attention_mask
    if visible is not None and visible.ndim > 4:
        causal = visible.ndim == CAUSAL
    call = AttentionCall(
        query,
        key,
        value,
        visible=attention_mask,
        dropout=dropout,
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        bias=rest.get("position_bias"),
        sinks=rest.get("s_aux"),
    )
    live = rest.pop(ARGUMENT, None)
    if isinstance(live, Watch):
        live.note(module, key, value)
    elif live is not None and state is not None:
        return _live_attention(state, module, call, live, rest)
    kept = None
    positions = None if state is None else state.positions.running.held.get(state.name)
    if state is not None and positions is not None:
        seen = state.once(
            lambda: state.cells_of_cached_keys(positions, queries, attention_mask),
            *(state.lowered, positions, attention_mask),
        )
        seen = None if seen is None else seen.to(key.device)
        settings = {"dropout": dropout, "scaling": scaling, **rest}
        return sdpa(module, query, key, value, seen, is_causal=False, **settings)
    if state is not None:
        out = sparse_attention(state, call, causal, rest)
        if out is not None:
            return out.transpose(1, 2).contiguous(), None
        kept = state.kept(query.shape[0], queries, keys, key.device, attention_mask)
    if visible is not None and visible.ndim > 4:
        visible = _write_out(visible, queries)
    settings = {"dropout": dropout, "scaling": scaling, **rest}
    if state is None or (kept is None and state.bank is None):  # everything is kept
        return sdpa(module, query, key, value, visible, is_causal=is_causal, **settings)
    if visible is None and causal and queries > 1:
        start, _ = state.start(queries, keys)
        visible = torch.ones(queries, keys, dtype=torch.bool, device=query.device)
        visible = visible.tril(int(start))[None, None]
    if state.bank is not None:
        return _gated_attention(state, module, replace(call, visible=visible)), None
    assert kept is not None
    return _kept_attention(module, replace(call, visible=visible), kept, rest)


def _kept_attention(
    module: nn.Module, call: AttentionCall, kept: Tensor | None, rest: dict[str, Any]
) -> tuple[Tensor, Tensor | None]:
    """SDPA over the cells that the mask keeps, bool, of those that the model lets be seen; None =
    all of these."""
    combined = call.visible
    if kept is None:
        rest = rest if call.bias is None else {**rest, "position_bias": call.bias}
    else:
        if combined is None:
            combined = kept
        elif combined.dtype == torch.bool:
            combined = combined & kept
        else:  # an additive bias: -inf, never the smallest finite number (that leaks)
            combined = combined.masked_fill(~kept, -torch.inf)
        if call.bias is not None:  # transformers would fill in the smallest finite number
            rest = {**rest, "position_bias": None}
            if combined.dtype == torch.bool:
                combined = torch.where(combined, call.bias, -torch.inf)
            else:
                combined = combined + call.bias
    how = {"dropout": call.dropout, "scaling": call.scaling, **rest}
    return sdpa(module, call.query, call.key, call.value, combined, is_causal=False, **how)


def _live_attention(
    state: LayerState, module: nn.Module, call: AttentionCall, live: LiveCall, rest: dict[str, Any]
) -> tuple[Tensor, Tensor | None]:
    """One layer's attention of the tokens that are needed, under the rows and columns of its
    mask that they have."""
    length, visible = live.length, call.visible
    texts = max(len(call.query), len(live.queries))
    kept = state.kept(texts, length, length, call.key.device, visible)
    if visible is not None and visible.ndim > 4:
        visible = _write_out(visible, length)
    key, value = join(module, live, call.key, call.value)
    bias = cells(live, call.bias) if live.bias is None else live.bias
    call = replace(call, key=key, value=value, visible=cells(live, visible), bias=bias)
    kept, packing = cells(live, kept), live.packing
    if packing is None:
        return _kept_attention(module, call, kept, rest)
    query = packing.spread(call.query, packing.queries)
    key, value = (packing.spread(each, packing.keys) for each in (key, value))
    call = replace(call, query=query, key=key, value=value)
    out, _ = _kept_attention(module, call, hide_filler(packing, kept), rest)
    return packing.pack(out), None


def sdpa(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **how: Any
) -> tuple[Tensor, Tensor | None]:
    """Transformers' own SDPA path.

    Learned sinks are one more key in front, whose value is 0. Queries and keys get one more
    number, whose product is the sink's score, so that heads may share a mask. Where causality
    comes without a mask, one more query in front keeps the sink in everyone's past.
    """
    out: tuple[Tensor, Tensor | None]
    sinks: Tensor | None = how.pop("s_aux", None)
    if sinks is None:
        out = sdpa_attention_forward(module, query, key, value, mask, **how)
        return out
    width, size = key.shape[-1], value.shape[-1]
    causal = getattr(module, "is_causal", True) if how["is_causal"] is None else how["is_causal"]
    first = int(mask is None and causal and query.shape[2] > 1)
    scaling = how["scaling"] = width**-0.5 if how["scaling"] is None else how["scaling"]
    query = F.pad(query, (0, ALIGNED, first, 0))
    lowest = torch.finfo(query.dtype).min  # of float16, an unseen sink is beyond it
    query[..., width] = (sinks / scaling).clamp(min=lowest).to(query)[:, None]
    key, value = (F.pad(each, (0, ALIGNED, 1, 0)) for each in (key, value))
    key[:, :, 0, width] = 1
    if mask is not None:  # the sink is visible: True, or a bias of 0
        mask = F.pad(mask, (1, 0), value=mask.dtype == torch.bool)
    output, _ = sdpa_attention_forward(module, query, key, value, mask, **how)
    return output[:, first:, :, :size].contiguous(), None


# -- sparse kernels ----------------------------------------------------------------------------
def sparse_attention(
    state: LayerState, call: AttentionCall, causal: bool, rest: dict[str, Any]
) -> Tensor | None:
    """Attention by block gather or FlexAttention, `[batch, heads, n, head_dim]`.

    None where SDPA is to compute: it was asked for, it is the faster, or the call is more than
    self-attention over whole sequences under padding and causality (`state.fallback` says so).

    Raises:
        AttachError: If FlexAttention was asked for on the CPU, where it has no gradient.
    """
    lowered = state.lowered
    length, device = call.query.shape[2], call.query.device
    if lowered is None or not lowered.may_be_sparse(length):
        return None
    state.fallback = reason = _why_only_sdpa(state, call, causal, rest)
    if reason:
        return None
    states: tuple[Tensor, ...] = (call.query, call.key, call.value)
    trains = torch.is_grad_enabled() and any(each.requires_grad for each in states)
    size = fixed(length)
    dtype = computed_type(device, call.query.dtype)
    backend = lowered.in_graph("sparse_backend", size, device, trains, dtype)
    if not backend:
        return None
    if backend == "flex" and device.type == "cpu" and trains:
        raise AttachError(
            f"{lowered.where}: FlexAttention has no backward pass on the CPU; attach with "
            'backend="gather", or compute under torch.no_grad()'
        )
    compiling = torch.compiler.is_compiling()
    if call.dropout > 0 and compiling:
        state.fallback = "attention dropout in a compiled graph: SDPA computes"
        return None
    if call.sinks is not None and compiling:
        state.fallback = "learned sinks in a compiled graph: SDPA computes"
        return None
    if call.dropout > 0 and backend == "flex":
        state.fallback = "FlexAttention has no dropout: SDPA computes"
        return None
    if call.sinks is not None and backend == "flex" and device.type == "cpu":
        backend = "gather"
        state.fallback = "FlexAttention on the CPU has no learned sinks: block gather computes"
    padding = None if call.visible is None else call.visible.flatten(1)
    if not compiling:
        plan = lowered.plan(backend, size, device)
        if isinstance(plan, FlexPlan) and padding is not None:
            plan, padding = state.once(partial(plan.padded, padding), plan, call.visible), None
        how = call.scaling, call.dropout, call.sinks
        return compute(call.query, call.key, call.value, padding, plan, *how)
    states = tuple(each.to(computed_type(device, each.dtype)) for each in states)
    lowered.in_graph("prepare", backend, size, device)
    operator = torch.ops.masksearch.attention
    out: Tensor = operator(*states, padding, lowered.key, backend, call.scaling)
    return out


def _why_only_sdpa(
    state: LayerState, call: AttentionCall, causal: bool, rest: dict[str, Any]
) -> str:
    """Why only SDPA can compute a call; empty where a sparse kernel can."""
    if reason := _left_to_sdpa():
        return reason
    if state.cross:
        return "cross-attention: SDPA computes"
    if call.query.shape[2] != call.key.shape[2]:
        return "keys come from a cache: SDPA computes"
    if call.bias is not None:
        return "the model adds a bias to the scores: SDPA computes"
    if call.visible is not None and call.visible.ndim == 4:
        return "the model's own mask is more than padding and causality: SDPA computes"
    if bool(causal) != state.causal:
        return "causality is not as it was when the mask was attached: SDPA computes"
    if call.value.shape[-1] != call.query.shape[-1]:
        return "values are not as wide as keys: SDPA computes"
    if any(rest.get(name) is not None for name in ("softcap", "cache")):
        return "the model changes the scores or pages its cache: SDPA computes"
    return ""


def _left_to_sdpa() -> str:
    """Why SDPA must compute because of what is done with the model; empty where it need not.

    A graph that leaves this process, or that only torch reads, cannot find a plan.
    """
    if torch.compiler.is_compiling():
        return "the model is exported: SDPA computes" if torch.compiler.is_exporting() else ""
    if torch._C._get_tracing_state() is not None:
        return "torch.jit.trace records the model: SDPA computes"
    if torch._C._are_functorch_transforms_active():
        return "torch.func transforms the model: SDPA computes"
    return ""


# -- the model's own mask ----------------------------------------------------------------------
def _model_mask(*args: Any, **rest: Any) -> Any:
    """SDPA's padding and causal mask; notes where queries and keys stand (caches).

    One configuration object may serve an encoder, a decoder and their cross-attention. Only
    self-attention of the decoder moves on, so what is asked for without causality is not noted.
    """
    config = rest.get("config")
    positions = POSITIONS.get(id(config))
    inside = positions is not None and positions.running.inside
    if not inside and has_adapter(config):  # another model, which shares the configuration
        return eager_mask(*args, **rest)
    if positions is None:
        return sdpa_mask(*args, **rest)
    if rest.get("mask_function") is not bidirectional_mask_function:
        offset, skipped = rest.get("q_offset", 0), int(rest.get("kv_offset", 0))
        positions.note(rest["q_length"], rest["kv_length"], offset, skipped)
    mask = _padding_mask(positions, args, rest)
    if not positions.token_masks or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return mask
    if mask is None:
        rest |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
        mask = (eager_mask if positions.floats else sdpa_mask)(*args, **rest)
    elif mask.ndim > 4:
        mask = mask.clone()  # it shares its memory with the caller's
    return carry(mask, positions.token_masks)


def _padding_mask(positions: SequencePositions, args: tuple[Any, ...], rest: Any) -> Any:
    """The model's mask, or packed padding where a sparse kernel may compute."""
    types = getattr(rest.get("config"), "layer_types", None)
    function, padding = rest.get("mask_function"), rest.get("attention_mask")
    causal = function is causal_mask_function
    if positions.written:  # what the layers do without a mask is not what the probe saw
        rest |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    skips = rest.get(f"allow_is_{'causal' if causal else 'bidirectional'}_skip", causal)
    local = rest.get("local_size") and rest.get("allow_is_causal_skip", True)
    if local and types and {*types} == {"full_attention"}:
        return None  # GraniteSWA and gpt-oss make one for sliding layers even without any
    queries, keys = rest["q_length"], rest["kv_length"]
    plain = causal or function is bidirectional_mask_function
    form = eager_mask if positions.floats else sdpa_mask
    if not plain or padding is None or not queries == keys == padding.shape[1]:
        return form(*args, **rest)
    compiling = torch.compiler.is_compiling()
    if not positions.packs:
        return form(*args, **rest)
    if not compiling and is_functorch_wrapped_tensor(padding):
        return pack(padding, causal)  # sdpa_mask reads values, of which vmap has none
    sparse = any(
        lowered.plain and lowered.causal == causal and lowered.may_be_sparse(queries)
        for lowered in positions.masks
    )
    if not sparse or _left_to_sdpa():
        return sdpa_mask(*args, **rest)
    if skips and not compiling and padding.all():
        return None  # as sdpa_mask does
    return pack(padding, causal)


def pack(padding: Tensor, causal: bool) -> Tensor:
    """Padding `[batch, n]` as a mask that is not written out, for layers without a table.

    Its number of dimensions says whether later keys are hidden as well. That survives what
    happens to a mask between here and the layers: gradient checkpoints, moves, copies.
    """
    return padding.view(len(padding), *[1] * ((CAUSAL if causal else BIDIRECTIONAL) - 2), -1)


def _write_out(mask: Tensor, queries: int) -> Tensor:
    """Packed padding as SDPA takes it, bool `[batch, 1, queries, keys]`."""
    visible = mask.flatten(1)[:, None, None].expand(-1, -1, queries, -1)
    if mask.ndim == CAUSAL:
        visible = visible & torch.ones_like(visible[0, 0]).tril()
    return visible


# -- gates -------------------------------------------------------------------------------------
def _gated_attention(state: LayerState, module: nn.Module, call: AttentionCall) -> Tensor:
    """One layer's attention under trainable gates, `[batch, queries, heads, head_dim]`."""
    assert state.bank is not None
    groups = getattr(module, "num_key_value_groups", 1)
    if groups > 1 and call.key.shape[1] != call.query.shape[1]:
        call = replace(call, key=repeat_kv(call.key, groups), value=repeat_kv(call.value, groups))
    if call.visible is not None and call.visible.dtype != torch.bool:
        seen = call.visible > torch.finfo(call.visible.dtype).min / 2
        if call.visible[seen].any():
            raise AttachError(BIAS.format(name=type(module).__name__))
        call = replace(call, visible=seen)
    queries, keys = call.query.shape[2], call.key.shape[2]
    start, _ = state.start(queries, keys)
    before = int(start)
    if state.cross or before != keys - queries:
        call = squared(call, before, max(before + queries, keys))
    out = state.bank.attend(state.layer if state.bank.layers > 1 else 0, call)
    if out.shape[2] != queries:
        out = out[:, :, before : before + queries]
    return out.transpose(1, 2).contiguous()


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


# -- whether our functions are called at all ---------------------------------------------------
def check_call(
    configs: list[Any],
    positions: SequencePositions,
    model: nn.Module,
    positional: tuple[Any, ...],
    named: Mapping[str, Any],
) -> None:
    """Pre-forward hook of a model whose layers carry a mask or gates.

    A mask that comes written out, from a model around the one that was attached to, has not been
    noted when it was made: where its queries stand is asked of the cache.

    Raises:
        AttachError: If other attention is in use, or attention weights are asked for.
    """
    for config in configs:
        if config._attn_implementation not in (NAME, PROBE):
            refuse_other(type(model).__name__, str(config._attn_implementation))
    if named.get("output_attentions") and Probe.calls is None:
        refuse_weights(type(model).__name__)
    running = positions.running
    running.inside = True
    if running.held or running.seen:  # of a pass that was interrupted: Ctrl-C calls no hook
        running.held.clear()
        running.seen.clear()
    # of transformers 5.24 and later, and of earlier ones
    mask, cache = named.get("attention_mask"), named.get("cache", named.get("past_key_values"))
    if cache is None or not isinstance(mask, Tensor) or mask.ndim != 4:
        return
    noted = running.last
    if noted is None or (noted.queries, noted.keys) != mask.shape[2:]:
        positions.note(mask.shape[2], mask.shape[3], cache.get_seq_length(), 0)


def end_pass(positions: SequencePositions, *call: Any) -> None:
    """Forward hook of the same model, called after a failure too: its state ends here."""
    positions.running.clear()


def refuse_other(title: str, name: str) -> None:
    """Says that a mask is passed over."""
    raise AttachError(
        f"{title} computes its attention by {name!r} now, which passes over the mask or gates "
        "that are attached; attach again, ms.attach(model, mask), or first ms.detach(model) and "
        f"then model.set_attn_implementation({name!r})"
    )


def _refuse_maskless(title: str, config: Any) -> None:
    """Refuses a model that was read from a folder with a mask, and has been given none."""
    if hasattr(config, KEY):
        return
    raise AttachError(
        f"{title} belongs to a model that was saved with a mask, and transformers opened it "
        f"without: open it by ms.load_pretrained({config.name_or_path or 'folder'!r}), or give it "
        'a mask, ms.attach(model, mask); model.set_attn_implementation("sdpa") makes it the '
        "dense model, which is another one"
    )


def refuse_weights(title: str) -> None:
    """Says that there are no attention weights."""
    raise AttachError(
        f"{title} is asked for output_attentions, and attention with a mask or gates attached "
        "gives no weights; leave output_attentions off, in the call and in model.config, or look "
        'at the weights without it: ms.detach(model), model.set_attn_implementation("eager")'
    )


AttentionInterface.register(NAME, _masked_attention)
AttentionMaskInterface.register(NAME, _model_mask)  # without it padding silently vanishes
AttentionInterface.register(PROBE, probing_attention)
AttentionMaskInterface.register(PROBE, probing_mask)
