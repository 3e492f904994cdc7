"""The parts of strategies whose first job leaves a file, from which all their masks are cut."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from masksearch.contracts import Job, Proposal, Record
from masksearch.files import path_inside


class AfterFirstJob:
    """Numbers the draws, and keeps what the first of them have left.

    Args:
        run: Folder that artifacts are relative to.
        origin: Of the proposals: the strategy's name.
        artifact: Name of what a first job leaves.
        jobs: How many draws are such jobs.
    """

    def __init__(self, run: Path, origin: str, artifact: str, jobs: int = 1) -> None:
        self.run, self.origin, self.artifact, self.jobs = run, origin, artifact, jobs
        self.next = 0  # the next draw
        self.left: dict[int, Path | None] = {}  # draw of a job that has ended -> its file, if any
        self.lost = ""  # why the latest that has none left none

    def propose(self, job: Job, params: Mapping[str, Any] = {}, *, name: str = "") -> Proposal:
        """The next draw, which is out from now on."""
        self.next += 1
        return Proposal(self.next - 1, job, params, self.origin, name=name)

    def tell(self, record: Record) -> None:
        """Learns that a draw is out and, of a first job that has ended, where its file lies."""
        self.next = max(self.next, record.number + 1)
        if record.number < self.jobs and record.status != "running":
            path = record.artifacts.get(self.artifact)
            self.left[record.number] = None if path is None else path_inside(self.run, path)
            self.lost = "" if path else record.reason or f"its job has left no {self.artifact}"
