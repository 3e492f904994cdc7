"""A tiny model and its batches."""

from collections.abc import Iterator

import torch

from masksearch.contracts import Batch
from masksearch.models.encoders import MaskedLanguageModel, encoder


def model(layers: int = 1, dropout: float = 0.0) -> MaskedLanguageModel:
    body = encoder(f"{layers}x16x2", 11, 8, seed=0, dropout=dropout)
    return MaskedLanguageModel(body, seed=0)


def batches(count: int = 10_000, seed: int = 0) -> Iterator[Batch]:
    source = torch.Generator().manual_seed(seed)
    for _ in range(count):
        tokens = torch.randint(0, 11, (4, 8), generator=source)
        yield {"input_ids": tokens, "labels": tokens}
