"""The picture of what an embedding model keeps under each arm's masks, from results/ alone.

python experiments/23_no_labels/figures.py
"""

from __future__ import annotations

from pathlib import Path

import contrasts
import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes

from masksearch.report import style

NAMES = {
    "dam": "DAM",
    "tpe": "TPE",
    "random": "random search",
    "attention of pairs": "attention weights",
    contrasts.HAND: "best hand-designed",
    "dam, paragraphs": "DAM, texts as long as paragraphs",
    "dam, own": "DAM, sentences of the task",
}
PANELS = {"squad": ("SQuAD, retrieval", "nDCG@10"), "sts-b": ("STS-B", "Spearman")}
STYLES = style.styles_of([name for name in NAMES if ", " not in name])
STYLES |= {contrasts.HAND: (style.INK, "D")}


def draw(axes: Axes, kept: pd.DataFrame, part: str) -> None:
    """The mean of each arm's searches over the share of pairs, with intervals."""
    for name, title in NAMES.items():
        arm, _, more = name.partition(", ")
        of = f"{part}, {more}" if more else part
        own = kept[(kept["of"] == of) & (kept["arm"] == arm)].sort_values("share")
        if own.empty:
            continue
        colour, marker = STYLES[arm]
        ends = np.abs(own[["low", "high"]].to_numpy().T - own["score"].to_numpy())
        ends[:, own["n"] < 3] = 0  # an interval of two searches says nothing
        axes.errorbar(own["share"], own["score"], ends, label=title, color=colour, marker=marker,
                      linestyle="--" if more else "-", markerfacecolor="white" if more else colour,
                      markersize=3.5, linewidth=1.2, elinewidth=0.7)  # fmt: skip
    dense = kept.loc[(kept["of"] == part) & (kept["arm"] == "dense"), "score"].iloc[0]
    axes.axhline(dense, color=style.GREY, linestyle="--", linewidth=0.9, label="dense")
    heading, unit = PANELS[part]
    style.clean(axes, "share of the query-key pairs", unit)
    axes.set_title(heading, fontsize=style.LABEL, color=style.INK)


@rc_context(style.PRINT)
def write(results: Path) -> None:
    """The picture of the lines that are there."""
    kept = contrasts.kept(contrasts.all_lines(results))
    figure = style.new_figure(style.PAGE, 3.0)
    panels = figure.subplots(1, len(PANELS))
    for axes, part in zip(panels, PANELS, strict=True):
        draw(axes, kept, part)
    found = {}
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=3,
                  fontsize=style.SMALL, frameon=False)  # fmt: skip
    style.write_figure(figure, results / "embedder.png")


if __name__ == "__main__":
    write(contrasts.RESULTS)
