"""The scores of many choices of units on one decoder, without running anything twice.

Choices that agree in the lowest layers share what these compute; and within a layer a head's
output does not depend on the masks of the others, so all choices of a layer need each level's
attention once. 4,096 choices of 12 heads take a minute of one core; one by one they take five.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor

from masksearch.contracts import Evaluator
from masksearch.evaluators.causal import CausalEvaluator
from masksearch.evaluators.next_tokens import TokenScores, token_values
from masksearch.gates.units import Allocation, Units
from masksearch.masks.lower import lower
from masksearch.models.decoders import divergence


def fits(judge: Evaluator, units: Units) -> TypeGuard[CausalEvaluator]:
    """Whether `tree_values` judges as this evaluator does: a decoder, judged as it is in float32,
    whose layers have a Llama's parts and no others that compute."""
    if not isinstance(judge, CausalEvaluator) or type(judge) is not CausalEvaluator:
        return False
    if judge.adapts != "none" or judge.passkeys or judge.precision != "float32":
        return False
    model = judge.shared(0).model
    config, layers = model.config, getattr(model.model.base_model, "layers", [])
    known = config.model_type in ("llama", "qwen3") and model.plain
    return known and len(layers) == units.shape.layers and next(model.parameters()).is_cpu


@torch.no_grad()
def tree_values(
    judge: CausalEvaluator, units: Units, choices: Sequence[Allocation], seed: int = 0
) -> Iterator[tuple[Allocation, dict[str, float]]]:
    """What `judge` reports under each choice, to rounding (1e-5 nats), in lexicographic order.

    Args:
        judge: One that `fits`.
        units: Layers or heads of its decoder, and their masks.
        choices: The level of each unit.
        seed: Of its dense model.
    """
    model, rows = judge.shared(seed).model, judge.rows
    body: Any = model.model.base_model
    plane = replace(units.shape, layers=1)
    hidden = body.embed_tokens(rows.tokens)
    angles = body.rotary_emb(hidden, torch.arange(rows.tokens.shape[1])[None])
    scored = rows.labels[:, 1:] != -100
    wanted = rows.tokens[:, 1:][scored]
    target = None
    if judge.kl:
        target = model.logits(model.features(rows.tokens)[:, :-1][scored]).float()

    def attended(layer: int, hidden: Tensor, used: Sequence[int]) -> list[Tensor]:
        """What the heads read under each level that is used, before they are mixed."""
        found: list[Tensor] = []
        own: Any = body.layers[layer]
        hook = own.self_attn.o_proj.register_forward_pre_hook(
            lambda _, given: found.append(given[0])
        )
        try:
            for level in used:
                kept = lower(units.levels[level].of_layer(layer), plane)
                own.self_attn(
                    hidden_states=own.input_layernorm(hidden),
                    position_embeddings=angles,
                    attention_mask=kept,
                )
        finally:
            hook.remove()
        return found

    def visit(
        layer: int, hidden: Tensor, below: Sequence[Allocation]
    ) -> Iterator[tuple[Allocation, dict[str, float]]]:
        """All choices, equal below this layer, from its input."""
        own: Any = body.layers[layer]
        last, count = layer + 1 == units.shape.layers, units.groups
        here = slice(layer * count, (layer + 1) * count)
        used = sorted({level for choice in below for level in choice[here]})
        read = attended(layer, hidden, used)
        if last:  # what is not scored is not needed any more
            hidden, *read = (each[:, :-1][scored] for each in (hidden, *read))
        weight = own.self_attn.o_proj.weight
        width = weight.shape[1] // count
        parts = [
            {
                level: F.linear(each[..., at : at + width], weight[:, at : at + width])
                for level, each in zip(used, read, strict=True)
            }
            for at in range(0, weight.shape[1], width)
        ]
        for levels, above in groupby(below, key=lambda choice: choice[here]):
            found = hidden + sum(part[level] for part, level in zip(parts, levels, strict=True))
            found = found + own.mlp(own.post_attention_layernorm(found))
            if not last:
                yield from visit(layer + 1, found, list(above))
                continue
            logits = model.logits(body.norm(found)).float()
            scores = scores_of(logits)
            [choice] = above
            yield choice, token_values(scores, rows, judge.edges)

    def scores_of(logits: Tensor) -> TokenScores:
        """Of every token; 0 where it is not scored."""

        def spread(values: Tensor) -> Tensor:
            whole = torch.zeros(rows.tokens.shape, dtype=values.dtype)
            whole[:, 1:][scored] = values
            return whole

        nll = spread(F.cross_entropy(logits, wanted, reduction="none"))
        right = None if rows.answers is None else spread(logits.argmax(-1) == wanted)
        return TokenScores(
            nll, right, None if target is None else spread(divergence(logits, target))
        )

    yield from visit(0, hidden, sorted(set(choices)))
