"""Evaluators for the Ray tests, in a module that worker processes can import."""

import errno
import logging
import os
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from masksearch.contracts import Evaluator, Objective, Report, Shape
from masksearch.masks import Mask, window
from masksearch.strategies.opening import FixedQueue

STEPS = 4


def listed(count: int) -> FixedQueue:
    """The strategy that proposes window(0), window(1), ... by the names w0, w1, ..."""
    return FixedQueue({f"w{reach}": window(reach) for reach in range(count)}, [0])


def begin_ray(**resources: int) -> None:
    """Ray on this machine alone, with two CPUs and further resources, quietly."""
    import ray  # which workers do not need

    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.CRITICAL,
        _node_ip_address="127.0.0.1",
        **resources,
    )


@dataclass(frozen=True)
class Troubled(Evaluator):
    """Loss = 100 * number + step, in four reports; some trials go wrong at step 2.

    `how`: trial number -> "raise", "nan", "exit", "exit once", "kill once", "full", "hang",
    "spin", "SIGKILL", "SIGSEGV".
    A checkpoint of one line a step is written to the trial's folder, and read again.
    """

    how: dict[int, str] = field(default_factory=dict)
    seconds: float = 0.0  # of a step
    diary: str = ""  # folder for a line per step, whatever becomes of the trial's own

    shape = Shape(length=16, layers=2, heads=2)
    objectives = (Objective("loss", "min", 1e4),)
    protocol = "troubled"

    def __call__(self, mask: Mask, *, seed: int, workdir: Path) -> Iterator[Report]:
        home = workdir if workdir.parent.name == "trials" else workdir.parent  # of a later attempt
        number, state = int(home.name), workdir / "state"
        done = len(state.read_text().splitlines()) if state.is_file() else 0
        for step in range(done + 1, STEPS + 1):
            if self.diary:
                with (Path(self.diary) / str(number)).open("a") as file:
                    file.write(f"{step} {os.getpid()} {workdir}\n")
            time.sleep(self.seconds)
            if step == 2:
                self.go_wrong(self.how.get(number, ""), workdir, number)
            with state.open("a") as file:
                file.write(f"{step}\n")
            if self.how.get(number) == "gates":
                (workdir / "gates.safetensors").write_bytes(b"gates of %d" % number)
            nan = self.how.get(number) == "nan" and step == 2
            yield Report(step, {"loss": float("nan") if nan else 100.0 * number + step})

    def go_wrong(self, how: str, workdir: Path, number: int) -> None:
        if how == "raise":
            raise ValueError(f"trial {number} is broken")
        if how == "exit":
            os._exit(3)
        if how in ("SIGKILL", "SIGSEGV"):  # as the kernel does when memory runs out
            os.kill(os.getpid(), getattr(signal, how))
        if how in ("exit once", "kill once"):
            mark = Path(self.diary) / f"{number}.died"
            if not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        if how == "full":
            raise OSError(errno.ENOSPC, "No space left on device", str(workdir))
        if how == "hang":
            time.sleep(600)
        if how == "spin":  # holds the interpreter lock
            re.match(r"(a+)+$", "a" * 60 + "b")


@dataclass(frozen=True)
class Erratic(Evaluator):
    """By the mask's reach on 16 positions: a loss, NaN, infinity, or an error."""

    shape = Shape(length=16, layers=2, heads=2)
    objectives = (Objective("loss", "min", 100.0), Objective("sparsity", "max", 0.0))
    protocol = "erratic"

    def __call__(self, mask: Mask, *, seed: int, workdir: Path) -> Iterator[Report]:
        reach = int(mask.dense(16)[0, 0, 0].sum()) - 1
        yield Report(1, {"loss": 50.0})
        if reach % 7 == 3:
            raise ValueError(f"reach {reach} is broken")
        yield Report(2, {"loss": {1: float("nan"), 2: float("inf")}.get(reach % 7, float(reach))})


@dataclass(frozen=True)
class SeesCards(Evaluator):
    """Writes the cards that its process sees into a file of the diary, and waits for the others.

    `how`: trial number -> "raise", which ends its worker.
    """

    diary: str
    together: int = 1  # so many trials have written before one goes on
    how: dict[int, str] = field(default_factory=dict)

    shape = Shape(length=16, layers=2, heads=2)
    objectives = (Objective("loss", "min", 1e4),)
    protocol = "sees cards"

    def __call__(self, mask: Mask, *, seed: int, workdir: Path) -> Iterator[Report]:
        diary = Path(self.diary)
        (diary / workdir.name).write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "all"))
        until = time.monotonic() + 60
        while len(list(diary.iterdir())) < self.together:
            if time.monotonic() > until:
                raise TimeoutError("the other trials did not start")
            time.sleep(0.05)
        if int(workdir.name) in self.how:
            raise ValueError("broken")
        yield Report(1, {"loss": 1.0})


@dataclass(frozen=True)
class Unloadable(Evaluator):
    """Pickles, and fails where it is unpickled."""

    shape = Shape(length=16, layers=2, heads=2)
    objectives = (Objective("loss", "min", 1e4),)
    protocol = "unloadable"

    def __reduce__(self) -> tuple[object, ...]:
        return refuse, ()

    def __call__(self, mask: Mask, *, seed: int, workdir: Path) -> Iterator[Report]:
        yield Report(1, {"loss": 1.0})


def refuse() -> None:
    raise ImportError("no such data on this node")
