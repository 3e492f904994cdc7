"""Puts a mask, or trainable gates, on the attention layers of a Hugging Face model.

Layers are found by a probe forward, in the order in which they are called, because `layer_idx`
is missing or repeated in many models. A module that is called several times (ALBERT) is one
layer. Encoder-decoders and models with several towers are attached to by part.

Each attention module then carries a `LayerState`, the model an `Attachment`, and copies of its
configurations, which other models do not share, name our attention implementation. That name is
the user's to change (`set_attn_implementation`), and then no mask takes part any more: a hook
notices it in the next forward pass, so that a mask never vanishes silently (`check_call`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from transformers import PreTrainedConfig

from masksearch.attention.interface import (
    ENTRY,
    KEY,
    NAME,
    check_call,
    end_pass,
    refuse_other,
    refuse_weights,
)
from masksearch.attention.kernels.choose import REQUESTS
from masksearch.attention.layer import (
    STATE,
    LayerMask,
    LayerState,
    SequencePositions,
)
from masksearch.attention.live import Dropping, is_reentrant, prepare
from masksearch.attention.own_code import (
    OWN_KEY,
    adapt,
    has_adapter,
    has_own_code,
    own_modules,
    restore,
)
from masksearch.attention.probe import (
    SELF,
    Call,
    Part,
    Probe,
    find_part,
    implementation,
    keyless_layers,
    models_of,
    names_of,
    opened,
    own_config,
    owners,
    parts_of,
    pretrained_models,
    probe,
    set_implementation,
    unwrapped,
)
from masksearch.attention.tokens import TokenMask, forget_tokens, receiver, resolve_tokens
from masksearch.errors import (
    AttachError,
    HeadCountError,
    LayerCountError,
    renamed,
    unknown_name,
    warn,
)
from masksearch.masks.checks import at_least
from masksearch.masks.core import Mask

if TYPE_CHECKING:
    from masksearch.attention.call import GateBank

ATTACHMENT = "masksearch_attachment"  # where a model carries its Attachment, in its __dict__
IMPLEMENTATION = "_attn_implementation_internal"  # where a configuration keeps that name
GATES = "masksearch_gates"  # the submodule that holds the gates while they are attached


@dataclass
class Attachment:
    """The state that `attach` has put on a model, and what undoes it."""

    what: dict[str, Any]  # part -> mask or gates, whole
    states: dict[nn.Module, LayerState]
    positions: SequencePositions
    configs: list[tuple[nn.Module, PreTrainedConfig, PreTrainedConfig]]  # who; its copy; before
    previous: list[tuple[PreTrainedConfig, str]]  # copies that name ours, and the name before
    # gates -> the module whose call draws them; masks that follow the tokens, and who gets those
    banks: dict[nn.Module, nn.Module] = field(default_factory=dict)
    token_masks: list[tuple[list[TokenMask], nn.Module]] = field(default_factory=list)
    callers: list[nn.Module] = field(default_factory=list)  # of its forward, past its hooks
    hooks: list[Any] = field(default_factory=list)
    dropping: Dropping | None = None  # what leaves tokens out, where that was asked for

    @property
    def drop_tokens(self) -> bool | int:
        """As `attach` was given it."""
        return False if self.dropping is None else self.dropping.asked


@renamed(what="mask")
def attach(
    model: nn.Module,
    mask: Mask | GateBank | Mapping[str, Any],
    inputs: Mapping[str, Any] | None = None,
    backend: str = "auto",
    *,
    part: str | None = None,
    drop_tokens: bool | int = False,
) -> nn.Module:
    """Makes the attention layers of a model use a mask, or trainable gates.

    Padding and causal masks of the model stay in force: what a mask keeps above the diagonal of
    a causal model is hidden, so that an encoder's mask serves a decoder too. A mask that keeps
    everything leaves the output exactly as SDPA's. Whatever was attached before is replaced.

    In cross-attention, rows are positions of the decoder and columns positions of the encoder;
    the mask is taken at the longer of the two and cut to its corner. Of a hybrid (Qwen3-Next,
    Qwen 3.5, Granite 4, ..) linear and recurrent layers are passed over: layer 0 of a mask is the
    first layer that attends.

    Args:
        model: A Hugging Face model, or a module that contains one. Of a model within
            torch.compile, DataParallel, DistributedDataParallel, a PEFT adapter or a
            SentenceTransformer, the model inside carries the mask, and this and the functions
            below take either.
        mask: A mask (lowered at the length of each input; empty rows are refused then, for
            causal models also those whose keys are all hidden), or one that follows the
            tokens, resolved from the input ids of each forward pass (use_cache=False), or
            gates (`masksearch.Gates`), which become a submodule of the model and are drawn once
            per forward pass; or a mapping from part names to those, such as
            `masksearch.saved_masks(folder)` gives.
        inputs: Keyword arguments of one forward pass, used to find the layers; by default a
            few tokens, or one empty image, which not every model takes.
        backend: What computes: `"sdpa"` (with a bool mask), `"gather"` (block gather), `"flex"`
            (FlexAttention); or `"auto"`, by a fixed rule from length, block density and device,
            which compiles nothing on the CPU. Cross-attention, cached keys, scores with a bias
            and the model's own sliding windows are always computed by SDPA;
            `masksearch.explain` says what computes and why.
        part: `"encoder"`, `"decoder"` or `"cross"` of an encoder-decoder, or the dotted name of
            a submodule (`"text_model"`); None for a plain model, which has only one part.
        drop_tokens: Whether an encoder leaves out tokens that no one will look at again
            (`masks.live_tokens`): the output is the same within rounding, in less time. True
            where the head is one of transformers' that reads the first row alone
            (BertForSequenceClassification, ..); for a head of your own, how many leading rows of
            the last hidden states it reads. Where it cannot be done all tokens are computed, and
            `masksearch.explain` says why; so they are where the encoder is called without its
            head, or hidden states are asked for.

    Returns:
        The same model.

    Raises:
        AttachError: If the model does not go through transformers' attention interface, or has
            several parts and none is named; later, in a forward pass of the model, if it has
            been given another attention implementation, is asked for output_attentions, or has
            gates and re-entrant gradient checkpoints (`use_reentrant=False` works).
        UnknownNameError: If there is no such part or backend.
        LayerCountError, HeadCountError: If mask and model do not fit.
        TypeError: If `model` is no module, or `mask` no mask and no gates.

    Errors of a forward pass (EmptyRowError, LengthError, AttachError) that torch.compile meets
    while it traces come inside an error of its own, with the same message.

    >>> import masksearch as ms
    >>> from transformers import BertConfig, BertModel
    >>> small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    >>> bert = BertModel(BertConfig(vocab_size=9, intermediate_size=8, **small))
    >>> bert = ms.attach(bert, ms.masks.window(2) | ms.masks.global_tokens(1))
    >>> bert(torch.tensor([[1, 2, 3, 4, 5, 6]])).last_hidden_state.shape
    torch.Size([1, 6, 8])
    """
    if backend not in REQUESTS:
        raise unknown_name("backend", str(backend), REQUESTS)
    check_module("attach", model)
    if isinstance(mask, (str, Path)):
        raise TypeError(
            f"attach takes masks, got {str(mask)!r}; of a folder give the masks that were saved "
            f"there: ms.attach(model, ms.saved_masks({str(mask)!r})), of an expression "
            f"masks.parse({str(mask)!r})"
        )
    wrapper, model = model, unwrapped(model)
    roots = pretrained_models(model)
    worn = getattr(model.__dict__.get(ATTACHMENT), "previous", ())
    before = {id(config): name for config, name in worn if implementation(config) == NAME}
    calls = probe(model, roots, inputs, before)
    parts = parts_of(model, calls, inputs)
    if isinstance(mask, Mapping):
        if part is not None:
            raise ValueError(f"a mapping names the parts itself, got part={part!r} as well")
        if not mask:
            raise ValueError(f"a mapping names at least one part of {', '.join(parts)}, got none")
        targets = [(find_part(model, parts, name), value) for name, value in mask.items()]
    else:
        targets = [(find_part(model, parts, part), mask)]
    for one, value in targets:
        _check_counts(model, one, value)
        if isinstance(value, Mask) and value.needs_tokens:
            receiver(model, one)
    models = [m for one, _ in targets for m in models_of(model, one)]
    packs = all(call.packs for call in calls)
    forms = {before.get(id(one.config), implementation(one.config)) for one in models}
    positions = SequencePositions(
        written=any(call.written for call in calls),
        packs=packs,
        floats=not packs and forms == {"eager"},
    )
    states = _states_for(model, targets, backend, positions)
    _refuse_others(model, states, [own_config(module) for module in (*models, *states)])
    dropping = None
    if drop_tokens is not False:
        dropping = _prepare_dropping(model, targets, calls, drop_tokens, inputs)
    take_off(model)  # only now: a refused mask leaves the earlier one in force
    configs = _copied_configs(model)
    ours = {id(own_config(module)) for module in (*models, *states)}
    previous = {
        id(copied): (copied, implementation(copied))
        for _, copied, before in configs
        if id(before) in ours
    }
    attachment = Attachment(
        {one.name: v for one, v in targets}, states, positions, configs, [*previous.values()]
    )
    if opened(wrapper) is not None:
        attachment.callers = [each for each in wrapper.modules() if model in each.children()]
    if dropping is not None:
        dropping.states = [states[call.module] for call in targets[0][0].calls]
        attachment.dropping = dropping
    owner = owners(model)
    for one, value in targets:
        if isinstance(value, Mask) and value.needs_tokens:
            token_masks = (states[call.module].token_mask for call in one.calls)
            several = list(dict.fromkeys(each for each in token_masks if each is not None))
            attachment.token_masks.append((several, receiver(model, one)))
        elif not isinstance(value, Mask):
            bank, inside = cast(nn.Module, value), owner[one.calls[0].module]
            whole = one.name == SELF or attachment.banks.get(bank, inside) is not inside
            attachment.banks[bank] = model if whole else inside
    put_on(model, attachment)
    return wrapper


def detach(model: nn.Module, missing_ok: bool = False) -> nn.Module:
    """Takes mask or gates off again and restores the previous attention implementation.

    Where the model has been given another one since, that stays.

    Raises:
        AttachError: If nothing is attached to this model and `missing_ok` is off.
    """
    check_module("detach", model)
    if take_off(unwrapped(model)) is None and not missing_ok:
        raise AttachError(
            f"nothing is attached to this {type(model).__name__}; detach takes the module that "
            "attach was given, or one around it"
        )
    return model


def attached(model: nn.Module) -> dict[str, Any]:
    """Part -> attached mask or gates, as `attach` was given them (`"self"` = plain).

    Raises:
        AttachError: If the model has been given another attention implementation since.
    """
    attachment = in_force(model)
    return {} if attachment is None else dict(attachment.what)


def in_force(model: nn.Module) -> Attachment | None:
    """The attachment of a model.

    Raises:
        AttachError: If other attention is in use, which passes it over.
    """
    model = unwrapped(model)
    attachment: Attachment | None = model.__dict__.get(ATTACHMENT)
    for config, _ in attachment.previous if attachment is not None else ():
        if config._attn_implementation != NAME:
            refuse_other(type(model).__name__, str(config._attn_implementation))
    return attachment


def _copied_configs(
    model: nn.Module,
) -> list[tuple[nn.Module, PreTrainedConfig, PreTrainedConfig]]:
    """Modules that hold a configuration, each with a copy and the object itself.

    What modules share they share as a copy too; what other models share with them they do not.
    """
    inside = [m for m in model.modules() if isinstance(m.__dict__.get("config"), PreTrainedConfig)]
    configs = [module.__dict__["config"] for module in inside]
    for copied in (copies := deepcopy(configs)):
        if implementation(copied) == NAME:  # of a model that carries a mask
            set_implementation(copied, "eager" if has_adapter(copied) else "sdpa")
    return list(zip(inside, copies, configs, strict=True))


def _configs_of(model: nn.Module, attachment: Attachment) -> list[PreTrainedConfig]:
    """The configurations that are saved with a model, and those of its layers with a mask."""
    saved = [cast(PreTrainedConfig, root.config) for root in pretrained_models(model)]
    return [*saved, *(config for config, _ in attachment.previous)]


def _same_entries(one: Any, other: Any) -> bool:
    """Whether two configurations, and those inside, have equal entries and implementations.

    By == they are not compared: those that differ by layer refuse it.
    """
    if not isinstance(one, PreTrainedConfig) or type(one) is not type(other):
        return bool(one == other)
    mine, theirs = (
        {name: value for name, value in vars(each).items() if name != IMPLEMENTATION}
        for each in (one, other)
    )
    same = mine.keys() == theirs.keys() and implementation(one) == implementation(other)
    return same and all(_same_entries(value, theirs[name]) for name, value in mine.items())


def put_on(model: nn.Module, attachment: Attachment) -> None:
    """Puts a prepared attachment in force, on a model that carries none."""
    for module, copied, _ in attachment.configs:
        module.__dict__["config"] = copied
    owner, states = owners(model), attachment.states
    adapt(own_modules(states), owner)
    masked = {
        part: {"mask": f"{mask!s:.200}", "digest": mask.digest}
        for part, mask in attachment.what.items()
        if isinstance(mask, Mask)
    }
    for config in _configs_of(model, attachment) if masked else []:  # whatever saves it says so
        note = {"masks": deepcopy(masked), "open_with": "masksearch.load_pretrained(folder)"}
        setattr(config, ENTRY, note)
        setattr(config, KEY, OWN_KEY if any(map(has_own_code, states)) else NAME)
    banks = list(attachment.banks)
    if banks:
        model.add_module(GATES, banks[0] if len(banks) == 1 else nn.ModuleList(banks))
    hooks = [
        each.register_forward_pre_hook(partial(draw_gates, cast(Any, bank)))
        for bank, where in attachment.banks.items()
        for each in (where, *attachment.callers)
    ]
    hooks += [
        each.register_forward_pre_hook(partial(resolve_tokens, several), with_kwargs=True)
        for several, where in attachment.token_masks
        for each in (where, *attachment.callers)
    ]
    hooks += [
        where.register_forward_hook(partial(forget_tokens, several), always_call=True)
        for several, where in attachment.token_masks
    ]
    configs = [config for config, _ in attachment.previous]
    check = partial(check_call, configs, attachment.positions)
    end = partial(end_pass, attachment.positions)
    inside = filter(None, map(owner.get, states))
    for each in dict.fromkeys([*inside, *attachment.callers]):
        hooks.append(each.register_forward_pre_hook(check, with_kwargs=True))
        hooks.append(each.register_forward_hook(end, always_call=True))
    hooks += [] if attachment.dropping is None else attachment.dropping.put_on(model)
    for config in configs:
        set_implementation(config, NAME)
    attachment.hooks = hooks
    for attention, state in states.items():
        attention.__dict__[STATE] = state
    masks = {id(s.lowered): s.lowered for s in states.values() if s.lowered is not None}
    token_masks = [each for several, _ in attachment.token_masks for each in several]
    attachment.positions.enrol(configs, list(masks.values()), token_masks)
    model.__dict__[ATTACHMENT] = attachment


def take_off(model: nn.Module) -> Attachment | None:
    """Undoes `put_on` and returns what was in force, or None."""
    attachment: Attachment | None = model.__dict__.pop(ATTACHMENT, None)
    if attachment is None:
        return None
    for module in attachment.states:
        module.__dict__.pop(STATE, None)
    restore(attachment.states)
    for hook in attachment.hooks:
        hook.remove()
    for config, name in attachment.previous:
        if implementation(config) == NAME:  # what the user has set since then stays
            set_implementation(config, name)
    for config in _configs_of(model, attachment):
        vars(config).pop(ENTRY, None)
        vars(config).pop(KEY, None)
    if all(_same_entries(copied, before) for _, copied, before in attachment.configs):
        for module, _, before in attachment.configs:
            module.__dict__["config"] = before
    if GATES in model._modules:
        del model._modules[GATES]
    return attachment


def _prepare_dropping(
    model: nn.Module,
    targets: list[tuple[Part, Any]],
    calls: list[Call],
    asked: bool | int,
    inputs: Mapping[str, Any] | None,
) -> Dropping:
    """How tokens are left out under these masks, tried under another one that is put on.

    Raises:
        ValueError: If the number of rows that are read is none.
    """
    if asked is not True:
        at_least("drop_tokens (leading rows that the head reads), or True or False,", asked, 1)
    part, value = targets[0]
    if len(targets) > 1 or not isinstance(value, Mask):
        return Dropping(asked, problem="gates take part" if len(targets) == 1 else "several parts")

    def put_on_trial(mask: Mask) -> Iterable[LayerState]:
        attach(model, mask, inputs, "sdpa", part=part.name)
        return cast(Attachment, model.__dict__[ATTACHMENT]).states.values()

    aside = any(has_own_code(call.module) for call in part.calls)
    return prepare(model, part, calls, asked, inputs, aside, put_on_trial)


def _states_for(
    model: nn.Module, targets: list[tuple[Part, Any]], backend: str, positions: SequencePositions
) -> dict[nn.Module, LayerState]:
    """A state for each attention module of those parts; equal masks are lowered once."""
    names = names_of(model)
    shared: dict[tuple[Any, ...], LayerMask] = {}
    token_masks: dict[tuple[str, bool, str], TokenMask] = {}
    states: dict[nn.Module, LayerState] = {}
    for part, value in targets:
        for layer, call in enumerate(part.calls):
            if call.module in states:
                raise AttachError(
                    f"{names[call.module]} is in two of the parts "
                    f"{', '.join(repr(one.name) for one, _ in targets)}; name each layer once"
                )
            state = states[call.module] = LayerState(
                name=names[call.module],
                part=part.name,
                layer=layer,
                positions=positions,
                backend=backend,
                causal=call.causal,
                cross=part.cross,
            )
            where = f"layer {layer}" if part.name == SELF else f"{part.name} layer {layer}"
            if not isinstance(value, Mask):
                state.bank = value
                continue
            mask = state.mask = value.of_layer(layer)
            if value.needs_tokens:
                named = (mask.digest, call.causal, part.name)
                made = TokenMask(mask, call.causal, where)
                state.token_mask = token_masks.setdefault(named, made)
                continue
            sizes = (not (part.cross or call.biased), call.heads)
            key = (mask.digest, call.causal, part.cross, *sizes)
            if key not in shared:
                shared[key] = LayerMask(mask, call.causal, where, backend, *sizes)
            state.lowered = shared[key]
    return states


# -- what is refused ---------------------------------------------------------------------------
def check_module(name: str, model: nn.Module) -> None:
    """Refuses what is no module."""
    if not isinstance(model, nn.Module):
        got = f"the class {model.__name__}" if isinstance(model, type) else f"{model!r:.80}"
        if isinstance(getattr(model, "model", None), nn.Module):  # a pipeline, a trainer
            rest = ", mask" if name == "attach" else ""
            got = f"{type(model).__name__}; give the model that it holds: ms.{name}(x.model{rest})"
        elif isinstance(model, str | Path):
            got += "; open it first, as AutoModelForSequenceClassification.from_pretrained(..)"
        raise TypeError(f"{name} takes a model (torch.nn.Module) first, got {got}")


def _check_counts(model: nn.Module, part: Part, value: Any) -> None:
    """Whether mask or gates fit the part, its layers and heads."""
    for call in part.calls:
        if call.problem:
            raise AttachError(
                f"{names_of(model)[call.module]} ({type(call.module).__name__}) of "
                f"{type(model).__name__} {call.problem}; a mask is of the positions of one "
                "sequence, so this layer is not served"
            )
    layers, heads = part.layers, part.heads
    title = type(model).__name__
    where = title if part.name == SELF else f"{part.name!r} of {title}"
    if isinstance(value, Mask):
        try:
            value.counts(layers, heads)
        except (HeadCountError, LayerCountError) as error:
            config = own_config(part.calls[0].module)
            passed = [] if config is None else keyless_layers(config)
            beside = f"; layers {', '.join(map(str, passed))} attend to no keys and take no mask"
            beside = beside if passed else ""
            raise type(error)(
                f"{error}; {where} has {layers} layers of {heads} heads{beside}"
            ) from error
        first = part.calls[0].module
        config = own_config(first) or own_config(owners(model)[first])
        most = getattr(config, "max_position_embeddings", None)
        if most and value.length and value.length > most:
            table = f"the mask is a table of {value.length} positions"
            warn(f"{table}, and {where} has {most}: its upper left corner is used")
        return
    if not callable(getattr(value, "attend", None)):
        remedy = "a bool table of cells is masks.table(bits), one mask a layer masks.per_layer"
        raise TypeError(f"attach takes a mask or gates, got {type(value).__name__}; {remedy}")
    named = "the model" if part.name == SELF else where
    if value.layers not in (1, layers):
        raise LayerCountError(f"the gates have {value.layers} layers, {named} {layers}")
    if value.heads not in (1, heads):
        raise HeadCountError(f"the gates have {value.heads} heads, {named} {heads}")


def _refuse_others(model: nn.Module, states: Iterable[nn.Module], configs: list[Any]) -> None:
    """Refuses layers that carry a mask of another module, and models asked for weights."""
    attachment = model.__dict__.get(ATTACHMENT)
    for module in states:
        if STATE in module.__dict__ and (attachment is None or module not in attachment.states):
            raise AttachError(
                f"{type(model).__name__} already has a mask, put on through another module; "
                "detach that one first. Of a model with a mask, copy the whole, not a part"
            )
    if any(getattr(config, "output_attentions", False) for config in configs):
        refuse_weights(type(model).__name__)


# -- gates -------------------------------------------------------------------------------------
def draw_gates(bank: GateBank, model: nn.Module, inputs: Any) -> None:
    """Pre-forward hook: one sample of the gates serves the whole forward pass.

    Raises:
        AttachError: If re-entrant checkpoints would go backward through it several times.
    """
    if Probe.calls is not None:
        return
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        trained = any(each.requires_grad for each in cast(nn.Module, bank).parameters())
        if trained and any(map(is_reentrant, model.modules())):
            raise AttachError(
                f"{type(model).__name__} has trainable gates, drawn once per forward pass, "
                "and re-entrant gradient checkpoints, which go backward through them once a "
                "layer; use the other kind: model.gradient_checkpointing_enable("
                '{"use_reentrant": False})'
            )
    bank.draw()
