"""Finds a model's attention layers: one probe forward that records every attention call.

    probe       runs the model once on a few tokens, with every configuration naming `PROBE`; what
                transformers then calls in place of SDPA (`probing_attention`) writes down who
                calls, with how many heads, and whether later keys are hidden
    parts_of    sorts the calls: one part in a plain model; encoder, decoder and cross-attention
                where queries and keys differ in number; else one for each tower
    find_part   the part that a user names

A layer is an attention module: one that is called several times (ALBERT) counts once.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from masksearch.attention.own_code import adapt, own_modules, restore, verify
from masksearch.errors import AttachError, MaskSearchError, ran_out_of_memory, unknown_name

PROBE = "masksearch_probe"  # of the functions below, in configurations
SELF = "self"  # the only part of a plain model
KEYLESS = ("linear_attention", "conv", "moe", "mlp")  # kinds of layers that attend to no keys
REACHABLE = (
    "BERT, RoBERTa, DistilBERT, ELECTRA, ALBERT, ModernBERT, ESM, ViT, DeiT, DINOv2, CLIP, "
    "GPT-2, Llama, Qwen, T5, BART"
)
ENCODER, DECODER = 7, 5  # example tokens: different, so that cross-attention is recognised
TRIAL = 16  # tokens of texts by which two ways to compute are compared
FAILURES = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError)


@dataclass(frozen=True)
class Call:
    """One attention call that the probe has seen.

    Args:
        module: Who called.
        heads: Query heads.
        queries: Positions that ask.
        keys: Positions that are asked.
        causal: Whether later keys were hidden.
        biased: Whether the model adds a bias to the scores.
        written: Whether only a written mask says so: without one, the module does otherwise.
        packs: Whether no code but attention has looked at the model's mask until then.
        batch: Sequences that are computed side by side.
        address: Of the queries' memory and of its first number.
        problem: Why no mask of one sequence fits the layer, or empty.
    """

    module: nn.Module
    heads: int
    queries: int
    keys: int
    causal: bool
    biased: bool = False
    written: bool = False
    packs: bool = False
    batch: int = 1
    address: tuple[int, int] = (0, 0)
    problem: str = ""


class ProbeOfThread(threading.local):
    """Collects attention calls while a probe is active in this thread."""

    calls: list[Call] | None = None
    touched: bool = False  # whether code of the model has looked at its mask
    eager: Collection[int] = ()  # ids of the configurations that asked for a float mask


Probe = ProbeOfThread()


class WatchedMask(Tensor):
    """The model's mask in the probe, which notes that code of the model looks at it."""

    @classmethod
    def __torch_function__(cls, *call: Any, **rest: Any) -> Any:
        """Notes any operation, and that of a shape or a type."""
        Probe.touched = True
        return super().__torch_function__(*call, **rest)  # type: ignore[no-untyped-call]


def probe(
    model: nn.Module,
    roots: list[PreTrainedModel],
    inputs: Mapping[str, Any] | None,
    before: Mapping[int, str] | None = None,
) -> list[Call]:
    """One forward pass without gradient that records every attention call in order.

    Args:
        model: What is called.
        roots: Its Hugging Face models (`pretrained_models`).
        inputs: Keyword arguments of the call; None = a made-up example.
        before: id of a configuration that names ours -> the attention that it named before.

    Raises:
        AttachError: If no call is seen, or no example can be made up, or the one that was fails.
    """
    title = type(model).__name__
    if not roots:
        raise AttachError(
            f"{title} contains no Hugging Face model (PreTrainedModel); how a model of "
            "plain PyTorch takes a mask is in docs/plain_pytorch.md"
        )
    device = offloaded(model) or next(model.parameters()).device
    if device.type == "meta":
        raise AttachError(
            f"{title} is on the meta device, so its layers cannot be found by a forward pass; "
            "load its weights first, or model.to_empty(device=...)"
        )
    called = model
    if inputs is None and len(roots) == 1 and _passes_on(model):
        called = roots[0]  # within DataParallel, torch.compile, an adapter
    if inputs is None and getattr(getattr(called, "config", None), "is_encoder_decoder", False):
        called = cast(PreTrainedModel, called).base_model  # heads may ask for equal lengths
    arguments = dict(inputs) if inputs is not None else example_inputs(called, roots[0], device)
    owner = owners(model)
    own = own_modules(owner)
    try:
        eager = torch.compiler.set_stance("force_eager")  # a graph would not record its calls
        with torch.no_grad(), eager, keeping_modes(model):
            model.eval()
            if own:
                texts = inputs or example_texts(called, roots[0], device)
                verify(own, owner, partial(called, **texts))
            with recording(roots, before or {}, own, owner) as calls:
                called(**arguments)
    except FAILURES as error:
        if inputs is not None or isinstance(error, MaskSearchError) or ran_out_of_memory(error):
            raise
        raise AttachError(describe_failure(called, arguments, error)) from error
    if not calls:
        raise refuse_family(title)
    return judged(calls, arguments, made_up=inputs is None)


def refuse_family(title: str) -> AttachError:
    """The error about a class of models that takes no mask."""
    return AttachError(
        f"{title} does not use transformers' attention interface, so no mask can be put on it; "
        f"models that do include {REACHABLE}; docs/supported_models.md lists every class"
    )


def judged(calls: list[Call], inputs: Mapping[str, Any], made_up: bool) -> list[Call]:
    """The calls, each with what speaks against a mask of one sequence.

    Args:
        calls: Of one pass.
        inputs: Its arguments.
        made_up: Whether they are `example_inputs`: one text of each length, or one image.
    """
    tensors = [
        each
        for value in inputs.values()
        for each in (value.values() if isinstance(value, Mapping) else (value,))
        if isinstance(each, Tensor) and each.ndim > 1
    ]
    texts = [each for each in tensors if not each.is_floating_point()]
    batches = {1, *(each.shape[0] for each in tensors)}  # choices and images of an example fold in
    folded = [each for each in tensors if each.ndim == (5 if each.is_floating_point() else 3)]
    batches |= {each.shape[0] * each.shape[1] for each in folded}
    rows = {each.shape[-1] for each in texts}
    known = rows | {each.shape[1] for each in tensors if each.ndim == 3}
    known |= {call.queries for call in calls if call.queries == call.keys}
    asked = {call.queries for call in calls}
    of_text = made_up and rows and (len(texts) == len(tensors) or not asked & rows)
    alike: dict[nn.Module, Call] = {}

    def problem(call: Call) -> str:
        first, queries, keys = alike.setdefault(call.module, call), call.queries, call.keys
        sizes = f"{queries} queries and {keys} keys"
        if (first.queries, first.keys, first.causal) != (queries, keys, call.causal):
            return f"calls attention with {sizes} after {first.queries} and {first.keys}"
        views = first.address[0] == call.address[0] and first.address != call.address
        if views or call.batch not in batches:
            return f"cuts its sequence into pieces, and attends within each: {sizes}"
        if of_text and queries not in rows:
            return f"attends with {queries} queries, and the text has {max(rows)} tokens"
        if queries == keys or (keys in known and keys - queries not in known - {queries}):
            return ""
        if keys - queries in known:
            return f"attends to its own {queries} positions and {keys - queries} others at once"
        return f"attends to {keys} keys, and no sequence of the model has as many positions"

    problems: dict[nn.Module, str] = {}
    for call in calls:
        problems[call.module] = problems.get(call.module) or problem(call)
    return [replace(call, problem=problems[call.module]) for call in calls]


@contextmanager
def recording(
    roots: list[PreTrainedModel],
    before: Mapping[int, str],
    own: list[nn.Module],
    owner: Mapping[nn.Module, PreTrainedModel],
) -> Iterator[list[Call]]:
    """The calls of what is run within, with adapters on `own` modules; then all is as it was."""
    previous = implementations(roots)
    calls: list[Call] = []
    Probe.calls, Probe.touched = calls, False
    Probe.eager = {id(c) for c, name in previous if before.get(id(c), name) == "eager"}
    try:
        for config, _ in previous:
            set_implementation(config, PROBE)
        adapt(own, owner)
        yield calls
    finally:
        Probe.calls = None
        restore(own)
        for config, name in previous:
            set_implementation(config, name)


@contextmanager
def keeping_modes(*models: nn.Module) -> Iterator[None]:
    """Puts every module back into training or eval mode as it was before."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def describe_failure(called: nn.Module, inputs: Mapping[str, Tensor], error: Exception) -> str:
    """The remedy where a forward pass with made-up inputs fails."""
    tried = ", ".join(f"{key} {list(value.shape)}" for key, value in inputs.items())
    real = ", ".join(f'"{key}": batch["{key}"]' for key in inputs)
    why = str(error).partition("\n")[0]
    return (
        f"the layers of {type(called).__name__} are found by a forward pass, and one with made-up "
        f"inputs ({tried}) failed: {type(error).__name__}: {why:.200}; give the arguments of one "
        f"that works, all that the model needs: ms.attach(model, mask, inputs={{{real}}})"
    )


def offloaded(model: nn.Module) -> torch.device | None:
    """Where accelerate computes a model whose weights it keeps elsewhere; None for others."""
    for module in model.modules():
        hook = getattr(module, "_hf_hook", None)
        for each in (hook, *getattr(hook, "hooks", ())):
            device = getattr(each, "execution_device", None)
            if getattr(each, "offload", False) and device is not None:
                return torch.device(device)
    return None


def _passes_on(model: nn.Module) -> bool:
    """Whether a module names none of its inputs, because it hands them to a model inside."""
    kinds = {each.kind for each in inspect.signature(model.forward).parameters.values()}
    return kinds <= {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}


def example_inputs(
    model: nn.Module, root: PreTrainedModel, device: torch.device
) -> dict[str, Tensor]:
    """A few tokens or one empty image, by the names of the model's inputs."""
    names = inspect.signature(model.forward).parameters
    made: dict[str, Tensor] = {}
    if "input_ids" in names:
        count = ENCODER if "decoder_input_ids" in names else DECODER
        made["input_ids"] = torch.ones(1, count, dtype=torch.int64, device=device)
    if "pixel_values" in names:
        config = root.config
        if not hasattr(config, "image_size") and hasattr(config, "vision_config"):
            config = config.vision_config
        sides = getattr(config, "image_size", 224)
        height, width = sides if isinstance(sides, (tuple, list)) else (sides, sides)
        channels = getattr(config, "num_channels", 3)
        dtype = next(model.parameters()).dtype
        made["pixel_values"] = torch.zeros(1, channels, height, width, device=device, dtype=dtype)
    if not made:
        title = f", or attach to the {type(root).__name__} inside: "
        other = "".join(f"{title}ms.attach({way}, mask)" for way in ways_inside(model)[:1])
        raise AttachError(
            f"{type(model).__name__}.forward takes {', '.join(names)}; give inputs={{...}} with "
            f"example arguments, so that the attention layers can be found{other}"
        )
    if "decoder_input_ids" in names:
        made["decoder_input_ids"] = torch.ones(1, DECODER, dtype=torch.int64, device=device)
    return made


def example_texts(
    model: nn.Module, root: PreTrainedModel, device: torch.device
) -> dict[str, Tensor]:
    """Two texts of `TRIAL` tokens drawn at random, one of them padded."""
    names, words = inspect.signature(model.forward).parameters, root.config.get_text_config()
    drawn = torch.Generator().manual_seed(0)
    ids = torch.randint(0, words.vocab_size, (2, TRIAL), generator=drawn).to(device)
    texts = {"input_ids": ids}
    if "attention_mask" in names:
        texts["attention_mask"] = torch.ones_like(ids)
        texts["attention_mask"][1, TRIAL * 2 // 3 :] = 0
    if type(model).__name__.endswith("ForMultipleChoice"):
        texts = {name: each[None] for name, each in texts.items()}
    return texts


# -- what transformers calls while the probe runs ----------------------------------------------
def probing_mask(*args: Any, **rest: Any) -> Any:
    """The model's own mask, always written out, so that causality can be read from it."""
    rest |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    form = eager_mask if id(rest.get("config")) in Probe.eager else sdpa_mask
    mask: Tensor = form(*args, **rest)
    if type(mask) is Tensor:
        return mask.as_subclass(WatchedMask)
    Probe.touched = True  # by whatever made it another class: nothing is proven
    return mask


def probing_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **rest: Any
) -> tuple[Tensor, Tensor | None]:
    """Records the call, then computes it as SDPA does."""
    if rest.get("softcap") is not None:
        raise AttachError(
            f"{type(module).__name__} computes its scores with a soft cap, which SDPA and the "
            "sparse backends do not: a mask would silently drop it, so this model is not served"
        )
    if isinstance(attention_mask, WatchedMask):
        with torch._C.DisableTorchFunctionSubclass():
            attention_mask = attention_mask.as_subclass(Tensor)
    if Probe.calls is not None:
        queries, keys = query.shape[2], key.shape[2]
        named = rest.get("is_causal")
        unwritten = bool(getattr(module, "is_causal", True) if named is None else named)
        hidden, mask = unwritten, attention_mask
        if isinstance(mask, Tensor) and mask.ndim == 4 and min(mask.shape[-2:]) > 1:
            seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
            hidden = not bool(seen.triu(1).any())
        Probe.calls.append(
            Call(
                module,
                query.shape[1],
                queries,
                keys,
                causal=hidden and queries == keys,
                biased=rest.get("position_bias") is not None,
                written=hidden != unwritten,
                packs=not Probe.touched,
                batch=query.shape[0],
                address=(query.untyped_storage().data_ptr(), query.data_ptr()),
            )
        )
    out: tuple[Tensor, Tensor | None] = sdpa_attention_forward(
        module, query, key, value, attention_mask, **rest
    )
    return out


# -- parts -------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Part:
    """Attention layers that share a mask.

    Args:
        name: What `attach(part=...)` calls it.
        calls: The first call of each layer, in the order in which the layers are called.
        cross: Whether keys come from another sequence than queries.
    """

    name: str
    calls: tuple[Call, ...]
    cross: bool = False

    @property
    def layers(self) -> int:
        """Number of attention modules."""
        return len(self.calls)

    @property
    def heads(self) -> int:
        """Query heads of every layer.

        Raises:
            AttachError: If the layers differ in it.
        """
        counts = {call.heads for call in self.calls}
        if len(counts) > 1:
            raise AttachError(
                f"layers with {sorted(counts)} heads cannot share one mask; attach to parts of "
                "the model, by the names of submodules: part='...'"
            )
        return counts.pop()


def parts_of(
    model: nn.Module, calls: list[Call], inputs: Mapping[str, Any] | None = None
) -> dict[str, Part]:
    """The parts that a model has by itself.

    `"self"` alone for a plain model; `"encoder"`, `"decoder"` and `"cross"` where queries and
    keys differ in number; else one part for each Hugging Face model inside, by its dotted name.

    Raises:
        AttachError: If example inputs of equal lengths hide which calls are cross-attention.
    """
    first: dict[nn.Module, Call] = {}
    for call in calls:
        first.setdefault(call.module, call)
    owner = owners(model)
    cross = {call.module for call in calls if call.queries != call.keys}
    decoders = {owner[module] for module in cross}
    towers = list(dict.fromkeys(owner[module] for module in first))
    named_inputs = inputs or {}
    paired = len(towers) > 1 and any(
        getattr(root.config, "is_encoder_decoder", False) for root in set(owner.values())
    )
    if not cross and (paired or named_inputs.get("encoder_hidden_states") is not None):
        raise AttachError(
            f"{type(model).__name__} was shown encoder and decoder inputs of equal length, so "
            "that cross-attention cannot be recognised; give inputs with different lengths"
        )
    groups: dict[str, list[Call]] = {}
    names = names_of(model)
    for module, call in first.items():
        if module in cross:
            name = "cross"
        elif cross:
            name = "decoder" if owner[module] in decoders else "encoder"
        else:
            inner = owner[module]
            name = SELF if len(towers) == 1 else names[inner] or SELF
            if name == SELF and len(towers) > 1 and own_config(module) is not inner.config:
                name = names[module].split(".")[0]  # a tower that is no model of its own (ViT-MAE)
        groups.setdefault(name, []).append(call)
    return {name: Part(name, tuple(each), name == "cross") for name, each in groups.items()}


def find_part(model: nn.Module, parts: dict[str, Part], part: str | None) -> Part:
    """The part of that name: one of `parts_of`, or the layers below a submodule.

    Raises:
        AttachError: If there are several and none is named, or a submodule mixes them.
        UnknownNameError: If there is no such part.
    """
    title = type(model).__name__
    if part is not None and not isinstance(part, str):
        raise TypeError(f"a part is named by a string such as 'encoder', got {part!r}")
    if part is None:
        if len(parts) > 1:
            listed = "; ".join(
                f"{name} ({p.layers} layers, {p.calls[0].heads} heads"
                f"{'; the first ' * bool(p.calls[0].problem)}{p.calls[0].problem})"
                for name, p in parts.items()
            )
            both = ", ".join(f'"{name}": mask' for name in list(parts)[:2])
            raise AttachError(
                f"{title} has several kinds of attention: {listed}; say which: "
                f'ms.attach(model, mask, part="{next(iter(parts))}"), or several at once: '
                f"ms.attach(model, {{{both}}})"
            )
        return next(iter(parts.values()))
    if part in parts:
        return parts[part]
    names = names_of(model)
    below = [
        call
        for whole in parts.values()
        for call in whole.calls
        if names[call.module] == part or names[call.module].startswith(part + ".")
    ]
    if not part or not below:
        towers = {names[owners(model)[call.module]] for p in parts.values() for call in p.calls}
        raise unknown_name(f"part of {title}", part, [*parts, *sorted(towers - {"", *parts})])
    asked = {call.queries != call.keys for call in below}
    if len(asked) > 1:
        raise AttachError(
            f"{part!r} of {title} holds self-attention and cross-attention; attach by "
            f"{' or '.join(repr(name) for name in parts)}"
        )
    return Part(part, tuple(below), asked.pop())


# -- models and their configurations -----------------------------------------------------------
# Functions of the rooms above, which know wrappers of other libraries: a module -> the model in
# it; None of a module that they do not know
OPENERS: list[Callable[[nn.Module], nn.Module | None]] = []


def opened(model: nn.Module) -> nn.Module | None:
    """The model in another library's wrapper, which calls its `forward` past all hooks on it."""
    return next((inner for each in OPENERS if (inner := each(model)) is not None), None)


def unwrapped(model: nn.Module, adapters: bool = True) -> nn.Module:
    """The model within torch.compile, DataParallel, DistributedDataParallel, PEFT's wrapper and
    one that is `opened`.

    Args:
        model: Any module.
        adapters: Whether the last two go as well.
    """
    while isinstance(model, nn.Module):
        inner = model._modules.get("_orig_mod")
        if inner is None and _passes_on(model):
            inner = model._modules.get("module")
        if inner is None and adapters:
            peft = type(model).__module__.startswith("peft.")
            inner = getattr(model, "get_base_model", lambda: None)() if peft else opened(model)
        if inner is None:
            break
        model = inner
    return model


def pretrained_models(model: nn.Module) -> list[PreTrainedModel]:
    """The outermost Hugging Face models inside a module."""
    if isinstance(model, PreTrainedModel):
        return [model]
    return [root for child in model.children() for root in pretrained_models(child)]


def ways_inside(model: nn.Module) -> list[str]:
    """How to reach each of the outermost Hugging Face models inside a module, in Python."""
    names = [names_of(model)[root] for root in dict.fromkeys(pretrained_models(model))]
    return [f'model.get_submodule("{name}")' for name in names if name]


def own_config(module: nn.Module) -> PreTrainedConfig | None:
    """The configuration object that a module holds, or None."""
    config = getattr(module, "config", None)
    return config if isinstance(config, PreTrainedConfig) else None


def keyless_layers(config: PreTrainedConfig) -> list[int]:
    """The layers of a hybrid decoder that attend to no keys: linear and recurrent ones, and
    convolutions. They are passed over; a mask is of the others, in their order."""
    kinds = getattr(config.get_text_config(decoder=True), "layer_types", None) or ()
    return [layer for layer, kind in enumerate(kinds) if kind in KEYLESS]


def implementations(roots: list[PreTrainedModel]) -> list[tuple[PreTrainedConfig, str]]:
    """Every configuration object inside, with the attention implementation that it names.

    Layers hold another object than their model where a wrapper has exchanged the model's
    (EncoderDecoderModel).
    """
    configs = [own_config(module) for root in roots for module in root.modules()]
    distinct = {id(config): config for config in configs if config is not None}
    return [(config, implementation(config)) for config in distinct.values()]


def implementation(config: PreTrainedConfig) -> str:
    """Name of the attention implementation that is in use now."""
    return str(config._attn_implementation or "sdpa")


def set_implementation(config: PreTrainedConfig, name: str) -> None:
    """Names an attention implementation in that object alone, not in those inside."""
    config._attn_implementation = {"": name}


def owners(model: nn.Module) -> dict[nn.Module, PreTrainedModel]:
    """The Hugging Face model that each module belongs to, the innermost one."""
    owner: dict[nn.Module, PreTrainedModel] = {}
    for outer in model.modules():  # inner models come later
        if isinstance(outer, PreTrainedModel):
            owner.update(dict.fromkeys(outer.modules(), outer))
    return owner


def models_of(model: nn.Module, part: Part) -> list[PreTrainedModel]:
    """The Hugging Face models whose masks reach the layers of a part.

    A decoder's masks may be made by any model around it (generation with a static cache).
    """
    owner = owners(model)
    holders = {owner[call.module] for call in part.calls}
    decoding = {call.module for call in part.calls if call.causal or part.cross}
    return [
        module
        for module in model.modules()
        if isinstance(module, PreTrainedModel)
        and (module in holders or decoding & set(module.modules()))
    ]


def names_of(model: nn.Module) -> dict[nn.Module, str]:
    """Module -> its dotted name within the model."""
    return {module: name for name, module in model.named_modules()}
