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

import argparse
import json
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rounds import Side, faster, interleaved, machine
from transformers import BertConfig, BertModel

from masksearch import Shape
from masksearch.attention.attach import attach
from masksearch.evaluators.speed_target import random_tiles

RESULTS = Path(__file__).parent / "results"
TILE = (64, 16)


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


def main() -> None:
    """Measures every encoder, and prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="tiny; its figures mean nothing")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of tiles.json")
    given = parser.parse_args()
    if given.smoke and given.out == RESULTS:
        parser.error("--smoke needs another --out: its figures must not mix with real ones")
    small = {"encoders": ((1, 32, 2, 256),), "shares": (0.25, 0.0), "tokens": 256, "rounds": 2}
    setting = Setting(**small) if given.smoke else Setting()
    torch.set_num_threads(1)
    rows = [row for each in setting.encoders for row in measured(setting, each)]
    found = machine(torch.device("cpu")) | {"setting": asdict(setting), "rows": rows}
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "tiles.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
