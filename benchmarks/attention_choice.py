"""The constants of `masksearch.attention.kernels.choose`, measured.

    python benchmarks/attention_choice.py                    # about 12 minutes of one core
    python benchmarks/attention_choice.py --fit FILE.json    # constants anew from measurements

Times dense SDPA, SDPA with a bool mask and block gather in turns, forward and forward with
backward, on masks from few blocks to many; fits microseconds per call, per position and per
computed pair to their logarithms; prints the constants, and how far the choice as it stands is
from the fastest backend in each cell. One thread, float32, 4 heads of 64 numbers.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from attention_kernels import HEADS, WIDTH, called, masks_at, random_blocks
from rounds import interleaved, spread
from scipy.optimize import least_squares

from masksearch import masks
from masksearch.attention.kernels.choose import BLOCK, IN_CACHE, PLANNED, choose, fine, planned
from masksearch.attention.kernels.gather import GatherPlan, gather_attention
from masksearch.masks import Mask
from masksearch.masks.lower import tile_counts

LENGTHS = (256, 512, 1024, 2048, 4096)
SIDES = ("dense", "sdpa", "gather")


def masks_for(length: int) -> dict[str, Mask]:
    """The benchmark's masks, and some around the point where block gather stops paying."""
    blocks = -(-length // BLOCK)
    found = masks_at(length, BLOCK) | {
        "window 16": masks.window(16),
        "window 256": masks.window(256),
        "causal": masks.causal(),
        "bigbird(64, 1, 3)": masks.bigbird(64, 1, 3),
        "strided 4": masks.strided(4),
    }
    for percent in (20, 35):
        layout = random_blocks(blocks, percent / 100, HEADS)
        found[f"random blocks, {percent} %"] = masks.block_layout(layout, BLOCK)
    return found


def cell(name: str, mask: Mask, length: int, trains: bool, seconds: float) -> dict[str, Any]:
    """Times of one mask at one length, in microseconds, and what block gather computes."""
    random = torch.Generator().manual_seed(length)
    states = [torch.randn(1, HEADS, length, WIDTH, generator=random) for _ in range(3)]
    upstream = torch.randn(states[0].shape, generator=random) if trains else None
    for part in states if trains else ():
        part.requires_grad_()
    table = mask.dense(length)
    plan = GatherPlan.of_mask(mask, length, BLOCK)
    attends = {
        "dense": F.scaled_dot_product_attention,
        "sdpa": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, table),
        "gather": lambda q, k, v: gather_attention(q, k, v, plan, scaling=WIDTH**-0.5),
    }
    sides = {
        name: lambda attend=attend: called(attend, states, upstream)
        for name, attend in attends.items()
    }
    times = interleaved(sides, 15, seconds, torch.device("cpu"))
    counts = tile_counts(mask, length, BLOCK)[0]
    work = planned(mask, counts, length) if length <= PLANNED else fine(mask, length)
    return {
        "mask": name,
        "length": length,
        "trains": trains,
        "cells": work.cells,
        "biased": work.biased,
        "bundles": work.bundles,
        "by_head": (mask.heads or 1) > 1,
    } | {side: 1e6 * spread(times[side])["median"] for side in SIDES}


def fitted(rows: list[dict[str, Any]], side: str) -> tuple[dict[str, float], np.ndarray]:
    """Constants of one backend, and the times that they give; relative errors count alike."""
    length = np.array([row["length"] for row in rows], dtype=float)
    taken = np.array([row[side] for row in rows])
    columns = {"call": np.ones(len(rows)), "position": HEADS * length}
    if side == "gather":
        for name, factor in (("cells", HEADS / 1000), ("biased", HEADS / 1000), ("bundles", 1)):
            columns[name] = factor * np.array([row[name] for row in rows], dtype=float)
    else:
        columns["cell"] = HEADS * length**2 / 1000
    if side == "sdpa":
        table = length**2 * np.array([HEADS if row["by_head"] else 1 for row in rows])
        columns["table, in cache"] = table * (table < IN_CACHE) / 1000
        columns["table, beyond"] = table * (table >= IN_CACHE) / 1000
    matrix = np.stack(list(columns.values()), 1)

    def off(logs: np.ndarray) -> np.ndarray:
        return np.asarray(np.log(matrix @ np.exp(logs) / taken))

    found = np.exp(least_squares(off, np.zeros(len(columns)), loss="soft_l1", f_scale=0.1).x)
    named = {name: round(float(value), 3) for name, value in zip(columns, found, strict=True)}
    return named, matrix @ found


def report(rows: list[dict[str, Any]]) -> None:
    """Prints constants, and what a choice by them costs over the fastest."""
    for trains in (False, True):
        some = [row for row in rows if row["trains"] == trains]
        times = {}
        for side in SIDES:
            named, times[side] = fitted(some, side)
            off = np.log(times[side] / np.array([row[side] for row in some]))
            print(f"\ntrains={trains} {side}: {named}, off by {np.abs(off).mean():.1%} on average")
        for at, row in enumerate(some):
            size = {"heads": HEADS, "width": WIDTH, "device": "cpu", "trains": trains}
            mask = masks_for(row["length"])[row["mask"]]
            taken = choose(mask, row["length"], **size).backend
            lost = row[taken] / min(row["sdpa"], row["gather"])
            times_of = "  ".join(f"{side} {row[side]:9.0f}" for side in SIDES)
            print(
                f"{row['length']:5d} {row['mask']:26s} {row['cells'] / row['length'] ** 2:.3f}  "
                f"{times_of}  expected {times['gather'][at]:9.0f}  {taken:6s} {lost:.2f}"
                + ("  <-- over 10 %" if lost > 1.1 else "")
            )


def main() -> None:
    """Measures, or fits what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fit", type=Path, help="fit this file, measure nothing")
    parser.add_argument("--out", type=Path, help="where the measurements are written")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a cell's rounds, about")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.fit:
        report(json.loads(given.fit.read_text(encoding="utf-8")))
        return
    rows = []
    for length in given.lengths:
        for name, mask in masks_for(length).items():
            for trains in (False, True):
                rows.append(cell(name, mask, length, trains, given.seconds))
                if given.out:
                    given.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    report(rows)


if __name__ == "__main__":
    main()
