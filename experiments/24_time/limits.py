"""The most that masks of tiles can gain: encoders under random tiles, dense and masked in turns.

    python experiments/24_time/limits.py        # on an idle machine

Random weights, rows of random words without padding, one thread, wall time, each encoder in a
process of its own. The tiles are those of this device's kernel; 0 of them = the diagonal's alone.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch
from transformers import BertConfig, BertModel

from masksearch import Shape
from masksearch.attention.kernels.choose import grain_on
from masksearch.evaluators.speed_target import random_tiles
from masksearch.models.speed import time_masks

ENCODERS = [  # layers, width, heads, tokens; the first two are MiniLM's
    *((6, 384, 12, 512), (6, 384, 12, 1024)),
    *((4, 256, 4, 1024), (4, 128, 2, 1024)),
]
SHARES = [0.25, 0.125, 0.0]  # of the tiles
WORDS, ROWS, BATCHES, REPEATS = 2000, 8, 4, 3


def measured(encoder: tuple[int, int, int, int], repeats: int = REPEATS) -> pd.DataFrame:
    """How many times as fast an encoder is at each share: quartiles of the runs."""
    layers, width, heads, length = encoder
    torch.manual_seed(0)
    sizes = {"hidden_size": width, "intermediate_size": 4 * width}
    sizes |= {"num_hidden_layers": layers, "num_attention_heads": heads}
    model = BertModel(BertConfig(vocab_size=WORDS, max_position_embeddings=length, **sizes))
    batches = [{"input_ids": torch.randint(WORDS, (ROWS, length))} for _ in range(BATCHES)]
    device, shape = torch.device("cpu"), Shape(length, layers, heads)
    masks = {f"{share}": random_tiles(share, shape, grain_on(device)) for share in SHARES}
    times = time_masks(model, masks, batches, repeats, device)
    table = pd.DataFrame([times[name] for name in masks], columns=["low", "median", "high"])
    kept = [masks[name].density(length) for name in masks]
    about = dict(zip(("layers", "width", "heads", "tokens"), encoder, strict=True))
    return table.assign(**about, tiles=SHARES, kept=kept)


def main() -> None:
    """Measures all encoders; some minutes."""
    torch.set_num_threads(1)
    table = pd.concat(map(measured, ENCODERS))
    path = Path(__file__).parent / "results" / "limits.csv"
    path.parent.mkdir(exist_ok=True)
    table.to_csv(path, index=False, float_format="%.4f")
    print(table.round(2).to_string())


if __name__ == "__main__":
    main()
