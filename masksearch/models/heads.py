"""The heads that a proxy trains on an encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import BertModel


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
