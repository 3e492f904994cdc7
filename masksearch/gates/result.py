"""The result of a DAM run: edge probabilities, its curve, masks cut from them, and a health card.

result.mask(sparsity=0.9), result.curve
print(result.health(others=[..runs with other seeds..]))
"""

from __future__ import annotations

import itertools
import json
import math
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from html import escape
from pathlib import Path
from statistics import fmean
from typing import Any, TypedDict

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from masksearch import masks
from masksearch.analysis.pareto import warmup_problems
from masksearch.contracts import Report, Shape, generator
from masksearch.files import read_tensors, write_tensors
from masksearch.gates.config import warmup_steps
from masksearch.gates.discretise import (
    EDGE,
    Per,
    at_sparsity,
    at_threshold,
    least_density,
    mean_of_edges,
    weights_of,
)
from masksearch.gates.gates import Gates
from masksearch.gates.pruning import PRUNE_MORE, CollapseWatch
from masksearch.gates.units import FORMAT, Allocation, Units, cut_switches, read_levels
from masksearch.masks.core import Mask
from masksearch.masks.lower import Block
from masksearch.masks.measure import overlap
from masksearch.masks.picture import table_html

LOSSES = {  # name in the last report -> title and meaning on a health card
    "relaxed": ("loss, soft gates", "held out, nats; gates replaced by their probabilities"),
    "sampled": ("loss, sampled gates", "gates drawn, mean over several draws"),
    "held_out": ("loss, rounded gates", "edges kept from a probability of 1/2"),
    "discretised": ("loss, mask cut", "cut at the target density; the same weights"),
    "retrained": ("loss, retrained", "that mask, trained from scratch"),
}
UNMEASURED = "not measured"
LARGE_RISE = 0.05  # nats, and share of the loss before it: a step of these losses above both
UNDECIDED = 0.01  # share of undecided edges from which on it is named as a cause
STRONGEST = 4  # offsets that a card names
CELLS = 2**20  # of random tables that are drawn in all, about
FEWEST, MOST = 3, 12  # random tables


class GateAgreement(TypedDict):
    """Overlap of the masks of several seeds: intersection over union (IoU), in [0, 1]."""

    seeds: int  # tables that were compared
    density: float  # at which the masks were cut
    iou: float  # mean over the pairs of seeds
    chance: float  # the same for gates with random values
    matched: float  # with the heads of each layer put in the order that agrees best
    matched_chance: float  # the same for gates with random values
    by_pair: list[float]  # in the order (0, 1), (0, 2), .., (1, 2), ..
    matched_by_pair: list[float]


@dataclass(frozen=True)
class Health:
    """Figures of one DAM run, as plain data; it prints as a card of a dozen lines.

    Shares and probabilities lie in [0, 1]. Means and shares of edges are over the non-padding
    query-key pairs: an edge counts by the sequences that have it, padding and a decoder's future
    do not. With gates of the structure "switch", `by_head` has a figure for each unit of each
    layer, a unit is undecided where its likeliest mask has a probability below 0.9, and figures
    of the diagonal and of offsets are missing.

    Args:
        density: Mean probability of an edge at the end.
        target: Density that was asked for.
        by_head: Mean probability of an edge of each layer and head.
        undecided: Share of edges with a probability in (0.1, 0.9).
        diagonal: Mean probability of an edge on the diagonal; None = switches.
        offsets: The strongest offsets (key minus query), each with its mean probability; nearer
            ones first among equals.
        losses: Mean held-out losses in nats that were measured, by the names of `LOSSES`:
            gates at their probability, drawn, rounded, cut at the target density, and that mask
            with other weights, trained from scratch.
        agreement: Between seeds; None = one seed.
        problems: Kind -> what is wrong, and the remedy: `"pruned_away"` (density below a quarter
            of the target), `"nothing_pruned"` (above nine tenths of where the gates started),
            `"target_missed"` (above 1.25 times the target, for no reason named before),
            `"function_lost"` (loss far above that of the warm-up; that of the cut mask, if
            known, too), `"attention_unlearned"`, `"unsettled"` (see `warmup_problems`).
        notes: Large rises from one loss to the next, in words.
        warnings: What a `CollapseWatch` says of the curve, with the steps.
    """

    density: float
    target: float
    by_head: list[list[float]]
    undecided: float
    diagonal: float | None
    offsets: list[tuple[int, float]]
    losses: dict[str, float]
    agreement: GateAgreement | None
    problems: dict[str, str]
    notes: list[str]
    warnings: list[str]

    @property
    def rows(self) -> list[tuple[str, str, str]]:
        """The card in words: figures, their values, and what they mean."""
        shares = [share for layer in self.by_head for share in layer]
        heads = f"{min(shares):.1%} to {max(shares):.1%}"
        unsure = "edges with a probability between 0.1 and 0.9"
        if self.diagonal is None:
            unsure = "units whose likeliest mask has a probability below 0.9"
        rows = [
            ("density", f"{self.density:.1%} (asked for {self.target:.1%})",
             "mean probability of an edge at the end"),
            ("density by head", heads, "of the emptiest and of the fullest head"),
            ("undecided", f"{self.undecided:.1%}", unsure),
        ]  # fmt: skip
        if self.diagonal is not None:
            offsets = (f"{at:+d} ({p:.2f})" if at else f"0 ({p:.2f})" for at, p in self.offsets)
            rows += [
                ("diagonal", f"{self.diagonal:.1%}",
                 "mean probability of an edge there; that of all edges is the density"),
                ("strongest offsets", ", ".join(offsets),
                 "key minus query, with the mean probability of an edge there"),
            ]  # fmt: skip
        for name, (title, meaning) in LOSSES.items():
            loss = self.losses.get(name)
            rows.append((title, UNMEASURED if loss is None else f"{loss:.4g}", meaning))
        if (seeds := self.agreement) is None:
            return [*rows, ("agreement of seeds", "one seed", "not known from a single run")]
        return [
            *rows,
            ("agreement of seeds", f"IoU {seeds['iou']:.3g} (chance {seeds['chance']:.3g})",
             f"mean over pairs of {seeds['seeds']} seeds, masks cut at the target density"),
            ("with heads matched",
             f"IoU {seeds['matched']:.3g} (chance {seeds['matched_chance']:.3g})",
             "heads of a layer in the order that agrees best"),
        ]  # fmt: skip

    def __repr__(self) -> str:
        """Figures first, then what is wrong and what to do."""
        facts = {name: value for name, value, _ in self.rows if value != UNMEASURED}
        facts["problems"] = "; ".join(self.problems.values()) or "none"
        if self.notes:
            facts["to do"] = "; ".join(self.notes)
        return "\n".join(
            textwrap.fill(text, 110, initial_indent=f"{name:<20}", subsequent_indent=" " * 20)
            for name, text in facts.items()
        )


@dataclass(frozen=True, eq=False)
class DamResult:
    """The outcome of a DAM run: edge probabilities, from which masks are cut.

    Args:
        probabilities: float32 `[layers, heads, n, n]` on the CPU: how likely each edge is open.
            An axis of 1 means shared by all layers or heads. Of switches
            `[layers, units of a layer, levels]`: how likely each unit takes each of its masks.
        curve: Reports, oldest first, with `loss`, `density`, `target`, `entropy`, `control`; the
            last one also has `relaxed`, `sampled`, `held_out` and `discretised` where held-out
            batches were given (see `masksearch.gates.dam`).
        target: Density that was asked for.
        gates: Arguments of the `Gates`.
        config: Fields of the `DamConfig`.
    """

    probabilities: Tensor
    curve: tuple[Report, ...]
    target: float
    gates: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        sizes = " x ".join(map(str, self.probabilities.shape))
        loss = "" if self.held_out is None else f", held-out loss {self.held_out:.3f}"
        return (
            f"DamResult({sizes} probabilities of "
            f"{self.gates.get('structure', 'free')} gates, density "
            f"{self.density:.4f}, asked for {self.target:.4g}, "
            f"{self.curve[-1].step if self.curve else 0} steps{loss})"
        )

    def _repr_html_(self) -> str:
        """A picture of the probabilities, for notebooks."""
        if self.units is not None:
            return f"<code>{escape(repr(self))}</code>"
        return table_html(self.probabilities, escape(repr(self)))

    @cached_property
    def units(self) -> Units | None:
        """The layers or heads of switches, and their masks; None where edges have gates."""
        if self.gates.get("structure") != "switch":
            return None
        sizes = {name: self.gates[name] for name in ("length", "layers", "heads")}
        levels = read_levels(self.gates["levels"])
        rest = self.gates.get("kv_heads"), self.gates.get("costs")
        return Units(self.shape(**sizes), levels, self.gates["unit"], *rest)

    def shape(self, length: int, layers: int, heads: int) -> Shape:
        """Those sizes, with what the gates know of the data."""
        facts = {n: self.gates[n] for n in ("causal", "lengths", "read") if n in self.gates}
        return Shape(length, layers, heads, **facts)

    @property
    def density(self) -> float:
        """Mean probability of an edge, over the pairs that count, in [0, 1]."""
        if self.units is None:
            return mean_of_edges(self.probabilities, self.weights).item()
        return float((self.probabilities * self.units.costs_by_layer).sum(-1).mean())

    @property
    def weights(self) -> Tensor | None:
        """How much each edge counts, float64 `[n, n]` or `[layers, 1, n, n]`
        (`masksearch.masks.measure.pair_weights` of the data that the gates were trained on);
        None where all count alike."""
        layers, _, length, _ = self.probabilities.shape
        return weights_of(self.shape(length=length, layers=layers, heads=1))

    @property
    def held_out(self) -> float | None:
        """Loss on the held-out batches under the rounded gates, or None without any."""
        return self.curve[-1].values.get("held_out") if self.curve else None

    @property
    def warmup_steps(self) -> int:
        """Steps before the gates acted; all of them where attention has learned nothing."""
        last = self.curve[-1] if self.curve else None
        if last is None or "pruned_steps" not in last.values:
            return warmup_steps(self.config)
        return last.step - int(last.values["pruned_steps"])

    @property
    def warmup_problems(self) -> dict[str, str]:
        """Why the gates mean little: flags of the health card (`attention_unlearned`,
        `unsettled`), each in words; empty where attention had learned before they were pruned."""
        return warmup_problems(self.curve[-1].values, self.curve[-1].step) if self.curve else {}

    def mask(
        self,
        *,
        sparsity: float | None = None,
        threshold: float | None = None,
        per: Per = "mask",
        merge_heads: bool = False,
        within: bool = False,
    ) -> Mask:
        """Cuts a mask from the probabilities; give a sparsity or a threshold.

        Warns where the gates were pruned before attention had learned, or not at all.

        Args:
            sparsity: Share of closed edges, in [0, 1 - 1/n]. Exactly round((1 - sparsity) x
                cells) edges are kept: the best key of each row, then the likeliest; ties go to
                the nearer offset. Gates of tiles keep whole ones, the best of each row of tiles,
                then the likeliest, in the number that comes nearest. Of gates that know the
                lengths of their data, that it is causal or which rows are read, it is the
                effective sparsity: edges between padding, to later keys or of rows that are not
                read are not kept and count for nothing.
                Switches take the only argument that this is; the mask is the densest on the
                path of `masksearch.gates.units.cut_switches` that is at least as sparse.
            threshold: Lowest kept probability, in [0, 1].
            per: What the sparsity holds for: the whole `"mask"`, each `"layer"`, each `"head"`.
            merge_heads: One mask for all heads of a layer, by an edge's largest probability:
                weights that are trained anew may use the heads in another way.
            within: Keep at most as many edges as the sparsity says, in place of the nearest
                number.

        Returns:
            A table mask of length n; of tiles a `masks.block_layout` in blocks of their finer
            side.

        Raises:
            ValueError: If none or both are given, or one is out of range.
        """
        if self.units is not None:
            if sparsity is None or threshold is not None or per != "mask" or merge_heads:
                raise ValueError(
                    "switches choose whole masks, so mask() takes their sparsity alone: "
                    "result.mask(sparsity=0.7)"
                )
            return self.units.mask(self.allocation(1 - sparsity))
        if (sparsity is None) == (threshold is None):
            raise ValueError(
                "mask() takes exactly one of sparsity and threshold, got "
                f"{'none' if sparsity is None else 'both'}"
            )
        for problem in self.warmup_problems.values():
            warnings.warn(f"DAM: {problem}", stacklevel=2)
        table = self.probabilities
        if merge_heads:
            table = table.amax(1, keepdim=True)
        how: dict[str, Any] = {"weights": self.weights, "block": _block_of(self.gates)}
        if sparsity is not None:
            kept = at_sparsity(table, sparsity, per, within=within, **how)
        elif threshold is not None:
            kept = at_threshold(table, threshold, **how)
        side = min(how["block"])
        if how["block"] == EDGE:
            return masks.table(kept)
        return masks.block_layout(kept[..., ::side, ::side], side)

    def allocation(self, density: float) -> Allocation:
        """The level of each of `units` at a density: that of `mask(sparsity=1 - density)`.

        Raises:
            ValueError: If edges have gates, or all units at their lowest mask are denser.
        """
        if self.units is None:
            raise ValueError("gates of edges have no units that choose; cut a mask: result.mask")
        return cut_switches(self.units, self.probabilities, density)

    def health(
        self, *, others: Sequence[DamResult] = (), retrained: float | None = None
    ) -> Health:
        """Judges the run: density against the target, undecided gates, the losses from soft gates
        to the retrained mask, agreement of seeds, and whether the run collapsed.

        Args:
            others: The same gates trained with other seeds.
            retrained: Held-out loss of a model trained from scratch under the mask of the target
                density.

        Raises:
            ValueError: If `others` have another shape, or the gates are switches.
        """
        p, units = self.probabilities.detach().float().cpu(), self.units
        weights = self.weights if units is None else None
        if units is not None and others:
            raise ValueError(
                "the agreement of seeds is measured for gates of edges; of switches compare "
                "the probabilities of their units, result.probabilities"
            )
        density, diagonal, offsets = self.density, None, list[tuple[int, float]]()
        if units is not None:
            by_head = (p * units.costs_by_layer.float()).sum(-1)
            open_units = p.flatten(0, 1)[: len(units.names)].amax(-1) < 0.9
            undecided, least = open_units.float().mean().item(), units.least
        else:
            by_head = mean_of_edges(p, weights, (-2, -1))
            undecided = mean_of_edges(((p > 0.1) & (p < 0.9)).float(), weights).item()
            least = least_density(p.shape[-1], weights, _block_of(self.gates))
            by_offset = _mean_by_offset(p, weights)
            diagonal = by_offset[0]
            nearest = sorted(by_offset, key=lambda at: (-round(by_offset[at], 6), abs(at), at))
            offsets = [(at, by_offset[at]) for at in nearest[:STRONGEST]]
        last = self.curve[-1].values if self.curve else {}
        values = dict(last) if retrained is None else {**last, "retrained": retrained}
        losses = {name: values[name] for name in LOSSES if name in values}
        aims = self.config.get("control", "hinge") == "hinge"
        target = self.target if aims else density
        problems, texts = self._judge_course(density, target)
        tables = [p, *(other.probabilities for other in others)]
        return Health(
            density=density,
            target=target,
            by_head=by_head.tolist(),
            undecided=undecided,
            diagonal=diagonal,
            offsets=offsets,
            losses=losses,
            agreement=agreement(tables, density=target, gates=self.gates, weights=weights)
            if others
            else None,
            problems=problems,
            notes=_large_rises(losses, undecided, _cut_cause(density, target, least, undecided)),
            warnings=texts,
        )

    def _judge_course(self, density: float, target: float) -> tuple[dict[str, str], list[str]]:
        """Problems of the health card, and its warnings."""
        first = self.curve[0].values["density"] if self.curve else 1.0
        last = self.curve[-1] if self.curve else Report(self.warmup_steps, {"loss": math.nan})
        frozen = self.config.get("train") == "gates"
        watch = CollapseWatch(target, first, self.warmup_steps, last.step, frozen)
        texts = [line for report in self.curve if (line := watch.look(report)) is not None]
        problems = watch.problems(last.step, last.values["loss"], density, target)
        cut = last.values.get("discretised")
        if cut is not None and not watch.lost(cut):
            problems.pop("function_lost", None)
        if "attention_unlearned" in self.warmup_problems:  # why nothing is pruned
            problems.pop("nothing_pruned", None)
        problems = self.warmup_problems | problems
        if density > 1.25 * target and not {"nothing_pruned", "attention_unlearned"} & {*problems}:
            missed = f"the target was missed (density {density:.4g}, target {target:.4g})"
            problems["target_missed"] = f"{missed}; {PRUNE_MORE}"
        return problems, texts

    def save(self, path: str | Path) -> Path:
        """Writes one `.safetensors` file: the probabilities, and the rest as JSON metadata.

        Raises:
            ValueError: If the path has another ending.
        """
        about = {
            "curve": [asdict(report) for report in self.curve],
            "target": self.target,
            "gates": dict(self.gates),
            "config": dict(self.config),
        }
        metadata = {"format": FORMAT, "dam": json.dumps(about)}
        tensors = {"probabilities": self.probabilities.float()}
        return write_tensors(path, tensors, metadata, what="gates")

    @staticmethod
    def load(path: str | Path) -> DamResult:
        """Reads a file that `save` has written.

        Raises:
            FileNotFoundError: If there is no such file.
            MaskFormatError: If the file is not one of `save`.
        """
        tensors, metadata = read_tensors(path, what="gates", expected=FORMAT)
        about = json.loads(metadata["dam"])
        curve = tuple(Report(item["step"], item["values"]) for item in about.pop("curve"))
        return DamResult(tensors["probabilities"].to(torch.float32), curve, **about)


# -- the figures of a health card ----------------------------------------------------------------
def _block_of(gates: Mapping[str, Any]) -> Block:
    """Queries and keys of the tiles of gates, by their arguments; (1, 1) = edges alone."""
    if gates.get("structure") != "block":
        return EDGE
    block = gates["block"]
    return (block, block) if isinstance(block, int) else tuple(block)


def _mean_by_offset(probabilities: Tensor, weights: Tensor | None = None) -> dict[int, float]:
    """Mean probability of every offset (key minus query), edges by their weight; 0 where none
    counts."""
    cells = probabilities.double()
    each = torch.ones_like(cells[0, 0]) if weights is None else weights.double()
    cells, each = (cells * each).mean((0, 1)), each if each.ndim == 2 else each.mean((0, 1))
    return {
        at: (cells.diagonal(at).sum() / each.diagonal(at).sum().clamp_min(1e-300)).item()
        for at in range(1 - len(cells), len(cells))
    }


def _cut_cause(density: float, target: float, least: float, undecided: float) -> str:
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


def _large_rises(losses: Mapping[str, float], undecided: float, cause: str) -> list[str]:
    """One sentence for every large rise from one loss to the next; `cause`: why a cut may cost.

    Large is more than 0.05 nats and more than 5% of the loss before.
    """
    noise = "unlikely edges are drawn now and then, and each of them disturbs"
    if undecided >= UNDECIDED:
        noise = f"{100 * undecided:.0f}% of the edges are undecided"
    steps = (
        ("relaxed", "sampled", f"from soft to sampled gates: {noise}; train longer, or set "
         "cooling below 1"),
        ("sampled", "discretised", f"when the mask is cut at the target density: {cause}"),
        ("discretised", "retrained", "when the mask is trained from scratch: it leans on the "
         "weights that it was found with, or had fewer steps to train"),
    )  # fmt: skip
    notes = []
    for before, after, words in steps:
        if before in losses and after in losses:
            rise = losses[after] - losses[before]
            if rise > max(LARGE_RISE, LARGE_RISE * abs(losses[before])):
                notes.append(f"the loss rises by {rise:.3g} nats {words}")
    return notes


def agreement(
    probabilities: Sequence[Tensor],
    *,
    density: float,
    gates: Mapping[str, Any] | None = None,
    weights: Tensor | None = None,
) -> GateAgreement:
    """Compares the masks that several seeds give at one density.

    Chance is what gates of the same structure with random values would score, cut in the same
    way: the mean over all pairs of a few random tables. For free gates at density d it is close
    to d / (2 - d).

    Args:
        probabilities: Two or more float `[layers, heads, n, n]` of one shape, one a seed.
        density: At which the masks are cut, in (0, 1]; below one key a row: one key a row.
        gates: Arguments of the `Gates`, for chance; None = free ones.
        weights: `DamResult.weights`, how much each edge counts; None = all alike.

    Raises:
        ValueError: If they differ in shape.
    """
    shapes = {tuple(table.shape) for table in probabilities}
    if len(shapes) != 1:
        raise ValueError(
            f"agreement needs tables of one shape, got {sorted(shapes)}; train the same gates "
            "with other seeds"
        )
    (shape,) = shapes
    how: dict[str, Any] = {"weights": weights, "block": _block_of(gates or {})}
    sparsity = 1 - max(density, least_density(shape[-1], **how))

    def scores(tables: Sequence[Tensor]) -> tuple[list[float], list[float]]:
        """IoU of every pair, cut there: as they stand, and with heads matched.

        Heads of one layer may change places without changing the model, so two seeds that found
        the same need not have it in the same head. The matching has the largest number of shared
        edges; as the number of edges is given, it also has the largest IoU of the whole tables.
        """
        plain, matched = [], []
        cut = (at_sparsity(table, sparsity, **how) for table in tables)
        for one, two in itertools.combinations(cut, 2):
            shared = one.flatten(2).float() @ two.flatten(2).float().mT
            orders = [linear_sum_assignment(layer.numpy(), maximize=True)[1] for layer in shared]
            paired = torch.stack([of[order] for of, order in zip(two, orders, strict=True)])
            plain.append(overlap(one, two))
            matched.append(overlap(one, paired))
        return plain, matched

    plain, matched = scores(probabilities)
    named = ("structure", "signed", "global_count", "block")
    arguments = {name: gates[name] for name in named if gates and name in gates}
    random = Gates(**arguments, layers=shape[0], heads=shape[1], length=shape[-1])
    source = generator(0, 0xA93E)
    drawn = max(FEWEST, min(MOST, CELLS // torch.Size(shape).numel()))
    chance, matched_chance = scores(
        [random.table(torch.rand(random.logits.shape, generator=source)) for _ in range(drawn)]
    )
    return GateAgreement(
        seeds=len(probabilities),
        density=1 - sparsity,
        iou=fmean(plain),
        chance=fmean(chance),
        matched=fmean(matched),
        matched_chance=fmean(matched_chance),
        by_pair=plain,
        matched_by_pair=matched,
    )
