"""The local executor: a loop, or worker processes that may die."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest
from toy import ToyEvaluator

from masksearch import masks
from masksearch.contracts import Budget, Evaluate, OneShot, Proposal, Record
from masksearch.errors import SearchError
from masksearch.executors.local import Local
from masksearch.executors.work import carry_out
from masksearch.strategies.listed import Listed


def run(executor: Local, strategy, evaluator, workdir: Path) -> list[Record]:
    records: list[Record] = []
    executor.run(
        strategy, evaluator, budget=Budget(), seed=7, workdir=workdir, on_record=records.append
    )
    return records


@pytest.mark.parametrize("slots", [1, 2])
def test_every_job_becomes_one_record(slots, tmp_path):
    listed = Listed({f"w{reach}": masks.window(reach) for reach in range(5)}, [0, 1])
    records = run(Local(slots), listed, ToyEvaluator(), tmp_path)
    assert sorted(record.number for record in records) == list(range(10))
    assert {record.status for record in records} == {"done"}
    assert {record.seed for record in records} == {0, 1}


@dataclass(frozen=True)
class Crashing(ToyEvaluator):
    """Takes its process with it on one mask."""

    def __call__(self, mask, *, seed, workdir):
        if str(mask) == "window(2)":
            os._exit(9)
        yield from super().__call__(mask, seed=seed, workdir=workdir)


def test_dead_worker_fails_its_trial_only(tmp_path):
    listed = Listed({f"w{reach}": masks.window(reach) for reach in range(5)}, [0])
    records = run(Local(slots=2), listed, Crashing(), tmp_path)
    failed = [record for record in records if record.status == "failed"]
    assert sorted(record.number for record in records) == list(range(5))
    assert any(record.params["mask"] == "w2" for record in failed)
    assert "worker process died" in failed[0].error
    assert sum(record.status == "done" for record in records) >= 3


def test_strategy_that_waits_for_nothing_is_an_error(tmp_path):
    class Waiting(Listed):
        def ask(self):
            return "wait"

    with pytest.raises(SearchError, match="waits although no job is running"):
        run(Local(), Waiting({}, []), ToyEvaluator(), tmp_path)


def test_slots_must_be_positive():
    with pytest.raises(ValueError, match="slots must be at least 1, got 0"):
        Local(slots=0)


def test_carry_out_keeps_the_traceback(tmp_path):
    proposal = Proposal(3, Evaluate(masks.full()), origin="x")
    record = carry_out(
        proposal, ToyEvaluator(fails=True), seed=5, workdir=tmp_path, folder="trials/3"
    )
    assert (record.status, record.seed, record.origin) == ("failed", 5, "x")
    assert "RuntimeError: the toy is broken" in record.error
    assert "Traceback" in record.error


def test_one_shot_without_gradients_is_a_clear_failure(tmp_path):
    record = carry_out(
        Proposal(0, OneShot()), ToyEvaluator(), seed=0, workdir=tmp_path, folder="trials/0"
    )
    assert record.status == "failed"
    assert "differentiable" in record.error
