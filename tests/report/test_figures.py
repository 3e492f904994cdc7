"""Pictures of masks, and those of a DAM run."""

import re

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.container import BarContainer
from matplotlib.style import library
from matplotlib.text import Text

from masksearch import masks
from masksearch.analysis.stats import Interval
from masksearch.contracts import Report, generator
from masksearch.errors import HeadCountError
from masksearch.report.dam import plot_agreement, plot_dam, plot_gates, plot_offsets, plot_switches
from masksearch.report.pictures import plot_masks, plot_proxy
from masksearch.report.style import write_figure
from masksearch_bench.proxy import ProxyCard


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


# -- a user's matplotlibrc -----------------------------------------------------------------------
FOREIGN = {
    "usetex": {"text.usetex": True},
    "format": {"savefig.format": "pdf"},
    "dark": library["dark_background"],
    "font": {"font.family": "No Such Font", "mathtext.fontset": "cm"},
    "size": {"font.size": 20, "axes.titleweight": "bold", "lines.linewidth": 6},
    "layout": {"figure.autolayout": True, "figure.constrained_layout.w_pad": 0.5},
    "tight": {"savefig.bbox": "tight", "savefig.pad_inches": 1},
    "dpi": {"savefig.dpi": 30, "figure.dpi": 300},
    "clear": {"savefig.transparent": True, "figure.facecolor": "red"},
    "cycle": {"axes.prop_cycle": "cycler(color=['red'], linestyle=[':'])"},
    "image": {"image.cmap": "jet", "image.origin": "lower", "image.interpolation": "bilinear"},
    "ticks": {"xtick.direction": "in", "xtick.major.size": 20, "ytick.labelright": True},
    "sketch": {"path.sketch": (5, 100, 2), "axes.grid": True, "axes.formatter.use_locale": True},
    "files": {"pdf.fonttype": 3, "svg.fonttype": "path", "svg.hashsalt": None},
}
MERGED = {name: value for rc in FOREIGN.values() for name, value in rc.items()}
CARD = ProxyCard(
    "loss", "loss", ("run", 40),
    pd.DataFrame({
        "schedule": "run", "budget": [10, 20], "masks": 2, "reference": False,
        "within": [0.2, 0.7], "within_low": [0.1, 0.5], "within_high": [0.3, 0.9],
        "between_seeds": [0.1, 0.4],
    }),
    {"a": 0.5, "b": 0.3}, (0.5, 0.3), Interval(0.8, 0.7, 0.9), 0.4, 0.8, (), {}, "",
    {("loss", "run", step): pd.DataFrame([[5, 5], [4, 3]]) / step for step in (10, 20, 40)},
)  # fmt: skip
GATES = torch.rand(2, 3, 8, 8, generator=generator(1))
HEADS = masks.per_head([masks.star(), masks.window(2)])
CURVE = [Report(s, {"density": 0.9**s, "target": 0.1, "loss": 5 - s / 9}) for s in range(9)]
FIGURES = {
    "masks": lambda: plot_masks({"star": masks.star(), "$x_1$": HEADS}, 8, 2, 2),
    "dam": lambda: plot_dam(CURVE, 3),
    "gates": lambda: plot_gates(GATES),
    "offsets": lambda: plot_offsets(GATES),
    "switches": lambda: plot_switches(GATES[..., 0]),
    "agreement": lambda: plot_agreement({"free": AGREEMENT}),
    "proxy": lambda: plot_proxy(CARD),
}


def write_under(rc, folder, name):
    """The bytes of a figure as PNG, PDF and SVG, drawn and saved under a user's settings."""
    with matplotlib.rc_context(rc):
        before, figure = dict(matplotlib.rcParams), FIGURES[name]()
        paths = [
            write_figure(figure, folder / f"{name}{kind}", 40) for kind in ("", ".pdf", ".svg")
        ]
        assert dict(matplotlib.rcParams) == before
    return [path.read_bytes() for path in paths]


@pytest.mark.slow
@pytest.mark.parametrize("name", FIGURES)
def test_figures_follow_no_settings_of_the_user(tmp_path, name):
    png, pdf, svg = write_under({}, tmp_path, name)
    assert [png, pdf, svg] == write_under(MERGED, tmp_path, name)
    assert (png[1:4], pdf[1:4], svg[2:5]) == (b"PNG", b"PDF", b"xml")


@pytest.mark.nightly
@pytest.mark.parametrize("rc", FOREIGN.values(), ids=FOREIGN)
def test_figures_follow_no_single_setting_of_the_user(tmp_path, rc):
    assert write_under({}, tmp_path, "masks") == write_under(rc, tmp_path, "masks")
