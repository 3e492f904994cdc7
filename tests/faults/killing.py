"""Runs a search in a process of its own and kills it again and again."""

import os
import random
import subprocess
import sys
import time
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


def killed_until_done(
    words: tuple[str, ...], *, kills: int, seed: int, window: tuple[float, float] = (0, 0)
) -> int:
    """Kills the search at `kills` random moments, or until it is through, then lets it end.

    The moments are counted from the start of the search and, every second one, from its first
    trial, which a busy machine may begin late.

    Args:
        words: Arguments of job.py.
        kills: How often.
        seed: Of the moments.
        window: Seconds after the start of a search between which it is killed.

    Returns:
        How often it was killed.
    """
    moments = random.Random(seed)
    log = Path(words[0]).parent / "log"
    done = 0
    while done < kills:
        written = size(log)
        process = started(*words)
        in_trial = done % 2 == 1
        deadline = time.monotonic() + 300
        while in_trial and size(log) == written and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        try:
            process.wait(timeout=moments.uniform(*((0, 1) if in_trial else window)))
            break  # it was through before it could be killed
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout=300)
            done += 1
    assert started(*words).wait(timeout=900) == 0
    return done


def outcome(study: ms.Study, *, by_draw: bool = False) -> list[tuple[object, ...]]:
    """What must be equal between an undisturbed run and one that was killed.

    With several slots equal masks may be answered in another order, so that which of them is
    the "reused" one differs; their number, parameters and values do not.
    """
    return [
        (
            record.number,
            "done" if by_draw and record.status == "reused" else record.status,
            record.fingerprint,
            sorted(record.params.items()),
            sorted(record.values.items()),
            [(report.step, dict(report.values)) for report in record.curve],
            record.origin,
            record.seed,
        )
        for record in study.records()
    ]
