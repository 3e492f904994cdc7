"""Shows the steps of trainings in this process: a bar for people, a line a minute elsewhere.

with progress():
    reports = list(evaluator(mask, seed=0, workdir=folder))
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from masksearch.contracts import Objective
from masksearch.errors import unknown_name
from masksearch.loggers.console import NotebookOutput, Watcher, clock, is_alive, shown
from masksearch.training.loop import Step, TrainConfig, follow_trainings

PAUSE = 0.25  # seconds between two updates of a bar
MINUTE = 60.0  # seconds between two lines where there is no terminal
STEPS, SAMPLES = 0.05, 0.3  # weight of the newest loss in the shown one: of every step; on a GPU


class StepBar:
    """Follows trainings, one bar for the one under way; removed when it is done.

    A step costs it one or two microseconds. On a GPU it reads a loss only when the next one is
    shown, a quarter of a second later, so that no step waits for it.

    Args:
        title: In front of the bar of a training without a title of its own; from the second one
            on with its number.
        console: Where to.
        screen: Holds the bars; None = lines of text instead.
    """

    def __init__(self, title: str, console: Console, screen: Progress | None) -> None:
        self.title, self.console, self.screen = title, console, screen
        self.config: TrainConfig | None = None  # of the training under way
        self.task: TaskID | None = None
        self.trainings = self.number = self.first = self.tokens = self.losses = 0
        self.loss = self.started = self.due = 0.0
        self.sampled: Step | None = None  # of the last update, on a GPU
        self.steps_rate = 0.0  # a second, over this training

    def __call__(self, step: Step, config: TrainConfig) -> None:
        """Takes one finished step."""
        now = time.monotonic()
        if config is not self.config or step.number <= self.number:
            self.begin(step, config, now)
        else:
            self.tokens += step.tokens
        self.number = step.number
        if step.value.__class__ is float:
            self.smooth(step.loss, STEPS)
        if step.number == config.steps:
            self.end()
        elif now >= self.due:
            shown(lambda: self.update(step, config, now))

    def begin(self, step: Step, config: TrainConfig, now: float) -> None:
        """A training's first step here (one that goes on does not begin at 1)."""
        self.end()
        self.config, self.first, self.started = config, step.number, now  # its time is not known
        self.trainings += 1
        self.tokens = self.losses = 0
        self.sampled = None
        self.due = now + (MINUTE if self.screen is None else PAUSE)
        if self.screen is None and step.title:
            shown(lambda: self.print(f"{step.title}: {config.steps} steps"))

    def print(self, line: str) -> None:
        """One line, where there are no bars."""
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def smooth(self, value: float, weight: float) -> None:
        """Takes a loss into the shown one: a plain mean at first, then an exponential one."""
        self.losses += 1
        share = max(weight, 1 / self.losses)
        self.loss = value if share == 1 else self.loss + (value - self.loss) * share

    def update(self, step: Step, config: TrainConfig, now: float) -> None:
        """Brings what is shown up to date: steps, rates, loss (once there is one) and time."""
        self.due = now + (MINUTE if self.screen is None else PAUSE)
        if step.value.__class__ is not float:
            if self.sampled is not None:
                self.smooth(self.sampled.loss, SAMPLES)
            self.sampled = step
        gone = max(now - self.started, 1e-9)
        self.steps_rate = (step.number - self.first) / gone
        left = (config.steps - step.number) / max(self.steps_rate, 1e-9)
        title = step.title or f"{self.title}{f' {self.trainings}' if self.trainings > 1 else ''}"
        line = (
            f"{title} {step.number}/{config.steps}  {self.steps_rate:.3g} steps/s  "
            f"{thousands(self.tokens / gone)} tokens/s  "
            + (f"loss {self.loss:.3f}  " if self.losses else "")
            + f"{clock(gone)} gone, {clock(left)} left"
        )
        if self.screen is None:
            self.print(line)
            return
        if self.task is None:
            self.task = self.screen.add_task("", total=config.steps)
        self.screen.update(self.task, completed=step.number, description=line, refresh=True)

    def end(self) -> None:
        """Takes the bar away."""
        if self.screen is not None and self.task is not None:
            self.screen.remove_task(self.task)
            shown(self.screen.refresh)
        self.task = self.config = None
        self.number = 0


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
    console = console or (within.console if within is not None else Console(stderr=True))
    alive = is_alive(console) if within is None else within.screen is not None
    screen = bars(console) if alive else None
    bar = StepBar(title, console, screen)
    with ExitStack() as stack:
        if screen is not None and within is not None:
            within.below.append(screen)
            stack.callback(within.below.remove, screen)
            if console.is_jupyter:
                stack.enter_context(follow_trainings(lambda *step: within.redraw()))
        elif screen is not None and console.is_jupyter:
            output = NotebookOutput(
                lambda: screen if screen.tasks else Text(f"{title}: {bar.trainings} trained")
            )

            def redraw(*step: object) -> None:
                shown(output.refresh)

            shown(output.start)
            stack.callback(shown, output.stop)
            stack.enter_context(follow_trainings(redraw))
        elif screen is not None:
            stack.enter_context(screen)
        stack.callback(bar.end)
        with follow_trainings(bar):
            yield bar


@contextmanager
def show_progress(
    kind: Literal["auto"], objectives: Sequence[Objective], title: str
) -> Iterator[Watcher]:
    """Shows a search or comparison on standard error, with the trainings in this process.

    Args:
        kind: "auto".
        objectives: Those of the study.
        title: Shown in front of the counts.

    Yields:
        The listener that shows it.

    Raises:
        UnknownNameError: If `kind` is anything else.
    """
    if kind != "auto":
        raise unknown_name("progress", str(kind), ["auto"])
    with Watcher(objectives, None, title) as watcher, progress(within=watcher):
        yield watcher


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
