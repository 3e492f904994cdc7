from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from matplotlib.text import Text

from masksearch.report.figures.positions import (
    plot_attention_maps,
    plot_importance_dynamics,
)


@dataclass(frozen=True)
class Line:
    at: tuple[int, ...]
    mean: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor


def line(layers: int = 1, heads: int = 1, units: int = 5, seed: int = 0) -> Line:
    source = torch.Generator().manual_seed(seed)
    mean = torch.randn(layers, heads, units, generator=source)
    return Line(tuple(range(-2, units - 2)), mean, mean - 1, mean + 1)


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


def test_dynamics_show_every_step():
    steps = [0, 1, 8]
    profiles = [line(seed=seed) for seed in range(3)]
    points = [(p.mean[..., 2], p.low[..., 2], p.high[..., 2]) for p in profiles]
    figure = plot_importance_dynamics(steps, profiles, {"diagonal": points})
    image = figure.axes[0].get_images()[0].get_array()
    np.testing.assert_allclose(image, torch.stack([p.mean[0, 0] for p in profiles], -1))
    drawn = next(one for one in figure.findobj() if getattr(one, "_label", "") == "diagonal")
    np.testing.assert_allclose(drawn.get_ydata(), [p.mean[0, 0, 2] for p in profiles])
    assert {"0", "1", "8", "diagonal", "optimiser steps"} <= set(words(figure))
    assert len(plot_importance_dynamics(steps, profiles).axes) == 2  # the picture and its bar


def test_messages():
    with pytest.raises(ValueError, match=r"\[layers, heads, n, n\], got \[4, 4\]"):
        plot_attention_maps(torch.ones(4, 4))
    with pytest.raises(ValueError, match=r"3 steps .* 2 profiles"):
        plot_importance_dynamics([1, 2, 3], [line(), line()])
    with pytest.raises(ValueError, match="measure with per='model'"):
        plot_importance_dynamics([1], [line(1, 2)])
