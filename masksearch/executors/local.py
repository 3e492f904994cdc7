"""Runs jobs on this machine: in this process, or in several worker processes."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.util import get_temp_dir
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle
import torch

from masksearch.contracts import Evaluator, Trials
from masksearch.errors import SearchError, warn
from masksearch.executors.job import JobRun, idle_strategy_error, trial_folder
from masksearch.executors.pool import Ask, Pool, WorkerLoss
from masksearch.executors.worker import (
    OUTPUT,
    READY,
    VISIBLE,
    StepResult,
    WorkerConfig,
    check_gpus,
    pickle_by_value,
    pickle_for_workers,
    serve,
    trials_a_card,
)
from masksearch.files import own_numbers
from masksearch.masks.checks import at_least

SUSPECT = 2  # starts without an end after which a job runs in a process of its own
MAX_FAILURES = 1  # so often a trial whose worker died is begun again
WATCH = 1.0  # seconds between two looks at the workers
LONGEST = 1e8  # seconds of a time limit: three years
SILENCE = 1800.0  # seconds without a report after which a trial is spoken of
LEAST_GB = 1.0  # a worker holds 0.4 GB before it begins
GROWTH_GB = 1.0  # a worker that holds so much more than after its first trial is replaced
LONGEST_TMPDIR = 70  # bytes: a socket's address has 104 or more, and Python adds 32
KEPT = 2**18  # bytes of what a trial prints that are kept, of its beginning and of its end


@dataclass(frozen=True)
class Local:
    """Executor for one machine.

    Args:
        slots: Jobs at a time; more than one start that many worker processes.
        threads: Torch threads of a worker; None = the machine's cores shared by the slots
            (with one slot: torch's own setting is left alone).
        limit_seconds: A job that takes longer is ended, with status "failed"; None = no limit.
            It takes worker processes.
        isolate: Whether one slot is a worker process too, so that an evaluator that crashes or
            ends its process takes nothing else with it. None = where the evaluator's class is not
            masksearch's own: these run in this process, and a job that took the whole search down
            twice in a process of its own. False = in this process (a debugger works, nothing is
            pickled).
        memory_gb: A job whose process holds more main memory, in 10^9 bytes, is ended, with
            status "failed" (Linux); None = no limit. It takes worker processes.
        gpus: Cards of a job, or its share of one: 0.25 = four share a card, each with a quarter
            of its memory. Slots are dealt out over the cards, of which a job sees its own alone;
            0 = it sees none; None = it sees all, and takes the first. It takes worker processes.

    Raises:
        ValueError: If a setting is out of range, or this machine's cards do not hold the slots.
    """

    slots: int = 1
    threads: int | None = None
    limit_seconds: float | None = None
    isolate: bool | None = None
    memory_gb: float | None = None
    gpus: float | None = None

    def __post_init__(self) -> None:
        own_numbers(self)
        at_least("slots", self.slots, 1)
        at_least("threads", 1 if self.threads is None else self.threads, 1)
        limit, memory = self.limit_seconds, self.memory_gb
        if limit is not None and not (isinstance(limit, Real) and 0 < limit <= LONGEST):
            raise ValueError(f"limit_seconds must be positive, got {limit!r}, most {LONGEST:g}")
        if memory is not None and not (isinstance(memory, Real) and memory >= LEAST_GB):
            raise ValueError(
                f"memory_gb must be at least {LEAST_GB:g} (10^9 bytes; libraries alone take 0.4), "
                f"got {memory!r}"
            )
        if self.isolate is False and self._in_workers:
            raise ValueError(
                "isolate=False runs jobs in this process, one at a time and without limits; leave "
                "slots, limit_seconds, memory_gb and gpus away"
            )
        self.deal_cards()

    @property
    def _in_workers(self) -> bool:
        """Whether it takes worker processes whatever the evaluator is."""
        limits = (self.limit_seconds, self.memory_gb, self.gpus)
        return self.slots > 1 or any(limit is not None for limit in limits)

    def run(self, work: Trials) -> None:
        """Asks until the search is done; see `masksearch.contracts.Executor`."""
        isolate = self.isolate
        if isolate is None:
            isolate = os.name == "posix" and not is_own(work.evaluator)
        if self.threads is not None and not self._in_workers:
            torch.set_num_threads(self.threads)
        if self.gpus is None and self.slots > 1 and torch.cuda.device_count():
            warn(
                f"all {self.slots} slots take the first of {torch.cuda.device_count()} cards; "
                "--gpus 1 gives a trial a card, --gpus 0.25 a quarter of one"
            )
        for seed in work.seeds:
            work.evaluator.provide_models(seed)  # in this process, which shows it
        if isolate or self._in_workers:
            self._run_in_workers(work)
            return
        while (proposal := work.ask()) != "done":
            if proposal == "wait":
                raise idle_strategy_error()
            if proposal.starts < SUSPECT:
                work.tell(JobRun(proposal, work.evaluator, work.workdir).run(work.report))
            else:
                alone = itertools.chain([proposal], itertools.repeat("done"))
                self._run_in_workers(work, alone.__next__)  # type: ignore[arg-type]

    def _run_in_workers(self, work: Trials, ask: Ask | None = None) -> None:
        """Keeps every slot busy with a worker process; one that dies takes only its own job."""
        threads = max(1, (os.cpu_count() or 1) // self.slots) if self.slots > 1 else None
        pool = Pool(work, max_failures=MAX_FAILURES, limit_seconds=self.limit_seconds, ask=ask)
        with pickle_by_value():
            config = WorkerConfig(
                pickle_for_workers(work.evaluator, "the evaluator"),
                str(work.workdir.resolve()),
                threads=self.threads or threads,
                limit_seconds=self.limit_seconds,
                gpu=self.gpus,
                paths=tuple(sys.path),
                keeps_output=True,
            )
            workers: list[WorkerProcess] = []
            try:
                while self._fill_slots(pool, workers, config):
                    pipes = {worker.pipe: worker for worker in workers}
                    for pipe in wait(list(pipes), WATCH):
                        _take_message(pool, workers, pipes[pipe])  # type: ignore[index]
                    for worker in [each for each in workers if each.attempt]:
                        self.watch(pool, workers, worker)
            finally:
                for worker in workers:
                    worker.kill()

    def _fill_slots(self, pool: Pool, workers: list[WorkerProcess], config: WorkerConfig) -> bool:
        """Gives every free slot a trial, while there are some; False = no slot is busy."""
        while len(pool.running) < self.slots:
            name = f"attempt {next(ATTEMPTS)}"
            spec = pool.next_trial(name)
            if isinstance(spec, str):
                break
            free = [worker for worker in workers if not worker.attempt]
            if free:
                worker = free[0]
            else:
                slot = min({*range(self.slots)} - {each.slot for each in workers})
                worker = start_worker(config, slot, self.deal_cards())
                workers.append(worker)
            trial = pool.running[name]
            folder = pool.work.workdir / trial_folder(trial.proposal, trial.losses)
            worker.attempt, worker.output = name, folder / OUTPUT
            worker.since = worker.heard = time.monotonic()
            worker.send(spec)
        return bool(pool.running)

    def deal_cards(self) -> list[str]:
        """The `CUDA_VISIBLE_DEVICES` of every slot; nothing = as in this process.

        Raises:
            ValueError: If the cards do not hold the slots.
        """
        if self.gpus is None:
            return []
        check_gpus(self.gpus)
        if self.gpus == 0:
            return [""] * self.slots
        cards, whole = _list_cards(), max(1, int(self.gpus))
        hands = [",".join(cards[at : at + whole]) for at in range(0, len(cards), whole)]
        hands = hands[: len(cards) // whole]
        room = len(hands) * (trials_a_card(self.gpus) if self.gpus < 1 else 1)
        if self.slots > room:
            raise ValueError(
                f"slots={self.slots} of gpus={self.gpus:g} each need more cards than the "
                f"{len(cards)} that this process sees, which hold {room}; take fewer slots, a "
                "smaller share, or gpus=0 for the CPU"
            )
        return [hands[slot % len(hands)] for slot in range(self.slots)]

    def watch(self, pool: Pool, workers: list[WorkerProcess], worker: WorkerProcess) -> None:
        """Ends a trial that takes too much memory; speaks of one that has long been silent."""
        now, trial = time.monotonic(), pool.running[worker.attempt]
        _cut_output(worker.output)
        if self.memory_gb is not None and (memory := worker.memory_gb()) > self.memory_gb:
            workers.remove(worker)
            worker.kill()
            reason = f"held {memory:.3g} GB of memory, and memory_gb allows {self.memory_gb:g}"
            pool.tell(worker.attempt, now - worker.since, error=reason)
        elif self.limit_seconds is None and now > worker.heard + SILENCE:
            worker.heard = float("inf")  # once a trial
            warn(
                f"trial {trial.proposal.number} has given no report for {SILENCE / 60:.3g} "
                "minutes; if it hangs, Local(limit_seconds=...) ends a trial that takes longer "
                "and says where it hung"
            )


ATTEMPTS = itertools.count()
# Workers are forks of a process that has only imported what a trial needs: no fork of this one,
# because torch's threads do not survive that. The first worker waits for these imports.
if sys.platform != "win32":
    FORKS = multiprocessing.get_context("forkserver")
    FORKS.set_forkserver_preload([serve.__module__, "masksearch.strategies.prune"])


def _list_cards() -> list[str]:
    """The cards that this process sees, by their names in `CUDA_VISIBLE_DEVICES`.

    Raises:
        ValueError: If one that is named there does not exist.
    """
    count, names = torch.cuda.device_count(), os.environ.get(VISIBLE)
    if names is None:
        return [str(number) for number in range(count)]
    listed = (name.strip() for name in names.split(","))
    cards = list(itertools.takewhile(lambda name: name not in ("", "-1"), listed))
    if len(cards) > count:
        raise ValueError(
            f"{VISIBLE}={names} names {len(cards)} cards, and torch finds the first {count}; name "
            "those that nvidia-smi -L lists"
        )
    return cards


def is_own(evaluator: Evaluator) -> bool:
    """Whether an evaluator, and what it wraps, is of this package or of one beside it."""
    inner = getattr(evaluator, "evaluator", None)
    ours = type(evaluator).__module__.startswith(("masksearch.", "masksearch_"))
    return ours and (not isinstance(inner, Evaluator) or is_own(inner))


def _cut_output(path: Path) -> None:
    """Leaves the beginning and the end of what a trial has printed so far."""
    size = path.stat().st_size if path.is_file() else 0
    if size <= 4 * KEPT:
        return
    with path.open("r+b") as file:
        file.seek(size - KEPT)
        end = file.read()
        file.truncate(KEPT)  # what is printed meanwhile goes behind it
    with path.open("ab") as file:
        file.write(b"\n[some %d bytes are left out here]\n" % (size - 2 * KEPT) + end)


@dataclass
class WorkerProcess:
    """One worker process, as the driver sees it."""

    process: BaseProcess
    pipe: Connection
    slot: int = 0  # its place among the workers, from 0
    attempt: str = ""  # the pool's name of what it works on; empty = nothing
    output: Path = Path()  # what its trial prints
    since: float = 0.0  # monotonic seconds, as the next
    heard: float = 0.0  # when its trial last gave a report
    ready: bool = False
    began_gb: float = 0.0  # what it held after its first trial

    def send(self, message: Any) -> None:
        """One message; a dead worker is noticed when its pipe is read."""
        with suppress(OSError):  # its end of the pipe is closed: reading meets the end of the file
            self.pipe.send_bytes(cloudpickle.dumps(message))

    def kill(self) -> str:
        """Ends the process, and those that it has started and that have not left its session;
        says how it ended."""
        self.pipe.close()
        for end in (os.killpg, os.kill):  # a process that is just starting has no session yet
            with suppress(ProcessLookupError, PermissionError):
                end(self.process.pid or 0, signal.SIGKILL)
        self.process.join()
        _cut_output(self.output)
        return _name_exit(self.process.exitcode or 0)

    def memory_gb(self) -> float:
        """Main memory that it holds, in 10^9 bytes; 0 where no /proc says so."""
        try:
            pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        except OSError:
            return 0.0
        return int(pages) * os.sysconf("SC_PAGE_SIZE") / 1e9

    def has_grown(self) -> bool:
        """Whether it holds much more than after its first trial: something leaks."""
        memory = self.memory_gb()
        self.began_gb = self.began_gb or memory
        return memory > self.began_gb + GROWTH_GB


def start_worker(config: WorkerConfig, slot: int, cards: Sequence[str]) -> WorkerProcess:
    """A fresh worker process, which does not run the user's script again.

    Args:
        config: What all trials share.
        slot: Its place among the workers.
        cards: What each slot sees, as `Local.deal_cards` says.
    """
    if os.name != "posix":
        raise SearchError("workers need a POSIX system; use Local(isolate=False) or WSL")
    _choose_socket_folder()
    ours, theirs = FORKS.Pipe()
    process = FORKS.Process(target=serve, args=(theirs,))
    script, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
    resource_tracker.ensure_running()  # it would let Ctrl-C in again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()  # Ctrl-C would end its imports with a traceback
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        sys.modules["__main__"] = script
    theirs.close()
    worker = WorkerProcess(process, ours, slot)
    environment = dict(os.environ) | ({VISIBLE: cards[slot]} if cards else {})
    worker.send((environment, config))
    return worker


def _choose_socket_folder() -> None:
    """Keeps multiprocessing's sockets in /tmp where TMPDIR is too long for their addresses."""
    chosen = tempfile.gettempdir()
    if len(os.fsencode(chosen)) > LONGEST_TMPDIR:
        tempfile.tempdir = "/tmp"
        try:
            get_temp_dir()  # which it chooses once
        finally:
            tempfile.tempdir = chosen


def _take_message(pool: Pool, workers: list[WorkerProcess], worker: WorkerProcess) -> None:
    """Hands one message of a worker, or its death, to the pool.

    Raises:
        SearchError: If it died before it could start: so would the next one.
    """
    try:
        message: StepResult | str = cloudpickle.loads(worker.pipe.recv_bytes())
    except (EOFError, OSError):
        workers.remove(worker)
        worker.process.join()  # it has ended by itself: how?
        cause = worker.kill()
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
    worker.heard = max(worker.heard, time.monotonic())  # infinite once it was spoken of
    goes_on = pool.on_step(worker.attempt, message)
    if message.report is not None:
        worker.send(goes_on)
    if not goes_on:
        _cut_output(worker.output)
        worker.attempt = ""
    if message.error or (not goes_on and worker.has_grown()):  # unsound: see `TrialRunner`
        workers.remove(worker)
        worker.kill()


def _name_exit(code: int) -> str:
    """An exit code in words.

    >>> _name_exit(-11)
    'killed by SIGSEGV'
    """
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name
    return f"killed by {name}{' (out of memory?)' if name == 'SIGKILL' else ''}"
