"""What a user sees of the steps of a training."""

import io
import re

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

import masksearch.loggers.console as module
from masksearch import progress
from masksearch.loggers.console import Watcher
from masksearch.training.loop import Step, TrainConfig, train
from tests.loggers.conftest import OBJECTIVES, record


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
