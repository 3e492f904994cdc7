"""Figures of a study. No pyplot, no global state: each function returns its own `Figure`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from masksearch.analysis.compare import ComparedMasks, MaskRuns
from masksearch.analysis.pareto import hypervolume_curve, pareto
from masksearch.contracts import Objective, Record
from masksearch.report.figures.labels import place_labels
from masksearch.report.figures.masks import plot_masks

__all__ = ["plot_frontier", "plot_hypervolume", "plot_masks", "save"]

# Okabe and Ito's palette, told apart with any kind of colour vision; the shape says it twice.
STYLES = {
    "random": ("#56B4E9", "o"),
    "tpe": ("#0072B2", "s"),
    "dam": ("#D55E00", "^"),
    "evolution": ("#009E73", "v"),
    "nsga2": ("#CC79A7", "P"),
    "gp": ("#E69F00", "X"),
}
SPARE = [("#0072B2", "<"), ("#D55E00", ">"), ("#009E73", "p"), ("#CC79A7", "h"), ("#E69F00", "8")]
HAND = ("#555555", "D")
INK = "#222222"
KINDS = {
    "searched": ("#D55E00", "s"),
    "candidate": ("#CC79A7", "^"),
    "hand-designed": ("#222222", "D"),
    "control": ("#777777", "o"),
}
TITLES = {
    "loss": "held-out loss (nats per token)",
    "glue": "GLUE score (mean over tasks)",
    "sparsity": "sparsity (% of the n x n cells left out)",
}
SPARSITY = Objective("sparsity", "max", 0.0)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of that size in inches, with room made for every label."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def clean(axes: Axes, x: str, y: str) -> None:
    """Axis labels, a light grid and no box."""
    axes.set_xlabel(x, fontsize=11, color=INK)
    axes.set_ylabel(y, fontsize=11, color=INK)
    axes.tick_params(labelsize=10, colors=INK)
    axes.grid(color="#E4E4E4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def styles_of(strategies: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each strategy; a known name always has the same."""
    spare = iter(SPARE * 8)
    return {name: STYLES.get(name) or next(spare, ("#777777", "o")) for name in strategies}


def score_title(objective: Objective) -> str:
    """Axis label of an objective, with the direction that is better."""
    title = TITLES.get(objective.name, objective.name.replace("_", " "))
    return f"{title}, {'higher' if objective.goal == 'max' else 'lower'} is better"


def plot_frontier(
    records: Iterable[Record],
    objectives: Sequence[Objective],
    comparison: ComparedMasks | None = None,
) -> Figure:
    """Sparsity against score: every full-fidelity record, one front per strategy.

    Baselines (origin `baseline:NAME`) form the front of the hand-designed masks. A front is
    drawn as the steps below which everything is dominated. The masks of a comparison come
    with their names and 95% intervals over seeds; dense and oracle are level lines.

    Args:
        records: Of any status; early-stopped and failed ones are not drawn.
        objectives: The first one is the y axis.
        comparison: Masks that were judged over several seeds under the same protocol.
    """
    score = objectives[0]
    figure = new_figure(8.4, 5.6)
    axes = figure.add_subplot()
    clean(axes, TITLES["sparsity"], score_title(score))
    groups: dict[str, list[Record]] = {}
    for record in records:
        if record.scored and math.isfinite(record.value(score.name)):
            hand = record.origin.startswith("baseline:")
            groups.setdefault("hand-designed" if hand else record.origin or "search", []).append(
                record
            )
    entries = list(comparison.entries.values()) if comparison is not None else []
    entries = [entry for entry in entries if entry.scores and math.isfinite(entry.sparsity)]
    if not groups and not entries:
        axes.text(
            0.5, 0.5, "no finished trial", transform=axes.transAxes, ha="center", fontsize=13
        )
        return figure
    styles = styles_of(name for name in groups if name != "hand-designed")
    labels: list[tuple[float, float, str, str]] = []
    levels: dict[str, float] = {}
    named = {entry.name for entry in entries}
    for name, group in groups.items():
        colour, marker = styles.get(name, HAND)
        points = []
        for record in group:
            known = record.origin.partition(":")[2]
            if known in ("dense", "oracle"):
                levels.setdefault(known, record.value(score.name))
            if known == "dense":
                continue  # a level line; at 0% it would squeeze the masks to one side
            points.append(record)
            if known and known not in named:
                named.add(known)  # several studies may hold the same baseline
                labels.append((*place(record, score), known, colour))
        draw_group(axes, name, points, score, colour, marker, faint=bool(entries))
    for entry in entries:
        if entry.name in ("dense", "oracle"):
            levels[entry.name] = entry.score.mean
        if entry.name != "dense":
            draw_entry(axes, entry)
            colour = KINDS[entry.kind][0]
            labels.append((100 * entry.sparsity, entry.score.mean, entry.name, colour))
    for name, level in levels.items():
        axes.axhline(level, color="#777777", linewidth=1, linestyle=":", zorder=1)
        if name == "dense":
            axes.annotate(
                "dense",
                (0, level),
                xycoords=("axes fraction", "data"),
                xytext=(3, 3),
                textcoords="offset points",
                fontsize=10,
                color="#666666",
            )
    axes.margins(x=0.06, y=0.1)
    handles, names = axes.get_legend_handles_labels()
    unique = dict(zip(names, handles, strict=True))
    if unique:
        figure.legend(
            unique.values(),
            unique.keys(),
            loc="outside lower center",
            ncols=min(3, len(unique)),
            fontsize=10,
            frameon=False,
        )
    place_labels(figure, axes, labels)
    return figure


def place(record: Record, score: Objective) -> tuple[float, float]:
    """Coordinates of a record: sparsity in percent, score."""
    return 100 * record.value("sparsity"), record.value(score.name)


def draw_group(
    axes: Axes,
    name: str,
    records: list[Record],
    score: Objective,
    colour: str,
    marker: str,
    faint: bool,
) -> None:
    """One strategy's records and the steps of their front."""
    if not records:
        return
    points = [place(record, score) for record in records]
    axes.scatter(
        [x for x, _ in points],
        [y for _, y in points],
        s=26,
        color=colour,
        marker=marker,
        alpha=0.4 if faint else 0.65,
        linewidths=0,
        zorder=2,
    )
    front = sorted(place(record, score) for record in pareto(records, (score, SPARSITY)))
    hand = name == "hand-designed"
    axes.plot(
        [x for x, _ in front],
        [y for _, y in front],
        drawstyle="steps-pre",
        color=colour,
        linewidth=1.6,
        linestyle="--" if hand else "-",
        marker=marker,
        markersize=5,
        label="hand-designed, in the search" if hand else f"{name} and its front",
        zorder=3,
    )


def draw_entry(axes: Axes, entry: MaskRuns) -> None:
    """One mask of a comparison with its interval; a hollow marker has one seed only."""
    colour, marker = KINDS[entry.kind]
    score = entry.score
    many = score.n_seeds > 1
    axes.errorbar(
        [100 * entry.sparsity],
        [score.mean],
        yerr=[[score.mean - score.low], [score.high - score.mean]] if many else None,
        fmt=marker,
        markersize=7,
        color=colour,
        markerfacecolor=colour if many else "white",
        elinewidth=1.4,
        capsize=3,
        label=f"{entry.kind}, {'95% interval' if many else 'one seed'}",
        zorder=4,
    )


def plot_hypervolume(
    studies: Mapping[str, Iterable[Record]], objectives: Sequence[Objective]
) -> Figure:
    """Hypervolume of each strategy's front over counted trials and over compute.

    Baselines are left out: every strategy starts from nothing. Failed and stopped trials add
    their seconds.

    Raises:
        ValueError: If a `worst` is not finite.
    """
    figure = new_figure(9.6, 4.2)
    by_trials, by_seconds = figure.subplots(1, 2, sharey=True)
    curves = {
        name: hypervolume_curve(
            [record for record in records if not record.origin.startswith("baseline:")],
            objectives,
        )
        for name, records in studies.items()
    }
    longest = max((curve[-1].seconds for curve in curves.values() if curve), default=0.0)
    unit, size = next(
        ((u, s) for u, s in (("hours", 3600.0), ("minutes", 60.0)) if longest >= 2 * s),
        ("seconds", 1.0),
    )
    styles = styles_of(studies)
    for name, curve in curves.items():
        colour, marker = styles[name]
        style: dict[str, Any] = {
            "drawstyle": "steps-post",
            "color": colour,
            "linewidth": 1.8,
            "marker": marker,
            "markersize": 5,
            "markevery": max(1, len(curve) // 10),
            "label": name,
        }
        heights = [0.0] + [progress.hypervolume for progress in curve]
        by_trials.plot([0] + [progress.trials for progress in curve], heights, **style)
        by_seconds.plot([0.0] + [p.seconds / size for p in curve], heights, **style)
    worst = ", ".join(f"{objective.name} {objective.worst:g}" for objective in objectives)
    clean(by_trials, "counted trials (finished, reused or stopped)", "hypervolume dominated")
    clean(by_seconds, f"compute, failed trials included ({unit})", "")
    figure.suptitle(f"measured from: {worst}", fontsize=10, color="#555555")
    by_trials.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (by_trials, by_seconds):
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
    if len(curves) > 0:
        by_trials.legend(fontsize=10, frameon=False, loc="lower right")
    return figure


def save(figure: Figure, folder: Path | str, name: str) -> tuple[Path, Path]:
    """Writes `name.png` (150 dpi) and `name.pdf` into the folder, making it if need be."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    png, pdf = folder / f"{name}.png", folder / f"{name}.pdf"
    facts = {"Creator": "masksearch", "CreationDate": None}
    figure.savefig(png, dpi=150, bbox_inches="tight", metadata={"Software": "masksearch"})
    figure.savefig(pdf, bbox_inches="tight", metadata=facts)
    return png, pdf
