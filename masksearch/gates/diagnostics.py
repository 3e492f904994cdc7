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
from masksearch.gates.discretise import (
    at_sparsity,
    entropy_bits,
    least_density,
    mean_of_edges,
    profile,
)
from masksearch.gates.gates import Gates, Structure
from masksearch.gates.units import Units, entropy_of_levels
from masksearch.gates.warmup import PRUNE_MORE, CollapseWatch
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
    form: an edge counts by the sequences that have it, padding and a decoder's future do not. The
    card of switches has no field of the diagonal, of distances and of offsets; `by_head` is that
    of each layer's units, and undecided are units whose likeliest mask has less than 0.9.
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
    judged = judge_run(
        density,
        undecided,
        target=target,
        initial=initial,
        least=least_density(length, weights),
        curve=curve,
        warmup_steps=warmup_steps,
        retrained=retrained,
    )
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
        agreement=agreement([p, *others], density=target, gates=gates, weights=weights)
        if others
        else None,
        **judged,
    )


def switch_health(probabilities: Tensor, units: Units, **of_run: Any) -> Health:
    """The same of switches: a card without what only edges have (diagonal, offsets, agreement).

    Args:
        probabilities: float `[layers, units of a layer, levels]`.
        units: What chooses, and among which masks.
        of_run: `target`, `initial`, `curve`, `warmup_steps` and `retrained` of `health`.
    """
    p = probabilities.detach().float().cpu()
    kept = (p * units.prices_by_layer.float()).sum(-1)
    choosing = p.flatten(0, 1)[: len(units.names)]
    density = kept.mean().item()
    undecided = (choosing.amax(-1) < 0.9).float().mean().item()
    return Health(
        density=density,
        target=of_run["target"],
        by_head=kept.tolist(),
        entropy=entropy_of_levels(choosing).item(),
        undecided=undecided,
        agreement=None,
        **judge_run(density, undecided, least=units.least, **of_run),
    )


def judge_run(
    density: float,
    undecided: float,
    *,
    target: float,
    initial: float,
    least: float,
    curve: Sequence[Report],
    warmup_steps: int,
    retrained: float | None,
) -> dict[str, Any]:
    """The fields of a health card that follow from the run's course: losses, flags and words.

    Args:
        density: At the end.
        undecided: Share of what is not decided.
        target: As of `health`, and so are the others.
        initial: Density at the start.
        least: Density of the sparsest mask that there is.
        curve: The run's reports.
        warmup_steps: Steps before the gates acted.
        retrained: Held-out loss of the retrained mask.
    """
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
    return {
        "losses": losses,
        "gaps": gaps,
        "pruned_away": "pruned_away" in problems,
        "nothing_pruned": "nothing_pruned" in problems,
        "target_missed": target_missed,
        "function_lost": "function_lost" in problems,
        "attention_unlearned": "attention_unlearned" in problems,
        "unsettled": "unsettled" in problems,
        "problems": list(problems.values()),
        "notes": gap_notes(losses, gaps, undecided, cut_cause(density, target, least, undecided)),
        "warnings": warnings,
    }


def health_text(card: Health) -> str:
    """A health card in about ten lines: figures first, then what is wrong and what to do."""
    shares = [share for layer in card.by_head for share in layer]
    heads = f"; heads {min(shares):.1%} to {max(shares):.1%}" if len(shares) > 1 else ""
    chain = {"relaxed": "soft gates", "sampled": "sampled", "discretised": "mask cut"}
    chain |= {"retrained": "mask retrained"}
    known = [f"{chain[n]} {v:.3f}" for n, v in card.losses.items() if v is not None and n in chain]
    rows = {
        "density": f"{card.density:.1%}, asked for {card.target:.1%}{heads}",
        "entropy": f"{card.entropy:.3f} bits; {card.undecided:.1%} undecided",
        "held-out loss": " -> ".join(known) + " nats" if known else "not measured",
    }
    if "diagonal" in card:
        mass = f"{card.diagonal_mass:.1%} of the mass; evenly {card.diagonal_uniform:.1%}"
        rows |= {"diagonal": mass, "offsets": strongest_offsets(card.by_offset), "seeds": "one"}
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
