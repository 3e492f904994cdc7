"""Masks as small pictures: an HTML figure with a PNG of 16 colours in it for notebooks, block
characters for terminals."""

from __future__ import annotations

import base64
import html
import math
import struct
import zlib

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, pad

LENGTH = 64  # positions at which a mask of any length is drawn
SIZE = 36_000  # bytes of a picture at most
PIXELS = 1 << 18  # of a picture at most
DOWN, ACROSS = 6, 8  # panels of a picture at most: layers and heads
READABLE = 500  # pixels of an enlarged picture's width, at least
SIDE, WIDTH = 192, 720  # pixels on the screen: of a single panel, and of all at most
KEPT, DROPPED, SEAM = (11, 60, 111), (242, 240, 234), 15  # colours; index of the white seam
SHOWN = 400  # characters of an expression
BLOCKS, CELLS = " ░▒▓█", 12  # characters by the share that is kept; rows of a drawing


def mask_html(text: str, table: Tensor | None) -> str:
    """A picture of a mask with its expression below.

    Args:
        text: The expression.
        table: bool `[layers, heads, n, n]`; None where cells follow the tokens.
    """
    caption = f"<code>{html.escape(text if len(text) <= SHOWN else text[:SHOWN] + ' ...')}</code>"
    if table is None:
        return f"<div>{caption}<br>its cells follow the tokens: mask.table(input_ids)</div>"
    sparsity = 100 * (1 - table.double().mean().item())
    sparse = f"{sparsity:.1f}% sparse at {table.shape[-1]} positions"
    return table_html(table, f"{caption}<br>{sparse}")


def in_blocks(table: Tensor) -> list[str]:
    """A picture of tables in characters, as many rows as columns of two: the darker, the more of
    its cells are kept, over all layers and heads.

    Args:
        table: bool `[layers, heads, n, n]`.

    >>> print(*in_blocks(torch.eye(3, dtype=torch.bool)[None, None]), sep="|")
    ██    |  ██  |    ██
    """
    share = table.float().mean((0, 1))
    if len(share) > CELLS:
        share = adaptive_avg_pool2d(share[None], CELLS)[0]
    levels = (share * (len(BLOCKS) - 1)).ceil().int().tolist()
    return ["".join(2 * BLOCKS[level] for level in row) for row in levels]


def table_html(table: Tensor, caption: str) -> str:
    """A figure of tables, as `draw_table` draws them.

    Args:
        table: bool or float in [0, 1], `[layers, heads, n, n]`.
        caption: HTML.
    """
    layers, heads = table.shape[:2]
    data, width, what = draw_table(table)
    lines = [caption, what] if what else [caption]
    return (
        f'<figure style="margin:0"><img alt="attention mask, {heads} heads, {layers} layers" '
        f'width="{width}" style="image-rendering:pixelated" '
        f'src="data:image/png;base64,{base64.b64encode(data).decode()}"><figcaption>{"<br>".join(lines)}</figcaption>'
        "</figure>"
    )


def fold_equal(table: Tensor) -> Tensor:
    """A table of `[layers, heads, n, n]` with equal layers, or equal heads, folded into one."""
    table = table[:1] if bool((table == table[:1]).all()) else table
    return table[:, :1] if bool((table == table[:, :1]).all()) else table


def draw_table(table: Tensor, *, enlarged: bool = False) -> tuple[bytes, int, str]:
    """A picture of tables: layers down and heads across, equal ones once, dark = may attend.

    Args:
        table: bool or float in [0, 1], `[layers, heads, n, n]`.
        enlarged: Whether pixels are repeated until the PNG is as wide as it is shown, for pages
            that blur what they enlarge; then it is shown at 500 pixels or more.

    Returns:
        The PNG, its width on the screen in pixels, and which panels it shows; "" for one.
    """
    layers, table = table.shape[0], fold_equal(table)
    what = f"{table.shape[0]} layers down, " if table.shape[0] > 1 else ""
    what += f"{table.shape[1]} heads across" if table.shape[1] > 1 else ""
    if table.shape[1] == 1 < table.shape[0]:  # layers across, as heads would be
        table, what = table.transpose(0, 1), f"{layers} layers across"
    shown = table[:DOWN, :ACROSS]
    if shown.shape[:2] != table.shape[:2]:
        what += f"; the first {shown.shape[0]} x {shown.shape[1]} are drawn"
    side = min(table.shape[-1], math.isqrt(PIXELS // (shown.shape[0] * shown.shape[1])))
    while len(data := png(image := tile(shown, side))) > SIZE:
        side = (side + 1) // 2
    height, width = image.shape
    scale = max(1.0, min(SIDE * shown.shape[0] / height, WIDTH / width))
    if enlarged:
        times = math.ceil(max(scale, READABLE / width))
        data = png(image.repeat_interleave(times, 0).repeat_interleave(times, 1))
        scale = min(times, max(scale, WIDTH / width))
    return data, round(scale * width), what.removesuffix(", ")


def tile(table: Tensor, side: int) -> Tensor:
    """Panels `[down, across, n, n]` of `side` pixels with seams: uint8 `[height, width]`.

    A pixel that stands for several cells has the share of them that is kept.
    """
    down, across, length, _ = table.shape
    share = table.flatten(0, 1).float()
    if side < length:
        share = adaptive_avg_pool2d(share, side)
    colours = (share * (SEAM - 1)).ceil().to(torch.uint8)  # a single kept cell is not lost
    seam = max(1, side // 16) if down * across > 1 else 0
    panels = pad(colours, (0, seam, 0, seam), value=SEAM)
    pitch = side + seam
    image = panels.view(down, across, pitch, pitch).transpose(1, 2)
    image = image.reshape(down * pitch, across * pitch)
    return image[: image.shape[0] - seam, : image.shape[1] - seam]


def png(image: Tensor) -> bytes:
    """A PNG of colours: uint8 `[height, width]`, 0 = dropped, 14 = kept, 15 = white.

    Reference: Portable Network Graphics, third edition, W3C 2025: colour type 3, 4 bits.
    """
    height, width = image.shape
    shades = [
        round(light + (dark - light) * level / (SEAM - 1))
        for level in range(SEAM)
        for light, dark in zip(DROPPED, KEPT, strict=True)
    ]
    even = pad(image, (0, width % 2))
    packed = (even[:, ::2] << 4) | even[:, 1::2]
    rows = pad(packed, (1, 0)).contiguous().numpy().tobytes()  # each begins with its filter: 0
    parts = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 4, 3, 0, 0, 0),
        b"PLTE": bytes(shades + [255] * 3),
        b"IDAT": zlib.compress(rows),
        b"IEND": b"",
    }
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts.items()
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
