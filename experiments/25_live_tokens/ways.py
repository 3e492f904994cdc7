"""Ways to do less work on a fine-tuned encoder, as it is: masks under which tokens die, layers
left out, inputs cut, and the tokens with most attention, chosen for each text anew."""

from __future__ import annotations

import copy
import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

import masksearch as ms
from masksearch import masks
from masksearch.masks.live import share_left
from masksearch.masks.measure import ROUNDING
from masksearch.masks.schedules import STEPS, THINNED
from masksearch.tasks.text.rows import TokenRows


@dataclass(frozen=True)
class Way:
    """What is put on a dense model.

    Args:
        mask: Of the layers that are left; tokens that die are left out, so with `masks.full()` in
            the last layer all but [CLS].
        layers: The layers that are left, from 0; None = all.
        cut: The most tokens of an input; None = as many as searches have.
        side: Of a text that is cut, what stays: "head" or "tail".
    """

    mask: ms.Mask = masks.full()  # noqa: RUF009  (a mask never changes)
    layers: tuple[int, ...] | None = None
    cut: int | None = None
    side: str = "head"

    def on(self, head: Any) -> Any:
        """A copy of a fine-tuned model of transformers (`.whole`) with this way in force."""
        head = copy.deepcopy(head)
        if self.layers is not None:
            encoder = head.whole.base_model.encoder
            encoder.layer = nn.ModuleList([encoder.layer[at] for at in self.layers])
            head.whole.config.num_hidden_layers = len(self.layers)
        ms.attach(head.whole, self.mask, drop_tokens=True)
        return head.eval()

    def work(self, shape: ms.Shape) -> float:
        """The share that is left of a dense model's multiplications, as `masks.work` counts them,
        of the texts of a shape."""
        lengths: Counter[int] = Counter()
        for length, count in shape.histogram:
            lengths[min(length, self.cut or length)] += count
        layers = shape.layers if self.layers is None else len(self.layers)
        left = replace(shape, layers=layers, lengths=lengths)
        return masks.work(self.mask, left) * dense_work(left) / dense_work(shape)


def dense_work(shape: ms.Shape) -> float:
    """A dense model's multiplications over the texts of a shape, over twice the width."""
    assert shape.hidden_size is not None
    assert shape.intermediate_size is not None
    each = 2 * shape.hidden_size + shape.intermediate_size
    return shape.layers * sum(c * (n * each + n * n) for n, c in shape.histogram)


def limit_of(fewer: int, shape: ms.Shape) -> float:
    """The work of a model with so many layers fewer, of whose last one [CLS] alone asks."""
    return Way(layers=tuple(range(shape.layers - fewer))).work(shape)


def cut_within(limit: float, shape: ms.Shape, layers: tuple[int, ...] | None = None) -> int:
    """The most tokens of an input that a limit pays for."""
    lengths = [
        length
        for length in range(4, shape.length + 1)
        if Way(layers=layers, cut=length).work(shape) <= limit * (1 + ROUNDING)
    ]
    return lengths[-1]


def cut_rows(rows: TokenRows, most: int, side: str) -> TokenRows:
    """Rows of at most so many tokens: the longer of two texts gives its last ones first, or its
    first ones; [CLS] and [SEP] stay."""
    made = []
    for at in range(len(rows)):
        ids, first = [int(each) for each in rows.ids[at]], int(rows.firsts[at])
        texts = [ids[1 : first - 1], *([ids[first:-1]] if len(ids) > first else [])]
        while sum(map(len, texts)) + 1 + len(texts) > most:
            max(reversed(texts), key=len).pop(-1 if side == "head" else 0)
        cut, end = [ids[0]], ids[-1]
        for text in texts:
            cut += [*text, end]
        made.append((cut, len(texts[0]) + 2))
    return TokenRows.of(made, rows.labels, rows.layout)


# -- words by their effects --------------------------------------------------------------------
def words_by_shares(limit: float, effects: Tensor, shape: ms.Shape, how: str) -> Tensor:
    """The words that are keys in each layer, bool `[layers, vocabulary]`: those with the largest
    effects that hold a share of the tokens; the shares thin out as hand-designed schedules do,
    as little as the limit asks for.

    Args:
        limit: The most that `masks.work` may be.
        effects: float `[layers, vocabulary]`, see `positions.words.word_effects`.
        shape: With `tokens` of the data.
        how: A name of `masks.schedules.THINNED`.
    """
    assert shape.tokens is not None
    tokens, real = shape.tokens.clamp(min=0), shape.tokens >= 0
    counts = torch.bincount(tokens[real], minlength=effects.shape[1]).double()
    order = effects.cummin(0).values.argsort(dim=1, descending=True, stable=True)
    held = torch.empty_like(effects, dtype=torch.float64)
    held.scatter_(1, order, counts[order].cumsum(1) / counts.sum())
    read = real & (torch.arange(shape.length) < (shape.read or shape.length))
    always, texts = torch.unique(tokens[read]), torch.ones(len(tokens))

    def keep(left_out: int) -> Tensor:
        step = 1 - left_out / STEPS
        shares = [THINNED[how](step, layer, shape.layers) for layer in range(shape.layers)]
        kept = held <= torch.tensor(shares)[:, None] * (1 + ROUNDING)
        return kept.cummin(0).values.index_fill(1, always, True)

    def is_within(left_out: int) -> bool:
        live = [real & (words[tokens] | read) for words in keep(left_out)]
        work = share_left(torch.stack([*live, read], 1), real.sum(1), texts, shape)
        return work <= limit * (1 + ROUNDING)

    return keep(bisect_left(range(STEPS), True, key=is_within))


def mask_of_words(kept: Tensor) -> ms.Mask:
    """The mask whose keys are some words in each layer, bool `[layers, vocabulary]`."""
    return masks.per_layer([masks.full() if w.all() else masks.token_columns(w) for w in kept])


# -- tokens with most attention, text by text --------------------------------------------------
class MostAttended(nn.Module):
    """A BERT classifier that keeps in each layer the tokens with most attention in the one before:
    summed over heads and the tokens that are left, [CLS] always (PoWER-BERT, ICML 2020, section
    3.1). All are computed, and what has left is hidden; `spent` is what computing the rest takes.

    Args:
        model: BertForSequenceClassification.
        shares: Of each text's tokens that stay in each layer; in the first all do.
        shape: Of the model.
    """

    def __init__(self, model: Any, shares: Sequence[float], shape: ms.Shape) -> None:
        super().__init__()
        self.model, self.shares, self.shape = model, shares, shape
        self.spent = self.of_dense = 0.0

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **more: Tensor) -> Any:
        """Its logits, `[rows, outputs]`."""
        bert, real = self.model.bert, attention_mask.bool()
        states = bert.embeddings(input_ids=input_ids, token_type_ids=more["token_type_ids"])
        left = real
        for at, layer in enumerate(bert.encoder.layer):
            inner = layer.attention.self
            query, key, value = (
                part(states).unflatten(-1, (self.shape.heads, -1)).transpose(1, 2)
                for part in (inner.query, inner.key, inner.value)
            )
            scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
            weights = scores.masked_fill(~left[:, None, None], -math.inf).softmax(-1)
            seen = (weights @ value).transpose(1, 2).flatten(2)
            inside = layer.attention.output(seen, states)
            states = layer.output(layer.intermediate(inside), inside)
            share = self.shares[at + 1] if at + 1 < len(self.shares) else 0.0
            got = (weights * left[:, None, :, None]).sum((1, 2)).masked_fill(~left, -1.0)
            got[:, 0] = math.inf
            most = tokens_kept(share, real.sum(1))
            after = left & (got.argsort(dim=1, descending=True).argsort(1) < most[:, None])
            self.count(left, after)
            left = after
        self.of_dense += dense_work(replace(self.shape, lengths=Counter(real.sum(1).tolist())))
        pooled = bert.pooler(states)
        return SimpleNamespace(logits=self.model.classifier(pooled))

    def count(self, before: Tensor, after: Tensor) -> None:
        """Adds a layer: queries, keys and values of all that came in, for who stays is known from
        their weights alone; outputs and FFN of those that stay."""
        self.spent += float(spent_by(before.sum(1), after.sum(1), self.shape).sum())


def spent_by(before: Tensor, after: Tensor, shape: ms.Shape) -> Tensor:
    """Multiplications of a layer of `MostAttended` for each text, over twice the width."""
    assert shape.hidden_size is not None
    assert shape.intermediate_size is not None
    hidden, inner = shape.hidden_size, shape.intermediate_size
    whole = before * 1.5 * hidden + after * (0.5 * hidden + inner)
    return whole + (before * before + after * before) / 2


def tokens_kept(share: float, lengths: Tensor) -> Tensor:
    """How many tokens of texts of some lengths a share of them is; at least one."""
    return (share * lengths.double() * (1 - ROUNDING)).ceil().long().clamp(min=1)


def attended_shares(limit: float, shape: ms.Shape, how: str) -> list[float]:
    """The shares of `MostAttended` that thin out so, as little as the limit asks for."""
    lengths, texts = torch.tensor(shape.histogram).unbind(1)

    def shares(left_out: int) -> list[float]:
        step = 1 - left_out / STEPS
        return [
            1.0,
            *(THINNED[how](step, layer, shape.layers) for layer in range(1, shape.layers)),
        ]

    def is_within(left_out: int) -> bool:
        left = [tokens_kept(share, lengths) for share in shares(left_out)]
        pairs = zip(left, [*left[1:], torch.ones_like(lengths)], strict=True)
        spent = sum(float((spent_by(*pair, shape) * texts).sum()) for pair in pairs)
        return spent <= limit * dense_work(shape)

    return shares(bisect_left(range(STEPS), True, key=is_within))
