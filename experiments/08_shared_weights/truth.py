"""The masks of the measurement, and what they reach when each is trained."""

from __future__ import annotations

import csv
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import optuna
import pandas as pd

import masksearch as ms
from masksearch.masks.measure import fingerprint
from masksearch.study.store import quiet
from masksearch.user_code import load_function

FIELDS = ("band", "mask", "density", "seed", "loss", "score", "seconds")


@dataclass(frozen=True)
class Trained:
    """One mask after one training."""

    band: int
    mask: str  # masksearch.masks.parse reads it
    density: float
    seed: int
    loss: float  # held out, in nats
    score: float  # of the downstream tasks
    seconds: float


def band_of(density: float, edges: Sequence[float]) -> int | None:
    """The band that a density lies in; None outside all of them."""
    for band, (low, high) in enumerate(pairwise(edges)):
        if low <= density < high:
            return band
    return None


def drawn(space: Path, shape: ms.Shape, edges: Sequence[float], count: int) -> list[ms.Mask]:
    """Distinct random masks of a space, `count` in each density band."""
    made, seen, found = load_function(f"{space}:space"), set[str](), list[ms.Mask]()
    left = dict.fromkeys(range(len(edges) - 1), count)
    with quiet():
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        while any(left.values()):
            mask = made(study.ask())
            band = band_of(mask.density(shape.length), edges)
            print_ = fingerprint(mask, shape)
            if band is not None and left[band] and print_ not in seen:
                seen.add(print_)
                left[band] -= 1
                found.append(mask)
    return found


def record(
    path: Path,
    evaluator: ms.PlantedEvaluator,
    found: Sequence[ms.Mask],
    edges: Sequence[float],
    seeds: Sequence[int],
) -> None:
    """Trains what the file does not hold yet, and adds a row after every training."""
    done = {(row.mask, row.seed) for row in read(path)}
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file():
        path.write_text(",".join(FIELDS) + "\n", encoding="utf-8")
    for seed in seeds:
        for mask in found:
            if (str(mask), seed) in done:
                continue
            started = time.monotonic()
            with tempfile.TemporaryDirectory() as folder:
                *_, last = evaluator(mask, seed=seed, workdir=Path(folder))
            density = mask.density(evaluator.shape.length)
            figures = [last.values["loss"], last.values["score"]]
            seconds = time.monotonic() - started
            with path.open("a", newline="", encoding="utf-8") as file:
                csv.writer(file).writerow(
                    [band_of(density, edges), mask, f"{density:.6f}", seed]
                    + [f"{x:.5f}" for x in figures]
                    + [f"{seconds:.2f}"]
                )


def read(path: Path) -> list[Trained]:
    """The rows of a file; none where there is no file."""
    if not path.is_file():
        return []
    table = pd.read_csv(path, float_precision="round_trip")
    return [Trained(**row) for row in table.to_dict("records")]
