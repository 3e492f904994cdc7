"""Score against the pairs that are kept, every selector told the same budgets.

python experiments/15_referee/figures.py [--results FOLDER] [--out FILE.png] [--amended]

`--amended` draws the arms and pairs of the plan's amendment, from results/ and results/amended/.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import pandas as pd
import tables
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from masksearch.report import style

HERE = Path(__file__).parent
ARMS = {  # arm -> what the legend says, colour, marker
    "dam": ("DAM, gates of edges", style.ORANGE, "^"),
    "fisher_rounds": ("edges, first order, 5 rounds", style.PINK, "X"),
    "fisher": ("edges, first order, once", style.PINK, "*"),
    "gates": ("full heads, by a gate each", style.GREEN, "D"),
    "restore_star": ("full heads beside stars, by restoring one", style.AMBER, "<"),
    "dictionary": ("drawn heads, by first order", style.BLUE, "s"),
    "random": ("random search over full heads", style.SKY, "o"),
    "random keys and [CLS]": ("random keys and [CLS]", style.GREY, "P"),
}
ADDED = {  # by the plan's amendment
    "swept_gates": ("full heads, by a gate each, swept", style.GREEN, "D"),
    "greedy": ("full heads, greedy rounds", style.BLUE, "s"),
    "tpe": ("TPE over full heads", style.SKY, "o"),
}
METRIC = {"STS-B": "Pearson"}


@rc_context(style.PRINT)
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--amended", action="store_true")
    given = parser.parse_args()
    scores, arms, name = pd.read_csv(given.results / "scores.csv"), ARMS, "selectors.png"
    if given.amended:
        scores, name = tables.amended_scores(given.results), "amended.png"
        arms = {arm: ARMS[arm] for arm in ("dam", "fisher_rounds")} | ADDED
    tasks = sorted(dict.fromkeys(scores.task), key=["STS-B", "QNLI", "QQP", "MNLI"].index)
    figure = style.new_figure(style.PAGE, 2.9)
    for axes, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        draw_task(axes, scores[scores.task == task], arms)
        axes.set_title(task, fontsize=style.LABEL, color=style.INK, loc="left")
        style.clean(axes, "pairs kept (%)", f"{METRIC.get(task, 'accuracy')}, fresh models")
        axes.set_xlim(52, 12)
    lines, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        lines, labels, loc="outside lower center", ncols=3, fontsize=style.SMALL, frameon=False
    )
    write_for_both(figure, given.out or given.results / name)


def draw_task(axes: Axes, scores: pd.DataFrame, arms: dict[str, tuple[str, str, str]]) -> None:
    """Each arm's means over pairs of models, joined by a line, and every pair as a dot."""
    dense = scores[scores.arm == "dense"].score.mean()
    axes.axhline(dense, color=style.GREY, linewidth=0.8, linestyle=":", label="dense")
    for arm, (label, colour, marker) in arms.items():
        own = scores[scores.arm == arm]
        x = 100 * own.judged_density
        axes.plot(x, own.score, ".", color=colour, alpha=0.35, markersize=3, markeredgewidth=0)
        mean = own.groupby("budget")[["judged_density", "score"]].mean()
        axes.plot(
            100 * mean.judged_density, mean.score, color=colour, marker=marker, markersize=4,
            linewidth=1.0, markeredgewidth=0, label=label,
        )  # fmt: skip


def write_for_both(figure: Figure, path: Path) -> None:
    """Writes a PNG that light and dark pages can show: no ground, and grey letters and axes."""
    for axes in figure.axes:
        axes.tick_params(colors=style.GREY)
        axes.spines[:].set_edgecolor(style.GREY)
        axes.grid(color=style.GREY, alpha=0.25)
    for text in figure.findobj(Text):
        text.set_color(style.GREY)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=style.DPI, transparent=True)
    Image.open(drawn).quantize(256, method=Image.Quantize.FASTOCTREE).save(path, optimize=True)


if __name__ == "__main__":
    main()
