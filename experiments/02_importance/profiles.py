"""Which positions matter to a dense model: maps, profiles over offsets, and over training."""

from __future__ import annotations

import csv
import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from dynamics import importance_dynamics
from learned import learned_importance
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

import masksearch as ms
from masksearch.analysis.stats import Interval, estimate
from masksearch.positions.analysis import importance
from masksearch.positions.attention_maps import attention_maps
from masksearch.positions.result import Importance
from masksearch.report.style import PRINT
from masksearch.training.loop import TrainConfig

METHODS = ("gradient", "flip", "drop", "learned", "attention")
COLOURS = ("#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#222222", "#999999")
DIAGONAL = "#D55E00"


@dataclass(frozen=True)
class Subject:
    """A kind of dense model whose positions are studied."""

    name: str
    evaluator: ms.PlantedEvaluator | ms.MlmEvaluator
    special: Mapping[str, Sequence[int]]  # name -> token ids
    near: tuple[int, ...]  # offsets that are followed during training
    steps: int  # optimiser steps, also of the learned scales
    seeds: Sequence[int]


@dataclass(frozen=True)
class Seen:
    """What was measured of one seed."""

    units: dict[tuple[str, str, str], float]  # method, kind, unit -> value
    table: Tensor  # [n, n], flip, all layers and heads together
    curve: dict[tuple[int, str], float]  # step, unit -> rise of the loss
    losses: dict[int, float]  # step -> held-out loss


def units_of(found: Importance) -> dict[tuple[str, str, str], float]:
    """The mean over layers (all are pooled but for the learned scales)."""
    frame = found.frame()
    means = frame.groupby(["kind", "unit"], sort=False)["mean"].mean()
    return {(found.method, kind, str(unit)): value for (kind, unit), value in means.items()}


def seen(subject: Subject, seed: int) -> Seen:
    """Trains one dense model, following it, then measures it in every way."""
    config = TrainConfig(steps=subject.steps, lr=subject.evaluator.lr)
    made = subject.evaluator.differentiable(seed)
    dynamics = importance_dynamics(
        made.model,
        made.batches,
        held_out=made.held_out,
        steps=subject.steps,
        method="drop",
        special=subject.special,
        offsets=subject.near,
        keys=(),
        config=config,
    )
    units: dict[tuple[str, str, str], float] = {}
    length = made.held_out[0]["input_ids"].shape[1]
    every = range(1 - length, length)
    for method in ("gradient", "flip", "drop"):
        found = importance(
            made.model,
            made.held_out,
            method=method,
            per="model",
            special=subject.special,
            offsets=every,
        )
        units |= units_of(found)
        if method == "flip":
            table = found.values[0, 0]
    looks = attention_maps(made.model, made.held_out, special=subject.special)
    shares = looks.by_offset.nanmean((0, 1)).tolist()
    for offset, share in zip(looks.offsets, shares, strict=True):
        units["attention", "offset", str(offset)] = share
    for name, share in looks.special.items():
        units["attention", "special", name] = share.mean().item()
    fresh = subject.evaluator.differentiable(seed)
    units |= units_of(
        learned_importance(
            fresh.model,
            itertools.islice(fresh.batches, subject.steps),
            per="layer",
            special=subject.special,
            steps=subject.steps,
            lr=subject.evaluator.lr,
        )
    )
    rows = dynamics.frame()
    rows = rows[rows["kind"] != "key"]
    curve = {
        (step, str(unit)): mean
        for step, unit, mean in zip(rows["step"], rows["unit"], rows["mean"], strict=True)
    }
    losses = {s: one.loss for s, one in zip(dynamics.steps, dynamics.snapshots, strict=True)}
    for method in METHODS:
        line = [v for (how, kind, _), v in units.items() if (how, kind) == (method, "offset")]
        own = units[method, "offset", "0"]
        least = 1 + sum(value < own for value in line)
        units[method, "place", f"diagonal, of {len(line)} offsets"] = least  # 1 = matters least
    return Seen(units, table, curve, losses)


def profiles(subject: Subject, out: Path) -> None:
    """All seeds of one subject; writes its tables and its figure."""
    found: list[Seen] = []
    for seed in subject.seeds:
        started = time.monotonic()
        found.append(seen(subject, seed))
        loss = found[-1].losses[subject.steps]
        print(
            f"{subject.name} seed {seed}: held-out loss {loss:.3f}, "
            f"{time.monotonic() - started:.0f} s",
            flush=True,
        )
    units = {key: estimate([one.units[key] for one in found]) for key in found[0].units}
    curve = {key: estimate([one.curve[key] for one in found]) for key in found[0].curve}
    losses = {step: estimate([one.losses[step] for one in found]) for step in found[0].losses}
    titles = ["mean", "low", "high", "seeds"]
    with (out / f"importance_{subject.name}.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["method", "kind", "unit", *titles])
        table.writerows([*key, *numbers(value)] for key, value in units.items())
    with (out / f"dynamics_{subject.name}.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["step", "unit", *titles])
        table.writerows([step, "held-out loss", *numbers(v)] for step, v in losses.items())
        table.writerows([*key, *numbers(value)] for key, value in curve.items())
    total = torch.stack([one.table for one in found]).mean(0)
    draw(subject, units, curve, total, out / f"importance_{subject.name}.png")


def numbers(value: Interval) -> list[str]:
    """Mean, bounds and seeds for a table."""
    return [f"{x:.5g}" for x in (value.value, value.low, value.high)] + [str(value.n)]


@rc_context(PRINT)
def draw(
    subject: Subject,
    units: Mapping[tuple[str, str, str], Interval],
    curve: Mapping[tuple[int, str], Interval],
    table: Tensor,
    path: Path,
) -> None:
    """The map, the profiles of two methods over the offsets, and the training run."""
    figure = Figure(figsize=(14, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 4)
    top = table.abs().max().item()
    image = panels[0].imshow(table, cmap="PuOr_r", vmin=-top, vmax=top)
    figure.colorbar(image, ax=panels[0], shrink=0.8)
    panels[0].set_title("rise of the loss, one pair dropped\n(nats, first order)", fontsize=9)
    panels[0].set(xlabel="key position", ylabel="query position")
    for panel, method, title in (
        (panels[1], "drop", "rise of the loss, a whole offset dropped\n(nats)"),
        (panels[2], "learned", "learned scale\n(mean of the pairs)"),
    ):
        line = {
            int(unit): value
            for (how, kind, unit), value in units.items()
            if (how, kind) == (method, "offset")
        }
        at = sorted(line)
        low, high = [line[i].low for i in at], [line[i].high for i in at]
        panel.plot(at, [line[i].value for i in at], ".-", color=COLOURS[0], label="offset")
        panel.fill_between(at, low, high, color=COLOURS[0], alpha=0.2)
        panel.plot(0, line[0].value, "o", color=DIAGONAL, label="diagonal")
        for colour, name in zip(COLOURS[1:], subject.special, strict=False):
            value = units[method, "special", name].value
            panel.axhline(value, color=colour, linestyle="--", label=f"to {name}")
        panel.set_xlabel("offset (key minus query)")
        panel.set_title(title, fontsize=9)
    steps = sorted({step for step, _ in curve})
    followed = {str(offset): f"offset {offset:+d}" for offset in subject.near if offset}
    followed |= {name: f"to {name}" for name in subject.special} | {"0": "diagonal"}
    for colour, (unit, label) in zip(COLOURS, followed.items(), strict=False):
        colour = DIAGONAL if unit == "0" else colour
        line = [curve[step, unit] for step in steps]
        panels[3].plot(steps, [one.value for one in line], label=label, color=colour)
        low, high = [one.low for one in line], [one.high for one in line]
        panels[3].fill_between(steps, low, high, color=colour, alpha=0.15)
    panels[3].set_xscale("symlog", linthresh=1)
    panels[3].set_xlabel("optimiser steps")
    panels[3].set_title("rise of the loss, dropped while training\n(nats)", fontsize=9)
    for panel in panels[1:]:
        panel.axhline(0, color="0.6", linewidth=0.6)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7)
    figure.suptitle(f"{subject.name}, dense attention, {len(subject.seeds)} seeds", fontsize=10)
    figure.savefig(path, dpi=120)
