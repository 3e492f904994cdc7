"""Attention masks as expressions. True = may attend.

>>> from masksearch import masks
>>> mask = masks.window(3) | masks.global_tokens(1)
>>> mask.dense(128).shape
torch.Size([1, 1, 128, 128])
"""

from masksearch.masks.core import Mask, Points
from masksearch.masks.expression import parse
from masksearch.masks.families import (
    FAMILIES,
    bigbird,
    block_columns,
    blocks,
    causal,
    cropped,
    dilated,
    fixed,
    full,
    global_tokens,
    layer_of,
    log_sparse,
    longformer,
    offsets,
    per_head,
    per_layer,
    powers_of_two,
    random_keys,
    shifts,
    star,
    stride,
    strided,
    table,
    toeplitz,
    window,
    without_diagonal,
)
from masksearch.masks.nearest import NearestFamily, nearest_family

__all__ = [
    "FAMILIES",
    "Mask",
    "NearestFamily",
    "Points",
    "bigbird",
    "block_columns",
    "blocks",
    "causal",
    "cropped",
    "dilated",
    "fixed",
    "full",
    "global_tokens",
    "layer_of",
    "log_sparse",
    "longformer",
    "nearest_family",
    "offsets",
    "parse",
    "per_head",
    "per_layer",
    "powers_of_two",
    "random_keys",
    "shifts",
    "star",
    "stride",
    "strided",
    "table",
    "toeplitz",
    "window",
    "without_diagonal",
]
