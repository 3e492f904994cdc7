"""The plan of block-gather attention: a mask at one length, made ready for many calls."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from masksearch.masks.core import Mask
from masksearch.masks.tables import Table
from masksearch.masks.tiles import distinct_tiles
from masksearch.models.gather_pieces import Bundle, Planner


@dataclass(frozen=True)
class GatherPlan:
    """What block-gather attention computes for one layer. Build it once for many calls.

    Args:
        length: Positions.
        heads: Heads that the plan tells apart; 1 serves any number.
        block: Side of the tiles that the plan was made from, in positions.
        unit: Positions that are gathered together; divides the block.
        bundles: The work. Queries that keep no key at all may be in none.
    """

    length: int
    heads: int
    block: int
    unit: int
    bundles: tuple[Bundle, ...]

    @staticmethod
    def of_mask(mask: Mask, length: int, block: int = 64, layer: int = 0) -> GatherPlan:
        """Plans one layer of a mask from its distinct tiles.

        Args:
            mask: Any mask. Rows that keep no key are not refused here: their output is 0, as
                with a bool mask in `scaled_dot_product_attention`.
            length: Positions; the last block may be ragged.
            block: Side of a tile, in positions (>= 1).
            layer: Layer of a mask that tells layers apart.

        Raises:
            LengthError: If the mask has another length.
            ValueError: If `block` or `length` is less than 1.
        """
        if block < 1:
            raise ValueError(f"block must be at least 1 position, got {block}")
        planner = Planner(block)
        for head in range(mask.heads or 1):
            tiles = distinct_tiles(mask, length, block, layer if mask.layers else 0, head)
            planner.add(tiles.index.numpy(), tiles.patterns.numpy(), head)
        bundles = tuple(planner.bundles())
        return GatherPlan(length, mask.heads or 1, block, planner.unit, bundles)

    @staticmethod
    def of_table(table: Tensor, block: int = 64) -> GatherPlan:
        """Plans a lowered table of one layer, bool `[heads, n, n]`; one head serves any number.

        Raises:
            ValueError: If the table has another type or shape, or `block` is less than 1.
        """
        if table.dtype != torch.bool or table.ndim != 3 or table.shape[1] != table.shape[2]:
            raise ValueError(
                "a plan is made from one layer's bool table [heads, n, n], got "
                f"{table.dtype} {list(table.shape)}; take table[layer]"
            )
        return GatherPlan.of_mask(Table(table), table.shape[1], block)

    @property
    def units(self) -> int:
        """Units of one head, those of a ragged last block included."""
        return -(-self.length // self.block) * (self.block // self.unit)

    @property
    def pairs(self) -> float:
        """Computed cells over the heads, padding included, in tiles of block x block."""
        cells = sum(b.queries.numel() * b.keys.shape[1] for b in self.bundles) * self.unit**2
        return cells / self.block**2

    @property
    def bytes(self) -> int:
        """Bytes of the plan's indices and cells."""
        held = [tensor for bundle in self.bundles for tensor in bundle.tensors]
        return sum(tensor.numel() * tensor.element_size() for tensor in held)

    def to(self, device: torch.device | str) -> GatherPlan:
        """The plan on another device."""
        bundles = tuple(bundle.to(device) for bundle in self.bundles)
        return GatherPlan(self.length, self.heads, self.block, self.unit, bundles)
