from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.text import Text

from masksearch.report.figures.dam import (
    plot_attention_maps,
)


def words(figure):
    return [text.get_text() for text in figure.findobj(Text)]


def test_maps_show_the_values_of_each_layer_and_head():
    values = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    figure = plot_attention_maps(values, "share")
    assert {"head 2", "share", "layer 1"} <= set(words(figure))
    picture = figure.axes[0].get_images()[0]
    image = picture.get_array().filled(np.nan)
    shown = [image[top : top + 4, left : left + 4] for top in (1, 6) for left in (0, 5, 10)]
    np.testing.assert_allclose(shown, values.flatten(0, 1))
    assert picture.get_clim() == (0.0, values.max().item())
    effects = plot_attention_maps(values[:1, :1] - 0.5)
    low, high = effects.axes[0].get_images()[0].get_clim()
    assert low == -high
    assert {"all heads", "all layers"} <= set(words(effects))


def test_messages():
    with pytest.raises(ValueError, match=r"\[layers, heads, n, n\], got \[4, 4\]"):
        plot_attention_maps(torch.ones(4, 4))
