"""Charts for print: the page's own, with names, in a paper's sizes and fonts."""

import itertools
import re
from dataclasses import replace

import numpy as np
import pytest
from page_text import page_of
from record_fixtures import files_of_at_most

import masksearch as ms
from masksearch import masks
from masksearch.report.charts import paper_spec, write_chart
from masksearch.report.layout import Cell, TextTable, write_tables
from masksearch.report.page import write_report
from masksearch.report.section import Section


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
def compared_section(objectives, compared, shape):
    runs = {
        name: (mask, [0.8 - 0.3 * mask.sparsity(16), 0.81 - 0.3 * mask.sparsity(16)])
        for name, mask in masks.FAMILIES.items()
    }
    runs["found with tpe, at 0.8"] = (masks.star(), [0.9, 0.92])  # as sparse as star, better
    runs["oracle"] = (masks.window(0), [0.99])  # better than all, and sparser
    runs["dense"] = (masks.full(), [0.7, 0.8])
    runs["broken"] = (masks.window(3), [None, None])
    kinds = {"found with tpe, at 0.8": "searched", "oracle": "control"}
    comparison = ms.Comparison(tuple(compared(runs)), objectives, shape=shape, kinds=kinds)
    return Section({}, objectives, {"c": comparison})


@pytest.fixture
def chart(compared_section):
    return page_of(compared_section)["comparisons"][0]["chart"]


def names_of(spec):
    colours = [layer["encoding"].get("color", {}) for layer in spec["layer"]]
    place = [colour.get("field") for colour in colours].index("ink")
    rows = spec["layer"][place]["data"]["values"]
    places = [row["at"] for row in rows]
    gaps = [b - a for a, b in itertools.pairwise(places)]
    assert min(gaps, default=1) > 0.01 * (max(places) - min(places))  # none lies on another
    return {row["label"] for row in rows}


def test_a_page_begins_with_dense_the_best_drawn_and_what_was_found(searched, compared_section):
    shape = ms.Shape(16, 2, 2)
    compared = page_of(replace(compared_section, shape=shape))["comparisons"][0]["chart"]
    leads = {point["name"]: point["lead"] for point in compared["points"] if point["lead"]}
    best = min(masks.FAMILIES, key=lambda name: masks.FAMILIES[name].sparsity(16))
    assert leads == {
        "dense": "dense",
        best: "best hand-designed",
        "found with tpe, at 0.8": "found",
    }
    chart = page_of(replace(searched, shape=shape))["chart"]
    found = [point for point in chart["points"] if point["lead"] == "found"]
    assert len(found) <= 4
    assert all(point["front"] and point["group"] == "tpe" for point in found)
    assert not any(
        point["lead"] for point in page_of(searched)["chart"]["points"]
    )  # none is drawn


def test_each_kind_of_masks_has_a_front_and_controls_have_none(chart):
    points = [point for point in chart["points"] if point["saved"] > 0]
    for kind in ("hand-designed", "searched", "control"):
        own = [
            (point["saved"], point["score"], point["id"])
            for point in points
            if point["group"] == kind
        ]
        best = {
            name for x, y, name in own
            if not any((a >= x and b > y) or (a > x and b >= y) for a, b, _ in own)
        }  # fmt: skip
        lines = {line["id"] for line in chart["lines"] if line["group"] == kind}
        assert lines == (set() if kind == "control" else best)
    assert paper_spec(chart)["datasets"]["lines"] == chart["lines"]


@pytest.mark.slow
def test_sparse_masks_are_named_and_dense_ones_are_level_lines(chart, searched):
    others = {"found with tpe, at 0.8", "oracle"}
    assert names_of(paper_spec(chart)) == {*masks.FAMILIES, *others}
    assert [level["label"] for level in chart["levels"]] == ["dense (nothing left out)"]
    front = page_of(searched)["chart"]
    assert names_of(paper_spec(front)) == set(masks.FAMILIES)  # not the trials
    again = {"tpe": searched.studies["tpe"], "random": searched.studies["tpe"][:6]}
    judged_twice = page_of(replace(searched, studies=again))["chart"]
    spec = paper_spec(judged_twice)
    rows = [
        layer["data"]["values"]
        for layer in spec["layer"]
        if "data" in layer and "values" in layer["data"]
    ]
    assert len(rows[0]) == len(masks.FAMILIES)  # a mask of two searches is named once
    assert len(front["points"]) == len(masks.FAMILIES) + 8


def test_nothing_finished_is_no_chart(record, objectives, compared):
    runs = ms.Comparison(tuple(compared({"mine": (masks.star(), [None])})), objectives)
    empty = page_of(Section({"tpe": [record(0, None)]}, objectives, {"c": runs}))
    assert empty["chart"] is None
    assert empty["comparisons"][0]["chart"] is None
    assert empty["volumes"] == []


@pytest.mark.nightly
def test_a_chart_of_many_trials_shows_some_and_every_front(record, objectives):
    random = np.random.default_rng(0)
    study = [
        record(
            number, float(score), masks.window(number % 15), fingerprint=str(number),
            measures={"sparsity": float(sparsity)},
        )
        for number, (score, sparsity) in enumerate(random.random((4000, 2)))
    ]  # fmt: skip
    halves = {"tpe": study[::2], "random": study[1::2]}
    data = page_of(Section(halves, objectives))
    assert len(data["chart"]["points"]) < 1500
    shown = [note for note in data["cautions"] if "of 4,000 finished trials" in note]
    assert shown[0].startswith(f"The chart shows {len(data['chart']['points']):,} of")
    for name, own in halves.items():  # an independent loop: no other is better in both
        front = {
            f"{name} {a.number}"
            for a in own
            if not any(
                b.values["glue"] > a.values["glue"]
                and b.measures["sparsity"] > a.measures["sparsity"]
                for b in own
            )
        }
        lines = {line["id"] for line in data["chart"]["lines"] if line["group"] == name}
        assert lines == front


def test_the_true_front_is_a_line_of_its_own(searched):
    known = Section(searched.studies, searched.objectives, truth=[(0.9, 0.5), (0.6, 0.8)])
    lines = page_of(known)["chart"]["lines"]
    true = [(line["saved"], line["score"]) for line in lines if line["group"] == "true front"]
    assert true[1:] == [(60, 0.8), (90, 0.5)]


@pytest.mark.slow
def test_a_full_disk_leaves_what_was_printed_before(tmp_path, chart):
    rows = [{"mask": "star"}] * 90
    tables = {"front": TextTable((Cell("mask"),), ((Cell("star"),),) * 90, rows)}
    write_tables(tmp_path, "tpe_", tables)
    write_chart(chart, tmp_path)
    files = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert {path.suffix for path in files} == {".csv", ".tex", ".pdf", ".svg", ".png"}
    everything = (write_chart, chart, tmp_path), (write_tables, tmp_path, "tpe_", tables)
    for write, *things in everything:
        with files_of_at_most(100), pytest.raises(OSError, match="too large"):
            write(*things)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == files


@pytest.mark.slow  # continuous integration runs it
def test_charts_are_fit_for_print(tmp_path, compared_section):
    """No Type 3 fonts, text in SVG that is text, the width of a column, and equal files twice;
    a PDF names its parts in another order."""

    def printed(name):
        path = write_report(tmp_path / name / "report.html", [compared_section], title="t")
        return [path.parent / "figures" / f"compared.{end}" for end in ("pdf", "svg", "png")]

    pdf, svg, png = printed("new")
    assert png.read_bytes().startswith(b"\x89PNG")
    assert b"/Type3" not in pdf.read_bytes()
    assert b"/FontFile2" in pdf.read_bytes()
    text = svg.read_text()
    assert ">star</text>" in text
    width = float(re.search(r'width="([\d.]+)"', text)[1])
    assert width == pytest.approx(3.3 * 72, abs=8)
    sizes = [float(size) for size in re.findall(r'font-size="([\d.]+)px"', text)]
    assert 7 <= min(sizes) <= max(sizes) <= 9
    again = printed("again")
    assert sorted(again[0].read_bytes()) == sorted(pdf.read_bytes())
    assert [path.read_bytes() for path in again[1:]] == [svg.read_bytes(), png.read_bytes()]


@pytest.mark.slow  # continuous integration runs it
def test_a_comparison_of_dense_attention_alone_is_printed(tmp_path, objectives, compared, shape):
    comparison = ms.Comparison(
        tuple(compared({"dense": (masks.full(), [0.7, 0.8])})), objectives, shape=shape
    )
    write_report(tmp_path / "report.html", [Section({}, objectives, {"c": comparison})], title="t")
    for end in ("pdf", "svg", "png"):
        assert (tmp_path / "figures" / f"compared.{end}").stat().st_size > 1000


def test_an_interval_of_shares_ends_at_1_on_the_page_too(objectives, compared, shape):
    runs = {"dense": (masks.full(), [0.95, 1.0, 0.97]), "star": (masks.star(), [0.9, 0.99, 1.0])}
    records = compared(runs, values={"SST-2/majority": 0.5, "SST-2": 0.9})
    comparison = ms.Comparison(tuple(records), objectives, shape=shape)
    points = page_of(Section({}, objectives, {"c": comparison}))["comparisons"][0]["chart"]
    assert [point["high"] for point in points["points"]] == [1.0, 1.0]
    assert all(entry.score.high > 1 for entry in comparison.entries.values())
