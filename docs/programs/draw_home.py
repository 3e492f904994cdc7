"""Draws images/home.png, the first picture of the site.

    PYTHONPATH=. python docs/programs/draw_home.py

docs/results/home.csv are masks of the comparison that docs/comparing.md prints.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

import masksearch as ms
from masksearch import masks

DOCS = Path(__file__).parents[1]
COLOURS = ["#efece4", "#3a7cc4"]


def main() -> None:
    """One panel for each mask, with its score and 95 % interval."""
    rows = pd.read_csv(DOCS / "results" / "home.csv")
    figure, panels = plt.subplots(1, len(rows), figsize=(10, 3.1), layout="constrained")
    length = ms.GradedProcess().length
    for panel, row in zip(panels, rows.itertuples(), strict=True):
        table = masks.parse(row.expression).dense(length)[0, 0]
        panel.imshow(table, cmap=plt.matplotlib.colors.ListedColormap(COLOURS), vmin=0, vmax=1)
        panel.set_title(row.title, fontsize=11)
        panel.set_xlabel(
            f"{100 * row.sparsity:.0f} % left out\nscore {row.score:.2f} "
            f"[{row.low:.2f}, {row.high:.2f}]",
            fontsize=11,
        )
        panel.set(xticks=[], yticks=[])
        for side in panel.spines.values():
            side.set_visible(False)
    figure.savefig(DOCS / "images" / "home.png", dpi=110)


if __name__ == "__main__":
    main()
