"""`result.json`: it has a schema, and all that the page says is in it."""

import base64
import io
import json
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
from masksearch.report.page import write_report
from masksearch.report.pictures import mask_png
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
    assert sum(point["front"] for point in part["points"]) == len(part["front"]["rows"])
    assert {point["name"] for point in part["points"]} >= {"tpe 4", "star"}
    compared = part["comparisons"][0]
    (dense,) = (point for point in compared["points"] if point["saved"] == 0)
    assert (dense["name"], dense["score"], dense["seeds"]) == ("dense", pytest.approx(0.8), 3)
    assert [each["title"] for each in part["lead"]][:2] == ["dense", "best hand-designed: star"]
    assert {each["title"] for each in part["gallery"]} == {
        "mine",
        "star",
        "dense",
        "tpe 0",
        "tpe 1",
    }


def test_allocation_is_of_the_uneven_masks_of_the_front(section):
    found = page_of(section)["allocation"]
    assert [each["name"] for each in found["masks"]] == ["tpe 4"]
    dense = UNEVEN.dense(16, 2, 2).float()
    assert np.allclose(found["masks"][0]["kept"], dense.mean((2, 3)))
    assert any("more masks of the front keep the same share" in note for note in found["notes"])


@pytest.mark.parametrize("causal", [False, True])
def test_units_keep_together_what_the_mask_keeps(section, causal):
    shape = Shape(16, 2, 2, causal=causal, lengths={9: 2, 16: 1})
    found = page_of(replace(section, shape=shape))["allocation"]
    mean = float(np.mean(found["masks"][0]["kept"]))
    assert mean == pytest.approx(effective_density(UNEVEN, shape))


def test_a_picture_of_a_mask_is_its_bits():
    shape = Shape(16, 2, 2)
    image = image_of(masks.window(5), shape)
    assert ((image < 128) == masks.window(5).dense(16)[0, 0].numpy()).all()
    causal = image_of(masks.window(5), replace(shape, causal=True))
    assert ((causal < 128) == masks.window(5).dense(16)[0, 0].tril().numpy()).all()
    assert image_of(UNEVEN, shape).shape == (33, 33)  # two layers down, two heads across, a seam
    long = image_of(masks.window(3), replace(shape, length=1000))
    assert long.shape == (125, 125)
    assert (np.diag(long) < 200).all()
    assert (np.diag(long, 2) > 200).all()
    assert mask_png(UNEVEN, Shape(16, 3, 2)) == ""  # of another model
    assert mask_png(masks.same_token([0]), shape) == ""  # its cells follow the tokens
    assert mask_png(masks.window(1), replace(shape, length=60_000)) == ""  # takes too long


def image_of(mask, shape):
    """The picture of a mask, in grey."""
    data = base64.b64decode(mask_png(mask, shape))
    return np.asarray(Image.open(io.BytesIO(data)).convert("L"))


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
