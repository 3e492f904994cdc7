"""Experiment 07's cards: what the finished pre-trainings and their fine-tunings make."""

import json
import sys
from types import ModuleType

import pytest
from experiment_scripts import EXPERIMENTS, load_script


@pytest.fixture(scope="module")
def script() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXPERIMENTS / "07_proxy")  # its helper lies beside it
        return load_script("07_proxy/card.py")


@pytest.fixture
def folder(tmp_path):
    scores = []
    for index in range(12):
        for seed in (0, 1):
            facts = {
                "mask": f"m{index}",
                "density": 0.1 + index % 2 / 100,
                "seed": seed,
                "curve": {"100": 5 - index / 20 - seed / 100, "400": 4 - index / 10},
            }
            (tmp_path / f"m{index}-{seed}.json").write_text(json.dumps(facts))
            for task, majority in (("SST-2", 0.5), ("QQP", 0.62)):
                row = {"mask": f"m{index}", "seed": seed, "step": 400, "setting": "full"}
                row |= {"task": task, "score": majority + index / 100, "majority": majority}
                scores.append(row)
    scores.append({**scores[0], "mask": "unknown"})
    scores.append({**scores[0], "score": scores[0]["score"] + 0.2})  # a second fine-tuning
    (tmp_path / "scores-0.json").write_text(json.dumps(scores))
    return tmp_path


def test_curves_and_scores_become_observations(script, folder):
    losses = script.curves(folder)
    assert len(losses) == 12 * 2 * 2
    densities = {mask: density for mask, density, *_ in losses}
    tuned = script.of_scores(script.scores(folder), densities)
    values = {(mask, seed, measure): value for mask, _, seed, _, measure, value in tuned}
    assert values["m0", 0, "SST-2 (full)"] == pytest.approx(0.6)  # mean of two fine-tunings
    assert values["m3", 1, "mean of the GLUE tasks (full)"] == pytest.approx((0.53 + 0.65) / 2)
    assert "unknown" not in {mask for mask, *_ in tuned}
    learned = script.at_majority(script.scores(folder)).set_index("task")["learned"]
    assert learned.to_dict() == {"SST-2": True, "QQP": True}


@pytest.mark.nightly
def test_cards_are_written(script, folder, monkeypatch, capsys, tmp_path):
    results = tmp_path / "results"
    words = ["card.py", "--runs", folder, "--results", results, "--bands", 1]
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    script.main()
    out = capsys.readouterr().out
    assert "Valid from 100 steps on: loss as a proxy of loss at 400 steps." in out
    for name in ("loss.png", "loss.csv", "glue_full.txt", "observations.csv", "learned.csv"):
        assert (results / name).is_file()


def test_recorded_curves_are_read(script):
    place = EXPERIMENTS / "04_halving_replay" / "results" / "text_400.csv"
    found = script.recorded(place, "loss")
    assert len({mask for mask, *_ in found}) == 24
    assert sorted({budget for *_, budget, _, _ in found}) == [3, 6, 12, 25, 50, 100, 200, 400]
