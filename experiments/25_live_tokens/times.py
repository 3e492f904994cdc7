"""Seconds of what has been judged, in turns in one process, beside the work.

    python experiments/25_live_tokens/times.py --data FOLDER       # at an hour, on an idle machine

Of the first model of each task that has ended: the dense model of transformers, rows as they come
and sorted by length, `drop_tokens` alone, the mask and the plain way of each arm, and ONNX
Runtime's dynamic int8 of the dense model where `onnxruntime` and `onnxscript` are installed. A
line of results/times.jsonl for each task, hour, number of threads, rows of a batch and dtype;
lines without `padding` are of the code before it left padding out.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import live
import torch
import transformers
import ways
from tables import named
from torch import Tensor

Batch = dict[str, Tensor]
Call = Callable[[Batch], Tensor]
ROWS = {1: 96, 32: 320}  # rows of a batch -> rows that are timed, from the first on
REPEATS = 5
NAMES = ("input_ids", "attention_mask", "token_type_ids")
INT8, SORTED = "onnx runtime, int8", "dense, sorted"


class Timed(live.Model):
    """A model that has ended, and everything that was judged on it."""

    def judged(self, fewer: int) -> live.Named:
        """The ways that were judged at a limit, by their names."""
        limit = ways.limit_of(fewer, self.shape)
        found = self.masks(fewer, limit) | self.plain(fewer, limit) | self.together(fewer, limit)
        return {name: way for name, way in found.items() if named(self.lines.lines, "judge", name)}

    def batches(self, way: ways.Way, size: int, by_length: bool = False) -> list[Batch]:
        """Batches of the judging rows as they come or sorted, cut as a way says."""
        (rows,) = self.cut_evaluator("judge", way).tokens(self.task).dev.values()
        chosen = [*range(min(ROWS[size], len(rows)))]
        if by_length:
            chosen.sort(key=rows.lengths.__getitem__)
        found = [rows.batch([*chosen[at : at + size]]) for at in chosen[::size]]
        return [{name: batch[name] for name in NAMES} for batch in found]


def seconds(calls: dict[str, tuple[Call, list[Batch]]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each pass over all batches, batch by batch in turns; the first is not counted."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    count = len(next(iter(calls.values()))[1])
    for _ in range(repeats + 1):
        spent = dict.fromkeys(calls, 0.0)
        for at in range(count):
            for name, (call, batches) in calls.items():
                begun = time.perf_counter()
                call(batches[at])
                spent[name] += time.perf_counter() - begun
        for name, each in spent.items():
            found[name].append(each)
    return {name: each[1:] for name, each in found.items()}


def caller(model: Any) -> Call:
    """The logits of a model of transformers."""

    def call(batch: Batch) -> Tensor:
        logits: Tensor = model(**batch).logits
        return logits

    return call


def int8(model: Any, folder: Path, threads: int) -> Call:
    """The dense model in ONNX Runtime, its products in dynamic int8."""
    import onnxruntime as ort
    from onnxruntime.quantization import quantize_dynamic

    whole, small = folder / "dense.onnx", folder / "int8.onnx"
    if not small.is_file():
        example = tuple(torch.ones(2, 16, dtype=torch.int64) for _ in NAMES)
        axes = {name: {0: "rows", 1: "tokens"} for name in NAMES}
        plain = copy.deepcopy(model)
        plain.set_attn_implementation("eager")
        torch.onnx.export(
            plain, example, whole, input_names=[*NAMES], output_names=["logits"],
            dynamic_axes=axes, dynamo=False,
        )  # fmt: skip
        quantize_dynamic(whole, small)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(small, options, providers=["CPUExecutionProvider"])

    def call(batch: Batch) -> Tensor:
        (logits,) = session.run(None, {name: batch[name].numpy() for name in NAMES})
        return torch.from_numpy(logits)

    return call


def int8_score(model: Timed, call: Call) -> float:
    """The score of int8 on all judging rows."""
    (rows,) = model.evaluator("judge").tokens(model.task).dev.values()
    batches = [rows.batch(range(at, min(at + 32, len(rows)))) for at in range(0, len(rows), 32)]
    answers = torch.cat([call(batch).argmax(-1) for batch in batches])
    labels = torch.cat([batch["labels"] for batch in batches])
    return float((answers == labels).double().mean())


def measure(model: Timed, size: int, threads: int, dtype: torch.dtype) -> list[dict[str, Any]]:
    """A line for each way: how many times as fast as transformers' dense model, by passes."""
    torch.set_num_threads(threads)
    plain = ways.Way()
    judged = {"drop_tokens alone": plain}
    for fewer in live.PLAN["limits"]["fewer"]:
        if model.lines.of(stage="ended", fewer=fewer):
            judged |= model.judged(fewer)
    dense = copy.deepcopy(model.head.whole).to(dtype)
    calls = {"dense": (caller(dense), model.batches(plain, size))}
    if size > 1:
        calls[SORTED] = caller(dense), model.batches(plain, size, by_length=True)
    for name, way in judged.items():
        made = way.on(model.head).whole.to(dtype)
        calls[name] = caller(made), model.batches(way, size)
    about: dict[str, Any] = {}
    if dtype == torch.float32 and find_spec("onnxruntime"):
        call = int8(dense, model.runs, threads)
        calls[INT8] = call, model.batches(plain, size)
        if size > 1:
            calls[f"{INT8}, sorted"] = call, model.batches(plain, size, by_length=True)
        about = {"int8_score": round(int8_score(model, call), 5)}
    with torch.inference_mode():
        spent = seconds(calls, REPEATS)
    lines = []
    for name, each in spent.items():
        ratios = sorted(d / s for d, s in zip(spent["dense"], each, strict=True))
        work = judged[name].work(model.judged_shape) if name in judged else 1.0
        lines.append(
            {"task": model.task, "seed": model.seed, "name": name, "threads": threads,
             "batch": size, "padding": "left out",
             "dtype": str(dtype).removeprefix("torch."), "work": round(work, 5),
             "seconds": round(statistics.median(each), 5),
             "times": [round(r, 4) for r in (ratios[0], statistics.median(ratios), ratios[-1])]}
            | (about if name == INT8 else {})
        )  # fmt: skip
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="holds glue/")
    parser.add_argument("--tasks", nargs="+", default=live.PLAN["primary"]["tasks"])
    parser.add_argument("--runs", type=Path, default=Path("runs/25_live_tokens"))
    parser.add_argument("--results", type=Path, default=live.HERE / "results")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rows", type=int, nargs="+", default=[*ROWS], help="of a batch")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that it runs")
    given = parser.parse_args()
    given.runs = given.runs.resolve()
    transformers.logging.set_verbosity_error()
    kept = live.lines.Lines(given.results / "times.jsonl")
    hour = time.strftime("%Y-%m-%dT%H", time.gmtime())
    for task in given.tasks:
        models = (Timed(given, task, seed) for seed in range(live.PLAN["models"]["tried"]))
        model = next((each for each in models if each.lines.of(stage="ended")), None)
        if model is None:
            continue
        for size, threads, dtype in product(given.rows, given.threads, given.dtypes):
            how = {"threads": threads, "batch": size, "hour": hour, "task": task, "dtype": dtype}
            if kept.of(**how, padding="left out"):
                continue
            load = round(os.getloadavg()[0], 2)
            for line in measure(model, size, threads, getattr(torch, dtype)):
                kept.add({"stage": "time", "hour": hour, "load": load} | line)


if __name__ == "__main__":
    main()
