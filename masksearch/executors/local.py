"""Runs jobs on this machine: in this process, or in several worker processes."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any

import cloudpickle
import torch

from masksearch.contracts import Trials
from masksearch.errors import SearchError
from masksearch.executors.environment import pickle_by_value
from masksearch.executors.job import JobRun, idle_strategy_error
from masksearch.executors.pool import Ask, Pool, WorkerLoss
from masksearch.executors.worker import READY, StepResult, WorkerConfig, pickle_for_workers

SUSPECT = 2  # starts without an end after which a job runs in a process of its own
MAX_FAILURES = 1  # so often a trial whose worker died is begun again


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

    def run(self, work: Trials) -> None:
        """Asks until the search is done; see `masksearch.contracts.Executor`."""
        if self.threads is not None and self.slots == 1:
            torch.set_num_threads(self.threads)
        for seed in work.seeds:
            work.evaluator.provide_models(seed)  # in this process, which shows it
        if self.slots > 1 or self.limit_seconds is not None:
            self.run_in_workers(work)
            return
        while (proposal := work.ask()) != "done":
            if proposal == "wait":
                raise idle_strategy_error()
            if proposal.starts < SUSPECT:
                work.tell(JobRun(proposal, work.evaluator, work.workdir).run(work.report))
            else:
                alone = itertools.chain([proposal], itertools.repeat("done"))
                self.run_in_workers(work, alone.__next__)  # type: ignore[arg-type]

    def run_in_workers(self, work: Trials, ask: Ask | None = None) -> None:
        """Keeps every slot busy with a worker process; one that dies takes only its own job."""
        pool = Pool(work, max_failures=MAX_FAILURES, limit_seconds=self.limit_seconds, ask=ask)
        with pickle_by_value():
            config = WorkerConfig(
                pickle_for_workers(work.evaluator, "the evaluator"),
                str(work.workdir.resolve()),
                threads=self.threads or max(1, (os.cpu_count() or 1) // self.slots),
                limit_seconds=self.limit_seconds,
                paths=tuple(sys.path),
            )
            workers: list[WorkerProcess] = []
            try:
                while self.fill_slots(pool, workers, config):
                    pipes = {worker.pipe: worker for worker in workers}
                    for pipe in wait(list(pipes)):
                        take_message(pool, workers, pipes[pipe])  # type: ignore[index]
            finally:
                for worker in workers:
                    worker.kill()

    def fill_slots(self, pool: Pool, workers: list[WorkerProcess], config: WorkerConfig) -> bool:
        """Gives every free slot a trial, while there are some; False = no slot is busy."""
        while len(pool.running) < self.slots:
            name = f"attempt {next(ATTEMPTS)}"
            spec = pool.next_trial(name)
            if isinstance(spec, str):
                break
            free = [worker for worker in workers if not worker.attempt]
            worker = free[0] if free else start_worker(config)
            if not free:
                workers.append(worker)
            worker.attempt, worker.since = name, time.monotonic()
            worker.send(spec)
        return bool(pool.running)


ATTEMPTS = itertools.count()


@dataclass
class WorkerProcess:
    """One worker process, as the driver sees it."""

    process: subprocess.Popen[bytes]
    pipe: Connection
    attempt: str = ""  # the pool's name of what it works on; empty = nothing
    since: float = 0.0  # monotonic seconds
    ready: bool = False

    def send(self, message: Any) -> None:
        """One message; a dead worker is noticed when its pipe is read."""
        try:
            self.pipe.send_bytes(cloudpickle.dumps(message))
        except OSError:
            pass  # its end of the pipe is closed: reading meets the end of the file

    def kill(self) -> int:
        """Ends the process and returns its exit code."""
        self.pipe.close()
        self.process.kill()
        return self.process.wait()


def start_worker(config: WorkerConfig) -> WorkerProcess:
    """A fresh worker process."""
    if os.name != "posix":
        raise SearchError(
            "worker processes need a POSIX system; use Local(slots=1) without a limit, or WSL"
        )
    ours, theirs = Pipe()
    code = (
        f"from masksearch.executors import worker; worker.serve({theirs.fileno()}, {os.getpid()})"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # a terminal's Ctrl-C reaches the driver alone
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    theirs.close()
    worker = WorkerProcess(process, ours)
    worker.send(config)
    return worker


def take_message(pool: Pool, workers: list[WorkerProcess], worker: WorkerProcess) -> None:
    """Hands one message of a worker, or its death, to the pool.

    Raises:
        SearchError: If it died before it could start: so would the next one.
    """
    try:
        message: StepResult | str = cloudpickle.loads(worker.pipe.recv_bytes())
    except (EOFError, OSError):
        workers.remove(worker)
        worker.pipe.close()
        cause = name_exit(worker.process.wait())
        if not worker.ready:
            raise SearchError(
                f"a worker process ended before it could start ({cause}); its message stands above"
            ) from None
        pool.on_worker_lost(
            worker.attempt, WorkerLoss(cause, seconds=time.monotonic() - worker.since)
        )
        return
    if isinstance(message, str):
        worker.ready = message == READY
        return
    goes_on = pool.on_step(worker.attempt, message)
    if message.report is not None:
        worker.send(goes_on)
    if not goes_on:
        worker.attempt = ""
    if message.error:  # the process may be unsound: see `TrialRunner`
        workers.remove(worker)
        worker.kill()


def name_exit(code: int) -> str:
    """An exit code in words.

    >>> name_exit(-11)
    'killed by SIGSEGV'
    """
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name
    return f"killed by {name}{' (out of memory?)' if name == 'SIGKILL' else ''}"
