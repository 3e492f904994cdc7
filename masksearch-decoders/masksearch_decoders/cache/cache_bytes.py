"""How many bytes a mask needs of a decoder's cache of keys and values, whatever holds them.

A key is held as long as a later query may keep it. So a window of reach w costs w keys, s sinks
cost s more, and a dilated window costs all keys that it spans, because the queries between the
kept ones need them. A stride costs everything, however few cells it keeps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from masksearch.attention.layer import depends_on_length
from masksearch.errors import AttachError, LengthError
from masksearch.masks.core import Mask
from masksearch.masks.leaves import Window
from masksearch.masks.tables import PerHead
from masksearch_decoders.cache.lifetimes import held_keys
from masksearch_decoders.cache.masked_cache import own_windows


@dataclass(frozen=True)
class KvBytes:
    """Bytes of a decoder's cache of keys and values, beside those of the dense one.

    Args:
        bytes: Of the keys and values that are held, or that an engine reserves room for.
        dense_bytes: If every layer held all of them, by the same layout.
    """

    bytes: int
    dense_bytes: int

    @property
    def share(self) -> float:
        """`bytes` / `dense_bytes`, in [0, 1]; 0 only where no query looks back at all. An
        engine may reserve more for short windows than for everything."""
        return self.bytes / self.dense_bytes


@dataclass(frozen=True)
class CacheSizes:
    """The sizes of a decoder's cache of keys and values, as its configuration names them.

    Args:
        windows: Of each layer that attends, in keys with the query's own; None = everything.
        heads: Query heads of a layer.
        kv_heads: KV heads of a layer.
        width: Numbers of a key in one KV head: `head_dim`, else hidden size / heads; where values
            have another number, the mean.
        item: Bytes of a number.
    """

    windows: tuple[int | None, ...]
    heads: int
    kv_heads: int
    width: int
    item: int

    @classmethod
    def read(
        cls, model: PreTrainedModel | PreTrainedConfig, dtype: torch.dtype | None = None
    ) -> CacheSizes:
        """Those of a decoder, or of its configuration; see `kv_bytes`."""
        config = model if isinstance(model, PreTrainedConfig) else model.config
        windows = tuple(own_windows(config).values())
        decoder = config.get_text_config(decoder=True)
        heads = int(decoder.num_attention_heads)
        kv_heads = int(getattr(decoder, "num_key_value_heads", None) or heads)
        try:
            width = int(getattr(decoder, "head_dim", None) or decoder.hidden_size // heads)
            values = int(getattr(decoder, "v_head_dim", None) or width)
        except RuntimeError as error:  # of transformers: it depends on the layer
            raise AttachError(
                f"{type(config).__name__} has heads of several sizes, and bytes are counted of "
                "decoders with one"
            ) from error
        stored: Any = getattr(config, "dtype", None)
        if isinstance(model, PreTrainedModel):
            stored = model.dtype
        item = (dtype or stored or torch.get_default_dtype()).itemsize
        return cls(windows, heads, kv_heads, (width + values) // 2, item)


def needed_bytes(
    mask: Mask, sizes: CacheSizes, length: int, *, by_head: bool = False, until: int | None = None
) -> KvBytes:
    """The bytes of the keys that a mask needs after `length` tokens; see `kv_bytes`.

    Args:
        mask: A mask.
        sizes: Of the decoder.
        length: Positions in the cache (>= 1).
        by_head: Whether each KV head holds its own keys, not a layer those of all.
        until: Positions that there will be at most; None = 2 x `length`.

    Raises:
        LengthError: If the mask does not reach `length`.
        LayerCountError, HeadCountError: If mask and model do not fit.
        TokensNeededError: If the mask follows the tokens.
        ValueError: If `until` is below `length`.
    """
    mask.counts(len(sizes.windows), sizes.heads)
    if until is None:
        until = 2 * length
    if until < length:
        raise ValueError(f"until is at least length = {length}, got {until}")
    reached = length if depends_on_length(mask) else mask.longest
    if reached is not None and reached < length:
        raise LengthError(
            f"the mask reaches {reached} positions, and the cache is asked for after {length}; "
            f"give length={reached} or less"
        )
    until = until if reached is None else min(until, reached)
    keys = 0
    for layer, window in enumerate(sizes.windows):
        kept = _held_by_heads(mask.of_layer(layer), sizes.heads, length, until, window)
        if by_head:
            keys += int(kept.view(sizes.kv_heads, -1, length).any(1).sum())
        else:
            keys += sizes.kv_heads * int(kept.any(0).sum())
    one = 2 * sizes.width * sizes.item
    return KvBytes(keys * one, len(sizes.windows) * sizes.kv_heads * length * one)


def _held_by_heads(
    mask: Mask, heads: int, length: int, until: int, window: int | None
) -> torch.Tensor:
    """Which keys each query head of a layer needs, bool `[heads, length]`."""
    parts = mask.of if isinstance(mask, PerHead) else (mask,) * (mask.heads or 1)
    rows = []
    for head, part in enumerate(parts):
        seen = part if window is None else part & Window(window - 1)
        rows.append(held_keys(seen, length, until, 0 if part.heads is None else head))
    return torch.stack(rows).expand(heads, length)
