"""The local executor: a loop, or worker processes that may die."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ray_fixtures import Troubled, Unloadable, listed
from toy import PlainTrials, ToyEvaluator

from masksearch import Local, masks
from masksearch.contracts import Evaluate, OneShot, Proposal, Record, Report
from masksearch.errors import SearchError
from masksearch.executors.environment import catch_interrupt
from masksearch.executors.job import JobRun
from masksearch.strategies.opening import FixedQueue
from masksearch.testing import ExecutorContract


def run(executor: Local, strategy, evaluator, workdir: Path, *goes_on) -> list[Record]:
    work = PlainTrials(strategy, evaluator, workdir, *goes_on)
    executor.run(work)
    return work.records


class TestLocal(ExecutorContract):
    @pytest.fixture(params=[1, pytest.param(2, marks=pytest.mark.slow)])
    def make(self, request):
        return lambda: Local(request.param)


@pytest.mark.slow
def test_dead_worker_fails_its_trial_only_and_the_cause_is_named(tmp_path):
    how = {1: "SIGKILL", 2: "exit", 3: "SIGSEGV"}
    records = run(Local(slots=2), listed(5), Troubled(how), tmp_path)
    assert sorted(record.number for record in records) == list(range(5))
    failed = {record.number: record for record in records if record.status == "failed"}
    causes = {1: "killed by SIGKILL (out of memory?)", 2: "exit code 3", 3: "killed by SIGSEGV"}
    assert {number: record.error for number, record in failed.items()} == {
        number: f"the worker process died 2 times in this trial: {cause}"
        for number, cause in causes.items()
    }
    assert (failed[2].name, failed[2].protocol) == ("w2", "troubled")


@pytest.mark.slow
def test_hanging_trial_meets_the_time_limit_which_is_of_one_trial(tmp_path):
    judge = Troubled({1: "hang"}, seconds=0.4)
    records = run(Local(limit_seconds=3.0), listed(3), judge, tmp_path)
    assert [record.status for record in records] == ["done", "failed", "done"]
    assert records[1].reason == "ran longer than the time limit of 3 s"
    assert "in go_wrong" in records[1].error  # where it hung
    assert records[1].seconds >= 3
    assert not list(tmp_path.rglob("time_limit.txt"))


@pytest.mark.slow
def test_worker_that_ran_a_failed_trial_takes_no_other(tmp_path):
    log = tmp_path / "log"
    log.mkdir()

    class Diary(ToyEvaluator):
        def __call__(self, mask, *, seed, workdir):
            (log / workdir.name).write_text(str(os.getpid()))
            if workdir.name == "1":
                raise RuntimeError("a CUDA error, say")
            yield from ToyEvaluator()(mask, seed=seed, workdir=workdir)

    records = run(Local(limit_seconds=60), listed(4), Diary(), tmp_path)
    assert [record.status for record in records] == ["done", "failed", "done", "done"]
    pids = [(log / str(number)).read_text() for number in range(4)]
    assert pids[0] == pids[1] != pids[2] == pids[3]


class Hostile(ToyEvaluator):
    """Does in trial N what `deeds` says, after a first report."""

    def __init__(self, *deeds):
        super().__init__()
        object.__setattr__(self, "deeds", deeds)

    def __call__(self, mask, *, seed, workdir):
        yield Report(1, {"loss": 9.0})
        number = int(workdir.parts[workdir.parts.index("trials") + 1])
        self.deeds[number](workdir)
        yield Report(2, {"loss": float(number)})


def nothing(workdir):
    """A trial as any other."""


def start_children(workdir):
    """One child, and one whose parent ends."""
    for line in ("sleep 100", "sleep 100 & true"):
        subprocess.Popen(["sh", "-c", line], env={"OF": str(workdir)}).poll()
    time.sleep(0.3)


def start_children_and_crash(workdir):
    start_children(workdir)
    os.kill(os.getpid(), signal.SIGSEGV)


def children_of(folder: Path) -> list[str]:
    """Processes with `OF=` a folder below this one in their environment, told by their command."""
    alive = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if f"OF={folder}".encode() in (place / "environ").read_bytes():
                alive.append((place / "cmdline").read_text())
        except OSError:
            continue
    return alive


@pytest.mark.slow
@pytest.mark.parametrize("executor", [Local(), Local(isolate=False)], ids=["default", "in here"])
def test_an_evaluator_that_calls_exit_fails_its_trial_only(executor, tmp_path):
    evaluator = Hostile(nothing, lambda workdir: sys.exit(3), nothing)
    records = run(executor, listed(3), evaluator, tmp_path)
    assert [record.status for record in records] == ["done", "failed", "done"]
    assert records[1].reason == "the evaluator called sys.exit(3)"
    assert "Traceback" in records[1].error


@pytest.mark.slow
def test_by_default_a_crash_fails_its_trial_only(tmp_path):
    def segfault(workdir):
        print("the last words")
        os.kill(os.getpid(), signal.SIGSEGV)

    records = run(Local(), listed(3), Hostile(nothing, segfault, nothing), tmp_path)
    assert [record.status for record in records] == ["done", "failed", "done"]
    assert records[1].reason.endswith("killed by SIGSEGV")
    (printed,) = (tmp_path / "trials" / "1").rglob("output.txt")
    assert "the last words" in printed.read_text()
    assert re.search(r"test_local\.py\", line \d+ in segfault", printed.read_text())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("deed", [start_children, start_children_and_crash])
def test_processes_that_a_trial_started_end_with_it(deed, tmp_path):
    left = []

    def look(number, report):
        if number == 1 and report.step == 1:
            left.extend(children_of(tmp_path / "trials" / "0"))
        return True

    records = run(Local(), listed(2), Hostile(deed, nothing), tmp_path, look)
    assert records[0].status == ("done" if deed is start_children else "failed")
    assert records[1].status == "done"
    assert left == children_of(tmp_path) == []


@pytest.mark.slow
def test_what_a_trial_prints_goes_into_a_bounded_file(tmp_path, capfd):
    def flood(workdir):
        print("the first line")
        os.write(1, b"x" * 20_000_000)
        print("the last line")

    records = run(Local(), listed(2), Hostile(flood, nothing), tmp_path)
    assert [record.status for record in records] == ["done", "done"]
    text = (tmp_path / "trials" / "0" / "output.txt").read_text()
    assert text.startswith("the first line\nxxx")
    assert text.endswith("xxxthe last line\n")
    assert re.search(r"\n\[some \d+ bytes are left out here\]\n", text)
    assert len(text) < 1_500_000
    assert "x" not in capfd.readouterr().out
    assert (tmp_path / "trials" / "1" / "output.txt").read_text() == ""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_trial_beyond_its_memory_fails_alone(tmp_path):
    def grow(workdir):
        held = b"1" * 1_500_000_000
        time.sleep(30)
        assert held

    records = run(Local(memory_gb=1.2), listed(2), Hostile(grow, nothing), tmp_path)
    assert [record.status for record in records] == ["failed", "done"]
    assert re.search(r"held [12]\.\d+ GB of memory, and memory_gb allows 1\.2", records[0].reason)


@pytest.mark.nightly
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_worker_that_grows_is_replaced(tmp_path):
    def leak(workdir):
        leaked = sys.modules.setdefault("leaked", [])
        leaked.append(b"1" * 400_000_000)
        (workdir / "pid").write_text(f"{os.getpid()} {len(leaked)}")

    run(Local(), listed(8), Hostile(*[leak] * 8), tmp_path)
    pids = [(tmp_path / "trials" / str(n) / "pid").read_text().split() for n in range(8)]
    assert max(int(leaks) for _, leaks in pids) < 6
    assert len({pid for pid, _ in pids}) > 1


@pytest.mark.slow
def test_a_long_silence_names_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr("masksearch.executors.local.SILENCE", 1.0)
    with pytest.warns(UserWarning, match=r"trial 0 has given no report .*limit_seconds=") as said:
        records = run(
            Local(), listed(2), Hostile(lambda workdir: time.sleep(2.5), nothing), tmp_path
        )
    assert [record.status for record in records] == ["done", "done"]
    assert len([each for each in said if str(each.message).startswith("trial 0")]) == 1


@pytest.mark.slow
def test_the_environment_and_folder_of_a_worker_are_the_drivers(tmp_path, monkeypatch):
    def write(workdir):
        (workdir / "seen").write_text(f"{os.environ['SEEN']} {Path.cwd()}")

    for seen in ("one", "two"):
        monkeypatch.setenv("SEEN", seen)
        monkeypatch.chdir((tmp_path / seen).mkdir() or tmp_path / seen)
        run(Local(), listed(1), Hostile(write), tmp_path / seen)
        written = (tmp_path / seen / "trials" / "0" / "seen").read_text()
        assert written == f"{seen} {tmp_path / seen}"


@pytest.mark.slow
def test_suspect_runs_in_a_process_of_its_own(tmp_path):
    class Again(FixedQueue):
        def ask(self):
            proposal = super().ask()
            return proposal if isinstance(proposal, str) else replace(proposal, starts=2)

    here = os.getpid()
    (record,) = run(Local(), Again({"w2": masks.window(2)}, [0]), Troubled({0: "exit"}), tmp_path)
    assert os.getpid() == here
    assert record.status == "failed"


@pytest.mark.slow
def test_worker_that_cannot_load_the_evaluator_ends_the_search(tmp_path):
    with pytest.raises(SearchError, match=r"(?s)cannot load the evaluator.*no such data"):
        run(Local(slots=2), listed(1), Unloadable(), tmp_path)


def test_strategy_that_waits_for_nothing_is_an_error(tmp_path):
    class Waiting(FixedQueue):
        def ask(self):
            return "wait"

    with pytest.raises(SearchError, match="waits although no job is running"):
        run(Local(), Waiting({}, []), ToyEvaluator(), tmp_path)


IN_HERE = {"isolate": False}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"slots": 0}, "slots must be a whole number >= 1, got 0"),
        ({"limit_seconds": 0}, "limit_seconds must be positive, got 0"),
        ({"limit_seconds": "3"}, "limit_seconds must be positive, got '3'"),
        ({"limit_seconds": 1e30}, r"limit_seconds must be positive, got 1e\+30, most 1e\+08"),
        *(
            ({"memory_gb": value}, rf"memory_gb must be at least 1 .*, got {value!r}")
            for value in (0, -1, 0.1, float("nan"), "3")
        ),
        ({"threads": 0}, "threads must be a whole number >= 1, got 0"),
        ({"slots": 2} | IN_HERE, "isolate=False runs jobs in this process, one at a time"),
        ({"memory_gb": 2} | IN_HERE, "leave slots, limit_seconds, memory_gb and gpus away"),
    ],
)
def test_settings_are_checked(settings, words):
    with pytest.raises(ValueError, match=words):
        Local(**settings)


class Answering(ToyEvaluator):
    """Gives what it is told to give."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def __call__(self, mask, *, seed, workdir):
        return self.answer()


def report_of(value):
    yield Report(1, {"loss": value})


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (dict, r"EvaluatorError: Answering returns dict: yield ms\.contracts\.Report"),
        (lambda: iter([{"loss": 1.0}]), r"Answering yields dict: yield ms\.contracts\.Report"),
        (lambda: report_of(torch.zeros(2)), r"EvaluatorError in .*test_local\.py, line \d+: the "
         r"reported value 'loss' is a Tensor \[2\], not a number: write .*Report\(step, "
         r"\{'loss': float\(value\)\}\).*\(Answering reports it\)"),
        (lambda: report_of("low"), r"the reported value 'loss' is str, not a number"),
    ],
)  # fmt: skip
def test_an_evaluator_that_reports_no_number_is_told_what_to_write(tmp_path, answer, reason):
    record = JobRun(Proposal(0, Evaluate(masks.full())), Answering(answer), tmp_path).run()
    assert record.status == "failed"
    assert re.search(reason, record.reason)


def test_a_job_that_is_told_to_stop_keeps_what_it_has_reported(tmp_path):
    job = JobRun(Proposal(1, Evaluate(masks.full())), ToyEvaluator(), tmp_path)
    stopped = job.run(lambda number, report: report.step < 2)
    assert (stopped.status, stopped.step, len(stopped.curve)) == ("stopped", 2, 2)
    assert stopped.error == "ended early by the scheduler at step 2"
    assert stopped.values == stopped.curve[-1].values


@pytest.mark.parametrize("value", [torch.tensor(0.5), np.float32(0.5), 0.5, torch.tensor([0.5])])
def test_a_report_takes_what_float_takes(value):
    assert Report(1, {"loss": value}) == Report(1, {"loss": 0.5})
    assert json.dumps(Report(1, {"loss": value}).values) == '{"loss": 0.5}'


def test_one_shot_without_gradients_is_a_clear_failure(tmp_path):
    record = JobRun(Proposal(0, OneShot()), ToyEvaluator(), tmp_path).run()
    assert record.status == "failed"
    assert "differentiable" in record.error


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_calls_and_the_second_raises(number):
    calls = []
    before = signal.getsignal(signal.SIGINT)
    with catch_interrupt(lambda: calls.append(1)):
        signal.raise_signal(number)
        assert calls == [1]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert calls == [1]
    assert signal.getsignal(signal.SIGINT) is before
