"""Which words matter as keys, layer by layer, by first-order effects; and the words that a share
of the work pays for.

effects = word_effects(model, batches, by="margin")
kept = words_within(0.5, effects, shape)
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from masksearch.attention.probe import pretrained_models
from masksearch.contracts import Batch, Shape
from masksearch.errors import DataError
from masksearch.masks.live import share_left
from masksearch.masks.measure import ROUNDING
from masksearch.positions.probes import BiasedKeys, attached_probe, shape_of
from masksearch.training.loop import finite_loss, on_device

By = Literal["margin", "loss"]
FEW = 3  # a word that was seen less often shares its effect with all such words
PRIOR = 3  # tokens of mean effect that each word is given beside its own


def word_effects(model: nn.Module, batches: Sequence[Batch], *, by: By = "margin") -> Tensor:
    """The mean effect of each word as a key, from each layer on.

    A token's effect is the size of its row's slope by one bias on the scores of all queries for
    that key, in a layer and all later ones. A word's is the mean over its tokens, drawn to the
    layer's mean by `PRIOR` tokens of it; words with fewer than `FEW` tokens, unseen ones too, have
    one mean.

    Args:
        model: Its `model(**batch)` has logits `[rows, outputs]` and, with labels, a loss that is
            a mean over rows. It is in eval mode meanwhile, and no mask is on it.
        batches: With `input_ids`, and an `attention_mask` where rows are padded.
        by: What has the slope: the `"margin"` between the largest and the least logit (a single
            one itself), or the `"loss"`, which takes labels.

    Returns:
        float32 `[layers, vocabulary]`, at least 0.

    Raises:
        DataError: If the loss is asked for, and the model learns its own logits (`target`).
        AttachError, HeadCountError, NonFiniteLossError: As of `importance`.
    """
    if by == "loss" and any("target" in batch for batch in batches):
        raise DataError("without labels the loss is flat at the dense model: take by='margin'")
    longest = max(batches, key=lambda batch: batch["input_ids"].shape[-1])
    shape, made = shape_of(model, longest), list[Tensor]()
    vocabulary = pretrained_models(model)[0].config.get_text_config().vocab_size
    totals, seen = torch.zeros(shape.layers, vocabulary), torch.zeros(vocabulary)
    sizes = shape.length, shape.heads, shape.layers
    probe = BiasedKeys(*sizes, lambda _, bias, __: made.append(bias))
    with attached_probe(model, probe, longest), torch.enable_grad():
        model.eval()
        for number, batch in enumerate(batches):
            made.clear()
            ids = (batch := on_device(model, batch))["input_ids"]
            if by == "loss":
                slope = finite_loss(model, batch, number) * len(ids)
            else:
                logits = model(**batch).logits
                several = logits.shape[-1] > 1
                slope = (logits.amax(-1) - logits.amin(-1) if several else logits).sum()
            real = batch.get("attention_mask", torch.ones_like(ids)).bool()
            words = ids[real].cpu()
            seen.index_add_(0, words, torch.ones(len(words)))
            later = torch.stack(torch.autograd.grad(slope, made)[::-1]).cumsum(0).flip(0)
            totals.index_add_(1, words, later[:, :, 0, 0][:, real].abs().float().cpu())
    few, mean = seen < FEW, totals.sum(1, keepdim=True) / seen.sum()
    rare = (totals * few).sum(1, keepdim=True) + PRIOR * mean
    own = (totals + PRIOR * mean) / (seen + PRIOR)
    return torch.where(few, rare / ((seen * few).sum() + PRIOR), own)


# -- from effects to words ---------------------------------------------------------------------
def words_within(limit: float, effects: Tensor, shape: Shape) -> Tensor:
    """The words that are keys in each layer, as many as a share of the work pays for.

    A word is kept up to the first layer from which on its effect is below a threshold, one for
    all layers; those of the rows that the head reads are kept in any case.

    Args:
        limit: The most that `masks.work` may be; what is more than it in any case is not refused.
        effects: float `[layers, vocabulary]`.
        shape: Its `tokens` are rows of the data.

    Returns:
        bool `[layers, vocabulary]`, each layer's among those of the layer before.
    """
    assert shape.tokens is not None
    tokens, real = shape.tokens.clamp(min=0), shape.tokens >= 0
    worth = effects.cummin(0).values
    read = real & (torch.arange(shape.length) < (shape.read or shape.length))
    always, texts = torch.unique(tokens[read]), torch.ones(len(tokens))
    worths = torch.unique(worth[:, torch.unique(tokens[real])])
    steps = [-torch.inf, *worths.tolist(), torch.inf]

    def keep(least: float) -> Tensor:
        return (worth >= least).index_fill(1, always, True)

    def is_within(least: float) -> bool:
        live = [real & (words[tokens] | read) for words in keep(least)]
        work = share_left(torch.stack([*live, read], 1), real.sum(1), texts, shape)
        return work <= limit * (1 + ROUNDING)

    return keep(steps[bisect_left(steps, True, hi=len(steps) - 1, key=is_within)])
