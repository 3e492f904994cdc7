"""Can a Transformer without diagonal attention fit any map of sequences? Small finite maps."""

from __future__ import annotations

import csv
import itertools
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from stacked import Arm, Fit, Size, fit, influences
from torch import Tensor

from masksearch.analysis.stats import estimate
from masksearch.contracts import generator
from masksearch.report.style import PRINT

ARMS = (
    Arm("diagonal, residual", diagonal=True, residual=True),
    Arm("no diagonal, residual", diagonal=False, residual=True),
    Arm("diagonal, no residual", diagonal=True, residual=False),
    Arm("no diagonal, no residual", diagonal=False, residual=False),
    Arm("the last, queries blind", diagonal=False, residual=False, token_queries=False),
)
MAPS = ("identity", "rotation", "sorting", "parity", "random table")
VOCABULARY = {2: 8, 3: 4, 8: 2}  # by length: 64, 64 and 256 sequences, all of them
CASES = ((2, 1), (2, 2), (2, 3), (3, 1), (3, 2), (8, 1), (8, 2))  # length, depth
SEEDS = range(5)
STEPS = 1_000
BATCH = 64
LR = 4e-3
EVERY = 10
SHARES = ("tokens", "sequences")
TABLE = 52  # stream of random numbers


@dataclass(frozen=True)
class Row:
    """One arm on one map, over all seeds."""

    length: int
    depth: int
    map: str
    arm: str
    ceiling: float  # predicted share of right tokens
    fits: tuple[Fit, ...]


def all_sequences(length: int) -> Tensor:
    """Every sequence of that length, `[vocabulary ** length, length]`."""
    return torch.tensor(list(itertools.product(range(VOCABULARY[length]), repeat=length)))


def target(name: str, x: Tensor, seed: int) -> Tensor:
    """What the map gives for the sequences; only the random table depends on the seed."""
    if name == "identity":
        return x
    if name == "rotation":
        return x.roll(-1, 1)
    if name == "sorting":
        return x.sort(1).values
    if name == "parity":
        return (x + x.roll(-1, 1)) % 2
    high = VOCABULARY[x.shape[1]]
    return torch.randint(high, x.shape, generator=generator(seed, TABLE, x.shape[1]))


def ceiling(x: Tensor, y: Tensor, influence: Tensor) -> float:
    """Largest share of right tokens where each output depends on some tokens alone.

    Args:
        x: All sequences, equally likely.
        y: What is wanted.
        influence: bool `[outputs, inputs]`.
    """
    right = 0
    for position, seen in enumerate(influence):
        groups: dict[tuple[int, ...], list[int]] = {}
        for given, wanted in zip(x[:, seen].tolist(), y[:, position].tolist(), strict=True):
            groups.setdefault(tuple(given), []).append(wanted)
        right += sum(max(map(group.count, set(group))) for group in groups.values())
    return right / y.numel()


def case(length: int, depth: int, seeds: Sequence[int], steps: int) -> list[Row]:
    """Fits every map with every arm and seed, all at once."""
    x = all_sequences(length)
    models = list(itertools.product(MAPS, ARMS, seeds))
    wanted = {(name, seed): target(name, x, seed) for name in MAPS for seed in seeds}
    y = torch.stack([wanted[name, seed] for name, _, seed in models])
    size = Size(length, VOCABULARY[length], depth)
    arms, drawn = [arm for _, arm, _ in models], [seed for *_, seed in models]
    fits = fit(size, arms, drawn, x, y, steps=steps, batch=BATCH, lr=LR, every=EVERY)
    rows = []
    for start in range(0, len(models), len(seeds)):
        name, arm, _ = models[start]
        influence = influences(arm, length, depth)
        tops = [ceiling(x, wanted[name, seed], influence) for seed in seeds]
        found = tuple(fits[start : start + len(seeds)])
        rows.append(Row(length, depth, name, arm.name, statistics.mean(tops), found))
    return rows


def approximation(out: Path, smoke: bool) -> None:
    """All cases; writes the table and the figure."""
    cases, seeds, steps = (((2, 1),), range(2), 50) if smoke else (CASES, SEEDS, STEPS)
    rows: list[Row] = []
    for length, depth in cases:
        started = time.monotonic()
        rows += case(length, depth, list(seeds), steps)
        print(f"length {length}, depth {depth}: {time.monotonic() - started:.0f} s", flush=True)
    write(rows, out / "approximation.csv")
    draw(rows, out / "approximation.png")


def write(rows: Sequence[Row], path: Path) -> None:
    """One line an arm, map, length and depth."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        what = [f"{share}{bound}" for share in SHARES for bound in ("", " low", " high")]
        ends = ["exact seeds", "reached 99%", "median steps"]
        table.writerow(["length", "depth", "map", "arm", "predicted", *what, *ends])
        for row in rows:
            tokens = estimate([one.tokens for one in row.fits])
            whole = estimate([one.sequences for one in row.fits])
            reached = [one.steps for one in row.fits if one.steps is not None]
            every = len(reached) == len(row.fits)
            means = [tokens.value, tokens.low, tokens.high, whole.value, whole.low, whole.high]
            table.writerow(
                [row.length, row.depth, row.map, row.arm, f"{row.ceiling:.4f}"]
                + [f"{figure:.4f}" for figure in means]
                + [sum(one.sequences == 1 for one in row.fits), len(reached)]
                + [round(statistics.median(reached)) if every else ""]
            )


@rc_context(PRINT)
def draw(rows: Sequence[Row], path: Path) -> None:
    """Right tokens by map and arm, a panel a case; the prediction below where it is not 1."""
    cases = list(dict.fromkeys((row.length, row.depth) for row in rows))
    width = min(4, len(cases))
    height = -(-len(cases) // width)
    figure = Figure(figsize=(3.1 * width + 2, 2.5 * height + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(height, width, squeeze=False).flatten()
    for panel in panels[len(cases) :]:
        panel.axis("off")
    for number, (panel, (length, depth)) in enumerate(zip(panels, cases, strict=False)):
        held = {(r.map, r.arm): r for r in rows if (r.length, r.depth) == (length, depth)}
        cells = [[held[name, arm.name] for name in MAPS] for arm in ARMS]
        shares = np.array([[np.mean([f.tokens for f in c.fits]) for c in line] for line in cells])
        panel.imshow(shares, vmin=0, vmax=1, cmap="cividis", aspect="auto")
        for at, cell in np.ndenumerate(np.array(cells, dtype=object)):
            text = f"{shares[at]:.3f}"
            if cell.ceiling < 1:
                text += f"\n({cell.ceiling:.3f})"
            colour = "black" if shares[at] > 0.5 else "white"
            panel.text(at[1], at[0], text, ha="center", va="center", fontsize=7, color=colour)
        panel.set_xticks(range(len(MAPS)), MAPS, fontsize=7, rotation=25)
        names = [arm.name for arm in ARMS] if number % width == 0 else [""] * len(ARMS)
        panel.set_yticks(range(len(ARMS)), names, fontsize=7)
        panel.set_title(f"{length} positions, {depth} layer{'s' * (depth > 1)}", fontsize=8)
    title = "Share of right tokens (in brackets: the most that can be reached)"
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=110)
