"""Runs DAM where the edges are known, well and badly, and draws what came of it.

    PYTHONPATH=. python docs/programs/draw_dam.py  # docs/images/dam_*.png, a table; two minutes

Process: 24 positions, 8 tokens; a hidden token depends on its partner 11 positions away and on
the key token at position 0. Model: a BERT of width 64 with 2 heads, one layer unless said.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import masksearch as ms
from benchmarks.planted_runs import recovery
from experiments.rivals.density_terms import Penalised
from masksearch.contracts import mixed_seed
from masksearch.evaluators.planted import DATA, HEAD, WEIGHTS
from masksearch.gates.gates import Gates
from masksearch.gates.result import DamResult, agreement
from masksearch.models.encoders import MaskedLanguageModel, encoder
from masksearch.models.sizes import Size
from masksearch.report.dam import (
    plot_agreement,
    plot_dam,
    plot_gates,
)
from masksearch.report.style import INK, PRINT, clean, new_figure, write_figure
from masksearch.tasks.planted import PlantedTask
from masksearch.training.loop import TrainConfig, train

IMAGES = Path(__file__).parents[1] / "images"
DPI = 90
WIDTH, HEADS = 64, 2  # of the model
SEEDS = 3
EVALUATOR = ms.PlantedEvaluator()
PROCESS = EVALUATOR.process
TASK = PlantedTask(PROCESS, 32, 256)  # sequences of a batch, and held out
HEALTHY = {"steps": 800, "dense_warmup": 0.5, "density": 0.1}  # the planted edges: 0.076
RUNS: dict[str, dict[str, object]] = {  # one thing changed in each
    "healthy": {},
    "no warm-up": {"dense_warmup": 0.0},
    "all pruned": {"control": "sum", "penalty": 0.0},  # with a term of the loss, see `searched`
    "not pruned": {"gate_lr": 5e-4},
    "undecided": {"density": 0.4},
}
AGREED = ("iou", "chance", "matched", "matched_chance")
BLUE, ORANGE = "#0072B2", "#D55E00"


def model(seed: int, layers: int = 1) -> MaskedLanguageModel:
    """A fresh model without a mask."""
    body = encoder(
        Size(layers, WIDTH, HEADS),
        PROCESS.ids,
        PROCESS.length,
        seed=mixed_seed(seed, WEIGHTS),
        initializer_range=EVALUATOR.gate_initializer_range,
    )
    return MaskedLanguageModel(body, seed=mixed_seed(seed, HEAD))


def searched(seed: int, layers: int = 1, **changes: object) -> DamResult:
    """One run of DAM with free gates, one set for each layer and head."""
    gates = Gates("free", length=PROCESS.length, heads=HEADS, layers=layers, seed=seed)
    config = ms.DamConfig(**{**HEALTHY, **changes})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "DAM: ")  # shown as the health card's
        judged = model(seed, layers)
        if config.control == "sum":
            judged = Penalised(ms.attach(judged, gates), gates, weight=1000.0)
        return ms.dam(judged, TASK, gates, config, seed=mixed_seed(seed, DATA))


def retrained(mask: ms.Mask, seed: int) -> float:
    """Held-out loss of fresh weights trained under the mask, in nats."""
    fresh, held_out = model(seed), TASK.held_out()
    ms.attach(fresh, mask, inputs={"input_ids": held_out[0]["input_ids"][:1]})
    config = TrainConfig(steps=HEALTHY["steps"], lr=ms.DamConfig().lr)
    for _ in train(fresh, TASK.batches(mixed_seed(seed, DATA)), config):
        pass
    fresh.eval()
    with torch.no_grad():
        losses = [fresh(**batch).loss.item() for batch in held_out]
    return sum(losses) / len(losses)


@rc_context(PRINT)
def side_by_side(results: Mapping[str, DamResult]) -> Figure:
    """A column for each run: its gates (largest over the heads), density and loss.

    Circles are the planted edges; the diagonal is nobody's.
    """
    figure = new_figure(2.05 * len(results), 5.6)
    rows = figure.subplots(3, len(results), gridspec_kw={"height_ratios": [1.9, 1, 1]})
    for place, (name, result) in enumerate(results.items()):
        gates, density, loss = rows[:, place]
        found = recovery(result.probabilities, PROCESS.edges)
        draw_gates(gates, result.probabilities.amax((0, 1)))
        gates.set_title(name, fontsize=11, color=INK)
        gates.set_xlabel(f"AUROC {found.auroc:.3f}", fontsize=9, color=INK)
        warm = result.config["dense_warmup"] * result.config["steps"]
        steps = [report.step for report in result.curve]
        clean(density, "", "density" if place == 0 else "")
        clean(loss, "steps", "loss (nats)" if place == 0 else "")
        density.plot(steps, [r.values["density"] for r in result.curve], color=ORANGE)
        if result.config["control"] == "hinge":
            targets = [r.values["target"] for r in result.curve]
            density.plot(steps, targets, "--", color=INK, linewidth=1)
        loss.plot(steps, [r.values["loss"] for r in result.curve], color=BLUE)
        density.set_ylim(0, 1)
        loss.set_ylim(0, 2.4)
        for axes in (density, loss):
            axes.axvspan(0, warm, color="#EEF1F4", zorder=0, linewidth=0)
            axes.tick_params(labelsize=8, labelleft=place == 0)
        density.tick_params(labelbottom=False)
    return figure


def draw_gates(axes: Axes, table: Tensor) -> None:
    """One table of probabilities, queries down, with the planted edges as circles."""
    axes.imshow(table.numpy(), cmap="Blues", vmin=0, vmax=1, interpolation="none")
    query, key = PROCESS.edges.nonzero(as_tuple=True)
    axes.scatter(key, query, s=11, facecolors="none", edgecolors=ORANGE, linewidths=0.8)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color("#AAAAAA")


@rc_context(PRINT)
def gates_of(results: Sequence[DamResult]) -> Figure:
    """The planted edges, then every head of each run, as one row of heat maps."""
    heads = [PROCESS.edges.float()[None, None], *(result.probabilities for result in results)]
    figure = plot_gates(torch.cat(heads, dim=1))
    names = ["planted"] + [f"head {head}" for _ in results for head in range(HEADS)]
    axes = figure.axes[0]
    axes.set_xticks(axes.get_xticks(), names)
    axes.set_yticks([])
    return figure


def write(figure: Figure, name: str) -> None:
    """A small PNG."""
    path = write_figure(figure, IMAGES / f"dam_{name}.png", DPI)
    print(f"{path.name}  {path.stat().st_size / 1000:.0f} kB")


def described(name: str, result: DamResult, seed: int) -> str:
    """A line of the table of docs/dam.md."""
    found, card = recovery(result.probabilities, PROCESS.edges), result.health()
    loss, density = result.held_out, card.density
    figures = f"{found.auroc:.3f} | {found.precision:.2f} | {density:.3f} | {loss:.2f}"
    return f"| {name} | {seed} | {figures} | {card.undecided:.2f} | {', '.join(card.problems)} |"


def draw() -> None:
    """All figures, and the table."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    results = {name: searched(0, **changes) for name, changes in RUNS.items()}
    seeds = {
        "warm-up 0.5": [results["healthy"], *(searched(seed) for seed in range(1, SEEDS))],
        "no warm-up": [
            results["no warm-up"],
            *(searched(seed, dense_warmup=0.0) for seed in range(1, SEEDS)),
        ],
        "warm-up 0.5, two layers": [searched(seed, layers=2) for seed in range(SEEDS)],
    }
    healthy = results["healthy"]
    fresh = retrained(healthy.mask(sparsity=1 - HEALTHY["density"]), seed=SEEDS)
    card = healthy.health(retrained=fresh)
    write(gates_of([healthy]), "gates")
    write(plot_dam(healthy.curve, round(HEALTHY["dense_warmup"] * HEALTHY["steps"])), "course")
    write(side_by_side(results), "failures")
    overlaps = {
        name: agreement(
            [result.probabilities for result in group],
            density=HEALTHY["density"],
            gates=group[0].gates,
        )
        for name, group in seeds.items()
    }
    write(plot_agreement(overlaps), "agreement")
    print("| run | seed | AUROC | precision | density | held-out loss | undecided | flags |")
    for name, result in results.items():
        print(described(name, result, 0))
    for name, group in seeds.items():
        for seed, result in enumerate(group):
            if result not in results.values():
                print(described(name, result, seed))
    for name, found in overlaps.items():
        print(f"{name}: " + " ".join(f"{key} {found[key]:.3f}" for key in AGREED))
    both_heads = [result.probabilities.amax(1, keepdim=True) for result in seeds["warm-up 0.5"]]
    print(
        f"largest over the heads, cut at .08: iou {agreement(both_heads, density=0.08)['iou']:.3f}"
    )
    kept = healthy.mask(sparsity=1 - HEALTHY["density"]).dense(PROCESS.length)[0]
    planted = kept & PROCESS.edges
    print(f"edges {kept.sum()}, planted {planted.sum()}, different {planted.any(0).sum()}")
    print({n.replace("held_out", "rounded"): loss for n, loss in card.losses.items()}, card.notes)
    for name, result in results.items():
        card = result.health()
        print(name, [*card.problems.values(), *card.warnings])
    print(f"{time.perf_counter() - start:.0f} s, CPU {time.process_time():.0f} s")


if __name__ == "__main__":
    torch.set_num_threads(1)
    draw()
