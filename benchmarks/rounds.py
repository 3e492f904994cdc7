"""Sides of a comparison that take turns, so that a change of the machine's load hits them all."""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import platform
import resource
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from proxy_sides import clock

RESULTS = Path(__file__).parent / "results"
SHORTEST = 0.02  # seconds that a sample lasts at least, by calling its side several times
Side = Callable[[], object]
Setting = TypeVar("Setting")  # a dataclass: what a script measures


def interleaved(
    sides: dict[str, Side], rounds: int, seconds: float, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of one call of every side, in each round.

    Every side is called once beforehand. The order of the sides turns by one from round to round.

    Args:
        sides: Name -> what is timed.
        rounds: At most that many.
        seconds: No round starts later than that, but three are always made.
        device: Where the work is done: seconds of this process's CPU there, else wall time.
    """
    calls = {}
    for name, side in sides.items():
        side()  # allocation, plans, kernels' choice
        start = clock(device)
        side()
        calls[name] = max(1, round(SHORTEST / max(clock(device) - start, 1e-7)))
    found: dict[str, list[float]] = {name: [] for name in sides}
    order = list(sides)
    gc.collect()
    start = clock(device)
    for number in range(rounds):
        if number >= min(3, rounds) and clock(device) - start > seconds:
            break
        for name in order[number % len(order) :] + order[: number % len(order)]:
            before = clock(device)
            for _ in range(calls[name]):
                sides[name]()
            found[name].append((clock(device) - before) / calls[name])
    return found


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, and the 10 and 90 % points."""
    if len(values) < 2:
        return {"median": values[0], "low": values[0], "high": values[0]}
    tenths = statistics.quantiles(values, n=10, method="inclusive")
    return {"median": statistics.median(values), "low": tenths[0], "high": tenths[-1]}


def ratios(times: dict[str, list[float]], base: str, side: str) -> list[float]:
    """The base's seconds over a side's, round by round."""
    return [b / s for b, s in zip(times[base], times[side], strict=True)]


def faster(times: dict[str, list[float]], base: str, side: str) -> dict[str, float]:
    """How many times faster a side is than the base: the spread of the rounds' ratios."""
    return spread(ratios(times, base, side))


def peak_bytes() -> int:
    """Most memory that this process has held, in bytes, since it started or forgot it.

    On Linux from the process's own high-water mark: `ru_maxrss` starts at what the parent
    process held when it started this one.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if platform.system() == "Darwin" else 1024 * most


def forget_peak() -> bool:
    """Sets the high-water mark of `peak_bytes` to what is held now; False where that is refused.

    Linux alone can, and not in every container.
    """
    before = peak_bytes()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        return peak_bytes() < before
    return False


def processor() -> str:
    """The CPU's name, as Linux knows it, and the instructions that PyTorch uses."""
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text(encoding="utf-8").splitlines() if listed.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.machine()
    return f"{name} with {torch.backends.cpu.get_cpu_capability()}"


def machine(device: torch.device) -> dict[str, Any]:
    """What a figure depends on beside the code."""
    import transformers

    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{processor()}, {torch.get_num_threads()} thread of {os.cpu_count()} cores"
    )
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    return {
        "machine": name,
        "load": os.getloadavg()[0],
        "versions": versions | {"python": platform.python_version()},
    }


def write_rows(
    about: str,
    name: str,
    setting: Setting,
    small: Setting,
    measure: Callable[[Setting], Iterable[dict[str, Any]]],
) -> None:
    """A script's main function: measures on one thread of a CPU, and writes and prints the rows.

    Args:
        about: The script's docstring.
        name: Of the file of results.
        setting: What is measured.
        small: The same with --smoke.
        measure: The rows of a setting.
    """
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="tiny; its figures mean nothing")
    parser.add_argument("--out", type=Path, default=RESULTS, help=f"folder of {name}.json")
    given = parser.parse_args()
    if given.smoke and given.out == RESULTS:
        parser.error("--smoke needs another --out: its figures must not mix with real ones")
    chosen: Any = small if given.smoke else setting
    torch.set_num_threads(1)
    rows = [*measure(chosen)]
    found = machine(torch.device("cpu")) | {"setting": asdict(chosen), "rows": rows}
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for row in rows:
        print(row)
