"""What a study keeps on how it was made, and that none of it stands in the way of going on."""

import subprocess
from pathlib import Path

import pytest
from toy import ToyEvaluator

import masksearch as ms
from masksearch import masks
from masksearch.evaluators.wrappers import Cached
from masksearch.study.store import StudyStore

TINY = ms.PlantedEvaluator(steps=2, downstream_steps=1, held_out_sequences=8)


def space(trial):
    return masks.window(trial.suggest_int("reach", 1, 8))


def search(run: Path, trials: int) -> ms.Study:
    return ms.search(space, TINY, run=run, trials=trials, strategy="random")


def calls(run: Path) -> list[dict]:
    return StudyStore(run, write=False).calls()


@pytest.mark.slow
def test_search_goes_on_elsewhere(tmp_path, monkeypatch):
    run = tmp_path / "run"
    search(run, 1)
    monkeypatch.setattr("masksearch.study.records.machine_name", lambda: "another machine")
    search(run, 1)  # runs nothing, and notes nothing
    assert len(calls(run)) == 1
    search(run, 2)
    search(run, 2)
    first, second = calls(run)
    assert (first["first_trial"], second["first_trial"]) == (0, 1)
    assert second["machine"] == "another machine" != first["machine"]
    assert "slots=1" in first["executor"]


@pytest.mark.slow
def test_wrapped_evaluator_is_named_with_what_it_wraps(tmp_path):
    wrapped = Cached(TINY, tmp_path / "cache")
    ms.search(space, wrapped, run=tmp_path / "run", trials=1, strategy="random")
    (call,) = calls(tmp_path / "run")
    assert call["evaluator"]["class"] == "Cached(PlantedEvaluator)"
    assert call["evaluator"]["steps"] == 2
    assert call["evaluator"]["folder"] == str(tmp_path / "cache")
    assert call["data"] == dict(TINY.data_hashes())


def test_commit_is_that_of_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "tree").mkdir()
    monkeypatch.chdir(tmp_path / "tree")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))

    def call(name):
        here = ms.Local(isolate=False)
        ms.search(space, ToyEvaluator(), run=tmp_path / name, trials=1, executor=here)
        return calls(tmp_path / name)[0]

    assert "commit" not in call("none")
    assert call("none")["evaluator"]["class"] == "ToyEvaluator"
    assert "data" not in call("none")  # it says nothing of any
    who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    Path("file").write_text("1")
    for words in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "one"]):
        subprocess.run(["git", *words], check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
    assert call("clean")["commit"] == head.stdout.strip()
    Path("file").write_text("2")
    assert call("dirty")["commit"] == f"{head.stdout.strip()} with uncommitted changes"
