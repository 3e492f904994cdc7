from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from matplotlib.text import Text

from masksearch.report.figures.positions import (
    plot_attention_maps,
    plot_importance_dynamics,
    plot_profile,
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
    assert {"head 2", "share", "layer 1\nquery", "key"} <= set(words(figure))
    pictures = [axes.get_images()[0] for axes in figure.axes[:6]]
    for index, picture in enumerate(pictures):
        np.testing.assert_allclose(picture.get_array(), values.flatten(0, 1)[index])
        assert picture.get_clim() == (0.0, values.max().item())
    effects = plot_attention_maps(values[:1, :1] - 0.5)
    low, high = effects.axes[0].get_images()[0].get_clim()
    assert low == -high
    assert {"all heads", "all layers\nquery"} <= set(words(effects))


def test_profiles_have_a_panel_a_layer_and_a_line_a_head():
    figure = plot_profile({"drop": line(2, 3), "flip": line(2, 1, seed=1)}, "nats")
    assert [len(axes.lines) for axes in figure.axes] == [1 + 4, 1 + 4]  # and the line at 0
    assert {"drop, head 2", "flip", "layer 1", "nats"} <= set(words(figure))
    np.testing.assert_allclose(figure.axes[1].lines[4].get_ydata(), line(2, 1, seed=1).mean[1, 0])


def test_profiles_without_intervals_are_drawn():
    one = line()
    unknown = torch.full_like(one.mean, float("nan"))
    figure = plot_profile({"learned": Line(one.at, one.mean, unknown, unknown)})
    assert figure.axes[0].lines[1].get_ydata().tolist() == one.mean.flatten().tolist()
    figure.canvas.draw()


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
    with pytest.raises(ValueError, match=r"same number of layers, got \[1, 2\]"):
        plot_profile({"a": line(1), "b": line(2)})
    with pytest.raises(ValueError, match=r"3 steps .* 2 profiles"):
        plot_importance_dynamics([1, 2, 3], [line(), line()])
    with pytest.raises(ValueError, match="measure with per='model'"):
        plot_importance_dynamics([1], [line(1, 2)])
