"""Runs a search in a process of its own and kills it again and again."""

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import masksearch as ms

JOB = Path(__file__).parent / "job.py"


def started(*words: str) -> subprocess.Popen[str]:
    """The search as a process; it has said that it starts."""
    process = subprocess.Popen(
        [sys.executable, str(JOB), *words],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout.readline() == "starts\n"
    return process


def size(log: Path) -> int:
    """Bytes of the file in which every call of the evaluator leaves a line."""
    return log.stat().st_size if log.is_file() else 0


@dataclass
class Kills:
    """What happened until the search was through."""

    kills: int
    starts: int


def killed_until_done(
    words: tuple[str, ...],
    *,
    kills: int,
    seed: int,
    window: tuple[float, float] = (0, 0),
    number: int = signal.SIGKILL,
) -> Kills:
    """Kills the search at `kills` random moments, then lets it end.

    The moments are counted from the start of the search and, every second one, from its first
    trial, which a busy machine may begin late.

    Args:
        words: Arguments of job.py.
        kills: How often.
        seed: Of the moments.
        window: Seconds after the start of a search between which it is killed.
        number: The signal.
    """
    moments = random.Random(seed)
    log = Path(words[0]).parent / "log"
    done, starts = 0, 0
    while done < kills:
        written = size(log)
        process = started(*words)
        starts += 1
        in_trial = starts % 2 == 0
        deadline = time.monotonic() + 300
        while in_trial and size(log) == written and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        try:
            process.wait(timeout=moments.uniform(*((0, 1) if in_trial else window)))
            break  # it was through before it could be killed
        except subprocess.TimeoutExpired:
            process.send_signal(number)
            process.wait(timeout=300)
            done += 1
    deadline = time.monotonic() + 900
    process = started(*words)
    assert process.wait(timeout=deadline - time.monotonic()) == 0
    return Kills(done, starts + 1)


def outcome(study: ms.Study, *, by_draw: bool = False) -> list[tuple[object, ...]]:
    """What must be equal between an undisturbed run and one that was killed.

    With several slots equal masks may be answered in another order, so that which of them is
    the "reused" one differs; their number, parameters and values do not.
    """
    rows = []
    for record in study.records():
        status = record.status
        if by_draw and status == "reused":
            status = "done"
        rows.append(
            (
                record.number,
                status,
                record.fingerprint,
                sorted(record.params.items()),
                sorted(record.values.items()),
                [(report.step, dict(report.values)) for report in record.curve],
                record.origin,
                record.seed,
            )
        )
    return rows
