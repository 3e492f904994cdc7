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

from masksearch import Units
from masksearch.contracts import Evaluator
from masksearch.gates.units import Allocation
from masksearch.masks.lower import lower
from masksearch_decoders import CausalEvaluator
from masksearch_decoders.decoders import divergence
from masksearch_decoders.next_tokens import TokenScores, token_values


def fits(judge: Evaluator, units: Units) -> TypeGuard[CausalEvaluator]:
    """Whether `tree_values` judges as this evaluator does: a decoder, judged as it is in float32,
    whose layers have a Llama's parts and no others that compute."""
    if not isinstance(judge, CausalEvaluator) or type(judge) is not CausalEvaluator:
        return False
    if judge.adapts != "none" or judge.tasks or judge.precision != "float32":
        return False
    model = judge.dense_decoder(0).model
    config, layers = model.config, getattr(model.model.base_model, "layers", [])
    plain = config.model_type in ("llama", "qwen3") and model.plain
    return plain and len(layers) == units.shape.layers and next(model.parameters()).is_cpu


@torch.no_grad()
def tree_values(
    judge: CausalEvaluator, units: Units, choices: Sequence[Allocation], seed: int = 0
) -> Iterator[tuple[Allocation, dict[str, float]]]:
    """The reports of `judge` for each choice, to rounding (1e-5 nats), in lexicographic order.

    Args:
        judge: One that `fits`.
        units: Layers or heads of its decoder, and their masks.
        choices: The level of each unit.
        seed: Of its dense model.
    """
    tree = Tree(judge, units, seed)
    yield from tree.visit(0, tree.hidden, sorted(set(choices)))


class Tree:
    """Choices as a tree whose levels are layers: what equal beginnings share is computed once.

    Args:
        judge: As of `tree_values`.
        units: As of `tree_values`.
        seed: As of `tree_values`.
    """

    def __init__(self, judge: CausalEvaluator, units: Units, seed: int) -> None:
        self.judge, self.units = judge, units
        self.model, self.rows = judge.dense_decoder(seed).model, judge.rows
        body: Any = self.model.model.base_model
        self.body = body
        self.plane = replace(units.shape, layers=1)
        tokens = self.rows.tokens
        self.hidden = body.embed_tokens(tokens)
        self.angles = body.rotary_emb(self.hidden, torch.arange(tokens.shape[1])[None])
        self.scored = self.rows.labels[:, 1:] != -100
        self.target = None
        if judge.kl:
            dense = self.model.features(tokens)[:, :-1][self.scored]
            self.target = self.model.logits(dense).float()

    def attended(self, layer: int, hidden: Tensor, levels: Sequence[int]) -> list[Tensor]:
        """The heads' outputs under each of these levels, before they are mixed."""
        read: list[Tensor] = []
        block: Any = self.body.layers[layer]
        hook = block.self_attn.o_proj.register_forward_pre_hook(
            lambda _, inputs: read.append(inputs[0])
        )
        try:
            for level in levels:
                kept = lower(self.units.levels[level].of_layer(layer), self.plane)
                block.self_attn(
                    hidden_states=block.input_layernorm(hidden),
                    position_embeddings=self.angles,
                    attention_mask=kept,
                )
        finally:
            hook.remove()
        return read

    def visit(
        self, layer: int, hidden: Tensor, below: Sequence[Allocation]
    ) -> Iterator[tuple[Allocation, dict[str, float]]]:
        """All choices, equal below this layer, from its input."""
        block: Any = self.body.layers[layer]
        last, count = layer + 1 == self.units.shape.layers, self.units.units_per_layer
        here = slice(layer * count, (layer + 1) * count)
        used = sorted({level for choice in below for level in choice[here]})
        read = self.attended(layer, hidden, used)
        if last:  # what is not scored is not needed any more
            hidden, *read = (each[:, :-1][self.scored] for each in (hidden, *read))
        weight = block.self_attn.o_proj.weight
        width = weight.shape[1] // count
        parts = [
            {
                level: F.linear(each[..., at : at + width], weight[:, at : at + width])
                for level, each in zip(used, read, strict=True)
            }
            for at in range(0, weight.shape[1], width)
        ]
        for levels, above in groupby(below, key=lambda choice: choice[here]):
            mixed = hidden + sum(part[level] for part, level in zip(parts, levels, strict=True))
            mixed = mixed + block.mlp(block.post_attention_layernorm(mixed))
            if not last:
                yield from self.visit(layer + 1, mixed, list(above))
                continue
            scores = self.scores(self.model.logits(self.body.norm(mixed)).float())
            [choice] = above
            yield choice, token_values(scores, self.rows, self.judge.edges)

    def scores(self, logits: Tensor) -> TokenScores:
        """Of every token; 0 where it is not scored."""
        labels = self.rows.tokens[:, 1:][self.scored]
        nll = self.spread(F.cross_entropy(logits, labels, reduction="none"))
        right = None if self.rows.answers is None else self.spread(logits.argmax(-1) == labels)
        kl = None if self.target is None else self.spread(divergence(logits, self.target))
        return TokenScores(nll, right, kl)

    def spread(self, values: Tensor) -> Tensor:
        """Values of the scored tokens, in their places."""
        whole = torch.zeros(self.rows.tokens.shape, dtype=values.dtype)
        whole[:, 1:][self.scored] = values
        return whole
