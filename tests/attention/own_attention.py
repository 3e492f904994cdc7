"""Transformers' own code of encoders that do not ask its attention interface, under a mask."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def masked_by_hand(tables: dict[nn.Module, Tensor]) -> Iterator[None]:
    """Modules that compute attention by code of their own do so under tables.

    The table goes into the mask that the module is given: -inf on a float mask, 0 on DeBERTa's,
    which has 1 and 0.

    Args:
        tables: Of attention modules, bool `[heads | 1, queries, keys]`.
    """

    def hide(module: nn.Module, args: Any, named: dict[str, Any]) -> Any:
        states, *rest = args
        mask = named.pop("attention_mask") if "attention_mask" in named else rest.pop(0)
        if type(module).__name__ == "DisentangledSelfAttention":
            mask = mask.bool() & tables[module]
        else:
            far = torch.zeros_like(tables[module], dtype=states.dtype)
            far = far.masked_fill(~tables[module], -torch.inf)
            mask = far if mask is None else mask + far
        return (states, mask, *rest), named

    hooks = [each.register_forward_pre_hook(hide, with_kwargs=True) for each in tables]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
