"""Leaves of two-dimensional inputs, of key columns, and of layouts in blocks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from masksearch.errors import LengthError, MaskFormatError
from masksearch.masks.checks import distinct, settle
from masksearch.masks.core import Mask, Points
from masksearch.masks.leaves import member


@dataclass(frozen=True, eq=False, repr=False)
class Columns(Mask):
    """Keep the columns of some positions: keys that every query attends to.

    Unlike `GlobalTokens`, these positions do not attend to all keys themselves.

    Args:
        positions: Kept keys (>= 0); those beyond the length are ignored.

    Reference: attention sinks of StreamingLLM, arXiv 2309.17453, Section 3.2.

    >>> Columns((0,)).dense(3)[0, 0].int().tolist()
    [[1, 0, 0], [1, 0, 0], [1, 0, 0]]
    """

    kind = "columns"
    positions: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "positions", distinct("positions", self.positions, 0))

    def allows(self, at: Points) -> Tensor:
        if self.positions == tuple(range(len(self.positions))):
            kept = at.key < len(self.positions)
        else:
            kept = member(at.key, self.positions)
        return kept & (at.query >= 0)


@dataclass(frozen=True, eq=False, repr=False)
class Axial(Mask):
    """Keep the keys in the query's row or column of a grid that is read row by row.

    Args:
        rows: Rows of the grid (>= 1).
        columns: Columns of the grid (>= 1).
        prefix: Positions before the grid, such as the class token of a ViT (>= 0): they attend
            to all keys and all queries attend to them.

    Lengths up to `prefix + rows * columns` are the first positions; longer ones are refused.

    Raises:
        ValueError: If one is smaller.

    Reference: Axial Attention, arXiv 1912.12180, Section 3; rows and columns in one layer, as in
    criss-cross attention, arXiv 1811.11721, Section 3.2.

    >>> Axial(rows=2, columns=3).dense(6)[0, 0, 1].view(2, 3).int().tolist()
    [[1, 1, 1], [0, 1, 0]]
    """

    kind = "axial"
    rows: int
    columns: int
    prefix: int = 0

    def __post_init__(self) -> None:
        settle(self, "rows", 1)
        settle(self, "columns", 1)
        settle(self, "prefix", 0)

    def allows(self, at: Points) -> Tensor:
        most = self.prefix + self.rows * self.columns
        if at.length > most:
            raise LengthError(
                f"axial({self.rows}, {self.columns}, {self.prefix}) has {most} positions, asked "
                f"for {at.length}; give the grid of the input, and its class tokens as prefix"
            )
        query, key = at.query - self.prefix, at.key - self.prefix
        kept = (query - key) % self.columns == 0
        kept = kept | (query // self.columns == key // self.columns)
        return kept | (query < 0) | (key < 0) if self.prefix else kept


@dataclass(frozen=True, eq=False, repr=False)
class Butterfly(Mask):
    """Keep the blocks whose numbers differ in at most one bit: i xor j is 0 or a power of two.

    Every position reaches every other in log2(n / block) layers. It is the flat form of a product
    of butterfly matrices.

    Args:
        block: Positions of a block (>= 1).

    Reference: Pixelated Butterfly, arXiv 2112.00029, Section 3.2 (flat block butterfly).

    >>> Butterfly().dense(8)[0, 0, 0].int().tolist()
    [1, 1, 1, 0, 1, 0, 0, 0]
    """

    kind = "butterfly"
    block: int = 1

    def __post_init__(self) -> None:
        settle(self, "block", 1)

    def allows(self, at: Points) -> Tensor:
        differ = (at.query // self.block) ^ (at.key // self.block)
        return differ & (differ - 1) == 0


@dataclass(frozen=True, eq=False, repr=False)
class BlockLayout(Mask):
    """Keep whole blocks, given bit by bit: the kind of mask that becomes speed.

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
    bits: Tensor
    block: int

    def __post_init__(self) -> None:
        bits = self.bits
        if not isinstance(bits, Tensor) or bits.dtype != torch.bool:
            raise MaskFormatError(
                f"a block layout is a bool tensor, got {getattr(bits, 'dtype', bits)}"
            )
        if bits.ndim not in (2, 3, 4) or bits.shape[-1] != bits.shape[-2] or not bits.numel():
            raise MaskFormatError(
                "a block layout has shape [nb, nb], [heads, nb, nb] or [layers, heads, nb, nb], "
                f"got {list(bits.shape)}"
            )
        settle(self, "block", 1)
        object.__setattr__(self, "bits", bits.detach().cpu().clone())

    @property
    def heads(self) -> int | None:
        return self.bits.shape[-3] if self.bits.ndim > 2 and self.bits.shape[-3] > 1 else None

    @property
    def layers(self) -> int | None:
        return self.bits.shape[0] if self.bits.ndim == 4 and self.bits.shape[0] > 1 else None

    def allows(self, at: Points) -> Tensor:
        count = self.bits.shape[-1]
        if at.length > count * self.block:
            raise LengthError(
                f"the layout has {count} blocks of {self.block} positions, asked for "
                f"{at.length} positions; searched layouts do not stretch: give inputs of at most "
                f"{count * self.block}"
            )
        query, key = at.query // self.block, at.key // self.block
        layer = self.bits[at.layer if self.layers else 0] if self.bits.ndim == 4 else self.bits
        planes = layer.view(-1, count, count)
        if isinstance(at.head, int):
            return planes[at.head if self.heads else 0][query, key]
        planes = planes.to(device=query.device, dtype=torch.int32)  # inductor: no captured bools
        head = at.head if self.heads else torch.zeros_like(at.head)
        return planes[head, query, key] > 0
