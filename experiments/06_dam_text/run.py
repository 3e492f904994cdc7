"""Does the mask that DAM finds on real text beat star, at the same density, when retrained?

    python experiments/06_dam_text/run.py find judge table --data FOLDER [--seeds 0 1 2] [--smoke]

`find` trains gates once a seed (it goes on where it was stopped); `judge` trains fresh models
under what was found and under the hand-designed masks; `table` writes results/*.csv.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from pathlib import Path

import torch
from nearest import nearest_family

import masksearch as ms
from masksearch import masks
from masksearch.analysis.stats import paired_difference
from masksearch.gates.gates import Gates
from masksearch.gates.result import DamResult
from masksearch.report.collect import studies_in
from masksearch.report.dam import plot_dam, plot_offsets
from masksearch.report.style import save

HERE = Path(__file__).parent
DENSITY = 0.0387  # star's at 128 positions: 634 of 16,384 cells
STEPS = (800, 3_200)  # of retraining
GATES = {"structure": "toeplitz+global", "signed": True, "layers": 2}
CONFIG = {"steps": 2_400, "dense_warmup": 0.05, "anneal": 0.3, "density": DENSITY}
BY_HAND = masks.per_head(  # one signed offset a head, with a global token, without the diagonal
    [masks.shifts([step]) | masks.global_tokens(1) for step in (-1, 1, -2, 2)]
)
DRAWN = {"star": masks.star(), "by hand": BY_HAND}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stages", nargs="+", choices=("find", "judge", "table"))
    parser.add_argument("--data", type=Path, required=True, help="holds wikitext-2/")
    parser.add_argument("--runs", type=Path, default=Path("runs/06_dam_text"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--masks", nargs="+", default=["dam", *DRAWN])
    parser.add_argument("--steps", type=int, nargs="+", default=list(STEPS))
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that it runs")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.smoke:
        arguments.steps = [4]
    for stage in arguments.stages:
        {"find": find, "judge": judge, "table": table}[stage](arguments)


def gates_file(arguments: argparse.Namespace, seed: int) -> Path:
    """Where the gates of a seed lie."""
    return arguments.runs / f"gates_{seed}.safetensors"


def find(arguments: argparse.Namespace) -> None:
    """Trains the gates of each seed."""
    for seed in arguments.seeds:
        path = gates_file(arguments, seed)
        if path.is_file():
            continue
        evaluator = ms.MlmEvaluator(arguments.data / "wikitext-2", split="all")
        source = evaluator.differentiable(seed)
        config = {**CONFIG, "steps": 8} if arguments.smoke else CONFIG
        gates = Gates(length=128, heads=evaluator.shape.heads, seed=seed, **GATES)
        started, cpu = time.time(), time.process_time()
        result = ms.dam(
            source.model,
            source.batches,
            gates,
            ms.DamConfig(**config),
            held_out=source.held_out,
            on_report=lambda report, seed=seed: print(seed, report, flush=True),
            checkpoints=arguments.runs / f"dam_{seed}",
        )
        arguments.runs.mkdir(parents=True, exist_ok=True)
        result.save(path)
        spent = {"seconds": time.time() - started, "cpu_seconds": time.process_time() - cpu}
        path.with_suffix(".json").write_text(json.dumps(spent))


def judge(arguments: argparse.Namespace) -> None:
    """Trains a fresh model under each mask; DAM's of seed s is judged with seed s."""
    for steps in arguments.steps:
        evaluator = ms.MlmEvaluator(arguments.data / "wikitext-2", steps=steps, split="all")
        for name in arguments.masks:
            for seed in arguments.seeds:
                mask = DRAWN.get(name)
                if mask is None:
                    result = DamResult.load(gates_file(arguments, seed))
                    mask = result.mask(sparsity=1 - DENSITY)
                judged = ms.compare(
                    {name: mask},
                    evaluator,
                    run=arguments.runs / "judged" / f"{name.replace(' ', '_')}_{steps}_{seed}",
                    seeds=(seed,),
                    executor=ms.Local(1, threads=1),
                )
                print(name, steps, seed, judged.frame()["loss"].tolist(), flush=True)


def table(arguments: argparse.Namespace) -> None:
    """One row a training, paired differences, and pictures of the gates."""
    folder = arguments.runs / "results" if arguments.smoke else HERE / "results"
    folder.mkdir(parents=True, exist_ok=True)
    losses: dict[tuple[str, int], dict[int, float]] = {}
    rows = []
    for study in studies_in(arguments.runs / "judged"):
        for record in study.records:
            if not record.scored:
                continue
            name, loss = record.name, record.values["loss"]
            losses.setdefault((name, record.step), {})[record.seed] = loss
            density = 1 - record.measures["sparsity"]
            figures = [f"{density:.4f}", f"{loss:.4f}", f"{record.seconds:.0f}"]
            rows.append([name, record.step, record.seed, *figures])
    write(folder / "judged.csv", ["mask", "steps", "seed", "density", "loss", "seconds"], rows)
    differences = []
    for (name, steps), values in sorted(losses.items()):
        other = losses.get(("star", steps), {})
        if name != "star" and len(values.keys() & other.keys()) > 1:
            found = paired_difference(values, other)
            figures = [found.value, found.low, found.high, found.p_value]
            differences.append([name, steps, found.n, *(f"{x:.4f}" for x in figures)])
    header = ["mask", "steps", "seeds", "minus_star", "low", "high", "p"]
    write(folder / "differences.csv", header, differences)
    results = {
        seed: DamResult.load(path)
        for seed in arguments.seeds
        if (path := gates_file(arguments, seed)).is_file()
    }
    texts = []
    for seed, result in results.items():
        named = nearest_family(result.mask(sparsity=1 - DENSITY))
        texts.append(f"seed {seed}, IoU {named.iou:.3f}: {named.text}")
        warmup = round(CONFIG["dense_warmup"] * CONFIG["steps"])
        save(plot_dam(result.curve, warmup), folder, f"course_{seed}")
        save(plot_offsets(result.probabilities), folder, f"offsets_{seed}")
    (folder / "nearest.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    if len(results) > 1:
        first, *rest = results.values()
        card = first.health(others=rest)
        (folder / "health.json").write_text(json.dumps(card.agreement, indent=1))


def write(path: Path, header: list[str], rows: list[list[object]]) -> None:
    """A CSV file."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


if __name__ == "__main__":
    main()
