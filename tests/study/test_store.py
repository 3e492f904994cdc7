"""Records survive the storage bit for bit, whatever the storage."""

import math
import subprocess
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
import torch
from stored_trials import FACTS, OBJECTIVES, finished, running
from toy import ToyEvaluator

import masksearch as ms
from masksearch import masks
from masksearch.contracts import Evaluate, OneShot, Refused, Report
from masksearch.errors import ResumeError, SearchError
from masksearch.evaluators.wrappers import Cached
from masksearch.study.store import StudyStore

BITS = torch.rand(2, 2, 200, 200, generator=torch.Generator().manual_seed(0)) > 0.5


@pytest.fixture(params=["sqlite", "journal", "object"])
def store(request, tmp_path):
    storage = {
        "sqlite": None,
        "journal": f"journal:{tmp_path / 'log'}",
        "object": optuna.storages.InMemoryStorage(),
    }[request.param]
    store = StudyStore(tmp_path / "run", storage)
    assert store.create(OBJECTIVES, FACTS) is False
    yield store
    store.close()


def test_records_come_back_as_they_went_in(store):
    number = store.begin(running(), draw=0)
    assert store.records() == [replace(running(), number=number)]
    store.finish(finished(number))
    assert store.records() == [finished(number)]
    assert [trial.draw for trial in store.stored_trials()] == [0]


def test_statuses_become_optuna_states(store):
    jobs = {
        "done": Evaluate(masks.full()),
        "reused": Evaluate(masks.full()),
        "stopped": Evaluate(masks.full()),
        "failed": Refused("no mask"),
    }
    for draw, (status, job) in enumerate(jobs.items()):
        number = store.begin(running(job), draw)
        values = {"loss": 1.0} if status != "failed" else {}
        store.finish(finished(number, job, status=status, values=values))
    one_shot = OneShot({"structure": "free"}, {"steps": 3})
    store.finish(finished(store.begin(running(one_shot), 4), one_shot, values={"density": 0.1}))
    states = [trial.state.name for trial in store.optuna_study().get_trials()]
    assert states == ["COMPLETE", "COMPLETE", "PRUNED", "FAIL", "PRUNED"]
    assert store.optuna_study().get_trials()[0].values == [1.0, 0.7]
    assert [record.status for record in store.records()] == [*jobs, "done"]
    assert store.records()[4].job == one_shot


def test_job_of_an_unknown_kind_is_named(store):
    store.begin(running(), 0)
    data = store.trials()[0].user_attrs["proposal"] | {"job": {"kind": "shared", "config": {}}}
    store.storage.set_trial_user_attr(store.ids[0], "proposal", data)
    with pytest.raises(SearchError, match=r"trial 0 of .* the kind 'shared', which .*; read it"):
        store.records()


def test_big_mask_is_a_file_beside_the_study(store):
    record = running(Evaluate(masks.table(BITS)))
    store.begin(record, 0)
    assert (store.run / "masks" / ("f" * 64 + ".safetensors")).is_file()
    assert store.records()[0].job == record.job


def test_a_big_mask_that_follows_the_tokens_comes_back(store):
    record = running(Evaluate(masks.table(BITS) | masks.same_token()))
    store.begin(record, 0)
    assert [*(store.run / "masks").iterdir()]
    assert store.records()[0].job == record.job


def test_told_is_in_the_order_of_completion(store):
    for draw in range(4):
        store.begin(running(), draw)
    for number in (2, 0, 3):
        store.finish(finished(number))
    assert [record.number for record in store.told()] == [2, 0, 3, 1]


def test_other_facts_are_refused_with_the_difference(store):
    store.begin(running(), 0)
    store.finish(finished(0))
    with pytest.raises(ResumeError, match="protocol: was p, now q"):
        store.create(OBJECTIVES, FACTS | {"protocol": "q"})
    assert store.create(OBJECTIVES, FACTS) is True


def test_foreign_trial_is_named(store):
    store.optuna_study().add_trial(
        optuna.trial.create_trial(values=[1.0, 2.0], params={}, distributions={})
    )
    with pytest.raises(SearchError, match=r"trial 0 of .* was not written by masksearch"):
        store.records()


def test_folder_without_a_study(tmp_path):
    with pytest.raises(SearchError, match="holds no study"):
        StudyStore(tmp_path, write=False)


def test_a_model_that_is_taken_for_a_run_is_named_by_weights(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SearchError, match=r"holds no study .*; it is a model: --weights names it"):
        StudyStore(tmp_path, write=False)


def test_starts_count_every_beginning_of_a_running_trial(store):
    for draw in range(2):
        store.begin(running(), draw)
    assert store.again(1) == 2
    assert store.again(1) == 3
    store.load()  # what a resumed search reads
    assert store.again(1) == 4
    assert store.again(0) == 2


def test_observations_come_back_in_their_order(store):
    for draw in range(2):
        store.begin(running(), draw)
    made = [
        (1, Report(2, {"loss": 0.5}), True),
        (0, Report(2, {"loss": math.inf}), True),
        (1, Report(4, {"loss": 0.4, "more": 1.0}), False),
    ]
    for seen in made[:2]:
        store.observe(*seen)
    store.load()  # a resumed search counts on
    store.observe(*made[2])
    store.finish(finished(1, status="stopped"))
    first, second = store.stored_trials()
    found = [
        [(each.order, each.report, each.goes_on) for each in trial.answers]
        for trial in (first, second)
    ]
    expected = [(order, *seen[1:]) for order, seen in enumerate(made)]
    assert found == [[expected[1]], [expected[0], expected[2]]]


def test_newer_format_names_both_versions(store):
    study = store.optuna_study()
    assert study.user_attrs["format"] == 3
    assert study.user_attrs["masksearch"] == ms.__version__
    study.set_user_attr("format", 4)
    study.set_user_attr("masksearch", "9.8.7")
    message = (
        rf"was written by masksearch 9\.8\.7 in format 4; this is masksearch "
        rf"{ms.__version__}, which reads format 3; install"
    )
    with pytest.raises(SearchError, match=message):
        store.create(OBJECTIVES, FACTS)


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_lost_mask_file_is_named(store, damage):
    store.begin(running(), 0)
    store.begin(running(Evaluate(masks.table(BITS))), 1)
    (file,) = (store.run / "masks").glob("*")
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(SearchError, match=rf"mask of trial 1 is (missing|damaged).*{file.name}"):
        store.records()


def test_study_whose_maker_was_killed_is_completed(tmp_path):
    storage = optuna.storages.InMemoryStorage()
    optuna.create_study(storage=storage, study_name="run", directions=["minimize", "maximize"])
    store = StudyStore(tmp_path / "run", storage)
    store.create(OBJECTIVES, FACTS)
    assert store.facts() == FACTS
    assert store.objectives() == OBJECTIVES
    store.close()


def test_nan_objective_is_no_result(store):
    number = store.begin(running(), 0)
    with pytest.raises(ValueError, match="trial 0 has NaN"):
        store.finish(finished(number, values={"loss": math.nan}))
    assert store.records()[0].status == "running"


# -- how a study was made -----------------------------------------------------------------------
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


@pytest.mark.slow
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
