"""Leaves of two-dimensional inputs, and the butterfly of blocks."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from masksearch.errors import LengthError
from masksearch.masks.checks import check_field
from masksearch.masks.core import Mask, Points


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
        check_field(self, "rows", 1)
        check_field(self, "columns", 1)
        check_field(self, "prefix", 0)

    @property
    def longest(self) -> int | None:
        """Class tokens and positions of the grid."""
        return self.prefix + self.rows * self.columns

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
        check_field(self, "block", 1)

    def allows(self, at: Points) -> Tensor:
        differ = (at.query // self.block) ^ (at.key // self.block)
        return differ & (differ - 1) == 0
