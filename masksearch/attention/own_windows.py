"""The sliding windows that a decoder's configuration names, as transformers' own cache reads them.

A window of w keys counts the query itself: the layer sees w - 1 keys before it, and its cache
keeps as many.
"""

from __future__ import annotations

from transformers import PreTrainedConfig
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from masksearch.errors import AttachError

UNKNOWN = {  # entry of a configuration -> what its layers keep instead of keys and values a head
    "kv_lora_rank": "compressed keys",
    "num_kv_shared_layers": "the keys of other layers",
    "multi_query": "keys that its heads share in a way of its own",
}


def own_windows(config: PreTrainedConfig) -> tuple[int | None, ...]:
    """The window of each layer in keys, the query's own included (>= 1); None = full attention.

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
    layers = DynamicCache(config=config).layers
    windows: list[int | None] = []
    for index, layer in enumerate(layers):
        if type(layer) is DynamicSlidingWindowLayer:
            windows.append(int(layer.sliding_window))
        elif type(layer) is DynamicLayer:
            windows.append(None)
        else:
            raise AttachError(
                f"layer {index} of {title} keeps a {type(layer).__name__}, not the keys and "
                "values of its heads, which is not counted here"
            )
    return tuple(windows)
