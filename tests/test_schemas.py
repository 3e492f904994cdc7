"""docs/schemas: what is published is what the code writes."""

import json
from pathlib import Path

import jsonschema
import pytest
from closed_schema import FOLDER, check_file
from hypothesis import given, settings
from mask_trees import sized_trees

from masksearch import masks
from masksearch_serve.plan import Plan

MASK = jsonschema.Draft202012Validator(
    json.loads((FOLDER / "mask.schema.json").read_text("utf-8"))
)


def test_the_schema_of_masks_is_one():
    MASK.check_schema(MASK.schema)


def test_published_schemas_are_the_generated_ones(monkeypatch, tmp_path):
    pytest.importorskip("msgspec")
    monkeypatch.syspath_prepend(FOLDER.parent / "programs")
    import write_schemas

    write_schemas.main(tmp_path)
    made = {path.name: path.read_text("utf-8") for path in tmp_path.iterdir()}
    kept = {path.name: path.read_text("utf-8") for path in FOLDER.iterdir()}
    assert made == kept, "see docs/promises.md: write_schemas.py writes them"


@settings(max_examples=10)  # a second each: every part is tried as every kind
@given(sized_trees())
def test_every_mask_has_the_form_of_its_schema(drawn):
    MASK.validate(drawn[1].to_dict())


@pytest.mark.parametrize(
    "wrong", [{"kind": "window"}, {"kind": "window", "reach": 1, "more": 2}, {"kind": "nosuch"}]
)
def test_what_is_no_mask_does_not(wrong):
    with pytest.raises(jsonschema.ValidationError):
        MASK.validate(wrong)


def test_a_plan_has_the_form_of_its_schema(tmp_path: Path):
    local = masks.columns(1) | masks.window(2)
    plan = Plan(
        model={"name": "m", "architecture": "llama", "digest": "9f"},
        unit="layer",
        levels=(local, masks.full()),
        units={"l0": 0, "l1": 1},
        mask=masks.per_layer([local, masks.full()]),
        found={"budget": {"cost": "kv_bytes", "limit": 0.5}},
    )
    check_file(plan.save(tmp_path / "plan.json"), "plan")
