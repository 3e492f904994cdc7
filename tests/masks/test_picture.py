"""Masks as HTML: the picture shows the cells, is small, and nothing in it is markup."""

import base64
import io
import re
from dataclasses import dataclass

import matplotlib.image
import numpy as np
import pytest
import torch

from masksearch import masks
from masksearch.masks.core import Mask


def shown(html: str) -> np.ndarray:
    """Darkness of the pixels of the picture in a piece of HTML, in [0, 1]."""
    data = base64.b64decode(re.search(r"base64,([^\"]+)", html)[1])
    red = matplotlib.image.imread(io.BytesIO(data), format="png")[..., 0] * 255
    return (242 - red) / (242 - 11)


@pytest.mark.parametrize("mask", [masks.bigbird(), masks.window(3), masks.causal()], ids=str)
def test_pixels_are_the_cells(mask):
    html = mask._repr_html_()
    assert np.allclose(shown(html), mask.dense(64)[0, 0].float().numpy(), atol=0.01)
    assert f"<code>{mask}</code>" in html
    assert f"{100 * mask.sparsity(64):.1f}% sparse at 64 positions" in html


def test_layers_and_heads_are_panels_and_equal_ones_are_drawn_once():
    first, second = masks.window(1), masks.star()
    across = masks.per_head([first, second])._repr_html_()
    assert shown(across).shape == (64, 64 + 4 + 64)
    assert np.allclose(shown(across)[:, 68:], second.dense(64)[0, 0].numpy(), atol=0.01)
    assert "2 heads across" in across
    down = masks.per_layer([masks.per_head([first, second]), masks.per_head([second, first])])
    assert shown(down._repr_html_()).shape == (132, 132)
    assert "3 layers across" in masks.per_layer([first, second, first])._repr_html_()
    assert shown(masks.per_head([first, first])._repr_html_()).shape == (64, 64)


@pytest.mark.parametrize("shape", [(1, 1, 700, 700), (12, 12, 96, 96), (3, 5, 17, 17)], ids=str)
@pytest.mark.parametrize("density", [0.05, 0.5])
def test_a_picture_is_small_whatever_the_table(shape, density):
    table = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < density
    html = masks.table(table | torch.eye(shape[-1]).bool())._repr_html_()
    assert len(html) < 50_000
    assert ("6 x 8 are drawn" in html) == (shape[0] == 12)


def test_one_cell_is_seen_in_a_reduced_picture():
    table = torch.eye(900).bool()
    assert (shown(masks.table(table)._repr_html_()).diagonal() > 0).all()


def test_masks_of_tokens_are_told_in_words():
    assert "mask.table(input_ids)" in (masks.special_tokens(101) | masks.window(1))._repr_html_()


def test_text_is_escaped():
    @dataclass(frozen=True, eq=False, repr=False)
    class Named(Mask, stored=False):
        kind = "named"
        name: str

        def allows(self, at):
            return at.offset == 0

    html = Named("<script>alert(1)</script>")._repr_html_()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
