import re

import pytest
import torch
from matplotlib.text import Text

from masksearch import masks
from masksearch.errors import HeadCountError
from masksearch.report.pictures import plot_masks


def words(figure):
    return [text.get_text() for text in figure.findobj(Text)]


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
