"""Trials between a search and its workers: what travels, and what a death costs."""

import functools
import threading
from pathlib import Path

import cloudpickle
import pytest
from contracts.toy import ToyEvaluator, space
from optuna.samplers import RandomSampler
from ray_fixtures import STEPS, Troubled, listed
from toy import PlainTrials

import masksearch as ms
from masksearch import masks
from masksearch.contracts import Evaluate, Proposal
from masksearch.errors import SearchError
from masksearch.executors.job import JobRun
from masksearch.executors.pool import Pool, WorkerLoss
from masksearch.executors.worker import TrialRunner, WorkerConfig


class Locked(ToyEvaluator):
    @functools.cached_property
    def lock(self):
        return threading.RLock()

    @property
    def protocol(self):
        with self.lock:
            return "locked"


class Around(ToyEvaluator):
    def __init__(self):
        object.__setattr__(self, "parts", {"inner": [Locked()]})
        assert self.parts["inner"][0].protocol


class Rows(ToyEvaluator):
    def __init__(self):
        object.__setattr__(self, "rows", (row for row in "abc"))


class Remedied(Locked):
    def __getstate__(self):
        return {name: value for name, value in vars(self).items() if name != "lock"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("evaluator", "message"),
    [
        (Locked(), r"Locked\.lock is a _thread\.RLock, which cannot be pickled"),
        (Around(), r"Around\.parts\['inner'\]\[0\]\.lock is a _thread\.RLock"),
        (Rows(), r"Rows\.rows is a builtins\.generator"),
    ],
)
def test_evaluator_that_cannot_travel_is_refused_before_the_first_trial(
    tmp_path, evaluator, message
):
    run = tmp_path / "run"
    with pytest.raises(SearchError, match=f"the evaluator cannot travel .*{message}") as caught:
        ms.search(space, evaluator, run=run, trials=2, executor=ms.Local(slots=2), progress=None)
    assert "__getstate__" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not run.exists()


@pytest.mark.ray
def test_evaluator_that_cannot_travel_is_refused_before_ray_starts(tmp_path):
    with pytest.raises(SearchError, match=r"Locked\.lock is a _thread\.RLock"):
        ms.search(space, Locked(), run=tmp_path / "run", trials=2, executor=ms.RayTune())


@pytest.mark.slow
def test_the_remedy_of_the_message_works(tmp_path):
    evaluator = Remedied()
    assert evaluator.protocol
    study = ms.search(
        space, evaluator, run=tmp_path / "run", trials=2, executor=ms.Local(slots=2), progress=None
    )
    assert len(study.records()) == 2


@pytest.mark.slow
def test_strategy_and_space_stay_where_they_are(tmp_path):
    lock = threading.Lock()

    class Sampler(RandomSampler):
        def __init__(self):
            super().__init__(seed=0)
            self.lock = lock

    def locked(trial):
        with lock:
            return space(trial)

    study = ms.search(
        locked,
        ToyEvaluator(),
        run=tmp_path / "run",
        trials=2,
        strategy=Sampler(),
        executor=ms.Local(slots=2),
        progress=None,
    )
    assert len(study.records()) == 2


# -- the pool, driven in this process: no pipe, no Ray ------------------------------------------
CRASH = WorkerLoss("the process is gone")


class Story:
    """A pool with its records and reports, and workers that are lost at will."""

    def __init__(self, folder: Path, evaluator=None, count=3, travels=False, **options):
        self.folder, self.travels = folder, travels
        self.work = PlainTrials(listed(count), evaluator or Troubled(), folder / "run")
        self.records, self.reports = self.work.records, self.work.reports
        self.pool = Pool(self.work, **({"max_failures": 2} | options))

    def worker(self) -> TrialRunner:
        workdir = None if self.travels else str(self.folder / "run")
        return TrialRunner(WorkerConfig(cloudpickle.dumps(self.work.evaluator), workdir))

    def take(self, name: str, worker: TrialRunner) -> None:
        spec = self.pool.next_trial(name)
        worker.take(spec, self.folder / "scratch")

    def finish(self, name: str, worker: TrialRunner) -> None:
        while self.pool.on_step(name, worker.step()):
            pass


def test_a_search_in_one_worker(tmp_path):
    story = Story(tmp_path)
    worker = story.worker()
    for name in "abc":
        story.take(name, worker)
        if name == "c":
            assert story.pool.next_trial("d") == "wait"  # its result may bring new proposals
        story.finish(name, worker)
    assert story.pool.next_trial("d") == "done"
    assert [(r.number, r.status, r.values["loss"]) for r in story.records] == [
        (n, "done", 100.0 * n + STEPS) for n in range(3)
    ]
    assert story.reports == [(n, step) for n in range(3) for step in range(1, STEPS + 1)]
    assert [len(r.curve) for r in story.records] == [STEPS] * 3
    assert story.records[2].job == Evaluate(masks.window(2))


def test_a_death_repeats_the_trial_and_yields_one_record(tmp_path):
    story = Story(tmp_path, count=1)
    first, second = story.worker(), story.worker()
    story.take("a", first)
    assert story.pool.on_step("a", first.step())
    story.pool.on_worker_lost("a", CRASH)
    assert story.records == []
    story.take("b", second)
    assert not story.pool.on_step("a", first.step())  # the dead speak no more
    story.finish("b", second)
    (record,) = story.records
    assert (record.status, record.values["loss"]) == ("done", STEPS)
    assert [report.step for report in record.curve] == [3, 4]  # those of the last attempt alone


def test_an_attempt_that_was_given_up_and_lives_on_changes_nothing(tmp_path):
    story, home = Story(tmp_path, Troubled(how={0: "gates"}), count=1), tmp_path / "run/trials/0"
    first, second, third = (story.worker() for _ in range(3))
    story.take("a", first)
    assert story.pool.on_step("a", first.step())
    with (home / "state").open("a") as kept_open:
        story.pool.on_worker_lost("a", CRASH)
        story.take("b", second)
        assert story.pool.on_step("b", second.step())
        assert not (home / "state").exists(), "it was moved, not doubled"
        kept_open.write("never read\n" * 5)  # by its worker, in a node that was cut off
    assert (home / "0-1" / "state").read_text() == "1\n2\n"
    first.step()
    (home / "gates.safetensors").write_bytes(b"of the worker that was given up")
    (home / "state").write_text("half a checkp")
    story.pool.on_worker_lost("b", CRASH)
    story.take("c", third)
    story.finish("c", third)
    (record,) = story.records
    assert [step for _, step in story.reports] == [1, 2, 3, 4]  # no step was run again
    assert record.artifacts == {"gates": "trials/0/0-2/gates.safetensors"}
    assert (tmp_path / "run" / record.artifacts["gates"]).read_bytes() == b"gates of 0"


@pytest.mark.parametrize(("starts", "losses"), [(0, 11), (2, 0)])
def test_an_attempt_finds_the_newest_file_of_all_before_it_and_takes_none_after(
    tmp_path, starts, losses
):
    for folder in ("", "0-2/", "0-10/", "1-0/", "3-0/"):
        place = tmp_path / "trials/5" / folder
        (place / "deep").mkdir(parents=True)
        (place / "deep" / "state").write_text(folder)
        (place / f"only{folder.strip('/')}").touch()
        (place / "time_limit.txt").touch()
    proposal = Proposal(5, Evaluate(masks.window(1)), seed=0, starts=starts)
    job = JobRun(proposal, Troubled(), tmp_path, losses)
    job.start()
    before = ["only", "only0-10", "only0-2"] + ["only1-0"] * bool(starts)
    assert sorted(path.name for path in job.path.glob("only*")) == before
    assert (job.path / "deep" / "state").read_text() == ("1-0/" if starts else "0-10/")
    assert not (job.path / "time_limit.txt").exists()
    assert (tmp_path / "trials/5/3-0/deep/state").read_text() == "3-0/"


def test_deaths_are_counted_and_the_last_reason_is_kept(tmp_path):
    story = Story(tmp_path, count=2)
    for name in "abc":
        story.take(name, story.worker())
        story.pool.on_worker_lost(name, WorkerLoss(f"reason {name}"))
    (record,) = story.records
    assert record.status == "failed"
    assert record.error.startswith("the worker process died 3 times in this trial: ")
    assert "reason c" in record.error
    spec = story.pool.next_trial("d")
    assert spec.name == "1.0"


def test_a_node_that_was_taken_back_does_not_count(tmp_path):
    story = Story(tmp_path, count=1, max_failures=0)
    names = []
    for name in "abc":
        spec = story.pool.next_trial(name)
        names.append(spec.name)
        story.pool.on_worker_lost(name, WorkerLoss("preempted", counts=False))
    assert story.records == []
    assert names == ["0.0", "0.1", "0.2"]  # Tune makes a folder for each


@pytest.mark.parametrize("stood", ["File somewhere, line 3", "", None])
def test_a_time_limit_is_not_tried_again_and_a_death_is(tmp_path, stood):
    """What has used up its seconds says where it stood; a death may be heard of after them."""
    story = Story(tmp_path, count=1, limit_seconds=5.0)
    worker = story.worker()
    story.take("a", worker)
    assert story.pool.on_step("a", worker.step())
    stuck = tmp_path / "run/trials/0" / "time_limit.txt"
    if stood is not None:
        stuck.write_text(stood)
    story.pool.on_worker_lost("a", WorkerLoss("gone", seconds=4.9 if stood is None else 6.0))
    limit = [f"{stood}\nran longer than the time limit of 5 s"] if stood else []
    assert [record.error for record in story.records] == limit
    assert [(len(record.curve), record.seconds) for record in story.records] == [(1, 6.0)] * len(
        limit
    )
    assert not stuck.exists()


def test_a_trial_that_travels_leaves_artifacts_and_finds_its_checkpoint(tmp_path):
    story = Story(tmp_path, Troubled(how={0: "gates"}), count=1, travels=True)
    first, second = story.worker(), story.worker()
    story.take("a", first)
    assert story.pool.on_step("a", first.step())
    assert first.checkpoint_due()
    saved = Saved(tmp_path / "saved")
    first.save_checkpoint(saved.folder)
    assert not first.checkpoint_due()  # nothing new
    first.close()
    assert not (tmp_path / "scratch/trials/0").exists()
    story.pool.on_worker_lost("a", WorkerLoss("gone", checkpoint=saved))
    story.take("b", second)
    story.finish("b", second)
    (record,) = story.records
    assert [step for _, step in story.reports] == [1, 2, 3, 4]  # step 1 was not run again
    assert record.artifacts == {"gates": "trials/0/0-1/gates.safetensors"}
    assert (tmp_path / "run/trials/0/0-1/gates.safetensors").read_bytes() == b"gates of 0"


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
