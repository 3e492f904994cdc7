"""Masks in a model's own configuration, so that it is served without masksearch.

Decoders of several families, and ModernBERT, name for each layer whether it attends to everything
or within a window (`layer_types`), and one window for all of them. A mask that is just that,
layer by layer, can be written there: any program that opens the folder then applies it, and its
caches keep the keys of the window only. `from_native` reads the mask of such a configuration.

A decoder's `sliding_window = w` keeps the query's own key and the w - 1 before it, which is
`window(w - 1)`; ModernBERT's `local_attention = w` keeps w // 2 keys on each side.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import fields
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, NoReturn, get_args

import torch
import transformers
from torch import Tensor, nn
from transformers import (
    GraniteSWAConfig,
    GraniteSWAForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    SmolLM3Config,
)
from transformers.initialization import no_init_weights

from masksearch.attention.attach import check_module, in_force
from masksearch.attention.probe import keeping_modes, keyless_layers
from masksearch.errors import NativeError, check_name
from masksearch.masks.core import Both, Either, Mask
from masksearch.masks.leaves import Causal, Columns, Full, GlobalTokens, Offsets, Window
from masksearch.masks.tables import PerHead, PerLayer
from masksearch.masks.text import short_text
from masksearch_decoders.engine import FULL, SLIDING
from masksearch_decoders.engines import ENGINES
from masksearch_decoders.sinks import (
    MEASURED,
    NO_SINK,
    SinkMeter,
    Sinks,
    calibrate,
    calibration_text,
    tune,
    without_sinks,
)

SWITCHED = ("qwen2", "qwen3", "smollm3")  # need use_sliding_window, or the window is forgotten
FAMILIES = ENGINES["transformers"].families
PLAIN = ("llama", "gpt2")  # no field: every layer attends to everything before it
UNTURNED = ("exaone4", "cohere2", "mimo_v2_flash")  # whose full layers have other positions
LLAMA_ONLY = ("model_type", "architectures", "pretraining_tp")
# Older programs, such as text-embeddings-inference, compute ModernBERT's layers from a period.
BY_PERIOD = ("global_attn_every_n_layers", "global_rope_theta", "local_rope_theta")
HYBRID = "has layers that attend to no keys, and no engine is known to window the others"
SHORTEST, LONGEST = 64, 8192  # positions at which masks are set against the nearest ones


def to_native(
    model: Any,
    mask: Mask,
    target: str = "transformers",
    *,
    sinks: Sinks | None = None,
    text: Path | str | Tensor | None = None,
    steps: int = 40,
    folder: Path | str | None = None,
) -> Any:
    """Writes a mask into the model's own configuration, which an engine alone applies.

    It computes what the model with `masksearch.attach(model, mask)` computes: a decoder stays
    causal, and windows that it has of its own stay in force. A Llama with windows becomes the
    SmolLM3 that computes the same, with rotary positions in every layer.

    Args:
        model: A model of transformers, of the families Qwen2, Qwen3, SmolLM3, OLMo 3, Gemma 3
            (text), EXAONE 4, Cohere 2, GraniteSWA, ModernBERT or Llama, or its configuration. It
            is not changed.
        mask: In each layer everything or a window, with one reach for all windows: for example
            `per_layer([full(), window(127), ..])`, or what `from_native` returns.
        target: What serves the folder; windows that it would not apply are refused. Every model
            is opened by transformers too. See docs/engines.md.
        sinks: What becomes of the tokens of fixed positions that a mask keeps beside a window,
            `columns(4) | window(127)`, which no configuration names. `"none"`: they are dropped.
            `"calibrate"`: the model becomes a GraniteSWA, in which a learned logit of each head,
            and biases where the target takes them, stand in their place, measured in one pass
            over a text. `"tune"`: these are then trained towards the model without a mask. Of a
            Llama, Mistral, or what has their weights and computes the same (that is tried).
            None: such masks are refused.
        text: For that: a text file, a folder of `*.txt` files, or token ids int64 `[sequences,
            positions]`; 16 sequences are measured, of 512 tokens or of twice the window.
        steps: Of `"tune"`, one sequence each.
        folder: Keeps the checkpoints of `"tune"`: the same call goes on after a kill.

    Returns:
        A model that shares its weights with `model`, or a configuration. `save_pretrained` of
        transformers writes it.

    Raises:
        NativeError: If the configuration has no words for the mask, or the target does not apply
            it. The message, and `.nearest` of the error, give the nearest mask that can be
            served.
        DataError: If the text is too short, which is said before anything is measured.
        HeadCountError: If the mask tells another number of heads apart.
        TypeError: If `model` or `mask` is something else.
        UnknownNameError: If there is no such target.

    >>> import masksearch as ms
    >>> from transformers import Qwen2Config
    >>> to_native(Qwen2Config(), ms.masks.window(63) & ms.masks.causal()).sliding_window
    64
    """
    if not isinstance(mask, Mask):
        raise TypeError(f"to_native takes a mask second, got {mask!r:.60}")
    check_name("target", target, ENGINES)
    if isinstance(model, PreTrainedConfig):
        if sinks is not None:
            raise TypeError("sinks are measured on a model, got a configuration")
        return native_config(model, mask, target)
    check_module("to_native", model)
    name = type(model).__name__
    if not isinstance(model, PreTrainedModel):
        raise NativeError(
            f"to_native takes a model of transformers, got {name}; of a wrapper give the model "
            "inside it, of an adapter adapter.merge_and_unload()"
        )
    if in_force(model) is not None:
        raise NativeError(f"{name} has a mask attached; take it off first: ms.detach(model)")
    if sinks is not None:
        check_name("sinks", sinks, get_args(Sinks))
        native, meter, tokens = with_sink_logits(model, mask, target, sinks, text, steps)
        if sinks != "none":
            calibrate(model, native, meter, tokens)
        if sinks == "tune":
            tune(model, native, meter, tokens, steps, None if folder is None else Path(folder))
        return native
    config = native_config(model.config, mask, target)
    if config.model_type == model.config.model_type:
        return _with_weights_of(model, type(model), config)
    native = getattr(transformers, name.replace("Llama", "SmolLM3", 1), None)
    if native is None or native is type(model):
        raise NativeError(f"transformers has no SmolLM3 for {name}; give its LlamaModel")
    return _with_weights_of(model, native, config)


def from_native(model: PreTrainedModel | PreTrainedConfig) -> Mask:
    """The mask that a configuration of transformers names, as an expression.

    Args:
        model: A configuration, or a model, of a family that `to_native` knows, or GPT-2.

    Returns:
        What each layer keeps, for decoders within `causal()`: one mask where all layers are
        equal, else `per_layer([..])`.

    Raises:
        NativeError: If the family is another one, or the entries contradict each other.

    >>> from transformers import Qwen3Config
    >>> switched = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
    >>> from_native(Qwen3Config(num_hidden_layers=3, **switched))
    per_layer([causal(), causal() & window(7), causal() & window(7)])
    """
    config = model if isinstance(model, PreTrainedConfig) else getattr(model, "config", None)
    if not isinstance(config, PreTrainedConfig):
        raise TypeError(f"from_native takes a configuration or a model, got {model!r:.60}")
    whole: Mask = Causal() if is_causal(config) else Full()
    kept = [
        whole
        if reach == math.inf
        else Causal() & Window(int(reach))
        if is_causal(config)
        else Window(int(reach))
        for reach in _own_reaches(config)
    ]
    return kept[0] if len(set(kept)) == 1 else PerLayer(kept)


# -- configurations ----------------------------------------------------------------------------
def is_causal(config: PreTrainedConfig) -> bool:
    """Whether no token of this model sees a later one (Gemma 3 is also built as an encoder)."""
    both_ways = getattr(config, "use_bidirectional_attention", False)
    return config.model_type != "modernbert" and not both_ways


def _own_reaches(config: PreTrainedConfig) -> list[float]:
    """How many keys before its own a query sees in each layer; infinity for all of them.

    Raises:
        NativeError: If the family is none of those here, or the entries contradict each other.
    """
    name, layers = type(config).__name__, getattr(config, "num_hidden_layers", 1)
    if config.model_type in PLAIN:
        if SLIDING in (getattr(config, "layer_types", None) or ()):
            raise NativeError(
                f"{name} names sliding layers: transformers keeps its masks full, and its caches "
                "drop keys; delete layer_types and sliding_window"
            )
        return [math.inf] * layers
    if keyless_layers(config):
        raise NativeError(f"{name} {HYBRID}: ms.attach with MaskedCache serves the mask")
    if config.model_type not in FAMILIES:
        raise NativeError(
            f"{name} ({config.model_type or 'no model_type'}) is none of the families whose "
            f"windows are known here: {', '.join(FAMILIES + PLAIN)}; ms.attach serves other models"
        )
    types, window = list(config.layer_types), config.sliding_window
    if len(types) != layers or not {*types} <= {SLIDING, FULL}:
        raise NativeError(
            f"layer_types of {name} names {len(types)} layers of the kinds "
            f"{', '.join(sorted({*types}))}; {layers} of {SLIDING} or {FULL} can be read"
        )
    if SLIDING not in types:
        return [math.inf] * layers
    if (config.model_type in SWITCHED and not config.use_sliding_window) or window is None:
        raise NativeError(
            f"layer_types of {name} names sliding layers, without a window: sliding_window is "
            f"{window} and use_sliding_window {getattr(config, 'use_sliding_window', None)}; "
            "build the configuration with use_sliding_window=True and a sliding_window"
        )
    reach = window if config.model_type == "modernbert" else window - 1
    return [reach if kind == SLIDING else math.inf for kind in types]


def native_config(config: PreTrainedConfig, mask: Mask, target: str = "transformers") -> Any:
    """A copy of a configuration that names the mask, as the target reads it.

    Raises:
        NativeError: If it cannot.
    """
    causal, limits = is_causal(config), _own_reaches(config)
    if mask.layers not in (None, len(limits)):
        count = mask.layers or 1
        stretched = [mask.of_layer(layer * count // len(limits)) for layer in range(len(limits))]
        refuse(config, f"it has {count} layers, the model {len(limits)}", stretched)
    mask.counts(len(limits), config.num_attention_heads)
    layers = [mask.of_layer(layer) for layer in range(len(limits))]
    asked = [reach_of(each, causal) for each in layers]
    for layer, reach in enumerate(asked):
        if reach is None:
            refuse(config, f"layer {layer} keeps {what_else(layers[layer], causal)}", layers)
    reaches = [
        min(reach, most) for reach, most in zip(asked, limits, strict=True) if reach is not None
    ]
    windows = sorted({int(reach) for reach in reaches if reach != math.inf})
    if len(windows) > 1:
        several = " and ".join(f"window({reach})" for reach in windows)
        refuse(config, f"it has {several}, and a configuration one window for all layers", layers)
    if windows == [0]:
        refuse(config, "window(0), a query's own key alone, breaks transformers' caches", layers)
    if windows and config.model_type == "gpt2":
        refuse(config, "the configuration has no field for windows", layers)
    types = [FULL if reach == math.inf else SLIDING for reach in reaches]
    if config.model_type in PLAIN and not windows:
        return copy.deepcopy(config)
    native = _smollm3_of(config) if config.model_type == "llama" else copy.deepcopy(config)
    ropes = _ropes_of(config, types)
    if ropes is None:
        why = "its sliding and its full layers turn positions by other angles, or not at all"
        refuse(config, f"{why}, so that one kind cannot take layers of both", layers)
    if ropes:
        native.rope_parameters = ropes
    native.layer_types = types
    if windows:
        native.sliding_window = windows[0] + (native.model_type != "modernbert")
    if native.model_type in SWITCHED:
        native.use_sliding_window = bool(windows)
        native.sliding_window = native.sliding_window if windows else None
    _write_entries(target, native)
    if why := ENGINES[target].unserved(native):
        nearest = None if min(limits) < math.inf else from_native(config)
        raise NativeError(
            f"{why}; {f'else serve {nearest}' if nearest else 'or use ms.attach'}", nearest
        )
    return native


def _ropes_of(config: PreTrainedConfig, types: Sequence[str]) -> dict[str, Any] | None:
    """Rotary positions for each kind of layer, such that every layer keeps those it had.

    Returns:
        `rope_parameters` by kind; empty where all layers have the same entry; None where one
        kind would need two.
    """
    ropes = getattr(config, "rope_parameters", None) or {}
    if config.model_type in UNTURNED and [*types] != config.layer_types:
        return None
    if FULL not in ropes:
        return {}
    needed = {**ropes}
    for kind in (SLIDING, FULL):
        before = [
            ropes[old] for old, new in zip(config.layer_types, types, strict=True) if new == kind
        ]
        if any(one != other for one, other in pairwise(before)):
            return None
        needed[kind] = copy.deepcopy(before[0] if before else ropes[kind])
    return needed


def _smollm3_of(config: PreTrainedConfig) -> SmolLM3Config:
    """The SmolLM3 configuration of what a Llama computes."""
    data = {name: value for name, value in config.to_dict().items() if name not in LLAMA_ONLY}
    if data.get("head_dim") == config.hidden_size // config.num_attention_heads:
        del data["head_dim"]
    data["no_rope_layers"] = [1] * config.num_hidden_layers  # 1 = has them
    native = SmolLM3Config.from_dict(data)
    native._attn_implementation = config._attn_implementation
    return native


def _write_entries(target: str, config: PreTrainedConfig) -> None:
    """Writes what programs read beside `layer_types`, and removes what contradicts it."""
    for name in chain(BY_PERIOD, *(each.entries(config) for each in ENGINES.values())):
        config.__dict__.pop(name, None)
    for name, value in ENGINES[target].entries(config).items():
        if value is not None:
            setattr(config, name, value)
    types, family = config.layer_types, config.model_type
    if SLIDING in types and family in ("qwen2", "qwen3"):
        config.max_window_layers = 0  # of another number their own classes may serve full layers
    for period in range(1, len(types) + 1) if family == "modernbert" else ():
        if all((kind == FULL) == (layer % period == 0) for layer, kind in enumerate(types)):
            thetas = [config.rope_parameters[kind]["rope_theta"] for kind in (FULL, SLIDING)]
            for name, value in zip(BY_PERIOD, (period, *thetas), strict=True):
                setattr(config, name, value)
            return


def granite_swa_of(model: PreTrainedModel, target: str) -> Any:
    """A GraniteSWA of the weights of a Llama, with sinks that nobody sees, in the model's windows.

    Raises:
        NativeError: If it has no place for some of them.
    """
    name, config = type(model).__name__, model.config
    if not name.endswith("ForCausalLM") or config.model_type == "granite_swa":
        flaw = "has sinks of its own" if config.model_type == "granite_swa" else "has no head"
        raise NativeError(
            f"{name} {flaw}; sinks become logits of decoders with a head for the next token, such "
            "as LlamaForCausalLM, without sinks"
        )
    if config.model_type in PLAIN:
        _own_reaches(config)  # refuses windows that transformers would not apply
    names = {each.name for each in fields(GraniteSWAConfig)} | {"head_dim"}
    data = {key: value for key, value in config.to_dict().items() if key in names - {"model_type"}}
    width = data.get("head_dim") or config.hidden_size // config.num_attention_heads
    kind = SLIDING if data.get("sliding_window") else FULL  # Mistral's window is every layer's
    settings: dict[str, Any] = {"attention_multiplier": width**-0.5, "sliding_window": 1}
    settings["layer_types"] = [kind] * config.num_hidden_layers
    native = GraniteSWAConfig.from_dict(
        data | {k: v for k, v in settings.items() if not data.get(k)}
    )
    biased = any(key.endswith("self_attn.q_proj.bias") for key in model.state_dict())
    engine = ENGINES[target]
    native.attention_bias = engine.biases or biased
    if biased and not engine.biases:
        raise NativeError(
            f"{name} has biases in its attention, which {engine.title}'s GraniteSWA has not"
        )
    with torch.device("meta"), no_init_weights():
        made = type(model)(copy.deepcopy(config)).state_dict()
        places = GraniteSWAForCausalLM(native).state_dict()
    if other := sorted({*made} - {*places}):
        raise NativeError(
            f"{name} has weights ({', '.join(other[:3])}) for which GraniteSWA has no place, the "
            "one form with sinks that engines serve: so its sinks cannot be served. "
            "Keep them with ms.attach, or drop them with sinks='none' (0.94 nats a token behind "
            "dense attention on SmolLM2, where a Llama's tuned sinks are 0.20)"
        )
    return _with_weights_of(model, GraniteSWAForCausalLM, native)


def with_sink_logits(
    model: PreTrainedModel,
    mask: Mask,
    target: str,
    sinks: Sinks,
    text: Path | str | Tensor | None,
    steps: int,
) -> tuple[Any, SinkMeter, Tensor]:
    """The start of `to_native(sinks=)`, which refuses what cannot be served: the model with
    the windows of a mask, what measures the sinks, and the tokens for it."""
    layers, heads = model.config.num_hidden_layers, model.config.num_attention_heads
    mask.counts(layers, heads)
    kept = [mask.of_layer(layer) for layer in range(layers)]
    local = [without_sinks(each) for each in kept]
    meter = SinkMeter(kept, local, heads)
    if kept == local:
        why = "keeps no sinks beside a window; leave sinks out"
        if mask.heads is not None and any(isinstance(each, Columns) for each in _every_part(mask)):
            why = "keeps sinks head by head, and engines know layers only; give all heads one mask"
        raise NativeError(f"{short_text(mask)} {why}")
    if sinks == "none":
        return to_native(model, PerLayer(local), target), meter, torch.empty(0)
    whole = granite_swa_of(model, target)
    native = to_native(whole, PerLayer(local), target)
    last = max(max(each.positions) for each in _every_part(mask) if isinstance(each, Columns))
    most = MEASURED + steps * (sinks == "tune")
    tokens = calibration_text(text, model, most, last + native.config.sliding_window)
    _check_same(model, whole, tokens[:1, :64])
    return native, meter, tokens


@torch.no_grad()
def _check_same(model: Any, native: Any, tokens: Tensor) -> None:
    """Whether two models say the same of some tokens `[1, positions]`, but for rounding.

    Raises:
        NativeError: If not.
    """
    with keeping_modes(model, native):
        one, other = (each.eval()(tokens, use_cache=False).logits for each in (model, native))
    apart = float((one - other).abs().max() / one.abs().max())
    if not apart <= (1e-3 if one.dtype == torch.float32 else 5e-2):
        raise NativeError(
            f"{type(model).__name__} is no Llama: a GraniteSWA of its weights says logits that "
            f"differ by {apart:.2g} of the largest; sinks become logits of decoders that compute "
            "what a Llama does. Serve it with sinks='none', or by ms.attach"
        )


def _with_weights_of(model: PreTrainedModel, native: type, config: PreTrainedConfig) -> Any:
    """A model of a class and a configuration that has the parameters of another one.

    Raises:
        NativeError: If the model has weights that its class does not make, or misses some.
    """
    if len(devices := {str(each.device) for each in model.parameters()}) > 1:
        raise NativeError(
            f"{type(model).__name__} is spread over {', '.join(sorted(devices))}; load it on one "
            "device, or give its configuration"
        )
    with torch.random.fork_rng(devices=[]), no_init_weights():
        built = native(config)
    state = model.state_dict(keep_vars=True)
    for name, weight in built.state_dict().items() if native is GraniteSWAForCausalLM else ():
        if name.endswith(("_proj.bias", ".sinks")) and name not in state:
            value = NO_SINK if name.endswith("sinks") else 0.0
            made = torch.full(weight.shape, value, dtype=model.dtype, device=model.device)
            state[name] = nn.Parameter(made)
    if other := sorted({*state} ^ {*built.state_dict()}):
        raise NativeError(
            f"{type(model).__name__} and a new {native.__name__} of its configuration differ in "
            f"the weights {', '.join(other[:3])}; merge adapters and undo quantisation first"
        )
    trained = [(each, each.requires_grad) for each in model.parameters()]
    built.load_state_dict(state, assign=True)  # which asks for the gradient of each
    for each, asked in trained:
        each.requires_grad_(asked)
    built.generation_config = copy.deepcopy(getattr(model, "generation_config", None))
    return built.to(model.device).train(model.training)


# -- masks -------------------------------------------------------------------------------------
def reach_of(mask: Mask, causal: bool) -> float | None:
    """How far from itself every query sees, at every length, if the mask is just that.

    Args:
        mask: Mask of one layer.
        causal: Whether only keys at and before the query count.

    Returns:
        Positions (inclusive), infinity for everything; None for any other mask.
    """
    reaches = [reach_of(part, causal) for part in mask.parts]
    finite = [reach for reach in reaches if reach is not None]
    if isinstance(mask, Full) or (causal and isinstance(mask, Causal)):
        return math.inf
    if isinstance(mask, Window):
        return mask.reach
    if isinstance(mask, Offsets) and [*mask.distances] == [*range(len(mask.distances))]:
        return len(mask.distances) - 1
    if isinstance(mask, Either) and math.inf in finite:
        return math.inf
    if len(finite) < len(reaches):
        return None
    if isinstance(mask, Either):
        return max(finite)
    if isinstance(mask, Both):
        return min(finite)
    return finite[0] if isinstance(mask, PerHead) and len({*finite}) == 1 else None


def what_else(mask: Mask, causal: bool) -> str:
    """Says what a mask of one layer keeps that is neither everything nor a window, in words."""
    leaves = list(_every_part(mask))
    if mask.needs_tokens:
        return "what the tokens say"
    if mask.length is not None:
        return f"a table of {mask.length} positions, and other lengths have none"
    if mask.heads is not None:
        return "other keys in each head, and a configuration knows layers only"
    if any(isinstance(leaf, Columns | GlobalTokens) for leaf in leaves):
        return "tokens of fixed positions (sinks), for which configurations have no field"
    if not causal and any(isinstance(leaf, Causal) for leaf in leaves):
        return "earlier keys only (causal()), and the model is an encoder"
    return f"{short_text(mask)}, which is neither everything nor a window"


def _every_part(mask: Mask) -> Iterator[Mask]:
    """A mask and everything it is built of."""
    yield mask
    for part in mask.parts:
        yield from _every_part(part)


def refuse(config: PreTrainedConfig, why: str, layers: Sequence[Mask]) -> NoReturn:
    """Raises the error that says why masks cannot be served, and which ones can."""
    nearest = _nearest_native(config, layers)
    raise NativeError(
        f"{type(config).__name__} cannot name this mask: {why}; the nearest mask that can be "
        f"served is {nearest}",
        nearest,
    )


def _nearest_native(config: PreTrainedConfig, layers: Sequence[Mask]) -> Mask:
    """The mask that a configuration can name with the fewest other cells, at one length.

    Where rotary positions bind layers to their kind, each layer keeps the kind it has.

    Args:
        config: Configuration of the model.
        layers: The wanted mask of each layer.

    Returns:
        In each layer `full()` or one window.
    """
    causal, windows = is_causal(config), _own_reaches(config)
    parts = [part for each in layers for part in _every_part(each)]
    lengths = [part.length for part in parts if part.length is not None]
    bound = min(windows)  # a window of the model's own bounds every other
    reaches = [part.reach for part in parts if isinstance(part, Window)]
    widest = max([*reaches, bound if bound < math.inf else 0])
    length = min(lengths, default=int(min(max(SHORTEST, 2 * widest), LONGEST)))
    most = int(min(bound, length - 1)) if bound < math.inf else length - 2
    if config.model_type == "gpt2" or any(each.needs_tokens for each in layers) or most < 1:
        return from_native(config)
    bounded = torch.tensor(windows) < math.inf
    inside = [
        each if reach == math.inf else each & Window(int(reach))
        for each, reach in zip(layers, windows, strict=True)
    ]
    costs = {each: _cells_apart(each, causal, length) for each in {*inside}}
    apart = torch.stack([costs[each] for each in inside])  # layers, reaches
    local, whole = apart[:, 1 : most + 1].clone(), apart[:, -1:].clone()
    whole[bounded] = math.inf
    index = int(torch.minimum(local, whole).sum(0).argmin())
    chosen = (local[:, index] < whole[:, 0]).tolist()
    if _ropes_of(config, [SLIDING if each else FULL for each in chosen]) is None:
        local[~bounded] = math.inf
        index = int(torch.minimum(local, whole).sum(0).argmin())
        chosen = bounded.tolist()
    reach = index + 1 if index + 1 < length - 1 else int(bound)  # which that length cannot tell
    kept: list[Mask] = [Window(reach) if each else Full() for each in chosen]
    return kept[0] if len(set(kept)) == 1 else PerLayer(kept)


def _cells_apart(mask: Mask, causal: bool, length: int) -> Tensor:
    """In how many cells a mask of one layer differs from each window, in the mean of its heads.

    Returns:
        float `[length]`, by the window's reach; the last one is everything.
    """
    position = torch.arange(length)
    every = (length - position) * (1.0 if causal else 2.0 - (position == 0).float())
    reach = reach_of(mask, causal)
    kept = torch.zeros(length)
    if reach is not None:
        kept = every * (position <= reach)
    else:
        heads = mask.heads or 1
        for head in range(heads):
            row = 0
            for some in mask.row_chunks(length, 0, head):
                query, key = some.nonzero().T
                distance = query + row - key
                distance = distance[distance >= 0] if causal else distance.abs()
                kept += torch.bincount(distance, minlength=length) / heads
                row += len(some)
    return (every - kept).cumsum(0) + kept.sum() - kept.cumsum(0)
