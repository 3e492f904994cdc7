"""`result.json`: it has a schema, and all that the page says is in it."""

import base64
import io
import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from closed_schema import check_file
from page_text import page_of
from PIL import Image

import masksearch as ms
from masksearch import masks
from masksearch.contracts import Shape
from masksearch.masks.measure import effective_density
from masksearch.report.charts import paper_spec
from masksearch.report.page import write_report
from masksearch.report.pictures import Pictures
from masksearch.report.section import Section

UNEVEN = masks.per_layer([masks.per_head([masks.window(1), masks.window(5)]), masks.window(2)])


@pytest.fixture
def section(record, compared, objectives, shape):
    found = [record(k, 0.6 + 0.01 * k, masks.window(k), values={"loss": float("nan")})
             for k in range(4)]  # fmt: skip
    found += [record(4, 0.75, UNEVEN), record(5, None, error="a\nboom")]
    found.append(record(6, 0.7, masks.star(), name="star", role="baseline"))
    runs = {"mine": (UNEVEN, [0.7, 0.71, 0.72]), "star": (masks.star(), [0.6, 0.61, 0.62]),
            "dense": (masks.full(), [0.8, 0.8, 0.8])}  # fmt: skip
    comparison = ms.Comparison(
        tuple(compared(runs, values={"RTE": 0.6})), objectives, shape=shape,
        kinds={"mine": "searched"},
    )  # fmt: skip
    return Section({"tpe": found}, objectives, {"c": comparison}, shape=shape)


@pytest.mark.slow
def test_result_validates_and_is_json(section, tmp_path):
    write_report(tmp_path / "report.html", [section], title="t")
    again = json.loads((tmp_path / "result.json").read_text(), parse_constant=pytest.fail)
    check_file(tmp_path / "result.json", "result")
    assert again["failures"][0]["reason"] == "boom"
    (part,) = again["sections"]
    chart = part["chart"]
    assert sum(point["front"] for point in chart["points"]) == len(part["front"]["rows"])
    assert chart["points"][0]["values"]["loss"][0] is None
    of_tpe = [line["score"] for line in chart["lines"] if line["group"] == "tpe"]
    assert of_tpe == sorted(of_tpe, reverse=True)
    compared = part["comparisons"][0]
    assert {level["label"] for level in compared["chart"]["levels"]} == {
        "dense (nothing left out)"
    }
    assert compared["differences"]["lines"][0]["seeds"] == 3


def score_axis(chart):
    """Both ends of a chart's axis of scores."""
    return paper_spec(chart)["layer"][-1]["encoding"]["y"]["scale"]["domain"]


def test_fronts_of_several_searches_have_a_band(record, objectives, shape):
    studies = {
        f"tpe{seed}": [record(k, 0.7 + 0.01 * (k - seed), masks.window(k)) for k in range(3)]
        for seed in range(3)
    }
    section = Section(
        studies, objectives, shape=shape, searches={"tpe": dict(enumerate(studies.values()))}
    )
    chart = page_of(section)["chart"]
    assert [group["name"] for group in chart["groups"]] == ["tpe"]
    sparsest = chart["lines"][-1]  # window(0): .70, .69 and .68
    assert sparsest["score"] == pytest.approx(0.69)
    assert sparsest["low"] < 0.68 < 0.70 < sparsest["high"]


@pytest.mark.parametrize("seeds", [2, 3])
def test_two_searches_have_no_band_and_the_axis_is_that_of_the_masks(record, objectives, seeds):
    """Fronts that lie far apart: the interval of two or three means leaves the metric's range."""
    studies = {
        f"tpe{seed}": [record(k, 0.98 - 0.2 * seed - 0.001 * k, masks.window(k)) for k in range(3)]
        for seed in range(seeds)
    }
    searches = {"tpe": dict(enumerate(studies.values()))}
    part = page_of(Section(studies, objectives, searches=searches))
    fronts, volumes = part["chart"]["lines"], part["volumes"][0]["lines"]
    banded = [not math.isnan(line["high"]) for line in (*fronts, *volumes)]
    banded += ["[" in cell.text for cell in part["searches"].rows[0][3:5]]
    assert set(banded) == {seeds == 3}
    if seeds == 3:
        assert max(line["high"] for line in fronts) > 1
    low, high = score_axis(part["chart"])
    scores = [point["score"] for point in part["chart"]["points"]]
    span = max(scores) - min(scores)
    assert 0 <= low < min(scores) < max(scores) < high <= 1  # the metric is an accuracy
    assert min(scores) - low < span / 5


def test_the_axis_of_a_comparison_shows_intervals_from_three_seeds_on(compared, objectives):
    runs = {
        "two": (masks.window(1), [0.70, 0.76]),  # t of two: 0.35 to 1.11
        "three": (masks.window(2), [0.70, 0.71, 0.75]),  # 0.66 to 0.79
    }
    comparison = ms.Comparison(
        tuple(compared(runs)), objectives, kinds=dict.fromkeys(runs, "searched")
    )
    section = Section({}, objectives, {"c": comparison})
    chart = page_of(section)["comparisons"][0]["chart"]
    assert [point["low"] is None for point in chart["points"]] == [True, False]
    low, high = score_axis(chart)
    three = comparison.entries["three"].score
    assert low < three.low < three.high < high
    assert high - low < 1.5 * (three.high - three.low)


def test_allocation_is_of_the_uneven_masks_of_the_front(section):
    found = page_of(section)["allocation"]
    assert [each["name"] for each in found["masks"]] == ["tpe 4"]
    dense = UNEVEN.dense(16, 2, 2).float()
    assert np.allclose(found["masks"][0]["kept"], dense.mean((2, 3)))
    assert any("more masks of the front keep the same share" in note for note in found["notes"])


def test_bytes_of_engines_stand_side_by_side(section):
    held = {"kv_bytes": 0.2, "kv_bytes_vllm": 1.1, "kv_bytes_llama_cpp": 0.3}
    first = section.studies["tpe"][0]
    first = replace(first, measures={**first.measures, **held})
    part = page_of(replace(section, studies={"tpe": [first]}))
    assert part["chart"]["points"][0]["costs"].items() >= held.items()
    titles = {each["name"]: each["title"] for each in part["costs"]}
    assert titles["kv_bytes_vllm"] == "share of vLLM's dense cache"


@pytest.mark.parametrize("causal", [False, True])
def test_units_keep_together_what_the_mask_keeps(section, causal):
    shape = Shape(16, 2, 2, causal=causal, lengths={9: 2, 16: 1})
    found = page_of(replace(section, shape=shape))["allocation"]
    mean = float(np.mean(found["masks"][0]["kept"]))
    assert mean == pytest.approx(effective_density(UNEVEN, shape))


def test_pictures_are_the_bits_and_each_is_made_once():
    shape = Shape(16, 2, 2)
    pictures = Pictures()
    panels = pictures.panels(UNEVEN, shape)
    assert panels == [[0, 1], [2, 2]]
    assert pictures.panels(masks.window(2), shape) == [[2]]
    image = Image.open(io.BytesIO(base64.b64decode(pictures.images[1])))
    opaque = np.asarray(image.convert("RGBA"))[..., 3] == 255
    assert (opaque == masks.window(5).dense(16)[0, 0].numpy()).all()
    long = pictures.panels(masks.window(3), replace(shape, length=1000))
    image = Image.open(io.BytesIO(base64.b64decode(pictures.images[long[0][0]])))
    shades = np.asarray(image.convert("RGBA"))[..., 3]
    assert image.size == (125, 125)
    assert (np.diag(shades) > 0).all()
    assert (np.diag(shades, 2) == 0).all()
    assert Pictures(room=10).panels(masks.star(), shape) is None
    assert Pictures().panels(UNEVEN, Shape(16, 3, 2)) is None  # of another model


@pytest.mark.slow
def test_every_strategy_has_a_table_of_its_front(tmp_path, record, objectives):
    studies = {
        name: [record(k, score + 0.01 * k, masks.window(k), params={"reach": k}) for k in (1, 2)]
        for name, score in (("tpe", 0.7), ("random (1)", 0.8))
    }
    section = Section(studies, objectives)
    write_report(tmp_path / "report.html", [section], title="t")
    tables = {path.stem: pd.read_csv(path) for path in (tmp_path / "tables").glob("*.csv")}
    assert {"front", "front_tpe", "front_random_1_"} <= tables.keys()
    assert set(tables["front"]["strategy"]) == {"random (1)"}
    assert tables["front_tpe"]["params_reach"].tolist() == [2, 1]
