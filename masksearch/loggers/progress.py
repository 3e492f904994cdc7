"""Shows the steps of trainings in this process: a bar for people, a line a minute elsewhere.

with progress():
    reports = list(evaluator(mask, seed=0, workdir=folder))
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from masksearch.loggers.console import Watcher
from masksearch.training.loop import Step, TrainConfig, follow_trainings

PAUSE = 0.25  # seconds between two updates of a bar
MINUTE = 60.0  # seconds between two lines where there is no terminal
STEPS, SAMPLES = 0.05, 0.3  # weight of the newest loss in the shown one: of every step; on a GPU
SECONDS = 5.0  # over which rates are smoothed


class StepBar:
    """Follows trainings, one bar for the one under way; removed when it is done.

    A step costs it one or two microseconds. On a GPU it reads a loss only when the next one is
    shown, a quarter of a second later, so that no step waits for it.

    Args:
        title: In front of the bar; from the second training on with its number.
        console: Where to.
        screen: Holds the bars; None = lines of text instead.
    """

    def __init__(self, title: str, console: Console, screen: Progress | None) -> None:
        self.title, self.console, self.screen = title, console, screen
        self.pause = MINUTE if screen is None else PAUSE
        self.config: TrainConfig | None = None
        self.task: TaskID | None = None
        self.trainings = self.number = self.seen = self.tokens = 0
        self.loss = self.due = self.started = 0.0
        self.sampled: object = None  # the loss of the last update, on a GPU
        self.before = (0.0, 0, 0)  # time, step and tokens at the last update
        self.steps_rate = self.tokens_rate = 0.0  # a second

    def __call__(self, step: Step, config: TrainConfig) -> None:
        """Takes one finished step."""
        number, value = step.number, step.value
        if config is not self.config or number <= self.number:
            self.begin(step, config)
        self.number = number
        self.tokens += step.tokens
        if value.__class__ is float:
            self.smooth(value, STEPS)
        now = time.monotonic()
        if now >= self.due or number == config.steps:
            self.update(step, config, now)

    def begin(self, step: Step, config: TrainConfig) -> None:
        """A training's first step here (one that goes on does not begin at 1)."""
        self.end()
        self.config = config
        self.trainings += 1
        self.seen = self.tokens = 0
        self.loss, self.sampled = 0.0, None
        self.steps_rate = self.tokens_rate = 0.0
        self.started = time.monotonic()
        self.before = (self.started, step.number, step.tokens)  # its own time is not known
        self.due = self.started + self.pause

    def smooth(self, value: float, weight: float) -> None:
        """Takes a loss into the shown one: a plain mean at first, then an exponential one."""
        self.seen += 1
        self.loss += (value - self.loss) * max(weight, 1 / self.seen)

    def update(self, step: Step, config: TrainConfig, now: float) -> None:
        """Brings what is shown up to date, or takes it away."""
        if step.number == config.steps:
            self.end()
            return
        self.due = now + self.pause
        if step.value.__class__ is not float:
            known, self.sampled = self.sampled, step
            if isinstance(known, Step):
                self.smooth(known.loss, SAMPLES)
        then, number, tokens = self.before
        span = max(now - then, 1e-9)
        share = 1.0 if self.steps_rate == 0 else min(1.0, span / SECONDS)
        self.steps_rate += ((step.number - number) / span - self.steps_rate) * share
        self.tokens_rate += ((self.tokens - tokens) / span - self.tokens_rate) * share
        self.before = (now, step.number, self.tokens)
        if self.screen is None:
            line = self.line(step, config, now)
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)
            return
        if self.task is None:
            self.task = self.screen.add_task("", total=config.steps)
        line = self.line(step, config, now)
        self.screen.update(self.task, completed=step.number, description=line, refresh=True)

    def end(self) -> None:
        """Takes the bar away."""
        if self.screen is not None and self.task is not None:
            self.screen.remove_task(self.task)
            self.screen.refresh()
        self.task = None
        self.config, self.number = None, 0

    @property
    def name(self) -> str:
        """The title, with the training's number from the second one on."""
        return self.title if self.trainings < 2 else f"{self.title} {self.trainings}"

    def line(self, step: Step, config: TrainConfig, now: float) -> str:
        """Steps, rates, loss (once there is one) and time as one line of text."""
        left = (config.steps - step.number) / max(self.steps_rate, 1e-9)
        return (
            f"{self.name} {step.number}/{config.steps}  {self.steps_rate:.3g} steps/s  "
            f"{thousands(self.tokens_rate)} tokens/s  "
            + (f"loss {self.loss:.3f}  " if self.seen else "")
            + f"{clock(now - self.started)} gone, {clock(left)} left"
        )


@contextmanager
def progress(
    title: str = "training", *, console: Console | None = None, within: Watcher | None = None
) -> Iterator[StepBar]:
    """Shows every training of this context (thread or task): steps, rate, loss, time left.

    On a terminal and in a notebook one bar, four updates a second, for the training under way;
    it goes when that is done. Elsewhere, such as in a log file, one line a minute. Trainings in
    other processes are not seen. Under torchrun use it in the first process alone.

    Args:
        title: In front of the bar.
        console: Where to; default: standard error, or that of `within`.
        within: A display that is entered already, which then shows the bar below its own: a
            terminal has room for one display at a time.

    Yields:
        What follows the trainings.
    """
    if within is not None:
        console = console or within.console
    console = console or Console(stderr=True)
    alive = console.is_jupyter or (console.is_terminal and not console.is_dumb_terminal)
    screen = bars(console) if alive and (within is None or within.bar is not None) else None
    bar = StepBar(title, console, screen)
    own = screen if within is None else None
    if within is not None and screen is not None:
        within.below.append(screen)
    if own is not None:
        own.start()
    try:
        with follow_trainings(bar):
            yield bar
    finally:
        bar.end()
        if own is not None:
            own.stop()
        if within is not None and screen is not None:
            within.below.remove(screen)


def bars(console: Console) -> Progress:
    """An empty set of bars, not on display yet."""
    return Progress(
        BarColumn(bar_width=20),
        TextColumn("{task.description}", markup=False),
        console=console,
        transient=True,
        auto_refresh=False,  # drawn when a step brings something new
    )


def thousands(number: float) -> str:
    """A rate in three digits.

    >>> thousands(950.0), thousands(23_100.0), thousands(1_250_000.0)
    ('950', '23.1k', '1.25M')
    """
    for limit, mark in ((1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.3g}{mark}"
    return f"{number:.0f}"


def clock(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> clock(3725)
    '1:02:05'
    """
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
