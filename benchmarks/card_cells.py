"""What the parts of `card.py` share: the device, the JSON file of results, timed calls."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rounds import machine

from masksearch.files import write_text_in_one_move

REPEATS = 12  # timed calls of a cell
CYCLES = 2e9  # of a card's clock in a second, about
LONGEST_QUEUE = 0.3  # seconds that the card waits at most until calls are queued
TF32 = (
    "torch.backends.cuda.matmul.allow_tf32 = False; FlexAttention's kernels are Triton's, and "
    "its errors in float32 tell whether they took tf32"
)


class Card:
    """Where it is measured, and the JSON of its results.

    Args:
        device: The device.
        smoke: Whether sizes are tiny.
        path: The JSON file; parts that are not run stay as they are.
        text: A text for the proxies; None = invented words.
    """

    def __init__(self, device: torch.device, smoke: bool, path: Path, text: Path | None) -> None:
        self.device, self.smoke, self.path, self.text = device, smoke, path, text
        self.found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        self.result: dict[str, Any] = {}  # of the part
        self.failed = False

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def block(self) -> int:
        """Positions of a block: on CUDA those that FlexAttention's kernels take at a time."""
        return 128 if self.cuda else 32

    def begin(self, part: str, seconds: float) -> None:
        """A part begins, with an empty result."""
        self.result = {"rows": [], "left_out": 0, "smoke": self.smoke, "tf32": TF32}
        self.result |= machine(self.device)
        self.found[part] = self.result
        self.start, self.limit = time.perf_counter(), seconds
        self.note()

    def over(self, cells: int = 1) -> bool:
        """Whether the part's time is up, so that these cells are left out."""
        late = time.perf_counter() - self.start > self.limit
        if late:
            self.note(left_out=self.result["left_out"] + cells)
        return late

    def add(self, row: dict[str, Any], line: str) -> None:
        """A measured cell: into the file, and a line of it."""
        self.result["rows"].append(row)
        self.note()
        print(line, flush=True)

    def fail(self, row: dict[str, Any], error: Exception) -> None:
        """A cell that could not be measured, and why; the exit code will be 1."""
        self.failed = True
        reason = f"{type(error).__name__}: {error}"
        self.add(row | {"failed": reason[:2000]}, f"FAILED {row}: {reason.splitlines()[0][:500]}")

    def note(self, **facts: Any) -> None:
        """Facts about the part, beside its cells; writes the file."""
        self.result |= facts | {"seconds": time.perf_counter() - self.start}
        write_text_in_one_move(self.path, json.dumps(self.found, indent=1) + "\n")

    def wait(self) -> None:
        """Until the card has done all that it was given."""
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def timed(self, call: Callable[[], object]) -> dict[str, float]:
        """Median `ms` of a call on the card, and its mean `wall_ms`."""
        for _ in range(3):
            call()
        self.wait()
        start = time.perf_counter()
        call()
        issued = time.perf_counter() - start  # what the host takes
        self.wait()
        taken = []
        start = before = time.perf_counter()
        for _ in range(REPEATS):
            call()
            taken.append(1000 * (time.perf_counter() - before))
            before = time.perf_counter()
        self.wait()
        wall = 1000 * (time.perf_counter() - start) / REPEATS
        if self.cuda:
            events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in taken]
            queueing = min(1.5 * REPEATS * issued, LONGEST_QUEUE)
            torch.cuda._sleep(int(queueing * CYCLES))  # meanwhile the host queues all calls
            for first, last in events:
                first.record()
                call()
                last.record()
            self.wait()
            taken = [first.elapsed_time(last) for first, last in events]
        return {"ms": statistics.median(taken), "wall_ms": wall}
