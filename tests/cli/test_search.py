"""Long searches on the command line: status, resume, stops, executors, halving, logs."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import filelock
import pytest
from cli_runs import write_toys
from killing import outcome
from sleepy import PLAN, essence, read_log, search_quickly
from toy import ToyEvaluator
from waiting import wait_until

import masksearch as ms
from masksearch import masks
from masksearch.contracts import Evaluate, Record, Report
from masksearch.study.status import StatusBoard, read_status, status_lines


@pytest.fixture
def job(tmp_path):
    """The words of a search, without its number of trials and its folder."""
    write_toys(tmp_path)
    return [
        "search",
        f"{tmp_path}/my_space.py:space",
        "--evaluator",
        f"{tmp_path}/my_proxy.py:toy",
    ]


@pytest.mark.slow
def test_resume_repeats_the_command_with_another_budget(command, monkeypatch, tmp_path, job):
    monkeypatch.chdir(tmp_path)
    parts = ["--strategy", "tpe", "--seed", 3, "--baselines", "--constraint", "sparsity>=.2"]
    command(*job, *parts, "--trials", 4, "--run", "part")
    monkeypatch.chdir(tmp_path.parent)  # resuming works from anywhere
    command("resume", tmp_path / "part", "--trials", 9)
    command(*job, *parts, "--trials", 9, "--run", "whole")
    assert outcome(ms.Study(tmp_path / "part")) == outcome(ms.Study("whole"))


@pytest.mark.slow
def test_a_file_gives_the_options_that_the_command_line_leaves_out(command, tmp_path, job):
    command(*job, "--strategy", "random", "--seed", 3, "--trials", 2, "--run", tmp_path / "one")
    stored = tmp_path / "one" / "command.json"
    command("search", "--config", stored, "--run", tmp_path / "two")  # its own folder is not taken
    assert outcome(ms.Study(tmp_path / "one")) == outcome(ms.Study(tmp_path / "two"))
    own = tmp_path / "own.yaml"
    own.write_text(
        f"space: {job[1]}\nevaluator: {job[3]}\nconstraint: [sparsity >= 0]\ntrials: 9\n"
    )
    command("search", "--config", own, "--trials", 1, "--run", tmp_path / "three")
    assert len(ms.Study(tmp_path / "three").records()) == 1
    assert json.loads((tmp_path / "three" / "command.json").read_text())["options"][
        "constraint"
    ] == ["sparsity >= 0"]
    for text, message in (
        ("trails: 3", "unknown option in .* 'trails'; did you mean 'trials'"),
        ("- 3", "holds no options; write NAME: value"),
        ("{", "cannot be read"),
        ("set: ['token=***']", "keeps no secrets"),
    ):
        own.write_text(text)
        assert re.search(message, command.refused("search", "--config", own))
    assert "is of masksearch search" in command.refused("compare", "--config", stored)


@pytest.mark.slow
def test_the_stored_command_is_the_last_that_was_not_refused(command, tmp_path, job):
    run = tmp_path / "run"

    def stored():
        return json.loads((run / "command.json").read_text("utf-8"))["options"]

    words = [*job, "--strategy", "random", "--run", run]
    command(*words, "--trials", 2)
    command.refused(*words, "--trials", 3, "--seed", 9)
    assert (stored()["trials"], stored()["seed"]) == (2, None)
    command(*words, "--trials", 3)
    assert stored()["trials"] == 3
    command("resume", run, "--trials", 4)
    assert stored()["trials"] == 4
    made = tmp_path / "of python"
    study = ms.search(lambda trial: masks.window(1), ToyEvaluator(), run=made, trials=1)
    assert study.records()
    command.refused(*job, "--run", made, "--trials", 2)
    assert not (made / "command.json").exists()


@pytest.mark.slow
def test_a_folder_named_from_the_home_folder_is_there_alone(command, monkeypatch, tmp_path, job):
    home, here = tmp_path / "home", tmp_path / "here"
    for folder in (home, here):
        folder.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    command(*job, "--strategy", "random", "--trials", 2, "--run=~/run")  # no shell expands this
    command("resume", "~/run", "--trials", 3)
    assert len(ms.open_study(home / "run").records()) >= 3
    assert not list(here.iterdir())


def test_resume_says_what_it_cannot_resume(command, tmp_path):
    err = command.refused("resume", tmp_path / "none")
    assert err == f"error: {tmp_path}/none: no such run folder\n"
    err = command.refused("resume", tmp_path)
    assert "was not started from the command line" in err
    assert "call ms.search" in err


@pytest.mark.slow
def test_status_of_an_ended_search(command, tmp_path, job):
    folder = tmp_path / "run"
    command(*job, "--trials", 6, "--run", folder)
    out, _ = command("status", folder)
    assert "search by tpe, ended; " in out
    study = ms.Study(folder)
    best = study.best()
    assert f"best: trial {best.number} (tpe)  loss {best.value('loss'):.4f}" in out
    assert f"front: {len(study.frontier())} masks, hypervolume" in out
    state = json.loads(command("status", folder, "--json")[0])
    assert state["state"] == "ended"
    assert state["counts"]["done"] == 6
    assert state["running"] == []


@pytest.mark.slow
def test_status_names_failures_and_their_reasons(command, tmp_path, job):
    proxy = Path(job[3].rpartition(":")[0])
    proxy.write_text(proxy.read_text().replace("ToyEvaluator()", "ToyEvaluator(nan_at=0.3)"))
    folder = tmp_path / "run"
    command(*job, "--trials", 3, "--strategy", "random", "--run", folder)
    failed = [r for r in ms.Study(folder).records() if r.status == "failed"]
    out, _ = command("status", folder)
    assert failed
    for record in failed[-3:]:
        assert f"failed: trial {record.number} (random): FloatingPointError" in out


def test_lines_of_status_are_short_and_masks_are_whole(tmp_path):
    board = StatusBoard(tmp_path, ToyEvaluator.objectives, 9, None, "search by tpe")
    mask = masks.window(3)
    for position in range(40):
        mask = mask | masks.global_tokens(positions=[position])
    measures = {"sparsity": 0.5}
    run = Record(0, "running", Evaluate(mask), origin="tpe", measures=measures)
    board.restore([replace(run, status="done", values={"loss": 1.0}, number=3)], 9)
    board.ended(replace(run, status="failed", number=4, error="ValueError: " + "long " * 90))
    board.began(run)
    board.reported(0, Report(5, {"loss": 1.0, "accuracy": 0.5}))
    board.write()
    lines = status_lines(tmp_path, read_status(tmp_path) | {"state": "running"})
    assert max(len(line) for line in lines) <= 120
    best, runs = (line for line in lines if "window" in line)
    assert best.startswith("best: trial 3 (tpe)  loss 1.0000  sparsity 0.5000  window(3) | ")
    assert best.endswith(" | ...")
    assert runs.endswith("loss 1.0000  accuracy 0.5000  window(3) | global_tokens(1) | ...")
    assert "go on with: the same call of ms.search" in "".join(
        status_lines(tmp_path, read_status(tmp_path))
    )


@pytest.mark.parametrize(("slots", "said"), [(4, "; 2 of 4 slots work"), (1, ""), (None, "")])
def test_status_says_how_many_slots_work_and_which_trials_wait(tmp_path, slots, said):
    board = StatusBoard(tmp_path, ToyEvaluator.objectives, 9, None, "search by tpe")
    board.slots, board.waiting = slots, frozenset({2})
    for number in range(3):
        board.began(Record(number, "running", Evaluate(masks.window(number)), origin="tpe"))
    board.write()
    lines = status_lines(tmp_path, read_status(tmp_path) | {"state": "running"})
    (call,) = (line for line in lines if line.startswith("this call: "))
    assert call.partition(")")[2] == said
    does = [line.partition(" (")[0] for line in lines if "trial " in line]
    assert does == ["runs: trial 0", "runs: trial 1", "waits: trial 2"]


def test_status_of_a_folder_without_a_run(command, tmp_path):
    assert "holds no status.json" in command.refused("status", tmp_path)
    assert "no such run folder" in command.run("status", tmp_path / "x")[2]


def test_status_of_a_folder_of_runs_is_a_line_each(command, tmp_path):
    for name in ("dam", "tpe"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        StatusBoard(tmp_path / "runs" / name, ToyEvaluator.objectives, 3, None, name).end("ended")
    lines = command("status", tmp_path / "runs")[0].splitlines()
    assert lines == [
        f"{tmp_path}/runs/{name}: {name}, ended; nothing finished yet" for name in ("dam", "tpe")
    ]
    states = json.loads(command("status", tmp_path / "runs", "--json")[0])
    assert [each["title"] for each in states.values()] == ["dam", "tpe"]
    for name in ("dam", "tpe"):
        (tmp_path / "runs" / name / "command.json").write_text("{}")
    said = command.refused("resume", tmp_path / "runs")
    assert f"is a folder of runs; name one: {tmp_path}/runs/dam, {tmp_path}/runs/tpe" in said


@pytest.mark.slow
def test_status_tells_a_killed_search_from_a_running_one(command, tmp_path, job):
    folder = tmp_path / "run"
    command(*job, "--trials", 2, "--run", folder)
    state = json.loads((folder / "status.json").read_text())
    state["state"] = "running"
    (folder / "status.json").write_text(json.dumps(state))
    out, _ = command("status", folder)
    assert "search by tpe, killed; " in out
    assert f"go on with: masksearch resume {folder}" in out
    with filelock.FileLock(folder / ".writer.lock"):
        (folder / ".writer.lock").write_text("pid 1 on host")
        out, _ = command("status", folder)
        assert (folder / ".writer.lock").read_text() == "pid 1 on host"  # for a second driver
    assert "search by tpe, running; " in out


@pytest.mark.slow  # continuous integration runs it
def test_halving_ends_trials_early(command, tmp_path, job):
    folder = tmp_path / "run"
    words = [*job, "--trials", 12, "--strategy", "random", "--run", folder]
    command(*words, "--halving", "1,2")
    stopped = [r for r in ms.Study(folder).records() if r.status == "stopped"]
    assert stopped
    assert all(record.step in (1, 2) for record in stopped)
    err = command.refused(*words, "--halving", "few")
    assert "--halving takes steps such as 62,125,250, got 'few'" in err
    assert "belongs to another search (scheduler: was" in command.refused(*words)


@pytest.mark.nightly
@pytest.mark.parametrize(("slots", "number"), [("1", signal.SIGTERM), ("2", signal.SIGINT)])
def test_polite_stop_ends_cleanly_and_says_how_to_go_on(
    command, tmp_path, monkeypatch, number, slots
):
    folder = tmp_path / "run"
    words = (*PLAN, "--run", str(folder), "--slots", slots, "--trials", "6")
    paths = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "SLEEPY_SECONDS": "2"}
    process = subprocess.Popen(
        [sys.executable, "-m", "masksearch", *words], stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **paths},
    )  # fmt: skip
    with process:
        wait_until(lambda: len(read_log(folder)) >= 4, 300)  # the third attempt has begun
        process.send_signal(number)
        _, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    again = f"stopped; what was finished is kept. Go on with: masksearch resume {folder}"
    assert [line for line in err.splitlines() if "resume" in line] == [again]
    assert "Traceback" not in err
    assert "interrupted" in command("status", folder)[0]
    monkeypatch.setenv("SLEEPY_SECONDS", "0")
    command("resume", folder, "--slots", "1")
    assert essence(ms.Study(folder).records()) == search_quickly(tmp_path / "whole", 6)


@pytest.mark.nightly
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="children are read in /proc")
def test_ctrl_c_while_workers_are_being_imported_is_no_traceback(tmp_path):
    """A terminal sends it to the driver and to the process that imports for the workers."""
    words = (*PLAN, "--run", str(tmp_path / "run"), "--slots", "2", "--trials", "6")
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "masksearch", *words], stderr=said, start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )  # fmt: skip

        def importing() -> bool:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
            commands = (Path(f"/proc/{each}/cmdline").read_bytes() for each in children.split())
            return any(b"forkserver" in command for command in commands)

        wait_until(importing, 300)
        time.sleep(0.5)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=60) == 130
        time.sleep(10)  # what it has left behind ends meanwhile
    err = (tmp_path / "said").read_text()
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("stopped; what was finished is kept. Go on with:")


@pytest.mark.slow  # continuous integration runs it
@pytest.mark.nightly
def test_report_says_what_was_ended_early_and_why(command, tmp_path, job):
    folder = tmp_path / "run"
    words = [*job, "--trials", 6, "--run", folder, "--halving", "1,2"]
    command(*words, "--constraint", "sparsity >= 0.2")
    command("report", folder)
    page = (folder / "report.html").read_text()
    assert "ParetoHalving(rungs=(1, 2)" in page
    assert "sparsity &gt;= 0.2" in page
