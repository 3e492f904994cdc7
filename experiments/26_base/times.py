"""Seconds of what has been judged on the first model of each task, in turns in one process.

    python experiments/26_base/times.py --data FOLDER --weights all-mpnet-base-v2

The dense model of transformers, rows as they come and sorted by length, `drop_tokens` alone, and
every way of less work that was judged: 32 judging rows at once, one thread, float32 and bfloat16,
on a machine that does nothing else. A line of results/times.jsonl for each.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import sys
import time
from pathlib import Path

import base
import torch
import transformers

sys.path.append(str(base.HERE.with_name("25_live_tokens")))
import lines
from times import NAMES, SORTED, Batch, caller, seconds
from ways import Way, limit_of

ROWS, SIZE, REPEATS = 192, 32, 3


def batches(model: base.Base, way: Way, by_length: bool = False) -> list[Batch]:
    """Batches of the judging rows, as they come or sorted, cut as a way says."""
    (rows,) = model.cut_evaluator("judge", way).tokens(model.task).dev.values()
    chosen = [*range(min(ROWS, len(rows)))]
    if by_length:
        chosen.sort(key=rows.lengths.__getitem__)
    found = [rows.batch(chosen[at : at + SIZE]) for at in range(0, len(chosen), SIZE)]
    widths = [int(batch["attention_mask"].sum(1).max()) for batch in found]
    return [
        {name: part[:, :width] for name, part in batch.items() if name in NAMES}
        for batch, width in zip(found, widths, strict=True)
    ]


def measure(model: base.Base, dtype: torch.dtype) -> list[base.live.Line]:
    """A line for each way: how many times as fast as transformers' dense model, by passes."""
    judged = {"drop_tokens alone": Way()}
    for fewer in base.PLAN["limits"]["fewer"]:
        limit = limit_of(fewer, model.shape)
        found = model.masks(fewer, limit) | model.plain(fewer, limit)
        judged |= {
            name: way
            for name, way in found.items()
            if model.lines.of(stage="score", rows="judge", name=name)
        }
    dense = copy.deepcopy(model.head.whole).to(dtype)
    calls = {
        "dense": (caller(dense), batches(model, Way())),
        SORTED: (caller(dense), batches(model, Way(), by_length=True)),
    }
    for name, way in judged.items():
        calls[name] = caller(way.on(model.head).whole.to(dtype)), batches(model, way)
    with torch.inference_mode():
        spent = seconds(calls, REPEATS)
    made = []
    for name, each in spent.items():
        ratios = sorted(d / s for d, s in zip(spent["dense"], each, strict=True))
        times = [round(r, 4) for r in (ratios[0], statistics.median(ratios), ratios[-1])]
        about = {"name": name, "seconds": round(statistics.median(each), 5), "times": times}
        made.append({"dtype": str(dtype).removeprefix("torch."), "batch": SIZE} | about)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="holds glue/")
    parser.add_argument("--weights", required=True, help="the checkpoint, a folder")
    parser.add_argument("--tasks", nargs="+", default=base.PLAN["tasks"])
    parser.add_argument("--runs", type=Path, default=Path("runs/26_base"))
    parser.add_argument("--results", type=Path, default=base.HERE / "results")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that it runs")
    given = parser.parse_args()
    given.runs = given.runs.resolve()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    kept = lines.Lines(given.results / "times.jsonl")
    for task in given.tasks:
        model = base.Base(given, task, 0)
        if not model.lines.of(stage="ended", what="tokens"):
            continue
        for dtype in (torch.float32, torch.bfloat16):
            load = round(os.getloadavg()[0], 2)
            hour = time.strftime("%Y-%m-%dT%H", time.gmtime())
            for line in measure(model, dtype):
                kept.add({"stage": "time", "hour": hour, "load": load, "task": task} | line)


if __name__ == "__main__":
    main()
