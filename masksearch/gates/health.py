"""What the figures of trained gates say about the run that made them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import torch
from torch import Tensor

from masksearch.contracts import Report
from masksearch.gates.agreement import Agreement, agreement, mean

LARGE_GAP = 0.05  # nats, and share of the loss before it: a step of the loss chain above both
RISE = 0.1  # nats by which a loss must rise, at least, to count as lost function
RISE_SHARE = 0.05  # and the share of the loss at the end of the warm-up
FALL_SHARE = 0.25  # and the share of what the warm-up had gained
PATIENCE = 5  # reports in a row above that
SMOOTH = 3  # reports whose mean is the loss at the end of the warm-up


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
    function_lost: bool  # the training loss ended far above that at the end of the warm-up
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
    return max(0, min(round(config.get("warmup", 0.0) * steps), steps - 1))


class CollapseWatch:
    """Says while a run is going on that it collapses, once for each kind of collapse.

    - Everything is pruned: density below a quarter of that step's target.
    - Nothing is pruned: after half of the steps with gates the density is above 0.9 of the first
      one, although that step's target is lower.
    - The function is lost: for `PATIENCE` reports in a row the loss lies above that at the end
      of the warm-up (mean of its last `SMOOTH` reports; without a warm-up: the lowest mean of
      `SMOOTH` reports so far) by more than the largest of 0.1 nats, 5% of it, and a quarter of
      what it had fallen by since the first report.

    Args:
        config_target: Density that is asked for at the end, in (0, 1).
        initial: Density at the start.
        warmup_steps: Steps before the gates act.
        steps: Optimiser steps of the run.

    Attributes:
        above: Reports in a row, up to the last one, whose loss counts as lost function.
        level: The loss that they are held against; None = not known yet.
        latest: Loss of the last report.
    """

    def __init__(
        self, config_target: float, initial: float, warmup_steps: int, steps: int
    ) -> None:
        self.config_target, self.initial = config_target, initial
        self.warmup_steps, self.steps = warmup_steps, steps
        self.losses: list[float] = []  # of the reports that make up the level
        self.first: float | None = None
        self.level: float | None = None
        self.latest: float | None = None
        self.above = 0
        self.said: set[str] = set()

    def look(self, report: Report) -> str | None:
        """Takes the next report (`loss`, `density`, `target`) and returns a new warning, if any."""
        self.follow(report)
        if report.step <= self.warmup_steps:
            return None
        values = report.values
        density, target = values["density"], values.get("target", self.config_target)
        asked = max(target, self.config_target)
        halfway = self.warmup_steps + (self.steps - self.warmup_steps) / 2
        if "pruned away" not in self.said and density < asked / 4:
            self.said.add("pruned away")
            return (
                f"step {report.step}: nearly everything is pruned (density {density:.4g}, target "
                f"now {asked:.4g}); lower gate_lr, or use control='exact'"
            )
        if (
            "nothing pruned" not in self.said
            and report.step >= halfway
            and density > 0.9 * self.initial
            and target < 0.9 * self.initial
        ):
            self.said.add("nothing pruned")
            return (
                f"step {report.step}: nothing is pruned yet (density {density:.4g}, at the start "
                f"{self.initial:.4g}, target now {target:.4g}); raise gate_lr or the control's "
                "strength"
            )
        if "function lost" not in self.said and self.above >= PATIENCE:
            self.said.add("function lost")
            return (
                f"step {report.step}: the loss has risen to {values['loss']:.4g} from "
                f"{self.level:.4g} before the gates; edges go faster than the weights can follow: "
                "train for more steps, lower gate_lr, or ask for a higher density"
            )
        return None

    def follow(self, report: Report) -> None:
        """Keeps the level of the loss, and counts reports above it."""
        loss = report.values.get("loss")
        if loss is None:
            return
        self.latest = loss
        self.first = loss if self.first is None else self.first
        warm = report.step <= self.warmup_steps
        if self.level is not None and not warm:
            margin = max(RISE, RISE_SHARE * self.level, FALL_SHARE * (self.first - self.level))
            self.above = self.above + 1 if loss > self.level + margin else 0
        if warm or not self.warmup_steps:
            self.losses = [*self.losses, loss][-SMOOTH:]
            recent = mean(self.losses)
            if warm:
                self.level = recent
            elif len(self.losses) == SMOOTH:
                self.level = recent if self.level is None else min(self.level, recent)


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
    function_lost = watch.above >= PATIENCE
    problems = []
    if pruned_away:
        problems.append(
            f"nearly everything was pruned (density {density:.4f}, target {target:.4f}): "
            "lower gate_lr, or use control='exact'"
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
        notes=gap_notes(losses, gaps, undecided),
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


def gap_notes(losses: Losses, gaps: Gaps, undecided: float) -> list[str]:
    """One sentence for every large step of the loss chain."""
    open_gates = f"{100 * undecided:.0f}% of the edges are undecided"
    steps = (
        (
            losses["relaxed"],
            gaps["sampling"],
            f"from soft to sampled gates: {open_gates}; train longer, or set cooling below 1",
            "from soft to sampled gates: the weights know sampled gates only, so the relaxed "
            "loss says little here",
        ),
        (
            losses["sampled"],
            gaps["discretisation"],
            f"when the mask is cut at the target density: {open_gates}; train longer, or cut "
            "at the density that the gates have reached",
            "when the mask is cut at the target density: the noise of the samples held it up",
        ),
        (
            losses["discretised"],
            gaps["retraining"],
            "when the mask is trained from scratch: it leans on the weights that it was found "
            "with, or had fewer steps to train",
            "when the mask is trained from scratch: the joint training left its weights behind; "
            "judge masks by retraining only",
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
