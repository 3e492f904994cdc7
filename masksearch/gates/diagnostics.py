"""What the figures of trained gates say about the run that made them.

`health` judges one run (its `CollapseWatch` already speaks while the run goes on), `agreement`
compares the masks of several seeds, and `recovery` scores gates against the true edges of a
planted process.
"""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple, TypedDict, get_args

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from masksearch.analysis.cautions import warmup_problems
from masksearch.contracts import Report, generator
from masksearch.errors import LengthError
from masksearch.gates.discretise import at_sparsity, least_density
from masksearch.gates.gates import Gates, Structure
from masksearch.masks.measure import overlap


# -- against the truth ---------------------------------------------------------------------------
class Recovery(NamedTuple):
    """Agreement of edge probabilities with the true edges; both figures lie in [0, 1]."""

    auroc: float  # chance that a true edge ranks above a false one, ties counted half
    precision: float  # share of true edges among the likeliest ones, as many as there are true


def recovery(probabilities: Tensor, edges: Tensor) -> Recovery:
    """Scores gates against the edges of a planted process.

    An edge counts with its largest probability over layers and heads, because one head that
    looks there is enough. The diagonal is left out. Of equally likely edges at the boundary the
    expected share counts, so that gates that say nothing score 0.5 and the share of true edges.

    Args:
        probabilities: float `[layers, heads, n, n]`, or any leading axes.
        edges: bool `[n, n]`, query by key; the diagonal is ignored.

    Raises:
        LengthError: If the two have different lengths.
        ValueError: If no edge off the diagonal is true, or all are, or a probability is NaN.

    >>> edges = torch.eye(3).roll(1, 0) > 0
    >>> recovery(edges.float(), edges)
    Recovery(auroc=1.0, precision=1.0)
    """
    length = edges.shape[-1]
    if edges.shape != (length, length) or probabilities.shape[-2:] != edges.shape:
        raise LengthError(
            f"probabilities {list(probabilities.shape)} do not fit edges {list(edges.shape)}; "
            "both end in n x n"
        )
    off_diagonal = ~torch.eye(length, dtype=torch.bool)
    scores = probabilities.detach().double().cpu().reshape(-1, length, length).amax(0)
    if scores.isnan().any():
        raise ValueError("probabilities hold NaN, which has no place in an order; train again")
    scores, true = scores[off_diagonal], edges.cpu()[off_diagonal]
    count = int(true.sum())
    if count in (0, len(true)):
        raise ValueError(f"recovery needs both true and false edges, got {count} of {len(true)}")
    hits, others = scores[true], scores[~true].sort().values
    below = torch.searchsorted(others, hits)
    not_above = torch.searchsorted(others, hits, right=True)
    auroc = (below + not_above).double().mean() / (2 * len(others))
    boundary = scores.topk(count).values[-1]
    above, tied = scores > boundary, scores == boundary
    found = true[above].sum() + (count - above.sum()) * true[tied].double().mean()
    return Recovery(auroc.item(), found.item() / count)


# -- while a run goes on -------------------------------------------------------------------------
RISE = 0.3  # nats by which a loss must rise, at least, to count as lost function
RISE_SHARE = 0.2  # and the share of the loss at the end of the warm-up
FALL_SHARE = 0.5  # and the share of what the warm-up had gained
PATIENCE = 5  # reports in a row above that
SMOOTH = 3  # reports whose mean is the loss at the end of the warm-up
PRUNE_MORE = "train for more steps, or raise gate_lr or the control's strength"


class CollapseWatch:
    """Says while a run is going on that it collapses, once for each kind of collapse.

    - Everything is pruned: density below a quarter of that step's target.
    - Nothing is pruned: after half of the steps with gates the density is above 0.9 of the first
      one, although that step's target is lower.
    - The function is lost: for `PATIENCE` reports in a row the loss lies above that at the end
      of the warm-up (mean of its last `SMOOTH` reports; without a warm-up: the lowest mean of
      `SMOOTH` reports so far) by more than the largest of 0.3 nats, 20% of it, and half of
      what it had fallen by since the first report. (The noise of sampled gates alone took back
      a third of that in a run whose mask was good.)

    Args:
        config_target: Density that is asked for at the end, in (0, 1).
        initial: Density at the start.
        warmup_steps: Steps before the gates act.
        steps: Optimiser steps of the run.

    Attributes:
        above: Reports in a row, up to the last one, whose loss counts as lost function.
        level: The loss that they are held against; infinite while it is not known.
    """

    def __init__(
        self, config_target: float, initial: float, warmup_steps: int, steps: int
    ) -> None:
        self.config_target, self.initial = config_target, initial
        self.warmup_steps, self.steps = warmup_steps, steps
        self.first, self.level = math.nan, math.inf
        self.recent: list[float] = []  # losses that the level is made of
        self.above = 0
        self.said: set[str] = set()

    def look(self, report: Report) -> str | None:
        """Takes the next report (`loss`, `density`, `target`); returns a new warning or None."""
        values = report.values
        self.follow(report.step, values["loss"])
        if report.step <= self.warmup_steps:
            return None
        target = values.get("target", self.config_target)
        found = self.problems(report.step, values["loss"], values["density"], target)
        for kind, words in found.items():
            if kind not in self.said:
                self.said.add(kind)
                return f"step {report.step}: {words}"
        return None

    def problems(self, step: int, loss: float, density: float, target: float) -> dict[str, str]:
        """Kind of each collapse that holds after a step -> what happens and the remedy.

        Kinds are `"pruned_away"`, `"nothing_pruned"` and `"function_lost"`.

        Args:
            step: Optimiser steps that are done.
            loss: In nats; one that `follow` has seen.
            density: That of the gates.
            target: That step's target density.
        """
        found = {}
        asked = max(target, self.config_target)
        if density < asked / 4:
            found["pruned_away"] = (
                f"nearly everything is pruned (density {density:.4g}, target {asked:.4g}); "
                "lower gate_lr, or use control='hinge'"
            )
        halfway = step >= (self.warmup_steps + self.steps) / 2
        if halfway and density > 0.9 * self.initial and target < 0.9 * self.initial:
            found["nothing_pruned"] = (
                f"nothing is pruned (density {density:.4g}, at the start {self.initial:.4g}, "
                f"target {target:.4g}); {PRUNE_MORE}"
            )
        if self.above >= PATIENCE:
            found["function_lost"] = (
                f"the loss has risen to {loss:.4g} from {self.level:.4g} before the gates; edges "
                "go faster than the weights can follow: train for more steps, lower gate_lr, or "
                "ask for a higher density"
            )
        return found

    def follow(self, step: int, loss: float) -> None:
        """Updates the level of the loss, and counts the reports that lie above it."""
        warm = step <= self.warmup_steps
        if math.isnan(self.first):
            self.first = loss
        if not warm:
            self.above = self.above + 1 if self.lost(loss) else 0
        if warm or not self.warmup_steps:
            self.recent = [*self.recent, loss][-SMOOTH:]
            if warm:
                self.level = fmean(self.recent)
            elif len(self.recent) == SMOOTH:
                self.level = min(self.level, fmean(self.recent))

    def lost(self, loss: float) -> bool:
        """Whether a loss lies so far above the level that the function counts as lost."""
        fall = self.first - self.level
        return loss > self.level + max(RISE, RISE_SHARE * self.level, FALL_SHARE * fall)


# -- between seeds -------------------------------------------------------------------------------
CELLS = 2**20  # of random tables that are drawn in all, about
FEWEST, MOST = 3, 12  # random tables


class Agreement(TypedDict):
    """Overlap of the masks of several seeds: intersection over union (IoU), in [0, 1]."""

    seeds: int  # tables that were compared
    density: float  # at which the masks were cut
    iou: float  # mean over the pairs of seeds
    chance: float  # the same for gates with random values
    matched: float  # with the heads of each layer put in the order that agrees best
    matched_chance: float  # the same for gates with random values
    by_pair: list[float]  # in the order (0, 1), (0, 2), .., (1, 2), ..
    matched_by_pair: list[float]


def match_heads(one: Tensor, two: Tensor) -> Tensor:
    """Pairs the heads of two masks so that they share the most edges, layer by layer.

    Heads of one layer may change places without changing the model, so two seeds that found
    the same need not have it in the same head. The assignment has the largest number of shared
    edges; as the number of edges is given, it also has the largest IoU of the whole tables.

    Args:
        one: bool `[layers, heads, n, n]`.
        two: The same shape.

    Returns:
        int64 `[layers, heads]`: for each head of `one` that of `two`, of each layer a permutation
        of 0 .. heads - 1.
    """
    shared = one.flatten(2).float() @ two.flatten(2).float().mT
    rows = [linear_sum_assignment(layer.numpy(), maximize=True)[1] for layer in shared]
    return torch.stack([torch.from_numpy(row) for row in rows])


def pair_scores(tables: Sequence[Tensor]) -> tuple[list[float], list[float]]:
    """IoU of every pair of bool tables: as they stand, and with their heads matched."""
    plain, matched = [], []
    for one, two in itertools.combinations(tables, 2):
        order = match_heads(one, two)[:, :, None, None]
        plain.append(overlap(one, two))
        matched.append(overlap(one, two.gather(1, order.expand_as(two))))
    return plain, matched


def agreement(
    probabilities: Sequence[Tensor],
    *,
    density: float,
    gates: Mapping[str, Any] | None = None,
    seed: int = 0,
    weights: Tensor | None = None,
) -> Agreement:
    """Compares the masks that several seeds give at one density.

    Chance is what gates of the same structure with random values would score, cut in the same
    way: the mean over all pairs of a few random tables. For free gates at density d it is close
    to d / (2 - d).

    Args:
        probabilities: Two or more float `[layers, heads, n, n]` of one shape, one a seed.
        density: At which the masks are cut, in (0, 1]; below one key a row: one key a row.
        gates: Arguments of the `Gates`, for chance; None = free ones.
        seed: Of the random tables.
        weights: `DamResult.weights`, how much each edge counts; None = all alike.

    Raises:
        ValueError: If there are fewer than two tables, or they differ in shape.
    """
    shapes = {tuple(table.shape) for table in probabilities}
    if len(probabilities) < 2 or len(shapes) != 1:
        raise ValueError(
            "agreement needs two or more tables of one shape, got "
            f"{len(probabilities)} of {sorted(shapes)}; train the same gates with other seeds"
        )
    (shape,) = shapes
    cells = torch.Size(shape).numel()
    sparsity = 1 - max(density, least_density(shape[-1], weights))

    def cut(table: Tensor) -> Tensor:
        return at_sparsity(table, sparsity, weights=weights)

    plain, matched = pair_scores([cut(table) for table in probabilities])
    names = ("structure", "signed", "global_count", "block")
    arguments = {name: gates[name] for name in names if gates and name in gates}
    if arguments.get("structure") not in get_args(Structure):
        arguments = {}
    random = Gates(**arguments, layers=shape[0], heads=shape[1], length=shape[-1])
    source = generator(seed, 0xA93E)
    drawn = [
        cut(random.table(torch.rand(random.logits.shape, generator=source)))
        for _ in range(max(FEWEST, min(MOST, CELLS // cells)))
    ]
    chance, matched_chance = pair_scores(drawn)
    return Agreement(
        seeds=len(probabilities),
        density=1 - sparsity,
        iou=fmean(plain),
        chance=fmean(chance),
        matched=fmean(matched),
        matched_chance=fmean(matched_chance),
        by_pair=plain,
        matched_by_pair=matched,
    )


# -- one run -------------------------------------------------------------------------------------
LARGE_GAP = 0.05  # nats, and share of the loss before it: a step of the loss chain above both
UNDECIDED = 0.01  # share of undecided edges from which on it is named as a cause


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


class Health(dict[str, Any]):
    """Figures of one DAM run, by name, as plain data; it prints as a card of about ten lines.

    Each name is a key and an attribute: `health["density"]`, `health.density`. Shares and
    probabilities lie in [0, 1]. Means and shares of edges are over the pairs that real tokens
    form: an edge counts by the sequences that have it, padding and a decoder's future do not.
    """

    density: float  # mean probability of an edge at the end
    target: float  # density that was asked for
    by_head: list[list[float]]  # mean probability of an edge of each layer and head
    entropy: float  # mean binary entropy of the edges' gates, in bits: 0 = all decided
    undecided: float  # share of edges with a probability in (0.1, 0.9)
    diagonal: float  # mean probability of the diagonal; uniform gates have `density` there
    diagonal_mass: float  # share of the total probability that lies on the diagonal
    diagonal_uniform: float  # what uniform gates would have there: 1/n without padding
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
    attention_unlearned: bool  # attention learned nothing, or too late: nothing was pruned
    unsettled: bool  # gates were pruned before attention had learned: the loss was still falling
    problems: list[str]  # the flags above, in words
    notes: list[str]  # large steps of the loss chain, in words
    warnings: list[str]  # what a CollapseWatch says of the curve, with the steps

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(
                f"a health card has no {name!r}; it has {', '.join(self)}"
            ) from None

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self]

    def __repr__(self) -> str:
        return health_text(self)


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
    weights: Tensor | None = None,
) -> Health:
    """Judges one DAM run by its gates and its curve.

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
        weights: `DamResult.weights`, how much each edge counts; None = all alike.

    Raises:
        ValueError: If `others` have another shape.
    """
    p = probabilities.detach().float().cpu()
    density, length = mean_of_edges(p, weights).item(), p.shape[-1]
    position = torch.arange(length)
    offset = (position[None, :] - position[:, None]).flatten()
    by_distance, mass_by_distance = profile(p, offset.abs(), weights)
    by_offset, mass_by_offset = profile(p, offset + length - 1, weights)
    undecided = mean_of_edges(((p > 0.1) & (p < 0.9)).float(), weights).item()
    losses, gaps = losses_and_gaps(curve, retrained)
    last = curve[-1] if curve else Report(warmup_steps, {"loss": math.nan})
    cut, watch = losses["discretised"], CollapseWatch(target, initial, warmup_steps, last.step)
    warnings = [line for report in curve if (line := watch.look(report)) is not None]
    problems = watch.problems(last.step, last.values["loss"], density, target)
    if cut is not None and not watch.lost(cut):
        problems.pop("function_lost", None)
    of_warmup = warmup_problems(last.values, last.step)
    if "attention_unlearned" in of_warmup:  # why nothing is pruned
        problems.pop("nothing_pruned", None)
    problems = of_warmup | problems
    target_missed = density > 1.25 * target
    if target_missed and not {"nothing_pruned", "attention_unlearned"} & problems.keys():
        missed = f"the target was missed (density {density:.4g}, target {target:.4g})"
        problems["target_missed"] = f"{missed}; {PRUNE_MORE}"
    return Health(
        density=density,
        target=target,
        by_head=mean_of_edges(p, weights, (-2, -1)).tolist(),
        entropy=entropy_bits(p, weights).item(),
        undecided=undecided,
        diagonal=by_distance[0],
        diagonal_mass=mass_by_distance[0],
        diagonal_uniform=least_density(length, weights),
        by_distance=by_distance,
        mass_by_distance=mass_by_distance,
        by_offset=by_offset,
        mass_by_offset=mass_by_offset,
        losses=losses,
        gaps=gaps,
        agreement=agreement([p, *others], density=target, gates=gates, weights=weights)
        if others
        else None,
        pruned_away="pruned_away" in problems,
        nothing_pruned="nothing_pruned" in problems,
        target_missed=target_missed,
        function_lost="function_lost" in problems,
        attention_unlearned="attention_unlearned" in problems,
        unsettled="unsettled" in problems,
        problems=list(problems.values()),
        notes=gap_notes(
            losses,
            gaps,
            undecided,
            cut_cause(density, target, least_density(length, weights), undecided),
        ),
        warnings=warnings,
    )


def health_text(card: Health) -> str:
    """A health card in about ten lines: figures first, then what is wrong and what to do."""
    shares = [share for layer in card.by_head for share in layer]
    heads = f"; heads {min(shares):.1%} to {max(shares):.1%}" if len(shares) > 1 else ""
    chain = {"relaxed": "soft gates", "sampled": "sampled", "discretised": "mask cut"}
    chain |= {"retrained": "mask retrained"}
    known = [f"{chain[n]} {v:.3f}" for n, v in card.losses.items() if v is not None and n in chain]
    rows = {
        "density": f"{card.density:.1%}, asked for {card.target:.1%}{heads}",
        "entropy": f"{card.entropy:.3f} bits; {card.undecided:.1%} of the edges undecided",
        "held-out loss": " -> ".join(known) + " nats" if known else "not measured",
        "diagonal": f"{card.diagonal_mass:.1%} of the mass; evenly {card.diagonal_uniform:.1%}",
        "offsets": strongest_offsets(card.by_offset),
        "seeds": "one",
    }
    if card.agreement is not None:
        found = card.agreement
        rows["seeds"] = (
            f"{found['seeds']} agree by {found['iou']:.2f} IoU, chance {found['chance']:.2f}"
        )
    rows["problems"] = "; ".join(card.problems) or "none"
    if card.notes:
        rows["to do"] = "; ".join(card.notes)
    return "\n".join(
        textwrap.fill(text, 110, initial_indent=f"{name:<15}", subsequent_indent=" " * 15)
        for name, text in rows.items()
    )


def strongest_offsets(by_offset: Sequence[float], count: int = 4) -> str:
    """The offsets of the largest mean probability, nearer ones first among equals."""
    length = (len(by_offset) + 1) // 2
    order = sorted(
        range(1 - length, length),
        key=lambda offset: (-round(by_offset[offset + length - 1], 6), abs(offset), offset),
    )
    return ", ".join(
        f"{offset:+d} ({by_offset[offset + length - 1]:.2f})" if offset else
        f"0 ({by_offset[length - 1]:.2f})"
        for offset in order[:count]
    )  # fmt: skip


def mean_of_edges(
    values: Tensor, weights: Tensor | None, axes: tuple[int, ...] | None = None
) -> Tensor:
    """Mean over edges, each by its weight.

    Args:
        values: float `[layers, heads, n, n]`.
        weights: `DamResult.weights`; None = all edges count alike.
        axes: Axes to average over, the last two among them; None = all.
    """
    if weights is not None:
        whole = weights.mean() if axes is None else weights.mean(axes, keepdim=True)
        values = values * (weights / whole).to(values)
    return values.mean() if axes is None else values.mean(axes)


def entropy_bits(probabilities: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean binary entropy of probabilities, in bits; over edges by their weight."""
    p = probabilities.clamp(1e-7, 1 - 1e-7)
    return mean_of_edges(-(p * p.log2() + (1 - p) * (1 - p).log2()), weights)


def profile(
    probabilities: Tensor, group: Tensor, weights: Tensor | None = None
) -> tuple[list[float], list[float]]:
    """Mean probability, and share of the total, of every group of cells; 0 where none counts.

    Args:
        probabilities: float `[layers, heads, n, n]`.
        group: int64 `[n * n]`, the group of each cell, from 0 without a gap.
        weights: `DamResult.weights`, how much each cell counts; None = all alike.
    """
    cells = probabilities.double()
    each = torch.ones(cells.shape[-2:]).double() if weights is None else weights.double()
    cells, each = cells * each, each if each.ndim == 2 else each.mean((0, 1))
    totals = group.bincount(cells.mean((0, 1)).flatten())
    counted = group.bincount(each.flatten())
    share = totals / totals.sum().clamp_min(1e-300)
    return (totals / counted.clamp_min(1e-300)).tolist(), share.tolist()


def losses_and_gaps(curve: Sequence[Report], retrained: float | None) -> tuple[Losses, Gaps]:
    """The losses of a curve's last report, and what each step of the chain adds."""
    last = curve[-1].values if curve else {}
    chain = [*(last.get(name) for name in ("relaxed", "sampled", "discretised")), retrained]
    steps = [
        None if before is None or after is None else after - before
        for before, after in itertools.pairwise(chain)
    ]
    losses = Losses(
        relaxed=chain[0],
        sampled=chain[1],
        rounded=last.get("held_out"),
        discretised=chain[2],
        retrained=retrained,
    )
    return losses, Gaps(sampling=steps[0], discretisation=steps[1], retraining=steps[2])


def cut_cause(density: float, target: float, least: float, undecided: float) -> str:
    """The likeliest reason why a mask cut at the target density is worse than the gates; `least`
    is the density of one key in every row."""
    rows = least / target
    if density > 1.1 * target:
        return f"the gates have reached {density:.4g} only; train longer, or cut the mask there"
    if rows > 0.5:
        return (
            f"every row keeps a key, which takes {100 * min(1.0, rows):.0f}% of the edges at this "
            "density; ask for a higher one"
        )
    if undecided >= UNDECIDED:
        return f"{100 * undecided:.0f}% of the edges are undecided; train longer"
    return "the order of the gates near the cut says little; train longer"


def gap_notes(losses: Losses, gaps: Gaps, undecided: float, cause: str) -> list[str]:
    """One sentence for every large step of the loss chain; `cause`: why the cut may cost."""
    noise = "unlikely edges are drawn now and then, and each of them disturbs"
    if undecided >= UNDECIDED:
        noise = f"{100 * undecided:.0f}% of the edges are undecided"
    steps = (  # the loss before, the gap, where it happens, why it rises, why it falls
        (
            losses["relaxed"],
            gaps["sampling"],
            "from soft to sampled gates",
            f"{noise}; train longer, or set cooling below 1",
            "the weights know sampled gates only, so the relaxed loss says little here",
        ),
        (
            losses["sampled"],
            gaps["discretisation"],
            "when the mask is cut at the target density",
            cause,
            "the noise of the samples had raised it",
        ),
        (
            losses["discretised"],
            gaps["retraining"],
            "when the mask is trained from scratch",
            "it leans on the weights that it was found with, or had fewer steps to train",
            "the joint training's weights lag behind the mask; judge masks by retraining only",
        ),
    )
    notes = []
    for before, gap, where, rise, fall in steps:
        if before is None or gap is None:
            continue
        if abs(gap) > max(LARGE_GAP, LARGE_GAP * abs(before)):
            move, why = ("rises", rise) if gap > 0 else ("falls", fall)
            notes.append(f"the loss {move} by {abs(gap):.3g} nats {where}: {why}")
    return notes
