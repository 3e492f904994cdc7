"""Tokens that are left out: whole classifiers, dense and under masks that keep fewer keys late.

    python benchmarks/dead_tokens.py                   # MiniLM's sizes: some minutes
    python benchmarks/dead_tokens.py --smoke --out FOLDER

Random weights, rows of random words whose lengths are drawn between a half and all of the tokens,
one thread of a CPU: seconds of the process, float32 and bfloat16. "full" is `masks.full()`, under
which padding is left out and [CLS] alone is computed of the last layer; "late" keeps every second
key in the last layer but one and every fourth in the last; "even" .9 .75 .6 .4 .2 of the keys in
layers 1 to 5, by position;
"words" the same shares of the words. Sides take turns; a figure is the median of the rounds'
ratios with the 10 and 90 % points. Beside it stands what the work would give: dense computes
padding too.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from rounds import Side, faster, interleaved, write_rows
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification

from masksearch import Shape, masks
from masksearch.attention.attach import attach
from masksearch.masks.core import Mask

CLS = 1
SHARES = (1.0, 0.9, 0.75, 0.6, 0.4, 0.2)  # of layers 0 to 5


@dataclass(frozen=True)
class Setting:
    """What is measured.

    Args:
        batches: Rows and tokens of each.
        dtypes: Of weights and states.
        layers: Of the encoder.
        width: Of its hidden states.
        heads: Of a layer.
        words: Of the vocabulary.
        rounds: Samples of each side.
        seconds: No round of a batch starts later than that, but three are made.
    """

    batches: tuple[tuple[int, int], ...] = (
        *((1, 16), (1, 64), (1, 512), (8, 32), (32, 16), (32, 32), (32, 64), (32, 128), (8, 512)),
    )
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    layers: int = 6
    width: int = 384
    heads: int = 12
    words: int = 3000
    rounds: int = 15
    seconds: float = 20.0


def schedules(setting: Setting, length: int) -> dict[str, Mask]:
    """Name -> mask."""
    full, places = masks.full(), range(length)

    def spread(share: float) -> Mask:
        kept = [p for p in places if p == 0 or int((p + 1) * share) > int(p * share)]
        return full if share == 1 else masks.columns(positions=kept)

    def words(share: float) -> Mask:
        ids = range(CLS, CLS + 1 + int(share * setting.words))
        return full if share == 1 else masks.token_columns(ids)

    late = [full] * (setting.layers - 2) + [spread(1 / 2), spread(1 / 4)]
    return {
        "full": full,
        "late": masks.per_layer(late),
        "even": masks.per_layer([spread(share) for share in SHARES[: setting.layers]]),
        "words": masks.per_layer([words(share) for share in SHARES[: setting.layers]]),
    }


def by_tokens(mask: Mask, shape: Shape, ids: Tensor, real: Tensor) -> float:
    """Dense work, padding in, over that of the tokens that live: linear layers compute these
    alone, attention as many queries and keys for each text as the longest one has."""
    if mask.needs_tokens:
        live = masks.live_tokens(mask, replace(shape, tokens=torch.where(real, ids, -1)))
    else:
        live = masks.live_tokens(mask, shape) & real[:, None]
    tokens, widths = live.sum(-1).sum(0).tolist(), live.sum(-1).amax(0).tolist()
    hidden, inner = shape.hidden_size or 1, shape.intermediate_size or 1

    def work(before: int, after: int, cells: int) -> int:
        return 2 * hidden * (after * (hidden + inner) + before * hidden + len(ids) * cells)

    whole = len(ids) * shape.length
    dense = shape.layers * work(whole, whole, shape.length**2)
    cells = [before * after for before, after in pairwise(widths)]
    return dense / sum(work(*each) for each in zip(tokens, tokens[1:], cells, strict=False))


def measured(setting: Setting, rows: int, length: int, dtype: str) -> list[dict[str, Any]]:
    """How many times as fast a classifier is that leaves tokens out, by schedule."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=setting.words + 2,
        hidden_size=setting.width,
        num_hidden_layers=setting.layers,
        num_attention_heads=setting.heads,
        intermediate_size=4 * setting.width,
        max_position_embeddings=length,
    )
    model = BertForSequenceClassification(config).to(getattr(torch, dtype)).eval()
    ids = torch.randint(CLS + 1, setting.words, (rows, length))
    real = torch.arange(length) < torch.randint(length // 2, length + 1, (rows, 1))
    real[0], ids[:, 0] = True, CLS
    ids[~real] = 0
    named = {"input_ids": ids, "attention_mask": real.long()}
    shape = Shape(
        *(length, setting.layers, setting.heads),
        read=1,
        hidden_size=setting.width,
        intermediate_size=4 * setting.width,
    )
    several = schedules(setting, length)
    sides: dict[str, Side] = {"dense": partial(model, **named)}
    for name, mask in several.items():
        sides[name] = partial(attach(deepcopy(model), mask, drop_tokens=True), **named)
    with torch.inference_mode():
        times = interleaved(sides, setting.rounds, setting.seconds, torch.device("cpu"))
    return [
        {"rows": rows, "length": length, "dtype": dtype, "schedule": name}
        | {"by_tokens": round(by_tokens(mask, shape, ids, real), 3)}
        | {"faster": faster(times, "dense", name)}
        for name, mask in several.items()
    ]


def table(found: dict[str, Any]) -> str:
    """Times as fast as dense, and what the work would give, as Markdown."""
    names = list(dict.fromkeys(row["schedule"] for row in found["rows"]))
    lines = [f"| rows x tokens | type | {' | '.join(names)} |", "|---|---|" + "---|" * len(names)]
    batches: dict[str, list[str]] = {}
    for row in found["rows"]:
        batch = f"{row['rows']} x {row['length']} | {row['dtype']}"
        cell = f"{row['faster']['median']:.2f} ({row['by_tokens']:.2f})"
        batches.setdefault(batch, []).append(cell)
    lines += [f"| {batch} | {' | '.join(cells)} |" for batch, cells in batches.items()]
    return "\n".join(lines)


def every_batch(setting: Setting) -> list[dict[str, Any]]:
    """The rows of all batches."""
    sizes = [(*batch, dtype) for batch in setting.batches for dtype in setting.dtypes]
    return [row for size in sizes for row in measured(setting, *size)]


if __name__ == "__main__":
    small = Setting(((2, 16),), ("float32",), layers=2, width=32, heads=2, words=50, rounds=2)
    write_rows(__doc__, "dead_tokens", Setting(), small, every_batch)
