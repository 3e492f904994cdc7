"""Many small Transformers trained side by side: every tensor has a leading axis of models.

Each model has switches of its own: may a position attend to itself, does the attention have a
residual path, do its queries see tokens. Nothing passes from one model to another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from masksearch.contracts import generator

WEIGHTS = 51  # stream of random numbers


@dataclass(frozen=True)
class Arm:
    """What is switched on in a model."""

    name: str
    diagonal: bool  # a position may attend to itself
    residual: bool  # h + attention(h) instead of attention(h)
    token_queries: bool = True  # False: queries are made of the position alone


@dataclass(frozen=True)
class Size:
    """A Transformer from tokens `[sequences, length]` to logits of the same vocabulary."""

    length: int
    vocabulary: int
    depth: int
    width: int = 32
    heads: int = 4
    inner: int = 128  # width of the feed-forward part


def influences(arm: Arm, length: int, depth: int) -> Tensor:
    """Whose token can change whose output: bool `[outputs, inputs]`.

    A layer passes a position's own token on by the residual path, by the diagonal, or by its
    query, which chooses among the other keys; with two positions and no diagonal there is one
    key, its softmax is 1 whatever the query, and the third way is closed.
    """
    own = arm.residual or arm.diagonal or (arm.token_queries and length > 2)
    others = ~torch.eye(length, dtype=torch.bool)
    step = (others | torch.eye(length, dtype=torch.bool) if own else others).long()
    return torch.linalg.matrix_power(step.double(), depth) > 0


def weights(size: Size, seeds: Sequence[int]) -> dict[str, Tensor]:
    """Initial weights `[models, ...]`; models of one seed start from the same ones."""
    w = size.width
    shapes = {"tokens": (size.vocabulary, w), "positions": (size.length, w)}
    for layer in range(size.depth):
        for name in ("query", "key", "value", "output"):
            shapes[f"{layer}.{name}"] = (w, w)
        shapes |= {f"{layer}.up": (w, size.inner), f"{layer}.down": (size.inner, w)}
    shapes["head"] = (w, size.vocabulary)
    drawn: dict[int, dict[str, Tensor]] = {}
    for seed in dict.fromkeys(seeds):
        source = generator(seed, WEIGHTS, size.length, size.depth)
        drawn[seed] = {}
        for name, shape in shapes.items():
            spread = 1.0 if name in ("tokens", "positions") else 1 / math.sqrt(shape[0])
            drawn[seed][name] = torch.randn(shape, generator=source) * spread
            if name == "head" or name.endswith((".up", ".down")):
                drawn[seed][f"{name}.bias"] = torch.zeros(1, shape[1])
    names = drawn[seeds[0]]
    return {name: torch.stack([drawn[seed][name] for seed in seeds]) for name in names}


def logits(parameters: dict[str, Tensor], size: Size, arms: Sequence[Arm], x: Tensor) -> Tensor:
    """Every model's logits `[models, sequences, length, vocabulary]` of the same tokens.

    Args:
        parameters: As from `weights`.
        size: Their size.
        arms: One for each model.
        x: Tokens `[sequences, length]`.
    """
    models, (sequences, n) = len(arms), x.shape
    shut = torch.zeros(models, 1, 1, n, n)
    without = torch.tensor([not arm.diagonal for arm in arms])
    shut[without] = torch.zeros(n, n).fill_diagonal_(-math.inf)
    residual = torch.tensor([float(arm.residual) for arm in arms]).view(-1, 1, 1)
    seeing = torch.tensor([arm.token_queries for arm in arms]).view(-1, 1, 1)

    def norm(h: Tensor) -> Tensor:
        return F.layer_norm(h, (size.width,))

    def split(h: Tensor) -> Tensor:
        return h.view(models, sequences, n, size.heads, -1).transpose(2, 3)

    positions = parameters["positions"].unsqueeze(1).expand(-1, sequences, -1, -1)
    state = parameters["tokens"][:, x] + positions
    h = state.reshape(models, sequences * n, size.width)
    placed = norm(positions).reshape_as(h)
    for layer in range(size.depth):
        inner = norm(h)
        asking = torch.where(seeing, inner, placed)
        query = split(asking @ parameters[f"{layer}.query"])
        key = split(inner @ parameters[f"{layer}.key"])
        value = split(inner @ parameters[f"{layer}.value"])
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1]) + shut
        mixed = (scores.softmax(-1) @ value).transpose(2, 3).reshape_as(h)
        h = residual * h + mixed @ parameters[f"{layer}.output"]
        up = norm(h) @ parameters[f"{layer}.up"] + parameters[f"{layer}.up.bias"]
        h = h + F.gelu(up) @ parameters[f"{layer}.down"] + parameters[f"{layer}.down.bias"]
    out = norm(h) @ parameters["head"] + parameters["head.bias"]
    return out.view(models, sequences, n, size.vocabulary)


@dataclass(frozen=True)
class Fit:
    """How well one model has come to fit its map."""

    tokens: float  # share of right tokens, over all sequences
    sequences: float  # share of sequences without an error
    steps: int | None  # first check with 99 % of the tokens right; None = never
    ended: int  # steps that were made


def fit(
    size: Size,
    arms: Sequence[Arm],
    seeds: Sequence[int],
    x: Tensor,
    y: Tensor,
    *,
    steps: int,
    batch: int,
    lr: float,
    every: int,
) -> list[Fit]:
    """Trains every model on its own map, until it makes no error or the steps are used up.

    Args:
        size: Of all models.
        arms: One for each model.
        seeds: Seed of the weights, one for each model.
        x: All sequences, `[sequences, length]`.
        y: What each model has to give for them, `[models, sequences, length]`.
        steps: Most optimiser steps (Adam, warm-up over 5 %, linear decay to a tenth).
        batch: Sequences of a step, the same for all models; all of them where there are fewer.
        lr: Peak learning rate.
        every: Steps between two checks.
    """
    parameters = weights(size, seeds)
    moments = [{name: torch.zeros_like(p) for name, p in parameters.items()} for _ in range(2)]
    running = torch.arange(len(arms))
    done: list[Fit | None] = [None] * len(arms)
    reached: list[int | None] = [None] * len(arms)
    order = generator(WEIGHTS, size.length)
    for step in range(1, steps + 1):
        chosen = slice(None)
        if batch < len(x):
            chosen = torch.randperm(len(x), generator=order)[:batch]
        live = [arms[i] for i in running]
        for p in parameters.values():
            p.requires_grad_(True)
        out = logits(parameters, size, live, x[chosen])
        wanted = y[running][:, chosen]
        loss = F.cross_entropy(out.flatten(0, 2), wanted.flatten()) * len(live)  # one mean each
        slopes = torch.autograd.grad(loss, list(parameters.values()))
        rate = lr * min(1, 20 * step / steps) * (1 - 0.9 * step / steps)
        with torch.no_grad():
            adam(parameters, slopes, moments, step, rate)
        if step % every and step < steps:
            continue
        with torch.no_grad():
            right = logits(parameters, size, live, x).argmax(-1) == y[running]
        keep = []
        for row, model in enumerate(running.tolist()):
            share = right[row].float().mean().item()
            if share >= 0.99 and reached[model] is None:
                reached[model] = step
            whole = right[row].all(-1).float().mean().item()
            done[model] = Fit(share, whole, reached[model], step)
            if whole < 1:
                keep.append(row)
        if not keep:
            break
        if len(keep) < len(running):
            running = running[keep]
            parameters = {name: p.detach()[keep] for name, p in parameters.items()}
            moments = [{name: m[keep] for name, m in moment.items()} for moment in moments]
    return [found for found in done if found is not None]


def adam(
    parameters: dict[str, Tensor],
    slopes: Sequence[Tensor],
    moments: Sequence[dict[str, Tensor]],
    step: int,
    rate: float,
) -> None:
    """One step of Adam (.9, .98), in place; elementwise, so that models stay apart."""
    for (name, p), slope in zip(parameters.items(), slopes, strict=True):
        first = moments[0][name].lerp_(slope, 0.1)
        second = moments[1][name].mul_(0.98).addcmul_(slope, slope, value=0.02)
        scale = (second / (1 - 0.98**step)).sqrt_().add_(1e-8)
        p.addcdiv_(first, scale, value=-rate / (1 - 0.9**step))
