"""Trains the decoders of the tables: some that look up what they were told, some that read novels.

    python experiments/18_selectors/train.py OUT recall 0 1 2 [--smoke]
    python experiments/18_selectors/train.py OUT novels 0 1 2 --text OUT/text/training

A checkpoint is a folder of transformers' own form, `OUT/recall-0`. Recall: three layers of four
heads; of each ten four are Llamas, three Qwen3s, and three Llamas whose pairs lie farther back.
Novels: the same two architectures and sizes. What does not learn to answer is written all the
same, and said.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from masksearch.contracts import generator, mixed_seed
from masksearch_decoders import CausalEvaluator
from masksearch_decoders.tasks.recall import Recall

KINDS = [*["llama"] * 4, *["qwen3"] * 3, *["far"] * 3]  # by the last digit of a number
TASKS = {"near": Recall(), "far": Recall(pairs=6, middle=40)}
SMOKE = Recall(pairs=2, keys=4, values=4, fillers=4, middle=8)
RATE, STEPS, BATCH = 3e-3, 1500, 64  # the peak; the most steps at it; rows
WARMUP, FALL, LOOK = 100, 200, 50  # steps: the rate rises, falls; between two looks at answers
ANSWERED, LOOKED = 0.95, 64  # share of right answers from which on the rate falls; rows of a look
SPREAD = 0.05  # standard deviation of initial weights
ORDER, HEAD = 91, 92  # streams of random numbers
NOVELS: dict[str, Any] = {
    "length": 256,
    "vocabulary": 1024,
    "steps": 2000,
    "batch": 16,
    "lr": RATE,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("process", choices=["recall", "novels"])
    parser.add_argument("numbers", type=int, nargs="+")
    parser.add_argument("--text", type=Path, help="training novels, as tables.py splits them")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that it runs")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for number in given.numbers:
        place = given.out / f"{given.process}-{number}"
        if (place / "learnt.json").is_file():
            continue
        begun = time.process_time()
        learn = learn_recall if given.process == "recall" else learn_novels
        told = learn(number, place, given)
        told["seconds"] = round(time.process_time() - begun, 1)
        (place / "learnt.json").write_text(json.dumps(told) + "\n")
        print(place.name, told, flush=True)


def task_of(number: int, smoke: bool = False) -> Recall:
    """The planted process of a checkpoint."""
    return SMOKE if smoke else TASKS["far" if KINDS[number % 10] == "far" else "near"]


def learn_recall(number: int, place: Path, given: argparse.Namespace) -> dict[str, float]:
    """Trains until it answers: how long a decoder guesses before it looks up differs from seed to
    seed, so the rate stays high until it answers, and only then falls."""
    task = task_of(number, given.smoke)
    architecture = KINDS[number % 10].replace("far", "llama")
    size = "2x32x2" if given.smoke else "3x64x4"
    how = {"architecture": architecture, "size": size, "initializer_range": SPREAD}
    model = CausalEvaluator(task, adapt="none", **how).model(number)
    drawn = torch.randn(model.model.lm_head.weight.shape, generator=generator(number, HEAD))
    model.model.lm_head.weight = nn.Parameter(drawn * SPREAD)  # tied ones delay looking up
    model.model.config.tie_word_embeddings = False
    batches = task.batches(mixed_seed(number, ORDER), BATCH)
    looked = task.rows(LOOKED, torch.Generator().manual_seed(number))
    optimiser = torch.optim.AdamW(model.parameters(), RATE, (0.9, 0.98), weight_decay=0.01)
    step, right = 0, 0.0
    end = most = 400 if given.smoke else STEPS
    while step < end:
        for group in optimiser.param_groups:
            rising, falling = (step + 1) / WARMUP, (end - step) / FALL
            group["lr"] = RATE * min(1.0, rising, falling if end != most else 1.0)
        optimiser.zero_grad()
        model(**next(batches)).loss.backward()
        clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        step += 1
        if step % LOOK == 0 and end == most:
            with torch.no_grad():
                said = model(looked.tokens).logits[:, :-1].argmax(-1)
            right = float((said == looked.tokens[:, 1:])[looked.answers[:, 1:]].float().mean())
            if right >= ANSWERED:
                end = step + FALL
    model.model.save_pretrained(place)
    return {"steps": step, "answered": right}


def learn_novels(number: int, place: Path, given: argparse.Namespace) -> dict[str, float]:
    """Trains a decoder on the novels, as a search trains its dense model."""
    architecture = KINDS[number % 10].replace("far", "llama")
    how = {"architecture": architecture, "size": "3x64x4", **NOVELS}
    how |= {"steps": 20} if given.smoke else {}
    judge = CausalEvaluator(given.text, adapt="none", device="cpu", **how)
    judge.dense(number).model.save_pretrained(place)
    judge.task().tokenizer.save(str(place / "tokenizer.json"))
    return {"steps": how["steps"]}


if __name__ == "__main__":
    main()
