"""An evaluator that only takes its time, and what became of a search with it.

A score is a hash of mask, seed and step, so that records of two searches can be compared to the
last bit. Every attempt writes its begin and its end into a log, with its process and its machine.
"""

import hashlib
import json
import os
import platform
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import masksearch as ms
from masksearch.contracts import Evaluator, Objective, Record, Report, Shape
from masksearch.masks import Mask
from masksearch.user_code import load_function

STEPS = 4
SPACE = f"{Path(__file__).parents[2] / 'search_spaces' / 'head_shifts.py'}:space"
PLAN = (
    "search", SPACE, "--evaluator", f"{__file__}:Sleepy", "--strategy", "random", "--seed", "5",
)  # fmt: skip


class Sleepy(Evaluator):
    """Takes SLEEPY_SECONDS (of the driver's environment; 3) over four reports."""

    shape = Shape(length=16, layers=1, heads=4)
    objectives = (Objective("loss", "min", 1.0), Objective("sparsity", "max", 0.0))
    protocol = "sleepy"

    def __init__(self) -> None:
        self.seconds = float(os.environ.get("SLEEPY_SECONDS", "3"))

    def __call__(self, mask: Mask, *, seed: int, workdir: Path) -> Iterator[Report]:
        place = next(folder for folder in workdir.parents if folder.name == "trials")
        number = workdir.relative_to(place).parts[0]
        self.log(place.parent, "begin", int(number))
        for step in range(1, STEPS + 1):
            time.sleep(self.seconds / STEPS)
            digest = hashlib.sha256(f"{mask} {seed} {step}".encode()).digest()
            if step == STEPS:
                self.log(place.parent, "end", int(number))
            yield Report(step, {"loss": int.from_bytes(digest[:6]) / 2**48})

    def log(self, run: Path, what: str, number: int) -> None:
        facts = {"what": what, "number": number, "time": time.time(), "pid": os.getpid()}
        facts["node"] = f"{platform.node()}:{os.environ.get('RAY_RAYLET_PID', '')}"
        with (run / "log").open("a") as file:
            file.write(json.dumps(facts) + "\n")


def read_log(run: Path) -> list[dict[str, object]]:
    """What the attempts wrote, oldest first."""
    log = run / "log"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []


def judged_twice(run: Path) -> list[int]:
    """Trials that ran to their end more than once."""
    ends = Counter(line["number"] for line in read_log(run) if line["what"] == "end")
    return sorted(int(str(number)) for number, times in ends.items() if times > 1)


def essence(records: list[Record]) -> list[tuple[object, ...]]:
    """What an undisturbed search of the same seed must have, too."""
    return [
        (
            record.number,
            record.status,
            record.mask.digest if record.mask else "",
            record.fingerprint,
            record.step,
            sorted(record.values.items()),
            record.params,
        )
        for record in records
    ]


def search_quickly(run: Path, trials: int, storage: str | None = None) -> list[tuple[object, ...]]:
    """The essence of the search of `PLAN` in this process, without sleeping."""
    quick = Sleepy()
    quick.seconds = 0.0
    settings = {"trials": trials, "strategy": "random", "seed": 5, "progress": None}
    study = ms.search(load_function(SPACE), quick, run=run, storage=storage, **settings)
    return essence(study.records())
