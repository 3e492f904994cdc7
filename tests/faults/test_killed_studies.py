"""Killed drivers and workers, full disks, damaged checkpoints: the study ends as without them."""

import errno
import os
import shutil
import signal
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from killing import killed_until_done, outcome
from toy import ToyEvaluator, space

import masksearch as ms
from masksearch.errors import SearchError
from masksearch.study.store import StudyStore
from masksearch.training.checkpoints import Checkpoints


def undisturbed(tmp_path: Path, where: str, strategy: str, trials: int) -> ms.Study:
    run = tmp_path / "whole" / "run"
    run.parent.mkdir()
    killed_until_done((str(run), where, strategy, str(trials), "0"), kills=0, seed=0)
    return ms.Study(run)


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("where", "strategy", "pause", "window"),
    [
        ("local", "tpe", "0.6", (0.5, 3.0)),
        ("pool", "random", "1.2", (0.7, 3.5)),
        pytest.param("ray", "random", "2.0", (3.0, 12.0), marks=pytest.mark.ray),
    ],
)
def test_driver_killed_at_20_random_moments_loses_nothing(
    tmp_path, where, strategy, pause, window
):
    run = tmp_path / "killed" / "run"
    run.parent.mkdir()
    words = (str(run), where, strategy, "40", pause)
    killed = killed_until_done(words, kills=20, seed=1, window=window)
    assert killed == 20, "the search was through before it had been killed that often"
    study, several = ms.Study(run), where != "local"
    calm = undisturbed(tmp_path, "pool" if several else "local", strategy, 40)
    assert outcome(study, by_draw=several) == outcome(calm, by_draw=several)
    calls = Counter((run.parent / "log").read_text().splitlines())
    trained = [r for r in study.records() if r.status == "done"]
    assert len(calls) == len(trained)  # nothing was left out
    again = sum(calls.values()) - len(calls)
    assert 0 < again <= 20 * (2 if several else 1)  # at most what ran at the moment of a kill


@pytest.mark.nightly
def test_killed_search_keeps_what_the_scheduler_has_seen(tmp_path):
    """With one slot, halving decides after kills as it does without."""
    run = tmp_path / "killed" / "run"
    run.parent.mkdir()
    words = (str(run), "local", "halving", "30", "0.5")
    assert killed_until_done(words, kills=8, seed=2, window=(0.5, 3.0)) >= 3
    expected = outcome(undisturbed(tmp_path, "local", "halving", 30))
    assert outcome(ms.Study(run)) == expected
    assert {row[1] for row in expected} >= {"done", "stopped"}


@pytest.mark.slow
@pytest.mark.ray
def test_lost_node_changes_nothing_in_the_study(tmp_path):
    """Three nodes on one machine, one taken away while trials run on it."""
    run = tmp_path / "lost" / "run"
    run.parent.mkdir()
    killed_until_done((str(run), "nodes", "random", "30", "1.0"), kills=0, seed=0)
    study = ms.Study(run)
    expected = outcome(undisturbed(tmp_path, "pool", "random", 30), by_draw=True)
    assert outcome(study, by_draw=True) == expected
    calls = Counter((run.parent / "log").read_text().splitlines())
    assert sum(calls.values()) > len(calls), "no trial was lost with the node"


# -- full disks, damaged checkpoints, killed workers --------------------------------------------
@dataclass(frozen=True)
class Keeping(ToyEvaluator):
    """Keeps a checkpoint after each report; goes on after the last one that is whole."""

    megabytes: float = 0.01
    full: int = 0  # what the system says at the third trial

    def __call__(self, mask, *, seed, workdir):
        kept = Checkpoints(workdir)
        found = kept.load()
        done = 0 if found is None else found.step
        for report in super().__call__(mask, seed=seed, workdir=workdir):
            if report.step > done:
                if self.full and workdir.name == "2":
                    raise OSError(self.full, "No space left", str(workdir))
                kept.save(report.step, {"state": torch.zeros(int(self.megabytes * 250_000))})
            yield report


HOW = {"strategy": "random", "seed": 1}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The undisturbed search of six trials, whose evaluators differ in what they keep alone."""
    return ms.search(space, Keeping(), run=tmp_path_factory.mktemp("whole"), trials=6, **HOW)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("slots", "full"), [(1, errno.EFBIG), pytest.param(2, errno.EDQUOT, marks=pytest.mark.nightly)]
)
def test_full_disk_at_a_checkpoint_stops_the_search_and_loses_nothing(
    tmp_path, slots, full, whole
):
    arguments = dict(run=tmp_path / "run", trials=6, **HOW)
    with pytest.raises(SearchError, match=r"the disk is full at .*trials/2"):
        ms.search(space, Keeping(full=full), executor=ms.Local(slots), **arguments)
    records = ms.Study(tmp_path / "run").records()
    assert {r.status for r in records[:2]} <= {"done", "running"}
    assert any(r.status == "done" for r in records)
    assert records[2].status == "running"
    study = ms.search(space, Keeping(), **arguments)
    assert outcome(study, by_draw=slots > 1) == outcome(whole, by_draw=slots > 1)


@pytest.mark.slow
def test_really_full_disk_at_a_checkpoint(small_disk, tmp_path, whole):
    """On a file system of a few megabytes, with the study elsewhere."""
    run = small_disk / "run"
    storage = f"journal:{tmp_path / 'journal'}"
    arguments = dict(run=run, storage=storage, trials=6, **HOW)
    with pytest.raises(SearchError, match=r"the disk is full.*free space"):
        ms.search(space, Keeping(megabytes=1.5), **arguments)
    finished = [r for r in ms.Study(run, storage).records() if r.status == "done"]
    assert finished
    for path in run.glob("trials/*/*.safetensors"):
        path.unlink()  # the user frees space
    study = ms.search(space, Keeping(), **arguments)
    assert outcome(study) == outcome(whole)


@pytest.mark.slow
def test_damaged_checkpoints_of_an_interrupted_trial_cost_only_time(tmp_path, whole):
    class Interrupted(Keeping):
        def __call__(self, mask, *, seed, workdir):
            for report in super().__call__(mask, seed=seed, workdir=workdir):
                if workdir.name == "2" and report.step == 4:
                    raise KeyboardInterrupt
                yield report

    arguments = dict(run=tmp_path / "run", trials=6, **HOW)
    with pytest.raises(KeyboardInterrupt):
        ms.search(space, Interrupted(), executor=ms.Local(isolate=False), **arguments)
    for number, damage in enumerate((b"not a checkpoint", b"", None)):
        run = tmp_path / str(number)
        shutil.copytree(tmp_path / "run", run)
        newest, before = Checkpoints(run / "trials/2").files()
        if damage is None:
            newest.write_bytes(newest.read_bytes()[:-7])
            before.write_bytes(b"\x00" * 100)
        else:
            newest.write_bytes(damage)
        study = ms.search(space, Keeping(), **{**arguments, "run": run})
        assert outcome(study) == outcome(whole), damage


@pytest.mark.slow
def test_worker_that_is_killed_once_changes_nothing_in_the_study(tmp_path, whole):
    class DiesOnce(Keeping):
        def __call__(self, mask, *, seed, workdir):
            for report in super().__call__(mask, seed=seed, workdir=workdir):
                mark = workdir / "died"
                if report.step == 2 and not mark.exists():
                    mark.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                yield report

    run = tmp_path / "run"
    study = ms.search(space, DiesOnce(), run=run, trials=6, executor=ms.Local(slots=2), **HOW)
    assert outcome(study, by_draw=True) == outcome(whole, by_draw=True)
    assert list(tmp_path.glob("run/trials/*/0-1/died"))


@pytest.mark.slow
def test_time_of_a_killed_process_is_not_a_trials_fault(tmp_path):
    """A job that took the search down twice runs apart, and then fails alone."""

    class Fatal(ToyEvaluator):
        def __call__(self, mask, *, seed, workdir):
            if "1" in (workdir.name, workdir.parent.name):  # in every attempt
                os._exit(11)
            yield from super().__call__(mask, seed=seed, workdir=workdir)

    arguments = dict(run=tmp_path / "run", trials=4, **HOW)
    for _ in range(2):  # the process would be gone each time: a child stands for it
        child = os.fork()
        if child == 0:
            try:
                ms.search(space, Fatal(), executor=ms.Local(isolate=False), **arguments)
            finally:  # whatever happens, there is one test run, not two
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 11
    store = StudyStore(Path(tmp_path / "run"), write=False)
    store.load()
    assert store.begun == {1: 2}
    study = ms.search(space, Fatal(), executor=ms.Local(isolate=False), **arguments)
    records = study.records()
    assert records[1].status == "failed"
    assert "the worker process died 2 times in this trial: exit code 11" in records[1].error
    assert sum(record.status == "done" for record in records) == 4
