"""Attention masks as expressions. True = may attend.

>>> from masksearch import masks
>>> mask = masks.window(3) | masks.global_tokens(1)
>>> mask.dense(128).shape
torch.Size([1, 1, 128, 128])
"""

from typing import TYPE_CHECKING, Any

from masksearch.errors import did_you_mean
from masksearch.masks.baselines import equal_cost_baselines
from masksearch.masks.core import FAMILIES, RECIPES, Mask, Points, family, recipe
from masksearch.masks.families import (
    a_shape,
    bigbird,
    fixed,
    log_sparse,
    longformer,
    star,
    strided,
    sweep_families,
    vertical_slash,
    without_diagonal,
)
from masksearch.masks.interop import (
    from_block_layout,
    from_mask_mod,
    from_numpy,
    to_4d,
    to_block_layout,
    to_numpy,
)
from masksearch.masks.leaves import Axial as axial
from masksearch.masks.leaves import BlockColumns as block_columns
from masksearch.masks.leaves import Blocks as blocks
from masksearch.masks.leaves import Butterfly as butterfly
from masksearch.masks.leaves import Causal as causal
from masksearch.masks.leaves import Columns as columns
from masksearch.masks.leaves import Dilated as dilated
from masksearch.masks.leaves import Full as full
from masksearch.masks.leaves import GlobalTokens as global_tokens
from masksearch.masks.leaves import Offsets as offsets
from masksearch.masks.leaves import PowersOfTwo as powers_of_two
from masksearch.masks.leaves import RandomKeys as random_keys
from masksearch.masks.leaves import SameToken as same_token
from masksearch.masks.leaves import Shifts as shifts
from masksearch.masks.leaves import SpecialTokens as special_tokens
from masksearch.masks.leaves import Stride as stride
from masksearch.masks.leaves import TokenColumns as token_columns
from masksearch.masks.leaves import Window as window
from masksearch.masks.live import live_tokens, work
from masksearch.masks.tables import BlockLayout as block_layout
from masksearch.masks.tables import Cropped as cropped
from masksearch.masks.tables import PerHead as per_head
from masksearch.masks.tables import PerLayer as per_layer
from masksearch.masks.tables import Table as table
from masksearch.masks.tables import Toeplitz as toeplitz
from masksearch.masks.tables import layer_of
from masksearch.masks.text import functions, parse

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Kinds and recipes of files that were imported later."""
        maker = Mask.kinds.get(name) or RECIPES.get(name)
        if maker is None:
            hint = did_you_mean(name, {*__all__, *functions()})
            raise AttributeError(f"masksearch.masks has no {name!r}{hint}")
        return maker


__all__ = [
    "FAMILIES",
    "Mask",
    "Points",
    "a_shape",
    "axial",
    "bigbird",
    "block_columns",
    "block_layout",
    "blocks",
    "butterfly",
    "causal",
    "columns",
    "cropped",
    "dilated",
    "equal_cost_baselines",
    "family",
    "fixed",
    "from_block_layout",
    "from_mask_mod",
    "from_numpy",
    "full",
    "global_tokens",
    "layer_of",
    "live_tokens",
    "log_sparse",
    "longformer",
    "offsets",
    "parse",
    "per_head",
    "per_layer",
    "powers_of_two",
    "random_keys",
    "recipe",
    "same_token",
    "shifts",
    "special_tokens",
    "star",
    "stride",
    "strided",
    "sweep_families",
    "table",
    "to_4d",
    "to_block_layout",
    "to_numpy",
    "toeplitz",
    "token_columns",
    "vertical_slash",
    "window",
    "without_diagonal",
    "work",
]
