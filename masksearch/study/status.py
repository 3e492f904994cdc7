"""The state of a run in one small file, `status.json`, that costs nothing to read.

The study is the truth; this file only answers "how is it going?" at once, also for a study of
10,000 trials and while another process writes to it.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

from masksearch.analysis.pareto import Snapshot, sparsity_of
from masksearch.contracts import Objective, Record, Report, is_side_value
from masksearch.errors import SearchError, without_controls
from masksearch.files import read_object, write_text_in_one_move
from masksearch.masks.core import Mask
from masksearch.masks.text import short_text
from masksearch.study.storage import is_locked

NAME = "status.json"
PERIOD = 0.5  # seconds between two writes while jobs run
SOON = 0.1  # ... and when one has ended
FAILURES = 20  # that are kept
LONGEST = 120  # characters of a line


class StatusBoard:
    """Keeps `status.json` of a run folder up to date.

    Args:
        run: The run folder.
        objectives: Those of the study; the first one is the score.
        trials: After which the search ends; None = no limit.
        seconds: Likewise.
        title: What runs, in a few words.
    """

    def __init__(
        self,
        run: Path,
        objectives: Sequence[Objective],
        trials: int | None,
        seconds: float | None,
        title: str,
    ) -> None:
        self.path, self.seconds, self.score = run / NAME, seconds, objectives[0]
        self.search = Snapshot(tuple(objectives))
        self.started = time.monotonic()
        self.first: float | None = None  # when the first job of this call began
        self.written = float("-inf")
        self.running: dict[int, dict[str, Any]] = {}
        self.slots: int | None = None  # jobs at a time, where the executor says so
        self.waiting: frozenset[int] = frozenset()  # of the running ones, those without a place
        self.failures: list[dict[str, Any]] = []
        self.expected: int | None = None  # records of this call, but for draws of known masks
        self.new = 0  # records of this call so far
        self.state: dict[str, Any] = {
            "title": title,
            "state": "running",
            "pid": os.getpid(),
            "host": platform.node(),
            "trials": trials,
            "seconds": seconds,
        }

    def restore(self, records: Sequence[Record], expected: int | None) -> None:
        """Takes what a resumed study holds, and how many records this call will bring."""
        self.search = self.search.after(*records)
        self._keep_failures(records)
        self.expected = expected
        self.write()

    def began(self, record: Record) -> None:
        """A job is on its way to an executor."""
        self.first = self.first or time.monotonic()
        self.running[record.number] = {
            "number": record.number,
            "origin": record.proposer,
            "mask": str(record.mask or "one-shot training"),
            "since": time.monotonic(),
        }
        self.write_soon()

    def reported(self, number: int, report: Report) -> None:
        """A running job has reported."""
        if number in self.running:
            self.running[number]["step"] = report.step
            self.running[number]["values"] = dict(report.values)
        self.write_soon()

    def ended(self, record: Record) -> None:
        """A record is final."""
        self.running.pop(record.number, None)
        self.search = self.search.after(record)
        self._keep_failures([record])
        self.new += not record.known
        self.write_soon(SOON)

    def end(self, state: str) -> None:
        """The call ends: `"ended"`, `"interrupted"`, or `"stopped: reason"`."""
        self.state["state"] = state
        self.write()

    def _keep_failures(self, records: Sequence[Record]) -> None:
        """Keeps the last failures and their reasons."""
        failed = [
            {
                "number": record.number,
                "origin": record.proposer,
                "reason": record.reason[:300] or "no reason given",
            }
            for record in records
            if record.status == "failed"
        ]
        self.failures = [*self.failures, *failed][-FAILURES:]

    def work(self) -> str:
        """How many of several slots have a trial to run."""
        working = len(self.running.keys() - self.waiting)
        return f"{working} of {self.slots} slots work" if (self.slots or 1) > 1 else ""

    def shared(self) -> float:
        """Seconds of this call before its first job: what all jobs share is trained then."""
        return (self.first or time.monotonic()) - self.started

    def write_soon(self, period: float = PERIOD) -> None:
        """Writes unless that was done a moment ago."""
        if time.monotonic() - self.written >= period:
            self.write()

    def write(self) -> None:
        """Replaces the file in one step. A full disk is the study's business, not this file's."""
        self.written = time.monotonic()
        elapsed = self.written - self.started
        rest = None if self.expected is None else self.expected - self.new
        left = seconds_left(elapsed, self.new, rest, self.seconds, self.shared())
        now = self.search
        state = {
            **self.state,
            "updated": time.time(),
            "elapsed": elapsed,
            "expected": self.expected,
            "new": self.new,
            "counts": dict(now.statuses),
            "compute_seconds": now.seconds,
            "front": len(now.front),
            "unlearned": now.unlearned,
            "hypervolume": now.hypervolume if math.isfinite(now.hypervolume) else None,
            "best": None if now.best is None else self.describe(now.best),
            "work": self.work(),
            "running": [
                {name: value for name, value in job.items() if name != "since"}
                | {"seconds": self.written - job["since"], "waits": number in self.waiting}
                for number, job in self.running.items()
            ],
            "failures": self.failures,
            "seconds_left": left if self.state["state"] == "running" else None,
        }
        with contextlib.suppress(OSError):
            write_text_in_one_move(self.path, json.dumps(state, indent=1))

    def describe(self, record: Record) -> dict[str, Any]:
        """The best record as plain data."""
        return {
            "number": record.number,
            "origin": record.proposer,
            self.score.name: record.value(self.score.name),
            "sparsity": sparsity_of(record),
            "mask": str(record.mask or ""),
        }


def seconds_left(
    elapsed: float, new: int, rest: int | None, limit: float | None, apart: float = 0.0
) -> float | None:
    """How long a call is likely to take yet; None where nothing tells.

    Args:
        elapsed: Seconds so far.
        new: Records so far.
        rest: Records to come, or None.
        limit: Seconds that the call may take, or None.
        apart: Seconds of those so far that no further record takes.
    """
    ends = [] if rest is None or not new else [max(0, rest) * max(0.0, elapsed - apart) / new]
    ends += [] if limit is None else [max(0.0, limit - elapsed)]
    return min(ends, default=None)


def read_status(run: Path) -> dict[str, Any]:
    """Reads `status.json` (the keys that `StatusBoard.write` writes), with what became of a
    process that was killed.

    Raises:
        SearchError: If the folder holds no run, or its status is damaged.
    """
    if not (run / NAME).is_file():
        if not run.is_dir():
            raise SearchError(f"{run}: no such run folder")
        raise SearchError(f"{run} holds no {NAME}; a search or comparison writes it at once")
    remedy = "delete it: the study is whole without it, and a search that goes on writes it anew"
    state = read_object(run / NAME, remedy, state=str, elapsed=float, updated=float)
    if state["state"] == "running" and is_locked(run):
        state["elapsed"] += max(0.0, time.time() - state["updated"])
    elif state["state"] == "running":
        state |= {"state": "killed", "seconds_left": None}
    try:
        status_lines(run, state)
    except (LookupError, TypeError, ValueError, AttributeError) as error:  # a part is missing
        raise SearchError(f"{run / NAME} is damaged ({error!r}); {remedy}") from error
    return state


def finished_trials(run: Path) -> int:
    """How many finished trials the status of a run folder tells of."""
    with contextlib.suppress(SearchError, OSError):  # it is damaged or missing, and tells of none
        counts = read_object(run / NAME, "delete it", counts=dict)["counts"].values()
        return sum(count for count in counts if isinstance(count, int))
    return 0


def next_command(run: Path) -> str:
    """The way to go on with an interrupted run: a command, or the call that began it."""
    if (run / "command.json").is_file():
        return f"masksearch resume {shlex.quote(str(run))}"
    whole = run.parent / "command.json"  # the parts of a demonstration are folders in its own
    if whole.is_file() and read_object(whole, "delete it").get("command") == "demo":
        return f"masksearch resume {shlex.quote(str(run.parent))}"
    return "the same call of ms.search or ms.compare"


def status_lines(run: Path, state: dict[str, Any]) -> list[str]:
    """The state for people."""
    runs, volume, left = state["running"], state["hypervolume"], state["seconds_left"]
    counts = ", ".join(counted(state["counts"]))
    lines = [f"{run}: {state['title']}, {state['state']}; {counts or 'nothing finished yet'}"]
    if state["state"] in ("killed", "interrupted"):
        lines[0] += f", {len(runs)} interrupted" if runs else ""
        lines.append(f"go on with: {next_command(run)}")
    if state["state"] == "running":
        of = "" if state["expected"] is None else f" of {state['expected']}"
        rest = "" if left is None else f", about {in_words(left)} left"
        work = f"; {state['work']}" if state.get("work") else ""
        lines.append(
            f"this call: {state['new']}{of} in {in_words(state['elapsed'])}{rest} "
            f"(pid {state['pid']} on {state['host']}){work}"
        )
    lines.append(
        f"front: {state['front']} masks"
        + ("" if volume is None else f", hypervolume {volume:.6g}")
        + (f"; {nothing} have learned nothing" if (nothing := state.get("unlearned")) else "")
        + f"; compute {in_words(state['compute_seconds'])}"
    )
    if refused := state.get("refused"):
        counts = ", ".join(f"{n} for the budget {budget}" for budget, n in refused.items())
        lines.append(f"draws that cost more than their budget, not evaluated: {counts}")
    if state["best"] is not None:
        best = dict(state["best"])
        number, origin, mask = best.pop("number"), best.pop("origin"), best.pop("mask")
        lines.append(with_mask(f"best: trial {number} ({origin})  {figures(best)}  ", mask))
    for job in runs if state["state"] == "running" else []:
        at = f"  step {job['step']}" if "step" in job else ""
        does = "waits" if job.get("waits") else "runs"
        text = (
            f"{does}: trial {job['number']} ({job['origin']}) for {in_words(job['seconds'])}{at}"
        )
        values = figures(job.get("values", {}))
        lines.append(with_mask("  ".join(filter(None, [text, values])) + "  ", job["mask"]))
    lines += [
        f"failed: trial {failure['number']} ({failure['origin']}): {failure['reason']}"
        for failure in state["failures"]
    ]
    lines += [f"warning: {caution}" for caution in state.get("cautions", [])]
    lines = without_controls(lines)  # the folder's name may hold some
    return [part for line in lines for part in wrap(line, LONGEST, subsequent_indent="    ")]


# -- words that the console, the status and the pages share --------------------------------------
def with_mask(start: str, mask: Mask | str, end: str = "", least: int = 16) -> str:
    """A line with a mask, in the room that is left for it, and at least so many characters."""
    return start + short_text(mask, max(least, LONGEST - len(start) - len(end))) + end


def figures(values: Mapping[str, float]) -> str:
    """Named figures in one line, those that stand beside others (majorities, bounds) left out."""
    shown = {name: value for name, value in values.items() if not is_side_value(name)}
    return "  ".join(f"{name} {value:.4f}" for name, value in shown.items())


def counted(statuses: Mapping[Any, int]) -> list[str]:
    """How many records came to which end, where any did."""
    return [f"{number} {name}" for name, number in statuses.items() if number]


def in_words(seconds: float) -> str:
    """Seconds for people.

    >>> in_words(95), in_words(0.31)
    ('1 min 35 s', '0.3 s')
    """
    if seconds < 60:
        return f"{seconds:.{1 if seconds < 10 else 0}f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def clock(seconds: float) -> str:
    """Hours, minutes and seconds, where they change in place.

    >>> clock(3725), clock(65)
    ('1:02:05', '1:05')
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
