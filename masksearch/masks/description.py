"""How many bits it takes to describe a table by way of a mask (minimum description length)."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, cast

import torch

from masksearch.masks.core import DenseMask, Mask
from masksearch.masks.layouts import Axial, BlockLayout, Columns
from masksearch.masks.leaves import GlobalTokens, Offsets, RandomKeys, Shifts
from masksearch.masks.stacks import Both, Complement, Either, PerHead, PerLayer
from masksearch.masks.tables import Table, Toeplitz
from masksearch.masks.text import family_of

WORD = 5.0  # bits of a name or an operator of the language, of which there are about 32


def description_bits(mask: Mask, table: DenseMask) -> float:
    """Bits that describe a table by way of a mask: the expression, and where it is wrong.

    Args:
        mask: An expression without tables and random keys.
        table: bool `[layers, heads, n, n]`.

    Raises:
        TypeError: If the mask has a part that is no name with whole numbers.
    """
    if isinstance(mask, PerLayer):
        pairs = zip(mask.of, table.unsqueeze(1), strict=True)
        return WORD + sum(description_bits(part, layer) for part, layer in pairs)
    if isinstance(mask, PerHead):
        pairs = zip(mask.of, table.unsqueeze(2).unbind(1), strict=True)
        return WORD + sum(description_bits(part, head) for part, head in pairs)
    wrong = int((table ^ mask.dense(table.shape[-1], *table.shape[:2])).sum())
    return expression_bits(mask, table.shape[-1]) + float(error_bits(wrong, table.numel()))


def expression_bits(mask: Mask, length: int) -> float:
    """Bits of an expression; a hand-designed family at its defaults costs one name.

    A block layout costs its name, its block size, and the set of its kept blocks.
    """
    number = math.log2(length + 1)
    if isinstance(mask, Either) and family_of(mask):
        return WORD
    match mask:
        case Either(of=parts) | Both(of=parts):
            return WORD * (len(parts) - 1) + sum(expression_bits(p, length) for p in parts)
        case Complement(of=part):
            return WORD + expression_bits(part, length)
        case Offsets(distances=members):
            return WORD + float(set_bits(len(members), length))
        case Shifts(steps=members):
            return WORD + float(set_bits(len(members), 2 * length - 1))
        case GlobalTokens(positions=members) | Columns(positions=members):
            first = members == tuple(range(len(members)))
            return WORD + 1 + (number if first else float(set_bits(len(members), length)))
        case Axial(prefix=prefix):
            return WORD + 1 + number * (3 if prefix else 2)
        case BlockLayout(bits=bits):
            return WORD + number + float(set_bits(int(bits.sum()), bits.numel()))
        case Table() | Toeplitz() | RandomKeys() | PerHead() | PerLayer():
            raise TypeError(f"{mask.kind} has no description in names and whole numbers")
    return WORD + number * len(dataclasses.fields(cast(Any, mask)))


def set_bits(size: Any, out_of: float) -> Any:
    """Bits of a set of `size` members out of `out_of`: its size, then which one; elementwise."""
    size = torch.as_tensor(size, dtype=torch.float64)
    ways = math.lgamma(out_of + 1) - (size + 1).lgamma() - (out_of - size + 1).lgamma()
    return 2 * (size + 1).log2() + 1 + ways / math.log(2)


def error_bits(wrong: Any, cells: int) -> Any:
    """Bits of naming the wrong ones among some cells; elementwise.

    Beyond half of the cells every further one costs a bit, although a set of nearly all cells
    is as short as its complement: a mask that is wrong nearly everywhere explains nothing.
    """
    wrong = torch.as_tensor(wrong, dtype=torch.float64)
    half = cells / 2
    return set_bits(wrong.clamp(max=half), cells) + (wrong - half).clamp(min=0)


def listing_bits(kept: int, cells: int) -> float:
    """Bits of naming the kept cells, or the others where those are fewer."""
    return float(set_bits(min(kept, cells - kept), cells))
