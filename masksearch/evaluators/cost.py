"""Judges a mask by what it costs, without training: milliseconds a mask.

evaluator = CostEvaluator(length=1024, measure=("block_density", "latency_ratio"))
[report] = evaluator(masks.window(64), seed=0, workdir=Path("run"))
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from masksearch.attention.kernels.gather import GatherPlan, gather_attention
from masksearch.contracts import Evaluator, Objective, Report, Shape, generator
from masksearch.errors import LengthError, check_name
from masksearch.evaluators.wrappers import EvaluatorWrapper, closed_after
from masksearch.files import text_hash
from masksearch.masks.core import Mask
from masksearch.masks.lower import block_view, row_counts, under_causality
from masksearch.masks.measure import (
    MEASURES,
    hops,
    keys_of_rows,
    on_diagonal,
    sparsity_off_diagonal,
)
from masksearch.masks.tables import Cropped, layer_of
from masksearch.study.records import processor_name
from masksearch.training.loop import one_thread

ANALYTIC = (*MEASURES, "flops", "memory")  # the same on every machine
MEASURED = ("latency_ratio", "latency")  # depend on the machine
STREAM = 31  # stream of random numbers
KERNEL = ("gather-2",)  # changes with what the kernel computes and holds


@dataclass(frozen=True)
class CostEvaluator(Evaluator):
    """Reports costs of one pass of self-attention under the mask, not of the whole model.

    Analytic costs are exact and the same on every machine:

    * `sparsity`, `density`, `sparsity_off_diagonal`, `block_density` (at `block`): in [0, 1];
      `effective_sparsity` is the sparsity, as there is no data that could be padded.
    * `hops`: attention steps until every position has reached every other; `layers * length`,
      more than any mask needs, where some position is never reached.
    * `flops`: multiply-adds of the block kernel's two products, over all layers and heads.
    * `memory`: bytes of the kept blocks' scores in float32, and of the kernel's index plan.

    Measured costs differ from run to run by some percent, and from machine to machine:

    * `latency`: milliseconds of the faster of two kernels, masked dense attention and block
      gather (dense attention without a mask where the mask keeps everything), over all layers.
    * `latency_ratio`: the same over dense attention without a mask, timed in turn with it, so
      that changes of the clock rate hit both. It is the kernel's; the model, which
      `masksearch.measure_speed` times, gains less.

    Times are processor time of one thread, so that other processes add little, in the median of
    `repeats` rounds after one round of warm-up. A report with a measured cost also holds
    `latency_dense`, `latency_masked` and `latency_gather`, in milliseconds.

    Args:
        length: Positions.
        layers: Attention layers.
        heads: Heads of a layer.
        width: Width of one head.
        block: Side of the kernel's block, in positions.
        measure: The objectives, by name, in this order.
        repeats: Rounds of a measured cost.

    Raises:
        UnknownNameError: If `measure` names no cost.
        ValueError: If it names none, or one twice, or a number is less than 1.
    """

    length: int = 1024
    layers: int = 1
    heads: int = 4
    width: int = 64
    block: int = 64
    measure: tuple[str, ...] = ("block_density",)
    repeats: int = 5

    def __post_init__(self) -> None:
        names = (self.measure,) if isinstance(self.measure, str) else tuple(self.measure)
        object.__setattr__(self, "measure", names)
        for name in self.measure:
            check_name("cost", name, ANALYTIC + MEASURED)
        if not self.measure or len(set(self.measure)) < len(self.measure):
            raise ValueError(f"measure names one or more costs, each once, got {self.measure}")
        for name in ("width", "block", "repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        _ = self.shape

    @property
    def shape(self) -> Shape:
        """The sizes that a mask is lowered to."""
        return Shape(self.length, self.layers, self.heads)

    @property
    def pairs(self) -> int:
        """(query block, key block) pairs of dense attention, over all layers and heads."""
        return (-(-self.length // self.block)) ** 2 * self.layers * self.heads

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """The chosen costs. The worst is dense attention; for `latency` it is dense attention
        at 10^10 multiply-adds a second, a slow processor core."""
        tile = self.block * self.block
        dense_flops = 2.0 * self.width * tile * self.pairs
        worst = {
            "density": 1.0,
            "block_density": 1.0,
            "hops": float(self.layers * self.length),
            "flops": dense_flops,
            "memory": 4.0 * tile * self.pairs,
            "latency": dense_flops / 1e10 * 1e3,
            "latency_ratio": 1.0,
        }
        return tuple(
            Objective(name, "min", worst[name])
            if name in worst
            else Objective(name, "max", 0.0)  # the kinds of sparsity
            for name in self.measure
        )

    @property
    def protocol(self) -> str:
        """Short hash of all settings; with a measured cost also of processor and versions."""
        kernel = KERNEL if self.timed or "memory" in self.measure else ()
        parts = ("cost-1", asdict(self), machine() if self.timed else "", *kernel)
        return text_hash(repr(parts))

    @property
    def timed(self) -> bool:
        """Whether a measured cost is among the objectives."""
        return not set(MEASURED).isdisjoint(self.measure)

    def __call__(self, mask: Mask, *, seed: int, workdir: Path) -> Iterator[Report]:
        """Yields one report, of the costs in `measure`.

        Args:
            mask: Any mask that fits `shape`.
            seed: Seed of the numbers that a measured cost computes with; nothing else.
            workdir: Not used.

        Raises:
            EmptyRowError, HeadCountError, LayerCountError, LengthError: If the mask does not
                fit.
        """
        keys_of_rows(mask, self.shape)  # refuses a mask that does not fit
        yield Report(0, self.costs(mask, seed=seed))

    def costs(self, mask: Mask, *, seed: int = 0) -> dict[str, float]:
        """The chosen costs by name, and the times of the single kernels where they were taken.

        Args:
            mask: Any mask that fits `shape`; queries may keep no key.
            seed: Seed of the numbers that a measured cost computes with.
        """
        mask.counts(self.layers, self.heads)
        size, tile = self.length, self.block * self.block
        needs_blocks = not {"block_density", "flops", "memory"}.isdisjoint(self.measure)
        blocks = float(block_view(mask, size, self.block).double().mean()) if needs_blocks else 0.0
        analytic: dict[str, Callable[[], float]] = {
            "density": lambda: mask.density(size),
            "sparsity": lambda: mask.sparsity(size),
            "effective_sparsity": lambda: mask.sparsity(size),  # here there is no padding
            "sparsity_off_diagonal": lambda: sparsity_off_diagonal(
                row_counts(mask, size), on_diagonal(mask, size)
            ),
            "block_density": lambda: blocks,
            "hops": lambda: min(hops(mask, size), float(self.layers * size)),
            "flops": lambda: 2 * self.width * tile * blocks * self.pairs,
            "memory": lambda: (
                4 * tile * blocks * self.pairs + sum(plan.bytes for plan in self.plans(mask))
            ),
        }
        times = self.latencies(mask, seed) if self.timed else {}
        costs = {name: times[name] if name in times else analytic[name]() for name in self.measure}
        return costs | {name: times[name] for name in sorted(times)}

    def plans(self, mask: Mask) -> list[GatherPlan]:
        """One plan for each layer that the mask tells apart."""
        return [
            GatherPlan.of_mask(mask, self.length, self.block, layer)
            for layer in range(mask.layers or 1)
        ]

    def latencies(self, mask: Mask, seed: int) -> dict[str, float]:
        """Times the kernels in turn: milliseconds for all layers, and the ratio to dense."""
        source = generator(seed, STREAM)
        shape = (1, self.heads, self.length, self.width)
        query, key, value = (torch.randn(shape, generator=source) for _ in range(3))
        scaling = self.width**-0.5
        totals: dict[str, float] = {"dense": 0.0, "masked": 0.0, "gather": 0.0, "best": 0.0}
        plans = self.plans(mask)
        for layer, plan in enumerate(plans):
            table = layer_of(mask, layer).dense(self.length)
            bias = None if table.all() else table

            def attend(bias: Tensor | None) -> Tensor:
                return F.scaled_dot_product_attention(query, key, value, bias, scale=scaling)

            def gather(plan: GatherPlan) -> Tensor:
                return gather_attention(query, key, value, plan, scaling=scaling)

            kernels = [partial(attend, None), partial(attend, bias), partial(gather, plan)]
            times = race_kernels(kernels, self.repeats)
            if bias is None:  # the first two kernels are one: nothing but noise tells them apart
                times[1] = times[0]
            for name, spent in zip(totals, [*times, min(times[1:])], strict=True):
                totals[name] += spent * 1e3 * self.layers / len(plans)
        return {
            "latency": totals["best"],
            "latency_ratio": totals["best"] / totals["dense"],
            "latency_dense": totals["dense"],
            "latency_masked": totals["masked"],
            "latency_gather": totals["gather"],
        }


def race_kernels(kernels: Sequence[Callable[[], Tensor]], repeats: int) -> list[float]:
    """Median processor seconds of each, run in turn on one thread after one round unmeasured."""
    times: list[list[float]] = [[] for _ in kernels]
    with one_thread(), torch.no_grad():
        for _ in range(repeats + 1):
            for spent, kernel in zip(times, kernels, strict=True):
                start = time.thread_time()
                kernel()
                spent.append(time.thread_time() - start)
    return [statistics.median(spent[1:]) for spent in times]


@cache
def machine() -> str:
    """The machine of a measured cost: processor, threads, instruction set and torch."""
    instructions = torch.backends.cpu.get_cpu_capability()
    return f"{processor_name()}, 1 thread, {instructions}, torch {torch.__version__}"


@dataclass(frozen=True)
class WithCost(EvaluatorWrapper):
    """Runs an evaluator and adds costs of the mask to its reports and objectives.

    The costs are taken before the training, and every report carries them, the last one
    included: a scheduler that compares unfinished trials sees all objectives. They are those of
    `CostEvaluator`: `memory`, and `latency_ratio` or `latency`, of the kernel and not of a model.

    Args:
        evaluator: Any evaluator.
        latency: `"ratio"` (or True) for the objective `latency_ratio`, `"milliseconds"` for
            `latency`, False for neither. Measured: two runs differ by some percent.
        memory: Whether `memory` is an objective.
        cost_length: Positions at which the costs are taken; None = the evaluator's. A mask of
            rules is taken at that length as it is. One that holds a table is cropped where it is
            shorter, and refused where it is longer: tables do not stretch. A search then
            answers only equal expressions from its study, not equal cells (`beyond_shape`).

    Raises:
        ValueError: If neither cost is chosen, or the evaluator has an objective of that name.
    """

    latency: bool | Literal["ratio", "milliseconds"] = True
    memory: bool = False
    cost_length: int | None = None

    def __post_init__(self) -> None:
        if self.latency not in (True, False, "ratio", "milliseconds"):
            raise ValueError(
                f"latency is True, False, 'ratio' or 'milliseconds', got {self.latency!r}"
            )
        if not self.latency and not self.memory:
            raise ValueError("no cost is chosen; set latency or memory, or take the evaluator")
        names = [objective.name for objective in self.objectives]
        if len(set(names)) < len(names):
            raise ValueError(f"the evaluator has such an objective already: {', '.join(names)}")

    @property
    def cost(self) -> CostEvaluator:
        """The evaluator that takes the costs."""
        shape = self.shape
        chosen = "latency" if self.latency == "milliseconds" else "latency_ratio"
        return CostEvaluator(
            length=shape.length if self.cost_length is None else self.cost_length,
            layers=shape.layers,
            heads=shape.heads,
            measure=(chosen,) * bool(self.latency) + ("memory",) * self.memory,
        )

    @property
    def beyond_shape(self) -> bool:
        """Whether a mask is looked at beyond `shape`, where masks of equal cells may differ."""
        return self.cost_length not in (None, self.shape.length)

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """The inner evaluator's, then the costs."""
        return (*self.evaluator.objectives, *self.cost.objectives)

    @property
    def protocol(self) -> str:
        """Short hash of the inner protocol and of the costs' settings."""
        text = f"with-cost-1 {self.evaluator.protocol} {self.cost.protocol}"
        return text_hash(text)

    def __call__(self, mask: Mask, *, seed: int, workdir: Path) -> Iterator[Report]:
        """Yields the inner evaluator's reports, each with the costs.

        Args:
            mask: Any mask that fits `shape` (and `cost_length`).
            seed: The inner evaluator's; also of the numbers that a latency computes with.
            workdir: The inner evaluator's.

        Raises:
            LengthError: If the mask does not have the length at which the costs are taken.
        """
        mask.counts(self.shape.layers, self.shape.heads)
        costs = self.costs(mask, seed)
        with closed_after(self.evaluator(mask, seed=seed, workdir=workdir)) as reports:
            for report in reports:
                yield replace(report, values={**report.values, **costs})

    def costs(self, mask: Mask, seed: int) -> dict[str, float]:
        """The costs by name, at the length of the costs."""
        cost, length = self.cost, self.shape.length
        mask = under_causality(mask, self.shape)
        if cost.length < length and mask.length is not None:
            mask = Cropped(mask, length)
        try:
            return cost.costs(mask, seed=seed)
        except LengthError as error:
            if cost.length == length:
                raise
            raise LengthError(
                f"the costs are taken at {cost.length} positions, where this mask does not "
                f"exist ({error}); leave cost_length=None to take them at {length}"
            ) from error
