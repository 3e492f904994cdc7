"""Records survive the storage bit for bit, whatever the storage."""

import math

import optuna
import pytest
import torch

import masksearch
from masksearch import masks
from masksearch.contracts import Evaluate, Objective, OneShot, Record, Refused, Report
from masksearch.errors import ResumeError, SearchError
from masksearch.study.records import read_job
from masksearch.study.store import StudyStore

OBJECTIVES = (Objective("loss", "min", 10.0), Objective("sparsity", "max", 0.0))
FACTS = {"kind": "search", "shape": '{"length": 16, "layers": 2, "heads": 2}', "protocol": "p"}


def running(job=None, **settings) -> Record:
    values = dict(
        number=-1,
        status="running",
        job=job or Evaluate(masks.window(2)),
        fingerprint="f" * 64,
        protocol="p",
        seed=3,
        params={"reach": 2, "kind": "a"},
        origin="tpe",
        source="own",
        measures={"sparsity": 0.7, "hops": math.inf},
        strategy_state={"note": "kept"},
    )
    return Record(**(values | settings))


def finished(record: Record, number: int, **settings) -> Record:
    from dataclasses import replace

    values = dict(
        number=number,
        status="done",
        values={"loss": 0.25},
        step=4,
        curve=(Report(2, {"loss": 0.5}), Report(4, {"loss": 0.25})),
        artifacts={"gates": f"trials/{number}/gates.safetensors"},
        seconds=1.5,
    )
    return replace(record, **(values | settings))


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
    record = running()
    number = store.begin(record, draw=0)
    (read,) = store.records()
    assert read == finished(record, number, status="running", values={}, step=0, curve=(),
                            artifacts={}, seconds=0.0)  # fmt: skip
    done = finished(record, number)
    store.finish(done)
    assert store.records() == [done]
    assert [trial.draw for trial in store.stored_trials()] == [0]


def test_statuses_become_optuna_states(store):
    jobs = {
        "done": Evaluate(masks.full()),
        "reused": Evaluate(masks.full()),
        "stopped": Evaluate(masks.full()),
        "failed": Refused("no mask"),
    }
    for draw, (status, job) in enumerate(jobs.items()):
        record = running(job)
        number = store.begin(record, draw)
        values = {"loss": 1.0} if status != "failed" else {}
        store.finish(finished(record, number, status=status, values=values))
    record = running(OneShot({"structure": "free"}, {"steps": 3}))
    number = store.begin(record, 4)
    store.finish(finished(record, number, values={"density": 0.1}))
    states = [trial.state.name for trial in store.optuna_study().get_trials()]
    assert states == ["COMPLETE", "COMPLETE", "PRUNED", "FAIL", "PRUNED"]
    assert store.optuna_study().get_trials()[0].values == [1.0, 0.7]
    assert [record.status for record in store.records()] == [*jobs, "done"]
    assert store.records()[4].job == record.job


def test_job_of_an_unknown_kind_is_named(tmp_path):
    with pytest.raises(SearchError, match=r"trial 3 of .* the kind 'shared', which .*; read it"):
        read_job({"kind": "shared", "config": {}}, 3, tmp_path)


def test_big_mask_is_a_file_beside_the_study(store):
    bits = torch.rand(2, 2, 200, 200, generator=torch.Generator().manual_seed(0)) > 0.5
    record = running(Evaluate(masks.table(bits)))
    store.begin(record, 0)
    assert (store.run / "masks" / ("f" * 64 + ".safetensors")).is_file()
    assert store.records()[0].job == record.job


def test_told_is_in_the_order_of_completion(store):
    for draw in range(4):
        store.begin(running(), draw)
    for number in (2, 0, 3):
        store.finish(finished(running(), number))
    assert [record.number for record in store.told()] == [2, 0, 3, 1]


def test_other_facts_are_refused_with_the_difference(store):
    store.begin(running(), 0)
    store.finish(finished(running(), 0))
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


def test_starts_count_every_beginning_of_a_running_trial(store):
    for draw in range(2):
        store.begin(running(), draw)
    assert store.again(1) == 2
    assert store.again(1) == 3
    store.load()  # what a resumed search reads
    assert store.again(1) == 4
    assert store.again(0) == 2
    store.finish(finished(running(), 1))
    with pytest.raises(ValueError, match=r"trial 1 of .* is not running"):
        store.again(1)


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
    store.finish(finished(running(), 1, status="stopped"))
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
    assert study.user_attrs["masksearch"] == masksearch.__version__
    study.set_user_attr("format", 4)
    study.set_user_attr("masksearch", "9.8.7")
    message = (
        rf"was written by masksearch 9\.8\.7 in format 4; this is masksearch "
        rf"{masksearch.__version__}, which reads format 3; install"
    )
    with pytest.raises(SearchError, match=message):
        store.create(OBJECTIVES, FACTS)


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_lost_mask_file_is_named(store, damage):
    bits = torch.rand(2, 2, 200, 200, generator=torch.Generator().manual_seed(0)) > 0.5
    store.begin(running(), 0)
    store.begin(running(Evaluate(masks.table(bits))), 1)
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
        store.finish(finished(running(), number, values={"loss": math.nan}))
    assert store.records()[0].status == "running"
