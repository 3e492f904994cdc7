"""Named proxy encoders from scratch: BERT and its relatives, small to base.

encoder("tiny", vocabulary=4096, length=128, seed=0)
encoder("base", vocabulary=50_265, length=512, seed=0, architecture="roberta", pad=1)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from masksearch.errors import unknown_name

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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

ARCHITECTURES = {  # name -> first part of the class names in transformers
    "bert": "Bert",
    "roberta": "Roberta",
    "distilbert": "DistilBert",
    "electra": "Electra",
    "modernbert": "ModernBert",
}


def find_size(name: str) -> Size:
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
    architecture: str = "bert",
    pad: int = 0,
) -> PreTrainedModel:
    """A bare Hugging Face encoder with random weights drawn from `seed` alone.

    Where architectures differ, the published base model's choice scales with the width:
    ModernBERT's gated feed-forward part is 1.5 x width, ELECTRA's embeddings are as wide as its
    hidden states. ModernBERT's layers are all global here (the released ones alternate with
    local windows), so that a mask is the only limit on who attends to whom.

    Args:
        size: A name of `SIZES`, or a `Size`.
        vocabulary: Number of token ids.
        length: Longest sequence, in positions.
        seed: Seed of the weights; the global generator is left as it was.
        dropout: Probability, for hidden states and attention weights alike.
        initializer_range: Standard deviation of the initial weights; None = BERT's 0.02 at a
            width of 768, scaled by 1 / sqrt(width): narrow models learn sooner from it.
        architecture: A name of `ARCHITECTURES`.
        pad: Token id of the padding. RoBERTa numbers its positions from `pad` + 1 and gives
            that token none, so it must be the tokenizer's.

    Raises:
        UnknownNameError: If there is no such size or architecture.
        ValueError: If `pad` is not a token id.
    """
    import transformers

    size = find_size(size) if isinstance(size, str) else size
    if architecture not in ARCHITECTURES:
        raise unknown_name("architecture", architecture, ARCHITECTURES)
    if not 0 <= pad < vocabulary:
        raise ValueError(f"pad must be a token id in 0..{vocabulary - 1}, got {pad}")
    settings: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": size.width,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "intermediate_size": 4 * size.width,
        "max_position_embeddings": length,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
        "initializer_range": initial_spread(size.width)
        if initializer_range is None
        else initializer_range,
        "pad_token_id": pad,
    }
    bare = {"add_pooling_layer": False} if architecture in ("bert", "roberta") else {}
    if architecture == "roberta":  # one segment, as released; no sequence starts at position 0
        settings |= {"max_position_embeddings": length + pad + 1, "type_vocab_size": 1}
        settings |= {"bos_token_id": None, "eos_token_id": None}
    elif architecture == "electra":
        settings["embedding_size"] = size.width
    elif architecture == "distilbert":
        settings["hidden_dim"] = settings.pop("intermediate_size")
        settings["dropout"] = settings.pop("hidden_dropout_prob")
        settings["attention_dropout"] = settings.pop("attention_probs_dropout_prob")
    elif architecture == "modernbert":
        del settings["hidden_dropout_prob"], settings["attention_probs_dropout_prob"]
        settings |= {f"{part}_dropout": dropout for part in ("attention", "embedding", "mlp")}
        settings |= {"intermediate_size": 3 * size.width // 2}
        settings |= {"layer_types": ["full_attention"] * size.layers}
        settings |= {f"{name}_token_id": None for name in ("bos", "eos", "cls", "sep")}
    name = ARCHITECTURES[architecture]
    config = getattr(transformers, f"{name}Config")(**settings)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        made: PreTrainedModel = getattr(transformers, f"{name}Model")(config, **bare)
    return made
