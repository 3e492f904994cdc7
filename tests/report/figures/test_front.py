from __future__ import annotations

import itertools

import pytest
import torch
from matplotlib.text import Text

from masksearch import masks
from masksearch.analysis.compare import ComparedMasks
from masksearch.errors import HeadCountError
from masksearch.report.figures.front import (
    plot_compared,
    plot_frontier,
    plot_hypervolume,
    plot_masks,
    save,
    spread,
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


def boxes(figure, artists):
    figure.draw_without_rendering()
    return [artist.get_window_extent() for artist in artists]


@pytest.fixture
def comparison(objectives, compared, shape):
    runs = {
        name: (mask, [0.8 - 0.3 * mask.sparsity(16), 0.81 - 0.3 * mask.sparsity(16)])
        for name, mask in masks.FAMILIES.items()
    }
    runs["found with tpe, at 0.8"] = (masks.star(), [0.9, 0.92])  # as sparse as star, better
    runs["control of the same kind"] = (masks.star(), [0.3])
    runs["dense"] = (masks.full(), [0.7, 0.8])
    runs["broken"] = (masks.window(3), [None, None])
    kinds = {"found with tpe, at 0.8": "searched", "control of the same kind": "control"}
    return ComparedMasks(tuple(compared(runs)), objectives, shape=shape, kinds=kinds)


def test_compared_masks_have_a_front(comparison):
    figure = plot_compared(comparison)
    axes = figure.axes[0]
    (front,) = [line for line in axes.get_lines() if line.get_label() == "their front"]
    points = {
        (100 * entry.sparsity, entry.score.mean)
        for entry in comparison.entries.values()
        if entry.scores and entry.sparsity > 0
    }
    expected = {
        (x, y) for x, y in points
        if not any((a >= x and b > y) or (a > x and b >= y) for a, b in points)
    }  # fmt: skip
    assert set(zip(*front.get_data(), strict=True)) == expected
    titles = [text.get_text() for text in figure.legends[0].get_texts()]
    assert {"searched, 95% interval", "hand-designed, 95% interval"} <= set(titles)
    assert {"control, one seed", "dense (nothing left out)"} <= set(titles)
    assert "broken" not in words(figure)


def test_names_lie_neither_on_marks_nor_on_each_other(comparison):
    figure = plot_compared(comparison)
    axes = figure.axes[0]
    names = boxes(figure, axes.texts)
    assert len(names) == len(comparison.entries) - 2  # not the dense one, not the broken one
    assert all(name.y0 >= axes.get_window_extent().y1 for name in names)
    for k, one in enumerate(names):
        assert not any(one.overlaps(other) for other in names[:k])
    page = figure.bbox
    assert all(page.x0 <= n.x0 and n.x1 <= page.x1 and n.y1 <= page.y1 for n in names)


def test_comparison_of_nothing_says_so(objectives, compared):
    runs = tuple(compared({"mine": (masks.star(), [None])}))
    assert "no finished trial" in words(plot_compared(ComparedMasks(runs, objectives)))


@pytest.mark.parametrize("wanted", [[0.2], [0.5] * 9, [0.0, 0.01, 0.99, 1.0], [0.3] * 40])
def test_names_are_spread_in_order(wanted):
    found = spread(wanted, 0.1)
    gap = min(0.1, 1 / max(1, len(wanted) - 1))
    assert all(b - a >= gap - 1e-5 for a, b in itertools.pairwise(found))
    assert all(-1e-5 <= place <= 1 + 1e-5 for place in found)


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


@pytest.mark.slow
def test_figures_are_fit_for_print(tmp_path, comparison, study, objectives):
    """No Type 3 fonts, text in SVG that is text, the width of a column, and equal files twice."""
    for name, draw in {
        "compared": lambda: plot_compared(comparison),
        "front": lambda: plot_frontier(study, objectives),
    }.items():
        figure = draw()
        png, pdf, svg = save(figure, tmp_path / "new", name)
        assert png.read_bytes().startswith(b"\x89PNG")
        assert b"/Type3" not in pdf.read_bytes()
        assert b"/FontFile2" in pdf.read_bytes()
        assert ">star</text>" in svg.read_text()
        assert f"{3.3 * 72:g}" in svg.read_text()[:1000]
        sizes = {text.get_fontsize() for text in figure.findobj(Text) if text.get_text()}
        assert min(sizes) >= 7
        assert max(sizes) <= 9
        first = [path.read_bytes() for path in (png, pdf, svg)]
        again = save(draw(), tmp_path / "again", name)
        assert [path.read_bytes() for path in again] == first


def test_messages():
    with pytest.raises(ValueError, match="table of 8 x 8 cannot be drawn at length 16"):
        plot_masks({"t": torch.ones(8, 8)}, 16)
    with pytest.raises(HeadCountError):
        plot_masks({"t": masks.per_head([masks.star(), masks.window(1)])}, 16, 1, 3)


def test_the_true_front_is_a_line_of_its_own(study, objectives):
    axes = plot_frontier(study, objectives, [(0.9, 0.5), (0.6, 0.8)]).axes[0]
    (line,) = [line for line in axes.get_lines() if line.get_label() == "true front"]
    assert [tuple(point) for point in line.get_xydata()] == [(60, 0.8), (90, 0.5)]
