"""Shows a search while it runs: a progress bar for people, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from masksearch.contracts import Objective, Record


class Watcher:
    """A listener with a bar and the best record so far; one line a record off a terminal.

    Use it as a context manager and pass it in `listeners`.

    Args:
        objectives: Those of the study; the first one is the score.
        total: Records that are expected, or None.
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
        self.score = objectives[0]
        self.title, self.total = title, total
        self.console = console or Console(stderr=True)
        self.best: Record | None = None
        self.seen = self.failed = 0
        self.bar: Progress | None = None

    def __enter__(self) -> Watcher:
        if self.console.is_terminal:
            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[best]}"),
                console=self.console,
            )
            self.task = self.bar.add_task(self.title, total=self.total, best="")
            self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def __call__(self, record: Record) -> None:
        """Takes one finished record."""
        self.seen += 1
        self.failed += record.status == "failed"
        if record.scored and (self.best is None or self.better(record, self.best)):
            self.best = record
        if self.bar is not None:
            self.bar.update(self.task, completed=self.seen, best=self.summary())
            if record.status == "failed":
                line = f"trial {record.number} failed: {reason(record)}"
                self.bar.console.print(line, markup=False, highlight=False)
        else:
            of = f"/{self.total}" if self.total else ""
            self.console.print(
                f"{self.title} {self.seen}{of} {described(record, self.score)}",
                soft_wrap=True,
                markup=False,
                highlight=False,
            )

    def better(self, record: Record, other: Record) -> bool:
        """Whether the first objective is better."""
        name = self.score.name
        ahead = record.value(name) - other.value(name)
        return ahead > 0 if self.score.goal == "max" else ahead < 0

    def summary(self) -> str:
        """The best so far, and the number of failures."""
        text = ""
        if self.best is not None:
            sparsity = self.best.measures.get("sparsity", 0.0)
            value = self.best.value(self.score.name)
            text = f"best {self.score.name} {value:.4f} at sparsity {sparsity:.3f}"
        return f"{text}  {self.failed} failed" if self.failed else text


def reason(record: Record) -> str:
    """The last line of a record's error."""
    lines = [line for line in record.error.strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else ""


def described(record: Record, score: Objective) -> str:
    """One record in one line."""
    name = record.params.get("mask") or (str(record.mask) if record.mask is not None else "")
    parts = [record.status, record.origin, str(name)[:80], f"seed {record.seed}"]
    if score.name in record.values:
        parts.append(f"{score.name} {record.values[score.name]:.4f}")
    if "sparsity" in record.measures:
        parts.append(f"sparsity {record.measures['sparsity']:.4f}")
    parts.append(f"{record.seconds:.1f} s")
    if record.error:
        parts.append(reason(record)[:200])
    return "  ".join(part for part in parts if part)
