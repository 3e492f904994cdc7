"""What a user sees while a search runs."""

import io
import os
import re
import sys
from dataclasses import replace

import pytest
from rich.console import Console
from rich.progress import Progress
from tqdm import tqdm

from masksearch import masks
from masksearch.contracts import (
    Evaluate,
    FollowsReports,
    OneShot,
    Record,
    RemembersRecords,
    Report,
)
from masksearch.loggers.console import Watcher
from tests.loggers.conftest import OBJECTIVES, RECORDS, record


def shown(terminal: bool, held: list[Record], new: list[Record], width: int = 250) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=width, color_system=None)
    with Watcher(OBJECTIVES, 6, "tpe", console) as watcher:
        if held:
            watcher.restore(held)
        for each in new:
            watcher(each)
    return console.file.getvalue()


def test_off_a_terminal_every_record_is_one_line():
    lines = shown(False, [], RECORDS).strip().splitlines()
    assert len(lines) == len(RECORDS)
    assert lines[0].startswith(
        "tpe 1/6  #0 window(0)  loss 2.0000  sparsity 0.5000  front 1 (new)"
    )
    assert "  0:00 left  best so far" in lines[0]
    assert lines[2] == "tpe 2/6  #1 failed: ValueError: a, b"  # made up for by another trial
    assert "#3 window(3)  loss 3.0000  sparsity 0.2000  front 1  0:00 left  best 1.0" in lines[3]
    assert "#4 window(4)  stopped at step 3  front 1" in lines[4]
    assert "front 2 (new)  0:00 left  best 1.0000 at 0.500" in lines[5]


def test_a_line_has_room_for_whole_operands_only(tmp_path):
    parts = [masks.global_tokens(positions=[k]) for k in range(9)]
    mask = masks.window(3) | masks.window(2)
    for part in parts:
        mask = mask | part
    wide = record(10_000, 1234.5, sparsity=0.123, job=Evaluate(mask), params={})
    named = replace(wide, role="compared", name="a name " * 30, seed=1000)
    broken = replace(record(7, None), error="ValueError: " + "x" * 300 + "\n")
    long, label, reason = shown(False, [], [wide, named, broken]).splitlines()
    assert len(long) <= 120
    assert label.endswith("front 1  0:00 left  best so far")  # a file or a pipe takes whole lines
    assert reason.endswith("x" * 300)
    for line in shown(True, [], [wide, named, broken]).splitlines():
        assert len(re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", line)) <= 120
    assert "#10000 window(3) | ... [b70bf545]  loss" in shown(False, [], [wide])


@pytest.mark.parametrize(("limit", "left"), [(None, "  2:00 left"), (100.0, "  0:40 left")])
def test_time_left_is_judged_by_this_calls_pace(monkeypatch, limit, left):
    now = [0.0]
    monkeypatch.setattr("masksearch.loggers.console.time.monotonic", lambda: now[0])
    console = Console(file=io.StringIO(), width=120)
    with Watcher(OBJECTIVES, None, "tpe", console) as watcher:
        watcher.restore(RECORDS[:2])
        watcher.expect(3, limit)
        now[0] = 60.0
        watcher(record(5, 1.5))
        watcher(record(6, None))  # costs time, and counts for none
    assert "tpe 3/5 " in console.file.getvalue()
    assert left in console.file.getvalue()


def test_on_a_terminal_a_bar_shows_the_front_and_the_best_so_far():
    text = shown(True, [], RECORDS)
    assert "front 2  best loss 1.0000 at sparsity 0.500  hypervolume 5.35  1 failed" in text
    assert "best: #2 window(2)" in text
    assert "#1 failed: ValueError: a, b" in text
    assert "sparsity 0.6000  joined the front" in text
    assert "tpe 5/6 " in text


def test_reports_of_running_trials_are_shown_until_they_end():
    console = Console(file=io.StringIO(), force_terminal=True, width=120, color_system=None)
    with Watcher(OBJECTIVES, 2, "tpe", console) as watcher:
        watcher.reported(0, Report(30, {"loss": 2.5}))
        page = Console(file=io.StringIO(), width=120)
        page.print(watcher.display.render())
        assert "runs: #0 at step 30  loss 2.5000" in page.file.getvalue()
        watcher(record(0, 2.0))
        page.print(watcher.display.render())
    assert "runs:" not in page.file.getvalue().split("tpe 1/2")[1]


def test_bar_fits_a_narrow_terminal():
    lines = shown(True, [], RECORDS, width=40).splitlines()
    assert any("5/6" in line for line in lines)
    assert any("front 2  best loss 1.0000 at sparsit" in line for line in lines)


class Closed(io.StringIO):
    """Standard error that nobody reads any more."""

    def write(self, text: str) -> int:
        raise BrokenPipeError("closed")


@pytest.mark.parametrize("terminal", [False, True])
def test_a_display_that_cannot_be_shown_ends_no_search(terminal, monkeypatch):
    before = sys.stdout, sys.stderr
    console = Console(file=Closed(), force_terminal=terminal, color_system=None)
    monkeypatch.setattr(os, "dup2", lambda *pipes: None)  # by rich, on the standard output
    with Watcher(OBJECTIVES, 6, "tpe", console) as watcher:
        for each in RECORDS:
            watcher(each)
    assert (sys.stdout, sys.stderr) == before
    assert watcher.counted == 5
    monkeypatch.setattr(sys, "stderr", None)
    with Watcher(OBJECTIVES, 6, "tpe") as watcher:
        watcher(RECORDS[0])


def test_below_another_live_display_lines_are_printed(monkeypatch):
    said = io.StringIO()
    monkeypatch.setattr(sys, "stderr", said)
    monkeypatch.setenv("FORCE_COLOR", "1")
    outer = Console(file=io.StringIO(), force_terminal=True, width=140, color_system=None)
    with Progress(console=outer) as bars:
        bars.add_task("mine", total=2)
        with Watcher(OBJECTIVES, 6, "tpe") as watcher:
            assert not watcher.display.alive
            watcher(RECORDS[0])
    assert "tpe 1/6  #0 window(0)" in outer.file.getvalue()  # above that display's bars
    with tqdm(total=2), Watcher(OBJECTIVES, 6, "tpe") as watcher:
        assert not watcher.display.alive
        watcher(RECORDS[0])
    assert "\ntpe 1/6  #0 window(0)" in said.getvalue().replace("\r", "\n")


@pytest.mark.parametrize("terminal", [False, True])
def test_resumed_search_goes_on_counting_with_its_front(terminal):
    assert isinstance(Watcher(OBJECTIVES, 6, "tpe"), RemembersRecords)
    assert isinstance(Watcher(OBJECTIVES, 6, "tpe"), FollowsReports)
    text = shown(terminal, RECORDS[:5], RECORDS[5:])
    assert "5/6" in text
    assert "1/6" not in text
    if terminal:
        assert "front 2  best loss 1.0000 at sparsity 0.500  hypervolume 5.35  1 failed" in text
    else:
        first, last = text.strip().splitlines()
        assert first == "tpe 4/6  resumed  front 1  best loss 1.0000 at sparsity 0.500"
        assert last.startswith("tpe 5/6  #5 window(5)")


def test_failed_baselines_and_comparisons_count():
    failed = [record(0, None, role="baseline"), record(1, None, role="compared")]
    assert "tpe 2/6" in shown(False, [], failed)
    assert "tpe 1/6  resumed" in shown(False, failed, [])  # a comparison runs its failures again


def test_a_mask_that_is_too_long_is_told_by_what_drew_it():
    layers = [masks.per_head([masks.offsets(range(at, at + 30))] * 2) for at in range(4)]
    params = {"base": 3, "share": 0.12345678, "hub": True}
    long = record(0, 1.0, job=Evaluate(masks.per_layer(layers)), params=params)
    console = Console(file=io.StringIO(), width=200)
    with Watcher(OBJECTIVES, 9, "tpe", console) as watcher:
        watcher(long)
        watcher(replace(long, number=1, job=Evaluate(masks.window(3))))
    first, second = console.file.getvalue().splitlines()
    assert first.startswith("tpe 1/9  #0 base=3 share=0.1235 hub=True  loss 1.0000")
    assert second.startswith("tpe 2/9  #1 window(3)  loss 1.0000")


def test_a_trial_that_reports_is_heard_of_every_15_seconds(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    console = Console(file=io.StringIO(), width=200)
    with Watcher(OBJECTIVES, 3, "dam", console) as watcher:
        for step in range(1, 41):
            now[0] += 1
            watcher.reported(0, Report(step, {"loss": 2.0, "density": 0.5}))
        watcher(record(0, None, status="done", job=OneShot(), seconds=40.0, error=""))
        now[0] += 5
        watcher(record(1, 1.0))
    lines = console.file.getvalue().splitlines()
    assert lines[:2] == [
        f"dam 0/3  #0 at step {step}  loss 2.0000  density 0.5000" for step in (15, 30)
    ]
    assert "one-shot training" in lines[2]
    assert "0:05 left" in lines[3]  # the training of the gates is no measure of the other trials
