"""Which gates a trained model would miss: measured by closing them one at a time.

effects = perturbation_scores(model, gates, held_out)
mask = masks.table(at_sparsity(effects.scores, 0.9))

A gate's probability says what the optimiser made of it, not what the model loses without it;
the two orders can differ (Wang et al., "Rethinking Architecture Selection in Differentiable
NAS", ICLR 2021, Sections 3 and 4).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from masksearch.contracts import Batch
from masksearch.errors import AttachError
from masksearch.gates.gates import Gates
from masksearch.training.loop import finite_loss, keeping_modes

CERTAIN = 1e4  # a logit whose sigmoid is exactly 0 or 1


@dataclass(frozen=True, eq=False)
class Perturbation:
    """What the gates of a model are worth to it.

    Args:
        scores: float64 `[layers, heads, n, n]`, an ordering of the edges for `at_sparsity` and
            `top_keys`, see `perturbation_scores`; on the CPU, like the others.
        effects: float64 `[layers, heads, gates]`, how much higher the mean loss is with that gate
            closed than with it open; NaN where it was not measured.
        measured: bool `[layers, heads, gates]`.
        loss: Mean loss with all gates rounded.
    """

    scores: Tensor
    effects: Tensor
    measured: Tensor
    loss: float


def perturbation_scores(
    model: nn.Module,
    gates: Gates,
    batches: Iterable[Batch],
    *,
    candidates: Tensor | int | None = None,
    rounds: int = 1,
) -> Perturbation:
    """Measures how much the mean loss rises with each gate closed, all others being rounded.

    Forward passes only, without dropout and sampling noise: one for every candidate and batch.
    The unit is the gate: a Toeplitz gate is closed for all of its edges. A row whose gates are
    all closed keeps its own key, as it does in training. Model and gates are left as they were.

    Scores: a measured gate ranks above every other, the more so the larger its effect; the
    others follow in the order of their probability. In numbers, t + r, where t is the last round
    in which the gate was measured (0 = never) and r in [0, 1) the share of the gates of that t
    that have a smaller effect (for t = 0: a lower probability). An edge with several gates
    (`"toeplitz+global"`) has the highest of their scores.

    Args:
        model: A model whose `model(**batch).loss` is its loss; with the gates attached, or
            without anything attached, and then they are put on and taken off again.
        gates: Trained gates.
        batches: Held-out batches, each of the same weight; a finite number.
        candidates: The gates to measure, as bool `[layers, heads, gates]`, or as the number of
            them that are nearest to being undecided (probability 1/2). By default the open ones,
            and as many of the likeliest closed ones.
        rounds: With several, that share of the candidates which the model misses least is closed
            after every round, and the rest is measured again in its absence (progressive
            selection, same reference, Section 4). Costs (rounds + 1) / 2 times as much.

    Raises:
        ValueError: If there are no batches, or `candidates` or `rounds` are out of range.
        AttachError: If something else is attached to the model.
        NonFiniteLossError: If a loss is NaN or infinite.

    Reference: Wang et al., "Rethinking Architecture Selection in Differentiable NAS", ICLR 2021.
    """
    if gates.units is not None:
        raise ValueError(
            "perturbation closes the gates of edges, and a switch has none; judge its masks by "
            "strategy='allocate' (score='restore' or 'ablate')"
        )
    logits = gates.logits.detach().float().cpu()
    chosen = choose_candidates(logits, candidates)
    if isinstance(rounds, bool) or not 1 <= rounds <= int(chosen.sum()):
        raise ValueError(
            f"rounds must lie in 1 .. candidates = {int(chosen.sum())}, got {rounds!r}"
        )
    fixed = list(batches)
    if not fixed:
        raise ValueError("effects are measured on at least one batch, got none")
    opened, left = logits > 0, chosen.clone()
    effects = torch.full(logits.shape, math.nan, dtype=torch.float64)
    turns = torch.zeros(logits.shape, dtype=torch.int64)
    with without_noise(model, gates):
        first = mean_loss(model, gates, opened, fixed)
        for turn in range(1, rounds + 1):
            loss = first if turn == 1 else mean_loss(model, gates, opened, fixed)
            for layer, head, gate in left.nonzero().tolist():
                flipped = opened.clone()
                flipped[layer, head, gate] ^= True
                rise = mean_loss(model, gates, flipped, fixed) - loss
                effects[layer, head, gate] = rise if opened[layer, head, gate] else -rise
            turns[left] = turn
            worst = effects.masked_fill(~left, math.inf).flatten().argsort(stable=True)
            dropped = worst[: round(int(chosen.sum()) / rounds)] if turn < rounds else worst[:0]
            opened.view(-1)[dropped] = left.view(-1)[dropped] = False
    scores = turns + ranks(turns, torch.where(chosen, effects, logits.double()))
    return Perturbation(edge_scores(gates, scores), effects, chosen, first)


def choose_candidates(logits: Tensor, candidates: Tensor | int | None) -> Tensor:
    """The gates to measure, bool `[layers, heads, gates]`."""
    if isinstance(candidates, Tensor):
        if candidates.dtype != torch.bool or candidates.shape != logits.shape:
            raise ValueError(
                f"candidates is bool {list(logits.shape)}, one for each gate, "
                f"got {candidates.dtype} {list(candidates.shape)}"
            )
        if not candidates.any():
            raise ValueError("candidates must name at least one gate, got none")
        return candidates.cpu()
    opened = logits > 0
    if candidates is None:  # all open ones, and as many of the likeliest closed ones
        chosen, order = opened.clone(), (-logits).masked_fill(opened, math.inf)
        count = min(max(int(opened.sum()), 1), int((~opened).sum()))
    elif isinstance(candidates, bool) or not 1 <= candidates <= logits.numel():
        raise ValueError(
            f"candidates must lie in 1 .. gates = {logits.numel()}, got {candidates!r}"
        )
    else:
        chosen, order, count = torch.zeros_like(opened), logits.abs(), candidates
    chosen.view(-1)[order.flatten().argsort(stable=True)[:count]] = True
    return chosen


@contextmanager
def without_noise(model: nn.Module, gates: Gates) -> Iterator[None]:
    """Attaches the gates and switches dropout and noise off; restores everything at the end.

    Raises:
        AttachError: If something else is attached to the model.
    """
    from masksearch.attention.attach import attach, attached, detach  # loads transformers

    inside = any(module is gates for module in model.modules())
    if not inside and attached(model):
        raise AttachError(
            f"another mask or other gates are attached to this {type(model).__name__}; "
            "masksearch.detach(model) takes them off"
        )
    logits, enabled, drawn = gates.logits.detach().clone(), gates.enabled, gates.drawn
    with keeping_modes(model, gates):
        try:
            if not inside:
                gates.to(next(model.parameters()).device)
                attach(model, gates)
            model.eval()
            gates.enabled = True
            yield
        finally:
            if not inside:
                detach(model, missing_ok=True)
                gates.to(logits.device)
            with torch.no_grad():
                gates.logits.copy_(logits)
            gates.enabled, gates.drawn = enabled, drawn


@torch.no_grad()
def mean_loss(model: nn.Module, gates: Gates, opened: Tensor, batches: list[Batch]) -> float:
    """Mean loss over the batches with exactly those gates open."""
    gates.logits.copy_(torch.where(opened, CERTAIN, -CERTAIN))
    losses = [finite_loss(model, batch, number).item() for number, batch in enumerate(batches)]
    return sum(losses) / len(losses)


def ranks(turns: Tensor, values: Tensor) -> Tensor:
    """Each value's rank among those of its turn: the share of lower ones, float64 in [0, 1)."""
    found = torch.zeros_like(values)
    for turn in range(int(turns.max()) + 1):
        own = values[turns == turn]
        lower = torch.searchsorted(own.sort().values, own)
        found[turns == turn] = lower.double() / max(1, len(own))
    return found


def edge_scores(gates: Gates, values: Tensor) -> Tensor:
    """The highest value of each edge's gates, `[layers, heads, n, n]`."""
    edges, *lines = gates.spread(values, fill=float(values.min()))
    for line in lines:
        edges = edges.maximum(line)
    return edges
