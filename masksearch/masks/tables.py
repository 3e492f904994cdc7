"""Masks that are given bit by bit, or key by key: what a search without a family finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from masksearch.errors import LengthError, MaskFormatError
from masksearch.masks.core import Mask, Points


@dataclass(frozen=True, eq=False, repr=False)
class Table(Mask):
    """Keep exactly the True cells of a table; has one length only.

    Args:
        bits: bool `[n, n]`, `[heads, n, n]` or `[layers, heads, n, n]`.

    Raises:
        MaskFormatError: If the shape or the type is another.

    >>> Table(torch.eye(2, dtype=torch.bool)).dense(2)[0, 0].int().tolist()
    [[1, 0], [0, 1]]
    """

    kind = "table"
    bits: Tensor

    def __post_init__(self) -> None:
        bits = self.bits
        if not isinstance(bits, Tensor) or bits.dtype != torch.bool:
            raise MaskFormatError(f"a table is a bool tensor, got {getattr(bits, 'dtype', bits)}")
        if bits.ndim not in (2, 3, 4) or bits.shape[-1] != bits.shape[-2] or not bits.numel():
            raise MaskFormatError(
                "a table has shape [n, n], [heads, n, n] or [layers, heads, n, n], "
                f"got {list(bits.shape)}"
            )
        object.__setattr__(self, "bits", bits.detach().cpu().clone())

    @property
    def heads(self) -> int | None:
        return self.bits.shape[-3] if self.bits.ndim > 2 and self.bits.shape[-3] > 1 else None

    @property
    def layers(self) -> int | None:
        return self.bits.shape[0] if self.bits.ndim == 4 and self.bits.shape[0] > 1 else None

    @property
    def length(self) -> int | None:
        return self.bits.shape[-1]

    def allows(self, at: Points) -> Tensor:
        size = self.bits.shape[-1]
        if at.length != size:
            raise LengthError(
                f"Table holds {size} positions, asked for {at.length}; searched tables do not "
                f"stretch: use masks.nearest_family(mask), or pad the inputs to {size}"
            )
        table = (
            self.bits.view(-1, size, size)
            if self.bits.ndim < 4
            else self.bits[at.layer if self.layers else 0]
        )
        if isinstance(at.head, int):
            return table[at.head if self.heads else 0][at.query, at.key]
        table = table.to(device=at.query.device, dtype=torch.int32)  # inductor: no captured bools
        head = at.head if self.heads else torch.zeros_like(at.head)
        return table[head, at.query, at.key] > 0


@dataclass(frozen=True, eq=False, repr=False)
class Toeplitz(Mask):
    """Keep by offset alone: one bit for each distance, or for each signed offset.

    Args:
        bits: bool `[n]`, `[heads, n]` or `[layers, heads, n]` by |i - j|; signed: `2n - 1`
            instead of `n`, by `j - i + n - 1`.
        signed: Whether the two directions have bits of their own.

    Lengths up to n are the top-left corner of the table at n; longer ones are refused.

    >>> Toeplitz(torch.tensor([True, False, True])).dense(3)[0, 0, 0].int().tolist()
    [1, 0, 1]
    """

    kind = "toeplitz"
    by_offset = True
    bits: Tensor
    signed: bool = False

    def __post_init__(self) -> None:
        bits = self.bits
        if not isinstance(bits, Tensor) or bits.dtype != torch.bool:
            raise MaskFormatError(f"bits is a bool tensor, got {getattr(bits, 'dtype', bits)}")
        if bits.ndim not in (1, 2, 3) or not bits.numel():
            raise MaskFormatError(
                "bits has shape [n], [heads, n] or [layers, heads, n] (2n - 1 when signed), "
                f"got {list(bits.shape)}"
            )
        if not isinstance(self.signed, bool):
            raise MaskFormatError(f"signed is True or False, got {self.signed!r}")
        if self.signed and bits.shape[-1] % 2 == 0:
            raise MaskFormatError(f"signed bits are 2n - 1, an odd number, got {bits.shape[-1]}")
        object.__setattr__(self, "bits", bits.detach().cpu().clone())

    @property
    def reach(self) -> int:
        """Farthest distance that has a bit, in positions."""
        return self.bits.shape[-1] // 2 if self.signed else self.bits.shape[-1] - 1

    @property
    def heads(self) -> int | None:
        return self.bits.shape[-2] if self.bits.ndim > 1 and self.bits.shape[-2] > 1 else None

    @property
    def layers(self) -> int | None:
        return self.bits.shape[0] if self.bits.ndim == 3 and self.bits.shape[0] > 1 else None

    def allows(self, at: Points) -> Tensor:
        if at.length > self.reach + 1:
            raise LengthError(
                f"Toeplitz bits reach {self.reach + 1} positions, asked for {at.length}; offsets "
                "beyond were not searched: pad the bits with False, or search at that length"
            )
        index = at.offset + self.reach if self.signed else at.offset.abs()
        bits = (
            self.bits.view(-1, self.bits.shape[-1])
            if self.bits.ndim < 3
            else self.bits[at.layer if self.layers else 0]
        )
        if isinstance(at.head, int):
            return bits[at.head if self.heads else 0][index]
        bits = bits.to(device=index.device, dtype=torch.int32)
        head = at.head if self.heads else torch.zeros_like(at.head)
        return bits[head, index] > 0


@dataclass(frozen=True, eq=False, repr=False)
class Drawn(Mask, stored=False):
    """Random keys once they are drawn; in files they stay what they were drawn by.

    Args:
        keys: int32 `[n, count]`, the kept keys of each query.
    """

    kind = "drawn_keys"
    keys: Tensor

    def allows(self, at: Points) -> Tensor:
        keys = self.keys.to(at.query.device)
        result = (at.key == -1) & (at.query == -1)
        for column in range(keys.shape[1]):
            result = result | (at.key == keys[at.query, column])
        return result

    def to_dict(self) -> dict[str, Any]:
        raise MaskFormatError("drawn keys have no form in files; write the mask of random_keys")
