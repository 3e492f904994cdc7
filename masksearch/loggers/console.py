"""Shows a search while it runs: a display on a terminal and in a notebook, else plain lines."""

from __future__ import annotations

import io
import math
import sys
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.errors import ConsoleError
from rich.live import Live
from rich.progress import Progress
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from masksearch.analysis.pareto import (
    SPARSITIES,
    Snapshot,
    learned_nothing,
    sparsity_of,
)
from masksearch.contracts import Objective, Record, Report, is_side_value
from masksearch.masks.text import short_text
from masksearch.study.status import seconds_left

PAUSE = 0.5  # seconds between two updates
WIDTH = 120  # characters of a line


class NotebookOutput:
    """Shows what `render` returns, as plain text, and again whenever it is asked to.

    Args:
        render: What to show now.
    """

    def __init__(self, render: Callable[[], RenderableType]) -> None:
        self.render = render
        self.handle: Any = None  # IPython's
        self.due = 0.0

    def start(self) -> None:
        """Makes the output in the cell that runs."""
        from IPython import display  # in a notebook it is there

        show: Any = display.display  # not typed in IPython
        self.handle = show(self.content(), raw=True, display_id=True)

    def refresh(self) -> None:
        """Shows the present state, unless that was done half a second ago."""
        if time.monotonic() >= self.due:
            self.update()

    def stop(self) -> None:
        """Shows the last state, which stays."""
        self.update()

    def update(self) -> None:
        """Shows the present state."""
        self.due = time.monotonic() + PAUSE
        if self.handle is not None:
            self.handle.update(self.content(), raw=True)

    def content(self) -> dict[str, str]:
        """The present state as a notebook keeps it."""
        console = Console(
            file=io.StringIO(), width=WIDTH, color_system=None, force_terminal=False,
            force_jupyter=False,
        )  # fmt: skip
        with console.capture() as text:
            console.print(self.render())
        lines = (line.rstrip() for line in text.get().splitlines())
        return {"text/plain": "\n".join(lines)}


LONGEST = 120  # characters of a line
LEAST = 36  # of them for a mask, at least; what else a line says is cut at its end


class Watcher:
    """A listener that shows how far a search is, its Pareto front and the best mask so far.

    On a terminal a bar, and below it the front, the best mask and what runs; above it a line for
    every record that joined the front or failed. In a notebook the same in one output, which
    changes in place. Elsewhere, and below another program's bar, one plain line a record. A line
    has at most 120 characters. A resumed search goes on counting where it stopped.

    A display never ends a search: where it fails (standard error is closed) it is given up. Use
    it as a context manager and pass it in `listeners`.

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
        self.own, self.console = console is None, console or Console(stderr=True)
        self.state = Snapshot(self.objectives)
        self.counted = 0
        self.new = 0  # records of this call
        self.limit: float | None = None  # seconds that this call may take
        self.started = time.monotonic()
        self.running: tuple[int, Report] | None = None  # the last report of a running trial
        self.failure = ""  # the last one
        self.screen: Live | NotebookOutput | None = None  # while entered; None = plain lines
        self.broken = False
        self.below: list[Progress] = []  # bars of others, shown where they hold any

    def __enter__(self) -> Watcher:
        self.started = time.monotonic()
        if self.console.is_jupyter:
            self.screen = NotebookOutput(self.render)
        elif is_alive(self.console) and not (self.own and has_other_display()):
            self.screen = Live(
                get_renderable=self.render,
                console=self.console,
                redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),  # else a file's
            )
        if self.screen is not None:
            self.attempt(self.screen.start)
        if self.broken:
            self.screen = None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.running, self.broken = None, False  # whatever was shown is put away
        if self.screen is not None:
            self.attempt(self.screen.stop)
            self.screen = None

    # -- what it is told -----------------------------------------------------------------------
    def restore(self, records: Sequence[Record]) -> None:
        """Starts from the finished records that a resumed study holds."""
        self.state = Snapshot(self.objectives).after(*records)
        self.counted = sum(counts(record, restored=True) for record in records)
        if records and self.screen is None:
            self.print("  ".join([self.count(), "resumed", *self.standing()]))

    def expect(self, records: int | None, seconds: float | None = None) -> None:
        """Sets how many further records, and how many seconds, this call may take."""
        self.total = None if records is None else self.counted + records
        self.limit = seconds
        self.redraw()

    def reported(self, number: int, report: Report) -> None:
        """Takes a running trial's report."""
        self.running = (number, report)
        self.redraw()

    def __call__(self, record: Record) -> None:
        """Takes one finished record."""
        self.state = self.state.after(record)
        self.counted += counts(record, restored=False)
        self.new += 1
        if self.running is not None and self.running[0] == record.number:
            self.running = None
        if record.status == "failed":
            self.failure = f"#{record.number} failed: {record.reason}"
        if self.screen is None:
            self.print(self.line(record))
        elif isinstance(self.screen, Live) and record.status == "failed":
            self.print(self.failure)
        elif isinstance(self.screen, Live) and self.state.joined:
            self.print(fitted("", record, [*self.figures(record), "joined the front"]))
        self.redraw()

    # -- what it shows -------------------------------------------------------------------------
    def render(self) -> Group:
        """The bar, those of `below`, and the state of the search."""
        row = Table.grid(padding=(0, 1))
        bar = ProgressBar(self.total or 1, self.counted, width=30) if self.total else ""
        gone, left = self.times()
        times = f"{clock(gone)} gone" + (f", {clock(left)} left" if left else "")
        row.add_row(self.count(), bar, times)
        lines = ["  ".join([*self.standing(), *self.totals()])]
        best = self.state.best
        if best is not None:
            lines.append(f"best: #{best.number} {short_text(best.mask or '', LONGEST - 16)}")
        if self.running is not None:
            number, report = self.running
            values = {n: v for n, v in report.values.items() if not is_side_value(n)}
            figures = (f"{name} {value:.4f}" for name, value in values.items())
            lines.append("  ".join([f"runs: #{number} at step {report.step}", *figures]))
        if isinstance(self.screen, NotebookOutput) and self.failure:
            lines.append(self.failure)
        texts = [Text(clipped(line), no_wrap=True, overflow="ellipsis") for line in lines]
        return Group(row, *(bars for bars in self.below if bars.tasks), *texts)

    def line(self, record: Record) -> str:
        """One finished record, and the state of the search after it."""
        if record.status == "failed":
            return "  ".join([self.count(), self.failure])
        figures = self.figures(record)
        brief = [f"front {len(self.state.front)}" + " (new)" * self.state.joined]
        if learned_nothing(record):
            brief = []  # it changes no front, and its mark needs the room
        best = self.state.best
        if best is not None and best.number == record.number:
            brief.append("best so far")
        elif best is not None:
            brief.append(f"best {best.value(self.score):.4f} at {sparsity_of(best):.3f}")
        gone, left = self.times()
        brief.append(f"{clock(left)} left" if left else f"in {clock(gone)}")
        return fitted(f"{self.count()}  ", record, [*figures, *brief])

    def print(self, line: str) -> None:
        """One line, above the display if there is one."""
        self.attempt(lambda: self.write(clipped(line)))

    def write(self, line: str) -> None:
        """A line as it is."""
        if isinstance(self.screen, Live):
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)
        elif self.own and tqdm_bars():
            sys.modules["tqdm"].tqdm.write(line, file=sys.stderr)
        elif not self.own or sys.stderr is not None:  # (a program without a console has none)
            print(line, file=sys.stderr if self.own else self.console.file, flush=True)

    def redraw(self) -> None:
        """Brings the display up to date."""
        if self.screen is not None:
            self.attempt(self.screen.refresh)

    def attempt(self, action: Callable[[], Any]) -> None:
        """Shows something. A display that fails once is not tried again."""
        self.broken = self.broken or not shown(action)

    # -- pieces of text ------------------------------------------------------------------------
    def count(self) -> str:
        """Title and count of what came to an end."""
        return f"{self.title} {self.counted}" + (f"/{self.total}" if self.total else "")

    def times(self) -> tuple[float, float]:
        """Seconds that this call has taken, and is likely to take yet (0 = none, or unknown)."""
        gone = time.monotonic() - self.started
        rest = None if self.total is None else self.total - self.counted
        return gone, 0 if rest == 0 else seconds_left(gone, self.new, rest, self.limit) or 0

    def standing(self) -> list[str]:
        """The front and the best score."""
        parts, best = [f"front {len(self.state.front)}"], self.state.best
        if best is not None:
            score = f"best {self.score} {best.value(self.score):.4f}"
            parts.append(f"{score} at sparsity {sparsity_of(best):.3f}")
        if self.state.unlearned and not self.state.front:
            parts.append("nothing learned yet")
        return parts

    def totals(self) -> list[str]:
        """The hypervolume, and what went wrong."""
        parts = []
        if math.isfinite(self.state.hypervolume):
            parts.append(f"hypervolume {self.state.hypervolume:.4g}")
        for status in ("failed", "stopped"):
            if self.state.count(status):
                parts.append(f"{self.state.count(status)} {status}")
        return parts

    def figures(self, record: Record) -> list[str]:
        """What a record says of itself, beside its mask."""
        parts = [f"seed {record.seed}"] if record.role in ("compared", "control") else []
        if record.status == "stopped":
            return [*parts, f"stopped at step {record.step}" if record.step else record.reason]
        parts += ["reused"] if record.status == "reused" else []
        known = {**record.measures, **record.values}
        judged = [objective.name for objective in self.objectives]
        if known.get("effective_sparsity") == known.get("sparsity"):
            known.pop("effective_sparsity", None)  # both are one figure
        elif "effective_sparsity" in known and "sparsity" not in judged:
            known.pop("sparsity", None)  # full attention of a decoder has a half-empty table
        names = dict.fromkeys([*judged, *SPARSITIES])
        parts += [f"{name} {known[name]:.4f}" for name in names if name in known]
        parts += ["unsettled gates"] * (record.params.get("gates") == "unsettled")
        return parts + ["learned nothing"] * learned_nothing(record)


def shown(action: Callable[[], Any]) -> bool:
    """Does what shows something; False where the place to show it is gone."""
    try:
        action()
    except (OSError, ValueError, RuntimeError, ConsoleError, SystemExit):
        return False  # rich ends the program where nobody reads what it writes
    return True


def counts(record: Record, *, restored: bool) -> bool:
    """Whether a record is one of the expected ones. A failed trial of a strategy is made up for
    by another; a failed baseline is not, and a failed run of a comparison is run again when the
    comparison is resumed."""
    if record.status != "failed":
        return True
    return record.role == "baseline" or (record.role != "trial" and not restored)


def fitted(start: str, record: Record, parts: Sequence[str]) -> str:
    """A line about a record; its mask, or its name, gets the room that the rest leaves."""
    start, rest = f"{start}#{record.number} ", "".join(f"  {part}" for part in parts)
    name = record.name or record.mask or "one-shot training"
    return start + short_text(name, max(LEAST, LONGEST - len(start) - len(rest))) + rest


def clipped(line: str) -> str:
    """A line that is not too long, and is one line."""
    line = " ".join(line.split("\n"))
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 3]}..."


def is_alive(console: Console) -> bool:
    """Whether lines can be drawn again in place."""
    return console.is_jupyter or (console.is_terminal and not console.is_dumb_terminal)


def has_other_display() -> bool:
    """Whether a live display of rich or a bar of tqdm has the terminal already."""
    proxied = any(hasattr(stream, "rich_proxied_file") for stream in (sys.stdout, sys.stderr))
    return proxied or tqdm_bars()


def tqdm_bars() -> bool:
    """Whether tqdm shows a bar."""
    return bool(getattr(getattr(sys.modules.get("tqdm"), "tqdm", None), "_instances", None))


def clock(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> clock(3725), clock(65)
    ('1:02:05', '1:05')
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
