"""The demonstration end to end at a toy size, and its words."""

from __future__ import annotations

import json

import pytest

import masksearch as ms
from masksearch import masks
from masksearch.cli.demo import run_demo, volume

PROCESS = ms.GradedProcess()
TOY = {
    "evaluator": ms.PlantedEvaluator.graded(steps=4, held_out_sequences=32, gate_batch=4),
    "trials": 2,
    "seeds": (0, 1),
    "dam": {
        "gates": {"heads": 1},
        "config": {"steps": 12, "density": 0.2, "dense_warmup": 0.5},
        "densities": (0.05, 0.1, 0.2),
    },
}


@pytest.mark.slow  # continuous integration runs it
@pytest.mark.filterwarnings("ignore:DAM")
def test_demo_ends_in_a_report_and_resumes(tmp_path, capsys):
    page, lines = run_demo(tmp_path / "run", slots=1, **TOY)
    html = page.read_text(encoding="utf-8")
    for name in ("dense", "oracle", "strided", "longformer", "best from 78% on", "true front"):
        assert name in html
    assert html.index("The task: 21 tokens") < html.index("masks cover")
    assert "No comparison over seeds is included" not in html
    assert sum("one search, seed 100" in line for line in lines) == 4
    assert "http://" not in html.replace("http://www.w3.org", "")
    result = json.loads((page.parent / "result.json").read_text(encoding="utf-8"))
    final, searched = result["sections"]
    for chart in (final["comparisons"][0]["chart"], searched["chart"]):
        line = [point for point in chart["lines"] if point["group"] == "true front"]
        assert len(line) == len(PROCESS.front) + 1
    capsys.readouterr()
    run_demo(tmp_path / "run", slots=1, **TOY)
    assert "done" not in capsys.readouterr().err  # nothing ran again


def test_volume_is_a_share_of_the_true_front():
    front = [(point.sparsity, point.accuracy) for point in PROCESS.front]
    assert volume(PROCESS, front) == 1
    assert volume(PROCESS, []) == 0
    assert volume(PROCESS, [(0.9, PROCESS.chance)]) == 0
    middle = front[len(front) // 2]
    dominated = (middle[0] - 0.1, middle[1] - 0.1)
    assert 0 < volume(PROCESS, [middle]) == volume(PROCESS, [dominated, middle]) < 1
    full = masks.full()
    assert volume(PROCESS, [(full.sparsity(21), PROCESS.expected(full))]) == 0


def test_demonstration_needs_a_process_whose_front_is_known(tmp_path):
    with pytest.raises(TypeError, match="GradedProcess"):
        run_demo(tmp_path, evaluator=ms.PlantedEvaluator())
