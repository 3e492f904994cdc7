from typing import Any

import pytest
import torch
from tiny_encoders import seeded, sizes

from masksearch.contracts import Batch

LENGTH, LAYERS, HEADS, VOCABULARY = 7, 2, 3, 13


def bert(seed: int = 0, implementation: str = "sdpa", spread: float = 0.5) -> Any:
    """A tiny random BERT with a masked-LM head and attention that is far from flat."""
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        **sizes(VOCABULARY, 12, LAYERS, HEADS, 16, LENGTH, initializer_range=spread),
        attn_implementation=implementation,
    )
    return seeded(lambda: BertForMaskedLM(config), seed)


def biased(seed: int = 0) -> Any:
    """A tiny random T5 encoder, which adds a bias to its scores, with a head for each token."""
    from transformers import T5Config, T5ForTokenClassification

    size = {"d_model": 12, "d_kv": 4, "d_ff": 16, "num_layers": LAYERS, "num_heads": HEADS}
    config = T5Config(vocab_size=VOCABULARY, num_labels=VOCABULARY, **size)
    return seeded(lambda: T5ForTokenClassification(config), seed)


def random_batches(count: int, size: int = 3, padded: bool = True) -> list[Batch]:
    """Random tokens; in padded ones the second sequence has 2 positions less, the third 3."""
    source = torch.Generator().manual_seed(5)
    found = []
    for _ in range(count):
        tokens = torch.randint(3, VOCABULARY, (size, LENGTH), generator=source)
        real = torch.ones(size, LENGTH, dtype=torch.int64)
        if padded:
            real[1, -2:] = 0
            real[2, -3:] = 0
        labels = torch.where(real.bool(), tokens, -100)
        found.append({"input_ids": tokens, "attention_mask": real, "labels": labels})
    return found


@pytest.fixture
def model() -> Any:
    return bert()
