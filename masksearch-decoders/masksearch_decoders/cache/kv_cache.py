"""How many bytes a decoder's cache of keys and values holds, under a mask and without.

    kv_bytes(masks.columns(4) | masks.window(255), model, length=4096).share   # 0.063..

The bytes that a mask needs are counted in cache_bytes.py, those that an engine holds by
its file in engines/.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from masksearch.attention.probe import keyless_layers
from masksearch.errors import NativeError, check_name
from masksearch.masks.core import Mask
from masksearch_decoders.cache.cache_bytes import CacheSizes, KvBytes, needed_bytes
from masksearch_decoders.engine import Engine, Serving
from masksearch_decoders.engines import CACHE_LAYOUTS, ENGINES
from masksearch_decoders.native import HYBRID, reach_of, what_else
from masksearch_decoders.sinks import without_sinks


def kv_bytes(
    mask: Mask,
    model: PreTrainedModel | PreTrainedConfig,
    length: int,
    *,
    cache_layout: str = "mask",
    dtype: torch.dtype | None = None,
    until: int | None = None,
    in_flight: int = 4096,
    block: int = 16,
    ubatch: int = 512,
    sequences: int = 1,
    unified: bool = False,
    cache_type: str = "f16",
) -> KvBytes:
    """The bytes of a decoder's cache after `length` tokens of one sequence, exact.

    The layouts `"mask"` and `"head"` count what the mask needs, the others what an engine holds
    or reserves that serves the mask by its configuration (`to_native`): layers of everything or
    of a window. Sinks beside a window count nothing there, as one logit a head can stand for them.
    Of a hybrid the layers that attend are counted; the states of the others do not grow.

    The rule: a key before position `length` is held if a query from `length` up to `until` - 1
    keeps it, by the mask and by the sliding window that the configuration names for that layer. A
    mask that reaches fewer positions than `until` is asked up to its end; one that ends at
    `length` (a searched table) has no later query, and what its last query keeps is counted.
    Random keys, which are others at each length, are those of `length`.

    Held are `2 x head_dim` numbers a key and KV head, `head_dim` as the configuration says, else
    hidden size / heads. Of dense attention, and of windows that the configuration itself names,
    this is what transformers' own cache holds; of an attached mask, what `MaskedCache`
    with `length=until` does.

    Args:
        mask: What is attached; `masks.full()` for the model as it is.
        model: A decoder, or its configuration.
        length: Positions in the cache (>= 1); of llama.cpp `n_ctx`, of all sequences together.
        cache_layout: `"mask"`: a layer holds a key in all its KV heads if one of them needs it, as
            a cache that frees keys per layer does (`MaskedCache`). `"head"`: each KV head holds
            its own keys, those that one of its queries' heads needs. `"transformers"`: its own
            cache, a `DynamicCache`; a `StaticCache` holds one key more in each layer of a window,
            and room for all that it was made for from the start. `"vllm"`: the blocks that it
            reserves for a sequence, groups and padding included. `"llama.cpp"`: the cells that it
            allocates. `"tensorrt-llm"`: the blocks that it holds.
        dtype: Of keys and values; None = the model's, or the configuration's (else torch's
            default). llama.cpp has `cache_type` in its place.
        until: Positions that there will be at most; None = 2 x `length`: generation may go on for
            as many tokens again. It makes no difference to windows, sinks and full layers.
        in_flight: Of vLLM: see `Serving`.
        block: Of vLLM and TensorRT-LLM: positions of a block.
        ubatch: Of llama.cpp, as what follows: see `Serving`.
        sequences: That share the context.
        unified: Whether in one buffer.
        cache_type: Of keys and values.

    Raises:
        NativeError: If the engine of the layout has no way to serve the mask.
        LengthError: If the mask does not reach `length`.
        LayerCountError, HeadCountError: If mask and model do not fit.
        AttachError: If the layers keep something else than keys and values of KV heads.
        TokensNeededError: If the mask follows the tokens.
        UnknownNameError: If there is no such layout.
        ValueError: If a number is out of range.

    >>> import masksearch as ms
    >>> from transformers import LlamaConfig
    >>> llama = LlamaConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4)
    >>> local = ms.masks.window(127) & ms.masks.causal()
    >>> kv_bytes(local, llama, 1024)
    KvBytes(bytes=130048, dense_bytes=1048576)
    """
    check_name("cache_layout", cache_layout, CACHE_LAYOUTS)
    serving = Serving(in_flight, block, ubatch, sequences, unified, cache_type)
    if length < 1:
        raise ValueError(f"length is at least 1 position, got {length}")
    sizes = CacheSizes.read(model, dtype)
    if cache_layout not in ENGINES:
        return needed_bytes(mask, sizes, length, by_head=cache_layout == "head", until=until)
    mask.counts(len(sizes.windows), sizes.heads)
    config = model if isinstance(model, PreTrainedConfig) else model.config
    if keyless_layers(config):
        raise NativeError(
            f"{type(config).__name__} {HYBRID}; cache_layout='mask' counts what the mask needs"
        )
    engine = ENGINES[cache_layout]
    assert engine.keys is not None
    served = _served_windows(mask, sizes.windows, engine)
    one = sizes.kv_heads * engine.key_bytes(sizes.width, sizes.item, serving)
    dense = engine.keys([None] * len(served), length, serving)
    return KvBytes(engine.keys(served, length, serving) * one, dense * one)


def _served_windows(mask: Mask, windows: Sequence[int | None], engine: Engine) -> list[int | None]:
    """The window of each layer, in keys with the query's own, as an engine applies the mask.

    Args:
        mask: A mask.
        windows: Those that the configuration names already.
        engine: What serves it.

    Raises:
        NativeError: If it cannot.
    """
    mask.refuse_tokens()
    served: list[int | None] = []
    for layer, window in enumerate(windows):
        part = without_sinks(mask.of_layer(layer))
        reach = reach_of(part, causal=True)
        if reach is None:
            raise NativeError(
                f"cache_layout={engine.name!r} counts layers of everything or a window, and layer "
                f"{layer} keeps {what_else(part, causal=True)}; cache_layout='mask' counts any "
                "mask"
            )
        kept = [each for each in (window, reach + 1) if each not in (None, math.inf)]
        served.append(min(map(int, kept), default=None))
    if engine.one_window and len(several := {each for each in served if each}) > 1:
        raise NativeError(
            f"{engine.title} has one window for all layers, got {sorted(several)} keys"
        )
    return served
