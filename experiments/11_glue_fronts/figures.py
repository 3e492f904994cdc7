"""The front as a figure: score against effective sparsity, searched, hand-designed and random.

python experiments/11_glue_fronts/figures.py [--results FOLDER] [--out FILE.png]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes

from masksearch.analysis.stats import CLAIM_SEEDS, estimate
from masksearch.report import style

HERE = Path(__file__).parent
ARMS = {  # mask without its budget -> what the legend says, colour, marker
    "dam layers": ("DAM, gates of each layer", style.ORANGE, "^"),
    "dam": ("DAM, shared gates", style.AMBER, "^"),
    "allocate restore": ("full heads, by restoring one", style.GREEN, "s"),
    "allocate gates": ("full heads, by a gate each", style.GREEN, "D"),
    "tpe": ("TPE", style.BLUE, "v"),
    "random": ("random search", style.SKY, "o"),
    "attention": ("largest mean attention", style.PINK, "X"),
    "importance": ("largest importance", style.PINK, "*"),
    "hand-designed": ("best of three families", style.INK, "D"),
    "random keys": ("random keys", style.GREY, "P"),
}
METRIC = {"STS-B": "Pearson", "QQP": "accuracy", "QNLI": "accuracy"}


@rc_context(style.PRINT)
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "fronts.png")
    given = parser.parse_args()
    scores = pd.read_csv(given.results / "scores.csv")
    scores = scores[(scores.stage == "judged") & (scores.model == "fresh")]
    tasks = sorted(dict.fromkeys(scores.task), key=list(METRIC).index)
    figure = style.new_figure(style.PAGE, 2.6)
    for axes, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        draw_task(axes, scores[scores.task == task])
        axes.set_title(task, fontsize=style.LABEL, color=style.INK, loc="left")
        metric = METRIC.get(task, "score")
        style.clean(axes, "pairs left out (%)", f"{metric}, fresh models")
    shown = [each.get_legend_handles_labels() for each in figure.axes]
    named = {
        label: line for lines, labels in shown for line, label in zip(lines, labels, strict=True)
    }
    order = [
        name for name in ("dense", *(label for label, _, _ in ARMS.values())) if name in named
    ]
    figure.legend(
        [named[name] for name in order], order, loc="outside lower center", ncols=4,
        fontsize=style.SMALL, frameon=False,
    )  # fmt: skip
    style.write_figure(figure, given.out)


def draw_task(axes: Axes, scores: pd.DataFrame) -> None:
    """Each arm's masks: means over search seeds with 95% intervals, joined by a line."""
    dense = estimate(list(scores[scores["mask"] == "dense"].score))
    axes.axhline(dense.value, color=style.INK, linewidth=0.8, linestyle=":", label="dense")
    if dense.n >= CLAIM_SEEDS:
        axes.axhspan(dense.low, dense.high, color=style.INK, alpha=0.06, linewidth=0)
    for arm, (label, colour, marker) in ARMS.items():
        own = scores[scores["mask"].str.fullmatch(rf"{arm} [\d.]+")]
        points = [
            (100 * (1 - found.effective_density.mean()), estimate(list(found.score)))
            for _, found in own.groupby("mask")
            if len(found) >= CLAIM_SEEDS  # as in the tables
        ]
        if points:
            points.sort(key=lambda point: point[0])
            x, y = [at for at, _ in points], [found.value for _, found in points]
            axes.errorbar(
                x, y, yerr=[found.value - found.low for _, found in points], color=colour,
                marker=marker, markersize=3.5, linewidth=1.0, elinewidth=0.6, capsize=1.5,
                markeredgewidth=0, label=label,
            )  # fmt: skip


if __name__ == "__main__":
    main()
