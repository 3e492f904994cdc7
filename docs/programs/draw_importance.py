"""Measures attention positions on a process whose edges are known, and draws the figures.

    python docs/programs/draw_importance.py          # docs/images/importance_*.png, under a minute
    python docs/programs/draw_importance.py --table  # the table of docs/importance.md, three seeds

The model is the one of `PlantedEvaluator`: one layer, two heads, 24 positions; a hidden token
depends on its partner 11 positions away and on the key token at position 0.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from matplotlib.figure import Figure
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments" / "02_importance"))
from dynamics import Dynamics, importance_dynamics, plot_importance_dynamics
from learned import learned_importance

import masksearch as ms
from masksearch.contracts import mixed_seed
from masksearch.evaluators.planted import DATA
from masksearch.positions.analysis import importance
from masksearch.positions.attention_maps import attention_maps
from masksearch.positions.result import Importance
from masksearch.report.dam import GATES, plot_heads
from masksearch.report.style import write_figure
from masksearch.training.loop import TrainConfig, train

IMAGES = Path(__file__).parents[1] / "images"
STEPS = 400  # of dense training
LEARNED_STEPS = (400, 1000)
DPI = 90
EVALUATOR = ms.PlantedEvaluator()
CONFIG = TrainConfig(steps=STEPS, lr=EVALUATOR.lr)
FIRST_KEY = EVALUATOR.process.vocabulary + 1
KEY = {"key token": (FIRST_KEY, FIRST_KEY + 1)}


def trained(seed: int) -> nn.Module:
    """The model after dense training."""
    model = EVALUATOR.build_model(seed)
    for _ in train(model, EVALUATOR.task.batches(mixed_seed(seed, DATA)), CONFIG):
        pass
    return model


def learned(seed: int, steps: int) -> Importance:
    """Scales learned from the start of the training."""
    return learned_importance(
        EVALUATOR.build_model(seed),
        EVALUATOR.task.batches(mixed_seed(seed, DATA)),
        per="model",
        steps=steps,
        lr=EVALUATOR.lr,
    )


def auroc(scores: Tensor) -> float:
    """Of the true edges against all other pairs, the diagonal left out."""
    off = ~torch.eye(EVALUATOR.process.length, dtype=torch.bool)
    edges = EVALUATOR.process.edges[off]
    return float(roc_auc_score(edges.numpy(), scores[off].double().numpy()))


def print_table() -> None:
    """AUROC of each measure and the largest exact effects, for three seeds."""
    held_out = EVALUATOR.task.held_out()
    rows: dict[str, list[str]] = {}

    def add(name: str, value: str) -> None:
        rows.setdefault(name, []).append(value)

    for seed in range(3):
        model = trained(seed)
        add("accuracy", f"{EVALUATOR.masked_prediction(model, held_out)[0]['accuracy']:.2f}")
        add("attention map", f"{auroc(attention_maps(model, held_out).maps.mean((0, 1))):.3f}")
        for method in ("gradient", "flip"):
            for signed in (True, False):
                found = importance(model, held_out, method=method, per="model", signed=signed)
                name = f"{method}, {'signed' if signed else 'signed=False'}"
                add(name, f"{auroc(found.values[0, 0]):.3f}")
        found = importance(model, held_out, method="fisher", per="model")
        add("fisher", f"{auroc(found.values[0, 0]):.3f}")
        for steps in LEARNED_STEPS:
            add(f"learned, {steps} steps", f"{auroc(learned(seed, steps).values[0, 0]):.3f}")
        wide = range(1 - EVALUATOR.process.length, EVALUATOR.process.length)
        drop = importance(model, held_out, method="drop", per="model", offsets=wide)
        for kind, profile in (("offset", drop.by_offset), ("key", drop.by_key)):
            for rank, index in enumerate(profile.mean[0, 0].topk(3).indices.tolist()):
                effect = profile.mean[0, 0, index].item()
                add(f"drop, {kind} number {rank + 1}", f"{profile.at[index]}: {effect:.3f}")
        mean, low, high = (bound.item() for bound in drop.diagonal)
        add("drop, diagonal", f"{mean:.4f} [{low:.4f}, {high:.4f}]")
    for name, values in rows.items():
        print(f"| {name} | {' | '.join(values)} |")


def dynamics() -> tuple[nn.Module, Dynamics]:
    """A dense training run with the exact effect of offsets on the way."""
    model = EVALUATOR.build_model(0)
    found = importance_dynamics(
        model,
        EVALUATOR.task.batches(mixed_seed(0, DATA)),
        held_out=EVALUATOR.task.held_out(),
        steps=STEPS,
        at=(0, 25, 50, 100, 150, 200, 250, 300, STEPS),
        method="drop",
        offsets=range(-14, 15),
        keys=(),
        special=KEY,
        config=CONFIG,
    )
    return model, found


def write(figure: Figure, name: str) -> None:
    """A small PNG."""
    path = write_figure(figure, IMAGES / f"importance_{name}.png", DPI)
    print(f"{path.name}  {path.stat().st_size / 1000:.0f} kB")


def draw() -> None:
    """Both figures, from one training run."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    model, moving = dynamics()
    held_out = EVALUATOR.task.held_out()
    maps = attention_maps(model, held_out).maps.float().cpu()
    write(plot_heads(maps, "attention weight", GATES, (0.0, maps.max().item())), "maps")
    lines = {
        "key token": [found.special["key token"] for found in moving.snapshots],
        "diagonal": [found.diagonal for found in moving.snapshots],
    }
    profiles = [found.by_offset for found in moving.snapshots]
    write(plot_importance_dynamics(moving.steps, profiles, lines), "dynamics")
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    torch.set_num_threads(1)
    if "--table" in sys.argv[1:]:
        print_table()
    else:
        draw()
