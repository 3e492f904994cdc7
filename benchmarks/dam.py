"""Does DAM find planted edges, at what density, in what time; and what does a step cost?

    python benchmarks/dam.py                  # everything
    python benchmarks/dam.py A B --seeds 5    # some parts
    python benchmarks/dam.py --smoke          # every part in seconds; its figures mean nothing

    A  n = 32, one offset and a global token, free gates
    B  n = 64, two offsets and a global token, free gates
    C  Toeplitz gates on processes without a global token: are the planted offsets on top?
    G  the same search with the loss multiplied by 1,000 and by 0.001
    H  how a gate acts and learns, and the published algorithm (two levels of the table were run at
       77cae22 and are no more)
    I  time of a training step against the same model with dense SDPA
    J  memory and time of a step under gates of tiles of 64 x 16 against a dense one, at 512 and
       1,024 tokens; each training in a process of its own

Every run is kept in results/dam_runs.csv as it ends, and is not repeated; the summary goes to
results/dam.json. One thread; CPU seconds stand beside wall seconds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from planted_runs import Cells, Row, Setting, shown, summary
from rounds import forget_peak, peak_bytes

import masksearch as ms
from masksearch.contracts import generator
from masksearch.gates.dam import dam_reports
from masksearch.gates.gates import Gates
from masksearch.models.encoders import MaskedLanguageModel, encoder
from masksearch.tasks.planted.process import PlantedProcess
from masksearch.training.loop import TrainConfig, train

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from experiments.rivals.hard_concrete import HardConcreteGates  # noqa: E402

PRODUCT = f"{HERE.parent / 'experiments' / 'rivals' / 'product.py'}:product"
ONE = PlantedProcess(length=32, vocabulary=32, offsets=(11,), keys=4)
TWO = PlantedProcess(length=64, vocabulary=32, offsets=(11, 23), keys=4)
SMALL = PlantedProcess(length=16, vocabulary=8, offsets=(5,), keys=2)
SHORT = {"steps": 1500, "dense_warmup": 0.4}  # of the parts that compare
LONGER = {"steps": 2500, "dense_warmup": 0.4}
SEEDS, SCALE_SEEDS, FORM_SEEDS = 5, 2, 3  # of A to C, G, H
GOALS = {  # figure: (at least, at most)
    "A": {"auroc": (0.995, None), "precision": (0.97, None), "cpu_seconds": (None, 60)},
    "B": {"auroc": (0.98, None), "precision": (0.95, None), "cpu_seconds": (None, 240)},
    "C": {"value": (1.0, None)},
}
SLOWER = {"log": 1.15, "flip": 1.5}  # at most, as a multiple of the dense step's time
TILES = {"time": 2.0, "memory": 1.5}  # at most, likewise
LENGTHS, TILE_ROUNDS, TILE_STEPS = (512, 1024), 3, 4  # of J
STEP = {"size": "mini", "length": 128, "vocabulary": 4096, "batch": 8, "rounds": 24}


def settings(smoke: bool) -> dict[str, dict[str, Setting]]:
    """Part -> cell -> what is run."""
    one, two = (SMALL, SMALL) if smoke else (ONE, TWO)
    quick = {"steps": 12, "density": 0.1} if smoke else dict(SHORT)
    usual = quick if smoke else {}
    toeplitz = {}
    for offsets in ((5,),) if smoke else ((11,), (5, 11)):
        process = PlantedProcess(
            length=one.length, vocabulary=one.vocabulary, offsets=offsets, keys=1
        )
        for signed in (False, True):
            name = f"offsets {offsets}, {'signed' if signed else 'symmetric'}"
            toeplitz[name] = Setting(
                process,
                {**quick, "density": bands(process)},
                {"structure": "toeplitz", "signed": signed},
            )
    scales = {
        f"loss x {factor:g}": Setting(one, quick, loss_factor=factor) for factor in (1e3, 1e-3)
    }
    soft = {"hard": False}
    forms = {  # beside part A, which is the default: flip, hard
        "log, soft": Setting(one, quick, {"form": "log", **soft}),
        "log, hard-concrete": Setting(one, quick, {"form": "log", **soft}, kind=HardConcreteGates),
        "product, hard": Setting(one, quick, {"form": PRODUCT}),
        "additive, hard": Setting(one, quick, {"form": "additive"}),
        "flip, no warm-up": Setting(one, {**quick, "dense_warmup": 0.0}),
        "flip, growing from .03": Setting(
            one, {**quick, "dense_warmup": 0.0}, {"initial": math.log(0.03 / 0.97)}
        ),
        "published": Setting(one, {"steps": 1500, "micro_batches": 1}, preset="sparsebert"),
    }
    if smoke:
        forms = {name: forms[name] for name in ("log, soft", "flip, growing from .03")}
    return {
        "A": {
            "n = 32": Setting(one, usual),
            "n = 32, 1,500 steps, 600 of warm-up": Setting(one, quick),
            "n = 32, 2,500 steps, 1,000 of warm-up": Setting(one, quick if smoke else LONGER),
        },
        "B": {
            "n = 64": Setting(two, usual),
            "n = 64, 1,500 steps, 600 of warm-up": Setting(two, quick),
        },
        "C": toeplitz,
        "G": scales,
        "H": forms,
    }


def bands(process: PlantedProcess) -> float:
    """Density of whole bands at the planted offsets, in both directions; at least 1 / n."""
    edges = sum(2 * (process.length - offset) for offset in process.offsets)
    return max(edges, process.length) / process.length**2


def searched(setting: Setting, seed: int) -> Row:
    """One run of DAM; with Toeplitz gates also whether the planted offsets are on top."""
    result, row = setting.run(seed)
    if setting.gates.get("structure") == "toeplitz":
        row |= offsets_on_top(result.probabilities, setting)
    return row


def offsets_on_top(probabilities: torch.Tensor, setting: Setting) -> Row:
    """`value`: 1 if every planted offset is likelier than every other one, else 0; `margin`: the
    least probability of a planted offset minus the largest of the others."""
    best = probabilities.amax((0, 1))
    length = len(best)
    planted = {sign * offset for offset in setting.process.offsets for sign in (-1, 1)}
    of = {o: best.diagonal(o).mean().item() for o in range(1 - length, length) if o}
    least = min(of[offset] for offset in planted)
    margin = least - max(value for offset, value in of.items() if offset not in planted)
    return {"value": float(margin > 0), "margin": margin}


def training(kind: str, size: str, length: int, rounds: int) -> Iterator[object]:
    """Training steps on one batch: `"dense"`, or under free gates of the form `"log"` or `"flip"`,
    or of `"tiles"`."""
    random = generator(0)
    ids = torch.randint(STEP["vocabulary"], (STEP["batch"], length), generator=random)
    hidden = torch.rand(ids.shape, generator=random) < 0.15
    batch = {"input_ids": ids, "labels": ids.masked_fill(~hidden, -100)}
    body = encoder(size, STEP["vocabulary"], length, seed=0)
    model = MaskedLanguageModel(body, seed=0)
    if kind == "dense":
        return iter(train(model, itertools.repeat(batch), TrainConfig(steps=rounds + 2)))
    tiles = kind == "tiles"
    how = {"structure": "block", "block": (64, 16)} if tiles else {"form": kind}
    gates = Gates(
        **how,
        length=length,
        heads=body.config.num_attention_heads,
        layers=body.config.num_hidden_layers,
        hard=kind != "log",
    )
    # few steps: each is reported
    config = ms.DamConfig(steps=rounds + 2, dense_warmup=0.0, density=0.2 if tiles else 0.05)
    return iter(dam_reports(model, [batch], gates, config))


def step_times(smoke: bool) -> dict[str, list[float]]:
    """CPU seconds of a training step of each kind, interleaved: dense, log, flip, dense, .."""
    rounds = 3 if smoke else STEP["rounds"]
    size = "nano" if smoke else STEP["size"]
    kinds = {
        kind: training(kind, size, STEP["length"], rounds) for kind in ("dense", "log", "flip")
    }
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for number in range(rounds + 1):
        for kind, steps in kinds.items():
            start = time.process_time()
            next(steps)
            if number:  # the first step of each builds its state
                times[kind].append(time.process_time() - start)
    for steps in kinds.values():
        steps.close()  # type: ignore[attr-defined]
    return times


def steps(cells: Cells, smoke: bool) -> None:
    """Part I: the ratio of every round, so that a change of the machine's load hits both."""
    wanted = range(1, (3 if smoke else STEP["rounds"]) + 1)
    if len(cells.of("I").get("log", ())) >= len(wanted):
        return
    times = step_times(smoke)
    for kind in SLOWER:
        for number, dense, own in zip(wanted, times["dense"], times[kind], strict=True):
            figures = {"value": own / dense, "cpu_seconds": own, "dense": dense}
            cells.run("I", kind, number, lambda _, figures=figures: figures)


def measure(kind: str, size: str, length: int) -> Row:
    """What training takes in this process: the most bytes beyond those that it began with, and
    CPU seconds of a step."""
    torch.set_num_threads(1)
    steps = training(kind, size, length, TILE_STEPS)
    forget_peak()
    before, seconds = peak_bytes(), []
    for _ in range(TILE_STEPS):
        start = time.process_time()
        next(steps)
        seconds.append(time.process_time() - start)
    steps.close()  # type: ignore[attr-defined]
    used = (peak_bytes() - before) / 2**20
    return {"memory": used, "time": statistics.median(seconds[1:])}  # the first builds its state


def tile_steps(cells: Cells, smoke: bool) -> None:
    """Part J: in every round a dense training and one under tiles, each in its own process."""
    size = "nano" if smoke else STEP["size"]
    for length in (128,) if smoke else LENGTHS:
        for number in range(1 if smoke else TILE_ROUNDS):
            names = {what: f"{length} tokens, {what}" for what in TILES}
            if len(cells.of("J").get(names["memory"], ())) > number:
                continue
            own = {}
            for kind in ("dense", "tiles"):
                words = [sys.executable, __file__, "--measure", kind, size, str(length)]
                done = subprocess.run(words, check=True, capture_output=True, text=True)
                own[kind] = json.loads(done.stdout)
            for what, name in names.items():
                dense, tiles = (own[kind][what] for kind in ("dense", "tiles"))
                figures = {"value": tiles / dense, "dense": dense}
                cells.run("J", name, number, lambda _, figures=figures: figures)


def judged(part: str, found: dict[str, list[Row]]) -> dict[str, object]:
    """Summary of each cell, with whether the goals are met by the mean and by every run."""
    out: dict[str, object] = {}
    for cell, rows in found.items():
        entry = summary(rows)
        for name, (least, most) in GOALS.get(part, {}).items():
            mean = entry[name]["mean"]
            worst = entry[name]["least"] if least is not None else entry[name]["most"]
            entry[f"goal {name}"] = {
                "goal": f">= {least}" if least is not None else f"<= {most}",
                "met by the mean": mean >= least if least is not None else mean <= most,
                "met by every run": worst >= least if least is not None else worst <= most,
            }
        if part == "J":
            ratios, goal = [row["value"] for row in rows], TILES[cell.rpartition(" ")[2]]
            median = statistics.median(ratios)
            entry = {"ratio": median, "least": min(ratios), "most": max(ratios)}
            entry |= {"rounds": len(ratios), "goal": f"<= {goal}", "met": median <= goal}
            entry["dense"] = statistics.median(row["dense"] for row in rows)  # seconds or MiB
        if part == "I":
            ratios = sorted(row["value"] for row in rows)
            quarters = statistics.quantiles(ratios, n=4)
            entry = {
                "ratio": statistics.median(ratios),
                "quartiles": [quarters[0], quarters[2]],
                "rounds": len(ratios),
                "seconds": statistics.median(row["cpu_seconds"] for row in rows),
                "dense seconds": statistics.median(row["dense"] for row in rows),
                "goal": f"<= {SLOWER[cell]}",
                "met": statistics.median(ratios) <= SLOWER[cell],
            }
        out[cell] = entry
    return out


def table(part: str, found: dict[str, list[Row]]) -> str:
    """The part's figures for a README."""
    columns = {
        "I": ("value", "cpu_seconds", "dense"),
        "J": ("value", "dense"),
        "C": ("value", "margin", "density", "target", "cpu_seconds"),
    }.get(part, ("auroc", "precision", "density", "target", "cpu_seconds", "wall_seconds"))
    lines = [f"| {part} | runs | " + " | ".join(columns) + " |", "|---" * (len(columns) + 2) + "|"]
    for cell, rows in found.items():
        figures = [
            shown(rows, name, 1 if "seconds" in name and part != "I" else 4) for name in columns
        ]
        lines.append(f"| {cell} | {len(rows)} | " + " | ".join(figures) + " |")
    return "\n".join(lines)


def main() -> None:
    """Runs the parts that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = ("A", "B", "C", "I", "J", "G", "H")
    parser.add_argument("parts", nargs="*", metavar="PART", help=" ".join(known))
    parser.add_argument(
        "--seeds", type=int, help=f"of A, B and C {SEEDS}, G {SCALE_SEEDS}, H {FORM_SEEDS}"
    )
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--measure", nargs=3, metavar="WORD", help="one training of part J")
    parser.add_argument("--smoke", action="store_true", help="12 steps; give another --out")
    given = parser.parse_args()
    if given.measure:
        kind, size, length = given.measure
        return print(json.dumps(measure(kind, size, int(length))))
    chosen = given.parts or list(known)
    if unknown := set(chosen) - set(known):
        parser.error(f"unknown part {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    if given.smoke and given.out == HERE / "results":
        parser.error("--smoke needs another --out: its figures must not mix with real ones")
    torch.set_num_threads(1)
    cells = Cells(given.out / "dam_runs.csv")
    report = given.out / "dam.json"
    found = json.loads(report.read_text()) if report.is_file() else {}
    for part in chosen:
        if part == "I":
            steps(cells, given.smoke)
        elif part == "J":
            tile_steps(cells, given.smoke)
        else:
            count = given.seeds or {"G": SCALE_SEEDS, "H": FORM_SEEDS}.get(part, SEEDS)
            for cell, setting in settings(given.smoke)[part].items():
                for seed in range(1 if given.smoke else count):
                    cells.run(part, cell, seed, partial(searched, setting))
        found[part] = {
            "cells": judged(part, cells.of(part)),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, one thread",
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            "load": os.getloadavg()[0],
        }
        report.write_text(json.dumps(found, indent=1) + "\n")
        print(table(part, cells.of(part)), flush=True)


if __name__ == "__main__":
    main()
