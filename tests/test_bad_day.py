"""A search on a cluster's bad day: lost files, killed drivers, odd exceptions, damaged folders."""

import asyncio
import csv
import errno
import json
import os
import re
import sqlite3
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from contracts.toy import ToyEvaluator, space
from other_process import python
from waiting import wait_until

import masksearch as ms
from masksearch import masks
from masksearch.contracts import Evaluate, Proposal, Report
from masksearch.errors import EvaluatorError, MaskFormatError, SearchError
from masksearch.executors.job import JobRun
from masksearch.study.status import read_status
from masksearch.training.checkpoints import naming_remedy

HERE = ms.Local(isolate=False)
SEARCH = dict(strategy="random", progress=None, executor=HERE)
ESCAPE = "\x1b]52;c;aGk=\a"  # writes a terminal's clipboard


class Acts(ToyEvaluator):
    """Does something in its second trial."""

    def __init__(self, deed=lambda workdir: None):
        super().__init__()
        object.__setattr__(self, "deed", deed)

    def __call__(self, mask, *, seed, workdir):
        if workdir.name == "1":
            self.deed(workdir)
        yield from super().__call__(mask, seed=seed, workdir=workdir)


def searched(run, evaluator=None, trials=4, **more):
    evaluator = evaluator or ToyEvaluator()
    return ms.search(space, evaluator, run=run, trials=trials, **{**SEARCH, **more})


# -- what a study has told of --------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("harm", ["emptied", "deleted", "a new file", "with its status"])
def test_a_lost_database_is_refused_and_the_trials_are_counted(tmp_path, harm):
    run, log = tmp_path / "run", tmp_path / "log"
    searched(run)
    count = len(ms.open_study(run).records())
    database = run / "study.db"
    if harm == "emptied":
        database.write_bytes(b"")
    else:
        database.unlink()
    if harm == "a new file":
        searched(tmp_path / "other", trials=1)
        (tmp_path / "other" / "study.db").rename(database)
        (run / "study.json").unlink()
    if harm == "with its status":
        (run / "status.json").unlink()
    what = rf"{count} of {count} trials of .*run are missing in .*study\.db: restore it"
    if harm == "a new file":
        what = rf"{count - 1} of {count} trials .* go on with the 1 that are left, delete status"
    with pytest.raises(SearchError, match=rf"{what}.*; to begin anew, choose another run folder"):
        searched(run, ToyEvaluator(log=log))
    assert not log.exists()  # nothing was judged again


@pytest.mark.slow
def test_what_is_left_of_a_study_goes_on_where_its_user_says_so(tmp_path):
    searched(tmp_path / "run", trials=2)
    copy = (tmp_path / "run" / "study.db").read_bytes()
    whole = searched(tmp_path / "run", trials=5)
    (tmp_path / "run" / "study.db").write_bytes(copy)
    with pytest.raises(SearchError, match="go on with the 2 that are left"):
        searched(tmp_path / "run", trials=5)
    (tmp_path / "run" / "status.json").unlink()
    again = searched(tmp_path / "run", trials=5)
    assert [r.values for r in again.records()] == [r.values for r in whole.records()]


@pytest.mark.slow
@pytest.mark.parametrize("damage", [b"", b"null", b'{"counts": 3}', b"\xff\xfe"])
def test_a_damaged_status_ends_no_search(tmp_path, damage):
    searched(tmp_path / "run", trials=2)
    (tmp_path / "run" / "status.json").write_bytes(damage)
    assert len(searched(tmp_path / "run", trials=3).records()) == 3
    assert read_status(tmp_path / "run")["state"] == "ended"


@pytest.mark.parametrize("harm", ["lost", "foreign", "another kind"])
def test_a_journal_with_a_line_too_few_or_too_many_is_called_damaged(tmp_path, harm):
    log = tmp_path / "log"
    searched(tmp_path / "run", trials=1, storage=f"journal:{log}")
    lines = log.read_text().splitlines(keepends=True)
    if harm == "lost":
        lines = [line for line in lines if '"facts"' not in line]
    lines += {"lost": [], "foreign": ['{"a": 1}\n'], "another kind": ["[1, 2]\n"]}[harm]
    log.write_text("".join(lines))
    with pytest.raises(SearchError, match=r"log is damaged, or no study .*; restore it"):
        ms.open_study(tmp_path / "run", f"journal:{log}")


# -- a driver that is killed ---------------------------------------------------------------------
DRIVER = """
import subprocess, sys, time
from pathlib import Path
import masksearch as ms
from masksearch import masks

class Starts(ms.contracts.Evaluator):
    shape = ms.Shape(length=16, layers=1, heads=1)
    objectives = (ms.contracts.Objective("score", "max", 0.0),)
    protocol = "starts"

    def __call__(self, mask, *, seed, workdir):
        import os
        child = subprocess.Popen(["sleep", "600"])
        Path(PIDS).write_text(f"{os.getpid()} {child.pid} ")
        time.sleep(600)
        yield ms.contracts.Report(1, {"score": 1.0})

RUN, PIDS = sys.argv[1:]
ms.search(lambda trial: masks.window(trial.suggest_int("reach", 1, 9)), Starts(), run=RUN,
          trials=2, strategy="random", progress=None)
"""


def lives(process):
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.nightly
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")
def test_nothing_lives_on_after_a_killed_driver(tmp_path):
    pids = tmp_path / "pids"
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, tmp_path / "run", pids])
    wait_until(lambda: pids.is_file() and pids.read_text().count(" ") == 2)
    others = [int(process) for process in pids.read_text().split()]
    children = Path(f"/proc/{driver.pid}/task/{driver.pid}/children").read_text().split()
    others += [int(process) for process in children]  # the fork server and its tracker
    assert all(map(lives, others))
    driver.kill()
    driver.wait()
    wait_until(lambda: not any(map(lives, others)), 10, lambda: f"{[*filter(lives, others)]}")


TIMES = """
import torch
from transformers import BertConfig, BertModel
from masksearch.models.speed import time_variants

sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
model = BertModel(BertConfig(**sizes))
rows = {"input_ids": torch.ones(1, 8, dtype=torch.long)}
same = {"same": (torch.nn.Module.eval, [rows])}
time_variants(model, [rows], same, 10**9, torch.device("cpu"), "timing")
"""


@pytest.mark.nightly
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")
def test_a_timing_ends_with_the_process_that_asked_for_it():
    driver = subprocess.Popen([sys.executable, "-c", TIMES], stderr=subprocess.PIPE, text=True)
    assert driver.stderr.readline().startswith("timing: about")
    (timing,) = Path(f"/proc/{driver.pid}/task/{driver.pid}/children").read_text().split()
    assert lives(timing)
    driver.kill()
    driver.wait()
    wait_until(lambda: not lives(timing), 10)


LONG = """
import sys
from contracts.toy import ToyEvaluator, space
import masksearch as ms
class Mine(ToyEvaluator): pass
study = ms.search(space, Mine(), run=sys.argv[1], trials=2, strategy="random", progress=None)
print([record.status for record in study.records()])
"""


@pytest.mark.nightly
def test_a_long_folder_for_temporary_files_ends_no_search(tmp_path):
    folder = tmp_path / ("x" * 60) / ("y" * 60)
    folder.mkdir(parents=True)
    paths = f"{Path(__file__).parent}:{Path(ms.__file__).parents[1]}"
    done = python("-c", LONG, tmp_path / "run", env={"TMPDIR": str(folder), "PYTHONPATH": paths})
    assert done.stdout == "['done', 'done']\n", done.stderr


# -- evaluators that fail ------------------------------------------------------------------------
class NoText(Exception):
    def __str__(self):
        raise ValueError("no text")


class Odd(BaseException):
    pass


def raises(error):
    def deed(workdir):
        raise error

    return deed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "words"),
    [
        (NoText(), r"NoText in .*line \d+: \(its text cannot be made: ValueError\)"),
        (RuntimeError("cannot read \udcff.txt"), r"cannot read \\udcff\.txt"),
        (RuntimeError(f"red {ESCAPE}"), r"red \\x1b\]52;c;aGk=\\x07$"),
        (RuntimeError("a" * 5_000_000), r"a{900} \[4998000 characters are left out here\] a{900}"),
        (RuntimeError("a\n" * 2_500_000), r"\[499\d{4} characters are left out here\] +a a"),
        (asyncio.CancelledError(), "CancelledError"),
        (GeneratorExit(), "GeneratorExit"),
        (Odd("strange"), "Odd.*strange"),
    ],
)
def test_whatever_an_evaluator_raises_fails_its_trial_alone(tmp_path, error, words):
    study = searched(tmp_path / "run", Acts(raises(error)))
    records = study.records()
    (failed,) = [record for record in records if record.status == "failed"]
    assert failed.number == 1
    assert re.search(words, failed.reason), failed.reason[:300]
    assert len(failed.error) < 21_000
    traceback = (tmp_path / "run" / "trials" / "1" / "traceback.txt").read_text()
    assert traceback == f"{failed.error}\n"
    assert sum(record.status == "done" for record in records) == 4
    size = sum(p.stat().st_size for p in (tmp_path / "run").rglob("*") if p.is_file())
    assert size < 1_000_000
    if "\\" in failed.reason:  # a character that no page takes, or that a terminal obeys
        assert "\x1b" not in study.report().read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize(
    "who", ["the evaluator", pytest.param("a listener", marks=pytest.mark.nightly)]
)
def test_a_change_of_the_working_folder_moves_nothing(tmp_path, monkeypatch, who):
    (tmp_path / "else").mkdir()
    monkeypatch.chdir(tmp_path)
    leave = [lambda _: os.chdir(tmp_path / "else")]
    evaluator = Acts(leave[0]) if who == "the evaluator" else Acts()
    study = searched("run", evaluator, listeners=leave if who == "a listener" else [])
    page = study.report()
    assert Path.cwd() == tmp_path / "else"
    assert [*(tmp_path / "else").iterdir()] == []
    assert page == tmp_path / "run" / "report.html"
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names >= {"study.db", "status.json", "trials"}
    assert not any(name.endswith(".lock") for name in names)
    assert read_status(tmp_path / "run")["counts"]["done"] == 4


@pytest.mark.parametrize("name", [3, None])
def test_a_name_that_is_no_text_is_refused_where_it_is_reported(name):
    with pytest.raises(EvaluatorError, match="reported names are text, as '"):
        Report(1, {name: 1.0})


# -- a folder of a stranger ----------------------------------------------------------------------
def strings(data, text):
    """Plain data with a text behind every string of it."""
    if isinstance(data, dict):
        return {key: strings(value, text) for key, value in data.items()}
    if isinstance(data, list):
        return [strings(each, text) for each in data]
    return data + text if isinstance(data, str) else data


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["search", pytest.param("compare", marks=pytest.mark.nightly)])
def test_no_control_character_of_a_folder_is_shown(tmp_path, command, kind):
    run = tmp_path / "run"
    if kind == "search":
        searched(run, Acts(raises(ValueError("reason"))), baselines={"star": masks.star()})
    else:
        candidates = {"star": masks.star(), "dense": masks.full()}
        ms.compare(candidates, ToyEvaluator(), run=run, progress=None)
    state = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps(strings({**state, "state": "killed"}, ESCAPE)))
    with sqlite3.connect(run / "study.db") as database:
        for table in ("trial_user_attributes", "study_user_attributes"):
            rows = database.execute(f"select rowid, key, value_json from {table}").fetchall()
            for row, key, text in rows:
                data = json.loads(text)
                if key == "proposal":
                    data |= {each: data[each] + ESCAPE for each in ("name", "source")}
                elif key == "result":
                    data["error"] += ESCAPE
                elif key == "origin":
                    data += ESCAPE
                elif key == "facts":
                    data |= {each: data[each] + ESCAPE for each in {"strategy", "half"} & {*data}}
                    about = strings(json.loads(data.get("comparison", "{}")), ESCAPE)
                    data["comparison"] = json.dumps({**about, "against": "named"})
                changed = (json.dumps(data), row)
                database.execute(f"update {table} set value_json=? where rowid=?", changed)
    words = [("status", run), ("report", run), ("report", f"{run}#1", "--length", "16")]
    for each in words[: 3 if kind == "search" else 2]:
        _, out, err = command.run(*each)
        assert out + err
        assert not re.search("[\x1b\a]", out + err), each
        assert each[0] != "status" or r"\x1b" in out
    for path in (run / "report.html", run / "result.json", *(run / "tables").glob("*")):
        assert "\x1b" not in path.read_text(encoding="utf-8"), path
    study = ms.open_study(run)
    assert "\x1b" not in repr(study) + study._repr_html_() + str(study.records())
    assert any(r"\x1b" in record.origin for record in study.records())
    assert "\x1b" not in study.frame().to_csv()


@pytest.mark.parametrize("name", ["status.json", "command.json"])
@pytest.mark.parametrize(
    "harm", [b"", b"null", b"[]", b"{}", b'{"state": "ended"', b"\xff\xfe{", b"[" * 10**5, "link"]
)
def test_a_damaged_file_is_named_with_its_remedy(tmp_path, command, name, harm):
    path = tmp_path / "run" / name
    path.parent.mkdir()
    if harm == "link":
        (tmp_path / "secret").write_text('{"command": "search", "options": {"run": "x"}}')
        path.symlink_to(tmp_path / "secret")
    else:
        path.write_bytes(harm)
    said = command.refused("status" if name == "status.json" else "resume", tmp_path / "run")
    remedy = "delete it" if name == "status.json" else "restore it from a copy"
    assert re.fullmatch(rf"error: {re.escape(str(path))} is damaged \(.*\); {remedy}.*\n", said)


@pytest.mark.nightly
def test_a_mask_file_has_a_bound_on_its_parts(tmp_path):
    leaf = {"kind": "full"}
    level = leaf
    for _ in range(17):  # 2**17 leaves, and as many unions
        level = {"kind": "union", "parts": [level, level]}
    path = tmp_path / "mask.json"
    path.write_text(json.dumps(level))
    began = time.process_time()
    with pytest.raises(MaskFormatError, match=r"mask\.json: a mask .* has at most 196608 parts"):
        ms.load_mask(path)
    assert time.process_time() - began < 5


@pytest.mark.nightly
def test_files_of_tables_hold_no_formula(tmp_path):
    candidates = {"=cmd()": masks.star(), "dense": masks.full()}
    compared = ms.compare(candidates, ToyEvaluator(), run=tmp_path / "run", progress=None)
    tables = compared.report(tmp_path / "run" / "report.html").parent / "tables"
    rows = [row for path in tables.glob("*.csv") for row in csv.reader(path.open())]
    assert any("'=cmd()" in row for row in rows)
    assert not any(cell.startswith("=") for row in rows for cell in row)


# -- threads, numbers, full disks ----------------------------------------------------------------
@pytest.mark.slow
def test_three_threads_of_a_process_do_not_disturb_each_other(tmp_path):
    alone = [r.values for r in searched(tmp_path / "alone").records()]
    results, filters = {}, list(warnings.filters)

    def search(name):
        study = searched(tmp_path / name)
        results[name] = [record.values for record in study.records()]

    def run_all():
        threads = [threading.Thread(target=search, args=(name,)) for name in "abc"]
        for each in threads:
            each.start()
        for each in threads:
            each.join()

    with pytest.warns(UserWarning, match="this one waits for its end"):
        run_all()
    assert results == dict.fromkeys("abc", alone)
    assert list(warnings.filters) == filters


@pytest.mark.parametrize("argument", ["trials", "seed"])
def test_whole_numbers_of_numpy_are_whole_numbers(tmp_path, argument):
    study = searched(tmp_path / "run", **{"trials": 2, argument: np.int64(2)})
    assert searched(tmp_path / "run", **{"trials": 2, argument: 2}).records() == study.records()


@pytest.mark.parametrize(
    "make",
    [
        lambda n: ms.PlantedEvaluator.graded(steps=n(2)).protocol,
        lambda n: ms.Shape(n(32), n(1), n(2), read=n(1)).to_dict(),
        lambda n: ms.ParetoHalving(rungs=(n(2), n(4))),
        lambda n: ms.DamConfig(steps=n(30)),
        lambda n: ms.Local(slots=n(1), threads=n(1)),
        lambda n: ms.RayTune(slots=n(2)),
        lambda n: Report(n(1), {"a": 1.0}),
    ],
)
def test_numbers_of_numpy_are_stored_and_hashed_as_python_s(make):
    assert repr(make(np.int64)) == repr(make(int))


@pytest.mark.parametrize("where", ["run", "run/below"])
def test_a_file_in_the_way_is_named_and_no_space_is_asked_for(tmp_path, where):
    (tmp_path / "run").write_text("")
    with pytest.raises(SearchError, match=r"move .*, which is in the way, or") as refused:
        searched(tmp_path / where)
    assert "free space" not in str(refused.value)


def test_a_disk_without_inodes_is_called_full(tmp_path, monkeypatch):
    left = os.statvfs(tmp_path)
    full = os.statvfs_result([*left[:5], 100, 0, 0, *left[8:]])
    monkeypatch.setattr(os, "statvfs", lambda _: full)
    (tmp_path / "study.db").mkdir()  # a file that cannot be opened
    with pytest.raises(SearchError, match=r"disk full at .*study\.db; .*free space"):
        searched(tmp_path)


@pytest.mark.slow
def test_weights_that_do_not_fit_on_the_disk_end_the_search_and_their_trial_runs_again(tmp_path):
    """It is no failure of the mask, of which another search would make something."""

    def full(workdir):
        with naming_remedy(workdir / "weights"):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(SearchError, match=r"cannot keep a dense model in .* or free space"):
        searched(tmp_path / "run", Acts(full))
    statuses = [each.status for each in ms.open_study(tmp_path / "run").records()]
    assert statuses == ["done", "running"]
    whole = [(each.status, each.values) for each in searched(tmp_path / "whole").records()]
    assert [(each.status, each.values) for each in searched(tmp_path / "run").records()] == whole


def test_an_evaluator_may_lose_its_working_folder_and_fail_at_its_end(tmp_path, monkeypatch):
    class Ends(ToyEvaluator):
        def __call__(self, mask, *, seed, workdir):
            try:
                yield from super().__call__(mask, seed=seed, workdir=workdir)
            finally:
                raise NoText

    def leave(workdir):
        monkeypatch.chdir(workdir)
        (tmp_path / "gone").mkdir()
        os.chdir(tmp_path / "gone")
        (tmp_path / "gone").rmdir()
        raise NoText

    records = searched(tmp_path / "run", Acts(leave)).records()
    assert [record.number for record in records if record.status == "failed"] == [1]
    proposal = Proposal(0, Evaluate(masks.star()), seed=0)
    ended = JobRun(proposal, Ends(), tmp_path).run(lambda number, report: False)
    assert (ended.status, ended.reason[:6]) == ("failed", "NoText")
