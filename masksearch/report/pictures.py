"""Masks as small PNG images for a page; each set of bits is one image, whoever has it."""

from __future__ import annotations

import base64
import hashlib
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from masksearch.contracts import Shape
from masksearch.errors import MaskSearchError
from masksearch.masks.core import Mask
from masksearch.masks.lower import tile_counts, under_causality

SIDE = 256  # pixels of a panel at most; a pixel of a longer mask is a block of cells
KEPT = (0x3B, 0x7D, 0xC4)  # colour of a kept cell, on light and on dark; the others are clear
LEVELS = 15  # shades of a block, by the square root of its kept share
BYTES = 2_000_000  # of all images of a page together
CELLS = 400_000_000  # that are looked at for all of them: some seconds


class Pictures:
    """The images of a page.

    Masks that come when the room of the page or the time is used up have none.

    Args:
        room: Bytes of base64 text that all images may take.
        cells: Cells of masks that may be looked at.
    """

    def __init__(self, room: int = BYTES, cells: int = CELLS) -> None:
        self.images: list[str] = []  # PNG in base64
        self.places: dict[bytes, int] = {}
        self.room, self.cells = room, cells

    def panels(self, mask: Mask, shape: Shape) -> list[list[int]] | None:
        """Which image each layer (down) and head (across) is; equal ones are folded into one.

        Returns:
            Indices into `images`; None for a mask that cannot be drawn, or for which there is
            no room.
        """
        try:
            mask.counts(shape.layers, shape.heads)
            self.cells -= len(mask.planes) * shape.length**2
            if self.cells < 0 or mask.needs_tokens:
                return None
            rows = self.tables(under_causality(mask, shape), shape.length)
            found = [[self.place(panel) for panel in row] for row in rows]
        except MaskSearchError:
            return None
        if any(place is None for row in found for place in row):
            return None
        kept = [[place for place in row if place is not None] for row in found]
        kept = kept[:1] if all(row == kept[0] for row in kept) else kept
        return [row[:1] for row in kept] if all(len(set(row)) == 1 for row in kept) else kept

    @staticmethod
    def tables(mask: Mask, length: int) -> NDArray[np.uint8]:
        """Levels of every pixel, `[layers, heads, side, side]`: 0 = nothing kept; see `LEVELS`."""
        if length <= SIDE:
            table = mask.dense(length, mask.layers or 1, mask.heads or 1)
            return LEVELS * table.numpy().astype(np.uint8)
        block = -(-length // (SIDE // 2))
        share = tile_counts(mask, length, block).double() / block**2
        return (LEVELS * share.clamp(0, 1).sqrt()).ceil().numpy().astype(np.uint8)

    def place(self, panel: NDArray[np.uint8]) -> int | None:
        """Index of a panel's image, which is made if there is none; None without room."""
        key = hashlib.blake2b(np.packbits(panel > 0).tobytes() + panel.tobytes()).digest()
        if key not in self.places:
            text = png_text(panel)
            if len(text) > self.room:
                return None
            self.room -= len(text)
            self.places[key] = len(self.images)
            self.images.append(text)
        return self.places[key]


def png_text(levels: NDArray[np.uint8]) -> str:
    """A PNG in base64: one colour, as opaque as the level (0 to `LEVELS`) says."""
    plain = bool(np.isin(levels, (0, LEVELS)).all())
    shades = [0, LEVELS] if plain else list(range(LEVELS + 1))
    image = Image.frombytes("P", levels.shape, (levels // LEVELS if plain else levels).tobytes())
    image.putpalette(KEPT * len(shades))
    file = io.BytesIO()
    clear = bytes(round(255 * shade / LEVELS) for shade in shades)
    image.save(file, "PNG", bits=1 if plain else 4, transparency=clear)
    return base64.b64encode(file.getvalue()).decode("ascii")
