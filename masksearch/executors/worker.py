"""A worker process: runs one trial at a time, one report a step.

`TrialRunner` serves every transport: Ray Tune's workers call it step by step, and the worker
processes of `Local` do so in `serve`, at the far end of a pipe.
"""

from __future__ import annotations

import faulthandler
import io
import os
import shutil
import signal
import sys
import sysconfig
import threading
import time
import traceback
from collections import ChainMap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import TextIOWrapper
from multiprocessing.connection import Connection
from pathlib import Path
from types import CodeType
from typing import Any, ClassVar, NoReturn, TextIO

import cloudpickle

from masksearch.contracts import Evaluator, Report
from masksearch.errors import SearchError, hide_passwords
from masksearch.executors.job import TIME_LIMIT_NOTE, JobRun
from masksearch.files import wait_for_hang_up
from masksearch.user_code import describe_error

READY = "ready"  # a worker process's first message
OUTPUT = "output.txt"  # what a trial in a worker process printed, in its folder
# Bytes that a process holds of a card beside its tensors: 543 MiB where torch loads all of its
# kernels (pytorch#81257), some 300 where it loads those that it needs (pytorch#107667)
CONTEXT = 600 * 2**20
VISIBLE = "CUDA_VISIBLE_DEVICES"  # the cards that a process sees; CUDA reads it at its first call


def pickle_for_workers(thing: Any, name: str) -> bytes:
    """Pickles a thing for worker processes with cloudpickle, so that a user's classes go by value.

    Args:
        thing: An evaluator or a proposal.
        name: What it is called in the error.

    Raises:
        SearchError: If it cannot be pickled; names the attribute that is in the way.
    """
    try:
        stream = io.BytesIO()
        Pickler(stream).dump(thing)
    except Exception as error:  # pickling may raise anything
        path, part = _unpicklable_part(thing, type(thing).__name__)
        raise SearchError(
            f"{name} cannot travel to the worker processes: {path} is a "
            f"{type(part).__module__}.{type(part).__qualname__}, which cannot be pickled "
            f"({error}); load data and open files where they are used, in __call__, or leave the "
            "attribute out in __getstate__ (with Local(isolate=False) nothing travels)"
        ) from error
    return stream.getvalue()


def _reduce_code(code: CodeType) -> tuple[Any, tuple[Any, ...]]:
    """As cloudpickle does, with the name of its file, which since 3.1.3 it leaves out."""
    make, parts = cloudpickle.Pickler.dispatch_table[CodeType](code)
    return make, tuple(code.co_filename if part == "<dynamic-code>" else part for part in parts)


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """cloudpickle's, but a traceback in a worker names the user's file."""

    dispatch_table: ClassVar[Any] = ChainMap(
        {CodeType: _reduce_code}, cloudpickle.Pickler.dispatch_table
    )


@contextmanager
def pickle_by_value() -> Iterator[None]:
    """Lets cloudpickle carry by value what modules define that no worker could import.

    These are the modules that were loaded from a path, such as a search space that is named on
    the command line.
    """
    modules = []
    installed = tuple(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None) or ""
        plain = getattr(module, "__name__", "") == name and name != "__main__"
        if not plain or name in sys.stdlib_module_names or "." in name or file[-3:] != ".py":
            continue
        if file.startswith(installed):  # asking the finders takes a tenth of a second in all
            continue
        finders = (getattr(finder, "find_spec", None) for finder in sys.meta_path)
        specs = (find(name, None) for find in finders if find is not None)
        origin = next((spec.origin for spec in specs if spec is not None), None)
        if os.path.realpath(origin or "") != os.path.realpath(file):
            modules.append(module)
    registered = set(cloudpickle.list_registry_pickle_by_value())
    modules = [module for module in modules if module.__name__ not in registered]
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)


def _unpicklable_part(thing: Any, path: str) -> tuple[str, Any]:
    """The innermost part of a thing that cannot be pickled, and how to get there."""
    parts: dict[str, Any] = {f".{n}": part for n, part in getattr(thing, "__dict__", {}).items()}
    if isinstance(thing, Mapping):
        parts = {f"[{key!r}]": part for key, part in thing.items()}
    elif isinstance(thing, list | tuple):
        parts = {f"[{index}]": part for index, part in enumerate(thing)}
    for name, part in parts.items():
        try:
            cloudpickle.dumps(part)
        except Exception:  # as above
            return _unpicklable_part(part, path + name)
    return path, thing


@dataclass(frozen=True)
class WorkerConfig:
    """The configuration that all trials of a search share; it travels once to every worker."""

    evaluator: bytes  # cloudpickle: classes of a user's file travel by value
    workdir: str | None  # the run folder; None = trials work in a folder of their node
    threads: int | None = None  # torch threads; None = torch's own setting
    limit_seconds: float | None = None  # wall time of a trial, after which the process ends itself
    gpu: float | None = None  # cards of a trial, or its share of one; None = those of the driver
    checkpoint_seconds: float = 0.0  # least time between two saved folders
    paths: tuple[str, ...] = ()  # where the driver finds its modules
    keeps_output: bool = False  # whether what a trial prints goes into a file of its folder


@dataclass
class TrialSpec:
    """One trial's description for a worker. Tune copies, prints and keeps configurations: this
    one answers with itself, shows its name, and is emptied at the end."""

    name: str  # "NUMBER.START"
    proposal: bytes  # cloudpickle
    losses: int = 0  # workers that were lost with it
    config: Any = None  # Ray's reference to the `WorkerConfig`
    checkpoint: Any = None  # saved folder of an earlier attempt

    def __deepcopy__(self, memo: dict[int, Any]) -> TrialSpec:
        return self

    def __repr__(self) -> str:
        return self.name

    def empty(self) -> None:
        """Nobody needs it any more."""
        self.proposal, self.config, self.checkpoint = b"", None, None


@dataclass
class StepResult:
    """A worker's answer to one step: a report, or the job's end."""

    seconds: float  # wall time of the trial so far
    report: Report | None = None
    error: str = ""
    fatal: bool = False  # the search ends with this error; the trial stays open
    artifacts: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)  # artifacts, where they must travel

    def __post_init__(self) -> None:  # Ray keeps logs of what travels
        self.error = hide_passwords(self.error)


class TrialRunner:
    """Runs the trials of one worker process, one after the other.

    A failure may leave a process unsound (a CUDA error, memory that is held), so after one
    `step` raises, and the process is to be ended.

    Args:
        config: What all trials share.
    """

    def __init__(self, config: WorkerConfig) -> None:
        self.config = config
        self.evaluator: Evaluator | None = None
        self.job: JobRun | None = None
        self.note: TextIO | None = None  # open while the time limit is set
        self.failed = False
        self.files: frozenset[tuple[str, int]] = frozenset()  # of the trial, when last saved

    def take(self, spec: TrialSpec, scratch: Path = Path()) -> None:
        """Takes a trial, which begins at the next step.

        Args:
            spec: The trial.
            scratch: A folder of this node, for trials that do not see the run folder.
        """
        self.close()
        self.spec, self.scratch, self.began = spec, scratch, time.monotonic()

    def close(self) -> None:
        """Ends the trial, wherever it stands."""
        self._clear_time_limit()
        if self.job is not None:
            self.job.stop()
            if self.travels:
                shutil.rmtree(self.job.path, ignore_errors=True)
        self.job = None

    def step(self) -> StepResult:
        """Runs the trial to its next report, or to its end.

        Raises:
            RuntimeError: After a failed trial: who asks again wants the process to end.
        """
        if self.failed:
            raise RuntimeError("this worker process ends after a failed trial")
        try:
            evaluator = self.evaluator = self.evaluator or self.load_evaluator()
        except Exception as error:  # told to the driver, which stops the search with it
            reason = f"a worker process cannot load the evaluator: {describe_error(error)}"
            return StepResult(self.seconds, error=reason, fatal=True)
        try:
            self.job = self.job or self._start_job(evaluator)
        except Exception:  # the record keeps it: no disk, a mask that cannot be loaded, ...
            return self.end(StepResult(self.seconds, error=traceback.format_exc()))
        try:
            report = self.job.next_report()
        except SearchError as error:  # a full disk; of one node, another may take the trial
            if self.travels:
                raise
            return StepResult(self.seconds, error=str(error), fatal=True)
        if report is not None:
            return StepResult(self.seconds, report)
        artifacts, files = self.job.record().artifacts, {}
        if self.travels:
            files = {name: (self.job.workdir / name).read_bytes() for name in artifacts.values()}
        return self.end(
            StepResult(self.seconds, error=self.job.error, artifacts=artifacts, files=files)
        )

    def checkpoint_due(self) -> bool:
        """Whether the trial's folder lies on this node only, has changed, and is to be saved."""
        if self.job is None or not self.travels:
            return False
        if time.monotonic() - self.saved < self.config.checkpoint_seconds:
            return False
        before, self.files = self.files, _list_files(self.job.path)
        return bool(self.files - before)

    def save_checkpoint(self, folder: Path) -> None:
        """Copies the trial's folder."""
        if self.job is not None:
            skip = shutil.ignore_patterns(TIME_LIMIT_NOTE)
            shutil.copytree(self.job.path, folder, dirs_exist_ok=True, ignore=skip)
        self.saved = time.monotonic()

    # -- inside --------------------------------------------------------------------------------
    @property
    def seconds(self) -> float:
        """Wall time of the trial so far."""
        return time.monotonic() - self.began

    @property
    def travels(self) -> bool:
        """Whether the trial's folder lies on this node only."""
        return self.config.workdir is None

    def load_evaluator(self) -> Evaluator:
        """The evaluator, in a process made ready for it."""
        import torch

        if self.config.gpu == 0:  # Ray shows a worker without a share every card
            os.environ[VISIBLE] = ""
        sys.path += [path for path in self.config.paths if path not in sys.path]
        evaluator: Evaluator = cloudpickle.loads(self.config.evaluator)
        if self.config.threads is not None:
            torch.set_num_threads(self.config.threads)
        share = self.config.gpu or 0.0
        if 0 < share < 1 and torch.cuda.is_available():
            total = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(_memory_fraction(share, total))
        return evaluator

    def _start_job(self, evaluator: Evaluator) -> JobRun:
        """The trial's job, with what an earlier attempt has left."""
        self.began = self.saved = time.monotonic()
        proposal = cloudpickle.loads(self.spec.proposal)
        root = self.scratch if self.config.workdir is None else Path(self.config.workdir)
        job = JobRun(proposal, evaluator, root, self.spec.losses)
        job.path.mkdir(parents=True, exist_ok=True)
        if self.spec.checkpoint is not None:
            with self.spec.checkpoint.as_directory() as saved:
                shutil.copytree(saved, job.path, dirs_exist_ok=True)
        self.files = _list_files(job.path)
        if self.config.keeps_output:
            _print_to(job.path / OUTPUT)
        if self.config.limit_seconds is not None:
            self.note = (job.path / TIME_LIMIT_NOTE).open("w", encoding="utf-8")
            faulthandler.dump_traceback_later(self.config.limit_seconds, exit=True, file=self.note)
        return job

    def end(self, result: StepResult) -> StepResult:
        """The last result of a trial."""
        self._clear_time_limit()
        self.failed = bool(result.error)
        return result

    def _clear_time_limit(self) -> None:
        """Lets the process live on."""
        if self.note is not None:
            faulthandler.cancel_dump_traceback_later()
            self.note.close()
            Path(self.note.name).unlink(missing_ok=True)
        self.note = None


def read_time_limit_note(folder: Path) -> str | None:
    """The note of a process that ended itself at its time limit: what it was doing.

    Returns:
        `""` = it did not end itself, however late its death was heard of; None = there is no
        note to be seen.
    """
    path = folder / TIME_LIMIT_NOTE
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8")
    path.unlink()
    return text


def _list_files(folder: Path) -> frozenset[tuple[str, int]]:
    """Every file of a folder with the time of its last change."""
    files = (p for p in folder.rglob("*") if p.is_file() and p.name != TIME_LIMIT_NOTE)
    return frozenset((str(path), path.stat().st_mtime_ns) for path in files)


def check_gpus(gpus: float) -> None:
    """Refuses what is neither no card, nor a share of one, nor whole cards."""
    if not gpus >= 0 or (gpus > 1 and gpus % 1):
        raise ValueError(
            "gpus of a trial must be 0, a share of a card such as 0.25, or a whole number of "
            f"cards, got {gpus:g}"
        )


def trials_a_card(share: float) -> int:
    """Trials that a card holds, of a share of at most 1 each."""
    return int(1 / share + 1e-6)


def _memory_fraction(share: float, total: int) -> float:
    """The part of a card's memory that the tensors of a trial may take.

    The contexts of its trials, and of a process that has provided models, are taken off first.

    Args:
        share: Of the card, below 1.
        total: Bytes of the card.

    Raises:
        SearchError: If contexts alone fill the card.
    """
    trials = trials_a_card(share)
    contexts = (trials + 1) * CONTEXT
    if contexts >= total:
        raise SearchError(
            f"gpus={share:g} puts {trials} trials on a card of {total / 1e9:.3g} GB, and CUDA's "
            f"contexts alone take {contexts / 1e9:.3g} GB; give a trial a larger share"
        )
    return share * (total - contexts) / total


# -- the worker processes of `Local` -----------------------------------------------------------
def serve(pipe: Connection) -> None:
    """Runs trials until the driver closes the pipe or dies.

    The process does not import the user's script again: what the script defines comes by value.
    It says that it is ready. The driver sends its environment with one `WorkerConfig`, then
    `TrialSpec`s; the worker answers each with `StepResult`s, and after every report waits for
    whether the trial goes on. What a trial prints goes into its folder, and processes that it has
    started end with it, but for those that have left the session.

    Args:
        pipe: To the driver.
    """
    os.setsid()  # a terminal's Ctrl-C reaches the driver alone
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # of `start_worker`
    threading.Thread(target=_die_with, args=(pipe.fileno(),), daemon=True).start()
    faulthandler.enable()
    send(pipe, READY)
    environment, config = _receive(pipe)
    os.environ.clear()
    os.environ.update(environment)
    runner = TrialRunner(config)
    while True:
        runner.take(_receive(pipe))
        goes_on = True
        while goes_on:
            result = runner.step()
            sys.stdout.flush()
            send(pipe, result)
            goes_on = result.report is not None and _receive(pipe)
        runner.close()
        _end_children()


def _print_to(path: Path) -> None:
    """Sends what this process and those that it starts print into a file."""
    output = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
    for standard in (1, 2):
        os.dup2(output, standard)
    os.close(output)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # what stands in it is lost in a crash


def _end_children() -> None:
    """Ends the other processes of this session."""
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(0, signal.SIGTERM)
    signal.signal(signal.SIGTERM, before)


def _receive(pipe: Connection) -> Any:
    """The driver's next message; a driver that is gone ends the worker."""
    try:
        return cloudpickle.loads(pipe.recv_bytes())
    except (EOFError, OSError):
        _end_session()


def send(pipe: Connection, message: StepResult | str) -> None:
    """One message to the driver; a driver that is gone ends the worker."""
    try:
        pipe.send_bytes(cloudpickle.dumps(message))
    except OSError:
        _end_session()


def _die_with(pipe: int) -> None:
    """Ends the session when the driver is gone, so that nobody writes to a resumed run.

    The driver's end of the pipe says so. The parent does not: it is the process that forks
    workers, which lives as long as they do.

    Args:
        pipe: File descriptor of this end.
    """
    wait_for_hang_up(pipe)
    _end_session()


def _end_session() -> NoReturn:
    """Ends this process, and those that it has started."""
    os.killpg(0, signal.SIGKILL)
    os._exit(0)
