"""DAM on planted processes: one run and what it recovers; finished runs are kept.

Used by benchmarks/dam.py and experiments/03_dam_planted.
"""

from __future__ import annotations

import csv
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import masksearch as ms
from masksearch.analysis.stats import estimate
from masksearch.contracts import mixed_seed
from masksearch.evaluators.planted import HEAD, WEIGHTS
from masksearch.gates.config import preset
from masksearch.gates.gates import Gates
from masksearch.gates.result import DamResult
from masksearch.gates.sparsebert import PublishedGates
from masksearch.models.encoders import MaskedLanguageModel, Output, encoder
from masksearch.models.sizes import SIZES, Size
from masksearch.tasks.planted.process import PlantedProcess

NANO = SIZES["nano"]
KEY = ("part", "cell", "seed")
FIGURES = (
    *("auroc", "precision", "density", "target", "true_density", "held_out"),
    *("score", "oracle", "dense", "share", "margin", "value", "trials"),
    *("cpu_seconds", "wall_seconds", "load", "problems", "warmup_steps"),
)
Row = dict[str, Any]


class Recovery(NamedTuple):
    """Agreement of edge probabilities with the true edges; both figures lie in [0, 1]."""

    auroc: float  # chance that a true edge ranks above a false one, ties counted half
    precision: float  # share of true edges among the likeliest ones, as many as there are true


def recovery(probabilities: Tensor, edges: Tensor) -> Recovery:
    """Scores gates against the edges of a planted process.

    An edge counts with its largest probability over layers and heads, because one head that
    looks there is enough. The diagonal is left out. Of equally likely edges at the boundary the
    expected share counts, so that gates that say nothing score 0.5 and the share of true edges.

    Args:
        probabilities: float `[layers, heads, n, n]`, or any leading axes.
        edges: bool `[n, n]`, query by key; the diagonal is ignored.

    Raises:
        ValueError: If no edge off the diagonal is true, or all are.

    >>> edges = torch.eye(3).roll(1, 0) > 0
    >>> recovery(edges.float(), edges)
    Recovery(auroc=1.0, precision=1.0)
    """
    length = edges.shape[-1]
    off_diagonal = ~torch.eye(length, dtype=torch.bool)
    scores = probabilities.detach().double().cpu().reshape(-1, length, length).amax(0)
    scores, true = scores[off_diagonal], edges.cpu()[off_diagonal]
    count = int(true.sum())
    if count in (0, len(true)):
        raise ValueError(f"recovery needs both true and false edges, got {count} of {len(true)}")
    hits, others = scores[true], scores[~true].sort().values
    below = torch.searchsorted(others, hits)
    not_above = torch.searchsorted(others, hits, right=True)
    auroc = (below + not_above).double().mean() / (2 * len(others))
    boundary = scores.topk(count).values[-1]
    above, tied = scores > boundary, scores == boundary
    found = true[above].sum() + (count - above.sum()) * true[tied].double().mean()
    return Recovery(auroc.item(), found.item() / count)


@dataclass(frozen=True)
class Sized(ms.PlantedEvaluator):
    """A `PlantedEvaluator` of any size; the spread of the initial weights follows the width."""

    dimensions: Size = NANO

    @property
    def shape(self) -> ms.Shape:
        return ms.Shape(self.process.length, self.dimensions.layers, self.dimensions.heads)

    @property
    def protocol(self) -> str:
        return f"{super().protocol} {asdict(self.dimensions)}"

    def build_model(self, seed: int) -> MaskedLanguageModel:
        body = encoder(
            self.dimensions,
            self.process.ids,
            self.process.length,
            seed=mixed_seed(seed, WEIGHTS),
            initializer_range=self.initializer_range * (NANO.width / self.dimensions.width) ** 0.5,
        )
        return MaskedLanguageModel(body, seed=mixed_seed(seed, HEAD))


class Scaled(nn.Module):
    """A model whose loss is multiplied by a constant."""

    def __init__(self, model: nn.Module, factor: float) -> None:
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> Output:
        output = self.model(input_ids, labels)
        if output.loss is None:
            return output
        return Output(output.logits, output.loss * self.factor)


@dataclass(frozen=True)
class Setting:
    """One way of running DAM on one process.

    Args:
        process: What the edges are planted in.
        config: Arguments of `DamConfig`.
        gates: Arguments of `Gates` beside length, heads and seed.
        kind: Gates of that class.
        dimensions: Of the model.
        preset: Name of a preset that `config` then changes, with the published gates.
        loss_factor: Constant on the model's loss.
        initializer_range: Standard deviation of the initial weights at width 64; None = that of
            a `PlantedEvaluator`.
    """

    process: PlantedProcess
    config: Mapping[str, Any] = field(default_factory=dict)
    gates: Mapping[str, Any] = field(default_factory=dict)
    dimensions: Size = NANO
    kind: type[Gates] = Gates
    preset: str | None = None
    loss_factor: float = 1.0
    initializer_range: float | None = None

    @property
    def evaluator(self) -> Sized:
        """What the masks of this setting are judged by."""
        found = Sized(self.process, dimensions=self.dimensions)
        if self.initializer_range is None:
            return found
        return replace(found, gate_initializer_range=self.initializer_range)

    def run(self, seed: int) -> tuple[DamResult, Row]:
        """One search, with its figures; the clock stands while nothing is searched."""
        source = self.evaluator.differentiable(seed)
        model = source.model if self.loss_factor == 1 else Scaled(source.model, self.loss_factor)
        size = {"length": self.process.length, "heads": self.dimensions.heads}
        if self.preset is not None:
            gates = PublishedGates("symmetric", **size, seed=seed)
            config = replace(preset(self.preset), **self.config)
        else:
            gates = self.kind(**{**size, "seed": seed, **self.gates})
            config = ms.DamConfig(**self.config)
        cpu, wall = time.process_time(), time.perf_counter()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "DAM: ")  # kept as `problems`
            result = ms.dam(model, source.batches, gates, config, held_out=source.held_out)
        health = result.health()
        row = {
            **recovery(result.probabilities, self.process.edges)._asdict(),
            "density": health.density,
            "target": result.target,
            "true_density": self.process.edges.float().mean().item(),
            "held_out": result.held_out,
            "warmup_steps": float(result.warmup_steps),
            "cpu_seconds": time.process_time() - cpu,
            "wall_seconds": time.perf_counter() - wall,
            "problems": "; ".join(problem.split(" (")[0] for problem in health.problems.values()),
        }
        return result, row


def judged(
    evaluator: ms.PlantedEvaluator, mask: ms.Mask, seed: int
) -> tuple[dict[str, float], float]:
    """The last report's values of one mask, trained from scratch, and its CPU seconds."""
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        *_, last = evaluator(mask, seed=seed, workdir=Path(folder))
    return dict(last.values), time.process_time() - start


def oracle_density(process: PlantedProcess) -> float:
    """Density of the planted edges with the diagonal."""
    return process.oracle.density(process.length)


class Cells:
    """Finished runs in a CSV file, appended as they end; what is there is not run again.

    Args:
        path: The file; made if missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[Row] = []
        if path.is_file():
            with path.open(newline="", encoding="utf-8") as file:
                self.rows = [parsed(row) for row in csv.DictReader(file)]
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerow([*KEY, *FIGURES])

    def run(self, part: str, cell: str, seed: int, make: Callable[[int], Row]) -> Row:
        """The row of that run: read, or made and written."""
        for row in self.rows:
            if (row["part"], row["cell"], row["seed"]) == (part, cell, seed):
                return row
        row = {"part": part, "cell": cell, "seed": seed, "load": os.getloadavg()[0]} | make(seed)
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow([written(row.get(name)) for name in (*KEY, *FIGURES)])
        self.rows.append(row)
        shown = {n: v for n, v in row.items() if n not in KEY and v not in (None, "")}
        text = " ".join(f"{n} {written(v)}" for n, v in shown.items())
        print(f"{part} {cell}, seed {seed}: {text}", flush=True)
        return row

    def of(self, part: str) -> dict[str, list[Row]]:
        """The rows of a part by cell, in the order in which they were run."""
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            if row["part"] == part:
                found.setdefault(row["cell"], []).append(row)
        return found


def written(value: Any) -> str:
    """A figure as the file holds it."""
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def parsed(row: Mapping[str, str]) -> Row:
    """A row of the file with its numbers."""
    numbers = {n: float(v) for n, v in row.items() if n in FIGURES and n != "problems" and v}
    return {**row, **numbers, "seed": int(row["seed"])}


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Mean, 95 % interval (Student's t), number of seeds and the worst, of every figure."""
    found: dict[str, Any] = {}
    for name in FIGURES:
        values = [row[name] for row in rows if isinstance(row.get(name), float)]
        if values:
            e = estimate(values)
            found[name] = {
                "mean": e.value,
                "low": e.low if len(values) > 1 else None,
                "high": e.high if len(values) > 1 else None,
                "least": min(values),
                "most": max(values),
                "seeds": len(values),
            }
    return found


def shown(rows: Sequence[Row], name: str, digits: int = 3) -> str:
    """A figure for a table: mean, and the interval where there are two seeds."""
    values = [row[name] for row in rows if isinstance(row.get(name), float)]
    if not values:
        return ""
    e = estimate(values)
    if len(values) == 1 or max(values) == min(values):
        return f"{e.value:.{digits}f}"
    return f"{e.value:.{digits}f} [{e.low:.{digits}f}, {e.high:.{digits}f}]"


def with_density(setting: Setting, density: float) -> Setting:
    """The same setting with another target."""
    return replace(setting, config={**setting.config, "density": density})
