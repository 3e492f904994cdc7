"""Part `shares` of `card.py`: proxies an hour by how many share a card, with MPS and without."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import which
from typing import Any

import torch
from card_cells import Card

import masksearch as ms
from masksearch import masks
from masksearch.contracts import Record
from masksearch.errors import SearchError

CONTROL = "nvidia-cuda-mps-control"
PROBE = "import torch; print(torch.ones(8, device='cuda').sum().item())"
LONGEST_TRIAL = 60.0  # seconds after which a trial is ended: one without MPS's server may hang


def space(trial: Any) -> masks.Mask:
    """Masks that differ, and cost the same."""
    return masks.window(4) | masks.random_keys(4, seed=trial.suggest_int("seed", 0, 10**9))


class Stopwatch:
    """When each trial began and ended, in seconds of `time.perf_counter`."""

    def __init__(self) -> None:
        self.begins: list[float] = []
        self.ends: list[float] = []

    def __call__(self, record: Record) -> None:
        now = time.perf_counter()
        self.ends.append(now)
        self.begins.append(now - record.seconds)


@contextmanager
def mps(folder: Path) -> Iterator[str]:
    """MPS's daemon, with folders of its own; what is in its way, or nothing.

    A process that computes on the card under it is tried first.
    """
    if which(CONTROL) is None:
        yield f"no daemon: there is no {CONTROL}"
        return
    places = {f"CUDA_MPS_{name}_DIRECTORY": str(folder / name) for name in ("PIPE", "LOG")}
    for place in places.values():
        Path(place).mkdir()
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    before = dict(os.environ)
    os.environ.update(places)
    try:
        started = subprocess.run(
            [CONTROL, "-d"], check=False, timeout=30, stdin=subprocess.DEVNULL, **quiet
        )
        if started.returncode:
            yield f"no daemon: {CONTROL} -d ends with exit code {started.returncode}"
            return
        try:
            probe = subprocess.run(
                [sys.executable, "-c", PROBE],
                check=False,
                timeout=60,
                capture_output=True,
                text=True,
            )
            wrong = probe.stderr[-500:] if probe.returncode else ""
        except subprocess.TimeoutExpired:
            wrong = "a process that computes on the card does not end within 60 s"
        yield f"no daemon: {wrong}" if wrong else ""
    except subprocess.TimeoutExpired:
        yield f"no daemon: {CONTROL} -d does not return"
    finally:
        try:
            subprocess.run([CONTROL], input=b"quit -t 5\n", check=False, timeout=30, **quiet)
        finally:
            os.environ.clear()
            os.environ.update(before)


def written_text(folder: Path, words: int) -> Path:
    """A text of invented words, some of them common and most of them rare."""
    random = torch.Generator().manual_seed(0)
    letters = torch.randint(26, (4000, 6), generator=random) + ord("a")
    known = ["".join(map(chr, row)) for row in letters.tolist()]
    often = 1 / torch.arange(1, len(known) + 1)
    drawn = torch.multinomial(often, words, replacement=True, generator=random).tolist()
    lines = (
        " ".join(known[word] for word in drawn[at : at + 12]) + " ." for at in range(0, words, 12)
    )
    path = folder / "text.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def shares(card: Card) -> None:
    """Eight proxies by one, two and four at a time."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        evaluator = proxies(card, folder)
        counts = (1, 2) if card.smoke else (1, 2, 4)
        for slots in counts:
            timed_search(card, evaluator, slots, folder, "")
        if card.cuda:
            with mps(folder) as wrong:
                card.note(mps=wrong or "a daemon of its own, tried by a process before")
                print(f"MPS: {card.result['mps']}", flush=True)
                for slots in () if wrong else reversed(counts):
                    timed_search(card, evaluator, slots, folder, "MPS")


def by_ray(card: Card) -> None:
    """The same proxies, as many at a time, by this machine's processes and by Ray Tune."""
    slots = 2 if card.smoke else 4
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        evaluator = proxies(card, Path(name))
        for by in ("", "Ray"):
            timed_search(card, evaluator, slots, Path(name), by)


def proxies(card: Card, folder: Path) -> ms.MlmEvaluator:
    """The evaluator of all trials, whose text is tokenized before anything is timed."""
    if card.cuda:
        torch.cuda.empty_cache()
    size, length, steps = ("1x32x2", 16, 4) if card.smoke else ("4x256x4", 128, 300)
    evaluator = ms.MlmEvaluator(
        card.text or written_text(folder, 20_000 if card.smoke else 150_000),
        size=size,
        length=length,
        steps=steps,
        batch=32,
        vocabulary=400 if card.smoke else 4096,
        device=card.device.type,
        cache=folder / "cache",
    )
    evaluator.task()
    setting = {"size": size, "length": length, "steps": steps, "batch": 32}
    card.note(**setting, trials=trials(card), text=str(card.text or "invented words"))
    return evaluator


def trials(card: Card) -> int:
    """How many proxies a search trains."""
    return 3 if card.smoke else 8


def timed_search(
    card: Card, evaluator: ms.MlmEvaluator, slots: int, folder: Path, by: str
) -> None:
    """One search, `by` "MPS", "Ray" or neither: its trials' seconds, how many an hour make."""
    if card.over():
        return
    gpus = 1 / slots if card.cuda else None
    row: dict[str, Any] = {"slots": slots, "gpus": gpus, "mps": by == "MPS", "ray": by == "Ray"}
    executor: ms.Local | ms.RayTune = ms.Local(slots=slots, gpus=gpus, limit_seconds=LONGEST_TRIAL)
    if by == "Ray":
        needs = {"cpu": 1.0} | ({} if gpus is None else {"gpu": gpus})
        executor = ms.RayTune(slots=slots, resources=needs, limit_seconds=LONGEST_TRIAL)
    watch = Stopwatch()
    try:
        study = ms.search(
            space,
            evaluator,
            run=folder / f"{slots} {by}",
            strategy="random",
            trials=trials(card),
            executor=executor,
            listeners=[watch],
            progress=None,
        )
    except SearchError as error:  # all trials failed, or no worker could start
        card.fail(row, error)
        return
    records = study.records()
    row |= {
        "seconds": max(watch.ends) - min(watch.begins),
        "trial_seconds": [record.seconds for record in records],
        "status": [record.status for record in records],
        "errors": [record.error.strip()[-500:] for record in records if record.error],
    }
    row["trials_an_hour"] = 3600 * len(records) / row["seconds"]
    ends = sorted(watch.ends)[slots - 1 :]  # the first of each slot begins with CUDA's start
    row["trials_an_hour_later"] = 3600 * (len(ends) - 1) / (ends[-1] - ends[0])
    each = " ".join(f"{seconds:.1f}" for seconds in row["trial_seconds"])
    line = f"{slots} at a time{by and ', '}{by}: {row['seconds']:.1f} s, "
    line += f"{row['trials_an_hour']:.0f} trials an hour, {row['trials_an_hour_later']:.0f} after "
    line += f"the first {slots}; each {each} s"
    card.failed |= bool(row["errors"])
    card.add(row, line + (f"; FAILED {row['errors'][0][-200:]}" if row["errors"] else ""))
