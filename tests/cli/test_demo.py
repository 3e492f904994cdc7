"""The demonstration end to end at a toy size, and its words against a known truth."""

from __future__ import annotations

import pytest
import torch

import masksearch as ms
from masksearch import masks
from masksearch.cli.demo import compare_with_truth, run_demo

PROCESS = ms.PlantedProcess(length=16, offsets=(5,), vocabulary=4)


@pytest.mark.slow  # continuous integration runs it
@pytest.mark.filterwarnings("ignore:DAM")
def test_demo_ends_in_a_report_and_resumes(tmp_path, capsys):
    evaluator = ms.PlantedEvaluator(PROCESS, steps=5, downstream_steps=2, held_out_sequences=32)
    settings = dict(
        slots=1,
        evaluator=evaluator,
        trials=2,
        seeds=(0, 1),
        dam_config={"steps": 12, "density": 0.2, "dense_warmup": 0.5},
    )
    page, lines = run_demo(tmp_path / "run", **settings)
    html = page.read_text(encoding="utf-8")
    for name in ("dense", "oracle", "strided", "longformer", "found by dam", "random keys"):
        assert name in html
    assert len([line for line in lines if "find the planted mask" in line or "found" in line]) >= 3
    assert "http://" not in html.replace("http://www.w3.org", "")
    drawn = ("search-half_front", "search-half_dam", "search-half_hypervolume")
    for figure in (*drawn, "final-half_compared", "final-half_masks"):
        for suffix in ("png", "pdf"):
            assert (page.parent / "figures" / f"{figure}.{suffix}").stat().st_size > 1000
    judged = ms.Study(tmp_path / "run" / "compare").records()
    density = {record.params["mask"]: record.measures["density"] for record in judged}
    assert density["random keys"] == pytest.approx(density["oracle"], abs=0.5 / 16)
    capsys.readouterr()
    run_demo(tmp_path / "run", **settings)
    assert "done" not in capsys.readouterr().err  # nothing ran again


def test_finding_says_who_found_the_truth():
    found = compare_with_truth("a", PROCESS.oracle, PROCESS, heads=2)
    assert found.found
    assert "a found the planted mask: it keeps" in str(found)
    missed = compare_with_truth("b", masks.window(3), PROCESS, heads=2)
    assert not missed.found
    assert "did not find the planted mask" in str(missed)
    dense = compare_with_truth("c", masks.full(), PROCESS, heads=2)
    assert dense.kept == dense.edges
    assert not dense.found  # it keeps everything else too
    half = torch.eye(16, dtype=torch.bool) | PROCESS.edges
    heads = masks.per_head([masks.table(half), masks.window(0)])
    found = compare_with_truth("d", heads, PROCESS, heads=2)
    assert found.found  # an edge counts where any head keeps it
