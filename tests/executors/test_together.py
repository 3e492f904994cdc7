"""The executor whose jobs are one program."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from toy import ToyEvaluator, space

import masksearch as ms
from masksearch import masks
from masksearch.contracts import Budget, OneShot, Proposal, Record, Report
from masksearch.errors import NonFiniteLossError, SearchError
from masksearch.executors.local import Local
from masksearch.executors.together import Together, TrainsTogether
from masksearch.masks import Mask
from masksearch.strategies.listed import Listed

CANDIDATES = {f"w{reach}": masks.window(reach) for reach in range(5)}


@dataclass(frozen=True)
class ToyTogether(ToyEvaluator):
    """The toy, whose groups are written to `log`."""

    interrupted: Path | None = None  # where it is: the second group is killed once

    def together(self, masks: Sequence[Mask], *, seeds: Sequence[int]) -> list[Iterator[Report]]:
        if self.log is not None and masks:
            with self.log.open("a", encoding="utf-8") as file:
                file.write(f"{len(masks)}\n")
        return [
            self.one(mask, seed, killed=index == 1)
            for index, (mask, seed) in enumerate(zip(masks, seeds, strict=True))
        ]

    def one(self, mask: Mask, seed: int, *, killed: bool) -> Iterator[Report]:
        for report in super().__call__(mask, seed=seed, workdir=Path()):
            if killed and report.step == 2 and self.interrupted and self.interrupted.exists():
                self.interrupted.unlink()
                raise KeyboardInterrupt
            if self.nan_at is not None and report.values["loss"] != report.values["loss"]:
                raise NonFiniteLossError("the loss became nan at step 4 of 4")
            yield report

    def __call__(self, mask: Mask, *, seed: int, workdir: Path) -> Iterator[Report]:
        raise AssertionError("one after the other is not what was asked for")


def run(
    executor, strategy, evaluator, workdir: Path, on_report=lambda number, report: True
) -> list[Record]:
    records: list[Record] = []
    executor.run(
        strategy,
        evaluator,
        budget=Budget(),
        seed=7,
        workdir=workdir,
        on_record=records.append,
        on_report=on_report,
    )
    return records


def test_records_are_those_of_local_in_its_order(tmp_path):
    expected = run(Local(), Listed(CANDIDATES, [0, 1]), ToyEvaluator(), tmp_path / "a")
    log = tmp_path / "log"
    found = run(Together(4), Listed(CANDIDATES, [0, 1]), ToyTogether(log=log), tmp_path / "b")
    same = [replace(record, seconds=0) for record in expected]
    assert [replace(record, seconds=0) for record in found] == same
    assert [line for line in log.read_text().splitlines() if line.isdigit()] == ["4", "4", "2"]
    assert all(record.seconds > 0 for record in found)


def test_failure_stays_in_its_own_record(tmp_path):
    evaluator = ToyTogether(nan_at=0.7)
    found = run(Together(5), Listed(CANDIDATES, [0]), evaluator, tmp_path)
    failed = {record.params["mask"] for record in found if record.status == "failed"}
    beyond = {name for name, mask in CANDIDATES.items() if mask.sparsity(16) > 0.7}
    assert failed == beyond
    assert {record.reason for record in found if record.status == "failed"} == {
        "NonFiniteLossError: the loss became nan at step 4 of 4"
    }


def test_reports_come_in_turn_and_can_stop_a_job(tmp_path):
    heard: list[tuple[int, int]] = []

    def on_report(number: int, report: Report) -> bool:
        heard.append((report.step, number))
        return not (number == 1 and report.step == 2)

    names = dict(list(CANDIDATES.items())[:3])
    found = run(Together(3), Listed(names, [0]), ToyTogether(), tmp_path, on_report)
    assert heard == [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2), (4, 0), (4, 2)]
    assert [record.status for record in found] == ["done", "stopped", "done"]
    assert found[1].error == "ended early by the scheduler at step 2"


def test_killed_search_goes_on_and_ends_as_one_that_was_not(tmp_path):
    def search(name: str, evaluator: ToyEvaluator, executor: object) -> list[Record]:
        study = ms.search(
            space,
            evaluator,
            run=tmp_path / name,
            trials=5,
            strategy="random",
            executor=executor,
        )
        return study.records()

    expected = search("local", ToyEvaluator(), Local())
    mark, log = tmp_path / "mark", tmp_path / "log"
    mark.touch()
    evaluator = ToyTogether(log=log, interrupted=mark)
    with pytest.raises(KeyboardInterrupt):
        search("together", evaluator, Together(3))
    found = search("together", evaluator, Together(3))
    assert [(r.number, r.status, r.fingerprint, r.values) for r in found] == [
        (r.number, r.status, r.fingerprint, r.values) for r in expected
    ]
    assert not mark.exists()


def test_job_that_is_no_mask_runs_beside_the_group(tmp_path):
    class Mixed(Listed):
        def ask(self):
            proposal = super().ask()
            if isinstance(proposal, Proposal) and proposal.number == 1:
                return replace(proposal, job=OneShot())
            return proposal

    found = run(Together(3), Mixed(CANDIDATES, [0]), ToyTogether(), tmp_path)
    assert [record.number for record in found] == list(range(5))
    assert [record.status for record in found] == ["done", "failed", "done", "done", "done"]
    assert "differentiable" in found[1].error


@pytest.mark.slow
def test_suspect_runs_in_a_process_of_its_own(tmp_path):
    class Again(Listed):
        def ask(self):
            proposal = super().ask()
            if isinstance(proposal, Proposal) and proposal.number == 1:
                return replace(proposal, starts=2)
            return proposal

    names = dict(list(CANDIDATES.items())[:2])
    found = run(Together(2), Again(names, [0]), ToyTogether(), tmp_path)
    assert found[0].status == "done"
    assert "one after the other" in found[1].error  # it was called, elsewhere


def test_evaluator_that_does_not_offer_it_is_refused(tmp_path):
    assert isinstance(ToyTogether(), TrainsTogether)
    with pytest.raises(SearchError, match=r"ToyEvaluator does not offer .* use Local\(\)"):
        run(Together(), Listed(CANDIDATES, [0]), ToyEvaluator(), tmp_path)
    with pytest.raises(ValueError, match="slots must be at least 1, got 0"):
        Together(slots=0)


def test_strategy_that_waits_for_nothing_is_an_error(tmp_path):
    class Waiting(Listed):
        def ask(self):
            return "wait"

    with pytest.raises(SearchError, match="waits although no job is running"):
        run(Together(), Waiting({}, []), ToyTogether(), tmp_path)
