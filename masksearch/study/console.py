"""Shows searches and trainings while they run: a display on a terminal and in a notebook, else
plain lines.

with progress():
    reports = list(evaluator(mask, seed=0, workdir=folder))
"""

from __future__ import annotations

import io
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.errors import ConsoleError
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from masksearch.analysis.pareto import (
    HAND,
    SPARSITIES,
    Snapshot,
    learned_nothing,
    score_title,
    sparsity_of,
)
from masksearch.contracts import Objective, Record, Report
from masksearch.errors import without_controls
from masksearch.masks.core import Mask
from masksearch.masks.text import folded, short_text
from masksearch.study.status import LONGEST, clock, counted, figures, seconds_left, with_mask
from masksearch.training.loop import Step, TrainConfig, follow_trainings

PAUSE = 0.5  # seconds between two updates of a notebook's output
TICK = 0.25  # ... and of a training's bar
SILENCE = 15.0  # seconds between two lines about a trial where there is no terminal
STEPS, SAMPLES = 0.05, 0.3  # weight of the newest loss in the shown one: of every step; on a GPU
LEAST = 36  # characters of a line for a mask, at least; a terminal's line is cut at its end


class Display:
    """Shows what `render` returns, and again whenever it is asked to; elsewhere lines alone.

    It ends no search: where it fails (standard error is closed) it is given up.

    Args:
        render: What to show now.
        console: Where to; default: standard error.
        transient: Whether a terminal is wiped at the end.
    """

    def __init__(
        self,
        render: Callable[[], RenderableType],
        console: Console | None = None,
        *,
        transient: bool = False,
    ) -> None:
        self.render, self.transient = render, transient
        self.own, self.console = console is None, console or Console(stderr=True)
        self.live: Live | None = None  # on a terminal
        self.handle: Any = None  # IPython's, in a notebook
        self.due = 0.0
        self.broken = False

    @property
    def alive(self) -> bool:
        """Whether it is drawn again in place."""
        return self.live is not None or self.handle is not None

    def start(self) -> None:
        """Makes room for it: a live display, or the output of the notebook's cell that runs."""
        if self.console.is_jupyter:
            from IPython import display  # in a notebook it is there

            show: Any = display.display  # not typed in IPython
            self.handle = show(self.content(), raw=True, display_id=True)
        elif (
            self.console.is_terminal
            and not self.console.is_dumb_terminal
            and not (self.own and _has_other_display())
        ):
            live = Live(
                get_renderable=self.render,
                console=self.console,
                transient=self.transient,
                redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),  # else a file's
            )
            self.attempt(live.start)
            self.live = None if self.broken else live

    def refresh(self, *, last: bool = False) -> None:
        """Shows the present state; a notebook's, unless that was done half a second ago."""
        if self.live is not None:
            self.attempt(self.live.refresh)
        elif self.handle is not None and (last or time.monotonic() >= self.due):
            self.due = time.monotonic() + PAUSE
            self.attempt(lambda: self.handle.update(self.content(), raw=True))

    def stop(self) -> None:
        """Shows the last state, which stays."""
        self.broken = False  # whatever was shown is put away
        if self.live is not None:
            self.attempt(self.live.stop)
        self.live = None
        self.refresh(last=True)
        self.handle = None

    def content(self) -> dict[str, str]:
        """The present state as a notebook keeps it."""
        console = Console(
            file=io.StringIO(), width=LONGEST, color_system=None, force_terminal=False,
            force_jupyter=False,
        )  # fmt: skip
        with console.capture() as text:
            console.print(self.render())
        lines = (line.rstrip() for line in text.get().splitlines())
        return {"text/plain": "\n".join(lines)}

    def print(self, line: str) -> None:
        """One line, above the display if there is one; whole where a file or a pipe takes it."""
        room = LONGEST if self.console.is_terminal else sys.maxsize
        self.attempt(lambda: self.write(clipped(line, room)))

    def write(self, line: str) -> None:
        """A line as it is."""
        if self.live is not None:
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)
        elif self.own and _tqdm_bars():
            sys.modules["tqdm"].tqdm.write(line, file=sys.stderr)
        elif not self.own or sys.stderr is not None:  # (a program without a console has none)
            print(line, file=sys.stderr if self.own else self.console.file, flush=True)

    def attempt(self, action: Callable[[], Any]) -> None:
        """Shows something. A display that fails once is not tried again."""
        if self.broken:
            return
        try:
            action()
        except (OSError, ValueError, RuntimeError, ConsoleError, SystemExit):
            self.broken = True  # rich ends the program where nobody reads what it writes


class StepBar:
    """Follows trainings: their steps, rate, loss and time left, of the one under way.

    Where it can be drawn again it is a bar, which goes when the training is done; elsewhere, such
    as in a log file, a line every 15 seconds. A step costs it one or two microseconds. On a GPU it
    reads a loss only when the next one is shown, a quarter of a second later, so that no step
    waits.

    Args:
        title: In front of the bar of a training without a title of its own; from the second one
            on with its number.
        display: That shows it.
    """

    def __init__(self, title: str, display: Display) -> None:
        self.title, self.display = title, display
        self.config: TrainConfig | None = None  # of the training under way
        self.trainings = self.number = self.first = self.tokens = self.losses = 0
        self.loss = self.started = self.due = 0.0
        self.sampled: Step | None = None  # of the last update, on a GPU
        self.line = ""  # that is shown

    def __call__(self, step: Step, config: TrainConfig) -> None:
        """Takes one finished step."""
        now = time.monotonic()
        if step.number <= self.number or (config is not self.config and config != self.config):
            self.begin(step, config, now)
        else:
            self.tokens += step.tokens * (step.number - self.number)
        self.number = step.number
        if step.value.__class__ is float:
            self._smooth(step.loss, STEPS)
        if step.number == config.steps:
            self.end()
        elif now >= self.due:
            self.update(step, config, now)

    def begin(self, step: Step, config: TrainConfig, now: float) -> None:
        """A training's first step here (one that goes on does not begin at 1)."""
        self.end()
        self.config, self.first, self.started = config, step.number, now  # its time is not known
        self.trainings += 1
        self.tokens = self.losses = 0
        self.sampled = None
        self.due = now + (TICK if self.display.alive else SILENCE)
        if not self.display.alive and step.title:
            self.display.print(f"{step.title}: {config.steps} steps")

    def _smooth(self, value: float, weight: float) -> None:
        """Takes a loss into the shown one: a plain mean at first, then an exponential one."""
        self.losses += 1
        share = max(weight, 1 / self.losses)
        self.loss = value if share == 1 else self.loss + (value - self.loss) * share

    def update(self, step: Step, config: TrainConfig, now: float) -> None:
        """Brings what is shown up to date: steps, rates, loss (once there is one) and time."""
        self.due = now + (TICK if self.display.alive else SILENCE)
        if step.value.__class__ is not float:
            if self.sampled is not None:
                self._smooth(self.sampled.loss, SAMPLES)
            self.sampled = step
        gone = max(now - self.started, 1e-9)
        rate = (step.number - self.first) / gone
        left = (config.steps - step.number) / max(rate, 1e-9)
        title = step.title or f"{self.title}{f' {self.trainings}' if self.trainings > 1 else ''}"
        self.line = (
            f"{title} {step.number}/{config.steps}  {rate:.3g} steps/s  "
            f"{thousands(self.tokens / gone)} tokens/s  "
            + (f"loss {self.loss:.3f}  " if self.losses else "")
            + f"{clock(gone)} gone, {clock(left)} left"
        )
        if self.display.alive:
            self.display.refresh()
        else:
            self.display.print(self.line)

    def end(self) -> None:
        """Takes the bar away."""
        self.config, self.line, self.number = None, "", 0

    def rows(self) -> list[RenderableType]:
        """The bar and its line, where a training is under way."""
        if not self.line or self.config is None:
            return []
        row = Table.grid(padding=(0, 1))
        row.add_row(ProgressBar(self.config.steps, self.number, width=20), Text(self.line))
        return [row]


@contextmanager
def progress(title: str = "training", *, console: Console | None = None) -> Iterator[StepBar]:
    """Shows every training of this context (thread or task): steps, rate, loss, time left.

    On a terminal and in a notebook one bar, four updates a second, for the training under way;
    it goes when that is done. Elsewhere, such as in a log file, a line every 15 seconds. Trainings
    in other processes are not seen. Under torchrun use it in the first process alone.

    Args:
        title: In front of the bar.
        console: Where to; default: standard error.

    Yields:
        What follows the trainings.
    """

    def render() -> Group:
        rows = bar.rows()
        if not rows and display.handle is not None:
            rows = [Text(f"{title}: {bar.trainings} trained")]
        return Group(*rows)

    display = Display(render, console, transient=True)
    bar = StepBar(title, display)
    display.start()
    try:
        with follow_trainings(bar):
            yield bar
    finally:
        bar.end()
        display.stop()


class Watcher:
    """A listener that shows how far a search is, its Pareto front and the best mask so far, and
    the trainings in this process.

    On a terminal a bar, and below it the front, the best mask and what runs; above it a line for
    every record that joined the front or failed. In a notebook the same in one output, which
    changes in place. Elsewhere, and below another program's bar, one plain line a record, and one
    every 15 seconds about a trial that reports. On a terminal a line has at most 120 characters. A
    mask that is too long for that is told by its parameters, where these are short enough. A
    resumed search goes on counting where it stopped. Use it as a context manager and pass it in
    `listeners`.

    Args:
        objectives: Those of the study; the first one is the score.
        total: Records that are expected, the strategy's trials and the baselines, or None. A
            strategy's failed trial does not count towards it: another takes its place.
        title: Shown in front of the counts.
        console: Where to; default: standard error.
    """

    def __init__(
        self,
        objectives: Sequence[Objective],
        total: int | None,
        title: str,
        console: Console | None = None,
    ) -> None:
        self.objectives, self.score = tuple(objectives), objectives[0].name
        self.title, self.total = title, total
        self.display = Display(self.render, console)
        self.bar = StepBar("training", self.display)
        self.state = Snapshot(self.objectives)
        self.counted = 0
        self.new = 0  # records of this call
        self.apart = 0.0  # seconds of its one-shot trainings, which no other trial takes
        self.limit: float | None = None  # seconds that this call may take
        self.started = time.monotonic()
        self.running: tuple[int, Report] | None = None  # the last report of a running trial
        self.failure = ""  # the last one
        self.work: Callable[[], str] = str  # says how many slots work
        self.shared: Callable[[], float] = float  # seconds before the first trial of this call
        self.stack = ExitStack()

    def __enter__(self) -> Watcher:
        self.started = time.monotonic()
        self.due = self.started + SILENCE
        self.display.start()
        self.stack.enter_context(follow_trainings(self.bar))
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()
        self.bar.end()
        self.running = None
        self.display.stop()

    # -- what it is told -----------------------------------------------------------------------
    def restore(self, records: Sequence[Record]) -> None:
        """Starts from the finished records that a resumed study holds."""
        self.state = Snapshot(self.objectives).after(*records)
        self.counted = sum(counts(record, restored=True) for record in records)
        if records and not self.display.alive:
            self.display.print("  ".join([self.count(), "resumed", *self.standing()]))

    def expect(self, records: int | None, seconds: float | None = None) -> None:
        """Sets how many further records, and how many seconds, this call may take."""
        self.total = None if records is None else self.counted + records
        self.limit = seconds
        self.display.refresh()

    def reported(self, number: int, report: Report) -> None:
        """Takes a running trial's report."""
        self.running = (number, report)
        if not self.display.alive and time.monotonic() >= self.due:
            self.say(f"{self.count()}  {self.runs()}")
        self.display.refresh()

    def __call__(self, record: Record) -> None:
        """Takes one finished record."""
        self.state = self.state.after(record)
        self.counted += counts(record, restored=False)
        one_shot = record.mask is None and record.status == "done"
        self.new += not one_shot
        self.apart += record.seconds * one_shot
        if self.running is not None and self.running[0] == record.number:
            self.running = None
        if record.status == "failed":
            self.failure = f"#{record.number} failed: {record.reason}"
        if not self.display.alive:
            self.say(self.line(record))
        elif self.display.live is not None and record.status == "failed":
            self.display.print(self.failure)
        elif self.display.live is not None and self.state.joined:
            self.display.print(about("", record, [*self.figures(record), "joined the front"]))
        self.display.refresh()

    # -- what it shows -------------------------------------------------------------------------
    def say(self, line: str) -> None:
        """One plain line; the next one about a running trial can wait."""
        self.due = time.monotonic() + SILENCE
        self.display.print(line)

    def render(self) -> Group:
        """The bar, that of the training under way, and the state of the search."""
        row = Table.grid(padding=(0, 1))
        bar = ProgressBar(self.total or 1, self.counted, width=30) if self.total else ""
        gone, left = self.times()
        times = f"{clock(gone)} gone" + (f", {clock(left)} left" if left else "")
        row.add_row(self.count(), bar, times)
        lines = ["  ".join(filter(None, [*self.standing(), *self.totals(), self.work()]))]
        best = self.state.best
        if best is not None:
            room = LONGEST - 16
            lines.append(f"best: #{best.number} {short_text(drawn(best, room), room)}")
        if self.running is not None:
            lines.append(f"runs: {self.runs()}")
        if self.display.handle is not None and self.failure:
            lines.append(self.failure)
        texts = [Text(clipped(line), no_wrap=True, overflow="ellipsis") for line in lines]
        return Group(row, *self.bar.rows(), *texts)

    def line(self, record: Record) -> str:
        """One finished record, and the state of the search after it."""
        if record.status == "failed":
            return "  ".join([self.count(), self.failure])
        figures = self.figures(record)
        brief = [f"front {len(self.state.front)}" + " (new)" * self.state.joined]
        if learned_nothing(record):
            brief = []  # it changes no front, and its mark needs the room
        gone, left = self.times()
        brief.append(f"{clock(left)} left" if left else f"in {clock(gone)}")
        best = self.state.best
        if best is not None and best.number == record.number:
            brief.append("best so far")
        elif best is not None:  # last: a line that is too long is cut there
            brief.append(f"best {best.value(self.score):.4f} at {sparsity_of(best):.3f}")
        return about(f"{self.count()}  ", record, [*figures, *brief])

    # -- pieces of text ------------------------------------------------------------------------
    def count(self) -> str:
        """Title and count of what came to an end."""
        return f"{self.title} {self.counted}" + (f"/{self.total}" if self.total else "")

    def times(self) -> tuple[float, float]:
        """Seconds that this call has taken, and is likely to take yet (0 = none, or unknown)."""
        gone = time.monotonic() - self.started
        rest = None if self.total is None else self.total - self.counted
        left = seconds_left(gone, self.new, rest, self.limit, self.apart + self.shared())
        return gone, 0 if rest == 0 else left or 0

    def runs(self) -> str:
        """The last report of the trial that gave one."""
        if self.running is None:
            return ""
        number, report = self.running
        return f"#{number} at step {report.step}  {figures(report.values)}"

    def standing(self) -> list[str]:
        """The front and the best score."""
        parts, best = [f"front {len(self.state.front)}"], self.state.best
        if best is not None:
            score = f"best {score_title(self.score, [best])} {best.value(self.score):.4f}"
            parts.append(f"{score} at sparsity {sparsity_of(best):.3f}")
        if self.state.unlearned and not self.state.front:
            parts.append("nothing learned yet")
        return parts

    def totals(self) -> list[str]:
        """The hypervolume, and what went wrong."""
        parts = []
        if math.isfinite(self.state.hypervolume):
            parts.append(f"hypervolume {self.state.hypervolume:.4g}")
        return [*parts, *counted({each: self.state.count(each) for each in ("failed", "stopped")})]

    def figures(self, record: Record) -> list[str]:
        """The figures of a record, beside its mask."""
        parts = [f"seed {record.seed}"] if record.role in ("compared", "control") else []
        if record.status == "stopped":
            return [*parts, f"stopped at step {record.step}" if record.step else record.reason]
        parts += ["reused"] if record.status == "reused" else []
        values = {**record.measures, **record.values}
        judged = [objective.name for objective in self.objectives]
        counted = next(
            (name for name in [*judged, *SPARSITIES] if name in SPARSITIES and name in values), ""
        )
        names = dict.fromkeys([*judged, counted])
        titles = {
            name: "sparsity" if name == counted else score_title(name, [record]) for name in names
        }
        parts += [figures({titles[name]: values[name]}) for name in names if name in values]
        parts += ["unsettled gates"] * (record.params.get("gates") == "unsettled")
        return parts + ["learned nothing"] * learned_nothing(record)


def counts(record: Record, *, restored: bool) -> bool:
    """Whether a record is one of the expected ones. A failed trial of a strategy, or one of a mask
    that was known, is made up for by another; a failed baseline is not, and a failed run of a
    comparison is run again when the comparison is resumed."""
    if record.status != "failed":
        return not record.known
    return record.role == "baseline" or (record.role != "trial" and not restored)


def about(start: str, record: Record, parts: Sequence[str]) -> str:
    """A line about a record; its mask, or its name, gets the room that the rest leaves."""
    start, rest = f"{start}#{record.number} ", "".join(f"  {part}" for part in parts)
    start += "hand-designed: " * (record.source == HAND)
    name = record.name or drawn(record, LONGEST - len(start) - len(rest))
    return with_mask(start, name, rest, LEAST)


def drawn(record: Record, room: int) -> Mask | str:
    """A record's mask, or the parameters that drew it where these fit into a line and it does not
    (`base=3 growth=0 hub=True`)."""
    density = getattr(record.job, "config", {}).get("density")
    target = "" if density is None else f", target density {density:.4g}"
    mask = record.mask or f"one-shot training{target}"
    values = (f"{v:.4g}" if isinstance(v, float) else str(v) for v in record.params.values())
    params = " ".join(map("=".join, zip(record.params, values, strict=True)))
    return params if len(folded(str(mask))) > room >= len(params) > 0 else mask


def clipped(line: str, room: int = LONGEST) -> str:
    """A line that is not too long, and is one line."""
    line = without_controls(" ".join(line.split("\n")))
    return line if len(line) <= room else f"{line[: room - 3]}..."


def _has_other_display() -> bool:
    """Whether a live display of rich or a bar of tqdm has the terminal already."""
    proxied = any(hasattr(stream, "rich_proxied_file") for stream in (sys.stdout, sys.stderr))
    return proxied or _tqdm_bars()


def _tqdm_bars() -> bool:
    """Whether tqdm shows a bar."""
    return bool(getattr(getattr(sys.modules.get("tqdm"), "tqdm", None), "_instances", None))


def thousands(number: float) -> str:
    """A rate in three digits.

    >>> thousands(950.0), thousands(23_100.0), thousands(1_250_000.0)
    ('950', '23.1k', '1.25M')
    """
    for limit, mark in ((1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.3g}{mark}"
    return f"{number:.0f}"
