"""The loss of every choice of heads with full attention, and an evaluator that looks it up.

losses = every_loss(judge, seed=0, levels=(local, full))    # float32 [2 ** heads of all layers]
losses[0b100000000001]                                      # first and last head see everything

Choices share what their lower layers compute, so a layer is run once for each choice below it; and
within a layer a head's output does not depend on which other heads see everything, so all choices
of a layer need the attention of two.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

import masksearch as ms
from masksearch.contracts import Differentiable, Evaluator, Objective, Report
from masksearch.masks.core import Mask
from masksearch.masks.lower import lower
from masksearch_decoders import CausalEvaluator


@torch.no_grad()
def every_loss(judge: CausalEvaluator, seed: int, levels: Sequence[Mask]) -> NDArray:
    """The loss under every choice, in nats a scored token of the judged sequences.

    Args:
        judge: With `adapt="none"`; its decoder is a Llama or a Qwen3.
        seed: Of its dense model.
        levels: The mask of a head that is not chosen, and of one that is.

    Returns:
        float32 `[2 ** (layers * heads)]`: place `0b100..` is the choice of the first head alone.
    """
    model, rows, shape = judge.dense(seed), judge.rows, judge.shape
    body = model.model.base_model
    width = body.layers[0].self_attn.head_dim
    scored = rows.labels[:, 1:] != -100
    wanted = rows.labels[:, 1:][scored]
    kept = [lower(mask, ms.Shape(shape.length, 1, 1, causal=True)) for mask in levels]
    hidden = body.embed_tokens(rows.tokens)
    angles = body.rotary_emb(hidden, torch.arange(shape.length)[None])
    losses: list[float] = []

    def visit(layer: nn.Module, above: Sequence[nn.Module], hidden: Tensor) -> None:
        """All choices of this layer and those above it."""
        both = [attended(layer, hidden, angles, each) for each in kept]
        if not above:  # what is not scored is not needed any more
            hidden, *both = (each[:, :-1][scored] for each in (hidden, *both))
        weight = layer.self_attn.o_proj.weight
        parts = [
            [F.linear(each[..., at : at + width], weight[:, at : at + width]) for each in both]
            for at in range(0, weight.shape[1], width)
        ]
        for choice in itertools.product((0, 1), repeat=len(parts)):
            found = hidden + sum(part[level] for part, level in zip(parts, choice, strict=True))
            found = found + layer.mlp(layer.post_attention_layernorm(found))
            if above:
                visit(above[0], above[1:], found)
            else:
                logits = model.logits(body.norm(found))
                losses.append(F.cross_entropy(logits.float(), wanted).item())

    visit(body.layers[0], list(body.layers[1:]), hidden)
    return np.array(losses, np.float32)


def attended(layer: nn.Module, hidden: Tensor, angles: tuple[Tensor, ...], kept: Tensor) -> Tensor:
    """What a layer's heads read, before they are mixed: `[rows, n, heads * width]`."""
    found: list[Tensor] = []
    attention = layer.self_attn
    hook = attention.o_proj.register_forward_pre_hook(lambda _, given: found.append(given[0]))
    normed = layer.input_layernorm(hidden)
    attention(hidden_states=normed, position_embeddings=angles, attention_mask=kept)
    hook.remove()
    return found[0]


class Tabulated(Evaluator):
    """An evaluator that looks up what a mask loses, and offers the model to whoever trains on it.

    Args:
        judge: Whose losses they are.
        seed: Of its dense model; a search's own seed changes nothing but the search.
        units: The heads and their two masks.
        losses: Of every choice; see `every_loss`.
    """

    weights_frozen = True

    def __init__(
        self, judge: CausalEvaluator, seed: int, units: ms.Units, losses: NDArray
    ) -> None:
        self.judge, self.seed, self.losses = judge, seed, losses
        self.kept = units.kept
        self.shape = judge.shape
        self.protocol = f"{judge.protocol}-table-{seed}"

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """Those of `judge`."""
        return self.judge.objectives

    def number_of(self, mask: Mask) -> int:
        """The place of a mask in the table.

        Raises:
            ValueError: If some head has neither of the two masks.
        """
        local, full = self.kept
        found = lower(mask, self.shape)
        raised = (found & ~local).flatten(2).any(2)
        if not torch.equal(found, torch.where(raised[..., None, None], full, local)):
            raise ValueError(f"some head of {mask} has neither the local nor the full mask")
        return int("".join(str(int(each)) for each in raised.flatten()), 2)

    def __call__(self, mask: Mask, *, seed: int, workdir: Path) -> Iterator[Report]:
        """Yields the loss of the table."""
        yield Report(0, {"nll": float(self.losses[self.number_of(mask)])})

    def differentiable(self, seed: int) -> Differentiable:
        """The checkpoint, and its text."""
        return self.judge.differentiable(self.seed)
