"""Adds what a mask costs to any evaluator: score, sparsity and latency as three objectives.

evaluator = WithCost(MlmEvaluator("wikitext-2"), length=1024)
evaluator.objectives        # the inner ones, and latency_ratio
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from masksearch.contracts import (
    Objective,
    Report,
)
from masksearch.errors import LengthError
from masksearch.evaluators.around import Around
from masksearch.evaluators.cost import CostEvaluator
from masksearch.masks.core import Mask
from masksearch.masks.families import cropped


@dataclass(frozen=True)
class WithCost(Around):
    """Runs an evaluator and adds costs of the mask to its reports and objectives.

    The costs are taken before the training, and every report carries them, the last one
    included: a scheduler that compares unfinished trials sees all objectives. Their names:

    * `latency_ratio`: time of the mask's faster kernel over dense attention's (see
      `CostEvaluator`); `latency`: the same time in milliseconds. Both are reported, with
      `latency_dense`, `latency_masked` and `latency_gather`; one is an objective.
    * `memory`: bytes of the kept blocks' scores and of the kernel's index plan.

    It offers gradients (`differentiable`), and carries its data (`packed`), exactly where the
    inner evaluator does.

    Args:
        evaluator: Any evaluator.
        latency: `"ratio"` (or True) for the objective `latency_ratio`, `"milliseconds"` for
            `latency`, False for neither. Measured: two runs differ by some percent.
        memory: Whether `memory` is an objective.
        length: Positions at which the costs are taken; None = the evaluator's. A mask of rules
            is taken at that length as it is. One that holds a table is cropped where `length`
            is shorter, and refused where it is longer: tables do not stretch. A search then
            answers only equal expressions from its study, not equal cells (`beyond_shape`).
        block: Side of the kernel's block, in positions.
        width: Width of one head.
        repeats: Rounds of a latency.

    Raises:
        ValueError: If neither cost is chosen, or the evaluator has an objective of that name.
    """

    latency: bool | Literal["ratio", "milliseconds"] = True
    memory: bool = False
    length: int | None = None
    block: int = 64
    width: int = 64
    repeats: int = 5

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
        super().__post_init__()

    @property
    def cost(self) -> CostEvaluator:
        """What takes the costs."""
        shape = self.shape
        chosen = "latency" if self.latency == "milliseconds" else "latency_ratio"
        return CostEvaluator(
            length=shape.length if self.length is None else self.length,
            layers=shape.layers,
            heads=shape.heads,
            width=self.width,
            block=self.block,
            measure=(chosen,) * bool(self.latency) + ("memory",) * self.memory,
            repeats=self.repeats,
        )

    @property
    def beyond_shape(self) -> bool:
        """Whether a mask is looked at beyond `shape`, where masks of equal cells may differ."""
        return self.length not in (None, self.shape.length)

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """The inner evaluator's, then the costs."""
        return (*self.evaluator.objectives, *self.cost.objectives)

    @property
    def protocol(self) -> str:
        """Short hash of the inner protocol and of the costs' settings."""
        text = f"with-cost-1 {self.evaluator.protocol} {self.cost.protocol}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def __call__(self, mask: Mask, *, seed: int, workdir: Path) -> Iterator[Report]:
        """Yields the inner evaluator's reports, each with the costs.

        Args:
            mask: Any mask that fits `shape` (and `length`).
            seed: The inner evaluator's; also of the numbers that a latency computes with.
            workdir: The inner evaluator's.

        Raises:
            LengthError: If the mask does not have the length at which the costs are taken.
        """
        mask.counts(self.shape.layers, self.shape.heads)
        costs = self.costs(mask, seed)
        reports = self.evaluator(mask, seed=seed, workdir=workdir)
        try:
            for report in reports:
                yield replace(report, values={**report.values, **costs})
        finally:
            close = getattr(reports, "close", None)
            if close is not None:
                close()  # a closed wrapper stops the run within

    def costs(self, mask: Mask, seed: int) -> dict[str, float]:
        """The costs by name, at the length of the costs."""
        cost, own = self.cost, self.shape.length
        if cost.length < own and mask.length is not None:
            mask = cropped(mask, own)
        try:
            return cost.costs(mask, seed=seed, strict=cost.length == own)
        except LengthError as error:
            if cost.length == own:
                raise
            raise LengthError(
                f"the costs are taken at {cost.length} positions, where this mask does not "
                f"exist ({error}); leave length=None to take them at {own}"
            ) from error
