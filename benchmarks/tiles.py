"""What there is to gain by leaving out tiles of attention: whole encoders, dense and under tiles.

    python benchmarks/tiles.py                   # five encoders: some minutes
    python benchmarks/tiles.py --smoke --out FOLDER

Random weights, rows of random words without padding, float32 on one thread of a CPU: seconds of
the process. Tiles are the kernel's, 64 queries x 16 keys, drawn at random in each head beside
those of the diagonal; the diagonal's alone are the limit. By "auto" (block gather, but where more
than .6 of the tiles are kept) and by SDPA with a mask. Sides take turns; a figure is the median of
the rounds' ratios with the 10 and 90 % points.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from rounds import Side, faster, interleaved, write_rows
from transformers import BertConfig, BertModel

from masksearch import Shape
from masksearch.attention.attach import attach
from masksearch.contracts import generator
from masksearch.masks.leaves import Window
from masksearch.masks.lower import Block, block_view, by_tiles, spread_tiles
from masksearch.masks.tables import BlockLayout

TILE = (64, 16)
DRAWN = 43  # stream of random numbers


@dataclass(frozen=True)
class Setting:
    """What is measured.

    Args:
        encoders: Layers, width, heads and tokens of each.
        shares: Of the tiles; 0 = the diagonal's alone.
        tokens: Of a batch, about.
        words: Of the vocabulary.
        rounds: Samples of each side.
        seconds: No round of an encoder starts later than that, but three are made.
    """

    encoders: tuple[tuple[int, int, int, int], ...] = (
        *((6, 384, 12, 512), (6, 384, 12, 1024), (4, 256, 4, 1024)),
        *((4, 128, 2, 1024), (4, 128, 2, 2048)),
    )
    shares: tuple[float, ...] = (0.5, 0.25, 0.125, 0.0)
    tokens: int = 4096
    words: int = 2000
    rounds: int = 9
    seconds: float = 60.0


def random_tiles(share: float, shape: Shape, block: Block) -> BlockLayout:
    """So many of the tiles of each head, drawn at random, and those of the diagonal."""
    side = min(block)
    tile = block[0] // side, block[1] // side
    blocks = -(-shape.length // side)
    own = by_tiles(block_view(Window(0), shape.length, side), tile).any(-1).any(-2)[0, 0]
    order = torch.rand(shape.layers, shape.heads, own.numel(), generator=generator(DRAWN))
    order[..., own.flatten()] = -1.0
    most = max(int(own.sum()), round(share * own.numel()))
    kept = torch.zeros_like(order, dtype=torch.bool)
    kept.scatter_(-1, order.argsort(-1)[..., :most], value=True)
    return BlockLayout(spread_tiles(kept.view(*kept.shape[:2], *own.shape), blocks, tile), side)


def measured(setting: Setting, encoder: tuple[int, int, int, int]) -> list[dict[str, Any]]:
    """How many times as fast an encoder is under tiles, by share and backend."""
    layers, width, heads, length = encoder
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=setting.words,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        max_position_embeddings=length,
    )
    model = BertModel(config).eval()
    ids = torch.randint(setting.words, (max(1, setting.tokens // length), length))
    sides: dict[str, Side] = {"dense": partial(model, ids)}
    for share in setting.shares:
        mask = random_tiles(share, Shape(length, layers, heads), TILE)
        for backend in ("auto", "sdpa"):
            masked = attach(deepcopy(model), mask, backend=backend)
            sides[f"{share} {backend}"] = partial(masked, ids)
    with torch.inference_mode():
        times = interleaved(sides, setting.rounds, setting.seconds, torch.device("cpu"))
    return [
        dict(zip(("layers", "width", "heads", "length"), encoder, strict=True))
        | {"share": share, "backend": backend}
        | {"faster": faster(times, "dense", f"{share} {backend}")}
        for share in setting.shares
        for backend in ("auto", "sdpa")
    ]


def every_encoder(setting: Setting) -> list[dict[str, Any]]:
    """The rows of all encoders."""
    return [row for encoder in setting.encoders for row in measured(setting, encoder)]


if __name__ == "__main__":
    small = Setting(((1, 32, 2, 256),), shares=(0.25, 0.0), tokens=256, rounds=2)
    write_rows(__doc__, "tiles", Setting(), small, every_encoder)
