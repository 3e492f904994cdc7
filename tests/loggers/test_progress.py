"""What a user sees of the steps of a training."""

from __future__ import annotations

import io
import re

import pytest
import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

import masksearch.loggers.progress as module
from masksearch import masks, progress
from masksearch.contracts import Evaluate, Objective, Record
from masksearch.loggers.console import Watcher
from masksearch.loggers.progress import StepBar, bars
from masksearch.training.loop import FOLLOWERS, Step, TrainConfig, train

OBJECTIVES = (Objective("loss", "min", 10.0), Objective("sparsity", "max", 0.0))


@pytest.fixture
def clock(monkeypatch):
    """Time that a test moves by hand."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def fake(terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=160, color_system=None)


def drawn(screen: Progress) -> str:
    """What the bars look like now."""
    console = fake(True)
    console.print(screen.get_renderable())
    return console.file.getvalue()


def test_one_bar_with_steps_rate_and_loss(clock):
    screen = bars(fake(True))
    bar, config = StepBar("training", fake(True), screen), TrainConfig(steps=100)
    for number in range(1, 21):  # ten steps a second, 50 tokens each
        bar(Step(number, 3.0, 50), config)
        clock[0] += 0.1
    shown = drawn(screen)
    assert re.search(
        r"━+.* training (1\d|20)/100  10 steps/s  500 tokens/s  loss 3\.000  0:01 gone, "
        r"0:0[78] left",
        shown,
    )
    assert len(screen.tasks) == 1
    bar(Step(100, 3.0, 50), config)
    assert not screen.tasks


def test_a_log_gets_whole_lines(clock):
    narrow = Console(file=io.StringIO(), force_terminal=False, width=20)
    bar, config = StepBar("training", narrow, None), TrainConfig(steps=100)
    for number in (1, 2, 3):
        clock[0] += 1_000
        bar(Step(number, 3.0, 50), config)
    lines = narrow.file.getvalue().splitlines()
    assert lines
    assert all(line.startswith("training ") and line.endswith(" left") for line in lines)


def test_a_training_with_a_title_is_shown_under_it(clock):
    log = Console(file=io.StringIO(), force_terminal=False, width=80)
    screen = bars(fake(True))
    config = TrainConfig(steps=100)
    for bar in (StepBar("training", log, None), StepBar("training", fake(True), screen)):
        for number in (1, 2):
            bar(Step(number, 3.0, 50, "dense model of RTE, seed 0"), config)
            clock[0] += 1
    assert log.file.getvalue() == "dense model of RTE, seed 0: 100 steps\n"
    assert "dense model of RTE, seed 0 2/100" in drawn(screen)


def test_every_training_gets_a_bar_of_its_own(clock):
    screen = bars(fake(True))
    bar = StepBar("training", fake(True), screen)
    first, second = TrainConfig(steps=5), TrainConfig(steps=5)
    for config, number in ((first, 1), (first, 2), (second, 1), (second, 2), (second, 1)):
        clock[0] += 1
        bar(Step(number, 1.0, 8), config)
        clock[0] += 1
    assert bar.trainings == 3  # the third is the second's settings from the start again
    clock[0] += 1
    bar(Step(2, 1.0, 8), second)
    assert [task.description.split("/")[0] for task in screen.tasks] == ["training 3 2"]
    assert screen.tasks[0].completed == 2


def test_the_loss_is_smoothed_and_a_gpu_is_read_late(clock):
    read = []

    class Remote(Tensor):
        """Stands for a loss on a GPU: notes when it is fetched."""

        def __float__(self) -> float:
            read.append(self.number)
            return 2.0

    bar, config = StepBar("x", fake(True), bars(fake(True))), TrainConfig(steps=1000)
    for number in range(1, 101):
        value = Remote()
        value.number = number
        bar(Step(number, value, 8), config)
        clock[0] += 0.01
    assert read == [26, 51]  # each when the next one is due: it is done long since
    assert bar.loss == 2.0
    bar = StepBar("x", fake(True), bars(fake(True)))
    for number in range(1, 400):
        bar(Step(number, 8.0 if number < 200 else 4.0 + (-1) ** number, 8), config)
    assert bar.loss == pytest.approx(4.0, abs=0.1)


def test_a_resumed_training_starts_where_it_was(clock):
    screen = bars(fake(True))
    bar, config = StepBar("x", fake(True), screen), TrainConfig(steps=1000)
    for number in (501, 502, 503):
        bar(Step(number, 1.0, 10), config)
        clock[0] += 0.5
    assert screen.tasks[0].completed == 503
    assert bar.steps_rate == pytest.approx(2.0)


def test_off_a_terminal_a_line_a_minute(clock):
    console = fake(False)
    config = TrainConfig(steps=400)
    with progress("pre-training", console=console) as bar:
        for number in range(1, 201):  # 200 s
            bar(Step(number, 2.5, 32), config)
            clock[0] += 1
    lines = console.file.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[0] == (
        "pre-training 61/400  1 steps/s  32 tokens/s  loss 2.500  1:00 gone, 5:39 left"
    )


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, input_ids: Tensor) -> object:
        return type("Output", (), {"loss": (self.weight * input_ids).square().mean()})


def test_a_real_training_is_shown_and_cleared_away(monkeypatch):
    monkeypatch.setattr(module, "PAUSE", 0.0)
    console = fake(True)
    batches = iter([{"input_ids": torch.ones(2, 2)}] * 30)
    with progress(console=console):
        for _ in train(Tiny(), batches, TrainConfig(steps=30)):
            pass
    assert FOLLOWERS.get() == ()
    said = console.file.getvalue()
    assert re.search(r"training \d+/30 ", said)
    assert said.rindex("\x1b[2K") > said.rindex("training")  # its line is wiped at the end


def test_an_error_inside_leaves_nothing_behind():
    console = fake(True)
    with pytest.raises(KeyError), progress(console=console):
        raise KeyError("x")
    assert FOLLOWERS.get() == ()
    with progress(console=console) as bar:  # the console is free for the next one
        assert bar.screen is not None


def test_inside_a_watcher_there_is_one_display(clock):
    console, config = fake(True), TrainConfig(steps=50)
    with Watcher(OBJECTIVES, 3, "tpe", console) as watcher, progress(within=watcher) as bar:
        assert bar.screen in watcher.below
        empty = fake(True)
        empty.print(watcher.render())
        assert "training" not in empty.file.getvalue()
        for number in range(1, 21):
            bar(Step(number, 1.5, 8), config)
            clock[0] += 0.1
        page = fake(True)
        page.print(watcher.render())
        shown = page.file.getvalue()
        assert shown.index("tpe") < shown.index("training") < shown.index("front 0")
        assert "steps/s" in shown
        watcher(
            Record(
                0, "done", Evaluate(masks.full()), values={"loss": 1.0}, measures={"sparsity": 0.5}
            )
        )
        bar(Step(50, 1.5, 8), config)
    assert watcher.below == []
    assert "joined the front" in console.file.getvalue()


def test_inside_a_watcher_off_a_terminal(clock):
    console, config = fake(False), TrainConfig(steps=500)
    with Watcher(OBJECTIVES, 3, "tpe", console) as watcher, progress(within=watcher) as bar:
        for number in range(1, 100):
            bar(Step(number, 1.5, 8), config)
            clock[0] += 1
    assert watcher.below == []
    assert len(console.file.getvalue().splitlines()) == 1
