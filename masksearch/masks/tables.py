"""Masks of bits, of heads, of layers, of one length.

Tables are given bit by bit: what a search without a family finds. `PerHead` and `PerLayer` have
one mask for each head or layer, `Cropped` takes a mask at a longer length.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor

from masksearch.errors import HeadCountError, LayerCountError, LengthError, MaskFormatError
from masksearch.masks.checks import MOST_PLANES, at_least, check_field
from masksearch.masks.core import Mask, Points, check_parts


class BitMask(Mask):
    """Base of the masks that hold bits; heads and layers may have bits of their own.

    Their field `bits` is bool `[.., own]`, `[heads, .., own]` or `[layers, heads, .., own]`; it
    is also made from a NumPy array, or from nested lists of 0 and 1.
    """

    own: ClassVar[tuple[str, ...]]  # names of the last axes
    bits: Tensor

    def _check_bits(self) -> None:
        """Makes the bits a tensor of their own on the CPU.

        Raises:
            MaskFormatError: If they are something else, or have another shape.
        """
        bits = self.bits
        if isinstance(bits, list | tuple):
            rows = np.array(bits)  # ragged lists and masks raise, or become objects
            if rows.dtype.kind not in "bi" or not np.isin(rows, (0, 1)).all():
                raise MaskFormatError(f"{self.kind} takes lists of 0 and 1, got {[*bits]}")
            bits = torch.from_numpy(rows.astype(bool))
        elif isinstance(bits, np.ndarray) and bits.dtype == np.bool_:
            bits = torch.from_numpy(bits.copy())
        if not isinstance(bits, Tensor) or bits.dtype != torch.bool:
            got = getattr(bits, "dtype", bits)
            raise MaskFormatError(f"a {self.kind} is a bool tensor, got {got}")
        axes = len(self.own)
        if not axes <= bits.ndim <= axes + 2 or not bits.numel() or len({*bits.shape[-axes:]}) > 1:
            names = ", ".join(self.own)
            raise MaskFormatError(
                f"a {self.kind} has shape [{names}], [heads, {names}] or "
                f"[layers, heads, {names}], got {list(bits.shape)}"
            )
        object.__setattr__(self, "bits", bits.detach().cpu().clone())
        at_least("layers x heads", self._planes_of_bits.shape[:2].numel(), 1, MOST_PLANES)

    @property
    def _planes_of_bits(self) -> Tensor:
        """The bits as `[layers | 1, heads | 1, .., own]`."""
        return self.bits.view((1,) * (len(self.own) + 2 - self.bits.ndim) + self.bits.shape)

    @cached_property
    def heads(self) -> int | None:
        """Number of heads that have bits of their own; None = one for all."""
        count = self._planes_of_bits.shape[1]
        return count if count > 1 else None

    @cached_property
    def layers(self) -> int | None:
        """Number of layers that have bits of their own; None = one for all."""
        count = len(self._planes_of_bits)
        return count if count > 1 else None

    def single_layer(self, layer: int) -> Mask:
        """The bits of one layer."""
        return cast(Mask, replace(cast(Any, self), bits=self.bits[layer]))

    def _bits_at(self, at: Points, *index: Tensor) -> Tensor:
        """The bits of the layer and head that are asked for, at those indices."""
        layer = self._planes_of_bits.select(0, at.layer if self.layers else 0)
        layer = _to_device_of(index[0], layer)
        head = at.head if self.heads else 0
        if isinstance(head, int):
            kept = layer.select(0, head)[index]
        else:
            kept = layer[(head, *index)]
        return kept if kept.dtype == torch.bool else kept > 0

    def on_device(self, device: torch.device | str) -> Mask:
        """Bits that a `mask_mod` captures are int8: inductor takes no captured bools."""
        moved = super().on_device(device)
        object.__setattr__(moved, "bits", cast(BitMask, moved).bits.to(torch.int8))
        return moved


def _to_device_of(index: Tensor, values: Tensor) -> Tensor:
    """The values on the device of the indices. Values that are there are returned as they are:
    inductor cannot lower a copy inside a `mask_mod`."""
    return values if values.device == index.device else values.to(index.device)


@dataclass(frozen=True, eq=False, repr=False)
class Table(BitMask):
    """Keep exactly the True cells of a table; has one length only.

    Args:
        bits: bool `[n, n]`, `[heads, n, n]` or `[layers, heads, n, n]`.

    Raises:
        MaskFormatError: If the shape or the type is another.

    >>> Table(torch.eye(2, dtype=torch.bool)).dense(2)[0, 0].int().tolist()
    [[1, 0], [0, 1]]
    """

    kind = "table"
    own = ("n", "n")
    bits: Tensor

    def __post_init__(self) -> None:
        self._check_bits()

    @property
    def length(self) -> int | None:
        """Positions of the table."""
        return self.bits.shape[-1]

    def allows(self, at: Points) -> Tensor:
        if at.length != self.length:
            raise LengthError(
                f"Table holds {self.length} positions, asked for {at.length}; searched tables do "
                f"not stretch: use masks.cropped(mask, at={self.length}) for shorter inputs, "
                "an expression for longer ones"
            )
        return self._bits_at(at, at.query, at.key)

    def expression(self) -> str:
        """Shape and digest; `parse` does not read them back."""
        return f"table({'x'.join(map(str, self.bits.shape))}, {self.digest[:8]})"


@dataclass(frozen=True, eq=False, repr=False)
class Toeplitz(BitMask):
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
    own = ("n",)
    bits: Tensor
    signed: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.signed, bool):
            raise MaskFormatError(f"signed is True or False, got {self.signed!r}")
        self._check_bits()
        if self.signed and self.bits.shape[-1] % 2 == 0:
            size = self.bits.shape[-1]
            raise MaskFormatError(f"signed bits are 2n - 1, an odd number, got {size}")

    @property
    def reach(self) -> int:
        """Farthest distance that has a bit, in positions."""
        return self.bits.shape[-1] // 2 if self.signed else self.bits.shape[-1] - 1

    @property
    def longest(self) -> int | None:
        """`reach` + 1."""
        return self.reach + 1

    def allows(self, at: Points) -> Tensor:
        if at.length > self.reach + 1:
            raise LengthError(
                f"Toeplitz bits reach {self.reach + 1} positions, asked for {at.length}; offsets "
                "beyond were not searched: pad the bits with False, or search at that length"
            )
        return self._bits_at(at, at.offset + self.reach if self.signed else at.offset.abs())


@dataclass(frozen=True, eq=False, repr=False)
class BlockLayout(BitMask):
    """Keep whole blocks, given bit by bit; block-sparse kernels skip the others.

    Args:
        bits: bool `[nb, nb]`, `[heads, nb, nb]` or `[layers, heads, nb, nb]`: which blocks of
            keys (last axis) each block of queries keeps.
        block: Positions of a block's side (>= 1).

    Lengths up to `nb * block` are the first positions; longer ones are refused.

    Raises:
        MaskFormatError: If shape or type of the bits is another.
        ValueError: If `block` < 1.

    Reference: block-sparse attention, Sparse Transformer, arXiv 1904.10509, Section 5.5.

    >>> BlockLayout(torch.eye(2, dtype=torch.bool), block=2).dense(3)[0, 0].int().tolist()
    [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    """

    kind = "block_layout"
    own = ("nb", "nb")
    bits: Tensor
    block: int

    def __post_init__(self) -> None:
        check_field(self, "block", 1)
        self._check_bits()

    @property
    def longest(self) -> int | None:
        """Positions of all blocks."""
        return self.bits.shape[-1] * self.block

    def allows(self, at: Points) -> Tensor:
        count = self.bits.shape[-1]
        if at.length > count * self.block:
            raise LengthError(
                f"the layout has {count} blocks of {self.block} positions, asked for "
                f"{at.length} positions; searched layouts do not stretch: give inputs of at most "
                f"{count * self.block}"
            )
        return self._bits_at(at, at.query // self.block, at.key // self.block)


@dataclass(frozen=True, eq=False, repr=False)
class Drawn(Mask, stored=False):
    """Random keys once they are drawn; in files they stay what they were drawn by.

    Args:
        keys: int32 `[n, count]`, the kept keys of each query.
    """

    kind = "drawn_keys"
    keys: Tensor

    def allows(self, at: Points) -> Tensor:
        keys = _to_device_of(at.query, self.keys)
        result = (at.key == -1) & (at.query == -1)
        for column in keys.unbind(1):
            result = result | (at.key == column[at.query])
        return result

    def to_dict(self, tensors: dict[str, Tensor] | None = None) -> dict[str, Any]:
        raise MaskFormatError("drawn keys have no form in files; write the mask of random_keys")


# -- one mask for each head or layer; a corner --------------------------------------------------
@dataclass(frozen=True, eq=False, repr=False)
class PerHead(Mask):
    """Head h uses the h-th mask.

    Args:
        of: One mask for each head.

    Raises:
        TypeError: If it is not a list of one or more masks.
        LayerCountError: If the masks tell different numbers of layers apart.
        HeadCountError: If one of them tells heads apart itself.
    """

    kind = "per_head"
    of: Sequence[Mask]

    def __post_init__(self) -> None:
        listed(self)
        if any(part.heads is not None for part in self.of):
            raise HeadCountError("per_head takes masks that do not tell heads apart themselves")

    @cached_property
    def heads(self) -> int | None:
        """Number of masks."""
        return len(self.of)

    def allows(self, at: Points) -> Tensor:
        if isinstance(at.head, int):
            return self.of[at.head].allows(at)
        result = self.of[-1].allows(at)  # inside a mask_mod the head is a tensor
        for index, part in enumerate(self.of[:-1]):
            result = torch.where(at.head == index, part.allows(at), result)
        return result

    def of_head(self, head: int) -> Mask:
        """The mask of that head."""
        return self.of[head]


@dataclass(frozen=True, eq=False, repr=False)
class PerLayer(Mask):
    """Layer l uses the l-th mask (parts may tell heads apart).

    Args:
        of: One mask for each layer.

    Raises:
        TypeError: If it is not a list of one or more masks.
        HeadCountError: If the masks tell different numbers of heads apart.
        LayerCountError: If one of them tells layers apart itself.
    """

    kind = "per_layer"
    of: Sequence[Mask]

    def __post_init__(self) -> None:
        listed(self)
        if any(part.layers is not None for part in self.of):
            raise LayerCountError("per_layer takes masks that do not tell layers apart themselves")

    @cached_property
    def layers(self) -> int | None:
        """Number of masks."""
        return len(self.of)

    def allows(self, at: Points) -> Tensor:
        return self.of[at.layer].allows(at)

    def single_layer(self, layer: int) -> Mask:
        """The mask of that layer."""
        return self.of[layer]


def listed(mask: PerHead | PerLayer) -> None:
    """Makes the masks of a list a tuple; says so where there is no list."""
    if not isinstance(mask.of, Iterable):
        raise TypeError(
            f"{mask.kind} takes a list of masks, got {mask.of!r}; write {mask.kind}([mask, mask])"
        )
    object.__setattr__(mask, "of", tuple(mask.of))
    check_parts(mask, mask.of)


@dataclass(frozen=True, eq=False, repr=False)
class Cropped(Mask):
    """The top-left corner of the mask at `at` positions, for inputs of at most that length.

    Attention under it equals attention under the mask at `at` positions with the inputs padded
    to that length, because padding is never attended to. So a searched table serves short
    inputs too, and a family means the same at every length. A row whose kept keys all lie
    beyond the input attends to nothing there, as it does in the padded form.

    Args:
        of: The mask.
        at: The length that it is taken at, in positions (>= 1).

    Raises:
        ValueError: If `at` is below 1.
        LengthError: If the mask has another length; and later, if an input is longer.

    >>> from masksearch import masks
    >>> masks.cropped(masks.blocks(2), at=4).dense(3)[0, 0].int().tolist()
    [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    """

    kind = "cropped"
    of: Mask
    at: int

    def __post_init__(self) -> None:
        check_parts(self, (self.of,))
        check_field(self, "at", 1)
        if self.of.length not in (None, self.at):
            raise LengthError(
                f"a table of {self.of.length} positions cannot be taken at {self.at}; "
                f"crop it at={self.of.length}"
            )

    @property
    def length(self) -> int | None:
        """None: it has every length up to `at`."""
        return None

    @property
    def longest(self) -> int | None:
        """`at`."""
        return self.at

    def allows(self, at: Points) -> Tensor:
        if at.length > self.at:
            raise LengthError(
                f"the mask is cropped from {self.at} positions, asked for {at.length}; "
                f"give inputs of at most {self.at} positions"
            )
        return self.of.allows(replace(at, length=self.at))

    def resolve(self, length: int) -> Mask:
        return Cropped(self.of.resolve(self.at), self.at)


def layer_of(mask: Mask, layer: int) -> Mask:
    """The mask of one layer alone (the mask itself where it does not tell layers apart).

    Raises:
        ValueError: If there is no such layer.
    """
    return mask.of_layer(layer)
