"""Writes docs/gallery.md: a picture, a formula, a source and other names for each kind of mask.

    python docs/programs/write_gallery.py

What a mask does and where it comes from is read from its docstring; the table below has the
example that is drawn, the formula (i = query, j = key) and its names elsewhere.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import numpy as np
import torch
from matplotlib.image import imsave

from masksearch import masks
from masksearch.masks.core import RECIPES, Mask
from masksearch.report.pictures import planes, tile_panels

LENGTH = 32  # positions of a picture
PIXELS = 96  # of its side
WORDS = (  # of the pictures of masks that follow the tokens
    "[CLS] the old bridge over the river was closed in may [SEP] in may the city closed "
    "the old bridge and the boats on the river were sent to the sea [SEP]"
).split()
IDS = {"[CLS]": 101, "[SEP]": 102}
TOKENS = [IDS.get(word, WORDS.index(word)) for word in WORDS]

Entry = tuple[str, str, str]  # the line that gives it, its formula, its names in other projects

OFFSET: dict[str, Entry] = {
    "full": ("masks.full()", "every i, j", "dense, full attention"),
    "causal": ("masks.causal()", "j ≤ i", "attention-gym: `causal`"),
    "window": (
        "masks.window(3)",
        "|i - j| ≤ reach",
        "sliding window, band, local attention. transformers' Longformer: `attention_window` = "
        "2 reach; xformers `local_1d_pattern` and MoA: 2 reach + 1; DeepSpeed counts blocks",
    ),
    "dilated": (
        "masks.dilated(9, 3)",
        "|i - j| ≤ reach and gap divides |i - j|",
        "attention-gym: `dilated_sliding_window(reach, gap)`. Longformer multiplies its window "
        "by the dilation",
    ),
    "stride": ("masks.stride(5)", "period divides |i - j|", "one half of strided attention"),
    "offsets": ("masks.offsets([0, 3, 7])", "|i - j| in the set", "diagonals; MInference: slash"),
    "shifts": ("masks.shifts([-4, 0, 9])", "j - i in the set", "one-sided diagonals"),
    "powers_of_two": ("masks.powers_of_two()", "|i - j| = 1, 2, 4, ..", "LogSparse"),
    "toeplitz": (
        "masks.toeplitz(torch.arange(32) % 5 < 2)",
        "bit |i - j| is set; signed: bit j - i",
        "the form in which DAM learns distances",
    ),
}
POSITION: dict[str, Entry] = {
    "global_tokens": (
        "masks.global_tokens(2)",
        "i < count or j < count",
        "transformers' Longformer: `global_attention_mask`; xformers: `global_token_pattern`; "
        "DeepSpeed: `global_block_indices`",
    ),
    "columns": (
        "masks.columns(2)",
        "j < count",
        "attention sinks; DuoAttention: `sink_size`; MInference: vertical",
    ),
    "blocks": (
        "masks.blocks(8)",
        "⌊i / size⌋ = ⌊j / size⌋",
        "chunked attention; DeepSpeed `Fixed`: `num_local_blocks`",
    ),
    "block_columns": (
        "masks.block_columns(8, 1)",
        "j mod size ≥ size - last",
        "summary columns; DeepSpeed `Fixed`: `num_global_blocks`, the last of a window too",
    ),
    "axial": (
        "masks.axial(4, 8)",
        "same row or same column of the grid",
        "criss-cross attention; xformers: `axial_nd`",
    ),
    "butterfly": ("masks.butterfly(2)", "⌊i / b⌋ xor ⌊j / b⌋ is 0 or 2ᵏ", "hypercube"),
    "block_layout": (
        "masks.block_layout(torch.eye(4).bool() | torch.eye(4).bool().flip(0), 8)",
        "bit (⌊i / b⌋, ⌊j / b⌋) is set",
        "DeepSpeed: `make_layout`; FlexAttention: `BlockMask`; MIT's Block-Sparse-Attention: "
        "`base_blockmask`",
    ),
    "random_keys": (
        "masks.random_keys(4)",
        "count keys of each query, drawn once",
        "BigBird draws blocks (`num_random_blocks`), and so does DeepSpeed",
    ),
    "table": (
        "masks.table(torch.rand(32, 32, generator=torch.manual_seed(0)) < 0.2)",
        "bit (i, j) is set",
        "a dense boolean mask",
    ),
    "special_tokens": (
        "masks.special_tokens(101, 102)",
        "token i or token j is one of them",
        "transformers' Longformer: `global_attention_mask` by token",
    ),
    "same_token": (
        "masks.same_token(except_ids=[101, 102])",
        "token i = token j, none of the excepted; or i = j",
        "",
    ),
    "token_columns": (
        "masks.token_columns([101, 102, *range(20, 40)])",
        "token j is one of them",
        "",
    ),
}
COMBINED: dict[str, Entry] = {
    "or": ("masks.window(1) | masks.columns(1)", "a or b", "attention-gym: `or_masks`"),
    "and": ("masks.window(5) & masks.causal()", "a and b", "attention-gym: `and_masks`"),
    "not": ("~masks.window(5)", "not a; `a - b` is a and not b", ""),
    "per_head": (
        "masks.per_head([masks.window(2), masks.stride(4)])",
        "head h has the h-th mask",
        "DeepSpeed: `different_layout_per_head`",
    ),
    "per_layer": (
        "masks.per_layer([masks.window(2), masks.full()])",
        "layer l has the l-th mask",
        "transformers: `layer_types`",
    ),
    "cropped": (
        "masks.cropped(masks.butterfly(2), at=64)",
        "the upper left corner of a longer mask",
        "",
    ),
    "without_diagonal": ("masks.without_diagonal(masks.window(3))", "a and i ≠ j", ""),
}
FAMILY: dict[str, Entry] = {
    "strided": (
        "masks.strided(4)",
        "|i - j| < period, or period divides it",
        "openai/sparse_attention: `strided`, causal there",
    ),
    "fixed": (
        "masks.fixed(4, 1)",
        "own block, or last columns of any",
        "openai/sparse_attention and DeepSpeed: `fixed`",
    ),
    "longformer": (
        "masks.longformer(6, 1)",
        "window, and global tokens in front",
        "DeepSpeed: `BSLongformer`, in blocks; attention-gym: `global_sliding_window`",
    ),
    "log_sparse": ("masks.log_sparse()", "|i - j| = 0, 1, 2, 4, ..", "LogSparse Transformer"),
    "bigbird": (
        "masks.bigbird(2, 1, 2)",
        "window, global tokens, random keys",
        "transformers: `block_sparse`; DeepSpeed: `BigBird`; both in blocks",
    ),
    "star": ("masks.star()", "direct neighbours, and position 0 as hub", "Star-Transformer"),
    "a_shape": (
        "masks.a_shape(2, 4)",
        "first keys, and a window",
        "StreamingLLM, DuoAttention and MInference, causal there",
    ),
    "vertical_slash": (
        "masks.vertical_slash([0, 9], [0, 5])",
        "some columns, and some diagonals",
        "MInference: `vertical_and_slash`, causal and chosen by content there",
    ),
}
GALLERY = {
    "Hand-designed families": FAMILY,
    "By offset": OFFSET,
    "By position": POSITION,
    "Combined": COMBINED,
}


def draw(line: str, path: Path) -> None:
    """The mask of that line as a PNG: queries down, keys across, dark = may attend."""
    mask = eval(line, {"masks": masks, "torch": torch})  # a line of the table above
    tokens = mask.needs_tokens
    table = mask.table(torch.tensor([TOKENS])) if tokens else None
    shown = planes(mask if table is None else table[0], LENGTH, mask.layers or 1, mask.heads or 1)
    image = tile_panels(shown.transpose(0, 1) if shown.shape[0] > 1 else shown)
    zoom = PIXELS // LENGTH
    imsave(path, np.kron(image, np.ones((zoom, zoom, 1))))


def row(name: str, entry: Entry, pictures: Path) -> str:
    """One mask: picture, line, formula, source, names elsewhere."""
    line, formula, elsewhere = entry
    draw(line, pictures / f"{name}.png")
    about = " ".join((inspect.getdoc(Mask.kinds.get(name) or RECIPES[name]) or "").split())
    first = re.split(r"(?<=\.) ", about)[0]
    source = re.search(r"Reference: (.*?)(?= >>> | Args: |$)", about)
    link = r"[arXiv \1](https://arxiv.org/abs/\1)"
    parts = [f"`{line}`<br>{first}", formula]
    parts += [re.sub(r"arXiv (\d{4}\.\d{5})", link, source[1]) if source else "", elsewhere]
    cells = " | ".join(re.sub(r"(?=[|])", r"\\", part) for part in parts)
    return f"| {name} | ![{name}](images/masks/{name}.png) | {cells} |"


HEAD = f"""# Gallery of masks

*Written by a program, docs/programs/write_gallery.py, from the docstrings of the masks.*

Every kind of mask that the package has. A picture has {LENGTH} positions: queries stand down (i),
keys across (j), and dark means "may attend". Masks that follow the tokens are drawn over
"{" ".join(WORDS)}".
[masks.md](masks.md) says how masks are combined and measured.

The `reach` of a window is on *each* side, inclusive
([others count otherwise](attention.md#windows-of-other-libraries)).
"""


def main(docs: Path) -> None:
    """Writes `gallery.md` and `images/masks/` into that folder."""
    pictures = docs / "images" / "masks"
    pictures.mkdir(parents=True, exist_ok=True)
    text = HEAD
    for heading, entries in GALLERY.items():
        rows = "\n".join(row(name, entry, pictures) for name, entry in entries.items())
        text += (
            f"\n## {heading}\n\n| mask | picture | line, meaning | formula | source | elsewhere |"
        )
        text += f"\n|---|---|---|---|---|---|\n{rows}\n"
    (docs / "gallery.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(__file__).parents[1])
