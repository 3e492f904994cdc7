"""Both ends of a cluster, driven in this process: `Desk` and `Outpost` know no Ray."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import cloudpickle
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from ray_fixtures import STEPS, Troubled, Unloadable

from masksearch import masks
from masksearch.contracts import Record, Report
from masksearch.errors import SearchError
from masksearch.executors.desk import STUCK, Death, Desk, Parcel
from masksearch.executors.outpost import Crew, Outpost
from masksearch.strategies.listed import Listed

CRASH = Death("the process is gone")


class Story:
    """A desk with its records and reports, and outposts that are killed at will."""

    def __init__(
        self, folder: Path, evaluator=None, count=3, goes_on=None, strategy=None, **options
    ):
        self.evaluator = evaluator or Troubled()
        self.records: list[Record] = []
        self.reports: list[tuple[int, int]] = []
        self.goes_on = goes_on or (lambda number, report: True)
        self.folder, self.travels = folder, options.pop("travels", False)
        self.options = {"max_failures": 2, "limit_seconds": None} | options
        self.strategy = strategy or Listed({f"w{i}": masks.window(i) for i in range(count)}, [0])
        self.desk = Desk(
            self.strategy,
            self.evaluator,
            seed=0,
            workdir=folder / "run",
            on_record=self.records.append,
            on_report=self.heard,
            **self.options,
        )

    def heard(self, number: int, report: Report) -> bool:
        self.reports.append((number, report.step))
        return self.goes_on(number, report)

    def outpost(self, reuse: bool = True) -> Outpost:
        crew = Crew(
            cloudpickle.dumps(self.evaluator),
            0,
            workdir=None if self.travels else str(self.folder / "run"),
            limit_seconds=None,
            checkpoint_seconds=0.0,
            threads=1,
            gpu=0.0,
            reuse=reuse,
        )
        return Outpost(lambda reference: crew)

    def take(self, name: str, outpost: Outpost) -> None:
        parcel = self.desk.ask(name)
        assert isinstance(parcel, Parcel)
        outpost.take(parcel, self.folder / "scratch")

    def finish(self, name: str, outpost: Outpost) -> None:
        while self.desk.hear(name, outpost.step()):
            pass


def test_a_search_in_one_outpost(tmp_path):
    story = Story(tmp_path)
    outpost = story.outpost()
    for name in "abc":
        story.take(name, outpost)
        if name == "c":
            assert story.desk.ask("d") == "wait"  # its result may bring new proposals
        story.finish(name, outpost)
    assert story.desk.ask("d") == "done"
    assert [(r.number, r.status, r.values["loss"]) for r in story.records] == [
        (n, "done", 100.0 * n + STEPS) for n in range(3)
    ]
    assert story.reports == [(n, step) for n in range(3) for step in range(1, STEPS + 1)]
    assert [len(r.curve) for r in story.records] == [STEPS] * 3
    assert story.records[2].job == story.strategy.proposals[2].job


def test_a_stopped_trial_keeps_its_curve(tmp_path):
    story = Story(tmp_path, count=1, goes_on=lambda number, report: report.step < 2)
    outpost = story.outpost()
    story.take("a", outpost)
    story.finish("a", outpost)
    (record,) = story.records
    assert (record.status, record.step, len(record.curve)) == ("stopped", 2, 2)
    assert record.values == {"loss": 2.0}
    outpost.leave()  # closes the job's generator
    assert outpost.work is None


def test_a_failed_trial_keeps_its_traceback_and_retires_its_process(tmp_path):
    story = Story(tmp_path, Troubled(how={0: "raise"}), count=2)
    outpost = story.outpost()
    story.take("a", outpost)
    assert story.desk.hear("a", outpost.step())
    message = outpost.step()
    assert message.retires
    assert story.desk.hear("a", message)  # asked once more, which ends the process
    with pytest.raises(RuntimeError, match="ends after a failed trial"):
        outpost.step()
    story.desk.bury("a", CRASH)  # the cluster reports that; nobody is told twice
    (record,) = story.records
    assert record.status == "failed"
    assert "go_wrong" in record.error
    assert "trial 0 is broken" in record.error


def test_a_process_that_is_not_reused_need_not_retire(tmp_path):
    story = Story(tmp_path, Troubled(how={0: "raise"}), count=1)
    outpost = story.outpost(reuse=False)
    story.take("a", outpost)
    story.finish("a", outpost)
    assert [r.status for r in story.records] == ["failed"]


def test_a_death_repeats_the_trial_and_yields_one_record(tmp_path):
    story = Story(tmp_path, count=1)
    first, second = story.outpost(), story.outpost()
    story.take("a", first)
    assert story.desk.hear("a", first.step())
    story.desk.bury("a", CRASH)
    assert story.records == []
    story.take("b", second)
    assert not story.desk.hear("a", first.step())  # the dead speak no more
    story.finish("b", second)
    (record,) = story.records
    assert (record.status, record.values["loss"]) == ("done", STEPS)


def test_deaths_are_counted_and_the_last_reason_is_kept(tmp_path):
    story = Story(tmp_path, count=2)
    for name in "abc":
        story.take(name, story.outpost())
        story.desk.bury(name, Death(f"reason {name}"))
    (record,) = story.records
    assert record.status == "failed"
    assert record.error.startswith("the worker process or its node died 3 times in this trial")
    assert "reason c" in record.error
    parcel = story.desk.ask("d")
    assert parcel.name == "1.0"


def test_a_node_that_was_taken_back_does_not_count(tmp_path):
    story = Story(tmp_path, count=1, max_failures=0)
    names = []
    for name in "abc":
        parcel = story.desk.ask(name)
        names.append(parcel.name)
        story.desk.bury(name, Death("preempted", counts=False))
    assert story.records == []
    assert names == ["0.0", "0.1", "0.2"]  # Tune makes a folder for each


@pytest.fixture
def hundred(monkeypatch):
    """It is a hundred seconds past the epoch, for the desk."""
    monkeypatch.setattr("masksearch.executors.desk.time", SimpleNamespace(time=lambda: 100.0))


def test_a_time_limit_is_not_tried_again(tmp_path, hundred):
    story = Story(tmp_path, count=1, limit_seconds=5.0)
    outpost = story.outpost()
    story.take("a", outpost)
    assert story.desk.hear("a", outpost.step())
    stuck = tmp_path / "run/trials/0" / STUCK
    stuck.write_text("File somewhere, line 3")
    story.desk.bury("a", Death("gone", started=94.0))
    (record,) = story.records
    assert record.error == "ran longer than the time limit of 5 s\nFile somewhere, line 3"
    assert len(record.curve) == 1
    assert record.seconds == 6.0
    assert not stuck.exists()


def test_a_death_before_the_limit_is_tried_again(tmp_path, hundred):
    story = Story(tmp_path, count=1, limit_seconds=5.0)
    story.take("a", story.outpost())
    story.desk.bury("a", Death("gone", started=95.1))
    assert story.records == []


def test_a_death_that_is_heard_of_after_the_limit_is_tried_again(tmp_path, hundred):
    story = Story(tmp_path, count=1, limit_seconds=5.0)
    outpost = story.outpost()
    story.take("a", outpost)
    assert story.desk.hear("a", outpost.step())
    stuck = tmp_path / "run/trials/0" / STUCK
    stuck.touch()  # the process had five seconds, and had not used them up
    story.desk.bury("a", Death("killed", started=94.0))
    assert story.records == []
    assert not stuck.exists()


def test_a_trial_that_travels_leaves_artifacts_and_finds_its_checkpoint(tmp_path):
    story = Story(tmp_path, Troubled(how={0: "gates"}), count=1, travels=True)
    first, second = story.outpost(), story.outpost()
    story.take("a", first)
    assert story.desk.hear("a", first.step())
    assert first.due()
    saved = Saved(tmp_path / "saved")
    first.save(saved.folder)
    assert not first.due()  # nothing new
    first.leave()
    assert not (tmp_path / "scratch/trials/0").exists()
    story.desk.bury("a", Death("gone", checkpoint=saved))
    story.take("b", second)
    story.finish("b", second)
    (record,) = story.records
    assert [step for _, step in story.reports] == [1, 2, 3, 4]  # step 1 was not run again
    assert record.artifacts == {"gates": "trials/0/gates.safetensors"}
    assert (tmp_path / "run/trials/0/gates.safetensors").read_bytes() == b"gates of 0"


class Saved:
    """A checkpoint as `ray.tune` has them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def as_directory(self):
        return self

    def __enter__(self) -> str:
        return str(self.folder)

    def __exit__(self, *reason: object) -> None:
        pass


def test_an_evaluator_that_cannot_be_loaded_stops_the_search(tmp_path):
    story = Story(tmp_path, Unloadable(), count=3)
    outpost = story.outpost()
    story.take("a", outpost)
    assert not story.desk.hear("a", outpost.step())
    assert isinstance(story.desk.problem, SearchError)
    assert "cannot load the evaluator" in str(story.desk.problem)
    assert "no such data on this node" in str(story.desk.problem)
    assert story.desk.ask("b") == "done"


@pytest.mark.parametrize("problem", [SearchError("enough"), KeyError("x"), KeyboardInterrupt()])
def test_the_first_problem_is_kept_and_ends_everything(tmp_path, problem):
    class Angry(Listed):
        def tell(self, record):
            raise problem

    strategy = Angry({f"w{i}": masks.window(i) for i in range(3)}, [0])
    story = Story(tmp_path, strategy=strategy)
    outpost = story.outpost()
    story.take("a", outpost)
    story.finish("a", outpost)
    assert story.desk.problem is problem
    assert story.desk.ask("b") == "done"
    assert len(story.records) == 1


def test_a_strategy_that_waits_for_nothing_is_a_mistake(tmp_path):
    class Lazy(Listed):
        def ask(self):
            return "wait"

    story = Story(tmp_path, strategy=Lazy({}, []))
    assert story.desk.ask("a") == "done"
    assert "waits although no job is running" in str(story.desk.problem)


def test_a_parcel_is_short_shared_and_emptied(tmp_path):
    import copy

    story = Story(tmp_path, count=1)
    outpost = story.outpost()
    parcel = story.desk.ask("a")
    assert copy.deepcopy({"parcel": parcel})["parcel"] is parcel
    assert repr(parcel) == "0.0"
    outpost.take(parcel, tmp_path)
    story.finish("a", outpost)
    assert (parcel.proposal, parcel.crew) == (b"", None)
    assert cloudpickle.loads(cloudpickle.dumps(story.desk)).__dict__ == {}
