"""Draws docs/images/live_tokens.png: the tokens of one sentence that each layer still needs.

    MASKSEARCH_DATA=DIR python docs/programs/draw_live_tokens.py     # seconds

Two schedules of `masks.equal_cost_baselines` at 60 % of the work of a model of MiniLM's sizes, on
a sentence of SST-2's development file. Words are counted in the training file, split at spaces.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import torch
from matplotlib import rc_context
from matplotlib.axes import Axes

from masksearch import Mask, Shape, masks
from masksearch.report.style import BLUE, INK, LABEL, PAGE, PRINT, SMALL, new_figure, write_figure

PICTURE = Path(__file__).parents[1] / "images" / "live_tokens.png"
SENTENCE = "a gripping movie , played with performances that are all understated and touching ."
KINDS = ("rarest words, evenly", "every k-th token, late")
WORK, LENGTH, LAYERS, ROWS = 0.6, 64, 6, 1000
SIZES = {"hidden_size": 384, "intermediate_size": 1536}
GONE = "#C8C8C8"
DPI = 160


def read_texts(name: str) -> list[list[str]]:
    """The sentences of a file of SST-2, as words between [CLS] and [SEP]."""
    path = Path(os.environ["MASKSEARCH_DATA"]) / "glue" / "SST-2" / f"{name}.tsv"
    lines = path.read_text("utf-8").splitlines()[1:]
    return [["[CLS]", *line.split("\t")[0].split()[: LENGTH - 2], "[SEP]"] for line in lines]


def draw(axes: Axes, words: list[str], live: torch.Tensor) -> None:
    """The words once a layer; those that are needed no more are grey."""
    widths = [len(word) + 1.3 for word in words]
    starts = [sum(widths[:at]) for at in range(len(words))]
    for row, needed in enumerate(live.tolist()):
        label = f"layer {row}" if row < len(live) - 1 else "head"
        axes.text(-1, -row, label, ha="right", va="center", fontsize=SMALL, color=INK)
        for start, word, stays in zip(starts, words, needed, strict=True):
            style = {"color": BLUE if stays else GONE, "fontsize": SMALL - 0.5}
            axes.text(start, -row, word, va="center", family="monospace", **style)
    axes.set(xlim=(-7, sum(widths)), ylim=(-len(live) + 0.4, 0.6))
    axes.axis("off")


@rc_context(PRINT)
def main() -> None:
    """Writes the picture."""
    texts, words = read_texts("train"), ["[CLS]", *SENTENCE.split(), "[SEP]"]
    assert words in read_texts("dev"), "another file"
    ids = {
        word: at for at, word in enumerate(sorted({w for text in [*texts, words] for w in text}))
    }

    def rows(several: list[list[str]]) -> torch.Tensor:
        return torch.tensor(
            [[ids[word] for word in t] + [-1] * (LENGTH - len(t)) for t in several]
        )

    tokens = rows(texts[:: len(texts) // ROWS][:ROWS])
    shape = Shape(
        LENGTH, LAYERS, 1, read=1, lengths=Counter(map(len, texts)), tokens=tokens, **SIZES
    )
    schedules: dict[str, Mask] = masks.equal_cost_baselines(WORK, shape, cost=masks.work)
    one = Shape(LENGTH, LAYERS, 1, read=1, lengths={len(words): 1}, tokens=rows([words]), **SIZES)
    figure = new_figure(PAGE, 2.9)
    for axes, kind in zip(figure.subplots(2, 1), KINDS, strict=True):
        mask = schedules[kind]
        live = masks.live_tokens(mask, one)
        draw(axes, words, (live[0] if live.ndim == 3 else live)[:, : len(words)])
        title = f"{kind}: {100 * masks.work(mask, shape):.0f} % of the work on all texts, "
        title += f"{100 * masks.work(mask, one):.0f} % on this one"
        axes.set_title(title, fontsize=LABEL, loc="left", color=INK)
    write_figure(figure, PICTURE, dpi=DPI)


if __name__ == "__main__":
    main()
