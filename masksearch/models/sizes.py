"""Named proxy encoders: small BERTs from scratch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from masksearch.errors import unknown_name

if TYPE_CHECKING:
    from transformers import BertModel


@dataclass(frozen=True)
class Size:
    """Layers, hidden width and heads of an encoder; the feed-forward part is 4 x width."""

    layers: int
    width: int
    heads: int


SIZES = {
    "nano": Size(layers=1, width=64, heads=2),  # the planted corpus
    "tiny": Size(layers=2, width=128, heads=4),
    "mini": Size(layers=4, width=256, heads=4),
    "small": Size(layers=4, width=512, heads=8),
    "medium": Size(layers=8, width=512, heads=8),
    "base": Size(layers=12, width=768, heads=12),  # SparseBERT's model
}


def size_named(name: str) -> Size:
    """The size of that name; an unknown one raises UnknownNameError with the nearest."""
    if name not in SIZES:
        raise unknown_name("model size", name, SIZES)
    return SIZES[name]


def initial_spread(width: int) -> float:
    """Standard deviation of the initial weights at a width: BERT's 0.02 at 768, as 1/sqrt."""
    return 0.02 * math.sqrt(768 / width)


def encoder(
    size: str | Size,
    vocabulary: int,
    length: int,
    *,
    seed: int,
    dropout: float = 0.0,
    initializer_range: float | None = None,
) -> BertModel:
    """A Hugging Face `BertModel` with random weights drawn from `seed` alone.

    Args:
        size: A name of `SIZES`, or a `Size`.
        vocabulary: Number of token ids.
        length: Longest sequence, in positions.
        seed: Seed of the weights; the global generator is left as it was.
        dropout: Probability, for hidden states and attention weights alike.
        initializer_range: Standard deviation of the initial weights; None = BERT's 0.02 at a
            width of 768, scaled by 1 / sqrt(width): narrow models learn sooner from it.
    """
    from transformers import BertConfig, BertModel

    size = size_named(size) if isinstance(size, str) else size
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        intermediate_size=4 * size.width,
        max_position_embeddings=length,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        initializer_range=initial_spread(size.width)
        if initializer_range is None
        else initializer_range,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return BertModel(config, add_pooling_layer=False)
