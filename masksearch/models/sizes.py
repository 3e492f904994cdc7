"""Named proxy encoders: small BERTs from scratch, and the two heads that a proxy trains."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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


@dataclass
class Output:
    """What both heads return. `logits` holds rows for the scored tokens or sequences only."""

    logits: Tensor
    loss: Tensor | None = None


class MaskedLanguageModel(nn.Module):
    """An encoder with BERT's prediction head, applied to the masked positions alone.

    Reference: BERT, arXiv 1810.04805, Section 3.1 (masked LM, tied output embedding).
    """

    def __init__(self, encoder: BertModel, *, seed: int) -> None:
        super().__init__()
        self.encoder = encoder
        config = encoder.config
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.transform = nn.Linear(config.hidden_size, config.hidden_size)
            nn.init.normal_(self.transform.weight, std=config.initializer_range)
            nn.init.zeros_(self.transform.bias)
        self.norm = nn.LayerNorm(config.hidden_size)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    @property
    def config(self) -> Any:
        """The encoder's configuration."""
        return self.encoder.config

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Output:
        """Scores the tokens whose label is not -100 (every token where `labels` is None).

        Args:
            input_ids: int64 `[batch, length]`.
            labels: int64 `[batch, length]`, -100 = not scored.
            attention_mask: 1 for tokens, 0 for padding, `[batch, length]`.
            token_type_ids: Segment ids, `[batch, length]`.

        Returns:
            logits `[scored tokens, vocabulary]` in reading order and their mean cross-entropy.
        """
        hidden = self.encoder(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        ).last_hidden_state.flatten(0, 1)
        if labels is not None:
            scored = (labels.flatten() != -100).nonzero().squeeze(1)
            hidden = hidden.index_select(0, scored)
        hidden = self.norm(F.gelu(self.transform(hidden)))
        table = self.encoder.embeddings.word_embeddings
        logits = F.linear(hidden, table.weight, self.bias)
        if labels is None:
            return Output(logits)
        targets = labels.flatten().index_select(0, scored)
        return Output(logits, F.cross_entropy(logits.float(), targets))


class SequenceClassifier(nn.Module):
    """An encoder with a two-layer head on the concatenation of [CLS] and the mean of the tokens.

    Args:
        encoder: The (pre-trained) encoder; shared, not copied.
        labels: Number of classes; 1 = regression with a squared loss.
        seed: Seed of the head's weights.
    """

    def __init__(self, encoder: BertModel, labels: int, *, seed: int) -> None:
        super().__init__()
        self.encoder = encoder
        width = encoder.config.hidden_size
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.dense = nn.Linear(2 * width, width)
            self.out = nn.Linear(width, labels)

    @property
    def config(self) -> Any:
        """The encoder's configuration."""
        return self.encoder.config

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Output:
        """Returns logits `[batch, labels]` and, given labels `[batch]`, the mean loss."""
        hidden = self.encoder(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        ).last_hidden_state
        if attention_mask is None:
            mean = hidden.mean(1)
        else:
            weight = attention_mask.to(hidden.dtype).unsqueeze(-1)
            mean = (hidden * weight).sum(1) / weight.sum(1)
        logits = self.out(torch.tanh(self.dense(torch.cat([hidden[:, 0], mean], -1))))
        if labels is None:
            return Output(logits)
        if logits.shape[-1] == 1:
            return Output(logits, F.mse_loss(logits.squeeze(-1).float(), labels.float()))
        return Output(logits, F.cross_entropy(logits.float(), labels))
