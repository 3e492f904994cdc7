"""On real text, Ray with two slots ends with the trials and values of the local run."""

import os
from pathlib import Path

import pytest
from killing import outcome

import masksearch as ms

DATA = os.environ.get("MASKSEARCH_DATA")
SPACE = Path(__file__).parents[2] / "search_spaces" / "head_shifts.py"


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.skipif(not DATA, reason="MASKSEARCH_DATA names no folder of data")
def test_ray_on_real_text_equals_the_local_run(command, monkeypatch, tmp_path):
    words = ["search", f"{SPACE}:space", "--corpus", f"{DATA}/wikitext-2", "--strategy", "random"]
    settings = ["--trials", 6, "--steps", 24, "--set", "vocabulary=1024", "--seed", 5]
    monkeypatch.setenv("MASKSEARCH_CACHE", str(tmp_path / "cache"))
    for name, place in {"local": [], "ray": ["--executor", "ray", "--slots", 2]}.items():
        command(*words, *settings, *place, "--run", tmp_path / name)
    local, ray = ms.Study(tmp_path / "local"), ms.Study(tmp_path / "ray")
    assert outcome(ray, by_draw=True) == outcome(local, by_draw=True)
    assert all(record.values["loss"] > 0 for record in local.records())
