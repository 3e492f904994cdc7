"""Shows a search while it runs: a progress bar for people, plain lines elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from masksearch.analysis.pareto import Snapshot
from masksearch.contracts import Objective, Record


class Watcher:
    """A listener that shows the Pareto front as it grows.

    On a terminal a bar, and below it the front's size, its hypervolume, the best score and what
    went wrong; above it a line for every record that joined the front or failed. Elsewhere one
    plain line a record. A resumed search goes on counting where it stopped.

    Use it as a context manager and pass it in `listeners`.

    Args:
        objectives: Those of the study; the first one is the score.
        total: Records that are expected, the strategy's trials and the baselines, or None. A
            strategy's failed trial does not count towards it: another takes its place.
        title: Shown in front of the bar.
        console: Where to; default: standard error.
    """

    def __init__(
        self,
        objectives: Sequence[Objective],
        total: int | None,
        title: str,
        console: Console | None = None,
    ) -> None:
        self.objectives, self.score = tuple(objectives), objectives[0]
        self.title, self.total = title, total
        self.console = console or Console(stderr=True)
        self.state = Snapshot(self.objectives)
        self.counted = 0
        self.bar: Progress | None = None  # both only on a terminal, while it is entered
        self.screen: Live | None = None
        self.task = TaskID(0)
        self.below: list[Progress] = []  # bars of others, shown where they hold any

    def __enter__(self) -> Watcher:
        if self.console.is_terminal:
            columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self.bar = Progress(TextColumn("{task.description}"), *columns, TimeRemainingColumn())
            self.task = self.bar.add_task(self.title, total=self.total, completed=self.counted)
            self.screen = Live(get_renderable=self.render, console=self.console)
            self.screen.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.screen is not None:
            self.screen.stop()
            self.bar = self.screen = None

    def render(self) -> Group:
        """The bar, those of `below`, and the state of the search in one line."""
        assert self.bar is not None
        others = [bars for bars in self.below if bars.tasks]
        return Group(self.bar, *others, Text(self.summary(), no_wrap=True, overflow="ellipsis"))

    def restore(self, records: Sequence[Record]) -> None:
        """Starts from the finished records that a resumed study holds."""
        self.state = Snapshot(self.objectives).after(*records)
        self.counted = sum(counts(record, restored=True) for record in records)
        if self.bar is not None:  # its clock starts again: the remaining time is this call's
            self.bar.reset(self.task, total=self.total, completed=self.counted)
        elif records:
            self.print(f"{self.progress()}  resumed  {self.summary()}")

    def expect(self, records: int | None) -> None:
        """Sets how many further records are expected; None = that is not known."""
        self.total = None if records is None else self.counted + records
        if self.bar is not None:
            self.bar.update(self.task, total=self.total)

    def __call__(self, record: Record) -> None:
        """Takes one finished record."""
        self.state = self.state.after(record)
        self.counted += counts(record, restored=False)
        line = describe_record(record, self.objectives)
        if self.bar is None:
            joined = "joined the front  " if self.state.joined else ""
            self.print(f"{self.progress()}  {line}  {joined}{self.summary()}")
            return
        self.bar.update(self.task, completed=self.counted)
        if self.screen is not None:
            self.screen.refresh()
        if record.status == "failed":
            self.print(f"trial {record.number} failed: {record.reason}")
        elif self.state.joined:
            self.print(f"{line}  joined the front")

    def print(self, line: str) -> None:
        """One line, above the bar if there is one."""
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def progress(self) -> str:
        """Title and count of what came to an end."""
        return f"{self.title} {self.counted}" + (f"/{self.total}" if self.total else "")

    def summary(self) -> str:
        """The front, the best score, and what went wrong, in one line."""
        state, parts = self.state, [f"front {len(self.state.front)}"]
        if math.isfinite(state.hypervolume):
            parts.append(f"hypervolume {state.hypervolume:.4g}")
        if state.best is not None:
            best = f"best {self.score.name} {state.best.value(self.score.name):.4f}"
            sparsity = state.best.measures.get("sparsity")
            parts.append(best if sparsity is None else f"{best} at sparsity {sparsity:.3f}")
        for status in ("failed", "stopped"):
            if state.count(status):
                parts.append(f"{state.count(status)} {status}")
        return "  ".join(parts)


def counts(record: Record, *, restored: bool) -> bool:
    """Whether a record is one of the expected ones. A failed trial of a strategy is made up for
    by another; a failed baseline is not, and a failed run of a comparison is run again when the
    comparison is resumed."""
    if record.status != "failed":
        return True
    return record.origin.startswith("baseline:") or (record.origin == "compare" and not restored)


def describe_record(record: Record, objectives: Sequence[Objective]) -> str:
    """One record in one line."""
    name = record.params.get("mask") or (str(record.mask) if record.mask is not None else "")
    parts = [f"trial {record.number}", record.status, record.origin, str(name)[:80]]
    parts.append(f"seed {record.seed}")
    shown = dict.fromkeys([objective.name for objective in objectives] + ["sparsity"])
    known = {**record.measures, **record.values}
    parts += [f"{key} {known[key]:.4f}" for key in shown if key in known]
    parts.append(f"{record.seconds:.1f} s")
    if record.error:
        parts.append(record.reason[:200])
    return "  ".join(part for part in parts if part)
