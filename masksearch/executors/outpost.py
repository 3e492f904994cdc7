"""The worker's side of a cluster: runs one trial at a time, one report a step.

Nothing here knows Ray. The driver's side is `masksearch.executors.desk`.
"""

from __future__ import annotations

import faulthandler
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import cloudpickle
import torch

from masksearch.contracts import CarriesData, Evaluator
from masksearch.errors import SearchError
from masksearch.executors.desk import STUCK, Message, Parcel
from masksearch.executors.job import Work, folder_of


@dataclass(frozen=True)
class Crew:
    """What all trials of a search share; it travels once, through the object store."""

    evaluator: bytes  # cloudpickle: classes of a user's file travel by value
    seed: int
    workdir: str | None  # the run folder, where every node sees it
    limit_seconds: float | None  # wall time after which the process ends itself
    checkpoint_seconds: float  # least time between two saved folders
    threads: int  # torch threads
    gpu: float  # share of a GPU, where below 1
    reuse: bool  # whether the process takes further trials
    paths: tuple[str, ...] = ()  # where the driver finds its modules


class Outpost:
    """One worker process.

    Args:
        fetch: Gets a `Crew` from its reference.
    """

    def __init__(self, fetch: Callable[[Any], Crew]) -> None:
        self.fetch = fetch
        self.crew: Crew | None = None
        self.evaluator: Evaluator
        self.work: Work | None = None
        self.clock: TextIO | None = None
        self.seen: frozenset[tuple[str, int]] = frozenset()  # the folder when it was last saved
        self.retired = False

    def take(self, parcel: Parcel, scratch: Path) -> None:
        """Takes a trial, which begins at the next step.

        Args:
            parcel: The trial.
            scratch: A folder of this node, for trials that do not see the run folder.
        """
        self.leave()
        self.parcel, self.scratch, self.begun = parcel, scratch, time.monotonic()

    def leave(self) -> None:
        """Closes the trial, wherever it stands."""
        self.disarm()
        if self.work is not None:
            self.work.stop()
            if self.travels:
                shutil.rmtree(self.work.place, ignore_errors=True)
        self.work = None

    def step(self) -> Message:
        """Runs the trial to its next report, or to its end.

        Raises:
            RuntimeError: After a failed trial: who asks again wants the process to end.
        """
        if self.retired:
            raise RuntimeError("this worker process ends after a failed trial")
        try:
            self.crew = self.crew or self.prepared()
        except Exception:  # told to the driver, which stops the search with it
            reason = f"a worker process cannot load the evaluator: {traceback.format_exc()}"
            return Message(self.seconds, error=reason, fatal=True)
        try:
            self.work = self.work or self.opened(self.crew)
        except Exception:  # the record keeps it: no disk, a mask that cannot be loaded, ...
            return self.ended(Message(self.seconds, error=traceback.format_exc()))
        try:
            report = self.work.advance()
        except SearchError as error:  # a full disk; of one node, another may take the trial
            if self.travels:
                raise
            return Message(self.seconds, error=str(error), fatal=True)
        if report is not None:
            return Message(self.seconds, report)
        record, root, files = self.work.record(), self.root, {}
        if self.travels:
            files = {name: (root / name).read_bytes() for name in record.artifacts.values()}
        return self.ended(
            Message(self.seconds, error=self.work.error, artifacts=record.artifacts, files=files)
        )

    def due(self) -> bool:
        """Whether the trial's folder has changed, and is to be saved now."""
        if self.work is None or self.crew is None or not self.travels:
            return False
        if time.monotonic() - self.saved < self.crew.checkpoint_seconds:
            return False
        before, self.seen = self.seen, contents(self.work.place)
        return bool(self.seen - before)

    def save(self, folder: Path) -> None:
        """Copies the trial's folder."""
        if self.work is not None:
            skip = shutil.ignore_patterns(STUCK)
            shutil.copytree(self.work.place, folder, dirs_exist_ok=True, ignore=skip)
        self.saved = time.monotonic()

    # -- inside --------------------------------------------------------------------------------
    @property
    def seconds(self) -> float:
        """Wall time of the trial so far."""
        return time.monotonic() - self.begun

    @property
    def travels(self) -> bool:
        """Whether the trial's folder lies on this node only."""
        return self.crew is not None and self.crew.workdir is None

    @property
    def root(self) -> Path:
        """What stands for the run folder here."""
        shared = self.crew is not None and self.crew.workdir
        return Path(shared) if shared else self.scratch

    def prepared(self) -> Crew:
        """This process made ready, once."""
        crew = self.fetch(self.parcel.crew)
        sys.path += [path for path in crew.paths if path not in sys.path]
        self.evaluator = cloudpickle.loads(crew.evaluator)
        torch.set_num_threads(crew.threads)
        if 0 < crew.gpu < 1 and torch.cuda.is_available():
            torch.cuda.set_per_process_memory_fraction(crew.gpu)
        return crew

    def opened(self, crew: Crew) -> Work:
        """The trial's job, with what an earlier attempt has left."""
        self.begun = self.saved = time.monotonic()
        proposal = cloudpickle.loads(self.parcel.proposal)
        folder = folder_of(proposal)
        work = Work(proposal, self.evaluator, seed=crew.seed, workdir=self.root, folder=folder)
        work.place.mkdir(parents=True, exist_ok=True)
        if self.parcel.checkpoint is not None:
            with self.parcel.checkpoint.as_directory() as saved:
                shutil.copytree(saved, work.place, dirs_exist_ok=True)
        self.seen = contents(work.place)
        if crew.limit_seconds is not None:
            self.clock = (work.place / STUCK).open("w", encoding="utf-8")
            faulthandler.dump_traceback_later(crew.limit_seconds, exit=True, file=self.clock)
        return work

    def ended(self, message: Message) -> Message:
        """The last message of a trial. A failure may leave the process unsound (a CUDA error,
        memory that is held): it takes no other trial."""
        self.disarm()
        reuse = self.crew is not None and self.crew.reuse
        self.retired = message.retires = bool(message.error) and reuse
        return message

    def disarm(self) -> None:
        """Ends the time limit."""
        if self.clock is not None:
            faulthandler.cancel_dump_traceback_later()
            self.clock.close()
            Path(self.clock.name).unlink(missing_ok=True)
        self.clock = None


def contents(folder: Path) -> frozenset[tuple[str, int]]:
    """Every file of a folder with the time of its last change."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != STUCK)
    return frozenset((str(path), path.stat().st_mtime_ns) for path in files)


def carried(evaluator: Evaluator) -> bytes:
    """An evaluator as it travels: with its data, where it offers that, so that no node has to
    see its files."""
    whole = evaluator.packed() if isinstance(evaluator, CarriesData) else evaluator
    content: bytes = cloudpickle.dumps(whole)
    return content
