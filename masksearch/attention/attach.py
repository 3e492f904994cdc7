"""Puts a mask, or trainable gates, on the attention layers of a Hugging Face model.

Layers are found by a probe forward, in the order in which they are called, because `layer_idx`
is missing or repeated in many models. A module that is called several times (ALBERT) is one
layer. Encoder-decoders and models with several towers are attached to by part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from masksearch.attention.in_force import HELD, NAME, in_force, refuse_others, sweep, watch
from masksearch.attention.interface import mask_with_rows, masked_attention
from masksearch.attention.kernels.choose import REQUESTS
from masksearch.attention.lowered import Lowered
from masksearch.attention.probe import (
    PROBE,
    SELF,
    Part,
    Probe,
    chosen,
    config_of,
    implementation,
    implementations,
    involved,
    names_of,
    own_config,
    owners,
    parts_of,
    pretrained,
    probe,
    probing_attention,
    probing_mask,
    restore,
    use,
)
from masksearch.attention.slots import ATTACHMENT, SLOT, Attachment, Rows, Slot
from masksearch.attention.tokens import Resolved, receiver, resolve_content
from masksearch.errors import AttachError, HeadCountError, LayerCountError, unknown_name
from masksearch.masks.content import ContentMask
from masksearch.masks.core import Mask
from masksearch.masks.families import layer_of

if TYPE_CHECKING:
    from masksearch.contracts import GateBank

GATES = "masksearch_gates"  # the submodule that holds the gates while they are attached


def attach(
    model: nn.Module,
    what: Mask | ContentMask | GateBank | Mapping[str, Any],
    inputs: Mapping[str, Any] | None = None,
    backend: str = "auto",
    *,
    part: str | None = None,
) -> nn.Module:
    """Makes the attention layers of a model use a mask, or trainable gates.

    Padding and causal masks of the model stay in force: what a mask keeps above the diagonal of
    a causal model is hidden, so that an encoder's mask serves a decoder too. A mask that keeps
    everything leaves the output exactly as SDPA's. Whatever was attached before is replaced.

    In cross-attention, rows are positions of the decoder and columns positions of the encoder;
    the mask is taken at the longer of the two and cut to its corner.

    Args:
        model: A Hugging Face model, or a module that contains one.
        what: A mask (lowered at the length of each input; empty rows are refused then, for
            causal models also those whose keys are all hidden), or a content mask, resolved
            from the input ids of each forward pass (generate with use_cache=False), or
            gates (`masksearch.Gates`), which become a submodule of the model and are drawn once
            per forward pass; or a mapping from part names to those, such as
            `masksearch.saved_masks(folder)` gives.
        inputs: Keyword arguments of one forward pass, used to find the layers; by default a
            few tokens, or one empty image, which not every model takes.
        backend: What computes: `"sdpa"` (with a bool mask), `"gather"` (block gather), `"flex"`
            (FlexAttention); `"auto"`, by a fixed rule from length, block density and device,
            which compiles nothing on the CPU; or `"fastest"`: the first call at each new length
            times all of these on its own states, which takes seconds, and the fastest is kept.
            Cross-attention, cached keys, scores with a bias and the model's own sliding windows
            are always computed by SDPA; `masksearch.explain` says what computes and why.
        part: `"encoder"`, `"decoder"` or `"cross"` of an encoder-decoder, or the dotted name of
            a submodule (`"text_model"`); None for a plain model, which has only one part.

    Returns:
        The same model.

    Raises:
        AttachError: If the model does not go through transformers' attention interface, or has
            several parts and none is named; later, in a forward pass of the model, if it has
            been given another attention implementation, is asked for output_attentions, or has
            gates and re-entrant gradient checkpoints (`use_reentrant=False` works).
        UnknownNameError: If there is no such part or backend.
        LayerCountError, HeadCountError: If mask and model do not fit.
        TypeError: If `model` is no module, or `what` no mask and no gates.

    Errors of a forward pass (EmptyRowError, LengthError, AttachError) that torch.compile meets
    while it traces come inside an error of its own, with the same message.
    """
    if backend not in REQUESTS:
        raise unknown_name("backend", str(backend), REQUESTS)
    check_module("attach", model)
    if isinstance(what, (str, Path)):
        raise TypeError(
            f"attach takes masks, got the path {str(what)!r}; give the masks that were saved "
            f"there: ms.attach(model, ms.saved_masks({str(what)!r}))"
        )
    roots = pretrained(model)
    calls = probe(model, roots, inputs)
    known = parts_of(model, calls, inputs)
    if isinstance(what, Mapping):
        if part is not None:
            raise ValueError(f"a mapping names the parts itself, got part={part!r} as well")
        if not what:
            raise ValueError(f"a mapping names at least one part of {', '.join(known)}, got none")
        wanted = [(chosen(model, calls, known, name), value) for name, value in what.items()]
    else:
        wanted = [(chosen(model, calls, known, part), what)]
    for one, value in wanted:
        check_counts(model, one, value)
        if isinstance(value, ContentMask):
            receiver(model, one)
    models = [m for one, _ in wanted for m in involved(model, list(one.calls), one.cross)]
    refuse_others(model, configs_of(models, wanted))
    rows = Rows(module.config for module in models)
    slots = slots_for(model, wanted, backend, rows)
    take_off(model)  # only now: a refused mask leaves the earlier one in force
    sweep(model, HOOKS)
    owner = owners(model)
    before = [
        (target, "sdpa" if name == NAME and id(config_of(target)) not in HELD else name)
        for target, name in implementations(roots)  # our name may come with a copied configuration
    ]
    attachment = Attachment({one.name: value for one, value in wanted}, slots, before, models)
    for one, value in wanted:
        if isinstance(value, ContentMask):
            several = {id(slots[call.module].content): slots[call.module] for call in one.calls}
            resolved = [cast(Resolved, slot.content) for slot in several.values()]
            attachment.contents.append((resolved, receiver(model, one)))
        elif not isinstance(value, Mask):
            bank, inside = cast(nn.Module, value), owner[one.calls[0].module]
            whole = one.name == SELF or attachment.banks.get(bank, inside) is not inside
            attachment.banks[bank] = model if whole else inside
    put_on(model, attachment)
    return model


def check_module(name: str, model: nn.Module) -> None:
    """Refuses what is no module."""
    if not isinstance(model, nn.Module):
        got = f"the class {model.__name__}" if isinstance(model, type) else f"{model!r:.80}"
        if isinstance(getattr(model, "model", None), nn.Module):  # a pipeline, a trainer
            rest = ", mask" if name == "attach" else ""
            got = f"{type(model).__name__}; give the model that it holds: ms.{name}(x.model{rest})"
        raise TypeError(f"{name} takes a model (torch.nn.Module) first, got {got}")


def detach(model: nn.Module, missing_ok: bool = False) -> nn.Module:
    """Takes mask or gates off again and restores the previous attention implementation.

    Where the model has been given another one since, that stays.

    Raises:
        AttachError: If nothing is attached to this model and `missing_ok` is off.
    """
    check_module("detach", model)
    if take_off(model) is None and not sweep(model, HOOKS) and not missing_ok:
        raise AttachError(
            f"nothing is attached to this {type(model).__name__}; "
            "detach takes the same module that attach was given"
        )
    return model


def attached(model: nn.Module) -> dict[str, Any]:
    """What is attached: part -> mask or gates, as `attach` was given them (`"self"` = plain).

    Raises:
        AttachError: If the model has been given another attention implementation since.
    """
    attachment = in_force(model)
    return {} if attachment is None else dict(attachment.what)


def put_on(model: nn.Module, attachment: Attachment) -> None:
    """Puts a prepared attachment in force, on a model that carries none."""
    banks = list(attachment.banks)
    if banks:
        model.add_module(GATES, banks[0] if len(banks) == 1 else nn.ModuleList(banks))
    attachment.hooks = [
        where.register_forward_pre_hook(
            partial(draw_gates, cast(Any, bank), layers=checkpointed(attachment, bank, where))
        )
        for bank, where in attachment.banks.items()
    ] + [
        where.register_forward_pre_hook(partial(resolve_content, several), with_kwargs=True)
        for several, where in attachment.contents
    ]
    layers = (own_config(module) for module in attachment.slots)
    ours = {id(config) for config in (*(m.config for m in attachment.involved), *layers)}
    for target, name in attachment.previous:  # each also sets the models inside
        use(target, NAME if id(config_of(target)) in ours else name)
    watch(model, attachment)
    for attention, slot in attachment.slots.items():
        attention.__dict__[SLOT] = slot
        slot.rows.enrol()
    model.__dict__[ATTACHMENT] = attachment


def take_off(model: nn.Module) -> Attachment | None:
    """Undoes `put_on` and returns what was in force, or None."""
    attachment: Attachment | None = model.__dict__.pop(ATTACHMENT, None)
    if attachment is None:
        return None
    for module in attachment.slots:
        module.__dict__.pop(SLOT, None)
    restore(  # what the user has set since then stays
        [
            (target, name if (now := implementation(target)) == NAME else now)
            for target, name in attachment.previous
        ]
    )
    if attachment.hold is not None:
        attachment.hold.release()
    for hook in attachment.hooks:
        hook.remove()
    if GATES in model._modules:
        del model._modules[GATES]
    return attachment


def slots_for(
    model: nn.Module, wanted: list[tuple[Part, Any]], backend: str, rows: Rows
) -> dict[nn.Module, Slot]:
    """A slot for each attention module of those parts; equal masks are lowered once."""
    names, owner = names_of(model), owners(model)
    shared: dict[tuple[str, bool, bool], Lowered] = {}
    contents: dict[tuple[str, bool, str], Resolved] = {}
    slots: dict[nn.Module, Slot] = {}
    for part, value in wanted:
        for layer, call in enumerate(part.calls):
            if call.module in slots:
                raise AttachError(
                    f"{names[call.module]} is in two of the parts "
                    f"{', '.join(repr(one.name) for one, _ in wanted)}; name each layer once"
                )
            mask: Mask | ContentMask | None = None
            if isinstance(value, Mask):
                mask = layer_of(value, layer)
            elif isinstance(value, ContentMask):
                mask = value.of_layer(layer)
            slot = Slot(
                name=names[call.module],
                part=part.name,
                layer=layer,
                mask=mask,
                bank=None if mask is not None else value,
                rows=rows,
                backend=backend,
                heads=call.heads,
                width=call.width,
                causal=call.causal,
                cross=part.cross,
            )
            where = f"layer {layer}" if part.name == SELF else f"{part.name} layer {layer}"
            if isinstance(mask, ContentMask):
                named = (mask.digest, call.causal, part.name)
                slot.content = contents.setdefault(named, Resolved(mask, call.causal, where))
                if slot.content not in rows.contents:
                    rows.contents.append(slot.content)
            elif isinstance(mask, Mask):
                key = (mask.digest, call.causal, part.cross or call.biased)
                if key not in shared:
                    sizes = (call.heads, call.width)
                    shared[key] = Lowered(mask, call.causal, where, backend, *sizes, not key[2])
                slot.lowered = shared[key]
                rows.add(owner[call.module].config, shared[key])
            slots[call.module] = slot
    return slots


def configs_of(models: list[PreTrainedModel], wanted: list[tuple[Part, Any]]) -> list[Any]:
    """The configuration objects of those models, and of the parts' layers."""
    layers = (own_config(call.module) for one, _ in wanted for call in one.calls)
    return [model.config for model in models] + [each for each in layers if each is not None]


def check_counts(model: nn.Module, part: Part, value: Any) -> None:
    """Whether mask or gates fit the part's layers and heads."""
    layers, heads = part.layers, part.heads
    title = type(model).__name__
    where = title if part.name == SELF else f"{part.name!r} of {title}"
    if isinstance(value, (Mask, ContentMask)):
        try:
            value.counts(layers, heads)
        except (HeadCountError, LayerCountError) as error:
            raise type(error)(f"{error}; {where} has {layers} layers of {heads} heads") from error
        return
    if not callable(getattr(value, "attend", None)):
        remedy = "a bool table of cells is masks.table(bits), one mask a layer masks.per_layer"
        raise TypeError(f"attach takes a mask or gates, got {type(value).__name__}; {remedy}")
    named = "the model" if part.name == SELF else where
    if value.layers not in (1, layers):
        raise LayerCountError(f"the gates have {value.layers} layers, {named} {layers}")
    if value.heads not in (1, heads):
        raise HeadCountError(f"the gates have {value.heads} heads, {named} {heads}")


def checkpointed(
    attachment: Attachment, bank: nn.Module, where: nn.Module
) -> list[GradientCheckpointingLayer]:
    """The layers with these gates that gradient checkpoints may compute again."""
    slots = attachment.slots.items()
    gated = {module for module, slot in slots if cast(nn.Module, slot.bank) is bank}
    layers = (each for each in where.modules() if isinstance(each, GradientCheckpointingLayer))
    return [layer for layer in layers if gated & set(layer.modules())]


def draw_gates(
    bank: GateBank,
    model: nn.Module,
    inputs: Any,
    layers: Sequence[GradientCheckpointingLayer] = (),
) -> None:
    """Pre-forward hook: one sample of the gates serves the whole forward pass.

    Raises:
        AttachError: If re-entrant checkpoints would go backward through it several times.
    """
    if Probe.calls is not None:
        return
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        again = [layer for layer in layers if layer.gradient_checkpointing and layer.training]
        if len(again) > 1 and reentrant(again[0]):
            trained = cast(nn.Module, bank).parameters()
            if any(parameter.requires_grad for parameter in trained):
                raise AttachError(
                    f"{type(model).__name__} has trainable gates, drawn once per forward pass, "
                    "and re-entrant gradient checkpoints, which go backward through them once a "
                    "layer; use the other kind: model.gradient_checkpointing_enable("
                    '{"use_reentrant": False})'
                )
    bank.draw()


def reentrant(layer: GradientCheckpointingLayer) -> bool:
    """Whether a layer's checkpoints go backward by a call of their own, torch's default."""
    function = getattr(layer, "_gradient_checkpointing_func", None)
    if not isinstance(function, partial):
        return False
    return function.keywords.get("use_reentrant", function.func is checkpoint) is not False


HOOKS = (draw_gates, resolve_content)
AttentionInterface.register(NAME, masked_attention)
AttentionMaskInterface.register(NAME, mask_with_rows)  # without it padding silently vanishes
AttentionInterface.register(PROBE, probing_attention)
AttentionMaskInterface.register(PROBE, probing_mask)
