"""What it costs at inference that a mask follows the words: made anew in each batch, or a table.

    python benchmarks/words.py                   # 64 and 512 tokens: a minute
    python benchmarks/words.py --smoke --out FOLDER

MiniLM's size with random weights (6 layers of 384, 12 heads), eight rows of random words, float32
on one thread of a CPU: seconds of the process. Both masks keep about as many pairs, and neither
leaves out a tile, so that SDPA computes both; the difference is the making of the table. Sides
take turns; a figure is the median of the rounds' ratios with the 10 and 90 % points.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from rounds import Side, faster, interleaved, write_rows
from transformers import BertConfig, BertModel

from masksearch import masks
from masksearch.attention.attach import attach


@dataclass(frozen=True)
class Setting:
    """What is measured.

    Args:
        lengths: Tokens of a row.
        rows: Of a batch.
        layers: Of the model, whose heads have 32 numbers each.
        heads: Of a layer.
        words: Of the vocabulary.
        rounds: Samples of each side.
        seconds: No round starts later than that, but three are made.
    """

    lengths: tuple[int, ...] = (64, 512)
    rows: int = 8
    layers: int = 6
    heads: int = 12
    words: int = 2000
    rounds: int = 60
    seconds: float = 120.0


def measured(setting: Setting, length: int) -> dict[str, Any]:
    """Times over those of the same model without a mask, at a length."""
    ids = torch.randint(1, setting.words, (setting.rows, length))
    words = masks.same_token() | masks.columns(1) | masks.window(2)
    table = masks.table(words.table(ids[:1])[0, 0])
    sides: dict[str, Side] = {}
    for name, mask in {"dense": None, "table": table, "words": words}.items():
        torch.manual_seed(0)
        width = 32 * setting.heads
        config = BertConfig(
            vocab_size=setting.words,
            hidden_size=width,
            num_hidden_layers=setting.layers,
            num_attention_heads=setting.heads,
            intermediate_size=4 * width,
            max_position_embeddings=length,
        )
        model = BertModel(config).eval()
        sides[name] = partial(attach(model, mask) if mask else model, ids)
    with torch.inference_mode():
        times = interleaved(sides, setting.rounds, setting.seconds, torch.device("cpu"))
    return {
        "length": length,
        "words over table": faster(times, "words", "table"),
        "words over dense": faster(times, "words", "dense"),
    }


def every_length(setting: Setting) -> list[dict[str, Any]]:
    """The rows of all lengths."""
    return [measured(setting, length) for length in setting.lengths]


if __name__ == "__main__":
    small = Setting((8, 16), layers=1, heads=2, rounds=2)
    write_rows(__doc__, "words", Setting(), small, every_length)
