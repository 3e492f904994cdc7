"""Fronts, differences, hypervolumes and kept shares: marks where the data say, fit for print."""

import itertools
import math
import re
import time
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from figure_marks import lines_of, marks_of, words_of
from matplotlib.collections import PathCollection
from record_fixtures import files_of_at_most

import masksearch as ms
from masksearch import masks, plots
from masksearch.contracts import Objective
from masksearch.errors import SearchError
from masksearch.report.curves import draw_differences, draw_kept, draw_volume
from masksearch.report.fronts import (
    axis_title,
    compared_points,
    draw_front,
    front_steps,
    leading,
    trial_points,
)
from masksearch.report.layout import Cell, TextTable, write_tables
from masksearch.report.page import write_report
from masksearch.report.section import Section
from masksearch.report.style import write_figure

DENSE = "dense (nothing left out)"


@pytest.fixture
def searched(record, objectives):
    hand = [
        record(k, 0.8 - 0.1 * mask.sparsity(16), mask, name=name, role="baseline")
        for k, (name, mask) in enumerate(masks.FAMILIES.items())
    ]
    own = [record(10 + k, 0.7 + 0.01 * k, masks.window(k)) for k in range(8)]
    rest = [record(20, None), record(21, 0.9, masks.window(9), status="stopped")]
    return Section({"tpe": [*hand, *own, *rest]}, objectives)


@pytest.fixture
def comparison(objectives, compared, shape):
    runs = {
        name: (mask, [0.8 - 0.3 * mask.sparsity(16), 0.81 - 0.3 * mask.sparsity(16)])
        for name, mask in masks.FAMILIES.items()
    }
    runs["found with tpe, at 0.8"] = (masks.star(), [0.9, 0.92])  # as sparse as star, better
    runs["oracle"] = (masks.window(0), [0.99])  # better than all, and sparser
    runs["dense"] = (masks.full(), [0.7, 0.8])
    runs["broken"] = (masks.window(3), [None, None])
    kinds = {"found with tpe, at 0.8": "searched", "oracle": "control"}
    return ms.Comparison(tuple(compared(runs)), objectives, shape=shape, kinds=kinds)


def figure_of(comparison):
    return draw_front(compared_points(comparison), comparison.objectives)


def test_marks_stand_where_the_records_say(searched, comparison):
    figure = draw_front(trial_points(searched), searched.objectives)
    expected = {
        record.name or f"tpe {record.number}": (
            pytest.approx(100 * record.measures["sparsity"]),
            record.values["glue"],
        )
        for record in searched.studies["tpe"]
        if record.status == "done"
    }
    assert marks_of(figure) == expected
    assert len(expected) == len(masks.FAMILIES) + 8
    entries = {n: e for n, e in comparison.entries.items() if n not in ("dense", "broken")}
    assert marks_of(figure_of(comparison)) == {
        name: (pytest.approx(100 * entry.sparsity), pytest.approx(entry.score.value))
        for name, entry in entries.items()
    }


def test_each_kind_of_masks_has_a_front_and_controls_have_none(comparison):
    points = [point for point in compared_points(comparison) if point.saved > 0]
    for kind in ("hand-designed", "searched", "control"):
        own = [(p.saved, p.score.value, p.name) for p in points if p.group == kind]
        best = {
            name for x, y, name in own
            if not any((a >= x and b > y) or (a > x and b >= y) for a, b, _ in own)
        }  # fmt: skip
        front = {point.name for point in points if point.group == kind and point.front}
        assert front == (set() if kind == "control" else best)
        steps = front_steps([point for point in points if point.group == kind], 1)
        assert len(steps) == len(front)
        assert [saved for saved, _ in steps] == sorted(saved for saved, _ in steps)
        assert [s.value for _, s in steps] == sorted((s.value for _, s in steps), reverse=True)


@pytest.mark.slow
def test_sparse_masks_are_named_at_their_marks_and_dense_ones_are_level_lines(
    comparison, searched
):
    figure = figure_of(comparison)
    words = words_of(figure)
    assert {*masks.FAMILIES, "found with tpe, at 0.8", "oracle", DENSE} <= set(words)
    level = lines_of(figure)[DENSE]
    assert {y for _, y in level} == {comparison.entries["dense"].score.value}
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) == len(masks.FAMILIES) + 2
    for a, b in itertools.combinations(boxes, 2):  # no name lies on another
        assert a.x1 <= b.x0 or b.x1 <= a.x0 or a.y1 <= b.y0 or b.y1 <= a.y0
    marks = marks_of(figure)
    height = figure.axes[0].get_window_extent().height
    for text in figure.axes[0].texts:
        place = figure.axes[0].transData.transform(marks[text.get_text()])
        box = text.get_window_extent()
        assert np.hypot(*(place - np.clip(place, box.min, box.max))) < height / 2
    again = {"tpe": searched.studies["tpe"], "random": searched.studies["tpe"][:6]}
    twice = draw_front(trial_points(replace(searched, studies=again)), searched.objectives)
    names = [text.get_text() for text in twice.axes[0].texts]
    assert len(set(names)) == len(names)  # a mask of two searches is named once
    assert set(names) <= set(masks.FAMILIES)  # no trial is


def test_a_page_begins_with_dense_the_best_drawn_and_what_was_found(searched, comparison):
    best = min(masks.FAMILIES, key=lambda name: masks.FAMILIES[name].sparsity(16))
    assert [*leading(compared_points(comparison), "max")] == [
        "dense", f"best hand-designed: {best}", "found: found with tpe, at 0.8",
    ]  # fmt: skip
    found = {n: p for n, p in leading(trial_points(searched), "max").items() if "found" in n}
    assert 0 < len(found) <= 4
    assert all(point.front and point.group == "tpe" for point in found.values())


def test_nothing_finished_is_no_figure(record, objectives, compared):
    runs = ms.Comparison(tuple(compared({"mine": (masks.star(), [None])})), objectives)
    empty = Section({"tpe": [record(0, None)]}, objectives)
    assert draw_front(trial_points(empty), objectives) is None
    assert figure_of(runs) is None
    assert draw_differences(runs) is None
    assert draw_volume({"tpe": {0: empty.studies["tpe"]}}, objectives) is None
    for plot in (plots.plot_comparison, plots.plot_differences):
        with pytest.raises(SearchError, match="there is nothing to draw"):
            plot(runs)


@pytest.mark.nightly
def test_a_page_of_many_trials_is_small_and_titles_every_front(tmp_path, record, objectives):
    random = np.random.default_rng(0)
    study = [
        record(
            number, float(score), masks.window(number % 15), fingerprint=str(number),
            measures={"sparsity": float(sparsity)},
        )
        for number, (score, sparsity) in enumerate(random.random((5000, 2)))
    ]  # fmt: skip
    section = Section({"tpe": study[::2], "random": study[1::2]}, objectives)
    best = {  # an independent loop: no other is better in both
        f"{'random' if a.number % 2 else 'tpe'} {a.number}"
        for a in study
        if not any(
            b.values["glue"] > a.values["glue"] and b.measures["sparsity"] > a.measures["sparsity"]
            for b in study
        )
    }
    figure = draw_front(trial_points(section), objectives)
    assert set(marks_of(figure)) == best
    marks = [c for c in figure.axes[0].collections if isinstance(c, PathCollection)]
    assert sum(len(each.get_offsets()) for each in marks) == 5000  # all are drawn
    start = time.process_time()
    page = write_report(tmp_path / "report.html", [section], title="t")
    assert time.process_time() - start < 60
    assert page.stat().st_size < 1_500_000


def test_the_true_front_is_a_line_of_its_own(searched):
    known = [(0.9, 0.5), (0.6, 0.8)]
    figure = draw_front(trial_points(searched), searched.objectives, known)
    assert lines_of(figure)["true front"][1:] == [(60, 0.8), (90, 0.5)]


def test_fronts_of_several_searches_have_a_band(record, objectives):
    studies = {
        f"tpe{seed}": [record(k, 0.7 + 0.01 * (k - seed), masks.window(k)) for k in range(3)]
        for seed in range(3)
    }
    section = Section(studies, objectives, searches={"tpe": dict(enumerate(studies.values()))})
    points = trial_points(section)
    assert {point.group for point in points} == {"tpe"}
    _, sparsest = front_steps(points, 1)[-1]  # window(0): .70, .69 and .68
    assert sparsest.value == pytest.approx(0.69)
    assert sparsest.low < 0.68 < 0.70 < sparsest.high


@pytest.mark.parametrize("seeds", [2, 3])
def test_two_searches_have_no_band_and_the_axis_is_that_of_the_masks(record, objectives, seeds):
    """Fronts that lie far apart: the interval of two or three means leaves the metric's range."""
    studies = {
        f"tpe{seed}": [record(k, 0.98 - 0.2 * seed - 0.001 * k, masks.window(k)) for k in range(3)]
        for seed in range(seeds)
    }
    searches = {"tpe": dict(enumerate(studies.values()))}
    points = trial_points(Section(studies, objectives, searches=searches))
    steps = [step for _, step in front_steps(points, 1)]
    assert {not math.isnan(step.high) for step in steps} == {seeds == 3}
    if seeds == 3:
        assert max(step.high for step in steps) > 1
    low, high = draw_front(points, objectives).axes[0].get_ylim()
    scores = [point.score.value for point in points]
    span = max(scores) - min(scores)
    assert 0 <= low < min(scores) < max(scores) < high <= 1  # the metric is an accuracy
    assert min(scores) - low < span / 5


def test_the_axis_of_a_comparison_shows_intervals_from_three_seeds_on(compared, objectives):
    runs = {
        "two": (masks.window(1), [0.70, 0.76]),  # t of two: 0.35 to 1.11
        "three": (masks.window(2), [0.70, 0.71, 0.75]),  # 0.66 to 0.79
    }
    kinds = dict.fromkeys(runs, "searched")
    comparison = ms.Comparison(tuple(compared(runs)), objectives, kinds=kinds)
    points = {point.name: point for point in compared_points(comparison)}
    assert math.isnan(points["two"].score.low)
    low, high = figure_of(comparison).axes[0].get_ylim()
    three = comparison.entries["three"].score
    assert points["three"].score == three
    assert low < three.low < three.high < high
    assert high - low < 1.5 * (three.high - three.low)


def test_an_interval_of_shares_ends_at_1(objectives, compared, shape):
    runs = {"dense": (masks.full(), [0.95, 1.0, 0.97]), "star": (masks.star(), [0.9, 0.99, 1.0])}
    records = compared(runs, values={"SST-2/majority": 0.5, "SST-2": 0.9})
    comparison = ms.Comparison(tuple(records), objectives, shape=shape)
    assert [point.score.high for point in compared_points(comparison)] == [1.0, 1.0]
    assert all(entry.score.high > 1 for entry in comparison.entries.values())


@pytest.mark.parametrize(
    ("values", "title"),
    [
        ({"glue": 0.7}, "GLUE score, higher is better"),
        ({"glue": 0.7, "SST-2": 0.7, "SST-2/majority": 0.5}, "SST-2 accuracy, higher is better"),
        (
            {"glue": 0.7, "CoLA": 0.7, "CoLA/accuracy": 0.8, "CoLA/majority": 0.0},
            "CoLA matthews, higher is better",
        ),
        ({"glue": 0.7, "my_rows": 0.7, "my_rows/majority": 0.5}, "my rows, higher is better"),
        (
            {"glue": 0.7, "a": 0.7, "a/f1": 0.7, "a/accuracy": 0.6, "a/majority": 0.5},
            "a f1, higher is better",
        ),
    ],
)
def test_the_axis_names_task_and_metric(record, values, title):
    assert axis_title(Objective("glue", "max", 0.5), [record(0, 0.7, values=values)]) == title
    loss = Objective("nll", "min", 9.0)
    told = axis_title(loss, [record(0, None, status="done", values={"nll": 2.0})])
    assert told == "held-out loss (nats per token), lower is better"


# -- differences, hypervolumes, kept shares ------------------------------------------------------
def test_differences_stand_where_the_findings_say(compared, objectives, shape):
    runs = {
        "mine": (masks.window(1), [0.7, 0.71, 0.72]),
        "star": (masks.star(), [0.6, 0.62, 0.61]),
        "dense": (masks.full(), [0.8, 0.8, 0.8]),
    }
    comparison = ms.Comparison(
        tuple(compared(runs)), objectives, shape=shape, kinds={"mine": "searched"}
    )
    findings = comparison.findings_to_show()
    figure = draw_differences(comparison)
    assert marks_of(figure) == {
        f"{f.mask} minus {f.against}: {f.words}": (pytest.approx(f.difference.value), row)
        for row, f in enumerate(findings)
    }
    assert {f"{f.mask} minus {f.against}" for f in findings} <= set(words_of(figure))
    bars = [line.get_xdata() for line in figure.axes[0].get_lines() if len(line.get_xdata()) == 2]
    drawn = {tuple(map(float, bar)) for bar in bars}
    assert {(f.difference.low, f.difference.high) for f in findings} <= drawn


def test_hypervolume_rises_to_that_of_the_front(record, objectives):
    study = [record(k, score, masks.window(1)) for k, score in enumerate((0.6, 0.8, 0.7))]
    figure = draw_volume({"tpe": {0: study}, "a $b$": {0: study[:1]}}, objectives)
    width = masks.window(1).sparsity(16)
    for panel in (0, 1):
        lines = list(figure.axes[panel].get_lines())
        last = [float(line.get_ydata()[-1]) for line in lines]
        assert last == pytest.approx([0.3 * width, 0.1 * width])
    assert list(lines[0].get_xdata()) == [2, 4, 6]  # seconds
    assert {"tpe", "a $b$"} <= set(words_of(figure))


def test_every_cell_of_a_kept_map_has_its_share(tmp_path):
    shares = np.array([[0.1, 1.0, 0.25], [0.0, 0.5, 0.75]])
    path = write_figure(draw_kept({"mine": shares, "<b>": shares / 2}), tmp_path / "kept.svg")
    titles = re.findall("<title>(.*?)</title>", path.read_text())
    assert len(titles) == 12
    assert titles[:3] == [
        f"layer 0, head {k}: {s} kept" for k, s in enumerate(("10.0%", "100.0%", "25.0%"))
    ]


# -- files ---------------------------------------------------------------------------------------
NASTY = "<script>alert(1)</script> & $x$ \"quoted\" 'too' \x1b"


@pytest.mark.slow
def test_names_of_others_are_text_in_a_picture_and_marks_have_titles(
    tmp_path, compared, objectives
):
    runs = {NASTY: (masks.window(1), [0.7, 0.8]), "it's": (masks.star(), [0.6])}
    runs['a "b"'] = (masks.window(2), [0.5])
    comparison = ms.Comparison(tuple(compared(runs)), objectives, kinds={NASTY: "searched"})
    text = write_figure(figure_of(comparison), tmp_path / "a.svg").read_text("utf-8")
    assert "<script" not in text
    assert "<a " not in text
    space = "{http://www.w3.org/2000/svg}"
    titles = [title.text for title in ElementTree.fromstring(text).iter(f"{space}title")]
    shown = {title.split("\n")[0]: title.split("\n")[1:] for title in titles}
    assert shown[NASTY.replace("\x1b", r"\x1b")] == [
        "GLUE score 0.750, 2 seeds",
        f"{100 * masks.window(1).sparsity(16):.1f}% sparse",
        "window(1)",
    ]  # fmt: skip
    assert {"it's", 'a "b"'} <= shown.keys()


@pytest.mark.slow
def test_a_full_disk_leaves_what_was_printed_before(tmp_path, comparison):
    rows = [{"mask": "star"}] * 90
    tables = {"front": TextTable((Cell("mask"),), ((Cell("star"),),) * 90, rows)}
    write_tables(tmp_path, "tpe_", tables)
    figure = figure_of(comparison)
    ways = [(write_tables, tmp_path, "tpe_", tables)]
    ways += [(write_figure, figure, tmp_path / f"compared.{end}") for end in ("pdf", "svg", "png")]
    for write, *things in ways:
        write(*things)
    files = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert {path.suffix for path in files} == {".csv", ".tex", ".pdf", ".svg", ".png"}
    for write, *things in ways:
        with files_of_at_most(100), pytest.raises(OSError, match="too large"):
            write(*things)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == files


@pytest.mark.slow  # continuous integration runs it
def test_charts_are_fit_for_print(tmp_path, comparison):
    """No Type 3 fonts, text in SVG that is text, the width of a column, and equal files twice."""
    section = Section({}, comparison.objectives, {"c": comparison})

    def printed(name):
        path = write_report(tmp_path / name / "report.html", [section], title="t")
        return [path.parent / "figures" / f"compared.{end}" for end in ("pdf", "svg", "png")]

    pdf, svg, png = printed("new")
    assert png.read_bytes().startswith(b"\x89PNG")
    assert b"/Type3" not in pdf.read_bytes()
    assert b"/FontFile2" in pdf.read_bytes()
    text = svg.read_text()
    assert re.search(">star</text>", text)
    width = float(re.search(r'width="([\d.]+)pt"', text)[1])
    assert width in (pytest.approx(3.3 * 72), pytest.approx(6.8 * 72))
    sizes = [float(size) for size in re.findall(r"font(?:-size)?: ([\d.]+)px", text)]
    assert 7 <= min(sizes) <= max(sizes) <= 9
    again = printed("again")
    assert [path.read_bytes() for path in again] == [
        pdf.read_bytes(),
        svg.read_bytes(),
        png.read_bytes(),
    ]


@pytest.mark.slow  # continuous integration runs it
def test_a_comparison_of_dense_attention_alone_is_printed(tmp_path, objectives, compared, shape):
    comparison = ms.Comparison(
        tuple(compared({"dense": (masks.full(), [0.7, 0.8])})), objectives, shape=shape
    )
    write_report(tmp_path / "report.html", [Section({}, objectives, {"c": comparison})], title="t")
    for end in ("pdf", "svg", "png"):
        assert (tmp_path / "figures" / f"compared.{end}").stat().st_size > 1000
