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
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from masksearch.contracts import Budget, Objective, Record, Report

NAME = "status.json"
PERIOD = 0.5  # seconds between two writes while jobs run
SOON = 0.1  # ... and when one has ended
FAILURES = 20  # that are kept


class StatusBoard:
    """Keeps `status.json` of a run folder up to date.

    Args:
        run: The run folder.
        objectives: Those of the study; the first one is the score.
        budget: When the search ends.
        title: What runs, in a few words.
    """

    def __init__(
        self, run: Path, objectives: Sequence[Objective], budget: Budget, title: str
    ) -> None:
        from masksearch.analysis.pareto import Snapshot

        self.path, self.budget, self.score = run / NAME, budget, objectives[0]
        self.search = Snapshot(tuple(objectives))
        self.started = time.monotonic()
        self.written = float("-inf")
        self.running: dict[int, dict[str, Any]] = {}
        self.failures: list[dict[str, Any]] = []
        self.expected: int | None = None  # records of this call
        self.new = 0  # records of this call so far
        self.state: dict[str, Any] = {
            "title": title,
            "state": "running",
            "pid": os.getpid(),
            "host": platform.node(),
            "trials": budget.trials,
            "seconds": budget.seconds,
        }

    def restore(self, records: Sequence[Record], expected: int | None) -> None:
        """Takes what a resumed study holds, and how many records this call will bring."""
        self.search = self.search.after(*records)
        for record in records:
            self.consider(record)
        self.expected = expected
        self.write()

    def began(self, record: Record) -> None:
        """A job is on its way to an executor."""
        self.running[record.number] = {
            "number": record.number,
            "origin": record.origin,
            "mask": str(record.mask)[:120] if record.mask is not None else "one-shot training",
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
        self.consider(record)
        self.new += 1
        self.write_soon(SOON)

    def end(self, state: str) -> None:
        """The call ends: `"ended"`, `"interrupted"`, or `"stopped: reason"`."""
        self.state["state"] = state
        self.write()

    def consider(self, record: Record) -> None:
        """Keeps the last failures and their reasons."""
        if record.status == "failed":
            reason = record.reason[:300] or "no reason given"
            entry = {"number": record.number, "origin": record.origin, "reason": reason}
            self.failures = [*self.failures, entry][-FAILURES:]

    def write_soon(self, period: float = PERIOD) -> None:
        """Writes unless that was done a moment ago."""
        if time.monotonic() - self.written >= period:
            self.write()

    def write(self) -> None:
        """Replaces the file in one step. A full disk is the study's business, not this file's."""
        self.written = time.monotonic()
        elapsed = self.written - self.started
        left = None
        if self.expected is not None and self.new > 0:
            left = max(0, self.expected - self.new) * elapsed / self.new
        if self.budget.seconds is not None:
            rest = max(0.0, self.budget.seconds - elapsed)
            left = rest if left is None else min(left, rest)
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
            "hypervolume": now.hypervolume if math.isfinite(now.hypervolume) else None,
            "best": described(now.best, self.score) if now.best is not None else None,
            "running": [
                {name: value for name, value in job.items() if name != "since"}
                | {"seconds": self.written - job["since"]}
                for job in self.running.values()
            ],
            "failures": self.failures,
            "seconds_left": left if self.state["state"] == "running" else None,
        }
        beside = self.path.with_suffix(".json.part")
        with contextlib.suppress(OSError):
            beside.write_text(json.dumps(state, indent=1), encoding="utf-8")
            beside.replace(self.path)


def described(record: Record, score: Objective) -> dict[str, Any]:
    """The best record as plain data."""
    return {
        "number": record.number,
        "origin": record.origin,
        score.name: record.value(score.name),
        "sparsity": record.measures.get("sparsity"),
        "mask": str(record.mask)[:200],
    }


def read_status(run: Path) -> dict[str, Any] | None:
    """What `status.json` says; None where there is none.

    Returns:
        The keys that `StatusBoard.write` writes. `state` is `"running"` also after a SIGKILL:
        whether somebody still runs is what `alive` says of the process.
    """
    path = run / NAME
    if not path.is_file():
        return None
    state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return state


def state_of(run: Path) -> dict[str, Any]:
    """`read_status`, with what became of a process that was killed.

    Raises:
        SearchError: If the folder holds no run.
    """
    import filelock

    from masksearch.errors import SearchError

    state = read_status(run)
    if state is None:
        raise SearchError(
            f"{run} holds no {NAME}; a search or comparison writes it when it starts"
            if run.is_dir()
            else f"{run}: no such run folder"
        )
    if state["state"] == "running":
        lock = run / ".writer.lock"
        holder = lock.read_text(encoding="utf-8") if lock.is_file() else ""
        try:
            with filelock.FileLock(lock, timeout=0):
                state["state"] = "killed"
                state["seconds_left"] = None
        except filelock.Timeout:
            state["elapsed"] += max(0.0, time.time() - state["updated"])
            if holder and not lock.read_text(encoding="utf-8"):  # trying a lock empties its file
                lock.write_text(holder, encoding="utf-8")
    return state


def lines_of(run: Path, state: dict[str, Any]) -> list[str]:
    """The state for people."""
    counts = ", ".join(f"{number} {name}" for name, number in state["counts"].items() if number)
    total = state["expected"]
    lines = [f"{run}: {state['title']}, {state['state']}; {counts or 'nothing finished yet'}"]
    if state["state"] in ("killed", "interrupted"):
        interrupted = f", {len(state['running'])} interrupted" if state["running"] else ""
        lines[0] += interrupted
        lines.append(f"go on with: masksearch resume {run}")
    if state["state"] == "running":
        of = f" of {total}" if total is not None else ""
        left = state["seconds_left"]
        lines.append(
            f"this call: {state['new']}{of} in {spoken(state['elapsed'])}"
            + (f", about {spoken(left)} left" if left is not None else "")
            + f" (pid {state['pid']} on {state['host']})"
        )
    volume = state["hypervolume"]
    lines.append(
        f"front: {state['front']} masks"
        + (f", hypervolume {volume:.6g}" if volume is not None else "")
        + f"; compute {spoken(state['compute_seconds'])}"
    )
    if state["best"] is not None:
        best = dict(state["best"])
        number, origin, mask = best.pop("number"), best.pop("origin"), best.pop("mask")
        figures = "  ".join(f"{name} {value:.4f}" for name, value in best.items())
        lines.append(f"best: trial {number} ({origin})  {figures}  {mask}")
    for job in state["running"] if state["state"] == "running" else []:
        at = f"  step {job['step']}" if "step" in job else ""
        figures = "  ".join(f"{k} {v:.4f}" for k, v in job.get("values", {}).items())
        lines.append(
            f"runs: trial {job['number']} ({job['origin']}) for {spoken(job['seconds'])}"
            f"{at}  {figures}  {job['mask']}".rstrip()
        )
    for failure in state["failures"]:
        lines.append(
            f"failed: trial {failure['number']} ({failure['origin']}): {failure['reason']}"
        )
    return lines


def spoken(seconds: float) -> str:
    """Seconds for people.

    >>> spoken(95)
    '1 min 35 s'
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
