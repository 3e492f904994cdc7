"""What is lost without the diagonal, and what without as many other cells?"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import masksearch as ms
from masksearch import masks
from masksearch.analysis.stats import PairedDifference, estimate, paired_difference
from masksearch.contracts import Evaluator, Record, generator
from masksearch.report.style import PRINT

RANDOM = 53  # stream of random numbers

Scores = Mapping[str, Mapping[str, Mapping[int, float]]]  # measure -> mask -> seed -> value


@dataclass(frozen=True)
class Test:
    """Masks whose diagonal is taken out, judged by one evaluator."""

    name: str
    evaluator: Evaluator
    whole: Mapping[str, masks.Mask]  # the masks before anything is taken out
    needed: masks.Mask  # positive control: cells that ought to be missed
    needed_name: str
    seeds: Sequence[int]
    margins: Mapping[str, float]  # measure -> differences below it do not matter, in its unit


def without_random(mask: masks.Mask, length: int, seed: int) -> masks.Mask:
    """The mask without one kept key of each query, drawn at random, never its own position."""
    kept = mask.dense(length)[0, 0]
    others = (kept & ~torch.eye(length, dtype=torch.bool)).float()
    dropped = torch.multinomial(others, 1, generator=generator(seed, RANDOM))
    return masks.table(kept.scatter(1, dropped, value=False))


def variants(test: Test, name: str, seed: int) -> dict[str, masks.Mask]:
    """The mask itself and what is left of it."""
    whole, length = test.whole[name], test.evaluator.shape.length
    return {
        name: whole,
        f"{name}, no diagonal": whole - masks.window(0),
        f"{name}, no random cells": without_random(whole, length, seed),
        f"{name}, no {test.needed_name}": whole - test.needed,
    }


def judged(test: Test, runs: Path, say: Callable[[Record], None]) -> Scores:
    """Every reported value of every run; a seed has random cells of its own."""
    scores: dict[str, dict[str, dict[int, float]]] = {}
    for seed in test.seeds:
        candidates: dict[str, masks.Mask] = {}
        for name in test.whole:
            candidates |= variants(test, name, seed)
        compared = ms.compare(
            candidates,
            test.evaluator,
            run=runs / test.name / f"seed_{seed}",
            seeds=[seed],
            executor=ms.Local(threads=1),
            listeners=[say],
        )
        for name, entry in compared.entries.items():
            held = {**entry.values, "sparsity": {seed: entry.sparsity}}
            for measure, values in held.items():
                scores.setdefault(measure, {}).setdefault(name, {}).update(values)
    return scores


def verdict(difference: PairedDifference, margin: float) -> str:
    """What a 95 % interval says of a difference and a margin of equivalence."""
    if not difference.low <= difference.high:
        return "one seed decides nothing"
    if -margin < difference.low and difference.high < margin:
        return "equivalent"
    if difference.low > 0:
        return "more"
    if difference.high < 0:
        return "less"
    return "undecided"


def contrasts(test: Test) -> list[tuple[str, str]]:
    """The declared differences: (mask, minus mask)."""
    found = []
    for name in test.whole:
        less = [f"{name}, no {what}" for what in ("diagonal", "random cells", test.needed_name)]
        found += [(one, name) for one in less] + [(less[0], less[1])]
    return found


def controls(test: Test, runs: Path, out: Path, say: Callable[[Record], None]) -> None:
    """Judges the masks of one test; writes its tables and its figure."""
    scores = judged(test, runs, say)
    with (out / f"{test.name}_scores.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        titles = ["mask", "sparsity", "measure", "mean", "low", "high"]
        table.writerow([*titles, *(f"seed {seed}" for seed in test.seeds)])
        for measure in test.margins:
            for name, values in scores[measure].items():
                found = estimate(list(values.values()))
                sparsity = estimate(list(scores["sparsity"][name].values())).value
                figures = [found.value, found.low, found.high, *values.values()]
                cells = [f"{figure:.4f}" for figure in figures]
                table.writerow([name, f"{sparsity:.4f}", measure, *cells])
    pairs = {
        (measure, *pair): paired_difference(*(scores[measure][name] for name in pair))
        for measure in test.margins
        for pair in contrasts(test)
    }
    with (out / f"{test.name}_differences.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        titles = ["measure", "mask", "minus", "mean", "low", "high", "seeds", "margin", "verdict"]
        table.writerow(titles)
        for (measure, *pair), d in pairs.items():
            margin = test.margins[measure]
            figures = [f"{figure:.4f}" for figure in (d.value, d.low, d.high)]
            line = [measure, *pair, *figures, d.n, margin, verdict(d, margin)]
            table.writerow(line)
            print(*line, sep="  ", flush=True)
    draw(test, scores, pairs, out / f"{test.name}.png")


@rc_context(PRINT)
def draw(
    test: Test,
    scores: Scores,
    pairs: Mapping[tuple[str, str, str], PairedDifference],
    path: Path,
) -> None:
    """Paired differences with their intervals, every seed a dot; the margin is shaded."""
    listed = contrasts(test)
    size = (3.2 + 3.6 * len(test.margins), 0.42 * len(listed) + 1)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(test.margins), squeeze=False, sharey=True)[0]
    for axes, (measure, margin) in zip(panels, test.margins.items(), strict=True):
        axes.axvspan(-margin, margin, color="0.9", label="margin of equivalence")
        axes.axvline(0, color="0.4", linewidth=0.8)
        for row, (one, other) in enumerate(listed):
            d = pairs[measure, one, other]
            each = [scores[measure][one][s] - scores[measure][other][s] for s in test.seeds]
            axes.plot(each, [row + 0.25] * len(each), ".", color="0.55", markersize=4)
            axes.plot([d.low, d.high], [row, row], color="#0072B2", linewidth=2)
            axes.plot(d.value, row, "o", color="#0072B2", markersize=5)
        axes.set_xlabel(f"difference of {measure}, {len(test.seeds)} seeds")
        axes.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(listed)), [f"{one}\nminus {other}" for one, other in listed])
    panels[0].tick_params(axis="y", labelsize=7)
    panels[0].invert_yaxis()
    panels[0].legend(fontsize=7, loc="best")
    figure.savefig(path, dpi=130)
