from __future__ import annotations

import pytest
import torch
from matplotlib.text import Text

from masksearch import masks
from masksearch.analysis.compare import ComparedMasks
from masksearch.errors import HeadCountError
from masksearch.report.figures.front import (
    plot_frontier,
    plot_hypervolume,
    plot_masks,
    save,
)
from masksearch.report.figures.masks import planes


@pytest.fixture
def study(record):
    found = [
        record(k, 0.8 - 0.1 * mask.sparsity(16), mask, origin=f"baseline:{name}")
        for k, (name, mask) in enumerate(masks.FAMILIES.items())
    ]
    found += [record(10 + k, 0.7 + 0.01 * k, masks.window(k)) for k in range(8)]
    return [*found, record(20, None), record(21, 0.9, masks.window(9), status="stopped")]


def words(figure):
    return [text.get_text() for text in figure.findobj(Text)]


def test_frontier_names_the_hand_designed_masks(study, objectives):
    figure = plot_frontier(study, objectives)
    assert set(masks.FAMILIES) <= set(words(figure))
    assert any("sparsity (%" in word for word in words(figure))
    assert any("higher is better" in word for word in words(figure))


def test_named_masks_bear_the_number_that_the_legend_explains(study, objectives):
    figure = plot_frontier(study, objectives)
    (legend,) = figure.legends
    titles = [text.get_text() for text in legend.get_texts()]
    assert titles[-len(masks.FAMILIES) :] == list(masks.FAMILIES)
    numbers = [note.get_text() for note in figure.axes[0].texts]
    expected = {str(k) for k in range(1, len(masks.FAMILIES) + 1)}
    assert {n for text in numbers for n in text.split(", ")} == expected


def test_masks_in_one_place_share_their_numbers(objectives, compared, shape):
    runs = {"mine": (masks.star(), [0.7, 0.72]), "star": (masks.star(), [0.7, 0.72])}
    comparison = ComparedMasks(tuple(compared(runs)), objectives, shape=shape)
    (note,) = plot_frontier([], objectives, comparison).axes[0].texts
    assert note.get_text() == "1, 2"


def test_frontier_with_a_comparison(study, objectives, compared, shape):
    runs = {"mine": (masks.window(1), [0.7, 0.72]), "dense": (masks.full(), [0.8])}
    comparison = ComparedMasks(tuple(compared(runs)), objectives, shape=shape)
    assert {"mine", "dense"} <= set(words(plot_frontier(study, objectives, comparison)))
    assert "mine" in words(plot_frontier([], objectives, comparison))


def test_frontier_without_a_result_says_so(record, objectives):
    assert "no finished trial" in words(plot_frontier([record(0, None)], objectives))


def test_hypervolume_leaves_baselines_out(study, objectives):
    figure = plot_hypervolume({"random": study}, objectives)
    line = figure.axes[0].get_lines()[0]
    assert line.get_xdata()[-1] == 9  # 8 finished and 1 stopped trial
    assert figure.axes[1].get_lines()[0].get_xdata()[-1] == 20  # seconds, the failed one's too
    assert len(plot_hypervolume({"empty": []}, objectives).axes) == 2


def test_equal_layers_and_heads_are_one_panel():
    assert planes(masks.star(), 16, 3, 2).shape == (1, 1, 16, 16)
    two = masks.per_head([masks.star(), masks.window(2)])
    assert planes(two, 16, 3, 2).shape == (1, 2, 16, 16)
    assert planes(masks.per_layer([two, masks.star()]), 16, 2, 2).shape == (2, 2, 16, 16)
    assert planes(torch.ones(16, 16), 16, 2, 2).shape == (1, 1, 16, 16)


def test_masks_show_names_and_sparsity():
    table = torch.eye(16, dtype=torch.bool).expand(3, 1, 16, 16).clone()
    table[1, 0, 0] = True
    figure = plot_masks({"star": masks.star(), "mine": table}, 16, 3, 2)
    assert f"star\n{100 * masks.star().sparsity(16):.1f}% sparse" in words(figure)
    assert {"layer 0", "layer 2", "every head"} <= set(words(figure))
    assert "no mask to draw" in words(plot_masks({}, 16))


def test_picture_shows_the_bits():
    figure = plot_masks({"w": masks.window(1)}, 8)
    image = figure.axes[0].get_images()[0].get_array()
    dark = torch.tensor(image.sum(-1) < 1.5)
    assert torch.equal(dark, masks.window(1).dense(8)[0, 0])


def test_save_writes_png_and_pdf(tmp_path):
    png, pdf = save(plot_masks({"w": masks.window(1)}, 8), tmp_path / "new", "masks")
    assert png.read_bytes().startswith(b"\x89PNG")
    assert pdf.read_bytes().startswith(b"%PDF")


def test_messages():
    with pytest.raises(ValueError, match="table of 8 x 8 cannot be drawn at length 16"):
        plot_masks({"t": torch.ones(8, 8)}, 16)
    with pytest.raises(HeadCountError):
        plot_masks({"t": masks.per_head([masks.star(), masks.window(1)])}, 16, 1, 3)
