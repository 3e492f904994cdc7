"""Finds a model's attention layers: one probe forward that records every attention call."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from masksearch.errors import AttachError, MaskSearchError

PROBE = "masksearch_probe"
REACHABLE = (
    "BERT, RoBERTa, DistilBERT, ELECTRA, ALBERT, ModernBERT, ESM, ViT, DeiT, DINOv2, CLIP, "
    "GPT-2, Llama, Qwen, T5, BART"
)
ENCODER, DECODER = 7, 5  # example tokens: different, so that cross-attention is told apart
FAILURES = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError)
BEYOND = {"s_aux": "attention sinks", "softcap": "a soft cap"}  # transformers' keyword -> what


@dataclass(frozen=True)
class Call:
    """One attention call that the probe has seen.

    Args:
        module: Who called.
        heads: Query heads.
        queries: Positions that ask.
        keys: Positions that are asked.
        width: Numbers of a head's query.
        causal: Whether later keys were hidden.
        biased: Whether the model adds a bias to the scores.
    """

    module: nn.Module
    heads: int
    queries: int
    keys: int
    width: int
    causal: bool
    biased: bool = False


Target = PreTrainedModel | PreTrainedConfig  # what an attention implementation is set on


class Probe:
    """Collects attention calls while it is active."""

    calls: list[Call] | None = None


def pretrained(model: nn.Module) -> list[PreTrainedModel]:
    """The outermost Hugging Face models inside a module."""
    if isinstance(model, PreTrainedModel):
        return [model]
    return [root for child in model.children() for root in pretrained(child)]


def own_config(module: nn.Module) -> PreTrainedConfig | None:
    """The configuration object that a module holds, or None."""
    config = getattr(module, "config", None)
    return config if isinstance(config, PreTrainedConfig) else None


def config_of(target: Target) -> PreTrainedConfig:
    """The configuration object that names the implementation."""
    return target.config if isinstance(target, PreTrainedModel) else target


def implementation(target: Target) -> str:
    """Name of the attention implementation that is in use now."""
    return str(config_of(target)._attn_implementation or "sdpa")


def implementations(roots: list[PreTrainedModel]) -> list[tuple[Target, str]]:
    """Where attention implementations are named: the models, then the layers' own objects.

    One for each configuration object, outermost models first. Layers hold another object than
    their model where a wrapper has exchanged the model's (EncoderDecoderModel).
    """
    modules = [module for root in roots for module in root.modules()]
    found: dict[int, Target] = {}
    for module in modules:
        if isinstance(module, PreTrainedModel):
            found.setdefault(id(module.config), module)
    for module in modules:
        if (config := own_config(module)) is not None:
            found.setdefault(id(config), config)
    return [(target, implementation(target)) for target in found.values()]


def use(target: Target, name: str) -> None:
    """Sets the attention implementation; that of a model sets those inside as well."""
    if isinstance(target, PreTrainedModel):
        target.set_attn_implementation(name)
    else:
        target._attn_implementation = {"": name}  # its own alone


def restore(previous: list[tuple[Target, str]]) -> None:
    """Sets the attention implementations that `implementations` has seen."""
    for target, name in previous:
        use(target, name)


def probe(
    model: nn.Module, roots: list[PreTrainedModel], inputs: Mapping[str, Any] | None
) -> list[Call]:
    """One forward pass without gradient that records every attention call in order.

    Raises:
        AttachError: If no call is seen, no example can be made up or the one that was fails, or
            the inputs lie elsewhere than the model.
    """
    name = type(model).__name__
    if not roots:
        raise AttachError(f"{name} contains no Hugging Face model (PreTrainedModel)")
    devices = {parameter.device for parameter in model.parameters()}
    elsewhere = offloaded(model)
    if torch.device("meta") in devices and elsewhere is None:
        raise AttachError(
            f"{name} is on the meta device, so its layers cannot be found by a forward pass; "
            "load its weights first, or model.to_empty(device=...)"
        )
    device = elsewhere or next(model.parameters()).device
    called = model
    if inputs is None and len(roots) == 1 and passes_on(model):
        called = roots[0]  # within DataParallel, torch.compile, an adapter
    if inputs is None and isinstance(called, PreTrainedModel) and is_paired(called):
        called = called.base_model  # heads may ask for as many decoder as encoder positions
    given = dict(inputs) if inputs is not None else example_inputs(called, roots[0], device)
    for key, value in given.items():
        if isinstance(value, Tensor) and value.device not in devices and elsewhere is None:
            raise AttachError(
                f"inputs[{key!r}] is on {value.device}, {name} on {device}; "
                f"move it there: inputs[{key!r}].to({str(device)!r})"
            )
    previous = implementations(roots)
    training = [(module, module.training) for module in model.modules()]
    Probe.calls = []
    try:
        for target, _ in previous:
            use(target, PROBE)
        model.eval()
        with torch.no_grad():
            called(**given)
        calls = Probe.calls
    except FAILURES as error:
        if inputs is not None or isinstance(error, (MaskSearchError, torch.OutOfMemoryError)):
            raise
        raise AttachError(failed(called, given, error)) from error
    finally:
        Probe.calls = None
        restore(previous)
        for module, mode in training:
            module.training = mode
    if not calls:
        raise AttachError(
            f"{name} does not use transformers' attention interface, so no mask can be put on "
            f"it; models that do include {REACHABLE}"
        )
    return calls


def failed(called: nn.Module, given: Mapping[str, Tensor], error: Exception) -> str:
    """What to do where a forward pass with made-up inputs fails."""
    tried = ", ".join(f"{key} {list(value.shape)}" for key, value in given.items())
    real = ", ".join(f'"{key}": batch["{key}"]' for key in given)
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


def passes_on(model: nn.Module) -> bool:
    """Whether a module names none of its inputs, because it hands them to a model inside."""
    kinds = {each.kind for each in inspect.signature(model.forward).parameters.values()}
    return kinds <= {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}


def is_paired(model: PreTrainedModel) -> bool:
    """Whether it is an encoder with a decoder."""
    return bool(getattr(model.config, "is_encoder_decoder", False))


def example_inputs(
    model: nn.Module, root: PreTrainedModel, device: torch.device
) -> dict[str, Tensor]:
    """A few tokens or one empty image, by the names of the model's inputs."""
    names = inspect.signature(model.forward).parameters

    def tokens(count: int) -> Tensor:
        return torch.ones(1, count, dtype=torch.int64, device=device)

    made: dict[str, Tensor] = {}
    if "input_ids" in names:
        made["input_ids"] = tokens(ENCODER if "decoder_input_ids" in names else DECODER)
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
        inner = [name for name, module in model.named_modules() if module is root and name]
        other = "".join(
            f", or attach to the {type(root).__name__} inside: "
            f'ms.attach(model.get_submodule("{name}"), mask)'
            for name in inner[:1]
        )
        raise AttachError(
            f"{type(model).__name__}.forward takes {', '.join(names)}; give inputs={{...}} with "
            f"example arguments, so that the attention layers can be found{other}"
        )
    if "decoder_input_ids" in names:
        made["decoder_input_ids"] = tokens(DECODER)
    return made


def probing_mask(*args: Any, **rest: Any) -> Any:
    """SDPA's mask, always written out, so that causality can be read from it."""
    rest |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    return sdpa_mask(*args, **rest)


def hides_later(module: nn.Module, mask: Any, is_causal: bool | None, shape: torch.Size) -> bool:
    """Whether no query sees a later key."""
    if isinstance(mask, Tensor) and mask.ndim == 4 and mask.shape[-1] == mask.shape[-2] > 1:
        seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
        return not bool(seen.triu(1).any())
    return bool(is_causal if is_causal is not None else getattr(module, "is_causal", True))


def probing_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **rest: Any
) -> tuple[Tensor, Tensor | None]:
    """Records the call, then computes it as SDPA does."""
    changed = [how for name, how in BEYOND.items() if rest.get(name) is not None]
    if changed:
        raise AttachError(
            f"{type(module).__name__} computes its scores with {changed[0]}, which SDPA and the "
            "sparse backends do not: a mask would silently drop it, so this model is not served"
        )
    if Probe.calls is not None:
        queries, keys = query.shape[2], key.shape[2]
        hidden = hides_later(module, attention_mask, rest.get("is_causal"), query.shape)
        causal = hidden and queries == keys
        biased = rest.get("position_bias") is not None
        Probe.calls.append(
            Call(module, query.shape[1], queries, keys, query.shape[3], causal, biased)
        )
    out: tuple[Tensor, Tensor | None] = sdpa_attention_forward(
        module, query, key, value, attention_mask, **rest
    )
    return out
