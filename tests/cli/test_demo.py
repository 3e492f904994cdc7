"""The demonstration end to end at a toy size, its words, and the records that it ships with."""

from __future__ import annotations

import json

import pytest

import masksearch as ms
from masksearch import masks
from masksearch.cli.demo import (
    RECORDED_SEEDS,
    RECORDS,
    STRATEGIES,
    DemoSettings,
    allowed,
    best_allowed,
    record_searches,
    run_demo,
    volume,
)
from masksearch.report.recorded import recorded_searches

TOY = DemoSettings(
    ms.PlantedEvaluator.graded(steps=4, held_out_sequences=32, gate_batch=4),
    trials=2,
    seeds=(0, 1),
    dam_config={"steps": 12, "density": 0.2, "dense_warmup": 0.5},
)
PROCESS = TOY.process


@pytest.mark.slow  # continuous integration runs it
@pytest.mark.filterwarnings("ignore:DAM")
def test_demo_ends_in_a_report_and_resumes(tmp_path, capsys):
    page, lines = run_demo(tmp_path / "run", slots=1, settings=TOY)
    html = page.read_text(encoding="utf-8")
    for name in ("dense", "oracle", "strided", "longformer", "dam at ", "true front"):
        assert name in html
    assert "masksearch demo --run runs/recorded --record" in html
    assert sum("search seed 100, this run" in line for line in lines) == len(STRATEGIES)
    assert any(line.startswith("Recorded, 3 search seeds") for line in lines)
    assert "http://" not in html.replace("http://www.w3.org", "")
    result = json.loads((page.parent / "result.json").read_text(encoding="utf-8"))
    final, searched, recorded = result["sections"]
    assert recorded["title"] == "recorded searches"
    for chart in (final["comparisons"][0]["chart"], searched["chart"], recorded["chart"]):
        line = [point for point in chart["lines"] if point["group"] == "true front"]
        assert len(line) == len(PROCESS.front) + 1
    capsys.readouterr()
    run_demo(tmp_path / "run", slots=1, settings=TOY)
    assert "done" not in capsys.readouterr().err  # nothing ran again
    written = record_searches(tmp_path / "again", slots=1, settings=TOY, seeds=(0,))
    assert {len(runs["0"]) for runs in written["searches"].values()} == {2, 6}


def test_records_are_those_of_the_demonstration():
    recorded = json.loads(RECORDS.read_text(encoding="utf-8"))
    settings = DemoSettings()
    assert recorded["process"] == settings.process.digest
    assert recorded["protocol"] == settings.evaluator.protocol
    assert set(recorded["searches"]) == set(STRATEGIES)
    section = recorded_searches(recorded, settings.evaluator.objectives, settings.evaluator.shape)
    for runs in section.searches.values():
        assert tuple(runs) == RECORDED_SEEDS
        for records in runs.values():
            assert all(record.status in ("done", "reused") for record in records)
            for record in records:
                if record.mask is None:
                    continue
                sparsity, accuracy = allowed(settings.process, record.mask)
                assert record.measures["sparsity"] == pytest.approx(sparsity)
                assert accuracy <= best_allowed(settings.process, sparsity) + 1e-9
                assert record.value("score") < accuracy + 0.05  # 1,024 sequences


def test_volume_is_a_share_of_the_true_front():
    front = [(point.sparsity, point.accuracy) for point in PROCESS.front]
    assert volume(PROCESS, front) == 1
    assert volume(PROCESS, []) == 0
    assert volume(PROCESS, [(0.9, PROCESS.chance)]) == 0
    middle = front[len(front) // 2]
    dominated = (middle[0] - 0.1, middle[1] - 0.1)
    assert 0 < volume(PROCESS, [middle]) == volume(PROCESS, [dominated, middle]) < 1
    assert best_allowed(PROCESS, middle[0]) == middle[1]
    assert best_allowed(PROCESS, 1.0) == PROCESS.chance
    assert allowed(PROCESS, masks.full()) == (0, pytest.approx(PROCESS.ceiling))


def test_demonstration_needs_a_process_whose_front_is_known():
    with pytest.raises(TypeError, match="GradedProcess"):
        _ = DemoSettings(ms.PlantedEvaluator()).process
