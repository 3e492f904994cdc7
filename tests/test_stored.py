"""What is published is what the code writes, and what earlier versions stored is read and goes on:
tests/stored has a folder for each of them.

Where an old folder fails, a promise of docs/promises.md is broken. The remedy is code that reads
the file, not another file: stored/write.py makes folders for new versions only.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from closed_schema import FOLDER, check_file
from hypothesis import given, settings
from jsonschema import Draft202012Validator, ValidationError
from mask_trees import sized_trees
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import masksearch as ms
from masksearch import masks
from masksearch.errors import MaskFormatError, ResumeError, SearchError
from masksearch.report.page import render_page
from masksearch_decoders.engines import ENGINES
from masksearch_decoders.plan import Plan


# -- what is published is what the code writes ---------------------------------------------------
def validator(kind: str) -> Draft202012Validator:
    """Of the schema of that name."""
    return Draft202012Validator(json.loads((FOLDER / f"{kind}.schema.json").read_text("utf-8")))


MASK = validator("mask")


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


@pytest.mark.slow
@settings(max_examples=10)  # a second each: every part is tried as every kind
@given(sized_trees())
def test_every_mask_has_the_form_of_its_schema(drawn):
    MASK.validate(drawn[1].to_dict())


@pytest.mark.parametrize(
    "wrong", [{"kind": "window"}, {"kind": "window", "reach": 1, "more": 2}, {"kind": "nosuch"}]
)
def test_what_is_no_mask_does_not(wrong):
    with pytest.raises(ValidationError):
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


# -- what earlier versions stored is read and goes on --------------------------------------------
STORED = Path(__file__).with_name("stored")
SCHEMAS = {
    **{"run/result.json": "result", "plan.json": "plan", "saved/masksearch.json": "masksearch"},
    **{"served/serving.json": "serving", "masks/*.json": "mask", "saved/mask.json": "mask"},
}


@pytest.fixture(params=sorted(path.name for path in STORED.iterdir() if path.is_dir()))
def stored(request, tmp_path, monkeypatch) -> Path:
    """A copy of what one version wrote."""
    monkeypatch.setenv("MASKSEARCH_CACHE", str(tmp_path / "cache"))
    return shutil.copytree(STORED / request.param, tmp_path / "stored")


@pytest.mark.slow
def test_it_has_the_form_that_is_published(stored):
    for pattern, kind in SCHEMAS.items():
        paths = list(stored.glob(pattern))
        assert paths, pattern
        for path in paths:
            validator(kind).validate(json.loads(path.read_text("utf-8")))


def test_masks_keep_their_cells_and_their_names(stored):
    cells = load_file(stored / "masks" / "cells.safetensors")
    for kind, expected in cells.items():
        mask = ms.load_mask(stored / "masks" / f"{kind}.json")
        assert mask.kind == kind
        assert torch.equal(mask.dense(expected.shape[-1], *expected.shape[:2]).byte(), expected)
    for path in (stored / "masks").glob("*.json"):
        assert ms.load_mask(path).to_json() == path.read_text("utf-8"), "another fingerprint"
    mixed = [ms.load_mask(stored / "masks" / f"mixed.{end}") for end in ("json", "safetensors")]
    assert mixed[0] == mixed[1]


@pytest.fixture
def judged_as_then(stored, monkeypatch) -> None:
    """Lets the stored run's evaluator stand for the one that made it: its scores have moved with
    the head of masked words, and its protocol with them."""
    [protocol] = {record.protocol for record in ms.open_study(stored / "run").records()}
    monkeypatch.setattr(ms.PlantedEvaluator, "protocol", protocol)


def test_a_run_whose_scores_are_computed_otherwise_now_is_read_and_not_gone_on_with(stored):
    run = stored / "run"
    before = ms.open_study(run).records()
    with pytest.raises(ResumeError, match=r"\(protocol: was .*, now .* by its data, settings or"):
        ms.resume(run, trials=4)
    assert ms.open_study(run).records() == before


@pytest.mark.slow
@pytest.mark.usefixtures("judged_as_then")
def test_a_run_is_read_and_goes_on(stored):
    run = stored / "run"
    before = ms.open_study(run).records()
    assert [record.status for record in before] == ["done", "done", "reused"]
    study = ms.resume(run, trials=4)
    assert study.records()[:3] == before
    assert study.records()[3].scored
    page = render_page(json.loads((run / "result.json").read_text("utf-8")), run / "figures")
    assert all(f"<title>tpe {record.number}\n" in page for record in before)


@pytest.mark.slow
@pytest.mark.usefixtures("judged_as_then")
def test_a_run_with_loggers_goes_on_without_them(stored):
    run = stored / "run"
    text = (run / "command.json").read_text("utf-8").replace('"log": null', '"log": "csv"')
    (run / "command.json").write_text(text, "utf-8")
    with pytest.warns(UserWarning, match=r"loggers \(csv\) are passed over; docs/running\.md"):
        study = ms.resume(run, trials=4)
    assert study.records()[3].scored
    assert not list(run.glob("log*"))


@pytest.mark.slow
def test_a_run_with_costs_of_kernels_is_reported_and_goes_on_nowhere(tmp_path, command):
    """Its objectives, `--costs latency,memory`, were those of no released version."""
    run = shutil.copytree(STORED / "0.2.0" / "costs", tmp_path / "costs")
    study = ms.open_study(run)
    assert [o.name for o in study.objectives] == ["score", "sparsity", "latency_ratio", "memory"]
    records = study.records()
    assert all({"latency_ratio", "memory"} <= set(record.values) for record in records)
    command("report", run)
    result = json.loads((run / "result.json").read_text("utf-8"))
    assert ",memory," in (front := (run / "tables" / "front.csv").read_text("utf-8"))
    assert ",65860.0," in front
    assert "--costs latency,memory" in result["recipes"][0]["command"]
    command("export", f"{run}#0", "--out", run / "mask.json")
    assert ms.load_mask(run / "mask.json") == masks.window(1)
    refused = command.refused("resume", run, "--trials", 4)
    assert "does not have (costs): report it, or give its command in another" in refused
    words = [f"{run}/space.py:space", "--evaluator", f"{run}/space.py:judge", "--trials", 4]
    assert "belongs to another search (protocol: was" in command.refused(
        "search", *words, "--run", run
    )
    assert ms.open_study(run).records() == records


def test_a_plan_is_attached_to_its_model_and_the_card_tells_it(stored, command):
    plan, out = Plan.load(stored / "plan.json"), stored / "out"
    command("attach", stored / "model", stored / "plan.json", "--out", out)
    assert ms.saved_masks(out) == {"self": plan.mask} == ms.saved_masks(stored / "saved")
    told = [path / "README.md" for path in (out, stored / "saved")]
    budget = f"Budget: {plan.found['budget']['limit']:g} of dense"
    assert all(budget in path.read_text("utf-8") for path in told)


@torch.no_grad()
def test_models_compute_what_they_did(stored):
    known = load_file(stored / "logits.safetensors")
    saved = ms.load_pretrained(stored / "saved", dtype=torch.float32)
    assert torch.allclose(saved(known["tokens"]).logits, known["saved"], atol=1e-5)
    served = AutoModelForCausalLM.from_pretrained(stored / "served", dtype=torch.float32).eval()
    assert torch.allclose(served(known["tokens"]).logits, known["served"], atol=1e-5)
    facts = json.loads((stored / "served" / "serving.json").read_text("utf-8"))
    room = facts["kv_bytes"] * 2**30 // 2**20
    log = (
        f"KV cache memory: {room / 2**30:.9f} GiB\nMaximum concurrency for "
        f"{facts['settings']['length']:,} tokens per request: {room / facts['kv_bytes']:.2f}x\n"
    )
    assert ENGINES[facts["engine"]].read_log(log, facts)[0] == 0


@pytest.mark.parametrize("file", ["plan.json", "saved/masksearch.json"])
def test_what_later_versions_add_is_ignored(stored, file):
    data = json.loads((stored / file).read_text("utf-8"))
    (stored / file).write_text(json.dumps(data | {"more": {"a": 1}}), "utf-8")
    if file == "plan.json":
        assert Plan.load(stored / file).units == data["units"]
    else:
        assert ms.load_pretrained(stored / "saved").training is False


@pytest.mark.parametrize("file", ["plan.json", "saved/masksearch.json"])
def test_a_later_format_is_named(stored, file):
    data = json.loads((stored / file).read_text("utf-8"))
    (stored / file).write_text(json.dumps(data | {"format": 99}), "utf-8")
    with pytest.raises(MaskFormatError, match=r"format 99.*reads\s+(format )?1"):
        Plan.load(stored / file) if file == "plan.json" else ms.saved_masks(stored / "saved")


def test_a_run_of_a_later_format_is_named(stored):
    ms.open_study(stored / "run").optuna.set_user_attr("format", 99)
    with pytest.raises(SearchError, match=r"in format 99; this is masksearch .*, which reads"):
        ms.open_study(stored / "run").records()


def test_a_kind_or_a_field_of_later_masks_is_named(stored):
    for wrong in ('{"kind":"later"}', '{"kind":"window","reach":2,"more":1}'):
        (stored / "mask.json").write_text(wrong, "utf-8")
        with pytest.raises(MaskFormatError, match=r"later version|another version"):
            ms.load_mask(stored / "mask.json")
