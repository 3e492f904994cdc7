"""Runs jobs on this machine: in this process, or in several worker processes."""

from __future__ import annotations

import os
import signal
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cloudpickle
import torch

from masksearch.contracts import Budget, Evaluator, Listener, Proposal, Record, Strategy
from masksearch.errors import SearchError
from masksearch.executors.work import carry_out


@dataclass(frozen=True)
class Local:
    """Executor for one machine.

    Args:
        slots: Jobs at a time. 1 runs in this process; more start that many worker processes.
        threads: Torch threads of a worker; None = the machine's cores shared by the slots
            (with one slot: torch's own setting is left alone).
    """

    slots: int = 1
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.slots < 1:
            raise ValueError(f"slots must be at least 1, got {self.slots}")

    def run(
        self,
        strategy: Strategy,
        evaluator: Evaluator,
        *,
        budget: Budget,
        seed: int,
        workdir: Path,
        on_record: Listener,
    ) -> None:
        """Asks until the strategy is done; see `masksearch.contracts.Executor`."""
        if self.slots == 1:
            if self.threads is not None:
                torch.set_num_threads(self.threads)
            run_here(strategy, evaluator, seed, workdir, on_record)
        else:
            threads = self.threads or max(1, (os.cpu_count() or 1) // self.slots)
            Pool(self.slots, threads, evaluator, seed, workdir).run(strategy, on_record)


def run_here(
    strategy: Strategy, evaluator: Evaluator, seed: int, workdir: Path, on_record: Listener
) -> None:
    """One job after the other, in this process."""
    while (proposal := strategy.ask()) != "done":
        if proposal == "wait":
            raise SearchError("the strategy waits although no job is running")
        record = carry_out(
            proposal, evaluator, seed=seed, workdir=workdir, folder=folder_of(proposal)
        )
        on_record(record)
        strategy.tell(record)


def folder_of(proposal: Proposal) -> str:
    """Folder of a trial below the run folder."""
    return f"trials/{proposal.number}"


@dataclass
class Pool:
    """Worker processes that are started afresh (spawn), so that torch's threads are sound."""

    slots: int
    threads: int
    evaluator: Evaluator
    seed: int
    workdir: Path
    running: dict[Future[Record], Proposal] = field(default_factory=dict)
    deaths: dict[int, int] = field(default_factory=dict)  # by proposal number

    def run(self, strategy: Strategy, on_record: Listener) -> None:
        """Keeps every slot busy until the strategy is done."""
        self.pool = self.started()
        done = False
        try:
            while not done or self.running:
                while not done and len(self.running) < self.slots:
                    proposal = strategy.ask()
                    if proposal == "wait" and not self.running:
                        raise SearchError("the strategy waits although no job is running")
                    if isinstance(proposal, str):
                        done = proposal == "done"
                        break
                    self.submit(proposal)
                if self.running:
                    for record in self.finished():
                        on_record(record)
                        strategy.tell(record)
                        done = False  # a result may bring new proposals
        finally:
            self.pool.shutdown(wait=False, cancel_futures=True)
            for process in list((self.pool._processes or {}).values()):
                process.terminate()

    def started(self) -> ProcessPoolExecutor:
        """A fresh pool whose workers hold the evaluator."""
        payload = cloudpickle.dumps((self.evaluator, self.seed, self.workdir))
        return ProcessPoolExecutor(
            self.slots,
            mp_context=get_context("spawn"),
            initializer=prepare_worker,
            initargs=(payload, self.threads),
        )

    def submit(self, proposal: Proposal) -> None:
        """Starts a job in a free worker."""
        self.running[self.pool.submit(work, cloudpickle.dumps(proposal))] = proposal

    def finished(self) -> list[Record]:
        """Waits for at least one job. A worker that dies takes the pool with it: the jobs that
        ran are repeated, and one that was there at two deaths is a failure."""
        ready, _ = wait(self.running, return_when=FIRST_COMPLETED)
        records: list[Record] = []
        broken: list[Proposal] = []
        for future in ready:
            proposal = self.running.pop(future)
            try:
                records.append(future.result())
            except BrokenProcessPool:
                broken.append(proposal)
        if broken:
            broken += [self.running.pop(future) for future in list(self.running)]
            self.pool = self.started()
            for proposal in broken:
                self.deaths[proposal.number] = self.deaths.get(proposal.number, 0) + 1
                if self.deaths[proposal.number] < 2:
                    self.submit(proposal)
                else:
                    records.append(dead(proposal, self.seed))
        return records


def dead(proposal: Proposal, seed: int) -> Record:
    """The record of a job whose worker process died twice."""
    return replace(
        Record(proposal.number, "failed", proposal.job),
        params=proposal.params,
        origin=proposal.origin,
        seed=seed if proposal.seed is None else proposal.seed,
        memo=proposal.memo,
        error="the worker process died twice in this trial (out of memory, or a crash)",
    )


WORKER: dict[str, Any] = {}  # what a worker process holds for its whole life


def prepare_worker(payload: bytes, threads: int) -> None:
    """Runs once in each worker. The payload comes from the parent process, nowhere else."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's business
    torch.set_num_threads(threads)
    WORKER["job"] = cloudpickle.loads(payload)


def work(payload: bytes) -> Record:
    """Carries one proposal out in a worker."""
    evaluator, seed, workdir = WORKER["job"]
    proposal = cloudpickle.loads(payload)
    return carry_out(proposal, evaluator, seed=seed, workdir=workdir, folder=folder_of(proposal))
