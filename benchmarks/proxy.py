"""Speed of the proxy's training, as ratios measured side by side in one run.

    python benchmarks/proxy.py                        # pretrain and finetune: 10 minutes
    python benchmarks/proxy.py pretrain --data FOLDER # FOLDER/wikitext-2 instead of random tokens
    python benchmarks/proxy.py scores --data FOLDER   # FOLDER/glue/SST-2: the scores, three seeds
    python benchmarks/proxy.py sizes --device cuda

pretrain: tokens/s against transformers' Trainer with `BertForMaskedLM` of the same size.
finetune: examples/s on short texts against the Trainer, padded to 128 and padded by batch.
scores: accuracy after the same number of steps, each of the three ways.
sizes: tokens/s of tiny ... base and their share of what a large matrix product reaches.
Repetitions take turns (A B A B); figures are medians over them of the mean step. CPU figures are
seconds of the process on one thread, so that a neighbour's load counts little. The Trainer needs
the package `accelerate` (`pip install -e ".[bench]"`).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from proxy_finetuning import finetuning, scores
from proxy_sides import (
    clock,
    flops,
    on,
    own_pretraining,
    random_corpus,
    timed,
    trainers_pretraining,
)
from rounds import machine

from masksearch import masks
from masksearch.attention.attach import attach
from masksearch.errors import install_command
from masksearch.models.encoders import MaskedLanguageModel, encoder
from masksearch.models.sizes import find_size
from masksearch.tasks.mlm import MlmTask
from masksearch.tasks.text.corpus import Corpus
from masksearch.training.loop import TrainConfig, train

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Setting:
    """What is measured, and how often."""

    device: torch.device
    data: Path | None
    smoke: bool

    @property
    def length(self) -> int:
        return 16 if self.smoke else 128

    @property
    def vocabulary(self) -> int:
        return 64 if self.smoke else 4096

    @property
    def batch(self) -> int:
        return 4 if self.smoke else 32

    @property
    def size(self) -> str:
        return "nano" if self.smoke else "tiny"

    @property
    def rounds(self) -> int:
        return 1 if self.smoke else 4

    @property
    def steps(self) -> int:
        return 4 if self.smoke else 12 if self.device.type == "cpu" else 60

    def corpus(self) -> Corpus:
        """WikiText-2, or random tokens."""
        if self.data is None:
            return random_corpus(self.length, self.vocabulary, 256 if self.smoke else 2048)
        text = self.data / "wikitext-2"
        return Corpus.load(text, vocabulary=self.vocabulary, length=self.length)


def side_by_side(
    sides: dict[str, Callable[[], list[float]]], rounds: int
) -> dict[str, dict[str, float]]:
    """Seconds a step of every side, the mean of a round's steps (they differ in length) and the
    median of the rounds; the sides take turns."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            found[name].append(statistics.fmean(side()))
    return {
        name: {
            "seconds": statistics.median(means),
            "fastest_round": min(means),
            "slowest_round": max(means),
        }
        for name, means in found.items()
    }


def pretrain(setting: Setting) -> dict[str, Any]:
    """Pre-training against the Trainer, with a dense mask and with star."""
    corpus = setting.corpus()
    tokens = setting.batch * setting.length
    found: dict[str, Any] = {"size": setting.size, "batch": setting.batch, "goal": 1.3}
    for name, mask in (("dense", masks.full()), ("star", masks.star())):
        rest = (corpus, mask, setting.size, setting.batch, setting.steps, setting.device)
        times = side_by_side(
            {
                "own": lambda rest=rest: own_pretraining(*rest),
                "trainer": lambda rest=rest: trainers_pretraining(*rest),
            },
            setting.rounds,
        )
        found[name] = {
            "tokens_per_second": {side: tokens / each["seconds"] for side, each in times.items()},
            "ratio": times["trainer"]["seconds"] / times["own"]["seconds"],
            "times": times,
        }
        rates = found[name]["tokens_per_second"]
        print(
            f"pre-training, {name}: {rates['own']:,.0f} tokens/s, Trainer "
            f"{rates['trainer']:,.0f}, {found[name]['ratio']:.2f} x (goal 1.3)",
            flush=True,
        )
    return found


def finetune(setting: Setting) -> dict[str, Any]:
    """Fine-tuning on short texts against the Trainer."""
    steps = 4 if setting.smoke else 40
    sides = finetuning(setting.data, setting.size, setting.batch, steps, setting.device)
    times = side_by_side(sides, setting.rounds)
    own = times["own"]["seconds"]
    found: dict[str, Any] = {
        "examples_per_second": {name: setting.batch / t["seconds"] for name, t in times.items()},
        "ratio_to_padded": times["padded"]["seconds"] / own,
        "ratio_to_dynamic": times["dynamic"]["seconds"] / own,
        "times": times,
        "goal": 2.0,
    }
    rates = found["examples_per_second"]
    print(
        f"fine-tuning: {rates['own']:,.0f} examples/s; Trainer padded to 128 "
        f"{rates['padded']:,.0f}, {found['ratio_to_padded']:.2f} x (goal 2); padded by batch "
        f"{rates['dynamic']:,.0f}, {found['ratio_to_dynamic']:.2f} x",
        flush=True,
    )
    return found


def accuracy(setting: Setting) -> dict[str, Any]:
    """The scores of the three ways of fine-tuning."""
    rows, seeds, epochs = (64, 1, 1) if setting.smoke else (2000, 3, 3)
    found = scores(setting.data, setting.size, setting.batch, rows, seeds, epochs, setting.device)
    for name, values in found.items():
        spread = statistics.stdev(values) if len(values) > 1 else float("nan")
        print(
            f"fine-tuning, {name}: accuracy {statistics.mean(values):.4f}, standard deviation "
            f"{spread:.4f} over {len(values)} seeds",
            flush=True,
        )
    return {"rows": rows, "epochs": epochs, "accuracy": found}


def sizes(setting: Setting) -> dict[str, Any]:
    """Tokens/s of every size, and their share of what a matrix product reaches here."""
    gpu = setting.device.type == "cuda"
    kind = torch.bfloat16 if gpu else torch.float32
    peak = matrix_product(setting.device, kind, 64 if setting.smoke else 8192 if gpu else 1024)
    found: dict[str, Any] = {"matrix_product_tflops": peak / 1e12, "precision": str(kind)}
    names = ("tiny", "mini", "small", "medium", "base") if gpu else ("tiny", "mini")
    for name in ("nano",) if setting.smoke else names:
        corpus = random_corpus(setting.length, 30_522 if gpu else setting.vocabulary, 512)
        batch = 4 if setting.smoke else 256 if gpu else 32
        for compiled in (False, True) if gpu else (False,):
            body = encoder(name, corpus.vocabulary, corpus.length, seed=0)
            model = MaskedLanguageModel(body, seed=0).to(setting.device)
            attach(model, masks.star())
            if compiled:
                body.compile(dynamic=False)

            def loss(model: Any, batch: Any) -> Any:
                with torch.autocast(setting.device.type, kind, enabled=gpu):
                    return model(**batch).loss

            batches = on(setting.device, MlmTask(corpus, batch).batches(0))
            config = TrainConfig(steps=4 if setting.smoke else 30 if gpu else 5)
            run = train(model, batches, config, loss)
            seconds = statistics.median(timed(run, config.steps, setting.device))
            rate = batch * setting.length / seconds
            share = rate * flops(name, setting.length, corpus.vocabulary) / peak
            label = name + (", compiled" if compiled else "")
            layers, width = find_size(name).layers, find_size(name).width
            found[label] = {"tokens_per_second": rate, "share_of_matrix_product": share}
            print(
                f"{label} ({layers} x {width}, batch {batch}): {rate:,.0f} tokens/s, "
                f"{share:.0%} of a matrix product's speed",
                flush=True,
            )
    return found


def matrix_product(device: torch.device, kind: torch.dtype, side: int) -> float:
    """Floating-point operations a second of a square matrix product."""
    left, right = (torch.randn(side, side, device=device, dtype=kind) for _ in range(2))
    times = []
    for _ in range(10):
        start = clock(device)
        for _ in range(4):
            left @ right
        times.append((clock(device) - start) / 4)
    return 2 * side**3 / max(statistics.median(times[2:]), 1e-9)


PARTS = {
    "pretrain": pretrain,
    "finetune": finetune,
    "scores": accuracy,
    "sizes": sizes,
}
DEFAULT = ("pretrain", "finetune")


def main() -> None:
    """Runs the parts that are named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--data", type=Path, help="folder with wikitext-2/ and glue/")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--smoke", action="store_true", help="tiny, to see that it runs")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of proxy.json")
    given = parser.parse_args()
    if unknown := set(given.parts) - set(PARTS):
        parser.error(f"unknown part {', '.join(sorted(unknown))}; known: {', '.join(PARTS)}")
    wanted = {"pretrain", "finetune", "scores"} & set(given.parts or DEFAULT)
    if wanted and find_spec("accelerate") is None:
        parser.error(
            f"transformers' Trainer, for {', '.join(sorted(wanted))}, needs the package "
            f"accelerate: {install_command('bench')}"
        )
    if given.device == "cpu":
        torch.set_num_threads(1)
    setting = Setting(torch.device(given.device), given.data, given.smoke)
    path = given.out / "proxy.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for name in given.parts or DEFAULT:
        start, cpu = time.perf_counter(), time.process_time()
        result = PARTS[name](setting)
        key = name if given.data is None else f"{name}, real text"
        key += "" if given.device == "cpu" else f", {given.device}"
        took = {"wall": time.perf_counter() - start, "cpu": time.process_time() - cpu}
        found[key] = result | machine(setting.device) | {"seconds": took}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"written to {path}", file=sys.stderr)


if __name__ == "__main__":
    main()
