"""Pictures of masks, and those of a DAM run."""

import re

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.container import BarContainer
from matplotlib.text import Text

from masksearch import masks
from masksearch.contracts import generator
from masksearch.errors import HeadCountError
from masksearch.report.dam import plot_agreement, plot_dam, plot_gates, plot_offsets
from masksearch.report.pictures import plot_masks


def words(figure):
    FigureCanvasAgg(figure).draw()
    return [text.get_text() for text in figure.findobj(Text)]


# -- masks ---------------------------------------------------------------------------------------
def test_equal_layers_and_heads_are_one_panel():
    two = masks.per_head([masks.star(), masks.window(2)])
    for mask, named in (
        (masks.star(), set()),
        (torch.ones(16, 16), set()),
        (two, {"every layer", "head 0", "head 1"}),
        (masks.per_layer([masks.star(), two]), {"layer 0", "layer 1", "head 0", "head 1"}),
        (masks.per_layer([masks.star(), masks.full()]), {"layer 0", "layer 1", "every head"}),
    ):
        figure = plot_masks({"mine": mask}, 16, 2, 2)
        assert {text for text in words(figure) if re.search("layer|head", text)} == named


def test_masks_show_names_and_sparsity():
    table = torch.eye(16, dtype=torch.bool).expand(3, 1, 16, 16).clone()
    table[1, 0, 0] = True
    figure = plot_masks({"star": masks.star(), "mine": table}, 16, 3, 2)
    assert f"star\n{100 * masks.star().sparsity(16):.1f}% sparse" in words(figure)
    assert {"layer 0", "layer 2", "every head"} <= set(words(figure))


def test_title_has_the_sparsity_that_is_given():
    figure = plot_masks({"star": masks.star()}, 16, sparsities={"star": 0.123})
    assert "star\n12.3% sparse" in words(figure)


def test_picture_shows_the_bits():
    figure = plot_masks({"w": masks.window(1)}, 8)
    image = figure.axes[0].get_images()[0].get_array()
    dark = torch.tensor(image.sum(-1) < 1.5)
    assert torch.equal(dark, masks.window(1).dense(8)[0, 0])


def test_a_mask_of_other_heads_and_a_table_of_another_length_are_refused():
    with pytest.raises(ValueError, match="table of 8 x 8 cannot be drawn at length 16"):
        plot_masks({"t": torch.ones(8, 8)}, 16)
    with pytest.raises(HeadCountError):
        plot_masks({"t": masks.per_head([masks.star(), masks.window(1)])}, 16, 1, 3)


# -- DAM -----------------------------------------------------------------------------------------
AGREEMENT = {
    "seeds": 3, "iou": 0.4, "chance": 0.05, "matched": 0.6, "matched_chance": 0.07,
    "by_pair": [0.3, 0.4, 0.5], "matched_by_pair": [0.6, 0.6, 0.6],
}  # fmt: skip


def heights(axes):
    return [bar.get_height() for c in axes.containers if isinstance(c, BarContainer) for bar in c]


@pytest.fixture(scope="module")
def probabilities():
    return torch.rand(2, 3, 8, 8, generator=generator(1))


@pytest.mark.slow
def test_dam_shades_the_warm_up(one_shot):
    figure = plot_dam(one_shot.curve, warmup_steps=15)
    for axes in figure.axes:
        (shade,) = axes.patches
        assert (shade.get_x(), shade.get_width()) == (0, 15)
    assert "warm-up: dense attention" in words(figure)
    assert not plot_dam(one_shot.curve).axes[0].patches


@pytest.mark.slow
def test_gates_shows_every_probability(probabilities):
    figure = plot_gates(probabilities)
    picture = figure.axes[0].get_images()[0]
    image = picture.get_array().filled(np.nan)
    top, across = image.shape[0] // 2 - 8, 9  # a panel's first row, and from panel to panel
    shown = [
        image[row : row + 8, left : left + 8]
        for row in (top, image.shape[0] // 2 + top)
        for left in (0, across, 2 * across)
    ]
    np.testing.assert_allclose(shown, probabilities.flatten(0, 1))
    assert np.isfinite(image).sum() == probabilities.numel()
    assert picture.get_clim() == (0, 1)
    named = words(figure)
    assert {"layer 0", "layer 1", "head 2"} <= set(named)
    assert f"{100 * probabilities[1, 2].mean():.1f}%" in named
    assert {"all layers", "all heads"} <= set(words(plot_gates(probabilities[:1, :1])))


@pytest.mark.slow
def test_offsets_match_loop(probabilities):
    figure = plot_offsets(probabilities)
    lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
    y = lines["mean of all"].get_ydata()
    for offset in (-7, -1, 0, 3):
        cells = [
            float(probabilities[layer, head, i, i + offset])
            for layer in range(2)
            for head in range(3)
            for i in range(8)
            if 0 <= i + offset < 8
        ]
        assert y[offset + 7] == pytest.approx(sum(cells) / len(cells), rel=1e-5)
    assert lines["if all are equal"].get_ydata()[0] == pytest.approx(probabilities.mean().item())
    assert len(figure.axes[0].get_lines()) == 2 * 3 + 2
    assert len(plot_offsets(probabilities[:1, :1]).axes[0].get_lines()) == 2


def test_agreement_stands_against_chance():
    figure = plot_agreement({"free, 5%": AGREEMENT, "free, 10%": AGREEMENT})
    axes = figure.axes[0]
    assert heights(axes) == [0.4, 0.6] * 2
    levels = [line.get_ydata()[0] for line in axes.get_lines()]
    assert levels == [0.05, 0.07] * 2
    points = [c for c in axes.collections if isinstance(c, PathCollection)]
    assert [len(c.get_offsets()) for c in points] == [3] * 4
    assert "free, 5%\n(3 seeds)" in words(figure)
