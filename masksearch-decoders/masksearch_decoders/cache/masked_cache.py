"""A cache for generation that forgets the keys that an attached mask will not keep again.

    ms.attach(model, masks.per_layer([local, full, local, ..]))
    model.generate(**inputs, past_key_values=MaskedCache(model))

The course of one layer: `update` appends the new keys to those that are held and hands both out;
it notes, for the attention calls that follow, at which positions they stand
(`RunningPass.held`); then it drops what no later query keeps. The model's own mask is made
for all positions, as for a cache that drops nothing; its columns are picked by these positions.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.cache_utils import (
    Cache,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
)

from masksearch.attention.attach import in_force
from masksearch.attention.layer import STATE, LayerState
from masksearch.attention.probe import keyless_layers, pretrained_models, unwrapped
from masksearch.errors import AttachError, LengthError
from masksearch.masks.core import Mask
from masksearch.masks.leaves import Window
from masksearch_decoders.cache.lifetimes import last_queries

UNKNOWN = {  # entry of a configuration -> what its layers keep instead of keys and values a head
    "kv_lora_rank": "compressed keys",
    "num_kv_shared_layers": "the keys of other layers",
    "multi_query": "keys that its heads share in a way of its own",
}


class MaskedCache(Cache):
    """Keys and values of a decoder that carries a mask: each layer holds what it will need.

    A layer of sinks and a window holds the sinks and the window, a full one everything; of any
    other mask a key is held until its last query has passed (`kv_bytes` has the rule,
    and counts the bytes: `cache_layout="mask"`, `until=length`). What the model computes is what
    it computes with transformers' own cache, but for rounding.

    Positions are counted from the first slot, padding included, as `attach` counts them: with left
    padding the sinks of a shorter text are padding, and windows are right. Let texts with sinks
    have one length, or generate for one at a time.

    `generate(.., past_key_values=MaskedCache(model))` works in all supported versions of
    transformers; 5.24 calls the argument `cache`, and warns.

    Beam search, sampling and prefill in pieces work; taking tokens back (`crop`: assisted
    generation) and compiled caches are not offered.

    Args:
        model: A decoder with a mask on it (`masksearch.attach`). The cache serves this mask: after
            another `attach` make a new one.
        length: Positions that there will be at most, the prompt included; None = as many as the
            configuration and the mask allow. Of masks other than windows, sinks and what `|` and
            `&` make of them, `length` x `length` cells are looked at.

    Raises:
        AttachError: If no mask is attached, or one that follows the tokens, gates, or random keys
            that are others at each length; or the model is no plain decoder.
        LengthError: If the mask does not reach `length`; later, if more tokens come.

    >>> import masksearch as ms
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    >>> llama = LlamaForCausalLM(LlamaConfig(vocab_size=9, intermediate_size=8, **small))
    >>> llama = ms.attach(llama, ms.masks.window(3) & ms.masks.causal())
    >>> cache = MaskedCache(llama, length=12)
    >>> llama(torch.tensor([[1, 2, 3]]), past_key_values=cache).logits.shape
    torch.Size([1, 3, 9])
    """

    def __init__(self, model: nn.Module, length: int | None = None) -> None:
        model = unwrapped(model)
        attachment, title = in_force(model), type(model).__name__
        if attachment is None:
            raise AttachError(
                f"nothing is attached to this {title}, so its cache would hold everything; "
                "first ms.attach(model, mask), or use transformers' DynamicCache"
            )
        config = pretrained_models(model)[0].config
        windows = own_windows(config)
        numbered = {getattr(one, "layer_idx", None): one for one in attachment.states}
        if set(numbered) != set(windows) or len(attachment.states) != len(windows):
            raise AttachError(
                f"the attention layers of {title} are not those of its configuration, one for "
                f"one (layer_idx {sorted(map(str, numbered))}); use transformers' DynamicCache"
            )
        modules = [numbered[index] for index in windows]
        layer_masks = [_check_state(attachment.states[one]) for one in modules]
        reached = [one.longest for one in layer_masks if one.longest is not None]
        most = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
        if length is None and most is None and not reached:
            raise LengthError(
                f"{title} names no longest sequence: give MaskedCache(model, length)"
            )
        until = min([*reached, most or reached[0]]) if length is None else length
        if until < 1 or any(until > one for one in reached):
            raise LengthError(
                f"length is from 1 to the positions that the mask reaches"
                f"{f', {min(reached)}' if reached else ''}; got {until}"
            )
        made: dict[tuple[Mask, int | None], Retention] = {}
        layers: list[Any] = DynamicCache(config=config).layers
        for module, mask, (index, window) in zip(
            modules, layer_masks, windows.items(), strict=True
        ):
            if (mask, window) not in made:
                made[mask, window] = Retention(_last_of_layer(mask, window, until))
            layers[index] = MaskedCacheLayer(module, mask, made[mask, window])
        super().__init__(layers=layers)

    @property
    def bytes(self) -> int:
        """Of the keys and values that are held now, over the whole batch."""
        layers = [layer for layer in self.layers if isinstance(layer, MaskedCacheLayer)]
        tensors = [one for layer in layers for one in (layer.keys, layer.values)]
        return sum(one.numel() * one.element_size() for one in tensors if one is not None)


@dataclass
class Retention:
    """Which positions are held, step by step, for all layers with one mask: they go in lockstep.

    Args:
        last: int64 `[until]`, the last query that keeps each key (`last_queries`).
    """

    last: Tensor
    none: Tensor = field(default_factory=lambda: torch.arange(0))  # what is held at first
    before: Tensor | None = None  # what was held before the last step
    total: int = 0  # tokens after it
    answer: tuple[Tensor, Tensor | None, Tensor] | None = None

    def step(self, before: Tensor, first: int, total: int) -> tuple[Tensor, Tensor | None, Tensor]:
        """One step: positions of all keys, which of them stay (None = all), and their positions.

        Args:
            before: int64, positions that are held.
            first: Tokens so far.
            total: Tokens with those of this step.
        """
        if self.answer is None or self.before is not before or self.total != total:
            positions = torch.cat([before, torch.arange(first, total)])
            keep = self.last[positions] >= min(total, len(self.last) - 1)
            needed = None if keep.all() else keep.nonzero()[:, 0]
            after = positions if needed is None else positions[needed]
            self.before, self.total, self.answer = before, total, (positions, needed, after)
        return self.answer


class MaskedCacheLayer(DynamicLayer):
    """One layer of a `MaskedCache`.

    Args:
        module: The attention module that it serves.
        mask: Of that layer, as it was attached.
        retention: Which positions it holds; shared with the layers that have the same mask.
    """

    is_croppable = False

    def __init__(self, module: nn.Module, mask: Mask, retention: Retention) -> None:
        super().__init__()
        self.module = weakref.ref(module)  # copies of a cache serve the same model
        self.mask, self.retention = mask, retention
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.held, self.seen = self.retention.none, 0

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Takes new keys and values, `[batch, KV heads, new, head_dim]`; returns all that count.

        Raises:
            AttachError: If the model carries another mask by now.
            LengthError: If there are more positions than the cache was made for.
        """
        module = self.module()
        state: LayerState | None = None if module is None else module.__dict__.get(STATE)
        if state is None or state.mask != self.mask:
            raise AttachError(
                "the mask that this MaskedCache was made for is no longer on the model; make a "
                "new cache after attach: MaskedCache(model)"
            )
        first, total = self.seen, self.seen + key_states.shape[-2]
        if total > (until := len(self.retention.last)):
            raise LengthError(
                f"{state.name}: a MaskedCache for {until} positions is given position "
                f"{total - 1}; make it longer: MaskedCache(model, length=..)"
            )
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        positions, needed, kept = self.retention.step(self.held, first, total)
        held = state.positions.running.held
        held.pop(state.name, None)
        if first and self.keys is not None and self.values is not None:
            # (without earlier keys this is a call over whole sequences)
            held[state.name] = positions
            key_states = torch.cat([self.keys, key_states], dim=-2)
            value_states = torch.cat([self.values, value_states], dim=-2)
        self.keys, self.values, self.held, self.seen = key_states, value_states, kept, total
        if needed is not None:
            needed = needed.to(key_states.device)
            self.keys = key_states.index_select(-2, needed)
            self.values = value_states.index_select(-2, needed)
        return key_states, value_states

    def get_seq_length(self) -> int:
        """Positions so far, those that were dropped included."""
        return self.seen

    def reset(self) -> None:
        """Forgets everything."""
        super().reset()
        self.held, self.seen = self.retention.none, 0

    def crop(self, tokens_to_remove: int) -> None:
        """Refused: what earlier queries need has been dropped.

        Raises:
            AttachError: Always, unless nothing is to be removed.
        """
        if tokens_to_remove:
            raise AttachError(
                "a MaskedCache cannot take tokens back, because it has dropped the keys that "
                "earlier queries need; generate with transformers' DynamicCache instead"
            )


def _check_state(state: LayerState) -> Mask:
    """The mask of a layer that a `MaskedCache` can serve.

    Raises:
        AttachError: If it cannot.
    """
    where = state.name
    if state.bank is not None or state.mask is None:
        raise AttachError(f"{where} carries gates, under which no key is dropped for good")
    if state.cross or not state.causal:
        raise AttachError(f"{where} is no causal self-attention; a MaskedCache serves decoders")
    if state.lowered is None:
        raise AttachError(f"{where} has a mask that follows the tokens: use_cache=False")
    if state.lowered.by_length:
        raise AttachError(
            f"{where}: {state.mask} keeps other keys at every length; attach "
            "masks.cropped(mask, at=the longest length)"
        )
    return state.mask


def _last_of_layer(mask: Mask, window: int | None, until: int) -> Tensor:
    """The last query of any head that keeps each key, int64 `[until]`.

    Args:
        mask: Of the layer.
        window: The layer's own sliding window in keys; None = full.
        until: Positions that there will be at most.
    """
    seen = mask if window is None else mask & Window(window - 1)
    keys = torch.arange(until)
    heads = [last_queries(seen, keys, until, head=head) for head in range(mask.heads or 1)]
    return torch.stack(heads).amax(0)


def own_windows(config: PreTrainedConfig) -> dict[int, int | None]:
    """The windows that a decoder's configuration names, as transformers' own cache reads them.

    Returns:
        Layer -> its window in keys, the query's own included (>= 1); None = full attention. Layers
        of a hybrid that attend to no keys are left out.

    Raises:
        AttachError: If a layer keeps something other than the keys and values of its KV heads.
    """
    title, decoder = type(config).__name__, config.get_text_config(decoder=True)
    if config.is_encoder_decoder:
        raise AttachError(f"{title} is an encoder-decoder; caches are counted of decoders alone")
    for name, what in UNKNOWN.items():
        if getattr(decoder, name, None):
            raise AttachError(
                f"{title} has {name}={getattr(decoder, name)!r}: its layers keep {what}, which "
                "is not counted here"
            )
    passed = keyless_layers(config)
    windows: dict[int, int | None] = {}
    for index, layer in enumerate(DynamicCache(config=config).layers):
        if index in passed:
            continue
        if type(layer) is DynamicSlidingWindowLayer:
            windows[index] = int(layer.sliding_window)
        elif type(layer) is DynamicLayer:
            windows[index] = None
        else:
            raise AttachError(
                f"layer {index} of {title} keeps a {type(layer).__name__}, not the keys and "
                "values of its heads, which is not counted here"
            )
    if not windows:
        raise AttachError(f"no layer of {title} attends to keys, so there is no cache to count")
    return windows
