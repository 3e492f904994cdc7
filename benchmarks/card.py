"""The figures of a GPU, each written down as soon as it is measured.

    python benchmarks/card.py --device cuda                  # all parts, one after the other
    python benchmarks/card.py kernels --device cuda --seconds 90
    python benchmarks/card.py shares --device cuda --text FOLDER
    python benchmarks/card.py --smoke                        # tiny, on a CPU: that it runs

kernels: SDPA with a table and FlexAttention under twelve masks, forward and backward: errors
against float64, seconds and graphs of the first call, milliseconds, and what "auto" would take.
latency: FlexAttention under many random block layouts: milliseconds over block density.
dam: milliseconds of a step of DAM, and of the same model trained with dense attention.
shares: proxies an hour with one, two and four trials on the card, with MPS and without.
ray: the same four at a time, by processes of this machine and by Ray Tune.
models: whole encoders under masks, forward and training in bfloat16: milliseconds, memory.

`ms` is the card's own time: CUDA events in a queue that never runs empty. `wall_ms` is that of
call after call, and holds what the host takes to launch them. `--seconds` ends a part: no cell
begins later, and `left_out` says how many did not. Nothing is lost where the process is killed.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from attention_models import KINDS, Work, masks_for, taken
from card_cells import Card
from card_kernels import kernels, latency
from card_shares import by_ray, shares
from proxy_sides import on, random_corpus

from masksearch.attention.attach import attach, detach
from masksearch.gates.config import DamConfig
from masksearch.gates.dam import dam_reports
from masksearch.gates.gates import Gates
from masksearch.models.encoders import MaskedLanguageModel, encoder
from masksearch.tasks.mlm import MlmTask
from masksearch.training.loop import TrainConfig, train

RESULTS = Path(__file__).parent / "results"
SECONDS = {"kernels": 60.0, "latency": 60.0}  # of a part; the others have no limit


def dam(card: Card) -> None:
    """Steps of DAM with acting gates, and of dense training, of one model on equal batches.

    DAM is a run of 2,500 steps without a warm-up that is closed early, so that its reports, which
    wait for the card, come as seldom as they usually do: every 25 steps.
    """
    size, length, steps, parts = ("nano", 16, 200, 4) if card.smoke else ("mini", 512, 2500, 8)
    corpus = random_corpus(length, 64 if card.smoke else 4096, 256)
    batches = list(on(card.device, islice(MlmTask(corpus, 16).batches(0), 8)))
    card.note(size=size, length=length, batch=16, precision="float32")

    def fresh() -> MaskedLanguageModel:
        body = encoder(size, corpus.vocabulary, length, seed=0)
        return MaskedLanguageModel(body, seed=0).to(card.device)

    model = fresh()
    gates = Gates("free", length=length, heads=model.encoder.config.num_attention_heads)
    config = DamConfig(steps=steps, dense_warmup=0.0, density=0.1)
    reports = dam_reports(model, cycle(batches), gates, config)
    timed_steps(card, "dam", lambda: next(reports).step, parts)
    reports.close()
    each = max(1, steps // 100)
    run = train(fresh(), cycle(batches), TrainConfig(steps=(parts + 2) * each))
    timed_steps(card, "dense", lambda: [step.number for step in islice(run, each)][-1], parts)
    run.close()
    times = {row["run"]: row["ms_a_step"] for row in card.result["rows"]}
    card.note(ratio=times["dam"] / times["dense"])
    print(f"DAM over dense: {card.result['ratio']:.2f}", flush=True)


def timed_steps(card: Card, name: str, advance: Callable[[], int], parts: int) -> None:
    """Milliseconds a step of a training, the median of its parts but the first, and its waits.

    Args:
        name: Of the training.
        advance: Goes on to the end of a part; returns the number of the last step.
        parts: How many are timed.
    """
    done, times = advance(), []
    for _ in range(parts):
        card.wait()
        start = time.perf_counter()
        number = advance()
        card.wait()
        times.append(1000 * (time.perf_counter() - start) / (number - done))
        done = number
    row: dict[str, Any] = {"run": name, "steps": done, "ms_of_parts": times}
    row["ms_a_step"] = statistics.median(times)
    if card.cuda:
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                number = advance()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        waits = sum("synchronizing CUDA operation" in str(one.message) for one in caught)
        row["waits_a_step"] = waits / (number - done)
    card.add(row, f"{name}: {row['ms_a_step']:.2f} ms a step, waits {row.get('waits_a_step')}")


def models(card: Card) -> None:
    """Forward passes and steps of AdamW of one encoder a length, at as many tokens a batch."""
    size, lengths, tokens = ("nano", (32,), 64) if card.smoke else ("base", (1024, 4096), 2**15)
    for length in reversed(lengths):
        vocabulary = 64 if card.smoke else 30_522
        block = card.block if not card.smoke else 8
        work = Work(length, tokens // length, size, vocabulary, block, card.device.type)
        model = MaskedLanguageModel(encoder(size, vocabulary, length, seed=0), seed=0)
        model.to(card.device).train()
        for kind, make in KINDS.items():
            call = make(work, model)
            for side, mask in masks_for(work).items():
                if card.over():
                    continue
                row: dict[str, Any] = {"length": length, "batch": work.batch, "kind": kind}
                row |= {"size": size, "mask": side}
                if mask is not None:
                    row["taken"] = taken(work, mask, kind != "forward")
                    attach(model, mask)
                try:
                    call()
                    if card.cuda:
                        torch.cuda.reset_peak_memory_stats()
                    row |= card.timed(call)
                    row["peak_bytes"] = torch.cuda.max_memory_allocated() if card.cuda else None
                    card.add(
                        row, f"n={length} {kind}, {side}: {row['ms']:.1f} ms {row.get('taken')}"
                    )
                except RuntimeError as error:  # as out of memory: of this mask alone
                    card.fail(row, error)
                finally:
                    detach(model, missing_ok=True)


PARTS = {
    "kernels": kernels,
    "latency": latency,
    "dam": dam,
    "shares": shares,
    "ray": by_ray,
    "models": models,
}


def main() -> int:
    """Runs the parts that are named; 1 where a cell failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--smoke", action="store_true", help="tiny, to see that it runs")
    parser.add_argument("--seconds", type=float, help="of each part, after which no cell begins")
    parser.add_argument("--text", type=Path, help="what the proxies read")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of card.json")
    given = parser.parse_args()
    if unknown := set(given.parts) - set(PARTS):
        parser.error(f"unknown part {', '.join(sorted(unknown))}; known: {', '.join(PARTS)}")
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: there is no CUDA device here")
    if given.device == "cpu" and not given.smoke:
        parser.error("these are figures of a GPU: take --device cuda, or --smoke on a CPU")
    torch.backends.cuda.matmul.allow_tf32 = False
    card = Card(torch.device(given.device), given.smoke, given.out / "card.json", given.text)
    limits = {} if given.smoke else SECONDS
    for part in given.parts or PARTS:
        card.begin(part, limits.get(part, math.inf) if given.seconds is None else given.seconds)
        try:
            PARTS[part](card)
        except Exception as error:  # of one part: the others are run all the same
            card.fail({"part": part}, error)
        print(f"{part}: {card.result['seconds']:.0f} s, {card.result['left_out']} cells left out")
    print(f"written to {card.path}", file=sys.stderr)
    return int(card.failed)


if __name__ == "__main__":
    sys.exit(main())
