"""Runs jobs on this machine: in this process, or in several worker processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import cloudpickle
import torch

from masksearch.contracts import (
    Budget,
    Evaluator,
    Listener,
    OnReport,
    Proposal,
    Record,
    Strategy,
)
from masksearch.errors import SearchError
from masksearch.executors.environment import loaded_by_path
from masksearch.executors.job import Work, carry_out, folder_of, nothing_to_wait_for

SUSPECT = 2  # starts without an end after which a job runs in a process of its own
TRIES = 2  # deaths of a worker after which its job has failed


@dataclass(frozen=True)
class Local:
    """Executor for one machine.

    Args:
        slots: Jobs at a time. 1 runs in this process; more start that many worker processes.
            With one slot, a job that took the whole search down twice runs in a process of its
            own, so that it cannot do so for ever.
        threads: Torch threads of a worker; None = the machine's cores shared by the slots
            (with one slot: torch's own setting is left alone).
        limit_seconds: A job that takes longer is ended, with status "failed"; None = no limit.
            With a limit one slot is a worker process too.
    """

    slots: int = 1
    threads: int | None = None
    limit_seconds: float | None = None

    def __post_init__(self) -> None:
        if self.slots < 1:
            raise ValueError(f"slots must be at least 1, got {self.slots}")
        if self.limit_seconds is not None and not self.limit_seconds > 0:
            raise ValueError(f"limit_seconds must be positive, got {self.limit_seconds}")

    def run(
        self,
        strategy: Strategy,
        evaluator: Evaluator,
        *,
        budget: Budget,
        seed: int,
        workdir: Path,
        on_record: Listener,
        on_report: OnReport,
    ) -> None:
        """Asks until the strategy is done; see `masksearch.contracts.Executor`."""
        threads = self.threads or max(1, (os.cpu_count() or 1) // self.slots)
        pool = Pool(self.slots, threads, evaluator, seed, workdir, on_report, self.limit_seconds)
        if self.slots > 1 or self.limit_seconds is not None:
            with loaded_by_path():
                pool.run(strategy, on_record)
            return
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        while (proposal := strategy.ask()) != "done":
            if proposal == "wait":
                raise nothing_to_wait_for()
            record = pool.here(proposal)
            on_record(record)
            strategy.tell(record)


@dataclass
class Worker:
    """One worker process, as the driver sees it."""

    process: subprocess.Popen[bytes]
    pipe: Connection
    proposal: Proposal | None = None  # what it works on
    since: float = 0.0  # monotonic seconds
    ready: bool = False

    def send(self, content: Any) -> None:
        """One message; a dead worker is noticed when its pipe is read."""
        try:
            self.pipe.send_bytes(cloudpickle.dumps(content))
        except OSError:
            pass  # its end of the pipe is closed: `heard` meets the end of the file

    def end(self) -> int:
        """Kills the process and returns its exit code."""
        self.pipe.close()
        self.process.kill()
        return self.process.wait()


@dataclass
class Pool:
    """Worker processes, each on one job; a worker that dies takes only its own job with it."""

    slots: int
    threads: int
    evaluator: Evaluator
    seed: int
    workdir: Path
    on_report: OnReport
    limit_seconds: float | None = None
    workers: list[Worker] = field(default_factory=list)
    deaths: dict[int, int] = field(default_factory=dict)  # by proposal number

    def run(self, strategy: Strategy, on_record: Listener) -> None:
        """Keeps every slot busy until the strategy is done."""
        done = False
        try:
            while not done or self.busy():
                while not done and len(self.busy()) < self.slots:
                    proposal = strategy.ask()
                    if proposal == "wait" and not self.busy():
                        raise nothing_to_wait_for()
                    if isinstance(proposal, str):
                        done = proposal == "done"
                        break
                    self.submit(proposal)
                if self.busy():
                    for record in self.finished():
                        on_record(record)
                        strategy.tell(record)
                        done = False  # a result may bring new proposals
        finally:
            self.close()

    def here(self, proposal: Proposal) -> Record:
        """Runs one job in this process; one that took the search down twice runs apart."""
        if proposal.starts >= SUSPECT:
            with loaded_by_path():
                return self.alone(proposal)
        return carry_out(
            proposal,
            self.evaluator,
            seed=self.seed,
            workdir=self.workdir,
            folder=folder_of(proposal),
            on_report=self.on_report,
        )

    def alone(self, proposal: Proposal) -> Record:
        """Carries one job out in a process of its own."""
        try:
            self.submit(proposal)
            while True:
                for record in self.finished():
                    return record
        finally:
            self.close()

    def close(self) -> None:
        """Ends every worker."""
        for worker in self.workers:
            worker.end()
        self.workers = []

    def busy(self) -> list[Worker]:
        """The workers that have a job."""
        return [worker for worker in self.workers if worker.proposal is not None]

    def submit(self, proposal: Proposal) -> None:
        """Gives a job to a free worker, or to a new one."""
        free = [worker for worker in self.workers if worker.proposal is None]
        worker = free[0] if free else self.started()
        worker.proposal, worker.since = proposal, time.monotonic()
        worker.send(proposal)

    def started(self) -> Worker:
        """A fresh worker that holds the evaluator."""
        if os.name != "posix":
            raise SearchError(
                "worker processes need a POSIX system; use Local(slots=1) without a limit, or WSL"
            )
        ours, theirs = Pipe()
        code = [sys.executable, "-m", "masksearch.executors.worker"]
        process = subprocess.Popen(
            [*code, str(theirs.fileno()), str(os.getpid())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # a terminal's Ctrl-C reaches the driver alone
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        theirs.close()
        worker = Worker(process, ours)
        payload = cloudpickle.dumps((self.evaluator, self.seed, self.workdir))
        worker.send((list(sys.path), self.threads, payload))
        self.workers.append(worker)
        return worker

    def finished(self) -> list[Record]:
        """Waits until something happens; the records that it brings."""
        records: list[Record] = []
        pipes = {worker.pipe: worker for worker in self.workers}
        for pipe in wait(list(pipes), timeout=self.patience()):
            record = self.heard(pipes[pipe])  # type: ignore[index]
            if record is not None:
                records.append(record)
        if self.limit_seconds is not None:
            for worker in self.busy():
                if worker.ready and time.monotonic() - worker.since > self.limit_seconds:
                    assert worker.proposal is not None
                    self.remove(worker)
                    reason = f"ran longer than the time limit of {self.limit_seconds:g} s"
                    records.append(self.lost(worker.proposal, reason, worker))
        return records

    def patience(self) -> float | None:
        """Seconds until the next time limit."""
        if self.limit_seconds is None:
            return None
        ends = [worker.since + self.limit_seconds for worker in self.busy() if worker.ready]
        return max(0.0, min(ends) - time.monotonic()) + 0.01 if ends else None

    def heard(self, worker: Worker) -> Record | None:
        """One message of a worker, or its death; a record where that ends a job."""
        try:
            kind, content = cloudpickle.loads(worker.pipe.recv_bytes())
        except (EOFError, OSError):
            return self.buried(worker)
        proposal = worker.proposal
        if kind == "broken":
            raise SearchError(f"a worker process cannot load the evaluator: {content}")
        if kind == "fatal":
            raise SearchError(content)
        if kind == "ready":
            worker.ready, worker.since = True, time.monotonic()
        elif kind == "report" and proposal is not None:
            worker.send(self.on_report(proposal.number, content))
        elif kind == "record":
            worker.proposal = None
            record: Record = content
            return record
        return None

    def buried(self, worker: Worker) -> Record | None:
        """After a worker's death its job runs once more, and the second time it has failed."""
        self.workers.remove(worker)
        worker.pipe.close()
        cause = cause_of_death(worker.process.wait())
        if not worker.ready:
            raise SearchError(
                f"a worker process ended before it could start ({cause}); its message stands above"
            )
        proposal = worker.proposal
        if proposal is None:
            return None
        self.deaths[proposal.number] = self.deaths.get(proposal.number, 0) + 1
        if self.deaths[proposal.number] < TRIES:
            self.submit(proposal)
            return None
        return self.lost(
            proposal, f"the worker process died {TRIES} times in this trial: {cause}", worker
        )

    def remove(self, worker: Worker) -> None:
        """Kills a worker that hangs."""
        self.workers.remove(worker)
        worker.end()

    def lost(self, proposal: Proposal, reason: str, worker: Worker) -> Record:
        """The record of a job that has no other end."""
        work = Work(
            proposal,
            self.evaluator,
            seed=self.seed,
            workdir=self.workdir,
            folder=folder_of(proposal),
        )
        work.error = reason
        return replace(work.record(), seconds=time.monotonic() - worker.since)


def cause_of_death(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name
    hint = " (out of memory?)" if name == "SIGKILL" else ""
    return f"killed by {name}{hint}"
