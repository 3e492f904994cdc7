"""Speed of sparse attention, as ratios over dense SDPA without a mask, measured in turns.

    python benchmarks/attention.py                # both parts: about an hour of one core
    python benchmarks/attention.py kernels --long # with n = 8192
    python benchmarks/attention.py --lengths 1024 # measures those again, keeps the others
    python benchmarks/attention.py --table        # tables and plot anew, from the JSON
    python benchmarks/attention.py --device cuda  # bfloat16, n = 1k to 32k
    python benchmarks/attention.py --smoke --out FOLDER

kernels: one attention call (4 heads of 64 numbers) under ten masks: SDPA with a bool mask, block
gather, FlexAttention, and what auto takes; forward, and forward with backward.
models: a BERT-like encoder (4 layers of 256), forward and a whole training step, against dense
SDPA and against Hugging Face's Longformer and BigBird; the peak memory of each.

Float32 on one thread of a CPU: seconds of the process, so that a neighbour's load counts little.
Every ratio is of two samples of one round; a figure is the median of the rounds, with the 10 and
90 % points. Writes results/attention.json row by row, the tables of README.md and
../docs/images/attention.png.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from attention_kernels import Setting, kernels
from attention_models import SHORT, Work, models
from attention_tables import BEGIN, PARTS, draw, key, rewritten, table
from rounds import machine

HERE = Path(__file__).parent
RESULTS = HERE / "results"
README = HERE / "README.md"
FIGURE = HERE.parent / "docs" / "images" / "attention.png"
BACKENDS = ("sdpa", "gather", "flex")
TOKENS = 4096  # of a batch of whole models; at n = 128 half of them


def kernel_setting(given: argparse.Namespace, device: torch.device) -> Setting:
    """What the kernels are measured at."""
    if given.smoke:
        return Setting(device, (64, 96), given.backends, rounds=2, seconds=1.0, block=16)
    lengths = (512, 1024, 2048, 4096) + ((8192,) if given.long else ())
    if device.type == "cuda":
        lengths = (1024, 2048, 4096, 8192, 16384, 32768)
    lengths = tuple(given.lengths or lengths)
    return Setting(device, lengths, given.backends, rounds=21, seconds=given.seconds, block=64)


def works(given: argparse.Namespace) -> list[Work]:
    """What whole models are measured at."""
    if given.smoke:
        return [
            Work(length, 2, "nano", 64, block=4, device=given.device) for length in (SHORT, 64)
        ]
    lengths = [512, 1024, 2048, 4096]
    if given.device == "cuda":
        lengths += [8192, 16384, 32768]
    tokens = TOKENS if given.device == "cpu" else 16 * TOKENS
    return [
        Work(
            length,
            max(1, (tokens if length > SHORT else tokens // 2) // length),
            "mini" if given.device == "cpu" else "base",
            4096 if given.device == "cpu" else 30_522,
            block=64,
            device=given.device,
        )
        for length in given.lengths or [SHORT, *lengths]
    ]


def rows_of(
    part: str, given: argparse.Namespace, device: torch.device
) -> Iterator[dict[str, Any]]:
    """The rows of a part, as they are measured."""
    if part == "kernels":
        return kernels(kernel_setting(given, device))
    rounds, memory = (2, False) if given.smoke else (11, True)
    return models(works(given), rounds, 8 * given.seconds, memory)


def measured(part: str, given: argparse.Namespace, path: Path) -> None:
    """Runs a part; the file is written after every row."""
    device = torch.device(given.device)
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    start, cpu = time.perf_counter(), time.process_time()
    before = found.get(key(part, given.device), {}).get("rows", [])
    again = given.lengths or {row["length"] for row in before}
    rows = [row for row in before if row["length"] not in again]
    for row in rows_of(part, given, device):
        rows = sorted([*rows, row], key=lambda row: row["length"])
        seconds = {"wall": time.perf_counter() - start, "cpu": time.process_time() - cpu}
        found[key(part, given.device)] = machine(device) | {"seconds": seconds, "rows": rows}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def written(folder: Path) -> None:
    """Tables, printed and in README.md where the figures are the project's own, and the plot."""
    found = json.loads((folder / "attention.json").read_text(encoding="utf-8"))
    print(table(found))
    own = folder == RESULTS
    if own and BEGIN in (text := README.read_text(encoding="utf-8")):
        README.write_text(rewritten(text, found), encoding="utf-8")
    if any(part in found for part in PARTS):
        draw(found, FIGURE if own else folder / "attention.png")
    if any(key(part, "cuda") in found for part in PARTS):
        path = FIGURE.with_name("attention_cuda.png") if own else folder / "attention_cuda.png"
        draw(found, path, "cuda")


def main() -> None:
    """Runs the parts that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--lengths", nargs="+", type=int, help="those alone; others are kept")
    parser.add_argument("--long", action="store_true", help="kernels at n = 8192, too")
    parser.add_argument(
        "--backends",
        nargs="+",
        choices=BACKENDS,
        help="default: all; with --smoke all but flex, which compiles; sdpa always runs",
    )
    parser.add_argument("--seconds", type=float, default=8.0, help="of a kernel's rounds, about")
    parser.add_argument("--table", action="store_true", help="measure nothing, write the tables")
    parser.add_argument("--smoke", action="store_true", help="tiny; its figures mean nothing")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of attention.json")
    given = parser.parse_args()
    if unknown := set(given.parts) - set(PARTS):
        parser.error(f"unknown part {', '.join(sorted(unknown))}; known: {', '.join(PARTS)}")
    if given.smoke and given.out == RESULTS:
        parser.error("--smoke needs another --out: its figures must not mix with real ones")
    given.backends = given.backends or (BACKENDS[:2] if given.smoke else BACKENDS)
    if given.device == "cpu":
        torch.set_num_threads(1)
    for part in () if given.table else given.parts or PARTS:
        measured(part, given, given.out / "attention.json")
    written(given.out)


if __name__ == "__main__":
    main()
