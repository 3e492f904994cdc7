"""What a user sees while a search runs, and of the steps of a training."""

import io
import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn
from tqdm import tqdm

import masksearch.study.console as module
from masksearch import masks, progress
from masksearch.contracts import (
    Evaluate,
    FollowsReports,
    Objective,
    OneShot,
    Record,
    RemembersRecords,
    Report,
)
from masksearch.study.console import Watcher
from masksearch.training.loop import Step, TrainConfig, train

OBJECTIVES = (Objective("loss", "min", 10.0), Objective("sparsity", "max", 0.0))


def record(number: int, loss: float | None, sparsity: float = 0.5, **fields) -> Record:
    """A trial of window(number), and its curve; without a loss it has failed."""
    done = Record(
        number,
        "failed" if loss is None else "done",
        Evaluate(masks.window(number)),
        fingerprint=f"f{number}",
        protocol="p",
        seed=7,
        params={"reach": number, "kind": "window"},
        origin="tpe",
        measures={"sparsity": sparsity, "hops": float("inf")},
        seconds=1.5,
        error="Traceback\nValueError: a, b" if loss is None else "",
    )
    if loss is not None:
        curve = tuple(Report(s, {"loss": loss + (1 / s if s < 3 else 0)}) for s in (1, 2, 3))
        done = replace(done, values={"loss": loss}, step=3, curve=curve)
    return replace(done, **fields)


RECORDS = [
    record(0, 2.0),
    record(2, 1.0),
    record(1, None),
    record(3, 3.0, sparsity=0.2),
    record(4, 1.5, sparsity=0.7, status="stopped"),
    record(5, 1.5, sparsity=0.6),
]


@pytest.fixture
def clock(monkeypatch):
    """Time that a test moves by hand."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def fake(terminal: bool, width: int = 160) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=width, color_system=None)


def drawn(shown) -> str:
    """What a bar, or a search's display, looks like now."""
    console = fake(True)
    console.print(shown.display.render())
    return console.file.getvalue()


# -- a search ------------------------------------------------------------------------------------
def shown(terminal: bool, held: list[Record], new: list[Record], width: int = 250) -> str:
    console = fake(terminal, width)
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


def test_a_hand_designed_mask_is_called_so_whatever_judges_it():
    by_hand = record(0, 1.0, name="longformer within 0.2", source="hand")
    for role in ("baseline", "compared"):
        line = shown(False, [], [replace(by_hand, role=role)])
        assert "#0 hand-designed: longformer within 0.2  " in line
    assert "hand-designed" not in shown(False, [], [replace(by_hand, source="search")])


@pytest.mark.parametrize(("limit", "left"), [(None, "  2:00 left"), (100.0, "  0:40 left")])
def test_time_left_is_judged_by_this_calls_pace(clock, limit, left):
    console = fake(False)
    with Watcher(OBJECTIVES, None, "tpe", console) as watcher:
        watcher.restore(RECORDS[:2])
        watcher.expect(3, limit)
        clock[0] += 60
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
    with Watcher(OBJECTIVES, 2, "tpe", fake(True)) as watcher:
        watcher.reported(0, Report(30, {"loss": 2.5}))
        assert "runs: #0 at step 30  loss 2.5000" in drawn(watcher)
        watcher(record(0, 2.0))
        assert "tpe 1/2" in drawn(watcher)
        assert "runs:" not in drawn(watcher)


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
    outer = fake(True)
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
    console = fake(False)
    with Watcher(OBJECTIVES, 9, "tpe", console) as watcher:
        watcher(long)
        watcher(replace(long, number=1, job=Evaluate(masks.window(3))))
    first, second = console.file.getvalue().splitlines()
    assert first.startswith("tpe 1/9  #0 base=3 share=0.1235 hub=True  loss 1.0000")
    assert second.startswith("tpe 2/9  #1 window(3)  loss 1.0000")


def test_a_trial_that_reports_is_heard_of_every_15_seconds(clock):
    console = fake(False)
    with Watcher(OBJECTIVES, 3, "dam", console) as watcher:
        for step in range(1, 41):
            clock[0] += 1
            watcher.reported(0, Report(step, {"loss": 2.0, "density": 0.5}))
        watcher(record(0, None, status="done", job=OneShot(), seconds=40.0, error=""))
        clock[0] += 5
        watcher(record(1, 1.0))
    lines = console.file.getvalue().splitlines()
    assert lines[:2] == [
        f"dam 0/3  #0 at step {step}  loss 2.0000  density 0.5000" for step in (15, 30)
    ]
    assert "one-shot training" in lines[2]
    assert "0:05 left" in lines[3]  # the training of the gates is no measure of the other trials


# -- a training ----------------------------------------------------------------------------------
def test_one_bar_with_steps_rate_and_loss(clock):
    with progress(console=fake(True)) as bar:
        config = TrainConfig(steps=100)
        for number in range(1, 21):  # ten steps a second, 50 tokens each
            bar(Step(number, 3.0, 50), config)
            clock[0] += 0.1
        assert re.search(
            r"━+.* training (1\d|20)/100  10 steps/s  500 tokens/s  loss 3\.000  0:01 gone, "
            r"0:0[78] left",
            drawn(bar),
        )
        bar(Step(100, 3.0, 50), config)
        assert "training" not in drawn(bar)


def test_a_log_gets_whole_lines_15_seconds_apart(clock):
    console = fake(False, width=20)
    config = TrainConfig(steps=400)
    with progress("pre-training", console=console) as bar:
        for number in range(1, 51):  # 50 s
            bar(Step(number, 2.5, 32), config)
            clock[0] += 1
    lines = console.file.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[0] == (
        "pre-training 16/400  1 steps/s  32 tokens/s  loss 2.500  0:15 gone, 6:24 left"
    )


def test_a_training_with_a_title_is_shown_under_it(clock):
    log = fake(False)
    config = TrainConfig(steps=100)
    for console in (log, fake(True)):
        with progress(console=console) as bar:
            for number in (1, 2):
                bar(Step(number, 3.0, 50, "dense model of RTE, seed 0"), config)
                clock[0] += 1
            assert ("dense model of RTE, seed 0 2/100" in drawn(bar)) == (console is not log)
    assert log.file.getvalue() == "dense model of RTE, seed 0: 100 steps\n"


def test_every_training_gets_a_bar_of_its_own(clock):
    first, second = TrainConfig(steps=5), TrainConfig(steps=5)
    with progress(console=fake(True)) as bar:
        for config, number in ((first, 1), (first, 2), (second, 1), (second, 2), (second, 1)):
            clock[0] += 1
            bar(Step(number, 1.0, 8), config)
            clock[0] += 1
        assert bar.trainings == 3  # the third is the second's settings from the start again
        bar(Step(2, 1.0, 8), second)
        assert "training 3 2/5" in drawn(bar)


def test_the_loss_is_smoothed_and_a_gpu_is_read_late(clock):
    read = []

    class Remote(Tensor):
        """Stands for a loss on a GPU: notes when it is fetched."""

        def __float__(self) -> float:
            read.append(self.number)
            return 2.0

    with progress(console=fake(True)) as bar:
        config = TrainConfig(steps=1000)
        for number in range(1, 101):
            value = Remote()
            value.number = number
            bar(Step(number, value, 8), config)
            clock[0] += 0.01
    assert read == [26, 51]  # each when the next one is due: it is done long since
    assert bar.loss == 2.0
    with progress(console=fake(True)) as bar:
        for number in range(1, 400):
            bar(Step(number, 8.0 if number < 200 else 4.0 + (-1) ** number, 8), config)
    assert bar.loss == pytest.approx(4.0, abs=0.1)


def test_a_resumed_training_starts_where_it_was(clock):
    with progress("x", console=fake(True)) as bar:
        for number in (501, 502, 503):
            bar(Step(number, 1.0, 10), TrainConfig(steps=1000) if number == 501 else bar.config)
            clock[0] += 0.5
        assert "x 503/1000  2 steps/s" in drawn(bar)


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, input_ids: Tensor) -> object:
        return type("Output", (), {"loss": (self.weight * input_ids).square().mean()})


def test_a_real_training_is_shown_and_cleared_away(monkeypatch):
    monkeypatch.setattr(module, "TICK", 0.0)
    console = fake(True)

    def trained() -> str:
        batches = iter([{"input_ids": torch.ones(2, 2)}] * 30)
        assert len([*train(Tiny(), batches, TrainConfig(steps=30))]) == 30
        return console.file.getvalue()

    with progress(console=console):
        trained()
    said = console.file.getvalue()
    assert trained() == said  # nothing follows it any more
    assert re.search(r"training \d+/30 ", said)
    assert said.rindex("\x1b[2K") > said.rindex("training")  # its line is wiped at the end


def test_an_error_inside_leaves_nothing_behind():
    console = fake(True)
    with pytest.raises(KeyError), progress(console=console):
        raise KeyError("x")
    with progress(console=console) as bar:  # the console is free for the next one
        assert bar.display.alive


def test_inside_a_watcher_there_is_one_display(clock):
    console, config = fake(True), TrainConfig(steps=50)
    with Watcher(OBJECTIVES, 3, "tpe", console) as watcher:
        assert "training" not in drawn(watcher)
        for number in range(1, 21):
            watcher.bar(Step(number, 1.5, 8), config)
            clock[0] += 0.1
        shown = drawn(watcher)
        assert shown.index("tpe") < shown.index("training") < shown.index("front 0")
        assert "steps/s" in shown
        watcher(record(0, 1.0))
        watcher.bar(Step(50, 1.5, 8), config)
    assert "joined the front" in console.file.getvalue()
    plain = fake(False)
    with Watcher(OBJECTIVES, 3, "tpe", plain) as watcher:
        for number in range(1, 41):
            watcher.bar(Step(number, 1.5, 8), config)
            clock[0] += 2
    assert len(plain.file.getvalue().splitlines()) == 4


# -- a notebook ----------------------------------------------------------------------------------
TOY = Path(__file__).parents[1] / "contracts"
CELL = f"""
import sys
sys.path.insert(0, {str(TOY)!r})
from toy import ToyEvaluator
import masksearch as ms
from masksearch import masks
candidates = {{"a": masks.window(1), "b": masks.window(2)}}
compared = ms.compare(candidates, ToyEvaluator(), run=RUN, seeds=range(20));
again = ms.compare(candidates, ToyEvaluator(), run=RUN, seeds=range(20), progress=None);
"""


@pytest.mark.nightly
def test_a_notebook_keeps_one_short_output_of_a_search(tmp_path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    cell = nbformat.v4.new_code_cell(CELL.replace("RUN", repr(str(tmp_path / "run"))))
    book = nbformat.v4.new_notebook(cells=[cell])
    nbclient.NotebookClient(book, timeout=300, kernel_name="python3").execute()
    (shown,) = [output for output in cell.outputs if output.output_type == "display_data"]
    text = shown["data"]["text/plain"]
    assert text.splitlines()[0].startswith("compare 40/40 ")
    assert "best loss" in text
    assert len(text.splitlines()) <= 4
    streams = [output.text for output in cell.outputs if output.output_type == "stream"]
    told = [line for line in "".join(streams).splitlines() if "compare" in line]
    assert told == ["compare: 2 masks x 20 seeds: 40 runs to do", "compare: 1 test"]  # the plan
    saved = io.StringIO()
    nbformat.write(book, saved)
    assert len(saved.getvalue()) < 5000
