"""Pre-trains one small BERT for each mask and seed, and keeps its weights along the way.

    python experiments/07_proxy/run.py pretrain --data FOLDER [--runs FOLDER] [--part 0/2]

What is finished is not run again; `--part 0/2` takes every second run, for two processes.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

import masksearch as ms
from masksearch import masks

STEPS = 3_200  # about 10 minutes on one core
KEPT = (100, 200, 400, 800, 1_600, 3_200)  # steps whose weights are kept
SEEDS = (0, 1)
BY_HAND = masks.per_head(  # one signed offset a head, with a global token, without the diagonal
    [masks.shifts([step]) | masks.global_tokens(1) for step in (-1, 1, -2, 2)]
)
MASKS = {
    "dense": masks.full(),
    "star": ms.masks.FAMILIES["star"],
    "heads": BY_HAND,
    "window": masks.window(3),
    "longformer": ms.masks.FAMILIES["longformer"],
    "log_sparse": ms.masks.FAMILIES["log_sparse"],
    "strided": ms.masks.FAMILIES["strided"],
    "bigbird": ms.masks.FAMILIES["bigbird"],
    "fixed": ms.masks.FAMILIES["fixed"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="holds wikitext-2/")
    parser.add_argument("--runs", type=Path, default=Path("runs/07_proxy"))
    parser.add_argument("--part", default="0/1", help="which share of the runs")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that it runs")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    part, parts = map(int, arguments.part.split("/"))
    evaluator = ms.MlmEvaluator(
        arguments.data / "wikitext-2",
        steps=STEPS >> 9 if arguments.smoke else STEPS,
        reports=10,
        split="all",
    )
    wanted = [(seed, name) for seed in SEEDS for name in MASKS]
    for seed, name in wanted[part::parts]:
        if not (arguments.runs / f"{name}-{seed}.json").exists():
            pretrained(evaluator, name, seed, arguments.runs)


def pretrained(evaluator: ms.MlmEvaluator, name: str, seed: int, folder: Path) -> None:
    """Trains, keeps the weights of some steps, and at the end the curve."""
    folder.mkdir(parents=True, exist_ok=True)
    started, curve = time.process_time(), {}
    model = evaluator.build_model(seed)
    for report in evaluator.pretrain(model, MASKS[name], seed=seed):
        curve[report.step] = report.values["loss"]
        print(f"{name} {seed}: step {report.step}, loss {report.values['loss']:.4f}", flush=True)
        if report.step in (*KEPT, evaluator.steps):
            weights = {key: value.contiguous() for key, value in model.state_dict().items()}
            save_file(weights, folder / f"{name}-{seed}-{report.step}.safetensors")
    facts = {
        "mask": name,
        "density": MASKS[name].density(evaluator.length),
        "seed": seed,
        "protocol": evaluator.protocol,
        "cpu_seconds": round(time.process_time() - started, 1),
        "curve": curve,
    }
    partial = folder / f"{name}-{seed}.partial"
    partial.write_text(json.dumps(facts, indent=1) + "\n")
    partial.replace(folder / f"{name}-{seed}.json")


if __name__ == "__main__":
    main()
