"""What the figures of trained gates say about the run that made them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import torch
from torch import Tensor

from masksearch.contracts import Report
from masksearch.gates.agreement import Agreement, agreement
from masksearch.gates.collapse import PATIENCE
from masksearch.gates.collapse import CollapseWatch as CollapseWatch

LARGE_GAP = 0.05  # nats, and share of the loss before it: a step of the loss chain above both


class Losses(TypedDict):
    """Mean held-out losses in nats; None = not measured."""

    relaxed: float | None  # gates replaced by their probabilities
    sampled: float | None  # gates drawn, mean over several draws
    rounded: float | None  # every gate closed below a probability of 1/2
    discretised: float | None  # the mask cut at the target density; the same weights
    retrained: float | None  # that mask, other weights, trained from scratch


class Gaps(TypedDict):
    """Steps of the loss chain in nats, above 0 where the loss rises; None = not measured."""

    sampling: float | None  # sampled - relaxed
    discretisation: float | None  # discretised - sampled
    retraining: float | None  # retrained - discretised


class Health(TypedDict):
    """Figures of one DAM run, as plain data; shares and probabilities lie in [0, 1]."""

    density: float  # mean probability of an edge at the end
    target: float  # density that was asked for
    by_head: list[list[float]]  # mean probability of an edge of each layer and head
    entropy: float  # mean binary entropy of the edges' gates, in bits: 0 = all decided
    undecided: float  # share of edges with a probability in (0.1, 0.9)
    diagonal: float  # mean probability of the diagonal; uniform gates have `density` there
    diagonal_mass: float  # share of the total probability that lies on the diagonal
    diagonal_uniform: float  # what uniform gates would have there: 1/n
    by_distance: list[float]  # mean probability of an edge at |i - j| = 0, 1, ..
    mass_by_distance: list[float]  # share of the total probability there
    by_offset: list[float]  # mean probability at j - i = 1 - n, .., n - 1 (key minus query)
    mass_by_offset: list[float]  # share of the total probability there
    losses: Losses
    gaps: Gaps
    agreement: Agreement | None  # between seeds; None = one seed
    pruned_away: bool  # next to nothing is left: density below a quarter of the target
    nothing_pruned: bool  # density above nine tenths of where the gates started
    target_missed: bool  # density above 1.25 times the target
    function_lost: bool  # loss far above that of the warm-up; that of the cut mask, if known, too
    problems: list[str]  # the flags above, in words
    notes: list[str]  # large steps of the loss chain, in words
    warnings: list[str]  # what a CollapseWatch says of the curve, with the steps


def entropy_bits(probabilities: Tensor) -> Tensor:
    """Mean binary entropy of probabilities, in bits."""
    p = probabilities.clamp(1e-7, 1 - 1e-7)
    return -(p * p.log2() + (1 - p) * (1 - p).log2()).mean()


def warmup_steps(config: Mapping[str, Any]) -> int:
    """Steps before the gates act, from the fields of a `DamConfig`; 0 where they do not say."""
    steps = int(config.get("steps", 0))
    return max(0, min(round(float(config.get("warmup", 0.0)) * steps), steps - 1))


def health(
    probabilities: Tensor,
    *,
    target: float,
    initial: float,
    curve: Sequence[Report] = (),
    warmup_steps: int = 0,
    retrained: float | None = None,
    others: Sequence[Tensor] = (),
    gates: Mapping[str, Any] | None = None,
) -> Health:
    """Judges trained gates.

    A step of the loss chain (relaxed, sampled, discretised, retrained) gets a sentence where the
    loss changes by more than 0.05 nats and by more than 5% of the loss before it.

    Args:
        probabilities: float `[layers, heads, n, n]`.
        target: Density that was asked for.
        initial: Density at which the gates started.
        curve: The run's reports; the last one may hold `relaxed`, `sampled`, `held_out` (gates
            rounded) and `discretised`.
        warmup_steps: Steps before the gates acted.
        retrained: Held-out loss, in the same units, of a model trained from scratch under the
            mask of the target density.
        others: Probabilities of the same gates trained with other seeds.
        gates: Arguments of the `Gates`, for the agreement that chance gives.

    Raises:
        ValueError: If `others` have another shape.
    """
    p = probabilities.detach().float().cpu()
    density = p.mean().item()
    length = p.shape[-1]
    position = torch.arange(length)
    offset = (position[None, :] - position[:, None]).flatten()
    by_distance, mass_by_distance = profile(p, offset.abs())
    by_offset, mass_by_offset = profile(p, offset + length - 1)
    undecided = ((p > 0.1) & (p < 0.9)).float().mean().item()
    losses, gaps = loss_chain(curve, retrained)
    pruned_away = density < target / 4
    nothing_pruned = density > 0.9 * initial and target < 0.9 * initial
    target_missed = density > 1.25 * target
    watch = CollapseWatch(target, initial, warmup_steps, curve[-1].step if curve else 0)
    warnings = [line for report in curve if (line := watch.look(report)) is not None]
    cut = losses["discretised"]
    function_lost = watch.above >= PATIENCE and (cut is None or watch.lost(cut))
    problems = []
    if pruned_away:
        problems.append(
            f"nearly everything was pruned (density {density:.4f}, target {target:.4f}): "
            "lower gate_lr, or use control='hinge'"
        )
    if nothing_pruned:
        problems.append(
            f"nothing was pruned (density {density:.4f}, at the start {initial:.4f}): "
            "train for more steps, or raise gate_lr or the control's strength"
        )
    elif target_missed:
        problems.append(
            f"the target was missed (density {density:.4f}, target {target:.4f}): "
            "train for more steps, or raise gate_lr or the control's strength"
        )
    if function_lost:
        problems.append(
            f"the loss ended at {watch.latest:.4g}, far above the {watch.level:.4g} before the "
            "gates: train for more steps, lower gate_lr, or ask for a higher density"
        )
    return Health(
        density=density,
        target=target,
        by_head=p.mean((-2, -1)).tolist(),
        entropy=entropy_bits(p).item(),
        undecided=undecided,
        diagonal=by_distance[0],
        diagonal_mass=mass_by_distance[0],
        diagonal_uniform=1 / length,
        by_distance=by_distance,
        mass_by_distance=mass_by_distance,
        by_offset=by_offset,
        mass_by_offset=mass_by_offset,
        losses=losses,
        gaps=gaps,
        agreement=agreement([p, *others], density=target, gates=gates) if others else None,
        pruned_away=pruned_away,
        nothing_pruned=nothing_pruned,
        target_missed=target_missed,
        function_lost=function_lost,
        problems=problems,
        notes=gap_notes(losses, gaps, undecided, cut_cause(density, target, length, undecided)),
        warnings=warnings,
    )


def profile(probabilities: Tensor, group: Tensor) -> tuple[list[float], list[float]]:
    """Mean probability, and share of the total, of every group of cells.

    Args:
        probabilities: float `[layers, heads, n, n]`.
        group: int64 `[n * n]`, the group of each cell, from 0 without a gap.
    """
    cells = probabilities.double().mean((0, 1)).flatten()
    counts = group.bincount()
    totals = torch.zeros(len(counts), dtype=cells.dtype).index_add(0, group, cells)
    return (totals / counts).tolist(), (totals / totals.sum().clamp_min(1e-300)).tolist()


def loss_chain(curve: Sequence[Report], retrained: float | None) -> tuple[Losses, Gaps]:
    """The losses of a curve's last report, and what each step of the chain adds."""
    last = curve[-1].values if curve else {}
    losses = Losses(
        relaxed=last.get("relaxed"),
        sampled=last.get("sampled"),
        rounded=last.get("held_out"),
        discretised=last.get("discretised"),
        retrained=retrained,
    )

    def between(before: float | None, after: float | None) -> float | None:
        return None if before is None or after is None else after - before

    gaps = Gaps(
        sampling=between(losses["relaxed"], losses["sampled"]),
        discretisation=between(losses["sampled"], losses["discretised"]),
        retraining=between(losses["discretised"], losses["retrained"]),
    )
    return losses, gaps


def cut_cause(density: float, target: float, length: int, undecided: float) -> str:
    """The likeliest reason why a mask cut at the target density is worse than the gates."""
    rows = 1 / (length * target)
    if density > 1.1 * target:
        return f"the gates have reached {density:.4g} only; train longer, or cut the mask there"
    if rows > 0.5:
        return (
            f"every row keeps a key, which takes {100 * min(1.0, rows):.0f}% of the edges at this "
            "density; ask for a higher one"
        )
    if undecided >= 0.01:
        return f"{100 * undecided:.0f}% of the edges are undecided; train longer"
    return "the order of the gates near the cut says little; train longer"


def gap_notes(losses: Losses, gaps: Gaps, undecided: float, cause: str) -> list[str]:
    """One sentence for every large step of the loss chain; `cause`: why the cut may cost."""
    noise = "unlikely edges are drawn now and then, and each of them disturbs"
    if undecided >= 0.01:
        noise = f"{100 * undecided:.0f}% of the edges are undecided"
    steps = (
        (
            losses["relaxed"],
            gaps["sampling"],
            f"from soft to sampled gates: {noise}; train longer, or set cooling below 1",
            "from soft to sampled gates: the weights know sampled gates only, so the relaxed "
            "loss says little here",
        ),
        (
            losses["sampled"],
            gaps["discretisation"],
            f"when the mask is cut at the target density: {cause}",
            "when the mask is cut at the target density: the noise of the samples had raised it",
        ),
        (
            losses["discretised"],
            gaps["retraining"],
            "when the mask is trained from scratch: it leans on the weights that it was found "
            "with, or had fewer steps to train",
            "when the mask is trained from scratch: the weights of the joint training lag behind "
            "the mask; judge masks by retraining only",
        ),
    )
    notes = []
    for before, gap, rise, fall in steps:
        if before is None or gap is None:
            continue
        if abs(gap) > max(LARGE_GAP, LARGE_GAP * abs(before)):
            move, why = ("rises", rise) if gap > 0 else ("falls", fall)
            notes.append(f"the loss {move} by {abs(gap):.3g} nats {why}")
    return notes
