"""Edges cut by their first-order effects on a trained model's loss, or words as keys by those on
its margin; nothing is trained.

Of edges one job measures the effects of all, cuts the least, measures those that are left, and so
on; the order in which edges go gives a mask at every density. Of words one job measures all in all
layers. A word that is no key from a layer on is a token that need not be computed there: a
threshold on the effects gives a mask at every share of the work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from masksearch import masks
from masksearch.attention.attach import attach, detach
from masksearch.contracts import (
    Batch,
    Differentiable,
    Evaluate,
    Evaluator,
    Proposal,
    Prune,
    Report,
    Shape,
)
from masksearch.errors import SearchError, check_name
from masksearch.files import read_tensors, write_tensors
from masksearch.gates.discretise import at_sparsity, least_density, weights_of
from masksearch.gates.unit_costs import DENSITY, WORK
from masksearch.masks.checks import at_least
from masksearch.masks.core import Mask
from masksearch.masks.measure import pair_weights
from masksearch.positions.analysis import importance
from masksearch.positions.words import By, word_effects, words_within
from masksearch.strategies.dam import AfterFirstJob

NAME = "prune"
OPTIONS = {"rows": int, "rounds": int, "per": str, "densities": Sequence[float], "by": str}
Per = Literal["mask", "layer"]
FORMAT, OF_WORDS = "masksearch-order-1", "masksearch-words-1"
DENSITIES = (0.5, 0.3, 0.2, 0.15, 0.1)
ROWS = 1500  # sequences that are measured, in all rounds together


class PruneStrategy(AfterFirstJob):
    """Proposes the measuring of all edges or words, then masks of those with the largest effects.

    Args:
        run: Folder that artifacts are relative to.
        config: Of the `Prune` job.
        limits: Largest shares of the masks to cut.
        cut: The job's file and such a share -> mask.
        counts: What the shares are of: `"density"` or `"work"`.
    """

    def __init__(
        self,
        run: Path,
        config: Mapping[str, Any],
        limits: Sequence[float],
        cut: Callable[[Path, float], Mask],
        counts: str = DENSITY,
    ) -> None:
        super().__init__(run, NAME, "order")
        self.config, self.limits, self.cut, self.counts = config, tuple(limits), cut, counts

    def ask(self) -> Proposal | Literal["wait", "done"]:
        """First the measuring, then one mask for each limit.

        Raises:
            SearchError: If the measuring has failed; gives its reason.
        """
        if self.next > len(self.limits):
            return "done"
        self.refuse_lost()
        if self.next == 0:
            return self.propose(Prune(self.config))
        if not (path := self.left.get(0)):
            return "wait"
        limit = self.limits[self.next - 1]
        return self.propose(Evaluate(self.cut(path, limit)), {self.counts: limit})


def prune_edges(
    run: Path,
    shape: Shape,
    *,
    densities: Sequence[float] = DENSITIES,
    rows: int = ROWS,
    rounds: int = 1,
    per: Per = "mask",
    within: bool = False,
) -> PruneStrategy:
    """The strategy over all edges.

    An edge's effect is the mean over rows of the *square* of one row's own slope of the loss by a
    bias on the edge's score (`ms.importance(method="fisher")`): at a trained optimum slopes of
    both signs cancel in a mean, their squares do not. Edges are kept in the order of effect per
    kept pair; the diagonal always is. In rounds the density falls geometrically to the least of
    `densities`, and what is left is measured again under the mask so far.

    Args:
        run: Folder that artifacts are relative to.
        shape: Of the model.
        densities: Of the masks to cut, each in (0, 1], over the non-padding query-key pairs.
        rows: Rows that are measured in all rounds together (>= rounds).
        rounds: How often the edges that are left are measured (>= 1).
        per: What is cut to a density: the whole `"mask"`, or each `"layer"`.
        within: Whether the densities are budgets, which no mask exceeds.

    Raises:
        ValueError: If a number is out of range, or a density below one key in every row.
        UnknownNameError: For another `per`.

    Reference: the diagonal of the empirical Fisher information, as arXiv 1801.05787 prunes
        channels; rounds as in arXiv 2006.09081.
    """
    check_name("part of a mask", per, get_args(Per))
    for name, value, least in (("rounds", rounds, 1), ("rows", rows, rounds)):
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be a whole number of at least {least}, got {value}")
    weights = weights_of(shape)
    floor = least_density(shape.length, weights)
    for density in densities:
        if not isinstance(density, int | float) or not floor * (1 - 1e-9) <= density <= 1:
            raise ValueError(
                "every row keeps its diagonal, so densities are numbers from "
                f"{floor:.4g} to 1, got {density!r}"
            )

    def cut(path: Path, density: float) -> Mask:
        order, _ = _read_order(path)
        return masks.table(at_sparsity(order, 1 - density, per, weights=weights, within=within))

    config = {"rows": rows, "rounds": rounds, "per": per, "density": min(densities)}
    return PruneStrategy(run, config, densities, cut)


def prune_words(
    run: Path, shape: Shape, *, works: Sequence[float], rows: int = ROWS, by: By = "margin"
) -> PruneStrategy:
    """The strategy over all words.

    In each layer queries look at some words alone (`masks.token_columns`), the first rows, which
    the head reads, among them; a word that is left out in a layer is left out in all later ones.
    One threshold for all layers cuts to a share of the work (`positions.words.words_within`).

    Args:
        run: Folder that artifacts are relative to.
        shape: Of the model, with `tokens`, `read` and the sizes that `masks.work` counts by.
        works: Of the masks to cut, largest shares of the work, each in (0, 1].
        rows: Rows that are measured (>= 1).
        by: Whether the slope is of the model's own `"margin"`, or of the `"loss"` by labels.

    Raises:
        ValueError: If `rows` is no such number.
        SearchError: If the shape has no tokens.
        UnknownNameError: For another `by`.
    """
    check_name("slope of words", by, get_args(By))
    at_least("rows", rows, 1)
    if shape.tokens is None:
        raise SearchError("words cost what rows of the data say, and Shape.tokens has none here")

    def cut(path: Path, limit: float) -> Mask:
        effects = read_tensors(path, what="effects of words", expected=OF_WORDS)[0]["effects"]
        kept = words_within(limit, effects, shape)
        return masks.per_layer([masks.full() if w.all() else masks.token_columns(w) for w in kept])

    return PruneStrategy(run, {"unit": "word", "rows": rows, "by": by}, works, cut, WORK)


# -- the job -----------------------------------------------------------------------------------
def run_prune_words(
    evaluator: Evaluator, job: Prune, *, seed: int, workdir: Path
) -> Iterator[Report]:
    """Measures the words as the job says, and writes their effects, float `[layers, vocabulary]`,
    to `workdir / "order.safetensors"`.

    Yields:
        One report: `rows`, how many were measured.
    """
    source = evaluator.differentiable(seed)
    batches = _draw_rows(source, job.config["rows"])
    effects = word_effects(source.model, batches, by=job.config["by"])
    about = {"format": OF_WORDS}
    write_tensors(workdir / job.FILE, {"effects": effects}, about, what="effects of words")
    yield Report(1, {"rows": sum(len(batch["input_ids"]) for batch in batches)})


def _draw_rows(source: Differentiable, count: int) -> list[Batch]:
    """The next batches that hold so many rows."""
    batches: list[Batch] = []
    while sum(len(batch["input_ids"]) for batch in batches) < count:
        batches.append(next(source.batches))
    return batches


def run_prune(evaluator: Evaluator, job: Prune, *, seed: int, workdir: Path) -> Iterator[Report]:
    """Measures the edges as the job says, and writes their order to `workdir /
    "order.safetensors"`; a job that was killed goes on with the round that it was in.

    Yields:
        A report a round: `loss` (mean over its batches) and `density`, both of the mask that it
        measures under.
    """
    shape, rounds = evaluator.shape, job.config["rounds"]
    weights = weights_of(shape)
    source, path = evaluator.differentiable(seed), workdir / job.FILE
    order, done = torch.zeros(shape.layers, shape.heads, shape.length, shape.length), 0
    if path.is_file():
        order, done = _read_order(path)
    share = job.config["rows"] // rounds
    for number in range(rounds):
        batches = _draw_rows(source, share)  # those of rounds that are done too: a stream
        if number < done:
            continue
        density = job.config["density"] ** (number / rounds)
        per = job.config["per"]
        kept = at_sparsity(order, 1 - density, per, weights=weights) if number else order == 0
        effects, loss = _measure_edges(source, batches, shape, kept)
        ranks = effects.flatten().argsort(stable=True).argsort(stable=True).view_as(order)
        order = torch.where(kept, number + (ranks + 1) / ranks.numel(), order)
        order.diagonal(0, -2, -1).fill_(rounds + 1)
        metadata = {"format": FORMAT, "rounds": str(number + 1)}
        write_tensors(path, {"order": order}, metadata, what="an order")
        yield Report(number + 1, {"loss": loss, "density": density})


def _measure_edges(
    source: Differentiable, batches: Sequence[Batch], shape: Shape, kept: Tensor
) -> tuple[Tensor, float]:
    """Every edge's effect per kept pair, and the mean loss of the rows.

    Args:
        source: Whose model is measured.
        batches: Each padded to a width of its own.
        shape: Of the model.
        kept: bool `[layers, heads, n, n]`, the mask under which it is measured.

    Returns:
        float64 `[layers, heads, n, n]`, 0 where no pair counts.
    """
    total = torch.zeros(kept.shape, dtype=torch.float64)
    measured, loss = sum(len(batch["input_ids"]) for batch in batches), 0.0
    if not kept.all():
        attach(source.model, masks.table(kept))
    try:
        for width in sorted({batch["input_ids"].shape[-1] for batch in batches}):
            alike = [batch for batch in batches if batch["input_ids"].shape[-1] == width]
            effects = importance(source.model, alike, method="fisher")
            assert effects.values is not None
            rows = sum(len(batch["input_ids"]) for batch in alike)
            total[..., :width, :width] += effects.values * rows
            loss += effects.loss * rows / measured
    finally:
        detach(source.model, missing_ok=True)
    weights = pair_weights(shape)
    return (total / weights).where(weights > 0, 0.0), loss


def _read_order(path: Path) -> tuple[Tensor, int]:
    """The order of the edges, the last to be cut the highest, and how many rounds it has."""
    tensors, about = read_tensors(path, what="an order of edges", expected=FORMAT)
    return tensors["order"], int(about["rounds"])
